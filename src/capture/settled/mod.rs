//! Counts packets of settled flows in the kernel: which flows those are and what was counted of them, on our side; on the
//! kernel's a filter on the rings' sockets ([`program`]).
//!
//! Two maps stand between. `settled` turns a packet's endpoints, as the packet has them, into a slot and a sender; `slots`
//! is an array whose memory both sides share:
//!
//! | offset in the slot | octets | field | who writes |
//! |---|---|---|---|
//! | 0, 8 | 8, 8 | packets of the flow's lower and of its higher endpoint | kernel |
//! | 16, 24 | 8, 8 | their octets on the wire | kernel |
//! | 32 | 8 | when the latest came, nanoseconds since the system's start | kernel |
//! | 40 | 8 | number of the flow's next packet, for samples | both |
//! | 48 | 8 | what is of interest | we |
//! | 56 | 8 | when something came that may open a tunnel, or 0 | both |
//!
//! Counts only ever grow; what is new is what is more than at the last look. A slot is given to another flow only a while
//! after its keys were taken out, so that no program still at work counts for the wrong one.

mod program;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::ebpf::{Map, MapKind, Memory, Program, ProgramKind, uptime};
use super::{FastPath, LinkLayer};
use crate::audit::{Counted, Elsewhere, Interest, SAMPLE};
use crate::flow::{FlowKey, Sender};
use crate::time::Timestamp;
use crate::wire::{InterfaceId, IpVersion};

const PERIOD: i32 = SAMPLE.period as i32;
const BURST: i32 = SAMPLE.burst as i32;

/// Flags in a slot: no samples; TLS is no news; handshakes are of interest.
const SETTLED: i32 = 1;
const TLS: i32 = 2;
const KEYS: i32 = 4;

/// Where a slot's fields are, octets.
mod word {
    pub const PACKETS: i16 = 0;
    pub const OCTETS: i16 = 16;
    pub const LAST: i16 = 32;
    pub const NUMBER: i16 = 40;
    pub const FLAGS: i16 = 48;
    pub const OPENED: i16 = 56;
}

const SLOT_OCTETS: usize = 64;
const KEY_OCTETS: usize = 40;
/// In the octet of a key's protocol: IPv6.
const V6: u8 = 0x80;

/// A worker has read a block this long after it was handed over.
const REACTION: Duration = Duration::from_millis(500);

/// Programs in softirq take microseconds.
const QUARANTINE: Duration = Duration::from_secs(1);

/// The filters of one worker's rings.
#[derive(Debug)]
pub struct Filters {
    ethernet: Program,
    raw_ip: Program,
}

impl Filters {
    /// The one for a link.
    pub const fn of(&self, link: LinkLayer) -> &Program {
        match link {
            LinkLayer::Ethernet => &self.ethernet,
            LinkLayer::RawIp => &self.raw_ip,
        }
    }
}

/// One worker's settled flows.
#[derive(Debug)]
pub struct SettledFlows {
    settled: Map,
    memory: Memory,
    vlan_in_key: bool,
    slots: Vec<Slot>,
    most: usize,
    free: Vec<u32>,
    by_key: HashMap<FlowKey, u32>,
    /// Slots whose flows have left, and when.
    leaving: VecDeque<(Instant, u32)>,
    /// What is to be added to the time since the system's start; read anew at each look.
    epoch: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: FlowKey,
    interface: InterfaceId,
    /// Packets and octets as of the last look.
    read: [u64; 4],
    state: State,
    /// Since when no packet was counted although the flow was taken over; `None` once one was.
    idle_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Counting,
    Leaving,
}

/// Makes maps and filters; an error says that the kernel refuses.
pub fn settled_flows(
    settings: FastPath,
    snap_length: u32,
    block_timeout: Duration,
) -> io::Result<(SettledFlows, Arc<Filters>)> {
    let flows = settings.flows;
    // Two keys a flow, one for each direction.
    let settled = Map::new(MapKind::Hash, "linewarden_keys", KEY_OCTETS, size_of::<u32>(), flows.saturating_mul(2))?;
    let slots = Map::shared_array("linewarden_flow", SLOT_OCTETS, flows)?;
    let memory = slots.memory()?;
    let open_for = REACTION + 2 * block_timeout;
    let load = |link| {
        let code = program::program(link, settings.vlan_in_key, snap_length, open_for, &settled, &slots);
        Program::load(ProgramKind::SocketFilter, "linewarden", &code.ok_or(io::ErrorKind::InvalidInput)?)
    };
    let filters = Filters { ethernet: load(LinkLayer::Ethernet)?, raw_ip: load(LinkLayer::RawIp)? };
    let flows = SettledFlows {
        settled,
        memory,
        vlan_in_key: settings.vlan_in_key,
        slots: Vec::new(),
        most: flows as usize,
        free: Vec::new(),
        by_key: HashMap::new(),
        leaving: VecDeque::new(),
        epoch: epoch(),
    };
    Ok((flows, Arc::new(filters)))
}

#[expect(clippy::disallowed_methods, reason = "an edge: turns the kernel's times since the start into those of frames")]
fn epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(uptime())
}

#[expect(clippy::disallowed_methods, reason = "an edge: says when a slot may be used again, never when a packet was")]
fn now() -> Instant {
    Instant::now()
}

