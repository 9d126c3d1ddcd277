//! Approvals files and recorded captures into verdicts: every reason, the longest prefix, paths, times.

use std::fs;

use linewarden::policy::Reason;
use serde_json::Value;

use crate::common::OwnedFrame;
use crate::common::command::{approval, approved, capture, done, linewarden};
use crate::common::pcap::{ETHERNET, frames, insert, pcap};

/// The last record of the only flow of some frames.
fn judge(frames: &[OwnedFrame], approvals: &str, more: &[&str]) -> Value {
    let folder = approved(approvals);
    fs::write(folder.path().join("input.pcap"), pcap(ETHERNET, frames)).unwrap();
    let arguments = ["replay", "--quiet", "--approvals", "approvals.d", "--config", "settings.toml", "input.pcap"];
    let mut command = linewarden(arguments.iter().chain(more));
    let ends = done(command.current_dir(folder.path())).expect(0).ends();
    assert_eq!(ends.len(), 1);
    ends.into_iter().next().unwrap()
}

/// The key of the capture `wireguard-pinned`.
const SERVER: &str = "identity = { wireguard_public_keys = [\"sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA=\"] }";

#[test]
fn every_reason_is_reached_by_an_approvals_file() {
    let wireguard = frames("wireguard-port-51820");
    let pinned = frames("wireguard-pinned");
    let plain = frames("benign-game-like-udp");
    let until = |until: &str| format!("peers = [\"198.51.100.2\"]\nvalid_until = {until}\n");
    let peer = |more: &str| until("2099-12-31") + more;
    let peers = |peers: &str| format!("peers = [{peers}]\nvalid_until = 2099-12-31\n");
    let authorized = ("authorized_leased_line", "approved", "a");
    let unapproved = |reason: &'static str| ("unapproved_vpn_tunnel", reason, "a");
    let all = "ports = [\"51000-52000\"]\nip_protocols = [\"udp\"]\ntunnels = [\"wireguard\", \"esp\"]";
    #[rustfmt::skip]
    let cases: Vec<(&str, &[OwnedFrame], String, &[&str], (&str, &str, &str))> = vec![
        ("another peer", &wireguard, peers("\"203.0.113.0/24\""), &[], ("unapproved_vpn_tunnel", "no_approval", "")),
        ("the peer", &wireguard, peers("\"203.0.113.0/24\", \"198.51.100.2\""), &[], authorized),
        ("the other end", &wireguard, peers("\"198.51.100.1\""), &[], authorized),
        ("the peer, port, IP protocol and tunnel", &wireguard, peer(all), &[], authorized),
        ("it had ended", &wireguard, until("2026-11-23"), &[], unapproved("approval_expired")),
        ("it ends with that day", &wireguard, until("2026-11-24"), &[], authorized),
        ("it ended the second before", &wireguard, until("2026-11-24T07:54:49Z"), &[], unapproved("approval_expired")),
        ("it had not begun", &wireguard, peer("valid_from = 2026-11-25"), &[], unapproved("not_yet_valid")),
        ("it began that day", &wireguard, peer("valid_from = 2026-11-24"), &[], authorized),
        ("another interface", &wireguard, peer("path = { interface = \"wan0\" }"), &[], unapproved("wrong_path")),
        ("the interface", &wireguard, peer("path = { interface = \"wan0\" }"), &["--interface", "wan0"], authorized),
        ("another sensor", &wireguard, peer("path = { sensor = \"lisbon-1\" }"), &[], unapproved("wrong_path")),
        ("the sensor", &wireguard, peer("path = { sensor = \"berlin-1\" }"), &[], authorized),
        ("another tunnel", &wireguard, peer("tunnels = [\"openvpn\"]"), &[], unapproved("protocol_not_approved")),
        ("another port", &wireguard, peer("ports = [1194]"), &[], unapproved("protocol_not_approved")),
        ("another IP protocol", &wireguard, peer("ip_protocols = [\"tcp\", 50]"), &[], unapproved("protocol_not_approved")),
        ("the server's key", &pinned, peer(SERVER), &[], ("authorized_leased_line", "approved_by_key", "a")),
        ("a key, and no handshake", &pinned[2..], peer(SERVER), &[], ("authorized_leased_line", "identity_unverified", "a")),
        ("another key", &wireguard, peer(SERVER), &[], unapproved("identity_mismatch")),
        ("one sign", &wireguard[..1], peer(""), &[], ("other", "low_confidence", "")),
        ("one sign is enough", &wireguard[..1], peer(""), &["--min-confidence", "possible"], authorized),
        ("no tunnel", &plain, peer(""), &[], ("other", "not_a_tunnel", "")),
    ];
    for (case, frames, approvals, more, (verdict, reason, id)) in &cases {
        let end = judge(frames, &approval("vpn", "a", approvals), more);
        let found = (end["verdict"].as_str().unwrap(), end["reason"].as_str().unwrap(), end["approval"]["id"].as_str());
        assert_eq!(found, (*verdict, *reason, Some(*id).filter(|id| !id.is_empty())), "{case}");
    }
    for reason in Reason::ALL {
        assert!(
            cases.iter().any(|(.., (_, reached, _))| *reached == reason.name()),
            "{} is not reached",
            reason.name()
        );
    }
}

