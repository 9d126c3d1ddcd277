//! Turns a seed into a day's log: made-up flows with the shapes of real ones, written, rotated and compressed as a sensor
//! does, for measuring what reads logs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;

use crate::detect::{Confidence, Protocol};
use crate::flow::{CommunityId, Direction, EndReason, FlowId};
use crate::policy::{Label, Reason};
use crate::record::{ApprovalRecord, EvidenceRecord, FlowDirection, Kind, Record, VERSION};
use crate::sink::archive::compress;
use crate::sink::ndjson::encode;
use crate::sink::sealed::segments;
use crate::store::FLOW_LOG;
use crate::time::Timestamp;

/// Octets of records in a segment before it is rotated.
const SEGMENT: u64 = 256 << 20;
/// The day's first moment, 2026-11-27T00:00:00Z.
const DAY: u64 = 1_795_737_600;
/// About.
const RECORDS_PER_100_FLOWS: u64 = 212;
/// As the settings' defaults.
const UPDATE_INTERVAL: Duration = Duration::from_mins(5);
const ACTIVE_TIMEOUT: Duration = Duration::from_mins(30);
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Writes so many records of a day to a folder that holds no log; gives back their octets.
pub(super) fn write_day(records: u64, seed: u64, folder: &Path) -> io::Result<u64> {
    fs::create_dir_all(folder)?;
    let growing = segments::live(folder, FLOW_LOG, segments::DATA);
    if let Some(entry) = fs::read_dir(folder)?.flatten().find(|entry| is_log(&entry.file_name())) {
        let message = format!("{} is there already: name an empty folder", entry.path().display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let mut day = Day::new(records, seed);
    let (mut total, mut segment, mut compressing) = (0, 1, None);
    let mut left = records;
    while left > 0 {
        let mut to = BufWriter::with_capacity(1 << 20, File::create(&growing)?);
        let (mut written, mut begins, mut line) = (0, None, BytesMut::new());
        while left > 0 && written < SEGMENT {
            let record = day.next();
            begins.get_or_insert(record.time);
            line.clear();
            encode(&record, &mut line);
            to.write_all(&line)?;
            written += line.len() as u64;
            left -= 1;
        }
        to.flush()?;
        total += written;
        if left > 0 {
            let rotated = segments::closed(folder, FLOW_LOG, begins.unwrap_or_default(), segment, segments::DATA);
            fs::rename(&growing, &rotated)?;
            segment += 1;
            finish(compressing.replace(std::thread::spawn(move || compress(&rotated))))?;
        }
    }
    finish(compressing)?;
    Ok(total)
}

fn is_log(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(FLOW_LOG))
}

fn finish(compressing: Option<JoinHandle<io::Result<PathBuf>>>) -> io::Result<()> {
    match compressing.map(JoinHandle::join) {
        None | Some(Ok(Ok(_))) => Ok(()),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(_)) => Err(io::Error::other("the compressing thread failed")),
    }
}

/// The flows that are open, by the time of their next record.
struct Day {
    random: Random,
    between_flows: Duration,
    next_flow: Timestamp,
    flows: u64,
    seq: u64,
    due: BinaryHeap<Reverse<(Timestamp, u64, usize)>>,
    open: Vec<Option<Flow>>,
    free: Vec<usize>,
    /// The first record of a flow that continues the one before.
    waiting: Option<Record>,
}

/// One that is open: its record as it stands, and what is still to come.
struct Flow {
    record: Record,
    /// Of the last packet.
    ends: Timestamp,
    /// What the policy says of it in the end.
    settled: Settled,
    packets: [u64; 2],
    octets: [u64; 2],
    /// A part of a longer flow: seconds that are left of it.
    left: u64,
}

#[derive(Clone)]
struct Settled {
    label: Label,
    reason: Reason,
    tunnel: Option<(Protocol, Confidence)>,
    approval: Option<ApprovalRecord>,
}

