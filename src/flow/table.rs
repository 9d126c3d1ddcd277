//! Holds the flows of one worker: found by key in constant time, ended by timeouts, evicted when memory is short.
//!
//! Entries lie in a slab that never moves; an index of hashes finds them.
//! Timeouts are four wheels of buckets, one per [`Rank`], each for a second, or for a 4000th of an idle timeout beyond an hour: a
//! packet touches no list, a bucket's flows are looked at once when it is due and put where their latest packet says. The same
//! order gives the oldest flow of a rank.

use std::ops::Range;
use std::time::Duration;

use prefetch_index::prefetch_index;

use super::index::Index;
use crate::flow::{Direction, FlowKey, FlowSettings, HashSecrets, Sender};
use crate::time::Timestamp;
use crate::wire::InterfaceId;

/// Position in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowIndex(u32);

impl FlowIndex {
    /// Of no flow.
    pub const NONE: Self = Self(NIL);
}

/// In which order flows are given up when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// Nothing known and nothing held: goes first, with `Noted`.
    Plain,
    /// Numbers for a sequence check, no evidence.
    Noted,
    /// Some evidence.
    Evident,
    /// A tunnel: last to go.
    Tunnel,
}

impl Rank {
    /// All, cheapest first.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Noted, Self::Evident, Self::Tunnel];

    /// The name in summaries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Noted => "noted",
            Self::Evident => "evident",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What the table holds per flow for its user.
pub trait Tenant: Default {
    /// How dear the flow is.
    fn rank(&self) -> Rank;
    /// Memory held outside the entry, octets.
    fn octets(&self) -> usize;
}

/// Who is known to have opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// The sender of the first packet seen.
    First,
    /// The other endpoint.
    Other,
    /// Nobody can tell: picked up mid-stream.
    Unknown,
}

/// One flow: two cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Flow<T> {
    key: FlowKey,
    next: u32,
    prev: u32,
    /// Interface of the first packet.
    pub interface: InterfaceId,
    /// Wheel bucket in the low 12 bits, wheel above.
    place: u16,
    labels: [[u8; 3]; 2],
    state: u8,
    /// Free for the user of the table.
    pub mark: u8,
    /// Packets, forward and reverse.
    pub packets: [u64; 2],
    /// Octets on the wire, likewise.
    pub octets: [u64; 2],
    /// Time of the first packet.
    pub first: Timestamp,
    /// Time of the latest packet.
    pub last: Timestamp,
    /// What the table's user keeps with the flow.
    pub tenant: T,
}

const FIRST_FROM_HIGH: u8 = 1 << 0;
const LIVE: u8 = 1 << 1;
const FIN_FORWARD: u8 = 1 << 2;
const FIN_REVERSE: u8 = 1 << 3;
const CLOSED: u8 = 1 << 4;
const OPENER_OTHER: u8 = 1 << 5;
const OPENER_UNKNOWN: u8 = 1 << 6;
/// Its latest packet is of a time that the clock has left.
const LEFT: u8 = 1 << 7;

/// A closed TCP flow waits this long for its last acknowledgments.
pub const LINGER: Duration = Duration::from_secs(5);

const NO_LABEL: [u8; 3] = [0xff; 3];
const NIL: u32 = u32::MAX;

impl<T> Flow<T> {
    /// Its key.
    #[must_use]
    pub const fn key(&self) -> &FlowKey {
        &self.key
    }

    /// Whether it is of a time that the clock has left.
    #[must_use]
    pub const fn is_left(&self) -> bool {
        self.state & LEFT != 0
    }

    /// Which endpoint sent the first packet.
    #[must_use]
    pub const fn first_sender(&self) -> Sender {
        if self.state & FIRST_FROM_HIGH == 0 { Sender::Low } else { Sender::High }
    }

    /// Which way a packet of `sender` goes.
    #[must_use]
    pub fn direction(&self, sender: Sender) -> Direction {
        std::hint::select_unpredictable(sender == self.first_sender(), Direction::Forward, Direction::Reverse)
    }

    /// Who opened it, as far as the transport tells.
    #[must_use]
    pub const fn opener(&self) -> Opener {
        if self.state & OPENER_UNKNOWN != 0 {
            Opener::Unknown
        } else if self.state & OPENER_OTHER != 0 {
            Opener::Other
        } else {
            Opener::First
        }
    }

    /// Notes who opened it.
    pub fn set_opener(&mut self, opener: Opener) {
        self.state &= !(OPENER_OTHER | OPENER_UNKNOWN);
        match opener {
            Opener::First => {}
            Opener::Other => self.state |= OPENER_OTHER,
            Opener::Unknown => self.state |= OPENER_UNKNOWN,
        }
    }

