//! Turns a flow and its verdict into a [`Record`], linewarden's own versioned format: one JSON object a line.
//! Every output is a pure function of it. The JSON Schema is `tests/record.schema.json`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::detect::{Confidence, Protocol};
use crate::flow::{CommunityId, Direction, EndReason, FlowId};
use crate::policy::{Label, Reason};
use crate::time::Timestamp;

/// Version of the format; grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// What a record reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The flow's first packet.
    Start,
    /// The verdict changed, or the update interval passed.
    Update,
    /// The flow ended; counters are final.
    End,
}

impl Kind {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Start, Self::Update, Self::End];

    /// The string in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Update => "update",
            Self::End => "end",
        }
    }
}

/// Which way the flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowDirection {
    /// From a home network to another.
    Outbound,
    /// From another network to a home network.
    Inbound,
    /// Between home networks.
    Internal,
    /// Between other networks.
    External,
    /// No home networks are configured: the source spoke first (RFC 5103 `biflowDirection` 1).
    Initiator,
    /// Neither home networks nor the first packet tell.
    Unknown,
}

/// One kind of evidence, as recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceRecord {
    /// `protocol.fact`, see `linewarden detectors --codes`.
    pub code: Cow<'static, str>,
    /// For which protocol it speaks.
    pub protocol: Protocol,
    /// How sure it made one.
    pub confidence: Confidence,
    /// Packet number in the capture (live: of the worker), from 1.
    pub packet: u64,
    /// Time of that packet.
    pub time: Timestamp,
    /// `forward`: from `src` to `dst`.
    pub direction: Direction,
    /// A number that goes with the code, such as an SPI.
    pub value: u64,
    /// Inspected packets that showed it.
    pub count: u32,
}

/// The approval that covers the flow, or the nearest that failed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalRecord {
    /// Unique name.
    pub id: Arc<str>,
    /// Who answers for it.
    pub owner: Arc<str>,
    /// Ticket, contract or circuit number.
    pub reference: Arc<str>,
    /// End of validity.
    pub valid_until: Timestamp,
    /// What the flow's handshakes say of the keys that the approval pins for this tunnel; null where it pins none.
    pub identity: Option<Cow<'static, str>>,
    /// Fingerprint of the pinned key that made one.
    pub key: Option<Arc<str>>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format, [`VERSION`].
    pub version: u32,
    /// Sequence number within one run of the sensor, from 1: a gap is a lost record.
    pub seq: u64,
    /// What is reported.
    pub kind: Kind,
    /// Time of the packet that caused the record (`end`: of the end's detection in packet time).
    pub time: Timestamp,
    /// The sensor's name.
    pub sensor: Arc<str>,
    /// Interface, or capture file, of the first packet.
    pub interface: Arc<str>,
    /// VLAN identifiers, outermost first.
    pub vlan: Vec<u16>,
    /// Bottom MPLS labels seen, forward first.
    pub mpls_labels: Vec<u32>,
    /// 16 hexadecimal digits; the same for all records of a flow, live and replayed.
    pub flow_id: FlowId,
    /// The flow that this one continues behind an active timeout.
    pub continues: Option<FlowId>,
    /// The tunnel's flow that this one is inside of: where its first packet came.
    pub outer_flow_id: Option<FlowId>,
    /// Flows of the same tunnel between the same hosts: IKE's of its ESP, and others. At most 8.
    pub related_flow_ids: Vec<FlowId>,
    /// Community ID v1.
    pub community_id: CommunityId,
    /// Originator's address where known, else the first speaker's.
    pub src_ip: IpAddr,
    /// Its port; null where the protocol has none.
    pub src_port: Option<u16>,
    /// The other address.
    pub dst_ip: IpAddr,
    /// Its port.
    pub dst_port: Option<u16>,
    /// IP protocol number.
    pub proto: u8,
    /// Which way.
    pub direction: FlowDirection,
    /// Whether `src` is known to have opened the flow.
    pub originator_known: bool,
    /// Packets from `src` to `dst`.
    pub fwd_packets: u64,
    /// Octets of these frames on the wire (IPFIX `layer2OctetTotalCount`).
    pub fwd_octets: u64,
    /// Packets from `dst` to `src`.
    pub rev_packets: u64,
    /// Octets of these frames on the wire.
    pub rev_octets: u64,
    /// Time of the first packet.
    pub start: Timestamp,
    /// Time of the latest packet.
    pub end: Timestamp,
    /// Set in `end` records.
    pub end_reason: Option<EndReason>,
    /// The label.
    pub verdict: Label,
    /// Why.
    pub reason: Reason,
    /// Tunnel protocol; null where there is no sign of one.
    pub tunnel: Option<Protocol>,
    /// How sure; null where there is no sign of a tunnel.
    pub confidence: Option<Confidence>,
    /// The tunnel was up before its first packet was seen.
    pub midstream: bool,
    /// Calls of detectors that the flow cost so far; 255: that or more.
    pub inspections: u8,
    /// Everything found, in order of occurrence.
    pub evidence: Vec<EvidenceRecord>,
    /// SPIs of ESP or AH, forward first, latest of each direction.
    pub spi: Vec<u32>,
    /// GRE keys, likewise (PPTP: call identifiers).
    pub gre_key: Vec<u32>,
    /// Set where an approval decided.
    pub approval: Option<ApprovalRecord>,
    /// SHA-256 of the approvals in force.
    pub policy_revision: Arc<str>,
}

#[cfg(test)]
pub(crate) mod tests_support {
    use super::{FlowDirection, Kind, Record, VERSION};
    use crate::flow::{CommunityId, EndReason, FlowId};
    use crate::policy::{Label, Reason};
    use crate::time::Timestamp;

    /// A record of a flow that is nothing special.
    pub fn record(seq: u64) -> Record {
        Record {
            version: VERSION,
            seq,
            kind: Kind::End,
            time: Timestamp::from_secs(1_700_000_010),
            sensor: "sensor".into(),
            interface: "eth0".into(),
            vlan: Vec::new(),
            mpls_labels: Vec::new(),
            flow_id: FlowId::Number(0x0123_4567_89ab_cdef),
            continues: None,
            outer_flow_id: None,
            related_flow_ids: Vec::new(),
            community_id: CommunityId::Digest([7; 20]),
            src_ip: "198.51.100.1".parse().unwrap(),
            src_port: Some(40_000),
            dst_ip: "198.51.100.2".parse().unwrap(),
            dst_port: Some(53),
            proto: 17,
            direction: FlowDirection::Initiator,
            originator_known: true,
            fwd_packets: 1,
            fwd_octets: 80,
            rev_packets: 1,
            rev_octets: 120,
            start: Timestamp::from_secs(1_700_000_000),
            end: Timestamp::from_secs(1_700_000_001),
            end_reason: Some(EndReason::IdleTimeout),
            verdict: Label::Other,
            reason: Reason::NotATunnel,
            tunnel: None,
            confidence: None,
            midstream: false,
            inspections: 0,
            evidence: Vec::new(),
            spi: Vec::new(),
            gre_key: Vec::new(),
            approval: None,
            policy_revision: "none".into(),
        }
    }
}
