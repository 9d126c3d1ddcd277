//! Turns unapproved flows into tunnels: one protocol between two hosts, however many flows it took.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use serde::Serialize;

use crate::detect::{Code, Confidence, Protocol};
use crate::flow::{Direction, FlowId};
use crate::policy::Reason;
use crate::record::Record;
use crate::sink::table::{endpoint, protocol};
use crate::time::Timestamp;

/// Tunnels that are held; those with the fewest octets go first.
pub const MOST_TUNNELS: usize = 20_000;
/// Ports of a tunnel that are named.
const MOST_PORTS: usize = 8;

/// An unapproved flow, and its octets in the period.
#[derive(Debug)]
pub(super) struct Sighting {
    pub record: Box<Record>,
    pub octets: u64,
    pub seen_on: Box<str>,
}

/// A tunnel that no approval covers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tunnel {
    /// Its protocol.
    pub tunnel: Protocol,
    /// What it runs over: `udp`, `tcp`, `gre`, …
    pub over: String,
    /// The originator's end, as in its latest flow.
    pub source: String,
    /// The other end.
    pub destination: String,
    /// Ports of the destination, the first eight.
    pub ports: BTreeSet<u16>,
    /// How sure, at best.
    pub confidence: Confidence,
    /// Why no approval covers it, as of its latest flow.
    pub reason: Reason,
    /// The reason in a sentence.
    pub meaning: &'static str,
    /// The approval that failed least, as of its latest flow.
    pub approval: Option<String>,
    /// First packet of its first flow; may lie before the range.
    pub first_seen: Timestamp,
    /// Latest packet.
    pub last_seen: Timestamp,
    /// Flows with packets in the range.
    pub flows: u64,
    /// Octets in the range.
    pub octets: u64,
    /// It runs inside another tunnel, whose octets hold its own.
    pub inside: bool,
    /// The sensor of its latest flow.
    pub sensor: String,
    /// Interface and VLAN of its latest flow.
    pub seen_on: String,
    /// The approvals that its latest flow was judged by.
    pub policy_revision: String,
    /// The first flow that is as sure as any.
    pub flow_id: FlowId,
    /// That flow's evidence.
    pub evidence: Vec<Evidence>,
    /// For whoever decides: nothing.
    pub ticket: Option<String>,
    /// For whoever decides: nothing.
    pub decision: Option<String>,
}

/// A sign of a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// `protocol.fact`.
    pub code: String,
    /// What that means.
    pub meaning: &'static str,
    /// Where the specification says so.
    pub clause: &'static str,
    /// How sure it made one.
    pub confidence: Confidence,
    /// Which way its first packet went.
    pub direction: Direction,
    /// When.
    pub time: Timestamp,
    /// Inspected packets that showed it.
    pub count: u32,
}

/// Those with most octets, and how much there is beyond.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    by_ends: HashMap<(Protocol, IpAddr, IpAddr), Held>,
    beyond: Beyond,
}

/// Tunnels that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Beyond {
    /// About so many.
    pub tunnels: u64,
    /// Their flows.
    pub flows: u64,
    /// Their octets.
    pub octets: u64,
}

#[derive(Debug)]
struct Held {
    tunnel: Tunnel,
    /// As recorded: most tunnels are never listed.
    evidence: Vec<crate::record::EvidenceRecord>,
}

impl Tunnels {
    pub(super) fn add(&mut self, sighting: Sighting) {
        let Sighting { record, octets, seen_on } = sighting;
        let (Some(protocol), Some(confidence)) = (record.tunnel, record.confidence) else { return };
        let (low, high) = (record.src_ip.min(record.dst_ip), record.src_ip.max(record.dst_ip));
        if let Some(held) = self.by_ends.get_mut(&(protocol, low, high)) {
            held.add(*record, confidence, octets, seen_on);
            return;
        }
        self.by_ends.insert((protocol, low, high), Held::new(*record, (protocol, confidence), octets, seen_on));
        if self.by_ends.len() > 2 * MOST_TUNNELS {
            self.cut();
        }
    }