    /// Notes a TCP FIN; true once both directions have ended.
    pub fn set_fin(&mut self, direction: Direction) -> bool {
        self.state |= match direction {
            Direction::Forward => FIN_FORWARD,
            Direction::Reverse => FIN_REVERSE,
        };
        self.state & (FIN_FORWARD | FIN_REVERSE) == FIN_FORWARD | FIN_REVERSE
    }

    /// Whether TCP closed it.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.state & CLOSED != 0
    }

    /// Notes the MPLS label of a direction.
    pub fn set_mpls_label(&mut self, direction: Direction, label: Option<u32>) {
        let [_, octets @ ..] = label.unwrap_or(u32::MAX).to_be_bytes();
        let [forward, reverse] = &mut self.labels;
        match direction {
            Direction::Forward => *forward = octets,
            Direction::Reverse => *reverse = octets,
        }
    }

    /// MPLS labels, forward and reverse.
    #[must_use]
    pub fn mpls_labels(&self) -> [Option<u32>; 2] {
        [Direction::Forward, Direction::Reverse].map(|direction| self.mpls_label(direction))
    }

    /// The MPLS label of a direction.
    #[must_use]
    pub fn mpls_label(&self, direction: Direction) -> Option<u32> {
        let octets = self.labels.get(direction as usize).copied().unwrap_or(NO_LABEL);
        let [a, b, c] = octets;
        (octets != NO_LABEL).then(|| u32::from_be_bytes([0, a, b, c]))
    }

    /// Adds one packet.
    #[inline]
    pub fn count(&mut self, direction: Direction, at: Timestamp, packets: u64, octets: u64) {
        // By place, not by branch: which way a packet goes is chance.
        let side = direction as usize;
        if let (Some(of_packets), Some(of_octets)) = (self.packets.get_mut(side), self.octets.get_mut(side)) {
            *of_packets += packets;
            *of_octets += octets;
        }
        self.last = self.last.max(at);
    }
}

impl<T: Default> Flow<T> {
    /// A free entry; `next` is the next free one.
    fn vacant(next: u32) -> Self {
        Self {
            key: FlowKey::EMPTY,
            next,
            prev: NIL,
            interface: InterfaceId::default(),
            place: 0,
            labels: [NO_LABEL; 2],
            state: 0,
            mark: 0,
            packets: [0; 2],
            octets: [0; 2],
            first: Timestamp::ZERO,
            last: Timestamp::ZERO,
            tenant: T::default(),
        }
    }
}

/// Lists of flows by the tick in which they may be over: a second or, where timeouts are long, several ([`FlowTable`]'s `tick`).
#[derive(Debug)]
struct Wheel {
    /// First and last flow of each bucket.
    buckets: Vec<[u32; 2]>,
    /// One bit a bucket, and one bit for 64 of these: not empty.
    occupied: [u64; WORDS],
    words: u64,
}

/// Buckets of a wheel, a power of two; their numbers have 12 bits of [`Flow`]'s `place`.
const BUCKETS: u64 = 1 << 12;
/// As many as one of them has bits.
const WORDS: usize = BUCKETS as usize / 64;

/// Frames that are older than the latest by more than this are of a clock that was put back; captures put one behind the other end
/// the flows of the first.
pub const STEP: Duration = Duration::from_mins(5);

impl Wheel {
    fn new() -> Self {
        Self { buckets: vec![[NIL; 2]; BUCKETS as usize], occupied: [0; WORDS], words: 0 }
    }

    /// The first occupied bucket from `tick` on, as its tick.
    fn first_from(&self, tick: u64) -> Option<u64> {
        let start = tick % BUCKETS;
        let (word, bit) = (start / 64, start % 64);
        let of = |word: u64| self.occupied.get(word as usize).copied().unwrap_or(0);
        let here = of(word) & u64::MAX << bit;
        let bucket = if here != 0 {
            word * 64 + u64::from(here.trailing_zeros())
        } else {
            // Words behind this one, then those from the first on, this one's lower bits the last of them.
            let behind = self.words & (u64::MAX << word) << 1;
            let words = if behind != 0 { behind } else { self.words };
            if words == 0 {
                return None;
            }
            let word = u64::from(words.trailing_zeros());
            word * 64 + u64::from(of(word).trailing_zeros())
        };
        Some(tick + (bucket + BUCKETS - start) % BUCKETS)
    }

    fn set_occupied(&mut self, bucket: usize, is_occupied: bool) {
        let Some(word) = self.occupied.get_mut(bucket / 64) else { return };
        let (bit, of_word) = (1 << (bucket % 64), 1 << (bucket / 64));
        if is_occupied {
            *word |= bit;
            self.words |= of_word;
        } else {
            *word &= !bit;
            if *word == 0 {
                self.words &= !of_word;
            }
        }
    }
}

