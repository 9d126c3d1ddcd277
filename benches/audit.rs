//! What the whole pipeline costs a packet, frames in and records out: real captures, steady flows behind their first
//! packets, and flows of one packet. Parsing alone, over the same frames, is beside it: the ratio is what compares.
#![allow(clippy::unwrap_used, reason = "a failed bench may stop")]

mod common;

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use common::{
    FLOWS, NEW_IDLE, PACKETS, STEADY_IDLE, all_captures, criterion, flow_settings, group, packets_a_second, play,
    synthetic,
};
use criterion::{Criterion, criterion_group, criterion_main};
use linewarden::audit::{AuditSettings, Auditor, Decapsulation, OtherRecords};
use linewarden::capture::reel::{Player, Reel};
use linewarden::capture::synthetic::Mode;
use linewarden::detect::Confidence;
use linewarden::flow::FlowSettings;
use linewarden::policy::Policy;
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, parse};

fn captured(c: &mut Criterion) {
    let reel = LazyCell::new(all_captures);
    bench(c, "audit/captures", PACKETS, || &reel, |_| auditor(flow_settings(STEADY_IDLE)));
}

fn steady(c: &mut Criterion) {
    for (name, flows) in FLOWS {
        let reel = LazyCell::new(|| synthetic(flows, 1 << 20, Mode::Steady));
        bench(
            c,
            &format!("audit/steady/{name}"),
            PACKETS,
            || &reel,
            |player| {
                let mut auditor = auditor(flow_settings(STEADY_IDLE));
                let round = reel.len() as u64;
                play(player, round, |frames| observe(&mut auditor, frames));
                // Detectors look at 32 payloads of a flow: a few frames again and again, still in the cache, are the fastest
                // way to get behind them.
                play(player, round, |frames| (0..LOOKS).for_each(|_| observe(&mut auditor, frames)));
                auditor
            },
        );
    }
}

/// Two packets of each flow are in a round at least.
const LOOKS: u32 = 16;

fn new(c: &mut Criterion) {
    for (name, flows) in FLOWS {
        let reel = LazyCell::new(|| synthetic(flows, 0, Mode::New));
        bench(
            c,
            &format!("audit/new/{name}"),
            packets_a_second(flows),
            || &reel,
            |player| {
                let mut auditor = auditor(flow_settings(NEW_IDLE));
                play(player, reel.len() as u64, |frames| observe(&mut auditor, frames));
                auditor
            },
        );
    }
}

/// New flows at a table that is full, where the time of the frames goes on evenly, leaps, or goes back and forth: none of it may
/// make packets dear.
fn clock(c: &mut Criterion) {
    const FULL: u32 = 1_000_000;
    const EVEN: fn(u64) -> Duration = Duration::from_millis;
    let reel = LazyCell::new(|| synthetic(FULL, 0, Mode::New));
    let mut group = group(c, "audit/clock", PACKETS);
    group.sample_size(10);
    for (name, idle_timeout, time) in [
        ("even", STEADY_IDLE, EVEN),
        ("even_and_an_hour_of_timeout", Duration::from_hours(1), EVEN),
        ("leaps", STEADY_IDLE, |turn| Duration::from_secs(600 * turn)),
        ("back_and_forth", STEADY_IDLE, |turn| Duration::from_secs(400 * (turn % 2))),
    ] {
        let mut worker = None;
        group.bench_function(name, |b| {
            let (player, auditor, turn) = worker.get_or_insert_with(|| {
                let mut auditor = auditor(FlowSettings { memory_octets: 320 << 20, ..flow_settings(idle_timeout) });
                let mut player = reel.play().unwrap();
                play(&mut player, FULL.into(), |frames| observe_at(&mut auditor, frames, EVEN(0)));
                (player, auditor, 0)
            });
            b.iter(|| {
                play(player, PACKETS, |frames| {
                    for frames in frames.chunks(32) {
                        *turn += 1;
                        observe_at(auditor, frames, time(*turn));
                    }
                });
            });
        });
    }
}

fn observe_at(auditor: &mut Auditor, frames: &[Frame<'_>], time: Duration) {
    let at = Timestamp::from_secs(1_700_000_000) + time;
    observe(auditor, &frames.iter().map(|frame| Frame { at, ..*frame }).collect::<Vec<_>>());
}

fn bench<'a>(
    c: &mut Criterion,
    name: &str,
    packets: u64,
    reel: impl Fn() -> &'a Reel,
    prepare: impl Fn(&mut Player<'a>) -> Auditor,
) {
    let mut group = group(c, name, packets);
    group.sample_size(10);
    let mut player = None;
    group.bench_function("parse", |b| {
        let player = player.get_or_insert_with(|| reel().play().unwrap());
        b.iter(|| {
            play(player, packets, |frames| {
                frames.iter().for_each(|frame| {
                    let _ = black_box(parse(frame));
                });
            });
        });
    });
    let mut worker = None;
    group.bench_function("pipeline", |b| {
        let (player, auditor) = worker.get_or_insert_with(|| {
            let mut player = reel().play().unwrap();
            let auditor = prepare(&mut player);
            (player, auditor)
        });
        b.iter(|| play(player, packets, |frames| observe(auditor, frames)));
    });
}

/// Records are made, and thrown away: writing them is a sink's work, on a thread of its own.
fn observe(auditor: &mut Auditor, frames: &[Frame<'_>]) {
    auditor.observe(frames, &mut |record| drop(black_box(record)));
}

fn auditor(flow: FlowSettings) -> Auditor {
    let settings = AuditSettings {
        sensor: "bench".into(),
        interfaces: vec!["bench".into()],
        snap_length: u32::MAX,
        decapsulation: Decapsulation::default(),
        flow,
        update_interval: Duration::from_mins(5),
        other: OtherRecords::All,
        hash_seed: 0x5eed,
    };
    let policy = Policy::new("bench".into(), Confidence::Likely, "none".into(), Vec::new());
    Auditor::new(settings.into(), policy.into())
}

criterion_group! { name = benches; config = criterion(); targets = captured, steady, new, clock }
criterion_main!(benches);
