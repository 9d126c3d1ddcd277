//! Turns `linewarden.toml` and the folder of approvals into each room's own settings. Unknown keys are refused;
//! every error names file, line, column, the offending text and what to write instead.

mod approvals;
mod decapsulate;
mod filter;
mod inventory;
mod keys;
mod lint;
mod log;
mod outputs;
mod owners;
mod reader;
mod sandbox;
mod service;
mod settings;

pub use approvals::Approvals;
pub use decapsulate::mirror_name;
pub use filter::{FilterError, Instruction, parse_filter};
pub use inventory::InventoryConfig;
pub use lint::Finding;
pub use log::{LOG_FOLDERS, LogConfig, RUN_FOLDER, STATE_FOLDER, StateConfig};
pub use outputs::{Format, JournalConfig, Only, OutputConfig, PrivacyConfig, When, is_own_file};
pub use owners::{Owners, anybody_above, check_written, may_others_write};
pub use sandbox::SandboxConfig;
pub use service::{ControlConfig, Listen, MAX_SOCKET_PATH, MetricsConfig, Origin};
pub use settings::{APPROVAL_FOLDERS, host_name, no_approvals};

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use self::reader::{Document, Section, into_result, read};
use crate::audit::{Decapsulation, OtherRecords};
use crate::detect::Confidence;

/// Everything in `linewarden.toml`; `config/linewarden.toml` shows each key with its default and unit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// The sensor's name in records; empty: the host's name.
    pub sensor: String,
    /// Section `capture`.
    pub capture: CaptureConfig,
    /// Section `decapsulate`.
    pub decapsulate: Decapsulation,
    /// Section `flow`.
    pub flow: FlowConfig,
    /// Section `policy`.
    pub policy: PolicyConfig,
    /// Section `records`.
    pub records: RecordsConfig,
    /// Tables `outputs`.
    pub outputs: Vec<OutputConfig>,
    /// Section `journal`.
    pub journal: JournalConfig,
    /// Section `privacy`.
    pub privacy: PrivacyConfig,
    /// Section `state`.
    pub state: StateConfig,
    /// Section `inventory`.
    pub inventory: InventoryConfig,
    /// Section `control`.
    pub control: ControlConfig,
    /// Section `metrics`.
    pub metrics: MetricsConfig,
    /// Section `sandbox`.
    pub sandbox: SandboxConfig,
}

/// How live packets are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Interfaces' names; empty: that of the default route.
    pub interfaces: Vec<String>,
    /// What takes the packets.
    pub backend: Backend,
    /// Worker threads; 0: one per core that the process may use.
    pub workers: usize,
    /// Cores that the workers are pinned to, in order; empty: those that the process may use.
    pub cores: Vec<usize>,
    /// The NICs' receive interrupts come in on the workers' cores.
    pub pin_interrupts: bool,
    /// Octets of each frame that the kernel copies.
    pub snap_length: u32,
    /// See also frames addressed to others.
    pub promiscuous: bool,
    /// Ring memory per worker and interface, octets.
    pub ring_octets: usize,
    /// Octets of one ring block.
    pub block_octets: usize,
    /// The kernel hands over a block that is not full after this long.
    pub block_timeout: Duration,
    /// Classic BPF; empty: everything.
    pub filter: Vec<Instruction>,
    /// With `AF_XDP`: whether frames are copied.
    pub xdp_mode: XdpMode,
    /// With `AF_XDP`: interfaces that the host talks over are captured, too, and it loses their frames.
    pub xdp_takes_frames: bool,
    /// With `AF_XDP`: the NICs put both directions of a conversation into the same queue.
    pub xdp_symmetric_rss: bool,
    /// Settled flows whose packets are counted in the kernel, per worker; 0: none.
    pub kernel_flows: u32,
}

/// What takes the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `AF_PACKET`, `TPACKET_V3`.
    Ring,
    /// `AF_XDP`: from the driver, taken away from the host.
    Xdp,
    /// `pnet`'s channel: portable, one system call a packet, one worker.
    Pnet,
}

/// How frames come from the driver to `AF_XDP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Without a copy where the driver can, else copied.
    #[default]
    Auto,
    /// Copied by the kernel.
    Copy,
    /// Without a copy, or not at all.
    ZeroCopy,
}

/// How flows are told apart and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// Default 120 s.
    pub idle_timeout: Duration,
    /// Default 30 min.
    pub active_timeout: Duration,
    /// Memory bound for flows and evidence, octets, all workers together.
    pub memory_octets: usize,
    /// VLAN identifiers are part of the key.
    pub vlan_in_key: bool,
    /// One's own networks.
    pub home_nets: Vec<IpNet>,
}

/// By what flows are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Folder of approvals; `None`: `config/approvals.d` if it exists, else `/etc/linewarden/approvals.d`.
    pub approvals: Option<PathBuf>,
    /// From which confidence on a detection is a tunnel.
    pub min_confidence: Confidence,
    /// An approval that ends within this is warned of.
    pub warn_before: Duration,
}

