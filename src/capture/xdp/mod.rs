//! Turns interfaces into workers' [`Source`]s by `AF_XDP`: frames come straight from the driver, before the kernel makes
//! anything of them, in copy mode or without a copy.
//!
//! | file | turns |
//! |---|---|
//! | `host` | the system into whether an interface's frames may be taken, and how they come |
//! | `offload` | an interface into whether its NIC takes VLAN tags out |
//! | `program` | an interface's frames over to sockets |
//! | `socket` | one queue of an interface into memory that the kernel puts its frames in |
//! | `rings` | that memory into frames |
//!
//! What differs from the ring:
//! - The frames are taken, not copied: the host does not see them any more. So an interface that it talks over is refused.
//! - Only what comes in is seen, nothing that is sent: right for a mirror port or a tap.
//! - Frames carry the time at which a batch was read: XDP gives them none.
//! - A tag that the NIC takes out of a frame is lost, so that NICs must be told to leave it.
//! - A socket hears one queue, and the program can hand a frame only to a socket of the frame's own queue. Which queue that is
//!   the NIC has decided. So one worker reads all queues, unless it is known that the NIC puts both directions of a
//!   conversation into the same queue.
//!
//! Written out rather than taken from a crate. `xdp` 0.8 has no frames of several chunks and loads no program; its rings are
//! `unsafe` to use, so that this room would have as much unsafe code with it as without. `xsk-rs` builds libbpf and libxdp with a C
//! compiler. `netring` brings a ring of its own beside ours, and some twenty packages.

mod host;
mod offload;
mod program;
mod rings;
mod socket;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use self::program::{MOST_QUEUES, Place, Redirection, is_taken};
use self::rings::Chunks;
use self::socket::{Drops, Refusal, Socket, Step, Way};
use super::clock::{clock, now};
use super::live::{EMPTY, LOOK_AGAIN, NicDrops, is_up, link_layer};
use super::ring::{interface_index, wait};
use super::{BATCH, CaptureCounters, CaptureError, Link, LinkLayer, LiveSettings, Source};
use crate::config::XdpMode;
use crate::wire::{Frame, InterfaceId};

/// What only `AF_XDP` is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpSettings {
    /// Whether frames are copied.
    pub mode: XdpMode,
    /// Interfaces that the host talks over are captured, too: it loses their frames.
    pub takes_frames: bool,
    /// Every NIC puts both directions of a conversation into the same queue: several workers may share the queues.
    pub symmetric_rss: bool,
}

/// Opens one source per worker. Each has its share of every interface's queues: of 5 queues and 2 workers, the first worker has
/// 0, 2 and 4.
pub fn open_xdp(settings: &LiveSettings, xdp: XdpSettings) -> Result<Vec<Box<dyn Source>>, CaptureError> {
    check(settings, xdp)?;
    let plan = Arc::new(Plan { settings: settings.clone(), xdp });
    let gates: Vec<_> = settings.interfaces.iter().map(|_| Arc::<Gate>::default()).collect();
    let mut sources = Vec::new();
    for worker in 0..settings.workers {
        let ports = settings.interfaces.iter().zip(&gates).enumerate();
        let ports = ports
            .map(|(id, (name, gate))| Port::open(name, InterfaceId(id as u16), &plan, gate, worker))
            .collect::<Result<Vec<_>, _>>()?;
        let source = XdpSource { plan: Arc::clone(&plan), ports, received: 0, checked: now(), sockets: Vec::new() };
        sources.push(Box::new(source) as Box<dyn Source>);
    }
    Ok(sources)
}

