//! Pinned keys and recordings that were made with them into verdicts; and keys that nobody should pin.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use linewarden::detect::{Key, KeyKind};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::OwnedFrame;
use crate::common::command::{Done, approval, approved, assert_says, assert_valid, capture, done, linewarden};
use crate::common::pcap::{ETHERNET, frames, pcap, udp};

/// Names the address of every capture's server.
const HERE: &str = "peers = [\"198.51.100.2\"]";
const ELSEWHERE: &str = "peers = [\"203.0.113.9\"]";

/// Approvals, and the keys of a capture beside them with the mode that secrets want.
fn folder(name: &str, approvals: &str) -> TempDir {
    let folder = approved(approvals);
    let keys = folder.path().join("approvals.d/keys");
    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, Permissions::from_mode(0o755)).unwrap();
    for key in fs::read_dir(capture(name).parent().unwrap().join("keys")).unwrap() {
        let key = key.unwrap();
        secret(&keys.join(key.file_name()), &fs::read_to_string(key.path()).unwrap());
    }
    folder
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A static key of OpenVPN that made nothing here.
fn other_key() -> String {
    let lines = ["-----BEGIN OpenVPN Static key V1-----", &"5a".repeat(256), "-----END OpenVPN Static key V1-----", ""];
    lines.join("\n")
}

fn public_key(name: &str, file: &str) -> String {
    let path = capture(name).parent().unwrap().join("keys").join(file);
    fs::read_to_string(path).unwrap().trim().to_owned()
}

fn vpn(rest: &str) -> String {
    approval("vpn", "a", &format!("valid_until = 2099-12-31\n{rest}"))
}

fn run(folder: &TempDir, command: &str, more: &[&str]) -> Done {
    let arguments = [command, "--approvals", "approvals.d", "--config", "settings.toml"];
    let mut command = linewarden(arguments.iter().chain(more));
    done(command.current_dir(folder.path()))
}

/// The records of some frames.
fn replay(folder: &TempDir, frames: &[OwnedFrame]) -> Vec<Value> {
    fs::write(folder.path().join("input.pcap"), pcap(ETHERNET, frames)).unwrap();
    let records = run(folder, "replay", &["--quiet", "input.pcap"]).expect(0).records();
    assert_valid(&records);
    records
}

/// Their only flow's last verdict, reason, and what is known of the approval's keys.
fn judge(folder: &TempDir, frames: &[OwnedFrame]) -> (String, String, Value) {
    let records = replay(folder, frames);
    let ends: Vec<_> = records.iter().filter(|record| record["kind"] == "end").collect();
    assert_eq!(ends.len(), 1);
    let text = |field: &str| ends[0][field].as_str().unwrap().to_owned();
    (text("verdict"), text("reason"), ends[0]["approval"]["identity"].clone())
}

