//! Turns measurements into a table for people or an object for programs.

use std::fmt;
use std::path::PathBuf;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::Options;
use super::curve::Curve;
use super::machine::{Machine, resident_octets};
use super::measure::{Cost, Measured, NewFlows, ratio};
use super::memory::Memory;
use super::scale::Scaling;
use crate::audit::Auditor;

/// Everything that was found. Times are nanoseconds on one core.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whole pipeline, median of the rounds.
    ns_per_packet: f64,
    /// Parsing alone, likewise, on the same frames.
    parse_only_ns_per_packet: f64,
    ratio_to_parse_only: f64,
    /// By one core.
    packets_per_second: f64,
    /// Flow table and evidence, by the flows in the table.
    octets_per_flow: Option<f64>,
    entry_octets: usize,
    /// A table of as many flows without evidence.
    without_evidence: Option<Memory>,
    /// What a flow takes that shows a tunnel: `octets_per_flow`, the others' share apart.
    octets_per_flow_with_evidence: Option<f64>,
    /// Peak of the whole process, frames included.
    peak_resident_octets: Option<u64>,
    /// Packets lost: none, for frames in memory wait for the core. `--live` finds them.
    drops: u64,
    /// Flows that left the table for want of memory.
    evicted: u64,
    flows: u64,
    /// Records that said that a tunnel became certain.
    tunnels: u64,
    /// Packets that the pipeline was measured on.
    packets: u64,
    /// Records written since the first packet.
    records: u64,
    detector_calls_per_packet: f64,
    /// Frames that are looped, and their memory in octets.
    frames: usize,
    frames_octets: usize,
    stages: Vec<Stage>,
    new_flows: Option<NewFlowsReport>,
    workers: Option<Scaling>,
    curve: Option<Curve>,
    settings: Settings,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Stage {
    name: &'static str,
    ns_per_packet_best: f64,
    ns_per_packet_median: f64,
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct NewFlowsReport {
    ns_per_packet: f64,
    parse_only_ns_per_packet: f64,
    ratio_to_parse_only: f64,
    flows_per_packet: f64,
    flows_per_second: f64,
    records_per_packet: f64,
    /// Flows open while measured.
    flows: u64,
    stage: Stage,
}

#[derive(Debug, Serialize)]
pub(super) struct Settings {
    pcap: Option<PathBuf>,
    flows: Option<u32>,
    sizes: Option<String>,
    tunnels_percent: Option<u8>,
    packets: u64,
    seconds: u64,
    snap_length: u32,
    seed: Option<u64>,
    workers: usize,
    rate: Option<u32>,
    /// Only on a link.
    block_octets: Option<usize>,
}

impl From<&Options> for Settings {
    fn from(options: &Options) -> Self {
        let made_up = options.pcap.is_none();
        Self {
            pcap: options.pcap.clone(),
            flows: made_up.then_some(options.flows),
            sizes: made_up.then(|| options.sizes.to_string()),
            tunnels_percent: made_up.then_some(options.tunnels),
            packets: options.packets,
            seconds: options.seconds,
            snap_length: options.snap_length,
            seed: made_up.then_some(options.seed),
            workers: options.workers.into(),
            rate: options.rate,
            block_octets: options.live.then_some(options.block_octets),
        }
    }
}

impl From<&Cost> for Stage {
    fn from(cost: &Cost) -> Self {
        Self {
            name: cost.name,
            ns_per_packet_best: round(cost.best()),
            ns_per_packet_median: round(cost.median()),
            rounds: cost.rounds(),
        }
    }
}

/// What is measured beside steady flows on one core.
#[derive(Debug, Default)]
pub(super) struct Extras {
    pub new_flows: Option<NewFlows>,
    pub memory: Option<Memory>,
    pub scaling: Option<Scaling>,
    pub curve: Option<Curve>,
}

impl Report {
    pub(super) fn new(settings: Settings, machine: Machine, measured: &Measured, extras: Extras) -> Self {
        let (pipeline, parse) = (measured.pipeline.median(), measured.parse.median());
        let Measured { flows, tunnels, packets, records, evicted, frames, frames_octets, .. } = *measured;
        let with_evidence = extras.memory.filter(|_| (1..=flows).contains(&tunnels)).map(|plain| {
            let others = ratio(flows - tunnels, 1) * plain.octets_per_flow;
            (ratio(measured.table_octets, 1) - others) / ratio(tunnels, 1)
        });
        Self {
            ns_per_packet: round(pipeline),
            parse_only_ns_per_packet: round(parse),
            ratio_to_parse_only: round(pipeline / parse),
            packets_per_second: (1e9 / pipeline).round(),
            octets_per_flow: (flows > 0).then(|| round(ratio(measured.table_octets, flows))),
            entry_octets: Auditor::entry_octets(),
            without_evidence: extras.memory,
            octets_per_flow_with_evidence: with_evidence.map(round),
            peak_resident_octets: resident_octets().1,
            drops: 0,
            evicted,
            flows,
            tunnels,
            packets,
            records,
            detector_calls_per_packet: round(ratio(measured.detector_calls, packets)),
            frames,
            frames_octets,
            stages: [&measured.touch, &measured.parse, &measured.look_up, &measured.pipeline].map(Stage::from).into(),
            new_flows: extras.new_flows.map(NewFlowsReport::from),
            workers: extras.scaling,
            curve: extras.curve,
            settings,
            machine,
        }
    }
}

impl From<NewFlows> for NewFlowsReport {
    fn from(measured: NewFlows) -> Self {
        let (pipeline, parse) = (measured.pipeline.median(), measured.parse.median());
        Self {
            ns_per_packet: round(pipeline),
            parse_only_ns_per_packet: round(parse),
            ratio_to_parse_only: round(pipeline / parse),
            flows_per_packet: round(ratio(measured.opened, measured.packets)),
            flows_per_second: (ratio(measured.opened, measured.packets) * 1e9 / pipeline).round(),
            records_per_packet: round(ratio(measured.records, measured.packets)),
            flows: measured.flows,
            stage: Stage::from(&measured.pipeline),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.set_header(["stage, with those before it", "best ns", "median ns", "packets/s", "to parsing"]);
        let mut row = |stage: &Stage, parse: f64| {
            let median = stage.ns_per_packet_median;
            table.add_row([
                stage.name.to_owned(),
                format!("{:.1}", stage.ns_per_packet_best),
                format!("{median:.1}"),
                format!("{:.2} M", 1e3 / median),
                format!("{:.1} x", median / parse),
            ]);
        };
        for stage in &self.stages {
            row(stage, self.parse_only_ns_per_packet);
        }
        if let Some(new_flows) = &self.new_flows {
            row(&new_flows.stage, new_flows.parse_only_ns_per_packet);
        }
        for column in 1..5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        write!(f, "Flows: {} in the table, {} called certain tunnels", self.flows, self.tunnels)?;
        if let Some(octets) = self.octets_per_flow {
            write!(f, "; {octets:.0} octets a flow, evidence included, {} of them the entry", self.entry_octets)?;
        }
        writeln!(f, ".")?;
        self.memory(f)?;
        writeln!(
            f,
            "Frames: {} looped from {} MiB of memory; {:.2} detector calls a packet while measured.",
            self.frames,
            self.frames_octets >> 20,
            self.detector_calls_per_packet
        )?;
        if let Some(new_flows) = &self.new_flows {
            writeln!(
                f,
                "New flows: {:.2} M a second with {} in the table; {:.1} records are written for each.",
                new_flows.flows_per_second / 1e6,
                new_flows.flows,
                new_flows.records_per_packet / new_flows.flows_per_packet
            )?;
        }
        if let Some(scaling) = &self.workers {
            writeln!(
                f,
                "Workers: {} take {:.2} M packets/s together, one alone {:.2} M: {:.2} x.",
                scaling.workers,
                scaling.packets_per_second / 1e6,
                scaling.one_worker_packets_per_second / 1e6,
                scaling.ratio_to_one_worker
            )?;
        }
        if let Some(curve) = &self.curve {
            write!(f, "{curve}")?;
        }
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "Figures are per core. Machines and days differ: what compares is the ratios within one run, which measures all\nstages in turn on the same frames."
        )
    }
}

impl Report {
    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(plain) = &self.without_evidence else { return Ok(()) };
        write!(f, "Memory: {:.0} octets a flow without evidence", plain.octets_per_flow)?;
        if let Some(resident) = plain.resident_octets_per_flow {
            write!(f, " ({resident:.0} by what the process grew)")?;
        }
        if let Some(octets) = self.octets_per_flow_with_evidence {
            write!(f, ", {octets:.0} with a tunnel's")?;
        }
        if let Some(peak) = self.peak_resident_octets {
            write!(f, "; {} MiB at the peak, frames included", peak >> 20)?;
        }
        writeln!(f, ".")
    }
}

/// To a hundredth.
pub(super) fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
