//! What sensors say and records tell, made up, and what a report makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::detect::{Confidence, Protocol};
use crate::flow::FlowId;
use crate::policy::ApprovalKind;
use crate::record::tests_support::record;
use crate::record::{ApprovalRecord, FlowDirection, Kind, Record};
use crate::sink::ndjson::encode;
use crate::sink::sensor::{
    ApprovalInForce, Coverage, InterfaceCoverage, LinkState, PolicyInForce, ReloadFailed, Start, Stop, What,
};
use crate::store::Line;

/// Midnight.
const ZERO: u64 = 1_700_006_400;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(ZERO + seconds)
}

fn period(from: u64, to: u64) -> Period {
    Period::new(at(from), at(to))
}

/// What a sensor says, a line after the other.
struct Said(Vec<SensorEvent>);

impl Said {
    fn say(&mut self, seconds: u64, what: What) -> &mut Self {
        let seq = if matches!(what, What::Start(_)) { 1 } else { self.0.last().map_or(1, |event| event.seq + 1) };
        self.0.push(SensorEvent { version: 1, seq, time: at(seconds), sensor: "s".into(), what });
        self
    }

    fn start(&mut self, seconds: u64, interfaces: &[&str]) -> &mut Self {
        let start = Start {
            program_version: "1".into(),
            settings_sha256: "0".into(),
            interfaces: interfaces.iter().map(|name| (*name).into()).collect(),
            workers: 1,
            capabilities: Vec::new(),
            kernel_fast_path: false,
        };
        self.say(seconds, What::Start(start))
    }

    /// Whole minutes of these interfaces, from one time to another.
    fn minutes(&mut self, from: u64, to: u64, interfaces: &[&str]) -> &mut Self {
        for since in (from..to).step_by(60) {
            self.minute(since, (since + 60).min(to), interfaces, |_| ());
        }
        self
    }

    fn minute(&mut self, since: u64, to: u64, names: &[&str], edit: impl Fn(&mut InterfaceCoverage)) -> &mut Self {
        let interfaces = names.iter().map(|name| {
            let mut of = InterfaceCoverage {
                interface: (*name).into(),
                link: LinkState::Up,
                packets: 2000,
                octets: 200_000,
                dropped_kernel: Some(0),
                flows_ended: 30,
                flows_one_way: 3,
                ..InterfaceCoverage::default()
            };
            edit(&mut of);
            of
        });
        let coverage = Coverage {
            since: at(since),
            interfaces: interfaces.collect(),
            records_written: 10,
            records_lost: 0,
            worker_lag_ns: 0,
        };
        self.say(to, What::Coverage(coverage))
    }

    fn stop(&mut self, seconds: u64, clean: bool) -> &mut Self {
        let stop = Stop {
            clean,
            packets: 0,
            classified: 0,
            undecodable: 0,
            dropped_kernel: None,
            dropped_nic: 0,
            flows: 0,
            records: 0,
            records_lost: 0,
        };
        self.say(seconds, What::Stop(stop))
    }

    fn policy(&mut self, seconds: u64, revision: &str, approvals: &[ApprovalInForce]) -> &mut Self {
        let policy = PolicyInForce { revision: revision.into(), approvals: approvals.to_vec() };
        self.say(seconds, What::Policy(policy))
    }

    fn sensors(&self, period: Period) -> Sensors {
        let mut sensors = Sensors::new(period);
        let lines: Vec<u8> =
            self.0.iter().flat_map(|event| serde_json::to_vec(event).unwrap().into_iter().chain([b'\n'])).collect();
        sensors.lines(period, std::path::Path::new("sensor.ndjson"), &lines);
        assert_eq!(sensors.damaged, 0);
        sensors
    }

    fn report(&self, period: Period, records: &[Record]) -> Report {
        let report = report(period, records, Some(self.sensors(period)));
        let schema = include_str!("../../../tests/report.schema.json");
        let validator = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        if let Err(error) = validator.validate(&json) {
            panic!("{error} at {}", error.instance_path());
        }
        report
    }
}

