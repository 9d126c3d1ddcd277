//! What the parts of the daemon know of each other: read by the control socket, the metrics and the summary, none of which
//! can hold up a worker.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::control::protocol::{
    ApprovalAnswer, ApprovalState, Evidence, Expiring, InterfaceAnswer, InventoryAnswer, LiveCounts, LogAnswer,
    PolicyAnswer, RecordsAnswer, ReloadsAnswer, StatusAnswer, WorkerAnswer,
};
use super::coverage::{Coverage, DAY, HOUR, Totals};
use super::state::{clock, now};
use crate::capture::{Report, Status, Summary};
use crate::policy::{Approval, Label, Policy};
use crate::sink::Losses;
use crate::sink::inventory;
use crate::sink::live::LiveView;
use crate::sink::pseudonym::Pseudonyms;
use crate::sink::sealed::{Health, SealedLog};
use crate::sink::sensor::{ENOUGH_FLOWS, ENOUGH_PACKETS, LinkState, ONE_WAY, SILENT, STANDSTILL, UNREADABLE};
use crate::sink::usage::Usage;
use crate::time::Timestamp;

/// What a log's task tells of it.
#[derive(Debug, Default)]
pub(super) struct LogGauge {
    written: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicU64,
    health: Mutex<Health>,
    /// When somebody cut or removed it last.
    harmed_at: Mutex<Option<Timestamp>>,
}

impl LogGauge {
    pub(super) fn set(&self, log: &SealedLog) {
        self.written.store(log.written(), Ordering::Relaxed);
        self.lost.store(log.lost(), Ordering::Relaxed);
        self.waiting.store(log.waiting(), Ordering::Relaxed);
        let health = log.health();
        let before = std::mem::replace(&mut *lock(&self.health), health);
        if health.harmed > before.harmed {
            *lock(&self.harmed_at) = Some(clock());
        }
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// For want of room on the disk.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn health(&self) -> Health {
        *lock(&self.health)
    }

    fn answer(&self, path: &std::path::Path) -> LogAnswer {
        let health = self.health();
        LogAnswer {
            path: path.display().to_string(),
            is_failing: health.is_failing,
            is_displaced: health.is_displaced,
            is_headless: health.is_headless,
            harmed: health.harmed,
            harmed_at: *lock(&self.harmed_at),
            octets: octets_of(path),
        }
    }
}

/// How approvals were read anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reloads {
    pub succeeded: u64,
    pub failed: u64,
    /// When those in force were read.
    pub last_success: Timestamp,
    pub last_failure: Option<Timestamp>,
    /// Whether the latest reading failed.
    pub is_failed: bool,
}

/// What does not change while the daemon runs.
pub(super) struct Facts {
    pub sensor: Arc<str>,
    pub interfaces: Vec<Arc<str>>,
    pub started: Timestamp,
    pub began: Instant,
    pub log: PathBuf,
    pub sensor_log: PathBuf,
    pub kernel_fast_path: bool,
    /// By the output's name.
    pub output_losses: Vec<(String, Losses)>,
    pub pseudonyms: Option<Arc<Pseudonyms>>,
    /// An approval that ends within this is told of.
    pub warn_before: Duration,
}

pub(super) struct Board {
    pub facts: Facts,
    pub workers: Vec<Arc<Status>>,
    pub live: Arc<LiveView>,
    pub usage: Arc<Usage>,
    pub log: Arc<LogGauge>,
    pub sensor_log: Arc<LogGauge>,
    /// `None`: there is none.
    pub inventory: Option<Arc<inventory::Gauge>>,
    policy: Mutex<Arc<Policy>>,
    reloads: Mutex<Reloads>,
    coverage: Mutex<Coverage>,
}

