//! Turns what the sensor does into what it says of itself: events of its own versioned format, one JSON object a line of
//! `sensor.ndjson`. What it covered, and where a gap is, is told from them: a hole between events is a gap.
//! The JSON Schema is `tests/sensor.schema.json`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::{Approval, ApprovalKind, Path};
use crate::time::Timestamp;

/// Version of the format; grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// One line of `sensor.ndjson`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensorEvent {
    /// Version of this format, [`VERSION`].
    pub version: u32,
    /// Number within one run, from 1: a gap is a lost event.
    pub seq: u64,
    /// The wall clock's time.
    pub time: Timestamp,
    /// The sensor's name.
    pub sensor: Arc<str>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A run began: capture is open.
    Start(Start),
    /// What was seen since the last such event, once a minute and at the end.
    Coverage(Coverage),
    /// Approvals came into force.
    Policy(PolicyInForce),
    /// Approvals or settings were to be read anew and are wrong: what was in force stays.
    ReloadFailed(ReloadFailed),
    /// An interface went down, or came back.
    Interface(InterfaceChange),
    /// Approvals have ended, or end soon: at the start, at every reload and once a day, where there are such.
    Expiry(ApprovalsDue),
    /// The last run did not close a log: what was found of it.
    LogBreak(LogBreak),
    /// The run ended.
    Stop(Stop),
}

/// Above this share of flows in one direction only, of so many flows at least, half of the link seems to be missing.
pub const ONE_WAY: f64 = 0.9;
/// See [`ONE_WAY`].
pub const ENOUGH_FLOWS: u64 = 20;
/// Above this share of packets that cannot be read, of so many at least, something is amiss.
pub const UNREADABLE: f64 = 0.01;
/// See [`UNREADABLE`].
pub const ENOUGH_PACKETS: u64 = 1000;
/// A link that is silent for longer may be no link.
pub const SILENT: Duration = Duration::from_mins(10);
/// A worker that stood still for longer may have lost packets that nobody counted.
pub const STANDSTILL: Duration = Duration::from_secs(10);

/// How a run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Of linewarden.
    pub program_version: String,
    /// SHA-256 of the settings that differ from the defaults.
    pub settings_sha256: String,
    /// What is captured.
    pub interfaces: Vec<Arc<str>>,
    /// Threads that do it.
    pub workers: usize,
    /// Capabilities of the process.
    pub capabilities: Vec<String>,
    /// Packets of settled flows are counted in the kernel.
    pub kernel_fast_path: bool,
}

/// Whether frames can come from an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// They can.
    #[default]
    Up,
    /// It is up, and nothing is at the other end of the cable.
    NoCarrier,
    /// It is down.
    Down,
    /// There is no interface of that name.
    Gone,
    /// It is there, and cannot be captured.
    Refused,
}

impl LinkState {
    /// The string in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::NoCarrier => "no_carrier",
            Self::Down => "down",
            Self::Gone => "gone",
            Self::Refused => "refused",
        }
    }
}

/// What was seen from `since` to the event's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Where the span begins.
    pub since: Timestamp,
    /// Each interface, in the order of the settings.
    pub interfaces: Vec<InterfaceCoverage>,
    /// Records handed to the log.
    pub records_written: u64,
    /// Records lost: a gap in the log, not in the capture.
    pub records_lost: u64,
    /// The longest time that a worker's loop stood still at a look, nanoseconds.
    pub worker_lag_ns: u64,
}

/// What was seen of one interface in a span.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCoverage {
    /// Its name.
    pub interface: Arc<str>,
    /// Its state at the end of the span.
    pub link: LinkState,
    /// Packets taken.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// Packets that the kernel dropped for want of room; null where nobody counts them.
    pub dropped_kernel: Option<u64>,
    /// Packets that the NIC says it missed.
    pub dropped_nic: u64,
    /// Packets that could not be read, by reason.
    pub undecodable: BTreeMap<String, u64>,
    /// Flows of two packets or more that ended.
    pub flows_ended: u64,
    /// Those of them that showed one direction only.
    pub flows_one_way: u64,
    /// How long the link was not up, seconds.
    pub without_link_seconds: u64,
    /// The longest time without a packet that ended in the span or lasts at its end, seconds. It may have begun before.
    pub longest_silence_seconds: u64,
}

