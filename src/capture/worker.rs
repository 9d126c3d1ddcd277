//! Turns a source's frames into records, on a thread of its own that shares nothing with the other workers' packets.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::clock::{clock, now};
use super::{CaptureCounters, Link, Source, advise_huge_pages, pin};
use crate::audit::{Auditor, Counters};
use crate::fault;
use crate::policy::{Label, Policy};
use crate::record::Record;
use crate::time::Timestamp;

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// Judge by these approvals from now on, open flows too, and say when that is done.
    SetPolicy(Arc<Policy>, oneshot::Sender<()>),
    /// Take what had arrived, end every flow, and return.
    Stop,
}

/// Why a worker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The system refused to hand over frames.
    #[error("frames cannot be read any more: {0}")]
    Source(#[from] io::Error),
    /// A defect of linewarden.
    #[error("it panicked, which is a defect of linewarden: {0}")]
    Panic(String),
}

/// A worker's counts at one moment.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of the core.
    pub counters: Counters,
    /// Of the capture.
    pub capture: CaptureCounters,
    /// The same of each interface, and its state.
    pub interfaces: Vec<(CaptureCounters, Link)>,
    /// Records handed over.
    pub records: u64,
    /// Records that found the way out full.
    pub records_lost: u64,
    /// What a panic left unread.
    pub unread: Unread,
}

/// Packets that were taken and not read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    /// How many.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
}

/// What others may see of a running worker.
#[derive(Debug)]
pub struct Status {
    turns: AtomicU64,
    /// When the loop turned last, in nanoseconds since `started`.
    turned: AtomicU64,
    started: Instant,
    report: Mutex<Report>,
}

impl Default for Status {
    fn default() -> Self {
        Self { turns: AtomicU64::new(0), turned: AtomicU64::new(0), started: now(), report: Mutex::default() }
    }
}

impl Status {
    /// Turns of its loop: it hangs if this stands still for seconds.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How long ago its loop turned; a quiet one does so ten times a second.
    #[must_use]
    pub fn lag(&self) -> Duration {
        now().duration_since(self.started).saturating_sub(Duration::from_nanos(self.turned.load(Ordering::Relaxed)))
    }

