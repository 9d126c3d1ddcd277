//! Plays a fixed number of packets through one function, for `tests/speed/instructions`: callgrind counts the instructions
//! between its entry and its end, which no other load on the machine and no clock changes.

use std::io::Write;

use anyhow::ensure;
use clap::ValueEnum;

use super::measure::{NEW_FLOWS_IDLE, Pipeline, Runner, STEADY_IDLE, flow_settings, settle};
use super::{Options, memory_octets, synthetic_settings};
use crate::capture::synthetic::{self, Mode};

/// Which packets are played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Counted {
    /// Of flows that detectors have done with
    Settled,
    /// Each its flow's first, and another's end
    New,
}

/// Plays them, and writes how many these were.
pub(super) fn play(options: &Options, counted: Counted, out: &mut impl Write) -> anyhow::Result<()> {
    let (mode, idle_timeout) = match counted {
        Counted::Settled => (Mode::Steady, STEADY_IDLE),
        Counted::New => (Mode::New, NEW_FLOWS_IDLE),
    };
    let reel = synthetic::reel(&synthetic_settings(options, mode))?;
    let stage = Pipeline::new(flow_settings(memory_octets(options), idle_timeout));
    let mut pipeline = Runner::new("whole pipeline", stage, &reel)?;
    let packets = reel.len() as u64;
    pipeline.warm_up(packets);
    if counted == Counted::Settled {
        settle(&mut pipeline, packets);
    }
    let before = pipeline.stage.auditor.counters();
    counted_packets(&mut pipeline, packets);
    let after = pipeline.stage.auditor.counters();
    let opened = match counted {
        Counted::Settled => 0,
        Counted::New => packets,
    };
    ensure!(after.flows - before.flows == opened, "{} flows were opened, not {opened}", after.flows - before.flows);
    ensure!(after.packets - before.packets == packets, "the pipeline did not take every packet");
    writeln!(out, "{packets} packets")?;
    Ok(())
}

/// Callgrind knows it by this name.
#[inline(never)]
fn counted_packets(pipeline: &mut Runner<'_, Pipeline>, packets: u64) {
    pipeline.warm_up(packets);
}
