//! Turns a flow's running totals into octets by time: what came between two records is spread evenly over the time between
//! them, and what of it lies in the range counts.

use std::time::Duration;

use crate::time::Timestamp;

/// A range of time, its end not in it, cut into slots of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its first moment.
    pub from: Timestamp,
    /// The first moment behind it.
    pub to: Timestamp,
    /// Seconds of a slot; a day is a whole number of them.
    slot: u64,
}

/// Seconds of a day.
const DAY: u64 = 86_400;
/// Lengths of slots, seconds.
const SLOTS: [u64; 7] = [300, 900, 1800, 3600, 4 * 3600, 12 * 3600, DAY];
/// More slots are not held: a month of five minutes.
const MOST_SLOTS: u64 = 31 * DAY / 300 + 1;
/// A period is no longer, days.
pub const LONGEST: u64 = 3660;

/// Octets each way.
pub(super) type Ways = [u64; 2];

impl Period {
    /// From a time to a later one, no more than [`LONGEST`] days.
    #[must_use]
    pub fn new(from: Timestamp, to: Timestamp) -> Self {
        let seconds = to.since(from).as_secs();
        let slot = SLOTS.into_iter().find(|slot| seconds / slot < MOST_SLOTS).unwrap_or(DAY);
        Self { from, to, slot }
    }

    /// How long a slot is.
    #[must_use]
    pub const fn slot(&self) -> Duration {
        Duration::from_secs(self.slot)
    }

    /// How long it is.
    #[must_use]
    pub const fn length(&self) -> Duration {
        self.to.since(self.from)
    }

    /// Number of the slot that a time lies in, since the epoch.
    const fn slot_of(&self, at: Timestamp) -> u64 {
        at.as_secs() / self.slot
    }

    /// A slot's number, counted from that of the period's first moment.
    pub(super) const fn index(&self, slot: u64) -> usize {
        slot.saturating_sub(self.slot_of(self.from)) as usize
    }

    /// Where a slot, counted from that of the period's first moment, begins.
    pub(super) const fn begins(&self, index: usize) -> Timestamp {
        Timestamp::from_secs((self.slot_of(self.from) + index as u64).saturating_mul(self.slot))
    }

    /// The day of a slot, since the epoch.
    pub(super) const fn day_of(&self, slot: u64) -> u64 {
        slot * self.slot / DAY
    }

    const fn holds(&self, at: Timestamp) -> bool {
        self.from.as_nanos() <= at.as_nanos() && at.as_nanos() < self.to.as_nanos()
    }

    /// The part of a span that lies in the period.
    pub(super) fn clip(&self, from: Timestamp, to: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let (from, to) = (from.max(self.from), to.min(self.to));
        (from < to).then_some((from, to))
    }

    /// The octets between two running totals that lie in the period, by slot since the epoch.
    fn spread(
        &self,
        (begin, before): (Timestamp, Ways),
        (end, after): (Timestamp, Ways),
        mut put: impl FnMut(u64, Ways),
    ) {
        let grown = |way: usize| {
            let [before, after] = [before, after].map(|ways| ways.get(way).copied().unwrap_or(0));
            after.saturating_sub(before)
        };
        let grown = [grown(0), grown(1)];
        if grown == [0, 0] {
            return;
        }
        if begin >= end {
            if self.holds(end) {
                put(self.slot_of(end), grown);
            }
            return;
        }
        let Some((mut at, last)) = self.clip(begin, end) else { return };
        let whole = u128::from(end.as_nanos() - begin.as_nanos());
        // What had come by a time: differences of it add up to all of it, however it is cut.
        let come = |by: Timestamp| {
            grown.map(|octets| {
                let part = u128::from(octets) * u128::from(by.as_nanos() - begin.as_nanos()) / whole;
                u64::try_from(part).unwrap_or(u64::MAX)
            })
        };
        let mut come_before = come(at);
        while at < last {
            let slot = self.slot_of(at);
            let next = Timestamp::from_secs((slot + 1).saturating_mul(self.slot)).min(last);
            let come_now = come(next);
            put(slot, [come_now[0] - come_before[0], come_now[1] - come_before[1]]);
            (at, come_before) = (next, come_now);
        }
    }

    /// What of a flow that sent so much in this time lies in the period.
    pub(super) fn share(&self, start: Timestamp, end: Timestamp, octets: u64) -> u64 {
        let mut sum = 0;
        self.spread((start, [0; 2]), (end, [octets, 0]), |_, [octets, _]| sum += octets);
        sum
    }
}

