//! `linewarden bench`: turns frames in memory into nanoseconds a packet, stage by stage, on one core.

mod curve;
mod instructions;
mod live;
mod machine;
mod measure;
mod memory;
mod records;
mod report;
mod scale;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use self::curve::measure_curve;
use self::instructions::Counted;
use self::live::{Backend, Compare, Forbidden, measure_live};
use self::machine::Machine;
use self::measure::{measure, measure_new_flows};
use self::memory::measure_memory;
use self::report::{Extras, Report, Settings};
use self::scale::measure_workers;
use super::{BAD_DATA, FAILED, Failure, PERMISSION, USAGE};
use crate::capture::file::CaptureFile;
use crate::capture::reel::Reel;
use crate::capture::synthetic::{self, MOST_FLOWS, Mode, Sizes};

/// How fast this machine labels flows: frames from memory through each stage of the core, on one core.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Measure on this pcap or pcapng file (gzip is read too), looped from memory, instead of made-up traffic
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Flows of the made-up traffic; each is seen again and again
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_FLOWS / 2)), conflicts_with = "pcap")]
    pub flows: u32,

    /// Frame sizes of the made-up traffic, in octets: `mixed` (64, 594 and 1518 at 7:4:1) or a number from 64 to 9018
    #[arg(long, value_name = "OCTETS", default_value_t = Sizes::Mixed, conflicts_with = "pcap")]
    pub sizes: Sizes,

    /// Tunnels among the flows of the made-up traffic, in percent: WireGuard, OpenVPN, ESP and GRE by turns
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100), conflicts_with = "pcap")]
    pub tunnels: u8,

    /// Packets that each stage takes in one round
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub packets: u64,

    /// Seconds to measure; making the frames, and playing them until detectors have done with every flow, come on top
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Octets of each frame that are kept, as in a live capture
    #[arg(long, value_name = "OCTETS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65_535))]
    pub snap_length: u32,

    /// Seed of the made-up traffic: the same seed makes the same frames
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Measure also so many workers at once, each with its own frames and flows on a core of its own
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,

    /// Measure also the cost against table size, from 10000 flows to this many, as far as memory goes [10 million without
    /// a number, which takes minutes]
    #[arg(long, value_name = "FLOWS", num_args = 0..=1, default_missing_value = "10000000", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_FLOWS)), conflicts_with = "pcap")]
    pub curve: Option<u32>,

    /// Measure on a link instead of from memory: two network namespaces, a veth pair, and the daemon's capture on its
    /// end. Finds the highest rate without a drop. Needs root; nothing of it is left behind
    #[arg(long, conflicts_with_all = ["workers", "curve"])]
    pub live: bool,

    /// With --live: only this many packets a second, for all of the time
    #[arg(long, value_name = "PACKETS", requires = "live", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,

    /// With --live: how packets are taken
    #[arg(long, value_enum, default_value_t = Backend::Ring, requires = "live")]
    pub backend: Backend,

    /// With --live and the ring: settled flows whose packets the kernel counts, as the daemon's `kernel_flows`; 0: every
    /// packet comes up
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "live")]
    pub kernel_flows: u32,

    /// With --live and the ring: octets of one of its blocks, as the daemon's `block_octets`: a power of two from 64KiB to
    /// 32MiB, of which the ring has as many as make 64 MiB
    #[arg(long, value_name = "OCTETS", default_value = "1MiB", value_parser = block_octets, requires = "live")]
    pub block_octets: usize,

    /// With --live: what else is measured on the link
    #[arg(long, value_enum, default_value_t = Compare::Tcpdump, requires = "live")]
    pub compare: Compare,

    /// Do not measure: write so many made-up records of a day, rotated and compressed, to the folder --out
    #[arg(long, value_name = "NUMBER", requires = "out", conflicts_with_all = ["live", "pcap", "curve", "workers", "json"], value_parser = clap::value_parser!(u64).range(1..))]
    pub records: Option<u64>,

    /// With --records: folder of the log, empty or not there yet
    #[arg(long, value_name = "DIR", requires = "records")]
    pub out: Option<PathBuf>,

    /// Only read the file, as replay does, and say how many packets it holds: what a comparison takes off
    #[arg(long, hide = true, requires = "pcap")]
    pub read_only: bool,

    /// Only play a fixed number of made-up packets, for a counter of instructions
    #[arg(long, hide = true, value_enum, conflicts_with_all = ["live", "pcap", "workers", "curve"])]
    pub count_instructions: Option<Counted>,

    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Octets, with or without a unit.
fn block_octets(text: &str) -> Result<usize, String> {
    let units = [("KiB", 10), ("MiB", 20)];
    let (digits, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let octets = digits.trim_end().parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift));
    octets
        .filter(|octets| octets.is_power_of_two() && (64 << 10..=32 << 20).contains(octets))
        .ok_or_else(|| "write a power of two from 64KiB to 32MiB".to_owned())
}

