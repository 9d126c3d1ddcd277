//! Turns the workers' counts into what was seen of each interface, and where a gap is: over a minute, an hour, a day.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::{Link, Report};
use crate::sink::sensor::{InterfaceCoverage, LinkState};
use crate::time::Timestamp;
use crate::wire::ParseError;

/// Counts of one interface since the start, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub link: LinkState,
    pub packets: u64,
    pub octets: u64,
    pub dropped_kernel: Option<u64>,
    pub dropped_nic: u64,
    pub undecodable: [u64; ParseError::ALL.len()],
    pub flows_ended: u64,
    pub flows_one_way: u64,
}

impl Totals {
    /// One for each of `interfaces`, whose carriers `carrier` knows.
    pub(super) fn of(reports: &[Report], interfaces: usize, carrier: impl Fn(usize) -> bool) -> Vec<Self> {
        let of_interface = |index: usize| {
            let mut totals = Self::default();
            let mut worst = Link::Up;
            for report in reports {
                if let Some((counters, link)) = report.interfaces.get(index) {
                    worst = worst.max(*link);
                    totals.packets += counters.received;
                    totals.octets += counters.octets;
                    totals.dropped_nic += counters.dropped_nic;
                    if let Some(dropped) = counters.dropped_kernel {
                        *totals.dropped_kernel.get_or_insert(0) += dropped;
                    }
                }
                if let Some(counters) = report.counters.interfaces.get(index) {
                    totals.packets += counters.elsewhere;
                    totals.octets += counters.elsewhere_octets;
                    totals.flows_ended += counters.ended;
                    totals.flows_one_way += counters.one_way;
                    for (sum, more) in totals.undecodable.iter_mut().zip(counters.undecodable) {
                        *sum += more;
                    }
                }
            }
            totals.link = match worst {
                Link::Up if carrier(index) => LinkState::Up,
                Link::Up => LinkState::NoCarrier,
                Link::Down => LinkState::Down,
                Link::Gone => LinkState::Gone,
                Link::Refused => LinkState::Refused,
            };
            totals
        };
        (0..interfaces).map(of_interface).collect()
    }

    /// Packets that could not be read and should have been: what is no IP is none of them.
    pub(super) fn unreadable(&self) -> u64 {
        let not_ip = self.undecodable.get(ParseError::NotIp as usize).copied().unwrap_or(0);
        self.undecodable.iter().sum::<u64>() - not_ip
    }

    pub(super) fn by_reason(&self) -> BTreeMap<String, u64> {
        let reasons = ParseError::ALL.iter().zip(self.undecodable);
        reasons.filter(|(_, count)| *count > 0).map(|(error, count)| (error.reason().to_owned(), count)).collect()
    }

    fn since(&self, before: &Self) -> Self {
        let mut undecodable = self.undecodable;
        for (now, before) in undecodable.iter_mut().zip(before.undecodable) {
            *now = now.saturating_sub(before);
        }
        Self {
            link: self.link,
            packets: self.packets.saturating_sub(before.packets),
            octets: self.octets.saturating_sub(before.octets),
            dropped_kernel: self.dropped_kernel.map(|now| now.saturating_sub(before.dropped_kernel.unwrap_or(0))),
            dropped_nic: self.dropped_nic.saturating_sub(before.dropped_nic),
            undecodable,
            flows_ended: self.flows_ended.saturating_sub(before.flows_ended),
            flows_one_way: self.flows_one_way.saturating_sub(before.flows_one_way),
        }
    }
}

/// What was seen of an interface in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// How long it is: less than asked for where the daemon is younger.
    pub seconds: u64,
    /// Packets taken.
    pub packets: u64,
    /// Dropped by the kernel.
    pub dropped_kernel: u64,
    /// Missed by the NIC.
    pub dropped_nic: u64,
    /// Not readable, though IP.
    pub undecodable: u64,
    /// The link was not up for so long, seconds.
    pub without_link_seconds: u64,
    /// The longest time without a packet, seconds.
    pub longest_silence_seconds: u64,
}

/// What happened to the sensor as a whole in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SensorSpan {
    /// Records lost.
    pub records_lost: u64,
    /// The longest time that a worker, or all of the daemon, stood still, milliseconds.
    pub longest_standstill_ms: u64,
}

/// Minutes of an hour and a day.
pub(super) const HOUR: usize = 60;
pub(super) const DAY: usize = 24 * 60;

/// One interface.
pub(super) struct Tracked {
    pub name: Arc<str>,
    pub totals: Totals,
    pub link_since: Timestamp,
    /// When packets were last counted.
    pub last_packet: Option<Timestamp>,
    pub without_link: Duration,
    quiet_for: Duration,
    /// As of the last whole minute.
    minute: Totals,
    without_link_minute: Duration,
    longest_silence: Duration,
    history: VecDeque<Span>,
}