impl Day {
    fn new(records: u64, seed: u64) -> Self {
        let flows = records * 100 / RECORDS_PER_100_FLOWS;
        Self {
            random: Random(seed),
            between_flows: Duration::from_nanos(86_400_000_000_000 / flows.max(1)),
            next_flow: Timestamp::from_secs(DAY),
            flows: 0,
            seq: 0,
            due: BinaryHeap::new(),
            open: Vec::new(),
            free: Vec::new(),
            waiting: None,
        }
    }

    /// The record that is next in time.
    fn next(&mut self) -> Record {
        let mut record = loop {
            if let Some(record) = self.waiting.take() {
                break record;
            }
            if self.due.peek().is_some_and(|Reverse((at, ..))| *at <= self.next_flow) {
                if let Some(record) = self.go_on() {
                    break record;
                }
                continue;
            }
            let at = self.next_flow;
            self.next_flow = at + self.between_flows;
            let length = self.length();
            let flow = self.flow(at, length);
            break self.begin(flow);
        };
        self.seq += 1;
        record.seq = self.seq;
        record
    }

    /// Most flows are over in a moment; some go on for hours.
    fn length(&mut self) -> u64 {
        match self.random.below(1000) {
            0..2 => 1800 + self.random.below(4 * 3600),
            2..30 => 60 + self.random.below(1200),
            30..300 => self.random.below(60),
            _ => 0,
        }
    }

    fn begin(&mut self, flow: Flow) -> Record {
        let record = flow.record.clone();
        let place = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.schedule(&flow, place);
        if let Some(slot) = self.open.get_mut(place) {
            *slot = Some(flow);
        }
        record
    }

    fn schedule(&mut self, flow: &Flow, place: usize) {
        let record = &flow.record;
        // A tunnel's second packet makes it certain; then the interval counts.
        let is_first = record.kind == Kind::Start && record.continues.is_none() && flow.settled.tunnel.is_some();
        let update = if is_first { record.time + Duration::from_millis(20) } else { record.time + UPDATE_INTERVAL };
        let over = if flow.left > 0 { flow.ends } else { flow.ends + IDLE_TIMEOUT };
        let at = if is_first || update < flow.ends { update } else { over };
        self.due.push(Reverse((at, self.flows, place)));
    }

    /// The next record of the flow whose turn it is.
    fn go_on(&mut self) -> Option<Record> {
        let Reverse((at, _, place)) = self.due.pop()?;
        let mut flow = self.open.get_mut(place)?.take()?;
        let is_over = at >= flow.ends && !(flow.record.kind == Kind::Start && flow.settled.tunnel.is_some());
        let record = &mut flow.record;
        (record.verdict, record.reason) = (flow.settled.label, flow.settled.reason);
        record.approval.clone_from(&flow.settled.approval);
        record.tunnel = flow.settled.tunnel.map(|(tunnel, _)| tunnel);
        record.confidence = flow.settled.tunnel.map(|(_, confidence)| confidence);
        if let (Some((tunnel, confidence)), 1) = (flow.settled.tunnel, record.evidence.len()) {
            record.evidence.push(evidence(tunnel, 1, confidence, at));
            record.inspections = 2;
        }
        record.time = at;
        record.end = at.min(flow.ends);
        // Counts grow with the time that has passed.
        let whole = flow.ends.since(record.start).as_nanos().max(1);
        let share = |total: u64| {
            let part = u128::from(total) * record.end.since(record.start).as_nanos() / whole;
            u64::try_from(part).unwrap_or(total)
        };
        [record.fwd_packets, record.rev_packets] =
            if is_over { flow.packets } else { [share(flow.packets[0]).max(1), share(flow.packets[1]).max(1)] };
        [record.fwd_octets, record.rev_octets] =
            if is_over { flow.octets } else { [share(flow.octets[0]).max(60), share(flow.octets[1]).max(60)] };
        if !is_over {
            record.kind = Kind::Update;
            let record = record.clone();
            self.schedule(&flow, place);
            if let Some(slot) = self.open.get_mut(place) {
                *slot = Some(flow);
            }
            return Some(record);
        }
        self.free.push(place);
        record.kind = Kind::End;
        record.end_reason = Some(match (flow.left, record.proto) {
            (0, 6) => EndReason::EndOfFlow,
            (0, _) => EndReason::IdleTimeout,
            _ => EndReason::ActiveTimeout,
        });
        let ended = flow.record.clone();
        if flow.left > 0 {
            // It goes on as another flow, with counts of its own.
            let mut next = self.flow(at, flow.left);
            next.settled = flow.settled;
            next.record = Record {
                kind: Kind::Start,
                time: at,
                start: at,
                end: at,
                end_reason: None,
                flow_id: next.record.flow_id,
                continues: Some(ended.flow_id),
                fwd_packets: 1,
                fwd_octets: 120,
                rev_packets: 0,
                rev_octets: 0,
                ..flow.record
            };
            let next = self.begin(next);
            self.waiting = Some(next);
        }
        Some(ended)
    }

