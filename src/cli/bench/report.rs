//! Turns measurements into a table for people or an object for programs.

use std::fmt;
use std::path::PathBuf;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::Options;
use super::measure::{Cost, Measured, NewFlows, ratio};
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
        }
    }
}

/// What the figures are from.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    /// Asks the system; what it does not tell stays empty.
    pub(super) fn look() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or("", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
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

impl Report {
    pub(super) fn new(settings: Settings, machine: Machine, measured: &Measured, new_flows: Option<NewFlows>) -> Self {
        let (pipeline, parse) = (measured.pipeline.median(), measured.parse.median());
        let Measured { flows, tunnels, packets, records, frames, frames_octets, .. } = *measured;
        Self {
            ns_per_packet: round(pipeline),
            parse_only_ns_per_packet: round(parse),
            ratio_to_parse_only: round(pipeline / parse),
            packets_per_second: (1e9 / pipeline).round(),
            octets_per_flow: (flows > 0).then(|| round(ratio(measured.table_octets, flows))),
            entry_octets: Auditor::entry_octets(),
            flows,
            tunnels,
            packets,
            records,
            detector_calls_per_packet: round(ratio(measured.detector_calls, packets)),
            frames,
            frames_octets,
            stages: [&measured.touch, &measured.parse, &measured.look_up, &measured.pipeline].map(Stage::from).into(),
            new_flows: new_flows.map(NewFlowsReport::from),
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
                "New flows: every packet opens one of {} flows and {:.1} records are written a packet.",
                new_flows.flows, new_flows.records_per_packet
            )?;
        }
        writeln!(f, "Machine: {}, {} cores, Linux {}.", self.machine.cpu, self.machine.cores, self.machine.kernel)?;
        writeln!(
            f,
            "Figures are per core. Machines and days differ: what compares is the ratios within one run, which measures all\nstages in turn on the same frames."
        )
    }
}

/// To a hundredth.
fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
