//! Turns interfaces and capture files into [`Frame`]s, and runs the worker threads that feed them to the core.
//!
//! | file | turns |
//! |---|---|
//! | `ring` | one interface into blocks of frames, by the kernel's memory-mapped ring |
//! | `blocks` | the ring's memory into blocks, and blocks into frames |
//! | `mapping` | memory that the kernel shares with us into words and octets |
//! | `bpf` | settings into the kernel's filter and fanout programs |
//! | `clock` | the system's clocks into times |
//! | `ebpf` | instructions into programs and maps in the kernel |
//! | `opener` | a request into a ring that was opened by somebody else |
//! | `live` | the rings of several interfaces into one worker's [`Source`] |
//! | `pnet_channel` | the same where there is no ring, one system call a frame |
//! | `xdp` | the same by `AF_XDP`: frames straight from the driver, taken away from the host |
//! | `file` | pcap and pcapng into frames |
//! | `settled` | settled flows into counts made in the kernel |
//! | `reel` | frames into frames again and again, from memory |
//! | `synthetic` | settings into frames, for benches |
//! | `send` | frames into packets on an interface, for `bench --live` |
//! | `namespace` | a thread into one with a network of its own, for the same |
//! | `interrupts` | the NICs' receive interrupts into ones on the workers' cores |
//! | `interfaces` | the system into a list of what can be captured |
//! | `worker` | a source into records, on a thread of its own |
//! | `summary` | the workers' counts into one |
//!
//! Unsafe code is in `ring`, `blocks`, `mapping`, `send`, `namespace`, `ebpf::system`, `xdp::socket`, `xdp::rings` and
//! `xdp::offload` only.

mod blocks;
mod bpf;
mod clock;
mod ebpf;
pub mod file;
mod interfaces;
mod interrupts;
mod live;
mod mapping;
mod namespace;
mod opener;
mod pnet_channel;
pub mod reel;
mod ring;
mod send;
mod settled;
mod summary;
pub mod synthetic;
mod worker;
mod xdp;

pub use bpf::fanout;
pub use interfaces::{Interface, default_route, interfaces, obstacle};
pub use interrupts::{PinnedInterrupts, pin_interrupts};
pub use live::open_rings;
pub use namespace::enter_new_network;
pub use opener::RingOpener;
pub use pnet_channel::open_pnet;
pub use ring::{advise_huge_pages, allowed_cores, pin, prepare};
pub use send::Sender;
pub use summary::{Summary, Total, TunnelTotal};
pub use worker::{Command, Outbox, Report, Status, Worker, WorkerError, panic_message};
pub use xdp::{XdpSettings, open_xdp};

use std::time::Duration;

use crate::audit::Elsewhere;
use crate::config::Instruction;
use crate::wire::{Frame, LinkType};

/// Frames handed over at once: as many as the core looks up together, a few times over.
pub const BATCH: usize = 256;

/// How live packets are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveSettings {
    /// Interfaces' names; a frame's `InterfaceId` is the position here.
    pub interfaces: Vec<String>,
    /// Worker threads that share each interface's frames.
    pub workers: u16,
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
    /// From `config::parse_filter`; empty: everything.
    pub filter: Vec<Instruction>,
    /// Whether packets of settled flows are counted in the kernel; not with a filter.
    pub fast_path: Option<FastPath>,
    /// Who opens a ring where this process may not (any more); only with the ring.
    pub opener: Option<RingOpener>,
}

/// How packets of settled flows are counted in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastPath {
    /// Flows per worker at once.
    pub flows: u32,
    /// VLAN identifiers tell flows apart, as in the core's own settings.
    pub vlan_in_key: bool,
}

/// What the first octet of an interface's frames belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK`.
    Ethernet,
    /// `ARPHRD_NONE` (TUN, WireGuard) and `ARPHRD_RAWIP`, whose frames start with an IP header.
    RawIp,
}

impl LinkLayer {
    /// From `ARPHRD_*` of `linux/if_arp.h`; `None` where frames start with something that linewarden does not read.
    #[must_use]
    pub const fn of(hardware_type: u16) -> Option<Self> {
        match hardware_type {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(Self::Ethernet),
            libc::ARPHRD_NONE | ARPHRD_RAWIP => Some(Self::RawIp),
            _ => None,
        }
    }

    /// As the core calls it.
    #[must_use]
    pub const fn link_type(self) -> LinkType {
        match self {
            Self::Ethernet => LinkType::Ethernet,
            Self::RawIp => LinkType::RawIp,
        }
    }
}

/// `linux/if_arp.h`; cellular modems.
const ARPHRD_RAWIP: u16 = 519;