fn check(settings: &LiveSettings, xdp: XdpSettings) -> Result<(), CaptureError> {
    let refuse = |text: String| Err(CaptureError::Setting(text));
    if settings.interfaces.is_empty() || settings.workers == 0 {
        return refuse("capture needs an interface and a worker at least".to_owned());
    }
    if settings.interfaces.len() > usize::from(u16::MAX) {
        return refuse("capture takes at most 65535 interfaces".to_owned());
    }
    if !settings.filter.is_empty() {
        return refuse("capture.filter needs capture.backend = \"ring\": AF_XDP has no filter".to_owned());
    }
    if settings.snap_length as usize > host::LONGEST {
        return refuse(format!(
            "capture.snap_length is {}: AF_XDP reads at most {} octets of a frame",
            settings.snap_length,
            host::LONGEST
        ));
    }
    if settings.workers > 1 && !xdp.symmetric_rss {
        return refuse(
            "capture.workers above 1 needs NICs that put both directions of a conversation into the same queue (symmetric RSS): \
             set capture.xdp_symmetric_rss = true if they do, or let one worker read all queues"
                .to_owned(),
        );
    }
    let queues = settings.interfaces.iter().map(|name| host::queues(name)).max().unwrap_or(1);
    if u32::from(settings.workers) > queues {
        return refuse(format!(
            "capture.workers is {}, but there are only {queues} queues: a queue has one worker",
            settings.workers
        ));
    }
    Ok(())
}

/// What is still on its way to a socket that was taken out of the map comes sooner than this.
const QUIET: Duration = Duration::from_millis(20);
/// For so long, a queue may still belong to a socket that was just closed: the kernel takes leave of it in its own time.
const TAKE_LEAVE: Duration = Duration::from_secs(2);
const TAKE_LEAVE_PAUSE: Duration = Duration::from_millis(10);

struct Plan {
    settings: LiveSettings,
    xdp: XdpSettings,
}

/// What the workers of one interface share.
#[derive(Default)]
struct Gate(Mutex<Told>);

#[derive(Default)]
struct Told {
    /// Gone when no worker has a socket on the interface any more.
    redirection: Weak<Redirection>,
    condition: Condition,
}

/// What the log last said of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Condition {
    #[default]
    Up,
    Down,
    Gone,
    /// It is there, and cannot be captured.
    Refused(String),
}

impl Gate {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program on the interface, attached by whichever worker comes first; and whether that was this one.
    fn attach(&self, interface_index: u32, promiscuous: bool) -> io::Result<(Arc<Redirection>, bool)> {
        let mut told = self.told();
        if let Some(there) = told.redirection.upgrade()
            && there.interface_index() == interface_index
        {
            return Ok((there, false));
        }
        let redirection = Arc::new(Redirection::attach(interface_index, promiscuous)?);
        told.redirection = Arc::downgrade(&redirection);
        Ok((redirection, true))
    }

    /// Says a change once, whichever worker sees it first; not what a worker is late to see of an interface that the others
    /// have already found anew.
    fn tell(&self, interface: &str, interface_index: Option<u32>, condition: Condition) {
        let mut told = self.told();
        let current = told.redirection.upgrade().map(|there| there.interface_index());
        let late = interface_index.is_some() && current.is_some() && current != interface_index;
        if told.condition == condition || late {
            return;
        }
        match (&told.condition, &condition) {
            (_, Condition::Down) => warn!(interface, "interface is down: waiting for it to come up"),
            (_, Condition::Gone) => warn!(interface, "interface is gone: looking for it every second"),
            (_, Condition::Refused(why)) => warn!(interface, why, "interface is not captured: trying every second"),
            (Condition::Down, Condition::Up) => info!(interface, "interface is up again"),
            (_, Condition::Up) => info!(interface, "interface is back"),
        }
        told.condition = condition;
    }
}

/// A socket on one queue.
struct Queue {
    number: u32,
    socket: Socket,
}

/// One worker's sockets on one interface, or their absence.
struct Port {
    name: String,
    id: InterfaceId,
    gate: Arc<Gate>,
    worker: u16,
    redirection: Option<Arc<Redirection>>,
    queues: Vec<Queue>,
    /// Of each socket; the interface's MTU and the number of its queues were asked for when it was opened.
    chunks: Option<Chunks>,
    /// The interface is gone; what its sockets still hold is handed over first.
    gone: bool,
    /// Of sockets that are closed.
    drops: Drops,
    received: u64,
    octets: u64,
    /// Only with the first worker.
    nic: Option<NicDrops>,
}