#[test]
fn a_pinned_key_decides_whichever_the_address() {
    let server = public_key("wireguard-pinned", "server.pub");
    let client = public_key("wireguard-pinned", "client.pub");
    let stranger = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let wg = |keys: &[&str]| format!("identity = {{ wireguard_public_keys = {keys:?} }}");
    let (auth, sha512, crypt, tcp) = (
        "openvpn-udp-pinned-tls-auth",
        "openvpn-udp-pinned-tls-auth-sha512",
        "openvpn-udp-pinned-tls-crypt",
        "openvpn-tcp-pinned-tls-crypt",
    );
    let tls_auth = "identity = { openvpn_tls_auth = [\"keys/ta.key\"] }";
    let tls_crypt = "identity = { openvpn_tls_crypt = [\"keys/ta.key\"] }";
    let two = "identity = { openvpn_tls_crypt = [\"keys/other.key\", \"keys/ta.key\"] }";
    let other = "identity = { openvpn_tls_crypt = [\"keys/other.key\"] }";
    let approved = ("authorized_leased_line", "approved_by_key", "verified");
    let mismatch = ("unapproved_vpn_tunnel", "identity_mismatch", "mismatched");
    let unverified = ("authorized_leased_line", "identity_unverified", "unverified");
    #[rustfmt::skip]
    let cases: Vec<(&str, &str, String, (&str, &str, &str))> = vec![
        ("the server's key", "wireguard-pinned", format!("{HERE}\n{}", wg(&[&server])), approved),
        ("from another address", "wireguard-pinned", format!("{ELSEWHERE}\n{}", wg(&[&server])), approved),
        ("without an address", "wireguard-pinned", wg(&[&server]), approved),
        ("the client's key", "wireguard-pinned", format!("{HERE}\n{}", wg(&[&client])), approved),
        ("among others", "wireguard-pinned", format!("{HERE}\n{}", wg(&[stranger, &client])), approved),
        ("from a file", "wireguard-pinned", "identity.wireguard_public_key_files = [\"keys/server.pub\"]".to_owned(), approved),
        ("another key", "wireguard-pinned", format!("{HERE}\n{}", wg(&[stranger])), mismatch),
        ("on another path", "wireguard-pinned", format!("{ELSEWHERE}\npath = {{ vlan = 7 }}\n{}", wg(&[&server])), ("unapproved_vpn_tunnel", "wrong_path", "verified")),
        ("keys of another protocol", "wireguard-pinned", format!("{HERE}\ntunnels = [\"wireguard\", \"openvpn\"]\n{tls_auth}"), ("authorized_leased_line", "approved", "")),
        ("keys of another protocol alone", "wireguard-pinned", format!("{HERE}\n{tls_auth}"), ("unapproved_vpn_tunnel", "protocol_not_approved", "")),
        ("a later handshake, mid-stream", "wireguard-pinned-midstream", format!("{ELSEWHERE}\nidentity.wireguard_public_key_files = [\"keys/server.pub\"]"), approved),
        ("a later handshake with another key", "wireguard-pinned-midstream", format!("{HERE}\n{}", wg(&[&server])), mismatch),
        ("tls-auth", auth, format!("{HERE}\n{tls_auth}"), approved),
        ("tls-auth, from another address", auth, format!("{ELSEWHERE}\n{tls_auth}"), approved),
        ("tls-auth by SHA-512, from another address", sha512, format!("{ELSEWHERE}\n{tls_auth}"), approved),
        ("tls-auth where tls-crypt is pinned", auth, format!("{HERE}\n{tls_crypt}"), mismatch),
        ("tls-crypt", crypt, format!("{HERE}\n{tls_crypt}"), approved),
        ("tls-crypt, from another address", crypt, format!("{ELSEWHERE}\n{tls_crypt}"), approved),
        ("tls-crypt, two keys", crypt, format!("{ELSEWHERE}\n{two}"), approved),
        ("tls-crypt, another key", crypt, format!("{HERE}\n{other}"), mismatch),
        ("tls-crypt over TCP, from another address", tcp, format!("{ELSEWHERE}\n{tls_crypt}"), approved),
        ("tls-crypt over TCP, another key", tcp, format!("{HERE}\n{other}"), mismatch),
        ("tls-crypt-v2, from another address", "openvpn-udp-pinned-tls-crypt-v2", format!("{ELSEWHERE}\nidentity.openvpn_tls_crypt_v2_clients = [\"keys/client.key\"]"), approved),
        ("tls-crypt-v2 where a tls-crypt key is pinned", "openvpn-udp-pinned-tls-crypt-v2", format!("{HERE}\n{other}"), mismatch),
        ("no guard where one is pinned", "openvpn-udp", format!("{HERE}\n{tls_crypt}"), mismatch),
        ("picked up behind its handshake", "openvpn-udp-midstream", format!("{HERE}\n{tls_crypt}"), unverified),
        ("picked up behind it, from another address", "openvpn-udp-midstream", format!("{ELSEWHERE}\n{tls_crypt}"), ("unapproved_vpn_tunnel", "no_approval", "")),
    ];
    for (case, name, approvals, (verdict, reason, identity)) in &cases {
        let keys = if name.contains("pinned") { name } else { crypt };
        let folder = folder(keys, &vpn(approvals));
        secret(&folder.path().join("approvals.d/keys/other.key"), &other_key());
        if !folder.path().join("approvals.d/keys/ta.key").exists() {
            secret(&folder.path().join("approvals.d/keys/ta.key"), &other_key());
        }
        let identity = Value::from(*identity).as_str().filter(|text| !text.is_empty()).map_or(Value::Null, Value::from);
        assert_eq!(judge(&folder, &frames(name)), ((*verdict).to_owned(), (*reason).to_owned(), identity), "{case}");
    }
    // By key as by address, only while it holds.
    let ended = vpn(&format!("{ELSEWHERE}\n{}", wg(&[&server]))).replace("2099-12-31", "2020-12-31");
    let (_, reason, identity) = judge(&folder("wireguard-pinned", &ended), &frames("wireguard-pinned"));
    assert_eq!((&*reason, identity), ("approval_expired", "verified".into()));
}

