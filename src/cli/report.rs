//! `linewarden report`: what an auditor asks of a log, as HTML, CSV tables or JSON.

mod chart;
mod html;
mod tables;
mod text;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::text::{quoted, time};
use super::query::source::{self, Range};
use super::query::when;
use super::verify_log::{self, key_files, load_heads, verified};
use super::written::{is_replaceable, spare, spare_own, unwritable, write_whole};
use super::{BAD_DATA, FAILED, Failure, USAGE};
use crate::config::{Config, host_name};
use crate::daemon::clock;
use crate::store::report::{Flows, Integrity, KeyName, LONGEST, Maker, Part, Period, Report, Sensors};
use crate::store::verify::{VerifyError, work};
use crate::store::{Log, Rows, SENSOR_LOG, Selection, StoreError};
use crate::time::Timestamp;

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example: linewarden report /var/log/linewarden --from 2026-11-01 --to 2026-11-30 --out november.html\n\nWithout --from and --last it is of the 30 days before --to.\n\nExit code 0: the report is written; 65: it is written, and the log is not whole or parts of it cannot be read, or there is nothing to report; 78: it is written, and the log is not verified, for want of the sensor's public key."
)]
pub struct Options {
    /// Folders of the log, or files of it (.ndjson, .ndjson.zst) in the order of their time [default: records.dir, else
    /// /var/log/linewarden, else linewarden-log]
    #[arg(value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// Settings, for records.dir and state.dir
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    /// How to write it
    #[arg(long, value_enum, default_value_t = Form::Html)]
    format: Form,
    /// Where to: a file, for CSV a folder, each of whose tables is a file [default: standard output, for HTML and JSON]
    #[arg(long, value_name = "FILE|DIR")]
    out: Option<PathBuf>,
    /// Who makes it, as the report is to say [default: this user on this host]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// The sensor's public key, to verify the log by; may be given several times [default: sensor.pub in the state folder]
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Signed heads that were kept, or the folder they are in [default: the state folder]
    #[arg(long, value_name = "FILE|DIR")]
    heads: Option<PathBuf>,
    /// Do not verify the log, which reads all of it whatever the range; the report says so
    #[arg(long, conflicts_with_all = ["key", "heads"])]
    no_verify: bool,
    /// Do not trust the indexes beside the archives: read everything
    #[arg(long)]
    no_index: bool,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One file that needs no network, for reading and printing
    Html,
    /// A folder of tables, for spreadsheets
    Csv,
    /// Everything, for programs
    Json,
}

/// Without --from.
const USUAL: Duration = Duration::from_hours(30 * 24);
/// A flow that was open when the range began is read from its beginning, unless it is older than this.
const LOOK_BACK: Duration = Duration::from_hours(1);

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    if options.format == Form::Csv && options.out.is_none() {
        return Err(Failure::new(USAGE, "--format csv writes several tables: name a folder for them with --out"));
    }
    let now = clock();
    let period = period(options, now)?;
    let config = Config::load_or_default(options.config.as_deref())?;
    let mut log = source::open(&options.paths, options.config.as_deref())?;
    let paths = if options.paths.is_empty() { vec![config.log_to_read()] } else { options.paths.clone() };
    // The commands that the report names are to work from everywhere.
    let paths: Vec<_> = paths.into_iter().map(|path| fs::canonicalize(&path).unwrap_or(path)).collect();
    check_target(options, &config, &paths)?;
    let sensors = sensors(&paths, period)?;
    let verified = paths.iter().map(|path| integrity(options, &config, path)).collect::<Result<Vec<_>, Failure>>()?;
    let (integrity, unverified): (Vec<_>, Vec<_>) = verified.into_iter().unzip();
    if options.no_index {
        log = log.without_indexes();
    }
    let mut flows = Flows::new(period);
    let look = flows.look();
    let selection = Selection::default().from(Some(when::before(period.from, LOOK_BACK))).to(Some(period.to));
    let read = source::read(
        &log,
        &selection,
        Rows::Histories,
        options.quiet,
        Part::default,
        |part, line, raw| look.take(part, line, raw),
        |part| {
            flows.merge(part);
            Ok(())
        },
    )??;
    // It is the report that fails in the end.
    let _ = source::tell(&read);
    let damaged = read.damaged + sensors.as_ref().map_or(0, Sensors::damaged);
    let says_nothing = sensors.as_ref().is_none_or(Sensors::is_empty);
    let arguments: Vec<_> = paths.iter().map(|path| quoted(path)).collect();
    let maker = Maker {
        at: now,
        by: options.by.clone().unwrap_or_else(maker),
        explain: format!("linewarden explain --log {} --flow", arguments.join(" --log ")),
        logs: paths,
    };
    let report = Report::new(period, maker, flows, sensors, integrity, &read);
    if report.is_empty() && says_nothing {
        let range = format!("from {} to {}", time(period.from), time(period.to));
        return Err(Failure::new(BAD_DATA, format!("the log holds neither records nor events of a sensor {range}")));
    }
    write(options, &report)?;
    if !options.quiet {
        let mut to = io::stderr().lock();
        for doubt in &report.evidence.doubts {
            let _ = writeln!(to, "linewarden: evidence not complete: {doubt}");
        }
    }
    if report.integrity.iter().any(|of| of.is_whole == Some(false)) {
        return Err(Failure::new(BAD_DATA, "the log is NOT WHOLE: the report says where"));
    }
    if damaged > 0 {
        return Err(Failure::new(BAD_DATA, "parts of the log cannot be read: the report is of the rest, and says so"));
    }
    unverified.into_iter().flatten().next().map_or(Ok(()), Err)
}

