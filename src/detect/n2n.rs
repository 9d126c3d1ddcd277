//! Turns UDP datagrams into evidence of n2n (ntop n2n, `n2n.h` of version 1, `n2n_wire.h` of versions 2 and 3).
//!
//! | offset | octets | version 1 | versions 2 and 3 |
//! |---|---|---|---|
//! | 0 | 1 | 1 | 2, 3 |
//! | 1 | 1 | message: 1 register, 2 deregister, 3 packet, 4 register's answer | time to live |
//! | 2 | 2 | time to live, from a supernode (0 or 1) | flags: 0x20 from a supernode, 0x40 a socket within, 0x80; packet code: 1 to 10, version 3: 11 |
//! | 4 | 16, version 3: 20 | community: text, a zero octet, then anything | text, then zero octets |
//! | 20 | 12 | the sender's and the receiver's Ethernet address | version 2 and 3: depends on the code |
//! | 32 | 20 each | public and private address: family 2, padding, port, address | |
//!
//! A version 1 header fixes 25 bits of the head, a zero behind a text and two address families: 2^-50 by chance. Version 2's and 3's fix version, code (11 of 31) and the upper flags, a small time to live and the
//! zeros behind a text: 2^-30 for the longest text, less for each shorter one; random content behind it tells no more, so that
//! text of one letter is refused. What makes it likely is the same community again (2^-64 against its number) in several
//! packets, and certain the same from both sides; other text protocols that begin so would have to keep all that.

use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};

/// n2n on any port.
#[derive(Debug)]
pub struct N2n;

static REGISTER: Code = Code {
    name: "n2n.register",
    meaning: "an edge registers, or is answered, within a community; value: version",
    clause: "n2n.h, MSG_TYPE_REGISTER; n2n_wire.h, REGISTER, REGISTER_SUPER and their answers",
    phase: Phase::Handshake,
};

static PACKET: Code = Code {
    name: "n2n.packet",
    meaning: "a frame, or another message, within a community; value: version",
    clause: "n2n.h, MSG_TYPE_PACKET; n2n_wire.h, PACKET",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "n2n",
    protocols: &[Protocol::N2n],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets("01 00000... .. 0000000."),
        Begin::Octets("02 000000.. 00"),
        Begin::Octets("03 000000.. 00"),
    ],
    recognises: "header with version, code and community, the same from both sides",
    specification: "n2n.h (version 1), n2n_wire.h (versions 2 and 3)",
    chance: "2^-30 a header, 2^-50 in version 1; the same community again: 2^-64",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "header encryption (version 3, option -H); version 2 was never checked against a recording",
    codes: &[&REGISTER, &PACKET],
};

/// Packets of one community before one direction is likely.
const LIKELY_HITS: u32 = 4;
/// The same in either direction before it is certain.
const CERTAIN_HITS: u32 = 2;

impl Detector for N2n {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let [version @ 1..=3, _, _, _, letter, ..] = *segment.payload else { return };
        if segment.carrier != Carrier::Udp || !letter.is_ascii_graphic() {
            return;
        }
        let header = if version == 1 { version_1(segment) } else { version_2(version, segment) };
        let Some(header) = header else { return };
        let there = *findings.slot(SlotId::N2n, segment.direction.opposite());
        let slot = findings.slot(SlotId::N2n, segment.direction);
        if slot.a != header.community {
            slot.a = header.community;
            slot.hits = 0;
        }
        slot.hits = slot.hits.saturating_add(1);
        let confidence = match (slot.hits, if there.a == header.community { there.hits } else { 0 }) {
            // An edge that registers and is answered by name.
            (_, 1..) if header.registers => Confidence::Certain,
            (CERTAIN_HITS.., CERTAIN_HITS..) => Confidence::Certain,
            (LIKELY_HITS.., _) => Confidence::Likely,
            _ => Confidence::Possible,
        };
        let code = if header.registers { &REGISTER } else { &PACKET };
        findings.add(segment, Protocol::N2n, code, confidence, version.into());
    }
}

struct Header {
    /// A number for version and community.
    community: u64,
    registers: bool,
}

/// The shortest message of version 1: header without payload.
const SHORTEST_V1: u32 = 83;
/// IPv4, the only family of version 1's addresses.
const AF_INET: u8 = 2;

fn version_1(segment: &Segment<'_>) -> Option<Header> {
    let &[_, kind @ 1..=4, 0..=16, 0 | 1] = segment.payload.first_chunk::<4>()? else { return None };
    let community = community(1, segment.payload.get(4..20)?, false)?;
    if segment.payload_len < SHORTEST_V1 {
        return None;
    }
    // The second may be behind the snap length.
    let is_address = |at: usize| segment.payload.get(at).is_none_or(|family| *family == AF_INET);
    let is_here = segment.payload.get(32) == Some(&AF_INET);
    (is_here && is_address(52)).then_some(Header { community, registers: matches!(kind, 1 | 4) })
}

/// Version 2 and 3: header, then at least two Ethernet addresses or a cookie with one.
const SHORTEST_V2: u32 = 4 + 16 + 10;
const FLAGS: u8 = 0xe0;
/// `n2n_wire.h`: a packet is forwarded twice at most.
const MAX_TTL: u8 = 2;