fn report(period: Period, records: &[Record], sensors: Option<Sensors>) -> Report {
    let mut flows = Flows::new(period);
    let look = flows.look();
    for record in records {
        let mut part = Part::default();
        let mut octets = BytesMut::new();
        encode(record, &mut octets);
        look.take(&mut part, &Line::parse(&octets).unwrap(), &octets);
        flows.merge(part);
    }
    let maker = Maker { at: period.to, by: "me".into(), logs: Vec::new(), explain: "explain".into() };
    Report::new(period, maker, flows, sensors, Vec::new(), &crate::store::Report::default())
}

/// Interfaces, from, to in seconds, why and how much.
fn gaps(report: &Report) -> Vec<(String, u64, u64, Why, Option<u64>)> {
    let of = |gap: &Gap| {
        let seconds = |time: Timestamp| time.since(at(0)).as_secs();
        (gap.interfaces.join(","), seconds(gap.from), seconds(gap.to), gap.why, gap.amount)
    };
    report.gaps.iter().map(of).collect()
}

fn shares(report: &Report) -> Vec<(String, f64)> {
    let interfaces = report.sensors.iter().flat_map(|sensor| &sensor.interfaces);
    interfaces.map(|of| (of.interface.to_string(), of.covered_share)).collect()
}

const BOTH: &[&str] = &["wan0", "wan1"];

#[test]
fn a_range_without_a_gap_is_complete() {
    let mut said = Said(Vec::new());
    said.start(0, BOTH).minutes(0, 7200, BOTH).stop(7200, true);
    // The range cuts minutes at both ends.
    let report = said.report(period(90, 7110), &[]);
    assert_eq!(report.evidence.doubts, Vec::<String>::new());
    assert!(report.evidence.complete);
    assert_eq!(shares(&report), [("wan0".to_owned(), 1.0), ("wan1".to_owned(), 1.0)]);
    assert_eq!(gaps(&report), []);
    assert_eq!((report.sensors[0].starts, report.sensors[0].program_version.as_deref()), (0, Some("1")));
}

#[test]
fn holes_have_their_reasons() {
    let mut said = Said(Vec::new());
    said.start(60, BOTH).minutes(60, 600, BOTH).stop(600, true);
    said.start(900, BOTH).minutes(900, 1200, BOTH);
    said.start(1260, BOTH).minutes(1260, 1500, BOTH).stop(1500, false);
    said.start(1800, &["wan0"]).minutes(1800, 2400, &["wan0"]).stop(2400, true);
    said.start(2400, BOTH).minutes(2400, 3000, BOTH);
    let report = said.report(period(0, 3600), &[]);
    let all = String::new;
    assert_eq!(
        gaps(&report),
        [
            (all(), 0, 60, Why::NothingBefore, None),
            (all(), 600, 900, Why::Stopped, None),
            (all(), 1200, 1260, Why::Killed, None),
            ("wan0".to_owned(), 1500, 1800, Why::Failed, None),
            ("wan1".to_owned(), 1500, 2400, Why::NotCaptured, None),
            (all(), 3000, 3600, Why::NothingAfter, None),
        ]
    );
    assert_eq!(shares(&report), [("wan0".to_owned(), 2280.0 / 3600.0), ("wan1".to_owned(), 1680.0 / 3600.0)]);
    assert!(!report.evidence.complete);
}

#[test]
fn events_that_are_missing_are_a_hole() {
    let mut said = Said(Vec::new());
    said.start(0, BOTH).minutes(0, 600, BOTH);
    said.0.last_mut().unwrap().seq += 2;
    said.minutes(720, 1200, BOTH);
    let report = said.report(period(0, 1200), &[]);
    assert_eq!(gaps(&report), [(String::new(), 600, 720, Why::EventsLost, None)]);
    assert!(
        report.evidence.doubts.iter().any(|doubt| doubt.contains("2 events of what it says of itself are missing"))
    );
}

#[test]
fn the_minute_that_is_running_is_no_gap() {
    let mut said = Said(Vec::new());
    said.start(0, BOTH).minutes(0, 600, BOTH);
    let report = said.report(period(0, 650), &[]);
    assert!(report.evidence.complete, "{:?}", report.evidence.doubts);
    assert_eq!(shares(&report), BOTH.iter().map(|name| ((*name).to_owned(), 1.0)).collect::<Vec<_>>());
    let late = said.report(period(0, 900), &[]);
    assert_eq!(gaps(&late), [(String::new(), 600, 900, Why::NothingAfter, None)]);
}

