//! Turns what sensors said of themselves into what they covered of the range, and where a gap is.
//!
//! A minute that touches the range counts whole; the time that it covers is cut at the range's ends. What lies between two
//! minutes of an interface is a gap, and what was said between them tells why.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::coverage::{Gap, Interface, Sensor, Why};
use super::period::Period;
use crate::sink::sensor::{
    Coverage as Minute, ENOUGH_FLOWS, ENOUGH_PACKETS, InterfaceCoverage, ONE_WAY, SILENT, STANDSTILL, SensorEvent,
    Start, UNREADABLE, What,
};
use crate::time::Timestamp;
use crate::wire::ParseError;

/// Gaps that are listed.
pub const MOST_GAPS: usize = 10_000;
/// Minutes of one run that are so close have nothing between them.
const CLOSE: Duration = Duration::from_secs(2);
/// The minute that is running is told when it is over.
const RUNNING: Duration = Duration::from_mins(2);

/// How the run before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Never,
    Still,
    As(Why),
}

/// One sensor's events so far.
#[derive(Debug)]
pub(super) struct Tracker {
    period: Period,
    sensor: Sensor,
    /// How the latest run ended, if it did.
    ended: Ended,
    /// Why there is a hole before this run.
    before: Why,
    started: Option<Timestamp>,
    seq: u64,
    interfaces: Vec<Tracked>,
    places: HashMap<Arc<str>, usize>,
    /// What is amiss in the latest minute, of an interface or of all.
    amiss: BTreeMap<(Option<usize>, Why), Gap>,
    gaps: Vec<Gap>,
    /// Events that are missing by their numbers.
    pub events_lost: u64,
}

#[derive(Debug)]
struct Tracked {
    sums: Interface,
    covered: Duration,
    covered_to: Option<Timestamp>,
    is_uncounted: bool,
}

impl Tracker {
    pub(super) fn new(period: Period, name: &Arc<str>) -> Self {
        let sensor = Sensor {
            sensor: Arc::clone(name),
            program_version: None,
            settings_sha256: None,
            starts: 0,
            records_written: 0,
            records_lost: 0,
            longest_standstill_seconds: 0,
            interfaces: Vec::new(),
        };
        Self {
            period,
            sensor,
            ended: Ended::Never,
            before: Why::NothingBefore,
            started: None,
            seq: 0,
            interfaces: Vec::new(),
            places: HashMap::new(),
            amiss: BTreeMap::new(),
            gaps: Vec::new(),
            events_lost: 0,
        }
    }

    /// Takes an event; they come in the order in which they were said.
    pub(super) fn take(&mut self, event: &SensorEvent) {
        if event.time >= self.period.to && !matches!(event.what, What::Coverage(_)) {
            return;
        }
        let is_start = matches!(event.what, What::Start(_));
        if !is_start
            && event.seq > self.seq.saturating_add(1)
            && self.seq > 0
            && self.period.clip(event.time, event.time + CLOSE).is_some()
        {
            add(&mut self.events_lost, event.seq - self.seq - 1);
        }
        self.seq = event.seq;
        match &event.what {
            What::Start(start) => self.start(event.time, start),
            What::Coverage(minute) => self.minute(event.time, minute),
            What::Stop(stop) => self.ended = Ended::As(if stop.clean { Why::Stopped } else { Why::Failed }),
            What::Policy(_) | What::ReloadFailed(_) | What::Interface(_) | What::Expiry(_) | What::LogBreak(_) => {}
        }
    }

    fn start(&mut self, at: Timestamp, start: &Start) {
        self.before = match self.ended {
            Ended::Never => Why::NothingBefore,
            Ended::Still => Why::Killed,
            Ended::As(why) => why,
        };
        (self.ended, self.started) = (Ended::Still, Some(at));
        self.sensor.program_version = Some(start.program_version.clone());
        self.sensor.settings_sha256 = Some(start.settings_sha256.clone());
        self.sensor.starts += u64::from(at >= self.period.from);
        for name in &start.interfaces {
            self.place(name);
        }
    }

    fn place(&mut self, name: &Arc<str>) -> usize {
        *self.places.entry(Arc::clone(name)).or_insert_with(|| {
            let sums = Interface { interface: Arc::clone(name), ..Interface::default() };
            self.interfaces.push(Tracked { sums, covered: Duration::ZERO, covered_to: None, is_uncounted: false });
            self.interfaces.len() - 1
        })
    }