/// What is written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsConfig {
    /// Folder of the log; `None`: `/var/log/linewarden` where it exists and is writable, else `linewarden-log` in the working folder.
    pub dir: Option<PathBuf>,
    /// Long flows' `update` records are this far apart; zero: none.
    pub update_interval: Duration,
    /// Which records of flows labelled `other` are written.
    pub other: OtherRecords,
    /// Records that may wait for the disk; beyond it they are dropped and counted.
    pub queue: usize,
    /// How the log is kept.
    pub log: LogConfig,
}

/// Everything wrong with a configuration, ready to print.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// The settings of a file, if one is named, else the built-in ones.
    pub fn load_or_default(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), Self::load)
    }

    /// Reads and checks a file; the error names everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let document = Document::new(path.display().to_string(), &text);
        let table = document.parse();
        let mut config = Self::default();
        if !document.is_broken() {
            config.take(&document.top(&table));
        }
        drop(table);
        into_result(document.problems())?;
        Ok(config)
    }

    fn take(&mut self, top: &Section<'_, '_>) {
        set(&mut self.sensor, top.value("sensor").and_then(|value| value.string()).map(str::to_owned));
        if let Some(section) = top.section("capture") {
            self.capture.take(&section);
        }
        if let Some(section) = top.section("decapsulate") {
            decapsulate::take(&mut self.decapsulate, &section);
        }
        if let Some(section) = top.section("flow") {
            self.flow.take(&section);
        }
        if let Some(section) = top.section("policy") {
            self.policy.take(&section);
        }
        if let Some(section) = top.section("records") {
            self.records.take(&section);
        }
        if let Some(section) = top.section("journal") {
            self.journal.take(&section);
        }
        if let Some(section) = top.section("privacy") {
            self.privacy.take(&section, !self.flow.home_nets.is_empty());
        }
        if let Some(section) = top.section("control") {
            self.control.take(&section);
        }
        if let Some(section) = top.section("metrics") {
            self.metrics.take(&section);
        }
        if let Some(section) = top.section("sandbox") {
            self.sandbox.take(&section);
        }
        if let Some(section) = top.section("state") {
            self.state.take(&section);
        }
        if let Some(section) = top.section("inventory") {
            self.inventory.take(&section);
        }
        // What they must not write over is settled by now.
        if let Some(sections) = top.sections("outputs") {
            let socket = match &self.metrics.listen {
                Some(Listen::Unix(path)) => Some(path),
                _ => None,
            };
            let named = [self.privacy.key.as_ref(), self.control.socket.as_ref(), self.state.dir.as_ref(), socket];
            let folder = self.log_folder();
            let is_named = |name: &str| named.into_iter().flatten().any(|path| is_same_path(path, &folder.join(name)));
            self.outputs = OutputConfig::take_all(&sections, &is_named);
        }
        top.finish();
    }
}

fn is_same_path(one: &Path, other: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute(one) == absolute(other)
}

/// Octets of a frame's headers in the ring, and its share of the block's.
const RING_HEADROOM: usize = 256;

impl CaptureConfig {
    fn take(&mut self, section: &Section<'_, '_>) {
        let value = |key| section.value(key);
        if let Some(list) = value("interfaces") {
            let names = list.list(|name| Some((name.text()?.to_owned(), name.place())));
            let names: Option<Vec<_>> = names.map(|names| names.into_iter().map(|(name, _)| name).collect());
            if names.as_ref().is_some_and(|names| has_repetition(names)) {
                list.wrong(&"name each interface once");
            }
            set(&mut self.interfaces, names);
        }
        let backends = [("ring", Backend::Ring), ("xdp", Backend::Xdp), ("pnet", Backend::Pnet)];
        set(&mut self.backend, value("backend").and_then(|value| value.choice(&backends)));
        set(&mut self.workers, value("workers").and_then(|value| value.integer("", 0..=256)).map(|n| n as usize));
        if let Some(list) = value("cores") {
            let cores = list.list(|core| core.integer("", 0..=1023).map(|core| core as usize));
            set(&mut self.cores, cores);
        }
        set(&mut self.pin_interrupts, value("pin_interrupts").and_then(|value| value.boolean()));
        let snap_length = value("snap_length");
        set(
            &mut self.snap_length,
            snap_length.and_then(|value| value.integer(" of octets", 64..=65_535)).map(|n| n as u32),
        );
        set(&mut self.promiscuous, value("promiscuous").and_then(|value| value.boolean()));
        let block = value("block_octets");
        if let Some(octets) = block.as_ref().and_then(|block| block.octets(64 << 10..=128 << 20)) {
            if !octets.is_power_of_two() {
                block.iter().for_each(|block| block.wrong(&"write a power of two from \"64KiB\" to \"128MiB\""));
            } else if octets < self.snap_length as usize + RING_HEADROOM {
                block.iter().for_each(|block| block.wrong(&"write more than capture.snap_length and 256 octets"));
            }
            self.block_octets = octets;
        }
        let ring = value("ring_octets");
        set(&mut self.ring_octets, ring.as_ref().and_then(|ring| ring.octets(128 << 10..=(4 << 30) - 1)));
        if self.ring_octets < 2 * self.block_octets {
            let wrong = ring.as_ref().or(block.as_ref());
            wrong
                .iter()
                .for_each(|value| value.wrong(&"capture.ring_octets must hold two blocks of capture.block_octets"));
        }
        let timeouts = Duration::from_millis(1)..=Duration::from_secs(1);
        set(&mut self.block_timeout, value("block_timeout").and_then(|value| value.duration(timeouts)));
        if let Some(filter) = value("filter")
            && let Some(text) = filter.string()
        {
            set(&mut self.filter, parse_filter(text).map_err(|error| filter.problem(&error)).ok());
        }
        let modes = [("auto", XdpMode::Auto), ("copy", XdpMode::Copy), ("zero-copy", XdpMode::ZeroCopy)];
        set(&mut self.xdp_mode, value("xdp_mode").and_then(|value| value.choice(&modes)));
        set(&mut self.xdp_takes_frames, value("xdp_takes_frames").and_then(|value| value.boolean()));
        set(&mut self.xdp_symmetric_rss, value("xdp_symmetric_rss").and_then(|value| value.boolean()));
        let flows = value("kernel_flows").and_then(|value| value.integer(" of flows", 0..=4 << 20));
        set(&mut self.kernel_flows, flows.map(|flows| flows as u32));
        section.finish();
    }
}