impl Board {
    pub(super) fn new(
        facts: Facts,
        workers: Vec<Arc<Status>>,
        live: Arc<LiveView>,
        usage: Arc<Usage>,
        [log, sensor_log]: [Arc<LogGauge>; 2],
        inventory: Option<Arc<inventory::Gauge>>,
        policy: Arc<Policy>,
    ) -> Self {
        let coverage = Mutex::new(Coverage::new(&facts.interfaces, facts.started));
        let reloads =
            Reloads { succeeded: 0, failed: 0, last_success: facts.started, last_failure: None, is_failed: false };
        let (policy, reloads) = (Mutex::new(policy), Mutex::new(reloads));
        Self { facts, workers, live, usage, log, sensor_log, inventory, policy, reloads, coverage }
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&lock(&self.policy))
    }

    /// Notes new approvals.
    pub(super) fn set_policy(&self, policy: &Arc<Policy>) {
        *lock(&self.policy) = Arc::clone(policy);
        if let Some(pseudonyms) = &self.facts.pseudonyms {
            pseudonyms.set_policy(policy);
        }
        let ids: std::collections::HashSet<&str> = policy.approvals().iter().map(|approval| &*approval.id).collect();
        self.usage.keep(|id| ids.contains(id));
        let mut reloads = lock(&self.reloads);
        reloads.succeeded += 1;
        (reloads.last_success, reloads.is_failed) = (clock(), false);
    }

    /// Notes that approvals were to be read and are wrong.
    pub(super) fn reload_failed(&self) {
        let mut reloads = lock(&self.reloads);
        reloads.failed += 1;
        (reloads.last_failure, reloads.is_failed) = (Some(clock()), true);
    }

    pub(super) fn reloads(&self) -> Reloads {
        *lock(&self.reloads)
    }

    pub(super) fn coverage(&self) -> MutexGuard<'_, Coverage> {
        lock(&self.coverage)
    }

    pub(super) fn reports(&self) -> Vec<Report> {
        self.workers.iter().map(|worker| worker.report()).collect()
    }

    /// All counts, what the log lost among them.
    pub(super) fn summary(&self) -> Summary {
        let mut summary = Summary::of(&self.reports());
        self.log.correct(&mut summary);
        summary
    }

    /// The slowest worker's.
    pub(super) fn lag(&self) -> Duration {
        self.workers.iter().map(|worker| worker.lag()).max().unwrap_or_default()
    }

    /// What is counted of each interface now.
    pub(super) fn totals(&self, reports: &[Report]) -> Vec<Totals> {
        let names = &self.facts.interfaces;
        Totals::of(reports, names.len(), |index| names.get(index).is_none_or(|name| has_carrier(name)))
    }

    /// The answer to `ctl status`.
    pub(super) fn status(&self) -> StatusAnswer {
        let (time, summary) = (clock(), self.summary());
        let interfaces = self.interfaces();
        let (hour, day) = {
            let coverage = self.coverage();
            (coverage.sensor_span(HOUR), coverage.sensor_span(DAY))
        };
        let workers = self.workers.iter().enumerate().map(|(worker, status)| {
            let report = status.report();
            WorkerAnswer {
                worker,
                lag_seconds: status.lag().as_secs_f64(),
                packets: report.counters.packets,
                flows_open: report.counters.flows_open,
                records_lost: report.records_lost,
                ring_full: report.capture.ring_full,
            }
        });
        let records = RecordsAnswer {
            written: self.log.written(),
            waiting: self.log.waiting(),
            lost: summary.records_lost,
            last_hour: hour,
            last_day: day,
        };
        let log = self.log.answer(&self.facts.log);
        let sensor_log = self.sensor_log.answer(&self.facts.sensor_log);
        let reloads = self.reloads();
        let mut answer = StatusAnswer {
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            sensor: self.facts.sensor.to_string(),
            time,
            started: self.facts.started,
            uptime_seconds: now().duration_since(self.facts.began).as_secs(),
            evidence: Evidence::default(),
            interfaces,
            records,
            log,
            sensor_log,
            inventory: self.inventory.as_ref().map(|inventory| InventoryAnswer {
                path: inventory.path().display().to_string(),
                tunnels: inventory.rows(),
                evicted: inventory.evicted(),
                error: inventory.error(),
            }),
            policy: self.policy_answer(time),
            reloads: ReloadsAnswer {
                succeeded: reloads.succeeded,
                failed: reloads.failed,
                last_success: reloads.last_success,
                last_failure: reloads.last_failure,
            },
            workers: workers.collect(),
            kernel_fast_path: self.facts.kernel_fast_path,
            kernel_packets: summary.kernel.packets,
            flows_open: summary.flows_open,
            flows_evicted: summary.evicted.values().sum(),
            table_octets: summary.table_octets,
            live: LiveCounts {
                unapproved: self.live.count(Label::UnapprovedVpnTunnel),
                authorized: self.live.count(Label::AuthorizedLeasedLine),
            },
        };
        let doubts = doubts(&answer);
        answer.evidence = Evidence { complete: doubts.is_empty(), doubts };
        answer
    }

    fn interfaces(&self) -> Vec<InterfaceAnswer> {
        let coverage = self.coverage();
        let answer = |tracked: &super::coverage::Tracked| {
            let totals = &tracked.totals;
            InterfaceAnswer {
                interface: tracked.name.to_string(),
                link: totals.link,
                link_since: tracked.link_since,
                packets: totals.packets,
                octets: totals.octets,
                dropped_kernel: totals.dropped_kernel,
                dropped_nic: totals.dropped_nic,
                undecodable: totals.by_reason(),
                undecodable_share: share(totals.unreadable(), totals.packets),
                flows_ended: totals.flows_ended,
                flows_one_way: totals.flows_one_way,
                one_way_share: share(totals.flows_one_way, totals.flows_ended),
                last_packet: tracked.last_packet,
                last_hour: coverage.span(tracked, HOUR),
                last_day: coverage.span(tracked, DAY),
            }
        };
        coverage.interfaces.iter().map(answer).collect()
    }

    fn policy_answer(&self, now: Timestamp) -> PolicyAnswer {
        let policy = self.policy();
        let of = |state| policy.approvals().iter().filter(move |approval| self.state_of(approval, now) == state);
        PolicyAnswer {
            revision: policy.revision().to_string(),
            approvals: policy.approvals().len(),
            in_force: of(ApprovalState::InForce).count() + of(ApprovalState::Expiring).count(),
            expired: of(ApprovalState::Expired).count(),
            not_yet: of(ApprovalState::NotYet).count(),
            expiring: of(ApprovalState::Expiring)
                .take(MOST_EXPIRING)
                .map(|approval| Expiring {
                    id: approval.id.to_string(),
                    owner: approval.owner.to_string(),
                    valid_until: approval.valid_until,
                })
                .collect(),
        }
    }

    /// The answers to `ctl approvals`, one at a time.
    pub(super) fn approval(&self, approval: &Approval, now: Timestamp) -> ApprovalAnswer {
        ApprovalAnswer {
            id: approval.id.to_string(),
            kind: approval.kind,
            owner: approval.owner.to_string(),
            reference: approval.reference.to_string(),
            valid_from: approval.valid_from,
            valid_until: approval.valid_until,
            state: self.state_of(approval, now),
            r#use: self.usage.of(&approval.id),
        }
    }

    pub(super) fn state_of(&self, approval: &Approval, now: Timestamp) -> ApprovalState {
        if approval.valid_until <= now {
            ApprovalState::Expired
        } else if approval.valid_from.is_some_and(|from| from > now) {
            ApprovalState::NotYet
        } else if approval.valid_until <= now + self.facts.warn_before {
            ApprovalState::Expiring
        } else {
            ApprovalState::InForce
        }
    }
}