    fn minute(&mut self, to: Timestamp, minute: &Minute) {
        if minute.since >= self.period.to {
            return;
        }
        if self.ended == Ended::Never {
            self.ended = Ended::Still;
        }
        let span = self.period.clip(minute.since, to);
        let latest = self.latest();
        for of in &minute.interfaces {
            let place = self.place(&of.interface);
            self.hole(place, latest, minute.since);
            let Some(tracked) = self.interfaces.get_mut(place) else { continue };
            tracked.covered_to = Some(to);
            if let Some((from, until)) = span {
                tracked.add(of, until.since(from), to.since(minute.since));
                let amiss = [
                    (Why::Link, of.without_link_seconds, of.without_link_seconds > 0),
                    (Why::Drops, of.dropped_kernel.unwrap_or(0).saturating_add(of.dropped_nic), true),
                    (Why::Silence, of.longest_silence_seconds, of.longest_silence_seconds >= SILENT.as_secs()),
                ];
                for (why, amount, is_amiss) in amiss {
                    self.note(Some(place), why, (minute.since, to), amount, is_amiss && amount > 0);
                }
            }
        }
        if span.is_some() {
            let still = Duration::from_nanos(minute.worker_lag_ns);
            add(&mut self.sensor.records_written, minute.records_written);
            add(&mut self.sensor.records_lost, minute.records_lost);
            self.sensor.longest_standstill_seconds = self.sensor.longest_standstill_seconds.max(still.as_secs());
            let lost = minute.records_lost;
            self.note(None, Why::RecordsLost, (minute.since, to), lost, lost > 0);
            self.note(None, Why::Standstill, (minute.since, to), still.as_secs(), still >= STANDSTILL);
        }
    }

    /// Something may be amiss in a minute, as it was in the one before.
    fn note(
        &mut self,
        place: Option<usize>,
        why: Why,
        (from, to): (Timestamp, Timestamp),
        amount: u64,
        is_amiss: bool,
    ) {
        let before = self.amiss.remove(&(place, why));
        if !is_amiss {
            self.gaps.extend(before);
            return;
        }
        // A silence is told with its whole length, however many minutes it lasts.
        let is_longest = matches!(why, Why::Silence | Why::Standstill);
        let begins = if why == Why::Silence { from.min(back(to, amount)).max(self.period.from) } else { from };
        let gap = match before {
            Some(gap) if from.since(gap.to) <= CLOSE => {
                let so_far = gap.amount.unwrap_or(0);
                Gap {
                    to,
                    amount: Some(if is_longest { so_far.max(amount) } else { so_far.saturating_add(amount) }),
                    ..gap
                }
            }
            before => {
                self.gaps.extend(before);
                self.gap(place, begins, to, why, Some(amount))
            }
        };
        self.amiss.insert((place, why), gap);
    }

    fn gap(&self, place: Option<usize>, from: Timestamp, to: Timestamp, why: Why, amount: Option<u64>) -> Gap {
        let interface = place.and_then(|place| self.interfaces.get(place));
        Gap {
            sensor: Arc::clone(&self.sensor.sensor),
            interfaces: interface.into_iter().map(|tracked| Arc::clone(&tracked.sums.interface)).collect(),
            from: from.max(self.period.from),
            to: to.min(self.period.to),
            why,
            meaning: why.meaning(),
            amount,
        }
    }

    /// Until when any interface was covered.
    fn latest(&self) -> Option<Timestamp> {
        self.interfaces.iter().filter_map(|tracked| tracked.covered_to).max()
    }

