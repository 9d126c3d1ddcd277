//! Judges a flow by the approvals in force.
//!
//! The longest prefix that holds either endpoint decides which approvals are asked, beside the lines that are named by
//! their path alone and those that pin a key that one of the flow's handshakes is made with. Of those that cover the flow
//! one whose key was verified is named, then the one with more constraints. Where none covers it, the one that fails least
//! is the nearest, and its first failure is the reason: what it is for, whose key, then where, then when.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::identity::{key_state, tunnel_fits, tunnels, wanted_keys};
use super::lookup::Prefixes;
use super::{Approval, KeyState, Label, Reason, Subject, Verdict};
use crate::detect::{Confidence, Detection, Fingerprint, Keyring, Protocol, Seen};
use crate::time::Timestamp;

/// The approvals in force and how to judge by them. Immutable: a reload makes a new one.
#[derive(Debug)]
pub struct Policy {
    sensor: Arc<str>,
    min_confidence: Confidence,
    revision: Arc<str>,
    approvals: Vec<Arc<Approval>>,
    prefixes: Prefixes,
    /// Leased lines alone: what plain traffic is judged by.
    line_prefixes: Prefixes,
    /// Leased lines that are named by their path only.
    lines_anywhere: Vec<u32>,
    has_lines_by_path: bool,
    /// Every key that an approval pins.
    keyring: Keyring,
    /// Which approvals pin a key.
    pinned: HashMap<Fingerprint, Vec<u32>>,
}

/// One thing that an approval asks of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked: `tunnel`, `ip protocol`, `port`, `key`, `path`, `validity`.
    pub name: &'static str,
    /// What the approval allows.
    pub wanted: String,
    /// What the flow shows.
    pub found: String,
    /// Whether it fits.
    pub passed: bool,
}

/// An approval that was asked, and how it answered.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The approval.
    pub approval: Arc<Approval>,
    /// Length of the prefix that holds an endpoint; 0 where only the path or a key names the flow.
    pub prefix_len: u8,
    /// Whether a key that it pins was verified.
    pub is_by_key: bool,
    /// Every check.
    pub checks: Vec<Check>,
}

/// The checks of an approval, as bits: cheap to make for every candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failures {
    kind: bool,
    key: bool,
    path: bool,
    expired: bool,
    early: bool,
}

impl Failures {
    const fn none(self) -> bool {
        !(self.kind || self.key || self.path || self.expired || self.early)
    }

    const fn count(self) -> u8 {
        self.kind as u8 + self.key as u8 + self.path as u8 + self.expired as u8 + self.early as u8
    }

    const fn reason(self) -> Reason {
        if self.kind {
            Reason::ProtocolNotApproved
        } else if self.key {
            Reason::IdentityMismatch
        } else if self.path {
            Reason::WrongPath
        } else if self.expired {
            Reason::ApprovalExpired
        } else if self.early {
            Reason::NotYetValid
        } else {
            Reason::Approved
        }
    }
}

impl Policy {
    /// Builds the look-up tables. `revision` is the lower-case SHA-256 of the approvals' canonical text.
    #[must_use]
    pub fn new(sensor: Arc<str>, min_confidence: Confidence, revision: Arc<str>, approvals: Vec<Approval>) -> Self {
        let mut policy = Self {
            sensor,
            min_confidence,
            revision,
            approvals: Vec::new(),
            prefixes: Prefixes::default(),
            line_prefixes: Prefixes::default(),
            lines_anywhere: Vec::new(),
            has_lines_by_path: false,
            keyring: Keyring::new(approvals.iter().flat_map(|approval| approval.keys.iter().cloned())),
            pinned: HashMap::new(),
        };
        for (approval, position) in approvals.iter().zip(0..) {
            let by_path = approval.is_line_by_path();
            policy.has_lines_by_path |= by_path;
            if by_path && approval.peers.is_empty() {
                policy.lines_anywhere.push(position);
            }
            for key in &approval.keys {
                policy.pinned.entry(key.fingerprint()).or_default().push(position);
            }
            for network in &approval.peers {
                policy.prefixes.insert(network, position);
                if by_path {
                    policy.line_prefixes.insert(network, position);
                }
            }
        }
        policy.approvals = approvals.into_iter().map(Arc::new).collect();
        policy
    }