/// Why capture could not start.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No such name.
    #[error("no interface is called `{0}`; `linewarden interfaces` lists them")]
    NoInterface(String),
    /// Frames start with an unknown header.
    #[error(
        "interface `{interface}` has hardware type {hardware_type} (linux/if_arp.h): only Ethernet, loopback and plain IP (TUN) can be read"
    )]
    HardwareType {
        /// Its name.
        interface: String,
        /// `ARPHRD_*`.
        hardware_type: u16,
    },
    /// `CAP_NET_RAW` is missing.
    #[error(
        "capture needs the capability CAP_NET_RAW: run as root, or `setcap cap_net_raw=ep` on the binary; `linewarden replay` needs none"
    )]
    Permission,
    /// No packet sockets.
    #[error(
        "packet sockets are not available: the kernel lacks CONFIG_PACKET, or the service's RestrictAddressFamilies= leaves out AF_PACKET"
    )]
    NoPacketSockets,
    /// What `AF_XDP` needs.
    #[error(
        "capture.backend = \"xdp\" needs the capabilities CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF: run as root, or see the service's file"
    )]
    XdpPermission,
    /// No `AF_XDP`.
    #[error(
        "AF_XDP sockets are not available: the kernel lacks CONFIG_XDP_SOCKETS, or the service's RestrictAddressFamilies= leaves out AF_XDP"
    )]
    NoXdpSockets,
    /// A setting that the kernel would refuse.
    #[error("{0}")]
    Setting(String),
    /// The ring's memory.
    #[error("interface `{interface}`: no memory for a ring of {octets} octets; set capture.ring_octets lower")]
    Memory {
        /// Its name.
        interface: String,
        /// Asked for.
        octets: usize,
    },
    /// Memory that the kernel must be able to write to at any time.
    #[error(
        "interface `{interface}`: the limit on locked memory does not let {octets} octets be shared with the kernel: add the capability CAP_IPC_LOCK, raise LimitMEMLOCK= (`ulimit -l`), or set capture.ring_octets lower"
    )]
    LockedMemory {
        /// Its name.
        interface: String,
        /// Asked for.
        octets: usize,
    },
    /// The interface is down, and this kernel lets only running ones join a group.
    #[error("interface `{0}` is down")]
    Down(String),
    /// Anything else.
    #[error("interface `{interface}`: {what}: {source}")]
    System {
        /// Its name.
        interface: String,
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Whether frames can come from an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// They can.
    #[default]
    Up,
    /// It is down.
    Down,
    /// There is no interface of that name.
    Gone,
    /// It is there, and cannot be captured.
    Refused,
}

/// Live counts of one interface, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounters {
    /// Frames handed to the core.
    pub received: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// Frames that the kernel dropped because the ring was full (`PACKET_STATISTICS`; with `AF_XDP` `XDP_STATISTICS`, frames too
    /// long for it among them); `None` where nobody counts them.
    pub dropped_kernel: Option<u64>,
    /// Times that the kernel found every block of the ring full and stopped for a while; with `AF_XDP`, that it found no chunk.
    pub ring_full: u64,
    /// Frames that the NIC says it missed since the start (`rx_missed_errors` or `rx_fifo_errors` of sysfs). Counted by
    /// the first worker alone, so that the sum over workers is right; and so is the next.
    pub dropped_nic: u64,
    /// What the kernel calls `rx_dropped`: frames that were lost on the way from some drivers, but also frames of
    /// protocols that this host does not know, which the ring has had. No telling which, so it is no count of losses.
    pub rx_dropped: u64,
}

impl CaptureCounters {
    /// Adds those of another worker.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.octets += other.octets;
        self.ring_full += other.ring_full;
        self.dropped_nic += other.dropped_nic;
        self.rx_dropped += other.rx_dropped;
        if let Some(dropped) = other.dropped_kernel {
            *self.dropped_kernel.get_or_insert(0) += dropped;
        }
    }
}

/// Where a worker's frames come from: rings of one or several interfaces.
pub trait Source: Send {
    /// Waits at most `timeout` for frames and hands over batches of at most [`BATCH`], in order per interface.
    /// Returns the number of frames; 0 after a quiet `timeout`. An interface that goes away is said once in the log and
    /// looked for again; it is no error.
    fn poll(&mut self, timeout: Duration, take: &mut dyn FnMut(&[Frame<'_>])) -> std::io::Result<usize>;

    /// Lets nothing new in and hands over what had arrived. Returns the number of frames.
    fn finish(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> std::io::Result<usize>;

    /// Counts of each interface since the start, and its state, in the order of the settings.
    fn interfaces(&mut self) -> Vec<(CaptureCounters, Link)>;

    /// The same, added up.
    fn counters(&mut self) -> CaptureCounters {
        let mut sum = CaptureCounters::default();
        self.interfaces().iter().for_each(|(counters, _)| sum.add(counters));
        sum
    }

    /// Who counts packets of settled flows before they come here; asked once. None: all of them come.
    fn elsewhere(&mut self) -> Option<Box<dyn Elsewhere>> {
        None
    }
}