    /// What lies between the latest minute of an interface and this time; `latest` is the latest of any.
    fn hole(&mut self, place: usize, latest: Option<Timestamp>, until: Timestamp) {
        let Some(tracked) = self.interfaces.get_mut(place) else { return };
        let is_new_run =
            self.started.is_some_and(|started| tracked.covered_to.is_none_or(|covered| started >= covered));
        let (from, why) = match tracked.covered_to {
            None if latest.is_some() => (Timestamp::ZERO, Why::NotCaptured),
            None => (Timestamp::ZERO, self.before),
            Some(covered) if latest.is_some_and(|latest| latest > covered + CLOSE) => (covered, Why::NotCaptured),
            Some(covered) if is_new_run => (covered, self.before),
            Some(covered) if until.since(covered) > CLOSE => (covered, Why::EventsLost),
            Some(covered) => {
                let between = self.period.clip(covered, until);
                tracked.covered += between.map_or(Duration::ZERO, |(from, to)| to.since(from));
                return;
            }
        };
        if let Some((from, to)) = self.period.clip(from, until) {
            self.gaps.push(self.gap(Some(place), from, to, why, None));
        }
    }

    /// The sensor, its gaps, and what speaks against its evidence. `made`: when the report is made.
    pub(super) fn finish(mut self, made: Timestamp) -> (Sensor, Vec<Gap>, Vec<String>) {
        let to = self.period.to;
        let latest = self.latest();
        for place in 0..self.interfaces.len() {
            let Some(tracked) = self.interfaces.get(place) else { continue };
            let covered_to = tracked.covered_to;
            let from = covered_to.unwrap_or(Timestamp::ZERO).max(self.period.from);
            let why = match self.ended {
                // Others were captured up to then.
                _ if latest.is_some_and(|latest| covered_to.is_none_or(|covered| covered + CLOSE < latest.min(to))) => {
                    Why::NotCaptured
                }
                Ended::As(why) => why,
                Ended::Never | Ended::Still => Why::NothingAfter,
            };
            let is_running = why == Why::NothingAfter && made.since(from) <= RUNNING && covered_to.is_some();
            let asked = if is_running { from.min(to).since(self.period.from) } else { self.period.length() };
            if from < to && !is_running {
                self.gaps.push(self.gap(Some(place), from, to, why, None));
            }
            if let Some(tracked) = self.interfaces.get_mut(place) {
                tracked.finish(asked);
            }
        }
        self.gaps.extend(std::mem::take(&mut self.amiss).into_values());
        self.holes();
        let doubts = self.doubts();
        let gaps = together(self.gaps, self.interfaces.len());
        self.sensor.interfaces = self.interfaces.into_iter().map(|tracked| tracked.sums).collect();
        (self.sensor, gaps, doubts)
    }

    /// Where the timeline of each interface is broken.
    fn holes(&mut self) {
        let whole = self.period.length().as_secs_f64().max(f64::MIN_POSITIVE);
        for gap in self.gaps.iter().filter(|gap| gap.why.is_hole() || gap.why == Why::Link) {
            let at = |time: Timestamp| time.since(self.period.from).as_secs_f64() / whole;
            for name in &gap.interfaces {
                let tracked = self.places.get(name).and_then(|place| self.interfaces.get_mut(*place));
                tracked.into_iter().for_each(|tracked| tracked.sums.holes.push((at(gap.from), at(gap.to))));
            }
        }
    }

    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for tracked in &self.interfaces {
            let of = &tracked.sums;
            let mut doubt = |what: String| doubts.push(format!("{} of {}: {what}", of.interface, self.sensor.sensor));
            let missing = of.asked_seconds - of.covered_seconds;
            if missing > 0.0 {
                doubt(format!("not covered for {} of the range", length(missing)));
            }
            if of.without_link_seconds > 0 {
                doubt(format!("the link was not up for {} s", of.without_link_seconds));
            }
            let dropped = of.dropped_kernel.unwrap_or(0);
            if dropped > 0 {
                doubt(format!("the kernel dropped {dropped} packets"));
            }
            if of.dropped_nic > 0 {
                doubt(format!("the NIC missed {} packets", of.dropped_nic));
            }
            if tracked.is_uncounted && of.packets > 0 {
                doubt("nobody counts what the kernel drops (capture.backend = \"pnet\")".to_owned());
            }
            if of.longest_silence_seconds >= SILENT.as_secs() {
                doubt(format!("no packet for {} s", of.longest_silence_seconds));
            }
            if of.flows_ended >= ENOUGH_FLOWS && of.one_way_share.is_some_and(|share| share > ONE_WAY) {
                doubt("nearly all flows show one direction only: half of the link seems to be missing".to_owned());
            }
            if of.packets >= ENOUGH_PACKETS && of.unreadable_share.is_some_and(|share| share > UNREADABLE) {
                doubt("more than a hundredth of the packets could not be read".to_owned());
            }
        }
        let mut doubt = |what: String| doubts.push(format!("{}: {what}", self.sensor.sensor));
        if self.interfaces.is_empty() {
            doubt("captured no interface in the range".to_owned());
        }
        if self.sensor.records_lost > 0 {
            doubt(format!("{} records were lost", self.sensor.records_lost));
        }
        if self.sensor.longest_standstill_seconds >= STANDSTILL.as_secs() {
            doubt(format!("stood still for {} s", self.sensor.longest_standstill_seconds));
        }
        if self.events_lost > 0 {
            doubt(format!("{} events of what it says of itself are missing", self.events_lost));
        }
        doubts
    }
}