#[test]
fn a_key_counts_once_the_other_end_answers_and_is_named_by_its_fingerprint() {
    let server = public_key("wireguard-pinned", "server.pub");
    let folder = folder(
        "wireguard-pinned",
        &vpn(&format!("{ELSEWHERE}\nidentity = {{ wireguard_public_keys = [\"{server}\"] }}")),
    );
    let records = replay(&folder, &frames("wireguard-pinned"));
    // Whoever saw the first packet can send it again.
    assert_eq!(
        [&records[0]["kind"], &records[0]["reason"], &records[0]["confidence"]],
        ["start", "no_approval", "likely"]
    );
    let first = &records[1];
    assert_eq!([&first["kind"], &first["reason"], &first["confidence"]], ["update", "approved_by_key", "certain"]);
    let key = first["approval"]["key"].as_str().unwrap();
    let evidence = first["evidence"].as_array().unwrap();
    let verified = evidence.iter().find(|found| found["code"] == "wireguard.key_verified").unwrap();
    assert!(key.starts_with(&format!("wireguard:{:012x}", verified["value"].as_u64().unwrap())), "{first}");
    // Neither the records nor any command says the key itself.
    let explained = run(&folder, "explain", &["--flow", "198.51.100.2", "input.pcap"]).expect(0);
    assert_says(
        &explained.out,
        &[
            "reason    approved_by_key: an approval covers it: a handshake is made with a key that it pins",
            "  ->  wireguard.key_verified  makes it likely",
            "whose mac1 is made with a pinned public key, its recipient's",
            "a (owner network team, reference CHG-a) by a key that it pins",
            &format!("fits  key: allowed {key}; found a handshake made with {key}"),
        ],
    );
    let checked = run(&folder, "check-config", &[]).expect(0);
    assert_says(&checked.out, &[&format!("identity   a: {key}\n")]);
    let (records, table) = (
        run(&folder, "replay", &["input.pcap"]).expect(0),
        run(&folder, "replay", &["--format", "table", "input.pcap"]).expect(0),
    );
    assert_says(&records.err, &["keys     2 tried: 1 handshake messages verified"]);
    for done in [explained, checked, records, table] {
        assert!(!done.out.contains(&server) && !done.err.contains(&server));
    }
}

