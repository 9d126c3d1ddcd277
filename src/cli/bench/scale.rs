//! Turns a number of workers into how far they get beyond one: a thread each, pinned to a core of its own, with frames,
//! table and core of its own, as the daemon runs them.

use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::measure::{CHUNK, Pipeline, Runner, STEADY_IDLE, flow_settings, now, ratio, settle};
use super::report::round;
use crate::capture::reel::{Reel, ReelError};
use crate::capture::{allowed_cores, pin};

/// Several workers, and one of them alone, in turn.
#[derive(Debug, Serialize)]
pub(super) struct Scaling {
    pub workers: usize,
    cores: Vec<usize>,
    /// All together, median of the rounds.
    pub packets_per_second: f64,
    /// One alone, each worker in its turn, likewise.
    pub one_worker_packets_per_second: f64,
    pub ratio_to_one_worker: f64,
    /// The same of the best rounds: less noise where others use the machine, too.
    best_ratio_to_one_worker: f64,
    rounds: usize,
}

const ROUNDS: usize = 9;

/// Runs `workers` threads; `reel` makes the frames of each, on its own thread.
pub(super) fn measure_workers(
    workers: usize,
    memory_octets: usize,
    budget: Duration,
    reel: &(dyn Fn(usize) -> Result<Reel, ReelError> + Sync),
) -> anyhow::Result<Scaling> {
    let cores = allowed_cores();
    if workers > cores.len() {
        anyhow::bail!("--workers {workers}: this process may use {} cores, and each worker needs one", cores.len());
    }
    let turn = budget / (2 * ROUNDS as u32);
    // A worker that fails must not leave the others waiting: it goes through every round, and counts nothing.
    let barrier = Barrier::new(workers);
    let (alone, together) = (Mutex::new(vec![0.0; ROUNDS]), Mutex::new(vec![0.0; ROUNDS]));
    let add = |rounds: &Mutex<Vec<f64>>, number: usize, rate: f64| {
        if let Some(sum) = rounds.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
            *sum += rate;
        }
    };
    let work = |worker: usize, core: usize| -> anyhow::Result<()> {
        let pinned = pin(core);
        let reel = reel(worker);
        let mut runner = reel.as_ref().map_err(|error| *error).and_then(|reel| {
            let stage = Pipeline::new(flow_settings(memory_octets, STEADY_IDLE));
            let mut runner = Runner::new("worker", stage, reel)?;
            let round = reel.len() as u64;
            runner.warm_up(round);
            settle(&mut runner, round);
            Ok(runner)
        });
        for number in 0..ROUNDS {
            barrier.wait();
            if number % workers == worker
                && let Ok(runner) = &mut runner
            {
                add(&alone, number, rate(runner, turn));
            }
            barrier.wait();
            if let Ok(runner) = &mut runner {
                add(&together, number, rate(runner, turn));
            }
        }
        pinned?;
        runner?;
        Ok(())
    };
    let work = &work;
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .take(workers)
            .enumerate()
            .map(|(worker, &core)| scope.spawn(move || work(worker, core)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    done.into_iter().collect::<anyhow::Result<()>>()?;
    let sorted = |rounds: Mutex<Vec<f64>>| {
        let mut rounds = rounds.into_inner().unwrap_or_else(PoisonError::into_inner);
        rounds.sort_by(f64::total_cmp);
        let at = |place: usize| rounds.get(place).copied().unwrap_or(f64::NAN);
        (at(ROUNDS / 2), at(ROUNDS - 1))
    };
    let ((alone, best_alone), (together, best_together)) = (sorted(alone), sorted(together));
    Ok(Scaling {
        workers,
        cores: cores.into_iter().take(workers).collect(),
        packets_per_second: together.round(),
        one_worker_packets_per_second: alone.round(),
        ratio_to_one_worker: round(together / alone),
        best_ratio_to_one_worker: round(best_together / best_alone),
        rounds: ROUNDS,
    })
}

/// Packets a second over one turn.
fn rate(runner: &mut Runner<'_, Pipeline>, turn: Duration) -> f64 {
    let begun = now();
    let mut packets = 0;
    while packets == 0 || begun.elapsed() < turn {
        runner.warm_up(CHUNK);
        packets += CHUNK;
    }
    ratio(packets, begun.elapsed().as_nanos() as u64) * 1e9
}
