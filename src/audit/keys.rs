//! Shows handshakes to the keys that approvals pin: per handshake, whether or not its flow is settled.

use super::case::File;
use super::describe::subject;
use super::{Auditor, next_update};
use crate::detect::{Findings, Segment};
use crate::flow::FlowIndex;

impl Auditor {
    /// Shows a payload that may hold a handshake to the pinned keys. Returns whether what is known of its flow changed.
    pub(super) fn check_keys(&mut self, index: FlowIndex, segment: &Segment<'_>) -> bool {
        let Self { settings, policy, table, checks, .. } = self;
        let Some(flow) = table.flow(index) else { return false };
        let near = policy.keys_at(&subject(settings, flow));
        let changed = table.with_tenant(index, |flow| {
            let held = flow.tenant.file.as_mut().and_then(|file| file.findings.as_deref_mut());
            let is_held = held.is_some();
            let mut fresh = Findings::default();
            let findings = held.unwrap_or(&mut fresh);
            let before = findings.detection();
            checks.check(segment, policy.keyring(), near, findings);
            let changed = findings.detection() != before;
            if changed && !is_held {
                let next_update = next_update(flow, settings.update_interval);
                let file = flow.tenant.file.get_or_insert_with(|| Box::new(File::new(next_update)));
                file.findings = Some(Box::new(fresh));
            }
            changed
        });
        changed == Some(true)
    }
}