#[test]
fn explanations_say_whose_key_it_is_not() {
    let name = "openvpn-udp-pinned-tls-crypt";
    let folder = folder(name, &vpn(&format!("{HERE}\nidentity = {{ openvpn_tls_auth = [\"keys/ta.key\"] }}")));
    let explain =
        || run(&folder, "explain", &["--flow", "198.51.100.2", capture(name).to_str().unwrap()]).expect(0).out;
    let ta = fs::read_to_string(folder.path().join("approvals.d/keys/ta.key")).unwrap();
    let key = Key::openvpn(KeyKind::OpenvpnTlsAuth, &ta).unwrap().fingerprint();
    let out = explain();
    assert_says(
        &out,
        &[
            "reason    identity_mismatch: the address is approved, but its handshake is made with none of the keys that the approval pins",
            "  ->  openvpn.key_unknown  makes it possible",
            "  <-  openvpn.key_unknown  makes it possible",
            "a control packet that none of the pinned tls-auth, tls-crypt and tls-crypt-v2 keys guards",
            &format!("FAILS key: allowed {key}; found handshakes made with none of them"),
        ],
    );
    fs::write(
        folder.path().join("approvals.d/a.toml"),
        vpn(&format!("{HERE}\nidentity = {{ openvpn_tls_crypt = [\"keys/ta.key\"] }}")),
    )
    .unwrap();
    let out = explain();
    assert_says(&out, &["reason    approved_by_key: ", "fits  key: allowed openvpn-tls-crypt:", "by its /32"]);
    // No digits of the secret are in it.
    let digits: String = ta.lines().filter(|line| line.len() == 32).collect();
    assert!((0..digits.len() - 16).all(|at| !out.contains(&digits[at..at + 16])));
}

#[test]
fn a_key_that_changes_changes_the_revision_and_nothing_else_does() {
    let name = "openvpn-udp-pinned-tls-crypt";
    let folder = folder(name, &vpn(&format!("{HERE}\nidentity = {{ openvpn_tls_crypt = [\"keys/ta.key\"] }}")));
    let key = folder.path().join("approvals.d/keys/ta.key");
    let revision = || {
        let out = run(&folder, "check-config", &[]).expect(0).out;
        out.split_once("revision ").unwrap().1.lines().next().unwrap().to_owned()
    };
    let before = revision();
    let text = fs::read_to_string(&key).unwrap();
    secret(
        &key,
        &format!(
            "# renamed\n{}",
            text.to_uppercase()
                .replace("BEGIN OPENVPN STATIC KEY", "BEGIN OpenVPN Static key")
                .replace("END OPENVPN STATIC KEY", "END OpenVPN Static key")
        ),
    );
    assert_eq!(revision(), before, "the same key, written otherwise");
    secret(&key, &other_key());
    let other = revision();
    assert_ne!(other, before);
    fs::write(
        folder.path().join("approvals.d/a.toml"),
        vpn(&format!("{HERE}\nidentity = {{ openvpn_tls_auth = [\"keys/ta.key\"] }}")),
    )
    .unwrap();
    assert_ne!(revision(), other, "the same key for another use");
}

