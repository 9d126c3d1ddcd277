//! Turns UDP datagrams into evidence of ZeroTier (ZeroTierOne `node/Packet.hpp`; docs.zerotier.com, "Protocol").
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 8 | packet identifier: counts on with each packet sent to anyone, or (AES-GMAC-SIV) a nonce |
//! | 8 | 5 | receiver's address |
//! | 13 | 5 | sender's address; 0xff in its first octet: a fragment |
//! | 18 | 1 | flags (2 bits), cipher (3 bits): 0 none, 1 Salsa20/12, 2 trusted path, 3 AES-GMAC-SIV; hops (3 bits) |
//! | 19 | 8 | MAC |
//! | 27 | 1 | encrypted from here on, but for HELLO: flags (3 bits), verb (5 bits) |
//!
//! HELLO, verb 1, goes in clear, for it brings the sender's key:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 28 | 5 | protocol's version (4 to 13 so far), the software's major, minor, revision |
//! | 33 | 8 | milliseconds since 1970 |
//! | 41 | 5 | sender's address once more |
//! | 46 | 1 | type of identity: 0 |
//! | 47 | 65 | public key (64), octets of the private key: 0 |
//!
//! Addresses are five octets of a hash of the key. A HELLO fixes cipher, verb, version, two octets of the time, the
//! repeated address and the type: below 2^-70 by chance; a packet back between the same two addresses (2^-80) makes it
//! certain. Other packets show only their addresses: ten octets that stay the same (2^-80 a packet) between an
//! identifier and a MAC that never do, and in the other direction the same ten with the halves swapped. That swap is
//! certain after three packets each way. One direction alone is likely after eight, by which time every octet of the
//! MAC must have changed; none of them may name another cipher than those two that all but HELLO use (2^-2 each), and
//! no octet of the addresses may be zero, as numbers have them. Since hashes do not look like numbers or text, an
//! address of fewer than three different octets is none (a real one: once in 10^6).

use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::u64_at;

/// ZeroTier over UDP on any port.
#[derive(Debug)]
pub struct Zerotier;

static HELLO: Code = Code {
    name: "zerotier.hello",
    meaning: "a HELLO in clear, with the sender's address both in the header and in its identity; value: that address",
    clause: "ZeroTierOne Packet.hpp, VERB_HELLO",
    phase: Phase::Handshake,
};

static ANSWER: Code = Code {
    name: "zerotier.answer",
    meaning: "a packet back between the two addresses of a HELLO; value: sender's address",
    clause: "ZeroTierOne Packet.hpp, Packet format",
    phase: Phase::Handshake,
};

static ADDRESSES: Code = Code {
    name: "zerotier.addresses",
    meaning: "packets with one pair of addresses between an identifier and a MAC that are never the same; value: sender's address",
    clause: "ZeroTierOne Packet.hpp, Packet format",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "zerotier",
    protocols: &[Protocol::Zerotier],
    carriers: &[CarrierKind::Udp],
    // A packet straight from its sender under one of the two ciphers, or a HELLO's verb and version; a flow that is known
    // may show others.
    begins: &[
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. ..0.1000"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 01 000....."),
    ],
    recognises: "HELLO by the sender's address in header and identity; any packets by their pair of addresses, swapped on the way back",
    specification: "ZeroTierOne Packet.hpp (protocol versions 4 to 13)",
    chance: "HELLO: 2^-70; the same pair of addresses: 2^-80 a packet",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "relaying over TCP; trusted paths, whose MAC is a constant; between roots, flows in which no pair of addresses prevails; mid-stream, flows of which every packet was relayed",
    codes: &[&HELLO, &ANSWER, &ADDRESSES],
};

/// Header and verb.
const SHORTEST: u32 = 28;
/// A HELLO's identity and all before it.
const SHORTEST_HELLO: u32 = 112;
/// Packets of one pair before one direction is possible, and likely.
const POSSIBLE_HITS: u32 = 4;
const LIKELY_HITS: u32 = 8;
/// The same in either direction before it is certain.
const CERTAIN_HITS: u32 = 3;

impl Detector for Zerotier {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp || segment.payload_len < SHORTEST {
            return;
        }
        let Some(header) = Header::of(segment.payload) else { return };
        match header.cipher {
            0 if header.is_hello(segment) => hello(&header, segment, findings),
            1 | 3 => series(&header, segment, findings),
            _ => refute(&header, segment, findings),
        }
    }
}

