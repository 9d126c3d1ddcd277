//! Splits frames over worker threads by their pair of addresses, as the kernel does live.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::audit::{AuditSettings, Auditor, Counters};
use crate::capture::{CaptureCounters, Report, advise_huge_pages};
use crate::config::Config;
use crate::policy::Policy;
use crate::record::Record;
use crate::time::Timestamp;
use crate::wire::{Frame, pair_hash};

/// What the workers of a replay share.
pub struct Lanes<'a> {
    /// Settings.
    pub config: &'a Config,
    /// By what flows are judged.
    pub policy: &'a Arc<Policy>,
    /// Threads; 1 runs in place.
    pub workers: u32,
    /// Name of every interface, if not the file's.
    pub interface: Option<&'a str>,
    /// Takes every record.
    pub take: &'a (dyn Fn(Record) + Sync),
}

/// What a lane is told.
enum Order {
    Frames(Batch),
    Names(Vec<Arc<str>>),
    Restart,
}

/// Frames with their octets.
#[derive(Default)]
struct Batch {
    frames: Vec<(Frame<'static>, usize, usize)>,
    octets: Vec<u8>,
}

/// Batches that wait for a lane.
const QUEUE: usize = 64;
const BATCH: usize = 256;

/// Takes the frames of a replay.
pub(super) struct Feed<'a> {
    target: Target<'a>,
    names: Vec<Arc<str>>,
    first_of_file: usize,
    interface: Option<&'a str>,
    latest: Timestamp,
    starts: bool,
    idle_timeout: std::time::Duration,
    snap_length: usize,
}

enum Target<'a> {
    Here(Box<Lane<'a>>),
    Threads(Vec<(Batch, SyncSender<Order>)>),
}

/// One auditor, and what those before it counted.
struct Lane<'a> {
    settings: Arc<AuditSettings>,
    policy: Arc<Policy>,
    auditor: Auditor,
    counters: Counters,
    names: Vec<Arc<str>>,
    take: &'a (dyn Fn(Record) + Sync),
}

impl Lanes<'_> {
    /// Runs `read`, which feeds frames; returns what each worker counted.
    pub(super) fn run<E>(&self, read: impl FnOnce(&mut Feed<'_>) -> Result<(), E>) -> (Vec<Report>, Result<(), E>) {
        // No kernel stands between a file and its reader.
        let capture = CaptureCounters { dropped_kernel: Some(0), ..CaptureCounters::default() };
        let report = |counters| Report { counters, capture, ..Report::default() };
        if self.workers <= 1 {
            let mut feed = self.feed(Target::Here(Box::new(self.lane())));
            let result = read(&mut feed);
            let Target::Here(lane) = feed.target else { return (Vec::new(), result) };
            return (vec![report(lane.finish())], result);
        }
        std::thread::scope(|scope| {
            let (mut threads, mut lanes) = (Vec::new(), Vec::new());
            for _ in 0..self.workers {
                let (sender, receiver) = sync_channel(QUEUE);
                let lane = self.lane();
                threads.push(scope.spawn(move || lane.run(&receiver)));
                lanes.push((Batch::default(), sender));
            }
            let mut feed = self.feed(Target::Threads(lanes));
            let result = read(&mut feed);
            feed.flush();
            drop(feed);
            let join = |thread: std::thread::ScopedJoinHandle<'_, Counters>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            (threads.into_iter().map(join).map(report).collect(), result)
        })
    }

    fn feed<'a>(&'a self, target: Target<'a>) -> Feed<'a> {
        Feed {
            target,
            names: Vec::new(),
            first_of_file: 0,
            interface: self.interface,
            latest: Timestamp::ZERO,
            starts: false,
            idle_timeout: self.config.flow.idle_timeout,
            snap_length: self.config.capture.snap_length as usize,
        }
    }

    fn lane(&self) -> Lane<'_> {
        let sensor = self.config.sensor_name();
        let settings = self.config.audit_settings(sensor, Vec::new(), self.workers as usize, 0);
        let settings = Arc::new(settings);
        let auditor = Auditor::new(Arc::clone(&settings), Arc::clone(self.policy));
        advise_huge_pages(auditor.reserved());
        let (policy, counters) = (Arc::clone(self.policy), Counters::default());
        Lane { settings, policy, auditor, counters, names: Vec::new(), take: self.take }
    }
}

