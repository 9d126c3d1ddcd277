//! Packets inside packets: mirrors that are opened before anything else, and tunnels that are looked into, with captures
//! of real software put into encapsulations between other hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::HashSet;

use common::packet::{Carried, fragmented, tunnelled, tunnelled_in_udp};
use common::pcap::{frames, insert};
use common::{OwnedFrame, approval, assert_nothing_lost, audit, ends, policy, settings};
use linewarden::audit::{AuditSettings, Counters, Decapsulation, Mirror};
use linewarden::detect::Protocol;
use linewarden::policy::{Approval, ApprovalKind, Label, Path, Reason};
use linewarden::record::Record;
use linewarden::wire::Encapsulation;

const HOSTS: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 9]];

const CAPTURES: [&str; 6] =
    ["wireguard-port-51820", "openvpn-tcp-1194", "esp-ip", "wireguard-ipv6", "gre-ip", "benign-dnsmasq-dns"];

type Wrap = fn(&OwnedFrame) -> OwnedFrame;

/// A way to carry frames, and the setting that opens it.
const WAYS: [(&str, Encapsulation, Option<u16>, Wrap); 6] = [
    ("VXLAN", Encapsulation::Vxlan, Some(4789), |frame| in_vxlan(frame, 7)),
    ("Geneve", Encapsulation::Geneve, Some(6081), |frame| {
        let header = [1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 0];
        tunnelled_in_udp(frame, HOSTS, [50_000, 6081], &header, Carried::Frame)
    }),
    ("GRE", Encapsulation::Gre, None, |frame| tunnelled(frame, HOSTS, 47, &[0, 0, 0x65, 0x58], Carried::Frame)),
    ("ERSPAN I", Encapsulation::Gre, None, |frame| tunnelled(frame, HOSTS, 47, &[0, 0, 0x88, 0xbe], Carried::Frame)),
    ("ERSPAN II", Encapsulation::Gre, None, |frame| {
        let number = u32::try_from(frame.number).unwrap().to_be_bytes();
        let header = [&[0x10, 0, 0x88, 0xbe][..], &number, &[0x10, 0, 0, 9, 0, 0, 0, 1]].concat();
        tunnelled(frame, HOSTS, 47, &header, Carried::Frame)
    }),
    ("GTP-U", Encapsulation::GtpU, Some(2152), |frame| {
        let len = u16::try_from(frame.wire_len - 14).unwrap().to_be_bytes();
        let header = [0x30, 0xff, len[0], len[1], 0, 0, 0, 5];
        tunnelled_in_udp(frame, HOSTS, [2152, 2152], &header, Carried::Packet)
    }),
];

fn in_vxlan(frame: &OwnedFrame, network: u8) -> OwnedFrame {
    tunnelled_in_udp(frame, HOSTS, [50_000, 4789], &[8, 0, 0, 0, 0, 0, network, 0], Carried::Frame)
}

fn in_gre(frame: &OwnedFrame) -> OwnedFrame {
    tunnelled(frame, HOSTS, 47, &[0, 0, frame.data[12], frame.data[13]], Carried::Packet)
}

fn audited(frames: &[OwnedFrame], decapsulation: Decapsulation, approvals: Vec<Approval>) -> (Vec<Record>, Counters) {
    let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    let settings = AuditSettings { snap_length: 512, decapsulation, ..settings() };
    let (records, counters) = audit(settings, policy(approvals), &borrowed);
    assert_nothing_lost(&records, &counters, "inside");
    (records, counters)
}

fn plainly(frames: &[OwnedFrame]) -> (Vec<Record>, Counters) {
    audited(frames, Decapsulation::default(), Vec::new())
}

fn mirror(encapsulation: Encapsulation, port: Option<u16>) -> Decapsulation {
    let mirror =
        Mirror { name: "a mirror", encapsulation, from: None, to: Some("192.0.2.9/32".parse().unwrap()), port };
    Decapsulation { mirrors: vec![mirror], depth: 4 }
}