struct Header {
    /// The lowest octets of the packet identifier, of which one at least differs from packet to packet.
    identifier: u64,
    receiver: u64,
    sender: u64,
    cipher: u8,
    mac: u64,
}

impl Header {
    #[inline]
    fn of(payload: &[u8]) -> Option<Self> {
        let [_, _, _, _, _, a, b, c, addresses @ ..] = payload else { return None };
        let (receiver, sender) = (addresses.get(..5)?, addresses.get(5..10)?);
        let cipher = addresses.get(10)? >> 3 & 7;
        // 0xff begins no address: it marks fragments (ZT_ADDRESS_RESERVED_PREFIX).
        let right = receiver != sender
            && receiver.first() != Some(&0xff)
            && sender.first() != Some(&0xff)
            && looks_hashed(receiver)
            && looks_hashed(sender);
        let mac = u64_at(payload, 19)?;
        right.then(|| Self {
            identifier: u64::from(u32::from_be_bytes([0, *a, *b, *c])),
            receiver: number(receiver),
            sender: number(sender),
            cipher,
            mac,
        })
    }

    fn is_hello(&self, segment: &Segment<'_>) -> bool {
        let octets = segment.payload;
        matches!(octets.get(27..29), Some([1, 4..=31]))
            // Six octets of milliseconds last until the year 10889.
            && octets.get(33..35) == Some(&[0, 0])
            && octets.get(41..46).is_some_and(|address| number(address) == self.sender)
            && octets.get(46) == Some(&0)
            && segment.payload_len >= SHORTEST_HELLO
            // May be behind the snap length.
            && octets.get(111).is_none_or(|private| *private == 0)
    }
}

/// Five octets as a number.
fn number(address: &[u8]) -> u64 {
    address.iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// Whether there are three different octets at least.
#[inline]
fn looks_hashed(address: &[u8]) -> bool {
    let Some((first, rest)) = address.split_first() else { return false };
    let mut others = rest.iter().filter(|octet| *octet != first);
    others.next().is_some_and(|second| others.any(|octet| octet != second))
}

fn hello(header: &Header, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::Zerotier, segment.direction.opposite());
    let slot = findings.slot(SlotId::Zerotier, segment.direction);
    let is_another = slot.hits > 0 && is_of(slot.a, slot.b, header) && slot.content != header.mac;
    take(slot, header);
    let confidence = if there.hits > 0 && is_of(there.a, there.b, &header.swapped()) {
        Confidence::Certain
    } else if is_another {
        Confidence::Likely
    } else {
        Confidence::Possible
    };
    findings.originator.get_or_insert(segment.direction);
    findings.add(segment, Protocol::Zerotier, &HELLO, confidence, header.sender);
}

impl Header {
    /// As the other side sends.
    const fn swapped(&self) -> Self {
        Self { receiver: self.sender, sender: self.receiver, ..*self }
    }
}

/// Whether a slot's numbers are these addresses: `a` holds the receiver over the identifier's low octets, `b` the sender.
const fn is_of(a: u64, b: u64, header: &Header) -> bool {
    a >> 24 == header.receiver && b == header.sender
}

/// One more of the same, or the first of its pair.
fn take(slot: &mut super::Slot, header: &Header) {
    if slot.hits == 0 || !is_of(slot.a, slot.b, header) {
        (slot.hits, slot.c, slot.misses) = (0, 0, 0);
    } else {
        slot.c |= changed(slot.content, header.mac);
    }
    (slot.a, slot.b) = (header.receiver << 24 | header.identifier, header.sender);
    slot.content = header.mac;
    slot.hits = slot.hits.saturating_add(1);
}

/// A bit for each octet that differs.
fn changed(one: u64, other: u64) -> u32 {
    (one ^ other).to_be_bytes().iter().fold(0, |bits, octet| bits << 1 | u32::from(*octet != 0))
}

/// Under no cipher and no HELLO, or under an unknown one: nothing that the pair's node sends.
fn refute(header: &Header, segment: &Segment<'_>, findings: &mut Findings) {
    let slot = findings.slot(SlotId::Zerotier, segment.direction);
    if is_of(slot.a, slot.b, header) {
        *slot = super::Slot::default();
    }
}

