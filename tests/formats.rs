//! Every record of every capture in every format: against what is published of that format, field by field, and nothing of a
//! finding is lost. `formats/*.schema.json` say what is published, and where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use bytes::BytesMut;
use common::command::{capture, folder, replay, run};
use common::{OwnedFrame, approval, audit, capture_folders, name, policy, read, settings};
use jsonschema::Validator;
use linewarden::config::Format;
use linewarden::detect::Protocol;
use linewarden::policy::{Approval, ApprovalKind, Label};
use linewarden::record::{Kind, Record};
use linewarden::sink::format::{begin, encode, end};
use linewarden::time::Timestamp;
use serde_json::Value;

fn validator(name: &str) -> Validator {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name);
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

/// Records of all kinds, labels and reasons: with and without an approval, one that has ended, short timeouts, home networks.
fn records() -> Vec<(String, Record)> {
    let approval = |valid_until| Approval {
        id: "lab, \"quoted\"\tand – more".into(),
        kind: ApprovalKind::LeasedLine,
        reference: "-".into(),
        valid_until,
        ..approval("", &["198.51.100.2/32"])
    };
    let mut often = settings();
    often.interfaces = vec!["wan#0".into()];
    often.update_interval = Duration::from_secs(1);
    often.flow.active_timeout = Duration::from_secs(3);
    often.flow.home_nets = vec!["198.51.100.1/32".parse().unwrap()];
    let mut all = Vec::new();
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        for (settings, approvals) in [
            (settings(), Vec::new()),
            (often.clone(), vec![approval(Timestamp::MAX)]),
            (settings(), vec![approval(Timestamp::from_secs(1))]),
        ] {
            let (records, _) = audit(settings, policy(approvals), &frames);
            all.extend(records.into_iter().zip(1..).map(|(mut record, seq)| {
                record.seq = seq;
                (name(&folder).to_owned(), record)
            }));
        }
    }
    for kind in Kind::ALL {
        for label in Label::ALL {
            assert!(all.iter().any(|(_, record)| record.kind == kind && record.verdict == label), "{kind:?} {label:?}");
        }
    }
    all
}

/// The record's line; none where the format has none for it.
fn line(format: Format, record: &Record) -> Option<String> {
    let mut to = BytesMut::new();
    encode(format, record, &mut to);
    let text = String::from_utf8(to.to_vec()).unwrap();
    assert_eq!(text.matches('\n').count(), usize::from(!text.is_empty()), "one line: {text}");
    text.strip_suffix('\n').map(str::to_owned)
}

fn json(format: Format, record: &Record) -> Option<Value> {
    line(format, record).map(|line| serde_json::from_str(&line).unwrap())
}

#[track_caller]
fn check(validator: &Validator, value: &Value, context: &str) {
    if let Err(error) = validator.validate(value) {
        panic!("{context}: {error}\n{value}");
    }
    // One that lets anything pass proves nothing.
    for pointer in ["", "/flow", "/event", "/alert"] {
        let mut wrong = value.clone();
        if let Some(Value::Object(object)) = wrong.pointer_mut(pointer) {
            object.insert("extra".into(), 1.into());
            assert!(!validator.is_valid(&wrong), "{context}: {pointer}");
        }
    }
}

fn has(array: &Value, text: &str) -> bool {
    array.as_array().is_some_and(|array| array.iter().any(|item| item == text))
}

#[test]
fn eve_events_have_the_fields_of_suricatas_schema_alone_and_no_finding_is_lost() {
    let validator = validator("eve.schema.json");
    for (name, record) in records() {
        let is_finding = record.verdict == Label::UnapprovedVpnTunnel;
        let strict = json(Format::EveStrict, &record);
        assert_eq!(strict.is_some(), is_finding || record.kind == Kind::End, "{name}");
        let mut whole = json(Format::Eve, &record).unwrap();
        let own = whole.as_object_mut().unwrap().remove("linewarden").unwrap();
        assert_eq!(serde_json::from_value::<Record>(own).unwrap(), record, "{name}");
        let Some(event) = strict else {
            assert_eq!(whole["event_type"], "linewarden", "{name}: no flow is counted twice");
            continue;
        };
        assert_eq!(event, whole, "{name}: the same but for the object");
        check(&validator, &event, &name);

        let expected = if record.kind == Kind::End { "flow" } else { "alert" };
        assert_eq!(event["event_type"], expected, "{name}");
        assert_eq!(event["src_ip"], record.src_ip.to_string());
        assert_eq!(event["src_port"].as_u64(), record.src_port.map(u64::from));
        assert_eq!(event["dest_ip"], record.dst_ip.to_string());
        assert_eq!(event["dest_port"].as_u64(), record.dst_port.map(u64::from));
        assert_eq!(event["community_id"], record.community_id.to_string());
        assert_eq!(event["flow"]["pkts_toserver"], record.fwd_packets);
        assert_eq!(event["flow"]["bytes_toclient"], record.rev_octets);
        assert_eq!(event["flow_id"], record.flow_id.number() >> 13);
        assert_eq!(event["flow"]["start"].as_str().unwrap()[..26], record.start.to_string()[..26]);
        assert_eq!(event["flow"]["alerted"], is_finding);
        let label = &event["traffic"]["label"];
        assert!(has(label, record.verdict.name()) && has(label, record.reason.name()), "{name}: {event}");
        assert!(record.tunnel.is_none_or(|tunnel| has(&event["traffic"]["id"], tunnel.name())), "{name}: {event}");
        assert!(record.confidence.is_none_or(|confidence| has(label, confidence.name())), "{name}: {event}");
        assert!(
            record.evidence.iter().all(|found| has(&event["metadata"]["flowbits"], &found.code)),
            "{name}: {event}"
        );
        if expected == "alert" {
            let signature = event["alert"]["signature"].as_str().unwrap();
            assert!(signature.contains(record.tunnel.unwrap().name()) && signature.contains(record.reason.name()));
        }
    }
}

