//! Turns frames and a time budget into the cost of each stage, all stages in turn so that noise meets them alike.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audit::{AuditSettings, Auditor, Decapsulation, OtherRecords};
use crate::capture::advise_huge_pages;
use crate::capture::reel::{Player, Reel, ReelError};
use crate::detect::Confidence;
use crate::flow::{FlowIndex, FlowKey, FlowSettings, FlowTable, Rank, Sender, Tenant};
use crate::policy::Policy;
use crate::wire::{Addresses, Frame, ParsedPacket, Transport, parse};

/// What a stage costs.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    pub name: &'static str,
    /// Of each round, nanoseconds a packet, smallest first.
    rounds: Vec<f64>,
}

impl Cost {
    pub(super) fn best(&self) -> f64 {
        self.rounds.first().copied().unwrap_or(f64::NAN)
    }

    pub(super) fn median(&self) -> f64 {
        self.rounds.get(self.rounds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn rounds(&self) -> usize {
        self.rounds.len()
    }
}

/// All stages over the same frames.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub touch: Cost,
    pub parse: Cost,
    pub look_up: Cost,
    pub pipeline: Cost,
    /// Packets that the pipeline took while measured.
    pub packets: u64,
    /// Calls of detectors for these.
    pub detector_calls: u64,
    /// Records written, those of opening the flows included.
    pub records: u64,
    /// Records of tunnels that became certain or likely.
    pub tunnels: u64,
    /// Flows in the table.
    pub flows: u64,
    /// Flows that left the table for want of memory.
    pub evicted: u64,
    /// Memory held for them, octets.
    pub table_octets: u64,
    /// Memory held for the frames, octets.
    pub frames_octets: usize,
    /// Frames of one loop.
    pub frames: usize,
}

/// The pipeline where every packet opens a flow and, in the long run, ends another.
#[derive(Clone, Debug)]
pub(super) struct NewFlows {
    pub parse: Cost,
    pub pipeline: Cost,
    pub packets: u64,
    pub opened: u64,
    pub records: u64,
    pub flows: u64,
}

/// Idle timeout where flows are steady: the default setting.
pub(super) const STEADY_IDLE: Duration = Duration::from_mins(2);

/// Idle timeout where new flows are measured.
pub(super) const NEW_FLOWS_IDLE: Duration = Duration::from_secs(10);

/// Measures steady flows: opens them all, lets detectors finish with them, then measures for as long as `budget`.
pub(super) fn measure(
    reel: &Reel,
    packets: u64,
    memory_octets: usize,
    budget: Duration,
) -> Result<Measured, ReelError> {
    let flow = flow_settings(memory_octets, STEADY_IDLE);
    let mut touch = Runner::new("touch one cache line", Touch, reel)?;
    let mut parse = Runner::new("parse to the 5-tuple", ParseOnly, reel)?;
    let mut look_up = Runner::new("and find the flow", LookUp(FlowTable::new(&flow, SEED)), reel)?;
    let mut pipeline = Runner::new("whole pipeline", Pipeline::new(flow), reel)?;
    let round = reel.len() as u64;
    look_up.warm_up(round);
    pipeline.warm_up(round);
    settle(&mut pipeline, round);
    let before = pipeline.stage.auditor.counters();
    let end = now() + budget;
    loop {
        touch.round(packets, end);
        parse.round(packets, end);
        look_up.round(packets, end);
        pipeline.round(packets, end);
        if now() >= end {
            break;
        }
    }
    let counters = pipeline.stage.auditor.counters();
    Ok(Measured {
        packets: counters.packets - before.packets,
        detector_calls: counters.inspections - before.inspections,
        records: pipeline.stage.records,
        tunnels: pipeline.stage.tunnels,
        // Those inside GRE are not of the number that was asked for.
        flows: counters.flows_open.saturating_sub(counters.inside.flows),
        evicted: counters.evicted.iter().sum(),
        table_octets: counters.table_octets,
        frames_octets: reel.held_octets(),
        frames: reel.len(),
        touch: touch.cost(),
        parse: parse.cost(),
        look_up: look_up.cost(),
        pipeline: pipeline.cost(),
    })
}

/// Detectors look at a flow's first packets: steady is what comes behind them.
pub(super) fn settle(pipeline: &mut Runner<'_, Pipeline>, round: u64) {
    for _ in 0..MOST_ROUNDS {
        let before = pipeline.stage.auditor.counters().inspections;
        pipeline.warm_up(round);
        if (pipeline.stage.auditor.counters().inspections - before) * 10 < round {
            break;
        }
    }
}

/// Enough for detectors that look at the first 32 packets, where a flow has one in each round.
const MOST_ROUNDS: usize = 40;

/// Measures new flows: `reel` holds each once, and longer than the idle timeout.
pub(super) fn measure_new_flows(
    reel: &Reel,
    packets: u64,
    memory_octets: usize,
    budget: Duration,
) -> Result<NewFlows, ReelError> {
    let mut parse = Runner::new("parse to the 5-tuple", ParseOnly, reel)?;
    let stage = Pipeline::new(flow_settings(memory_octets, NEW_FLOWS_IDLE));
    let mut pipeline = Runner::new("whole pipeline, new flows", stage, reel)?;
    // As many open as will be.
    pipeline.warm_up(reel.len() as u64);
    let before = pipeline.stage.auditor.counters();
    let records = pipeline.stage.records;
    let end = now() + budget;
    loop {
        parse.round(packets, end);
        pipeline.round(packets, end);
        if now() >= end {
            break;
        }
    }
    let counters = pipeline.stage.auditor.counters();
    Ok(NewFlows {
        packets: counters.packets - before.packets,
        opened: counters.flows - before.flows,
        records: pipeline.stage.records - records,
        flows: counters.flows_open,
        parse: parse.cost(),
        pipeline: pipeline.cost(),
    })
}

/// What is done with frames.
pub(super) trait Stage {
    fn take(&mut self, frames: &[Frame<'_>]);
}

/// A stage, its own place in the frames, and what its rounds cost.
pub(super) struct Runner<'a, S> {
    name: &'static str,
    pub stage: S,
    player: Player<'a>,
    rounds: Vec<f64>,
}

/// Packets between two looks at the clock.
pub(super) const CHUNK: u64 = 1 << 14;

impl<'a, S: Stage> Runner<'a, S> {
    pub(super) fn new(name: &'static str, stage: S, reel: &'a Reel) -> Result<Self, ReelError> {
        Ok(Self { name, stage, player: reel.play()?, rounds: Vec::new() })
    }