/// Whether an octet of the lowest five is zero.
fn has_zero(address: u64) -> bool {
    address.to_be_bytes().iter().skip(3).any(|octet| *octet == 0)
}

/// Every octet of the MAC was another once.
const ALL_CHANGED: u32 = 0xff;

fn series(header: &Header, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::Zerotier, segment.direction.opposite());
    let slot = findings.slot(SlotId::Zerotier, segment.direction);
    if slot.hits > 0 && !is_of(slot.a, slot.b, header) {
        // A root relays for others, too: the pair that prevails counts.
        slot.misses = slot.misses.saturating_add(1);
        if slot.misses > slot.hits {
            take(slot, header);
        }
        return;
    }
    if slot.hits > 0 {
        let is_same_packet = slot.content == header.mac;
        let is_fresh = slot.a & 0xff_ffff != header.identifier && changed(slot.content, header.mac).count_ones() >= 7;
        if is_same_packet {
            return;
        }
        if !is_fresh {
            // Neither identifier nor MAC repeat an octet in its place but by chance: counting starts anew.
            slot.hits = 0;
        }
    }
    take(slot, header);
    let (hits, mask) = (slot.hits, slot.c);
    let is_answered = there.hits > 0 && is_of(there.a, there.b, &header.swapped());
    if is_answered && findings.of(&HELLO, segment.direction.opposite()).is_some() {
        findings.add(segment, Protocol::Zerotier, &ANSWER, Confidence::Certain, header.sender);
        return;
    }
    let said_hello = findings.of(&HELLO, segment.direction).is_some_and(|found| found.last_value == header.sender);
    let confidence = match hits {
        CERTAIN_HITS.. if is_answered && there.hits >= CERTAIN_HITS => Confidence::Certain,
        LIKELY_HITS.. if mask == ALL_CHANGED && !has_zero(header.sender) && !has_zero(header.receiver) => {
            Confidence::Likely
        }
        _ if said_hello => Confidence::Likely,
        POSSIBLE_HITS.. => Confidence::Possible,
        _ => return,
    };
    findings.add(segment, Protocol::Zerotier, &ADDRESSES, confidence, header.sender);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    const HERE: [u8; 5] = [0x8b, 0xd5, 0x12, 0x4f, 0xd6];
    const THERE: [u8; 5] = [0x77, 0x8c, 0xde, 0x71, 0x90];

    fn packet(identifier: u64, receiver: [u8; 5], sender: [u8; 5], flags: u8) -> Vec<u8> {
        let text = ciphertext(identifier << 8 | u64::from(sender[0]), 60);
        [&(identifier << 20 | identifier).to_be_bytes()[..], &receiver, &sender, &[flags], &text].concat()
    }

    fn hello(identifier: u64, receiver: [u8; 5], sender: [u8; 5]) -> Vec<u8> {
        let mut octets = packet(identifier, receiver, sender, 0)[..27].to_vec();
        octets.extend([1, 11, 1, 8, 0, 4, 0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0]);
        octets.extend(sender);
        octets.push(0);
        octets.extend(ciphertext(identifier, 64));
        octets.extend([0, 4, 198, 51, 100, 2, 0x27, 0x09]);
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Zerotier, confidence));
        let data = |count: u64| (1..=count).map(|n| (Forward, packet(n, THERE, HERE, 8))).collect::<Vec<_>>();
        let back = |count: u64| (1..=count).map(|n| (Reverse, packet(n + 99, HERE, THERE, 8))).collect::<Vec<_>>();
        let greeting = hello(1, THERE, HERE);
        let changed = |at: usize, octet: u8| {
            let mut octets = greeting.clone();
            octets[at] = octet;
            octets
        };
        let fragment = [&packet(7, THERE, HERE, 8)[..13], &[0xff, 0x21, 0], &ciphertext(7, 60)].concat();
        let with = |receiver, sender| (1..20).map(|n| (Forward, packet(n, receiver, sender, 8))).collect::<Vec<_>>();
        // Two contributing sources of RTP stand where the addresses do, but reach into the MAC.
        let rtp = |n: u8| {
            [&[0x82, 0x60, 0, n, 0, 0, n, 1, 1, 2, 3, 4, 9, 8, 7, 6, 5, 4, 0x0b, 2][..], &ciphertext(n.into(), 99)]
                .concat()
        };
        let quic = |n: u8| [&[0x40 | n & 3][..], &ciphertext(1, 20), &ciphertext(n.into(), 99)].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", with(THERE, HERE).into_iter().map(|(way, octets)| (way, octets[..27].to_vec())).collect(), None),
            ("hello", vec![(Forward, greeting.clone())], level(Confidence::Possible)),
            ("hello, one octet short", vec![(Forward, greeting[..111].to_vec())], None),
            ("the same hello again", vec![(Forward, greeting.clone()); 5], level(Confidence::Possible)),
            ("two hellos", vec![(Forward, greeting.clone()), (Forward, hello(2, THERE, HERE))], level(Confidence::Likely)),
            ("hello and data", vec![(Forward, greeting.clone()), (Forward, packet(2, THERE, HERE, 8))], level(Confidence::Likely)),
            ("hello and its answer", vec![(Forward, greeting.clone()), (Reverse, packet(9, HERE, THERE, 8))], level(Confidence::Certain)),
            ("hello and an answer to another", vec![(Forward, greeting.clone()), (Reverse, packet(9, [1, 2, 3, 4, 5], THERE, 8))], level(Confidence::Possible)),
            ("hellos both ways", vec![(Forward, greeting.clone()), (Reverse, hello(9, HERE, THERE))], level(Confidence::Certain)),
            ("an echo", vec![(Forward, greeting.clone()), (Reverse, greeting.clone())], level(Confidence::Possible)),
            ("another's identity", vec![(Forward, changed(43, 0))], None),
            ("another verb", vec![(Forward, changed(27, 2))], None),
            ("a private key", vec![(Forward, changed(111, 64))], None),
            ("three packets", data(3), None),
            ("four packets", data(4), level(Confidence::Possible)),
            ("one way", data(9), level(Confidence::Likely)),
            ("both ways", [data(3), back(3)].concat(), level(Confidence::Certain)),
            ("both ways, not swapped", [data(7), (1..8).map(|n| (Reverse, packet(n, THERE, HERE, 8))).collect()].concat(), level(Confidence::Possible)),
            ("fragments between", data(9).into_iter().flat_map(|packet| [packet, (Forward, fragment.clone())]).collect(), level(Confidence::Likely)),
            ("fragments only", vec![(Forward, fragment.clone()); 20], None),
            ("the same packet", vec![(Forward, packet(1, THERE, HERE, 8)); 20], None),
            ("an identifier that stays", (1..20).map(|n| (Forward, [&packet(1, THERE, HERE, 8)[..19], &ciphertext(n, 60)].concat())).collect(), None),
            ("ciphers that change", (0..20).map(|n| (Forward, packet(n + 1, THERE, HERE, (n as u8 % 4) << 3))).collect(), None),
            ("an address with a zero", with([0x77, 0, 0xde, 0x71, 0x90], HERE), level(Confidence::Possible)),
            ("an unknown cipher", (1..20).map(|n| (Forward, packet(n, THERE, HERE, 0x20))).collect(), None),
            ("an address of one octet", with([0, 0, 0, 0, 1], HERE), None),
            ("addresses that change", (1..20).map(|n| (Forward, packet(n, [1, 2, 3, 4, n as u8 + 9], HERE, 8))).collect(), None),
            ("trusted path", (1..20).map(|n| (Forward, [&packet(n, THERE, HERE, 16)[..19], &[7; 50]].concat())).collect(), None),
            ("RTP of two sources", (1..20).map(|n| (Forward, rtp(n))).collect(), level(Confidence::Possible)),
            ("QUIC", (1..20).map(|n| (Forward, quic(n))).collect(), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Zerotier, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        // Addresses that stay the same are the hardest: only what is around them can refute.
        let found = alarms(&Zerotier, Carrier::Udp, [9993, 9993], |noise| {
            let len = 28 + noise.below(200) as usize;
            let mut octets = noise.octets(len);
            match noise.below(3) {
                0 => {
                    octets[8..13].copy_from_slice(&HERE);
                    octets[18] = 0;
                    octets[27] = 1;
                }
                1 => octets[13..18].copy_from_slice(&HERE),
                _ => {}
            }
            octets
        });
        assert_eq!(found, None);
    }
}