impl Port {
    fn open(name: &str, id: InterfaceId, plan: &Plan, gate: &Arc<Gate>, worker: u16) -> Result<Self, CaptureError> {
        let mut port = Self {
            name: name.to_owned(),
            id,
            gate: Arc::clone(gate),
            worker,
            redirection: None,
            queues: Vec::new(),
            chunks: None,
            gone: false,
            drops: Drops::default(),
            received: 0,
            octets: 0,
            nic: (worker == 0).then(NicDrops::default),
        };
        match port.try_open(plan) {
            Err(CaptureError::Down(_)) => {
                port.tell(Condition::Down);
                Ok(port)
            }
            result => result.map(|()| port),
        }
    }

    fn try_open(&mut self, plan: &Plan) -> Result<(), CaptureError> {
        let result = self.open_all(plan);
        if result.is_err() {
            self.close();
        }
        result
    }

    fn open_all(&mut self, plan: &Plan) -> Result<(), CaptureError> {
        let name = &self.name;
        let index = interface_index(name).ok_or_else(|| CaptureError::NoInterface(name.clone()))?;
        if link_layer(name)? != LinkLayer::Ethernet {
            return Err(CaptureError::Setting(format!(
                "interface `{name}` has no Ethernet frames: it needs capture.backend = \"ring\""
            )));
        }
        if !plan.xdp.takes_frames {
            host::refuse_if_host_needs(name)?;
        }
        if !is_up(name) {
            return Err(CaptureError::Down(name.clone()));
        }
        let (redirection, is_first) = self
            .gate
            .attach(index.cast_unsigned(), plan.settings.promiscuous)
            .map_err(|error| not_attached(name, error))?;
        let place = redirection.place;
        self.redirection = Some(redirection);
        let interface = &self.name;
        if is_first && place == Place::Stack {
            let what = "the driver has no place for an XDP program: it runs in the kernel's stack, which is slower";
            warn!(interface, "{what}");
        }
        if is_first && offload::takes_vlan_tags_out(interface) {
            let what = "VLAN tags that the NIC takes out of frames are lost to XDP";
            warn!(interface, "{what}: `ethtool -K {interface} rxvlan off` leaves them where they are");
        }
        self.open_queues(plan)?;
        if let Some(nic) = &mut self.nic {
            nic.start(&self.name);
        }
        Ok(())
    }

    /// Opens what is this worker's of the interface's queues and not open yet.
    fn open_queues(&mut self, plan: &Plan) -> Result<(), CaptureError> {
        let Some(redirection) = self.redirection.clone() else { return Ok(()) };
        let (worker, workers) = (u32::from(self.worker), u32::from(plan.settings.workers));
        let queues = host::queues(&self.name).min(MOST_QUEUES);
        let share: Vec<_> = (0..queues).filter(|queue| queue % workers == worker).collect();
        if share.len() <= self.queues.len() {
            return Ok(());
        }
        let longest_frame = host::longest_frame(&self.name).unwrap_or(host::LONGEST);
        let chunks = match self.chunks {
            Some(chunks) => {
                redirection.renew().map_err(|error| not_attached(&self.name, error))?;
                chunks
            }
            None => host::chunks(&plan.settings, longest_frame, share.len() as u32)?,
        };
        self.chunks = Some(chunks);
        let is_whole = longest_frame <= Chunks::room(chunks.octets);
        let (mut opened, mut zero_copy, mut not_zero_copy) = (0, false, None);
        for queue in share {
            if self.queues.iter().any(|open| open.number == queue) {
                continue;
            }
            let (socket, copied) =
                bind(&self.name, redirection.interface_index(), queue, chunks, plan.xdp.mode, is_whole)?;
            redirection.admit(queue, &socket).map_err(|source| CaptureError::System {
                interface: self.name.clone(),
                what: "cannot hand its frames to a socket",
                source,
            })?;
            zero_copy = socket.is_zero_copy();
            not_zero_copy = not_zero_copy.or(copied);
            opened += 1;
            self.queues.push(Queue { number: queue, socket });
        }
        let interface = &self.name;
        if let Some(error) = not_zero_copy
            && worker == 0
        {
            info!(interface, %error, "the driver has no zero-copy mode: frames are copied");
        }
        let (mode, program) = (if zero_copy { "zero-copy" } else { "copy" }, redirection.place.name());
        info!(interface, worker, queues = opened, mode, program, "XDP takes the frames: the host does not see them");
        Ok(())
    }

