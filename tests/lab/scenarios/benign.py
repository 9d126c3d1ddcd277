"""What looks like a tunnel from afar and is none: real software where there is some, and the worst guess where there is not."""

import os
import subprocess
import sys

from link import CLIENT4, INNER_CLIENT, INNER_SERVER, SERVER4, LabError, Link, reach, until
from scenarios import TCP, UDP, Benign


def dns(link: Link):
    options = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= --address=/example.net/203.0.113.9"
    for port in (53, 51820):
        link.server.start("dnsmasq", *options.split(), f"--port={port}", "--bind-interfaces", log=f"dnsmasq-{port}.log")
        until("dnsmasq", lambda: f":{port} " in link.server.run("ss", "-lun").stdout)
        for number in range(10):
            query = ["dig", "+short", "+tries=1", f"@{SERVER4}", "-p", port, f"host-{number}.example.net"]
            if link.client.run(*query).stdout.strip() != "203.0.113.9":
                raise LabError("dnsmasq did not answer")


def talk(link: Link, kind: str, port: int):
    """Lines to openssl's server and back."""
    pki = link.folder.parent / "pki"
    options = ["-accept", port, "-cert", pki / "server.crt", "-key", pki / "server.key", "-quiet", f"-{kind}"]
    if kind.startswith("dtls"):
        options.append("-listen")
    server = link.server.start("openssl", "s_server", *options, log=f"{kind}.log", stdin=subprocess.PIPE)
    until("openssl", lambda: f":{port} " in link.server.run("ss", "-ltun").stdout)
    options = ["-connect", f"{SERVER4}:{port}", "-quiet", f"-{kind}"]
    client = link.client.start("openssl", "s_client", *options, log=f"{kind}-client.log", stdin=subprocess.PIPE)
    for sender, receiver in ((client, server), (server, client)):
        for _ in range(8):
            line = os.urandom(300).hex()
            sender.stdin.write(f"{line}\n".encode())
            sender.stdin.flush()
            until(f"{kind} to carry a line", lambda: line in receiver.log.read_text(errors="replace"))


def tls(link: Link):
    talk(link, "tls1_2", 443)
    # On the port that OpenVPN uses.
    talk(link, "tls1_3", 1194)


def dtls(link: Link):
    talk(link, "dtls1_2", 4433)


def stun(link: Link):
    options = f"-n --no-cli --no-tls --no-dtls --listening-ip {SERVER4} --relay-ip {SERVER4} --lt-cred-mech --user alice:secret"
    options += f" --realm example.net --allow-loopback-peers --log-file stdout --pidfile {link.folder}/pid --db {link.folder}/db"
    link.server.start("turnserver", *options.split(), log="turnserver.log")
    link.server.start("turnutils_peer", "-L", SERVER4, "-p", "3480", log="peer.log")
    for port in (3478, 3480):
        until("coturn", lambda: f":{port} " in link.server.run("ss", "-lun").stdout)
    link.client.run("turnutils_stunclient", SERVER4)
    options = f"-u alice -w secret -e {SERVER4} -r 3480 -n 20 -l 170 -m 1 -y"
    link.client.run("turnutils_uclient", *options.split(), SERVER4, seconds=40)


