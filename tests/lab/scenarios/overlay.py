"""Tunnels without encryption: the kernel's VXLAN, Open vSwitch's, socat's, a mobile network's GTP, Teredo."""

import re

from link import CLIENT4, INNER_CLIENT, INNER_SERVER, SERVER4, Host, Link, reach, until
from scenarios import GRE, UDP, Tunnel

ENDS = {"server": (SERVER4, CLIENT4, INNER_SERVER), "client": (CLIENT4, SERVER4, INNER_CLIENT)}


def hosts(link: Link):
    return ((link.server, "server", *ENDS["server"]), (link.client, "client", *ENDS["client"]))


def vxlan(link: Link) -> str:
    for host, _, _, other, inner in hosts(link):
        device = f"ip link add vxlan0 type vxlan id 42 remote {other} dstport 4789 dev eth0"
        for command in (device, f"ip address add {inner}/24 dev vxlan0", "ip link set vxlan0 up"):
            host.run(*command.split())
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def bridges(link: Link, host: Host, role: str, kind: str):
    """An Open vSwitch in user space: a bridge with the link in it, and one with the tunnel in it."""
    own, other, inner = ENDS[role]
    folder = link.folder / role
    folder.mkdir()
    environment = ["env", *(f"OVS_{name}DIR={folder}" for name in ("RUN", "LOG", "DB"))]
    database = f"unix:{folder}/socket"
    host.run("ovsdb-tool", "create", folder / "conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
    control = [f"--pidfile={folder}/db.pid", f"--unixctl={folder}/db.ctl"]
    host.start(*environment, "ovsdb-server", folder / "conf.db", f"--remote=p{database}", *control, log=f"ovsdb-{role}.log")
    until("ovsdb-server", (folder / "socket").exists)
    change = [*environment, "ovs-vsctl", f"--db={database}", "--timeout=20"]
    host.run(*change, "--no-wait", "init")
    control = [f"--pidfile={folder}/vswitchd.pid", f"--unixctl={folder}/vswitchd.ctl"]
    host.start(*environment, "ovs-vswitchd", database, *control, log=f"vswitchd-{role}.log")
    commands = f"""\
add-br outer -- set bridge outer datapath_type=netdev -- add-port outer eth0
-- add-br inner -- set bridge inner datapath_type=netdev -- add-port inner tunnel0
-- set interface tunnel0 type={kind} options:remote_ip={other}"""
    host.run(*change, *commands.split(), *([] if kind == "gre" else ["options:key=42"]))
    host.run("ip", "address", "flush", "dev", "eth0")
    for device, address in (("outer", own), ("inner", inner)):
        host.run("ip", "address", "add", f"{address}/24", "dev", device)
        host.run("ip", "link", "set", device, "up", "mtu", "1400")


def open_vswitch(link: Link, kind: str) -> str:
    for host, role in ((link.server, "server"), (link.client, "client")):
        bridges(link, host, role, kind)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def socat(link: Link) -> str:
    device = "TUN:{}/24,tun-name=tun0,iff-no-pi,iff-up"
    link.server.start("socat", device.format(INNER_SERVER), "UDP-LISTEN:6000", log="socat-server.log")
    until("socat", lambda: ":6000 " in link.server.run("ss", "-lun").stdout)
    link.client.start("socat", device.format(INNER_CLIENT), f"UDP:{SERVER4}:6000", log="socat-client.log")
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def gtp(link: Link) -> str:
    config = link.folder / "ggsn.cfg"
    config.write_text(
        f"""\
ggsn lab
 gtp state-dir {link.folder}
 gtp bind-ip {SERVER4}
 apn internet
  gtpu-mode tun
  tun-device apn0
  type-support v4
  ip prefix dynamic 203.0.113.0/24
  ip ifconfig {INNER_SERVER}/24
  no shutdown
 default-apn internet
 no shutdown ggsn
"""
    )
    link.server.start("osmo-ggsn", "-c", config, log="ggsn.log", cwd=link.folder)
    until("osmo-ggsn", lambda: ":2123 " in link.server.run("ss", "-lun").stdout)
    options = ["--listen", CLIENT4, "--remote", SERVER4, "--createif", "--net", f"{INNER_CLIENT}/24", "--apn", "internet"]
    # The GGSN gives its first phone the first address, the client's.
    link.client.start("sgsnemu", *options, "--statedir", link.folder, log="sgsnemu.log", cwd=link.folder)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def teredo(link: Link) -> str:
    """A Teredo server and, beside it on the same host, another client, which answers inside."""
    servers = ["198.51.100.10", "198.51.100.11"]
    for address in servers:
        link.server.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    config = link.folder / "server.conf"
    config.write_text(f"ServerBindAddress {servers[0]}\nServerBindAddress2 {servers[1]}\nPrefix 2001:0::\nInterfaceMTU 1280\n")
    link.server.start("miredo-server", "-f", "-u", "nobody", "-c", config, "-p", link.folder / "server.pid", log="server.log")
    until("miredo-server", lambda: ":3544 " in link.server.run("ss", "-lun").stdout)
    inside = []
    for host, role, own, _, _ in hosts(link):
        config = link.folder / f"{role}-client.conf"
        addresses = f"ServerAddress {servers[0]}\nServerAddress2 {servers[1]}\nBindAddress {own}\nBindPort 41000\n"
        config.write_text(f"InterfaceName teredo\n{addresses}")
        files = ["-c", config, "-p", link.folder / f"{role}-client.pid"]
        host.start("miredo", "-f", "-u", "nobody", *files, log=f"{role}-client.log")
        inside += until(f"the {role}'s Teredo address", lambda host=host: qualified(host))
    reach(link.client, inside[0])
    return inside[0]


def qualified(host: Host):
    """The Teredo addresses that it has got."""
    return re.findall(r"inet6 (2001:0:\S+)/", host.run("ip", "-6", "address", "show", "scope", "global").stdout)


ALL = [
    Tunnel("vxlan-kernel", vxlan, {(UDP, 4789): ("vxlan", 4)}, SERVER4, is_open=True),
    *(
        Tunnel(
            name=f"{kind}-open-vswitch",
            start=lambda link, kind=kind: open_vswitch(link, kind),
            flows={flow: (kind, 4)},
            peer=SERVER4,
            is_open=True,
        )
        for kind, flow in (("vxlan", (UDP, 4789)), ("geneve", (UDP, 6081)), ("gre", (GRE, None)))
    ),
    Tunnel("fou-socat", socat, {(UDP, 6000): ("fou", 4)}, SERVER4, is_open=True),
    Tunnel("gtp-osmocom", gtp, {(UDP, 2123): ("gtp-c", 4), (UDP, 2152): ("gtp-u", 4)}, SERVER4, is_open=True),
    Tunnel(
        name="teredo-miredo",
        start=teredo,
        flows={(UDP, 3544): ("teredo", 2), (UDP, 41000): ("teredo", 6)},
        peer="198.51.100.0/24",
        is_open=True,
    ),
]
