//! Turns the approvals that came into force into how they changed, and into what was in force in a range.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::approvals::Approval;
use super::period::Period;
use super::usage::Uses;
use crate::sink::sensor::{ApprovalInForce, PolicyInForce, SensorEvent, What};
use crate::time::Timestamp;

/// Changes of the policy that are listed.
pub const MOST_CHANGES: usize = 1000;
/// Approvals that are listed.
pub const MOST_APPROVALS: usize = 10_000;
/// Names of a change that are listed.
const MOST_NAMES: usize = 200;

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
                Approval::new(&period, id, Some((terms, removed)), &used, is_known)
            })
            .collect();
        let (rest, beyond) = uses.rest();
        approvals.extend(rest.into_iter().map(|(id, used)| Approval::new(&period, id, None, &used, is_known)));
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
