//! `linewarden verify-log`: whether a log is whole, and where it is not.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::query::source::progress;
use super::{BAD_DATA, CONFIGURATION, FAILED, Failure, PERMISSION};
use crate::config::Config;
use crate::sink::sealed::heads;
use crate::sink::sealed::key::{KeyError, PUBLIC_FILE, PublicKey};
use crate::sink::sealed::seal::Head;
use crate::store::verify::{Means, Report, VerifyError, verify, work};

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Exit code 0: whole, with the breaks that the sensor itself recorded listed; 65: not whole."
)]
pub struct Options {
    /// Folder of the log [default: records.dir, else /var/log/linewarden if a log is there, else linewarden-log]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The sensor's public key; may be given several times, where a sensor's key was replaced
    /// [default: sensor.pub in the state folder]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Signed heads that were kept, or the folder they are in: without them a cut tail does not show
    /// [default: the state folder]
    #[arg(long, value_name = "FILE|DIR")]
    heads: Option<PathBuf>,
    /// Settings, for the defaults of the above
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long)]
    json: bool,
}

/// The report as JSON.
#[derive(Serialize)]
struct Json<'a> {
    is_whole: bool,
    folder: &'a Path,
    logs: &'a [Report],
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let config = Config::load_or_default(options.config.as_deref())?;
    let folder = options.folder.clone().unwrap_or_else(|| config.log_to_read());
    // The name of the folder decides where its state is: as the sensor was started, not as it was typed here.
    let state = config.state_to_read(&std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone()));
    let (heads, doubt) = load_heads(options.heads.as_deref(), &state)?;
    let octets = work(&folder, &heads)?;
    let keys = keys(&key_files(&options.key, &state))?;
    let reports = verified(&folder, octets, (&keys, &heads), options.json)?;
    let is_whole = reports.iter().all(|report| report.is_whole);
    let mut out = io::stdout().lock();
    if options.json {
        let text = serde_json::to_string_pretty(&Json { is_whole, folder: &folder, logs: &reports });
        writeln!(out, "{}", text.unwrap_or_default())?;
    } else {
        for report in &reports {
            print(&mut out, report)?;
        }
    }
    out.flush()?;
    if is_whole {
        return doubt;
    }
    if let Err(doubt) = doubt {
        let _ = writeln!(io::stderr(), "linewarden: {}", doubt.message);
    }
    let findings: u64 = reports.iter().map(|report| report.findings.len() as u64 + report.findings_left_out).sum();
    Err(Failure::new(BAD_DATA, format!("{}: the log is NOT WHOLE: {findings} findings", folder.display())))
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        Self::new(if error.is_denied() { PERMISSION } else { FAILED }, error)
    }
}

/// Verifies the logs of a folder, with a bar for the octets that it takes.
pub(super) fn verified(
    folder: &Path,
    octets: u64,
    (keys, heads): (&[PublicKey], &[Head]),
    quiet: bool,
) -> Result<Vec<Report>, VerifyError> {
    let bar = progress(octets, String::new(), quiet);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let reports = verify(folder, &Means { keys, heads, threads, progress: &|taken| bar.inc(taken) });
    bar.finish_and_clear();
    reports
}

/// Those that are named, or the one in the state folder.
pub(super) fn key_files(named: &[PathBuf], state: &Path) -> Vec<PathBuf> {
    if named.is_empty() { vec![state.join(PUBLIC_FILE)] } else { named.to_vec() }
}

pub(super) fn keys(files: &[PathBuf]) -> Result<Vec<PublicKey>, Failure> {
    let load = |path: &PathBuf| {
        PublicKey::load(path).map_err(|error| match &error {
            KeyError::System { source, .. } if source.kind() == io::ErrorKind::NotFound => Failure::new(
                CONFIGURATION,
                format!("{error}: name the sensor.pub of the sensor that wrote the log with --key"),
            ),
            _ => Failure::new(CONFIGURATION, error),
        })
    };
    files.iter().map(load).collect()
}

/// Those that were asked for must be there; those of the state folder are taken where they are. Lines that are none are a
/// failure once the rest is verified.
pub(super) fn load_heads(asked: Option<&Path>, state: &Path) -> Result<(Vec<Head>, Result<(), Failure>), Failure> {
    let place = asked.unwrap_or(state);
    let fail = |path: &Path, what: &dyn std::fmt::Display| {
        Failure::new(CONFIGURATION, format!("{}: signed heads cannot be read: {what}", path.display()))
    };
    let mut files = Vec::new();
    if place.is_dir() {
        for entry in std::fs::read_dir(place).map_err(|error| fail(place, &error))? {
            let path = entry.map_err(|error| fail(place, &error))?.path();
            if path.extension().is_some_and(|extension| extension == "heads") {
                files.push(path);
            }
        }
        if files.is_empty() && asked.is_some() {
            return Err(fail(place, &"there is no file X.heads in it"));
        }
    } else if asked.is_some() {
        files.push(place.to_owned());
    }
    let (mut all, mut doubt) = (Vec::new(), Ok(()));
    for path in files {
        let (heads, others) = heads::read(&path).map_err(|error| fail(&path, &error))?;
        if others > 0 {
            let text = format!("{others} of its lines are no signed heads, such as the sensor keeps in state.dir");
            let failure = fail(&path, &text);
            if heads.is_empty() && asked.is_some() {
                return Err(failure);
            }
            doubt = Err(failure);
        }
        all.extend(heads);
    }
    Ok((all, doubt))
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Report { log, segments, seals, records, octets, .. } = report;
    write!(out, "{log}: {segments} segments, {seals} seals, {records} records, {octets} octets")?;
    match report.time {
        Some((first, last)) => writeln!(out, ", {first} to {last}")?,
        None => writeln!(out)?,
    }
    match &report.signed {
        Some(signed) => {
            writeln!(out, "  signed     up to seal {} at {}, chain {}", signed.seal, signed.time, signed.chain)?;
        }
        None => writeln!(out, "  signed     nothing by your key")?,
    }
    if report.unsigned_records > 0 {
        let records = report.unsigned_records;
        writeln!(out, "  unsigned   {records} records lie behind that: guarded against accidents only")?;
    }
    match report.heads {
        0 => writeln!(out, "  heads      none to compare with: whether the end was cut off cannot be told (--heads)")?,
        count => writeln!(out, "  heads      compared with {count} that were kept elsewhere")?,
    }
    if let Some(segment) = report.removed_to {
        writeln!(out, "  retention  removed segments up to {segment}, as a signed seal says")?;
    }
    if report.unsealed_octets > 0 {
        let octets = report.unsealed_octets;
        writeln!(
            out,
            "  unsealed   {octets} octets at the end are not sealed yet: the log is being written, or was not closed"
        )?;
    }
    for path in &report.unclaimed {
        writeln!(out, "  left       {}: no seal here is of it; retention may have removed that", path.display())?;
    }
    for one in &report.breaks {
        writeln!(out, "  break      {one}")?;
    }
    for finding in &report.findings {
        writeln!(out, "  NOT WHOLE  {finding}")?;
    }
    if report.findings_left_out > 0 {
        writeln!(out, "  NOT WHOLE  and {} findings more", report.findings_left_out)?;
    }
    writeln!(out, "  result     {}", if report.is_whole { "whole" } else { "NOT WHOLE" })
}
