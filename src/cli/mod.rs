//! Turns arguments into a command, and its outcome into an exit code: one file per command.

mod approvals;
mod bench;
mod check_config;
mod ctl;
mod detectors;
mod diff_policy;
mod explain;
mod generate;
mod interfaces;
mod inventory;
mod open_rings;
mod pseudonym;
mod query;
mod replay;
mod report;
mod run;
mod verify_log;
mod written;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::capture::CaptureError;
use crate::capture::file::FileError;
use crate::config::{Config, ConfigError};
use crate::daemon::{self, DaemonError};
use crate::sink::pseudonym::KeyError;
use crate::sink::sealed::LogError;

/// Labels every flow on a link: approved leased line or VPN, unapproved tunnel, or neither.
///
/// Passive: it reads packets and writes records, and never sends or blocks anything.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Below every help text.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed while running; 2 findings (replay --fail-on unapproved, diff-policy, approvals lint); 64 usage; 65 bad data, a log that can be read in part only, or that is not whole; 69 no such interface now, which may come; 77 permission; 78 configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture live and log verdicts until SIGTERM; SIGHUP reloads the approvals
    Run(run::Options),
    /// Label the flows of capture files: pcap and pcapng, also behind gzip
    Replay(replay::Options),
    /// Say why one flow of a capture file, or of the log, got its verdict
    Explain(explain::Options),
    /// Ask the log: flows by time, label, tunnel, peer and more, as they are or summed up
    ///
    /// A row is a flow: its `end` record, or its latest where none has come. It is in a range of time if it had packets
    /// there; its counts are those of the whole flow. A flow longer than the active timeout is several,
    /// each with counts of its own; the later names the earlier (`continues`). An option given several times, or with
    /// commas, means any of these.
    #[command(verbatim_doc_comment)]
    Query(Box<query::Options>),
    /// List every tunnel, circuit and use of an approval that was ever seen
    ///
    /// From the inventory that the daemon keeps beside the log; it may run meanwhile. Each flow counts once, by its `end`
    /// record or its latest, as `query` counts it. A tunnel is what goes between two addresses by one protocol and, where
    /// there are ports, to one port of the server; `a` is the lower address, and `ab` the way from it to `b`.
    ///
    /// For example, unapproved tunnels to one network, and what each approval was used for; the file is SQLite, too:
    ///   linewarden inventory --label unapproved_vpn_tunnel --peer 198.51.100.0/24
    ///   linewarden inventory approvals --format csv
    ///   sqlite3 -readonly /var/lib/linewarden/inventory.sqlite 'SELECT * FROM tunnels'
    #[expect(clippy::doc_markdown, reason = "it is shown as it stands")]
    #[command(verbatim_doc_comment)]
    Inventory(Box<inventory::Options>),
    /// Say which logged flows would get another verdict by other approvals
    ///
    /// Every flow of the log is judged again by both sets, by what its last record says and at the time of its last
    /// packet. Exits with 0 where no verdict changes, with 2 where one does.
    DiffPolicy(diff_policy::Options),
    /// Write a report for an auditor: coverage and gaps, approvals and their use, unapproved tunnels, integrity
    ///
    /// One file of HTML that needs no network and prints well, JSON, or a folder of CSV tables. A flow counts once, by its
    /// latest record; octets that its records say came between two times are spread evenly over the time between, and what
    /// of it lies in the range counts. The log is verified on the way.
    Report(Box<report::Options>),
    /// Check that the log is whole: signed seals, the chain of them, and every record under it
    VerifyLog(verify_log::Options),
    /// Find the pseudonym of an address, or whom one stands for
    ///
    /// For who holds the key by which `privacy.pseudonyms` hides addresses. A network's pseudonym is the network of its
    /// addresses' pseudonyms. What a host did, from a log that hides it:
    /// linewarden query --peer "$(linewarden pseudonym 10.1.2.3)"
    Pseudonym(pseudonym::Options),
    /// Check configuration and approvals
    CheckConfig(check_config::Options),
    /// Look over the approvals, or draft new ones: from a table, from NetBox, from a logged flow
    ///
    /// Nothing is approved by these commands: a draft is not read until a person has filled it in and renamed it to *.toml.
    Approvals(approvals::Options),
    /// Ask a running daemon, or have it reload its approvals
    Ctl(ctl::Options),
    /// List what is recognised, and how
    Detectors(detectors::Options),
    /// List what can be captured here, and what is missing if not
    Interfaces,
    /// Measure how fast this machine labels flows
    Bench(bench::Options),
    /// Write manual pages or completions, for a package
    #[command(hide = true)]
    Generate(generate::Options),
    /// Open rings for the daemon, which starts this process
    #[command(name = daemon::OPENER, hide = true)]
    OpenRings(open_rings::Options),
}