    fn turn(&self, now: Instant) {
        let since = now.duration_since(self.started).as_nanos();
        self.turned.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Its counts, at most a second old.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The way out of all workers: bounded, and a record that finds it full is lost and counted, so that no ring waits. The last
/// quarter of the room is for flows that are no `other`: these, however many, push out no record of a tunnel.
#[derive(Clone, Debug)]
pub struct Outbox {
    records: mpsc::Sender<Record>,
    /// Sequence number of the latest record, of all workers.
    sequence: Arc<AtomicU64>,
}

impl Outbox {
    /// Room for `queue` records.
    #[must_use]
    pub fn new(queue: usize) -> (Self, mpsc::Receiver<Record>) {
        let (records, receiver) = mpsc::channel(queue.max(1));
        (Self { records, sequence: Arc::default() }, receiver)
    }

    /// Whether a record finds room.
    fn has_room(&self, record: &Record) -> bool {
        let left = if record.verdict == Label::Other { self.records.max_capacity() / 4 } else { 0 };
        self.records.capacity() > left
    }

    fn number(&self, mut record: Record) -> Record {
        record.seq = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        record
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// What it counts.
    pub status: Arc<Status>,
    /// Packets of settled flows are counted in the kernel.
    pub counts_elsewhere: bool,
    commands: Sender<Command>,
    thread: JoinHandle<Result<(), WorkerError>>,
}

/// A quiet worker looks at its commands and the clock this often.
const PATIENCE: Duration = Duration::from_millis(100);
/// Counts are published this often, and what was counted elsewhere is added.
const PUBLISH: Duration = Duration::from_millis(500);
/// A quiet link's time lags this much behind the clock, so that no frame still on its way comes too late.
const LAG: Duration = Duration::from_secs(2);

impl Worker {
    /// Starts a thread named `worker-ID`, pinned to `core` if one is given. `ended` is called on it when it ends.
    pub fn spawn(
        id: usize,
        core: Option<usize>,
        source: Box<dyn Source>,
        auditor: Auditor,
        outbox: Outbox,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        advise_huge_pages(auditor.reserved());
        let status = Arc::<Status>::default();
        let (commands, receiver) = channel();
        let (mut source, mut auditor) = (source, auditor);
        let elsewhere = source.elsewhere();
        let counts_elsewhere = elsewhere.is_some();
        if let Some(elsewhere) = elsewhere {
            auditor.count_elsewhere(elsewhere);
        }
        let mut body = Body {
            id,
            source,
            auditor,
            outbox,
            commands: receiver,
            status: Arc::clone(&status),
            sent: 0,
            lost: 0,
            unread: Unread::default(),
        };
        let run = move || {
            if let Some(core) = core
                && let Err(error) = pin(core)
            {
                warn!(worker = id, core, %error, "worker is not pinned to its core");
            }
            let result = catch_unwind(AssertUnwindSafe(|| body.run()));
            ended();
            result.unwrap_or_else(|panic| {
                // If that does not panic as well.
                let _ = catch_unwind(AssertUnwindSafe(|| body.salvage()));
                Err(WorkerError::Panic(panic_message(panic.as_ref())))
            })
        };
        let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(run)?;
        Ok(Self { status, counts_elsewhere, commands, thread })
    }

    /// Tells it something; nobody hears it once the worker has ended.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Whether its thread is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    pub fn join(self) -> (Report, Result<(), WorkerError>) {
        let result = self.thread.join().unwrap_or_else(|panic| Err(WorkerError::Panic(panic_message(panic.as_ref()))));
        (self.status.report(), result)
    }
}

/// What a panic said.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// What the thread owns.
struct Body {
    id: usize,
    source: Box<dyn Source>,
    auditor: Auditor,
    outbox: Outbox,
    commands: Receiver<Command>,
    status: Arc<Status>,
    sent: u64,
    lost: u64,
    unread: Unread,
}

impl Body {
    fn run(&mut self) -> Result<(), WorkerError> {
        let mut published = now();
        let result = loop {
            fault::point(format_args!("worker-{}", self.id));
            match self.commands.try_recv() {
                Ok(Command::SetPolicy(policy, taken)) => {
                    let Self { auditor, outbox, sent, lost, .. } = &mut *self;
                    auditor.set_policy(policy, &mut |record| try_send(outbox, record, sent, lost));
                    // Nobody has to wait for it.
                    let _ = taken.send(());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => break Ok(()),
                Err(TryRecvError::Empty) => {}
            }
            match self.turn() {
                Ok(()) => {}
                Err(error) => break Err(error.into()),
            }
            let now = now();
            self.status.turn(now);
            if now.duration_since(published) >= PUBLISH {
                published = now;
                let Self { auditor, outbox, sent, lost, .. } = &mut *self;
                auditor.absorb(&mut |record| try_send(outbox, record, sent, lost));
                self.publish();
            }
        };
        self.finish();
        result
    }

    fn turn(&mut self) -> io::Result<()> {
        let Self { id, source, auditor, outbox, sent, lost, .. } = self;
        let mut emit = |record| try_send(outbox, record, sent, lost);
        let taken = source.poll(PATIENCE, &mut |frames| {
            fault::point(format_args!("worker-{id}-frames"));
            auditor.observe(frames, &mut emit);
        })?;
        if taken == 0 {
            // A silent link brings no time, and flows must end all the same.
            let behind = clock().since(Timestamp::ZERO + LAG);
            auditor.expire(Timestamp::ZERO + behind, &mut emit);
        }
        Ok(())
    }

    /// Takes what had arrived, and ends every flow.
    fn finish(&mut self) {
        let Self { source, auditor, outbox, sent, lost, .. } = self;
        let mut emit = |record| send(outbox, record, sent, lost);
        if let Err(error) = source.finish(&mut |frames| auditor.observe(frames, &mut emit)) {
            warn!(%error, "frames that had arrived cannot be read");
        }
        self.export();
    }

    /// After a panic: what it knows of its flows is worth writing, and what it had in hand, and the ring, is counted.
    fn salvage(&mut self) {
        if let Err(error) = self.source.finish(&mut |_| {}) {
            warn!(%error, "frames that had arrived cannot be counted");
        }
        self.auditor.mend_counts();
        let (had, counted) = (self.source.counters(), self.auditor.counters());
        self.unread = Unread {
            packets: (had.received + counted.elsewhere.packets).saturating_sub(counted.packets),
            octets: (had.octets + counted.elsewhere.octets).saturating_sub(counted.octets),
        };
        self.export();
    }

    /// Ends every flow.
    fn export(&mut self) {
        let Self { auditor, outbox, sent, lost, .. } = self;
        auditor.finish(&mut |record| send(outbox, record, sent, lost));
        self.publish();
    }

    fn publish(&mut self) {
        let interfaces = self.source.interfaces();
        let mut capture = CaptureCounters::default();
        interfaces.iter().for_each(|(counters, _)| capture.add(counters));
        let report = Report {
            counters: self.auditor.counters(),
            capture,
            interfaces,
            records: self.sent,
            records_lost: self.lost,
            unread: self.unread,
        };
        *self.status.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

/// For the end: nothing waits for this thread any more, so it may wait for room.
fn send(outbox: &Outbox, record: Record, sent: &mut u64, lost: &mut u64) {
    let sent_now = outbox.records.blocking_send(outbox.number(record)).is_ok();
    *if sent_now { sent } else { lost } += 1;
}

fn try_send(outbox: &Outbox, record: Record, sent: &mut u64, lost: &mut u64) {
    let record = outbox.number(record);
    let sent_now = outbox.has_room(&record) && outbox.records.try_send(record).is_ok();
    *if sent_now { sent } else { lost } += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Label;
    use crate::record::tests_support::record;

    #[test]
    fn flows_of_no_interest_leave_room_for_a_tunnels_record() {
        let (outbox, mut receiver) = Outbox::new(8);
        let (mut sent, mut lost) = (0, 0);
        for _ in 0..100 {
            try_send(&outbox, record(0), &mut sent, &mut lost);
        }
        assert_eq!((sent, lost), (6, 94));
        for _ in 0..3 {
            let tunnel = Record { verdict: Label::UnapprovedVpnTunnel, ..record(0) };
            try_send(&outbox, tunnel, &mut sent, &mut lost);
        }
        assert_eq!((sent, lost), (8, 95));
        let received: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).map(|record| record.seq).collect();
        assert_eq!(received, [1, 2, 3, 4, 5, 6, 101, 102], "what was lost is a gap");
    }
}