/// Frames of one round at most, so that the default sizes stay below half a gibibyte.
const MOST_FRAMES: u64 = 1 << 21;

/// Measures and writes what was found to standard output.
pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    if let Some((records, folder)) = options.records.zip(options.out.as_deref()) {
        let octets = records::write_day(records, options.seed, folder)
            .map_err(|error| Failure::new(FAILED, format!("{}: cannot be written: {error}", folder.display())))?;
        writeln!(out, "{records} records, {octets} octets before compression, in {}", folder.display())?;
        return Ok(());
    }
    let measured = if let (true, Some(path)) = (options.read_only, &options.pcap) {
        read_and_count(path, out)
    } else if let Some(counted) = options.count_instructions {
        instructions::play(options, counted, out)
    } else if options.live {
        live_and_write(options, out)
    } else {
        measure_and_write(options, out)
    };
    measured.map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => error.into(),
        Err(error) if error.is::<Forbidden>() => Failure::new(PERMISSION, error),
        Err(error) if options.live => Failure::new(FAILED, format!("{error:#}")),
        Err(error) => Failure::new(if options.pcap.is_some() { BAD_DATA } else { USAGE }, format!("{error:#}")),
    })
}

fn live_and_write(options: &Options, out: &mut impl Write) -> anyhow::Result<()> {
    let reel = match &options.pcap {
        Some(path) => load(path, options.snap_length)?,
        None => synthetic::reel(&synthetic_settings(options, Mode::Steady))?,
    };
    let report = measure_live(options, &reel, Duration::from_secs(options.seconds))?;
    write_report(options, &report, out)
}