    fn tell(&self, condition: Condition) {
        let index = self.redirection.as_ref().map(|redirection| redirection.interface_index());
        self.gate.tell(&self.name, index, condition);
    }

    /// Once a second: is the interface still there, or there again?
    fn look_after(&mut self, plan: &Plan) {
        if let Some(redirection) = &self.redirection {
            let is_other =
                || interface_index(&self.name).map(i32::cast_unsigned) != Some(redirection.interface_index());
            self.gone |= match &self.queues[..] {
                [] => is_other(),
                queues => queues.iter().any(|queue| queue.socket.take_error().is_some()),
            };
            if self.gone {
                self.tell(Condition::Gone);
                if self.queues.iter_mut().any(|queue| queue.socket.look() > 0) {
                    return;
                }
                self.close();
            } else {
                let condition = match self.open_queues(plan) {
                    Err(error) => Condition::Refused(error.to_string()),
                    Ok(()) if is_up(&self.name) => Condition::Up,
                    Ok(()) => Condition::Down,
                };
                self.tell(condition);
                return;
            }
        }
        match self.try_open(plan) {
            Ok(()) => self.tell(Condition::Up),
            Err(CaptureError::Down(_)) => self.tell(Condition::Down),
            Err(CaptureError::NoInterface(_)) => self.tell(Condition::Gone),
            Err(error) => self.tell(Condition::Refused(error.to_string())),
        }
    }

    fn close(&mut self) {
        for queue in self.queues.drain(..) {
            let drops = queue.socket.drops().unwrap_or_default();
            self.drops.frames += drops.frames;
            self.drops.no_chunk += drops.no_chunk;
        }
        (self.redirection, self.chunks, self.gone) = (None, None, false);
        if let Some(nic) = &mut self.nic {
            nic.stop();
        }
    }

