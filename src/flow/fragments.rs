//! Remembers which flow a fragmented datagram belongs to, so that its later fragments, which have no ports, count there.
//!
//! A fixed number of datagrams, each set of four holding those whose hash falls into it: a flood of fragments pushes out
//! older datagrams and costs no memory. Later fragments that come before their first one wait as an [`Orphan`].

use std::time::Duration;

use crate::flow::{FlowKey, HashSecrets, Sender};
use crate::time::Timestamp;
use crate::wire::{Fragment, InterfaceId, ParsedPacket};

const SETS: usize = 1024;
const WAYS: usize = 4;

/// A datagram's fragments come within this time of each other (RFC 791 3.2 suggests 15 s, RFC 8200 4.5 allows 60 s).
const LIFETIME: Duration = Duration::from_secs(30);

/// Later fragments whose first one has not come: counted, to be given to a flow at the latest when they are pushed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The flow without ports that takes them if the first fragment never comes.
    pub key: FlowKey,
    /// Who sent them.
    pub sender: Sender,
    /// Where the first of them was seen.
    pub interface: InterfaceId,
    /// How many.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// Time of the first of them.
    pub first: Timestamp,
    /// Time of the latest.
    pub last: Timestamp,
}

/// What is known of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// Its first fragment told the flow.
    Known(FlowKey, Sender),
    /// Only later fragments came so far; this packet was added to them.
    Waiting,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Known(FlowKey, Sender),
    Waiting(Orphan),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u64,
    at: Timestamp,
    content: Content,
    ranges: Ranges,
}

/// Octets of a datagram that came, as ranges apart from each other; more than `RANGES` of them are not kept.
#[derive(Clone, Copy, Debug, Default)]
struct Ranges {
    /// First octet, and the one behind the last; empty ones are free.
    known: [(u32, u32); RANGES],
}

const RANGES: usize = 6;

impl Ranges {
    /// Adds a fragment's; whether some of them had come before (RFC 5722 3 forbids it; a duplicate does it, too).
    fn add(&mut self, fragment: Fragment) -> bool {
        let (mut start, mut end) = (u32::from(fragment.offset), u32::from(fragment.offset) + u32::from(fragment.len));
        let mut overlaps = false;
        for range in &mut self.known {
            if range.0 == range.1 || range.1 < start || range.0 > end {
                continue;
            }
            overlaps |= range.1 > start && range.0 < end;
            (start, end) = (start.min(range.0), end.max(range.1));
            *range = (0, 0);
        }
        if let Some(free) = self.known.iter_mut().find(|range| range.0 == range.1) {
            *free = (start, end);
        }
        overlaps
    }
}

/// The datagrams whose fragments are under way.
#[derive(Debug)]
pub struct Fragments {
    secrets: HashSecrets,
    vlan_in_key: bool,
    /// Empty until the first fragment comes.
    entries: Vec<Option<Entry>>,
    overlaps: u64,
}

impl Fragments {
    /// None yet.
    #[must_use]
    pub fn new(seed: u64, vlan_in_key: bool) -> Self {
        Self { secrets: HashSecrets::new(seed), vlan_in_key, entries: Vec::new(), overlaps: 0 }
    }

    /// Fragments that brought octets of their datagram that had come before.
    #[must_use]
    pub const fn overlaps(&self) -> u64 {
        self.overlaps
    }

    /// Takes a first fragment and its flow; gives back what waited for it, and what it pushed out.
    pub fn first(
        &mut self,
        packet: &ParsedPacket<'_>,
        fragment: Fragment,
        key: FlowKey,
        sender: Sender,
    ) -> [Option<Orphan>; 2] {
        let (tag, _, _) = self.tag(packet, fragment.id);
        let Some(old) = self.note(tag, fragment, packet.at, Content::Known(key, sender)) else { return [None, None] };
        match old {
            (is_own, Content::Waiting(orphan)) if is_own => [Some(orphan), None],
            (_, Content::Waiting(orphan)) => [None, Some(orphan)],
            (_, Content::Known(..)) => [None, None],
        }
    }

