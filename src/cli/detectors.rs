//! `linewarden detectors`: the registry as a table.

use std::collections::HashSet;
use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::Failure;
use crate::detect::{About, CarrierKind, Confidence, Phase, REGISTRY};
use crate::sink::table::{plain, printed};

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// List every code of evidence, with its meaning and the clause of the specification
    #[arg(long)]
    codes: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// As in the README
    Markdown,
    /// For programs
    Json,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (header, rows) = if options.codes { codes() } else { detectors(matches!(options.format, Format::Json)) };
    let mut out = io::stdout().lock();
    match options.format {
        Format::Table => {
            let mut table = plain();
            table.set_header(header.clone());
            for row in &rows {
                table.add_row(row.clone());
            }
            writeln!(out, "{}", printed(&table))?;
        }
        Format::Markdown => {
            writeln!(out, "| {} |", header.join(" | "))?;
            writeln!(out, "|{}", "---|".repeat(header.len()))?;
            for row in &rows {
                let cells: Vec<_> = row
                    .iter()
                    .enumerate()
                    .map(|(column, text)| {
                        let text = text.replace('|', "\\|");
                        if column == 0 { format!("`{}`", text.replace(", ", "`, `")) } else { text }
                    })
                    .collect();
                writeln!(out, "| {} |", cells.join(" | "))?;
            }
        }
        Format::Json => {
            let objects: Vec<_> = rows
                .iter()
                .map(|row| {
                    let fields =
                        header.iter().zip(row).map(|(name, text)| (name.replace([' ', '-'], "_"), json!(text)));
                    fields.collect::<serde_json::Map<_, _>>()
                })
                .collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&objects).unwrap_or_default())?;
        }
    }
    Ok(())
}

type Rows = (Vec<&'static str>, Vec<Vec<String>>);

/// A row a detector, as people read them, or a row a protocol, as programs look them up.
fn detectors(each_protocol: bool) -> Rows {
    let header =
        vec!["protocol", "over", "recognised", "by chance", "mid-stream", "reaches", "specification", "out of sight"];
    let rows = REGISTRY.iter().map(|detector| detector.about()).flat_map(|about| {
        let names: Vec<_> = about.protocols.iter().map(|protocol| protocol.name().to_owned()).collect();
        let names = if each_protocol { names } else { vec![names.join(", ")] };
        names.into_iter().map(|name| {
            vec![
                name,
                carriers(about),
                about.recognises.to_owned(),
                about.chance.to_owned(),
                about.midstream.map_or("no", Confidence::name).to_owned(),
                about.reaches.name().to_owned(),
                about.specification.to_owned(),
                about.out_of_sight.to_owned(),
            ]
        })
    });
    (header, rows.collect())
}

fn codes() -> Rows {
    let header = vec!["code", "phase", "meaning", "clause"];
    // Detectors of one family share codes.
    let mut names = HashSet::new();
    let rows = REGISTRY
        .iter()
        .flat_map(|detector| detector.about().codes)
        .filter(|code| names.insert(code.name))
        .map(|code| {
            let phase = match code.phase {
                Phase::Handshake => "set-up",
                Phase::Data => "data",
                Phase::Stateless => "any",
            };
            vec![code.name.to_owned(), phase.to_owned(), code.meaning.to_owned(), code.clause.to_owned()]
        })
        .collect();
    (header, rows)
}

fn carriers(about: &About) -> String {
    let names: Vec<_> = about
        .carriers
        .iter()
        .map(|carrier| match carrier {
            CarrierKind::Udp => "UDP".to_owned(),
            CarrierKind::Tcp => "TCP".to_owned(),
            CarrierKind::Ip(number) => format!("IP {number}"),
        })
        .collect();
    names.join(", ")
}
