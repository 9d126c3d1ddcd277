//! Turns the approvals that came into force, and their use, into what an auditor asks of them: which are in force, which
//! end soon, which are not used, and how they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::period::Period;
use super::usage::{MOST_PEERS, Use, Uses};
use crate::sink::sensor::{ApprovalInForce, PolicyInForce, SensorEvent, What};
use crate::time::Timestamp;

/// Changes of the policy that are listed.
pub const MOST_CHANGES: usize = 1000;
/// Approvals that are listed.
pub const MOST_APPROVALS: usize = 10_000;
/// Names of a change that are listed.
const MOST_NAMES: usize = 200;
/// Peers that are named.
const NAMED_PEERS: usize = 20;

/// What is to be said of an approval. Those that call for a decision come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remark {
    /// It had ended, and flows went on that nothing else approves.
    ExpiredButUsed,
    /// It ends within 30 days of the range's end.
    EndsWithin30Days,
    /// Within 60.
    EndsWithin60Days,
    /// Within 90.
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

/// Something that happened to the approvals in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When.
    pub time: Timestamp,
    /// Of which sensor.
    pub sensor: Arc<str>,
    /// What.
    pub what: ChangeKind,
    /// What is in force from then on.
    pub revision: Arc<str>,
    /// So many approvals.
    pub approvals: Option<usize>,
    /// Those that came.
    pub added: Vec<Arc<str>>,
    /// Those that went.
    pub removed: Vec<Arc<str>>,
    /// Those that changed, with what.
    pub changed: Vec<Changed>,
    /// More names than are listed.
    pub left_out: usize,
    /// Of a failed reload, what was wrong.
    pub errors: Vec<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// In force when the range began.
    AtFirst,
    /// Came into force.
    Loaded,
    /// Was wrong: what was in force stayed.
    ReloadFailed,
}

/// An approval that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Its name.
    pub id: Arc<str>,
    /// Each field: its name, before, after, as JSON.
    pub fields: Vec<[String; 3]>,
}

/// Approvals of one sensor, by id.
type InForce = BTreeMap<Arc<str>, ApprovalInForce>;

/// What came into force, so far.
#[derive(Debug)]
pub(super) struct History {
    period: Period,
    /// By sensor.
    now: BTreeMap<Arc<str>, (Arc<str>, InForce)>,
    /// Everything that was in force in the range, as it was last, and when it was taken out.
    seen: BTreeMap<Arc<str>, (ApprovalInForce, Option<Timestamp>)>,
    changes: Vec<Change>,
    pub changes_left_out: u64,
    has_begun: BTreeSet<Arc<str>>,
}

impl History {
    pub(super) fn new(period: Period) -> Self {
        Self {
            period,
            now: BTreeMap::new(),
            seen: BTreeMap::new(),
            changes: Vec::new(),
            changes_left_out: 0,
            has_begun: BTreeSet::new(),
        }
    }

    pub(super) fn take(&mut self, event: &SensorEvent) {
        if event.time >= self.period.to {
            return;
        }
        match &event.what {
            What::Policy(policy) => self.policy(event, policy),
            What::ReloadFailed(failed) if event.time >= self.period.from => {
                self.begin(&event.sensor);
                let errors = failed.errors.clone();
                let change = change(event, ChangeKind::ReloadFailed, Arc::clone(&failed.revision));
                self.push(Change { errors, ..change });
            }
            _ => {}
        }
    }

    /// What was in force when the range began is in force in it.
    fn begin(&mut self, sensor: &Arc<str>) {
        if !self.has_begun.insert(Arc::clone(sensor)) {
            return;
        }
        let Some((revision, approvals)) = self.now.get(sensor) else { return };
        let first = Change {
            time: self.period.from,
            sensor: Arc::clone(sensor),
            what: ChangeKind::AtFirst,
            revision: Arc::clone(revision),
            approvals: Some(approvals.len()),
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            left_out: 0,
            errors: Vec::new(),
        };
        for approval in approvals.values() {
            self.seen.insert(Arc::clone(&approval.id), (approval.clone(), None));
        }
        self.push(first);
    }

