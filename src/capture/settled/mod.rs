//! Counts packets of settled flows in the kernel: which flows those are and what was counted of them, on our side; on the
//! kernel's a filter on the rings' sockets ([`program`]).
//!
//! Between them stands a table in memory that both share, an array map: a flow lies at its key's hash or in one of the next
//! few entries. The filter finds it there without a call, and we put it there without one.
//!
//! | offset in the entry | octets | field | who writes |
//! |---|---|---|---|
//! | 0 | 32 | addresses, the lower endpoint's first: 4 or 16 octets each, as in the packet | we |
//! | 32 | 4 | their ports, as in the packet | we |
//! | 36 | 4 | VLANs (12 bits each), IPv6 (1 bit), protocol (7 bits); 0: no flow | we |
//! | 40 | 4 | what is of interest | we |
//! | 44 | 4 | how far behind this place flows lie whose hash it is | we |
//! | 48 | 8 | number of the flow's next packet, for samples | both |
//! | 56 | 8 | when something came that may open a tunnel, or 0 | both |
//! | 64, 72 | 8, 8 | packets of the flow's lower and of its higher endpoint | kernel |
//! | 80, 88 | 8, 8 | their octets on the wire | kernel |
//! | 96 | 8 | when the latest came, nanoseconds since the system's start | kernel |
//!
//! Counts only ever grow; what is new is what is more than at the last look. An entry is given to another flow only a while
//! after its own was taken out, so that no program still at work counts for the wrong one.

mod program;
mod table;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::program::{Plan, program};
use self::table::{ENTRY_OCTETS, KEY_WORDS, MULTIPLIER, PROBES, Place, Table, hash};
use super::clock::{clock, now};
use super::ebpf::{Map, Program, ProgramKind, uptime};
use super::{FastPath, LinkLayer};
use crate::audit::{Counted, Elsewhere, Interest, SAMPLE};
use crate::flow::{FlowKey, Sender};
use crate::time::Timestamp;
use crate::wire::{InterfaceId, IpVersion};

const PERIOD: i32 = SAMPLE.period as i32;
const BURST: i32 = SAMPLE.burst as i32;

/// Flags of an entry: no samples; TLS is no news; handshakes are of interest.
const SETTLED: i32 = 1;
const TLS: i32 = 2;
const KEYS: i32 = 4;

/// Where an entry's fields are, octets.
mod word {
    pub const LAST_OF_KEY: i16 = 32;
    pub const FLAGS: i16 = 40;
    pub const NUMBER: i16 = 48;
    pub const OPENED: i16 = 56;
    pub const PACKETS: i16 = 64;
    pub const OCTETS: i16 = 80;
    pub const LAST: i16 = 96;
}

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
    table: Table,
    vlan_in_key: bool,
    seed: u64,
    most: usize,
    flows: HashMap<FlowKey, Flow>,
    /// Flows that were given back, and when: their entries rest.
    leaving: VecDeque<(Instant, FlowKey, Flow)>,
    /// What is to be added to the time since the system's start; read anew at each look.
    epoch: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    place: Place,
    interface: InterfaceId,
    /// Packets and octets as of the last look.
    read: [u64; 4],
    /// Since when no packet was counted although the flow was taken over; `None` once one was.
    idle_since: Option<Timestamp>,
}

/// Makes the table and its filters; an error says that the kernel refuses.
pub fn settled_flows(
    settings: FastPath,
    snap_length: u32,
    block_timeout: Duration,
) -> io::Result<(SettledFlows, Arc<Filters>)> {
    let FastPath { flows, vlan_in_key } = settings;
    // Half full, one in two hundred flows finds no place.
    let entries = flows.saturating_mul(2).clamp(PROBES, 1 << 30).next_power_of_two();
    let map = Map::shared_array("linewarden", ENTRY_OCTETS, entries)?;
    let table = Table::new(map.memory()?, entries);
    let seed = RandomState::new().build_hasher().finish();
    let open_for = REACTION + 2 * block_timeout;
    let load = |link| {
        let plan = Plan { link, vlan_in_key, snap_length, open_for, seed, table: &map, entries };
        let code = program(&plan).ok_or(io::ErrorKind::InvalidInput)?;
        Program::load(ProgramKind::SocketFilter, "linewarden", &code)
    };
    let filters = Filters { ethernet: load(LinkLayer::Ethernet)?, raw_ip: load(LinkLayer::RawIp)? };
    let (most, flows, leaving) = (flows as usize, HashMap::new(), VecDeque::new());
    let settled = SettledFlows { table, vlan_in_key, seed, most, flows, leaving, epoch: epoch() };
    Ok((settled, Arc::new(filters)))
}

/// What turns the kernel's times since the start into those of frames.
fn epoch() -> Duration {
    clock().since(Timestamp::ZERO + uptime())
}

impl SettledFlows {
    /// A flow's key, as the filter makes it, and its hash.
    fn key(&self, key: &FlowKey) -> ([u64; KEY_WORDS], u64) {
        let mut octets = [0; KEY_WORDS * 8];
        let (addresses, rest) = octets.split_at_mut(KEY_WORDS * 8 - 8);
        let both = key.addresses(Sender::Low).map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        let ports = key.raw_ports(Sender::Low).map(u16::to_be_bytes);
        let [outer, inner] = if self.vlan_in_key { key.vlan() } else { [0; 2] };
        let version = if key.version() == IpVersion::V6 { V6 } else { 0 };
        let word = u32::from(outer) << 20 | u32::from(inner) << 8 | u32::from(key.protocol() | version);
        let tail = ports.into_iter().flatten().chain(word.to_ne_bytes());
        addresses.iter_mut().zip(both.into_iter().flatten()).for_each(|(to, from)| *to = from);
        rest.iter_mut().zip(tail).for_each(|(to, from)| *to = from);
        let mut words = [0; KEY_WORDS];
        for (word, octets) in words.iter_mut().zip(octets.chunks_exact(8)) {
            *word = octets.try_into().map_or(0, u64::from_ne_bytes);
        }
        // The addresses of IPv4 fill the first word.
        let [first, .., last] = words;
        let hash = if version == 0 { hash(self.seed, [first, last]) } else { hash(self.seed, words) };
        (words, hash)
    }

