//! Turns UDP datagrams into evidence of Nebula (slackhq/nebula, `header/header.go`, version 1).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | version 1 (4 bits), type (4 bits): 0 handshake, 1 message, 2 receive error, 3 lighthouse, 4 test, 5 close, 6 control |
//! | 1 | 1 | subtype: 0 or 1 |
//! | 2 | 2 | reserved, zero |
//! | 4 | 4 | the receiver's index, constant; zero in the first handshake message |
//! | 8 | 8 | message counter: 1 and 2 in the handshake, then counting |
//! | 16 | | Noise handshake message, or AEAD text with a tag of 16 octets |
//!
//! The first handshake message fixes all 128 bits of the header, its answer 96 of them: one of each, from either side, is
//! certain. A header of data is chance once in 2^44 (the counter stays below 2^48); each that follows must also repeat the
//! index and count on over ciphertext that does not repeat itself (2^-107): several in one direction are likely, in both
//! certain.

use super::sequence::{Content, Step};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u32_at, u64_at};

/// Nebula on any port.
#[derive(Debug)]
pub struct Nebula;

static INITIATION: Code = Code {
    name: "nebula.initiation",
    meaning: "a first handshake message: no index yet, counter 1; value: octets of the message",
    clause: "nebula header.go, Handshake",
    phase: Phase::Handshake,
};

static RESPONSE: Code = Code {
    name: "nebula.response",
    meaning: "a second handshake message, to the initiator's index, counter 2; value: that index",
    clause: "nebula header.go, Handshake",
    phase: Phase::Handshake,
};

static COUNTER: Code = Code {
    name: "nebula.counter",
    meaning: "messages to one receiver's index whose counter moves on; value: that index",
    clause: "nebula header.go, Version 1 header",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "nebula",
    protocols: &[Protocol::Nebula],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("0001.... 0000000. 00 00")],
    recognises: "handshake by its two messages; data by index and counter",
    specification: "nebula header.go (version 1)",
    chance: "the first message: 2^-128; data: 2^-44, counting 2^-107",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "who talks through a relay (the relay's own tunnels are seen)",
    codes: &[&INITIATION, &RESPONSE, &COUNTER],
};

/// Messages that count before one direction is likely.
const LIKELY_HITS: u32 = 4;
/// The same in either direction before it is certain.
const CERTAIN_HITS: u32 = 3;
/// Far above any counter in use: Noise itself ends at 2^64 - 2, a day at a million messages a second at 2^37.
const MAX_COUNTER: u64 = 1 << 48;
/// Header and a Noise public key of 32 octets.
const SHORTEST_HANDSHAKE: u32 = 48;
/// Header and tag.
const SHORTEST_DATA: u32 = 32;

impl Detector for Nebula {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let [first @ 0x10..=0x16, 0 | 1, 0, 0, ..] = segment.payload else { return };
        if segment.carrier != Carrier::Udp {
            return;
        }
        let (Some(index), Some(counter)) = (u32_at(segment.payload, 4), u64_at(segment.payload, 8)) else { return };
        match (first & 0x0f, index, counter) {
            (0, 0, 1) if segment.payload_len >= SHORTEST_HANDSHAKE => {
                findings.add(segment, Protocol::Nebula, &INITIATION, Confidence::Possible, segment.payload_len.into());
                findings.originator.get_or_insert(segment.direction);
            }
            (0, 1.., 2) if segment.payload_len >= SHORTEST_HANDSHAKE => {
                let asked = findings.of(&INITIATION, segment.direction.opposite()).is_some();
                let confidence = if asked { Confidence::Certain } else { Confidence::Possible };
                findings.add(segment, Protocol::Nebula, &RESPONSE, confidence, index.into());
                findings.originator.get_or_insert(segment.direction.opposite());
            }
            // A receive error has neither counter nor text and says nothing of its own.
            (1 | 3..=6, 1.., 1..MAX_COUNTER) if segment.payload_len >= SHORTEST_DATA => {
                data(index, counter, segment, findings);
            }
            _ => {}
        }
    }
}

