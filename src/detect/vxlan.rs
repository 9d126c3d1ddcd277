//! Turns UDP payloads into evidence of VXLAN (RFC 7348 5), its group policy extension (draft-smith-vxlan-group-policy 2.1)
//! and VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe 3), on any port.
//!
//! | offset | octets | VXLAN | VXLAN-GPE |
//! |---|---|---|---|
//! | 0 | 1 | flags: 0x08, a network identifier is there | 0x08, 0x30 version (zero), 0x04 next protocol |
//! | 1 | 3 | reserved (group policy: flags and group) | reserved (2), next protocol (1) |
//! | 4 | 3 | network identifier (VNI) | network identifier (VNI) |
//! | 7 | 1 | reserved | reserved |
//! | 8 | | Ethernet frame | IPv4 (1), IPv6 (2), Ethernet (3), a service header before them (4, RFC 8300 2) |
//!
//! Receivers ignore reserved bits and senders set them, so the header itself says little: one flag. The frame inside says the
//! rest: its EtherType, and an IP header whose length and checksum are right, or ARP's constants. Random octets pass once in
//! 2^41 as IPv4 (flag 1, EtherType 16, version 4, checksum 16, length 4 or more), once in 2^36 as IPv6, once in 2^73 as ARP.
//! One such packet is likely, two are certain.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::u32_at;

/// VXLAN and VXLAN-GPE over UDP on any port.
#[derive(Debug)]
pub struct Vxlan;

static INNER: Code = Code {
    name: "vxlan.inner",
    meaning: "a VXLAN header with a frame inside that checks out; value: network identifier (VNI)",
    clause: "RFC 7348 5",
    phase: Phase::Stateless,
};

static GPE_INNER: Code = Code {
    name: "vxlan.gpe_inner",
    meaning: "a VXLAN-GPE header with the packet inside that its next protocol names; value: network identifier (VNI)",
    clause: "draft-ietf-nvo3-vxlan-gpe 3.1",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "vxlan",
    protocols: &[Protocol::Vxlan],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets("....11.. .. .. 01"),
        Begin::Octets("....11.. .. .. 02"),
        Begin::Octets("....11.. .. .. 04"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 81 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 86 dd"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 a8"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 4."),
        Begin::Octets(".. .. .. .. .. .. .. .. 01 80 c2"),
    ],
    recognises: "network flag and a frame inside that checks out; VXLAN-GPE with IP, Ethernet or a service header",
    specification: "RFC 7348, draft-ietf-nvo3-vxlan-gpe",
    chance: "around IPv4: 2^-41 a packet, IPv6: 2^-36, ARP: 2^-73",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "a network that carries neither IP, ARP, MPLS, LLDP nor spanning tree (MACsec inside, for one)",
    codes: &[&INNER, &GPE_INNER],
};

const NETWORK: u8 = 0x08;
const NEXT_PROTOCOL: u8 = 0x04;
const VERSION: u8 = 0x30;
const HEADER: usize = 8;

impl Detector for Vxlan {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let &[flags, .., next, _, _, _, _] = segment.payload.first_chunk::<HEADER>().unwrap_or(&[0; HEADER]);
        if flags & NETWORK == 0 || segment.carrier != Carrier::Udp {
            return;
        }
        let inside = segment.payload.get(HEADER..).unwrap_or_default();
        let len = segment.payload_len.saturating_sub(HEADER as u32);
        let (code, bits) = if let Some(bits) = overlay::ethernet(inside, len) {
            (&INNER, bits)
        } else if flags & (NEXT_PROTOCOL | VERSION) == NEXT_PROTOCOL
            && let Some(bits) = gpe(next, inside, len)
        {
            (&GPE_INNER, bits)
        } else {
            return;
        };
        let network = u32_at(segment.payload, 4).unwrap_or_default() >> 8;
        let (identity, value) = (network.into(), network.into());
        overlay::add(&Share { protocol: Protocol::Vxlan, code, bits, identity, value }, segment, findings);
    }
}

