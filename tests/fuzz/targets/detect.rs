//! Payloads of one flow, each in a header that is right, so that mutation goes into what detectors read.
//! Input: carrier and version (1), ports (4), then payloads: length (1), direction and pause (1), octets.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use linewarden_fuzz::{World, carried, frames};

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fuzz_target!(|input: &[u8]| {
    let Some(sequence) = carried(input) else { return };
    WORLD.play(&frames(&sequence));
});