    /// Lets go of those with the fewest octets.
    fn cut(&mut self) {
        let mut all: Vec<_> = std::mem::take(&mut self.by_ends).into_iter().collect();
        all.sort_by(|(_, one), (_, other)| one.order().cmp(&other.order()));
        for (_, held) in all.drain(MOST_TUNNELS.min(all.len())..) {
            self.beyond.tunnels += 1;
            self.beyond.flows += held.tunnel.flows;
            self.beyond.octets = self.beyond.octets.saturating_add(held.tunnel.octets);
        }
        self.by_ends = all.into_iter().collect();
    }

    /// Those with most octets first.
    pub(super) fn finish(mut self) -> (Vec<Tunnel>, Beyond) {
        if self.by_ends.len() > MOST_TUNNELS {
            self.cut();
        }
        let mut all: Vec<_> = self.by_ends.into_values().collect();
        all.sort_by(|one, other| one.order().cmp(&other.order()));
        (all.into_iter().map(Held::tell).collect(), self.beyond)
    }
}

impl Held {
    fn new(record: Record, (tunnel, confidence): (Protocol, Confidence), octets: u64, seen_on: Box<str>) -> Self {
        let mut held = Self {
            tunnel: Tunnel {
                tunnel,
                over: String::new(),
                source: String::new(),
                destination: String::new(),
                ports: BTreeSet::new(),
                confidence,
                reason: record.reason,
                meaning: "",
                approval: None,
                first_seen: record.start,
                last_seen: Timestamp::ZERO,
                flows: 0,
                octets: 0,
                inside: false,
                sensor: String::new(),
                seen_on: String::new(),
                policy_revision: String::new(),
                flow_id: record.flow_id,
                evidence: Vec::new(),
                ticket: None,
                decision: None,
            },
            evidence: record.evidence.clone(),
        };
        held.add(record, confidence, octets, seen_on);
        held
    }

    fn add(&mut self, record: Record, confidence: Confidence, octets: u64, seen_on: Box<str>) {
        let tunnel = &mut self.tunnel;
        tunnel.flows += 1;
        tunnel.octets = tunnel.octets.saturating_add(octets);
        tunnel.first_seen = tunnel.first_seen.min(record.start);
        if tunnel.ports.len() < MOST_PORTS {
            tunnel.ports.extend(record.dst_port);
        }
        if confidence > tunnel.confidence {
            tunnel.confidence = confidence;
            tunnel.flow_id = record.flow_id;
            self.evidence = record.evidence;
        }
        if record.end < tunnel.last_seen {
            return;
        }
        tunnel.last_seen = record.end;
        tunnel.over = protocol(record.proto);
        tunnel.source = endpoint(record.src_ip, None);
        tunnel.destination = endpoint(record.dst_ip, record.dst_port);
        tunnel.reason = record.reason;
        tunnel.meaning = record.reason.meaning();
        tunnel.approval = record.approval.map(|approval| approval.id.to_string());
        tunnel.inside = record.outer_flow_id.is_some();
        tunnel.sensor = record.sensor.to_string();
        tunnel.seen_on = seen_on.into();
        tunnel.policy_revision = record.policy_revision.to_string();
    }

    /// What sorts first is least; equals in an order of their own, so that a report is always the same.
    fn order(&self) -> (std::cmp::Reverse<u64>, Timestamp, Protocol, &str, &str) {
        let Tunnel { octets, first_seen, tunnel, source, destination, .. } = &self.tunnel;
        (std::cmp::Reverse(*octets), *first_seen, *tunnel, source, destination)
    }

    fn tell(self) -> Tunnel {
        let evidence = self.evidence.into_iter().map(|found| {
            let known = Code::named(&found.code);
            Evidence {
                meaning: known.map_or("a code that this version does not know", |code| code.meaning),
                clause: known.map_or("", |code| code.clause),
                code: found.code.into_owned(),
                confidence: found.confidence,
                direction: found.direction,
                time: found.time,
                count: found.count,
            }
        });
        Tunnel { evidence: evidence.collect(), ..self.tunnel }
    }
}
