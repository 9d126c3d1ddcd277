"""AnyConnect's protocol by ocserv and OpenConnect: TLS, of which nothing can be told, with DTLS beside it and without."""

import subprocess

from link import SERVER4, Link, reach, until
from scenarios import TCP, UDP, Benign, Tunnel

INNER = "203.0.113.1"


def start(link: Link, *options) -> str:
    pki = link.folder.parent / "pki"
    secret = link.server.run("openssl", "passwd", "-5", "secret").stdout.strip()
    (link.folder / "passwd").write_text(f"lab:*:{secret}\n")
    config = link.folder / "ocserv.conf"
    config.write_text(
        f"""\
auth = "plain[passwd={link.folder}/passwd]"
tcp-port = 443
udp-port = 443
run-as-user = root
run-as-group = root
socket-file = {link.folder}/socket
server-cert = {pki}/server.crt
server-key = {pki}/server.key
isolate-workers = false
use-occtl = false
pid-file = {link.folder}/ocserv.pid
device = vpns
predictable-ips = true
ipv4-network = 203.0.113.0
ipv4-netmask = 255.255.255.0
ping-leases = false
cisco-client-compat = true
dtls-legacy = true
"""
    )
    link.server.start("ocserv", "-f", "-c", config, log="ocserv.log")
    until("ocserv", lambda: ":443 " in link.server.run("ss", "-ltn").stdout)
    script = link.folder / "vpnc-script"
    script.write_text(
        """\
#!/bin/sh
[ "$reason" = connect ] || exit 0
ip address add "$INTERNAL_IP4_ADDRESS/24" dev "$TUNDEV"
ip link set "$TUNDEV" up mtu "$INTERNAL_IP4_MTU"
"""
    )
    script.chmod(0o755)
    options = ["--non-inter", "--user", "lab", "--passwd-on-stdin", "--script", script, "--interface", "vpnc0", *options]
    pin = link.client.run("sh", "-c", PIN, pki / "server.crt").stdout.strip()
    command = ["openconnect", *options, f"--servercert=pin-sha256:{pin}", f"https://{SERVER4}"]
    client = link.client.start(*command, log="openconnect.log", stdin=subprocess.PIPE)
    client.stdin.write(b"secret\n")
    client.stdin.close()
    reach(link.client, INNER)
    return INNER


# Of the certificate's public key, as `--servercert` wants it.
PIN = 'openssl x509 -in "$0" -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl base64'


def with_dtls(link: Link, *options) -> str:
    inner = start(link, *options)
    log = link.folder / "openconnect.log"
    until("DTLS", lambda: "Established DTLS connection" in log.read_text())
    reach(link.client, inner)
    return inner


ALL = [
    # The client's hello, the server's cookie request, the hello again, the server's.
    Tunnel("openconnect", with_dtls, {(UDP, 443): ("anyconnect", 6)}, SERVER4, weak={(TCP, 443)}),
    # The version from before the RFC, which Cisco kept: the two hellos.
    Tunnel(
        "openconnect-cisco-version",
        lambda link: with_dtls(link, "--dtls-ciphers=AES256-SHA:AES128-SHA"),
        {(UDP, 443): ("anyconnect", 4)},
        SERVER4,
        weak={(TCP, 443)},
    ),
    Benign("opaque-openconnect-tls-only", lambda link: start(link, "--no-dtls"), {(TCP, 443)}),
]