/// The flows of one worker.
#[derive(Debug)]
pub struct FlowTable<T> {
    secrets: HashSecrets,
    entries: Vec<Flow<T>>,
    /// Free entries, linked by `next`.
    free: u32,
    live: usize,
    index: Index,
    wheels: [Wheel; Rank::ALL.len()],
    /// Seconds that a bucket of the wheels stands for.
    tick: u64,
    /// Ticks before this one have been looked at.
    cursor: u64,
    idle_timeout: Duration,
    /// Half of the memory is for entries and index, half for what tenants hold: either bound is kept by itself.
    max_entries: usize,
    max_tenants_octets: usize,
    tenants_octets: usize,
}

/// What tenants hold, without what one of them held. A tenant that grew behind [`FlowTable::with_tenant`]'s back would lower the
/// sum with its end, and the bound would not hold.
fn less(sum: usize, octets: usize) -> usize {
    debug_assert!(sum >= octets, "{octets} octets were not counted");
    sum.saturating_sub(octets)
}

/// Which bound a new flow would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// No entry is free.
    Entries,
    /// Tenants hold too much.
    Tenants,
}

impl<T: Tenant> FlowTable<T> {
    /// An empty table; `seed` keys the hash.
    #[must_use]
    pub fn new(settings: &FlowSettings, seed: u64) -> Self {
        // An index slot of 8 octets at a load of 3/8 to 3/4, and half as many while they move, cost 32 octets at most.
        let max_entries = (settings.memory_octets / 2 / (size_of::<Flow<T>>() + 32)).clamp(16, NIL as usize - 1);
        Self {
            secrets: HashSecrets::new(seed),
            // Reserved, not touched: the system gives memory as flows come, and entries never move.
            entries: Vec::with_capacity(max_entries),
            free: NIL,
            live: 0,
            index: Index::new(),
            wheels: Rank::ALL.map(|_| Wheel::new()),
            // No deadline is more than a turn ahead, though the clock be put back by what is no step.
            tick: (settings.idle_timeout + STEP).as_secs().div_ceil(BUCKETS - 1),
            cursor: 0,
            idle_timeout: settings.idle_timeout,
            max_entries,
            max_tenants_octets: settings.memory_octets / 2,
            tenants_octets: 0,
        }
    }

