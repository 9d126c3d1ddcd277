//! Turns figures into charts: SVG in the page itself, told apart without colour.

use maud::{Markup, html};

use super::text::{octets, percent, rate, time};
use crate::store::report::{Day, Gap, Head, Interface, Peak};
use crate::time::Timestamp;

const DAY: u64 = 86_400;
/// Bars of more days have no texts of their own.
const TOLD: u64 = 100;
/// Stretches of a timeline that are drawn.
const DRAWN: usize = 500;

/// Width of a chart of days, in its own units, without the scale on its left.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 90.0;
const LEFT: f64 = 58.0;

/// Octets by day: a bar a day of the range.
#[expect(clippy::cast_precision_loss, reason = "places in a picture")]
pub(super) fn days(head: &Head, days: &[Day]) -> Markup {
    let first = head.from.as_secs() / DAY;
    let last = (head.to.as_nanos().saturating_sub(1) / 1_000_000_000 / DAY).max(first);
    let all = last - first + 1;
    let most = days.iter().map(|day| day.octets).max().unwrap_or(0).max(1);
    let step = WIDTH / all as f64;
    let width = (step * 0.8).min(40.0);
    let bars = days.iter().filter(|day| (first..=last).contains(&day.number)).map(|day| {
        let height = (day.octets as f64 / most as f64 * HEIGHT).max(0.7);
        let left = LEFT + step * (day.number - first) as f64 + (step - width) / 2.0;
        (left, height, day)
    });
    let date = |day: u64| Timestamp::from_secs(day * DAY).to_string().get(..10).unwrap_or_default().to_owned();
    let mut marks = vec![(first, "start")];
    if all > 2 {
        marks.push((first + all / 2, "middle"));
    }
    if all > 1 {
        marks.push((last, "end"));
    }
    html! {
        svg.days viewBox={ "0 0 " (LEFT + WIDTH) " " (HEIGHT + 26.0) } role="img" aria-label="octets by day" {
            @for (share, label) in [(1.0, octets(most)), (0.5, octets(most / 2)), (0.0, "0".to_owned())] {
                @let y = 8.0 + HEIGHT * (1.0 - share);
                line.grid x1=(LEFT) x2=(LEFT + WIDTH) y1=(places(y)) y2=(places(y)) {}
                text x=(LEFT - 5.0) y=(places(y + 3.5)) text-anchor="end" { (label) }
            }
            @if all <= TOLD {
                @for (left, height, day) in bars {
                    rect.bar x=(places(left)) y=(places(8.0 + HEIGHT - height)) width=(places(width)) height=(places(height)) {
                        title { (day.day) ": " (octets(day.octets)) }
                    }
                }
            } @else {
                path.bars stroke-width=(places(width)) d={
                    @for (left, height, _) in bars {
                        "M" (places(left + width / 2.0)) " " (places(8.0 + HEIGHT)) "v-" (places(height))
                    }
                } {}
            }
            @for (day, anchor) in marks {
                @let at = match anchor { "start" => 0.0, "end" => all as f64, _ => (day - first) as f64 + 0.5 };
                text x=(places(LEFT + step * at)) y=(HEIGHT + 22.0) text-anchor=(anchor) { (date(day)) }
            }
        }
    }
}

/// One decimal is enough of a place.
fn places(value: f64) -> String {
    format!("{value:.1}")
}

/// The peak within the capacity.
pub(super) fn peak(peak: &Peak, capacity: u64, share: f64) -> Markup {
    // Where it is more, the scale goes up to the peak, and the capacity is marked.
    let scale = share.max(1.0);
    let (filled, limit) = (400.0 * share / scale, 400.0 / scale);
    html! {
        svg.peak viewBox="0 0 410 16" role="img" aria-label={ "peak " (percent(share)) " of the capacity" } {
            rect.room x="1" y="3" width="400" height="10" {}
            rect.bar x="1" y="3" width=(places(filled)) height="10" {
                title { (rate(peak.bits_per_second)) " from " (time(peak.from)) }
            }
            line.edge x1=(places(1.0 + limit)) x2=(places(1.0 + limit)) y1="0" y2="16" {}
            line.limit x1=(places(1.0 + limit)) x2=(places(1.0 + limit)) y1="0" y2="16" {
                title { "capacity " (rate(capacity)) }
            }
        }
    }
}

/// What of the range was covered: gaps are hatched.
pub(super) fn timeline(interface: &Interface) -> Markup {
    let mut holes: Vec<(f64, f64)> = Vec::new();
    for &(from, to) in &interface.holes {
        // As narrow as can still be seen; what touches is one.
        let (from, to) = (from * 1000.0, (to * 1000.0).max(from * 1000.0 + 1.5));
        match holes.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => holes.push((from, to)),
        }
    }
    html! {
        svg.timeline viewBox="0 0 1000 14" preserveAspectRatio="none" role="img"
            aria-label={ (percent(interface.covered_share)) " covered" } {
            rect.covered x="0" y="0" width="1000" height="14" {}
            @for (from, to) in holes.iter().take(DRAWN) {
                rect.hole x=(places(*from)) y="0" width=(places(to.min(1000.0) - from)) height="14" {}
            }
        }
    }
}

/// The pattern that gaps are hatched with, once a page.
pub(super) fn hatching() -> Markup {
    html! {
        svg.hidden width="0" height="0" aria-hidden="true" {
            defs {
                pattern id="hatching" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.blank width="6" height="6" {}
                    line.stroke x1="0" y1="0" x2="0" y2="6" {}
                }
            }
        }
    }
}

/// How long a gap is, seconds.
pub(super) fn seconds(gap: &Gap) -> f64 {
    gap.to.since(gap.from).as_secs_f64()
}
