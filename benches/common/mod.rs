//! What the benches share: real captures and made-up traffic as reels, played in batches as capture hands them over.
//! Times come as packets: `Throughput::Elements` counts them everywhere.
#![allow(dead_code, clippy::unwrap_used, reason = "each bench uses its own part; a failed bench may stop")]

use std::path::Path;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use linewarden::capture::file::CaptureFile;
use linewarden::capture::reel::{Player, Reel};
use linewarden::capture::synthetic::{self, Mode};
use linewarden::flow::FlowSettings;
use linewarden::time::Timestamp;
use linewarden::wire::Frame;

/// As many flows as fit into the caches, and as many as never do.
pub const FLOWS: [(&str, u32); 2] = [("10k_flows", 10_000), ("1M_flows", 1_000_000)];

/// Packets of one iteration, where nothing else gives their number.
pub const PACKETS: u64 = 1 << 14;

/// Idle timeout where flows are new, so that as many end as begin.
pub const NEW_IDLE: Duration = Duration::from_secs(10);

/// Idle timeout where they are steady: the default setting.
pub const STEADY_IDLE: Duration = Duration::from_mins(2);

/// Octets kept of each frame: the default setting.
const SNAP_LENGTH: u32 = 256;

/// Few samples of many packets: the whole of `cargo bench` is to take minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

/// A group whose iterations take `packets` each.
pub fn group(c: &mut Criterion, name: impl Into<String>, packets: u64) -> BenchmarkGroup<'_, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(packets));
    group
}

/// Packets in a second where flows are new: one second's flows begin, and another's end.
pub fn packets_a_second(flows: u32) -> u64 {
    u64::from(flows) / NEW_IDLE.as_secs()
}

pub fn flow_settings(idle_timeout: Duration) -> FlowSettings {
    FlowSettings {
        idle_timeout,
        active_timeout: Duration::from_mins(30),
        // A bound that is never met: memory is taken as flows come.
        memory_octets: 2 << 30,
        vlan_in_key: true,
        home_nets: Vec::new(),
    }
}

/// Made-up traffic. New flows: twice as many as will be open, so that each has ended before it comes again.
pub fn synthetic(flows: u32, packets: u64, mode: Mode) -> Reel {
    let (made, step) = match mode {
        Mode::Steady | Mode::Sparse => (flows, Duration::from_micros(1)),
        Mode::New => (flows * 2, NEW_IDLE / flows),
    };
    let settings =
        synthetic::Settings { flows: made, packets, mode, step, snap_length: SNAP_LENGTH, ..Default::default() };
    synthetic::reel(&settings).unwrap()
}

/// The captures recorded from real software, by name.
pub fn captures() -> Vec<(String, Reel)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut captures: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|folder| {
            let mut file = CaptureFile::open(&folder.join("input.pcap")).unwrap();
            let mut reel = Reel::new(SNAP_LENGTH);
            while file.next_batch(&mut |batch, _| batch.iter().for_each(|frame| reel.push(frame).unwrap())).unwrap() {}
            (folder.file_name().unwrap().to_string_lossy().into_owned(), reel)
        })
        .collect();
    captures.sort_by(|one, other| one.0.cmp(&other.0));
    captures
}

/// All captures one behind the other, so far apart that the flows of one have ended before the next begins.
pub fn all_captures() -> Reel {
    let mut all = Reel::new(SNAP_LENGTH);
    let mut clock = Timestamp::from_secs(1_700_000_000);
    for (_, reel) in captures() {
        let frames = frames(&reel);
        let earliest = frames.iter().map(|frame| frame.at).min().unwrap();
        let begin = clock;
        for frame in frames {
            let at = begin + frame.at.since(earliest);
            clock = clock.max(at + STEADY_IDLE * 2);
            all.push(&Frame { at, ..frame }).unwrap();
        }
    }
    all
}

/// Every frame of a reel, once.
pub fn frames(reel: &Reel) -> Vec<Frame<'_>> {
    let mut frames = Vec::with_capacity(reel.len());
    play(&mut reel.play().unwrap(), reel.len() as u64, |batch| frames.extend_from_slice(batch));
    frames
}

/// Hands the next `packets` frames to `take`, in batches.
pub fn play<'a>(player: &mut Player<'a>, packets: u64, mut take: impl FnMut(&[Frame<'a>])) {
    let mut left = packets;
    while left > 0 {
        let frames = player.batch(left);
        left -= frames.len() as u64;
        take(frames);
    }
}
