"""Tunnels in DNS and in ICMP: iodine, dns2tcp, ptunnel-ng."""

import os
import subprocess

from link import INNER_SERVER, SERVER4, Link, reach, until
from scenarios import ICMP, UDP, Tunnel

DOMAIN = "t.example.net"


def iodine(link: Link) -> str:
    options = ["-f", "-P", "secret", "-d", "dns0"]
    link.server.start("iodined", *options, "-c", f"{INNER_SERVER}/24", DOMAIN, log="iodined.log")
    until("iodined", lambda: ":53 " in link.server.run("ss", "-lun").stdout)
    # -r: not past DNS straight to the server, though it could.
    link.client.start("iodine", *options, "-r", SERVER4, DOMAIN, log="iodine.log")
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def echo(link: Link):
    """Answers TCP on port 7000 of the server with what it was sent."""
    link.server.start("socat", "TCP-LISTEN:7000,reuseaddr,fork", "EXEC:cat", log="echo.log")
    until("socat", lambda: ":7000 " in link.server.run("ss", "-ltn").stdout)


def talk(link: Link):
    """Connects to that through a tunnel whose client's end listens on port 7001; gives what sends a line there and back."""
    client = link.client.start("socat", "-", "TCP:127.0.0.1:7001", log="talk.log", stdin=subprocess.PIPE)

    def say():
        line = os.urandom(300).hex()
        client.stdin.write(f"{line}\n".encode())
        client.stdin.flush()
        until("a line to come back", lambda: line in client.log.read_text())

    say()
    return say


def dns2tcp(link: Link):
    echo(link)
    config = link.folder / "dns2tcpd.conf"
    options = {"listen": SERVER4, "port": 53, "user": "nobody", "chroot": "/tmp", "domain": DOMAIN}
    lines = [f"{name} = {value}\n" for name, value in options.items()]
    config.write_text("".join(lines) + "resources = lab:127.0.0.1:7000\n")
    link.server.start("dns2tcpd", "-F", "-f", config, log="dns2tcpd.log")
    until("dns2tcpd", lambda: ":53 " in link.server.run("ss", "-lun").stdout)
    link.client.start("dns2tcpc", "-z", DOMAIN, "-r", "lab", "-l", "7001", SERVER4, log="dns2tcpc.log")
    until("dns2tcpc", lambda: ":7001 " in link.client.run("ss", "-ltn").stdout)
    return talk(link)


def ptunnel(link: Link):
    echo(link)
    link.server.start("ptunnel-ng", "-r127.0.0.1", "-R7000", log="ptunnel-server.log")
    # Both ends read echoes from raw sockets.
    until("ptunnel-ng", lambda: "ptunnel" in link.server.run("ss", "-lwp").stdout)
    link.client.start("ptunnel-ng", f"-p{SERVER4}", "-l7001", "-r127.0.0.1", "-R7000", log="ptunnel-client.log")
    until("ptunnel-ng", lambda: ":7001 " in link.client.run("ss", "-ltn").stdout)
    return talk(link)


ALL = [
    # It tries types of records first, then asks for the version.
    Tunnel("iodine", iodine, {(UDP, 53): ("iodine", 8)}, SERVER4),
    Tunnel("dns2tcp", dns2tcp, {(UDP, 53): ("dns2tcp", 4)}, SERVER4),
    # The server's kernel answers each echo, too.
    Tunnel("ptunnel-ng", ptunnel, {(ICMP, None): ("ptunnel", 8)}, SERVER4),
]
