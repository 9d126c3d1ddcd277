//! Turns steps at chosen rates into the highest rate at which nothing was dropped, in a bounded number of steps.

use std::time::Duration;

use super::report::{Found, Step};

/// Steps that halve what is left, at most.
const HALVINGS: usize = 7;
/// Close enough: the lowest rate that dropped, to the highest that did not.
const CLOSE: f64 = 1.03;
/// What was found must hold for so many times a step.
const CONFIRM: u32 = 3;
/// Where it does not hold, it is lowered by this, at most so many times.
const LOWER: f64 = 0.95;
const LOWERINGS: usize = 3;
/// A search that lowers nothing takes so many times a step.
const STEPS: u32 = 1 + HALVINGS as u32 + CONFIRM;
const SHORTEST: Duration = Duration::from_millis(100);

/// First as many packets as go, then halving between what holds and what does not; what is left is held for longer.
pub(super) fn search(
    budget: Duration,
    mut run: impl FnMut(Option<f64>, Duration) -> anyhow::Result<Step>,
) -> anyhow::Result<Found> {
    let unit = (budget / STEPS).max(SHORTEST);
    let mut steps = vec![run(None, unit)?];
    if steps.iter().all(Step::is_held) {
        steps.push(run(None, unit * CONFIRM)?);
        if steps.iter().all(Step::is_held) {
            return Ok(Found { highest: Some(steps.len() - 1), steps, sender_is_the_limit: true });
        }
    }
    let flood = steps.last().map(|step| (step.sent_per_second, step.received_per_second));
    let (mut low, (mut high, got)) = (0.0, flood.unwrap_or_default());
    // What got through a flood is near what holds.
    let mut next = if got < 1.0 { high / 2.0 } else { got.min(high * 0.98) };
    for _ in 0..HALVINGS {
        let step = run(Some(next), unit)?;
        if step.is_held() {
            // A sender that cannot follow proves no more than it sent.
            low = step.sent_per_second.min(next);
        } else {
            high = next;
        }
        steps.push(step);
        if high / low <= CLOSE {
            break;
        }
        next = if low == 0.0 { high / 2.0 } else { f64::midpoint(low, high) };
    }
    for _ in 0..=LOWERINGS {
        if low < 1.0 {
            break;
        }
        let step = run(Some(low), unit * CONFIRM)?;
        let is_held = step.is_held();
        steps.push(step);
        if is_held {
            return Ok(Found { highest: Some(steps.len() - 1), steps, sender_is_the_limit: false });
        }
        low *= LOWER;
    }
    // Nothing was confirmed: the best of what was seen.
    let held = steps.iter().enumerate().filter(|(_, step)| step.is_held());
    let best = held.max_by(|(_, one), (_, other)| one.sent_per_second.total_cmp(&other.sent_per_second));
    Ok(Found { highest: best.map(|(place, _)| place), steps, sender_is_the_limit: false })
}

#[cfg(test)]
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
            let found = search(Duration::from_mins(1), link(capacity)).unwrap();
            let rate = found.highest().unwrap().sent_per_second;
            assert!(rate <= capacity && rate > capacity * 0.9, "{rate} of {capacity}");
            assert!(!found.sender_is_the_limit);
            assert!(found.steps.len() < 20, "{}", found.steps.len());
        }
    }

    #[test]
    fn says_when_the_sender_is_the_limit() {
        let found = search(Duration::from_mins(1), link(3e6)).unwrap();
        assert!(found.sender_is_the_limit);
        assert!(found.highest().unwrap().sent_per_second > 1_999_999.0);
    }

    #[test]
    fn a_receiver_that_gets_nothing_ends_the_search() {
        let found = search(Duration::from_mins(1), link(0.0)).unwrap();
        assert!(found.highest().is_none());
    }
}