    /// SHA-256 of the approvals in force, lower-case hexadecimal.
    #[must_use]
    pub const fn revision(&self) -> &Arc<str> {
        &self.revision
    }

    /// Every approval, in order of loading.
    #[must_use]
    pub fn approvals(&self) -> &[Arc<Approval>] {
        &self.approvals
    }

    /// Distinct prefixes in the approvals.
    #[must_use]
    pub fn prefixes(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether an approval names this address, or a network that holds it.
    #[must_use]
    pub fn names(&self, address: IpAddr) -> bool {
        self.prefixes.longest(address).is_some()
    }

    /// From which confidence on a detection is a tunnel.
    #[must_use]
    pub const fn min_confidence(&self) -> Confidence {
        self.min_confidence
    }

    /// Every key that an approval pins.
    #[must_use]
    pub const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Where in the keyring those keys stand that approvals of a flow's addresses pin.
    pub fn keys_at<'a>(&'a self, subject: &Subject<'_>) -> impl Iterator<Item = u32> + use<'a> {
        let approvals = self.asked(&self.prefixes, subject, None).filter_map(|(at, _)| self.approvals.get(at as usize));
        approvals.flat_map(|approval| &approval.keys).filter_map(|key| self.keyring.position(key.fingerprint()))
    }

    /// Whether flows without any sign of a tunnel can be approved: a leased line is named by its path.
    #[must_use]
    pub const fn plain_needs_judging(&self) -> bool {
        self.has_lines_by_path
    }

    /// Judges one flow at the time of its latest packet.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>, detection: Option<Detection>, at: Timestamp) -> Verdict {
        let tunnel = detection.filter(|detection| detection.confidence >= self.min_confidence);
        let mut verdict = Verdict {
            label: Label::Other,
            reason: if detection.is_some() { Reason::LowConfidence } else { Reason::NotATunnel },
            tunnel: detection.map(|detection| detection.protocol),
            confidence: detection.map(|detection| detection.confidence),
            approval: None,
            keys: None,
            holds_until: Timestamp::MAX,
        };
        if tunnel.is_some() {
            verdict.label = Label::UnapprovedVpnTunnel;
            verdict.reason = Reason::NoApproval;
            self.ask(&self.prefixes, subject, tunnel, at, &mut verdict);
        } else if self.has_lines_by_path {
            let plain = verdict.clone();
            self.ask(&self.line_prefixes, subject, None, at, &mut verdict);
            // A line that plain traffic is not on says nothing of it; one whose approval is over does.
            if !matches!(verdict.reason, Reason::Approved | Reason::ApprovalExpired | Reason::NotYetValid) {
                verdict = Verdict { holds_until: verdict.holds_until, ..plain };
            }
        }
        verdict
    }

    /// Every approval that `judge` asks for a flow, and what it found: for explanations, not for the packet path.
    #[must_use]
    pub fn candidates(&self, subject: &Subject<'_>, detection: Option<Detection>, at: Timestamp) -> Vec<Candidate> {
        let tunnel = detection.filter(|detection| detection.confidence >= self.min_confidence);
        let prefixes = if tunnel.is_some() { &self.prefixes } else { &self.line_prefixes };
        let mut all = Vec::new();
        for (position, prefix_len) in self.asked(prefixes, subject, tunnel.as_ref()) {
            if let Some(approval) = self.approvals.get(position as usize)
                && !all.iter().any(|known: &Candidate| known.approval.id == approval.id)
            {
                let checks = self.checks(approval, subject, tunnel, at);
                let is_by_key = matches!(key_state(&self.keyring, approval, tunnel), Some(KeyState::Verified(_)));
                all.push(Candidate { approval: Arc::clone(approval), prefix_len, is_by_key, checks });
            }
        }
        all.sort_by_key(|candidate| {
            let failed = candidate.checks.iter().filter(|check| !check.passed).count();
            (failed, !candidate.is_by_key, Reverse(candidate.prefix_len))
        });
        all
    }

