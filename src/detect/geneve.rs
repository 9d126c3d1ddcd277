//! Turns UDP payloads into evidence of Geneve (RFC 8926 3.4), on any port.
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | version (2 bits, zero), length of the options in words (6 bits) |
//! | 1 | 1 | O: control packet, C: critical options, reserved (6 bits) |
//! | 2 | 2 | protocol type: 0x6558 Ethernet, 0x0800 IPv4, 0x86dd IPv6 |
//! | 4 | 3 | network identifier (VNI) |
//! | 7 | 1 | reserved |
//! | 8 | | options: class (2), type (1), length in words (5 bits); then what the protocol type names |
//!
//! The options must fill their length exactly, and the packet that the type names must check out where they end. Random
//! octets pass once in 2^54 around Ethernet (version 2, type 16, EtherType 14, checksum 16, version and length 6 or more),
//! once in 2^43 around IPv4, once in 2^46 around IPv6. One such packet is likely, two are certain.

use super::overlay::{self, ETHERTYPE, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::u32_at;

/// Geneve over UDP on any port.
#[derive(Debug)]
pub struct Geneve;

static INNER: Code = Code {
    name: "geneve.inner",
    meaning: "a Geneve header with the packet inside that its protocol type names; value: network identifier (VNI)",
    clause: "RFC 8926 3.4",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "geneve",
    protocols: &[Protocol::Geneve],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets("00...... .. 08 00"),
        Begin::Octets("00...... .. 65 58"),
        Begin::Octets("00...... .. 86 dd"),
    ],
    recognises: "options that fill their length and a packet inside that checks out",
    specification: "RFC 8926",
    chance: "around a frame: 2^-54 a packet, IPv4: 2^-43, IPv6: 2^-46",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "control packets without a packet inside",
    codes: &[&INNER],
};

const HEADER: usize = 8;

impl Detector for Geneve {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let &[first, _, high, low, ..] = segment.payload.first_chunk::<HEADER>().unwrap_or(&[0; HEADER]);
        let kind = u16::from_be_bytes([high, low]);
        if !matches!(kind, 0x6558 | 0x0800 | 0x86dd) || first >> 6 != 0 || segment.carrier != Carrier::Udp {
            return;
        }
        let options = usize::from(first & 0x3f) * 4;
        let Some(inside) = segment.payload.get(HEADER + options..) else { return };
        let Some(len) = segment.payload_len.checked_sub((HEADER + options) as u32) else { return };
        if !segment.payload.get(HEADER..HEADER + options).is_some_and(are_options) {
            return;
        }
        let content = match kind {
            0x0800 => overlay::ipv4(inside, len, Fit::Padded),
            0x86dd => overlay::ipv6(inside, len, Fit::Padded),
            _ => overlay::ethernet(inside, len),
        };
        let Some(content) = content else { return };
        let network = u32_at(segment.payload, 4).unwrap_or_default() >> 8;
        let (identity, value) = (network.into(), network.into());
        let share = Share { protocol: Protocol::Geneve, code: &INNER, bits: ETHERTYPE + content, identity, value };
        overlay::add(&share, segment, findings);
    }
}

/// RFC 8926 3.5: options follow each other, each four octets and its length in words.
fn are_options(mut octets: &[u8]) -> bool {
    while let Some(&[_, _, _, length]) = octets.first_chunk() {
        match octets.get(4 + usize::from(length & 0x1f) * 4..) {
            Some(rest) => octets = rest,
            None => return false,
        }
    }
    octets.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{frame, series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Geneve, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let geneve = |first: u8, kind: u16, options: &[u8], inside: &[u8]| {
            [&[first, 0][..], &kind.to_be_bytes(), &[0, 0, 42, 0], options, inside].concat()
        };
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let ethernet = frame(0x0800, &four);
        let whole = geneve(0, 0x6558, &[], &ethernet);
        let option = [1, 2, 3, 1, 9, 9, 9, 9];
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(&whole[..8], 9), None),
            ("one packet", vec![(Forward, whole.clone())], likely),
            ("one way", series(whole.clone(), 2), certain),
            ("both ways", vec![(Forward, whole.clone()), (Reverse, whole.clone())], certain),
            ("one octet short", series(&whole[..whole.len() - 1], 9), None),
            ("too long to be padding", series([&whole[..], &[0; 40]].concat(), 9), None),
            ("an option", series(geneve(2, 0x6558, &option, &ethernet), 2), certain),
            ("an option that overruns", series(geneve(1, 0x6558, &option[..4], &ethernet), 2), None),
            ("IPv4", series(geneve(0, 0x0800, &[], &four), 2), certain),
            ("IPv6", series(geneve(0, 0x86dd, &[], &six), 2), certain),
            ("version 1", series(geneve(0x40, 0x6558, &[], &ethernet), 9), None),
            ("VXLAN", series([&[8, 0, 0, 0, 0, 0, 42, 0][..], &ethernet].concat(), 9), None),
            ("GRE in UDP", series([&[0, 0, 0x65, 0x58][..], &ethernet].concat(), 9), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Geneve, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Geneve, trials(), |octets, number| {
            let kind: u16 = [0x6558, 0x0800, 0x86dd][number as usize % 3];
            octets[..8].copy_from_slice(&[0, 0, (kind >> 8) as u8, kind as u8, 0, 0, 42, 0]);
        });
        assert_eq!(taken, 0);
    }
}
