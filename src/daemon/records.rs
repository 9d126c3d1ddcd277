//! Carries records from the workers to the outputs, on the control plane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::block_in_place;

use super::clock;
use crate::record::Record;
use crate::sink::live::LiveView;
use crate::sink::sealed::SealedLog;

/// What the outputs are told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    /// Open files anew, after rotation.
    Reopen,
}

/// Records taken at once.
const BATCH: usize = 1024;
/// The log is told the time this often at least.
const TICK: Duration = Duration::from_secs(1);

/// Runs until every worker has let go of its way out; gives the log back for its counts. It hears of the time every
/// `interval`, which is the least that it has on the disk.
pub(super) async fn run_log(
    mut log: SealedLog,
    interval: Duration,
    live: Arc<LiveView>,
    mut records: mpsc::Receiver<Record>,
    mut controls: mpsc::Receiver<Control>,
) -> SealedLog {
    let mut batch = Vec::with_capacity(BATCH);
    let mut tick = tokio::time::interval(interval.min(TICK));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            taken = records.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    block_in_place(|| log.close(clock()));
                    return log;
                }
                block_in_place(|| {
                    for record in batch.drain(..) {
                        live.write(&record);
                        log.write(&record);
                    }
                    // Under load the interval's turn may not come for long.
                    log.tick(clock());
                });
            }
            Some(Control::Reopen) = controls.recv() => block_in_place(|| log.reopen(clock())),
            _ = tick.tick() => block_in_place(|| log.tick(clock())),
        }
    }
}
