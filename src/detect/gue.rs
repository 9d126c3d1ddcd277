//! Turns UDP payloads into evidence of generic UDP encapsulation (GUE, draft-ietf-intarea-gue 3, 4) and of IP packets bare in
//! UDP (foo over UDP; GUE's variant 1), on any port.
//!
//! | offset | octets | GUE, variant 0 | variant 1 |
//! |---|---|---|---|
//! | 0 | 1 | variant (2 bits, 0), C: control (1 bit), length of the fields in words (5 bits) | an IP packet |
//! | 1 | 1 | IP protocol number of what is inside | |
//! | 2 | 2 | flags, zero without fields | |
//! | 4 | | fields, then what is inside: IPv4 (4), IPv6 (41), GRE (47) and others | |
//!
//! What is inside must check out and end with the datagram. A bare IPv4 packet is chance once in 2^36 (version 4, checksum 16,
//! length 16) and likely, a second one certain. A bare IPv6 packet has no checksum (2^-29 with its length, next header, hop
//! limit and addresses): it takes two to be likely. Teredo's addresses (RFC 4380 2.6) are left to Teredo.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::u16_at;

/// GUE's variant 0 over UDP on any port.
#[derive(Debug)]
pub struct Gue;

/// IP packets bare in UDP on any port.
#[derive(Debug)]
pub struct Fou;

static GUE_INNER: Code = Code {
    name: "gue.inner",
    meaning: "a GUE header with the packet inside that its protocol names; value: IP protocol number",
    clause: "draft-ietf-intarea-gue 3.1",
    phase: Phase::Stateless,
};

static FOU_INNER: Code = Code {
    name: "fou.inner",
    meaning: "an IP packet that fills the datagram and checks out; value: IP version",
    clause: "draft-ietf-intarea-gue 4",
    phase: Phase::Stateless,
};

static GUE_ABOUT: About = About {
    name: "gue",
    protocols: &[Protocol::Gue],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("000..... 04"), Begin::Octets("000..... 29")],
    recognises: "a header and the IP packet inside that it names",
    specification: "draft-ietf-intarea-gue",
    chance: "a header: 2^-11, and an IP packet that fills it: 2^-29 and less",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "control messages, transforms, and transport protocols inside",
    codes: &[&GUE_INNER],
};

static FOU_ABOUT: About = About {
    name: "fou",
    protocols: &[Protocol::Fou],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("4."), Begin::Octets("6.")],
    recognises: "IP packets bare in UDP: foo over UDP, GUE's variant 1, TUN devices over UDP",
    specification: "draft-ietf-intarea-gue",
    chance: "IPv4: 2^-36 a packet; IPv6: 2^-29, several in a row",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "which software it is; foo over UDP around anything but IP",
    codes: &[&FOU_INNER],
};

impl Detector for Gue {
    fn about(&self) -> &'static About {
        &GUE_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let (Some(&[first, protocol]), Some(flags)) = (segment.payload.first_chunk(), u16_at(segment.payload, 2))
        else {
            return;
        };
        // Variant 0, data.
        if first >> 5 != 0 || segment.carrier != Carrier::Udp || (first == 0 && flags != 0) {
            return;
        }
        let next = 4 + usize::from(first & 0x1f) * 4;
        let inside = segment.payload.get(next..).unwrap_or_default();
        let len = segment.payload_len.saturating_sub(next as u32);
        let content = match protocol {
            4 => overlay::ipv4(inside, len, Fit::Exact),
            41 => overlay::ipv6(inside, len, Fit::Exact),
            _ => return,
        };
        let Some(content) = content else { return };
        let (identity, value) = (overlay::hosts(inside), protocol.into());
        // The protocol, which agrees with the version.
        let bits = 8 + content;
        overlay::add(&Share { protocol: Protocol::Gue, code: &GUE_INNER, bits, identity, value }, segment, findings);
    }
}

