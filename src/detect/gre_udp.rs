//! Turns UDP payloads into evidence of GRE in UDP (RFC 8086 3), on any port.
//!
//! | bits | field |
//! |---|---|
//! | 1, 1, 1, 1 | C, 0, K, S: a checksum, a key, a sequence number follow, 4 octets each (RFC 2784, RFC 2890) |
//! | 9 | reserved, zero |
//! | 3 | version, zero |
//! | 16 | protocol type (EtherType) |
//!
//! What the protocol type names must check out behind the header: random octets pass once in 2^63 around IPv4 (13 zero bits,
//! type 16, version 4, checksum 16, length 14). One such packet is likely, two are certain.

use super::overlay::{self, ETHERTYPE, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::{u16_at, u32_at};

/// GRE in UDP on any port.
#[derive(Debug)]
pub struct GreInUdp;

static INNER: Code = Code {
    name: "gre.udp_inner",
    meaning: "a GRE header in UDP with the packet inside that its protocol type names; value: protocol type",
    clause: "RFC 8086 3",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "gre-in-udp",
    protocols: &[Protocol::GreInUdp],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets(".0..0000 00 08 00"),
        Begin::Octets(".0..0000 00 65 58"),
        Begin::Octets(".0..0000 00 86 dd"),
        Begin::Octets(".0..0000 00 88 47"),
        Begin::Octets(".0..0000 00 88 48"),
    ],
    recognises: "a GRE header and a packet inside that checks out",
    specification: "RFC 8086",
    chance: "a header: 2^-25, and an inner packet that checks out: 2^-20 and less",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "GRE in DTLS; a TUN device's packet information in UDP looks the same",
    codes: &[&INNER],
};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;

impl Detector for GreInUdp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let (Some(flags), Some(kind)) = (u16_at(segment.payload, 0), u16_at(segment.payload, 2)) else { return };
        if flags & !(CHECKSUM | KEY | SEQUENCE) != 0 || segment.carrier != Carrier::Udp {
            return;
        }
        let key_at = if flags & CHECKSUM == 0 { 4 } else { 8 };
        let next = key_at + 4 * (flags & (KEY | SEQUENCE)).count_ones() as usize;
        let inside = segment.payload.get(next..).unwrap_or_default();
        let len = segment.payload_len.saturating_sub(next as u32);
        let content = match kind {
            0x0800 => overlay::ipv4(inside, len, Fit::Exact),
            0x86dd => overlay::ipv6(inside, len, Fit::Exact),
            0x6558 => overlay::ethernet(inside, len),
            0x8847 | 0x8848 => overlay::mpls(inside, len, Fit::Exact),
            _ => return,
        };
        let Some(content) = content else { return };
        let key = if flags & KEY == 0 { None } else { u32_at(segment.payload, key_at) };
        if let Some(own) = findings.gre_key.get_mut(segment.direction as usize) {
            *own = key.or(*own);
        }
        let identity = u64::from(kind) << 32 | u64::from(key.unwrap_or_default());
        let share = Share {
            protocol: Protocol::GreInUdp,
            code: &INNER,
            bits: ETHERTYPE + content,
            identity,
            value: kind.into(),
        };
        overlay::add(&share, segment, findings);
    }
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
        let level = |confidence| Some((Protocol::GreInUdp, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let gre = |flags: u16, kind: u16, extra: usize, inside: &[u8]| {
            [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &vec![0; extra], inside].concat()
        };
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let whole = gre(0, 0x0800, 0, &four);
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(&whole[..4], 9), None),
            ("one packet", vec![(Forward, whole.clone())], likely),
            ("one way", series(whole.clone(), 2), certain),
            ("both ways", vec![(Forward, whole.clone()), (Reverse, whole.clone())], certain),
            ("one octet short", series(&whole[..whole.len() - 1], 9), None),
            ("one octet long", series([&whole[..], &[0]].concat(), 9), None),
            ("IPv6", series(gre(0, 0x86dd, 0, &six), 2), certain),
            ("Ethernet", series(gre(0, 0x6558, 0, &frame(0x0800, &four)), 2), certain),
            ("checksum, key, sequence", series(gre(0xb000, 0x0800, 12, &four), 2), certain),
            ("IPv6 called IPv4", series(gre(0, 0x0800, 0, &six), 9), None),
            ("version 1", series(gre(1, 0x0800, 0, &four), 9), None),
            ("Geneve", series(gre(0, 0x6558, 4, &frame(0x0800, &four)), 9), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&GreInUdp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&GreInUdp, trials(), |octets, number| {
            let kind: u16 = [0x6558, 0x0800, 0x86dd][number as usize % 3];
            octets[..4].copy_from_slice(&[0, 0, (kind >> 8) as u8, kind as u8]);
        });
        // Octets that begin like IPv6 pass once in 2^30, and are possible, no more.
        assert_eq!(taken, 0);
    }
}