/// The approvals that came into force, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyInForce {
    /// SHA-256 of them, as in records.
    pub revision: Arc<str>,
    /// All of them.
    pub approvals: Vec<ApprovalInForce>,
}

/// An approval, whole but for its keys, which fingerprints stand for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalInForce {
    /// Unique name.
    pub id: Arc<str>,
    /// What was approved.
    pub kind: ApprovalKind,
    /// Who answers for it.
    pub owner: Arc<str>,
    /// Ticket, contract or circuit number.
    pub reference: Arc<str>,
    /// Why it is needed.
    pub need: Option<Arc<str>>,
    /// From when on; null: always.
    pub valid_from: Option<Timestamp>,
    /// Until when, exclusive.
    pub valid_until: Timestamp,
    /// Networks of the approved endpoint.
    pub peers: Vec<String>,
    /// Ports of either end.
    pub ports: Vec<String>,
    /// IP protocol numbers.
    pub ip_protocols: Vec<u8>,
    /// Tunnel protocols.
    pub tunnels: Vec<String>,
    /// Where it must be seen.
    pub path: Path,
    /// What the line can carry, bits a second.
    pub capacity: Option<u64>,
    /// Fingerprints of the keys that it pins.
    pub keys: Vec<String>,
}

/// Approvals whose time is over, or nearly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalsDue {
    /// What soon is, seconds (`policy.warn_before`).
    pub within_seconds: u64,
    /// Those that end soon.
    pub ending: Vec<ApprovalEnd>,
    /// Those that have ended.
    pub ended: Vec<ApprovalEnd>,
}

/// An approval's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalEnd {
    /// Unique name.
    pub id: Arc<str>,
    /// Who answers for it.
    pub owner: Arc<str>,
    /// Until when, exclusive.
    pub valid_until: Timestamp,
    /// Time of the latest packet, since the start, of a flow that it would have covered, had it not ended; null: none came.
    pub used_after_end: Option<Timestamp>,
}

/// What was found of a log that was not closed, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBreak {
    /// `linewarden` or `sensor`.
    pub log: String,
    /// Number of the segment.
    pub segment: u64,
    /// Lines that had no seal: they are sealed as `recovered`.
    pub recovered_records: u64,
    /// Their octets.
    pub recovered_octets: u64,
    /// Octets of half a line at the end, which was taken off.
    pub torn_octets: u64,
    /// Octets that were sealed and are not there any more.
    pub missing_octets: u64,
    /// Seals that were signed and are not there any more.
    pub missing_seals: u64,
}

/// What kept new approvals from coming into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadFailed {
    /// What stays in force.
    pub revision: Arc<str>,
    /// Lines, as `check-config` prints them; of endless ones the first.
    pub errors: Vec<String>,
}

/// What became of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceChange {
    /// Its name.
    pub interface: Arc<str>,
    /// What it is now.
    pub link: LinkState,
    /// What it was.
    pub before: LinkState,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// As it was told to; else a worker failed.
    pub clean: bool,
    /// Packets that the capture was to take.
    pub packets: u64,
    /// Packets that belong to a flow.
    pub classified: u64,
    /// Packets that could not be read.
    pub undecodable: u64,
    /// Packets that the kernel dropped; null where nobody counts them.
    pub dropped_kernel: Option<u64>,
    /// Packets that the NIC says it missed.
    pub dropped_nic: u64,
    /// Flows opened.
    pub flows: u64,
    /// Records handed to the log.
    pub records: u64,
    /// Records lost.
    pub records_lost: u64,
}

impl From<&Approval> for ApprovalInForce {
    fn from(approval: &Approval) -> Self {
        fn texts<T: ToString>(items: &[T]) -> Vec<String> {
            items.iter().map(T::to_string).collect()
        }
        Self {
            id: Arc::clone(&approval.id),
            kind: approval.kind,
            owner: Arc::clone(&approval.owner),
            reference: Arc::clone(&approval.reference),
            need: approval.need.clone(),
            valid_from: approval.valid_from,
            valid_until: approval.valid_until,
            peers: texts(&approval.peers),
            ports: texts(&approval.ports),
            ip_protocols: approval.ip_protocols.clone(),
            tunnels: approval.tunnels.iter().map(|tunnel| tunnel.name().to_owned()).collect(),
            path: approval.path.clone(),
            capacity: approval.capacity,
            keys: approval.keys.iter().map(|key| key.fingerprint().to_string()).collect(),
        }
    }
}
