//! `linewarden interfaces`: what can be captured here, and what is missing if not.

use std::io::{self, Write};

use super::Failure;
use crate::capture::{LinkLayer, interfaces, obstacle};
use crate::sink::table::{plain, printed};

/// Writes the table, then what keeps this process from capturing.
pub(super) fn run() -> Result<(), Failure> {
    let mut table = plain();
    table.set_header(["interface", "state", "frames", "capture", "addresses"]);
    for interface in interfaces() {
        let (frames, capture) = match interface.link {
            Ok(LinkLayer::Ethernet) => ("Ethernet".to_owned(), "yes"),
            Ok(LinkLayer::RawIp) => ("IP".to_owned(), "yes"),
            Err(hardware_type) => (format!("hardware type {hardware_type}"), "no: these frames cannot be read"),
        };
        let capture = if interface.has_default_route { format!("{capture}, the default") } else { capture.to_owned() };
        let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
        let state = if interface.running { "up" } else { "down" };
        table.add_row([interface.name, state.to_owned(), frames, capture, addresses.join(" ")]);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", printed(&table))?;
    match obstacle() {
        None => writeln!(out, "\nThis process may capture.")?,
        Some(obstacle) => writeln!(out, "\nThis process may not capture: {obstacle}.")?,
    }
    Ok(())
}
