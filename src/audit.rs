//! The whole core behind two calls: [`Auditor::observe`] turns frames into records, [`Auditor::expire`] ends what is over.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::FlowSettings;
use crate::policy::Policy;
use crate::record::Record;
use crate::time::Timestamp;
use crate::wire::{Frame, ParseError};

/// Settings of the core, one set for all workers.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// The sensor's name in records.
    pub sensor: Arc<str>,
    /// Names of interfaces or files, indexed by `InterfaceId`.
    pub interfaces: Vec<Arc<str>>,
    /// Octets of each frame that are looked at, so that replay sees what live capture sees.
    pub snap_length: u32,
    /// How flows are told apart and ended.
    pub flow: FlowSettings,
    /// A long flow's `update` records are this far apart; zero: none.
    pub update_interval: Duration,
    /// Which records of flows that are `other` are written.
    pub other: OtherRecords,
    /// Seed of the flow table's keyed hash; random at the edge, so that nobody can aim at one bucket.
    pub hash_seed: u64,
}

/// Which records of flows labelled `other` are written; all of them count in the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherRecords {
    /// `start`, `update` and `end`.
    #[default]
    All,
    /// `end` only.
    End,
    /// None.
    None,
}

/// What went in and what became of it: `packets` = `classified` + the sum of `undecodable`.
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
    /// Flows opened.
    pub flows: u64,
    /// Flows in the table now.
    pub flows_open: u64,
    /// Flows evicted to keep the memory bound: without evidence, with some, tunnels.
    pub evicted: [u64; 3],
    /// Calls of detectors.
    pub inspections: u64,
}

/// The core: one per worker, owning its flow table.
pub struct Auditor {
    settings: Arc<AuditSettings>,
    policy: Arc<Policy>,
}

impl Auditor {
    /// An empty table.
    #[must_use]
    pub fn new(settings: Arc<AuditSettings>, policy: Arc<Policy>) -> Self {
        Self { settings, policy }
    }

    /// Takes a batch of frames in the order of their capture.
    pub fn observe(&mut self, frames: &[Frame<'_>], emit: &mut impl FnMut(Record)) {
        let _ = (frames, emit, &self.settings);
    }

    /// Ends flows that are over by `now`, a time from the frames or, when a live link is silent, from the edge.
    pub fn expire(&mut self, now: Timestamp, emit: &mut impl FnMut(Record)) {
        let _ = (now, emit);
    }

    /// Ends every flow.
    pub fn finish(&mut self, emit: &mut impl FnMut(Record)) {
        let _ = emit;
    }

    /// Takes new approvals and judges every open flow again.
    pub fn set_policy(&mut self, policy: Arc<Policy>, emit: &mut impl FnMut(Record)) {
        let _ = emit;
        self.policy = policy;
    }

    /// What went in and what became of it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