impl SettledFlows {
    /// A packet's key, as the filter makes it.
    fn key(&self, key: &FlowKey, sender: Sender) -> [u8; KEY_OCTETS] {
        let mut octets = [0; KEY_OCTETS];
        let (addresses, rest) = octets.split_at_mut(32);
        for (place, address) in addresses.chunks_exact_mut(16).zip(key.addresses(sender)) {
            let address = match &address {
                IpAddr::V4(address) => &address.octets()[..],
                IpAddr::V6(address) => &address.octets()[..],
            };
            place.iter_mut().zip(address).for_each(|(to, from)| *to = *from);
        }
        let ports = key.raw_ports(sender).map(u16::to_be_bytes);
        let [outer, inner] = if self.vlan_in_key { key.vlan() } else { [0; 2] };
        let version = if key.version() == IpVersion::V6 { V6 } else { 0 };
        let word = u32::from(outer) << 20 | u32::from(inner) << 8 | u32::from(key.protocol() | version);
        let tail = ports.into_iter().flatten().chain(word.to_ne_bytes());
        rest.iter_mut().zip(tail).for_each(|(to, from)| *to = from);
        octets
    }

    fn word(&self, slot: u32, at: i16) -> Option<&AtomicU64> {
        self.memory.word(slot as usize * (SLOT_OCTETS / 8) + usize::from(at.unsigned_abs()) / 8)
    }

    fn load(&self, slot: u32, at: i16) -> u64 {
        self.word(slot, at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn store(&self, slot: u32, at: i16, value: u64) {
        if let Some(word) = self.word(slot, at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// What a slot counted since the last look.
    fn look(&mut self, slot: u32) -> Option<Counted> {
        let now = [word::PACKETS, word::PACKETS + 8, word::OCTETS, word::OCTETS + 8].map(|at| self.load(slot, at));
        let last = self.load(slot, word::LAST);
        let state = self.slots.get_mut(slot as usize)?;
        let before = std::mem::replace(&mut state.read, now);
        if before == now {
            return None;
        }
        state.idle_since = None;
        let mut more = now.iter().zip(before).map(|(now, before)| now.wrapping_sub(before));
        let mut two = || [more.next().unwrap_or(0), more.next().unwrap_or(0)];
        let (packets, octets) = (two(), two());
        let last = Timestamp::ZERO + Duration::from_nanos(last) + self.epoch;
        Some(Counted { key: state.key, interface: state.interface, packets, octets, last })
    }

    fn slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.slots.len() >= self.most {
            return None;
        }
        self.slots.push(Slot::default());
        Some((self.slots.len() - 1) as u32)
    }

    /// Both keys or none.
    fn set_keys(&self, key: &FlowKey, slot: u32) -> io::Result<()> {
        self.settled.set(&self.key(key, Sender::Low), &(slot << 1).to_ne_bytes())?;
        let higher = self.settled.set(&self.key(key, Sender::High), &(slot << 1 | 1).to_ne_bytes());
        if higher.is_err() {
            self.remove_keys(key);
        }
        higher
    }

    fn remove_keys(&self, key: &FlowKey) {
        for sender in [Sender::Low, Sender::High] {
            // A key that is not there any more is as good as one that was taken out.
            let _ = self.settled.remove(&self.key(key, sender));
        }
    }
}

impl Elsewhere for SettledFlows {
    fn take_over(&mut self, key: &FlowKey, interface: InterfaceId, interest: Interest) -> bool {
        let flags = [(interest.settled, SETTLED), (interest.is_tls, TLS), (interest.handshakes, KEYS)];
        let flags = flags.into_iter().filter(|(is_so, _)| *is_so);
        let flags = flags.fold(0, |all, (_, flag)| all | u64::from(flag.unsigned_abs()));
        if let Some(&slot) = self.by_key.get(key) {
            self.store(slot, word::FLAGS, flags);
            return true;
        }
        // One key for both directions would count them as one.
        if self.key(key, Sender::Low) == self.key(key, Sender::High) {
            return false;
        }
        let Some(slot) = self.slot() else { return false };
        self.store(slot, word::FLAGS, flags);
        // The flow's own sample was just taken.
        self.store(slot, word::NUMBER, u64::from(BURST as u16));
        self.store(slot, word::OPENED, 0);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Slot { key: *key, interface, state: State::Counting, idle_since: None, ..*place };
        }
        if self.set_keys(key, slot).is_err() {
            self.leave(slot);
            return false;
        }
        self.by_key.insert(*key, slot);
        let now = Timestamp::ZERO + uptime() + self.epoch;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.idle_since = Some(now);
        }
        true
    }

    fn counted(&mut self, key: &FlowKey) -> Option<Counted> {
        let slot = *self.by_key.get(key)?;
        self.epoch = epoch();
        self.look(slot)
    }

    fn give_back(&mut self, key: &FlowKey) -> Option<Counted> {
        let slot = self.by_key.remove(key)?;
        self.remove_keys(key);
        self.leave(slot);
        self.epoch = epoch();
        self.look(slot)
    }

    fn read(&mut self, tell: &mut dyn FnMut(Counted)) {
        self.epoch = epoch();
        for slot in 0..self.slots.len() as u32 {
            let Some(state) = self.slots.get(slot as usize).filter(|slot| slot.state != State::Free).copied() else {
                continue;
            };
            if let Some(counted) = self.look(slot) {
                tell(counted);
            } else if let (State::Counting, Some(last)) = (state.state, state.idle_since) {
                let (key, interface) = (state.key, state.interface);
                tell(Counted { key, interface, packets: [0; 2], octets: [0; 2], last });
            }
        }
        let now = now();
        while let Some((since, slot)) = self.leaving.front().copied()
            && now.duration_since(since) >= QUARANTINE
        {
            self.leaving.pop_front();
            // What came after the look above would be counted for the next flow.
            if let Some(counted) = self.look(slot) {
                tell(counted);
            }
            if let Some(place) = self.slots.get_mut(slot as usize) {
                place.state = State::Free;
            }
            self.free.push(slot);
        }
    }
}

impl SettledFlows {
    fn leave(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.state = State::Leaving;
        }
        self.leaving.push_back((now(), slot));
    }
}
