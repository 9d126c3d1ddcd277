//! `linewarden pseudonym`: the pseudonyms that stand in records for addresses, and back.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use super::Failure;
use crate::config::Config;
use crate::sink::pseudonym::{PseudonymKey, key_file};

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// Addresses or networks; the answers come in their order, a line each
    #[arg(required_unless_present = "new", value_name = "IP|CIDR", value_parser = network)]
    addresses: Vec<IpNet>,
    /// They are pseudonyms: find whom they stand for
    #[arg(long)]
    reverse: bool,
    /// File of the key [default: the setting privacy.key, else pseudonym.key in the state's folder]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Settings, for where the key is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make the key's file first, which must not be there yet: for sensors that are to share one
    #[arg(long)]
    new: bool,
}

/// An address is the network of itself alone.
fn network(text: &str) -> Result<IpNet, &'static str> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "write an address or a network, as 10.1.2.0/24")
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let path = match &options.key {
        Some(path) => path.clone(),
        None => key_file(&Config::load_or_default(options.config.as_deref())?),
    };
    let key = if options.new { PseudonymKey::make(&path)? } else { PseudonymKey::require(&path)? };
    let mut out = io::stdout().lock();
    for given in &options.addresses {
        let address = given.addr();
        let found = if options.reverse { key.address(address) } else { key.pseudonym(address) };
        match IpNet::new(found, given.prefix_len()) {
            Ok(network) if given.prefix_len() < given.max_prefix_len() => writeln!(out, "{}", network.trunc())?,
            _ => writeln!(out, "{found}")?,
        }
    }
    Ok(())
}