    fn flow(&mut self, at: Timestamp, length: u64) -> Flow {
        self.flows += 1;
        let random = &mut self.random;
        let settled = settled(random);
        let is_tunnel = settled.tunnel.is_some();
        let length = if is_tunnel { length.max(30) } else { length };
        let part = length.min(ACTIVE_TIMEOUT.as_secs());
        let is_v6 = random.below(10) == 0;
        let own = host(random, 2000, is_v6, true);
        let peer = match &settled.approval {
            // An approved peer has one address.
            Some(approval) => fixed(&approval.id, is_v6),
            None => host(random, 50_000, is_v6, false),
        };
        let (proto, dst_port) = match settled.tunnel {
            Some((Protocol::Esp | Protocol::Gre, _)) => (if random.below(2) == 0 { 50 } else { 47 }, None),
            Some((Protocol::Openvpn, _)) => (17, Some(1194)),
            Some((Protocol::Ike, _)) => (17, Some(500)),
            Some(_) => (17, Some(51_820)),
            None => match random.below(10) {
                0..4 => (17, Some(53)),
                4..9 => (6, Some(443)),
                _ => (6, Some(u16::try_from(random.below(10_000)).unwrap_or(22))),
            },
        };
        let packets = [1 + random.skewed(2000) * (part + 1) / 60, 1 + random.skewed(3000) * (part + 1) / 60];
        let octets = packets.map(|packets| packets * (60 + random.below(1400)));
        let first = settled.tunnel.map(|(tunnel, _)| evidence(tunnel, 0, Confidence::Possible, at));
        let record = Record {
            version: VERSION,
            seq: 0,
            kind: Kind::Start,
            time: at,
            sensor: "sensor-1".into(),
            interface: ["wan0", "wan1", "mirror0"].get(random.below(3) as usize).copied().unwrap_or("wan0").into(),
            vlan: if random.below(4) == 0 { vec![100 + random.below(8) as u16] } else { Vec::new() },
            mpls_labels: Vec::new(),
            flow_id: FlowId::Number(random.number()),
            continues: None,
            outer_flow_id: None,
            related_flow_ids: Vec::new(),
            community_id: CommunityId::Digest(random.digest()),
            src_ip: own,
            src_port: dst_port.map(|_| 32_768 + random.below(28_000) as u16),
            dst_ip: peer,
            dst_port,
            proto,
            direction: FlowDirection::Outbound,
            originator_known: true,
            fwd_packets: 1,
            fwd_octets: 60 + random.below(200),
            rev_packets: 0,
            rev_octets: 0,
            start: at,
            end: at,
            end_reason: None,
            verdict: Label::Other,
            reason: if is_tunnel { Reason::LowConfidence } else { Reason::NotATunnel },
            tunnel: settled.tunnel.map(|(tunnel, _)| tunnel),
            confidence: settled.tunnel.map(|_| Confidence::Possible),
            midstream: false,
            inspections: 1,
            evidence: first.into_iter().collect(),
            spi: Vec::new(),
            gre_key: Vec::new(),
            approval: None,
            policy_revision: REVISION.into(),
        };
        Flow { record, ends: at + Duration::from_secs(part), settled, packets, octets, left: length - part }
    }
}

