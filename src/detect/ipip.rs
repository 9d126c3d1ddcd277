//! Turns payloads of IP protocols 4 and 41 into evidence of IP in IP: IPIP (RFC 2003), 6in4 (RFC 4213),
//! 4in6 and 6in6 (RFC 2473).
//!
//! The payload is an IP packet, header first. One whose version, length and checksum are right may be a probe, two different
//! ones make the tunnel likely, three certain.

use super::inner::{self, Inner};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};

/// IP in IP.
#[derive(Debug)]
pub struct IpInIp;

static INNER: Code = Code {
    name: "ipip.inner",
    meaning: "an inner IP header whose version, length and (IPv4) checksum are right; value: octets of the inner packet",
    clause: "RFC 2003 3, RFC 4213 3, RFC 2473 3",
    phase: Phase::Stateless,
};

static PROTOCOL: Code = Code {
    name: "ipip.protocol",
    meaning: "the IP protocol number of IP in IP, without an inner packet that checks out; value: IP protocol number",
    clause: "RFC 2003 3, RFC 4213 3, RFC 2473 3",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "ipip",
    protocols: &[Protocol::Ipip, Protocol::SixInFour, Protocol::FourInSix, Protocol::SixInSix],
    carriers: &[CarrierKind::Ip(4), CarrierKind::Ip(41)],
    begins: &[Begin::Any],
    recognises: "inner IP header with right version, length and checksum",
    specification: "RFC 2003, RFC 4213, RFC 2473",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "6to4 and ISATAP are not told apart from 6in4",
    codes: &[&INNER, &PROTOCOL],
};

impl Detector for IpInIp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let Carrier::Ip { protocol: number, outer_v6 } = segment.carrier else { return };
        let (protocol, inner) = match (number, outer_v6) {
            (4, false) => (Protocol::Ipip, inner::ipv4(segment.payload, segment.len_behind(0))),
            (4, true) => (Protocol::FourInSix, inner::ipv4(segment.payload, segment.len_behind(0))),
            (41, false) => (Protocol::SixInFour, inner::ipv6(segment.payload, segment.len_behind(0))),
            (41, true) => (Protocol::SixInSix, inner::ipv6(segment.payload, segment.len_behind(0))),
            _ => return,
        };
        match inner {
            Inner::Verified => {
                let confidence = inner::confidence(findings, segment, segment.payload);
                findings.add(segment, protocol, &INNER, confidence, segment.payload_len.into());
            }
            Inner::Unverified => findings.add(segment, protocol, &PROTOCOL, Confidence::Possible, number.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::tests_support::{best, segment};
    use crate::flow::Direction::{Forward, Reverse};

    #[test]
    fn cases() {
        let (four, four_more, four_last) = (ipv4_packet(8), ipv4_packet(9), ipv4_packet(10));
        let (six, six_more, six_last) = (ipv6_packet(8), ipv6_packet(9), ipv6_packet(10));
        let junk = [0; 40];
        #[rustfmt::skip]
        let cases = [
            ("empty", 4, false, vec![&junk[..0]], Some((Protocol::Ipip, Confidence::Possible))),
            ("a probe", 4, false, vec![&junk[..]], Some((Protocol::Ipip, Confidence::Possible))),
            ("one packet", 4, false, vec![&four[..]], Some((Protocol::Ipip, Confidence::Possible))),
            ("the same again, in turn", 4, false, vec![&four[..]; 6], Some((Protocol::Ipip, Confidence::Likely))),
            ("two packets", 4, false, vec![&four[..], &four_more], Some((Protocol::Ipip, Confidence::Likely))),
            ("three packets", 4, false, vec![&four[..], &four_more, &four_last], Some((Protocol::Ipip, Confidence::Certain))),
            ("6in4", 41, false, vec![&six[..], &six_more, &six_last], Some((Protocol::SixInFour, Confidence::Certain))),
            ("4in6", 4, true, vec![&four[..], &four_more, &four_last], Some((Protocol::FourInSix, Confidence::Certain))),
            ("6in6", 41, true, vec![&six[..], &six_more, &six_last], Some((Protocol::SixInSix, Confidence::Certain))),
            ("an IPv6 packet in protocol 4", 4, false, vec![&six[..], &six[..]], Some((Protocol::Ipip, Confidence::Possible))),
            ("GRE's number", 47, false, vec![&four[..]], None),
        ];
        for (name, protocol, outer_v6, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol, outer_v6 };
            let ways = [Forward, Reverse];
            let segments: Vec<_> =
                packets.iter().zip(ways.iter().cycle()).map(|(octets, way)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&IpInIp, &segments), expected, "{name}");
        }
    }
}
