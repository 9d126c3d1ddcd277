//! Carries records from the workers to the outputs, on the control plane.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;
use tokio::time::{Interval, MissedTickBehavior};

use super::board::LogGauge;
use super::state::{clock, now};
use crate::fault;
use crate::record::Record;
use crate::sink::Sink;
use crate::sink::pseudonym::Pseudonyms;
use crate::sink::sealed::SealedLog;
use crate::time::Timestamp;

/// What the outputs are told.
#[derive(Debug)]
pub(super) enum Control {
    /// Open files anew, after rotation.
    Reopen,
    /// Begin a new segment, and say when that is done.
    Rotate(oneshot::Sender<io::Result<()>>),
}

impl Control {
    pub(super) fn obey(self, log: &mut SealedLog) {
        match self {
            Self::Reopen => log.reopen(clock()),
            Self::Rotate(done) => {
                // Nobody has to wait for it.
                let _ = done.send(rotate(log));
            }
        }
    }
}

fn rotate(log: &mut SealedLog) -> io::Result<()> {
    // Where somebody has renamed the file, that begins a new one.
    log.reopen(clock());
    log.rotate();
    if log.is_failing() { Err(io::Error::other("it cannot be written now")) } else { Ok(()) }
}

/// Records taken at once.
const BATCH: usize = 1024;
/// A log is told the time this often at least.
const TICK: Duration = Duration::from_secs(1);

/// Turns of a log that has what is older than `interval` on the disk.
pub(super) fn turns(interval: Duration) -> Interval {
    let mut tick = tokio::time::interval(interval.min(TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Tells a log the time, by both clocks.
pub(super) fn tick_log(log: &mut SealedLog, opened: Instant) -> Timestamp {
    let (wall, open) = (clock(), now().duration_since(opened));
    log.look_at_clocks(wall, open);
    log.tick(wall);
    wall
}

/// Runs until every worker has let go of its way out; gives the log back for its counts. It hears of the time every
/// `interval`, which is the least that it has on the disk. What `pseudonyms` hide no output gets to see.
pub(super) async fn run_log(
    mut log: SealedLog,
    interval: Duration,
    pseudonyms: Option<Arc<Pseudonyms>>,
    mut others: Vec<Box<dyn Sink>>,
    gauge: Arc<LogGauge>,
    mut records: mpsc::Receiver<Record>,
    mut controls: mpsc::Receiver<Control>,
) -> SealedLog {
    let mut batch = Vec::with_capacity(BATCH);
    let mut tick = turns(interval);
    let opened = now();
    loop {
        fault::point("log");
        tokio::select! {
            taken = records.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    block_in_place(|| {
                        log.close(clock());
                        for other in &mut others {
                            other.logged(&log.position());
                            other.close(clock());
                        }
                    });
                    return log;
                }
                block_in_place(|| {
                    for mut record in batch.drain(..) {
                        if let Some(pseudonyms) = &pseudonyms {
                            pseudonyms.apply(&mut record);
                        }
                        log.write(&record);
                        others.iter_mut().for_each(|other| other.write(&record));
                    }
                    // Under load the interval's turn may not come for long.
                    tick_all(&mut log, &mut others, opened);
                });
            }
            Some(control) = controls.recv() => block_in_place(|| {
                others.iter_mut().for_each(|other| other.reopen(clock()));
                control.obey(&mut log);
            }),
            _ = tick.tick() => block_in_place(|| tick_all(&mut log, &mut others, opened)),
        }
        gauge.set(&log);
    }
}

fn tick_all(log: &mut SealedLog, others: &mut [Box<dyn Sink>], opened: Instant) {
    let now = tick_log(log, opened);
    for other in others {
        other.logged(&log.position());
        other.tick(now);
    }
}