#[test]
fn a_mirror_gives_the_records_of_the_link_that_it_copies() {
    for capture in CAPTURES {
        let frames = frames(capture);
        let (expected, _) = plainly(&frames);
        for (name, encapsulation, port, wrap) in WAYS {
            let wrapped: Vec<_> = frames.iter().map(wrap).collect();
            let (mut found, counters) = audited(&wrapped, mirror(encapsulation, port), Vec::new());
            let mut expected = expected.clone();
            for record in found.iter_mut().chain(&mut expected) {
                if encapsulation == Encapsulation::GtpU && record.outer_flow_id.is_none() {
                    // Without the link's header.
                    (record.fwd_octets, record.rev_octets) = (0, 0);
                }
            }
            assert_eq!(found, expected, "{capture} in {name}");
            assert_eq!(counters.mirrored, frames.len() as u64, "{capture} in {name}");
            assert!(counters.mirror_octets > 0, "{capture} in {name}");
        }
    }
}

/// ERSPAN and mirrors of clouds send the first octets of each frame: the lengths inside are those on the link.
#[test]
fn a_mirror_that_cuts_its_copies_shows_the_same_tunnels() {
    for capture in ["wireguard-port-51820", "openvpn-udp", "esp-ip", "benign-dnsmasq-dns"] {
        let frames = frames(capture);
        let (expected, _) = plainly(&frames);
        let cut: Vec<_> = frames
            .iter()
            .map(|frame| {
                let len = frame.data.len().min(128);
                let cut = OwnedFrame { wire_len: len as u32, data: frame.data[..len].to_vec(), ..frame.clone() };
                in_vxlan(&cut, 7)
            })
            .collect();
        let (found, counters) = audited(&cut, mirror(Encapsulation::Vxlan, Some(4789)), Vec::new());
        let names = |records: &[Record]| -> Vec<_> {
            ends(records).iter().map(|end| (end.flow_id, end.tunnel, end.confidence, end.fwd_packets)).collect()
        };
        assert_eq!(names(&found), names(&expected), "{capture}");
        assert_eq!(counters.undecodable.iter().sum::<u64>(), 0, "{capture}");
    }
}

#[test]
fn a_mirror_of_another_host_port_or_encapsulation_is_a_tunnel() {
    let wrapped: Vec<_> = frames("benign-dnsmasq-dns").iter().map(|frame| in_vxlan(frame, 7)).collect();
    let settings = [
        mirror(Encapsulation::Vxlan, Some(4790)),
        mirror(Encapsulation::Geneve, Some(6081)),
        mirror(Encapsulation::Gre, None),
        Decapsulation {
            mirrors: vec![Mirror {
                name: "a mirror",
                encapsulation: Encapsulation::Vxlan,
                from: Some("192.0.2.2/32".parse().unwrap()),
                to: None,
                port: Some(4789),
            }],
            depth: 4,
        },
    ];
    for decapsulation in settings {
        let (records, counters) = audited(&wrapped, decapsulation, Vec::new());
        assert_eq!(counters.mirrored, 0);
        assert!(ends(&records).iter().any(|end| end.tunnel == Some(Protocol::Vxlan)));
    }
}

#[test]
fn a_tunnel_in_a_tunnel_is_labelled_and_names_the_outer_one() {
    for (name, _, _, wrap) in WAYS {
        for (capture, inner) in [("wireguard-port-51820", Protocol::Wireguard), ("openvpn-udp", Protocol::Openvpn)] {
            let wrapped: Vec<_> = frames(capture).iter().map(wrap).collect();
            let (records, _) = plainly(&wrapped);
            let ends = ends(&records);
            let outer = ends.iter().find(|end| end.outer_flow_id.is_none()).unwrap();
            assert_eq!(outer.verdict, Label::UnapprovedVpnTunnel, "{name}");
            let found =
                ends.iter().find(|end| end.tunnel == Some(inner)).unwrap_or_else(|| panic!("{capture} in {name}"));
            assert_eq!(found.outer_flow_id.as_ref(), Some(&outer.flow_id), "{capture} in {name}");
            assert_eq!(found.verdict, Label::UnapprovedVpnTunnel, "{capture} in {name}");
            assert!(
                records.iter().filter(|record| record.flow_id == found.flow_id).all(|of| of.outer_flow_id.is_some())
            );
        }
    }
}