    /// Approvals to ask: those of the longest prefix that holds an endpoint, so that a wide approval of the other end
    /// does not outlive the one for this very host; the lines that are named by their path alone; and those that pin a key
    /// that was verified, whichever the address.
    fn asked<'a>(
        &'a self,
        prefixes: &'a Prefixes,
        subject: &Subject<'_>,
        detection: Option<&Detection>,
    ) -> impl Iterator<Item = (u32, u8)> + use<'a> {
        let identity = detection.map(|detection| detection.identity).unwrap_or_default();
        let by_key = identity.seen.into_iter().filter_map(Seen::key).filter_map(|key| self.pinned.get(&key)).flatten();
        let found = subject.addresses.map(|address| prefixes.longest(address));
        let longest = found.iter().flatten().map(|(length, _)| *length).max();
        found
            .into_iter()
            .flatten()
            .filter(move |(length, _)| Some(*length) == longest)
            .flat_map(|(length, approvals)| approvals.iter().map(move |&approval| (approval, length)))
            .chain(self.lines_anywhere.iter().chain(by_key).map(|&approval| (approval, 0)))
    }

    fn ask(
        &self,
        prefixes: &Prefixes,
        subject: &Subject<'_>,
        tunnel: Option<Detection>,
        at: Timestamp,
        verdict: &mut Verdict,
    ) {
        let mut best: Option<(_, Failures, Option<KeyState>, &Arc<Approval>)> = None;
        for (position, prefix_len) in self.asked(prefixes, subject, tunnel.as_ref()) {
            let Some(approval) = self.approvals.get(position as usize) else { continue };
            for boundary in [approval.valid_from.unwrap_or(Timestamp::ZERO), approval.valid_until] {
                if boundary > at {
                    verdict.holds_until = verdict.holds_until.min(boundary);
                }
            }
            let failures = self.failures(approval, subject, tunnel, at);
            let keys = key_state(&self.keyring, approval, tunnel);
            let is_verified = matches!(keys, Some(KeyState::Verified(_)));
            // Fewest failures, a key that was verified, longest prefix, most constraints, first in the list.
            let rank = (Reverse(failures.count()), is_verified, prefix_len, constraints(approval), Reverse(position));
            if best.as_ref().is_none_or(|(known, ..)| rank > *known) {
                best = Some((rank, failures, keys, approval));
            }
        }
        if let Some((_, failures, keys, approval)) = best {
            verdict.reason = match (failures.reason(), keys) {
                (Reason::Approved, Some(KeyState::Verified(_))) => Reason::ApprovedByKey,
                (Reason::Approved, Some(_)) => Reason::IdentityUnverified,
                (reason, _) => reason,
            };
            verdict.keys = keys;
            verdict.approval = Some(Arc::clone(approval));
            if failures.none() {
                verdict.label = Label::AuthorizedLeasedLine;
            }
        }
    }

    fn failures(
        &self,
        approval: &Approval,
        subject: &Subject<'_>,
        tunnel: Option<Detection>,
        at: Timestamp,
    ) -> Failures {
        let kind = tunnel_fits(approval, tunnel.map(|tunnel| tunnel.protocol))
            && protocol_fits(approval, subject)
            && port_fits(approval, subject);
        Failures {
            kind: !kind,
            key: key_state(&self.keyring, approval, tunnel) == Some(KeyState::Mismatched),
            path: !self.path_fits(approval, subject),
            expired: at >= approval.valid_until,
            early: approval.valid_from.is_some_and(|from| at < from),
        }
    }

    fn path_fits(&self, approval: &Approval, subject: &Subject<'_>) -> bool {
        let path = &approval.path;
        path.sensor.as_ref().is_none_or(|sensor| **sensor == *self.sensor)
            && path.interface.as_ref().is_none_or(|interface| **interface == *subject.interface)
            && path.vlan.is_none_or(|vlan| subject.vlan.contains(&vlan))
            && path.mpls_label.is_none_or(|label| subject.mpls_labels.contains(&Some(label)))
    }

    fn checks(
        &self,
        approval: &Approval,
        subject: &Subject<'_>,
        detection: Option<Detection>,
        at: Timestamp,
    ) -> Vec<Check> {
        let tunnel = detection.map(|detection| detection.protocol);
        let list = |items: Vec<String>| if items.is_empty() { "any".to_owned() } else { items.join(", ") };
        let failures = self.failures(approval, subject, detection, at);
        let check = |name, wanted, found, passed| Check { name, wanted, found, passed };
        let path = &approval.path;
        let from = approval.valid_from.map_or_else(|| "always".to_owned(), |from| from.to_string());
        let keys = key_state(&self.keyring, approval, detection);
        let keys = keys.map(|state| check("key", wanted_keys(approval), state.to_string(), !failures.key));
        let mut checks = vec![
            check(
                "tunnel",
                list(tunnels(approval).map(|tunnel| tunnel.name().to_owned()).collect()),
                tunnel.map_or("none", Protocol::name).to_owned(),
                tunnel_fits(approval, tunnel),
            ),
            check(
                "ip protocol",
                list(approval.ip_protocols.iter().map(ToString::to_string).collect()),
                subject.protocol.to_string(),
                protocol_fits(approval, subject),
            ),
            check(
                "port",
                list(approval.ports.iter().map(ToString::to_string).collect()),
                subject.ports.map_or_else(|| "none".to_owned(), |[one, other]| format!("{one} and {other}")),
                port_fits(approval, subject),
            ),
            check(
                "path",
                list(
                    [
                        path.sensor.as_ref().map(|sensor| format!("sensor {sensor}")),
                        path.interface.as_ref().map(|interface| format!("interface {interface}")),
                        path.vlan.map(|vlan| format!("VLAN {vlan}")),
                        path.mpls_label.map(|label| format!("MPLS label {label}")),
                    ]
                    .into_iter()
                    .flatten()
                    .collect(),
                ),
                format!(
                    "sensor {}, interface {}, VLAN {}, MPLS label {}",
                    self.sensor,
                    subject.interface,
                    numbers(subject.vlan.iter().filter(|vlan| **vlan != 0)),
                    numbers(subject.mpls_labels.iter().flatten()),
                ),
                !failures.path,
            ),
            check(
                "validity",
                format!("{from} to {}", approval.valid_until),
                at.to_string(),
                !failures.expired && !failures.early,
            ),
        ];
        checks.splice(3..3, keys);
        checks
    }
}

