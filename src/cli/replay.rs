//! `linewarden replay`: capture files through the same core as live frames.

mod lanes;
mod output;

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ipnet::IpNet;

pub(super) use self::lanes::Lanes;
use self::output::{Form, Output};
use super::written::{is_same, spare, unwritable};
use super::{BAD_DATA, FINDINGS, Failure, Sources, USAGE};
use crate::audit::OtherRecords;
use crate::capture::Summary;
use crate::capture::file::{CaptureFile, FileError};
use crate::config::{self, Config, no_approvals};
use crate::detect::Confidence;
use crate::policy::{Label, Policy};
use crate::record::Record;
use crate::sink::pseudonym::{Missing, Pseudonyms};
use crate::sink::table::FlowRows;
use crate::wire::Frame;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    judging: Judging,
    /// Capture files in the order of their time, `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write records there instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How to write records
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// Which records of flows labelled `other` are written [default: the setting records.other; none with --format table]
    #[arg(long, value_enum)]
    other: Option<Other>,
    /// Threads that share the flows; verdicts do not depend on it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Exit with 2 if there is such a flow
    #[arg(long, value_enum, value_name = "WHAT")]
    fail_on: Option<FailOn>,
    /// Write the summary as JSON there, too
    #[arg(long, value_name = "FILE")]
    summary_json: Option<PathBuf>,
    /// No summary and no progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

/// What verdicts hang on, beside the packets.
#[derive(Debug, Args)]
pub(super) struct Judging {
    #[command(flatten)]
    pub(super) sources: Sources,
    /// Name of the interface that the packets were captured on, for approvals with a path
    #[arg(long, value_name = "NAME")]
    pub(super) interface: Option<String>,
    /// One of your own networks, may be given several times [default: the setting `flow.home_nets`]
    #[arg(long, value_name = "CIDR")]
    pub(super) home_net: Vec<IpNet>,
    /// From which confidence on a detection is a tunnel [default: the setting `policy.min_confidence`]
    #[arg(long, value_enum)]
    pub(super) min_confidence: Option<Least>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line
    Ndjson,
    /// A row a flow, for people
    Table,
    /// Suricata's events, with the record as the object `linewarden`
    Eve,
    /// Suricata's events, with the fields of its schema alone
    EveStrict,
    /// Elastic Common Schema
    Ecs,
    /// Zeek's tab-separated values
    Zeek,
}