impl Feed<'_> {
    /// Names of all files' interfaces so far.
    pub(super) fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Takes the names of the present file's interfaces, as far as they are known: more may come, none changes.
    pub(super) fn name(&mut self, names: &[Arc<str>]) {
        let more = names.get(self.names.len() - self.first_of_file..).unwrap_or_default();
        if more.is_empty() {
            return;
        }
        let given = |name: &Arc<str>| self.interface.map_or_else(|| Arc::clone(name), Into::into);
        let more: Vec<_> = more.iter().map(given).collect();
        self.names.extend_from_slice(&more);
        self.tell(|| Order::Names(more.clone()));
    }

    /// The next file's interfaces come behind those of this one.
    pub(super) fn end_of_file(&mut self) {
        self.first_of_file = self.names.len();
        self.starts = true;
    }

    pub(super) fn take(&mut self, frames: &[Frame<'_>]) {
        let Some(first) = frames.first() else { return };
        if std::mem::take(&mut self.starts) && first.at + self.idle_timeout < self.latest {
            // A file from an earlier time: its flows are others, and must not end at once by a clock that is ahead.
            self.tell(|| Order::Restart);
            self.latest = Timestamp::ZERO;
        }
        self.latest = frames.iter().map(|frame| frame.at).max().unwrap_or_default().max(self.latest);
        match &mut self.target {
            Target::Here(lane) => lane.auditor.observe(frames, &mut |record| (lane.take)(record)),
            Target::Threads(lanes) => {
                let workers = lanes.len() as u32;
                for frame in frames {
                    let Some((batch, sender)) = lanes.get_mut((pair_hash(frame) % workers) as usize) else { continue };
                    batch.push(frame, self.snap_length);
                    if batch.frames.len() >= BATCH {
                        let _ = sender.send(Order::Frames(std::mem::take(batch)));
                    }
                }
            }
        }
    }

    fn tell(&mut self, order: impl Fn() -> Order) {
        self.flush();
        match &mut self.target {
            Target::Here(lane) => lane.obey(order()),
            Target::Threads(lanes) => lanes.iter().for_each(|(_, sender)| drop(sender.send(order()))),
        }
    }

    fn flush(&mut self) {
        if let Target::Threads(lanes) = &mut self.target {
            for (batch, sender) in lanes {
                let _ = sender.send(Order::Frames(std::mem::take(batch)));
            }
        }
    }
}

impl Lane<'_> {
    fn run(mut self, orders: &Receiver<Order>) -> Counters {
        while let Ok(order) = orders.recv() {
            self.obey(order);
        }
        self.finish()
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Frames(batch) => self.auditor.observe(&batch.borrow(), &mut |record| (self.take)(record)),
            Order::Names(names) => {
                self.auditor.name_interfaces(&names);
                self.names.extend(names);
            }
            Order::Restart => {
                let mut fresh = Auditor::new(Arc::clone(&self.settings), Arc::clone(&self.policy));
                fresh.name_interfaces(&self.names);
                let ended = std::mem::replace(&mut self.auditor, fresh);
                self.end(ended);
            }
        }
    }

    fn finish(mut self) -> Counters {
        let fresh = Auditor::new(Arc::clone(&self.settings), Arc::clone(&self.policy));
        let ended = std::mem::replace(&mut self.auditor, fresh);
        self.end(ended);
        self.counters
    }

    fn end(&mut self, mut auditor: Auditor) {
        auditor.finish(&mut |record| (self.take)(record));
        self.counters.add(&auditor.counters());
    }
}

impl Batch {
    /// Takes what will be looked at of a frame.
    fn push(&mut self, frame: &Frame<'_>, snap_length: usize) {
        let start = self.octets.len();
        self.octets.extend_from_slice(frame.data.get(..snap_length).unwrap_or(frame.data));
        self.frames.push((Frame { data: &[], ..*frame }, start, self.octets.len()));
    }

    fn borrow(&self) -> Vec<Frame<'_>> {
        let borrow = |&(frame, start, end): &(Frame<'static>, usize, usize)| Frame {
            data: self.octets.get(start..end).unwrap_or_default(),
            ..frame
        };
        self.frames.iter().map(borrow).collect()
    }
}
