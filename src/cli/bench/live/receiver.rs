//! Turns a way of capturing into one interface for all of them: it starts on the receiving end, says what it got of a
//! step and what processor time that took, and ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::link::{Host, RECEIVING};
use crate::audit::Auditor;
use crate::capture::{
    self, FastPath, LiveSettings, Outbox, Source, Worker, XdpSettings, open_pnet, open_rings, open_xdp,
};
use crate::cli::bench::Options;
use crate::cli::bench::measure::now;
use crate::config::{Config, XdpMode};
use crate::detect::Confidence;
use crate::policy::Policy;

/// What takes the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// `AF_PACKET` with a memory-mapped ring, the daemon's default
    Ring,
    /// `AF_XDP`, copied
    Xdp,
    /// pnet's channel, the portable fallback
    Pnet,
}

impl Backend {
    fn open(self, settings: &LiveSettings) -> Result<Vec<Box<dyn Source>>, capture::CaptureError> {
        match self {
            Self::Ring => open_rings(settings),
            Self::Xdp => open_xdp(settings, XdpSettings { mode: XdpMode::Copy, ..XdpSettings::default() }),
            Self::Pnet => open_pnet(settings).map(|source| vec![source]),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Xdp => "xdp",
            Self::Pnet => "pnet",
        }
    }
}

/// What was got of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Got {
    pub received: u64,
    /// By the receiver's own buffer; `None` where nobody counts.
    pub dropped: Option<u64>,
}

/// Processor time, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ticks {
    pub user: u64,
    pub system: u64,
}

pub(super) trait Receiver {
    /// Ready for what comes.
    fn begin(&mut self) -> anyhow::Result<()>;
    /// What the capturing thread or process has used so far.
    fn ticks(&self) -> Option<Ticks>;
    /// Takes everything of a step in which `arrived` packets reached the interface.
    fn end(&mut self, arrived: u64) -> anyhow::Result<Got>;
}

/// The daemon's own capture path: its rings, its worker, its core; records are counted and thrown away.
pub(super) struct Linewarden {
    worker: Option<Worker>,
    /// Of the worker's thread.
    stat: String,
    before: Got,
}

/// Longer than a worker needs to publish what it counted, and to take the next packet.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Linewarden {
    pub(super) fn start(host: &Host<'_>, options: &Options, core: usize, memory_octets: usize) -> anyhow::Result<Self> {
        let (backend, snap_length) = (options.backend, options.snap_length);
        let mut config = Config::default();
        config.flow.memory_octets = config.flow.memory_octets.max(memory_octets);
        config.capture.snap_length = snap_length;
        let capture = &config.capture;
        let settings = LiveSettings {
            interfaces: vec![RECEIVING.to_owned()],
            workers: 1,
            snap_length,
            promiscuous: capture.promiscuous,
            ring_octets: capture.ring_octets,
            block_octets: options.block_octets,
            block_timeout: capture.block_timeout,
            opener: None,
            filter: Vec::new(),
            fast_path: (options.kernel_flows > 0)
                .then_some(FastPath { flows: options.kernel_flows, vlan_in_key: config.flow.vlan_in_key }),
        };
        let audit = config.audit_settings("bench".into(), vec![RECEIVING.into()], 1, 0);
        let policy = Policy::new("bench".into(), Confidence::Likely, "none".into(), Vec::new());
        let auditor = Auditor::new(Arc::new(audit), Arc::new(policy));
        let (outbox, mut records) = Outbox::new(config.records.queue);
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || while records.blocking_recv().is_some() {})?;
        let worker = host.run(move || {
            let source = backend.open(&settings)?.pop().context("no source")?;
            anyhow::Ok(Worker::spawn(0, Some(core), source, auditor, outbox, || {})?)
        })??;
        Ok(Self { worker: Some(worker), stat: thread_called("worker-0")?, before: Got::default() })
    }
}

/// The `stat` file of this process's thread of that name.
fn thread_called(name: &str) -> anyhow::Result<String> {
    let give_up = now() + PATIENCE;
    while now() < give_up {
        for task in std::fs::read_dir("/proc/self/task").context("/proc/self/task: cannot be read")?.flatten() {
            let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if comm.trim() == name {
                return Ok(task.path().join("stat").display().to_string());
            }
        }
        // A thread gives itself its name when it starts.
        std::thread::yield_now();
    }
    bail!("the thread {name} did not start")
}