#[test]
fn what_is_amiss_in_minutes_that_follow_each_other_is_one_gap() {
    let mut said = Said(Vec::new());
    said.start(0, BOTH).minutes(0, 60, BOTH);
    for since in [60, 120] {
        said.minute(since, since + 60, BOTH, |of| {
            if &*of.interface == "wan1" {
                (of.link, of.without_link_seconds) = (LinkState::Down, 40);
            }
        });
    }
    said.minute(180, 240, BOTH, |of| of.dropped_kernel = Some(7));
    said.minutes(240, 300, BOTH);
    for (number, since) in (300..1200).step_by(60).enumerate() {
        said.minute(since, since + 60, &["wan0"], |of| of.longest_silence_seconds = 60 * (number as u64 + 1));
    }
    let report = said.report(period(0, 1200), &[]);
    let gaps = gaps(&report);
    let wan = |name: &str| name.to_owned();
    assert_eq!(gaps[0], (wan("wan1"), 60, 180, Why::Link, Some(80)));
    assert!(gaps.contains(&(wan("wan0"), 180, 240, Why::Drops, Some(7))), "{gaps:?}");
    assert!(gaps.contains(&(wan("wan1"), 180, 240, Why::Drops, Some(7))), "{gaps:?}");
    // Told from the tenth minute on, with its whole length.
    assert!(gaps.contains(&(wan("wan0"), 300, 1200, Why::Silence, Some(900))), "{gaps:?}");
    let doubts = report.evidence.doubts.join("\n");
    for doubt in [
        "wan1 of s: the link was not up for 80 s",
        "wan0 of s: the kernel dropped 7 packets",
        "wan0 of s: no packet for 900 s",
    ] {
        assert!(doubts.contains(doubt), "{doubts}");
    }
}

#[test]
fn half_a_link_and_packets_that_nobody_can_read_are_doubted() {
    let mut said = Said(Vec::new());
    said.start(0, &["wan0"]).minute(0, 60, &["wan0"], |of| {
        of.flows_one_way = 28;
        of.undecodable = BTreeMap::from([("bad_ip_header".to_owned(), 30), ("not_ip".to_owned(), 900)]);
        of.dropped_kernel = None;
    });
    let report = said.report(period(0, 60), &[]);
    let doubts = report.evidence.doubts.join("\n");
    for doubt in
        ["one direction only", "a hundredth of the packets could not be read", "nobody counts what the kernel drops"]
    {
        assert!(doubts.contains(doubt), "{doubts}");
    }
    let of = &report.sensors[0].interfaces[0];
    assert_eq!((of.unreadable, of.not_ip, of.dropped_kernel), (30, 900, None));
}

#[test]
fn without_a_sensors_word_nothing_is_complete() {
    let report = report(period(0, 60), &[], None);
    assert!(!report.evidence.complete);
    assert!(report.evidence.doubts[0].contains("no sensor.ndjson that can be read"));
}

const DAY: u64 = 86_400;

fn approval(id: &str, until_days: u64) -> ApprovalInForce {
    ApprovalInForce {
        id: id.into(),
        kind: ApprovalKind::Vpn,
        owner: "network team".into(),
        reference: "CHG-1".into(),
        need: Some("orders".into()),
        valid_from: None,
        valid_until: at(until_days * DAY),
        peers: vec!["198.51.100.2/32".into()],
        ports: Vec::new(),
        ip_protocols: Vec::new(),
        tunnels: Vec::new(),
        path: crate::policy::Path::default(),
        capacity: Some(1_000_000),
        keys: Vec::new(),
    }
}

fn remarks(report: &Report, id: &str) -> Vec<Remark> {
    let of = report.approvals.iter().find(|approval| &*approval.id == id);
    of.unwrap_or_else(|| panic!("{id} is missing")).remarks.iter().copied().collect()
}

