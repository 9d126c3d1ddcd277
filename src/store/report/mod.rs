//! Turns a log, and what the sensors said of themselves, into a report for an auditor: what was covered and where a gap is,
//! approvals and their use, unapproved tunnels, how the policy changed, and whether the log is whole.
//!
//! | file | what |
//! |---|---|
//! | `period` | running totals into octets by time |
//! | `flows` | records into flows that count once |
//! | `usage` | approved flows into the use of each approval |
//! | `tunnels` | unapproved flows into tunnels |
//! | `tracker` | events of sensors into `coverage` and gaps |
//! | `policy` | events of sensors into changes of the approvals in force |
//! | `approvals` | their terms and use into what is to be said of each |

mod approvals;
mod coverage;
mod flows;
mod period;
mod policy;
#[cfg(test)]
mod tests;
mod tracker;
mod tunnels;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

pub use self::approvals::{Approval, Day, Peak, Refused, Remark};
pub use self::coverage::{Gap, Interface, Sensor, Why};
pub use self::flows::{Flows, Look, Part};
pub use self::period::{LONGEST, Period};
pub use self::policy::{Change, ChangeKind, Changed};
pub use self::tunnels::{Beyond, Evidence as Sign, Tunnel};

use self::policy::History;
use self::tracker::{MOST_GAPS, Tracker};
use super::log::{Buffers, Log};
use super::verify;
use crate::policy::{Label, Reason};
use crate::sink::archive::index::Contents;
use crate::sink::sensor::SensorEvent;
use crate::time::Timestamp;

/// Version of the report as JSON; grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// Everything that a report says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// What the report is of.
    pub head: Head,
    /// Whether anything speaks against the evidence.
    pub evidence: Evidence,
    /// What each sensor covered.
    pub sensors: Vec<Sensor>,
    /// Stretches of time for which something may be missing, in order.
    pub gaps: Vec<Gap>,
    /// Gaps beyond those listed.
    pub gaps_left_out: u64,
    /// Flows by verdict and reason.
    pub totals: Vec<Total>,
    /// Approvals that were in force in the range, or that records name, and their use.
    pub approvals: Vec<Approval>,
    /// Tunnels that no approval covers, those with most octets first.
    pub tunnels: Vec<Tunnel>,
    /// Those beyond the ones listed.
    pub tunnels_left_out: Beyond,
    /// How the approvals in force changed, in order.
    pub policy: Vec<Change>,
    /// Whether the log is whole, by folder.
    pub integrity: Vec<Integrity>,
    /// Where the report says less than there is, and why.
    pub notes: Vec<String>,
}

/// What a report is of.
#[derive(Debug, Serialize)]
pub struct Head {
    /// First moment of the range.
    pub from: Timestamp,
    /// The first moment behind it.
    pub to: Timestamp,
    /// When the report was made.
    pub made_at: Timestamp,
    /// Who made it.
    pub made_by: String,
    /// Of linewarden, that made it.
    pub program_version: &'static str,
    /// Folders and files that it was made of.
    pub logs: Vec<PathBuf>,
    /// Seconds of the stretches that peaks are averages of.
    pub peak_seconds: u64,
    /// What explains a flow, where its `flow_id` is put behind.
    pub explain: String,
}

/// Whether what was recorded is all there was to record.
#[derive(Debug, Default, Serialize)]
pub struct Evidence {
    /// Nothing speaks against it.
    pub complete: bool,
    /// What does, one sentence each.
    pub doubts: Vec<String>,
}

/// Flows of one verdict and reason.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Total {
    /// The label.
    pub verdict: Label,
    /// Why.
    pub reason: Reason,
    /// Flows with packets in the range.
    pub flows: u64,
    /// Octets in the range, without those of flows inside a tunnel, which the tunnel's flow counts.
    pub octets: u64,
    /// Flows inside a tunnel.
    pub inside: u64,
}

/// Whether a folder's logs are whole.
#[derive(Debug, Serialize)]
pub struct Integrity {
    /// The folder.
    pub folder: PathBuf,
    /// Null: not verified.
    pub is_whole: Option<bool>,
    /// Why it was not verified.
    pub not_verified: Option<String>,
    /// The keys that it was verified by.
    pub keys: Vec<KeyName>,
    /// Each log of the folder.
    pub logs: Vec<verify::Report>,
    /// What verifies it again.
    pub command: String,
}

/// A public key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyName {
    /// As in `sensor.pub`.
    pub key: String,
    /// SHA-256 of it as `openssl pkey -pubin -outform DER` writes it.
    pub sha256: String,
}

/// Who makes a report, when and of what.
#[derive(Debug)]
pub struct Maker {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Of what.
    pub logs: Vec<PathBuf>,
    /// What explains a flow.
    pub explain: String,
}

/// What the sensors said of themselves.
#[derive(Debug)]
pub struct Sensors {
    trackers: BTreeMap<Arc<str>, Tracker>,
    history: History,
    /// Events up to the range's end.
    events: u64,
    damaged: u64,
    damages: Vec<String>,
}

/// Damages that are told one by one.
const TOLD: usize = 5;

impl Sensors {
    fn new(period: Period) -> Self {
        Self { trackers: BTreeMap::new(), history: History::new(period), events: 0, damaged: 0, damages: Vec::new() }
    }

