//! Turns UDP datagrams into evidence of fastd (fastd documentation, "Protocol", <https://fastd.readthedocs.io/>; `handshake.h`
//! of fastd v22).
//!
//! A handshake packet:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 12 | v22 and later, sent as a second copy: an empty control header of `L2TPv3`, `c8 03 00 0c` and 8 zero octets |
//! | 0 | 1 | packet type: 1, handshake |
//! | 1 | 1 | reserved, zero |
//! | 2 | 2 | octets of all records |
//! | 4 | 4 + n | records: type (2, little-endian), length (2, little-endian), value |
//!
//! Record 0 is the handshake's type (1 request, 2 reply, 3 finish), 4 the mode, 5 the protocol's name, 6 to 9 keys. A data packet:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | packet type: 0, before v22: 2 |
//! | 1 | 1 | flags, zero |
//! | 2 | 6 | nonce: counts by 2, odd from one side and even from the other |
//! | 8 | 16 | authentication tag, then ciphertext |
//!
//! A handshake fixes 16 bits of its head, its length to the octet, and 40 bits of record 0; records that end where the packet
//! ends are rarer still: below 2^-70. Two different types, one from either side, are certain. A data packet fixes its first
//! four octets (2^-31) and, in a row, each next nonce (2^-46): steps of exactly 2 with opposite parity from both sides over
//! content that does not repeat itself make it likely; one side alone is possible, for others count by 2.

use super::sequence::{Content, Step};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u16_at, u64_at};

/// fastd on any port.
#[derive(Debug)]
pub struct Fastd;

static REQUEST: Code = Code {
    name: "fastd.request",
    meaning: "a handshake request whose records fill the packet; value: octets of the records",
    clause: "fastd documentation, Handshake",
    phase: Phase::Handshake,
};

static REPLY: Code = Code {
    name: "fastd.reply",
    meaning: "a handshake reply whose records fill the packet; value: octets of the records",
    clause: "fastd documentation, Handshake",
    phase: Phase::Handshake,
};

static FINISH: Code = Code {
    name: "fastd.finish",
    meaning: "a handshake's third packet, whose records fill it; value: octets of the records",
    clause: "fastd documentation, Handshake",
    phase: Phase::Handshake,
};

static NONCE: Code = Code {
    name: "fastd.nonce",
    meaning: "data packets whose nonces count by two, from both sides with opposite parity; value: 0 even, 1 odd",
    clause: "fastd documentation, Payload encryption; method common header",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "fastd",
    protocols: &[Protocol::Fastd],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets("00 00 00 00"),
        Begin::Octets("01 00"),
        Begin::Octets("02 00 00 00"),
        Begin::Octets("c8 03 00 0c"),
    ],
    recognises: "handshake by its records; data by nonces that count by two, odd one way and even the other",
    specification: "fastd documentation, Protocol; handshake.h",
    chance: "a handshake: 2^-70; data: 2^-31, each next nonce 2^-46",
    midstream: Some(Confidence::Likely),
    reaches: Confidence::Certain,
    out_of_sight: "mid-stream from one side only (possible); the methods null and null@l2tp, which have no nonce",
    codes: &[&REQUEST, &REPLY, &FINISH, &NONCE],
};

impl Detector for Fastd {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        match segment.payload {
            [1, 0, ..] => handshake(segment.payload, segment.payload_len, segment, findings),
            [0xc8, 3, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, packet @ ..] => {
                handshake(packet, segment.payload_len.saturating_sub(12), segment, findings);
            }
            [0 | 2, 0, 0, 0, ..] => data(segment, findings),
            _ => {}
        }
    }
}

/// What records are seen.
const MOST_RECORDS: usize = 24;
/// Types of records (fastd v22 knows 0 to 15).
const LAST_TYPE: u16 = 31;

