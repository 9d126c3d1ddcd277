//! `linewarden explain`: flows named in every way, every piece of evidence, and the nearest approval.

use std::fs;
use std::path::Path;

use linewarden::detect::REGISTRY;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::capture_folders;
use crate::common::command::{Done, approval, approved, assert_says, capture, done, linewarden};

fn explain(folder: &TempDir, file: &Path, flow: &str) -> Done {
    let mut command = linewarden(["explain", "--approvals", "approvals.d", "--flow", flow, file.to_str().unwrap()]);
    done(command.current_dir(folder.path()))
}

#[test]
fn a_flow_is_named_in_every_way() {
    let folder = approved("");
    let file = capture("wireguard-port-51820");
    let names = [
        "84f720bee2edfd57",
        "84F7",
        "84f720b",
        "1:4gKNXtIsiSFWbFP92JiVliWq2LE=",
        "198.51.100.1",
        "198.51.100.2",
        "198.51.100.2:51820",
        "198.51.100.1,198.51.100.2",
        "198.51.100.2, 198.51.100.1:51820",
    ];
    for flow in names {
        let out = explain(&folder, &file, flow).expect(0).out;
        assert_says(&out, &["flow      84f720bee2edfd57  (Community ID 1:4gKNXtIsiSFWbFP92JiVliWq2LE=)"]);
        assert_eq!(out.matches("\nverdict ").count(), 1, "{flow}");
    }
    for flow in ["[2001:db8:1::2]:51820", "2001:DB8:1:0::1,2001:db8:1::2"] {
        let out = explain(&folder, &capture("wireguard-ipv6"), flow).expect(0).out;
        assert_says(&out, &["udp [2001:db8:1::1]:51820 -> [2001:db8:1::2]:51820"]);
    }
    for flow in
        ["84f8", "1:aaaaaaaaaaaaaaaaaaaaaaaaaaa=", "198.51.100.3", "198.51.100.1:51821", "198.51.100.1,198.51.100.1"]
    {
        let done = explain(&folder, &file, flow).expect(64);
        assert_says(&done.err, &[&format!("no flow matches `{flow}`"), "`linewarden replay --other end` lists all"]);
        assert_eq!(done.out, "");
    }
    // Two are explained, twenty are listed.
    let out = explain(&folder, &capture("esp-udp"), "198.51.100.1").expect(0).out;
    assert_eq!(out.matches("\nverdict ").count(), 2, "{out}");
    let done = explain(&folder, &capture("benign-dnsmasq-dns"), "198.51.100.2").expect(64);
    let flows = done.out.lines().count();
    assert_says(&done.err, &[&format!("{flows} flows match `198.51.100.2`: name one of those above by its flow_id")]);
    assert!(flows > 10 && !done.out.contains("verdict "), "{}", done.out);
    let listed = done.out.lines().next().unwrap();
    assert_says(
        &explain(&folder, &capture("benign-dnsmasq-dns"), &listed[..16]).expect(0).out,
        &["tunnel    no sign of one"],
    );
    explain(&folder, Path::new("none.pcap"), "198.51.100.2").expect(65);
}

/// Each piece of evidence of every capture, with its packet, time, and clause of the specification.
#[test]
fn every_piece_of_evidence_is_explained() {
    let folder = approved("");
    let codes: Vec<_> = REGISTRY.iter().flat_map(|detector| detector.about().codes).collect();
    let mut explained = 0;
    for captured in capture_folders() {
        let golden = fs::read_to_string(captured.join("expected.ndjson")).unwrap();
        for line in golden.lines().skip(1) {
            let end: Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| end[field].as_str().unwrap().to_owned();
            let evidence = end["evidence"].as_array().unwrap();
            if evidence.is_empty() {
                continue;
            }
            let out = explain(&folder, &captured.join("input.pcap"), &text("flow_id")).expect(0).out;
            for found in evidence {
                let place = format!("  packet {}  {}  ", found["packet"], found["time"].as_str().unwrap());
                let name = found["code"].as_str().unwrap();
                let mut lines =
                    out.lines().skip_while(|line| !(line.starts_with(&place) && line.contains(&format!("  {name}  "))));
                let (Some(head), Some(meaning)) = (lines.next(), lines.next()) else {
                    panic!("{place}{name} is not in\n{out}")
                };
                assert_says(head, &[&format!("makes it {}", found["confidence"].as_str().unwrap())]);
                let code = codes.iter().find(|code| code.name == name).unwrap();
                assert_says(
                    meaning,
                    &[code.meaning, &format!("[{}]", code.clause), &format!("(value {},", found["value"])],
                );
                explained += 1;
            }
            assert_says(
                &out,
                &[
                    &format!("verdict   {}", text("verdict")),
                    &format!("reason    {}: ", text("reason")),
                    &format!("tunnel    {}, {}", text("tunnel"), text("confidence")),
                    "approvals none are in force",
                ],
            );
        }
    }
    assert!(explained > 150, "{explained}");
}

#[test]
fn the_nearest_approval_and_what_kept_it_are_explained() {
    let file = capture("wireguard-port-51820");
    let why = |approvals: &str| explain(&approved(approvals), &file, "84f7").expect(0).out;
    let of = |id: &str, rest: &str| approval("vpn", id, rest);
    let out = why(&of(
        "a",
        "valid_until = 2026-01-01\npeers = [\"198.51.100.2\"]\nports = [1194]\nip_protocols = [\"tcp\"]\ntunnels = [\"openvpn\"]\npath = { interface = \"wan0\", vlan = 7 }",
    ));
    assert_says(
        &out,
        &[
            "reason    protocol_not_approved: the endpoint is approved, but not for this tunnel, IP protocol or port",
            "approvals asked, nearest first\n  a (owner network team, reference CHG-a) by its /32",
            "FAILS tunnel: allowed openvpn; found wireguard",
            "FAILS ip protocol: allowed 6; found 17",
            "FAILS port: allowed 1194; found 51820 and 51820",
            "FAILS path: allowed interface wan0, VLAN 7; found sensor ",
            "FAILS validity: allowed always to 2026-01-02T00:00:00.000000000Z; found 2026-11-24T07:54:51.517537000Z",
        ],
    );
    let out = why(&of("a", "valid_until = 2099-01-01\npeers = [\"198.51.100.2\"]"));
    assert_says(
        &out,
        &["verdict   authorized_leased_line", "reason    approved: an approval covers it", "fits  validity"],
    );
    assert!(!out.contains("FAILS"), "{out}");
    let out = why(&(of("far", "valid_until = 2099-01-01\npeers = [\"198.0.0.0/16\"]")
        + &of("near", "valid_until = 2099-01-01\npeers = [\"198.51.100.64/26\"]")));
    assert_says(
        &out,
        &[
            "reason    no_approval: no approval names either endpoint",
            "approvals none names 198.51.100.1 or 198.51.100.2",
            "nearest: 198.51.100.64/26 of near (owner network team, reference CHG-near) shares the first 25 bits only",
        ],
    );
    // Which verdict it had when.
    let history = out.split_once("history\n").unwrap().1;
    let kinds: Vec<_> = history.lines().take(3).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(kinds, ["start", "update", "end"]);
}
