//! What must hold for any traffic: nothing is lost, and neither the split into batches nor that into workers changes a verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::pcap::udp;
use common::{OwnedFrame, assert_nothing_lost, audit, capture_folders, ends, name, pinning, policy, read, settings};
use linewarden::audit::{AuditSettings, Auditor, OtherRecords};
use linewarden::record::{Kind, Record};
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, pair_hash};
use proptest::prelude::*;

/// All captures as one stream, each with addresses kept and times moved behind the one before.
fn everything() -> Vec<OwnedFrame> {
    let mut all: Vec<OwnedFrame> = Vec::new();
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        let offset = all.last().map_or(1_700_000_000_000_000_000, |frame| frame.at.as_nanos() + 300_000_000_000);
        let first = frames.first().map_or(0, |frame| frame.at.as_nanos());
        for frame in frames {
            let at = Timestamp::from_nanos(offset + frame.at.as_nanos().saturating_sub(first));
            all.push(OwnedFrame { at, number: all.len() as u64 + 1, ..frame });
        }
    }
    all
}

fn borrow(frames: &[OwnedFrame]) -> Vec<Frame<'_>> {
    frames.iter().map(OwnedFrame::borrow).collect()
}

/// What a flow's last record says of it, by flow.
fn verdicts(records: &[Record]) -> BTreeMap<String, String> {
    ends(records)
        .into_iter()
        .map(|end| {
            let what = format!(
                "{} {:?} {:?} {:?} {:?} {} {} {} {}",
                end.community_id,
                end.verdict,
                end.reason,
                end.tunnel,
                end.confidence,
                end.fwd_packets,
                end.rev_packets,
                end.fwd_octets,
                end.rev_octets
            );
            (end.flow_id.to_string(), what)
        })
        .collect()
}

fn over_workers(frames: &[Frame<'_>], workers: u32) -> Vec<Record> {
    let settings = Arc::new(settings());
    let mut all = Vec::new();
    for worker in 0..workers {
        let mut auditor = Auditor::new(Arc::clone(&settings), pinning());
        let own: Vec<_> = frames.iter().filter(|frame| pair_hash(frame) % workers == worker).copied().collect();
        auditor.observe(&own, &mut |record| all.push(record));
        auditor.expire(frames.last().map_or(Timestamp::ZERO, |frame| frame.at), &mut |record| all.push(record));
        auditor.finish(&mut |record| all.push(record));
    }
    all
}

#[test]
fn workers_change_no_verdict() {
    let frames = everything();
    let frames = borrow(&frames);
    let one = verdicts(&over_workers(&frames, 1));
    for workers in [2, 4] {
        assert_eq!(verdicts(&over_workers(&frames, workers)), one, "{workers} workers");
    }
}

#[test]
fn batches_change_no_record() {
    let frames = everything();
    let frames = borrow(&frames);
    let (whole, _) = audit(settings(), pinning(), &frames);
    for size in [1, 7, 64] {
        let mut auditor = Auditor::new(Arc::new(settings()), pinning());
        let mut records = Vec::new();
        for batch in frames.chunks(size) {
            auditor.observe(batch, &mut |record| records.push(record));
        }
        auditor.finish(&mut |record| records.push(record));
        assert_eq!(sorted(&records), sorted(&whole), "batches of {size}");
    }
}

/// Records without regard to the order of different flows.
fn sorted(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<_> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    lines.sort();
    lines
}

#[test]
fn the_hash_seed_changes_no_record() {
    let frames = everything();
    let frames = borrow(&frames);
    let (one, _) = audit(settings(), policy(Vec::new()), &frames);
    let (two, _) = audit(AuditSettings { hash_seed: 99, ..settings() }, policy(Vec::new()), &frames);
    assert_eq!(sorted(&one), sorted(&two));
}

#[test]
fn records_left_out_are_counted() {
    let frames = everything();
    let frames = borrow(&frames);
    for other in [OtherRecords::End, OtherRecords::None] {
        let (records, counters) = audit(AuditSettings { other, ..settings() }, policy(Vec::new()), &frames);
        let undecodable: u64 = counters.undecodable.iter().sum();
        let outside = ends(&records).into_iter().filter(|end| end.outer_flow_id.is_none());
        let packets: u64 = outside.map(|end| end.fwd_packets + end.rev_packets).sum();
        assert_eq!(counters.packets, packets + counters.unrecorded + undecodable, "{other:?}");
    }
}

#[test]
fn updates_are_an_interval_apart() {
    let benign =
        read(&capture_folders().iter().find(|folder| name(folder) == "benign-rsyslog").unwrap().join("input.pcap"));
    // Begun late in its second: the second in which an update is due begins before the update is.
    let begin = 1_700_000_000_900_000_000;
    let frames: Vec<_> = (0..12_000)
        .map(|number| OwnedFrame { at: Timestamp::from_nanos(begin + number * 100_000_000), ..benign[0].clone() })
        .collect();
    let (records, _) = audit(settings(), policy(Vec::new()), &borrow(&frames));
    let updates: Vec<_> = records
        .iter()
        .filter(|record| record.kind == Kind::Update)
        .map(|update| update.time.as_nanos() - begin)
        .collect();
    assert_eq!(updates, [300_000_000_000, 600_000_000_000, 900_000_000_000]);
}

#[test]
fn a_memory_bound_loses_no_packet() {
    // All at once, so that there are more open flows than have room.
    let mut frames: Vec<_> = capture_folders().iter().flat_map(|folder| read(&folder.join("input.pcap"))).collect();
    for (number, frame) in frames.iter_mut().enumerate() {
        frame.at = Timestamp::from_nanos(1_700_000_000_000_000_000 + number as u64);
    }
    let frames = borrow(&frames);
    let mut tight = settings();
    tight.flow.memory_octets = 8 << 10;
    let (records, counters) = audit(tight, policy(Vec::new()), &frames);
    assert_nothing_lost(&records, &counters, "tight memory");
    assert!(counters.evicted.iter().sum::<u64>() > 0, "the bound was never reached");
}

/// Flows that are open already take notes later, and new approvals make notes of all: the bound holds then as well.
#[test]
fn memory_stays_within_its_bound_whenever_flows_grow() {
    const BOUND: usize = 1 << 20;
    let mut tight = settings();
    tight.flow.memory_octets = BOUND;
    let mut auditor = Auditor::new(Arc::new(tight), policy(Vec::new()));
    let mut records = Vec::new();
    let to = ([198, 51, 100, 2].into(), 51_820);
    let initiation = [&[1, 0, 0, 0][..], &[0x5a; 144]].concat();
    let round = |second: u64, payload: &[u8]| -> Vec<OwnedFrame> {
        let frame = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let at = 1_700_000_000_000_000_000 + second * 1_000_000_000 + u64::from(number);
            udp(at, ([10, 0, high, low].into(), 40_000), to, payload)
        };
        (0..3000).map(frame).collect()
    };
    let mut most = 0;
    let mut observe = |auditor: &mut Auditor, frames: Vec<OwnedFrame>| {
        for batch in borrow(&frames).chunks(64) {
            auditor.observe(batch, &mut |record| records.push(record));
            most = auditor.counters().table_octets.max(most);
        }
    };
    observe(&mut auditor, round(0, &[0; 2]));
    assert_eq!(auditor.counters().evicted.iter().sum::<u64>(), 0, "plain flows have room");
    observe(&mut auditor, round(1, &initiation));
    assert!(auditor.counters().evicted.iter().sum::<u64>() > 0, "notes have not");
    observe(&mut auditor, round(2, &[0; 2]));
    let approved = policy(vec![common::approval("all", &["198.51.100.0/24"])]);
    auditor.set_policy(approved, &mut |record| records.push(record));
    most = auditor.counters().table_octets.max(most);
    assert!(most <= BOUND as u64, "{most} octets");
    auditor.finish(&mut |record| records.push(record));
    assert_nothing_lost(&records, &auditor.counters(), "growing flows");
}

