"""SoftEther's VPN over DNS, to which its client falls back where it finds no TCP port: server and client of Debian."""

import pathlib
import shutil

from link import INNER_CLIENT, INNER_SERVER, SERVER4, Host, LabError, Link, reach, until
from scenarios import UDP, Tunnel

ICMP = 1
USER, PASSWORD = "lab", "secret"
PROGRAMS = pathlib.Path("/usr/libexec/softether")
STATE = ("/run/softether", "/var/lib/softether", "/var/log/softether")


def softether(host: Host, program: str, log: str):
    """Runs a copy of a program, which writes beside itself, with state of its own."""
    shutil.copytree(PROGRAMS / program, host.folder / program, dirs_exist_ok=True)
    mounts = " && ".join(f"mkdir -p {folder} && mount -t tmpfs tmpfs {folder}" for folder in STATE)
    return host.start("sh", "-c", f'{mounts} && exec "$0" execsvc', host.folder / program / program, log=log)


def address(host: Host, device: str, inner: str):
    """Gives an address to a device that SoftEther makes."""
    until(device, lambda: host.run("ip", "link", "show", device, check=False).returncode == 0)
    host.run("ip", "address", "add", f"{inner}/24", "dev", device)
    host.run("ip", "link", "set", device, "up", "mtu", "1400")


def softether_over_dns(link: Link) -> str:
    softether(link.server, "vpnserver", "vpnserver.log")
    softether(link.client, "vpnclient", "vpnclient.log")
    shutil.copytree(PROGRAMS / "vpncmd", link.folder / "vpncmd")

    def call(host: Host, *where_and_command: str) -> bool:
        return host.run(link.folder / "vpncmd" / "vpncmd", *where_and_command, check=False).returncode == 0

    def must(host: Host, *where_and_command: str):
        if not call(host, *where_and_command):
            raise LabError(f"vpncmd refused {where_and_command}")

    server = ("localhost:5555", "/SERVER")
    until("SoftEther's server", lambda: call(link.server, *server, "/CMD", "ServerInfoGet"))
    must(link.server, *server, "/CMD", "HubCreate", "lab", f"/PASSWORD:{PASSWORD}")
    must(link.server, *server, "/ADMINHUB:lab", "/CMD", "UserCreate", USER, "/GROUP:none", "/REALNAME:none", "/NOTE:none")
    must(link.server, *server, "/ADMINHUB:lab", "/CMD", "UserPasswordSet", USER, f"/PASSWORD:{PASSWORD}")
    must(link.server, *server, "/CMD", "BridgeCreate", "lab", "/DEVICE:lab", "/TAP:yes")
    must(link.server, *server, "/CMD", "VpnOverIcmpDnsEnable", "/ICMP:no", "/DNS:yes")
    address(link.server, "tap_lab", INNER_SERVER)

    client = ("localhost", "/CLIENT", "/CMD")
    until("SoftEther's client", lambda: call(link.client, *client, "VersionGet"))
    must(link.client, *client, "NicCreate", "lab")
    # Nobody listens on this port over TCP: the client falls back to what it finds.
    must(link.client, *client, "AccountCreate", "lab", f"/SERVER:{SERVER4}:10443", "/HUB:lab", f"/USERNAME:{USER}", "/NICNAME:lab")
    must(link.client, *client, "AccountPasswordSet", "lab", f"/PASSWORD:{PASSWORD}", "/TYPE:standard")
    must(link.client, *client, "AccountConnect", "lab")
    address(link.client, "vpn_lab", INNER_CLIENT)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


ALL = [
    # It tries ICMP, too, which the server refuses.
    Tunnel("softether-over-dns", softether_over_dns, {(UDP, 53): ("softether", 4)}, SERVER4, weak={(ICMP, None)}),
]
