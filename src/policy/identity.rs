//! Holds what a flow's handshakes say of their keys against the keys that an approval pins.

use std::fmt;

use super::Approval;
use crate::detect::{Detection, Fingerprint, Keyring, Protocol, Seen};

/// What a flow's handshakes say of the keys that an approval pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// One is made with this key.
    Verified(Fingerprint),
    /// None was seen that tells.
    Unverified,
    /// They are made with none of them.
    Mismatched,
}

impl KeyState {
    /// The string in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verified(_) => "verified",
            Self::Unverified => "unverified",
            Self::Mismatched => "mismatched",
        }
    }

    /// The key that was verified.
    #[must_use]
    pub const fn key(self) -> Option<Fingerprint> {
        if let Self::Verified(key) = self { Some(key) } else { None }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified(key) => write!(f, "a handshake made with {key}"),
            Self::Unverified => f.write_str("no handshake that tells"),
            Self::Mismatched => f.write_str("handshakes made with none of them"),
        }
    }
}

/// What is known of the keys that an approval pins for this tunnel; `None` where it pins none for it.
pub(super) fn key_state(keyring: &Keyring, approval: &Approval, tunnel: Option<Detection>) -> Option<KeyState> {
    let Detection { protocol, identity, .. } = tunnel?;
    if !is_pinned(approval, protocol) {
        return None;
    }
    let has = |key: &Fingerprint| approval.keys.iter().any(|pinned| pinned.fingerprint() == *key);
    if let Some(key) = identity.seen.into_iter().filter_map(Seen::key).find(has) {
        return Some(KeyState::Verified(key));
    }
    // Keys that were not there to be tried did not say no.
    let is_told = identity.keyring == keyring.id() && identity.is_whole();
    Some(if is_told { KeyState::Mismatched } else { KeyState::Unverified })
}

/// The keys that an approval pins, for people.
pub(super) fn wanted_keys(approval: &Approval) -> String {
    approval.keys.iter().map(|key| key.fingerprint().to_string()).collect::<Vec<_>>().join(" or ")
}

/// The tunnels that an approval is for: those that it names, else those whose keys it pins; none where it is for any.
pub(super) fn tunnels(approval: &Approval) -> impl Iterator<Item = Protocol> {
    let is_named = !approval.tunnels.is_empty();
    let pinned = Protocol::ALL.iter().copied().filter(move |protocol| !is_named && is_pinned(approval, *protocol));
    approval.tunnels.iter().copied().chain(pinned)
}

/// An approval that names tunnels, or pins their keys, is not one for plain traffic.
pub(super) fn tunnel_fits(approval: &Approval, tunnel: Option<Protocol>) -> bool {
    match approval.tunnels.as_slice() {
        [] => approval.keys.is_empty() || tunnel.is_some_and(|tunnel| is_pinned(approval, tunnel)),
        tunnels => tunnel.is_some_and(|tunnel| tunnels.contains(&tunnel)),
    }
}