    /// Hands over what waits on each queue. Returns the frames.
    fn take(&mut self, snap_length: usize, mut number: u64, take: &mut dyn FnMut(&[Frame<'_>])) -> u64 {
        let before = self.received;
        for queue in &mut self.queues {
            let mut left = queue.socket.look();
            while left > 0 {
                let at = clock();
                let mut batch = [EMPTY; BATCH];
                let (mut pieces, mut used, mut octets) = (0, 0, 0);
                for slot in &mut batch {
                    let Some((data, wire_len, next)) = whole_frame(&queue.socket, pieces) else { break };
                    let data = data.get(..snap_length).unwrap_or(data);
                    number += 1;
                    octets += u64::from(wire_len);
                    *slot = Frame { at, number, wire_len, interface: self.id, data, ..EMPTY };
                    (pieces, used) = (next, used + 1);
                }
                match batch.get(..used) {
                    Some(frames @ [_, ..]) => take(frames),
                    // The rest of a frame is still to come.
                    _ => break,
                }
                queue.socket.release(pieces);
                left -= pieces;
                self.received += used as u64;
                self.octets += octets;
            }
        }
        self.received - before
    }

    fn link(&self) -> Link {
        match self.gate.told().condition {
            Condition::Up => Link::Up,
            Condition::Down => Link::Down,
            Condition::Gone => Link::Gone,
            Condition::Refused(_) => Link::Refused,
        }
    }

    fn counters(&mut self) -> CaptureCounters {
        let mut all = self.drops;
        for drops in self.queues.iter().filter_map(|queue| queue.socket.drops().ok()) {
            all.frames += drops.frames;
            all.no_chunk += drops.no_chunk;
        }
        let mut counters = CaptureCounters {
            received: self.received,
            octets: self.octets,
            dropped_kernel: Some(all.frames),
            ring_full: all.no_chunk,
            ..CaptureCounters::default()
        };
        if let Some(nic) = &mut self.nic {
            nic.add_to(&self.name, &mut counters);
        }
        counters
    }
}

/// The first piece of the frame that begins at a piece, the octets of all, and where the next frame begins. `None` where none
/// waits there as a whole.
fn whole_frame(socket: &Socket, mut at: u32) -> Option<(&[u8], u32, u32)> {
    let first = socket.piece(at)?;
    let (mut octets, mut goes_on) = (first.data.len() as u32, first.goes_on);
    while goes_on {
        at += 1;
        let piece = socket.piece(at)?;
        octets = octets.saturating_add(piece.data.len() as u32);
        goes_on = piece.goes_on;
    }
    Some((first.data, octets, at + 1))
}

/// Opens a socket in the best way that mode and driver allow. Gives also why it is not zero-copy, where it might have been.
fn bind(
    name: &str,
    interface_index: u32,
    queue: u32,
    chunks: Chunks,
    mode: XdpMode,
    is_whole: bool,
) -> Result<(Socket, Option<io::Error>), CaptureError> {
    let mut zero_copy_refused = None;
    let mut refused = None;
    for way in ways(mode, is_whole) {
        match open_patiently(interface_index, queue, chunks, way) {
            Ok(socket) => return Ok((socket, zero_copy_refused)),
            Err(Refusal { what: Step::Bind, error }) if may_be_the_way(&error) => {
                if way.zero_copy {
                    zero_copy_refused.get_or_insert(error);
                } else {
                    refused.get_or_insert(error);
                }
            }
            Err(refusal) => return Err(not_opened(name, queue, chunks, refusal)),
        }
    }
    match (refused, zero_copy_refused) {
        (None, Some(error)) => Err(CaptureError::Setting(format!(
            "interface `{name}`: its driver has no zero-copy mode for frames and memory like these ({error}): set capture.xdp_mode = \
             \"auto\" or \"copy\""
        ))),
        (error, _) => {
            let error = error.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
            Err(not_opened(name, queue, chunks, Refusal { what: Step::Bind, error }))
        }
    }
}

/// From the best on. `is_whole`: every frame fits into a chunk.
fn ways(mode: XdpMode, is_whole: bool) -> impl Iterator<Item = Way> {
    let all = [(true, true), (true, false), (false, true), (false, false)];
    let ways = all.map(|(zero_copy, several_chunks)| Way { zero_copy, several_chunks });
    ways.into_iter().filter(move |way| match mode {
        // Rather copied than without the longer frames.
        XdpMode::Auto => !way.zero_copy || way.several_chunks || is_whole,
        XdpMode::Copy => !way.zero_copy,
        XdpMode::ZeroCopy => way.zero_copy && (way.several_chunks || is_whole),
    })
}

fn open_patiently(interface_index: u32, queue: u32, chunks: Chunks, way: Way) -> Result<Socket, Refusal> {
    let since = now();
    loop {
        match Socket::open(interface_index, queue, chunks, way) {
            Err(Refusal { error, .. })
                if error.raw_os_error() == Some(libc::EBUSY) && now().duration_since(since) < TAKE_LEAVE =>
            {
                std::thread::sleep(TAKE_LEAVE_PAUSE);
            }
            result => return result,
        }
    }
}

/// Whether another way to bind could do better.
fn may_be_the_way(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::EACCES | libc::ENODEV | libc::ENETDOWN))
}