/// What the next protocol names.
fn gpe(next: u8, inside: &[u8], len: u32) -> Option<u32> {
    const NAMED: u32 = 6;
    match next {
        1 => Some(NAMED + overlay::ipv4(inside, len, Fit::Padded)?),
        2 => Some(NAMED + overlay::ipv6(inside, len, Fit::Padded)?),
        4 => {
            // RFC 8300 2.2: the length in words is six bits, the next protocol the fourth octet, numbered alike.
            let &[first, second, _, next] = inside.first_chunk()?;
            let header = usize::from(second & 0x3f) * 4;
            let packet = inside.get(header..)?;
            let packet_len = len.checked_sub(header as u32)?;
            let bits = match next {
                1 => overlay::ipv4(packet, packet_len, Fit::Padded)?,
                2 => overlay::ipv6(packet, packet_len, Fit::Padded)?,
                3 => overlay::ethernet(packet, packet_len)?,
                _ => return None,
            };
            (first >> 6 == 0 && header >= 8).then_some(NAMED + bits)
        }
        _ => None,
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
        let level = |confidence| Some((Protocol::Vxlan, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let vxlan = |header: [u8; 8], inside: &[u8]| [&header[..], inside].concat();
        let plain = [0x08, 0, 0, 0, 0, 0, 42, 0];
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let ethernet = frame(0x0800, &four);
        let whole = vxlan(plain, &ethernet);
        let long = [&whole[..], &[0; 40]].concat();
        let mut wrong = whole.clone();
        wrong[8 + 14 + 10] ^= 1;
        let service = [&[0x0f, 0xc2, 1, 1, 0, 0, 1, 255][..], &four].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(plain, 9), None),
            ("one packet", vec![(Forward, whole.clone())], likely),
            ("one way", series(whole.clone(), 2), certain),
            ("both ways", vec![(Forward, whole.clone()), (Reverse, whole.clone())], certain),
            ("one octet short", series(&whole[..whole.len() - 1], 9), None),
            ("too long to be padding", series(long, 9), None),
            ("a wrong checksum", series(wrong, 9), None),
            ("IPv6 inside", vec![(Forward, vxlan(plain, &frame(0x86dd, &six)))], likely),
            ("ARP inside", vec![(Forward, vxlan(plain, &frame(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1])))], likely),
            ("spanning tree inside", series(vxlan(plain, &[&[1, 0x80, 0xc2, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 38, 0x42, 0x42, 3][..], &[0; 35]].concat()), 2), certain),
            ("reserved bits, group policy", series(vxlan([0x88, 0x08, 0, 9, 0, 0, 42, 1], &ethernet), 2), certain),
            ("no network flag", series(vxlan([0, 0, 0, 0, 0, 0, 42, 0], &ethernet), 9), None),
            ("Geneve with 32 octets of options", series(vxlan([0x08, 0, 0x65, 0x58, 0, 0, 42, 0], &[&[0; 32][..], &ethernet].concat()), 9), None),
            ("GPE, IPv4", series(vxlan([0x0c, 0, 0, 1, 0, 0, 42, 0], &four), 2), certain),
            ("GPE, IPv6", series(vxlan([0x0c, 0, 0, 2, 0, 0, 42, 0], &six), 3), certain),
            ("GPE, Ethernet", series(vxlan([0x0c, 0, 0, 3, 0, 0, 42, 0], &ethernet), 2), certain),
            ("GPE, service header", series(vxlan([0x0c, 0, 0, 4, 0, 0, 42, 0], &service), 2), certain),
            ("GPE, IPv6 called IPv4", series(vxlan([0x0c, 0, 0, 1, 0, 0, 42, 0], &six), 9), None),
            ("GPE, another version", series(vxlan([0x1c, 0, 0, 1, 0, 0, 42, 0], &four), 9), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Vxlan, &segments), expected, "{name}");
        }
    }

    #[test]
    fn a_snap_length_that_cuts_the_inner_header() {
        let whole = [&[0x08, 0, 0, 0, 0, 0, 42, 0][..], &frame(0x0800, &ipv4_packet(80))].concat();
        let mut next = whole.clone();
        next[8 + 14 + 5] += 1;
        let cut = [&whole, &next].map(|octets| Segment { payload: &octets[..34], ..udp(Forward, octets) });
        assert_eq!(best(&Vxlan, &cut), Some((Protocol::Vxlan, Confidence::Certain)));
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Vxlan, trials(), |octets, number| {
            octets[..8].copy_from_slice(&[0x08 | (number as u8 & 4), 0, 0, (number >> 3) as u8 % 5, 0, 0, 42, 0]);
        });
        assert_eq!(taken, 0);
    }
}