    fn policy(&mut self, event: &SensorEvent, policy: &PolicyInForce) {
        let is_in_range = event.time >= self.period.from;
        if is_in_range {
            self.begin(&event.sensor);
        }
        let approvals: InForce =
            policy.approvals.iter().map(|approval| (Arc::clone(&approval.id), approval.clone())).collect();
        let before = self.now.insert(Arc::clone(&event.sensor), (Arc::clone(&policy.revision), approvals.clone()));
        if !is_in_range {
            return;
        }
        for approval in approvals.values() {
            self.seen.insert(Arc::clone(&approval.id), (approval.clone(), None));
        }
        if before.as_ref().is_some_and(|(revision, _)| *revision == policy.revision) {
            return;
        }
        let (_, before) = before.unwrap_or_default();
        let mut change = change(event, ChangeKind::Loaded, Arc::clone(&policy.revision));
        change.approvals = Some(approvals.len());
        let mut is_listed = {
            let mut listed = 0;
            move || {
                listed += 1;
                listed <= MOST_NAMES
            }
        };
        for (id, approval) in &approvals {
            let known = before.get(id);
            if known == Some(approval) {
                continue;
            }
            match known {
                _ if !is_listed() => change.left_out += 1,
                None => change.added.push(Arc::clone(id)),
                Some(known) => change.changed.push(Changed { id: Arc::clone(id), fields: fields(known, approval) }),
            }
        }
        for id in before.keys().filter(|id| !approvals.contains_key(*id)) {
            let is_elsewhere = self.now.values().any(|(_, approvals)| approvals.contains_key(id));
            if let Some((_, removed)) = self.seen.get_mut(id).filter(|_| !is_elsewhere) {
                *removed = Some(event.time);
            }
            if is_listed() { change.removed.push(Arc::clone(id)) } else { change.left_out += 1 }
        }
        self.push(change);
    }

    fn push(&mut self, change: Change) {
        if self.changes.len() < MOST_CHANGES {
            self.changes.push(change);
        } else {
            self.changes_left_out += 1;
        }
    }

    /// Changes in the order of time, and approvals, those in force and in use first.
    pub(super) fn finish(mut self, mut uses: Uses) -> (Vec<Change>, Vec<Approval>, u64, (u64, u64)) {
        let sensors: Vec<_> = self.now.keys().cloned().collect();
        sensors.iter().for_each(|sensor| self.begin(sensor));
        self.changes.sort_by_key(|change| change.time);
        let is_known = !self.now.is_empty();
        let period = self.period;
        let mut approvals: Vec<_> = std::mem::take(&mut self.seen)
            .into_iter()
            .map(|(id, (terms, removed))| {
                let used = uses.take(&id).unwrap_or_default();
                Approval::new(&period, id, Some((terms, removed)), used, is_known)
            })
            .collect();
        let (rest, beyond) = uses.rest();
        approvals.extend(rest.into_iter().map(|(id, used)| Approval::new(&period, id, None, used, is_known)));
        approvals.sort_by(|one, other| one.id.cmp(&other.id));
        let left_out = approvals.len().saturating_sub(MOST_APPROVALS) as u64;
        approvals.truncate(MOST_APPROVALS);
        (self.changes, approvals, left_out, beyond)
    }
}

fn change(event: &SensorEvent, what: ChangeKind, revision: Arc<str>) -> Change {
    Change {
        time: event.time,
        sensor: Arc::clone(&event.sensor),
        what,
        revision,
        approvals: None,
        added: Vec::new(),
        removed: Vec::new(),
        changed: Vec::new(),
        left_out: 0,
        errors: Vec::new(),
    }
}

/// What differs: each field, before and after.
fn fields(before: &ApprovalInForce, after: &ApprovalInForce) -> Vec<[String; 3]> {
    let (before, after) = (serde_json::to_value(before), serde_json::to_value(after));
    let (Ok(serde_json::Value::Object(before)), Ok(serde_json::Value::Object(after))) = (before, after) else {
        return Vec::new();
    };
    let differs = |(name, value): &(&String, &serde_json::Value)| before.get(*name) != Some(*value);
    let text = |value: Option<&serde_json::Value>| value.map_or_else(String::new, ToString::to_string);
    after
        .iter()
        .filter(differs)
        .map(|(name, value)| [name.clone(), text(before.get(name)), text(Some(value))])
        .collect()
}

/// What people write where they have nothing to write.
fn says_nothing(text: &str) -> bool {
    const NOTHING: [&str; 12] = ["", "-", "?", "n/a", "na", "nil", "nobody", "none", "null", "tba", "tbd", "unknown"];
    let text = text.trim().trim_end_matches('.').to_lowercase();
    NOTHING.contains(&text.as_str()) || text.chars().all(|character| matches!(character, '-' | '?' | 'x' | '.' | ' '))
}

impl Approval {
    fn new(
        period: &Period,
        id: Arc<str>,
        terms: Option<(ApprovalInForce, Option<Timestamp>)>,
        used: Use,
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
            peak: peak(period, &used, capacity),
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
