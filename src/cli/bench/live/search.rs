//! Turns steps at chosen rates into the highest rate at which nothing was dropped, in bounded time.

use std::time::{Duration, Instant};

use super::report::{Found, Step};

/// Steps that a search needs, confirmation included, in units of one.
const STEPS: u32 = 12;
/// Close enough: the lowest rate that dropped, to the highest that did not.
const CLOSE: f64 = 1.03;
/// What was found must hold for so many times a step.
const CONFIRM: u32 = 3;
/// Where it does not hold, it is lowered by this.
const LOWER: f64 = 0.95;
const SHORTEST: Duration = Duration::from_millis(100);

/// First as many packets as go, then halving between what holds and what does not; what is left is held for longer.
pub(super) fn search(
    budget: Duration,
    clock: impl Fn() -> Instant,
    mut run: impl FnMut(Option<f64>, Duration) -> anyhow::Result<Step>,
) -> anyhow::Result<Found> {
    let unit = (budget / STEPS).max(SHORTEST);
    let begun = clock();
    let is_late = |share: Duration| clock().duration_since(begun) >= share;
    let mut steps = vec![run(None, unit)?];
    if steps.iter().all(Step::is_held) {
        steps.push(run(None, unit * CONFIRM)?);
        if steps.iter().all(Step::is_held) {
            return Ok(Found { highest: Some(steps.len() - 1), steps, sender_is_the_limit: true });
        }
    }
    // What got through a flood is near what holds.
    let flood = steps.last().map(|step| (step.sent_per_second, step.received_per_second));
    let (mut low, (mut high, got)) = (0.0, flood.unwrap_or_default());
    let mut next = got.min(high * 0.98);
    while high / low > CLOSE && !is_late(unit * 2 * (STEPS - CONFIRM)) && next >= 1.0 {
        let step = run(Some(next), unit)?;
        // A sender that cannot follow proves no more than it sent.
        if step.is_held() {
            low = step.sent_per_second.min(next)
        } else {
            high = next
        }
        steps.push(step);
        next = if low == 0.0 { high / 2.0 } else { f64::midpoint(low, high) };
    }
    while low >= 1.0 {
        let step = run(Some(low), unit * CONFIRM)?;
        let is_held = step.is_held();
        steps.push(step);
        if is_held {
            return Ok(Found { highest: Some(steps.len() - 1), steps, sender_is_the_limit: false });
        }
        if is_late(unit * 2 * STEPS) {
            break;
        }
        low *= LOWER;
    }
    // No time is left to confirm: the best of what was seen.
    let held = steps.iter().enumerate().filter(|(_, step)| step.is_held());
    let best = held.max_by(|(_, one), (_, other)| one.sent_per_second.total_cmp(&other.sent_per_second));
    Ok(Found { highest: best.map(|(place, _)| place), steps, sender_is_the_limit: false })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test of what is bounded in time")]
mod tests {
    use super::*;

    /// A sender of at most 2 M packets a second, and a receiver of `capacity`.
    fn link(capacity: f64) -> impl FnMut(Option<f64>, Duration) -> anyhow::Result<Step> {
        move |rate, duration| {
            let sent = rate.unwrap_or(2e6).min(2e6);
            Ok(Step::made_up(rate, sent, sent.min(capacity), duration.as_secs_f64()))
        }
    }

    #[test]
    fn finds_what_the_receiver_takes() {
        for capacity in [1_990_000.0, 1_000_000.0, 300_000.0, 5_000.0] {
            let found = search(Duration::from_secs(60), Instant::now, link(capacity)).unwrap();
            let rate = found.highest().unwrap().sent_per_second;
            assert!(rate <= capacity && rate > capacity * 0.9, "{rate} of {capacity}");
            assert!(!found.sender_is_the_limit);
            assert!(found.steps.len() < 20, "{}", found.steps.len());
        }
    }

    #[test]
    fn says_when_the_sender_is_the_limit() {
        let found = search(Duration::from_secs(60), Instant::now, link(3e6)).unwrap();
        assert!(found.sender_is_the_limit);
        assert_eq!(found.highest().unwrap().sent_per_second, 2e6);
    }

    #[test]
    fn a_receiver_that_gets_nothing_ends_the_search() {
        let found = search(Duration::from_secs(60), Instant::now, link(0.0)).unwrap();
        assert!(found.highest().is_none());
    }
}
