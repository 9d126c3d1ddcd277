//! Holds the wall clock, which anybody who may can set, to a clock that nobody sets: after a step it is not believed for a day.

use std::time::Duration;

use crate::time::Timestamp;

/// Both clocks, as they were when they were looked at.
#[derive(Clone, Debug)]
pub struct Clocks {
    wall: Timestamp,
    steady: Duration,
    /// Where both were when they were last held to each other.
    held: (Timestamp, Duration),
    /// The wall clock is not believed before the other one is there.
    doubted_until: Duration,
}

/// The wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it would be.
    pub expected: Timestamp,
    /// What it is.
    pub now: Timestamp,
}

/// What a clock that is disciplined does not exceed from one hold to the next.
const TOLERANCE: Duration = Duration::from_mins(5);
/// Slow drift does not add up beyond this.
const HOLD: Duration = Duration::from_hours(1);
/// So long is a clock that was set not believed.
const DOUBT: Duration = Duration::from_hours(24);

impl Clocks {
    /// The steady one begins at zero; `last` is what the wall clock is known to have been before.
    #[must_use]
    pub fn new(wall: Timestamp, last: Option<Timestamp>) -> Self {
        let is_doubted = last.is_some_and(|last| wall.since(last) > DOUBT);
        let doubted_until = if is_doubted { DOUBT } else { Duration::ZERO };
        Self { wall, steady: Duration::ZERO, held: (wall, Duration::ZERO), doubted_until }
    }

    /// Looks at both, at the same moment.
    pub fn look(&mut self, wall: Timestamp, steady: Duration) -> Option<Step> {
        (self.wall, self.steady) = (wall, steady);
        let passed = steady.saturating_sub(self.held.1);
        let expected = self.held.0 + passed;
        let is_step = wall.since(expected).max(expected.since(wall)) > TOLERANCE;
        if is_step {
            self.doubted_until = steady + DOUBT;
        }
        if is_step || passed >= HOLD {
            self.held = (wall, steady);
        }
        is_step.then_some(Step { expected, now: wall })
    }

    /// What the wall clock says.
    #[must_use]
    pub const fn wall(&self) -> Timestamp {
        self.wall
    }

    /// What the other one says.
    #[must_use]
    pub const fn steady(&self) -> Duration {
        self.steady
    }

    /// What the wall clock says, where it is believed.
    #[must_use]
    pub fn believed(&self) -> Option<Timestamp> {
        (self.steady >= self.doubted_until).then_some(self.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn a_clock_that_was_set_is_not_believed_for_a_day() {
        let (start, wall) = (1_700_000_000, Timestamp::from_secs);
        let mut clocks = Clocks::new(wall(start), None);
        let mut look =
            |wall: u64, steady: u64| clocks.look(Timestamp::from_secs(start + wall), Duration::from_secs(steady));
        assert_eq!(look(100, 100), None);
        // It goes three minutes wrong in an hour, again and again.
        (1..48_u64).for_each(|hour| assert_eq!(look(hour * 3780, hour * 3600), None, "hour {hour}"));
        let (at, steady) = (47 * 3780, 47 * 3600);
        let step = look(at + 500 * DAY, steady + 1).unwrap();
        assert_eq!((step.expected, step.now), (wall(start + at + 1), wall(start + at + 500 * DAY)));
        assert_eq!(look(at + 500 * DAY + 10, steady + 11), None, "it is said once");
        assert_eq!(clocks.believed(), None);
        let mut hours = |from: u64| {
            (from..from + 24)
                .filter(|hour| {
                    let passed = 3600 * hour;
                    clocks.look(wall(start + at + 500 * DAY + passed), Duration::from_secs(steady + 1 + passed));
                    clocks.believed().is_some()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(hours(1), [24]);
        // Back is a step, too.
        assert!(clocks.look(wall(start), Duration::from_secs(steady + 30 * 3600)).is_some());
        assert_eq!(clocks.believed(), None);
    }

    #[test]
    fn a_clock_that_nobody_saw_for_a_day_is_not_believed_at_the_start() {
        let last = Timestamp::from_secs(1_700_000_000);
        assert!(Clocks::new(last + Duration::from_hours(23), Some(last)).believed().is_some());
        assert!(Clocks::new(last + Duration::from_hours(25), Some(last)).believed().is_none());
    }
}
