//! Tells the state of the daemon: to the service manager, to its log, and in `summary.json`.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;
use serde::Serialize;
use tracing::{error, info, warn};

use super::DaemonError;
use super::board::Board;
use crate::capture::Summary;
use crate::policy::Label;
use crate::record::VERSION;
use crate::sink::live::LiveFlow;
use crate::sink::remove_if_there;
use crate::time::Timestamp;

/// `summary.json` and a line of the log, this often.
const TELL: Duration = Duration::from_mins(1);
/// A worker whose loop stands still for this long hangs.
const HANGS: Duration = Duration::from_secs(10);

#[expect(
    clippy::disallowed_methods,
    reason = "an edge: the wall clock, for start, warnings and the summary's own time"
)]
/// The wall clock.
#[must_use]
pub fn clock() -> Timestamp {
    Timestamp::ZERO + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "an edge: how long a worker stands still, never when a packet was")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// What the daemon says of itself.
pub(super) struct State {
    board: Arc<Board>,
    path: PathBuf,
    told: Instant,
    dropped: u64,
    lost: u64,
    unwritable: bool,
}

/// The file `summary.json`.
#[derive(Serialize)]
struct File<'a> {
    version: u32,
    sensor: &'a str,
    interfaces: &'a str,
    policy_revision: &'a str,
    approvals: usize,
    started: Timestamp,
    written: Timestamp,
    /// The daemon has stopped; the counts are final.
    stopped: bool,
    #[serde(flatten)]
    summary: &'a Summary,
    /// Tunnels and approved lines that are open now.
    live: Vec<LiveFlow>,
    /// Those that found the view full.
    live_left_out: u64,
}

impl State {
    pub(super) fn new(board: Arc<Board>, path: PathBuf) -> Self {
        Self { board, path, told: now(), dropped: 0, lost: 0, unwritable: false }
    }

    /// Once a second: says losses at most once a minute, and the totals.
    pub(super) fn tick(&mut self) {
        if now().duration_since(self.told) < TELL {
            return;
        }
        self.told = now();
        let summary = self.board.summary();
        info!(
            packets = summary.packets,
            undecodable = summary.undecodable.values().sum::<u64>(),
            flows = summary.flows,
            open = summary.flows_open,
            unapproved = self.board.live.count(Label::UnapprovedVpnTunnel),
            authorized = self.board.live.count(Label::AuthorizedLeasedLine),
            "totals"
        );
        let dropped = summary.dropped();
        if dropped > self.dropped {
            warn!(
                packets = dropped - self.dropped,
                kernel = summary.dropped_kernel.unwrap_or(0),
                nic = summary.dropped_nic,
                "packets were lost before linewarden saw them: raise capture.ring_octets or capture.workers"
            );
            self.dropped = dropped;
        }
        if summary.records_lost > self.lost {
            warn!(records = summary.records_lost - self.lost, "records were lost: the disk does not keep up");
            self.lost = summary.records_lost;
        }
        self.write(&summary, false);
    }

    /// Writes `summary.json`, whole or not at all.
    pub(super) fn write(&mut self, summary: &Summary, stopped: bool) {
        let policy = self.board.policy();
        let file = File {
            version: VERSION,
            sensor: &self.board.facts.sensor,
            interfaces: &self.board.facts.interfaces.join(", "),
            policy_revision: policy.revision(),
            approvals: policy.approvals().len(),
            started: self.board.facts.started,
            written: clock(),
            stopped,
            summary,
            live: self.board.live.flows(),
            live_left_out: self.board.live.left_out(),
        };
        match write_whole(&self.path, &file) {
            Ok(()) => self.unwritable = false,
            Err(error) if !self.unwritable => {
                self.unwritable = true;
                warn!(path = %self.path.display(), %error, "the summary cannot be written");
            }
            Err(_) => {}
        }
    }
}

fn write_whole(path: &Path, file: &File<'_>) -> std::io::Result<()> {
    let beside = path.with_extension("json.new");
    // What is there may be somebody else's pipe, which would make us wait.
    remove_if_there(&beside)?;
    let mut to = std::fs::File::create_new(&beside)?;
    serde_json::to_writer_pretty(&mut to, file)?;
    to.write_all(b"\n")?;
    std::fs::rename(beside, path)
}

/// Talks to the service manager, if there is one (`sd_notify(3)`).
pub(super) struct Notifier {
    /// Turns of each worker's loop, and since when they stand still.
    seen: Vec<(u64, Instant)>,
    hangs: bool,
}

impl Notifier {
    pub(super) const fn new() -> Self {
        Self { seen: Vec::new(), hangs: false }
    }

    pub(super) fn ready(&self) {
        send(&[NotifyState::Ready, NotifyState::Status("capturing")]);
    }

    /// What follows a request to reload, until [`Self::ready`].
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]),
            Err(error) => warn!(%error, "the service manager cannot be told"),
        }
    }

    /// Because of that, or because somebody wants it.
    pub(super) fn stopping(&self, failure: Option<&DaemonError>) {
        let status = failure.map_or_else(|| "stopping".to_owned(), |failure| format!("failed: {failure}"));
        // A line of its own would be another message.
        let status = status.replace(char::is_control, " ");
        send(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// The watchdog hears of us only while every worker gets on.
    pub(super) fn tick(&mut self, board: &Board) {
        let now = now();
        self.seen.resize(board.workers.len(), (u64::MAX, now));
        for (worker, (turns, since)) in board.workers.iter().zip(&mut self.seen) {
            if worker.turns() != *turns {
                (*turns, *since) = (worker.turns(), now);
            }
        }
        let standing = self.seen.iter().position(|(_, since)| now.duration_since(*since) >= HANGS);
        if let Some(worker) = standing {
            if !self.hangs {
                error!(worker, "worker stands still: the service manager's watchdog is not answered any more");
            }
            self.hangs = true;
            return;
        }
        self.hangs = false;
        let totals = board.summary();
        let status = format!(
            "{} packets, {} dropped, {} flows open, {} unapproved tunnels, {} authorized",
            totals.packets,
            totals.dropped(),
            totals.flows_open,
            board.live.count(Label::UnapprovedVpnTunnel),
            board.live.count(Label::AuthorizedLeasedLine)
        );
        send(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
    }
}

/// By a socket that is not connected: in the sandbox none can be.
fn send(states: &[NotifyState<'_>]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let text = states.iter().fold(String::new(), |text, state| text + &state.to_string() + "\n");
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address));
    if let Err(error) = sent {
        warn!(%error, "the service manager cannot be told");
    }
}
