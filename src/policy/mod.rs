//! Turns a detection and a flow's endpoints and path into a verdict, by the approvals in force.

mod approval;
#[cfg(test)]
mod fixtures;
mod identity;
mod lookup;
mod verdict;

pub use approval::{Approval, ApprovalKind, Path, PortRange};
pub use identity::KeyState;
pub use verdict::{Candidate, Check, Policy};

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::detect::{Confidence, Protocol};
use crate::time::Timestamp;

/// The label of a flow; these are the record's `verdict` values and stand nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// Uses an approved leased line or VPN endpoint.
    AuthorizedLeasedLine,
    /// A VPN or tunnel that no approval covers.
    UnapprovedVpnTunnel,
    /// Neither.
    Other,
}

impl Label {
    /// All three.
    pub const ALL: [Self; 3] = [Self::AuthorizedLeasedLine, Self::UnapprovedVpnTunnel, Self::Other];

    /// The string in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuthorizedLeasedLine => "authorized_leased_line",
            Self::UnapprovedVpnTunnel => "unapproved_vpn_tunnel",
            Self::Other => "other",
        }
    }
}

/// Why a flow got its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// An approval covers it.
    Approved,
    /// An approval covers it, whichever its address: a handshake is made with a key that it pins.
    ApprovedByKey,
    /// An approval that pins keys covers its address, and no handshake was seen yet that tells whose key made it.
    IdentityUnverified,
    /// No approval names either endpoint.
    NoApproval,
    /// The approval that names the endpoint has ended.
    ApprovalExpired,
    /// The approval that names the endpoint has not begun.
    NotYetValid,
    /// An approval covers its address, but its handshakes are made with none of the keys that it pins.
    IdentityMismatch,
    /// Approved, but not over this sensor, interface, VLAN or MPLS label.
    WrongPath,
    /// The endpoint is approved, but not for this tunnel, IP protocol or port.
    ProtocolNotApproved,
    /// Signs of a tunnel below the policy's `min_confidence`.
    LowConfidence,
    /// No sign of a tunnel, and not on an approved line's path.
    NotATunnel,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Approved,
        Self::ApprovedByKey,
        Self::IdentityUnverified,
        Self::NoApproval,
        Self::ApprovalExpired,
        Self::NotYetValid,
        Self::IdentityMismatch,
        Self::WrongPath,
        Self::ProtocolNotApproved,
        Self::LowConfidence,
        Self::NotATunnel,
    ];

    /// The string in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::ApprovedByKey => "approved_by_key",
            Self::IdentityUnverified => "identity_unverified",
            Self::NoApproval => "no_approval",
            Self::ApprovalExpired => "approval_expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IdentityMismatch => "identity_mismatch",
            Self::WrongPath => "wrong_path",
            Self::ProtocolNotApproved => "protocol_not_approved",
            Self::LowConfidence => "low_confidence",
            Self::NotATunnel => "not_a_tunnel",
        }
    }

    /// The same in a sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Approved => "an approval covers it",
            Self::ApprovedByKey => "an approval covers it: a handshake is made with a key that it pins",
            Self::IdentityUnverified => {
                "an approval covers its address; no handshake was seen that tells whether it is made with a key that the approval pins"
            }
            Self::NoApproval => "no approval names either endpoint",
            Self::ApprovalExpired => "the approval that names it had ended",
            Self::NotYetValid => "the approval that names it had not begun",
            Self::IdentityMismatch => {
                "the address is approved, but its handshake is made with none of the keys that the approval pins"
            }
            Self::WrongPath => "approved, but not over this sensor, interface, VLAN or MPLS label",
            Self::ProtocolNotApproved => "the endpoint is approved, but not for this tunnel, IP protocol or port",
            Self::LowConfidence => "signs of a tunnel, too few to call it one at the policy's min_confidence",
            Self::NotATunnel => "no sign of a tunnel, and not on an approved line's path",
        }
    }
}

/// What the policy may know of a flow: endpoints and path, no packets.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Both endpoints' addresses.
    pub addresses: [IpAddr; 2],
    /// Both endpoints' ports, in the same order; `None` where the protocol has none.
    pub ports: Option<[u16; 2]>,
    /// IP protocol number.
    pub protocol: u8,
    /// Name of the interface it was seen on.
    pub interface: &'a str,
    /// VLAN identifiers, outer then inner; 0 for none.
    pub vlan: [u16; 2],
    /// Bottom MPLS label by direction.
    pub mpls_labels: [Option<u32>; 2],
}

/// What a flow is, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The label.
    pub label: Label,
    /// Why.
    pub reason: Reason,
    /// The tunnel that the evidence speaks for, whatever its confidence.
    pub tunnel: Option<Protocol>,
    /// How sure; `None` where there is no tunnel.
    pub confidence: Option<Confidence>,
    /// The approval that covers it, or the nearest one that failed to (see `reason`).
    pub approval: Option<Arc<Approval>>,
    /// What is known of the keys that this approval pins; `None` where it pins none for this tunnel.
    pub keys: Option<KeyState>,
    /// The verdict holds until this time, when an approval begins or ends.
    pub holds_until: Timestamp,
}
