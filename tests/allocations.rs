//! In steady state a packet costs no allocation: counted by an allocator that counts, over flows of every kind that the
//! benches make, tunnels among them. That it costs no lock, system call or log line either, `tests/layers.rs` shows: the
//! core names none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]
#![expect(unsafe_code, reason = "an allocator is unsafe to write; this one counts and hands on")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use common::settings;
use linewarden::audit::{AuditSettings, Auditor};
use linewarden::capture::synthetic::{self, Mode, Sizes};
use linewarden::detect::Confidence;
use linewarden::policy::Policy;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

impl Counting {
    fn count() {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn auditor() -> Auditor {
    let settings = AuditSettings { update_interval: Duration::ZERO, ..settings() };
    let policy = Policy::new("test".into(), Confidence::Likely, "none".into(), Vec::new());
    Auditor::new(settings.into(), policy.into())
}

#[test]
fn a_packet_of_a_settled_flow_allocates_nothing() {
    let made = synthetic::Settings {
        flows: 2000,
        packets: 20_000,
        sizes: Sizes::Mixed,
        tunnels: 10,
        snap_length: 256,
        seed: 1,
        mode: Mode::Steady,
        step: Duration::from_micros(1),
    };
    let reel = synthetic::reel(&made).unwrap();
    let (mut auditor, mut player) = (auditor(), reel.play().unwrap());
    let mut records = 0_u64;
    // Allocations of the batches in which detectors saw nothing, their packets, and allocations of the others.
    let mut rounds = |rounds: u64, auditor: &mut Auditor| {
        let (mut unseen, mut unseen_packets, mut seen) = (0, 0, 0);
        let mut left = rounds * 20_000;
        while left > 0 {
            // Few at once, so that detectors look at something in few batches.
            let frames = player.batch(left.min(64));
            left -= frames.len() as u64;
            let inspections = auditor.counters().inspections;
            let before = allocations();
            auditor.observe(frames, &mut |_| records += 1);
            let made = allocations() - before;
            if auditor.counters().inspections == inspections {
                unseen += made;
                unseen_packets += frames.len() as u64;
            } else {
                seen += made;
            }
        }
        (unseen, unseen_packets, seen)
    };
    let (_, _, seen) = rounds(1, &mut auditor);
    assert!(seen > 2000, "opening flows allocates: the count counts");
    // Until detectors have seen all that they want to: an ESP flow is looked at for 512 packets.
    rounds(120, &mut auditor);
    let inspections = auditor.counters().inspections;
    let (unseen, packets, seen) = rounds(50, &mut auditor);
    assert_eq!(unseen, 0, "in {packets} packets");
    assert!(packets > 800_000, "{packets} of a million packets");
    // Samples of later packets may take notes, which are given up again.
    let inspections = auditor.counters().inspections - inspections;
    assert!(seen < inspections, "{seen} allocations in {inspections} calls of detectors");
    let open = auditor.counters().flows_open;
    assert!(records < 3 * open, "no record is written of a flow at which nothing changes: {records} of {open} flows");
}
