//! Turns UDP payloads into evidence of GTP-U (TS 29.281 5.1) and GTP-C versions 1 (TS 29.060 6) and 2 (TS 29.274 5), on any
//! port.
//!
//! | offset | octets | version 1 | version 2 |
//! |---|---|---|---|
//! | 0 | 1 | version (001), 1, 0, flags E, S, PN | version (010), P, T, MP, zero |
//! | 1 | 1 | message type; 255 is user data | message type |
//! | 2 | 2 | octets behind the first eight | octets behind the first four |
//! | 4 | 4 | tunnel endpoint (TEID) | TEID, with T |
//! | 8 | 4 | with any flag: sequence (2), N-PDU, next extension | sequence (3), spare; at 4 without T |
//! | 12 | | extensions, then IP (user data) or elements | elements: type, length (2), instance, value |
//!
//! User data has its exact length, and the IP packet behind the extensions must check out: random octets pass once in 2^55 as
//! IPv4. A control message has its exact length and elements that fill it (2^-32 and less); one alone may be a probe. A
//! response with the request's sequence number and type plus one, from the other side, makes it certain.

use super::overlay::{self, Fit, Share};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, Slot, SlotId,
};
use crate::wire::cursor::{u16_at, u32_at};

/// GTP-U and GTP-C over UDP on any port.
#[derive(Debug)]
pub struct Gtp;

static USER_DATA: Code = Code {
    name: "gtp.user_data",
    meaning: "GTP-U with its exact length and an IP packet inside that checks out; value: tunnel endpoint (TEID)",
    clause: "TS 29.281 5.1",
    phase: Phase::Stateless,
};

static MESSAGE: Code = Code {
    name: "gtp.message",
    meaning: "a GTP control message with exact length and elements; value: message type",
    clause: "TS 29.060 7, TS 29.274 7",
    phase: Phase::Data,
};

static SESSION: Code = Code {
    name: "gtp.session_request",
    meaning: "a request to create a session or PDP context, with exact length and elements; value: message type",
    clause: "TS 29.060 7.3.1, TS 29.274 7.2.1",
    phase: Phase::Handshake,
};

static RESPONSE: Code = Code {
    name: "gtp.response",
    meaning: "a response that repeats the other side's sequence number, its type the request's plus one; value: message type",
    clause: "TS 29.060 9.3, TS 29.274 7.6",
    phase: Phase::Data,
};

static PATH: Code = Code {
    name: "gtp.path",
    meaning: "GTP's echo, error indication or end marker, with exact length; value: message type",
    clause: "TS 29.281 7.2, 7.3",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "gtp",
    protocols: &[Protocol::GtpU, Protocol::GtpC],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("00110..."), Begin::Octets("010...00")],
    recognises: "user data by exact length and the IP packet inside; control by exact length, elements, and responses of the same sequence number",
    specification: "TS 29.281, TS 29.060, TS 29.274",
    chance: "user data around IPv4: 2^-55; control: 2^-32 a message, and a repeated sequence number",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "sessions of Ethernet or PPP; echoes alone, which user and control plane share, stay possible; GTP' and version 0",
    codes: &[&USER_DATA, &MESSAGE, &SESSION, &RESPONSE, &PATH],
};

const USER: u8 = 255;

impl Detector for Gtp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let (Some(&[first, kind]), Some(length)) = (segment.payload.first_chunk(), u16_at(segment.payload, 2)) else {
            return;
        };
        if segment.carrier != Carrier::Udp {
            return;
        }
        let length = u32::from(length);
        match first >> 4 {
            // Version 1, protocol type GTP, spare zero.
            3 if first & 0x08 == 0 => {
                if length + 8 == segment.payload_len {
                    version_one(first & 7, kind, segment, findings);
                } else if kind == USER && length + 8 > segment.payload_len && segment.payload_len >= 256 {
                    // The first fragment of user data.
                    user_data(first & 7, 0, segment, findings);
                }
            }
            // Version 2, without and with a second message behind it (P, TS 29.274 5.3).
            4 | 5 if first.trailing_zeros() >= 2 => {
                let fits = if first & 0x10 == 0 {
                    length + 4 == segment.payload_len
                } else {
                    length + 12 <= segment.payload_len
                };
                if fits && length >= 4 {
                    version_two(first, kind, length as usize + 4, segment, findings);
                }
            }
            _ => {}
        }
    }
}

/// Where the content begins, and the sequence number where there is one.
fn behind_header(flags: u8, segment: &Segment<'_>) -> Option<(usize, Option<u16>)> {
    if flags == 0 {
        return Some((8, None));
    }
    let mut next = 12;
    let mut extension = if flags & 4 == 0 { 0 } else { *segment.payload.get(11)? };
    let sequence = if flags & 2 == 0 { None } else { u16_at(segment.payload, 8) };
    // TS 29.281 5.2.1: length in words first, the next extension's type last.
    for _ in 0..4 {
        if extension == 0 {
            return Some((next, sequence));
        }
        let words = usize::from(*segment.payload.get(next)?);
        next += words * 4;
        extension = *segment.payload.get(next - 1).filter(|_| words > 0)?;
    }
    None
}

