//! Says which approvals end soon, and which have ended and are still used: at the start, at every reload, and once a day.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::board::Board;
use super::control::protocol::ApprovalState;
use super::events::Events;
use crate::policy::{Approval, Policy};
use crate::sink::sensor::{ApprovalEnd, ApprovalsDue, What};
use crate::time::Timestamp;

/// What has not changed is said again after this long.
const DAY: Duration = Duration::from_hours(24);

/// What was said last.
#[derive(Default)]
pub(super) struct Expiry(Option<Told>);

struct Told {
    policy: Arc<Policy>,
    at: Timestamp,
}

impl Expiry {
    /// Once a second.
    pub(super) fn tick(&mut self, now: Timestamp, board: &Board, events: &mut Events) {
        let policy = board.policy();
        let is_new = self.0.as_ref().is_none_or(|told| !Arc::ptr_eq(&told.policy, &policy));
        let is_due = self.0.as_ref().is_none_or(|told| now.since(told.at) >= DAY);
        if !is_new && !is_due {
            return;
        }
        let due = due(&policy, now, board);
        if !is_new {
            // Who read new approvals has said so, with their places.
            say(&due);
        }
        self.0 = Some(Told { policy, at: now });
        if !due.ending.is_empty() || !due.ended.is_empty() {
            events.say(What::Expiry(due));
        }
    }
}

fn due(policy: &Policy, now: Timestamp, board: &Board) -> ApprovalsDue {
    let of = |state| {
        let ends = policy.approvals().iter().filter(move |approval| board.state_of(approval, now) == state);
        ends.map(|approval| end(approval, board)).collect()
    };
    ApprovalsDue {
        within_seconds: board.facts.warn_before.as_secs(),
        ending: of(ApprovalState::Expiring),
        ended: of(ApprovalState::Expired),
    }
}

fn end(approval: &Approval, board: &Board) -> ApprovalEnd {
    ApprovalEnd {
        id: Arc::clone(&approval.id),
        owner: Arc::clone(&approval.owner),
        valid_until: approval.valid_until,
        used_after_end: board.usage.of(&approval.id).used_after_end,
    }
}

fn say(due: &ApprovalsDue) {
    for ApprovalEnd { id, owner, valid_until, .. } in &due.ending {
        warn!(approval = %id, %owner, %valid_until, "an approval ends soon: renew it before that, or let it end");
    }
    for ApprovalEnd { id, owner, valid_until, used_after_end } in &due.ended {
        if let Some(last) = used_after_end {
            warn!(approval = %id, %owner, %valid_until, %last, "an approval has ended, and its line is STILL USED: renew it or have it ended");
        } else {
            warn!(approval = %id, %owner, %valid_until, "an approval has ended: renew it or take it out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::board::Facts;
    use super::super::state::{clock, now};
    use super::*;
    use crate::config::{Approvals, Config};
    use crate::sink::sensor::SensorEvent;

    /// Approvals that end on these days of 2027.
    fn policy(ends: &[(&str, &str)]) -> Arc<Policy> {
        let folder = tempfile::tempdir().unwrap();
        for (id, day) in ends {
            let text = format!(
                "id = \"{id}\"\nkind = \"vpn\"\nowner = \"o\"\nreference = \"r\"\nvalid_until = 2027-{day}\npeers = [\"198.51.100.2\"]\n"
            );
            std::fs::write(folder.path().join(format!("{id}.toml")), text).unwrap();
        }
        Arc::new(Config::default().policy("s".into(), Approvals::load(folder.path()).unwrap()))
    }

    #[test]
    fn ends_are_said_at_the_start_at_a_reload_and_once_a_day() {
        let facts = Facts {
            sensor: "s".into(),
            interfaces: Vec::new(),
            started: clock(),
            began: now(),
            log: "l".into(),
            sensor_log: "l".into(),
            kernel_fast_path: false,
            output_losses: Vec::new(),
            pseudonyms: None,
            warn_before: 30 * DAY,
        };
        let first = policy(&[("over", "05-31"), ("soon", "06-20"), ("later", "12-31")]);
        let board = Board::new(facts, Vec::new(), Arc::default(), Arc::default(), Default::default(), None, first);
        let (mut events, mut said) = Events::new("s".into());
        let mut expiry = Expiry::default();
        let start: Timestamp = "2027-06-01T00:00:00Z".parse().unwrap();
        let mut ids = |after: Duration| {
            expiry.tick(start + after, &board, &mut events);
            let event = said.try_recv().ok()?;
            let SensorEvent { what: What::Expiry(due), .. } = event else { panic!("{event:?}") };
            let ids = |ends: Vec<ApprovalEnd>| ends.into_iter().map(|end| end.id.to_string()).collect::<Vec<_>>();
            assert_eq!(due.within_seconds, 30 * 86_400);
            Some((ids(due.ending), ids(due.ended)))
        };
        let expected = |ending: &[&str], ended: &[&str]| {
            let owned = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>();
            Some((owned(ending), owned(ended)))
        };
        assert_eq!(ids(Duration::ZERO), expected(&["soon"], &["over"]));
        assert_eq!(ids(Duration::from_secs(1)), None);
        assert_eq!(ids(Duration::from_secs(86_399)), None);
        assert_eq!(ids(DAY), expected(&["soon"], &["over"]));
        assert_eq!(ids(DAY + Duration::from_secs(1)), None);
        assert_eq!(ids(20 * DAY), expected(&[], &["over", "soon"]));
        board.set_policy(&policy(&[("later", "12-31")]));
        assert_eq!(ids(20 * DAY), None, "nothing ends");
        board.set_policy(&policy(&[("over", "05-31")]));
        assert_eq!(ids(20 * DAY), expected(&[], &["over"]));
        assert_eq!(ids(21 * DAY), expected(&[], &["over"]));
    }
}
