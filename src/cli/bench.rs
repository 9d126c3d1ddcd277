//! `linewarden bench`: turns frames in memory into nanoseconds a packet, stage by stage, on one core.

mod measure;
mod report;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use self::measure::{measure, measure_new_flows};
use self::report::{Machine, Report, Settings};
use super::{BAD_DATA, Failure, USAGE};
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

    /// Seconds to measure; making the frames and opening every flow once come on top
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Octets of each frame that are kept, as in a live capture
    #[arg(long, value_name = "OCTETS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65_535))]
    pub snap_length: u32,

    /// Seed of the made-up traffic: the same seed makes the same frames
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Frames of one round at most, so that the default sizes stay below half a gibibyte.
const MOST_FRAMES: u64 = 1 << 21;

/// Measures and writes what was found to standard output.
pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let out = &mut io::stdout().lock();
    measure_and_write(options, out).map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => error.into(),
        Err(error) => Failure::new(if options.pcap.is_some() { BAD_DATA } else { USAGE }, format!("{error:#}")),
    })
}

fn measure_and_write(options: &Options, out: &mut impl Write) -> anyhow::Result<()> {
    let seconds = Duration::from_secs(options.seconds);
    let (measured, new_flows) = if let Some(path) = &options.pcap {
        let reel = load(path, options.snap_length)?;
        (measure(&reel, options.packets, MEMORY_FOR_FILES, seconds)?, None)
    } else {
        let steady = synthetic_settings(options, Mode::Steady);
        let memory = memory_octets(options);
        let measured = {
            let reel = synthetic::reel(&steady)?;
            measure(&reel, options.packets, memory, seconds * 3 / 4)?
        };
        let fresh = synthetic::reel(&synthetic_settings(options, Mode::New))?;
        (measured, Some(measure_new_flows(&fresh, options.packets, memory, seconds / 4)?))
    };
    let report = Report::new(Settings::from(options), Machine::look(), &measured, new_flows);
    if options.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}

/// New flows come so fast that `flows` of them are open when the first ones end: twice as many are made, so that none
/// comes again before it ended.
fn synthetic_settings(options: &Options, mode: Mode) -> synthetic::Settings {
    let (flows, step) = match mode {
        Mode::Steady => (options.flows, Duration::from_micros(1)),
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
        assert_eq!(json["flows"], 200);
        assert_eq!(json["tunnels"], 20);
        assert_eq!(json["stages"].as_array().unwrap().len(), 4);
        assert_eq!(json["new_flows"]["flows_per_packet"], 1.0);
        assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
    }

    #[test]
    fn the_table_says_what_compares() {
        let text = output(&SMALL);
        for part in ["whole pipeline", "per core", "ratios"] {
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