fn version_one(flags: u8, kind: u8, segment: &Segment<'_>, findings: &mut Findings) {
    if kind == USER {
        user_data(flags, 12, segment, findings);
        return;
    }
    let Some((start, sequence)) = behind_header(flags, segment) else { return };
    let Some(teid) = u32_at(segment.payload, 4) else { return };
    let Some(elements) = segment.payload.get(start..) else { return };
    let len = segment.payload_len.saturating_sub(start as u32) as usize;
    match (kind, sequence) {
        // Echo request and response: about the path, so the TEID is zero.
        (1 | 2, Some(sequence)) if teid == 0 && are_elements(elements, len) => {
            path(kind, sequence.into(), segment, findings);
        }
        // Error indication, end marker: of the user plane.
        (26, _) if teid == 0 && len >= 10 && are_elements(elements, len) => {
            findings.add(segment, Protocol::GtpU, &PATH, Confidence::Possible, kind.into());
        }
        (16..=23 | 27..=30 | 32..=38 | 48..=70 | 96..=122 | 128 | 129, Some(sequence))
            if len > 0 && are_elements(elements, len) =>
        {
            let creates = kind == 16;
            control(kind, sequence.into(), creates, segment, findings);
        }
        _ => {}
    }
}

fn user_data(flags: u8, length_bits: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let (Some((start, _)), Some(teid)) = (behind_header(flags, segment), u32_at(segment.payload, 4)) else { return };
    let inside = segment.payload.get(start..).unwrap_or_default();
    let content = overlay::ip(inside, segment.payload_len.saturating_sub(start as u32), Fit::Exact);
    let Some(content) = content.filter(|_| teid != 0) else { return };
    // Version, protocol type and message type; and the length.
    let bits = 12 + length_bits + content;
    let share = Share { protocol: Protocol::GtpU, code: &USER_DATA, bits, identity: teid.into(), value: teid.into() };
    overlay::add(&share, segment, findings);
}

fn version_two(first: u8, kind: u8, len: usize, segment: &Segment<'_>, findings: &mut Findings) {
    let start = if first & 0x08 == 0 { 4 } else { 8 };
    let Some(sequence) = u32_at(segment.payload, start) else { return };
    // TS 29.274 5.5.1: the spare octet is zero, but for a priority with MP.
    if first & 0x04 == 0 && sequence & 0xff != 0 {
        return;
    }
    let mut next = start + 4;
    while next < len {
        // TS 29.274 8.2.1: type, length, spare and instance; the value behind.
        let (Some(length), Some(&instance)) = (u16_at(segment.payload, next + 1), segment.payload.get(next + 3)) else {
            break;
        };
        next += 4 + usize::from(length);
        if instance & 0xf0 != 0 || next > len {
            return;
        }
    }
    // Elements that fill the message: a header alone is no sign.
    if len <= start + 4 || (next != len && next < segment.payload.len()) {
        return;
    }
    let sequence = sequence >> 8;
    match kind {
        1 | 2 if first & 0x08 == 0 => path(kind, sequence, segment, findings),
        4..=240 if first & 0x08 != 0 => control(kind, sequence, kind == 32, segment, findings),
        _ => {}
    }
}

/// TS 29.060 7.7: elements below 128 have lengths of their own, the others carry theirs.
fn are_elements(octets: &[u8], len: usize) -> bool {
    let mut next = 0;
    while next < len {
        let Some(&kind) = octets.get(next) else {
            // Cut by the snap length: what was seen is right.
            return octets.len() < len && next > 0;
        };
        next += match kind {
            1 | 8 | 11 | 13..=15 | 19..=21 | 23 | 24 | 29 => 2,
            25..=28 => 3,
            12 => 4,
            4 | 5 | 16 | 17 | 127 => 5,
            18 => 6,
            3 => 7,
            2 => 9,
            22 => 10,
            9 => 29,
            128.. => match u16_at(octets, next + 1) {
                Some(length) => 3 + usize::from(length),
                None => return octets.len() < len && next > 0,
            },
            _ => return false,
        };
    }
    next == len
}

/// An echo: user and control plane have it alike, and it may be a probe.
fn path(kind: u8, sequence: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let protocol = if findings.has(Protocol::GtpU, Confidence::Possible) { Protocol::GtpU } else { Protocol::GtpC };
    remember(kind, sequence, segment, findings);
    findings.add(segment, protocol, &PATH, Confidence::Possible, kind.into());
}

/// The slot's `a` is the sequence number (with a mark), `b` the type of this side's latest message.
fn remember(kind: u8, sequence: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let slot = findings.slot(SlotId::Gtp, segment.direction);
    *slot = Slot { a: sequence.into(), b: kind.into(), hits: slot.hits.saturating_add(1), ..Slot::default() };
}