#[test]
fn the_longest_prefix_wins_then_the_more_specific() {
    let four = frames("wireguard-port-51820");
    let six = frames("wireguard-ipv6");
    let of = |id: &str, rest: &str| approval("vpn", id, &format!("valid_until = 2099-12-31\n{rest}"));
    let ended = |id: &str, rest: &str| approval("vpn", id, &format!("valid_until = 2020-12-31\n{rest}"));
    // Without the client, 198.51.100.1: the approvals of either endpoint count.
    let wide = of("wide", "peers = [\"198.51.100.2/31\"]");
    let cases: Vec<(&str, &[OwnedFrame], String, (&str, &str))> = vec![
        ("the host's", &four, of("host", "peers = [\"198.51.100.2\"]") + &wide, ("host", "approved")),
        ("in either order", &four, wide.clone() + &of("host", "peers = [\"198.51.100.2\"]"), ("host", "approved")),
        (
            "though it refuses",
            &four,
            wide.clone() + &of("host", "peers = [\"198.51.100.2\"]\ntunnels = [\"esp\"]"),
            ("host", "protocol_not_approved"),
        ),
        (
            "though it has ended",
            &four,
            wide.clone() + &ended("host", "peers = [\"198.51.100.2\"]"),
            ("host", "approval_expired"),
        ),
        (
            "of three",
            &four,
            of("widest", "peers = [\"198.51.100.0/25\"]") + &wide + &of("narrow", "peers = [\"198.51.100.2/32\"]"),
            ("narrow", "approved"),
        ),
        (
            "the more specific",
            &four,
            wide.clone() + &of("for-it", "peers = [\"198.51.100.2/31\"]\ntunnels = [\"wireguard\"]"),
            ("for-it", "approved"),
        ),
        (
            "and more so",
            &four,
            of("two", "peers = [\"198.51.100.2/31\"]\ntunnels = [\"wireguard\"]\nports = [51820]")
                + &of("one", "peers = [\"198.51.100.2/31\"]\ntunnels = [\"wireguard\"]"),
            ("two", "approved"),
        ),
        (
            "one that covers before one that does not",
            &four,
            ended("old", "peers = [\"198.51.100.2\"]\nports = [51820]") + &of("renewed", "peers = [\"198.51.100.2\"]"),
            ("renewed", "approved"),
        ),
        (
            "IPv6",
            &six,
            of("site", "peers = [\"2001:db8::/32\"]") + &of("host", "peers = [\"2001:db8:1::2\"]"),
            ("host", "approved"),
        ),
        ("all of IPv6", &six, of("all", "peers = [\"::/0\"]") + &wide, ("all", "approved")),
    ];
    for (case, frames, approvals, (id, reason)) in &cases {
        let end = judge(frames, approvals, &[]);
        assert_eq!([&end["approval"]["id"], &end["reason"]], [id, reason], "{case}");
    }
}

