//! Turns the steps of a live measurement into a table for people or an object for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::Driven;
use super::receiver::{Backend, Core, Got, Ticks};
use crate::cli::bench::machine::Machine;
use crate::cli::bench::measure::ratio;
use crate::cli::bench::report::{Settings, round};

/// Everything that was found on the link.
#[derive(Debug, Serialize)]
pub(in crate::cli::bench) struct LiveReport {
    /// The highest rate without a drop; `None` where every rate dropped.
    packets_per_second: Option<f64>,
    /// At that rate, or at the last one where all dropped.
    drops: u64,
    live: Live,
    settings: Settings,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Live {
    backend: &'static str,
    sending_core: usize,
    receiving_core: usize,
    /// Whether the receiver held as much as could be sent: it may take more.
    sender_is_the_limit: bool,
    /// Of the worker, at that rate, as the kernel accounts it: most kernels take samples at their tick, which see too
    /// little of a thread that works in short turns.
    user_ns_per_packet: Option<f64>,
    /// Of the kernel on the receiving core, likewise.
    kernel_ns_per_packet: Option<f64>,
    /// The worker's user time, of what it and the kernel used of the receiving core.
    user_share: Option<f64>,
    steps: Vec<Step>,
    compared: Option<Compared>,
    /// Why nothing is compared, if it was to be.
    not_compared: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Compared {
    command: String,
    packets_per_second: Option<f64>,
    sender_is_the_limit: bool,
    /// linewarden's highest rate to this one; `None` where both took all that could be sent, which says nothing of them.
    ratio: Option<f64>,
    user_ns_per_packet: Option<f64>,
    kernel_ns_per_packet: Option<f64>,
    steps: Vec<Step>,
}

/// The outcome of a search.
#[derive(Debug)]
pub(super) struct Found {
    pub steps: Vec<Step>,
    /// Which step had the highest rate without a drop.
    pub highest: Option<usize>,
    pub sender_is_the_limit: bool,
}

impl Found {
    pub(super) fn highest(&self) -> Option<&Step> {
        self.steps.get(self.highest?)
    }
}

/// One rate for a while: `sent` = `received` + `dropped`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    /// `None`: as many as go.
    asked_per_second: Option<f64>,
    pub sent_per_second: f64,
    #[serde(skip)]
    pub received_per_second: f64,
    seconds: f64,
    sent: u64,
    received: u64,
    dropped: u64,
    /// Of these, by the receiver's ring, as it counts them.
    dropped_by_receiver: Option<u64>,
    /// Of these, by the link's own queue, before any receiver.
    dropped_by_link: u64,
    /// What the receiving core did; seconds.
    core: Option<CoreTime>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CoreTime {
    receiver_user: f64,
    /// Interrupts that came while it ran are in it.
    receiver_system: f64,
    /// All of the kernel's time on the core: system calls, interrupts and what these put off.
    kernel: f64,
    idle: f64,
    /// Other programs' user time, which makes figures worse than they are.
    others_user: f64,
    steal: f64,
}

/// `USER_HZ`: Linux has it at 100 on every architecture that this runs on.
const TICKS: u64 = 100;

impl Step {
    pub(super) fn new(
        rate: Option<f64>,
        driven: &Driven,
        got: Got,
        times: Option<((Ticks, Core), (Ticks, Core))>,
    ) -> Self {
        let seconds = |ticks| ratio(ticks, TICKS);
        let core = times.map(|((ticks, core), (ticks_after, core_after))| {
            let core = core_after.since(&core);
            let user = ticks_after.user.saturating_sub(ticks.user);
            CoreTime {
                receiver_user: seconds(user),
                receiver_system: seconds(ticks_after.system.saturating_sub(ticks.system)),
                kernel: seconds(core.system + core.interrupts),
                idle: seconds(core.idle),
                others_user: seconds(core.user.saturating_sub(user)),
                steal: seconds(core.steal),
            }
        });
        Self {
            asked_per_second: rate.map(f64::round),
            sent_per_second: (ratio(driven.sent, 1) / driven.seconds).round(),
            received_per_second: ratio(got.received, 1) / driven.seconds,
            seconds: round(driven.seconds),
            sent: driven.sent,
            received: got.received,
            dropped: driven.sent.saturating_sub(got.received),
            dropped_by_receiver: got.dropped,
            dropped_by_link: driven.dropped,
            core,
        }
    }

    /// Every packet was received.
    pub(super) const fn is_held(&self) -> bool {
        self.dropped == 0 && self.sent > 0
    }

    /// Nanoseconds a packet, of the receiver's user time and of the kernel.
    fn cost(&self) -> Option<(f64, f64)> {
        let core = self.core.filter(|_| self.received > 0)?;
        let of = |seconds: f64| round(seconds * 1e9 / ratio(self.received, 1));
        Some((of(core.receiver_user), of(core.kernel)))
    }

    fn user_share(&self) -> Option<f64> {
        let core = self.core.filter(|core| core.receiver_user + core.kernel > 0.0)?;
        Some(round(core.receiver_user / (core.receiver_user + core.kernel)))
    }

    #[cfg(test)]
    pub(super) fn made_up(rate: Option<f64>, sent: f64, received: f64, seconds: f64) -> Self {
        let count = |rate: f64| super::count_of(rate * seconds);
        let driven = Driven { sent: count(sent), seconds, arrived: count(sent), dropped: 0 };
        let got = Got { received: count(received), dropped: Some(count(sent) - count(received)) };
        Self { sent_per_second: sent, ..Self::new(rate, &driven, got, None) }
    }
}

impl LiveReport {
    pub(super) fn new(
        settings: Settings,
        backend: Backend,
        [sending_core, receiving_core]: [usize; 2],
        found: Found,
        theirs: Option<(String, Found)>,
        tcpdump_is_missing: bool,
    ) -> Self {
        let rate = |found: &Found| found.highest().map(|step| step.sent_per_second);
        let highest = found.highest().or(found.steps.last());
        let cost = highest.and_then(Step::cost);
        let packets_per_second = rate(&found);
        let is_open = |theirs: &Found| found.sender_is_the_limit && theirs.sender_is_the_limit;
        let compared = theirs.map(|(command, theirs)| {
            let cost = theirs.highest().or(theirs.steps.last()).and_then(Step::cost);
            Compared {
                command,
                packets_per_second: rate(&theirs),
                sender_is_the_limit: theirs.sender_is_the_limit,
                ratio: packets_per_second
                    .zip(rate(&theirs))
                    .filter(|_| !is_open(&theirs))
                    .map(|(ours, theirs)| round(ours / theirs)),
                user_ns_per_packet: cost.map(|(user, _)| user),
                kernel_ns_per_packet: cost.map(|(_, kernel)| kernel),
                steps: theirs.steps,
            }
        });
        Self {
            packets_per_second,
            drops: highest.map_or(0, |step| step.dropped),
            live: Live {
                backend: backend.name(),
                sending_core,
                receiving_core,
                sender_is_the_limit: found.sender_is_the_limit,
                user_ns_per_packet: cost.map(|(user, _)| user),
                kernel_ns_per_packet: cost.map(|(_, kernel)| kernel),
                user_share: highest.and_then(Step::user_share),
                steps: found.steps,
                compared,
                not_compared: tcpdump_is_missing.then_some("tcpdump is not installed"),
            },
            settings,
            machine: Machine::look(),
        }
    }
}

impl fmt::Display for LiveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = &self.live;
        let mut table = Table::new();
        table.set_header([
            "receiver",
            "asked/s",
            "sent/s",
            "sent",
            "received",
            "dropped",
            "by its ring",
            "by the link",
            "user",
            "kernel",
            "idle",
        ]);
        let compared = live.compared.as_ref().map_or(&[][..], |compared| &compared.steps);
        let ours = live.steps.iter().map(|step| ("linewarden", step));
        for (who, step) in ours.chain(compared.iter().map(|step| ("tcpdump", step))) {
            let share = |time: fn(&CoreTime) -> f64| {
                step.core.map_or_else(|| "-".to_owned(), |core| format!("{:.0}%", time(&core) * 100.0 / step.seconds))
            };
            table.add_row([
                who.to_owned(),
                step.asked_per_second.map_or_else(|| "all".to_owned(), |rate| format!("{:.0} k", rate / 1e3)),
                format!("{:.0} k", step.sent_per_second / 1e3),
                step.sent.to_string(),
                step.received.to_string(),
                step.dropped.to_string(),
                step.dropped_by_receiver.map_or_else(|| "-".to_owned(), |dropped| dropped.to_string()),
                step.dropped_by_link.to_string(),
                share(|core| core.receiver_user),
                share(|core| core.kernel),
                share(|core| core.idle),
            ]);
        }
        for column in 1..11 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        highest(f, "linewarden", self.packets_per_second, live.sender_is_the_limit)?;
        if let Some(compared) = &live.compared {
            highest(f, "tcpdump", compared.packets_per_second, compared.sender_is_the_limit)?;
            if let Some(ratio) = compared.ratio {
                writeln!(f, "linewarden's rate to tcpdump's (`{}`): {ratio:.2} x.", compared.command)?;
            } else if live.sender_is_the_limit && compared.sender_is_the_limit {
                writeln!(f, "Both (`{}`) may take more than the sender can send.", compared.command)?;
            }
        }
        if let Some(why) = live.not_compared {
            writeln!(f, "Nothing to compare with: {why}.")?;
        }
        if let (Some(share), Some(user), Some(kernel)) =
            (live.user_share, live.user_ns_per_packet, live.kernel_ns_per_packet)
        {
            write!(
                f,
                "Receiving core at that rate: {user:.0} ns a packet in the worker ({:.0}% of what is used), {kernel:.0} ns in the kernel",
                share * 100.0
            )?;
            let theirs = live
                .compared
                .as_ref()
                .and_then(|compared| Option::zip(compared.user_ns_per_packet, compared.kernel_ns_per_packet));
            if let Some((user, kernel)) = theirs {
                write!(f, "; tcpdump: {user:.0} ns and {kernel:.0} ns")?;
            }
            writeln!(f, ".")?;
        }
        writeln!(
            f,
            "Link: a veth pair between two network namespaces; sent from core {}, received on core {} by the {} backend.",
            live.sending_core, live.receiving_core, live.backend
        )?;
        if live.sending_core == live.receiving_core {
            writeln!(f, "This process may use one core only: what is sent takes its time from what is received.")?;
        }
        writeln!(f, "{}", self.machine)
    }
}

fn highest(f: &mut fmt::Formatter<'_>, who: &str, rate: Option<f64>, sender_is_the_limit: bool) -> fmt::Result {
    match rate {
        Some(rate) if sender_is_the_limit => {
            writeln!(f, "{who}: no drop at {:.0} k packets/s, which is all that could be sent.", rate / 1e3)
        }
        Some(rate) => writeln!(f, "{who}: highest rate without a drop {:.0} k packets/s.", rate / 1e3),
        None => writeln!(f, "{who}: drops at every rate that was tried."),
    }
}
