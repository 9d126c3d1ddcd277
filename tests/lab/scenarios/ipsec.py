"""strongSwan: IKEv2 with NAT traversal forced, ESP in UDP made in user space."""

import shutil

from link import CLIENT4, INNER_CLIENT, INNER_SERVER, SERVER4, Link, ping, until
from scenarios import UDP, Tunnel

PLUGINS = (
    "random nonce openssl aes sha1 sha2 hmac gmp curve25519 pem pkcs1 pkcs8 x509 pubkey constraints"
    " kernel-libipsec kernel-netlink socket-default vici updown kdf"
)


def start(link: Link) -> str:
    # A copy, since some systems confine the installed one to its own folders (AppArmor).
    daemon = link.folder / "charon"
    shutil.copy(shutil.which("charon-systemd"), daemon)
    ends = (
        (link.server, "server", SERVER4, CLIENT4, INNER_SERVER, INNER_CLIENT),
        (link.client, "client", CLIENT4, SERVER4, INNER_CLIENT, INNER_SERVER),
    )
    for host, role, own, other, inner, inner_other in ends:
        folder = link.folder / role
        folder.mkdir()
        socket = f"unix://{folder}/vici"
        (folder / "strongswan.conf").write_text(
            f"""\
charon-systemd {{
    load = {PLUGINS}
    plugins {{
        vici {{
            socket = {socket}
        }}
    }}
}}
"""
        )
        (folder / "swanctl.conf").write_text(
            f"""\
connections {{ lab {{
    version = 2
    local_addrs = {own}
    remote_addrs = {other}
    encap = yes
    local {{
        auth = psk
    }}
    remote {{
        auth = psk
    }}
    children {{ net {{
        local_ts = {inner}/32
        remote_ts = {inner_other}/32
        esp_proposals = aes256gcm16-x25519
    }} }}
}} }}
secrets {{ ike {{
    secret = "a secret of the lab"
}} }}
"""
        )
        host.run("ip", "address", "add", f"{inner}/32", "dev", "lo")
        environment = ["env", f"STRONGSWAN_CONF={folder}/strongswan.conf", f"SWANCTL_DIR={folder}"]
        host.start(*environment, daemon, log=f"charon-{role}.log")
        until(f"charon of the {role}", (folder / "vici").exists)
        host.run(*environment, "swanctl", "--load-all", "--uri", socket, "--file", folder / "swanctl.conf")
    link.client.run("swanctl", "--initiate", "--child", "net", "--uri", f"unix://{link.folder}/client/vici")
    ping(link.client, INNER_SERVER)
    return INNER_SERVER


ALL = [
    Tunnel(
        name="ikev2-esp-in-udp",
        start=start,
        # IKE_SA_INIT on 500; IKE_AUTH, then ESP of both directions on 4500.
        flows={(UDP, 500): ("ike", 2), (UDP, 4500): ("esp", 4)},
        peer=SERVER4,
    )
]
