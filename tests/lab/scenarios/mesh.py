"""Mesh VPNs between two peers: fastd, n2n, nebula, tinc."""

from link import INNER_CLIENT, INNER_SERVER, SERVER4, Link, reach, until
from scenarios import TCP, UDP, Tunnel


def fastd(link: Link) -> str:
    ends = {"server": (link.server, INNER_SERVER, INNER_CLIENT), "client": (link.client, INNER_CLIENT, INNER_SERVER)}
    public = {}
    for role, (host, _, _) in ends.items():
        secret = host.run("fastd", "--generate-key", "--machine-readable").stdout.strip()
        (link.folder / f"{role}.key").write_text(f'secret "{secret}";\n')
        shown = host.run("fastd", "-c", link.folder / f"{role}.key", "--show-key", "--machine-readable")
        public[role] = shown.stdout.strip()
    for role, other, own, remote in (
        ("server", "client", "bind any:10000;", ""),
        ("client", "server", "", f'remote ipv4 "{SERVER4}" port 10000;'),
    ):
        host, inner, inner_other = ends[role]
        config = link.folder / f"{role}.conf"
        config.write_text(
            f"""\
include "{link.folder}/{role}.key";
mode tun;
interface "fastd0";
method "salsa2012+umac";
mtu 1400;
{own}
on up "ip address add {inner} peer {inner_other} dev fastd0; ip link set fastd0 up";
peer "{other}" {{ key "{public[other]}"; {remote} }}
"""
        )
        host.start("fastd", "-c", config, log=f"fastd-{role}.log")
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def n2n(link: Link) -> str:
    link.server.start("supernode", "-l", "7654", "-f", log="supernode.log")
    until("supernode", lambda: ":7654 " in link.server.run("ss", "-lun").stdout)
    for host, role, inner in ((link.server, "server", INNER_SERVER), (link.client, "client", INNER_CLIENT)):
        options = ["-a", inner, "-c", "lab", "-k", "secret", "-l", f"{SERVER4}:7654", "-p", "7655", "-f"]
        host.start("edge", "-d", "edge0", *options, log=f"edge-{role}.log")
    reach(link.client, INNER_SERVER)
    # Through the supernode at first, then from edge to edge.
    until("n2n's edges", lambda: ":7655" in link.client.run("ss", "-lun").stdout)
    return INNER_SERVER


def nebula(link: Link) -> str:
    link.server.run("nebula-cert", "ca", "-name", "lab", cwd=link.folder)
    for host, role, inner, port in ((link.server, "server", INNER_SERVER, 4242), (link.client, "client", INNER_CLIENT, 0)):
        host.run("nebula-cert", "sign", "-name", role, "-ip", f"{inner}/24", cwd=link.folder)
        config = link.folder / f"{role}.yml"
        lighthouse = "am_lighthouse: true" if role == "server" else f'hosts: ["{INNER_SERVER}"]'
        config.write_text(
            f"""\
pki: {{ca: {link.folder}/ca.crt, cert: {link.folder}/{role}.crt, key: {link.folder}/{role}.key}}
static_host_map: {{"{INNER_SERVER}": ["{SERVER4}:4242"]}}
lighthouse: {{{lighthouse}}}
listen: {{host: 0.0.0.0, port: {port}}}
tun: {{dev: nebula0, mtu: 1300}}
firewall: {{outbound: [{{port: any, proto: any, host: any}}], inbound: [{{port: any, proto: any, host: any}}]}}
"""
        )
        host.start("nebula", "-config", config, log=f"nebula-{role}.log")
        until(f"nebula of the {role}", lambda host=host: "nebula0" in host.run("ip", "link").stdout)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def tinc(link: Link) -> str:
    ends = ((link.server, "server", INNER_SERVER), (link.client, "client", INNER_CLIENT))
    for host, role, inner in ends:
        folder = link.folder / role
        (folder / "hosts").mkdir(parents=True)
        connect = "ConnectTo = server\n" if role == "client" else ""
        (folder / "tinc.conf").write_text(f"Name = {role}\nDeviceType = tun\nInterface = tinc0\n{connect}")
        address = f"Address = {SERVER4}\n" if role == "server" else ""
        (folder / "hosts" / role).write_text(f"Subnet = {inner}/32\n{address}")
        up = folder / "tinc-up"
        up.write_text(f"#!/bin/sh\nip address add {inner}/24 dev $INTERFACE\nip link set $INTERFACE up\n")
        up.chmod(0o755)
        # It asks where to keep the two keys.
        host.run("tincd", "-c", folder, "-K2048", input="\n\n")
    for (_, role, _), (_, other, _) in (ends, ends[::-1]):
        own = link.folder / role / "hosts" / role
        (link.folder / other / "hosts" / role).write_text(own.read_text())
    for host, role, _ in ends:
        host.start("tincd", "-c", link.folder / role, "-D", f"--pidfile={link.folder}/{role}.pid", log=f"tinc-{role}.log")
        until("tincd", lambda host=host: ":655 " in host.run("ss", "-ltn").stdout)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


ALL = [
    Tunnel("fastd", fastd, {(UDP, 10000): ("fastd", 3)}, SERVER4),
    Tunnel("n2n", n2n, {(UDP, 7654): ("n2n", 4), (UDP, 7655): ("n2n", 4)}, SERVER4),
    Tunnel("nebula", nebula, {(UDP, 4242): ("nebula", 2)}, SERVER4),
    # TCP's own three, and ID of both sides. The packets are encrypted from their first octet.
    Tunnel("tinc", tinc, {(TCP, 655): ("tinc", 10)}, SERVER4, weak={(UDP, 655)}),
]
