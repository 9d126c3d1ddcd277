//! What a report says of coverage: sensors, their interfaces, and gaps.

use std::sync::Arc;

use serde::Serialize;

use crate::time::Timestamp;

/// What one sensor covered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensor {
    /// Its name.
    pub sensor: Arc<str>,
    /// Version of linewarden, as of its latest start in or before the range.
    pub program_version: Option<String>,
    /// SHA-256 of its settings that differ from the defaults, likewise.
    pub settings_sha256: Option<String>,
    /// Starts in the range.
    pub starts: u64,
    /// Records handed to the log.
    pub records_written: u64,
    /// Records lost.
    pub records_lost: u64,
    /// The longest time that a worker stood still, seconds.
    pub longest_standstill_seconds: u64,
    /// Each interface that it captured.
    pub interfaces: Vec<Interface>,
}

/// What was seen of an interface in the range.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Interface {
    /// Its name.
    pub interface: Arc<str>,
    /// Seconds of the range: without the minute that was running when the report was made.
    pub asked_seconds: f64,
    /// Seconds of them in which frames could be captured.
    pub covered_seconds: f64,
    /// Their share.
    pub covered_share: f64,
    /// The stretches in which something is amiss, of the range: from and to, 0 to 1.
    #[serde(skip)]
    pub holes: Vec<(f64, f64)>,
    /// Packets taken.
    pub packets: u64,
    /// Their octets.
    pub octets: u64,
    /// Packets that the kernel dropped; null where nobody counted them.
    pub dropped_kernel: Option<u64>,
    /// Packets that the NIC missed.
    pub dropped_nic: u64,
    /// Packets that could not be read, though they are IP.
    pub unreadable: u64,
    /// Their share.
    pub unreadable_share: Option<f64>,
    /// Packets that are no IP.
    pub not_ip: u64,
    /// Flows of two packets or more that ended.
    pub flows_ended: u64,
    /// Those of them that showed one direction only.
    pub flows_one_way: u64,
    /// Their share.
    pub one_way_share: Option<f64>,
    /// Seconds without a link.
    pub without_link_seconds: u64,
    /// The longest time without a packet, seconds.
    pub longest_silence_seconds: u64,
}

/// Why something may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Nothing was said before: the sensor was not there yet, or the log does not reach back.
    NothingBefore,
    /// The sensor was stopped.
    Stopped,
    /// A worker failed, and the run ended.
    Failed,
    /// The run ended without a word: it was killed, or its host went down.
    Killed,
    /// Nothing was said after: it was killed, its host went down, or the log was taken before.
    NothingAfter,
    /// The sensor ran, and did not capture this interface.
    NotCaptured,
    /// Events of the sensor are missing.
    EventsLost,
    /// The link was not up.
    Link,
    /// Packets were dropped.
    Drops,
    /// Records were lost.
    RecordsLost,
    /// No packet came.
    Silence,
    /// A worker stood still.
    Standstill,
}

impl Why {
    /// In words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::NothingBefore => "nothing from the sensor before: not running yet, or the log does not reach back",
            Self::Stopped => "the sensor was stopped",
            Self::Failed => "a worker failed, and the sensor ended",
            Self::Killed => "the sensor ended without a word: killed, or its host went down",
            Self::NothingAfter => {
                "nothing from the sensor after: killed, its host down, or the log was taken before the range ended"
            }
            Self::NotCaptured => "the sensor ran, and did not capture this interface",
            Self::EventsLost => "what the sensor said of this time is missing",
            Self::Link => "the link was not up",
            Self::Drops => "packets were dropped",
            Self::RecordsLost => "records were lost",
            Self::Silence => "no packet for ten minutes or more",
            Self::Standstill => "a worker stood still for ten seconds or more",
        }
    }

    /// Whether frames could not be captured at all.
    pub(super) const fn is_hole(self) -> bool {
        !matches!(self, Self::Link | Self::Drops | Self::RecordsLost | Self::Silence | Self::Standstill)
    }
}

/// A stretch of time for which something may be missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// Which sensor.
    pub sensor: Arc<str>,
    /// Which interfaces; none: all of them.
    pub interfaces: Vec<Arc<str>>,
    /// From.
    pub from: Timestamp,
    /// To; to the minute where the reason is not that the sensor did not run.
    pub to: Timestamp,
    /// Why.
    pub why: Why,
    /// The reason in words.
    pub meaning: &'static str,
    /// How much: seconds without a link, without a packet or at a standstill, packets dropped, records lost.
    pub amount: Option<u64>,
}
