//! Ends a run: every flow, every record, both logs, and the summary of it all.

use tokio::task::{JoinHandle, block_in_place};
use tracing::{error, info};

use super::DaemonError;
use super::board::Board;
use super::events::{Events, Spans, stop};
use super::state::State;
use crate::capture::{Command, Report, Summary, Worker};
use crate::sink::sealed::SealedLog;
use crate::sink::sensor::What;

/// Returns when everything is written that can be; an error is a worker's.
pub(super) async fn end(
    workers: Vec<Worker>,
    (log, sensor_log): (JoinHandle<SealedLog>, JoinHandle<()>),
    (board, state): (&Board, &mut State),
    (mut spans, mut events): (Spans, Events),
    is_failing: bool,
) -> Result<(), DaemonError> {
    info!("stopping: ending every flow and writing its record");
    let (reports, result) = stop_workers(workers);
    let mut summary = Summary::of(&reports);
    let lost = match log.await {
        Ok(log) => log.lost() + log.waiting(),
        // It panicked: what it had not written by then nobody has.
        Err(_) => summary.records.saturating_sub(board.log.written()),
    };
    summary.records_lost += lost;
    summary.records = summary.records.saturating_sub(lost);
    spans.last(board, &mut events, summary.records_lost);
    events.say(What::Stop(stop(&summary, !is_failing && result.is_ok())));
    drop(events);
    let _ = sensor_log.await;
    state.write(&summary, true);
    for line in summary.to_string().lines() {
        info!("{line}");
    }
    result
}

fn stop_workers(workers: Vec<Worker>) -> (Vec<Report>, Result<(), DaemonError>) {
    for worker in &workers {
        worker.tell(Command::Stop);
    }
    let (mut reports, mut result) = (Vec::new(), Ok(()));
    for (id, worker) in workers.into_iter().enumerate() {
        let (report, outcome) = block_in_place(|| worker.join());
        reports.push(report);
        if let Err(error) = outcome {
            error!(worker = id, %error, "worker failed");
            result = result.and(Err(DaemonError::Worker { id, error }));
        }
    }
    (reports, result)
}