/// Counts of a log that somebody made up are no reason to fail.
const fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// So many seconds before.
const fn back(at: Timestamp, seconds: u64) -> Timestamp {
    Timestamp::from_nanos(at.as_nanos().saturating_sub(seconds.saturating_mul(1_000_000_000)))
}

/// A length of time for people.
fn length(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds).map_or(0, |length| length.as_secs()) {
        0..120 => format!("{seconds:.1} s"),
        whole @ 120..7200 => format!("{} min", whole / 60),
        whole => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share, told with a few digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Tracked {
    /// Adds a minute, of which `counts` lie in the range.
    fn add(&mut self, of: &InterfaceCoverage, counts: Duration, minute: Duration) {
        // Where the link was down in a minute that the range cuts nobody knows: it counts in proportion.
        let without = Duration::from_secs(of.without_link_seconds).min(minute);
        let without = if counts == minute || minute.is_zero() {
            without
        } else {
            without.mul_f64(counts.as_secs_f64() / minute.as_secs_f64())
        };
        self.covered += counts.saturating_sub(without);
        let sums = &mut self.sums;
        match of.dropped_kernel {
            Some(dropped) => add(sums.dropped_kernel.get_or_insert(0), dropped),
            None => self.is_uncounted = true,
        }
        let not_ip = of.undecodable.get(ParseError::NotIp.reason()).copied().unwrap_or(0);
        let undecodable = of.undecodable.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
        for (sum, more) in [
            (&mut sums.packets, of.packets),
            (&mut sums.octets, of.octets),
            (&mut sums.dropped_nic, of.dropped_nic),
            (&mut sums.not_ip, not_ip),
            (&mut sums.unreadable, undecodable.saturating_sub(not_ip)),
            (&mut sums.flows_ended, of.flows_ended),
            (&mut sums.flows_one_way, of.flows_one_way),
            (&mut sums.without_link_seconds, of.without_link_seconds),
        ] {
            add(sum, more);
        }
        sums.longest_silence_seconds = sums.longest_silence_seconds.max(of.longest_silence_seconds);
    }

    fn finish(&mut self, asked: Duration) {
        let sums = &mut self.sums;
        sums.asked_seconds = asked.as_secs_f64();
        sums.covered_seconds = self.covered.min(asked).as_secs_f64();
        sums.covered_share = if asked.is_zero() { 0.0 } else { sums.covered_seconds / sums.asked_seconds };
        sums.unreadable_share = share(sums.unreadable, sums.packets);
        sums.one_way_share = share(sums.flows_one_way, sums.flows_ended);
    }
}

/// Gaps in the order of time; those that all interfaces share are one.
fn together(gaps: Vec<Gap>, interfaces: usize) -> Vec<Gap> {
    let mut by_place: BTreeMap<(Timestamp, Timestamp, Why), Gap> = BTreeMap::new();
    let mut apart = Vec::new();
    for gap in gaps {
        if !gap.why.is_hole() {
            apart.push(gap);
            continue;
        }
        match by_place.get_mut(&(gap.from, gap.to, gap.why)) {
            Some(known) => known.interfaces.extend(gap.interfaces),
            None => {
                by_place.insert((gap.from, gap.to, gap.why), gap);
            }
        }
    }
    let mut all: Vec<_> = by_place.into_values().chain(apart).collect();
    for gap in &mut all {
        if gap.interfaces.len() == interfaces {
            gap.interfaces.clear();
        }
    }
    all.sort_by_key(|gap| (gap.from, gap.to, gap.why));
    all
}