const REVISION: &str = "5f9c4ab08cac7457e9111a30e4664920607ea2c115a1433d7be98e97e64244ca";

/// One in thirty flows is a tunnel; one in five hundred an unapproved one.
fn settled(random: &mut Random) -> Settled {
    use Protocol::{Esp, Gre, Ike, Openvpn, Wireguard};
    let tunnel = [Wireguard, Openvpn, Esp, Ike, Gre].get(random.below(5) as usize).copied().unwrap_or(Wireguard);
    match random.below(1000) {
        0..2 => Settled {
            label: Label::UnapprovedVpnTunnel,
            reason: Reason::NoApproval,
            tunnel: Some((tunnel, Confidence::Certain)),
            approval: None,
        },
        2..30 => {
            let number = random.skewed(200);
            Settled {
                label: Label::AuthorizedLeasedLine,
                reason: Reason::Approved,
                tunnel: Some((tunnel, Confidence::Certain)),
                approval: Some(ApprovalRecord {
                    id: format!("vpn-{number:03}").into(),
                    owner: ["network team", "operations", "branch offices"]
                        .get((number % 3) as usize)
                        .copied()
                        .unwrap_or_default()
                        .into(),
                    reference: format!("CHG-2026-{number:04}").into(),
                    valid_until: Timestamp::from_secs(DAY + 200 * 86_400),
                    identity: None,
                    key: None,
                }),
            }
        }
        30..35 => Settled {
            label: Label::Other,
            reason: Reason::LowConfidence,
            tunnel: Some((tunnel, Confidence::Possible)),
            approval: None,
        },
        _ => Settled { label: Label::Other, reason: Reason::NotATunnel, tunnel: None, approval: None },
    }
}

fn evidence(protocol: Protocol, position: usize, confidence: Confidence, at: Timestamp) -> EvidenceRecord {
    let codes = match protocol {
        Protocol::Openvpn => ["openvpn.client_reset", "openvpn.server_reset"],
        Protocol::Esp => ["esp.first_packet", "esp.sequence"],
        Protocol::Ike => ["ike.first_request", "ike.set_up"],
        Protocol::Gre => ["gre.header", "gre.inner"],
        _ => ["wireguard.initiation", "wireguard.response"],
    };
    EvidenceRecord {
        code: codes.get(position).copied().unwrap_or_default().into(),
        protocol,
        confidence,
        packet: at.as_nanos() / 1000 % 1_000_000_000 + 1,
        time: at,
        direction: if position == 0 { Direction::Forward } else { Direction::Reverse },
        value: at.as_nanos() % 4_294_967_296,
        count: 1,
    }
}

fn host(random: &mut Random, many: u64, is_v6: bool, is_own: bool) -> IpAddr {
    let number = random.skewed(many);
    match (is_v6, is_own) {
        (false, true) => IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number as u32)),
        // RFC 2544's network: 198.18.0.0/15.
        (false, false) => IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + number as u32)),
        (true, _) => {
            IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + (u128::from(is_own) << 64) + u128::from(number)))
        }
    }
}

fn fixed(id: &str, is_v6: bool) -> IpAddr {
    let number = id.bytes().fold(0_u32, |number, octet| number * 10 + u32::from(octet % 10)) % 250;
    if is_v6 {
        IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + (0xf << 64) + u128::from(number)))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + number))
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// Small numbers often, large ones seldom, as with peers.
    fn skewed(&mut self, end: u64) -> u64 {
        let (one, other) = (self.below(end), self.below(end));
        let third = self.below(end);
        one * other / end.max(1) * third / end.max(1)
    }

    fn digest(&mut self) -> [u8; 20] {
        let mut digest = [0; 20];
        for octets in digest.chunks_mut(8) {
            let word = self.number().to_be_bytes();
            octets.iter_mut().zip(word).for_each(|(to, octet)| *to = octet);
        }
        digest
    }
}