#[test]
fn the_depth_is_bounded() {
    let mut wrapped = frames("wireguard-port-51820");
    for _ in 0..7 {
        wrapped = wrapped.iter().map(in_gre).collect();
    }
    for depth in 0..=8 {
        let (records, counters) = audited(&wrapped, Decapsulation { mirrors: Vec::new(), depth }, Vec::new());
        let ends = ends(&records);
        let flows = usize::from(depth.min(7)) + 1;
        assert_eq!(ends.len(), flows, "depth {depth}");
        let ids: HashSet<_> = ends.iter().map(|end| &end.flow_id).collect();
        assert_eq!(ids.len(), flows, "depth {depth}: each has its own name");
        assert!(ends.iter().filter_map(|end| end.outer_flow_id.as_ref()).all(|outer| ids.contains(outer)));
        assert_eq!(ends.iter().any(|end| end.tunnel == Some(Protocol::Wireguard)), depth >= 7, "depth {depth}");
        assert_eq!(counters.packets, wrapped.len() as u64);
    }
}

#[test]
fn networks_that_use_the_same_addresses_do_not_mix() {
    let plain = frames("wireguard-port-51820");
    let wrapped: Vec<_> = plain.iter().flat_map(|frame| [in_vxlan(frame, 7), in_vxlan(frame, 8)]).collect();
    let (records, _) = plainly(&wrapped);
    let ends = ends(&records);
    let inside: Vec<_> = ends.iter().filter(|end| end.tunnel == Some(Protocol::Wireguard)).collect();
    assert_eq!(inside.len(), 2);
    assert_ne!(inside[0].flow_id, inside[1].flow_id);
    assert_eq!(inside[0].fwd_packets, inside[1].fwd_packets);
}

#[test]
fn a_fragmented_tunnel_is_opened_by_its_first_fragments() {
    for wrap in [in_gre as Wrap, |frame| in_vxlan(frame, 7)] {
        let wrapped: Vec<_> = frames("wireguard-port-51820").iter().map(wrap).collect();
        let pieces: Vec<_> = wrapped.iter().flat_map(fragmented).collect();
        assert!(pieces.len() > wrapped.len());
        let (records, counters) = plainly(&pieces);
        let ends = ends(&records);
        let found = ends.iter().find(|end| end.tunnel == Some(Protocol::Wireguard)).expect("WireGuard inside");
        assert!(found.outer_flow_id.is_some());
        assert_eq!(counters.fragment_overlaps, 0);
    }
}

/// What is inside goes the way of its tunnel: a leased line proven by its VLAN covers both.
#[test]
fn a_path_covers_what_is_inside() {
    let line = Approval {
        kind: ApprovalKind::LeasedLine,
        reference: "circuit 1".into(),
        path: Path { vlan: Some(100), ..Path::default() },
        ..approval("line", &[])
    };
    let tagged: Vec<_> =
        frames("benign-dnsmasq-dns").iter().map(in_gre).map(|frame| insert(&frame, &[0x81, 0, 0, 100], 12)).collect();
    let (records, _) = audited(&tagged, Decapsulation::default(), vec![line]);
    let ends = ends(&records);
    assert!(ends.iter().any(|end| end.outer_flow_id.is_some()));
    for end in ends {
        assert_eq!((end.verdict, end.reason), (Label::AuthorizedLeasedLine, Reason::Approved));
        assert_eq!(end.vlan, [100]);
    }
}
