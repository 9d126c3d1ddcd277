//! What the flow table costs a packet, parsing apart: key, hash and look-up of steady flows; insertion of new ones while
//! others end; and what it costs to end a flow, or to see that it goes on.
#![allow(clippy::unwrap_used, reason = "a failed bench may stop")]

mod common;

use std::cell::LazyCell;
use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use common::{
    FLOWS, NEW_IDLE, PACKETS, STEADY_IDLE, criterion, flow_settings, frames, group, packets_a_second, synthetic,
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use linewarden::capture::reel::Reel;
use linewarden::capture::synthetic::Mode;
use linewarden::flow::{Direction, FlowKey, FlowTable, Rank, Sender, Tenant};
use linewarden::time::Timestamp;
use linewarden::wire::{ParsedPacket, parse};

fn steady(c: &mut Criterion) {
    for (name, flows) in FLOWS {
        let reel = LazyCell::new(|| synthetic(flows, 1 << 20, Mode::Steady));
        let mut worker = None;
        let mut keys = None;
        group(c, "flow/key", PACKETS).bench_function(name, |b| {
            let worker = keys.get_or_insert_with(|| Worker::new(&reel, STEADY_IDLE, Duration::ZERO));
            b.iter(|| worker.hash(PACKETS as usize));
        });
        drop(keys);
        group(c, "flow/steady", PACKETS).bench_function(name, |b| {
            let worker = worker.get_or_insert_with(|| {
                let mut worker = Worker::new(&reel, STEADY_IDLE, Duration::from_micros(1));
                worker.take(worker.packets.len());
                worker
            });
            b.iter(|| worker.take(PACKETS as usize));
            assert_eq!(worker.table.len(), flows as usize);
        });
    }
}

fn new(c: &mut Criterion) {
    for (name, flows) in FLOWS {
        let reel = LazyCell::new(|| synthetic(flows, 0, Mode::New));
        let mut worker = None;
        let packets = packets_a_second(flows);
        group(c, "flow/new", packets).sample_size(10).bench_function(name, |b| {
            let worker = worker.get_or_insert_with(|| {
                let mut worker = Worker::new(&reel, NEW_IDLE, NEW_IDLE / flows);
                worker.take(worker.packets.len());
                worker
            });
            b.iter(|| worker.take(packets as usize));
            // Flows are ended second by second: those of one more may still be open.
            assert!((flows.into()..=u64::from(flows) + 2 * packets).contains(&(worker.table.len() as u64)));
        });
    }
}

fn expiry(c: &mut Criterion) {
    for (name, flows) in FLOWS {
        let reel = LazyCell::new(|| synthetic(flows, 0, Mode::New));
        let filled = || {
            let mut worker = Worker::new(&reel, NEW_IDLE, NEW_IDLE / flows);
            worker.take(flows as usize);
            (worker.clock, worker.table)
        };
        let mut group = group(c, "flow/expiry", flows.into());
        group.sample_size(10);
        group.bench_function(format!("over/{name}"), |b| {
            let drain = |(clock, mut table): (Timestamp, FlowTable<Nothing>)| {
                sweep(&mut table, clock + NEW_IDLE * 2);
                assert!(table.is_empty());
                table
            };
            b.iter_batched(filled, drain, BatchSize::PerIteration);
        });
        group.bench_function(format!("alive/{name}"), |b| {
            let seen_again = || {
                let (clock, mut table) = filled();
                for index in table.indices() {
                    table.flow_mut(index).unwrap().count(Direction::Forward, clock + NEW_IDLE, 1, 64);
                }
                (clock, table)
            };
            let look = |(clock, mut table): (Timestamp, FlowTable<Nothing>)| {
                sweep(&mut table, clock + NEW_IDLE);
                assert_eq!(table.len(), flows as usize);
                table
            };
            b.iter_batched(seen_again, look, BatchSize::PerIteration);
        });
    }
}

/// A table, and packets for it in a loop, their time going on.
struct Worker<'a> {
    table: FlowTable<Nothing>,
    packets: Vec<ParsedPacket<'a>>,
    next: usize,
    clock: Timestamp,
    step: Duration,
}

impl<'a> Worker<'a> {
    fn new(reel: &'a Reel, idle_timeout: Duration, step: Duration) -> Self {
        Self {
            table: FlowTable::new(&flow_settings(idle_timeout), 0x5eed),
            packets: frames(reel).iter().map(|frame| parse(frame).unwrap()).collect(),
            next: 0,
            clock: Timestamp::from_secs(1_700_000_000),
            step,
        }
    }

    /// Makes keys of the next `most` packets and hashes them: what is left of a look-up where nothing is looked up.
    fn hash(&mut self, most: usize) {
        let mut left = most;
        while left > 0 {
            let place = self.advance(left);
            let batch = self.packets.get(place).unwrap_or_default();
            left -= batch.len();
            for packet in batch {
                black_box(self.table.hash(&FlowKey::of(packet, true).0));
            }
        }
    }

    /// Gives the next `most` packets to the table as the auditor does: a batch is hashed and asked for, then looked up.
    fn take(&mut self, most: usize) {
        let mut left = most;
        while left > 0 {
            let place = self.advance(BATCH.min(left));
            let batch = self.packets.get(place).unwrap_or_default();
            left -= batch.len();
            let mut keys = [(FlowKey::EMPTY, Sender::Low, 0); BATCH];
            for (packet, ready) in batch.iter().zip(&mut keys) {
                let (key, sender) = FlowKey::of(packet, true);
                let hash = self.table.hash(&key);
                self.table.prefetch_index(hash);
                *ready = (key, sender, hash);
            }
            for (_, _, hash) in keys.iter().take(batch.len()) {
                self.table.prefetch(self.table.guess(*hash));
            }
            for (packet, (key, sender, hash)) in batch.iter().zip(&keys) {
                self.clock = self.clock + self.step;
                let index = self
                    .table
                    .find(key, *hash)
                    .unwrap_or_else(|| self.table.insert(*key, *hash, *sender, packet.interface, self.clock, Nothing));
                if let Some(flow) = self.table.flow_mut(index) {
                    flow.count(flow.direction(*sender), self.clock, 1, packet.wire_len.into());
                }
            }
            sweep(&mut self.table, self.clock);
        }
    }

    /// The place of at most `most` packets, the first again behind the last.
    fn advance(&mut self, most: usize) -> Range<usize> {
        let end = self.packets.len().min(self.next + most);
        let place = self.next..end;
        self.next = end % self.packets.len();
        place
    }
}

/// As many as the auditor looks up together.
const BATCH: usize = 32;

fn sweep(table: &mut FlowTable<Nothing>, now: Timestamp) {
    let (mut due, mut budget) = (Vec::with_capacity(BATCH), usize::MAX);
    loop {
        table.expired(now, &mut due, &mut budget);
        for &index in &due {
            black_box(table.remove(index));
        }
        if due.is_empty() {
            break;
        }
    }
}

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

criterion_group! { name = benches; config = criterion(); targets = steady, new, expiry }
criterion_main!(benches);
