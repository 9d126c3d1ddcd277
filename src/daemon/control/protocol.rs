//! What `linewarden ctl` and the daemon say to each other: one JSON object a line, each with the protocol's version.
//!
//! A request is `{"version":1,"command":"status"}`; `flows` takes `label`, `peer` (a network, or an address) and `limit`
//! besides. The answer is `{"version":1,"status":{…}}`, named as the command is; or `{"version":1,"error":{"code":78,
//! "message":"…"}}`, whose code is the exit code of `linewarden ctl`. `flows` and `approvals` answer with a line each,
//! `{"version":1,"flow":{…}}` or `"approval"`, and with `{"version":1,"end":{…}}` at last. A connection may ask again
//! once it has its answer. A request has 4096 octets at most and comes within ten seconds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

pub use crate::daemon::coverage::{SensorSpan, Span};
use crate::policy::{ApprovalKind, Label};
use crate::sink::live::LiveFlow;
use crate::sink::sensor::LinkState;
use crate::sink::usage::Use;
use crate::time::Timestamp;

/// Version of the protocol; grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// For what.
    pub command: Command,
    /// With `flows`: only those with this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// With `flows`: only those with an end in this network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "peer")]
    pub peer: Option<IpNet>,
    /// With `flows`: so many at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl Request {
    /// Takes a line; what is wrong with it is said in words that name it.
    ///
    /// # Errors
    /// It is no request of this version.
    pub fn parse(request: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(request)
            .map_err(|error| format!("a request is a JSON object on a line: {error}"))?;
        match value.get("version") {
            Some(version) if version.as_u64() == Some(u64::from(VERSION)) => {}
            Some(version) => {
                return Err(format!(
                    "this daemon speaks version {VERSION} of the protocol, not {version}: use its own `linewarden ctl`"
                ));
            }
            None => return Err(format!("version is missing: write \"version\":{VERSION}")),
        }
        let request: Self = serde_json::from_value(value).map_err(|error| format!("the request is wrong: {error}"))?;
        let has_filter = request.label.is_some() || request.peer.is_some() || request.limit.is_some();
        if has_filter && request.command != Command::Flows {
            return Err("label, peer and limit go with the command `flows`".to_owned());
        }
        if request.label == Some(Label::Other) {
            return Err(
                "flows that are `other` are in the log alone: the daemon lists tunnels and approved lines".to_owned()
            );
        }
        Ok(request)
    }
}

/// A network; an address is one of itself.
fn peer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let wrong =
        |_| D::Error::custom(format_args!("peer is {text:?}: write an address or a network, \"198.51.100.0/24\""));
    network.map(Some).map_err(wrong)
}

/// Every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Whether evidence is complete.
    Status,
    /// All counts, as in `summary.json`.
    Stats,
    /// Read approvals anew.
    Reload,
    /// Open tunnels and approved lines.
    Flows,
    /// Approvals and their use.
    Approvals,
    /// Begin a new log file.
    Rotate,
}

/// What is answered, a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What.
    #[serde(flatten)]
    pub body: Body,
}

/// An answer's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// To `status`.
    Status(Box<StatusAnswer>),
    /// To `stats`: as in `summary.json`.
    Stats(Value),
    /// To `reload`.
    Reload(ReloadAnswer),
    /// One of `flows`.
    Flow(LiveFlow),
    /// One of `approvals`.
    Approval(ApprovalAnswer),
    /// Behind the last flow or approval.
    End(End),
    /// To `rotate`.
    Rotate(RotateAnswer),
    /// Instead of any of them.
    Error(ErrorAnswer),
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// The exit code.
    pub code: u8,
    /// What, where and what to do.
    pub message: String,
}

/// How many there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Lines before this one.
    pub count: usize,
    /// Those that `limit` left out.
    pub left_out: usize,
    /// Records of flows that found the daemon's view of what is open full.
    pub unseen: u64,
}

/// New approvals are in force with every worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// SHA-256 of those in force now.
    pub revision: String,
    /// Of those before.
    pub before: String,
    /// How many there are.
    pub approvals: usize,
    /// Workers that judge by them.
    pub workers: usize,
    /// What is valid but probably not meant.
    pub warnings: Vec<String>,
    /// Settings that changed in the file, which a restart takes and a reload does not.
    pub ignored: Vec<String>,
}

/// The log goes on in a new file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateAnswer {
    /// The file that is written now.
    pub log: String,
}

/// The state of the sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// Of linewarden.
    pub program_version: String,
    /// Its name.
    pub sensor: String,
    /// When this was answered.
    pub time: Timestamp,
    /// When the daemon started.
    pub started: Timestamp,
    /// How long that is ago.
    pub uptime_seconds: u64,
    /// Whether the last hour may have a gap.
    pub evidence: Evidence,
    /// Each interface, in the order of the settings.
    pub interfaces: Vec<InterfaceAnswer>,
    /// Records.
    pub records: RecordsAnswer,
    /// Their log.
    pub log: LogAnswer,
    /// The log of what the sensor says of itself.
    pub sensor_log: LogAnswer,
    /// What is kept of every tunnel; null where that is off.
    #[serde(default)]
    pub inventory: Option<InventoryAnswer>,
    /// Approvals.
    pub policy: PolicyAnswer,
    /// How they were read.
    pub reloads: ReloadsAnswer,
    /// Each worker.
    pub workers: Vec<WorkerAnswer>,
    /// Packets of settled flows are counted in the kernel.
    pub kernel_fast_path: bool,
    /// So many were.
    pub kernel_packets: u64,
    /// Flows in the table.
    pub flows_open: u64,
    /// Flows that were ended to keep the memory bound.
    pub flows_evicted: u64,
    /// Memory held for flows, octets.
    pub table_octets: u64,
    /// Open tunnels and approved lines.
    pub live: LiveCounts,
}

