//! Turns a table of flows without evidence into octets a flow, as the core counts them and as the system does.

use serde::Serialize;

use super::machine::resident_octets;
use super::measure::{Pipeline, Runner, STEADY_IDLE, flow_settings, ratio};
use super::report::round;
use crate::capture::reel::{Reel, ReelError};

/// Memory of a table in which no flow shows evidence.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    pub flows: u64,
    /// As the core counts them: entries, index and what flows hold beside.
    pub octets_per_flow: f64,
    /// What the process grew by while they were opened: unused room of the tables, where it was touched, is in it.
    pub resident_octets_per_flow: Option<f64>,
}

/// Opens every flow of `reel`, each of which comes once; to be called before anything else has used and left memory.
pub(super) fn measure_memory(reel: &Reel, memory_octets: usize) -> Result<Memory, ReelError> {
    let (before, _) = resident_octets();
    let stage = Pipeline::new(flow_settings(memory_octets, STEADY_IDLE));
    let mut pipeline = Runner::new("memory", stage, reel)?;
    pipeline.warm_up(reel.len() as u64);
    let (after, _) = resident_octets();
    let counters = pipeline.stage.auditor.counters();
    let flows = counters.flows_open;
    let resident = before.zip(after).map(|(before, after)| round(ratio(after.saturating_sub(before), flows)));
    Ok(Memory {
        flows,
        octets_per_flow: round(ratio(counters.table_octets, flows)),
        resident_octets_per_flow: resident,
    })
}