    pub(super) fn warm_up(&mut self, packets: u64) {
        let mut left = packets;
        while left > 0 {
            let frames = self.player.batch(left);
            left -= frames.len() as u64;
            self.stage.take(frames);
        }
    }

    /// Takes `packets`, or fewer if `end` comes first; a round cut short counts only where there is no other.
    fn round(&mut self, packets: u64, end: Instant) {
        let begun = now();
        let mut taken = 0;
        while taken < packets && (taken == 0 || now() < end) {
            let chunk = CHUNK.min(packets - taken);
            self.warm_up(chunk);
            taken += chunk;
        }
        if taken == packets || self.rounds.is_empty() {
            self.rounds.push(ratio(begun.elapsed().as_nanos() as u64, taken));
        }
    }

    fn cost(mut self) -> Cost {
        self.rounds.sort_by(f64::total_cmp);
        Cost { name: self.name, rounds: self.rounds }
    }
}

struct Touch;

impl Stage for Touch {
    fn take(&mut self, frames: &[Frame<'_>]) {
        let sum = frames.iter().fold(0, |sum, frame| sum ^ frame.data.get(12).copied().unwrap_or(0));
        black_box(sum);
    }
}

struct ParseOnly;

impl Stage for ParseOnly {
    fn take(&mut self, frames: &[Frame<'_>]) {
        let sum = frames.iter().fold(0, |sum: u64, frame| sum.wrapping_add(parse(frame).map_or(0, |p| five_tuple(&p))));
        black_box(sum);
    }
}

#[inline]
fn five_tuple(packet: &ParsedPacket<'_>) -> u64 {
    let addresses = match packet.addresses {
        Addresses::V4(octets) => u64::from_ne_bytes(*octets),
        Addresses::V6(octets) => octets.as_chunks().0.iter().fold(0, |sum, eight| sum ^ u64::from_ne_bytes(*eight)),
    };
    let ports = match packet.transport {
        Transport::Udp { src_port, dst_port } | Transport::Tcp { src_port, dst_port, .. } => {
            u64::from(src_port) << 16 | u64::from(dst_port)
        }
        Transport::None => 0,
    };
    addresses ^ ports ^ u64::from(packet.protocol) << 56
}

/// The flow table alone, as the auditor uses it: a batch is parsed, hashed and asked for, then looked up and counted.
struct LookUp(FlowTable<Nothing>);

#[derive(Debug, Default)]
struct Nothing;

impl Tenant for Nothing {
    fn rank(&self) -> Rank {
        Rank::Plain
    }

