"""PPP in L2TP (xl2tpd) and in PPTP (pptp, pptpd). In pppd's place stands `pppd.py`: many kernels have no PPP."""

import pathlib

from link import INNER_CLIENT, INNER_SERVER, SERVER4, Host, Link, reach, until
from scenarios import GRE, TCP, UDP, Tunnel

PPPD = pathlib.Path(__file__).resolve().parents[1] / "pppd.py"
ADDRESSES = {"client": f"{INNER_CLIENT} {INNER_SERVER}", "server": f"{INNER_SERVER} {INNER_CLIENT}"}


def start(host: Host, role: str, *command):
    """Runs a program to which /usr/sbin/pppd is ours: `ip netns exec` gives each its own mounts."""
    script = 'mount --bind "$0" /usr/sbin/pppd && exec "$@"'
    return host.start("env", f"PPP_ADDRESSES={ADDRESSES[role]}", "sh", "-c", script, PPPD, *command, log=f"{role}.log")


def l2tp(link: Link) -> str:
    sections = {
        "server": f"[lns default]\nip range = {INNER_CLIENT}-{INNER_CLIENT}\nlocal ip = {INNER_SERVER}\n",
        "client": f"[lac lab]\nlns = {SERVER4}\nautodial = yes\n",
    }
    (link.folder / "secrets").touch()
    for host, role in ((link.server, "server"), (link.client, "client")):
        config = link.folder / f"{role}.conf"
        config.write_text(f"[global]\nport = 1701\n{sections[role]}require authentication = no\n")
        files = ["-c", config, "-s", link.folder / "secrets", "-p", link.folder / f"{role}.pid", "-C", link.folder / role]
        start(host, role, "xl2tpd", "-D", *files)
        until("xl2tpd", lambda host=host: ":1701 " in host.run("ss", "-lun").stdout)
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


def pptp(link: Link) -> str:
    config = link.folder / "pptpd.conf"
    config.write_text(f"option /dev/null\nlocalip {INNER_SERVER}\nremoteip {INNER_CLIENT}\nlisten {SERVER4}\n")
    start(link.server, "server", "pptpd", "-f", "-c", config, "-p", link.folder / "pptpd.pid")
    until("pptpd", lambda: ":1723 " in link.server.run("ss", "-ltn").stdout)
    start(link.client, "client", "pptp", SERVER4, "--nobuffer", "nodetach")
    reach(link.client, INNER_SERVER)
    return INNER_SERVER


ALL = [
    Tunnel("l2tp-xl2tpd", l2tp, {(UDP, 1701): ("l2tp", 4)}, SERVER4, is_open=True),
    # TCP's own three, the request to start, its reply. LCP, then IPCP, then IP.
    Tunnel("pptp-pptpd", pptp, {(TCP, 1723): ("pptp", 8), (GRE, None): ("pptp", 20)}, SERVER4, is_open=True),
]
