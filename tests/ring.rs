//! The kernel's ring, `AF_XDP`, and pnet's channel, on interfaces that the tests make: each test runs in a network namespace of its own.
//! Needs root, `ip` (iproute2), `unshare` and `nsenter` (util-linux), bash and python3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;
#[path = "ring/daemon.rs"]
mod daemon;
#[path = "ring/fast_path.rs"]
mod fast_path;
#[path = "ring/floods.rs"]
mod floods;
#[path = "ring/frames.rs"]
mod frames;
#[path = "ring/interfaces.rs"]
mod interfaces;
#[path = "ring/link.rs"]
mod link;
#[path = "ring/losses.rs"]
mod losses;
#[path = "ring/pnet.rs"]
mod pnet;
#[path = "ring/soak.rs"]
mod soak;
#[path = "ring/spread.rs"]
mod spread;
#[path = "ring/wire.rs"]
mod wire;
#[path = "ring/xdp.rs"]
mod xdp;

use common::{OwnedFrame, assert_nothing_lost, audit, ends, policy};
use frames::Pair;
use linewarden::record::Record;

/// The records of what several workers were handed: each has a core of its own.
fn records(workers: &[Vec<OwnedFrame>], interfaces: &[&str]) -> Vec<Record> {
    let mut settings = common::settings();
    settings.interfaces = interfaces.iter().map(|&name| name.into()).collect();
    let mut all = Vec::new();
    for frames in workers {
        let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        let (records, counters) = audit(settings.clone(), policy(Vec::new()), &frames);
        assert_nothing_lost(&records, &counters, "a worker");
        all.extend(ends(&records).into_iter().cloned());
    }
    all
}

/// What a test expects of a flow, and what its record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outline {
    addresses: Pair,
    ports: Option<[u16; 2]>,
    proto: u8,
    vlan: Vec<u16>,
    /// Packets and octets forward, then back.
    counts: [u64; 4],
}

impl Outline {
    fn of(end: &Record) -> Self {
        Self {
            addresses: [end.src_ip, end.dst_ip],
            ports: end.src_port.zip(end.dst_port).map(|(src, dst)| [src, dst]),
            proto: end.proto,
            vlan: end.vlan.clone(),
            counts: [end.fwd_packets, end.fwd_octets, end.rev_packets, end.rev_octets],
        }
    }
}

fn outlines(records: &[Record]) -> Vec<Outline> {
    let mut outlines: Vec<_> = records.iter().map(Outline::of).collect();
    outlines.sort();
    outlines
}
