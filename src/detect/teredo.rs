//! Turns UDP payloads into evidence of Teredo (RFC 4380, RFC 6081): IPv6 in UDP through address translators, on any port
//! (servers listen on 3544).
//!
//! | order | octets | field |
//! |---|---|---|
//! | first, from and to servers | 13 and more | 0x0001, lengths of client identifier and authentication value, both, nonce (8), confirmation (5.1.1) |
//! | then, from servers and relays | 8 | 0x0000, a client's port and address, each bit inverted (5.1.1) |
//! | then | 40 and more | an IPv6 packet |
//! | last | any | trailers: type, length, content (RFC 6081 4) |
//!
//! | octets of a Teredo address | field (RFC 4380 4, RFC 5991 3) |
//! |---|---|
//! | 0 to 3 | 0x20010000 |
//! | 4 to 7 | the server's IPv4 address, not zero |
//! | 8 to 9 | flags: cone, reserved, 4 random bits, universal and group, both zero, 8 random bits |
//! | 10 to 15 | the client's port and address, each bit inverted |
//!
//! The IPv6 packet must check out (24 bits), end where the datagram or its trailers do, and hold a Teredo address (32 bits and
//! the flags' 2) as its source or destination, which is enough to be likely at once, and certain with the next one: random
//! octets do that once in 2^58 and 2^116. Bubbles are such packets with nothing in them. Qualification comes from and goes to
//! link-local addresses: a router solicitation to all routers behind an authentication header (16 constant octets and more),
//! and the advertisement from the other side that returns its nonce.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::{u16_at, u32_at};

/// Teredo over UDP on any port.
#[derive(Debug)]
pub struct Teredo;

static INNER: Code = Code {
    name: "teredo.inner",
    meaning: "an IPv6 packet that checks out, with a Teredo address; value: the Teredo server's IPv4 address",
    clause: "RFC 4380 4, 5.1.1",
    phase: Phase::Stateless,
};

static SOLICITATION: Code = Code {
    name: "teredo.solicitation",
    meaning: "a router solicitation behind an authentication header, to a Teredo server; value: nonce, 0 if none is used",
    clause: "RFC 4380 5.2.1",
    phase: Phase::Handshake,
};

static ADVERTISEMENT: Code = Code {
    name: "teredo.advertisement",
    meaning: "a Teredo server's router advertisement with the client's address as the server saw it; value: nonce, 0 if \
              none is used",
    clause: "RFC 4380 5.3.1",
    phase: Phase::Handshake,
};

static ABOUT: About = About {
    name: "teredo",
    protocols: &[Protocol::Teredo],
    carriers: &[CarrierKind::Udp],
    begins: &[
        // A Teredo source; a Teredo destination; a bubble behind an origin.
        Begin::Octets(".. .. .. .. .. .. .. .. 20 01 00 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 20 01 00 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. 6. .. .. .. 00 00 3b"),
        // ICMPv6 behind authentication, and behind both.
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. 6. .. .. .. .. .. 3a ff"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 6. .. .. .. .. .. 3a ff"),
    ],
    recognises: "IPv6 packets and bubbles with a Teredo address, bare or behind authentication and origin; a solicitation \
                 and its advertisement",
    specification: "RFC 4380, RFC 5991, RFC 6081",
    chance: "2^-58 a packet",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "solicitations without authentication, which a TUN device in UDP sends as well",
    codes: &[&INNER, &SOLICITATION, &ADVERTISEMENT],
};

impl Detector for Teredo {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let first = segment.payload.first().copied();
        if !matches!(first, Some(0 | 0x60..=0x6f)) || segment.carrier != Carrier::Udp {
            return;
        }
        let Some(headers) = Headers::read(segment.payload) else { return };
        let packet = segment.payload.get(headers.len..).unwrap_or_default();
        let len = segment.payload_len.saturating_sub(headers.len as u32);
        let Some(len) = without_trailers(packet, len) else { return };
        let Some(bits) = bubble(packet).or_else(|| overlay::ipv6(packet, len, Fit::Exact)) else { return };
        if let Some(server) = [8, 24].into_iter().find_map(|offset| server(packet, offset)) {
            let share = Share {
                protocol: Protocol::Teredo,
                code: &INNER,
                bits: bits + ADDRESS,
                identity: server.into(),
                value: server.into(),
            };
            overlay::add(&share, segment, findings);
        } else {
            qualification(&headers, packet, segment, findings);
        }
    }
}

/// Bits that a Teredo address rules out: its prefix and two flags.
const ADDRESS: u32 = 34;

/// What may precede the IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Headers {
    /// The nonce of an authentication header.
    nonce: Option<u64>,
    has_origin: bool,
    /// Octets.
    len: usize,
}

impl Headers {
    fn read(payload: &[u8]) -> Option<Self> {
        let mut headers = Self { nonce: None, has_origin: false, len: 0 };
        if payload.starts_with(&[0, 1]) {
            let (id, value) = (usize::from(*payload.get(2)?), usize::from(*payload.get(3)?));
            let nonce = payload.get(4 + id + value..)?;
            headers.nonce = Some(u64::from_be_bytes(*nonce.first_chunk()?));
            headers.len = 4 + id + value + 9;
        }
        if payload.get(headers.len..)?.starts_with(&[0, 0]) {
            // A port and an address of zero are none.
            let (port, address) = (u16_at(payload, headers.len + 2)?, u32_at(payload, headers.len + 4)?);
            headers.has_origin = port != u16::MAX && address != u32::MAX;
            headers.len += 8;
        }
        Some(headers)
    }
}