    /// Takes a later fragment: its flow where known, else it waits (inside a tunnel it is a flow without ports at once, for
    /// what waits knows no tunnel). Gives back what it pushed out.
    pub fn later(&mut self, packet: &ParsedPacket<'_>, fragment: Fragment) -> (Datagram, Option<Orphan>) {
        let (tag, portless, sender) = self.tag(packet, fragment.id);
        let orphan = Orphan {
            key: portless,
            sender,
            interface: packet.interface,
            packets: 1,
            octets: u64::from(packet.wire_len),
            first: packet.at,
            last: packet.at,
        };
        let content = if packet.inside == 0 { Content::Waiting(orphan) } else { Content::Known(portless, sender) };
        let datagram = |content| match content {
            Content::Known(key, sender) => Datagram::Known(key, sender),
            Content::Waiting(_) => Datagram::Waiting,
        };
        match self.note(tag, fragment, packet.at, content) {
            Some((true, before)) => {
                let joined = match before {
                    Content::Known(..) => before,
                    Content::Waiting(waiting) => Content::Waiting(Orphan {
                        packets: waiting.packets + 1,
                        octets: waiting.octets + orphan.octets,
                        last: waiting.last.max(packet.at),
                        ..waiting
                    }),
                };
                if let Some(entry) = self.place(tag, packet.at) {
                    entry.iter_mut().for_each(|entry| entry.content = joined);
                }
                (datagram(joined), None)
            }
            Some((false, Content::Waiting(pushed_out))) => (datagram(content), Some(pushed_out)),
            _ => (datagram(content), None),
        }
    }

    /// Writes into a datagram's place; gives back what stood there, and whether it was the datagram's own.
    fn note(&mut self, tag: u64, fragment: Fragment, at: Timestamp, content: Content) -> Option<(bool, Content)> {
        let place = self.place(tag, at)?;
        let old = place.take();
        let own = old.filter(|entry| entry.tag == tag && at.since(entry.at) <= LIFETIME);
        let mut ranges = own.map_or_else(Ranges::default, |entry| entry.ranges);
        let overlaps = ranges.add(fragment);
        *place = Some(Entry { tag, at: own.map_or(at, |entry| entry.at), content, ranges });
        self.overlaps += u64::from(overlaps);
        old.map(|old| (own.is_some(), old.content))
    }

    /// Everything that still waits, in the order of its coming: the table's order hangs on the secret.
    pub fn drain(&mut self) -> impl Iterator<Item = Orphan> + use<> {
        let waiting = |entry: Entry| match entry.content {
            Content::Waiting(orphan) => Some(orphan),
            Content::Known(..) => None,
        };
        let mut orphans: Vec<_> = std::mem::take(&mut self.entries).into_iter().flatten().filter_map(waiting).collect();
        orphans.sort_by_key(|orphan| (orphan.first, orphan.last, orphan.octets));
        orphans.into_iter()
    }

