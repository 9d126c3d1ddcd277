//! One approval: who may use which circuit or VPN endpoint, since when, until when, and who answers for it.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::detect::{Key, Protocol};
use crate::time::Timestamp;

/// What was approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApprovalKind {
    /// A leased line: its path alone proves it, tunnel or not.
    LeasedLine,
    /// A VPN endpoint.
    Vpn,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Where approved traffic must be seen; empty fields allow any.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Path {
    /// The sensor's name.
    pub sensor: Option<Arc<str>>,
    /// The interface's name.
    pub interface: Option<Arc<str>>,
    /// A VLAN identifier, outer or inner.
    pub vlan: Option<u16>,
    /// The bottom MPLS label.
    pub mpls_label: Option<u32>,
}

/// One approval. Empty lists allow any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Unique name.
    pub id: Arc<str>,
    /// What was approved.
    pub kind: ApprovalKind,
    /// Who answers for it.
    pub owner: Arc<str>,
    /// Ticket, contract or circuit number.
    pub reference: Arc<str>,
    /// Why it is needed.
    pub need: Option<Arc<str>>,
    /// From when on; `None`: always.
    pub valid_from: Option<Timestamp>,
    /// Until when, exclusive.
    pub valid_until: Timestamp,
    /// Networks of the approved endpoint.
    pub peers: Vec<IpNet>,
    /// Ports of either end.
    pub ports: Vec<PortRange>,
    /// IP protocol numbers.
    pub ip_protocols: Vec<u8>,
    /// Tunnel protocols.
    pub tunnels: Vec<Protocol>,
    /// Where it must be seen.
    pub path: Path,
    /// What the line can carry, bits a second; for reports, no verdict asks for it.
    pub capacity: Option<u64>,
    /// Keys of which one must have made its handshakes; empty: whoever has the address. What verifies by one of them is
    /// approved whichever its address.
    pub keys: Vec<Arc<Key>>,
}

impl Approval {
    /// A leased line whose path proves what is on it: an interface, a VLAN or a label, not just a sensor.
    #[must_use]
    pub const fn is_line_by_path(&self) -> bool {
        let Path { interface, vlan, mpls_label, .. } = &self.path;
        matches!(self.kind, ApprovalKind::LeasedLine) && (interface.is_some() || vlan.is_some() || mpls_label.is_some())
    }
}