/// Each step back takes a look at every flow: where there are many, a clock that leaps back and forth is not believed each time.
#[test]
fn steps_back_of_the_clock_are_spread_over_packets() {
    const TURNS: u64 = 100;
    let (to, start) = (([198, 51, 100, 2].into(), 443), 1_700_000_000_000_000_000);
    let flows_after = |others: u16| {
        let other = |number: u16| {
            let [high, low] = number.to_be_bytes();
            udp(start, ([10, 1, high, low].into(), 40_000), to, &[0; 2])
        };
        let turn = |turn: u64| {
            let at = start + turn % 2 * 1_000_000_000_000;
            std::iter::repeat_n(udp(at, ([10, 0, 0, 1].into(), 40_000), to, &[0; 2]), 32)
        };
        let frames: Vec<_> = (0..others).map(other).chain((1..=TURNS).flat_map(turn)).collect();
        let (records, counters) = audit(settings(), policy(Vec::new()), &borrow(&frames));
        assert_nothing_lost(&records, &counters, "a clock that leaps");
        let of_one = |end: &&&Record| end.src_ip.to_string() == "10.0.0.1";
        ends(&records).iter().filter(of_one).count() as u64
    };
    assert!(flows_after(0) >= TURNS / 2);
    let spread = flows_after(4000);
    assert!((TURNS / 16..=TURNS / 6).contains(&spread), "{spread}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Nothing is lost whichever packets the capture saw, in whichever order, at whichever times.
    #[test]
    fn nothing_is_lost(seed in any::<u64>(), keep in 1..100u64, jitter in 0..600u64) {
        for folder in capture_folders().iter().step_by(3) {
            let mut state = seed | 1;
            let mut random = move || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
            let mut frames = Vec::new();
            for frame in read(&folder.join("input.pcap")) {
                if random() % 100 < keep {
                    let at = Timestamp::from_nanos(frame.at.as_nanos() + random() % (jitter * 1_000_000_000 + 1));
                    frames.push(OwnedFrame { at, ..frame });
                }
            }
            let (records, counters) = audit(settings(), policy(Vec::new()), &borrow(&frames));
            assert_nothing_lost(&records, &counters, name(folder));
        }
    }
}
