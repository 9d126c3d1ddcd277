//! Remembers which flow a fragmented datagram belongs to, so that its later fragments, which have no ports, count there.
//!
//! A fixed number of datagrams, each set of four holding those whose hash falls into it: a flood of fragments pushes out
//! older datagrams and costs no memory. Later fragments that come before their first one wait as an [`Orphan`].

use std::time::Duration;

use crate::flow::{FlowKey, HashSecrets, Sender};
use crate::time::Timestamp;
use crate::wire::{InterfaceId, ParsedPacket};

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
}

/// The datagrams whose fragments are under way.
#[derive(Debug)]
pub struct Fragments {
    secrets: HashSecrets,
    vlan_in_key: bool,
    /// Empty until the first fragment comes.
    entries: Vec<Option<Entry>>,
}

impl Fragments {
    /// None yet.
    #[must_use]
    pub fn new(seed: u64, vlan_in_key: bool) -> Self {
        Self { secrets: HashSecrets::new(seed), vlan_in_key, entries: Vec::new() }
    }

    /// Takes a first fragment and its flow; gives back what waited for it, and what it pushed out.
    pub fn first(&mut self, packet: &ParsedPacket<'_>, id: u32, key: FlowKey, sender: Sender) -> [Option<Orphan>; 2] {
        let (tag, _, _) = self.tag(packet, id);
        let entry = Entry { tag, at: packet.at, content: Content::Known(key, sender) };
        match self.place(tag, packet.at) {
            Some(place) => {
                let old = place.replace(entry);
                match old {
                    Some(Entry { tag: same, content: Content::Waiting(orphan), .. }) if same == tag => {
                        [Some(orphan), None]
                    }
                    Some(Entry { content: Content::Waiting(orphan), .. }) => [None, Some(orphan)],
                    _ => [None, None],
                }
            }
            None => [None, None],
        }
    }

    /// Takes a later fragment: its flow where known, else it waits. Gives back what it pushed out.
    pub fn later(&mut self, packet: &ParsedPacket<'_>, id: u32) -> (Datagram, Option<Orphan>) {
        let (tag, portless, sender) = self.tag(packet, id);
        let orphan = Orphan {
            key: portless,
            sender,
            interface: packet.interface,
            packets: 1,
            octets: u64::from(packet.wire_len),
            first: packet.at,
            last: packet.at,
        };
        let Some(place) = self.place(tag, packet.at) else { return (Datagram::Known(portless, sender), None) };
        match place {
            Some(Entry { tag: same, content: Content::Known(key, sender), .. }) if *same == tag => {
                (Datagram::Known(*key, *sender), None)
            }
            Some(Entry { tag: same, content: Content::Waiting(waiting), .. }) if *same == tag => {
                waiting.packets += 1;
                waiting.octets += u64::from(packet.wire_len);
                waiting.last = waiting.last.max(packet.at);
                (Datagram::Waiting, None)
            }
            _ => {
                let old = place.replace(Entry { tag, at: packet.at, content: Content::Waiting(orphan) });
                let pushed_out = match old {
                    Some(Entry { content: Content::Waiting(orphan), .. }) => Some(orphan),
                    _ => None,
                };
                (Datagram::Waiting, pushed_out)
            }
        }
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

    fn later() -> ParsedPacket<'static> {
        packet_between("198.51.100.1", "198.51.100.2", 17)
    }

    #[test]
    fn later_fragments_find_the_flow_of_the_first() {
        let mut fragments = Fragments::new(3, true);
        let first = packet([198, 51, 100, 1], 5000, [198, 51, 100, 2], 1194, 17);
        let (key, sender) = FlowKey::of(&first, true);
        assert_eq!(fragments.first(&first, 7, key, sender), [None, None]);
        assert_eq!(fragments.later(&later(), 7), (Datagram::Known(key, sender), None));
        assert_eq!(fragments.later(&later(), 8).0, Datagram::Waiting, "another datagram");
    }

    #[test]
    fn later_fragments_wait_for_the_first() {
        let mut fragments = Fragments::new(3, true);
        assert_eq!(fragments.later(&later(), 7).0, Datagram::Waiting);
        assert_eq!(fragments.later(&later(), 7).0, Datagram::Waiting);
        let first = packet([198, 51, 100, 1], 5000, [198, 51, 100, 2], 1194, 17);
        let (key, sender) = FlowKey::of(&first, true);
        let [waited, pushed_out] = fragments.first(&first, 7, key, sender);
        assert_eq!(waited.map(|orphan| (orphan.packets, orphan.octets)), Some((2, 120)));
        assert_eq!(pushed_out, None);
        assert_eq!(fragments.drain().count(), 0);
    }

    #[test]
    fn a_flood_of_fragments_loses_none_and_grows_nothing() {
        let mut fragments = Fragments::new(3, true);
        let mut pushed_out = 0;
        for id in 0..100_000 {
            pushed_out += fragments.later(&later(), id).1.map_or(0, |orphan| orphan.packets);
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
                let _ = fragments.later(&ParsedPacket { at: Timestamp::from_secs(u64::from(id) / 2), ..later() }, id);
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
        let _ = fragments.first(&first, 7, key, sender);
        let mut late = later();
        late.at = Timestamp::from_secs(60);
        assert_eq!(fragments.later(&late, 7).0, Datagram::Waiting);
    }
}
