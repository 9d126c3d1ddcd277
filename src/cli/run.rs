//! `linewarden run`: the daemon.

mod patient;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing::info;
use tracing_subscriber::EnvFilter;

use self::patient::StandardError;
use super::{Failure, Sources, USAGE};
use crate::config::{Origin, has_repetition};
use crate::daemon;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    sources: Sources,
    /// Interface to capture, may be given several times [default: capture.interfaces, else that of the default route]
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Folder of the log [default: records.dir, else /var/log/linewarden if it may be written, else linewarden-log]
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (mut origin, _) = Origin::read(options.sources.config.as_deref())?;
    let mut config = options.sources.config()?;
    if let Some(folder) = &options.sources.approvals {
        origin.overrule("policy.approvals", &folder.display());
    }
    if has_repetition(&options.interface) {
        // Each of its packets would be counted twice.
        return Err(Failure::new(USAGE, "--interface: name each interface once"));
    }
    if !options.interface.is_empty() {
        config.capture.interfaces.clone_from(&options.interface);
        origin.overrule("capture.interfaces", &options.interface.join(","));
    }
    if let Some(settings) = &options.sources.config {
        // Where they lie is read again on a reload.
        config
            .sandbox
            .read
            .push(settings.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).into());
    }
    if options.records.is_some() {
        config.records.dir.clone_from(&options.records);
        origin.overrule("records.dir", &options.records.clone().unwrap_or_default().display());
    }
    log_to_standard_error();
    let settings = options.sources.config.as_ref().map_or_else(|| "built-in".into(), |path| path.display().to_string());
    info!(version = env!("CARGO_PKG_VERSION"), settings, "linewarden starts");
    Ok(daemon::run(&config, &origin)?)
}

/// Levels by the variable `RUST_LOG`, `info` without it; no times where the journal adds its own.
fn log_to_standard_error() {
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(|| StandardError)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().init() } else { log.init() }
}