fn not_opened(name: &str, queue: u32, chunks: Chunks, refusal: Refusal) -> CaptureError {
    let interface = name.to_owned();
    let system = |what, source| CaptureError::System { interface: name.to_owned(), what, source };
    let Refusal { what, error } = refusal;
    match (what, error.raw_os_error()) {
        (_, Some(libc::EPERM | libc::EACCES)) => CaptureError::XdpPermission,
        (Step::Socket, Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)) => CaptureError::NoXdpSockets,
        (Step::Socket, _) => system("cannot open an AF_XDP socket", error),
        (Step::Memory, Some(libc::ENOBUFS)) => {
            CaptureError::LockedMemory { interface, octets: chunks.octets * chunks.count as usize }
        }
        (Step::Memory, Some(libc::ENOMEM)) => {
            CaptureError::Memory { interface, octets: chunks.octets * chunks.count as usize }
        }
        (Step::Memory, _) => system("cannot share memory for frames with the kernel", error),
        (Step::Rings, _) => system("cannot set up AF_XDP's rings", error),
        (Step::Bind, Some(libc::ENETDOWN)) => CaptureError::Down(interface),
        (Step::Bind, Some(libc::EBUSY)) => CaptureError::Setting(format!(
            "interface `{name}`: another AF_XDP socket has its queue {queue}: end that program, or take capture.backend = \"ring\""
        )),
        (Step::Bind, _) => system("cannot bind an AF_XDP socket to it", error),
    }
}

fn not_attached(name: &str, source: io::Error) -> CaptureError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => CaptureError::XdpPermission,
        _ if is_taken(&source) => CaptureError::Setting(format!(
            "interface `{name}` has an XDP program already (`ip link show dev {name}` names it), and linewarden replaces nobody's: \
             detach it, or take capture.backend = \"ring\""
        )),
        _ => CaptureError::System { interface: name.to_owned(), what: "cannot attach an XDP program", source },
    }
}

struct XdpSource {
    plan: Arc<Plan>,
    ports: Vec<Port>,
    received: u64,
    checked: Instant,
    sockets: Vec<libc::pollfd>,
}

impl XdpSource {
    fn take(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> usize {
        let before = self.received;
        for port in &mut self.ports {
            self.received += port.take(self.plan.settings.snap_length as usize, self.received, take);
        }
        usize::try_from(self.received - before).unwrap_or(usize::MAX)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.sockets.clear();
        let queues = self.ports.iter().flat_map(|port| &port.queues);
        self.sockets.extend(queues.map(|queue| libc::pollfd {
            fd: queue.socket.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }));
        wait(&mut self.sockets, timeout)
    }

    fn look_after(&mut self) {
        let now = now();
        // An interface that is gone does not let its socket wait.
        let failed = self.sockets.iter().any(|socket| socket.revents & libc::POLLERR != 0);
        if failed || now.duration_since(self.checked) >= LOOK_AGAIN {
            self.checked = now;
            self.sockets.clear();
            for port in &mut self.ports {
                port.look_after(&self.plan);
            }
        }
    }
}

impl Source for XdpSource {
    fn poll(&mut self, timeout: Duration, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        self.look_after();
        let taken = self.take(take);
        if taken > 0 {
            return Ok(taken);
        }
        self.wait(timeout)?;
        Ok(self.take(take))
    }

    fn finish(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        for port in &mut self.ports {
            let Some(redirection) = &port.redirection else { continue };
            for queue in &port.queues {
                redirection.dismiss(queue.number)?;
            }
        }
        let mut total = 0;
        let mut last = now();
        while now().duration_since(last) < QUIET {
            let taken = self.take(take);
            if taken > 0 {
                total += taken;
                last = now();
            } else {
                self.wait(QUIET)?;
            }
        }
        Ok(total)
    }

    fn interfaces(&mut self) -> Vec<(CaptureCounters, Link)> {
        self.ports.iter_mut().map(|port| (port.counters(), port.link())).collect()
    }
}
