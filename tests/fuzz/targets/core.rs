//! A sequence of frames with their times, through everything from parser to record.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use linewarden_fuzz::{World, frames};

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fuzz_target!(|input: &[u8]| WORLD.play(&frames(input)));
