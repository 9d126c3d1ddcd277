//! Every capture of real software, made worse the way links and operators do: its first packets lost, one direction only,
//! other ports, cut frames, the other IP version, wrapped in link headers, fragmented. No tunnel may get a wrong name,
//! no benign flow may raise an alarm, and what is missed is listed here with its reason.
//!
//! `cargo test --test stress -- --nocapture` prints the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use common::packet::{Carried, Packet, fragmented, tunnelled};
use common::pcap::insert;
use common::{OwnedFrame, audit, capture_folders, ends, name, policy, read, settings};
use linewarden::audit::AuditSettings;
use linewarden::detect::{Confidence, Protocol};
use linewarden::record::Record;

/// One way to make a capture worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stress {
    None,
    /// The first packets are lost.
    Late(usize),
    /// Only what the first speaker sent, or only what came back.
    OneWay(bool),
    /// The tunnels' ports are others.
    Port(u16),
    Snap(u32),
    OtherIpVersion,
    Vlan,
    QinQ,
    Mpls,
    Pppoe,
    Fragments,
    /// Inside a GRE tunnel between other hosts.
    Gre,
}

const ALL: [Stress; 18] = [
    Stress::None,
    Stress::Late(1),
    Stress::Late(4),
    Stress::Late(8),
    Stress::Late(20),
    Stress::OneWay(true),
    Stress::OneWay(false),
    Stress::Port(39_011),
    Stress::Port(443),
    Stress::Port(53),
    Stress::Snap(96),
    Stress::OtherIpVersion,
    Stress::Vlan,
    Stress::QinQ,
    Stress::Mpls,
    Stress::Pppoe,
    Stress::Fragments,
    Stress::Gre,
];

/// Fewer packets than this, where a stress takes some away, are no data phase.
const FEWEST: usize = 8;

impl Stress {
    fn title(self) -> String {
        match self {
            Self::None => "as it is".to_owned(),
            Self::Late(packets) => format!("late by {packets}"),
            Self::OneWay(true) => "there only".to_owned(),
            Self::OneWay(false) => "back only".to_owned(),
            Self::Port(port) => format!("port {port}"),
            Self::Snap(octets) => format!("snap {octets}"),
            Self::OtherIpVersion => "other IP".to_owned(),
            Self::Vlan => "VLAN".to_owned(),
            Self::QinQ => "QinQ".to_owned(),
            Self::Mpls => "MPLS".to_owned(),
            Self::Pppoe => "PPPoE".to_owned(),
            Self::Fragments => "fragments".to_owned(),
            Self::Gre => "GRE".to_owned(),
        }
    }