/// RFC 4380 2.8: nothing inside, by length and next header; some send them with a hop limit of zero.
fn bubble(packet: &[u8]) -> Option<u32> {
    (packet.first()? >> 4 == 6 && packet.get(4..7)? == [0, 0, 59]).then_some(24)
}

/// The server in a Teredo address.
fn server(packet: &[u8], offset: usize) -> Option<u32> {
    let (prefix, server) = (u32_at(packet, offset)?, u32_at(packet, offset + 4)?);
    // RFC 5991 3: universal and group bits are zero. Cut behind the server, they cannot be read.
    let flags = u16_at(packet, offset + 8).unwrap_or(0);
    (prefix == 0x2001_0000 && server != 0 && flags & 0x0300 == 0).then_some(server)
}

/// The IPv6 packet's octets, if what follows it are trailers (RFC 6081 4).
fn without_trailers(packet: &[u8], len: u32) -> Option<u32> {
    let claimed = u32::from(u16_at(packet, 4)?) + 40;
    let mut end = claimed;
    while end < len {
        end += 2 + u32::from(*packet.get(end as usize + 1)?);
    }
    // A first fragment's packet ends behind it.
    if claimed > len { Some(len) } else { (end == len).then_some(claimed) }
}

/// RFC 4380 5.2.1, 5.3.1: a client asks all routers, the server answers it.
fn qualification(headers: &Headers, packet: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(nonce) = headers.nonce else { return };
    let is_icmp = packet.get(6..8) == Some(&[58, 255]);
    let is_local = |offset: usize| packet.get(offset..offset + 2) == Some(&[0xfe, 0x80]);
    if !is_icmp || !is_local(8) {
        return;
    }
    let (code, other) = match packet.get(40..42) {
        Some([133, 0]) if packet.get(24..40) == Some(&ALL_ROUTERS) => (&SOLICITATION, &ADVERTISEMENT),
        Some([134, 0]) if is_local(24) && headers.has_origin => (&ADVERTISEMENT, &SOLICITATION),
        _ => return,
    };
    let answers = findings.of(other, segment.direction.opposite()).is_some_and(|found| found.last_value == nonce);
    let confidence = if answers { Confidence::Certain } else { Confidence::Likely };
    findings.add(segment, Protocol::Teredo, code, confidence, nonce);
}

/// RFC 4291 2.7.1: `ff02::2`.
const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    const NATIVE: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const CLIENT: [u8; 16] = [0x20, 1, 0, 0, 198, 51, 100, 10, 0x2c, 0x6e, 0x5f, 0xd6, 0x39, 0xcc, 0x9b, 0xfe];
    const LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

    fn packet(kind: [u8; 2], source: [u8; 16], destination: [u8; 16], inside: &[u8]) -> Vec<u8> {
        let len = inside.len() as u8;
        [&[0x60, 0, 0, 0, 0, len, kind[0], kind[1]][..], &source, &destination, inside].concat()
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Teredo, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let data = packet([17, 64], CLIENT, NATIVE, &[7; 20]);
        let back = packet([17, 64], NATIVE, CLIENT, &[7; 20]);
        let bubble = packet([59, 0], LOCAL, CLIENT, &[]);
        let authentication = [0, 1, 0, 0, 9, 8, 7, 6, 5, 4, 3, 2, 0];
        let origin = [0, 0, 0x5f, 0xd6, 0x39, 0xcc, 0x9b, 0xfe];
        let ask = packet([58, 255], LOCAL, ALL_ROUTERS, &[133, 0, 0x7d, 0x37, 0, 0, 0, 0]);
        let told = packet([58, 255], LOCAL, LOCAL, &[134, 0, 0x95, 0x4c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let solicitation = [&authentication[..], &ask].concat();
        let advertisement = [&authentication[..], &origin, &told].concat();
        let (mut other_nonce, mut group) = (advertisement.clone(), data.clone());
        other_nonce[5] ^= 1;
        group[16] |= 1;
        let trailers = [&data[..], &[1, 4, 1, 2, 3, 4, 2, 1, 0]].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(&data[..40], 5), None),
            ("one packet", vec![(Forward, data.clone())], likely),
            ("one way", series(&data, 2), certain),
            ("both ways", vec![(Forward, data.clone()), (Reverse, back)], certain),
            ("the same again", vec![(Forward, data.clone()); 5], likely),
            ("one octet short", series(&data[..data.len() - 1], 5), None),
            ("one octet long", series([&data[..], &[0]].concat(), 5), None),
            ("trailers", series(&trailers, 2), certain),
            ("a trailer cut short", vec![(Forward, trailers[..trailers.len() - 1].to_vec())], None),
            ("a bubble", vec![(Forward, bubble.clone())], likely),
            ("a bubble behind an origin", vec![(Forward, [&origin[..], &bubble].concat())], likely),
            ("data behind authentication", series([&authentication[..], &data].concat(), 2), certain),
            ("solicitation", vec![(Forward, solicitation.clone())], likely),
            ("qualification", vec![(Forward, solicitation.clone()), (Reverse, advertisement)], certain),
            ("another's advertisement", vec![(Forward, solicitation), (Reverse, other_nonce)], likely),
            ("solicitation of a TUN device", series(ask, 5), None),
            ("a group's address", series(group, 5), None),
            ("other IPv6", series(ipv6_packet(8), 5), None),
            ("IPv4", series(ipv4_packet(8), 5), None),
            ("STUN", series([0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 5), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Teredo, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Teredo, trials(), |octets, number| match number % 3 {
            0 => octets[0] = 0x60,
            1 => octets[..4].copy_from_slice(&[0, 1, 0, 0]),
            _ => octets[..2].copy_from_slice(&[0, 0]),
        });
        assert_eq!(taken, 0);
    }
}
