//! `linewarden approvals import`: a register of circuits into drafts of approvals.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::stanza::{Stanza, name};
use super::{netbox, register};
use crate::cli::{BAD_DATA, FAILED, Failure};

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Options {
    /// A table with a row of headings: a row an approval
    #[arg(long, value_name = "FILE", required_unless_present = "netbox", conflicts_with = "netbox")]
    csv: Option<PathBuf>,
    /// JSON of NetBox's /api/circuits/circuits/, and of /api/circuits/circuit-terminations/ beside it; may be given several
    /// times, and hold several pages
    #[arg(long, value_name = "FILE")]
    netbox: Vec<PathBuf>,
    /// Headings of the table that are no columns of approvals, and are left out
    #[arg(long, value_name = "HEADING", value_delimiter = ',', requires = "csv")]
    skip: Vec<String>,
    /// Write a file ID.toml.draft each into this folder, instead of all of them to standard output; what is there stays
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Columns of a table, in any order, each heading in any case: id (required), kind, owner, reference, need, valid_from,
valid_until, peers, ports, ip_protocols, tunnels, sensor, interface, vlan, mpls_label, capacity, wireguard_public_keys;
they mean what the keys of an approval mean (linewarden-approvals(5)). Several peers, ports, protocols, tunnels or keys
stand in one cell, with spaces, commas or semicolons between them. Columns are separated by commas, semicolons or tabs.
FILE may be - for standard input.

What a row or a circuit does not say is left to write, marked TODO. A draft approves nothing: fill it in, and put it into
the folder of approvals as *.toml.

Examples:
  linewarden approvals import --csv lines.csv --out /etc/linewarden/approvals.d
  curl -H \"Authorization: Token $TOKEN\" \"$NETBOX/api/circuits/circuits/?limit=0\" >circuits.json
  linewarden approvals import --netbox circuits.json";

/// Larger inputs are none.
const MAX_FILE: u64 = 64 << 20;
/// Mistakes that are printed.
const MOST_PROBLEMS: usize = 100;
/// Ending of a file that is not read as approvals.
const DRAFT: &str = "toml.draft";

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let drafts = if let Some(path) = &options.csv {
        register::drafts(&shown(path), &read(path)?, &options.skip)
    } else {
        let files: Result<Vec<_>, Failure> = options.netbox.iter().map(|path| Ok((shown(path), read(path)?))).collect();
        netbox::drafts(&files?)
    };
    let drafts = drafts.map_err(|mut problems| {
        let more = problems.len().saturating_sub(MOST_PROBLEMS);
        problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        Failure::new(BAD_DATA, problems.join("\nlinewarden: "))
    })?;
    let open = drafts.iter().filter(|draft| draft.is_open()).count();
    let said = match &options.out {
        None => {
            let mut out = io::stdout().lock();
            for (draft, number) in drafts.iter().zip(0..) {
                if number > 0 {
                    writeln!(out)?;
                }
                out.write_all(draft.text.as_bytes())?;
            }
            out.flush()?;
            String::new()
        }
        Some(folder) => {
            let (written, there) = write_all(folder, &drafts)?;
            format!("; {written} written to {}, {there} were there already and stay as they are", folder.display())
        }
    };
    let _ = writeln!(
        io::stderr(),
        "linewarden: {} approvals drafted, {open} with something left to write (TODO){said}; none is in force before it stands in a file *.toml of the folder of approvals",
        drafts.len()
    );
    Ok(())
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

fn read(path: &Path) -> Result<String, Failure> {
    let fail = |what: String| Failure::new(BAD_DATA, format!("{}: {what}", shown(path)));
    let mut octets = Vec::new();
    let taken = if path == Path::new("-") {
        io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut octets)
    } else {
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut octets))
    };
    taken.map_err(|error| fail(format!("cannot be read: {error}")))?;
    if octets.len() as u64 > MAX_FILE {
        return Err(fail(format!("larger than {} MiB: this is no register of circuits", MAX_FILE >> 20)));
    }
    // Spreadsheets put a byte order mark first.
    let octets = octets.strip_prefix(b"\xef\xbb\xbf").map_or_else(|| octets.clone(), <[u8]>::to_vec);
    String::from_utf8(octets).map_err(|error| {
        let valid = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = valid.filter(|&&octet| octet == b'\n').count() + 1;
        fail(format!("line {line} is not UTF-8: save the file as UTF-8"))
    })
}

/// A file a draft; gives how many were written, and how many were there.
fn write_all(folder: &Path, drafts: &[Stanza]) -> Result<(usize, usize), Failure> {
    let fail = |path: &Path, error: &io::Error| {
        Failure::new(FAILED, format!("{}: cannot be written: {error}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|error| fail(folder, &error))?;
    let (mut names, mut written) = (HashSet::new(), 0);
    for draft in drafts {
        // Ids that differ by more than a name shows.
        let plain = Some(name(&draft.id)).filter(|name| !name.is_empty()).unwrap_or_else(|| "draft".to_owned());
        let (mut base, mut number) = (plain.clone(), 1);
        while !names.insert(base.clone()) {
            number += 1;
            base = format!("{plain}-{number}");
        }
        // One that was filled in already.
        if folder.join(&base).with_added_extension("toml").exists() {
            continue;
        }
        let path = folder.join(base).with_added_extension(DRAFT);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => file.write_all(draft.text.as_bytes()).map_err(|error| fail(&path, &error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(fail(&path, &error)),
        }
        written += 1;
    }
    Ok((written, drafts.len() - written))
}