fn version_2(version: u8, segment: &Segment<'_>) -> Option<Header> {
    let &[_, 0..=MAX_TTL, 0, flags] = segment.payload.first_chunk::<4>()? else { return None };
    let end = if version == 2 { 20 } else { 24 };
    let community = community(version, segment.payload.get(4..end)?, true)?;
    let code = flags & !FLAGS;
    // Version 3 put UNREGISTER_SUPER (6) between REGISTER_SUPER and its answers.
    let (most, answer) = if version == 2 { (10, 6) } else { (11, 7) };
    if !(1..=most).contains(&code) || segment.payload_len < SHORTEST_V2 {
        return None;
    }
    // REGISTER, REGISTER_ACK, REGISTER_SUPER and its answer.
    Some(Header { community, registers: matches!(code, 1 | 4 | 5) || code == answer })
}

/// Fewer letters are as good as none.
const SHORTEST_NAME: usize = 2;

/// A number for a community's name: text, ended by a zero octet, all zero behind it where the version says so.
fn community(version: u8, octets: &[u8], is_padded: bool) -> Option<u64> {
    let end = octets.iter().position(|octet| *octet == 0)?;
    let (name, padding) = octets.split_at_checked(end)?;
    let right = name.len() >= SHORTEST_NAME
        && name.iter().all(u8::is_ascii_graphic)
        && (!is_padded || padding.iter().all(|octet| *octet == 0));
    right.then(|| number_of(name) ^ u64::from(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn v1(kind: u8, community: &[u8], seed: u64) -> Vec<u8> {
        let mut octets = vec![1, kind, 0, 0];
        octets.extend(community);
        octets.resize(20, 0x7f);
        octets.extend([0xaa, 0x78, 0xe9, 0x18, 0xaf, 0x39, 0, 0, 0, 0, 0, 0]);
        for port in [0_u8, 0xbe] {
            octets.extend([2, port, 0x13, 198, 51, 100, 1]);
            octets.resize(octets.len() + 13, 0);
        }
        octets.extend(ciphertext(seed, 60));
        octets
    }

    fn later(version: u8, code: u8, community: &[u8], seed: u64) -> Vec<u8> {
        let mut octets = vec![version, 2, 0, code];
        octets.extend(community);
        octets.resize(if version == 2 { 20 } else { 24 }, 0);
        octets.extend(ciphertext(seed, 60));
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::N2n, confidence));
        let several = |of: &dyn Fn(u64) -> Vec<u8>| (1..6).map(|seed| (Forward, of(seed))).collect::<Vec<_>>();
        let stun = [&[1, 1, 0, 0x44, 0x21, 0x12, 0xa4, 0x42][..], &[0x61; 80]].concat();
        let radius = [&[2, 2, 0, 0x63][..], &ciphertext(5, 95)].concat();
        let mut family = v1(3, b"lab\0", 1);
        family[32] = 10;
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, v1(1, b"lab\0", 1)[..82].to_vec()), (Forward, later(2, 5, b"lab", 1)[..29].to_vec())], None),
            ("one packet", vec![(Forward, v1(1, b"lab\0", 1))], level(Confidence::Possible)),
            ("registration", vec![(Forward, v1(1, b"lab\0", 1)), (Reverse, v1(4, b"lab\0", 2))], level(Confidence::Certain)),
            ("of another community", vec![(Forward, v1(1, b"lab\0", 1)), (Reverse, v1(4, b"home\0", 2))], level(Confidence::Possible)),
            ("one way", several(&|seed| v1(3, b"lab\0", seed)), level(Confidence::Likely)),
            ("both ways", vec![(Forward, v1(3, b"lab\0", 1)), (Reverse, v1(3, b"lab\0", 2)), (Forward, v1(3, b"lab\0", 3)), (Reverse, v1(3, b"lab\0", 4))], level(Confidence::Certain)),
            ("communities that change", (b'a'..b'p').map(|letter| (Forward, v1(3, &[letter, letter, 0], 1))).collect(), level(Confidence::Possible)),
            ("version 2", vec![(Forward, later(2, 5, b"lab", 1)), (Reverse, later(2, 0x26, b"lab", 2))], level(Confidence::Certain)),
            ("version 2, refused", vec![(Forward, later(2, 5, b"lab", 1)), (Reverse, later(2, 0x27, b"lab", 2))], level(Confidence::Possible)),
            ("version 3", vec![(Forward, later(3, 5, b"lab", 1)), (Reverse, later(3, 0x27, b"lab", 2))], level(Confidence::Certain)),
            ("version 3, one way", several(&|seed| later(3, 3, b"lab", seed)), level(Confidence::Likely)),
            ("no name", several(&|seed| later(3, 3, b"", seed)), None),
            ("a name of one letter", several(&|seed| later(3, 3, b"l", seed)), None),
            ("a name without an end", several(&|seed| later(2, 3, b"abcdefghijklmnop", seed)), None),
            ("octets behind the name", several(&|seed| later(2, 3, b"ab\0\0c", seed)), None),
            ("unknown code", [several(&|seed| later(2, 11, b"lab", seed)), several(&|seed| later(3, 12, b"lab", seed))].concat(), None),
            ("version 4", several(&|seed| later(4, 3, b"lab", seed)), None),
            ("no IPv4 address", vec![(Forward, family); 5], None),
            ("STUN", vec![(Forward, stun); 5], None),
            ("RADIUS", vec![(Forward, radius); 5], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&N2n, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&N2n, Carrier::Udp, [7654, 40_000], |noise| {
            let len = 83 + noise.below(100) as usize;
            let mut octets = noise.octets(len);
            let head = [[1, 3, 0, 0], [2, 2, 0, 3], [3, 2, 0, 5]];
            octets[..4].copy_from_slice(&head[noise.below(3) as usize]);
            octets
        });
        assert_eq!(found, None);
    }
}
