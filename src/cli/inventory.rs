//! `linewarden inventory`: every tunnel, circuit and use of an approval that was ever seen.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use comfy_table::{Cell, CellAlignment};
use ipnet::IpNet;
use serde_json::Value;

use super::query::{named, network, protocols};
use super::written::cell;
use super::{BAD_DATA, Failure, Form, PERMISSION, USAGE};
use crate::config::{Config, LOG_FOLDERS, STATE_FOLDER};
use crate::policy::Label;
use crate::sink::archive::index::NO_TUNNEL;
use crate::sink::inventory::FILE;
use crate::sink::table::{plain, printed, to_the_second};
use crate::store::{Inventory, InventoryError, View};

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// What to list
    #[arg(value_enum, default_value_t = What::Tunnels)]
    what: What,
    /// With this label, by the flow that was seen last
    #[arg(long, value_name = "LABEL", value_delimiter = ',', value_parser = named(Label::ALL.map(|label| (label.name(), label)).to_vec()))]
    label: Vec<Label>,
    /// Of this tunnel protocol, as `linewarden detectors` names it; none: plain traffic on leased lines
    #[arg(long, value_name = "TUNNEL", value_delimiter = ',', value_parser = PossibleValuesParser::new(protocols()), hide_possible_values = true)]
    protocol: Vec<String>,
    /// With this address, or one of this network, at an end
    #[arg(long, value_name = "IP|CIDR", value_delimiter = ',', value_parser = network)]
    peer: Vec<IpNet>,
    /// Under this approval
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    approval: Vec<String>,
    /// How to write rows
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// Folder of the daemon's state, where inventory.sqlite is [default: state.dir, else `state` in records.dir, else the
    /// first that holds one of /var/lib/linewarden, /var/log/linewarden/state and linewarden-log/state]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The daemon's settings, for state.dir and records.dir
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Each tunnel: protocol, both ends (a is the lower address), the server's port
    Tunnels,
    /// Each approval's paths: interface, VLAN, MPLS labels
    Circuits,
    /// Each approval's use
    Approvals,
    /// Octets by day (UTC), of each tunnel and of plain traffic under each approval
    Days,
}

impl What {
    const fn view(self) -> View {
        match self {
            Self::Tunnels => View::Tunnels,
            Self::Circuits => View::Circuits,
            Self::Approvals => View::Approvals,
            Self::Days => View::Days,
        }
    }
}

impl From<InventoryError> for Failure {
    fn from(error: InventoryError) -> Self {
        let code = match &error {
            InventoryError::File { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => PERMISSION,
            InventoryError::File { error, .. } if error.kind() == io::ErrorKind::NotFound => USAGE,
            _ => BAD_DATA,
        };
        Self::new(code, error)
    }
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    options.check()?;
    let inventory = Inventory::open(&options.path()?)?;
    let (columns, rows) = inventory.rows(options.what.view(), |columns, row| options.wants(columns, row))?;
    let missing = inventory.missing()?;
    // Whoever reads slowly what is written here holds up nobody.
    drop(inventory);
    let mut out = io::BufWriter::new(io::stdout().lock());
    match options.format {
        Form::Table => table(&mut out, &columns, &rows)?,
        Form::Ndjson => ndjson(&mut out, &columns, &rows)?,
        Form::Csv => csv(&mut out, &columns, &rows)?,
    }
    out.flush()?;
    if missing.evicted > 0 {
        eprintln!(
            "linewarden: {} rows went to make room for others, those without an approval and of few packets first: raise inventory.tunnels, or ask the log (linewarden query)",
            missing.evicted
        );
    }
    if missing.damaged > 0 {
        eprintln!("linewarden: {} lines or parts of the log could not be read: they are not in it", missing.damaged);
    }
    Ok(())
}

impl Options {
    fn check(&self) -> Result<(), Failure> {
        let has_ends = matches!(self.what, What::Tunnels | What::Days);
        let wrong = |option, lists| Err(Failure::new(USAGE, format!("{option} is for {lists}")));
        if !self.label.is_empty() && self.what != What::Tunnels {
            return wrong("--label", "tunnels");
        }
        if !self.protocol.is_empty() && !has_ends {
            return wrong("--protocol", "tunnels and days");
        }
        if !self.peer.is_empty() && !has_ends {
            return wrong("--peer", "tunnels and days");
        }
        Ok(())
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.state {
            return Ok(folder.join(FILE));
        }
        let config = Config::load_or_default(self.config.as_deref())?;
        if let Some(folder) = &config.state.dir {
            return Ok(folder.join(FILE));
        }
        if let Some(folder) = config.records.dir.as_deref().filter(|folder| *folder != Path::new(LOG_FOLDERS[0])) {
            return Ok(folder.join("state").join(FILE));
        }
        let usual = [Path::new(STATE_FOLDER).to_owned(), state_in(LOG_FOLDERS[0]), state_in(LOG_FOLDERS[1])];
        // One that is there and closed to this user is said to be so.
        let is_there = |folder: &&PathBuf| !matches!(folder.join(FILE).try_exists(), Ok(false));
        usual.iter().find(is_there).map(|folder| folder.join(FILE)).ok_or_else(|| {
            let places = usual.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
            Failure::new(USAGE, format!("there is no {FILE} in {places}: name its folder with --state"))
        })
    }