impl FlowConfig {
    /// What is valid but probably not meant.
    #[must_use]
    pub fn warning(&self) -> Option<&'static str> {
        (self.idle_timeout > self.active_timeout).then_some(
            "flow.idle_timeout is longer than flow.active_timeout: a flow that is silent for longer than the latter is not over, and goes on as another (`continues`)",
        )
    }

    fn take(&mut self, section: &Section<'_, '_>) {
        let value = |key| section.value(key);
        let timeouts = || Duration::from_secs(1)..=Duration::from_hours(7 * 24);
        set(&mut self.idle_timeout, value("idle_timeout").and_then(|value| value.duration(timeouts())));
        set(&mut self.active_timeout, value("active_timeout").and_then(|value| value.duration(timeouts())));
        set(&mut self.memory_octets, value("memory_octets").and_then(|value| value.octets(1 << 20..=1 << 40)));
        set(&mut self.vlan_in_key, value("vlan_in_key").and_then(|value| value.boolean()));
        set(&mut self.home_nets, value("home_nets").and_then(|list| list.list(approvals::network)));
        section.finish();
    }
}

impl PolicyConfig {
    fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(folder) = section.value("approvals").and_then(|value| value.text()) {
            self.approvals = Some(folder.into());
        }
        let levels = Confidence::ALL.map(|confidence| (confidence.name(), confidence));
        set(&mut self.min_confidence, section.value("min_confidence").and_then(|value| value.choice(&levels)));
        let ahead = Duration::ZERO..=Duration::from_hours(24 * 3650);
        set(&mut self.warn_before, section.value("warn_before").and_then(|value| value.duration(ahead)));
        section.finish();
    }
}

impl RecordsConfig {
    fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(folder) = section.value("dir").and_then(|value| value.text()) {
            self.dir = Some(folder.into());
        }
        let intervals = Duration::ZERO..=Duration::from_hours(24);
        set(&mut self.update_interval, section.value("update_interval").and_then(|value| value.duration(intervals)));
        let others = [("all", OtherRecords::All), ("end", OtherRecords::End), ("none", OtherRecords::None)];
        set(&mut self.other, section.value("other").and_then(|value| value.choice(&others)));
        let queue = section.value("queue").and_then(|value| value.integer(" of records", 1..=16 << 20));
        set(&mut self.queue, queue.map(|records| records as usize));
        self.log.take(section);
        section.finish();
    }
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            backend: Backend::Ring,
            workers: 0,
            cores: Vec::new(),
            pin_interrupts: false,
            snap_length: 256,
            promiscuous: true,
            ring_octets: 64 << 20,
            block_octets: 1 << 20,
            block_timeout: Duration::from_millis(50),
            filter: Vec::new(),
            xdp_mode: XdpMode::Auto,
            xdp_takes_frames: false,
            xdp_symmetric_rss: false,
            kernel_flows: 65_536,
        }
    }
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_mins(2),
            active_timeout: Duration::from_mins(30),
            memory_octets: 512 << 20,
            vlan_in_key: true,
            home_nets: Vec::new(),
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { approvals: None, min_confidence: Confidence::Likely, warn_before: Duration::from_hours(24 * 30) }
    }
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self {
            dir: None,
            update_interval: Duration::from_mins(5),
            other: OtherRecords::All,
            queue: 65_536,
            log: LogConfig::default(),
        }
    }
}

/// A setting that the file has takes the place of the default.
fn set<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

/// Whether a name is there twice.
pub(crate) fn has_repetition(names: &[String]) -> bool {
    names.iter().enumerate().any(|(index, name)| names.iter().take(index).any(|earlier| earlier == name))
}
