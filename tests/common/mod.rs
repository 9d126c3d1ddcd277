//! What several tests share: recorded captures, an auditor over them, approvals made on the spot.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod command;
pub mod netns;
pub mod packet;
pub mod pcap;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linewarden::audit::{AuditSettings, Auditor, Counters, Decapsulation, OtherRecords};
use linewarden::capture::file::CaptureFile;
use linewarden::detect::{Confidence, Key, KeyKind};
use linewarden::flow::FlowSettings;
use linewarden::policy::{self, Approval, ApprovalKind, Policy};
use linewarden::record::{Kind, Record};
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, InterfaceId, LinkType, VlanTag};

/// A frame that outlives its file.
#[derive(Clone, Debug)]
pub struct OwnedFrame {
    pub at: Timestamp,
    pub number: u64,
    pub wire_len: u32,
    pub interface: InterfaceId,
    pub link: LinkType,
    pub stripped_vlan: Option<VlanTag>,
    pub data: Vec<u8>,
}

impl OwnedFrame {
    pub fn borrow(&self) -> Frame<'_> {
        Frame {
            at: self.at,
            number: self.number,
            wire_len: self.wire_len,
            interface: self.interface,
            link: self.link,
            stripped_vlan: self.stripped_vlan,
            data: &self.data,
        }
    }
}

impl From<&Frame<'_>> for OwnedFrame {
    fn from(frame: &Frame<'_>) -> Self {
        Self {
            at: frame.at,
            number: frame.number,
            wire_len: frame.wire_len,
            interface: frame.interface,
            link: frame.link,
            stripped_vlan: frame.stripped_vlan,
            data: frame.data.to_vec(),
        }
    }
}

/// Folders of `tests/captures`, in order.
pub fn capture_folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut folders: Vec<_> = std::fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "no captures in {}", root.display());
    folders
}

pub fn name(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).unwrap()
}

/// Every frame of a capture file.
pub fn read(path: &Path) -> Vec<OwnedFrame> {
    let mut file = CaptureFile::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut frames = Vec::new();
    while file.next_batch(&mut |batch, _| frames.extend(batch.iter().map(OwnedFrame::from))).unwrap() {}
    frames
}

pub fn settings() -> AuditSettings {
    AuditSettings {
        sensor: "test".into(),
        interfaces: vec!["input.pcap".into()],
        snap_length: 256,
        decapsulation: Decapsulation { mirrors: Vec::new(), depth: 4 },
        flow: FlowSettings {
            idle_timeout: Duration::from_mins(2),
            active_timeout: Duration::from_mins(30),
            memory_octets: 64 << 20,
            vlan_in_key: true,
            home_nets: Vec::new(),
        },
        update_interval: Duration::from_mins(5),
        other: OtherRecords::All,
        hash_seed: 1,
    }
}

pub fn policy(approvals: Vec<Approval>) -> Arc<Policy> {
    Arc::new(Policy::new("test".into(), Confidence::Likely, "none".into(), approvals))
}

/// An approval of a VPN with these peers, that never ends.
pub fn approval(id: &str, peers: &[&str]) -> Approval {
    Approval {
        id: id.into(),
        kind: ApprovalKind::Vpn,
        owner: "network team".into(),
        reference: "CHG-1".into(),
        need: None,
        valid_from: None,
        valid_until: Timestamp::MAX,
        peers: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
        ports: Vec::new(),
        ip_protocols: Vec::new(),
        tunnels: Vec::new(),
        path: policy::Path::default(),
        capacity: None,
        keys: Vec::new(),
    }
}

/// A policy that pins, at every address, some keys that the captures were made with: each handshake is shown to them.
pub fn pinning() -> Arc<Policy> {
    let read = |name: &str| std::fs::read_to_string(command::capture(name).with_file_name("keys/ta.key")).unwrap();
    let openvpn = |kind, name: &str| Key::openvpn(kind, &read(name)).unwrap();
    let keys = [
        Key::wireguard(&[7; 32]),
        openvpn(KeyKind::OpenvpnTlsAuth, "openvpn-udp-pinned-tls-auth"),
        openvpn(KeyKind::OpenvpnTlsCrypt, "openvpn-udp-pinned-tls-crypt"),
    ];
    let keys = keys.into_iter().map(Arc::new).collect();
    policy(vec![Approval { keys, ..approval("pinning", &["0.0.0.0/0", "::/0"]) }])
}

/// All records of some frames, and what became of the packets.
pub fn audit(settings: AuditSettings, policy: Arc<Policy>, frames: &[Frame<'_>]) -> (Vec<Record>, Counters) {
    let mut records = Vec::new();
    let mut auditor = Auditor::new(Arc::new(settings), policy);
    auditor.observe(frames, &mut |record| records.push(record));
    auditor.finish(&mut |record| records.push(record));
    (records, auditor.counters())
}

/// The same over owned frames, by the default settings and without approvals.
pub fn audit_plainly(frames: &[OwnedFrame]) -> (Vec<Record>, Counters) {
    let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    audit(settings(), policy(Vec::new()), &borrowed)
}

/// Last records of the flows.
pub fn ends(records: &[Record]) -> Vec<&Record> {
    records.iter().filter(|record| record.kind == Kind::End).collect()
}

/// Packets and octets in = sum over `end` records + undecodable ones + those of records left out.
pub fn assert_nothing_lost(records: &[Record], counters: &Counters, context: &str) {
    let undecodable: u64 = counters.undecodable.iter().sum();
    assert_eq!(counters.packets, counters.classified + undecodable, "{context}: packets");
    let octets = counters.classified_octets + counters.mirror_octets + counters.undecodable_octets;
    assert_eq!(counters.octets, octets, "{context}: octets");
    let ends = ends(records);
    let (inside, outside): (Vec<&Record>, Vec<_>) = ends.iter().partition(|record| record.outer_flow_id.is_some());
    let packets_of = |records: &[&Record]| -> u64 { records.iter().map(|end| end.fwd_packets + end.rev_packets).sum() };
    let packets = packets_of(&outside);
    let octets: u64 = outside.iter().map(|record| record.fwd_octets + record.rev_octets).sum();
    let found = packets_of(&inside) + counters.inside.undecodable + counters.inside.unrecorded;
    assert_eq!(counters.inside.packets, found, "{context}: packets inside tunnels");
    assert_eq!(counters.classified, packets + counters.unrecorded, "{context}: packets in records");
    assert_eq!(counters.classified_octets, octets + counters.unrecorded_octets, "{context}: octets in records");
    assert_eq!(counters.flows, ends.len() as u64, "{context}: one end a flow");
}