/// A flow's running totals by its records, as far as the period needs them: two a slot at most.
#[derive(Debug)]
pub(super) struct Course(Vec<(Timestamp, Ways)>);

impl Course {
    /// Nothing had come when the flow began.
    pub(super) fn new(start: Timestamp) -> Self {
        Self(vec![(start, [0; 2])])
    }

    /// A record says how much had come by then.
    pub(super) fn push(&mut self, period: &Period, at: Timestamp, octets: Ways) {
        let Some((last, before)) = self.0.last().copied() else { return };
        // Totals grow. Where they do not, the latest is right.
        if octets[0] < before[0] || octets[1] < before[1] {
            self.0.iter_mut().for_each(|(_, held)| *held = [held[0].min(octets[0]), held[1].min(octets[1])]);
        }
        if last >= period.to {
            return;
        }
        // Records of a flow come in the order of time; whatever does not is taken as come at once.
        let at = at.max(last);
        let point = (at, octets);
        if at < period.from {
            self.0.clear();
        } else if let [.., (one, _), (_, _)] = self.0.as_slice()
            && *one >= period.from
            && at < period.to
            && period.slot_of(*one) == period.slot_of(at)
        {
            // Between two times of one slot nothing depends on the time.
            self.0.pop();
        }
        self.0.push(point);
    }

    /// Octets by slot since the epoch.
    pub(super) fn spread(&self, period: &Period, mut put: impl FnMut(u64, Ways)) {
        for pair in self.0.windows(2) {
            if let [before, after] = pair {
                period.spread(*before, *after, &mut put);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + seconds)
    }

    #[test]
    fn a_longer_period_has_longer_slots() {
        let slot = |days: u64| Period::new(at(0), at(days * DAY)).slot().as_secs();
        assert_eq!([1, 31, 32, 90, 400, LONGEST].map(slot), [300, 300, 900, 900, 3600 * 4, 3600 * 12]);
    }

    #[test]
    fn what_lies_outside_counts_by_its_share() {
        // 1000 octets over 100 s, of which 30 s lie in the period.
        let period = Period::new(at(70), at(3600));
        assert_eq!(period.share(at(0), at(100), 1000), 300);
        assert_eq!(period.share(at(0), at(70), 1000), 0);
        assert_eq!(period.share(at(70), at(70), 1000), 1000);
        assert_eq!(period.share(at(3600), at(3600), 1000), 0);
        assert_eq!(period.share(at(3590), at(3610), 1000), 500);
    }

    proptest! {
        /// Whatever is left out of the course, octets by slot are those of the whole of it; and all of them together are
        /// the flow's, where it lies in the period.
        #[test]
        fn a_course_keeps_what_the_period_needs(
            from in 0..2000_u64,
            length in 1..4000_u64,
            steps in prop::collection::vec((0..400_u64, 0..5000_u64, 0..5000_u64), 1..40),
        ) {
            let period = Period::new(at(from), at(from + length));
            let mut course = Course::new(at(0));
            let mut all = vec![(at(0), [0, 0])];
            let (mut now, mut octets) = (0, [0, 0]);
            for (seconds, forward, back) in steps {
                now += seconds;
                // Now and then less than before.
                octets = if forward < 100 { [octets[0] / 2, octets[1]] } else { [octets[0] + forward, octets[1] + back] };
                all.iter_mut().for_each(|(_, held): &mut (_, Ways)| *held = [held[0].min(octets[0]), held[1].min(octets[1])]);
                course.push(&period, at(now), octets);
                all.push((at(now), octets));
            }
            let sums = |course: &Course| {
                let mut sums = std::collections::BTreeMap::new();
                course.spread(&period, |slot, ways| {
                    let sum: &mut Ways = sums.entry(slot).or_default();
                    *sum = [sum[0] + ways[0], sum[1] + ways[1]];
                });
                sums.retain(|_, sum| *sum != [0, 0]);
                sums
            };
            let whole = Course(all);
            prop_assert_eq!(sums(&course), sums(&whole));
            let everything = Period::new(at(0), at(now + 1));
            let mut sum = [0, 0];
            whole.spread(&everything, |_, ways| sum = [sum[0] + ways[0], sum[1] + ways[1]]);
            prop_assert_eq!(sum, octets);
        }
    }
}