    /// Reads what was said up to the end of the period: what was in force before it began is asked, too.
    #[must_use]
    pub fn read(log: &Log, period: Period) -> Self {
        let mut this = Self::new(period);
        // A minute that ends behind the range may have begun in it.
        let until = period.to + std::time::Duration::from_hours(1);
        let wanted = |contents: &Contents| contents.first.is_none_or(|first| first < until);
        let mut buffers = Buffers::default();
        for chunk in log.chunks(&wanted) {
            match chunk {
                Ok(chunk) => {
                    let path = log.path(chunk.segment).to_owned();
                    match chunk.read(&mut buffers) {
                        Ok(lines) => this.lines(period, &path, lines),
                        Err(error) => this.damage(&format!("{}: cannot be read: {error}", path.display())),
                    }
                }
                Err(broken) => {
                    let path = log.path(broken.segment).display();
                    this.damage(&format!("{path}: cannot be read on: {}", broken.error));
                }
            }
        }
        this
    }

    fn lines(&mut self, period: Period, path: &std::path::Path, lines: &[u8]) {
        for line in lines.split_inclusive(|&octet| octet == b'\n') {
            match serde_json::from_slice::<SensorEvent>(line) {
                Ok(event) => {
                    if event.time < period.to {
                        self.events += 1;
                    }
                    let tracker = self.trackers.entry(Arc::clone(&event.sensor));
                    tracker.or_insert_with(|| Tracker::new(period, &event.sensor)).take(&event);
                    self.history.take(&event);
                }
                // The last line may be in the middle of being written.
                Err(_) if line.last() != Some(&b'\n') || line.trim_ascii().is_empty() => {}
                Err(error) => self.damage(&format!("{}: a line is no event of a sensor: {error}", path.display())),
            }
        }
    }

    fn damage(&mut self, what: &str) {
        self.damaged += 1;
        if self.damages.len() < TOLD {
            self.damages.push(what.to_owned());
        }
    }

    /// Lines and places that cannot be read.
    #[must_use]
    pub const fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Whether nothing was said up to the range's end.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.events == 0
    }
}

impl Report {
    /// Puts together what was read. `damages` are those of the records' log.
    #[must_use]
    pub fn new(
        period: Period,
        maker: Maker,
        mut flows: Flows,
        sensors: Option<Sensors>,
        integrity: Vec<Integrity>,
        damages: &super::Report,
    ) -> Self {
        flows.finish();
        let mut notes = Vec::new();
        let mut evidence = Evidence::default();
        let mut doubt = |what: String| evidence.doubts.push(what);
        let (mut covered, mut gaps) = (Vec::new(), Vec::new());
        let has_sensors = sensors.as_ref().is_some_and(|sensors| !sensors.trackers.is_empty());
        if !has_sensors {
            doubt(
                "no sensor.ndjson that can be read lies beside the records: nothing says what was captured, nor what was in force".to_owned(),
            );
        }
        let mut history = History::new(period);
        if let Some(sensors) = sensors {
            for (_, tracker) in sensors.trackers {
                let (sensor, its_gaps, doubts) = tracker.finish(maker.at);
                covered.push(sensor);
                gaps.extend(its_gaps);
                doubts.into_iter().for_each(&mut doubt);
            }
            history = sensors.history;
            if sensors.damaged > 0 {
                doubt(format!("{} lines of what the sensors said of themselves cannot be read", sensors.damaged));
                notes.extend(sensors.damages);
            }
        }
        if damages.damaged > 0 {
            doubt(format!("{} lines or parts of the records cannot be read", damages.damaged));
            notes.extend(damages.damages.iter().cloned());
        }
        if flows.foreign > 0 {
            doubt(format!("{} records are of another version, and are not in the report", flows.foreign));
        }
        for of in &integrity {
            match (of.is_whole, &of.not_verified) {
                (Some(true), _) => {}
                (Some(false), _) => doubt(format!("{}: the log is not whole", of.folder.display())),
                (None, why) => {
                    let why = why.as_deref().unwrap_or("it was not asked for");
                    doubt(format!("{}: the log was not verified: {why}", of.folder.display()));
                }
            }
        }
        gaps.sort_by_key(|gap| (gap.from, gap.to, gap.why));
        let gaps_left_out = gaps.len().saturating_sub(MOST_GAPS) as u64;
        gaps.truncate(MOST_GAPS);
        let changes_left_out = history.changes_left_out;
        let (policy, approvals, approvals_left_out, beyond) = history.finish(flows.uses);
        let (tunnels, tunnels_left_out) = flows.tunnels.finish();
        for (count, what) in [
            (gaps_left_out, "later gaps are not listed"),
            (changes_left_out, "later changes of the policy are not listed"),
            (approvals_left_out, "approvals that sort last are not listed"),
            (tunnels_left_out.tunnels, "unapproved tunnels with the fewest octets are not listed"),
            (beyond.0, "flows are under approvals beyond the five thousandth, whose use is not told"),
        ] {
            if count > 0 {
                notes.push(format!("{count} {what}"));
            }
        }
        evidence.complete = evidence.doubts.is_empty();
        let totals = flows.sums.iter().filter_map(|((label, reason), sum)| {
            let (verdict, reason) = (*Label::ALL.get(*label)?, *Reason::ALL.get(*reason)?);
            Some(Total { verdict, reason, flows: sum.flows, octets: sum.octets, inside: sum.inside })
        });
        Self {
            version: VERSION,
            head: Head {
                from: period.from,
                to: period.to,
                made_at: maker.at,
                made_by: maker.by,
                program_version: env!("CARGO_PKG_VERSION"),
                logs: maker.logs,
                peak_seconds: period.slot().as_secs(),
                explain: maker.explain,
            },
            evidence,
            sensors: covered,
            gaps,
            gaps_left_out,
            totals: totals.collect(),
            approvals,
            tunnels,
            tunnels_left_out,
            policy,
            integrity,
            notes,
        }
    }

    /// Whether the log has nothing of the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let is_seen = |sensor: &Sensor| sensor.interfaces.iter().any(|interface| interface.covered_seconds > 0.0);
        self.totals.is_empty() && !self.sensors.iter().any(is_seen)
    }
}
