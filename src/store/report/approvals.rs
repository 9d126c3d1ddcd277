//! Turns the terms of an approval and its use into what an auditor asks of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::period::Period;
use super::usage::{MOST_PEERS, Use};
use crate::sink::sensor::ApprovalInForce;
use crate::time::Timestamp;

/// Peers that are named.
const NAMED_PEERS: usize = 20;

/// What is to be said of an approval. Those that call for a decision come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remark {
    /// It had ended, and flows went on that nothing else approves.
    ExpiredButUsed,
    /// It ends within 30 days of the range's end.
    #[serde(rename = "ends_within_30_days")]
    EndsWithin30Days,
    /// Within 60.
    #[serde(rename = "ends_within_60_days")]
    EndsWithin60Days,
    /// Within 90.
    #[serde(rename = "ends_within_90_days")]
    EndsWithin90Days,
    /// It ended before the range did.
    Expired,
    /// No flow of the range needed it.
    Unused,
    /// Nobody answers for it.
    WithoutOwner,
    /// Nobody says what it is needed for.
    WithoutNeed,
    /// No ticket, contract or circuit.
    WithoutReference,
    /// It begins behind the range's end.
    NotYetValid,
    /// It was in force in the range and is no more.
    Removed,
    /// Records name it, and the sensor's events do not hold it.
    OnlyInRecords,
}

impl Remark {
    /// All of them, in their order.
    pub const ALL: [Self; 12] = [
        Self::ExpiredButUsed,
        Self::EndsWithin30Days,
        Self::EndsWithin60Days,
        Self::EndsWithin90Days,
        Self::Expired,
        Self::Unused,
        Self::WithoutOwner,
        Self::WithoutNeed,
        Self::WithoutReference,
        Self::NotYetValid,
        Self::Removed,
        Self::OnlyInRecords,
    ];

    /// In words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::ExpiredButUsed => "expired but used",
            Self::EndsWithin30Days => "ends within 30 days",
            Self::EndsWithin60Days => "ends within 60 days",
            Self::EndsWithin90Days => "ends within 90 days",
            Self::Expired => "expired",
            Self::Unused => "unused in the range",
            Self::WithoutOwner => "without owner",
            Self::WithoutNeed => "without need",
            Self::WithoutReference => "without reference",
            Self::NotYetValid => "not yet valid",
            Self::Removed => "removed",
            Self::OnlyInRecords => "only known from records",
        }
    }
}

/// An approval and its use in the range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Approval {
    /// Unique name.
    pub id: Arc<str>,
    /// Who answers for it.
    pub owner: String,
    /// Ticket, contract or circuit number.
    pub reference: String,
    /// The approval as it was in force last; null where only records name it.
    pub terms: Option<ApprovalInForce>,
    /// It was in force at the range's end, and its time had begun and not ended; null where that is not known.
    pub in_force: Option<bool>,
    /// When it was taken out of force.
    pub removed: Option<Timestamp>,
    /// What is to be said of it.
    pub remarks: BTreeSet<Remark>,
    /// Flows under it with packets in the range.
    pub flows: u64,
    /// Octets in the range. Of flows inside each other under the same approval those of the outer one.
    pub octets: u64,
    /// First packet of the first of these flows; may lie before the range.
    pub first_used: Option<Timestamp>,
    /// Latest packet.
    pub last_used: Option<Timestamp>,
    /// How many other ends they had; with `has_more_peers` that or more.
    pub peers: usize,
    /// There are more than are told apart.
    pub has_more_peers: bool,
    /// The first of them.
    pub peer_addresses: Vec<String>,
    /// Interfaces and VLANs.
    pub seen_on: Vec<String>,
    /// Octets of each day of use.
    pub days: Vec<Day>,
    /// The busiest stretch.
    pub peak: Option<Peak>,
    /// Flows that it was the nearest approval of and did not cover.
    pub refused: Vec<Refused>,
}

/// Octets of one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Day {
    /// UTC.
    pub day: String,
    /// Of flows under the approval.
    pub octets: u64,
    /// Days since 1970-01-01.
    #[serde(skip)]
    pub number: u64,
}

/// The most that went one way in a stretch of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peak {
    /// Where the stretch begins.
    pub from: Timestamp,
    /// How long it is.
    pub seconds: u64,
    /// On average over it, the busier way.
    pub bits_per_second: u64,
    /// Of the approval's capacity.
    pub share_of_capacity: Option<f64>,
    /// The way of each octet is known; else those of which it is not count for both ways, so that it is at most this.
    pub is_one_way: bool,
}

/// Flows that an approval did not cover, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The reason.
    pub reason: &'static str,
    /// Flows.
    pub flows: u64,
    /// Octets in the range.
    pub octets: u64,
    /// Latest packet.
    pub last_seen: Timestamp,
}