/// Expiring approvals that a status names.
const MOST_EXPIRING: usize = 100;

impl LogGauge {
    /// What the log lost was not written after all.
    fn correct(&self, summary: &mut Summary) {
        let lost = self.lost();
        summary.records_lost += lost;
        summary.records = summary.records.saturating_sub(lost);
    }
}

/// Why the evidence of the last hour may have a gap, one sentence each.
fn doubts(status: &StatusAnswer) -> Vec<String> {
    let mut doubts = Vec::new();
    for of in &status.interfaces {
        let (name, hour) = (&of.interface, &of.last_hour);
        let mut doubt = |what: String| doubts.push(format!("{name}: {what}"));
        if of.link != LinkState::Up {
            doubt(format!("the link is {} since {}", of.link.name(), of.link_since));
        } else if hour.without_link_seconds > 0 {
            doubt(format!("the link was not up for {} s of the last hour", hour.without_link_seconds));
        }
        if hour.dropped_kernel > 0 {
            doubt(format!(
                "the kernel dropped {} packets in the last hour: raise capture.ring_octets or capture.workers",
                hour.dropped_kernel
            ));
        }
        if hour.dropped_nic > 0 {
            doubt(format!("the NIC missed {} packets in the last hour", hour.dropped_nic));
        }
        if of.dropped_kernel.is_none() && of.packets > 0 {
            doubt("nobody counts what the kernel drops (capture.backend = \"pnet\")".to_owned());
        }
        let silent = of.last_packet.map_or(status.uptime_seconds, |last| status.time.since(last).as_secs());
        if silent >= SILENT.as_secs() {
            doubt(format!("no packet for {silent} s"));
        }
        if of.flows_ended >= ENOUGH_FLOWS && of.one_way_share.is_some_and(|share| share > ONE_WAY) {
            doubt(
                "nearly all flows show one direction only: the mirror or tap seems to give half of the link".to_owned(),
            );
        }
        if of.packets >= ENOUGH_PACKETS && of.undecodable_share.is_some_and(|share| share > UNREADABLE) {
            doubt("more than a hundredth of the packets cannot be read".to_owned());
        }
    }
    let records = &status.records;
    if records.last_hour.records_lost > 0 {
        doubts.push(format!("{} records were lost in the last hour", records.last_hour.records_lost));
    }
    for LogAnswer { path, is_failing, is_displaced, is_headless, harmed_at, .. } in [&status.log, &status.sensor_log] {
        let mut doubt = |what: String| doubts.push(format!("{path} {what}"));
        if *is_failing {
            doubt("cannot be written: records wait, and are lost when too many do".to_owned());
        }
        if *is_displaced {
            doubt("is not the file that is written: it, or its folder, was renamed or removed".to_owned());
        }
        if *is_headless {
            doubt("is signed, and where is not kept: state.dir cannot be written".to_owned());
        }
        if let Some(at) = harmed_at.filter(|at| status.time.since(*at) < Duration::from_hours(1)) {
            doubt(format!("or its seals were cut or removed at {at}: what they held is gone, and verify-log tells"));
        }
    }
    let standstill = Duration::from_millis(records.last_hour.longest_standstill_ms);
    if standstill >= STANDSTILL {
        doubts.push(format!("the sensor stood still for {} s in the last hour", standstill.as_secs()));
    }
    doubts
}

#[expect(clippy::cast_precision_loss, reason = "a share, told with a few digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

pub(super) fn octets_of(path: &std::path::Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// `carrier` is 0 where the cable leads nowhere; an interface that is down refuses to be asked, which is told elsewhere.
fn has_carrier(interface: &str) -> bool {
    std::fs::read_to_string(format!("/sys/class/net/{interface}/carrier")).map_or(true, |carrier| carrier.trim() != "0")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
