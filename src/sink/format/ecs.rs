//! Turns records into documents of the Elastic Common Schema (ECS field reference), with the record whole under `linewarden`.

use std::net::IpAddr;

use bytes::BytesMut;
use serde::Serialize;
use serde_json::{Value, json};

use super::{is_finding, keyword};
use crate::detect::Protocol;
use crate::flow::CommunityId;
use crate::record::{FlowDirection, Kind, Record};
use crate::sink::ndjson;
use crate::sink::table::endpoint;
use crate::time::Timestamp;

/// Of the schema; its later versions have all these fields, too.
const VERSION: &str = "8.17.0";

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Timestamp,
    ecs: Value,
    message: String,
    tags: [&'static str; 1],
    event: Event<'a>,
    network: Network<'a>,
    source: End,
    destination: End,
    related: Value,
    observer: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    rule: Value,
    linewarden: Value,
}

#[derive(Serialize)]
struct Event<'a> {
    kind: &'static str,
    category: [&'static str; 1],
    #[serde(rename = "type")]
    of_type: [&'static str; 2],
    action: &'static str,
    module: &'static str,
    dataset: &'static str,
    provider: &'static str,
    id: String,
    sequence: u64,
    start: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Timestamp>,
    /// Nanoseconds.
    duration: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct Network<'a> {
    #[serde(rename = "type")]
    of_type: &'static str,
    transport: String,
    iana_number: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<&'static str>,
    direction: &'static str,
    community_id: &'a CommunityId,
    bytes: u64,
    packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inner: Option<Value>,
}

#[derive(Serialize)]
struct End {
    ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    bytes: u64,
    packets: u64,
}

pub(super) fn encode(record: &Record, to: &mut BytesMut) {
    let (of_type, action) = match record.kind {
        Kind::Start => (["connection", "start"], "flow_started"),
        Kind::Update => (["connection", "info"], "flow_updated"),
        Kind::End => (["connection", "end"], "flow_ended"),
    };
    // Elasticsearch tells VLANs by text.
    let mut vlans = record.vlan.iter().map(|vlan| json!({ "id": vlan.to_string() }));
    let document = Document {
        timestamp: record.time,
        ecs: json!({ "version": VERSION }),
        message: message(record),
        tags: [record.verdict.name()],
        event: Event {
            kind: if is_finding(record) { "alert" } else { "event" },
            category: ["network"],
            of_type,
            action,
            module: "linewarden",
            dataset: "linewarden.flow",
            provider: "linewarden",
            id: format!("{}-{}", record.flow_id, record.seq),
            sequence: record.seq,
            start: record.start,
            end: (record.kind == Kind::End).then_some(record.end),
            duration: u64::try_from(record.end.since(record.start).as_nanos()).unwrap_or(u64::MAX),
            reason: record.reason.meaning(),
        },
        network: Network {
            of_type: if record.src_ip.is_ipv4() { "ipv4" } else { "ipv6" },
            transport: keyword(record.proto).to_lowercase(),
            iana_number: record.proto.to_string(),
            application: record.tunnel.map(Protocol::name),
            direction: match record.direction {
                FlowDirection::Outbound => "outbound",
                FlowDirection::Inbound => "inbound",
                FlowDirection::Internal => "internal",
                FlowDirection::External => "external",
                FlowDirection::Initiator | FlowDirection::Unknown => "unknown",
            },
            community_id: &record.community_id,
            bytes: record.fwd_octets + record.rev_octets,
            packets: record.fwd_packets + record.rev_packets,
            vlan: vlans.next(),
            inner: vlans.next().map(|vlan| json!({ "vlan": vlan })),
        },
        source: End { ip: record.src_ip, port: record.src_port, bytes: record.fwd_octets, packets: record.fwd_packets },
        destination: End {
            ip: record.dst_ip,
            port: record.dst_port,
            bytes: record.rev_octets,
            packets: record.rev_packets,
        },
        related: json!({ "ip": [record.src_ip, record.dst_ip] }),
        observer: json!({
            "name": record.sensor,
            "product": "linewarden",
            "type": "sensor",
            "version": env!("CARGO_PKG_VERSION"),
            "ingress": { "interface": { "name": record.interface } },
        }),
        rule: record.approval.as_ref().map_or(
            Value::Null,
            |approval| json!({ "id": approval.id, "reference": approval.reference, "ruleset": record.policy_revision }),
        ),
        linewarden: own(record),
    };
    ndjson::encode(&document, to);
}

/// The record, with values of evidence as texts: Elasticsearch refuses a whole document for a number of 64 bits.
fn own(record: &Record) -> Value {
    let mut own = serde_json::to_value(record).unwrap_or_default();
    let found = own.get_mut("evidence").and_then(Value::as_array_mut);
    for value in found.into_iter().flatten().filter_map(|found| found.get_mut("value")) {
        *value = value.to_string().into();
    }
    own
}

fn message(record: &Record) -> String {
    let tunnel = record.tunnel.map_or("no tunnel", |tunnel| tunnel.name());
    format!(
        "{}: {tunnel}, {} {} -> {}, {}",
        record.verdict.name(),
        keyword(record.proto).to_lowercase(),
        endpoint(record.src_ip, record.src_port),
        endpoint(record.dst_ip, record.dst_port),
        record.reason.name()
    )
}
