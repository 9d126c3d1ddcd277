//! Turns payloads of IP protocol 137 and of UDP into evidence of MPLS in IP (RFC 4023 3) and MPLS in UDP (RFC 7510 3).
//!
//! | bits | field, for each entry of the label stack (RFC 3032 2.1) |
//! |---|---|
//! | 20 | label |
//! | 3 | traffic class |
//! | 1 | bottom of stack |
//! | 8 | time to live, not zero |
//!
//! Behind at most four entries stands an IP packet, or an Ethernet frame with or without a control word (RFC 4448 4.6), which
//! must check out and end with the payload. Almost any octets are a label, so only that counts: random octets pass once in
//! 2^37 as IPv4 (version 4, checksum 16, length 16, bottom 1), once in 2^28 as IPv6, which alone is not enough.
//! Headers of other overlays read as labels as well: this detector comes after theirs, and is silent where they spoke.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::u32_at;

/// MPLS in IP, IP protocol 137.
#[derive(Debug)]
pub struct MplsInIp;

/// MPLS in UDP on any port.
#[derive(Debug)]
pub struct MplsInUdp;

static IP_INNER: Code = Code {
    name: "mpls.ip_inner",
    meaning: "a label stack in IP with a packet under it that checks out; value: top label",
    clause: "RFC 4023 3",
    phase: Phase::Stateless,
};

static UDP_INNER: Code = Code {
    name: "mpls.udp_inner",
    meaning: "a label stack in UDP with a packet under it that checks out; value: top label",
    clause: "RFC 7510 3",
    phase: Phase::Stateless,
};

static IP_ABOUT: About = About {
    name: "mpls-in-ip",
    protocols: &[Protocol::MplsInIp],
    carriers: &[CarrierKind::Ip(137)],
    begins: &[Begin::Any],
    recognises: "a label stack with an IP packet or Ethernet frame under it that checks out",
    specification: "RFC 4023",
    chance: "around IPv4: 2^-37 a packet, IPv6: 2^-28; the protocol number besides",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "pseudowires that are not Ethernet; stacks of more than four labels",
    codes: &[&IP_INNER],
};

static UDP_ABOUT: About = About {
    name: "mpls-in-udp",
    protocols: &[Protocol::MplsInUdp],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets(".. .. .......1 .. 4."),
        Begin::Octets(".. .. .......1 .. 6."),
        Begin::Octets(".. .. .......0 .. .. .. .......1 .. 4."),
        Begin::Octets(".. .. .......0 .. .. .. .......1 .. 6."),
        Begin::Octets(".. .. .. .. .. .. .......0 .. .. .. .......1 .. 4."),
        Begin::Octets(".. .. .. .. .. .. .......0 .. .. .. .......1 .. 6."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .......0 .. .. .. .......1 .. 4."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .......0 .. .. .. .......1 .. 6."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 81 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 86 dd"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 a8"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 4."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 81 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 86 dd"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 a8"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 4."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 81 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 86 dd"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 a8"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 4."),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 08 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 81 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 86 dd"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 a8"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 88 4."),
    ],
    recognises: "a label stack with an IP packet or Ethernet frame under it that checks out, several times",
    specification: "RFC 7510",
    chance: "around IPv4: 2^-37 a packet, IPv6: 2^-28, several in a row",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "pseudowires that are not Ethernet; stacks of more than four labels; MPLS in DTLS",
    codes: &[&UDP_INNER],
};

impl Detector for MplsInIp {
    fn about(&self) -> &'static About {
        &IP_ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if matches!(segment.carrier, Carrier::Ip { protocol: 137, .. }) {
            // The protocol number is MPLS's alone.
            stack(Protocol::MplsInIp, &IP_INNER, 8, segment, findings);
        }
    }
}

impl Detector for MplsInUdp {
    fn about(&self) -> &'static About {
        &UDP_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        // Headers of Geneve, GRE, GTP and others read as labels too, and say more.
        let is_other = || {
            let mut evidence = findings.evidence().iter();
            evidence.any(|found| found.protocol != Protocol::MplsInUdp && found.confidence >= Confidence::Likely)
        };
        if segment.carrier == Carrier::Udp && !is_other() {
            stack(Protocol::MplsInUdp, &UDP_INNER, 0, segment, findings);
        }
    }
}

fn stack(protocol: Protocol, code: &'static Code, number: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let Some(content) = overlay::mpls(segment.payload, segment.payload_len, Fit::Exact) else { return };
    let label = u64::from(u32_at(segment.payload, 0).unwrap_or_default() >> 12);
    // Four depths to look at.
    let bits = content + number - 2;
    overlay::add(&Share { protocol, code, bits, identity: label, value: label }, segment, findings);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{frame, series, taken_by_chance};
    use crate::detect::tests_support::{best, segment, trials, udp};
    use crate::flow::Direction::{Forward, Reverse};

    #[test]
    fn cases() {
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let bottom = [0x03, 0xe8, 0x11, 64];
        let whole = [&bottom[..], &four].concat();
        let long = [&whole[..], &[0]].concat();
        let two = [&[0x03, 0xe9, 0x10, 64][..], &bottom, &four].concat();
        let wire = [&bottom[..], &[0; 4], &frame(0x0800, &four)].concat();
        let old = [&[0x03, 0xe8, 0x11, 0][..], &four].concat();
        let v6 = [&bottom[..], &six].concat();
        let (possible, likely, certain) =
            (Some(Confidence::Possible), Some(Confidence::Likely), Some(Confidence::Certain));
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<_>, _, _)> = vec![
            ("empty", vec![(Forward, vec![])], None, None),
            ("a probe", series(&[0; 20][..], 5), None, None),
            ("label only", series(&bottom[..], 5), None, None),
            ("one packet", vec![(Forward, whole[..].to_vec())], likely, possible),
            ("one way", series(&whole[..], 2), certain, certain),
            ("both ways", vec![(Forward, whole[..].to_vec()), (Reverse, whole[..].to_vec())], certain, likely),
            ("one octet short", series(&whole[..whole.len() - 1], 5), None, None),
            ("one octet long", series(&long[..], 5), None, None),
            ("two labels", series(&two[..], 2), certain, certain),
            ("Ethernet behind a control word", series(&wire[..], 2), certain, certain),
            ("no hop to live", series(&old[..], 5), None, None),
            ("IPv6", series(&v6[..], 3), certain, certain),
            ("GRE in UDP", series(&[0, 0, 8, 0, 0x45, 0][..], 5), None, None),
        ];
        for (name, packets, in_ip, in_udp) in cases {
            let carrier = Carrier::Ip { protocol: 137, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&MplsInIp, &segments), in_ip.map(|level| (Protocol::MplsInIp, level)), "{name}");
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&MplsInUdp, &segments), in_udp.map(|level| (Protocol::MplsInUdp, level)), "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&MplsInUdp, trials(), |octets, number| {
            octets[..5].copy_from_slice(&[0x03, 0xe8, 0x11, 64, if number % 2 == 0 { 0x45 } else { 0x60 }]);
        });
        // Octets that begin like IPv6 pass once in 2^25, and are possible, no more.
        assert!(taken <= 1 + trials() as usize / 10_000_000, "{taken}");
    }
}