def sshd(link: Link) -> list:
    """Starts a server; gives the client's command up to the host's name."""
    for name in ("host", "user"):
        link.client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", link.folder / name)
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    options = {
        "Port": 22,
        "HostKey": link.folder / "host",
        "AuthorizedKeysFile": link.folder / "user.pub",
        "PermitRootLogin": "yes",
        "PermitTunnel": "yes",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    config = link.folder / "sshd.conf"
    config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    link.server.start("/usr/sbin/sshd", "-D", "-e", "-f", config, log="sshd.log")
    until("sshd", lambda: ":22 " in link.server.run("ss", "-ltn").stdout)
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -F none".split()
    return ["ssh", *options, "-i", link.folder / "user", f"root@{SERVER4}"]


def ssh(link: Link):
    said = link.client.run(*sshd(link), "seq 1000")
    if said.stdout.split()[-1:] != ["1000"]:
        raise LabError("sshd did not answer")


def ssh_tunnel(link: Link):
    """A tunnel, but nothing tells it from other use of SSH."""
    link.client.start(*sshd(link), "-N", "-w", "0:0", log="ssh.log")
    for host, inner in ((link.client, INNER_CLIENT), (link.server, INNER_SERVER)):
        until("tun0", lambda host=host: "tun0" in host.run("ip", "link").stdout)
        host.run("ip", "address", "add", f"{inner}/24", "dev", "tun0")
        host.run("ip", "link", "set", "tun0", "up")
    reach(link.client, INNER_SERVER)


CALL = """\
<scenario name="one call">
<send><![CDATA[
INVITE sip:lab@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:lab@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:lab@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: sip:lab@[local_ip]:[local_port]
Content-Type: application/sdp
Content-Length: [len]

v=0
o=lab 1 1 IN IP4 [local_ip]
s=-
c=IN IP4 [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 8
]]></send>
<recv response="100" optional="true"/>
<recv response="180" optional="true"/>
<recv response="200"/>
<send><![CDATA[
ACK sip:lab@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:lab@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:lab@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Content-Length: 0
]]></send>
<nop><action><exec rtp_stream="SOUND,1,8"/></action></nop>
<pause milliseconds="1500"/>
<send retrans="500"><![CDATA[
BYE sip:lab@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:lab@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:lab@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Content-Length: 0
]]></send>
<recv response="200"/>
</scenario>
"""


def rtp(link: Link):
    """A call by SIP whose sound, one second of G.711, comes back as an echo."""
    link.server.start("sipp", "-sn", "uas", "-i", SERVER4, "-p", "5060", "-rtp_echo", "-mp", "6000", "-nostdin", log="uas.log")
    until("sipp", lambda: ":5060 " in link.server.run("ss", "-lun").stdout)
    sound = link.folder / "sound.alaw"
    sound.write_bytes(os.urandom(8000))
    call = link.folder / "call.xml"
    call.write_text('<?xml version="1.0" encoding="us-ascii"?>\n' + CALL.replace("SOUND", str(sound)))
    options = ["-sf", call, "-i", CLIENT4, "-p", "5060", "-m", "1", "-nostdin", "-mp", "7000"]
    link.client.run("sipp", f"{SERVER4}:5060", *options, cwd=link.folder)


SENDER = """\
import os, socket, struct, sys
first, rest = sys.argv[2] == "typed", os.urandom
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 51820))
sizes = [148, 32, 96, 128, 1424, 32, 48, 1392, 148, 64] * 8
for number, size in enumerate(sizes):
    head = {148: struct.pack("<I", 1)}.get(size, struct.pack("<I", 4)) if first else b""
    s.send(head + rest(size - len(head)))
    s.recv(2000)
"""
ANSWERER = """\
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 51820))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(2000)
    size = {148: 92}.get(len(data), len(data))
    head = {148: bytes([2, 0, 0, 0])}.get(len(data), data[:4]) if sys.argv[1] == "typed" else b""
    s.sendto(head + os.urandom(size - len(head)), sender)
"""


def sizes(link: Link, kind: str):
    """Random octets in datagrams of WireGuard's sizes, both ways; `typed` ones have its message types, too."""
    answerer = link.server.start(sys.executable, "-c", ANSWERER, kind, log="answerer.log")
    until("the answerer", lambda: "ready" in answerer.log.read_text())
    link.client.run(sys.executable, "-c", SENDER, SERVER4, kind)


ALL = [
    Benign("benign-dns", dns, {(UDP, 53), (UDP, 51820)}),
    Benign("benign-tls", tls, {(TCP, 443), (TCP, 1194)}),
    Benign("benign-dtls", dtls, {(UDP, 4433)}),
    Benign("benign-stun-turn", stun, {(UDP, 3478)}),
    Benign("benign-ssh", ssh, {(TCP, 22)}),
    Benign("opaque-ssh-tunnel", ssh_tunnel, {(TCP, 22)}),
    Benign("benign-sip-rtp", rtp, {(UDP, 5060), (UDP, 6000)}),
    Benign("benign-random-wireguard-sizes", lambda link: sizes(link, "random"), {(UDP, 51820)}),
    Benign("benign-random-wireguard-types", lambda link: sizes(link, "typed"), {(UDP, 51820)}),
]
