//! Frames that no honest sender makes: every prefix and a large sample of one-octet changes of all captured frames, and
//! random octets, each handshake shown to pinned keys. Nothing may panic, and no packet may go uncounted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use common::{OwnedFrame, assert_nothing_lost, audit, capture_folders, name, pinning, read, settings};
use linewarden::time::Timestamp;
use linewarden::wire::{InterfaceId, LinkType};
use proptest::prelude::*;

/// Changes tried per octet of a frame: one bit each, all bits, and two edges.
const CHANGES: [fn(u8) -> u8; 5] = [|octet| octet ^ 0x01, |octet| octet ^ 0x80, |octet| !octet, |_| 0x00, |_| 0xff];

/// Octets that matter to parsers and detectors lie in front; the sample thins out behind.
fn positions(len: usize) -> impl Iterator<Item = usize> {
    (0..len.min(120)).chain((120..len).step_by(37))
}

fn check(frames: &[OwnedFrame], context: &str) {
    let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    let (records, counters) = audit(settings(), pinning(), &borrowed);
    assert_eq!(counters.packets, frames.len() as u64);
    assert_nothing_lost(&records, &counters, context);
}

#[test]
fn every_prefix_of_every_frame() {
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        let mut cut = Vec::new();
        for frame in frames.iter().take(60) {
            for len in 0..frame.data.len().min(300) {
                cut.push(OwnedFrame { data: frame.data[..len].to_vec(), ..frame.clone() });
            }
        }
        check(&cut, name(&folder));
        // The same with the wire length cut too: a sender that lies about nothing but sends less.
        for frame in &mut cut {
            frame.wire_len = frame.data.len() as u32;
        }
        check(&cut, name(&folder));
    }
}

#[test]
fn one_octet_changes_of_every_frame() {
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        for frame in frames.iter().take(16) {
            let mut changed = Vec::new();
            for position in positions(frame.data.len()) {
                for change in CHANGES {
                    let mut data = frame.data.clone();
                    data[position] = change(data[position]);
                    changed.push(OwnedFrame { data, ..frame.clone() });
                }
            }
            check(&changed, name(&folder));
        }
    }
}

fn link() -> impl Strategy<Value = LinkType> {
    prop_oneof![
        Just(LinkType::Ethernet),
        Just(LinkType::RawIp),
        Just(LinkType::LinuxSll),
        Just(LinkType::LinuxSll2),
        Just(LinkType::Loopback)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_octets(
        frames in prop::collection::vec((link(), prop::collection::vec(any::<u8>(), 0..300), any::<u32>(), any::<u64>()), 1..60),
    ) {
        let frames: Vec<_> = frames
            .into_iter()
            .map(|(link, data, wire_len, at)| OwnedFrame {
                at: Timestamp::from_nanos(at),
                number: 1,
                wire_len: wire_len.max(data.len() as u32),
                interface: InterfaceId(0),
                link,
                stripped_vlan: None,
                data,
            })
            .collect();
        check(&frames, "random octets");
    }

    /// A real IPv4 header with anything behind it, so that transports and detectors see random octets too.
    #[test]
    fn random_payloads(
        frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200), 0..4u8, any::<bool>()), 1..80),
    ) {
        let frames: Vec<_> = frames
            .into_iter()
            .enumerate()
            .map(|(number, (protocol, payload, host, swap))| {
                let len = (20 + payload.len()) as u16;
                let (a, b) = if swap { (host, 9) } else { (9, host) };
                let mut data = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 198, 51, 100, a, 198, 51, 100, b];
                data[2..4].copy_from_slice(&len.to_be_bytes());
                data.extend(payload);
                OwnedFrame {
                    at: Timestamp::from_secs(1_000_000 + number as u64),
                    number: number as u64 + 1,
                    wire_len: data.len() as u32,
                    interface: InterfaceId(0),
                    link: LinkType::RawIp,
                    stripped_vlan: None,
                    data,
                }
            })
            .collect();
        check(&frames, "random payloads");
    }
}
