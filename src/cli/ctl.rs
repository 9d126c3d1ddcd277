//! `linewarden ctl`: asks a running daemon over its control socket, and prints the answer for people or as JSON.

mod tables;

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use rustix::net::sockopt::socket_peercred;

use super::{FAILED, Failure, PERMISSION};
use crate::config::{Config, Owners, may_others_write};
use crate::daemon::control::protocol::{Answer, Body, Command, ErrorAnswer, Request, VERSION};
use crate::daemon::control_sockets;
use crate::policy::Label;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// The daemon's socket [default: control.socket of --config, else the first that is there of
    /// /run/linewarden/control.sock, /var/lib/linewarden/control.sock and linewarden-log/state/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The daemon's settings, for control.socket alone
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the answer as the daemon gives it: JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    question: Question,
}

#[derive(Clone, Debug, Subcommand)]
enum Question {
    /// Whether evidence is complete: each interface's packets, drops and gaps, records, approvals, workers
    Status,
    /// All counts since the start, as in summary.json
    Stats,
    /// Read the approvals anew; ends when every worker judges by them, or with 78 and the errors
    Reload,
    /// Tunnels and approved lines that are open now
    Flows {
        /// Only those with this label
        #[arg(long, value_enum)]
        label: Option<Labelled>,
        /// Only those with an end at this address or in this network
        #[arg(long, value_name = "NET", value_parser = network)]
        peer: Option<IpNet>,
        /// So many at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Approvals: until when, whether in force, last used, what is open under them
    Approvals,
    /// Begin a new log file
    Rotate,
}

/// The labels of flows that the daemon lists.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Labelled {
    AuthorizedLeasedLine,
    UnapprovedVpnTunnel,
}

/// A daemon that does not answer within this is not asked any longer: a reload takes a minute at most.
const PATIENCE: Duration = Duration::from_secs(75);

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let mut stream = connect(options)?;
    let failed = |error: &dyn std::fmt::Display| Failure::new(FAILED, format!("the daemon does not answer: {error}"));
    let patience = Some(PATIENCE);
    stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)).map_err(|e| failed(&e))?;
    let mut request = serde_json::to_vec(&options.question.request()).map_err(|error| failed(&error))?;
    request.push(b'\n');
    // A daemon that has no room for another client says so and does not read.
    let sent = stream.write_all(&request);
    let mut answers = BufReader::new(stream);
    let (mut out, mut tables) = (io::stdout().lock(), tables::Tables::default());
    loop {
        let mut line = String::new();
        match answers.read_line(&mut line) {
            Ok(0) => return Err(failed(&sent.map_or_else(|error| error.to_string(), |()| "it has ended".to_owned()))),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(failed(&"75 s have passed")),
            Err(error) => return Err(failed(&error)),
        }
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|error| Failure::new(FAILED, format!("the daemon's answer is not understood: {error}")))?;
        if options.json {
            out.write_all(line.as_bytes())?;
        }
        if let Body::Error(ErrorAnswer { code, message }) = answer.body {
            return Err(Failure::new(code, message));
        }
        if tables.take(answer.body) {
            return if options.json { Ok(()) } else { Ok(tables.print(&mut out)?) };
        }
    }
}

impl Question {
    fn request(&self) -> Request {
        let plain = |command| Request { version: VERSION, command, label: None, peer: None, limit: None };
        match self {
            Self::Status => plain(Command::Status),
            Self::Stats => plain(Command::Stats),
            Self::Reload => plain(Command::Reload),
            Self::Approvals => plain(Command::Approvals),
            Self::Rotate => plain(Command::Rotate),
            &Self::Flows { label, peer, limit } => {
                let label = label.map(|label| match label {
                    Labelled::AuthorizedLeasedLine => Label::AuthorizedLeasedLine,
                    Labelled::UnapprovedVpnTunnel => Label::UnapprovedVpnTunnel,
                });
                Request { label, peer, limit, ..plain(Command::Flows) }
            }
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    network.ok_or_else(|| "write an address, or a network such as 198.51.100.0/24".to_owned())
}

fn connect(options: &Options) -> Result<UnixStream, Failure> {
    let named = match (&options.socket, &options.config) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(file)) => Config::load(file)?.control.socket,
        (None, None) => None,
    };
    if let Some(path) = named {
        let stream = UnixStream::connect(&path).map_err(|error| refused(&path, &error))?;
        return known(stream, &path);
    }
    let mut gone = Vec::new();
    for path in control_sockets() {
        match UnixStream::connect(&path) {
            Ok(stream) => return known(stream, &path),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => gone.push(path),
            Err(error) => return Err(refused(&path, &error)),
        }
    }
    let looked: Vec<_> = gone.iter().map(|path| path.display().to_string()).collect();
    Err(Failure::new(
        FAILED,
        format!("no daemon answers at {}: start one, or name its socket with --socket", looked.join(", ")),
    ))
}

/// Whoever finds a place where a daemon is looked for could answer in its stead: only root may, oneself, and whoever has the
/// folder that one has gone to by its full name.
fn known(stream: UnixStream, path: &Path) -> Result<UnixStream, Failure> {
    let mut owners = Owners::here();
    let folder = path.parent().filter(|folder| folder.is_absolute());
    if let Some(folder) = folder.filter(|folder| folder.metadata().is_ok_and(|found| !may_others_write(&found))) {
        owners = owners.and_of(folder);
    }
    let answers = socket_peercred(&stream).map_err(|error| refused(path, &error.into()))?.uid.as_raw();
    if owners.has(answers) {
        return Ok(stream);
    }
    let shown = path.display();
    Err(Failure::new(
        PERMISSION,
        format!(
            "{shown}: user {answers} answers there, who is neither root, nor you, nor the owner of its folder: this may be no daemon; name the right socket, with its whole path, by --socket"
        ),
    ))
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::new(
            PERMISSION,
            format!("{path}: you may not ask there: its owner and its group may (`ls -l {path}`)"),
        ),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::new(
            FAILED,
            format!("no daemon answers at {path}: start one, or name another socket with --socket"),
        ),
        _ => Failure::new(FAILED, format!("{path}: cannot be asked: {error}")),
    }
}
