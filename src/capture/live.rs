//! Turns the rings of several interfaces into one worker's [`Source`], and looks again for interfaces that went away.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::blocks::Frames;
use super::clock::now;
use super::ring::{Ring, Spread, wait};
use super::settled::{Filters, SettledFlows, settled_flows};
use super::{BATCH, CaptureCounters, CaptureError, Link, LinkLayer, LiveSettings, Source};
use crate::audit::Elsewhere;
use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId, LinkType};

/// Opens one source per worker; each has a ring on every interface, and the rings of an interface share its frames so
/// that both directions of a conversation, all fragments, and IKE with its ESP come to the same worker.
pub fn open_rings(settings: &LiveSettings) -> Result<Vec<Box<dyn Source>>, CaptureError> {
    if settings.interfaces.is_empty() || settings.workers == 0 {
        return Err(CaptureError::Setting("capture needs an interface and a worker at least".to_owned()));
    }
    if settings.interfaces.len() > usize::from(u16::MAX) {
        return Err(CaptureError::Setting("capture takes at most 65535 interfaces".to_owned()));
    }
    let settings = Arc::new(settings.clone());
    let groups: Vec<_> = settings.interfaces.iter().map(|_| Arc::new(Group::new(settings.workers))).collect();
    let mut sources = Vec::new();
    let mut fast = fast_paths(&settings).into_iter();
    for worker in 0..settings.workers {
        let (settled, filters) = fast.next().unzip();
        let ports = settings.interfaces.iter().zip(&groups).enumerate();
        let ports = ports
            .map(|(id, (name, group))| {
                Port::open(name, InterfaceId(id as u16), &settings, group, filters.clone(), worker == 0)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let received = 0;
        let (checked, drained) = (now(), Vec::new());
        sources.push(RingSource {
            settings: Arc::clone(&settings),
            ports,
            received,
            checked,
            sockets: drained,
            settled,
        });
    }
    // Only now is every group complete: no frame comes twice, or to a worker that its flow leaves later.
    for source in &mut sources {
        for port in &mut source.ports {
            port.unmute_when_complete();
        }
    }
    Ok(sources.into_iter().map(|source| Box::new(source) as Box<dyn Source>).collect())
}

/// What counts settled flows in the kernel, one per worker; nothing where the settings or the kernel do not want it.
fn fast_paths(settings: &LiveSettings) -> Vec<(SettledFlows, Arc<Filters>)> {
    let Some(fast_path) = settings.fast_path else { return Vec::new() };
    if !settings.filter.is_empty() {
        info!("settled flows are not counted in the kernel: its filter's place is taken by capture.filter");
        return Vec::new();
    }
    let each = (0..settings.workers).map(|_| settled_flows(fast_path, settings.snap_length, settings.block_timeout));
    match each.collect::<io::Result<Vec<_>>>() {
        Ok(each) => {
            info!(flows = fast_path.flows, "packets of settled flows are counted in the kernel");
            each
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            info!(
                "settled flows are not counted in the kernel, every packet comes up: that takes the capability CAP_BPF, and bpf(2) in a service's SystemCallFilter= ({error})"
            );
            Vec::new()
        }
        Err(error) => {
            warn!(%error, "settled flows are not counted in the kernel, which refuses: every packet comes up");
            Vec::new()
        }
    }
}

/// The kernel hands over a block that is not full after the block timeout, counted from its first frame: what stays away
/// for longer than this does not exist.
fn quiet(settings: &LiveSettings) -> Duration {
    settings.block_timeout * 2 + Duration::from_millis(20)
}

/// How often interfaces are looked for, and looked after.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A group starts without members that did not join after this long: they will be missing, which is better than all.
const GATHER: Duration = Duration::from_secs(3);

/// The workers' rings on one interface.
struct Group {
    workers: u16,
    state: Mutex<Membership>,
}

/// What the log last said of an interface.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Condition {
    #[default]
    Up,
    Down,
    Gone,
}

#[derive(Default)]
struct Membership {
    /// Which interface; another one after it was made anew.
    interface_index: i32,
    number: Option<u16>,
    spread: Option<Spread>,
    joined: u16,
    told: Condition,
    /// What the log last said that it is called now.
    called: Option<String>,
}

impl Group {
    fn new(workers: u16) -> Self {
        Self { workers, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, Membership> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says a change once, whichever worker sees it first; not what a worker is late to see of an interface that the others
    /// have already found anew.
    fn tell(&self, interface: &str, interface_index: i32, condition: Condition) {
        let mut state = self.state();
        if state.told == condition || state.interface_index != interface_index {
            return;
        }
        match (state.told, condition) {
            (_, Condition::Down) => warn!(interface, "interface is down: waiting for it to come up"),
            (_, Condition::Gone) => warn!(interface, "interface is gone: looking for it every second"),
            (Condition::Gone, Condition::Up) => info!(interface, "interface is back"),
            (Condition::Down, Condition::Up) => info!(interface, "interface is up again"),
            (Condition::Up, Condition::Up) => {}
        }
        state.told = condition;
    }

    /// Says once that the interface is called otherwise than in the settings, or again as there.
    fn tell_name(&self, interface: &str, interface_index: i32, called: Option<&str>) {
        let mut state = self.state();
        if state.called.as_deref() == called || state.interface_index != interface_index {
            return;
        }
        if let Some(called) = called {
            warn!(
                interface,
                called, "interface was renamed: it is captured on, and records name it as the settings do"
            );
        } else {
            info!(interface, "interface has its name again");
        }
        state.called = called.map(str::to_owned);
    }

    fn join(&self, name: &str, ring: &Ring) -> io::Result<()> {
        let mut state = self.state();
        if state.interface_index != ring.interface_index() {
            let interface_index = ring.interface_index();
            *state = Membership { interface_index, told: state.told, ..Membership::default() };
        }
        if self.workers > 1 {
            let spread = state.spread.unwrap_or(Spread::Program);
            let number = match ring.join(state.number, spread) {
                Err(error) if state.number.is_none() && is_refusal(&error) => {
                    let number = ring.join(None, Spread::Hash).map_err(|_| error)?;
                    warn!(
                        interface = name,
                        "the kernel takes no program to spread frames over workers: it uses its own hash, which may part IKE from its ESP"
                    );
                    state.spread = Some(Spread::Hash);
                    number
                }
                answer => answer?,
            };
            state.number = Some(number);
            state.spread.get_or_insert(spread);
        }
        state.joined = state.joined.saturating_add(1);
        Ok(())
    }

    fn leave(&self, interface_index: i32) {
        let mut state = self.state();
        if state.interface_index == interface_index {
            state.joined = state.joined.saturating_sub(1);
            if state.joined == 0 {
                *state = Membership { told: state.told, ..Membership::default() };
            }
        }
    }

    fn is_complete(&self, interface_index: i32) -> bool {
        let state = self.state();
        state.interface_index != interface_index || state.joined >= self.workers
    }
}

/// Fanout by program came with Linux 4.3; before, `PACKET_FANOUT` says `EINVAL`, and a sandbox may say others.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT | libc::EPERM))
}

/// One worker's ring on one interface, or its absence.
struct Port {
    name: String,
    id: InterfaceId,
    group: Arc<Group>,
    filters: Option<Arc<Filters>>,
    ring: Option<Ring>,
    /// Since when it waits for the others; `None` once frames come in.
    muted: Option<Instant>,
    /// The interface is gone, and since then nothing came of what its ring still holds.
    emptying: Option<Instant>,
    down: bool,
    /// Which interface had the name when the ring was opened, as the system's files tell it.
    named: Option<i32>,
    /// What that one is called now, where it is called otherwise.
    called: Option<String>,
    /// What was counted so far; what the NIC counts is asked for.
    counters: CaptureCounters,
    /// Only with the first worker.
    nic: Option<NicDrops>,
}

impl Port {
    fn open(
        name: &str,
        id: InterfaceId,
        settings: &LiveSettings,
        group: &Arc<Group>,
        filters: Option<Arc<Filters>>,
        first: bool,
    ) -> Result<Self, CaptureError> {
        let mut port = Self {
            name: name.to_owned(),
            id,
            group: Arc::clone(group),
            filters,
            ring: None,
            muted: None,
            emptying: None,
            down: false,
            named: None,
            called: None,
            counters: CaptureCounters { dropped_kernel: Some(0), ..CaptureCounters::default() },
            nic: first.then(NicDrops::default),
        };
        match port.try_open(settings) {
            Err(CaptureError::Down(_)) => {
                port.tell(Condition::Down);
                Ok(port)
            }
            result => result.map(|()| port),
        }
    }

    fn try_open(&mut self, settings: &LiveSettings) -> Result<(), CaptureError> {
        let ring = Ring::open(&self.name, settings, self.filters.clone())?;
        // Asking clears it: a leftover ENETDOWN says that the interface was down when it was bound.
        let down = ring.take_error().is_some();
        match self.group.join(&self.name, &ring) {
            Ok(()) => {}
            // Until Linux 6.13 only a running socket may join.
            Err(_) if down => return Err(CaptureError::Down(self.name.clone())),
            Err(source) => {
                let (interface, what) = (self.name.clone(), "cannot share its frames between workers");
                return Err(CaptureError::System { interface, what, source });
            }
        }
        self.muted = Some(now());
        self.ring = Some(ring);
        (self.named, self.called) = (index_of(&self.name).ok(), None);
        if down {
            self.tell(Condition::Down);
        }
        if let Some(nic) = &mut self.nic {
            nic.start(&self.name);
        }
        Ok(())
    }

    fn tell(&mut self, condition: Condition) {
        self.down = condition == Condition::Down;
        // Without a ring there is no group on any interface: 0.
        self.group.tell(&self.name, self.ring.as_ref().map_or(0, Ring::interface_index), condition);
    }

    fn unmute_when_complete(&mut self) {
        let (Some(ring), Some(since)) = (&self.ring, self.muted) else { return };
        if !self.group.is_complete(ring.interface_index()) && now().duration_since(since) < GATHER {
            return;
        }
        match ring.unmute() {
            Ok(()) => self.muted = None,
            Err(error) => {
                warn!(interface = self.name, %error, "the kernel refuses the filter: nothing is captured here");
                // Tried again after the next gathering time.
                self.muted = Some(now());
            }
        }
    }

    /// Once a second: is the interface still there, or there again?
    fn look_after(&mut self, settings: &LiveSettings) {
        self.add_drops();
        self.unmute_when_complete();
        match self.ring.as_ref().map(Ring::is_bound) {
            Some(true) if self.emptying.is_none() && !self.is_replaced() => {
                if self.down && is_up(self.called.as_ref().unwrap_or(&self.name)) {
                    self.tell(Condition::Up);
                }
                return;
            }
            Some(_) => {
                // Of one that only lost its name more would come.
                let _ = self.ring.as_ref().map(Ring::mute);
                self.tell(Condition::Gone);
                // What had arrived is handed over first.
                if now().duration_since(*self.emptying.get_or_insert_with(now)) < quiet(settings) {
                    return;
                }
                self.close();
            }
            None => {}
        }
        if self.try_open(settings).is_ok() {
            self.unmute_when_complete();
            if !self.down {
                self.tell(Condition::Up);
            }
        }
    }

    /// Whether another interface has the name now, which is then the one that is meant. One that lost it is captured on.
    fn is_replaced(&mut self) -> bool {
        let Some(before) = self.named else { return false };
        let called = match index_of(&self.name) {
            Ok(index) if index != before => return true,
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match name_of(before) {
                Some(name) => Some(name),
                // It is gone.
                None => return false,
            },
            // Nobody can tell now.
            Err(_) => return false,
        };
        if called != self.called {
            self.group.tell_name(&self.name, self.ring.as_ref().map_or(0, Ring::interface_index), called.as_deref());
            self.called = called;
        }
        false
    }

    fn close(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.group.leave(ring.interface_index());
        }
        self.emptying = None;
        if let Some(nic) = &mut self.nic {
            nic.stop();
        }
    }

    const fn link(&self) -> Link {
        match (&self.ring, self.emptying) {
            _ if self.down => Link::Down,
            (Some(_), None) => Link::Up,
            _ => Link::Gone,
        }
    }

    fn add_drops(&mut self) {
        if let Some(drops) = self.ring.as_ref().and_then(|ring| ring.take_drops().ok()) {
            *self.counters.dropped_kernel.get_or_insert(0) += u64::from(drops.frames);
            self.counters.ring_full += u64::from(drops.freezes);
        }
    }

    /// Hands over one block, if one is ready. Returns its frames.
    fn take_block(&mut self, numbered: u64, take: &mut dyn FnMut(&[Frame<'_>])) -> Option<u64> {
        let ring = self.ring.as_mut()?;
        let block = ring.block()?;
        let link = ring.link().link_type();
        let mut batch = [EMPTY; BATCH];
        let (mut used, mut count, mut octets) = (0, 0, 0);
        for mut frame in Frames::of(block, self.id, link) {
            count += 1;
            octets += u64::from(frame.wire_len);
            frame.number = numbered + count;
            if let Some(slot) = batch.get_mut(used) {
                *slot = frame;
                used += 1;
            }
            if used == BATCH {
                take(&batch);
                used = 0;
            }
        }
        if let Some(rest @ [_, ..]) = batch.get(..used) {
            take(rest);
        }
        ring.release();
        self.counters.received += count;
        self.counters.octets += octets;
        if self.emptying.is_some() {
            self.emptying = Some(now());
        }
        Some(count)
    }
}

/// What a batch is made of before frames are put into it.
pub(super) const EMPTY: Frame<'static> = Frame {
    at: Timestamp::ZERO,
    number: 0,
    wire_len: 0,
    interface: InterfaceId(0),
    link: LinkType::Ethernet,
    stripped_vlan: None,
    data: &[],
};

struct RingSource {
    settings: Arc<LiveSettings>,
    ports: Vec<Port>,
    received: u64,
    checked: Instant,
    sockets: Vec<libc::pollfd>,
    /// Until somebody asks for it.
    settled: Option<SettledFlows>,
}

impl RingSource {
    /// One block of each interface that has one, so that a busy interface does not keep the others waiting.
    fn take_blocks(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> usize {
        let before = self.received;
        for port in &mut self.ports {
            if let Some(count) = port.take_block(self.received, take) {
                self.received += count;
            }
        }
        usize::try_from(self.received - before).unwrap_or(usize::MAX)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.sockets.clear();
        let rings = self.ports.iter().filter_map(|port| port.ring.as_ref());
        self.sockets.extend(rings.map(|ring| libc::pollfd {
            fd: ring.as_raw_fd(),
            events: libc::POLLIN | libc::POLLERR,
            revents: 0,
        }));
        wait(&mut self.sockets, timeout)?;
        if self.sockets.iter().any(|socket| socket.revents & libc::POLLERR != 0) {
            for port in &mut self.ports {
                // Taking the error lets the next wait wait; which one it was does not matter, the interface is
                // looked after in any case.
                let failed = port.ring.as_ref().is_some_and(|ring| ring.take_error().is_some() && ring.is_bound());
                if failed {
                    port.tell(Condition::Down);
                }
            }
        }
        Ok(())
    }

    fn look_after(&mut self) {
        let now = now();
        let due = now.duration_since(self.checked) >= LOOK_AGAIN;
        if due {
            self.checked = now;
        }
        for port in &mut self.ports {
            if due || port.emptying.is_some() {
                port.look_after(&self.settings);
            } else if port.muted.is_some() {
                port.unmute_when_complete();
            }
        }
    }
}

impl Source for RingSource {
    fn poll(&mut self, timeout: Duration, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        self.look_after();
        let taken = self.take_blocks(take);
        if taken > 0 {
            return Ok(taken);
        }
        self.wait(timeout)?;
        Ok(self.take_blocks(take))
    }

    fn finish(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        for ring in self.ports.iter().filter_map(|port| port.ring.as_ref()) {
            ring.mute()?;
        }
        let quiet = quiet(&self.settings);
        let mut total = 0;
        let mut last = now();
        while now().duration_since(last) < quiet {
            let taken = self.take_blocks(take);
            if taken > 0 {
                total += taken;
                last = now();
            } else {
                self.wait(Duration::from_millis(10))?;
            }
        }
        Ok(total)
    }

    fn interfaces(&mut self) -> Vec<(CaptureCounters, Link)> {
        let count = |port: &mut Port| {
            port.add_drops();
            let mut counters = port.counters;
            if let Some(nic) = &mut port.nic {
                nic.add_to(port.called.as_ref().unwrap_or(&port.name), &mut counters);
            }
            (counters, port.link())
        };
        self.ports.iter_mut().map(count).collect()
    }

    fn elsewhere(&mut self) -> Option<Box<dyn Elsewhere>> {
        self.settled.take().map(|settled| Box::new(settled) as Box<dyn Elsewhere>)
    }
}

/// An interface's number, as `/sys` tells it of a name.
fn index_of(interface: &str) -> io::Result<i32> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    index.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The name of a number.
fn name_of(index: i32) -> Option<String> {
    let names = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| index_of(name).is_ok_and(|found| found == index))
}

/// `IFF_UP`, in hexadecimal (the kernel's `Documentation/ABI/testing/sysfs-class-net`).
pub(super) fn is_up(interface: &str) -> bool {
    let flags = std::fs::read_to_string(format!("/sys/class/net/{interface}/flags")).unwrap_or_default();
    let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    flags & libc::IFF_UP != 0
}

/// What the kernel counts on an interface apart from the rings, from `/sys/class/net/*/statistics` (the kernel's
/// `Documentation/networking/statistics.rst`).
#[derive(Default)]
pub(super) struct NicDrops {
    missed: Growth,
    dropped: Growth,
}

impl NicDrops {
    pub(super) fn start(&mut self, interface: &str) {
        self.missed.last = missed(interface);
        self.dropped.last = statistic(interface, "rx_dropped");
    }

    pub(super) fn stop(&mut self) {
        (self.missed.last, self.dropped.last) = (None, None);
    }

    fn read(&mut self, interface: &str) {
        self.missed.add(missed(interface));
        self.dropped.add(statistic(interface, "rx_dropped"));
    }

    pub(super) fn add_to(&mut self, interface: &str, counters: &mut CaptureCounters) {
        self.read(interface);
        counters.dropped_nic += self.missed.total;
        counters.rx_dropped += self.dropped.total;
    }
}

/// What a count grew by since the start.
#[derive(Default)]
struct Growth {
    total: u64,
    last: Option<u64>,
}

impl Growth {
    fn add(&mut self, read: Option<u64>) {
        if let (Some(last), Some(read)) = (self.last, read) {
            // A driver that was loaded anew counts from zero again.
            self.total += read.checked_sub(last).unwrap_or(read);
            self.last = Some(read);
        }
    }
}

/// `rx_missed_errors` is the loss for want of buffers; older drivers call it `rx_fifo_errors`, some count the same loss
/// in both, hence the greater.
fn missed(interface: &str) -> Option<u64> {
    Some(statistic(interface, "rx_missed_errors")?.max(statistic(interface, "rx_fifo_errors").unwrap_or(0)))
}

fn statistic(interface: &str, name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}")).ok()?.trim().parse().ok()
}

/// Used by the fallback, which has no ring to ask.
pub(super) fn link_layer(name: &str) -> Result<LinkLayer, CaptureError> {
    let hardware_type = super::ring::hardware_type(name).map_err(|_| CaptureError::NoInterface(name.to_owned()))?;
    LinkLayer::of(hardware_type).ok_or_else(|| CaptureError::HardwareType { interface: name.to_owned(), hardware_type })
}