#[test]
fn keys_that_are_wrong_or_open_to_others_are_refused() {
    let folder = folder("openvpn-udp-pinned-tls-crypt", "");
    let keys = folder.path().join("approvals.d/keys");
    let mode = |file: &str, mode: u32| fs::set_permissions(keys.join(file), Permissions::from_mode(mode)).unwrap();
    let copy = |file: &str| secret(&keys.join(file), &fs::read_to_string(keys.join("ta.key")).unwrap());
    for (file, bits) in [("all.key", 0o644), ("group.key", 0o640), ("write.key", 0o602)] {
        copy(file);
        mode(file, bits);
    }
    copy("strange.key");
    chown(keys.join("strange.key"), Some(4242), None).unwrap();
    fs::create_dir(keys.join("open")).unwrap();
    copy("open/ta.key");
    mode("open", 0o777);
    fs::create_dir(keys.join("sticky")).unwrap();
    copy("sticky/ta.key");
    mode("sticky", 0o1777);
    symlink("all.key", keys.join("link.key")).unwrap();
    symlink("ta.key", keys.join("good-link.key")).unwrap();
    secret(&keys.join("empty.key"), "");
    secret(&keys.join("short.key"), &other_key().replace("5a5a5a5a", "5a"));
    secret(&keys.join("binary.key"), "");
    fs::write(keys.join("binary.key"), [0xff; 300]).unwrap();
    secret(&keys.join("large.key"), &" ".repeat(70_000));
    secret(&keys.join("open.pub"), "sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA=\n");
    mode("open.pub", 0o666);
    secret(&keys.join("bad.pub"), "# partner\n\nsKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA=\nnonsense\n");
    secret(&keys.join("none.pub"), "# nothing\n");
    let crypt = |file: &str| format!("openvpn_tls_crypt = [\"keys/{file}\"]");
    let files = |file: &str| format!("wireguard_public_key_files = [\"keys/{file}\"]");
    #[rustfmt::skip]
    let cases: Vec<(String, &[&str])> = vec![
        (crypt("all.key"), &["identity.openvpn_tls_crypt is \"keys/all.key\": approvals.d/keys/all.key is open to other users (mode 0644), and holds a secret: run `chmod 600 approvals.d/keys/all.key`"]),
        (crypt("group.key"), &["(mode 0640)", "chmod 600 approvals.d/keys/group.key"]),
        (crypt("write.key"), &["(mode 0602)", "chmod 600"]),
        (crypt("link.key"), &["link.key is open to other users (mode 0644)"]),
        (crypt("strange.key"), &["strange.key belongs to user 4242, who is neither root, nor the user that runs this (0), nor the owner of approvals.d/a.toml"]),
        (crypt("open/ta.key"), &["approvals.d/keys/open/ta.key lies in ", "keys/open, where other users may put another file in its place (mode 0777): run `chmod go-w "]),
        (crypt("missing.key"), &["approvals.d/keys/missing.key cannot be read: No such file"]),
        (crypt("open"), &["approvals.d/keys/open is not a file"]),
        (crypt("empty.key"), &["empty.key holds no static key of OpenVPN: its lines `-----BEGIN OpenVPN Static key V1-----` and ", "openvpn … --genkey secret"]),
        (crypt("short.key"), &["short.key holds no static key of OpenVPN: it does not hold 512 hexadecimal digits"]),
        ("openvpn_tls_crypt_v2_clients = [\"keys/ta.key\"]".to_owned(), &["ta.key holds no client key of OpenVPN: its lines `-----BEGIN OpenVPN tls-crypt-v2 client key-----` and ", "--genkey tls-crypt-v2-client FILE"]),
        (crypt("binary.key"), &["binary.key is no text"]),
        (crypt("large.key"), &["large.key is larger than 64 KiB"]),
        (files("open.pub"), &["open.pub may be changed by other users (mode 0666): run `chmod go-w approvals.d/keys/open.pub`"]),
        (files("bad.pub"), &["line 4 of approvals.d/keys/bad.pub is no WireGuard public key"]),
        (files("none.pub"), &["none.pub holds no key"]),
        ("wireguard_public_keys = [\"sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/X=\"]".to_owned(), &["identity.wireguard_public_keys is ", "write a WireGuard public key in quotes: 44 characters of base64, as `wg pubkey` prints it"]),
        ("wireguard_public_keys = \"one\"".to_owned(), &["write a list"]),
        (String::new(), &["identity.wireguard_public_keys is missing: name a key, or take the section out"]),
        ("wireguard_public_keys = []".to_owned(), &["identity.wireguard_public_keys is missing: name a key"]),
        ("wireguard_keys = []".to_owned(), &["identity.wireguard_keys is not a known key: did you mean `wireguard_public_keys`?"]),
    ];
    for (identity, texts) in cases {
        fs::write(folder.path().join("approvals.d/a.toml"), vpn(&format!("{HERE}\nidentity = {{ {identity} }}")))
            .unwrap();
        for command in ["check-config", "replay"] {
            let file = capture("openvpn-udp");
            let more = if command == "replay" { vec![file.to_str().unwrap()] } else { Vec::new() };
            let found = run(&folder, command, &more).expect(78);
            // Where: the line of the approval.
            assert_says(&found.err, &["approvals.d/a.toml:8:"]);
            assert_says(&found.err, texts);
            assert!(!found.err.contains("5a5a5a"), "{}", found.err);
        }
    }
    for identity in [crypt("ta.key"), crypt("sticky/ta.key"), crypt("good-link.key")] {
        fs::write(folder.path().join("approvals.d/a.toml"), vpn(&format!("{HERE}\nidentity = {{ {identity} }}")))
            .unwrap();
        run(&folder, "check-config", &[]).expect(0);
    }
    // Without a key, an approval needs the address.
    fs::write(folder.path().join("approvals.d/a.toml"), vpn("")).unwrap();
    assert_says(
        &run(&folder, "check-config", &[]).expect(78).err,
        &["peers is missing", "an approval with an identity"],
    );
    let odd = vpn(&format!("{HERE}\ntunnels = [\"esp\"]\nidentity = {{ {} }}", crypt("ta.key")));
    fs::write(folder.path().join("approvals.d/a.toml"), odd).unwrap();
    assert_says(
        &run(&folder, "check-config", &[]).expect(0).out,
        &["its tunnels do not name openvpn, so that its key openvpn-tls-crypt:"],
    );
}

