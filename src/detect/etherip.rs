//! Turns payloads of IP protocol 97 into evidence of EtherIP (RFC 3378 3).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 2 | version (4 bits, 3), reserved (12 bits, zero) |
//! | 2 | | Ethernet frame |
//!
//! The frame must check out. Random octets pass once in 2^52 around IPv4 (header 16, EtherType 16, checksum 16, version 4),
//! and the protocol number is EtherIP's alone. One frame is likely, two are certain: a probe of all protocol numbers sends none.

use super::overlay::{self, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};

/// EtherIP, IP protocol 97.
#[derive(Debug)]
pub struct EtherIp;

static INNER: Code = Code {
    name: "etherip.inner",
    meaning: "an EtherIP header with an Ethernet frame inside that checks out; value: octets of the frame",
    clause: "RFC 3378 3",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "etherip",
    protocols: &[Protocol::EtherIp],
    carriers: &[CarrierKind::Ip(97)],
    begins: &[Begin::Any],
    recognises: "an Ethernet frame inside that checks out",
    specification: "RFC 3378",
    chance: "around IPv4: 2^-52 a frame; the protocol number besides",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "frames that hold neither IP, ARP, MPLS, LLDP nor spanning tree",
    codes: &[&INNER],
};

impl Detector for EtherIp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if !matches!(segment.carrier, Carrier::Ip { protocol: 97, .. }) {
            return;
        }
        let Some(inside) = segment.payload.strip_prefix(&[0x30, 0]) else { return };
        let len = segment.payload_len.saturating_sub(2);
        if let Some(bits) = overlay::ethernet(inside, len) {
            let (identity, value) = (0, len.into());
            overlay::add(
                &Share { protocol: Protocol::EtherIp, code: &INNER, bits, identity, value },
                segment,
                findings,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::ipv4_packet;
    use crate::detect::overlay::tests::{frame, series};
    use crate::detect::tests_support::{best, segment};
    use crate::flow::Direction::{Forward, Reverse};

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::EtherIp, confidence));
        let whole = [&[0x30, 0][..], &frame(0x0800, &ipv4_packet(8))].concat();
        let old = [&[0x20, 0][..], &whole[2..]].concat();
        let reserved = [&[0x30, 1][..], &whole[2..]].concat();
        let long = [&whole[..], &[0; 40]].concat();
        #[rustfmt::skip]
        let cases = [
            ("empty", 97, vec![(Forward, vec![])], None),
            ("a probe", 97, vec![(Forward, vec![0; 20])], None),
            ("header only", 97, series(&whole[..2], 5), None),
            ("one frame", 97, vec![(Forward, whole[..].to_vec())], level(Confidence::Likely)),
            ("one way", 97, series(&whole[..], 2), level(Confidence::Certain)),
            ("both ways", 97, vec![(Forward, whole[..].to_vec()), (Reverse, whole[..].to_vec())], level(Confidence::Certain)),
            ("one octet short", 97, series(&whole[..whole.len() - 1], 5), None),
            ("too long to be padding", 97, series(&long[..], 5), None),
            ("version 2", 97, series(&old[..], 5), None),
            ("reserved bit", 97, series(&reserved[..], 5), None),
            ("another protocol", 98, series(&whole[..], 5), None),
        ];
        for (name, protocol, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&EtherIp, &segments), expected, "{name}");
        }
    }
}
