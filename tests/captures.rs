//! Captures recorded from real software, each with the records it must give: the last record of every flow,
//! and how often detectors were called, so that a growing cost fails too.
//!
//! After a wanted change: `BLESS=1 cargo test --test captures`, then read the difference in version control.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::fmt::Write;
use std::fs;

use common::{
    OwnedFrame, assert_nothing_lost, audit, audit_plainly, capture_folders, ends, name, pinning, read, settings,
};
use linewarden::detect::{Confidence, Protocol, REGISTRY};
use linewarden::policy::{Label, Reason};

/// What a capture's `expected.ndjson` holds: a line of counts, then a line a flow.
fn golden(folder: &std::path::Path) -> String {
    let frames = read(&folder.join("input.pcap"));
    let (records, counters) = audit_plainly(&frames);
    assert_nothing_lost(&records, &counters, name(folder));
    let mut text = format!(
        "{{\"packets\":{},\"flows\":{},\"inspections\":{}}}\n",
        counters.packets, counters.flows, counters.inspections
    );
    for record in ends(&records) {
        let line = serde_json::to_string(record).unwrap();
        writeln!(text, "{line}").unwrap();
    }
    text
}

#[test]
fn records_are_as_expected() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for folder in capture_folders() {
        let path = folder.join("expected.ndjson");
        let found = golden(&folder);
        if bless {
            fs::write(&path, found).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        let differing = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
        if let Some((expected, found)) = differing {
            wrong.push(format!("{}\n  expected {expected}\n  found    {found}", name(&folder)));
        } else if expected.lines().count() != found.lines().count() {
            wrong.push(format!("{}: {} lines, not {}", name(&folder), found.lines().count(), expected.lines().count()));
        }
    }
    assert!(wrong.is_empty(), "{} captures differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// `benign-*` captures hold no tunnel, `opaque-*` ones hold a tunnel that no passive eye can name: both stay `other`.
/// The others hold the one that they are named after, as sure as its detectors say that they get: for certain, but for a few.
#[test]
fn tunnels_are_certain_and_benign_traffic_raises_no_alarm() {
    let mut wrong = Vec::new();
    for folder in capture_folders() {
        let name = name(&folder).to_owned();
        let frames = read(&folder.join("input.pcap"));
        let (records, _) = audit_plainly(&frames);
        let ends = ends(&records);
        if name.starts_with("benign-") || name.starts_with("opaque-") {
            wrong.extend(ends.iter().filter(|end| end.verdict != Label::Other).map(|end| {
                format!("{name}: {}:{:?} is called {:?} at {:?}", end.dst_ip, end.dst_port, end.tunnel, end.confidence)
            }));
        } else if !ends.iter().any(|end| {
            let reach = end.tunnel.and_then(|tunnel| reach(tunnel, name.contains("midstream")));
            end.confidence >= if name.ends_with("-likely") { Some(Confidence::Likely) } else { reach }
                && end.verdict == Label::UnapprovedVpnTunnel
                && end.tunnel.is_some_and(|tunnel| name.starts_with(&format!("{}-", tunnel.name())))
        }) {
            wrong.push(format!("{name}: not as sure of the tunnel that it is named after as its detector says"));
        }
        if name.contains("midstream") {
            let early = ends.iter().filter(|end| end.tunnel.is_some() && !end.midstream);
            wrong.extend(early.map(|end| format!("{name}: {:?} is not called mid-stream", end.tunnel)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Half of all benign flows cost at most this many calls of detectors.
const MEDIAN_CALLS: u8 = 8;

#[test]
fn benign_flows_cost_few_calls_of_detectors() {
    let mut calls = Vec::new();
    for folder in capture_folders().iter().filter(|folder| name(folder).starts_with("benign-")) {
        let (records, _) = audit_plainly(&read(&folder.join("input.pcap")));
        calls.extend(ends(&records).iter().map(|end| end.inspections));
    }
    calls.sort_unstable();
    let median = calls[calls.len() / 2];
    assert!(median <= MEDIAN_CALLS, "{median} calls: {calls:?}");
}

/// Keys verify what was made with them, and nothing else; and what no key could verify gets no other name by them.
#[test]
fn pinned_keys_verify_their_own_captures_alone() {
    for folder in capture_folders() {
        let name = name(&folder);
        let frames = read(&folder.join("input.pcap"));
        let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        let (records, counters) = audit(settings(), pinning(), &borrowed);
        let is_own = name.contains("-pinned-tls-auth") || name.ends_with("-pinned-tls-crypt");
        assert_eq!(counters.keys.verified > 0, is_own, "{name}: {:?}", counters.keys);
        let (plain, _) = audit_plainly(&frames);
        for (with, without) in ends(&records).into_iter().zip(ends(&plain)) {
            assert_eq!(with.tunnel, without.tunnel, "{name}");
            let is_mismatch = with.reason == Reason::IdentityMismatch;
            let has_keys = [Some(Protocol::Wireguard), Some(Protocol::Openvpn)].contains(&with.tunnel);
            assert!(!is_mismatch || has_keys && !is_own, "{name}: {:?}", with.evidence);
        }
    }
}

/// How sure the detectors of a protocol say that they get.
fn reach(protocol: Protocol, is_midstream: bool) -> Option<Confidence> {
    let of = REGISTRY.iter().map(|detector| detector.about()).filter(|about| about.protocols.contains(&protocol));
    of.filter_map(|about| if is_midstream { about.midstream } else { Some(about.reaches) }).max()
}

/// A detector is its file, its line in the registry, a capture of real software and its row in the README.
#[test]
fn every_detector_has_a_capture_and_a_row() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let folders: Vec<_> = capture_folders().iter().map(|folder| name(folder).to_owned()).collect();
    for detector in REGISTRY {
        let about = detector.about();
        for protocol in about.protocols {
            let prefix = format!("{}-", protocol.name());
            assert!(folders.iter().any(|folder| folder.starts_with(&prefix)), "no capture for {prefix}");
            let own = format!("`{}`", protocol.name());
            let has_row = readme.lines().any(|line| line.split('|').nth(1).is_some_and(|names| names.contains(&own)));
            assert!(has_row, "no row for {own} in README.md");
        }
    }
}