impl Receiver for Linewarden {
    fn begin(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn ticks(&self) -> Option<Ticks> {
        ticks(&self.stat)
    }

    fn end(&mut self, arrived: u64) -> anyhow::Result<Got> {
        let Some(worker) = &self.worker else { bail!("the worker has ended") };
        let (mut last, mut give_up) = (None, now() + PATIENCE);
        loop {
            let counted = worker.status.report().capture;
            if last != Some(counted.received) {
                // Where drops are not counted, what is still to come is not known.
                (last, give_up) = (Some(counted.received), now() + PATIENCE);
            }
            let got = Got {
                received: counted.received - self.before.received,
                dropped: counted.dropped_kernel.map(|dropped| dropped - self.before.dropped.unwrap_or(0)),
            };
            if got.received + got.dropped.unwrap_or(0) >= arrived || now() >= give_up {
                self.before = Got { received: counted.received, dropped: counted.dropped_kernel };
                return Ok(got);
            }
            if worker.is_over() {
                bail!(
                    "the worker ended by itself: {:?}",
                    self.worker.take().map(Worker::join).map(|(_, result)| result)
                );
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Drop for Linewarden {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.tell(capture::Command::Stop);
            let _ = worker.join();
        }
    }
}

/// `tcpdump -w /dev/null` on the same core, with as large a ring; a process for each step, for it counts when it ends.
pub(super) struct Tcpdump<'a> {
    host: Host<'a>,
    arguments: Vec<String>,
    running: Option<(Child, BufReader<ChildStderr>)>,
}

impl<'a> Tcpdump<'a> {
    pub(super) fn new(host: Host<'a>, snap_length: u32) -> Self {
        let ring = Config::default().capture.ring_octets >> 10;
        let line = format!("tcpdump -n -i {RECEIVING} -s {snap_length} -B {ring} -w /dev/null");
        Self { host, arguments: line.split(' ').map(str::to_owned).collect(), running: None }
    }

    pub(super) fn command_line(&self) -> String {
        self.arguments.join(" ")
    }

    /// Whether it can be run here.
    pub(super) fn is_installed() -> bool {
        Command::new("tcpdump").arg("--version").stdin(Stdio::null()).output().is_ok()
    }
}

impl Receiver for Tcpdump<'_> {
    fn begin(&mut self) -> anyhow::Result<()> {
        // Whatever ends this process ends tcpdump, too, or the link would stay with it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let spawned = self.host.run(move || command.spawn())?;
        let mut child = spawned.context("`setpriv` cannot be run: install the package util-linux")?;
        let mut said = BufReader::new(child.stderr.take().context("tcpdump has no standard error")?);
        let running = (lines_until(&mut said, "listening on"), said);
        self.running = Some((child, running.1));
        running.0.context("tcpdump does not start")?;
        Ok(())
    }

    fn ticks(&self) -> Option<Ticks> {
        let (child, _) = self.running.as_ref()?;
        ticks(&format!("/proc/{}/stat", child.id()))
    }

    fn end(&mut self, _: u64) -> anyhow::Result<Got> {
        let (mut child, mut said) = self.running.take().context("tcpdump is not running")?;
        let kill = format!("kill -s INT {}", child.id());
        let told = Command::new("sh").args(["-c", &kill]).stdin(Stdio::null()).status();
        if !told.is_ok_and(|status| status.success()) {
            let _ = child.kill();
        }
        let said = lines_until(&mut said, "dropped by kernel");
        let _ = child.wait();
        let said = said.context("tcpdump ended without its counts")?;
        let count = |what: &str| {
            let line = said.lines().find(|line| line.contains(what))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let counts = count("received by filter").zip(count("dropped by kernel"));
        let (all, dropped) = counts.with_context(|| format!("tcpdump's counts are not understood: {said}"))?;
        // libpcap counts as received by the filter what the ring had no room for, too.
        Ok(Got { received: all.saturating_sub(dropped), dropped: Some(dropped) })
    }
}

impl Drop for Tcpdump<'_> {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads up to the line that holds `text`; what was said instead is the error.
fn lines_until(from: &mut impl BufRead, text: &str) -> anyhow::Result<String> {
    let mut said = String::new();
    while from.read_line(&mut said)? > 0 {
        if said.lines().last().is_some_and(|line| line.contains(text)) {
            return Ok(said);
        }
    }
    bail!("it said: {}", said.trim())
}

/// Fields 14 and 15 of `stat` (`proc_pid_stat(5)`), counted behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<Ticks> {
    let text = std::fs::read_to_string(stat).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(Ticks { user: fields.next()?.parse().ok()?, system: fields.next()?.parse().ok()? })
}

/// What a core did since the start, in ticks: time of others' and own programs, and the kernel's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Core {
    pub user: u64,
    pub system: u64,
    /// Interrupts, and what they put off: where the link's packets come in.
    pub interrupts: u64,
    pub idle: u64,
    /// Taken away by the hypervisor.
    pub steal: u64,
}

impl Core {
    /// From `/proc/stat` (`proc_stat(5)`).
    pub(super) fn read(core: usize) -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let fields: Vec<u64> = fields.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = *fields.as_slice() else { return None };
        Some(Self { user: user + nice, system, interrupts: irq + softirq, idle: idle + iowait, steal })
    }

    pub(super) const fn since(&self, before: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            interrupts: self.interrupts.saturating_sub(before.interrupts),
            idle: self.idle.saturating_sub(before.idle),
            steal: self.steal.saturating_sub(before.steal),
        }
    }
}

/// Waits without using up the core.
pub(super) fn wait_until(when: Instant) {
    std::thread::sleep(when.saturating_duration_since(now()));
}
