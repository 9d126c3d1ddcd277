//! Carries records from the workers to the outputs, on the control plane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::block_in_place;

use crate::record::Record;
use crate::sink::live::LiveView;
use crate::sink::ndjson::NdjsonFile;

/// The daemon's log.
pub(super) type Log = NdjsonFile;

/// What the outputs are told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    /// Open files anew, after rotation.
    Reopen,
}

/// Records taken at once.
const BATCH: usize = 1024;
/// A disk that refused is tried again this often.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until every worker has let go of its way out; gives the log back for its counts.
pub(super) async fn run_log(
    mut log: Log,
    live: Arc<LiveView>,
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
                        log.write(&record);
                    }
                    log.flush();
                });
            }
            Some(Control::Reopen) = controls.recv() => block_in_place(|| log.reopen()),
            _ = retry.tick() => block_in_place(|| log.flush()),
        }
    }
}