fn write_report(options: &Options, report: &(impl Serialize + Display), out: &mut impl Write) -> anyhow::Result<()> {
    if options.json {
        serde_json::to_writer(&mut *out, report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}

fn measure_and_write(options: &Options, out: &mut impl Write) -> anyhow::Result<()> {
    let seconds = Duration::from_secs(options.seconds);
    let parts = 1 + u32::from(options.workers > 1) + u32::from(options.curve.is_some());
    let budget = seconds / parts;
    let mut extras = Extras::default();
    let measured = if let Some(path) = &options.pcap {
        let reel = load(path, options.snap_length)?;
        let measured = measure(&reel, options.packets, MEMORY_FOR_FILES, budget)?;
        if options.workers > 1 {
            let copy = |_| Ok(reel.clone());
            extras.scaling = Some(measure_workers(options.workers.into(), MEMORY_FOR_FILES, budget, &copy)?);
        }
        measured
    } else {
        let memory = memory_octets(options);
        extras.memory = Some({
            let plain =
                synthetic::Settings { flows: options.flows, tunnels: 0, ..synthetic_settings(options, Mode::New) };
            measure_memory(&synthetic::reel(&plain)?, memory)?
        });
        let measured = {
            let reel = synthetic::reel(&synthetic_settings(options, Mode::Steady))?;
            measure(&reel, options.packets, memory, budget * 3 / 4)?
        };
        extras.new_flows = Some({
            let reel = synthetic::reel(&synthetic_settings(options, Mode::New))?;
            measure_new_flows(&reel, options.packets, memory, budget / 4)?
        });
        if options.workers > 1 {
            let reel = |worker: usize| {
                let settings = synthetic_settings(options, Mode::Steady);
                synthetic::reel(&synthetic::Settings { seed: settings.seed + worker as u64, ..settings })
            };
            extras.scaling = Some(measure_workers(options.workers.into(), memory, budget, &reel)?);
        }
        if let Some(largest) = options.curve {
            extras.curve = Some(measure_curve(options, largest, budget)?);
        }
        measured
    };
    let report = Report::new(Settings::from(options), Machine::look(), &measured, extras);
    write_report(options, &report, out)
}

/// New flows come so fast that `flows` of them are open when the first ones end: twice as many are made, so that none
/// comes again before it ended.
fn synthetic_settings(options: &Options, mode: Mode) -> synthetic::Settings {
    let (flows, step) = match mode {
        Mode::Steady | Mode::Sparse => (options.flows, Duration::from_micros(1)),
        Mode::New => (options.flows * 2, measure::NEW_FLOWS_IDLE / options.flows),
    };
    synthetic::Settings {
        flows,
        packets: options.packets.min(MOST_FRAMES),
        sizes: options.sizes,
        tunnels: options.tunnels,
        snap_length: options.snap_length,
        seed: options.seed,
        mode,
        step,
    }
}

/// For the flows of a file, octets; how many there are is not known before.
const MEMORY_FOR_FILES: usize = 1 << 30;

/// Enough that no flow is evicted: half is for entries, half for evidence.
fn memory_octets(options: &Options) -> usize {
    let evidence = usize::from(options.tunnels) * EVIDENCE / 100;
    (options.flows as usize * 2 * evidence.max(ENTRY)).max(16 << 20)
}

/// An entry and its index slot, octets, with room for flows that are over but not yet swept.
const ENTRY: usize = 256;
/// What a tunnel's evidence takes at most, octets.
const EVIDENCE: usize = 4096;

fn read_and_count(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let mut file = CaptureFile::open(path)?;
    let mut packets = 0;
    while file.next_batch(&mut |frames, _| packets += std::hint::black_box(frames).len())? {}
    writeln!(out, "{packets} packets")?;
    Ok(())
}

/// A capture file in memory.
fn load(path: &Path, snap_length: u32) -> anyhow::Result<Reel> {
    let mut file = CaptureFile::open(path)?;
    let mut reel = Reel::new(snap_length);
    let mut failed = None;
    while failed.is_none()
        && file.next_batch(&mut |frames, _| {
            failed = failed.or(frames.iter().find_map(|frame| reel.push(frame).err()));
        })?
    {}
    match failed {
        Some(error) => Err(error).with_context(|| format!("{}: cannot be held in memory", path.display())),
        None => Ok(reel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        <Command as clap::Parser>::parse_from(["bench"].iter().chain(arguments)).options
    }

    fn output(arguments: &[&str]) -> String {
        let mut out = Vec::new();
        measure_and_write(&options(arguments), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    const SMALL: [&str; 6] = ["--flows", "200", "--packets", "2000", "--seconds", "1"];

    #[test]
    fn json_holds_every_figure() {
        let text = output(&[&SMALL[..], &["--json", "--tunnels", "10"]].concat());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for name in [
            "ns_per_packet",
            "parse_only_ns_per_packet",
            "octets_per_flow",
            "entry_octets",
            "packets_per_second",
            "ratio_to_parse_only",
            "packets",
            "records",
        ] {
            assert!(json[name].as_f64().is_some_and(|figure| figure > 0.0), "{name}: {}", json[name]);
        }
        for name in ["octets_per_flow", "resident_octets_per_flow"] {
            assert!(json["without_evidence"][name].as_f64().is_some(), "{name}: {}", json["without_evidence"]);
        }
        let with_evidence = json["octets_per_flow_with_evidence"].as_f64().unwrap();
        assert!(with_evidence > json["without_evidence"]["octets_per_flow"].as_f64().unwrap());
        assert!(json["new_flows"]["flows_per_second"].as_f64().unwrap() > 0.0);
        assert!(json["peak_resident_octets"].as_u64().unwrap() > json["frames_octets"].as_u64().unwrap());
        assert_eq!([&json["drops"], &json["evicted"]], [0, 0]);
        assert_eq!([&json["workers"], &json["curve"]], [&serde_json::Value::Null; 2]);
        assert_eq!(json["flows"], 200);
        assert_eq!(json["tunnels"], 20);
        assert_eq!(json["stages"].as_array().unwrap().len(), 4);
        assert_eq!(json["new_flows"]["flows_per_packet"], 1.0);
        assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
    }

    #[test]
    fn workers_are_compared_with_one_alone() {
        let cores = crate::capture::allowed_cores().len();
        let json = output(&[&SMALL[..], &["--json", "--workers", &cores.min(2).to_string()]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        if cores > 1 {
            let figure = |name: &str| json["workers"][name].as_f64().unwrap();
            let ratio = figure("packets_per_second") / figure("one_worker_packets_per_second");
            assert!((ratio - figure("ratio_to_one_worker")).abs() < 0.01);
            assert_eq!(json["workers"]["cores"].as_array().unwrap().len(), 2);
        }
        let too_many = options(&[&SMALL[..], &["--workers", "1024"]].concat());
        let refusal = measure_and_write(&too_many, &mut Vec::new()).unwrap_err().to_string();
        assert!(refusal.contains("cores"), "{refusal}");
    }

    #[test]
    fn the_curve_has_a_point_for_every_size() {
        let json = output(&[&SMALL[..], &["--json", "--curve", "20000"]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let curve = &json["curve"];
        let flows: Vec<_> = curve["points"].as_array().unwrap().iter().map(|point| &point["flows"]).collect();
        assert_eq!(flows, [10_000, 20_000]);
        assert_eq!(curve["steepest_step"], curve["points"][1]["ratio_to_previous"]);
        assert_eq!(curve["left_out"], serde_json::json!([]));
    }

    #[test]
    fn the_table_says_what_compares() {
        let text = output(&SMALL);
        for part in ["whole pipeline", "without evidence", "per core", "ratios"] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn a_capture_is_looped() {
        let frame = [0; 60];
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let words = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1, 1_700_000_000, 0, 60, 60];
        file.write_all(&words.map(u32::to_le_bytes).concat()).unwrap();
        file.write_all(&frame).unwrap();
        let text = output(&["--pcap", file.path().to_str().unwrap(), "--packets", "500", "--seconds", "1", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["flows"], 0, "the frame is not IP");
        assert_eq!(json["new_flows"], serde_json::Value::Null);
        let missing = measure_and_write(&options(&["--pcap", "/nonexistent.pcap"]), &mut Vec::new()).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent.pcap"));
    }
}