impl Tracked {
    /// The last `minutes` whole minutes, and what has passed of this one.
    pub(super) fn span(&self, minutes: usize, of_this_minute: Duration) -> Span {
        let mut sum = self.open_span(of_this_minute);
        for minute in self.history.iter().rev().take(minutes) {
            sum.seconds += minute.seconds;
            sum.packets += minute.packets;
            sum.dropped_kernel += minute.dropped_kernel;
            sum.dropped_nic += minute.dropped_nic;
            sum.undecodable += minute.undecodable;
            sum.without_link_seconds += minute.without_link_seconds;
            sum.longest_silence_seconds = sum.longest_silence_seconds.max(minute.longest_silence_seconds);
        }
        sum
    }

    fn open_span(&self, passed: Duration) -> Span {
        let grown = self.totals.since(&self.minute);
        Span {
            seconds: passed.as_secs(),
            packets: grown.packets,
            dropped_kernel: grown.dropped_kernel.unwrap_or(0),
            dropped_nic: grown.dropped_nic,
            undecodable: grown.unreadable(),
            without_link_seconds: self.without_link_minute.as_secs(),
            longest_silence_seconds: self.longest_silence.max(self.quiet_for).as_secs(),
        }
    }

    fn close_minute(&mut self, passed: Duration) -> InterfaceCoverage {
        let span = self.open_span(passed);
        let grown = self.totals.since(&self.minute);
        self.history.push_back(span);
        if self.history.len() > DAY {
            self.history.pop_front();
        }
        self.minute = self.totals.clone();
        (self.without_link_minute, self.longest_silence) = (Duration::ZERO, Duration::ZERO);
        InterfaceCoverage {
            interface: Arc::clone(&self.name),
            link: grown.link,
            packets: grown.packets,
            octets: grown.octets,
            dropped_kernel: grown.dropped_kernel,
            dropped_nic: grown.dropped_nic,
            undecodable: grown.by_reason(),
            flows_ended: grown.flows_ended,
            flows_one_way: grown.flows_one_way,
            without_link_seconds: span.without_link_seconds,
            longest_silence_seconds: span.longest_silence_seconds,
        }
    }
}

/// A link that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub interface: Arc<str>,
    pub before: LinkState,
    pub now: LinkState,
}

/// All interfaces, and the sensor.
pub(super) struct Coverage {
    pub interfaces: Vec<Tracked>,
    /// What has passed of this minute.
    passed: Duration,
    since: Timestamp,
    lost: u64,
    lost_minute: u64,
    standstill: Duration,
    history: VecDeque<SensorSpan>,
}

/// What a minute came to.
pub(super) struct Minute {
    pub since: Timestamp,
    pub interfaces: Vec<InterfaceCoverage>,
    pub records_lost: u64,
    pub standstill: Duration,
}

impl Coverage {
    pub(super) fn new(names: &[Arc<str>], at: Timestamp) -> Self {
        let tracked = |name: &Arc<str>| Tracked {
            name: Arc::clone(name),
            totals: Totals::default(),
            link_since: at,
            last_packet: None,
            without_link: Duration::ZERO,
            quiet_for: Duration::ZERO,
            minute: Totals::default(),
            without_link_minute: Duration::ZERO,
            longest_silence: Duration::ZERO,
            history: VecDeque::new(),
        };
        Self {
            interfaces: names.iter().map(tracked).collect(),
            passed: Duration::ZERO,
            since: at,
            lost: 0,
            lost_minute: 0,
            standstill: Duration::ZERO,
            history: VecDeque::new(),
        }
    }

    /// Takes what is counted by `at`, `passed` after the last time; `lag` is that of the slowest worker.
    pub(super) fn tick(
        &mut self,
        at: Timestamp,
        passed: Duration,
        totals: Vec<Totals>,
        lost: u64,
        lag: Duration,
    ) -> Vec<Change> {
        self.passed += passed;
        self.lost = self.lost.max(lost);
        // A tick that comes late says that all of the daemon stood still.
        self.standstill = self.standstill.max(lag).max(passed.saturating_sub(TICK));
        let mut changes = Vec::new();
        for (tracked, totals) in self.interfaces.iter_mut().zip(totals) {
            if totals.packets > tracked.totals.packets {
                tracked.longest_silence = tracked.longest_silence.max(tracked.quiet_for);
                tracked.quiet_for = Duration::ZERO;
                tracked.last_packet = Some(at);
            } else {
                tracked.quiet_for += passed;
            }
            if totals.link != LinkState::Up {
                tracked.without_link += passed;
                tracked.without_link_minute += passed;
            }
            if totals.link != tracked.totals.link {
                let interface = Arc::clone(&tracked.name);
                changes.push(Change { interface, before: tracked.totals.link, now: totals.link });
                tracked.link_since = at;
            }
            tracked.totals = totals;
        }
        changes
    }

    /// Whether a minute is over.
    pub(super) fn is_due(&self) -> bool {
        self.passed >= Duration::from_mins(1)
    }