/// Where settings and approvals come from; the same for every command that judges.
#[derive(Debug, Args)]
struct Sources {
    /// Settings; without it the built-in defaults, as config/linewarden.toml shows them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of approvals [default: the setting policy.approvals, else config/approvals.d, else
    /// /etc/linewarden/approvals.d]
    #[arg(long, value_name = "DIR")]
    approvals: Option<PathBuf>,
}

impl Sources {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load_or_default(self.config.as_deref())?;
        if let Some(folder) = &self.approvals {
            config.policy.approvals = Some(folder.clone());
        }
        Ok(config)
    }
}

/// How a command writes the rows of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// One JSON object a line
    Ndjson,
    /// For spreadsheets
    Csv,
}

/// A command's outcome that is not success.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

const FAILED: u8 = 1;
const FINDINGS: u8 = 2;
const USAGE: u8 = 64;
const BAD_DATA: u8 = 65;
/// What is missing may come by itself: the service manager tries again.
const UNAVAILABLE: u8 = 69;
const PERMISSION: u8 = 77;
const CONFIGURATION: u8 = 78;

impl Failure {
    fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(CONFIGURATION, error)
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::new(CONFIGURATION, error)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::new(BAD_DATA, error)
    }
}

impl From<io::Error> for Failure {
    /// Only standard output is written without a path; a reader that has seen enough is no failure.
    fn from(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { FAILED };
        Self::new(code, format!("standard output cannot be written: {error}"))
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let code = match &error {
            DaemonError::Capture(CaptureError::Permission | CaptureError::XdpPermission) => PERMISSION,
            DaemonError::Capture(CaptureError::NoInterface(_)) | DaemonError::NoDefaultRoute => UNAVAILABLE,
            DaemonError::Capture(CaptureError::HardwareType { .. } | CaptureError::Setting(_))
            | DaemonError::Config(_)
            | DaemonError::Log(LogError::Key(KeyError::Refused { .. }))
            | DaemonError::Privacy(_)
            | DaemonError::Control(_)
            | DaemonError::Metrics(_) => CONFIGURATION,
            _ => FAILED,
        };
        Self::new(code, error)
    }
}

fn command_line() -> clap::Command {
    Arguments::command().mut_subcommands(|command| command.after_help(EXIT_CODES))
}

/// Runs a command line; what `main` returns.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed =
        command_line().try_get_matches_from(arguments).and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let wanted = !error.use_stderr();
            let _ = error.print();
            return if wanted { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    let outcome = match arguments.command {
        Command::Run(options) => run::run(&options),
        Command::Replay(options) => replay::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::VerifyLog(options) => verify_log::run(&options),
        Command::Query(options) => query::run(&options),
        Command::Inventory(options) => inventory::run(&options),
        Command::Report(options) => report::run(&options),
        Command::DiffPolicy(options) => diff_policy::run(&options),
        Command::Pseudonym(options) => pseudonym::run(&options),
        Command::Approvals(options) => approvals::run(&options),
        Command::CheckConfig(options) => check_config::run(&options),
        Command::Ctl(options) => ctl::run(&options),
        Command::Detectors(options) => detectors::run(&options),
        Command::Interfaces => interfaces::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Generate(options) => generate::run(&options, command_line()),
        Command::OpenRings(options) => open_rings::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            if code != 0 {
                let _ = writeln!(io::stderr(), "{}{message}", if code == CONFIGURATION { "" } else { "linewarden: " });
            }
            ExitCode::from(code)
        }
    }
}