    /// The capture under this stress; `ports` are the tunnels' own.
    fn apply(self, frames: &[OwnedFrame], ports: &BTreeSet<u16>) -> Vec<OwnedFrame> {
        let changed = |change: &dyn Fn(Packet) -> Packet| {
            let change =
                |frame: &OwnedFrame| Packet::of(frame).map_or_else(|| frame.clone(), |p| change(p).frame(frame));
            frames.iter().map(change).collect()
        };
        let under = |header: &[u8], behind| frames.iter().map(|frame| insert(frame, header, behind)).collect();
        match self {
            Self::None | Self::Snap(_) => frames.to_vec(),
            Self::Late(packets) => frames.get(packets..).unwrap_or_default().to_vec(),
            Self::OneWay(there) => {
                let Some(first) = frames.iter().find_map(Packet::of) else { return frames.to_vec() };
                let is_kept = |frame: &&OwnedFrame| {
                    Packet::of(frame).is_none_or(|packet| (packet.addresses[0] == first.addresses[0]) == there)
                };
                frames.iter().filter(is_kept).cloned().collect()
            }
            Self::Port(port) => {
                let moved: BTreeMap<u16, u16> = ports.iter().copied().zip(port..).collect();
                changed(&|packet| packet.with_ports(&|port| moved.get(&port).copied().unwrap_or(port)))
            }
            Self::OtherIpVersion => changed(&Packet::with_other_ip_version),
            Self::Vlan => under(&[0x81, 0, 0, 100], 12),
            Self::QinQ => under(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 100], 12),
            Self::Mpls => under(&[0x88, 0x47, 0x03, 0xe8, 0x00, 0x40, 0, 1, 0x31, 0x40], 14),
            Self::Pppoe => frames.iter().map(common::packet::in_pppoe).collect(),
            Self::Fragments => frames.iter().flat_map(fragmented).collect(),
            Self::Gre => frames.iter().map(in_gre).collect(),
        }
    }

    fn records(self, frames: &[OwnedFrame], ports: &BTreeSet<u16>) -> Vec<Record> {
        let frames = self.apply(frames, ports);
        let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        let snap_length = if let Self::Snap(octets) = self { octets } else { 256 };
        audit(AuditSettings { snap_length, ..settings() }, policy(Vec::new()), &borrowed).0
    }

    /// The last records of the capture's own flows: not of the tunnel around them.
    fn own_ends(self, records: &[Record]) -> Vec<&Record> {
        let is_own = |end: &&Record| self != Self::Gre || end.outer_flow_id.is_some();
        ends(records).into_iter().filter(is_own).collect()
    }

    /// The name that a tunnel has under this stress.
    fn name_of(self, protocol: Protocol) -> Protocol {
        match (self, protocol) {
            (Self::OtherIpVersion, Protocol::Ipip) => Protocol::FourInSix,
            (Self::OtherIpVersion, Protocol::FourInSix) => Protocol::Ipip,
            (Self::OtherIpVersion, Protocol::SixInFour | Protocol::SixToFour | Protocol::Isatap) => Protocol::SixInSix,
            (Self::OtherIpVersion, Protocol::SixInSix) => Protocol::SixInFour,
            _ => protocol,
        }
    }
}

/// An IP packet in GRE (RFC 2784 2.1); other frames as they are.
fn in_gre(frame: &OwnedFrame) -> OwnedFrame {
    match frame.data.get(12..14) {
        Some(&[high @ (0x08 | 0x86), low @ (0x00 | 0xdd)]) => {
            tunnelled(frame, HOSTS, 47, &[0, 0, high, low], Carried::Packet)
        }
        _ => frame.clone(),
    }
}

/// The ends of a tunnel around a capture.
const HOSTS: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 9]];

/// How a tunnel's capture fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Right,
    PossibleOnly,
    Missed,
    Wrong,
    /// Too few packets are left to be judged.
    TooFew,
}

impl Outcome {
    /// The columns of the tables.
    const ALL: [(Self, &str); 5] = [
        (Self::Right, "right"),
        (Self::PossibleOnly, "possible only"),
        (Self::Missed, "missed"),
        (Self::Wrong, "wrong"),
        (Self::TooFew, "too few packets"),
    ];
}

/// How many captures of each protocol fared how under each stress.
type Table = BTreeMap<(Protocol, Stress), BTreeMap<Outcome, usize>>;