#[test]
fn approvals_have_their_remarks() {
    let nobody =
        ApprovalInForce { owner: "unknown".into(), reference: "n/a".into(), need: None, ..approval("nobody", 500) };
    let early = ApprovalInForce { valid_from: Some(at(20 * DAY)), ..approval("early", 500) };
    let mut said = Said(Vec::new());
    let old = [approval("gone-before", 500), approval("a", 500)];
    said.start(0, BOTH).policy(0, "r1", &old);
    let first =
        [approval("a", 500), approval("removed", 500), approval("ended", 5), approval("soon", 40), nobody, early];
    said.policy(DAY / 2, "r2", &first);
    let mut second = first.to_vec();
    second.remove(1);
    second[0].capacity = None;
    said.policy(3 * DAY, "r3", &second);
    said.say(4 * DAY, What::ReloadFailed(ReloadFailed { revision: "r3".into(), errors: vec!["a.toml:1: no".into()] }));
    // A restart brings the same into force again.
    said.start(5 * DAY, BOTH).policy(5 * DAY, "r3", &second);
    let used = Record { end: at(2 * DAY + 60), ..approved(1, "a", at(2 * DAY)) };
    let late = Record {
        verdict: Label::UnapprovedVpnTunnel,
        reason: Reason::ApprovalExpired,
        start: at(6 * DAY),
        end: at(6 * DAY + 9),
        ..approved(2, "ended", at(6 * DAY))
    };
    let report = said.report(period(DAY, 10 * DAY), &[used, late, approved(3, "elsewhere", at(2 * DAY))]);
    for (id, expected) in [
        ("a", vec![]),
        ("removed", vec![Remark::Unused, Remark::Removed]),
        ("ended", vec![Remark::ExpiredButUsed, Remark::Expired, Remark::Unused]),
        ("soon", vec![Remark::EndsWithin30Days, Remark::Unused]),
        ("nobody", vec![Remark::Unused, Remark::WithoutOwner, Remark::WithoutNeed, Remark::WithoutReference]),
        ("early", vec![Remark::NotYetValid]),
        ("elsewhere", vec![Remark::OnlyInRecords]),
    ] {
        assert_eq!(remarks(&report, id), expected, "{id}");
    }
    assert!(report.approvals.iter().all(|approval| &*approval.id != "gone-before"), "it was gone when the range began");
    let in_force: Vec<_> = report.approvals.iter().filter(|of| of.in_force == Some(true)).map(|of| &*of.id).collect();
    assert_eq!(in_force, ["a", "nobody", "soon"]);
    let history: Vec<_> = report.policy.iter().map(|change| (change.what, &*change.revision)).collect();
    assert_eq!(history, [(ChangeKind::AtFirst, "r2"), (ChangeKind::Loaded, "r3"), (ChangeKind::ReloadFailed, "r3")]);
    let change = &report.policy[1];
    assert_eq!((&*change.removed, change.added.len()), (&[Arc::from("removed")][..], 0));
    assert_eq!(change.changed[0].fields, [["capacity", "1000000", "null"].map(str::to_owned)]);
    let ended = report.approvals.iter().find(|of| &*of.id == "ended").unwrap();
    assert_eq!((ended.refused[0].reason, ended.refused[0].flows), ("approval_expired", 1));
    assert_eq!(report.tunnels[0].approval.as_deref(), Some("ended"));
}

/// A whole flow under an approval, of a second.
fn approved(flow: u64, id: &str, start: Timestamp) -> Record {
    Record {
        flow_id: FlowId::Number(flow),
        start,
        end: start + Duration::from_secs(1),
        time: start + Duration::from_secs(1),
        verdict: Label::AuthorizedLeasedLine,
        reason: Reason::Approved,
        tunnel: Some(Protocol::Wireguard),
        confidence: Some(Confidence::Certain),
        direction: FlowDirection::Outbound,
        approval: Some(ApprovalRecord {
            id: id.into(),
            owner: "network team".into(),
            reference: "CHG-1".into(),
            valid_until: at(500 * DAY),
            identity: None,
            key: None,
        }),
        ..record(flow)
    }
}

