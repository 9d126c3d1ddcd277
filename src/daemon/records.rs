//! Carries records from the workers to the outputs, on the control plane.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;

use super::board::LogGauge;
use crate::record::Record;
use crate::sink::live::LiveView;
use crate::sink::ndjson::NdjsonFile;
use crate::sink::usage::Usage;

/// The daemon's log.
pub(super) type Log = NdjsonFile;

/// What the outputs are told.
#[derive(Debug)]
pub(super) enum Control {
    /// Open files anew, after rotation.
    Reopen,
    /// Begin a new file, and say when that is done.
    Rotate(oneshot::Sender<io::Result<()>>),
}

impl Control {
    pub(super) fn obey(self, log: &mut Log) {
        match self {
            Self::Reopen => log.reopen(),
            Self::Rotate(done) => {
                // Nobody has to wait for it.
                let _ = done.send(rotate(log));
            }
        }
    }
}

/// This log is rotated by whoever renames its file: all that is to do is to open it anew.
fn rotate(log: &mut Log) -> io::Result<()> {
    log.reopen();
    if log.is_failing() { Err(io::Error::other("it cannot be written now")) } else { Ok(()) }
}

/// Records taken at once.
const BATCH: usize = 1024;
/// A disk that refused is tried again this often.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until every worker has let go of its way out; gives the log back for its counts.
pub(super) async fn run_log(
    mut log: Log,
    (live, usage): (Arc<LiveView>, Arc<Usage>),
    gauge: Arc<LogGauge>,
    mut records: mpsc::Receiver<Record>,
    mut controls: mpsc::Receiver<Control>,
) -> Log {
    let mut batch = Vec::with_capacity(BATCH);
    let mut retry = tokio::time::interval(RETRY);
    loop {
        tokio::select! {
            taken = records.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    block_in_place(|| log.sync());
                    return log;
                }
                block_in_place(|| {
                    for record in batch.drain(..) {
                        live.write(&record);
                        usage.write(&record);
                        log.write(&record);
                    }
                    log.flush();
                });
            }
            Some(control) = controls.recv() => block_in_place(|| control.obey(&mut log)),
            _ = retry.tick() => block_in_place(|| log.flush()),
        }
        gauge.set(log.written(), log.lost(), log.waiting(), log.is_failing());
    }
}