/// Out of sight, with the reason. (capture, stress, outcome)
const OUT_OF_SIGHT: &[(&str, Stress, Outcome)] = &[
    // The counter of CBC data is encrypted: only the header shows.
    ("openvpn-udp-cbc", Stress::Late(20), Outcome::PossibleOnly),
    ("openvpn-udp-cbc", Stress::OneWay(true), Outcome::PossibleOnly),
    // Behind the meta connection's two lines, encrypted packets show only their lengths.
    ("tinc-meta-and-packets", Stress::Late(8), Outcome::PossibleOnly),
    ("tinc-meta-and-packets", Stress::Late(20), Outcome::PossibleOnly),
    // Three data packets came back, all else are acknowledgments of TCP.
    ("openvpn-tcp-midstream", Stress::OneWay(false), Outcome::PossibleOnly),
    // Behind IPv6 and TCP's options 10 octets are left: a length, a header and a counter, but no ciphertext.
    ("openvpn-tcp-ipv6", Stress::Snap(96), Outcome::PossibleOnly),
    // Nonces that count by two are more than possible from both sides only.
    ("fastd-midstream", Stress::OneWay(true), Outcome::PossibleOnly),
    ("fastd-midstream", Stress::OneWay(false), Outcome::PossibleOnly),
    // The data of DTLS 1.2 is any DTLS's; what names the VPN is the client's hello and what it says next.
    ("anyconnect-openconnect-psk", Stress::Late(20), Outcome::PossibleOnly),
    ("anyconnect-openconnect-psk", Stress::OneWay(false), Outcome::Missed),
    ("anyconnect-openconnect-psk", Stress::Snap(96), Outcome::PossibleOnly),
    ("anyconnect-openconnect-psk", Stress::Fragments, Outcome::PossibleOnly),
    // The server has registered; what is left asks for an address.
    ("softether-nat-t", Stress::Late(20), Outcome::PossibleOnly),
    // A message's opcode shows, its transaction is cut off.
    ("softether-nat-t", Stress::Snap(96), Outcome::PossibleOnly),
    // One side's information messages may be a scan.
    ("softether-over-icmp", Stress::OneWay(true), Outcome::PossibleOnly),
    ("softether-over-icmp", Stress::OneWay(false), Outcome::PossibleOnly),
    // The handshake is the client's; a name that counts may be any host's.
    ("dns2tcp-txt", Stress::OneWay(false), Outcome::PossibleOnly),
    // A session resumed shows in the hello and its answer alone, both whole.
    ("anyconnect-resumption-likely", Stress::Late(20), Outcome::Missed),
    ("anyconnect-resumption-likely", Stress::OneWay(true), Outcome::Missed),
    ("anyconnect-resumption-likely", Stress::OneWay(false), Outcome::Missed),
    ("anyconnect-resumption-likely", Stress::Snap(96), Outcome::Missed),
    ("anyconnect-resumption-likely", Stress::Fragments, Outcome::Missed),
];

fn protocol_of(folder: &str) -> Option<Protocol> {
    let named = Protocol::ALL.iter().filter(|protocol| folder.starts_with(&format!("{}-", protocol.name())));
    named.max_by_key(|protocol| protocol.name().len()).copied()
}

fn is_alarm(record: &Record) -> bool {
    record.confidence >= Some(Confidence::Likely)
}

/// What a tunnel's capture holds before any stress: its protocols, and the ports of its tunnels' flows.
fn base(frames: &[OwnedFrame]) -> (BTreeSet<Protocol>, BTreeSet<u16>) {
    let records = Stress::None.records(frames, &BTreeSet::new());
    let tunnels: Vec<_> = ends(&records).into_iter().filter(|end| is_alarm(end)).collect();
    let protocols = tunnels.iter().filter_map(|end| end.tunnel).collect();
    (protocols, tunnels.iter().filter_map(|end| end.dst_port).collect())
}