#[test]
fn the_peak_is_the_busier_way_within_the_capacity() {
    let mut said = Said(Vec::new());
    said.start(0, BOTH).policy(0, "r", &[approval("a", 500)]);
    // 300 s at 1 Mbit/s out and half of it in; then nothing but a packet.
    let busy = Record {
        start: at(600),
        end: at(900),
        fwd_octets: 37_500_000,
        rev_octets: 18_750_000,
        ..approved(1, "a", at(600))
    };
    let quiet = approved(2, "a", at(5000));
    let report = said.report(period(0, 7200), &[busy.clone(), quiet]);
    let peak = report.approvals[0].peak.clone().unwrap();
    assert_eq!((peak.from, peak.seconds, peak.bits_per_second, peak.is_one_way), (at(600), 300, 1_000_000, true));
    assert_eq!(peak.share_of_capacity, Some(1.0));
    assert_eq!(report.approvals[0].octets, 37_500_000 + 18_750_000 + 200);
    // The same seen from the other end.
    let turned = Record {
        direction: FlowDirection::Inbound,
        src_ip: busy.dst_ip,
        src_port: busy.dst_port,
        dst_ip: busy.src_ip,
        dst_port: busy.src_port,
        fwd_octets: busy.rev_octets,
        rev_octets: busy.fwd_octets,
        ..busy.clone()
    };
    let again = said.report(period(0, 7200), &[turned]);
    assert_eq!(again.approvals[0].peak.as_ref().unwrap().bits_per_second, 1_000_000);
    // Whose way is not known counts for both.
    let unknown = Record { direction: FlowDirection::Initiator, ..busy };
    let both = said.report(period(0, 7200), &[unknown]);
    let peak = both.approvals[0].peak.as_ref().unwrap();
    assert_eq!((peak.bits_per_second, peak.is_one_way), (1_500_000, false));
}

#[test]
fn a_flow_inside_one_of_the_same_approval_adds_no_octets() {
    let open = |flow: u64, seconds: u64| Record { kind: Kind::Update, ..approved(flow, "a", at(seconds)) };
    let inner = || Record { outer_flow_id: Some(FlowId::Number(1)), ..open(2, 20) };
    let same = report(period(0, 3600), &[open(1, 10), inner(), approved(1, "a", at(10))], None);
    assert_eq!((same.approvals[0].flows, same.approvals[0].octets), (2, 200));
    let mut other = inner();
    other.approval.as_mut().unwrap().id = "b".into();
    let apart = report(period(0, 3600), &[open(1, 10), other, approved(1, "a", at(10))], None);
    let octets: Vec<_> = apart.approvals.iter().map(|of| (&*of.id, of.flows, of.octets)).collect();
    assert_eq!(octets, [("a", 1, 200), ("b", 1, 200)]);
    // Sums of octets leave out what is inside.
    assert_eq!((apart.totals[0].flows, apart.totals[0].inside, apart.totals[0].octets), (2, 1, 200));
}

#[test]
fn one_tunnel_is_one_protocol_between_two_hosts() {
    let tunnel = |flow: u64, seconds: u64| Record {
        verdict: Label::UnapprovedVpnTunnel,
        reason: Reason::NoApproval,
        approval: None,
        ..approved(flow, "", at(seconds))
    };
    let back = |mut record: Record| {
        std::mem::swap(&mut record.src_ip, &mut record.dst_ip);
        std::mem::swap(&mut record.src_port, &mut record.dst_port);
        record
    };
    let likely = Record { confidence: Some(Confidence::Likely), ..tunnel(7, 100) };
    let other = Record { tunnel: Some(Protocol::Openvpn), fwd_octets: 50, ..tunnel(9, 400) };
    let small = report(period(0, 3600), &[likely, tunnel(8, 200), back(tunnel(10, 300)), other], None);
    let tunnels: Vec<_> = small.tunnels.iter().map(|of| (of.tunnel, of.flows, of.octets)).collect();
    assert_eq!(tunnels, [(Protocol::Wireguard, 3, 600), (Protocol::Openvpn, 1, 170)]);
    let of = &small.tunnels[0];
    assert_eq!((of.first_seen, of.last_seen), (at(100), at(301)));
    assert_eq!((of.confidence, of.flow_id.number()), (Confidence::Certain, 8));
    assert_eq!(of.source, "198.51.100.2", "as in its latest flow");
    assert_eq!(small.tunnels_left_out, Beyond::default());
}

#[test]
fn endless_tunnels_are_bounded_and_the_largest_stay() {
    let many = 2 * tunnels::MOST_TUNNELS as u64 + 10;
    let records: Vec<_> = (0..many)
        .map(|number| Record {
            verdict: Label::UnapprovedVpnTunnel,
            reason: Reason::NoApproval,
            approval: None,
            dst_ip: std::net::Ipv4Addr::from(0x0a00_0000 + number as u32).into(),
            fwd_octets: 1000 + number,
            rev_octets: 0,
            ..approved(number, "", at(10))
        })
        .collect();
    let report = report(period(0, 3600), &records, None);
    assert_eq!(report.tunnels.len(), tunnels::MOST_TUNNELS);
    assert_eq!(report.tunnels[0].octets, 1000 + many - 1);
    assert_eq!(report.tunnels_left_out.tunnels, many - tunnels::MOST_TUNNELS as u64);
    let listed: u64 = report.tunnels.iter().map(|of| of.octets).sum();
    let all: u64 = (0..many).map(|number| 1000 + number).sum();
    assert_eq!(listed + report.tunnels_left_out.octets, all);
    assert!(report.notes[0].contains("unapproved tunnels with the fewest octets are not listed"));
}

