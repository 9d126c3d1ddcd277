//! Turns records into the use of each approval: when it was used last, and what is open under it now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::policy::{Label, Reason};
use crate::record::{Kind, Record};
use crate::time::Timestamp;

/// What an approval was used for since the daemon began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Time of the latest packet that a record told of; null: not used.
    pub last_used: Option<Timestamp>,
    /// Time of the latest packet of a flow that it would have covered, had it not ended; null: none came.
    pub used_after_end: Option<Timestamp>,
    /// Flows open now.
    pub flows_open: u64,
    /// Octets of these, as of their latest records.
    pub octets_open: u64,
}

/// By approval; bounded by the approvals in force and by the flows that are open.
#[derive(Debug, Default)]
pub struct Usage(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By the approval's id.
    uses: HashMap<Arc<str>, Use>,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    approval: Arc<str>,
    octets: u64,
    /// Of the latest record.
    updated: Timestamp,
}

/// Flows that are told apart at most; what is beyond counts as used, not as open.
const MAX_FLOWS: usize = 65_536;

impl Usage {
    /// Takes a record.
    pub fn write(&self, record: &Record) {
        if let Some(ended) = record.approval.as_ref().filter(|_| record.reason == Reason::ApprovalExpired) {
            let mut inner = self.inner();
            let of_approval = inner.uses.entry(Arc::clone(&ended.id)).or_default();
            of_approval.used_after_end = of_approval.used_after_end.max(Some(record.end));
        }
        let approved = record.approval.as_ref().filter(|_| record.verdict == Label::AuthorizedLeasedLine);
        let mut inner = self.inner();
        let flow = record.flow_id.number();
        if approved.is_none() && !inner.open.contains_key(&flow) {
            return;
        }
        inner.close(flow);
        let Some(approval) = approved else { return };
        let octets = record.fwd_octets + record.rev_octets;
        let is_open = record.kind != Kind::End && inner.open.len() < MAX_FLOWS;
        let of_approval = inner.uses.entry(Arc::clone(&approval.id)).or_default();
        of_approval.last_used = of_approval.last_used.max(Some(record.end));
        if is_open {
            of_approval.flows_open += 1;
            of_approval.octets_open += octets;
            inner.open.insert(flow, Open { approval: Arc::clone(&approval.id), octets, updated: record.time });
        }
    }

    /// Lets go of open flows of which no record told since then.
    pub fn forget(&self, oldest: Timestamp) {
        let mut inner = self.inner();
        let over =
            inner.open.iter().filter(|(_, open)| open.updated < oldest).map(|(&flow, _)| flow).collect::<Vec<_>>();
        over.into_iter().for_each(|flow| inner.close(flow));
    }

    /// Forgets approvals that are not in force any more.
    pub fn keep(&self, is_in_force: impl Fn(&str) -> bool) {
        let mut inner = self.inner();
        inner.uses.retain(|id, _| is_in_force(id));
    }

    /// Of one approval.
    #[must_use]
    pub fn of(&self, id: &str) -> Use {
        self.inner().uses.get(id).cloned().unwrap_or_default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn close(&mut self, flow: u64) {
        if let Some(Open { approval, octets, .. }) = self.open.remove(&flow)
            && let Some(of_approval) = self.uses.get_mut(&approval)
        {
            of_approval.flows_open = of_approval.flows_open.saturating_sub(1);
            of_approval.octets_open = of_approval.octets_open.saturating_sub(octets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ApprovalRecord;
    use crate::record::tests_support::record;

    fn approved(id: &str, kind: Kind) -> Record {
        let mut record = record(1);
        (record.kind, record.verdict) = (kind, Label::AuthorizedLeasedLine);
        record.approval = Some(ApprovalRecord {
            id: id.into(),
            owner: "o".into(),
            reference: "r".into(),
            valid_until: Timestamp::MAX,
            identity: None,
            key: None,
        });
        record
    }

    #[test]
    fn counts_what_is_open_and_remembers_when_it_was_used() {
        let usage = Usage::default();
        usage.write(&approved("a", Kind::Start));
        let open = Use {
            last_used: Some(Timestamp::from_secs(1_700_000_001)),
            flows_open: 1,
            octets_open: 200,
            ..Use::default()
        };
        assert_eq!(usage.of("a"), open);
        let mut more = approved("a", Kind::Update);
        more.fwd_octets = 1000;
        usage.write(&more);
        assert_eq!(usage.of("a"), Use { octets_open: 1120, ..open.clone() });
        let closed = Use { flows_open: 0, octets_open: 0, ..open };
        usage.write(&approved("a", Kind::End));
        assert_eq!(usage.of("a"), closed);
        assert_eq!(usage.of("b"), Use::default());
    }

    #[test]
    fn what_an_ended_approval_would_have_covered_is_remembered() {
        let usage = Usage::default();
        let mut refused = approved("a", Kind::Start);
        (refused.verdict, refused.reason) = (Label::UnapprovedVpnTunnel, Reason::ApprovalExpired);
        usage.write(&refused);
        let after_end = Some(Timestamp::from_secs(1_700_000_001));
        assert_eq!(usage.of("a"), Use { used_after_end: after_end, ..Use::default() });
        refused.reason = Reason::WrongPath;
        refused.end = Timestamp::MAX;
        usage.write(&refused);
        assert_eq!(usage.of("a").used_after_end, after_end);
    }

    #[test]
    fn a_flow_that_another_approval_covers_after_a_reload_is_open_there_alone() {
        let usage = Usage::default();
        usage.write(&approved("a", Kind::Start));
        usage.write(&approved("b", Kind::Update));
        assert_eq!((usage.of("a").flows_open, usage.of("b").flows_open), (0, 1));
        let mut refused = approved("b", Kind::Update);
        refused.verdict = Label::UnapprovedVpnTunnel;
        usage.write(&refused);
        assert_eq!((usage.of("b").flows_open, usage.of("b").octets_open), (0, 0));
        let approved = approved("b", Kind::Update);
        usage.write(&approved);
        usage.forget(approved.time);
        assert_eq!(usage.of("b").flows_open, 1);
        usage.forget(approved.time + std::time::Duration::from_secs(1));
        assert_eq!((usage.of("b").flows_open, usage.of("b").octets_open), (0, 0));
        usage.keep(|id| id == "b");
        assert_eq!(usage.of("a").last_used, None);
        assert!(usage.of("b").last_used.is_some());
    }
}
