//! Where a question's log lies, and what is said while and after it is read.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::when::{self, Side};
use crate::cli::{BAD_DATA, Failure, USAGE};
use crate::config::{Config, LOG_FOLDERS};
use crate::daemon::clock;
use crate::store::{Asked, FLOW_LOG, Line, Log, Report, Rows, Selection, StoreError, scan};
use crate::time::Timestamp;

/// A range of time.
#[derive(Debug, Args)]
pub(in crate::cli) struct Range {
    /// From this time on: a date, a time (2026-11-28T10:00, UTC, or RFC 3339), or how long ago (-90m; s, m, h, d, w)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Before this time; a date is meant with its whole day
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// The last so long, as 24h
    #[arg(long, value_name = "TIME", conflicts_with = "from")]
    last: Option<String>,
}

impl Range {
    /// What lies in it.
    pub(in crate::cli) fn selection(&self) -> Result<Selection, Failure> {
        let (from, to) = self.times(clock())?;
        Ok(Selection::default().from(from).to(to))
    }

    /// Its two ends, as far as they are said.
    pub(in crate::cli) fn times(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), Failure> {
        let time = |text: &Option<String>, option: &str, side| match text {
            None => Ok(None),
            Some(text) => when::time(text, side, now)
                .map(Some)
                .map_err(|wrong| Failure::new(USAGE, format!("{option} {text}: {wrong}"))),
        };
        let (mut from, to) = (time(&self.from, "--from", Side::From)?, time(&self.to, "--to", Side::To)?);
        if let Some(last) = &self.last {
            let ago = when::duration(last).ok_or_else(|| {
                Failure::new(USAGE, format!("--last {last}: is no length of time; write a number and s, m, h, d or w"))
            })?;
            from = Some(when::before(now, ago));
        }
        if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            let said = [("--from", &self.from), ("--last", &self.last), ("--to", &self.to)];
            let said = said.into_iter().filter_map(|(option, text)| Some(format!("{option} {}", text.as_ref()?)));
            let said = said.collect::<Vec<_>>().join(" is not before ");
            return Err(Failure::new(USAGE, format!("{said}: nothing lies between them")));
        }
        Ok((from, to))
    }
}

/// Opens what is named, or the log where `run` writes it.
pub(in crate::cli) fn open(paths: &[PathBuf], config: Option<&Path>) -> Result<Log, Failure> {
    if !paths.is_empty() {
        return Ok(Log::open(paths, FLOW_LOG)?);
    }
    let config = Config::load_or_default(config)?;
    let is_missing = |error: &StoreError| match error {
        StoreError::NoLog { .. } => true,
        StoreError::Read { error, .. } => error.kind() == io::ErrorKind::NotFound,
        StoreError::Unreadable { .. } => false,
    };
    match Log::open(&[config.log_to_read()], FLOW_LOG) {
        Err(error) if config.records.dir.is_none() && is_missing(&error) => Err(Failure::new(
            USAGE,
            format_args!("there is no log in {}: name its folder or its files", LOG_FOLDERS.join(" nor in ")),
        )),
        opened => Ok(opened?),
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(BAD_DATA, error)
    }
}

/// A bar over octets on standard error, if that is a terminal.
pub(in crate::cli) fn progress(octets: u64, of: String, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(octets);
    if let Ok(style) = ProgressStyle::with_template("{prefix}{wide_bar} {binary_bytes}/{binary_total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.set_prefix(of);
    bar
}

/// Reads the log with a bar for it; the first error of `merge` ends that and comes before what is wrong with the log.
pub(in crate::cli) fn read<P: Send>(
    log: &Log,
    selection: &Selection,
    rows: Rows,
    quiet: bool,
    new: impl Fn() -> P + Sync,
    take: impl Fn(&mut P, &Line<'_>, &[u8]) + Sync,
    mut merge: impl FnMut(P) -> io::Result<()> + Send,
) -> io::Result<Result<Report, StoreError>> {
    let bar = progress(log.octets(), format!("{} files ", log.files()), quiet);
    let asked = Asked { selection, rows, progress: &|passed| bar.set_position(passed) };
    let mut merged = Ok(());
    let report = scan(log, &asked, new, take, |part| {
        merged = merge(part);
        if merged.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    bar.finish_and_clear();
    merged.map(|()| report)
}

/// Says what could not be read; an answer of a part is a failure, after it is given.
pub(in crate::cli) fn tell(report: &Report) -> Result<(), Failure> {
    let mut to = io::stderr().lock();
    for notice in &report.notices {
        let _ = writeln!(to, "linewarden: {notice}");
    }
    for damage in &report.damages {
        let _ = writeln!(to, "linewarden: {damage}");
    }
    let told = report.damages.len() as u64;
    if report.damaged > told {
        let _ = writeln!(to, "linewarden: and {} more", report.damaged - told);
    }
    if report.damaged == 0 {
        return Ok(());
    }
    let text = format!("{} lines or parts of the log cannot be read: the answer is of the rest", report.damaged);
    Err(Failure::new(BAD_DATA, text))
}