fn data(index: u32, counter: u64, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::Nebula, segment.direction.opposite());
    let slot = findings.slot(SlotId::Nebula, segment.direction);
    let text = Content::Encrypted(segment.payload.get(16..).unwrap_or_default());
    let step = slot.step(index.into(), counter, text);
    let confidence = match (step, slot.hits, there.hits) {
        (Step::Repeated | Step::Tolerated | Step::Rekeyed, ..) => return,
        // Each side draws its own index.
        (_, CERTAIN_HITS.., CERTAIN_HITS..) if there.a != u64::from(index) => Confidence::Certain,
        (_, LIKELY_HITS.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::Nebula, &COUNTER, confidence, index.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn message(kind: u8, index: u32, counter: u64, len: usize) -> Vec<u8> {
        let mut octets = vec![0x10 | kind, 0, 0, 0];
        octets.extend(index.to_be_bytes());
        octets.extend(counter.to_be_bytes());
        octets.extend(ciphertext(counter << 4 | u64::from(kind), len - octets.len()));
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Nebula, confidence));
        let (ask, answer) = (message(0, 0, 1, 231), message(0, 7, 2, 269));
        let data = |index, counter| message(1, index, counter, 84);
        let changed = |offset: usize, value: u8| {
            let mut octets = data(9, 5);
            octets[offset] = value;
            octets
        };
        let gtp = [&[0x30, 0xff, 0, 76][..], &[0, 0, 0, 9], &[0x45; 76]].concat();
        let wireguard = [&[4, 0, 0, 0, 1, 2, 3, 4, 9][..], &[0; 87]].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, message(0, 0, 1, 47)), (Forward, message(1, 9, 5, 31))], None),
            ("a header that is cut", vec![(Forward, data(9, 5)[..15].to_vec())], None),
            ("a probe", vec![(Forward, ask.clone()); 5], level(Confidence::Possible)),
            ("handshake", vec![(Forward, ask.clone()), (Reverse, answer.clone())], level(Confidence::Certain)),
            ("both from one side", vec![(Forward, ask), (Forward, answer)], level(Confidence::Possible)),
            ("one way, two messages", vec![(Forward, data(9, 5)), (Forward, data(9, 6))], level(Confidence::Possible)),
            ("one way", (5..9).map(|id| (Forward, data(9, id))).collect(), level(Confidence::Likely)),
            ("one way, one message again", vec![(Forward, data(9, 5)); 9], level(Confidence::Possible)),
            ("both ways", (5..9).flat_map(|id| [(Forward, data(9, id)), (Reverse, data(4, id))]).collect(), level(Confidence::Certain)),
            ("kinds mixed", vec![(Forward, message(3, 9, 3, 72)), (Forward, data(9, 4)), (Forward, message(4, 9, 5, 32)), (Forward, data(9, 6))], level(Confidence::Likely)),
            ("one index for both ways", (5..9).flat_map(|id| [(Forward, data(9, id)), (Reverse, data(9, id + 50))]).collect(), level(Confidence::Likely)),
            ("content that repeats itself", (5..15).map(|id| (Forward, [&data(9, id)[..16], &[7; 60]].concat())).collect(), level(Confidence::Possible)),
            ("a clock for a counter", (5..15).map(|id| (Forward, data(9, id * 1000))).collect(), level(Confidence::Possible)),
            ("indices that change", (5..20).map(|id| (Forward, data(id, u64::from(id) + 100))).collect(), level(Confidence::Possible)),
            ("version 2", vec![(Forward, changed(0, 0x21)); 4], None),
            ("unknown type", vec![(Forward, changed(0, 0x17)); 4], None),
            ("unknown subtype", vec![(Forward, changed(1, 2)); 4], None),
            ("reserved octets", vec![(Forward, changed(3, 1)); 4], None),
            ("no index", (5..9).map(|id| (Forward, data(0, id))).collect(), None),
            ("receive errors", vec![(Forward, message(2, 9, 0, 16)); 4], None),
            ("GTP-U", vec![(Forward, gtp); 4], None),
            ("WireGuard", vec![(Forward, wireguard); 4], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Nebula, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&Nebula, Carrier::Udp, [4242, 40_000], |noise| {
            let len = 32 + noise.below(200) as usize;
            let mut octets = noise.octets(len);
            octets[0] = 0x10 | noise.below(7) as u8;
            octets[1..4].fill(0);
            octets[8..12].fill(0);
            octets
        });
        assert_eq!(found, None);
    }
}