#[test]
fn ecs_documents_have_the_fields_and_values_of_the_schema_and_the_whole_record() {
    let validator = validator("ecs.schema.json");
    let mut ids = HashMap::new();
    for (name, record) in records() {
        let document = json(Format::Ecs, &record).unwrap();
        check(&validator, &document, &name);
        let is_finding = record.verdict == Label::UnapprovedVpnTunnel;
        assert_eq!(document["event"]["kind"], if is_finding { "alert" } else { "event" });
        assert_eq!(document["event"]["id"], format!("{}-{}", record.flow_id, record.seq));
        let same = ids.insert(document["event"]["id"].to_string(), record.clone());
        assert!(same.is_none_or(|other| other.flow_id == record.flow_id && other.seq == record.seq));
        assert_eq!(document["source"]["ip"], record.src_ip.to_string());
        assert_eq!(document["destination"]["port"].as_u64(), record.dst_port.map(u64::from));
        assert_eq!(document["source"]["bytes"], record.fwd_octets);
        assert_eq!(document["destination"]["packets"], record.rev_packets);
        assert_eq!(document["network"]["bytes"], record.fwd_octets + record.rev_octets);
        assert_eq!(document["network"]["iana_number"], record.proto.to_string());
        assert_eq!(document["network"]["application"].as_str(), record.tunnel.map(Protocol::name));
        assert_eq!(document["rule"]["id"].as_str(), record.approval.as_ref().map(|approval| &*approval.id));
        assert!(has(&document["tags"], record.verdict.name()));
        let mut own = document["linewarden"].clone();
        for found in own["evidence"].as_array_mut().unwrap() {
            let value: u64 = found["value"].as_str().unwrap().parse().unwrap();
            found["value"] = value.into();
        }
        assert_eq!(serde_json::from_value::<Record>(own).unwrap(), record, "{name}");
    }
}

/// Names and types of Zeek's `conn.log` (docs.zeek.org, `Conn::Info`; ports and addresses: `conn_id`), as far as ours has them.
const CONN: [(&str, &str); 14] = [
    ("ts", "time"),
    ("uid", "string"),
    ("id.orig_h", "addr"),
    ("id.orig_p", "port"),
    ("id.resp_h", "addr"),
    ("id.resp_p", "port"),
    ("proto", "enum"),
    ("ip_proto", "count"),
    ("service", "string"),
    ("duration", "interval"),
    ("orig_pkts", "count"),
    ("resp_pkts", "count"),
    ("vlan", "int"),
    ("inner_vlan", "int"),
];

/// What the documentation ("Zeek Log Formats", and the ASCII writer's) says a value of a type looks like.
fn fits(of_type: &str, text: &str) -> bool {
    if let Some(item) = of_type.split_once('[').map(|(_, item)| item.trim_end_matches(']')) {
        return text == "(empty)" || text.split(',').all(|text| fits(item, text));
    }
    let is_decimal = |text: &str| {
        let parts = text.split_once('.').map(|(whole, part)| [whole, part]);
        parts.is_some_and(|parts| parts.iter().all(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit())))
    };
    text == "-"
        || match of_type {
            "time" | "interval" => is_decimal(text),
            "count" | "int" => text.parse::<u64>().is_ok(),
            "port" => text.parse::<u16>().is_ok(),
            "addr" => text.parse::<std::net::IpAddr>().is_ok(),
            "bool" => ["T", "F"].contains(&text),
            "enum" => ["tcp", "udp", "icmp", "unknown_transport"].contains(&text),
            "string" => !text.is_empty(),
            _ => false,
        }
}

