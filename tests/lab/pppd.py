#!/usr/bin/env python3
"""Speaks PPP in pppd's place for xl2tpd, pptp and pptpd, on kernels without PPP: LCP and IPCP, then IP to a TUN device.

RFC 1661, 1662 (octet-stuffed frames on a terminal or on standard input and output) and 1332. PPP_ADDRESSES in the
environment gives its own address and the peer's. It asks for nothing but those and takes what the peer asks for.
"""

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
import tty

FLAG, ESCAPE = 0x7E, 0x7D
IP, IPCP, LCP = 0x0021, 0x8021, 0xC021
REQUEST, ACK, TERMINATE, TERMINATED, PROTOCOL_REJECT, ECHO, ECHO_REPLY = 1, 2, 5, 6, 8, 9, 10
TUNSETIFF, TUN_WITHOUT_INFORMATION = 0x400454CA, 0x1001


def checksum(octets):
    """The frame check sequence, RFC 1662 C.2; over a whole frame it is 0xf0b8."""
    value = 0xFFFF
    for octet in octets:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value


class Peer:
    """One end of a PPP link."""

    def __init__(self, line_in, line_out, own, other):
        self.line_in, self.line_out, self.own, self.other = line_in, line_out, own, other
        self.octets, self.tun = bytearray(), None
        # What each side's request has been acknowledged for.
        self.done = {LCP: set(), IPCP: set()}

    def send(self, protocol, content):
        frame = b"\xff\x03" + struct.pack("!H", protocol) + content
        frame += struct.pack("<H", checksum(frame) ^ 0xFFFF)
        stuffed = bytearray([FLAG])
        for octet in frame:
            stuffed += bytes([ESCAPE, octet ^ 0x20]) if octet < 0x20 or octet in (FLAG, ESCAPE) else bytes([octet])
        stuffed.append(FLAG)
        while stuffed:
            del stuffed[: os.write(self.line_out, stuffed)]

    def packet(self, protocol, code, number, content):
        self.send(protocol, struct.pack("!BBH", code, number, 4 + len(content)) + content)

    def ask(self):
        """Our own request again, of LCP first: a magic number; of IPCP then: the address."""
        if len(self.done[LCP]) < 2:
            self.packet(LCP, REQUEST, 1, b"\x05\x06" + os.urandom(4))
        elif len(self.done[IPCP]) < 2:
            self.packet(IPCP, REQUEST, 1, b"\x03\x06" + bytes(map(int, self.own.split("."))))

    def hear(self, octets):
        self.octets += octets
        *frames, self.octets = self.octets.split(bytes([FLAG]))
        for stuffed in frames:
            frame, escaped = bytearray(), 0
            for octet in stuffed:
                if octet == ESCAPE:
                    escaped = 0x20
                else:
                    frame.append(octet ^ escaped)
                    escaped = 0
            if len(frame) > 4 and checksum(frame) == 0xF0B8:
                frame = bytes(frame[:-2]).removeprefix(b"\xff\x03")
                size = 1 if frame[0] & 1 else 2
                self.take(int.from_bytes(frame[:size], "big"), frame[size:])

    def take(self, protocol, content):
        if protocol == IP:
            if self.tun is not None:
                os.write(self.tun, content)
            return
        if protocol not in self.done:
            self.packet(LCP, PROTOCOL_REJECT, 2, struct.pack("!H", protocol) + content)
            return
        code, number, length = struct.unpack_from("!BBH", content)
        if code == REQUEST:
            self.packet(protocol, ACK, number, content[4:length])
            self.done[protocol].add("theirs")
        elif code == ACK:
            self.done[protocol].add("ours")
        elif code == ECHO:
            self.packet(LCP, ECHO_REPLY, number, bytes(4))
        elif code == TERMINATE:
            self.packet(LCP, TERMINATED, number, b"")
            sys.exit()
        if code in (REQUEST, ACK) and len(self.done[protocol]) == 2:
            self.ask()
        if len(self.done[IPCP]) == 2 and self.tun is None:
            self.open()

    def open(self):
        self.tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH", b"ppp0", TUN_WITHOUT_INFORMATION))
        for command in (f"address add {self.own} peer {self.other} dev ppp0", "link set ppp0 up mtu 1400"):
            subprocess.run(["ip", *command.split()], check=True, stdout=subprocess.DEVNULL)

    def run(self):
        again = 0
        while True:
            # A request may come before the other end's terminal is there.
            if time.monotonic() > again:
                self.ask()
                again = time.monotonic() + 0.5
            sources = [self.line_in] + ([] if self.tun is None else [self.tun])
            ready, _, _ = select.select(sources, [], [], 0.5)
            if self.line_in in ready:
                octets = os.read(self.line_in, 4096)
                if not octets:
                    return
                self.hear(octets)
            if self.tun is not None and self.tun in ready:
                self.send(IP, os.read(self.tun, 2048))


def main():
    # xl2tpd and pptp name the terminal; pptpd gives the line as standard input and output.
    terminals = [argument for argument in sys.argv[1:] if argument.startswith("/dev/pts/")]
    line_in, line_out = (os.open(terminals[0], os.O_RDWR | os.O_NOCTTY),) * 2 if terminals else (0, 1)
    if os.isatty(line_in):
        tty.setraw(line_in)
    peer = Peer(line_in, line_out, *os.environ["PPP_ADDRESSES"].split())
    try:
        peer.run()
    except OSError:
        # The terminal goes with the tunnel.
        pass


main()
