//! Turns table sizes, from ten thousand flows up, into a curve: what a packet costs at each.

use std::fmt;
use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::machine::available_octets;
use super::measure::{measure, ratio};
use super::report::round;
use super::{ENTRY, Options, memory_octets, synthetic_settings};
use crate::capture::reel::MOST_OCTETS;
use crate::capture::synthetic::{self, Mode};

/// Cost against table size.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    points: Vec<Point>,
    /// The largest step from one size to the next, and from the smallest size to the largest: whole pipeline.
    steepest_step: Option<f64>,
    largest_to_smallest: Option<f64>,
    /// Sizes that were asked for and not measured.
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
struct Point {
    flows: u32,
    ns_per_packet: f64,
    parse_only_ns_per_packet: f64,
    look_up_ns_per_packet: f64,
    ratio_to_parse_only: f64,
    /// To the size before.
    ratio_to_previous: Option<f64>,
    octets_per_flow: f64,
    /// Above about 0.1 the flows were not yet steady.
    detector_calls_per_packet: f64,
    evicted: u64,
    frames: usize,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    flows: u32,
    why: String,
}

/// The smallest; each size is about three times the one before.
const SMALLEST: u32 = 10_000;

fn sizes(largest: u32) -> Vec<u32> {
    let decades = std::iter::successors(Some(SMALLEST), |size| size.checked_mul(10));
    let mut sizes: Vec<u32> = decades.flat_map(|size| [size, size.saturating_mul(3)]).collect();
    sizes.retain(|&size| size < largest);
    sizes.push(largest);
    sizes
}

/// Measures every size up to `largest`, for an equal part of `budget` each.
pub(super) fn measure_curve(options: &Options, largest: u32, budget: Duration) -> anyhow::Result<Curve> {
    let sizes = sizes(largest);
    let share = budget / sizes.len() as u32;
    let (mut points, mut left_out) = (Vec::<Point>::new(), Vec::new());
    for flows in sizes {
        let options = Options { flows, ..options.clone() };
        if let Some(why) = obstacle(&options) {
            left_out.push(LeftOut { flows, why });
            continue;
        }
        let mut settings = synthetic_settings(&options, Mode::Sparse);
        // Never so few that the frames themselves stay in a cache: only the table's size is to change.
        settings.packets = settings.packets.max(FEWEST_FRAMES.min(options.packets));
        let reel = synthetic::reel(&settings)?;
        let measured = measure(&reel, options.packets, memory_octets(&options), share)?;
        let (pipeline, parse) = (measured.pipeline.median(), measured.parse.median());
        points.push(Point {
            flows,
            ns_per_packet: round(pipeline),
            parse_only_ns_per_packet: round(parse),
            look_up_ns_per_packet: round(measured.look_up.median()),
            ratio_to_parse_only: round(pipeline / parse),
            ratio_to_previous: points.last().map(|previous| round(pipeline / previous.ns_per_packet)),
            octets_per_flow: round(ratio(measured.table_octets, measured.flows)),
            detector_calls_per_packet: round(ratio(measured.detector_calls, measured.packets)),
            evicted: measured.evicted,
            frames: measured.frames,
        });
    }
    let steepest_step = points.iter().filter_map(|point| point.ratio_to_previous).max_by(f64::total_cmp);
    let ends = points.first().zip(points.last()).filter(|_| points.len() > 1);
    let largest_to_smallest = ends.map(|(first, last)| round(last.ns_per_packet / first.ns_per_packet));
    Ok(Curve { points, steepest_step, largest_to_smallest, left_out })
}

const FEWEST_FRAMES: u64 = 1 << 20;

/// Why a size cannot be measured here.
fn obstacle(options: &Options) -> Option<String> {
    let flows = u64::from(options.flows);
    // Frames are padded to whole cache lines and have half a line of notes each; seven in twelve are short (`Sizes`).
    let frame = u64::from(options.snap_length).next_multiple_of(64) + 32;
    let frames = flows * frame + flows * u64::from(options.tunnels) * 5 * frame / 100;
    if frames > MOST_OCTETS as u64 {
        let most = MOST_OCTETS >> 20;
        return Some(format!(
            "its frames would take up to {} MiB, more than the {most} MiB that are allowed: a lower --snap-length or fewer --tunnels fit",
            frames >> 20
        ));
    }
    // The flow table alone, and the pipeline's.
    let tables = flows * ENTRY as u64 * 2;
    let (need, available) = (frames + tables, available_octets().unwrap_or(u64::MAX));
    (need > available / 10 * 9)
        .then(|| format!("it would take about {} MiB of memory, and {} MiB are available", need >> 20, available >> 20))
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.set_header([
            "flows in the table",
            "parse ns",
            "flow ns",
            "whole ns",
            "to parsing",
            "to the size before",
            "octets a flow",
        ]);
        for point in &self.points {
            table.add_row([
                point.flows.to_string(),
                format!("{:.1}", point.parse_only_ns_per_packet),
                format!("{:.1}", point.look_up_ns_per_packet),
                format!("{:.1}", point.ns_per_packet),
                format!("{:.1} x", point.ratio_to_parse_only),
                point.ratio_to_previous.map(|step| format!("{step:.2} x")).unwrap_or_default(),
                format!("{:.0}", point.octets_per_flow),
            ]);
        }
        for column in 0..7 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        if let (Some(steepest), Some(whole)) = (self.steepest_step, self.largest_to_smallest) {
            writeln!(f, "Cost against table size: steepest step {steepest:.2} x, largest to smallest {whole:.2} x.")?;
        }
        for LeftOut { flows, why } in &self.left_out {
            writeln!(f, "Left out: {flows} flows: {why}.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_threefold_to_the_largest() {
        assert_eq!(sizes(10_000_000), [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]);
        assert_eq!(sizes(20_000), [10_000, 20_000]);
        assert_eq!(sizes(500), [500]);
    }

    #[test]
    fn a_size_without_room_is_left_out_with_its_reason() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            options: Options,
        }
        let options = |flows: &str| {
            let arguments = ["bench", "--snap-length", "9000", "--flows", flows];
            <Command as clap::Parser>::parse_from(arguments).options
        };
        assert_eq!(obstacle(&options("1000")), None);
        let why = obstacle(&options("8000000")).unwrap();
        assert!(why.contains("--snap-length"), "{why}");
    }
}