fn numbers<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let all: Vec<_> = items.map(|item| item.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" and ") }
}

fn protocol_fits(approval: &Approval, subject: &Subject<'_>) -> bool {
    approval.ip_protocols.is_empty() || approval.ip_protocols.contains(&subject.protocol)
}

fn port_fits(approval: &Approval, subject: &Subject<'_>) -> bool {
    approval.ports.is_empty()
        || subject.ports.is_some_and(|ports| {
            ports.iter().any(|port| approval.ports.iter().any(|range| (range.first..=range.last).contains(port)))
        })
}

/// How specific an approval is beyond its prefix.
fn constraints(approval: &Approval) -> usize {
    let path = &approval.path;
    [
        !approval.ports.is_empty(),
        !approval.ip_protocols.is_empty(),
        !approval.tunnels.is_empty(),
        path.sensor.is_some(),
        path.interface.is_some(),
        path.vlan.is_some(),
        path.mpls_label.is_some(),
        !approval.keys.is_empty(),
    ]
    .into_iter()
    .filter(|constraint| *constraint)
    .count()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{NOW, approval, found, line, policy, subject};
    use super::super::{ApprovalKind, Path, PortRange};
    use super::*;

    type Outcome = (Label, Reason, Option<&'static str>);

    #[test]
    fn cases() {
        use Label::{AuthorizedLeasedLine as Authorized, Other, UnapprovedVpnTunnel as Unapproved};
        let certain = found(Confidence::Certain);
        let peer = || approval("a", &["198.51.100.0/24"]);
        let with = |change: &dyn Fn(&mut Approval)| {
            let mut approval = peer();
            change(&mut approval);
            vec![approval]
        };
        let other_path = |path: Path| with(&|approval| approval.path = path.clone());
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<Approval>, Option<Detection>, Outcome)> = vec![
            ("nothing approved", vec![], certain, (Unapproved, Reason::NoApproval, None)),
            ("nothing found", vec![peer()], None, (Other, Reason::NotATunnel, None)),
            ("too little found", vec![peer()], found(Confidence::Possible), (Other, Reason::LowConfidence, None)),
            ("likely is enough", vec![peer()], found(Confidence::Likely), (Authorized, Reason::Approved, Some("a"))),
            ("approved", vec![peer()], certain, (Authorized, Reason::Approved, Some("a"))),
            ("another peer", vec![approval("a", &["192.0.2.0/24"])], certain, (Unapproved, Reason::NoApproval, None)),
            ("the other endpoint", vec![approval("a", &["10.0.0.1/32"])], certain, (Authorized, Reason::Approved, Some("a"))),
            ("expired this second", with(&|a| a.valid_until = Timestamp::from_secs(NOW)), certain, (Unapproved, Reason::ApprovalExpired, Some("a"))),
            ("not yet valid", with(&|a| a.valid_from = Some(Timestamp::from_secs(NOW + 1))), certain, (Unapproved, Reason::NotYetValid, Some("a"))),
            ("valid from now", with(&|a| a.valid_from = Some(Timestamp::from_secs(NOW))), certain, (Authorized, Reason::Approved, Some("a"))),
            ("another tunnel", with(&|a| a.tunnels = vec![Protocol::Esp]), certain, (Unapproved, Reason::ProtocolNotApproved, Some("a"))),
            ("another IP protocol", with(&|a| a.ip_protocols = vec![50]), certain, (Unapproved, Reason::ProtocolNotApproved, Some("a"))),
            ("another port", with(&|a| a.ports = vec![PortRange { first: 1, last: 1000 }]), certain, (Unapproved, Reason::ProtocolNotApproved, Some("a"))),
            ("the port", with(&|a| a.ports = vec![PortRange { first: 51_820, last: 51_820 }]), certain, (Authorized, Reason::Approved, Some("a"))),
            ("another interface", other_path(Path { interface: Some("lan0".into()), ..Path::default() }), certain, (Unapproved, Reason::WrongPath, Some("a"))),
            ("another sensor", other_path(Path { sensor: Some("else".into()), ..Path::default() }), certain, (Unapproved, Reason::WrongPath, Some("a"))),
            ("another VLAN", other_path(Path { vlan: Some(7), ..Path::default() }), certain, (Unapproved, Reason::WrongPath, Some("a"))),
            ("another label", other_path(Path { mpls_label: Some(17), ..Path::default() }), certain, (Unapproved, Reason::WrongPath, Some("a"))),
            ("the path", other_path(Path { sensor: Some("sensor".into()), interface: Some("wan0".into()), vlan: Some(100), mpls_label: Some(16) }), certain, (Authorized, Reason::Approved, Some("a"))),
            ("the longest prefix wins", vec![peer(), approval("host", &["198.51.100.2/32"])], certain, (Authorized, Reason::Approved, Some("host"))),
            ("the longest prefix decides", vec![peer(), Approval { valid_until: Timestamp::from_secs(1), ..approval("host", &["198.51.100.2/32"]) }], certain, (Unapproved, Reason::ApprovalExpired, Some("host"))),
            ("the longest prefix of either end decides", vec![approval("wide", &["10.0.0.0/8"]), Approval { valid_until: Timestamp::from_secs(1), ..approval("host", &["198.51.100.2/32"]) }], certain, (Unapproved, Reason::ApprovalExpired, Some("host"))),
            ("equal prefixes are both asked", vec![Approval { valid_until: Timestamp::from_secs(1), ..approval("there", &["198.51.100.2/32"]) }, approval("here", &["10.0.0.1/32"])], certain, (Authorized, Reason::Approved, Some("here"))),
            ("a renewal beside the old one", vec![Approval { valid_until: Timestamp::from_secs(1), ..approval("old", &["198.51.100.0/24"]) }, peer()], certain, (Authorized, Reason::Approved, Some("a"))),
            ("the more specific of two", vec![peer(), Approval { tunnels: vec![Protocol::Wireguard], ..approval("b", &["198.51.100.0/24"]) }], certain, (Authorized, Reason::Approved, Some("b"))),
            ("the nearest of two", vec![Approval { tunnels: vec![Protocol::Esp], valid_until: Timestamp::from_secs(1), ..approval("far", &["198.51.100.0/24"]) }, Approval { valid_until: Timestamp::from_secs(1), ..approval("near", &["198.51.100.0/24"]) }], certain, (Unapproved, Reason::ApprovalExpired, Some("near"))),
            ("plain traffic to a VPN's peer on its path", vec![Approval { kind: ApprovalKind::Vpn, ..line("v", &["198.51.100.0/24"], 100) }], None, (Other, Reason::NotATunnel, None)),
            ("plain traffic on a leased line", vec![line("l", &[], 100)], None, (Authorized, Reason::Approved, Some("l"))),
            ("plain traffic on a leased line to its peer", vec![line("l", &["198.51.100.0/24"], 100)], None, (Authorized, Reason::Approved, Some("l"))),
            ("plain traffic beside the leased line", vec![line("l", &[], 101)], None, (Other, Reason::NotATunnel, None)),
            ("plain traffic to a leased line's peer, elsewhere", vec![line("l", &["198.51.100.0/24"], 101)], None, (Other, Reason::NotATunnel, None)),
            ("plain traffic on a leased line that is over", vec![Approval { valid_until: Timestamp::from_secs(1), ..line("l", &[], 100) }], None, (Other, Reason::ApprovalExpired, Some("l"))),
            ("plain traffic to a leased line's peer without a path", vec![Approval { kind: ApprovalKind::LeasedLine, ..peer() }], None, (Other, Reason::NotATunnel, None)),
            ("a tunnel on a leased line", vec![line("l", &[], 100)], certain, (Authorized, Reason::Approved, Some("l"))),
            ("a tunnel beside the leased line", vec![line("l", &[], 101)], certain, (Unapproved, Reason::WrongPath, Some("l"))),
            ("a leased line for one tunnel, plain traffic", vec![Approval { tunnels: vec![Protocol::Gre], ..line("l", &[], 100) }], None, (Other, Reason::NotATunnel, None)),
            ("a VPN's longer prefix does not hide the line", vec![line("l", &["198.51.100.0/24"], 100), approval("v", &["198.51.100.2/32"])], None, (Authorized, Reason::Approved, Some("l"))),
        ];
        for (name, approvals, detection, (label, reason, id)) in cases {
            let verdict = policy(approvals).judge(&subject(), detection, Timestamp::from_secs(NOW));
            let found = verdict.approval.as_ref().map(|approval| approval.id.to_string());
            assert_eq!((verdict.label, verdict.reason, found.as_deref()), (label, reason, id), "{name}");
        }
    }

    #[test]
    fn a_verdict_holds_until_an_approval_begins_or_ends() {
        let mut later = approval("later", &["198.51.100.0/24"]);
        later.valid_from = Some(Timestamp::from_secs(NOW + 100));
        later.valid_until = Timestamp::from_secs(NOW + 200);
        let policy = policy(vec![approval("now", &["198.51.100.0/24"]), later]);
        let certain = found(Confidence::Certain);
        let at = |second| policy.judge(&subject(), certain, Timestamp::from_secs(second)).holds_until;
        assert_eq!(at(NOW), Timestamp::from_secs(NOW + 1));
        assert_eq!(at(NOW + 1), Timestamp::from_secs(NOW + 100));
        assert_eq!(at(NOW + 100), Timestamp::from_secs(NOW + 200));
        assert_eq!(at(NOW + 200), Timestamp::MAX);
    }

    #[test]
    fn candidates_say_what_kept_them_from_matching() {
        let mut near = approval("near", &["198.51.100.0/24"]);
        near.ports = vec![PortRange { first: 1194, last: 1194 }];
        let policy = policy(vec![near]);
        let all = policy.candidates(&subject(), found(Confidence::Certain), Timestamp::from_secs(NOW));
        let failed: Vec<_> = all[0].checks.iter().filter(|check| !check.passed).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].name, &*failed[0].wanted, &*failed[0].found), ("port", "1194", "40000 and 51820"));
    }
}