    fn wants(&self, columns: &[String], row: &[Value]) -> bool {
        let text = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            at.and_then(|at| row.get(at)).and_then(Value::as_str)
        };
        let has_approval =
            self.approval.is_empty() || text("approval").is_some_and(|id| self.approval.iter().any(|one| one == id));
        let has_label = self.label.is_empty()
            || text("label").is_some_and(|value| self.label.iter().any(|one| one.name() == value));
        let is_at = |name, net: &IpNet| {
            text(name).and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|address| net.contains(&address))
        };
        let has_peer = self.peer.is_empty() || self.peer.iter().any(|net| is_at("a", net) || is_at("b", net));
        let protocol = text("protocol").unwrap_or(NO_TUNNEL);
        let has_protocol = self.protocol.is_empty() || self.protocol.iter().any(|name| name == protocol);
        has_label && has_peer && has_protocol && has_approval
    }
}

fn state_in(folder: &str) -> PathBuf {
    Path::new(folder).join("state")
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn ndjson(out: &mut impl Write, columns: &[String], rows: &[Vec<Value>]) -> io::Result<()> {
    for row in rows {
        let object: serde_json::Map<_, _> = columns.iter().cloned().zip(row.iter().cloned()).collect();
        writeln!(out, "{}", Value::Object(object))?;
    }
    Ok(())
}

fn csv(out: &mut impl Write, columns: &[String], rows: &[Vec<Value>]) -> io::Result<()> {
    let mut to = csv::Writer::from_writer(out);
    to.write_record(columns)?;
    for row in rows {
        let texts: Vec<_> = row.iter().map(plain_text).collect();
        to.write_record(texts.iter().map(|text| cell(text.as_bytes())))?;
    }
    to.flush()
}

/// What a person does not look at first.
const NOT_IN_TABLES: [&str; 5] = ["packets_ab", "packets_ba", "policy_revision", "flow_id", "open_flows"];

fn table(out: &mut impl Write, columns: &[String], rows: &[Vec<Value>]) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "none");
    }
    let shown = |column: &String| !NOT_IN_TABLES.contains(&column.as_str());
    let mut table = plain();
    table.set_header(columns.iter().filter(|column| shown(column)).map(|column| column.replace('_', " ")));
    for row in rows {
        let cells = columns.iter().zip(row).filter(|(column, _)| shown(column)).map(|(column, value)| {
            let text = plain_text(value);
            match value {
                Value::Number(_) => Cell::new(text).set_alignment(CellAlignment::Right),
                Value::Null => Cell::new("-"),
                _ if column.ends_with("_seen") || column.ends_with("_used") => Cell::new(to_the_second(&text)),
                _ => Cell::new(text),
            }
        });
        table.add_row(cells);
    }
    writeln!(out, "{}", printed(&table))
}
