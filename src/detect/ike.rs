//! Turns UDP payloads into evidence of IKE version 1 (RFC 2408 3.1, RFC 2409) or 2 (RFC 7296 3.1), on any port, with or
//! without the non-ESP marker of NAT traversal (RFC 3948 2.2).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 8 | initiator's SPI (IKEv1: cookie), never zero |
//! | 8 | 8 | responder's SPI, zero in the first request only |
//! | 16 | 1 | next payload |
//! | 17 | 1 | version: 0x10 or 0x20 |
//! | 18 | 1 | exchange type |
//! | 19 | 1 | flags |
//! | 20 | 4 | message identifier |
//! | 24 | 4 | length of the whole message |
//!
//! Version, exchange, flags and the exact 32-bit length leave 2^-60 to chance; an answer from the other side with the same
//! 64-bit initiator's SPI makes the exchange certain. A request that nobody answers is a probe and stays possible.

use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::flow::Direction;
use crate::wire::cursor::{u32_at, u64_at};

/// IKE over UDP on any port.
#[derive(Debug)]
pub struct Ike;

static REQUEST: Code = Code {
    name: "ike.first_request",
    meaning: "the first message of an exchange: the responder's SPI is still zero; value: initiator's SPI, upper half",
    clause: "RFC 7296 1.2, RFC 2408 3.1",
    phase: Phase::Handshake,
};

static SET_UP: Code = Code {
    name: "ike.set_up",
    meaning: "a later message of an association's set-up: IKE_AUTH, or IKEv1's phase 1; value: initiator's SPI, upper half",
    clause: "RFC 7296 1.2, RFC 2409 5",
    phase: Phase::Handshake,
};

static MESSAGE: Code = Code {
    name: "ike.message",
    meaning: "a message of an association that is up, with both SPIs; value: initiator's SPI, upper half",
    clause: "RFC 7296 3.1, RFC 2408 3.1",
    phase: Phase::Data,
};

static EXCHANGE: Code = Code {
    name: "ike.exchange",
    meaning: "both sides use the same initiator's SPI; value: its upper half",
    clause: "RFC 7296 2.6, RFC 2408 2.5.3",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "ike",
    protocols: &[Protocol::Ike],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 10"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 20"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 10"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 20"),
    ],
    recognises: "IKEv1 and IKEv2 exchanges by SPIs, version, exchange type and exact length",
    specification: "RFC 7296, RFC 2408, RFC 3948",
    chance: "version, exchange, flags and the 32-bit length: 2^-60; a repeated 64-bit SPI",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "IKE over TCP (RFC 9329)",
    codes: &[&REQUEST, &SET_UP, &MESSAGE, &EXCHANGE],
};

/// Whether IKE with the non-ESP marker was seen in a flow, so that ESP may share it (RFC 3948 2.2).
pub(super) fn is_marked(findings: &mut Findings) -> bool {
    [Direction::Forward, Direction::Reverse]
        .into_iter()
        .any(|direction| findings.slot(SlotId::Ike, direction).c & MARKED != 0)
}

/// Mark in an IKE slot, above the message's mark.
const MARKED: u32 = 1 << 31;
const HEADER: u32 = 28;
const V1: u8 = 0x10;
const V2: u8 = 0x20;

impl Detector for Ike {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp || segment.payload_len < HEADER {
            return;
        }
        // RFC 3948 2.2: four zero octets where an SPI of ESP would stand.
        let marked = segment.payload.strip_prefix(&[0; 4]);
        let len = segment.payload_len;
        if let Some(header) = marked.and_then(|message| Header::parse(message, len - 4)) {
            take(&header, segment, findings);
            // Only where IKE is marked does ESP share its ports.
            findings.slot(SlotId::Ike, segment.direction).c |= MARKED;
        } else if let Some(header) = Header::parse(segment.payload, len) {
            take(&header, segment, findings);
        }
    }
}

/// What a valid header says.
#[derive(Clone, Copy, Debug)]
struct Header {
    initiator: u64,
    responder: u64,
    /// Part of the association's set-up.
    sets_up: bool,
    /// From the side that set the association up, where the version tells.
    from_initiator: Option<bool>,
    /// Tells messages apart: identifier and length, 31 bits.
    mark: u32,
}

impl Header {
    fn parse(octets: &[u8], len: u32) -> Option<Self> {
        let (initiator, responder) = (u64_at(octets, 0)?, u64_at(octets, 8)?);
        let &[next_payload, version, exchange, flags] = octets.get(16..20)?.first_chunk()?;
        let (message, length) = (u32_at(octets, 20)?, u32_at(octets, 24)?);
        if initiator == 0 || length != len || length < HEADER {
            return None;
        }
        let sets_up;
        let from_initiator = match version {
            V1 => {
                // RFC 2408 3.1: base to informational; RFC 2409: quick and new group mode.
                let known = matches!(exchange, 1..=6 | 32 | 33) && matches!(next_payload, 1..=20 | 128..=137);
                // Encryption, commit, authentication only. Phase 1 has message identifier 0, phase 2 never.
                let phase_one = matches!(exchange, 1..=4);
                if !known
                    || flags & 0xf8 != 0
                    || (phase_one && message != 0)
                    || (matches!(exchange, 32 | 33) && message == 0)
                {
                    return None;
                }
                sets_up = phase_one;
                (responder == 0).then_some(true)
            }
            V2 => {
                // RFC 7296 3.1: IKE_SA_INIT (34) to IKE_SESSION_RESUME (38), GSA (39 to 41), RFC 9242 (43), RFC 9370 (44).
                let known = matches!(exchange, 34..=44) && matches!(next_payload, 0 | 33..=55);
                // RFC 7296 3.1: only initiator (8), version (16) and response (32).
                if !known || flags & 0xc7 != 0 || (exchange == 34 && message > 2) {
                    return None;
                }
                if responder == 0 && (exchange != 34 && exchange != 38 || message != 0) {
                    return None;
                }
                sets_up = matches!(exchange, 34 | 35);
                Some(flags & 0x08 != 0)
            }
            _ => return None,
        };
        let mark = (message.rotate_left(16) ^ length) & !MARKED;
        Some(Self { initiator, responder, sets_up, from_initiator, mark })
    }
}

