//! Turns payloads of IP protocols 4 and 41 into evidence of IP in IP: IPIP (RFC 2003), 6in4 (RFC 4213),
//! 4in6 and 6in6 (RFC 2473), 6to4 (RFC 3056) and ISATAP (RFC 5214).
//!
//! The payload is an IP packet, header first. One whose version, length and checksum are right may be a probe, two different
//! ones make the tunnel likely, three certain.
//!
//! 6to4 and ISATAP are 6in4 whose ends are found by the inner addresses, where an end's IPv4 address stands:
//!
//! | octets of an IPv6 address | 6to4 (RFC 3056 2) | ISATAP (RFC 5214 6.1) |
//! |---|---|---|
//! | 0 to 1 | 0x2002 | any prefix |
//! | 2 to 5 | IPv4 address | any prefix |
//! | 8 to 11 | any | 0x00005efe or, of a globally unique IPv4 address, 0x02005efe |
//! | 12 to 15 | any | IPv4 address |
//!
//! A detector does not see the outer addresses, but what equals one of them stays the same: every packet must name, at one
//! end at least, the IPv4 address that earlier ones named there. A configured tunnel that carries traffic of many sites does
//! not, and is 6in4 from the first packet on that breaks the rule; only a neighbour's link-local address may lack it. Random
//! addresses begin like 6to4's once in 2^16 and hold ISATAP's marks once in 2^31, each of the packets anew. 6rd (RFC 5969)
//! embeds addresses under a provider's own prefix: it has no mark, and is 6in4.

use super::inner::{self, Inner};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::flow::Direction;
use crate::wire::cursor::{u16_at, u32_at};

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

static SIX_TO_FOUR: Code = Code {
    name: "6to4.inner",
    meaning: "an inner IPv6 header that checks out, with an address of 2002::/16 that names the same IPv4 address as \
              before; value: that address",
    clause: "RFC 3056 2, 3",
    phase: Phase::Stateless,
};

static ISATAP: Code = Code {
    name: "isatap.inner",
    meaning: "an inner IPv6 header that checks out, with an interface identifier of ISATAP that names the same IPv4 \
              address as before; value: that address",
    clause: "RFC 5214 6.1",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "ipip",
    protocols: &[
        Protocol::Ipip,
        Protocol::SixInFour,
        Protocol::FourInSix,
        Protocol::SixInSix,
        Protocol::SixToFour,
        Protocol::Isatap,
    ],
    carriers: &[CarrierKind::Ip(4), CarrierKind::Ip(41)],
    begins: &[Begin::Any],
    recognises: "inner IP header with right version, length and checksum; 6to4 and ISATAP by the IPv4 address in inner \
                 addresses, the same in every packet",
    specification: "RFC 2003, RFC 4213, RFC 2473, RFC 3056, RFC 5214",
    chance: "IPv4 inside: 2^-20 a packet, IPv6: 2^-23, three different ones; the protocol number besides",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "6rd, whose addresses have no mark, is 6in4; the IPv4 address in inner addresses is not compared with \
                   the outer ones",
    codes: &[&INNER, &PROTOCOL, &SIX_TO_FOUR, &ISATAP],
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
                let automatic = (protocol == Protocol::SixInFour).then(|| automatic(segment, findings)).flatten();
                let (protocol, code, value) = match automatic {
                    Some(Embedded { kind: Kind::SixToFour, ipv4 }) => (Protocol::SixToFour, &SIX_TO_FOUR, ipv4),
                    Some(Embedded { kind: Kind::Isatap, ipv4 }) => (Protocol::Isatap, &ISATAP, ipv4),
                    None => (protocol, &INNER, segment.payload_len),
                };
                findings.add(segment, protocol, code, confidence, value.into());
            }
            Inner::Unverified => findings.add(segment, protocol, &PROTOCOL, Confidence::Possible, number.into()),
        }
    }
}

/// Whose rule put an IPv4 address into an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    SixToFour,
    Isatap,
}

/// An IPv4 address inside an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Embedded {
    kind: Kind,
    ipv4: u32,
}

impl Embedded {
    /// Of the IPv6 address at `offset`. One under both rules is 6to4's: its prefix is what the routers between sites read.
    fn at(packet: &[u8], offset: usize) -> Option<Self> {
        if u16_at(packet, offset)? == 0x2002 {
            return Some(Self { kind: Kind::SixToFour, ipv4: u32_at(packet, offset + 2)? });
        }
        let is_isatap = matches!(u32_at(packet, offset + 8)?, 0x0000_5efe | 0x0200_5efe);
        is_isatap.then(|| Some(Self { kind: Kind::Isatap, ipv4: u32_at(packet, offset + 12)? })).flatten()
    }

    /// Of a slot's number.
    const fn of(number: u64) -> Option<Self> {
        let kind = match number >> 32 {
            1 => Kind::SixToFour,
            2 => Kind::Isatap,
            _ => return None,
        };
        Some(Self { kind, ipv4: number as u32 })
    }