#[test]
fn tunnels_keep_their_names() {
    let mut table = Table::new();
    let (mut wrong, mut unexpected) = (Vec::new(), Vec::new());
    for folder in capture_folders() {
        let folder_name = name(&folder);
        let Some(own) = protocol_of(folder_name) else { continue };
        let frames = read(&folder.join("input.pcap"));
        let (protocols, ports) = base(&frames);
        for stress in ALL {
            if matches!(stress, Stress::Port(_)) && ports.is_empty() {
                continue;
            }
            let mut count = |outcome| *table.entry((own, stress)).or_default().entry(outcome).or_default() += 1;
            let takes_away = matches!(stress, Stress::Late(_) | Stress::OneWay(_));
            if takes_away && stress.apply(&frames, &ports).len() < FEWEST {
                count(Outcome::TooFew);
                continue;
            }
            let records = stress.records(&frames, &ports);
            let names: BTreeSet<_> = protocols.iter().map(|&protocol| stress.name_of(protocol)).collect();
            let (mut best, wrong_before) = (None, wrong.len());
            for end in stress.own_ends(&records) {
                let is_own = end.tunnel.is_some_and(|tunnel| names.contains(&tunnel));
                if is_own {
                    best = best.max(end.confidence);
                } else if is_alarm(end) {
                    wrong.push(format!("{folder_name}, {}: {:?} {:?}", stress.title(), end.tunnel, end.confidence));
                }
            }
            let outcome = match best {
                Some(Confidence::Likely | Confidence::Certain) => Outcome::Right,
                Some(Confidence::Possible) => Outcome::PossibleOnly,
                None => Outcome::Missed,
            };
            count(if wrong.len() > wrong_before { Outcome::Wrong } else { outcome });
            let listed = OUT_OF_SIGHT
                .iter()
                .find(|(capture, under, _)| *capture == folder_name && *under == stress)
                .map_or(Outcome::Right, |(.., outcome)| *outcome);
            if outcome != listed {
                unexpected.push(format!("{folder_name}, {}: {outcome:?}, not {listed:?}", stress.title()));
            }
        }
    }
    println!("{}", printed(&table));
    assert!(wrong.is_empty(), "wrong names:\n{}", wrong.join("\n"));
    assert!(unexpected.is_empty(), "{} differ from OUT_OF_SIGHT:\n{}", unexpected.len(), unexpected.join("\n"));
}

/// A table by protocol, which says under which stress it was not right, and one by stress.
fn printed(table: &Table) -> String {
    let mut text = String::new();
    let head = |text: &mut String, first: &str, last: &str| {
        write!(text, "\n{first:<12}").unwrap();
        Outcome::ALL.iter().for_each(|(_, title)| write!(text, "  {title}").unwrap());
        writeln!(text, "{last}").unwrap();
    };
    let row = |text: &mut String, name: &str, is_of: &dyn Fn(Protocol, Stress) -> bool| {
        write!(text, "{name:<12}").unwrap();
        for (outcome, title) in Outcome::ALL {
            let of_it = table.iter().filter(|((protocol, stress), _)| is_of(*protocol, *stress));
            let number: usize = of_it.filter_map(|(_, outcomes)| outcomes.get(&outcome)).sum();
            write!(text, "  {number:>width$}", width = title.len()).unwrap();
        }
    };
    head(&mut text, "protocol", "  not right under");
    let protocols: BTreeSet<_> = table.keys().map(|(protocol, _)| *protocol).collect();
    for own in protocols {
        row(&mut text, own.name(), &|protocol, _| protocol == own);
        let is_short = |outcomes: &BTreeMap<Outcome, usize>| {
            outcomes.keys().any(|outcome| !matches!(outcome, Outcome::Right | Outcome::TooFew))
        };
        let under: Vec<_> = table
            .iter()
            .filter(|((protocol, _), outcomes)| *protocol == own && is_short(outcomes))
            .map(|((_, stress), _)| stress.title())
            .collect();
        writeln!(text, "  {}", under.join(", ")).unwrap();
    }
    head(&mut text, "stress", "");
    for under in ALL {
        row(&mut text, &under.title(), &|_, stress| stress == under);
        text.push('\n');
    }
    text
}

#[test]
fn benign_traffic_raises_no_alarm() {
    let mut wrong = Vec::new();
    for folder in capture_folders().iter().filter(|folder| protocol_of(name(folder)).is_none()) {
        wrong.extend(alarms(folder));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn alarms(folder: &Path) -> Vec<String> {
    let frames = read(&folder.join("input.pcap"));
    // Any port may be a tunnel's.
    let ports: BTreeSet<u16> = frames.iter().filter_map(|frame| Packet::of(frame)?.ports()).flatten().collect();
    let mut wrong = Vec::new();
    for stress in ALL {
        let records = stress.records(&frames, &ports);
        wrong.extend(
            stress
                .own_ends(&records)
                .into_iter()
                .filter(|end| is_alarm(end))
                .map(|end| format!("{}, {}: {:?} {:?}", name(folder), stress.title(), end.tunnel, end.confidence)),
        );
    }
    wrong
}