fn take(header: &Header, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::Ike, segment.direction.opposite());
    let here = findings.slot(SlotId::Ike, segment.direction);
    if here.hits > 0 && here.a != header.initiator {
        here.hits = 0;
    }
    // The same message again is no second one (RFC 7296 2.1: requests are sent again until they are answered).
    if here.hits == 0 || here.c & !MARKED != header.mark {
        here.hits = here.hits.saturating_add(1);
    }
    here.a = header.initiator;
    here.c = here.c & MARKED | header.mark;
    if header.responder != 0 {
        here.b = header.responder;
    }
    let here = *here;
    if let Some(from_initiator) = header.from_initiator {
        let initiator = if from_initiator { segment.direction } else { segment.direction.opposite() };
        findings.originator.get_or_insert(initiator);
    }
    let value = header.initiator >> 32;
    let answered = there.hits > 0 && there.a == header.initiator && (here.b != 0 || there.b != 0);
    if header.responder == 0 {
        findings.add(segment, Protocol::Ike, &REQUEST, Confidence::Possible, value);
    } else if header.sets_up {
        findings.add(segment, Protocol::Ike, &SET_UP, Confidence::Possible, value);
    }
    if answered {
        findings.add(segment, Protocol::Ike, &EXCHANGE, Confidence::Certain, value);
    } else if header.responder != 0 {
        // One side of an association that is up: several messages of it are no chance, one may be an answer to a probe.
        let confidence = if here.hits >= 2 { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::Ike, &MESSAGE, confidence, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, udp};
    use crate::flow::Direction::{Forward, Reverse};

    fn message(spis: [u64; 2], next: u8, version: u8, exchange: u8, flags: u8, id: u32) -> Vec<u8> {
        let mut octets = spis.map(u64::to_be_bytes).concat();
        octets.extend([next, version, exchange, flags]);
        octets.extend(id.to_be_bytes());
        octets.extend(60_u32.to_be_bytes());
        octets.resize(60, 0x5a);
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Ike, confidence));
        let ask = message([7, 0], 33, V2, 34, 0x08, 0);
        let answer = message([7, 9], 33, V2, 34, 0x20, 0);
        let ask1 = message([7, 0], 1, V1, 2, 0, 0);
        let answer1 = message([7, 9], 1, V1, 2, 0, 0);
        let marked = |octets: &[u8]| [&[0; 4], octets].concat();
        let auth = marked(&message([7, 9], 46, V2, 35, 0x08, 1));
        let informational = message([7, 9], 46, V2, 37, 0x08, 2);
        let mut long = ask.clone();
        long.push(0);
        #[rustfmt::skip]
        let cases = [
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, ask[..59].to_vec())], None),
            ("one octet long", vec![(Forward, long)], None),
            ("a probe", vec![(Forward, ask.clone())], level(Confidence::Possible)),
            ("a probe, sent again", vec![(Forward, ask.clone()); 5], level(Confidence::Possible)),
            ("IKEv2", vec![(Forward, ask.clone()), (Reverse, answer.clone())], level(Confidence::Certain)),
            ("IKEv1", vec![(Forward, ask1), (Reverse, answer1)], level(Confidence::Certain)),
            ("answer to another", vec![(Forward, ask.clone()), (Reverse, message([8, 9], 33, V2, 34, 0x20, 0))], level(Confidence::Possible)),
            ("behind the marker", vec![(Forward, marked(&ask)), (Reverse, marked(&answer))], level(Confidence::Certain)),
            ("one message, sent again", vec![(Forward, auth.clone()); 4], level(Confidence::Possible)),
            ("mid-stream, one way", vec![(Forward, auth), (Forward, marked(&message([7, 9], 46, V2, 35, 0x08, 2)))], level(Confidence::Likely)),
            ("mid-stream, one message", vec![(Forward, informational)], level(Confidence::Possible)),
            ("IKE_INTERMEDIATE", (1..3).map(|id| (Forward, message([7, 9], 46, V2, 43, 0x08, id))).collect(), level(Confidence::Likely)),
            ("no initiator's SPI", vec![(Forward, message([0, 0], 33, V2, 34, 0x08, 0))], None),
            ("reserved flag", vec![(Forward, message([7, 0], 33, V2, 34, 0x48, 0))], None),
            ("unknown exchange", vec![(Forward, message([7, 0], 33, V2, 99, 0x08, 0))], None),
            ("version 3", vec![(Forward, message([7, 0], 33, 0x30, 34, 0x08, 0))], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Ike, &segments), expected, "{name}");
        }
    }
}