    /// The datagram's tag, and the flow without ports between its endpoints.
    /// A datagram is named by addresses, protocol and identification (RFC 791 3.2, RFC 8200 4.5).
    fn tag(&self, packet: &ParsedPacket<'_>, id: u32) -> (u64, FlowKey, Sender) {
        let (portless, sender) = FlowKey::portless(packet, self.vlan_in_key);
        let salt = u64::from(id) << 1 | u64::from(sender == Sender::High);
        (portless.hash(&self.secrets) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15), portless, sender)
    }

    /// The place of a tag: its own, else a free or outlived one, else the oldest of its set.
    fn place(&mut self, tag: u64, now: Timestamp) -> Option<&mut Option<Entry>> {
        if self.entries.is_empty() {
            self.entries = vec![None; SETS * WAYS];
        }
        let start = (tag >> 20) as usize % SETS * WAYS;
        let set = self.entries.get_mut(start..start + WAYS)?;
        let outlived = |entry: &Entry| now.since(entry.at) > LIFETIME;
        let own = set.iter().position(|entry| entry.is_some_and(|entry| entry.tag == tag && !outlived(&entry)));
        let choice =
            own.or_else(|| (0..WAYS).min_by_key(|&way| set.get(way).copied().flatten().map(|entry| entry.at)))?;
        set.get_mut(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::{packet, packet_between};
    use crate::wire::FragmentPosition;

    fn first_of(id: u32) -> Fragment {
        Fragment { id, position: FragmentPosition::First, offset: 0, len: 40 }
    }

    fn later_of(id: u32) -> Fragment {
        Fragment { id, position: FragmentPosition::Later, offset: 40, len: 40 }
    }

    fn later() -> ParsedPacket<'static> {
        packet_between("198.51.100.1", "198.51.100.2", 17)
    }

    #[test]
    fn later_fragments_find_the_flow_of_the_first() {
        let mut fragments = Fragments::new(3, true);
        let first = packet([198, 51, 100, 1], 5000, [198, 51, 100, 2], 1194, 17);
        let (key, sender) = FlowKey::of(&first, true);
        assert_eq!(fragments.first(&first, first_of(7), key, sender), [None, None]);
        assert_eq!(fragments.later(&later(), later_of(7)), (Datagram::Known(key, sender), None));
        assert_eq!(fragments.later(&later(), later_of(8)).0, Datagram::Waiting, "another datagram");
    }

    #[test]
    fn later_fragments_wait_for_the_first() {
        let mut fragments = Fragments::new(3, true);
        assert_eq!(fragments.later(&later(), later_of(7)).0, Datagram::Waiting);
        assert_eq!(fragments.later(&later(), later_of(7)).0, Datagram::Waiting);
        let first = packet([198, 51, 100, 1], 5000, [198, 51, 100, 2], 1194, 17);
        let (key, sender) = FlowKey::of(&first, true);
        let [waited, pushed_out] = fragments.first(&first, first_of(7), key, sender);
        assert_eq!(waited.map(|orphan| (orphan.packets, orphan.octets)), Some((2, 120)));
        assert_eq!(pushed_out, None);
        assert_eq!(fragments.drain().count(), 0);
    }

    #[test]
    fn a_flood_of_fragments_loses_none_and_grows_nothing() {
        let mut fragments = Fragments::new(3, true);
        let mut pushed_out = 0;
        for id in 0..100_000 {
            pushed_out += fragments.later(&later(), later_of(id)).1.map_or(0, |orphan| orphan.packets);
        }
        assert_eq!(fragments.entries.len(), SETS * WAYS);
        let waiting: u64 = fragments.drain().map(|orphan| orphan.packets).sum();
        assert_eq!(pushed_out + waiting, 100_000);
    }

    #[test]
    fn orphans_leave_in_the_order_of_their_coming() {
        for secret in 0..20 {
            let mut fragments = Fragments::new(secret, true);
            for id in 0..40 {
                let _ = fragments
                    .later(&ParsedPacket { at: Timestamp::from_secs(u64::from(id) / 2), ..later() }, later_of(id));
            }
            let times: Vec<_> = fragments.drain().map(|orphan| orphan.first).collect();
            assert_eq!(times.len(), 40);
            assert!(times.is_sorted(), "secret {secret}");
        }
    }

    #[test]
    fn an_identification_used_again_much_later_is_another_datagram() {
        let mut fragments = Fragments::new(3, true);
        let first = packet([198, 51, 100, 1], 5000, [198, 51, 100, 2], 1194, 17);
        let (key, sender) = FlowKey::of(&first, true);
        let _ = fragments.first(&first, first_of(7), key, sender);
        let mut late = later();
        late.at = Timestamp::from_secs(60);
        assert_eq!(fragments.later(&late, later_of(7)).0, Datagram::Waiting);
    }

    #[test]
    fn octets_that_came_before_are_counted() {
        let part = |offset, len| Fragment { id: 1, position: FragmentPosition::Later, offset, len };
        #[rustfmt::skip]
        let cases: &[(&str, &[(u16, u16)], u64)] = &[
            ("in order", &[(0, 8), (8, 8), (16, 8)], 0),
            ("backwards, with gaps", &[(80, 8), (40, 8), (0, 8), (8, 32), (48, 32)], 0),
            ("a duplicate", &[(0, 8), (8, 8), (8, 8)], 1),
            ("one octet", &[(0, 9), (8, 8)], 1),
            ("around another", &[(8, 8), (0, 32)], 1),
            ("teardrop", &[(0, 36), (24, 4)], 1),
            ("empty", &[(0, 8), (8, 0), (8, 8)], 0),
            ("too many gaps", &[(0, 8), (16, 8), (32, 8), (48, 8), (64, 8), (80, 8), (96, 8), (112, 8)], 0),
        ];
        for (name, parts, overlaps) in cases {
            let mut ranges = Ranges::default();
            let found = parts.iter().filter(|(offset, len)| ranges.add(part(*offset, *len))).count() as u64;
            assert_eq!(found, *overlaps, "{name}");
        }
        let mut fragments = Fragments::new(3, true);
        for _ in 0..3 {
            let _ = fragments.later(&later(), later_of(7));
        }
        assert_eq!(fragments.overlaps(), 2);
    }
}