/// Before anything is read: the report must not replace what it is of.
fn check_target(options: &Options, config: &Config, paths: &[PathBuf]) -> Result<(), Failure> {
    let Some(out) = options.out.as_deref().filter(|_| options.format != Form::Csv) else { return Ok(()) };
    spare(paths.iter().chain(&options.key).chain(&options.heads).chain(&options.config), out)?;
    for path in paths {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let heads = options.heads.as_deref().unwrap_or(folder);
        spare_own([folder, &config.state_to_read(folder), heads], out)?;
    }
    is_replaceable(out)
}

fn period(options: &Options, now: Timestamp) -> Result<Period, Failure> {
    let (from, to) = options.range.times(now)?;
    // What is to come was not seen.
    let to = to.unwrap_or(now).min(now);
    let from = from.unwrap_or_else(|| when::before(to, USUAL));
    if from >= to {
        return Err(Failure::new(
            USAGE,
            format!("--from {} is not in the past: there is nothing to report", time(from)),
        ));
    }
    if to.since(from) > Duration::from_hours(24 * LONGEST) {
        return Err(Failure::new(USAGE, format!("a report is of {LONGEST} days at most: name a later --from")));
    }
    Ok(Period::new(from, to))
}

/// What the sensors said of themselves, in the folders that are named.
fn sensors(paths: &[PathBuf], period: Period) -> Result<Option<Sensors>, Failure> {
    let mut folders = Vec::new();
    for path in paths.iter().filter(|path| path.is_dir()) {
        match Log::open(std::slice::from_ref(path), SENSOR_LOG) {
            Ok(_) => folders.push(path.clone()),
            Err(StoreError::NoLog { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if folders.is_empty() {
        return Ok(None);
    }
    Ok(Some(Sensors::read(&Log::open(&folders, SENSOR_LOG)?, period)))
}

/// Verifies the logs of a folder. A key or heads that are named must be there; a log that could be verified, and is not, is
/// a failure once the report is written.
fn integrity(options: &Options, config: &Config, folder: &Path) -> Result<(Integrity, Option<Failure>), Failure> {
    let state = config.state_to_read(folder);
    let key_files = key_files(&options.key, &state);
    let mut command = format!("linewarden verify-log {}", quoted(folder));
    for key in &key_files {
        command.extend([" --key ", &quoted(key)]);
    }
    if let Some(heads) = &options.heads {
        command.extend([" --heads ", &quoted(heads)]);
    }
    let told = |not_verified, is_whole, keys, logs| Integrity {
        folder: folder.to_owned(),
        is_whole,
        not_verified,
        keys,
        logs,
        command: command.clone(),
    };
    let not_verified =
        |why: String| -> Result<_, Failure> { Ok((told(Some(why), None, Vec::new(), Vec::new()), None)) };
    if options.no_verify {
        return not_verified("--no-verify was given".to_owned());
    }
    if !folder.is_dir() {
        return not_verified("a file was named, and a log is verified as a folder".to_owned());
    }
    let (heads, doubt) = load_heads(options.heads.as_deref(), &state)?;
    doubt?;
    let octets = match work(folder, &heads) {
        Ok(octets) => octets,
        Err(VerifyError::NoLog(_)) => {
            return not_verified("there are no seals in it: it was not written by `linewarden run`".to_owned());
        }
        Err(error) => return Err(error.into()),
    };
    let keys = match verify_log::keys(&key_files) {
        Ok(keys) => keys,
        Err(failure) if options.key.is_empty() => {
            let message = format!("{}: the log is NOT VERIFIED: {}", folder.display(), failure.message);
            let (integrity, _) = not_verified(failure.message)?;
            return Ok((integrity, Some(Failure::new(failure.code, message))));
        }
        Err(failure) => return Err(failure),
    };
    let logs = verified(folder, octets, (&keys, &heads), options.quiet)?;
    let keys = keys.iter().map(|key| KeyName { key: key.base64(), sha256: key.fingerprint() }).collect();
    Ok((told(None, Some(logs.iter().all(|log| log.is_whole)), keys, logs), None))
}

/// This user on this host.
fn maker() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name = name.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()));
    format!("{name} on {}", host_name())
}

fn write(options: &Options, report: &Report) -> Result<(), Failure> {
    let octets = match options.format {
        Form::Html => html::page(report).into_bytes(),
        Form::Json => {
            let mut text = serde_json::to_vec_pretty(report).map_err(|error| Failure::new(FAILED, error))?;
            text.push(b'\n');
            text
        }
        Form::Csv => {
            let folder = options.out.as_deref().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
            for (name, table) in tables::all(report) {
                write_whole(&folder.join(name).with_extension("csv"), &table)?;
            }
            return Ok(());
        }
    };
    match &options.out {
        Some(path) => write_whole(path, &octets),
        None => Ok(io::stdout().lock().write_all(&octets)?),
    }
}
