//! `linewarden approvals lint`: what is valid but probably not meant.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::query::when;
use crate::cli::{FINDINGS, Failure};
use crate::config::{Config, Finding, no_approvals};
use crate::daemon::clock;

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(after_long_help = "Example: linewarden approvals lint --within 90d /etc/linewarden/approvals.d")]
pub struct Options {
    /// Folder of approvals [default: the setting policy.approvals, else config/approvals.d, else /etc/linewarden/approvals.d]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Say which end within this: a number and s, m, h, d or w [default: the setting `policy.warn_before`]
    #[arg(long, value_name = "TIME", value_parser = within)]
    within: Option<Duration>,
    /// Settings, for the defaults of the above
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the findings as JSON
    #[arg(long)]
    json: bool,
}

/// The findings as JSON.
#[derive(Serialize)]
struct Json<'a> {
    folder: Option<&'a PathBuf>,
    approvals: usize,
    revision: &'a str,
    findings: &'a [Finding],
}

fn within(text: &str) -> Result<Duration, &'static str> {
    when::duration(text).ok_or("write a whole number and s, m, h, d or w, such as 90d")
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let mut config = Config::load_or_default(options.config.as_deref())?;
    config.policy.approvals = options.folder.clone().or(config.policy.approvals);
    let (approvals, folder) = config.load_approvals()?;
    let findings = approvals.lint(clock(), options.within.unwrap_or(config.policy.warn_before));
    let mut out = io::stdout().lock();
    let count = approvals.list.len();
    if options.json {
        let (folder, revision) = (folder.as_ref(), &*approvals.revision);
        let json = Json { folder, approvals: count, revision, findings: &findings };
        writeln!(out, "{}", serde_json::to_string_pretty(&json).unwrap_or_default())?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding} [{}]", finding.code)?;
        }
        match &folder {
            Some(folder) if count > 0 => {
                writeln!(out, "{}: {count} approvals, {} findings", folder.display(), findings.len())?;
            }
            folder => writeln!(out, "{}", no_approvals(folder.as_deref()))?,
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::new(FINDINGS, format!("{} findings", findings.len()))) }
}
