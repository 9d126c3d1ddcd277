"""OpenVPN over UDP and TCP, with each way to guard its control channel."""

from link import SERVER4, SERVER6, Link, ping, until
from scenarios import TCP, UDP, Tunnel

INNER = "203.0.113.1"
COMMON = "--dev tun0 --dev-type tun --verb 3 --ping 10 --ping-exit 60 --persist-tun --topology subnet".split()
GUARDS = {
    "plain": ([], []),
    "tls-auth": (["--tls-auth", "shared.key", "0"], ["--tls-auth", "shared.key", "1"]),
    "tls-crypt": (["--tls-crypt", "shared.key"], ["--tls-crypt", "shared.key"]),
    "tls-crypt-v2": (["--tls-crypt-v2", "v2-server.key"], ["--tls-crypt-v2", "v2-client.key"]),
}


def start(link: Link, transport: str, server: str, guard: str) -> str:
    family = "6" if ":" in server else "4"
    pki = link.folder.parent / "pki"
    for host, role, own in (
        (link.server, "server", "--server 203.0.113.0 255.255.255.0 --dh none --port 1194".split()),
        (link.client, "client", f"--client --remote {server} 1194 --nobind --remote-cert-tls server".split()),
    ):
        protocol = f"udp{family}" if transport == "udp" else f"tcp{family}-{role}"
        keys = ["--ca", "ca.crt", "--cert", f"{role}.crt", "--key", f"{role}.key", *GUARDS[guard][role == "client"]]
        options = ["--cd", pki, "--proto", protocol, *COMMON, *own, *keys]
        process = host.start("openvpn", *options, log=f"openvpn-{role}.log")
        until(f"OpenVPN of the {role}", lambda: "Initialization Sequence Completed" in process.log.read_text())
    ping(link.client, INNER)
    return INNER


# Over UDP: reset, reset, first acknowledgement, and one spare. TCP adds its own three and bare acknowledgements.
HANDSHAKE = {"udp": 4, "tcp": 10}
ALL = [
    Tunnel(
        name=f"openvpn-{transport}-{guard}{suffix}",
        start=lambda link, transport=transport, server=server, guard=guard: start(link, transport, server, guard),
        flows={(UDP if transport == "udp" else TCP, 1194): ("openvpn", HANDSHAKE[transport])},
        peer=server,
    )
    for transport, server, suffix, guards in (
        ("udp", SERVER4, "", GUARDS),
        ("tcp", SERVER4, "", GUARDS),
        ("udp", SERVER6, "-ipv6", ["plain"]),
    )
    for guard in guards
]