/// The lines of a header, and the names and types of its columns.
fn header() -> (Vec<String>, Vec<(String, String)>) {
    let mut to = BytesMut::new();
    begin(Format::Zeek, Timestamp::from_secs(1_700_000_000), &mut to);
    let text = String::from_utf8(to.to_vec()).unwrap();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let cells = |start: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(start)).unwrap();
        line.split('\t').map(str::to_owned).collect::<Vec<_>>()
    };
    let columns = cells("#fields\t").into_iter().zip(cells("#types\t")).collect();
    (lines, columns)
}

#[test]
fn zeeks_rows_fit_their_header_and_no_finding_is_lost() {
    let (lines, columns) = header();
    let expected =
        ["#separator \\x09", "#set_separator\t,", "#empty_field\t(empty)", "#unset_field\t-", "#path\tlinewarden"];
    assert_eq!(lines[..5], expected);
    assert_eq!(lines[5], "#open\t2023-11-14-22-13-20");
    assert_eq!(lines.len(), 8);
    let mut to = BytesMut::new();
    end(Format::Zeek, Timestamp::from_secs(1_700_000_000), &mut to);
    assert_eq!(&to[..], b"#close\t2023-11-14-22-13-20\n");
    for (name, of_type) in CONN {
        assert!(columns.contains(&(name.to_owned(), of_type.to_owned())), "{name} {of_type}: {columns:?}");
    }
    for (name, record) in records() {
        let line = line(Format::Zeek, &record).unwrap();
        assert!(!line.starts_with('#'));
        let cells: Vec<_> = line.split('\t').collect();
        assert_eq!(cells.len(), columns.len(), "{name}: {line}");
        for ((column, of_type), cell) in columns.iter().zip(&cells) {
            assert!(fits(of_type, cell), "{name}: {column} {of_type} {cell}");
        }
        let cell = |column: &str| cells[columns.iter().position(|(name, _)| name == column).unwrap()];
        assert_eq!(
            [cell("uid"), cell("verdict"), cell("reason")],
            [&*record.flow_id.to_string(), record.verdict.name(), record.reason.name()]
        );
        assert_eq!(cell("service"), record.tunnel.map_or("-", |tunnel| tunnel.name()));
        assert_eq!(cell("confidence"), record.confidence.map_or("-", |confidence| confidence.name()));
        let codes: Vec<_> = record.evidence.iter().map(|found| &*found.code).collect();
        assert_eq!(cell("evidence"), if codes.is_empty() { "(empty)".to_owned() } else { codes.join(",") });
        if record.approval.is_some() {
            assert_eq!(cell("approval"), "lab, \"quoted\"\\x09and – more");
            assert_eq!(cell("approval_reference"), "\\x2d", "a dash is no missing value");
        }
    }
}

#[test]
fn replay_writes_every_format_and_the_same_each_time() {
    let file = capture("wireguard-port-51820");
    for (format, findings) in [("eve", 2), ("eve-strict", 2), ("ecs", 2), ("zeek", 2)] {
        let done = replay([&file], &["--format", format, "--other", "none"]).expect(0);
        assert_eq!(done.out, replay([&file], &["--format", format, "--other", "none"]).expect(0).out);
        let rows: Vec<_> = done.out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rows.len(), findings, "{format}: an update and an end\n{}", done.out);
        assert!(rows.iter().all(|row| row.contains("unapproved_vpn_tunnel") && row.contains("wireguard.response")));
        assert_eq!(done.out.starts_with("#separator"), format == "zeek");
        assert_eq!(done.out.lines().last().unwrap().starts_with("#close\t2026-11-24-07-5"), format == "zeek");
    }
}

/// What the log holds becomes what a replay would have written.
#[test]
fn query_writes_the_log_in_every_format() {
    let folder = folder(&[]);
    let log = folder.path().join("linewarden.ndjson");
    let file = capture("wireguard-port-51820");
    std::fs::write(&log, replay([&file], &[]).expect(0).out).unwrap();
    let rows = |text: String| {
        text.lines()
            .filter(|line| !line.starts_with("#open") && !line.starts_with("#close"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let query = |more: &[&str]| run(["query", log.to_str().unwrap(), "--quiet"].iter().chain(more));
    for format in ["eve", "eve-strict", "ecs", "zeek"] {
        let replayed = rows(replay([&file], &["--format", format]).expect(0).out);
        assert_eq!(rows(query(&["--kind", "all", "--format", format]).expect(0).out), replayed, "{format}");
        let sorted = query(&["--sort", "octets", "--format", format]).expect(0).out;
        assert_eq!(sorted.starts_with("#separator"), format == "zeek");
        assert!(sorted.contains("unapproved_vpn_tunnel"), "{sorted}");
        query(&["--group-by", "label", "--format", format]).expect(64);
    }
}
