//! Turns a link between two network namespaces into the highest packet rate that is captured without a drop, and what
//! that takes of the receiving core; beside it, tcpdump on the same link.

mod link;
mod receiver;
mod report;
mod search;

use std::thread::Scope;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use self::link::{Host, SENDING, connect, sent};
pub use self::receiver::Backend;
use self::receiver::{Core, Linewarden, Receiver, Tcpdump, wait_until};
pub(super) use self::report::LiveReport;
use self::report::{Found, Step};
use self::search::search;
use super::measure::now;
use super::report::Settings;
use super::{Options, memory_octets};
use crate::capture::reel::{Player, Reel};
use crate::capture::{Sender, allowed_cores};

/// Whether tcpdump is measured, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compare {
    /// On the same link, at the same rates, where it is installed
    Tcpdump,
    /// Nothing
    None,
}

/// Namespaces may not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "--live makes network namespaces and a link, which needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW); without it, `bench` measures from memory"
)]
pub(super) struct Forbidden;

/// Measures for about `budget`, half of it for what is compared.
pub(super) fn measure_live(options: &Options, reel: &Reel, budget: Duration) -> anyhow::Result<LiveReport> {
    std::thread::scope(|scope| {
        let compare = options.compare == Compare::Tcpdump && Tcpdump::is_installed();
        let budget = if compare { budget / 2 } else { budget };
        let mut link = Link::lay(scope, reel)?;
        let memory = memory_octets(options);
        let mut ours = Linewarden::start(&link.receiver, options, link.receiving_core, memory)?;
        // Opens the flows, and lets detectors have done with them.
        link.step(&mut ours, Some(WARM_UP_RATE), (budget / 8).min(WARM_UP))?;
        let found = measure_one(&mut link, &mut ours, options, budget)?;
        drop(ours);
        let mut theirs = None;
        if compare {
            let mut tcpdump = Tcpdump::new(link.receiver.clone(), options.snap_length);
            theirs = Some((tcpdump.command_line(), measure_one(&mut link, &mut tcpdump, options, budget)?));
        }
        let cores = [link.sending_core, link.receiving_core];
        let missing = options.compare == Compare::Tcpdump && !compare;
        Ok(LiveReport::new(Settings::from(options), options.backend, cores, found, theirs, missing))
    })
}

/// Packets a second that any machine takes.
const WARM_UP_RATE: f64 = 200_000.0;
const WARM_UP: Duration = Duration::from_secs(2);

fn measure_one<'scope, 'env: 'scope>(
    link: &mut Link<'scope, 'env>,
    receiver: &mut dyn Receiver,
    options: &Options,
    budget: Duration,
) -> anyhow::Result<Found> {
    if let Some(rate) = options.rate {
        let step = link.step(receiver, Some(f64::from(rate)), budget)?;
        let is_held = step.is_held();
        let sender_is_the_limit = is_held && step.sent_per_second < f64::from(rate) * FOLLOWED;
        return Ok(Found { highest: is_held.then_some(0), steps: vec![step], sender_is_the_limit });
    }
    search(budget, |rate, duration| link.step(receiver, rate, duration))
}

/// A sender that reaches this part of a stated rate follows it.
const FOLLOWED: f64 = 0.98;

/// The link, and who sends on it.
struct Link<'scope, 'env> {
    sender: Host<'scope>,
    receiver: Host<'scope>,
    sending_core: usize,
    receiving_core: usize,
    /// Away while the sending thread has it.
    driver: Option<Driver<'env>>,
}

impl<'scope, 'env: 'scope> Link<'scope, 'env> {
    fn lay(scope: &'scope Scope<'scope, 'env>, reel: &'env Reel) -> anyhow::Result<Self> {
        let cores = allowed_cores();
        let ends = cores.first().zip(cores.last());
        let (sending_core, receiving_core) = ends.map(|(first, last)| (*first, *last)).context("no core is allowed")?;
        let sender = Host::start(scope, sending_core)?;
        let receiver = Host::start(scope, receiving_core)?;
        connect(&sender, &receiver, receiving_core)?;
        let socket = sender.run(|| Sender::open(SENDING))??;
        let driver = Some(Driver { socket, player: reel.play()? });
        Ok(Self { sender, receiver, sending_core, receiving_core, driver })
    }

    /// Drives `rate` packets a second, or as many as go, for so long.
    fn step(&mut self, receiver: &mut dyn Receiver, rate: Option<f64>, duration: Duration) -> anyhow::Result<Step> {
        receiver.begin()?;
        let core = self.receiving_core;
        let look = |receiver: &dyn Receiver| receiver.ticks().zip(Core::read(core));
        let mut driver = self.driver.take().context("the sender is gone")?;
        let before = look(receiver);
        let (driver, driven) = self.sender.run(move || {
            let driven = driver.drive(rate, duration);
            (driver, driven)
        })?;
        let after = look(receiver);
        self.driver = Some(driver);
        let driven = driven?;
        // The last block is handed over when it is full, or after its time-out.
        wait_until(now() + SETTLE);
        let got = receiver.end(driven.arrived)?;
        Ok(Step::new(rate, &driven, got, before.zip(after)))
    }
}

/// More than libpcap's time-out for a block, so that tcpdump has everything before it is ended.
const SETTLE: Duration = Duration::from_millis(150);

/// What was sent in one step.
#[derive(Clone, Copy, Debug)]
struct Driven {
    sent: u64,
    seconds: f64,
    /// That the other end was given, and those that had no place in its queue, as the interface counts them.
    arrived: u64,
    dropped: u64,
}

struct Driver<'a> {
    socket: Sender,
    player: Player<'a>,
}

impl Driver<'_> {
    fn drive(&mut self, rate: Option<f64>, duration: Duration) -> anyhow::Result<Driven> {
        let [arrived, dropped] = sent(SENDING)?;
        let begun = now();
        let (mut count, mut forgiven) = (0_u64, 0_u64);
        loop {
            let elapsed = begun.elapsed();
            if elapsed >= duration {
                break;
            }
            let due = rate.map_or(u64::MAX, |rate| count_of(elapsed.as_secs_f64() * rate));
            let mut behind = due.saturating_sub(count + forgiven);
            if rate.is_some() && behind > MOST_BEHIND {
                // The machine was busy elsewhere: to catch up in a burst would test something else than the rate.
                forgiven += behind - MOST_BEHIND;
                behind = MOST_BEHIND;
            }
            if behind == 0 {
                std::hint::spin_loop();
                continue;
            }
            count += self.socket.send(self.player.batch(behind)).context("the link takes no packets")? as u64;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let [arrived_now, dropped_now] = sent(SENDING)?;
        Ok(Driven { sent: count, seconds, arrived: arrived_now - arrived, dropped: dropped_now - dropped })
    }
}

const MOST_BEHIND: u64 = 128;

#[expect(clippy::cast_sign_loss, reason = "rates and times are never negative")]
const fn count_of(packets: f64) -> u64 {
    packets as u64
}
