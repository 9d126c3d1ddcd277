//! Carries what the sensor says of itself to `sensor.ndjson`, on a task of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tracing::warn;

use super::board::{Board, Facts, LogGauge};
use super::capabilities;
use super::coverage::Change;
use super::records::{Control, tick_log, turns};
use super::state::{clock, now};
use crate::capture::{Report, Summary};
use crate::config::Origin;
use crate::fault;
use crate::sink::sealed::SealedLog;
use crate::sink::sealed::clocks::Clocks;
use crate::sink::sensor::{ClockStep, Coverage, InterfaceChange, SensorEvent, Start, Stop, VERSION, What};

/// Numbers events and hands them on; one that finds the way full is lost, and its number tells.
pub(super) struct Events {
    sensor: Arc<str>,
    seq: u64,
    way: mpsc::Sender<SensorEvent>,
}

/// Events that may wait for the disk: hours of them.
const QUEUE: usize = 1024;

impl Events {
    pub(super) fn new(sensor: Arc<str>) -> (Self, mpsc::Receiver<SensorEvent>) {
        let (way, events) = mpsc::channel(QUEUE);
        (Self { sensor, seq: 0, way }, events)
    }

    pub(super) fn say(&mut self, what: What) {
        self.seq += 1;
        let sensor = Arc::clone(&self.sensor);
        let event = SensorEvent { version: VERSION, seq: self.seq, time: clock(), sensor, what };
        if self.way.try_send(event).is_err() {
            warn!("an event of the sensor is lost: the disk does not keep up");
        }
    }
}

/// Runs until [`Events`] is gone.
pub(super) async fn run_events(
    mut log: SealedLog,
    interval: Duration,
    mut events: mpsc::Receiver<SensorEvent>,
    mut controls: mpsc::Receiver<Control>,
    gauge: Arc<LogGauge>,
) {
    let mut tick = turns(interval);
    let opened = now();
    loop {
        fault::point("events");
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => block_in_place(|| {
                    log.write(&event);
                    log.flush();
                }),
                None => return block_in_place(|| log.close(clock())),
            },
            Some(control) = controls.recv() => block_in_place(|| control.obey(&mut log)),
            _ = tick.tick() => block_in_place(|| {
                tick_log(&mut log, opened);
            }),
        }
        gauge.set(&log);
    }
}

/// How a run begins.
pub(super) fn start(origin: &Origin, facts: &Facts, workers: usize) -> Start {
    Start {
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        settings_sha256: origin.digest(),
        interfaces: facts.interfaces.clone(),
        workers,
        capabilities: capabilities::effective(),
        kernel_fast_path: facts.kernel_fast_path,
    }
}

/// How a run ended.
pub(super) fn stop(summary: &Summary, clean: bool) -> Stop {
    Stop {
        clean,
        packets: summary.packets,
        classified: summary.classified,
        undecodable: summary.undecodable.values().sum(),
        dropped_kernel: summary.dropped_kernel,
        dropped_nic: summary.dropped_nic,
        flows: summary.flows,
        records: summary.records,
        records_lost: summary.records_lost,
    }
}

/// Says what was covered, minute by minute, and where the system's clock was set.
pub(super) struct Spans {
    ticked: Instant,
    /// Records by the end of the last span.
    written: u64,
    clocks: ClockWatch,
}

impl Spans {
    pub(super) fn new() -> Self {
        Self { ticked: now(), written: 0, clocks: ClockWatch::new() }
    }

    /// Once a second.
    pub(super) fn tick(&mut self, board: &Board, events: &mut Events) {
        self.clocks.tick(events);
        let reports = board.reports();
        let lost = board.log.lost() + reports.iter().map(|report| report.records_lost).sum::<u64>();
        self.look(board, events, &reports, lost, board.lag());
        if board.coverage().is_due() {
            self.say(board, events);
        }
    }

    /// What came since the last whole minute.
    pub(super) fn last(&mut self, board: &Board, events: &mut Events, lost: u64) {
        // The workers are gone, and lag no more.
        self.look(board, events, &board.reports(), lost, Duration::ZERO);
        self.say(board, events);
    }

    fn look(&mut self, board: &Board, events: &mut Events, reports: &[Report], lost: u64, lag: Duration) {
        let passed = now().duration_since(self.ticked);
        self.ticked += passed;
        let totals = board.totals(reports);
        let changes = board.coverage().tick(clock(), passed, totals, lost, lag);
        for change in changes {
            let Change { interface, before, now } = change;
            events.say(What::Interface(InterfaceChange { interface, link: now, before }));
        }
    }

    fn say(&mut self, board: &Board, events: &mut Events) {
        let minute = board.coverage().close_minute(clock());
        let written = board.log.written();
        events.say(What::Coverage(Coverage {
            since: minute.since,
            interfaces: minute.interfaces,
            records_written: written - std::mem::replace(&mut self.written, written),
            records_lost: minute.records_lost,
            worker_lag_ns: u64::try_from(minute.standstill.as_nanos()).unwrap_or(u64::MAX),
        }));
    }
}

/// Says where the system's clock was set.
struct ClockWatch {
    began: Instant,
    clocks: Clocks,
}

impl ClockWatch {
    fn new() -> Self {
        Self { began: now(), clocks: Clocks::new(clock(), None) }
    }

    /// Once a second.
    fn tick(&mut self, events: &mut Events) {
        let Some(step) = self.clocks.look(clock(), now().duration_since(self.began)) else { return };
        let (expected, found) = (step.expected, step.now);
        warn!(%expected, %found, "the system's clock was set: records have its time, and for a day nothing is removed from the logs by its age");
        events.say(What::ClockStep(ClockStep { expected, found }));
    }
}