impl Detector for Fou {
    fn about(&self) -> &'static About {
        &FOU_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let version = segment.payload.first().map_or(0, |first| first >> 4);
        if !matches!(version, 4 | 6) || segment.carrier != Carrier::Udp {
            return;
        }
        let Some(bits) = overlay::ip(segment.payload, segment.payload_len, Fit::Exact) else { return };
        if version == 6 && is_teredo(segment.payload) {
            return;
        }
        let (identity, value) = (overlay::hosts(segment.payload), version.into());
        overlay::add(&Share { protocol: Protocol::Fou, code: &FOU_INNER, bits, identity, value }, segment, findings);
    }
}

/// RFC 4380 2.6, 5.2.1: addresses of `2001::/32`, or link-local ones with a cone bit, which only Teredo puts in UDP.
fn is_teredo(packet: &[u8]) -> bool {
    let begins = |at: usize, prefix: &[u8]| packet.get(at..).is_some_and(|octets| octets.starts_with(prefix));
    begins(8, &[0x20, 0x01, 0, 0]) || begins(24, &[0x20, 0x01, 0, 0]) || begins(8, &[0xfe, 0x80])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    #[test]
    fn gue_cases() {
        let level = |confidence| Some((Protocol::Gue, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let gue = |head: &[u8], inside: &[u8]| [head, inside].concat();
        let whole = gue(&[0, 4, 0, 0], &four);
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(&whole[..4], 9), None),
            ("one packet", vec![(Forward, whole.clone())], likely),
            ("one way", series(whole.clone(), 2), certain),
            ("both ways", vec![(Forward, whole.clone()), (Reverse, whole.clone())], certain),
            ("one octet short", series(&whole[..whole.len() - 1], 9), None),
            ("one octet long", series([&whole[..], &[0]].concat(), 9), None),
            ("IPv6", series(gue(&[0, 41, 0, 0], &six), 2), certain),
            ("a field", series(gue(&[1, 4, 0x80, 0, 9, 9, 9, 9], &four), 2), certain),
            ("control", series(gue(&[0x20, 4, 0, 0], &four), 9), None),
            ("IPv6 called IPv4", series(gue(&[0, 4, 0, 0], &six), 9), None),
            ("GRE in UDP", series(gue(&[0, 0, 8, 0], &four), 9), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Gue, &segments), expected, "{name}");
        }
    }

    #[test]
    fn fou_cases() {
        let level = |confidence| Some((Protocol::Fou, confidence));
        let (possible, likely, certain) =
            (level(Confidence::Possible), level(Confidence::Likely), level(Confidence::Certain));
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let mut teredo = six.clone();
        teredo[8..12].copy_from_slice(&[0x20, 1, 0, 0]);
        // A DNS query of 41 octets whose identifier looks like a version: its one question, like a length of 1.
        let query = [&[0x60, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0x20; 29]].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one packet", vec![(Forward, four.clone())], likely),
            ("one way", series(four.clone(), 2), certain),
            ("both ways", vec![(Forward, four.clone()), (Reverse, four.clone())], certain),
            ("one octet short", series(&four[..27], 9), None),
            ("one octet long", series([&four[..], &[0]].concat(), 9), None),
            ("IPv6, once", vec![(Forward, six.clone())], possible),
            ("IPv6, twice", series(six.clone(), 2), likely),
            ("IPv6, three times", series(six.clone(), 3), certain),
            ("Teredo", series(teredo, 9), None),
            ("DNS", series(query, 9), None),
            ("BitTorrent's hash table", series(b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe", 9), None),
            ("SIP", series([&b"OPTIONS sip:a@b SIP/2.0\r\n"[..], &[0x20; 400]].concat(), 9), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Fou, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let gue = taken_by_chance(&Gue, trials(), |octets, number| {
            octets[..4].copy_from_slice(&[0, if number % 2 == 0 { 4 } else { 41 }, 0, 0]);
        });
        let fou = taken_by_chance(&Fou, trials(), |octets, number| {
            octets[0] = if number % 2 == 0 { 0x45 } else { 0x60 };
        });
        // Octets that begin like IPv6 pass once in 2^25, and are possible, no more.
        assert!(gue + fou <= 2 + trials() as usize / 10_000_000, "{gue}, {fou}");
    }
}
