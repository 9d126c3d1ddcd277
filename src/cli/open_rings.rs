//! `linewarden open-rings`: the daemon's helper, which only the daemon starts.

use std::io::{IsTerminal, stdin};
use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, USAGE};
use crate::capture::LiveSettings;
use crate::daemon;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    snap_length: u32,
    #[arg(long)]
    ring_octets: usize,
    #[arg(long)]
    block_octets: usize,
    /// Milliseconds
    #[arg(long)]
    block_timeout: u64,
    #[arg(long)]
    promiscuous: bool,
    /// Interfaces that may be asked for, by their position here
    #[arg(required = true)]
    interfaces: Vec<String>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    if stdin().is_terminal() {
        return Err(Failure::new(
            USAGE,
            "open-rings: `linewarden run` starts this process and talks to it; it does nothing else",
        ));
    }
    let settings = LiveSettings {
        interfaces: options.interfaces.clone(),
        workers: 1,
        snap_length: options.snap_length,
        promiscuous: options.promiscuous,
        ring_octets: options.ring_octets,
        block_octets: options.block_octets,
        block_timeout: Duration::from_millis(options.block_timeout),
        // The daemon sets its own: the rings that it is given let nothing in.
        filter: Vec::new(),
        fast_path: None,
        opener: None,
    };
    daemon::open_rings_for_another(&settings)
        .map_err(|error| Failure::new(FAILED, format!("open-rings: cannot answer on standard input: {error}")))
}
