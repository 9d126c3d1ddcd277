//! What went into the core and what became of it.

use super::elsewhere::ElsewhereCounters;
use crate::detect::{KeyCounts, Protocol};
use crate::flow::Rank;
use crate::policy::Label;
use crate::wire::{InterfaceId, ParseError};

/// Ended flows of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Flows.
    pub flows: u64,
    /// Packets in both directions.
    pub packets: u64,
    /// Octets on the wire of these.
    pub octets: u64,
}

/// Packets inside unencrypted tunnels: counted apart, for the packets that they came in are counted already.
/// `packets` = those of the flows inside + `undecodable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct InsideCounters {
    /// Packets found in a tunnel's.
    pub packets: u64,
    /// Those that could not be read.
    pub undecodable: u64,
    /// Flows opened for the others.
    pub flows: u64,
    /// Packets of ended flows whose `end` record the settings left out.
    pub unrecorded: u64,
    /// Octets of these.
    pub unrecorded_octets: u64,
}

/// Ended flows by tunnel protocol ([`tunnel_index`]) and [`Label`]: arrays of more than 32 have no default of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended(pub [[Tally; Label::ALL.len()]; Protocol::ALL.len() + 1]);

impl Default for Ended {
    fn default() -> Self {
        Self([[Tally::default(); Label::ALL.len()]; Protocol::ALL.len() + 1])
    }
}

/// What is told apart by interface; the packets of each are counted by whoever captures them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Frames that could not be read, by [`ParseError`] as index.
    pub undecodable: [u64; ParseError::ALL.len()],
    /// Packets that were counted elsewhere.
    pub elsewhere: u64,
    /// Octets on the wire of these.
    pub elsewhere_octets: u64,
    /// Ended flows of two packets or more that were first seen here, those inside tunnels apart.
    pub ended: u64,
    /// Those of them that showed one direction only: nearly all of them do where the capture sees half of the link.
    pub one_way: u64,
}

/// Counts since the start: `packets` = `classified` + the sum of `undecodable`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames given to `observe`.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// Frames that belong to a flow.
    pub classified: u64,
    /// Octets on the wire of these.
    pub classified_octets: u64,
    /// Frames that could not be read, by [`ParseError`] as index.
    pub undecodable: [u64; ParseError::ALL.len()],
    /// Octets on the wire of these.
    pub undecodable_octets: u64,
    /// Mirrors' encapsulations that were opened.
    pub mirrored: u64,
    /// Their octets, the mirrored packets apart: `octets` = `classified_octets` + `undecodable_octets` + these.
    pub mirror_octets: u64,
    /// Packets inside tunnels.
    pub inside: InsideCounters,
    /// Fragments with octets of their datagram that had come before: duplicates, or somebody's game (RFC 5722).
    pub fragment_overlaps: u64,
    /// Flows opened, those inside tunnels among them.
    pub flows: u64,
    /// Flows in the table now.
    pub flows_open: u64,
    /// Flows ended.
    pub ended: Ended,
    /// Flows evicted to keep the memory bound, by [`Rank`] as index.
    pub evicted: [u64; Rank::ALL.len()],
    /// Packets of ended flows whose `end` record the settings left out.
    pub unrecorded: u64,
    /// Octets on the wire of these.
    pub unrecorded_octets: u64,
    /// Memory held for flows, octets.
    pub table_octets: u64,
    /// Calls of detectors.
    pub inspections: u64,
    /// Handshakes that were shown to pinned keys.
    pub keys: KeyCounts,
    /// Packets that were counted elsewhere.
    pub elsewhere: ElsewhereCounters,
    /// By `InterfaceId`, as far as there was something to count.
    pub interfaces: Vec<InterfaceCounters>,
}

/// Where a tunnel protocol stands in [`Counters::ended`]; 0 is none.
#[must_use]
pub fn tunnel_index(tunnel: Option<Protocol>) -> usize {
    tunnel.map_or(0, |tunnel| tunnel as usize + 1)
}

impl InterfaceCounters {
    /// Adds those of another worker.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.undecodable.iter_mut().zip(other.undecodable) {
            *sum += more;
        }
        self.elsewhere += other.elsewhere;
        self.elsewhere_octets += other.elsewhere_octets;
        self.ended += other.ended;
        self.one_way += other.one_way;
    }
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.packets += other.packets;
        self.octets += other.octets;
    }
}

impl Counters {
    /// Notes an ended flow.
    pub(super) fn end(&mut self, tunnel: Option<Protocol>, label: Label, tally: &Tally) {
        let of_tunnel = self.ended.0.get_mut(tunnel_index(tunnel));
        if let Some(total) = of_tunnel.and_then(|labels| labels.get_mut(label as usize)) {
            total.add(tally);
        }
    }

    /// Counts something rare of one interface.
    pub(super) fn of_interface(&mut self, id: InterfaceId, count: impl FnOnce(&mut InterfaceCounters)) {
        let index = usize::from(id.0);
        if self.interfaces.len() <= index {
            self.interfaces.resize_with(index + 1, InterfaceCounters::default);
        }
        if let Some(counters) = self.interfaces.get_mut(index) {
            count(counters);
        }
    }

    /// Adds those of another worker.
    pub fn add(&mut self, other: &Self) {
        let sums = [
            (&mut self.packets, other.packets),
            (&mut self.octets, other.octets),
            (&mut self.classified, other.classified),
            (&mut self.classified_octets, other.classified_octets),
            (&mut self.undecodable_octets, other.undecodable_octets),
            (&mut self.fragment_overlaps, other.fragment_overlaps),
            (&mut self.mirrored, other.mirrored),
            (&mut self.mirror_octets, other.mirror_octets),
            (&mut self.inside.packets, other.inside.packets),
            (&mut self.inside.undecodable, other.inside.undecodable),
            (&mut self.inside.flows, other.inside.flows),
            (&mut self.inside.unrecorded, other.inside.unrecorded),
            (&mut self.inside.unrecorded_octets, other.inside.unrecorded_octets),
            (&mut self.flows, other.flows),
            (&mut self.flows_open, other.flows_open),
            (&mut self.unrecorded, other.unrecorded),
            (&mut self.unrecorded_octets, other.unrecorded_octets),
            (&mut self.table_octets, other.table_octets),
            (&mut self.inspections, other.inspections),
            (&mut self.elsewhere.flows, other.elsewhere.flows),
            (&mut self.elsewhere.refused, other.elsewhere.refused),
            (&mut self.elsewhere.packets, other.elsewhere.packets),
            (&mut self.elsewhere.octets, other.elsewhere.octets),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.keys.add(&other.keys);
        if self.interfaces.len() < other.interfaces.len() {
            self.interfaces.resize_with(other.interfaces.len(), InterfaceCounters::default);
        }
        for (sum, more) in self.interfaces.iter_mut().zip(&other.interfaces) {
            sum.add(more);
        }
        for (sum, more) in self.undecodable.iter_mut().zip(other.undecodable) {
            *sum += more;
        }
        for (sum, more) in self.evicted.iter_mut().zip(other.evicted) {
            *sum += more;
        }
        for (sum, more) in self.ended.0.iter_mut().flatten().zip(other.ended.0.iter().flatten()) {
            sum.add(more);
        }
    }
}