fn handshake(octets: &[u8], len: u32, segment: &Segment<'_>, findings: &mut Findings) {
    // Record 0 comes first: type 0, one octet long.
    let [1, 0, _, _, 0, 0, 1, 0, kind @ 1..=3, rest @ ..] = octets else { return };
    let Some(records) = u16_at(octets, 2) else { return };
    if u32::from(records) + 4 != len || !fill(rest, u32::from(records).saturating_sub(5)) {
        return;
    }
    let (code, originator) = match kind {
        1 => (&REQUEST, segment.direction),
        2 => (&REPLY, segment.direction.opposite()),
        _ => (&FINISH, segment.direction),
    };
    let there = segment.direction.opposite();
    let answered = match kind {
        2 => findings.of(&REQUEST, there).is_some() || findings.of(&FINISH, there).is_some(),
        _ => findings.of(&REPLY, there).is_some(),
    };
    let several = [&REQUEST, &REPLY, &FINISH]
        .into_iter()
        .any(|other| !std::ptr::eq(other, code) && findings.of(other, segment.direction).is_some());
    let confidence = match (answered, several) {
        (true, _) => Confidence::Certain,
        (_, true) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.originator.get_or_insert(originator);
    findings.add(segment, Protocol::Fastd, code, confidence, records.into());
}

/// Whether records fill `len` octets, as far as they are captured.
fn fill(octets: &[u8], len: u32) -> bool {
    let mut offset = 0_usize;
    for _ in 0..MOST_RECORDS {
        if offset == len as usize {
            return true;
        }
        let (Some(kind), Some(value)) = (u16_at(octets, offset), u16_at(octets, offset + 2)) else {
            // Cut by the snap length behind whole records.
            return offset > 0 && octets.len() < len as usize;
        };
        offset += 4 + usize::from(value.swap_bytes());
        if kind.swap_bytes() > LAST_TYPE || offset > len as usize {
            return false;
        }
    }
    false
}

/// Nonces by two from either side before it is likely.
const LIKELY_HITS: u32 = 6;
/// From one side before it is possible.
const POSSIBLE_HITS: u32 = 4;
/// Head and tag.
const SHORTEST: u32 = 24;
/// Lost packets between two nonces: a gap of 16 packets.
const NEAR: u64 = 16;

fn data(segment: &Segment<'_>, findings: &mut Findings) {
    let Some(head) = u64_at(segment.payload, 0) else { return };
    let (kind, nonce) = (head >> 56, head & 0xffff_ffff);
    // A session ends before 2^32 packets, and begins with 2 and 3.
    if segment.payload_len < SHORTEST || nonce < 2 {
        return;
    }
    let parity = nonce & 1;
    let there = *findings.slot(SlotId::Fastd, segment.direction.opposite());
    let slot = findings.slot(SlotId::Fastd, segment.direction);
    // Type and parity are the identifier, so that each step is one of two.
    let content = Content::Encrypted(segment.payload.get(8..).unwrap_or_default());
    let step = slot.step_within(NEAR, kind << 1 | parity, nonce >> 1, content);
    let hits = slot.hits;
    let own = kind << 1 | parity;
    if step != Step::Counted || hits < POSSIBLE_HITS {
        return;
    }
    let both = hits >= LIKELY_HITS && there.hits >= LIKELY_HITS && there.a == own ^ 1;
    // The handshake itself, or one side of it, is another sign.
    let is_set_up = [&REQUEST, &REPLY, &FINISH].into_iter().any(|code| findings.of(code, segment.direction).is_some());
    let confidence = if both || is_set_up { Confidence::Likely } else { Confidence::Possible };
    findings.add(segment, Protocol::Fastd, &NONCE, confidence, parity);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn record(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind, 0, value.len() as u8, 0][..], value].concat()
    }

    fn handshake(kind: u8) -> Vec<u8> {
        let records = [
            record(0, &[kind]),
            record(3, &[1]),
            record(4, &[1]),
            record(5, b"ec25519-fhmqvc"),
            record(6, &[0x51; 32]),
        ]
        .concat();
        [&[1, 0][..], &(records.len() as u16).to_be_bytes(), &records].concat()
    }

    fn payload(kind: u8, nonce: u32) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &nonce.to_be_bytes(), &ciphertext(u64::from(nonce), 60)].concat()
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Fastd, confidence));
        let wrapped = |kind| [&[0xc8, 3, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0][..], &handshake(kind)].concat();
        let long = [handshake(1), vec![0]].concat();
        let mut overrun = handshake(1);
        overrun[11] = 0x70;
        let both = |first: u32, second: u32, step: u32| -> Vec<_> {
            (0..10)
                .flat_map(|n| [(Forward, payload(0, first + n * step)), (Reverse, payload(0, second + n * step))])
                .collect()
        };
        let stun = [&[1, 1, 0, 68, 0x21, 0x12, 0xa4, 0x42][..], &[7; 80]].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, handshake(1)[..handshake(1).len() - 1].to_vec())], None),
            ("one octet long", vec![(Forward, long)], None),
            ("a record longer than the packet", vec![(Forward, overrun)], None),
            ("a request", vec![(Forward, handshake(1)); 5], level(Confidence::Possible)),
            ("a request and its reply", vec![(Forward, handshake(1)), (Reverse, handshake(2))], level(Confidence::Certain)),
            ("behind an L2TPv3 header", vec![(Forward, wrapped(1)), (Reverse, wrapped(2))], level(Confidence::Certain)),
            ("one side of a handshake", vec![(Forward, handshake(1)), (Forward, handshake(3))], level(Confidence::Likely)),
            ("one side of a handshake and its data", std::iter::once((Reverse, handshake(2))).chain((1..9).map(|n| (Reverse, payload(0, n * 2)))).collect(), level(Confidence::Likely)),
            ("unknown type", vec![(Forward, handshake(4)); 5], None),
            ("data, both ways", both(2, 3, 2), level(Confidence::Likely)),
            ("data of the same parity", both(2, 4, 2), level(Confidence::Possible)),
            ("counting by one", both(2, 3, 1), None),
            ("data, one way", (1..12).map(|n| (Forward, payload(2, n * 2))).collect(), level(Confidence::Possible)),
            ("content that repeats itself", (1..12).map(|n| (Forward, [&payload(0, n * 2)[..8], &[7; 40]].concat())).collect(), None),
            ("a constant", vec![(Forward, payload(0, 8)); 9], None),
            ("STUN", vec![(Forward, stun); 9], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Fastd, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&Fastd, Carrier::Udp, [10_000, 40_000], |noise| {
            let len = 24 + noise.below(200) as usize;
            let mut octets = noise.octets(len);
            if noise.below(2) == 0 {
                octets[..8].copy_from_slice(&[1, 0, 0, len as u8 - 4, 0, 0, 1, 0]);
                octets[8] = 1 + noise.below(3) as u8;
            } else {
                octets[..6].fill(0);
            }
            octets
        });
        assert_eq!(found, None);
    }
}