    /// The hash by which `find` and `insert` look for a key.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(&self.secrets)
    }

    /// Asks for the first index slot of a hash, so that a later look meets it in the cache.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Where the flow of a hash most likely is, if it is in the table.
    #[must_use]
    #[inline]
    pub fn guess(&self, hash: u64) -> FlowIndex {
        FlowIndex(self.index.guess(hash))
    }

    /// Asks for both lines of a guessed entry, likewise.
    #[inline]
    pub fn prefetch(&self, guess: FlowIndex) {
        if let Some(flow) = self.entries.get(guess.0 as usize) {
            prefetch_index(std::slice::from_ref(&flow.key), 0);
            prefetch_index(flow.packets.as_slice(), 0);
        }
    }

    /// The flow of a key.
    #[must_use]
    #[inline]
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<FlowIndex> {
        let is_it = |position: u32| self.entries.get(position as usize).is_some_and(|flow| flow.key == *key);
        self.index.find(hash, is_it).map(FlowIndex)
    }

    /// The flow that was guessed, if it is that of the key: what a batch has learnt of a flow may be stale.
    #[must_use]
    #[inline]
    pub fn check(&mut self, guess: FlowIndex, key: &FlowKey) -> Option<&mut Flow<T>> {
        self.flow_mut(guess).filter(|flow| flow.key == *key)
    }

    /// A flow by its position; `None` once it was removed.
    #[must_use]
    #[inline]
    pub fn flow(&self, index: FlowIndex) -> Option<&Flow<T>> {
        self.entries.get(index.0 as usize).filter(|flow| flow.state & LIVE != 0)
    }

    /// The same, to change it.
    #[inline]
    pub fn flow_mut(&mut self, index: FlowIndex) -> Option<&mut Flow<T>> {
        self.entries.get_mut(index.0 as usize).filter(|flow| flow.state & LIVE != 0)
    }

    /// Changes a tenant whose memory may grow or shrink.
    pub fn with_tenant<R>(&mut self, index: FlowIndex, change: impl FnOnce(&mut Flow<T>) -> R) -> Option<R> {
        let flow = self.entries.get_mut(index.0 as usize).filter(|flow| flow.state & LIVE != 0)?;
        let (before, rank) = (flow.tenant.octets(), flow.tenant.rank());
        let result = change(flow);
        self.tenants_octets = less(self.tenants_octets + flow.tenant.octets(), before);
        // Where it stands in its old rank's list, it would not be found when its own is to go.
        if flow.tenant.rank() != rank {
            self.relink(index.0);
        }
        Some(result)
    }

    /// Adds a flow that `find` did not find. The caller has made room (`crowded`).
    pub fn insert(
        &mut self,
        key: FlowKey,
        hash: u64,
        sender: Sender,
        interface: InterfaceId,
        at: Timestamp,
        tenant: T,
    ) -> FlowIndex {
        self.tenants_octets += tenant.octets();
        let flow = Flow {
            key,
            interface,
            state: if sender == Sender::High { LIVE | FIRST_FROM_HIGH } else { LIVE },
            first: at,
            last: at,
            tenant,
            ..Flow::vacant(NIL)
        };
        let position = if let Some(entry) = self.entries.get_mut(self.free as usize) {
            let position = self.free;
            self.free = entry.next;
            *entry = flow;
            position
        } else {
            self.entries.push(flow);
            (self.entries.len() - 1) as u32
        };
        self.live += 1;
        self.index.insert(hash, position);
        if self.live == 1 {
            self.cursor = self.cursor.max(self.tick_of(at));
        }
        self.link(position);
        FlowIndex(position)
    }

    /// Takes a flow out.
    pub fn remove(&mut self, index: FlowIndex) -> Option<Flow<T>> {
        self.flow(index)?;
        self.unlink(index.0);
        let flow = std::mem::replace(self.entries.get_mut(index.0 as usize)?, Flow::vacant(self.free));
        self.free = index.0;
        self.live -= 1;
        self.tenants_octets = less(self.tenants_octets, flow.tenant.octets());
        self.index.remove(flow.key.hash(&self.secrets), index.0);
        Some(flow)
    }

    /// When a flow is over, if no packet comes.
    #[must_use]
    pub fn deadline(&self, flow: &Flow<T>) -> Timestamp {
        if flow.is_left() {
            return Timestamp::ZERO;
        }
        flow.last + if flow.is_closed() { LINGER } else { self.idle_timeout }
    }

    /// Notes that TCP closed the flow, which then lingers only shortly.
    pub fn close(&mut self, index: FlowIndex) {
        if let Some(flow) = self.flow_mut(index)
            && !flow.is_closed()
        {
            flow.state |= CLOSED;
            self.relink(index.0);
        }
    }

    /// Fills `due` with flows whose deadline fell in a tick before `now`'s, as many as it has room for; the caller removes
    /// them before it asks again. At most `budget` flows are looked at, and taken off it: what is left over waits for the
    /// next question, so that a second in which a million flows end stops nobody. Nothing is due any more where `due` is
    /// empty and some of the budget is left.
    pub fn expired(&mut self, now: Timestamp, due: &mut Vec<FlowIndex>, budget: &mut usize) {
        due.clear();
        let now = self.tick_of(now);
        // Nothing is put before the cursor.
        while self.cursor < now {
            // After a leap of a turn or more every bucket is due. What is not over by then goes into the last, which is looked at
            // by itself once all the others are empty: however the clock goes on meanwhile.
            let end = now.min(self.cursor + BUCKETS - 1);
            for rank in Rank::ALL {
                while let Some((tick, head)) = self.first(rank)
                    && tick < end
                {
                    let mut position = head;
                    while let Some(flow) = self.entries.get(position as usize) {
                        if due.len() == due.capacity() || *budget == 0 {
                            break;
                        }
                        *budget -= 1;
                        let next = flow.next;
                        if self.tick_of(self.deadline(flow)) < now {
                            due.push(FlowIndex(position));
                            // Removing it begins there.
                            self.index.prefetch(flow.key.hash(&self.secrets));
                        } else {
                            self.relink(position);
                        }
                        position = next;
                    }
                    if !due.is_empty() || *budget == 0 {
                        return;
                    }
                }
            }
            // The same bucket, as near as can be.
            self.cursor = if end < now { end + (now - 1 - end) / BUCKETS * BUCKETS } else { now };
        }
    }

    /// The clock was put back: flows whose latest packet came a [`STEP`] later than `now` are over, and time goes on from there.
    /// It takes a look at every entry.
    pub fn rewind(&mut self, now: Timestamp) {
        let horizon = now + STEP;
        self.cursor = self.tick_of(now);
        for position in 0..self.entries.len() as u32 {
            let Some(flow) = self.flow_mut(FlowIndex(position)) else { continue };
            if flow.last > horizon {
                flow.state |= LEFT;
            }
            self.relink(position);
        }
    }

    /// Which bound a new flow would break, if any.
    #[must_use]
    pub fn pressure(&self) -> Option<Pressure> {
        if self.free == NIL && self.entries.len() >= self.max_entries {
            Some(Pressure::Entries)
        } else {
            self.tenants_pressure()
        }
    }

    /// Whether what tenants hold has grown beyond its bound.
    #[must_use]
    pub fn tenants_pressure(&self) -> Option<Pressure> {
        (self.tenants_octets > self.max_tenants_octets).then_some(Pressure::Tenants)
    }

    /// The oldest of the flows that are to go first; the caller removes it. Of tunnels idle equally long, to a tick, the first
    /// and the last of their list are looked at, and the one that began later goes: whoever makes up tunnels, however many in a
    /// second, does not push out those that were there before.
    pub fn oldest(&mut self, pressure: Pressure) -> Option<FlowIndex> {
        let ranks: &[&[Rank]] = match pressure {
            Pressure::Entries => &[&[Rank::Plain, Rank::Noted], &[Rank::Evident], &[Rank::Tunnel]],
            Pressure::Tenants => &[&[Rank::Noted], &[Rank::Evident], &[Rank::Tunnel]],
        };
        for equals in ranks {
            loop {
                let first = equals
                    .iter()
                    .filter_map(|&rank| Some((self.first(rank)?, rank)))
                    .min_by_key(|((tick, _), _)| *tick);
                let Some(((tick, position), rank)) = first else { break };
                let flow = self.entries.get(position as usize)?;
                if !self.is_in_place(flow, rank, tick) {
                    self.relink(position);
                    continue;
                }
                if rank == Rank::Tunnel
                    && let Some(last) = self.last(rank, tick)
                    && let Some(other) = self.entries.get(last as usize)
                {
                    if !self.is_in_place(other, rank, tick) {
                        self.relink(last);
                        continue;
                    }
                    if other.first > flow.first {
                        return Some(FlowIndex(last));
                    }
                }
                return Some(FlowIndex(position));
            }
        }
        None
    }

    /// Positions of all flows, and of places where some were: for judging them again or ending them.
    pub fn indices(&self) -> impl ExactSizeIterator<Item = FlowIndex> + use<T> {
        (0..self.entries.len() as u32).map(FlowIndex)
    }

    /// Flows in the table.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Memory held for flows: entries ever used, index slots and what tenants hold, octets.
    #[must_use]
    pub fn octets(&self) -> usize {
        self.entries.len() * size_of::<Flow<T>>() + self.index.octets() + self.tenants_octets
    }

    /// Addresses of the memory that entries lie in or will.
    #[must_use]
    pub fn reserved(&self) -> Range<usize> {
        let start = self.entries.as_ptr().addr();
        start..start + self.entries.capacity() * size_of::<Flow<T>>()
    }

    /// Octets of one entry.
    #[must_use]
    pub const fn entry_octets() -> usize {
        size_of::<Flow<T>>()
    }

    fn tick_of(&self, at: Timestamp) -> u64 {
        at.as_secs() / self.tick
    }

    /// The tick of whose bucket a flow of that deadline is: never behind the cursor, never more than a turn ahead.
    fn bucket_tick(&self, deadline: Timestamp) -> u64 {
        self.tick_of(deadline).clamp(self.cursor, self.cursor + BUCKETS - 1)
    }

    /// The first bucket of a wheel that holds a flow, and its oldest one.
    fn first(&self, rank: Rank) -> Option<(u64, u32)> {
        let wheel = self.wheels.get(rank as usize)?;
        let tick = wheel.first_from(self.cursor)?;
        let [head, _] = *wheel.buckets.get((tick % BUCKETS) as usize)?;
        Some((tick, head))
    }

    /// The latest flow that was put into that bucket of a wheel.
    fn last(&self, rank: Rank, tick: u64) -> Option<u32> {
        let [_, tail] = *self.wheels.get(rank as usize)?.buckets.get((tick % BUCKETS) as usize)?;
        Some(tail)
    }

    /// Whether a flow still belongs where it was put.
    fn is_in_place(&self, flow: &Flow<T>, rank: Rank, tick: u64) -> bool {
        flow.tenant.rank() == rank && self.bucket_tick(self.deadline(flow)) <= tick
    }

    fn relink(&mut self, position: u32) {
        self.unlink(position);
        self.link(position);
    }

    fn link(&mut self, position: u32) {
        let Some(flow) = self.entries.get(position as usize) else { return };
        let rank = flow.tenant.rank();
        let bucket = (self.bucket_tick(self.deadline(flow)) % BUCKETS) as usize;
        let Some(wheel) = self.wheels.get_mut(rank as usize) else { return };
        let Some([head, tail]) = wheel.buckets.get_mut(bucket) else { return };
        let last = std::mem::replace(tail, position);
        if last == NIL {
            *head = position;
        }
        wheel.set_occupied(bucket, true);
        if let Some(before) = self.entries.get_mut(last as usize) {
            before.next = position;
        }
        if let Some(flow) = self.entries.get_mut(position as usize) {
            flow.next = NIL;
            flow.prev = last;
            flow.place = (rank as u16) << 12 | bucket as u16;
        }
    }

    fn unlink(&mut self, position: u32) {
        let Some(flow) = self.entries.get(position as usize) else { return };
        let (next, prev, bucket) = (flow.next, flow.prev, usize::from(flow.place & 0xfff));
        let Some(wheel) = self.wheels.get_mut(usize::from(flow.place >> 12)) else { return };
        let Some([head, tail]) = wheel.buckets.get_mut(bucket) else { return };
        if prev == NIL {
            *head = next;
        }
        if next == NIL {
            *tail = prev;
        }
        if *head == NIL {
            wheel.set_occupied(bucket, false);
        }
        if let Some(before) = self.entries.get_mut(prev as usize) {
            before.next = next;
        }
        if let Some(after) = self.entries.get_mut(next as usize) {
            after.prev = prev;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::{packet, settings};

    #[derive(Debug, Default)]
    struct Held(Option<Rank>);

    impl Tenant for Held {
        fn rank(&self) -> Rank {
            self.0.unwrap_or(Rank::Plain)
        }

        fn octets(&self) -> usize {
            if self.0.is_some() { 400 } else { 0 }
        }
    }

    fn key(number: u32) -> (FlowKey, Sender) {
        let [a, b, c, d] = number.to_be_bytes();
        FlowKey::of(&packet([10, b, c, d], 1000 + u16::from(a), [198, 51, 100, 2], 443, 6), true)
    }

    fn insert(table: &mut FlowTable<Held>, number: u32, at: u64, held: Held) -> FlowIndex {
        let (key, sender) = key(number);
        let hash = table.hash(&key);
        table.insert(key, hash, sender, InterfaceId(0), Timestamp::from_secs(at), held)
    }

    fn expired(table: &mut FlowTable<Held>, now: Timestamp) -> Option<FlowIndex> {
        let (mut due, mut budget) = (Vec::with_capacity(1), usize::MAX);
        table.expired(now, &mut due, &mut budget);
        due.first().copied()
    }

    fn find(table: &FlowTable<Held>, number: u32) -> Option<FlowIndex> {
        let (key, _) = key(number);
        table.find(&key, table.hash(&key))
    }

    #[test]
    fn an_entry_is_two_cache_lines() {
        assert_eq!(size_of::<Flow<[u64; 2]>>(), 128);
    }

    #[test]
    fn where_the_clock_is_put_back_what_is_of_later_is_over_and_nothing_else() {
        let mut table = FlowTable::new(&settings(), 1);
        let [old, near] = [(1, 90_000), (2, 1200)].map(|(number, at)| insert(&mut table, number, at, Held(None)));
        assert_eq!(expired(&mut table, Timestamp::from_secs(90_001)), Some(near));
        table.remove(near);
        let near = insert(&mut table, 2, 1200, Held(None));
        table.rewind(Timestamp::from_secs(1000));
        // And forth again at once: what is new by then is not over.
        let new = insert(&mut table, 3, 5000, Held(None));
        assert_eq!(expired(&mut table, Timestamp::from_secs(1000)), None);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1001)), Some(old));
        table.remove(old);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1300)), None);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1321)), Some(near));
        table.remove(near);
        assert_eq!(expired(&mut table, Timestamp::from_secs(5121)), Some(new));
    }

    #[test]
    fn finds_what_was_inserted_and_not_what_was_removed() {
        let mut table = FlowTable::new(&settings(), 1);
        let all: Vec<_> = (0..5000).map(|number| insert(&mut table, number, 1000, Held(None))).collect();
        for (number, index) in (0..).zip(&all) {
            assert_eq!(find(&table, number), Some(*index));
        }
        for index in all.iter().step_by(3) {
            assert!(table.remove(*index).is_some());
            assert!(table.remove(*index).is_none());
        }
        for (number, index) in (0..).zip(&all) {
            assert_eq!(find(&table, number), (number % 3 != 0).then_some(*index), "{number}");
        }
        assert_eq!(table.len(), 5000 - 1667);
        assert_eq!(find(&table, 9999), None);
    }

    #[test]
    fn ends_idle_flows_and_keeps_busy_ones() {
        let mut table = FlowTable::new(&settings(), 1);
        let idle = insert(&mut table, 1, 1000, Held(None));
        let busy = insert(&mut table, 2, 1000, Held(None));
        assert_eq!(expired(&mut table, Timestamp::from_secs(1119)), None);
        table.flow_mut(busy).unwrap().last = Timestamp::from_secs(1100);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1121)), Some(idle));
        table.remove(idle);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1121)), None);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1221)), Some(busy));
        table.remove(busy);
        assert_eq!(expired(&mut table, Timestamp::from_secs(999_999)), None);
        assert!(table.is_empty());
    }

    /// However the clock goes on, a flow ends where it is over, and by the end of the tick after that of its deadline.
    #[test]
    fn however_the_clock_leaps_flows_end_when_they_are_over() {
        for timeout in [Duration::from_mins(2), Duration::from_hours(1), Duration::from_hours(24)] {
            let mut table = FlowTable::new(&FlowSettings { idle_timeout: timeout, ..settings() }, 1);
            let tick = table.tick;
            let mut chance = 7_u64;
            let mut chance = |below: u64| {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (chance >> 33) % below
            };
            let (mut now, mut number, mut ended) = (1000, 0, 0);
            for _ in 0..20_000 {
                now += [0, 1, tick, timeout.as_secs() + 1, BUCKETS * tick, 9 * BUCKETS * tick + 7][chance(6) as usize];
                while let Some(index) = expired(&mut table, Timestamp::from_secs(now)) {
                    let flow = table.remove(index).unwrap();
                    assert!(flow.last.as_secs() + timeout.as_secs() < now);
                    ended += 1;
                }
                let least = Timestamp::from_secs(now.saturating_sub(timeout.as_secs() + tick));
                assert!(table.indices().filter_map(|index| table.flow(index)).all(|flow| flow.last >= least));
                number += 1;
                let index = insert(&mut table, number, now, Held((chance(2) == 0).then_some(Rank::Noted)));
                if chance(3) == 0 {
                    table.flow_mut(index).unwrap().last = Timestamp::from_secs(now + chance(timeout.as_secs()));
                }
            }
            assert!(ended > 15_000, "{ended}");
        }
    }

    #[test]
    fn after_a_leap_flows_of_every_rank_end_however_many_begin_meanwhile() {
        let mut table = FlowTable::new(&settings(), 1);
        for number in 0..20_000 {
            insert(&mut table, number, 1000, Held(None));
        }
        let tunnel = insert(&mut table, 20_000, 1000, Held(Some(Rank::Tunnel)));
        let (mut due, mut now) = (Vec::with_capacity(32), 1000 + 2 * BUCKETS);
        for number in 0..20_000 / 64 {
            now += 1;
            for another in 0..32 {
                insert(&mut table, 30_000 + number * 32 + another, now, Held(None));
            }
            let mut budget = 128;
            loop {
                table.expired(Timestamp::from_secs(now), &mut due, &mut budget);
                due.iter().for_each(|&index| assert!(table.remove(index).is_some()));
                if due.is_empty() {
                    break;
                }
            }
        }
        assert!(table.flow(tunnel).is_none());
        assert!(table.len() < 10_000, "{}", table.len());
    }

    #[test]
    fn where_timeouts_are_long_flows_stay_in_place_as_time_goes_on() {
        let mut table = FlowTable::new(&FlowSettings { idle_timeout: Duration::from_hours(24), ..settings() }, 1);
        for number in 0..1000 {
            insert(&mut table, number, 1000, Held(None));
        }
        for now in (1000..86_000).step_by(500) {
            assert_eq!(expired(&mut table, Timestamp::from_secs(now)), None);
            let (tick, head) = table.first(Rank::Plain).unwrap();
            assert!(table.is_in_place(&table.entries[head as usize], Rank::Plain, tick));
        }
    }

    #[test]
    fn a_leap_over_more_than_a_turn_ends_what_is_over_and_keeps_the_rest() {
        let mut table = FlowTable::new(&settings(), 1);
        let over = insert(&mut table, 1, 1000, Held(None));
        let leap = 1000 + 9 * BUCKETS + 7;
        let open = insert(&mut table, 2, leap, Held(Some(Rank::Tunnel)));
        let now = Timestamp::from_secs(leap + 1);
        assert_eq!(expired(&mut table, now), Some(over));
        table.remove(over);
        assert_eq!(expired(&mut table, now), None);
        assert_eq!(expired(&mut table, Timestamp::from_secs(leap + 121)), Some(open));
    }

    #[test]
    fn a_closed_flow_lingers_shortly() {
        let mut table = FlowTable::new(&settings(), 1);
        let index = insert(&mut table, 1, 1000, Held(None));
        table.close(index);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1005)), None);
        assert_eq!(expired(&mut table, Timestamp::from_secs(1006)), Some(index));
    }

    #[test]
    fn many_that_end_at_once_are_ended_in_parts() {
        let mut table = FlowTable::new(&settings(), 1);
        for number in 0..100 {
            insert(&mut table, number, 1000, Held(None));
        }
        let now = Timestamp::from_secs(1200);
        let (mut due, mut ended) = (Vec::with_capacity(16), 0);
        for _ in 0..4 {
            // 28 of 100 behind each of four batches.
            let mut budget = 28;
            loop {
                table.expired(now, &mut due, &mut budget);
                ended += due.iter().filter(|&&index| table.remove(index).is_some()).count();
                if due.is_empty() {
                    break;
                }
            }
            assert!(ended <= 28 * 4);
        }
        assert_eq!((ended, table.len()), (100, 0));
    }

    #[test]
    fn the_oldest_without_evidence_goes_first_and_a_tunnel_last() {
        let mut table = FlowTable::new(&settings(), 1);
        let tunnel = insert(&mut table, 1, 1000, Held(Some(Rank::Tunnel)));
        let evident = insert(&mut table, 2, 1001, Held(Some(Rank::Evident)));
        let older = insert(&mut table, 3, 1002, Held(None));
        let noted = insert(&mut table, 4, 1003, Held(Some(Rank::Noted)));
        let newer = insert(&mut table, 5, 1004, Held(None));
        table.flow_mut(older).unwrap().last = Timestamp::from_secs(1050);
        for expected in [noted, newer, older, evident, tunnel] {
            assert_eq!(table.oldest(Pressure::Entries), Some(expected));
            table.remove(expected);
        }
        assert_eq!(table.oldest(Pressure::Entries), None);
    }

    #[test]
    fn made_up_tunnels_do_not_push_out_one_that_was_there_before() {
        let mut table = FlowTable::new(&settings(), 1);
        let known = insert(&mut table, 1, 990, Held(Some(Rank::Tunnel)));
        table.flow_mut(known).unwrap().last = Timestamp::from_secs(1000);
        for number in 2..6 {
            insert(&mut table, number, 1000, Held(Some(Rank::Tunnel)));
        }
        // One that has a packet a second later is no end to that.
        let still_sends = insert(&mut table, 9, 1000, Held(Some(Rank::Tunnel)));
        table.flow_mut(still_sends).unwrap().last = Timestamp::from_secs(1001);
        while table.len() > 2 {
            let oldest = table.oldest(Pressure::Entries).unwrap();
            assert!(oldest != known && oldest != still_sends);
            table.remove(oldest);
            insert(&mut table, 6, 1000, Held(Some(Rank::Tunnel)));
            let newest = table.oldest(Pressure::Entries).unwrap();
            assert_ne!(newest, known);
            table.remove(newest);
        }
        table.remove(known);
        table.remove(still_sends);
        let idle = insert(&mut table, 7, 1000, Held(Some(Rank::Tunnel)));
        insert(&mut table, 8, 1001, Held(Some(Rank::Tunnel)));
        assert_eq!(table.oldest(Pressure::Entries), Some(idle), "a second longer");
    }

    #[test]
    fn evidence_found_later_saves_a_flow() {
        let mut table = FlowTable::new(&settings(), 1);
        let first = insert(&mut table, 1, 1000, Held(None));
        let second = insert(&mut table, 2, 1001, Held(None));
        table.with_tenant(first, |flow| flow.tenant.0 = Some(Rank::Tunnel));
        assert_eq!(table.oldest(Pressure::Entries), Some(second));
        assert_eq!(table.oldest(Pressure::Tenants), Some(first));
    }

    #[test]
    fn memory_stays_within_its_bound() {
        let mut settings = settings();
        settings.memory_octets = 1 << 20;
        let mut table = FlowTable::new(&settings, 1);
        for number in 0..50_000 {
            while let Some(pressure) = table.pressure() {
                let oldest = table.oldest(pressure).unwrap();
                table.remove(oldest);
            }
            insert(&mut table, number, 1000 + u64::from(number) / 100, Held((number % 3 == 0).then_some(Rank::Noted)));
            assert!(table.octets() <= 1 << 20, "{}", table.octets());
        }
        assert!(table.len() > 2000);
    }

    #[test]
    fn labels_and_opener_are_kept_with_the_flow() {
        let mut table = FlowTable::new(&settings(), 1);
        let index = insert(&mut table, 1, 1000, Held(None));
        let flow = table.flow_mut(index).unwrap();
        assert_eq!((flow.mpls_labels(), flow.opener()), ([None, None], Opener::First));
        flow.set_mpls_label(Direction::Reverse, Some(0xf_ffff));
        flow.set_opener(Opener::Unknown);
        assert_eq!((flow.mpls_labels(), flow.opener()), ([None, Some(0xf_ffff)], Opener::Unknown));
        assert!(!flow.set_fin(Direction::Forward));
        assert!(flow.set_fin(Direction::Reverse));
    }

    #[test]
    fn a_flow_that_changes_its_rank_goes_with_its_equals() {
        let mut table = FlowTable::<Held>::new(&settings(), 1);
        let tunnel = insert(&mut table, 1, 0, Held(Some(Rank::Tunnel)));
        let noted = insert(&mut table, 2, 5, Held(None));
        table.with_tenant(noted, |flow| flow.tenant = Held(Some(Rank::Noted)));
        assert_eq!(table.oldest(Pressure::Tenants), Some(noted), "not the tunnel {tunnel:?}");
    }
}