/// What a flood costs is counted in keys tried, never in time.
#[test]
fn a_flood_of_forged_handshakes_is_bounded_and_counted() {
    use base64::Engine;
    let keys: Vec<_> =
        (0..100_u8).map(|number| base64::engine::general_purpose::STANDARD.encode([number; 32])).collect();
    let server = public_key("wireguard-pinned", "server.pub");
    let strangers = approval(
        "vpn",
        "strangers",
        &format!("valid_until = 2099-12-31\nidentity = {{ wireguard_public_keys = {keys:?} }}"),
    );
    let own = format!("{HERE}\nidentity = {{ wireguard_public_keys = [\"{server}\"] }}");
    let folder = folder("wireguard-pinned", &(strangers + &vpn(&own)));
    let session = frames("wireguard-pinned");
    // All within one second, before a real session at an approved address.
    let at = session[0].at.as_nanos() / 1_000_000_000 * 1_000_000_000;
    let mut random = 88_172_645_463_325_252_u64;
    let mut flood: Vec<_> = (0..5000_u32)
        .map(|number| {
            let mut octet = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random as u8
            };
            let message: Vec<_> = [1, 0, 0, 0].into_iter().chain((0..144).map(|_| octet())).collect();
            let src = (Ipv4Addr::from(0xcb00_7100 | number & 0xff), (1024 + number) as u16);
            udp(at, src, (Ipv4Addr::new(192, 0, 2, 1), 51_820), &message)
        })
        .collect();
    flood.extend(session);
    fs::write(folder.path().join("input.pcap"), pcap(ETHERNET, &flood)).unwrap();
    let replayed = run(&folder, "replay", &["--summary-json", "summary.json", "input.pcap"]).expect(0);
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("summary.json")).unwrap()).unwrap();
    let keys = &summary["keys"];
    // 20,000 for strangers' handshakes, of 101 keys each; and the one key of the approved address for each of its two
    // messages, the answer to which the other keys were not asked of.
    assert_eq!(keys["trials"], 20_002, "{keys}");
    assert_eq!(keys["skipped"], 5000 - 20_000 / 101 + 1, "{keys}");
    assert_eq!([&keys["verified"], &keys["unknown"], &keys["cut"]], [1, 0, 0], "{keys}");
    assert_says(&replayed.err, &["keys     20002 tried: 1 handshake messages verified"]);
    let ends = replayed.ends();
    let own = ends.iter().find(|end| end["dst_ip"] == "198.51.100.2").unwrap();
    assert_eq!(own["reason"], "approved_by_key");
    // Forged ones were knocks at a door, no tunnels.
    assert_eq!(ends.iter().filter(|end| end["reason"] == "low_confidence").count(), 5000);
}
