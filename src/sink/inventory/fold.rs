//! Turns lines of the log into sums by tunnel, approval and path, each flow counted once: by its `end` record, or by its
//! latest while none has come. The rows of `linewarden query` are the same flows.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use memchr::memmem::Finder;
use serde::Deserialize;

use crate::detect::Confidence;
use crate::flow::FlowId;
use crate::policy::Label;
use crate::record::Kind;

/// What is added up by itself: a tunnel, under one approval, on one path. Empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Lane {
    /// The tunnel protocol's name; empty: plain traffic on an approved line, whose hosts are not told apart.
    pub protocol: String,
    /// The lower address.
    pub a: String,
    /// The higher address.
    pub b: String,
    /// The server's port; 0: the protocol has none.
    pub port: u16,
    /// The id of the approval that covers it.
    pub approval: String,
    pub interface: String,
    /// Outermost first, with points between.
    pub vlan: String,
    /// Bottom MPLS labels, likewise.
    pub mpls: String,
}

/// What is added up; times are the records' own texts, which sort as time does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    pub flows: u64,
    pub first_seen: String,
    pub last_seen: String,
    /// From `a` to `b`; of plain traffic from the flow's source to its destination.
    pub packets_ab: u64,
    pub packets_ba: u64,
    pub octets_ab: u64,
    pub octets_ba: u64,
    /// Best: 1 possible, 2 likely, 3 certain; 0: none.
    pub confidence: u8,
    /// Of the flow that was seen last.
    pub latest: Latest,
}

/// What the flow that was seen last says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Latest {
    pub label: String,
    pub reason: String,
    pub owner: String,
    pub reference: String,
    pub policy_revision: String,
    pub flow_id: String,
}

/// Of one day (UTC), that of each flow's latest packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Day {
    pub flows: u64,
    pub octets_ab: u64,
    pub octets_ba: u64,
}

impl Default for Sums {
    /// Of no flow: later than any first and earlier than any last.
    fn default() -> Self {
        Self {
            flows: 0,
            first_seen: "9999".to_owned(),
            last_seen: String::new(),
            packets_ab: 0,
            packets_ba: 0,
            octets_ab: 0,
            octets_ba: 0,
            confidence: 0,
            latest: Latest::default(),
        }
    }
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        // One flow or the other, whichever is taken first.
        if (&other.last_seen, &other.latest.flow_id) > (&self.last_seen, &self.latest.flow_id) {
            self.latest.clone_from(&other.latest);
            self.last_seen.clone_from(&other.last_seen);
        }
        if other.first_seen < self.first_seen {
            self.first_seen.clone_from(&other.first_seen);
        }
        self.flows += other.flows;
        self.packets_ab = self.packets_ab.saturating_add(other.packets_ab);
        self.packets_ba = self.packets_ba.saturating_add(other.packets_ba);
        self.octets_ab = self.octets_ab.saturating_add(other.octets_ab);
        self.octets_ba = self.octets_ba.saturating_add(other.octets_ba);
        self.confidence = self.confidence.max(other.confidence);
    }

    /// Of one flow: its day.
    pub(super) fn day(&self) -> &str {
        self.last_seen.get(..10).unwrap_or_default()
    }
}

/// The fields of a record that matter here.
#[derive(Debug, Deserialize)]
struct Entry<'a> {
    kind: Kind,
    flow_id: FlowId,
    #[serde(borrow)]
    interface: Cow<'a, str>,
    vlan: Vec<u16>,
    mpls_labels: Vec<u32>,
    src_ip: IpAddr,
    src_port: Option<u16>,
    dst_ip: IpAddr,
    dst_port: Option<u16>,
    originator_known: bool,
    fwd_packets: u64,
    fwd_octets: u64,
    rev_packets: u64,
    rev_octets: u64,
    #[serde(borrow)]
    start: Cow<'a, str>,
    #[serde(borrow)]
    end: Cow<'a, str>,
    verdict: Label,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    tunnel: Option<Cow<'a, str>>,
    confidence: Option<Confidence>,
    #[serde(borrow)]
    approval: Option<Approval<'a>>,
    #[serde(borrow)]
    policy_revision: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct Approval<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    owner: Cow<'a, str>,
    #[serde(borrow)]
    reference: Cow<'a, str>,
}

/// Ports of tunnels that lie where systems take ports at random: WireGuard's and Tailscale's.
const HIGH_PORTS: [u16; 2] = [51_820, 41_641];

/// Which of two ports is the server's, the same whoever spoke first.
pub(super) fn server_port(src: u16, dst: u16, originator_known: bool) -> u16 {
    let is_known = |port| HIGH_PORTS.contains(&port);
    match (is_known(src), is_known(dst)) {
        (true, false) => src,
        (false, true) => dst,
        _ if originator_known => dst,
        _ => src.min(dst),
    }
}