    fn count(&self, place: Place) -> [u64; 4] {
        [word::PACKETS, word::PACKETS + 8, word::OCTETS, word::OCTETS + 8].map(|at| self.table.load(place, at))
    }
}

/// What was counted of a flow since the last look.
fn look(table: &Table, epoch: Duration, key: FlowKey, flow: &mut Flow) -> Option<Counted> {
    let place = flow.place;
    let now = [word::PACKETS, word::PACKETS + 8, word::OCTETS, word::OCTETS + 8].map(|at| table.load(place, at));
    let before = std::mem::replace(&mut flow.read, now);
    if before == now {
        return None;
    }
    flow.idle_since = None;
    let mut more = now.iter().zip(before).map(|(now, before)| now.wrapping_sub(before));
    let mut two = || [more.next().unwrap_or(0), more.next().unwrap_or(0)];
    let (packets, octets) = (two(), two());
    let last = Timestamp::ZERO + Duration::from_nanos(table.load(place, word::LAST)) + epoch;
    Some(Counted { key, interface: flow.interface, packets, octets, last })
}

impl Elsewhere for SettledFlows {
    fn take_over(&mut self, key: &FlowKey, interface: InterfaceId, interest: Interest) -> bool {
        let flags = [(interest.settled, SETTLED), (interest.is_tls, TLS), (interest.handshakes, KEYS)];
        let flags = flags.into_iter().filter(|(is_so, _)| *is_so);
        let flags = flags.fold(0, |all, (_, flag)| all | flag.unsigned_abs());
        if let Some(flow) = self.flows.get(key) {
            self.table.set_flags(flow.place, flags);
            return true;
        }
        if self.flows.len() >= self.most {
            return false;
        }
        let (words, hash) = self.key(key);
        let Some(place) = self.table.take(hash) else { return false };
        self.table.set_flags(place, flags);
        // The flow's own sample was just taken.
        self.table.store(place, word::NUMBER, u64::from(SAMPLE.burst));
        self.table.store(place, word::OPENED, 0);
        let read = self.count(place);
        self.table.show(place, &words);
        let idle_since = Some(Timestamp::ZERO + uptime() + self.epoch);
        self.flows.insert(*key, Flow { place, interface, read, idle_since });
        true
    }

    fn counted(&mut self, key: &FlowKey) -> Option<Counted> {
        self.epoch = epoch();
        look(&self.table, self.epoch, *key, self.flows.get_mut(key)?)
    }

    fn give_back(&mut self, key: &FlowKey) -> Option<Counted> {
        let mut flow = self.flows.remove(key)?;
        self.table.hide(flow.place);
        self.epoch = epoch();
        let counted = look(&self.table, self.epoch, *key, &mut flow);
        self.leaving.push_back((now(), *key, flow));
        counted
    }

    fn read(&mut self, tell: &mut dyn FnMut(Counted)) {
        let epoch = epoch();
        self.epoch = epoch;
        let Self { table, flows, leaving, .. } = self;
        for (key, flow) in flows {
            if let Some(counted) = look(table, epoch, *key, flow) {
                tell(counted);
            } else if let Some(last) = flow.idle_since {
                let interface = flow.interface;
                tell(Counted { key: *key, interface, packets: [0; 2], octets: [0; 2], last });
            }
        }
        for (_, key, flow) in leaving.iter_mut() {
            if let Some(counted) = look(table, epoch, *key, flow) {
                tell(counted);
            }
        }
        let now = now();
        while let Some((since, key, mut flow)) = leaving.front().copied()
            && now.duration_since(since) >= QUARANTINE
        {
            leaving.pop_front();
            // What came after the look above would be counted for the next flow.
            if let Some(counted) = look(table, epoch, key, &mut flow) {
                tell(counted);
            }
            table.free(flow.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::mapping::Mapping;

    #[test]
    fn a_flow_lies_near_its_hash_and_the_filter_looks_no_farther_than_it_must() {
        let memory = Mapping::anonymous(64 * ENTRY_OCTETS).unwrap();
        let mut table = Table::new(memory, 64);
        let reach = |table: &Table, place| table.load(place, word::FLAGS) >> 32;
        let places: Vec<_> = (0..PROBES).map(|_| table.take(62).unwrap()).collect();
        assert_eq!(table.take(62), None, "every place is taken");
        assert_eq!(reach(&table, places[0]), 7);
        let other = table.take(63).unwrap();
        assert_eq!(reach(&table, places[1]), 7, "one place behind, and six more that are taken");
        table.set_flags(places[0], 5);
        assert_eq!(table.load(places[0], word::FLAGS), 7 << 32 | 5);
        table.free(places[7]);
        assert_eq!(table.load(places[0], word::FLAGS), 6 << 32 | 5);
        table.free(other);
        assert_eq!(reach(&table, places[1]), 0);
        assert_eq!(table.take(62), Some(places[7]));
    }
}