fn control(kind: u8, sequence: u32, creates: bool, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::Gtp, segment.direction.opposite());
    let before = *findings.slot(SlotId::Gtp, segment.direction);
    remember(kind, sequence, segment, findings);
    let answers = there.hits > 0 && there.a == u64::from(sequence) && there.b + 1 == u64::from(kind);
    if answers {
        findings.originator.get_or_insert(segment.direction.opposite());
        findings.add(segment, Protocol::GtpC, &RESPONSE, Confidence::Certain, kind.into());
        return;
    }
    // Other messages of one side, their sequence numbers counting: TS 29.060 7.6, TS 29.274 7.6.
    let counts = before.hits > 0 && u64::from(sequence) > before.a && u64::from(sequence) - before.a <= 256;
    let confidence = if counts { Confidence::Likely } else { Confidence::Possible };
    let code = if creates { &SESSION } else { &MESSAGE };
    findings.add(segment, Protocol::GtpC, code, confidence, kind.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn v1(flags: u8, kind: u8, teid: u8, behind: &[u8]) -> Vec<u8> {
        [&[0x30 | flags, kind, 0, behind.len() as u8, 0, 0, 0, teid][..], behind].concat()
    }

    fn v2(kind: u8, sequence: u8, elements: &[u8]) -> Vec<u8> {
        [&[0x48, kind, 0, 8 + elements.len() as u8, 0, 0, 0, 7, 0, 0, sequence, 0][..], elements].concat()
    }

    #[test]
    fn cases() {
        let level = |protocol, confidence| Some((protocol, confidence));
        let user = |confidence| level(Protocol::GtpU, confidence);
        let control = |confidence| level(Protocol::GtpC, confidence);
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let data = v1(0, 255, 9, &four);
        let extended = v1(4, 255, 9, &[&[0, 0, 0, 0x85, 1, 0x10, 1, 0][..], &four].concat());
        let echo = |kind, sequence| {
            v1(2, kind, 0, &[&[0, sequence, 0, 0][..], if kind == 2 { &[14, 1] } else { &[] }].concat())
        };
        // A cause and a recovery, or an IMSI and an access point name.
        let create = |sequence| v1(2, 16, 0, &[0, sequence, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 131, 0, 2, 1, 97]);
        let created = |sequence| v1(2, 17, 5, &[0, sequence, 0, 0, 1, 128, 14, 3]);
        let mut short = create(1);
        short.pop();
        let element = [3, 0, 1, 0, 14];
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(v1(0, 255, 9, &[]), 9), None),
            ("user data, once", vec![(Forward, data.clone())], user(Confidence::Likely)),
            ("user data, one way", series(data.clone(), 2), user(Confidence::Certain)),
            ("user data, both ways", vec![(Forward, data.clone()), (Reverse, data.clone())], user(Confidence::Certain)),
            ("IPv6", series(v1(0, 255, 9, &six), 2), user(Confidence::Certain)),
            ("a sequence number", series(v1(2, 255, 9, &[&[0, 1, 0, 0][..], &four].concat()), 2), user(Confidence::Certain)),
            ("an extension of 5G", series(extended, 2), user(Confidence::Certain)),
            ("no endpoint", series(v1(0, 255, 0, &four), 9), None),
            ("one octet short", series(&data[..data.len() - 1], 9), None),
            ("one octet long", series([&data[..], &[0]].concat(), 9), None),
            ("GTP'", series([&[0x20][..], &data[1..]].concat(), 9), None),
            ("an echo", series(echo(1, 1), 5), control(Confidence::Possible)),
            ("an echo, answered", vec![(Forward, echo(1, 1)), (Reverse, echo(2, 1))], control(Confidence::Possible)),
            ("a request, sent again", series(create(1), 5), control(Confidence::Possible)),
            ("a request, answered", vec![(Forward, create(1)), (Reverse, created(1))], control(Confidence::Certain)),
            ("an answer to another", vec![(Forward, create(1)), (Reverse, created(2))], control(Confidence::Possible)),
            ("a request, sent back", vec![(Forward, create(1)), (Reverse, create(1))], control(Confidence::Possible)),
            ("requests, one way", vec![(Forward, create(1)), (Forward, create(2))], control(Confidence::Likely)),
            ("elements that overrun", series(short, 5), None),
            ("version 2, answered", vec![(Forward, v2(32, 5, &element)), (Reverse, v2(33, 5, &element))], control(Confidence::Certain)),
            ("version 2, one message", vec![(Forward, v2(34, 5, &element))], control(Confidence::Possible)),
            ("version 2, elements that overrun", series(v2(32, 5, &[3, 0, 2, 0, 14]), 5), None),
            ("version 2 without elements", series(v2(32, 5, &[]), 5), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Gtp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Gtp, trials(), |octets, number| match number % 3 {
            0 => {
                let len = octets.len() as u8 - 8;
                octets[..4].copy_from_slice(&[0x30, 255, 0, len]);
            }
            1 => octets[..2].copy_from_slice(&[0x32, 16]),
            _ => octets[..2].copy_from_slice(&[0x48, 32]),
        });
        // One in 2^26 datagrams that begin like control may have its length and elements by chance: possible, no more.
        assert!(taken <= 1 + trials() as usize / 1_000_000, "{taken}");
    }
}