/// Whether evidence is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Nothing speaks against it in the last hour.
    pub complete: bool,
    /// What does.
    pub doubts: Vec<String>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceAnswer {
    /// Its name.
    pub interface: String,
    /// Its state.
    pub link: LinkState,
    /// Since when.
    pub link_since: Timestamp,
    /// Packets taken since the start.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// Dropped by the kernel, the ring being full; null where nobody counts them.
    pub dropped_kernel: Option<u64>,
    /// Missed by the NIC.
    pub dropped_nic: u64,
    /// Not readable, by reason.
    pub undecodable: BTreeMap<String, u64>,
    /// Share of the packets that could not be read, though IP; null without packets.
    pub undecodable_share: Option<f64>,
    /// Ended flows of two packets or more.
    pub flows_ended: u64,
    /// Those with one direction only.
    pub flows_one_way: u64,
    /// Their share; null without flows.
    pub one_way_share: Option<f64>,
    /// When packets were last counted.
    pub last_packet: Option<Timestamp>,
    /// Of the last hour.
    pub last_hour: Span,
    /// Of the last day.
    pub last_day: Span,
}

/// Records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsAnswer {
    /// In the log.
    pub written: u64,
    /// Waiting for the disk.
    pub waiting: u64,
    /// Lost since the start.
    pub lost: u64,
    /// In the last hour.
    pub last_hour: SensorSpan,
    /// In the last day.
    pub last_day: SensorSpan,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAnswer {
    /// Its file.
    pub path: String,
    /// It cannot be written.
    pub is_failing: bool,
    /// It is not the file that is written: it, or its folder, was renamed or removed.
    pub is_displaced: bool,
    /// Where it was signed cannot be kept.
    pub is_headless: bool,
    /// How often it, or its seals, were cut or removed while they were written.
    pub harmed: u64,
    /// When that was last.
    pub harmed_at: Option<Timestamp>,
    /// Octets in the file; null where it is gone.
    pub octets: Option<u64>,
}

/// The inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryAnswer {
    /// Its file.
    pub path: String,
    /// Tunnels and circuits in it, each once for every approval and path.
    pub tunnels: u64,
    /// Those that went to make room.
    pub evicted: u64,
    /// Why it cannot be kept now; null where it can.
    pub error: Option<String>,
}

/// Approvals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// SHA-256 of them.
    pub revision: String,
    /// How many there are.
    pub approvals: usize,
    /// Of them valid now.
    pub in_force: usize,
    /// Over.
    pub expired: usize,
    /// Not begun.
    pub not_yet: usize,
    /// Valid, for `policy.warn_before` at most; the first hundred.
    pub expiring: Vec<Expiring>,
}

/// An approval that ends soon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiring {
    /// Its name.
    pub id: String,
    /// Who answers for it.
    pub owner: String,
    /// Its end.
    pub valid_until: Timestamp,
}

/// How approvals were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadsAnswer {
    /// Since the start.
    pub succeeded: u64,
    /// Since the start.
    pub failed: u64,
    /// When those in force were read.
    pub last_success: Timestamp,
    /// When some were wrong.
    pub last_failure: Option<Timestamp>,
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerAnswer {
    /// Which.
    pub worker: usize,
    /// How long ago its loop turned.
    pub lag_seconds: f64,
    /// Packets that it took.
    pub packets: u64,
    /// Flows in its table.
    pub flows_open: u64,
    /// Records that found the way to the log full.
    pub records_lost: u64,
    /// Times that its ring was full.
    pub ring_full: u64,
}

/// Open flows by label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCounts {
    /// `unapproved_vpn_tunnel`.
    pub unapproved: usize,
    /// `authorized_leased_line`.
    pub authorized: usize,
}

/// An approval and its use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalAnswer {
    /// Unique name.
    pub id: String,
    /// What was approved.
    pub kind: ApprovalKind,
    /// Who answers for it.
    pub owner: String,
    /// Ticket, contract or circuit number.
    pub reference: String,
    /// From when on; null: always.
    pub valid_from: Option<Timestamp>,
    /// Until when, exclusive.
    pub valid_until: Timestamp,
    /// By the wall clock.
    pub state: ApprovalState,
    /// Since the daemon started.
    pub r#use: Use,
}

/// Whether an approval is valid now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// It is.
    InForce,
    /// It is, for `policy.warn_before` at most.
    Expiring,
    /// It is over.
    Expired,
    /// It has not begun.
    NotYet,
}

impl ApprovalState {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InForce => "in force",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
            Self::NotYet => "not yet",
        }
    }
}
