//! Turns records into a log of Zeek's tab-separated form (its documentation, "Zeek Log Formats"), with the names of `conn.log`
//! for what that has, too.

use std::fmt::{Display, Write};

use bytes::{BufMut, BytesMut};

use crate::detect::{Confidence, Protocol};
use crate::flow::FlowId;
use crate::record::Record;
use crate::time::Timestamp;

/// A column: its name, its type, and how its text is made.
type Column = (&'static str, &'static str, fn(&Record) -> Cell);

/// What stands in a column.
enum Cell {
    Unset,
    Text(String),
    Set(Vec<String>),
}

#[rustfmt::skip]
const COLUMNS: &[Column] = &[
    ("ts", "time", |record| time(record.start)),
    ("uid", "string", |record| text(record.flow_id)),
    ("id.orig_h", "addr", |record| text(record.src_ip)),
    ("id.orig_p", "port", |record| text(record.src_port.unwrap_or(0))),
    ("id.resp_h", "addr", |record| text(record.dst_ip)),
    ("id.resp_p", "port", |record| text(record.dst_port.unwrap_or(0))),
    ("proto", "enum", |record| text(transport(record.proto))),
    ("ip_proto", "count", |record| text(record.proto)),
    ("service", "string", |record| optional(record.tunnel.map(Protocol::name))),
    ("duration", "interval", |record| seconds(record.end.since(record.start).as_nanos())),
    ("orig_pkts", "count", |record| text(record.fwd_packets)),
    ("orig_frame_bytes", "count", |record| text(record.fwd_octets)),
    ("resp_pkts", "count", |record| text(record.rev_packets)),
    ("resp_frame_bytes", "count", |record| text(record.rev_octets)),
    ("vlan", "int", |record| optional(record.vlan.first())),
    ("inner_vlan", "int", |record| optional(record.vlan.get(1))),
    ("community_id", "string", |record| text(record.community_id)),
    ("record", "string", |record| text(record.kind.name())),
    ("record_ts", "time", |record| time(record.time)),
    ("seq", "count", |record| text(record.seq)),
    ("verdict", "string", |record| text(record.verdict.name())),
    ("reason", "string", |record| text(record.reason.name())),
    ("confidence", "string", |record| optional(record.confidence.map(Confidence::name))),
    ("evidence", "vector[string]", |record| set(record.evidence.iter().map(|found| &found.code))),
    ("midstream", "bool", |record| flag(record.midstream)),
    ("approval", "string", |record| optional(record.approval.as_ref().map(|approval| &approval.id))),
    ("approval_reference", "string", |record| optional(record.approval.as_ref().map(|approval| &approval.reference))),
    ("approval_owner", "string", |record| optional(record.approval.as_ref().map(|approval| &approval.owner))),
    ("approval_until", "time", |record| record.approval.as_ref().map_or(Cell::Unset, |approval| time(approval.valid_until))),
    ("identity", "string", |record| optional(record.approval.as_ref().and_then(|approval| approval.identity.as_ref()))),
    ("key", "string", |record| optional(record.approval.as_ref().and_then(|approval| approval.key.as_ref()))),
    ("direction", "string", |record| text(direction(record))),
    ("orig_known", "bool", |record| flag(record.originator_known)),
    ("end_reason", "string", |record| optional(record.end_reason.as_ref().map(name))),
    ("continues", "string", |record| optional(record.continues)),
    ("outer_uid", "string", |record| optional(record.outer_flow_id)),
    ("related_uids", "set[string]", |record| set(record.related_flow_ids.iter().map(FlowId::to_string))),
    ("spi", "vector[count]", |record| set(&record.spi)),
    ("gre_key", "vector[count]", |record| set(&record.gre_key)),
    ("mpls_labels", "vector[count]", |record| set(&record.mpls_labels)),
    ("inspections", "count", |record| text(record.inspections)),
    ("sensor", "string", |record| text(&record.sensor)),
    ("interface", "string", |record| text(&record.interface)),
    ("policy_revision", "string", |record| text(&record.policy_revision)),
];

const UNSET: &str = "-";
const EMPTY: &str = "(empty)";

pub(super) fn encode(record: &Record, to: &mut BytesMut) {
    for (number, (.., cell)) in COLUMNS.iter().enumerate() {
        if number > 0 {
            to.put_u8(b'\t');
        }
        match cell(record) {
            Cell::Unset => to.put_slice(UNSET.as_bytes()),
            Cell::Text(text) => to.put_slice(escaped(&text, false).as_bytes()),
            Cell::Set(items) if items.is_empty() => to.put_slice(EMPTY.as_bytes()),
            Cell::Set(items) => {
                let items: Vec<_> = items.iter().map(|item| escaped(item, true)).collect();
                to.put_slice(items.join(",").as_bytes());
            }
        }
    }
    to.put_u8(b'\n');
}

pub(super) fn header(at: Timestamp) -> String {
    let names: Vec<_> = COLUMNS.iter().map(|(name, ..)| *name).collect();
    let types: Vec<_> = COLUMNS.iter().map(|(_, of_type, _)| *of_type).collect();
    format!(
        "#separator \\x09\n#set_separator\t,\n#empty_field\t{EMPTY}\n#unset_field\t{UNSET}\n#path\tlinewarden\n#open\t{}\n#fields\t{}\n#types\t{}\n",
        stamp(at),
        names.join("\t"),
        types.join("\t")
    )
}

pub(super) fn footer(at: Timestamp) -> String {
    format!("#close\t{}\n", stamp(at))
}

/// `2026-11-24-07-54-50`, in UTC.
fn stamp(at: Timestamp) -> String {
    at.to_string().chars().take(19).map(|c| if matches!(c, 'T' | ':') { '-' } else { c }).collect()
}

/// Zeek's `transport_proto`.
const fn transport(protocol: u8) -> &'static str {
    match protocol {
        1 | 58 => "icmp",
        6 => "tcp",
        17 => "udp",
        _ => "unknown_transport",
    }
}

fn text(value: impl Display) -> Cell {
    Cell::Text(value.to_string())
}

fn optional(value: Option<impl Display>) -> Cell {
    value.map_or(Cell::Unset, text)
}

fn set<T: Display>(items: impl IntoIterator<Item = T>) -> Cell {
    Cell::Set(items.into_iter().map(|item| item.to_string()).collect())
}

fn flag(is_so: bool) -> Cell {
    text(if is_so { "T" } else { "F" })
}

fn time(at: Timestamp) -> Cell {
    seconds(at.as_nanos().into())
}

fn seconds(nanos: u128) -> Cell {
    let micros = nanos / 1000;
    Cell::Text(format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000))
}

fn direction(record: &Record) -> String {
    name(&record.direction)
}

/// The name in records.
fn name(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// What would be taken for something else is written by its octets.
fn escaped(value: &str, is_item: bool) -> String {
    let mut to = String::with_capacity(value.len());
    let reads_as_nothing = value == UNSET || value == EMPTY;
    for (place, character) in value.chars().enumerate() {
        let is_special = character.is_control() || character == '\\' || (is_item && character == ',');
        // A line that begins with it would be a header.
        let begins = place == 0 && (reads_as_nothing || character == '#');
        if is_special || begins {
            let mut octets = [0; 4];
            for octet in character.encode_utf8(&mut octets).bytes() {
                let _ = write!(to, "\\x{octet:02x}");
            }
        } else {
            to.push(character);
        }
    }
    // An empty text is no unset one.
    if to.is_empty() { EMPTY.to_owned() } else { to }
}