fn joined(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

/// No link carries more in a flow: what says so was written by somebody else, and sums must fit.
const MOST: u64 = 1 << 53;

impl Entry<'_> {
    fn is_possible(&self) -> bool {
        [self.fwd_packets, self.rev_packets, self.fwd_octets, self.rev_octets].into_iter().all(|count| count <= MOST)
    }

    /// Where the flow counts, and what it counts for; `None` where it is neither a tunnel nor on an approved line.
    fn counted(&self) -> Option<(Lane, Sums)> {
        if self.verdict == Label::Other {
            return None;
        }
        let approval = self.approval.as_ref().filter(|_| self.verdict == Label::AuthorizedLeasedLine);
        let mut lane = Lane {
            approval: approval.map(|approval| approval.id.to_string()).unwrap_or_default(),
            interface: self.interface.to_string(),
            vlan: joined(&self.vlan),
            mpls: joined(&self.mpls_labels),
            ..Lane::default()
        };
        let mut is_turned = false;
        if let Some(tunnel) = &self.tunnel {
            is_turned = self.src_ip > self.dst_ip;
            let (a, b) = if is_turned { (self.dst_ip, self.src_ip) } else { (self.src_ip, self.dst_ip) };
            let port = self.src_port.zip(self.dst_port).map(|(src, dst)| server_port(src, dst, self.originator_known));
            (lane.protocol, lane.a, lane.b) = (tunnel.to_string(), a.to_string(), b.to_string());
            lane.port = port.unwrap_or(0);
        }
        let turned = |forward, reverse| if is_turned { (reverse, forward) } else { (forward, reverse) };
        let (packets_ab, packets_ba) = turned(self.fwd_packets, self.rev_packets);
        let (octets_ab, octets_ba) = turned(self.fwd_octets, self.rev_octets);
        let sums = Sums {
            flows: 1,
            first_seen: self.start.to_string(),
            last_seen: self.end.to_string(),
            packets_ab,
            packets_ba,
            octets_ab,
            octets_ba,
            confidence: self.confidence.map_or(0, |confidence| confidence as u8 + 1),
            latest: Latest {
                label: self.verdict.name().to_owned(),
                reason: self.reason.to_string(),
                owner: approval.map(|approval| approval.owner.to_string()).unwrap_or_default(),
                reference: approval.map(|approval| approval.reference.to_string()).unwrap_or_default(),
                policy_revision: self.policy_revision.to_string(),
                flow_id: self.flow_id.to_string(),
            },
        };
        Some((lane, sums))
    }
}

/// Finds a line's flow and verdict where linewarden's writer puts them.
#[derive(Debug)]
pub(super) struct Glancer {
    flow: Finder<'static>,
    verdict: Finder<'static>,
}

impl Default for Glancer {
    fn default() -> Self {
        Self { flow: Finder::new("\"flow_id\":\""), verdict: Finder::new("\"verdict\":\"") }
    }
}

impl Glancer {
    /// The flow of a line that says `other`.
    fn other(&self, line: &[u8]) -> Option<u64> {
        let at = self.verdict.find(line)? + self.verdict.needle().len();
        if !line.get(at..)?.starts_with(b"other\"") {
            return None;
        }
        let at = self.flow.find(line)? + self.flow.needle().len();
        let digits = std::str::from_utf8(line.get(at..at + 16)?).ok()?;
        u64::from_str_radix(digits, 16).ok()
    }
}

/// What some lines of the log add to the inventory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Of flows that ended.
    pub ended: HashMap<Lane, (Sums, BTreeMap<String, Day>)>,
    /// Flows without an end by their latest record; `None`: not open any more, or nothing that is counted.
    pub open: HashMap<u64, Option<(Lane, Sums)>>,
    /// Lines that were looked at.
    pub lines: u64,
    /// Lines that are no records.
    pub damaged: u64,
    /// Records of open flows that found no room.
    pub left_out: u64,
}

impl Batch {
    /// Takes whole lines. `known` are the flows that are open in the file, at most `room` of them and of this batch.
    pub(super) fn take(&mut self, lines: &[u8], glancer: &Glancer, known: &HashSet<u64>, room: usize) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', lines) {
            let line = lines.get(start..end).unwrap_or_default();
            start = end + 1;
            self.lines += 1;
            let is_nothing = |flow: u64| !known.contains(&flow) && !self.open.contains_key(&flow);
            if glancer.other(line).is_some_and(is_nothing) {
                continue;
            }
            match serde_json::from_slice::<Entry<'_>>(line) {
                Ok(entry) if entry.is_possible() => self.add(&entry, known, room),
                _ => self.damaged += 1,
            }
        }
    }

    fn add(&mut self, entry: &Entry<'_>, known: &HashSet<u64>, room: usize) {
        let (flow, counted) = (entry.flow_id.number(), entry.counted());
        if entry.kind == Kind::End {
            self.close(flow, known);
            if let Some((lane, sums)) = counted {
                self.end(lane, &sums);
            }
        } else if counted.is_none() {
            self.close(flow, known);
        } else if known.contains(&flow) || self.open.contains_key(&flow) || known.len() + self.open.len() < room {
            self.open.insert(flow, counted);
        } else {
            self.left_out += 1;
        }
    }

    fn close(&mut self, flow: u64, known: &HashSet<u64>) {
        if known.contains(&flow) {
            self.open.insert(flow, None);
        } else {
            self.open.remove(&flow);
        }
    }

    /// Counts a flow for good.
    pub(super) fn end(&mut self, lane: Lane, sums: &Sums) {
        let (all, days) = self.ended.entry(lane).or_default();
        all.add(sums);
        let day = days.entry(sums.day().to_owned()).or_default();
        day.flows += 1;
        day.octets_ab = day.octets_ab.saturating_add(sums.octets_ab);
        day.octets_ba = day.octets_ba.saturating_add(sums.octets_ba);
    }
}