/// What people write where they have nothing to write.
fn says_nothing(text: &str) -> bool {
    const NOTHING: [&str; 12] = ["", "-", "?", "n/a", "na", "nil", "nobody", "none", "null", "tba", "tbd", "unknown"];
    let text = text.trim().trim_end_matches('.').to_lowercase();
    NOTHING.contains(&text.as_str()) || text.chars().all(|character| matches!(character, '-' | '?' | 'x' | '.' | ' '))
}

impl Approval {
    /// `terms`: as they were in force last, and when they were taken out; `is_known`: what was in force is known.
    pub(super) fn new(
        period: &Period,
        id: Arc<str>,
        terms: Option<(ApprovalInForce, Option<Timestamp>)>,
        used: &Use,
        is_known: bool,
    ) -> Self {
        let (terms, removed) = terms.map_or((None, None), |(terms, removed)| (Some(terms), removed));
        let (owner, reference) = match &terms {
            Some(terms) => (terms.owner.to_string(), terms.reference.to_string()),
            None => (used.owner.to_string(), used.reference.to_string()),
        };
        let mut remarks = BTreeSet::new();
        let refused: Vec<_> = used
            .refused
            .iter()
            .map(|(reason, refused)| Refused {
                reason,
                flows: refused.flows,
                octets: refused.octets,
                last_seen: refused.last,
            })
            .collect();
        if refused.iter().any(|refused| refused.reason == crate::policy::Reason::ApprovalExpired.name()) {
            remarks.insert(Remark::ExpiredButUsed);
        }
        // A range that ends with a day ends with what is valid through that day.
        let end = Timestamp::from_nanos(period.to.as_nanos().saturating_sub(1));
        let mut in_force = None;
        if let Some(terms) = &terms {
            let days = |days: u64| period.to + Duration::from_hours(24 * days);
            let is_early = terms.valid_from.is_some_and(|from| from > end);
            in_force = Some(removed.is_none() && !is_early && terms.valid_until > end);
            if removed.is_some() {
                remarks.insert(Remark::Removed);
            } else if is_early {
                remarks.insert(Remark::NotYetValid);
            } else if terms.valid_until <= end {
                remarks.insert(Remark::Expired);
            } else if terms.valid_until <= days(30) {
                remarks.insert(Remark::EndsWithin30Days);
            } else if terms.valid_until <= days(60) {
                remarks.insert(Remark::EndsWithin60Days);
            } else if terms.valid_until <= days(90) {
                remarks.insert(Remark::EndsWithin90Days);
            }
            if terms.need.as_deref().is_none_or(says_nothing) {
                remarks.insert(Remark::WithoutNeed);
            }
            if used.flows == 0 && !is_early {
                remarks.insert(Remark::Unused);
            }
        } else if is_known {
            remarks.insert(Remark::OnlyInRecords);
        }
        if says_nothing(&owner) {
            remarks.insert(Remark::WithoutOwner);
        }
        if says_nothing(&reference) {
            remarks.insert(Remark::WithoutReference);
        }
        let capacity = terms.as_ref().and_then(|terms| terms.capacity);
        Self {
            id,
            owner,
            reference,
            in_force,
            removed,
            remarks,
            flows: used.flows,
            octets: used.octets,
            first_used: used.first,
            last_used: used.last,
            peers: used.peers.len(),
            has_more_peers: used.has_more_peers && used.peers.len() >= MOST_PEERS,
            peer_addresses: used.peers.iter().take(NAMED_PEERS).map(ToString::to_string).collect(),
            seen_on: used.seen_on.iter().map(ToString::to_string).collect(),
            days: used
                .days
                .iter()
                .filter(|(_, octets)| **octets > 0)
                .map(|(day, octets)| Day { day: date(*day), octets: *octets, number: *day })
                .collect(),
            peak: peak(period, used, capacity),
            refused,
            terms,
        }
    }
}

fn date(day: u64) -> String {
    Timestamp::from_secs(day.saturating_mul(86_400)).to_string().chars().take(10).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a share, told with a few digits")]
fn peak(period: &Period, used: &Use, capacity: Option<u64>) -> Option<Peak> {
    let (index, octets) = used.peak()?;
    let (from, to) = period.clip(period.begins(index), period.begins(index + 1))?;
    // A slot that the range cuts is as long as what is left of it, but no rate is told of a moment.
    let seconds = to.since(from).as_secs().max(60);
    let bits_per_second = octets.saturating_mul(8) / seconds;
    Some(Peak {
        from,
        seconds,
        bits_per_second,
        share_of_capacity: capacity
            .filter(|capacity| *capacity > 0)
            .map(|capacity| bits_per_second as f64 / capacity as f64),
        is_one_way: used.knows_ways(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing() {
        for text in ["", " ", "unknown", "Unknown.", "N/A", "TBD", "-", "--", "???", "xxx", "none"] {
            assert!(says_nothing(text), "{text}");
        }
        for text in ["network team", "CHG-1", "Max", "Nonesuch Ltd", "7"] {
            assert!(!says_nothing(text), "{text}");
        }
    }
}
