//! Turns the flows under each approval into its use: octets by day, the busiest slot, peers, and what it failed to cover.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::flows::Named;
use super::period::{Period, Ways};
use crate::policy::Reason;
use crate::time::Timestamp;

/// Which way the octets from the lower end to the higher one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
    /// No home networks are set, or neither end or both are in one.
    Unknown,
}

impl Way {
    /// Octets out, in, and of which the way is not known.
    pub(super) const fn sort(self, [up, down]: Ways) -> [u64; 3] {
        match self {
            Self::Out => [up, down, 0],
            Self::In => [down, up, 0],
            Self::Unknown => [0, 0, up.saturating_add(down)],
        }
    }
}

/// Approvals whose use is told apart.
const MOST_APPROVALS: usize = 5000;
/// Peers of an approval that are told apart.
pub const MOST_PEERS: usize = 1000;
/// Places of an approval that are named.
const MOST_PLACES: usize = 16;

/// By the approval's id.
#[derive(Debug, Default)]
pub(super) struct Uses {
    by_id: HashMap<Arc<str>, Use>,
    /// All that is beyond the bound.
    rest: Use,
}

/// What an approval was used for in the period.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub owner: Box<str>,
    pub reference: Box<str>,
    pub flows: u64,
    pub octets: u64,
    pub first: Option<Timestamp>,
    pub last: Option<Timestamp>,
    pub peers: BTreeSet<IpAddr>,
    pub has_more_peers: bool,
    pub seen_on: BTreeSet<Box<str>>,
    /// By day since the epoch.
    pub days: BTreeMap<u64, u64>,
    /// Out, in and unknown, by slot of the period.
    slots: Vec<[u64; 3]>,
    /// Flows that it was the nearest approval of, and did not cover, by reason.
    pub refused: BTreeMap<&'static str, Refused>,
}

/// Flows that an approval did not cover.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refused {
    pub flows: u64,
    pub octets: u64,
    pub last: Timestamp,
}

impl Uses {
    pub(super) fn of(&mut self, named: &Named) -> &mut Use {
        if !self.by_id.contains_key(&named.id) {
            if self.by_id.len() == MOST_APPROVALS {
                return &mut self.rest;
            }
            self.by_id.insert(Arc::clone(&named.id), Use::default());
        }
        let known = self.by_id.get_mut(&named.id).unwrap_or(&mut self.rest);
        if known.owner != named.owner || known.reference != named.reference {
            known.owner.clone_from(&named.owner);
            known.reference.clone_from(&named.reference);
        }
        known
    }

    pub(super) fn take(&mut self, id: &str) -> Option<Use> {
        self.by_id.remove(id)
    }

    /// Those that nobody took, in order, and flows and octets beyond the bound.
    pub(super) fn rest(self) -> (BTreeMap<Arc<str>, Use>, (u64, u64)) {
        (self.by_id.into_iter().collect(), (self.rest.flows, self.rest.octets))
    }
}

impl Use {
    pub(super) fn add(&mut self, start: Timestamp, end: Timestamp, peer: IpAddr, seen_on: &str) {
        self.flows += 1;
        self.first = self.first.into_iter().chain([start]).min();
        self.last = self.last.max(Some(end));
        if self.peers.len() < MOST_PEERS {
            self.peers.insert(peer);
        } else if !self.peers.contains(&peer) {
            self.has_more_peers = true;
        }
        if self.seen_on.len() < MOST_PLACES && !self.seen_on.contains(seen_on) {
            self.seen_on.insert(seen_on.into());
        }
    }

    pub(super) fn spread(&mut self, period: &Period, slot: u64, ways: [u64; 3]) {
        let sum = ways.iter().fold(0_u64, |sum, octets| sum.saturating_add(*octets));
        self.octets = self.octets.saturating_add(sum);
        let day = self.days.entry(period.day_of(slot)).or_default();
        *day = day.saturating_add(sum);
        let index = period.index(slot);
        if self.slots.len() <= index {
            self.slots.resize(index + 1, [0; 3]);
        }
        for (held, octets) in self.slots.get_mut(index).into_iter().flatten().zip(ways) {
            *held = held.saturating_add(octets);
        }
    }

    pub(super) fn refuse(&mut self, reason: Reason, octets: u64, end: Timestamp) {
        let refused = self.refused.entry(reason.name()).or_default();
        refused.flows += 1;
        refused.octets = refused.octets.saturating_add(octets);
        refused.last = refused.last.max(end);
    }

    /// The busiest slot, and its octets the busier way; where the way is not known, they count for both.
    pub(super) fn peak(&self) -> Option<(usize, u64)> {
        let busier = |[out, into, unknown]: &[u64; 3]| (*out.max(into)).saturating_add(*unknown);
        let slots = self.slots.iter().map(busier).enumerate();
        // Of equals the first.
        slots.rev().max_by_key(|(_, octets)| *octets).filter(|(_, octets)| *octets > 0)
    }

    /// Whether the way of all octets is known.
    pub(super) fn knows_ways(&self) -> bool {
        self.slots.iter().all(|[.., unknown]| *unknown == 0)
    }
}
