"""WireGuard in user space (wireguard-go)."""

import zlib

from link import INNER_CLIENT, INNER_SERVER, SERVER4, SERVER6, Link, ping, until
from scenarios import UDP, Tunnel


def start(link: Link, server: str, port: int) -> str:
    # A device is its namespace's own, yet its control socket below /run is everyone's: the name must differ.
    mark = f"{zlib.crc32(link.client.name.encode()):x}"
    ends = {
        "client": (link.client, f"wgc{mark}", INNER_CLIENT),
        "server": (link.server, f"wgs{mark}", INNER_SERVER),
    }
    public = {}
    for role, (host, device, address) in ends.items():
        private = host.run("wg", "genkey").stdout
        (link.folder / f"{role}.key").write_text(private)
        public[role] = host.run("wg", "pubkey", input=private).stdout.strip()
        host.start("wireguard-go", "-f", device, log=f"wireguard-{role}.log")
        until(f"wireguard-go of the {role}", lambda: host.run("wg", "show", device, check=False).returncode == 0)
        host.run("ip", "address", "add", f"{address}/24", "dev", device)
        host.run("ip", "link", "set", device, "up", "mtu", "1420")
    for role, other, options in (
        ("server", "client", ["listen-port", port]),
        ("client", "server", []),
    ):
        host, device, _ = ends[role]
        key = ["private-key", link.folder / f"{role}.key"]
        peer = ["peer", public[other], "allowed-ips", f"{ends[other][2]}/32"]
        if role == "client":
            peer += ["endpoint", f"[{server}]:{port}" if ":" in server else f"{server}:{port}"]
        host.run("wg", "set", device, *options, *key, *peer)
    ping(link.client, INNER_SERVER)
    return INNER_SERVER


ALL = [
    Tunnel(
        name=f"wireguard-{name}",
        start=lambda link, server=server, port=port: start(link, server, port),
        flows={(UDP, port): ("wireguard", 2)},
        peer=server,
    )
    for name, server, port in (("ipv4", SERVER4, 51820), ("ipv4-port-443", SERVER4, 443), ("ipv6", SERVER6, 51820))
]