fn is_pinned(approval: &Approval, protocol: Protocol) -> bool {
    approval.keys.iter().any(|key| key.fingerprint().kind().protocol() == protocol)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fixtures::{NOW, approval, found, policy, subject};
    use super::super::{Label, Path, Reason};
    use super::*;
    use crate::detect::{Confidence, Identity, Key};
    use crate::time::Timestamp;

    const HERE: &[&str] = &["198.51.100.2/32"];
    const ELSEWHERE: &[&str] = &["203.0.113.9/32"];

    fn key(number: u8) -> Arc<Key> {
        Arc::new(Key::wireguard(&[number; 32]))
    }

    fn seen(number: u8) -> Seen {
        Seen::Key(key(number).fingerprint())
    }

    fn pins(id: &str, peers: &[&str], numbers: &[u8]) -> Approval {
        Approval { keys: numbers.iter().map(|number| key(*number)).collect(), ..approval(id, peers) }
    }

    type Outcome = (Label, Reason, Option<&'static str>);

    #[test]
    fn cases() {
        use Label::{AuthorizedLeasedLine as Authorized, UnapprovedVpnTunnel as Unapproved};
        let over = |approval: Approval| Approval { valid_until: Timestamp::from_secs(1), ..approval };
        let (none, unknown) = (Seen::Nothing, Seen::Unknown(1));
        let elsewhere = |approval: Approval| Approval { path: Path { vlan: Some(7), ..Path::default() }, ..approval };
        let esp = |approval: Approval| Approval { tunnels: vec![Protocol::Esp], ..approval };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<Approval>, [Seen; 2], Outcome)> = vec![
            ("the key", vec![pins("a", HERE, &[1])], [seen(1), unknown], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("the key of the other end", vec![pins("a", HERE, &[1])], [unknown, seen(1)], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("the key, from elsewhere", vec![pins("a", ELSEWHERE, &[1])], [seen(1), none], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("the key, no peers", vec![pins("a", &[], &[1])], [seen(1), none], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("one of two keys", vec![pins("a", HERE, &[1, 2])], [unknown, seen(2)], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("another key", vec![pins("a", HERE, &[1])], [unknown; 2], (Unapproved, Reason::IdentityMismatch, Some("a"))),
            ("another key, from elsewhere", vec![pins("a", ELSEWHERE, &[1])], [unknown; 2], (Unapproved, Reason::NoApproval, None)),
            ("no handshake", vec![pins("a", HERE, &[1])], [none; 2], (Authorized, Reason::IdentityUnverified, Some("a"))),
            ("half a handshake", vec![pins("a", HERE, &[1])], [unknown, none], (Authorized, Reason::IdentityUnverified, Some("a"))),
            ("one side, over and over", vec![pins("a", HERE, &[1])], [none, Seen::Unknown(3)], (Unapproved, Reason::IdentityMismatch, Some("a"))),
            ("no handshake, from elsewhere", vec![pins("a", ELSEWHERE, &[1])], [none; 2], (Unapproved, Reason::NoApproval, None)),
            ("another approval's key at this one's address", vec![pins("a", HERE, &[1]), pins("b", ELSEWHERE, &[2])], [seen(2), unknown], (Authorized, Reason::ApprovedByKey, Some("b"))),
            ("the same, but that one is over", vec![pins("a", HERE, &[1]), over(pins("b", ELSEWHERE, &[2]))], [seen(2), unknown], (Unapproved, Reason::ApprovalExpired, Some("b"))),
            ("the key, but over", vec![over(pins("a", ELSEWHERE, &[1]))], [seen(1), none], (Unapproved, Reason::ApprovalExpired, Some("a"))),
            ("the key, but on another path", vec![elsewhere(pins("a", HERE, &[1]))], [seen(1), none], (Unapproved, Reason::WrongPath, Some("a"))),
            ("another key on another path", vec![elsewhere(pins("a", HERE, &[1]))], [unknown; 2], (Unapproved, Reason::IdentityMismatch, Some("a"))),
            ("the key outlives the longer prefix of another", vec![over(approval("host", HERE)), pins("a", ELSEWHERE, &[1])], [seen(1), none], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("an approval without keys covers it, too", vec![pins("a", HERE, &[1]), approval("b", HERE)], [unknown; 2], (Authorized, Reason::Approved, Some("b"))),
            ("a verified key comes before a plain approval", vec![approval("b", HERE), pins("a", ELSEWHERE, &[1])], [seen(1), none], (Authorized, Reason::ApprovedByKey, Some("a"))),
            ("keys of a tunnel that is not allowed", vec![esp(pins("a", HERE, &[1]))], [seen(1), none], (Unapproved, Reason::ProtocolNotApproved, Some("a"))),
        ];
        for (name, approvals, seen, (label, reason, id)) in cases {
            let policy = policy(approvals);
            let identity = Identity { seen, keyring: policy.keyring().id() };
            let detection = found(Confidence::Certain).map(|found| Detection { identity, ..found });
            let verdict = policy.judge(&subject(), detection, Timestamp::from_secs(NOW));
            let approval = verdict.approval.as_ref().map(|approval| approval.id.to_string());
            assert_eq!((verdict.label, verdict.reason, approval.as_deref()), (label, reason, id), "{name}");
            // An explanation asks the same approvals and finds the same.
            let candidates = policy.candidates(&subject(), detection, Timestamp::from_secs(NOW));
            let first = candidates.first().map(|candidate| candidate.approval.id.to_string());
            assert_eq!(first.as_deref(), id, "{name}");
        }
    }

    #[test]
    fn keys_are_for_their_own_tunnel_only() {
        let esp = found(Confidence::Certain).map(|found| Detection { protocol: Protocol::Esp, ..found });
        let judged =
            |approval: Approval| policy(vec![approval]).judge(&subject(), esp, Timestamp::from_secs(NOW)).reason;
        assert_eq!(judged(pins("a", HERE, &[1])), Reason::ProtocolNotApproved);
        // One that is named beside is approved by its address.
        let both = vec![Protocol::Wireguard, Protocol::Esp];
        assert_eq!(judged(Approval { tunnels: both, ..pins("a", HERE, &[1]) }), Reason::Approved);
    }

    #[test]
    fn what_other_keys_did_not_verify_is_no_mismatch() {
        let policy = policy(vec![pins("a", HERE, &[1])]);
        let identity = Identity { seen: [Seen::Unknown(1); 2], keyring: policy.keyring().id() ^ 1 };
        let detection = found(Confidence::Certain).map(|found| Detection { identity, ..found });
        let verdict = policy.judge(&subject(), detection, Timestamp::from_secs(NOW));
        assert_eq!(verdict.reason, Reason::IdentityUnverified);
    }

    #[test]
    fn keys_of_an_address_are_those_of_its_approvals() {
        let policy = policy(vec![pins("a", HERE, &[1, 2]), pins("b", ELSEWHERE, &[3]), approval("c", &["10.0.0.0/8"])]);
        let near: Vec<_> =
            policy.keys_at(&subject()).filter_map(|at| policy.keyring().keys().get(at as usize)).collect();
        assert_eq!(near, [&key(1), &key(2)]);
        assert_eq!(policy.keyring().keys().len(), 3);
    }
}