/// Flows of which each record tells how much had come by then.
fn histories() -> impl Strategy<Value = Vec<Record>> {
    let steps = prop::collection::vec((0..400_u64, 0..9000_u64, 0..9000_u64), 1..6);
    let flow = (0..30_000_u64, steps, any::<bool>(), 0..3_u8, any::<bool>());
    prop::collection::vec(flow, 1..12).prop_map(|flows| {
        let mut records = Vec::new();
        for (number, (start, steps, ends, which, is_turned)) in flows.into_iter().enumerate() {
            let (mut now, mut forward, mut back) = (start, 0, 0);
            let last = steps.len() - 1;
            for (step, (seconds, more, more_back)) in steps.into_iter().enumerate() {
                (now, forward, back) = (now + seconds, forward + more, back + more_back);
                // Which it never should.
                if more < 300 {
                    forward /= 2;
                }
                let kind = if ends && step == last { Kind::End } else { Kind::Update };
                let mut record = Record {
                    kind,
                    time: at(now),
                    end: at(now),
                    fwd_octets: forward,
                    rev_octets: back,
                    ..approved(number as u64, ["a", "b", "c"][usize::from(which)], at(start))
                };
                // The originator may be found late.
                if is_turned && step > 1 {
                    std::mem::swap(&mut record.src_ip, &mut record.dst_ip);
                    std::mem::swap(&mut record.src_port, &mut record.dst_port);
                    (record.fwd_octets, record.rev_octets) = (back, forward);
                }
                if which == 2 {
                    (record.verdict, record.reason, record.approval) =
                        (Label::UnapprovedVpnTunnel, Reason::NoApproval, None);
                }
                records.push(record);
            }
        }
        records.sort_by_key(|record| record.time);
        records
    })
}

/// Octets by what they are of.
fn octets(report: &Report) -> BTreeMap<String, u64> {
    let approvals = report.approvals.iter().map(|of| (of.id.to_string(), of.octets));
    let tunnels = report.tunnels.iter().map(|_| "tunnel".to_owned()).zip(report.tunnels.iter().map(|of| of.octets));
    let mut sums = BTreeMap::new();
    for (name, octets) in approvals.chain(tunnels) {
        *sums.entry(name).or_default() += octets;
    }
    sums.retain(|_, octets| *octets > 0);
    sums
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Octets of two ranges that touch are those of both, of every range those of its days, and of everything the flows'.
    #[test]
    fn octets_add_up(records in histories(), cut in 1..33_000_u64) {
        let whole = report(period(0, 40_000), &records, None);
        let (before, after) = (report(period(0, cut), &records, None), report(period(cut, 40_000), &records, None));
        let mut sum = octets(&before);
        for (name, octets) in octets(&after) {
            *sum.entry(name).or_default() += octets;
        }
        prop_assert_eq!(&sum, &octets(&whole));
        let mut latest = BTreeMap::new();
        for record in &records {
            latest.insert(record.flow_id.number(), record);
        }
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for record in latest.values() {
            let name = record.approval.as_ref().map_or("tunnel", |approval| &*approval.id);
            *expected.entry(name.to_owned()).or_default() += record.fwd_octets + record.rev_octets;
        }
        expected.retain(|_, octets| *octets > 0);
        prop_assert_eq!(&octets(&whole), &expected);
        for report in [&whole, &before, &after] {
            for of in &report.approvals {
                prop_assert_eq!(of.days.iter().map(|day| day.octets).sum::<u64>(), of.octets);
            }
            let in_totals: u64 = report.totals.iter().map(|total| total.octets).sum();
            prop_assert_eq!(octets(report).values().sum::<u64>(), in_totals);
        }
        let flows: u64 = whole.totals.iter().map(|total| total.flows).sum();
        prop_assert_eq!(flows, latest.len() as u64);
    }
}