    fn octets(&self) -> usize {
        0
    }
}

/// As many as the auditor looks up together.
const BATCH: usize = 32;

impl Stage for LookUp {
    fn take(&mut self, frames: &[Frame<'_>]) {
        let Self(table) = self;
        for batch in frames.chunks(BATCH) {
            let mut keys = [(FlowKey::EMPTY, Sender::Low, 0, FlowIndex::NONE); BATCH];
            for (frame, ready) in batch.iter().zip(&mut keys) {
                if let Ok(packet) = parse(frame) {
                    let (key, sender) = FlowKey::of(&packet, true);
                    let hash = table.hash(&key);
                    table.prefetch_index(hash);
                    *ready = (key, sender, hash, FlowIndex::NONE);
                }
            }
            for (_, _, hash, guess) in &mut keys {
                *guess = table.guess(*hash);
                table.prefetch(*guess);
            }
            for (frame, (key, sender, hash, guess)) in batch.iter().zip(&keys) {
                if let Some(flow) = table.check(*guess, key) {
                    flow.count(flow.direction(*sender), frame.at, 1, frame.wire_len.into());
                    continue;
                }
                if *key == FlowKey::EMPTY {
                    continue;
                }
                let index = table
                    .find(key, *hash)
                    .unwrap_or_else(|| table.insert(*key, *hash, *sender, frame.interface, frame.at, Nothing));
                if let Some(flow) = table.flow_mut(index) {
                    flow.count(flow.direction(*sender), frame.at, 1, frame.wire_len.into());
                }
            }
        }
    }
}

/// The core, with records counted and thrown away.
pub(super) struct Pipeline {
    pub auditor: Auditor,
    pub records: u64,
    tunnels: u64,
}

impl Pipeline {
    pub(super) fn new(flow: FlowSettings) -> Self {
        let settings = AuditSettings {
            sensor: "bench".into(),
            interfaces: vec!["bench".into()],
            snap_length: u32::MAX,
            decapsulation: Decapsulation::default(),
            flow,
            update_interval: Duration::from_mins(5),
            other: OtherRecords::All,
            hash_seed: SEED,
        };
        let policy = Policy::new("bench".into(), Confidence::Likely, "none".into(), Vec::new());
        let auditor = Auditor::new(Arc::new(settings), Arc::new(policy));
        advise_huge_pages(auditor.reserved());
        Self { auditor, records: 0, tunnels: 0 }
    }
}

impl Stage for Pipeline {
    fn take(&mut self, frames: &[Frame<'_>]) {
        self.auditor.observe(frames, &mut |record| {
            self.records += 1;
            self.tunnels += u64::from(record.confidence == Some(Confidence::Certain));
        });
    }
}

/// One number by another.
#[expect(clippy::cast_precision_loss, reason = "counts of less than 2^52, and a figure for people")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// Any: nobody aims at a bench's buckets.
const SEED: u64 = 0x5eed;

pub(super) fn flow_settings(memory_octets: usize, idle_timeout: Duration) -> FlowSettings {
    let active_timeout = Duration::from_mins(30);
    FlowSettings { idle_timeout, active_timeout, memory_octets, vlan_in_key: true, home_nets: Vec::new() }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures how long the core takes; no frame gets this time")]
pub(super) fn now() -> Instant {
    Instant::now()
}