    /// Not zero, and not [`CONFIGURED`].
    const fn number(self) -> u64 {
        (self.kind as u64 + 1) << 32 | self.ipv4 as u64
    }
}

/// In a slot: this flow's packets do not obey 6to4's nor ISATAP's rule.
const CONFIGURED: u64 = u64::MAX;

/// The IPv4 address by which this packet's way was found, if every packet so far shows one.
fn automatic(segment: &Segment<'_>, findings: &mut Findings) -> Option<Embedded> {
    let ends = [(segment.direction, 8), (segment.direction.opposite(), 24)];
    let known = ends.map(|(end, _)| findings.slot(SlotId::Embedded, end).a);
    if known.contains(&CONFIGURED) {
        return None;
    }
    let named = ends.map(|(_, offset)| Embedded::at(segment.payload, offset));
    let mut found = None;
    let is_first = known == [0, 0];
    for (((end, _), known), named) in ends.into_iter().zip(known).zip(named) {
        let Some(named) = named else { continue };
        if is_first || known == named.number() {
            found = found.or(Some(named));
            findings.slot(SlotId::Embedded, end).a = named.number();
        }
    }
    if found.is_none() && segment.payload.get(8..10) == Some(&[0xfe, 0x80]) {
        // RFC 4291 2.5.6: between neighbours, where any of the interface's addresses may ask for routers.
        return known.into_iter().find_map(Embedded::of);
    }
    if found.is_none() {
        for end in [Direction::Forward, Direction::Reverse] {
            findings.slot(SlotId::Embedded, end).a = CONFIGURED;
        }
    }
    found
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
        let between = |source: [u8; 16], destination: [u8; 16], len| {
            let mut packet = ipv6_packet(len);
            packet[8..24].copy_from_slice(&source);
            packet[24..40].copy_from_slice(&destination);
            packet
        };
        let site = |host| [0x20, 2, 198, 51, 100, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
        let other_site = [0x20, 2, 198, 51, 100, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let native = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let isatap = |host| [0x20, 1, 0x0d, 0xb8, 0, 5, 0, 0, 2, 0, 0x5e, 0xfe, 198, 51, 100, host];
        let local = |mark: [u8; 2]| [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, mark[0], mark[1], 198, 51, 100, 1];
        let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        // Each pair is asked and answered.
        let (there, back, again) =
            (between(site(1), native, 8), between(native, site(1), 8), between(site(2), native, 9));
        let (ask, answer) = (between(isatap(1), isatap(2), 8), between(isatap(2), isatap(1), 8));
        let solicitation = between(local([0x5e, 0xfe]), routers, 8);
        let plain_solicitation = between(local([0, 0xfe]), routers, 8);
        let near_isatap = between(local([0x5e, 0xff]), native, 8);
        let (elsewhere, neither) = (between(other_site, native, 10), between(native, native, 10));
        #[rustfmt::skip]
        let cases = [
            ("empty", 4, false, vec![&junk[..0]], Some((Protocol::Ipip, Confidence::Possible))),
            ("a probe", 4, false, vec![&junk[..]], Some((Protocol::Ipip, Confidence::Possible))),
            ("one packet", 4, false, vec![&four[..]], Some((Protocol::Ipip, Confidence::Possible))),
            ("the same again, in turn", 4, false, vec![&four[..]; 6], Some((Protocol::Ipip, Confidence::Likely))),
            ("two packets", 4, false, vec![&four[..], &four_more], Some((Protocol::Ipip, Confidence::Likely))),
            ("three packets", 4, false, vec![&four[..], &four_more, &four_last], Some((Protocol::Ipip, Confidence::Certain))),
            ("6in4", 41, false, vec![&six[..], &six_more, &six_last], Some((Protocol::SixInFour, Confidence::Certain))),
            ("6to4", 41, false, vec![&there[..], &back, &again], Some((Protocol::SixToFour, Confidence::Certain))),
            ("6to4, and a neighbour's message", 41, false, vec![&there[..], &back, &plain_solicitation], Some((Protocol::SixToFour, Confidence::Certain))),
            ("6to4 of two sites on one way", 41, false, vec![&there[..], &back, &elsewhere], Some((Protocol::SixInFour, Confidence::Certain))),
            ("6to4 and native in one tunnel", 41, false, vec![&there[..], &back, &neither, &back, &again, &back], Some((Protocol::SixInFour, Confidence::Certain))),
            ("6to4's prefix in 6in6", 41, true, vec![&there[..], &back, &again], Some((Protocol::SixInSix, Confidence::Certain))),
            ("6to4, one octet short", 41, false, vec![&there[..47], &back[..47], &again[..48]], Some((Protocol::SixInFour, Confidence::Possible))),
            ("ISATAP", 41, false, vec![&solicitation[..], &answer, &ask], Some((Protocol::Isatap, Confidence::Certain))),
            ("nearly ISATAP", 41, false, vec![&near_isatap[..], &neither, &there], Some((Protocol::SixInFour, Confidence::Certain))),
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