    /// Ends the minute, or what there is of it.
    pub(super) fn close_minute(&mut self, at: Timestamp) -> Minute {
        let passed = std::mem::take(&mut self.passed);
        let span = self.open_sensor_span();
        self.history.push_back(span);
        if self.history.len() > DAY {
            self.history.pop_front();
        }
        self.lost_minute = self.lost;
        let standstill = std::mem::take(&mut self.standstill);
        let interfaces = self.interfaces.iter_mut().map(|tracked| tracked.close_minute(passed)).collect();
        let since = std::mem::replace(&mut self.since, at);
        Minute { since, interfaces, records_lost: span.records_lost, standstill }
    }

    fn open_sensor_span(&self) -> SensorSpan {
        SensorSpan {
            records_lost: self.lost - self.lost_minute,
            longest_standstill_ms: u64::try_from(self.standstill.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The last `minutes` whole minutes and this one: of an interface.
    pub(super) fn span(&self, tracked: &Tracked, minutes: usize) -> Span {
        tracked.span(minutes, self.passed)
    }

    /// The same of the sensor.
    pub(super) fn sensor_span(&self, minutes: usize) -> SensorSpan {
        self.history.iter().rev().take(minutes).fold(self.open_sensor_span(), |sum, minute| SensorSpan {
            records_lost: sum.records_lost + minute.records_lost,
            longest_standstill_ms: sum.longest_standstill_ms.max(minute.longest_standstill_ms),
        })
    }
}

/// How often the daemon looks.
pub(super) const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(seconds: u64, packets: u64, link: LinkState) -> (Timestamp, Vec<Totals>) {
        let totals = Totals { link, packets, octets: 100 * packets, dropped_kernel: Some(0), ..Totals::default() };
        (Timestamp::from_secs(1000 + seconds), vec![totals])
    }

    fn coverage() -> Coverage {
        Coverage::new(&["wan0".into()], Timestamp::from_secs(1000))
    }

    #[test]
    fn a_gap_is_where_nothing_came_or_the_link_was_not_up() {
        let mut coverage = coverage();
        let mut changes = Vec::new();
        // Packets for 10 s, none for 20 s, of which the link is down for 5 s, then packets again.
        for second in 1..=60_u64 {
            let link = if (15..20).contains(&second) { LinkState::Down } else { LinkState::Up };
            let packets = if second <= 10 { second } else { second.saturating_sub(20).max(10) };
            let (at, totals) = after(second, packets, link);
            changes.extend(
                coverage.tick(at, SECOND, totals, 0, Duration::ZERO).into_iter().map(|change| (second, change.now)),
            );
        }
        assert_eq!(changes, [(15, LinkState::Down), (20, LinkState::Up)]);
        assert!(coverage.is_due());
        let minute = coverage.close_minute(Timestamp::from_secs(1060));
        let wan = &minute.interfaces[0];
        assert_eq!((wan.packets, wan.octets, wan.without_link_seconds, wan.longest_silence_seconds), (40, 4000, 5, 20));
        assert_eq!(minute.since, Timestamp::from_secs(1000));
        assert!(!coverage.is_due());
        let span = coverage.span(&coverage.interfaces[0], HOUR);
        assert_eq!((span.seconds, span.packets, span.without_link_seconds), (60, 40, 5));
    }

    #[test]
    fn an_hour_forgets_what_a_day_remembers() {
        let mut coverage = coverage();
        for minute in 0..120_u64 {
            let (at, mut totals) = after(60 * minute, minute, LinkState::Up);
            totals[0].dropped_kernel = Some(u64::from(minute >= 1) * 7);
            coverage.tick(at, 60 * SECOND, totals, if minute >= 1 { 3 } else { 0 }, Duration::ZERO);
            coverage.close_minute(at);
        }
        let wan = &coverage.interfaces[0];
        assert_eq!(coverage.span(wan, HOUR).dropped_kernel, 0);
        assert_eq!(coverage.span(wan, DAY).dropped_kernel, 7);
        assert_eq!((coverage.sensor_span(HOUR).records_lost, coverage.sensor_span(DAY).records_lost), (0, 3));
        for minute in 120..(3 * DAY as u64) {
            let (at, totals) = after(60 * minute, minute, LinkState::Up);
            coverage.tick(at, 60 * SECOND, totals, 3, Duration::ZERO);
            coverage.close_minute(at);
        }
        assert_eq!(coverage.interfaces[0].history.len(), DAY, "bounded");
        assert_eq!(coverage.span(&coverage.interfaces[0], DAY).seconds, DAY as u64 * 60);
    }

    #[test]
    fn a_daemon_that_stood_still_knows_it() {
        let mut coverage = coverage();
        let (at, totals) = after(1, 1, LinkState::Up);
        coverage.tick(at, SECOND, totals.clone(), 0, Duration::from_millis(80));
        coverage.tick(at, 31 * SECOND, totals, 0, Duration::ZERO);
        assert_eq!(coverage.sensor_span(HOUR).longest_standstill_ms, 30_000);
    }

    #[test]
    fn what_is_no_ip_is_not_unreadable() {
        let mut totals = Totals::default();
        totals.undecodable[ParseError::NotIp as usize] = 5;
        totals.undecodable[ParseError::BadTransport as usize] = 2;
        assert_eq!(totals.unreadable(), 2);
        assert_eq!(totals.by_reason().len(), 2);
    }
}
