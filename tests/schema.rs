//! Every record of every capture, under settings and approvals of all kinds, validates against `record.schema.json`;
//! and the schema knows what the code knows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::time::Duration;

use common::{OwnedFrame, approval, audit, capture_folders, name, policy, read, settings};
use jsonschema::Validator;
use linewarden::detect::Protocol;
use linewarden::policy::{Approval, ApprovalKind, Label, Reason};
use linewarden::record::Record;
use linewarden::time::Timestamp;
use serde_json::Value;

fn schema() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/record.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn validator() -> Validator {
    jsonschema::options().should_validate_formats(true).build(&schema()).unwrap()
}

fn until(valid_until: Timestamp) -> Approval {
    let lab = approval("lab", &["198.51.100.2/32", "2001:db8:1::/64"]);
    Approval { kind: ApprovalKind::LeasedLine, valid_until, ..lab }
}

fn check(validator: &Validator, records: &[Record], context: &str) {
    for record in records {
        let mut value = serde_json::to_value(record).unwrap();
        // Sequence numbers and the revision are given at the edge.
        value["seq"] = 1.into();
        value["policy_revision"] = "0".repeat(64).into();
        if let Err(error) = validator.validate(&value) {
            panic!("{context}: {error}\n{value}");
        }
        assert_eq!(&serde_json::from_value::<Record>(serde_json::to_value(record).unwrap()).unwrap(), record);
    }
}

#[test]
fn every_record_validates() {
    let validator = validator();
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        let mut often = settings();
        often.update_interval = Duration::from_secs(1);
        often.flow.idle_timeout = Duration::from_secs(1);
        often.flow.active_timeout = Duration::from_secs(3);
        often.flow.home_nets = vec!["198.51.100.1/32".parse().unwrap()];
        for (settings, approvals) in [
            (settings(), Vec::new()),
            (often.clone(), vec![until(Timestamp::MAX)]),
            (often, vec![until(Timestamp::from_secs(1))]),
        ] {
            let (records, _) = audit(settings, policy(approvals), &frames);
            check(&validator, &records, name(&folder));
        }
    }
}

#[test]
fn the_schema_refuses_what_no_record_is() {
    let validator = validator();
    let folder = &capture_folders()[0];
    let frames = read(&folder.join("input.pcap"));
    let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    let (records, _) = audit(settings(), policy(Vec::new()), &frames);
    let mut good = serde_json::to_value(&records[0]).unwrap();
    good["seq"] = 1.into();
    good["policy_revision"] = "0".repeat(64).into();
    assert!(validator.is_valid(&good));
    for (field, value) in [
        ("version", Value::from(2)),
        ("seq", Value::from(0)),
        ("verdict", Value::from("fine")),
        ("src_ip", Value::from("somewhere")),
        ("time", Value::from("yesterday")),
        ("extra", Value::from(1)),
        ("end_reason", Value::from("idle_timeout")),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(!validator.is_valid(&bad), "{field}");
    }
}

#[test]
fn names_are_those_of_the_code() {
    let schema = schema();
    let names = |pointer: &str| -> Vec<String> {
        schema
            .pointer(pointer)
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|v| v.as_str())
            .map(str::to_owned)
            .collect()
    };
    let all: Vec<_> = Protocol::ALL.iter().map(|protocol| protocol.name().to_owned()).collect();
    assert_eq!(names("/$defs/tunnel/enum"), all);
    assert_eq!(names("/properties/verdict/enum"), Label::ALL.map(|label| label.name().to_owned()));
    assert_eq!(names("/properties/reason/enum"), Reason::ALL.map(|reason| reason.name().to_owned()));
}