impl Format {
    fn form(self) -> Form {
        Form::Lines(match self {
            Self::Table => return Form::Table(FlowRows::default()),
            Self::Ndjson => config::Format::Ndjson,
            Self::Eve => config::Format::Eve,
            Self::EveStrict => config::Format::EveStrict,
            Self::Ecs => config::Format::Ecs,
            Self::Zeek => config::Format::Zeek,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Other {
    /// start, update and end
    All,
    /// end only
    End,
    /// None
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailOn {
    /// A flow labelled `unapproved_vpn_tunnel`
    Unapproved,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Least {
    /// One sign
    Possible,
    /// Several independent signs
    Likely,
    /// An exchange that only the protocol makes
    Certain,
}

impl Judging {
    /// Settings, and the policy made of the approvals; says so where there are none.
    pub(super) fn load(&self, quiet: bool) -> Result<(Config, Arc<Policy>), Failure> {
        let mut config = self.sources.config()?;
        if !self.home_net.is_empty() {
            // What the settings hide stays hidden.
            config.privacy.home_nets = mem::replace(&mut config.flow.home_nets, self.home_net.clone());
        }
        if let Some(least) = self.min_confidence {
            config.policy.min_confidence = match least {
                Least::Possible => Confidence::Possible,
                Least::Likely => Confidence::Likely,
                Least::Certain => Confidence::Certain,
            };
        }
        let (approvals, folder) = config.load_approvals()?;
        let mut to = io::stderr().lock();
        if approvals.list.is_empty() {
            let _ = writeln!(to, "linewarden: {}", no_approvals(folder.as_deref()));
        }
        if !quiet {
            for warning in &approvals.warnings {
                let _ = writeln!(to, "warning: {warning}");
            }
        }
        let policy = config.policy(config.sensor_name(), approvals);
        Ok((config, Arc::new(policy)))
    }
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (mut config, policy) = options.judging.load(options.quiet)?;
    match options.other {
        Some(Other::All) => config.records.other = OtherRecords::All,
        Some(Other::End) => config.records.other = OtherRecords::End,
        Some(Other::None) => config.records.other = OtherRecords::None,
        None if options.format == Format::Table => config.records.other = OtherRecords::None,
        None => {}
    }
    for written in options.out.iter().chain(&options.summary_json) {
        spare(&options.files, written)?;
    }
    if let (Some(out), Some(summary)) = (&options.out, &options.summary_json)
        && is_same(out, summary)
    {
        let message = format!("{}: the summary would overwrite the records: write it elsewhere", summary.display());
        return Err(Failure::new(USAGE, message));
    }
    let pseudonyms = Pseudonyms::open(&config, &policy, Missing::Refuse)?;
    let output = Output::open(options.out.as_deref(), options.format.form())?;
    let output = Mutex::new(output);
    let take = |mut record: Record| {
        if let Some(pseudonyms) = &pseudonyms {
            pseudonyms.apply(&mut record);
        }
        output.lock().unwrap_or_else(PoisonError::into_inner).write(record);
    };
    let show_progress = !options.quiet && io::stderr().is_terminal();
    // Who asks for more than records gets it, even where nobody reads these any more.
    let needs_all = options.fail_on.is_some() || options.summary_json.is_some();
    let keep_on = || needs_all || !output.lock().unwrap_or_else(PoisonError::into_inner).has_failed();
    let interface = options.judging.interface.as_deref();
    let (mut summary, read) = replay(
        &options.files,
        &Lanes { config: &config, policy: &policy, workers: options.workers, interface, take: &take },
        show_progress,
        &keep_on,
    );
    let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.records = output.written();
    match output.finish() {
        Err(failure) if failure.code != 0 || !needs_all => return Err(failure),
        _ => {}
    }
    if !options.quiet {
        let _ = writeln!(io::stderr(), "{summary}");
    }
    if let Some(path) = &options.summary_json {
        let text = serde_json::to_string_pretty(&summary).unwrap_or_default() + "\n";
        std::fs::write(path, text).map_err(|error| unwritable(path, &error))?;
    }
    read?;
    let unapproved = summary.flows_with(Label::UnapprovedVpnTunnel);
    match options.fail_on {
        Some(FailOn::Unapproved) if unapproved > 0 => {
            Err(Failure::new(FINDINGS, format!("{unapproved} flows are tunnels that no approval covers")))
        }
        _ => Ok(()),
    }
}

/// Reads files one after the other. What was read before an error is judged and summed up all the same.
pub(super) fn replay(
    files: &[PathBuf],
    lanes: &Lanes<'_>,
    show_progress: bool,
    keep_on: &dyn Fn() -> bool,
) -> (Summary, Result<(), Failure>) {
    let mut unsupported = 0;
    let (reports, result) = lanes.run(|feed| {
        let mut packets = 0;
        for path in files {
            let mut file = CaptureFile::open(path)?;
            file.continue_from(feed.names().len(), packets);
            let bar = show_progress.then(|| progress(path, file.progress().1));
            let mut batches = 0_u64;
            let outcome = loop {
                let mut take = |frames: &[Frame<'_>], names: &[Arc<str>]| {
                    feed.name(names);
                    feed.take(frames);
                };
                match file.next_batch(&mut take) {
                    Ok(true) if keep_on() => {}
                    Ok(_) => break Ok(()),
                    Err(error) => break Err(error),
                }
                batches += 1;
                if let Some(bar) = bar.as_ref().filter(|_| batches.is_multiple_of(256)) {
                    bar.set_position(file.progress().0);
                    bar.set_message(format!("{} packets", file.packets()));
                }
            };
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            unsupported += file.unsupported();
            packets = file.packets();
            outcome?;
            feed.end_of_file();
        }
        Ok::<(), FileError>(())
    });
    let mut summary = Summary::of(&reports);
    summary.add_unsupported(unsupported);
    let result = result.map_err(|error| Failure::new(BAD_DATA, error));
    (summary, result)
}

fn progress(path: &Path, size: Option<u64>) -> ProgressBar {
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta} {msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(path.display().to_string());
    bar
}
