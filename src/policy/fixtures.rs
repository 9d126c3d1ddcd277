//! What the tests of this room share.

use super::{Approval, ApprovalKind, Path, Policy, Subject};
use crate::detect::{Confidence, Detection, Identity, Protocol};
use crate::time::Timestamp;

pub const NOW: u64 = 1000;

pub fn approval(id: &str, peers: &[&str]) -> Approval {
    Approval {
        id: id.into(),
        kind: ApprovalKind::Vpn,
        owner: "network team".into(),
        reference: "CHG-1".into(),
        need: None,
        valid_from: None,
        valid_until: Timestamp::from_secs(NOW + 1),
        peers: peers.iter().map(|peer| peer.parse().unwrap()).collect(),
        ports: Vec::new(),
        ip_protocols: Vec::new(),
        tunnels: Vec::new(),
        path: Path::default(),
        capacity: None,
        keys: Vec::new(),
    }
}

pub fn line(id: &str, peers: &[&str], vlan: u16) -> Approval {
    let path = Path { vlan: Some(vlan), ..Path::default() };
    Approval { kind: ApprovalKind::LeasedLine, path, ..approval(id, peers) }
}

pub fn subject() -> Subject<'static> {
    Subject {
        addresses: ["10.0.0.1".parse().unwrap(), "198.51.100.2".parse().unwrap()],
        ports: Some([40_000, 51_820]),
        protocol: 17,
        interface: "wan0",
        vlan: [100, 0],
        mpls_labels: [None, Some(16)],
    }
}

pub fn found(confidence: Confidence) -> Option<Detection> {
    Some(Detection { protocol: Protocol::Wireguard, confidence, midstream: false, identity: Identity::default() })
}

pub fn policy(approvals: Vec<Approval>) -> Policy {
    Policy::new("sensor".into(), Confidence::Likely, "revision".into(), approvals)
}
