//! Turns payloads of IP protocol 108 into evidence of IPComp (RFC 3173 3).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | next header |
//! | 1 | 1 | flags, zero |
//! | 2 | 2 | compression parameter index (CPI): 1 to 63 well-known, 256 to 61439 negotiated, then private |
//! | 4 | | compressed |
//!
//! What is compressed cannot be checked, so the constant header is, over several packets: the same next header and index are
//! chance once in 2^32 a packet. Four packets one way are likely, two both ways certain; a probe of all protocol numbers holds
//! no such header.

use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::u16_at;

/// IPComp, IP protocol 108.
#[derive(Debug)]
pub struct IpComp;

static HEADER: Code = Code {
    name: "ipcomp.header",
    meaning: "a header with a known next header, no flags and a valid parameter index; value: next header, index",
    clause: "RFC 3173 3.3",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "ipcomp",
    protocols: &[Protocol::IpComp],
    carriers: &[CarrierKind::Ip(108)],
    begins: &[Begin::Any],
    recognises: "next header and parameter index that stay the same",
    specification: "RFC 3173",
    chance: "the same header: 2^-32 a packet; the protocol number besides",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "what is inside; packets that do not compress are sent without IPComp; IPComp inside ESP is esp",
    codes: &[&HEADER],
};

/// Packets with the same header, one way.
const LIKELY_PACKETS: u32 = 4;
/// And both ways.
const CERTAIN_PACKETS: u32 = 2;

impl Detector for IpComp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if !matches!(segment.carrier, Carrier::Ip { protocol: 108, .. }) {
            return;
        }
        let (Some(&[next_header, 0]), Some(index)) = (segment.payload.first_chunk(), u16_at(segment.payload, 2)) else {
            return;
        };
        // IP in IP, TCP, UDP, ICMP, GRE, extension headers and the like.
        let known = matches!(next_header, 1 | 4 | 6 | 17 | 41 | 43 | 44 | 47 | 58 | 59 | 60 | 89 | 103 | 115 | 132);
        if !known || matches!(index, 0 | 64..=255) || segment.payload_len <= 4 {
            return;
        }
        let value = u64::from(next_header) << 16 | u64::from(index);
        let found =
            |direction| findings.of(&HEADER, direction).map_or((value, 0), |found| (found.last_value, found.count));
        let (last, count) = found(segment.direction);
        let (_, there) = found(segment.direction.opposite());
        if last != value && count < LIKELY_PACKETS {
            // Not one association: say no more than that it could be.
            findings.add(segment, Protocol::IpComp, &HEADER, Confidence::Possible, value);
            return;
        }
        let confidence = match (count + 1, there) {
            (CERTAIN_PACKETS.., CERTAIN_PACKETS..) => Confidence::Certain,
            (LIKELY_PACKETS.., _) => Confidence::Likely,
            _ => Confidence::Possible,
        };
        findings.add(segment, Protocol::IpComp, &HEADER, confidence, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, segment};
    use crate::flow::Direction::{Forward, Reverse};

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::IpComp, confidence));
        let packet = |next, flags, index: u16| [&[next, flags][..], &index.to_be_bytes(), &[0x5a; 40]].concat();
        let one = packet(4, 0, 2);
        let other = packet(4, 0, 0x1234);
        #[rustfmt::skip]
        let cases = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("a probe", vec![(Forward, vec![0; 20]); 9], None),
            ("header only", vec![(Forward, one[..4].to_vec()); 9], None),
            ("one octet short of a header", vec![(Forward, one[..3].to_vec()); 9], None),
            ("one packet", vec![(Forward, one.clone())], level(Confidence::Possible)),
            ("one way", vec![(Forward, one.clone()); 4], level(Confidence::Likely)),
            ("both ways", vec![(Forward, one.clone()), (Reverse, other.clone()), (Forward, one.clone()), (Reverse, other)], level(Confidence::Certain)),
            ("a flag", vec![(Forward, packet(4, 1, 2)); 9], None),
            ("reserved index", vec![(Forward, packet(4, 0, 64)); 9], None),
            ("unknown next header", vec![(Forward, packet(200, 0, 2)); 9], None),
            ("index that changes", (1..4).map(|index| (Forward, packet(4, 0, index))).collect(), level(Confidence::Possible)),
        ];
        for (name, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol: 108, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&IpComp, &segments), expected, "{name}");
        }
    }
}
