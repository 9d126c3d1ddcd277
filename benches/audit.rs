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
use linewarden::policy::Policy;
use linewarden::wire::{Frame, parse};

fn captured(c: &mut Criterion) {
    let reel = LazyCell::new(all_captures);
    bench(c, "audit/captures", PACKETS, || &reel, |_| auditor(STEADY_IDLE));
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
                let mut auditor = auditor(STEADY_IDLE);
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
                let mut auditor = auditor(NEW_IDLE);
                play(player, reel.len() as u64, |frames| observe(&mut auditor, frames));
                auditor
            },
        );
    }
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

fn auditor(idle_timeout: Duration) -> Auditor {
    let settings = AuditSettings {
        sensor: "bench".into(),
        interfaces: vec!["bench".into()],
        snap_length: u32::MAX,
        decapsulation: Decapsulation::default(),
        flow: flow_settings(idle_timeout),
        update_interval: Duration::from_mins(5),
        other: OtherRecords::All,
        hash_seed: 0x5eed,
    };
    let policy = Policy::new("bench".into(), Confidence::Likely, "none".into(), Vec::new());
    Auditor::new(settings.into(), policy.into())
}

criterion_group! { name = benches; config = criterion(); targets = captured, steady, new }
criterion_main!(benches);