/// A leased line has no header of its own: its path proves it, for plain traffic and tunnels alike.
#[test]
fn a_leased_line_is_known_by_its_path() {
    let line = |path: &str| approval("leased-line", "line", &format!("valid_until = 2099-12-31\npath = {{ {path} }}"));
    let tagged = |name: &str, tag: &[u8], behind: usize| -> Vec<OwnedFrame> {
        frames(name).iter().map(|frame| insert(frame, tag, behind)).collect()
    };
    // IEEE 802.1Q, VLAN 100; in 802.1ad, 200 outside; RFC 3032, label 16004 at the bottom of the stack.
    let vlan = [0x81, 0, 0, 100];
    let stacked = [0x88, 0xa8, 0, 200, 0x81, 0, 0, 100];
    let label = [&[0x88, 0x47][..], &(16_004_u32 << 12 | 1 << 8 | 64).to_be_bytes()].concat();
    for name in ["benign-game-like-udp", "wireguard-port-51820"] {
        let beside = |frames: &[OwnedFrame], path: &str| judge(frames, &line(path), &[]);
        let (vlan, stacked, mpls) = (tagged(name, &vlan, 12), tagged(name, &stacked, 12), tagged(name, &label, 14));
        for (frames, path) in [
            (&vlan, "vlan = 100"),
            (&stacked, "vlan = 100"),
            (&stacked, "vlan = 200"),
            (&mpls, "mpls_label = 16004"),
            (&vlan, "sensor = \"berlin-1\", interface = \"input.pcap\", vlan = 100"),
        ] {
            let end = beside(frames, path);
            assert_eq!(
                [&end["verdict"], &end["reason"], &end["approval"]["id"]],
                ["authorized_leased_line", "approved", "line"],
                "{name}: {path}"
            );
        }
        let elsewhere = if name.starts_with("benign") {
            ["other", "not_a_tunnel"]
        } else {
            ["unapproved_vpn_tunnel", "wrong_path"]
        };
        for (frames, path) in [
            (&vlan, "vlan = 101"),
            (&mpls, "mpls_label = 16005"),
            (&vlan, "vlan = 100, interface = \"wan0\""),
            (&vlan, "vlan = 100, sensor = \"lisbon-1\""),
            (&mpls, "vlan = 100"),
        ] {
            let end = beside(frames, path);
            assert_eq!([&end["verdict"], &end["reason"]], elsewhere, "{name}: {path}");
        }
        assert_eq!(beside(&stacked, "vlan = 100")["vlan"], serde_json::json!([200, 100]));
        assert_eq!(beside(&mpls, "vlan = 100")["mpls_labels"].as_array().unwrap()[0], 16_004);
    }
}

/// An approval that begins or ends inside a flow changes its verdict by the time of the packets.
#[test]
fn the_time_of_the_packets_counts() {
    let folder = approved(&approval(
        "vpn",
        "a",
        "valid_from = 2026-11-24T07:54:50.8Z\nvalid_until = 2026-11-24T08:54:51+01:00\npeers = [\"198.51.100.2\"]",
    ));
    let file = capture("wireguard-port-51820");
    let mut command = linewarden(["replay", "--quiet", "--approvals", "approvals.d", file.to_str().unwrap()]);
    let records = done(command.current_dir(folder.path())).expect(0).records();
    let steps: Vec<_> =
        records.iter().map(|record| [record["kind"].as_str().unwrap(), record["reason"].as_str().unwrap()]).collect();
    assert_eq!(
        steps,
        [
            ["start", "low_confidence"],
            ["update", "not_yet_valid"],
            ["update", "approved"],
            ["update", "approval_expired"],
            ["end", "approval_expired"],
        ]
    );
    let time = |record: &Value| record["time"].as_str().unwrap().to_owned();
    assert!(time(&records[2]).as_str() >= "2026-11-24T07:54:50.800000000Z", "{}", time(&records[2]));
    assert!(time(&records[3]).as_str() >= "2026-11-24T07:54:51.000000000Z", "{}", time(&records[3]));
}
