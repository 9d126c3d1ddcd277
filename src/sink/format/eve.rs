//! Turns records into events as Suricata's EVE output writes them (its `etc/schema.json`, and "Eve JSON Format" in its guide).
//!
//! An `end` record is a `flow` event, as Suricata writes one a flow; a record of a finding that is still open is an `alert`.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use bytes::BytesMut;
use serde::{Serialize, Serializer};

use super::{is_finding, keyword};
use crate::detect::{Confidence, Protocol};
use crate::flow::{CommunityId, EndReason};
use crate::policy::Reason;
use crate::record::{Kind, Record};
use crate::sink::ndjson;
use crate::time::Timestamp;

/// How much of a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What the schema has a place for: it allows no other field.
    Strict,
    /// Everything.
    Whole,
}

#[derive(Serialize)]
struct Event<'a> {
    timestamp: Time,
    flow_id: u64,
    in_iface: &'a str,
    event_type: &'static str,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    vlan: &'a [u16],
    src_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    dest_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dest_port: Option<u16>,
    proto: Cow<'static, str>,
    community_id: &'a CommunityId,
    host: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<Alert>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    traffic: Traffic<'a>,
    flow: Flow,
    #[serde(skip_serializing_if = "Option::is_none")]
    linewarden: Option<&'a Record>,
}

#[derive(Serialize)]
struct Alert {
    /// Nothing is ever blocked.
    action: &'static str,
    gid: u32,
    signature_id: u32,
    rev: u32,
    signature: String,
    category: &'static str,
    severity: u8,
}

/// What Suricata's rules note of a flow: here, what detectors found.
#[derive(Serialize)]
struct Metadata<'a> {
    flowbits: Vec<&'a str>,
}

#[derive(Serialize)]
struct Traffic<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    id: Vec<&'static str>,
    label: Vec<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Flow {
    pkts_toserver: u64,
    pkts_toclient: u64,
    bytes_toserver: u64,
    bytes_toclient: u64,
    start: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Time>,
    age: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    alerted: bool,
}

/// Says who gave an alert, among the generators that a reader of EVE may know.
const GENERATOR: u32 = 31_800;
/// The class `policy-violation` of Suricata's `classification.config`.
const CATEGORY: &str = "Potential Corporate Privacy Violation";
/// Readers that take numbers for IEEE 754 doubles must not round one: Suricata's own identifiers have 51 bits, too.
const ID_BITS: u32 = 51;

pub(super) fn encode(record: &Record, extent: Extent, to: &mut BytesMut) {
    let event_type = match (record.kind, extent) {
        (Kind::End, _) => "flow",
        _ if is_finding(record) => "alert",
        (_, Extent::Whole) => "linewarden",
        (_, Extent::Strict) => return,
    };
    let event = Event {
        timestamp: Time(record.time),
        flow_id: record.flow_id.number() >> (u64::BITS - ID_BITS),
        in_iface: &record.interface,
        event_type,
        vlan: &record.vlan,
        src_ip: record.src_ip,
        src_port: record.src_port,
        dest_ip: record.dst_ip,
        dest_port: record.dst_port,
        proto: keyword(record.proto),
        community_id: &record.community_id,
        host: &record.sensor,
        alert: (event_type == "alert").then(|| alert(record)),
        metadata: metadata(record),
        traffic: traffic(record),
        flow: flow(record),
        linewarden: (extent == Extent::Whole).then_some(record),
    };
    ndjson::encode(&event, to);
}

fn alert(record: &Record) -> Alert {
    let tunnel = record.tunnel.map_or("", |tunnel| tunnel.name());
    Alert {
        action: "allowed",
        gid: GENERATOR,
        signature_id: signature_id(record.reason),
        rev: 1,
        signature: format!("{}: {tunnel}, {}", record.verdict.name(), record.reason.name()),
        category: CATEGORY,
        severity: match record.confidence {
            Some(Confidence::Certain) => 1,
            Some(Confidence::Likely) => 2,
            _ => 3,
        },
    }
}

/// For good: readers make filters of them.
const fn signature_id(reason: Reason) -> u32 {
    match reason {
        Reason::NoApproval => 1,
        Reason::ApprovalExpired => 2,
        Reason::NotYetValid => 3,
        Reason::IdentityMismatch => 4,
        Reason::WrongPath => 5,
        Reason::ProtocolNotApproved => 6,
        // Reasons of other labels.
        Reason::Approved
        | Reason::ApprovedByKey
        | Reason::IdentityUnverified
        | Reason::LowConfidence
        | Reason::NotATunnel => 0,
    }
}

fn metadata(record: &Record) -> Option<Metadata<'_>> {
    let flowbits: Vec<_> = record.evidence.iter().map(|found| &*found.code).collect();
    (!flowbits.is_empty()).then_some(Metadata { flowbits })
}

fn traffic(record: &Record) -> Traffic<'_> {
    let mut label = vec![record.verdict.name().into(), record.reason.name().into()];
    label.extend(record.confidence.map(|confidence| confidence.name().into()));
    label.extend(record.approval.as_ref().map(|approval| format!("approval/{}", approval.id).into()));
    Traffic { id: record.tunnel.map(Protocol::name).into_iter().collect(), label }
}

fn flow(record: &Record) -> Flow {
    let state = match (record.end_reason, record.rev_packets) {
        (Some(EndReason::EndOfFlow), _) => "closed",
        (_, 0) => "new",
        _ => "established",
    };
    Flow {
        pkts_toserver: record.fwd_packets,
        pkts_toclient: record.rev_packets,
        bytes_toserver: record.fwd_octets,
        bytes_toclient: record.rev_octets,
        start: Time(record.start),
        end: (record.kind == Kind::End).then_some(Time(record.end)),
        age: record.end.since(record.start).as_secs(),
        state,
        reason: record.end_reason.map(|reason| match reason {
            // Suricata ends a closed connection by a timeout of its own.
            EndReason::IdleTimeout | EndReason::EndOfFlow => "timeout",
            EndReason::ActiveTimeout | EndReason::LackOfResources => "forced",
            EndReason::ForcedEnd => "shutdown",
        }),
        alerted: is_finding(record),
    }
}

/// Microseconds, and the zone without a colon.
struct Time(Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        write!(f, "{}+0000", text.get(..26).unwrap_or(&text))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
