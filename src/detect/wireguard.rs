//! Turns UDP payloads into evidence of WireGuard, by its whitepaper (wireguard.com/papers/wireguard.pdf), section 5.4.
//!
//! | message | octets | layout (little endian) |
//! |---|---|---|
//! | initiation | 148 | `01 00 00 00`, sender index (4), ephemeral (32), static (48), timestamp (28), mac1 (16), mac2 (16) |
//! | response | 92 | `02 00 00 00`, sender index (4), receiver index (4), ephemeral (32), empty (16), mac1, mac2 |
//! | cookie reply | 64 | `03 00 00 00`, receiver index (4), nonce (24), cookie (32) |
//! | data | 32 and more | `04 00 00 00`, receiver index (4), counter (8), packet padded to 16 octets and tag (16) |
//!
//! Indices are random 32-bit numbers that a peer draws for each session and the other must repeat: a response that
//! repeats the initiation's sender index is chance once in 2^32, times 2^-32 for the type, times the exact length. Data
//! alone is told by a constant receiver index (2^-32 a packet) with a counter that counts (2^-60 a packet) over ciphertext
//! that does not repeat itself.

use super::identity::{WIREGUARD_UNKNOWN, WIREGUARD_VERIFIED};
use super::sequence::{Content, Step};
use super::wireguard_reserved::{self, RESERVED, RESERVED_COUNTER};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};

/// WireGuard over UDP on any port.
#[derive(Debug)]
pub struct Wireguard;

static INITIATION: Code = Code {
    name: "wireguard.initiation",
    meaning: "a handshake initiation: type 1, three zero octets, 148 octets long; value: sender index",
    clause: "WireGuard whitepaper 5.4.2",
    phase: Phase::Handshake,
};

static RESPONSE: Code = Code {
    name: "wireguard.response",
    meaning: "a handshake response that repeats the initiation's sender index, 92 octets long; value: sender index",
    clause: "WireGuard whitepaper 5.4.3",
    phase: Phase::Handshake,
};

static RESPONSE_ALONE: Code = Code {
    name: "wireguard.response_alone",
    meaning: "a handshake response whose initiation was not seen; value: sender index",
    clause: "WireGuard whitepaper 5.4.3",
    phase: Phase::Handshake,
};

static COOKIE_REPLY: Code = Code {
    name: "wireguard.cookie_reply",
    meaning: "a cookie reply that repeats the other side's sender index, 64 octets long; value: receiver index",
    clause: "WireGuard whitepaper 5.4.7",
    phase: Phase::Handshake,
};

static SESSION: Code = Code {
    name: "wireguard.session",
    meaning: "data for the very index that the other side's handshake message announced; value: receiver index",
    clause: "WireGuard whitepaper 5.4.6",
    phase: Phase::Data,
};

static COUNTER: Code = Code {
    name: "wireguard.counter",
    meaning: "data messages with one receiver index and a counter that counts; value: receiver index",
    clause: "WireGuard whitepaper 5.4.6",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "wireguard",
    protocols: &[Protocol::Wireguard],
    carriers: &[CarrierKind::Udp],
    // With an identifier in the reserved octets the type is all that is known.
    begins: &[Begin::Octets("01"), Begin::Octets("02"), Begin::Octets("03 00 00 00"), Begin::Octets("04")],
    recognises: "handshake by its indices; data by receiver index and counter; the same with a provider's identifier in the reserved octets",
    specification: "WireGuard whitepaper, section 5.4",
    chance: "a repeated 32-bit index and the type: 2^-64 a handshake; a constant index and a counter: 2^-60 a data packet",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "variants that change message types or lengths",
    codes: &[
        &INITIATION,
        &RESPONSE,
        &RESPONSE_ALONE,
        &COOKIE_REPLY,
        &SESSION,
        &COUNTER,
        &RESERVED,
        &RESERVED_COUNTER,
        &WIREGUARD_VERIFIED,
        &WIREGUARD_UNKNOWN,
    ],
};

/// Data messages that count in a row before one direction is likely.
pub(super) const LIKELY_HITS: u32 = 4;

/// A session ends before this counter (whitepaper 6.1, REJECT-AFTER-MESSAGES = 2^64 - 2^13 - 1; in practice 2^60 at most).
pub(super) const MAX_COUNTER: u64 = 1 << 60;

/// Padding stops at the tunnel's MTU (whitepaper 5.4.6), so that only messages clearly below it must end on 16 octets.
const MTU_LIMITED: u32 = 500;

impl Detector for Wireguard {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let [kind @ 1..=4, one, two, three, rest @ ..] = segment.payload else { return };
        if segment.carrier != Carrier::Udp {
            return;
        }
        if (one | two | three) != 0 {
            wireguard_reserved::inspect(*kind, rest, segment, findings);
            return;
        }
        match (kind, segment.payload_len) {
            (1, 148) => initiation(rest, segment, findings),
            (2, 92) => response(rest, segment, findings),
            (3, 64) => cookie_reply(rest, segment, findings),
            (4, len) if is_data_len(len) => {
                data(rest, segment, findings);
            }
            _ => {}
        }
    }
}

/// Header and tag at least, padded (whitepaper 5.4.6).
pub(super) const fn is_data_len(len: u32) -> bool {
    len >= 32 && (len.is_multiple_of(16) || len >= MTU_LIMITED)
}

pub(super) fn index_at(octets: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(*octets.get(offset..)?.first_chunk()?)))
}

fn initiation(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(sender) = index_at(rest, 0) else { return };
    // Alone it is a knock at a door: a scanner sends it too, and no tunnel is up without an answer.
    findings.add(segment, Protocol::Wireguard, &INITIATION, Confidence::Possible, sender);
    findings.originator.get_or_insert(segment.direction);
}

fn response(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(sender), Some(receiver)) = (index_at(rest, 0), index_at(rest, 4)) else { return };
    let asked =
        findings.of(&INITIATION, segment.direction.opposite()).is_some_and(|found| found.last_value == receiver);
    if asked {
        findings.add(segment, Protocol::Wireguard, &RESPONSE, Confidence::Certain, sender);
    } else {
        findings.add(segment, Protocol::Wireguard, &RESPONSE_ALONE, Confidence::Possible, sender);
        findings.originator.get_or_insert(segment.direction.opposite());
        // The data that follows in this direction must go to the same receiver.
        let slot = findings.slot(SlotId::Wireguard, segment.direction);
        slot.c = receiver as u32;
    }
}

fn cookie_reply(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(receiver) = index_at(rest, 0) else { return };
    if is_announced(findings, segment, receiver) {
        findings.add(segment, Protocol::Wireguard, &COOKIE_REPLY, Confidence::Certain, receiver);
    }
}

fn data(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(receiver), Some(counter)) = (index_at(rest, 0), rest.get(4..).and_then(<[u8]>::first_chunk)) else {
        return;
    };
    let counter = u64::from_le_bytes(*counter);
    if counter >= MAX_COUNTER {
        return;
    }
    if is_announced(findings, segment, receiver) {
        findings.add(segment, Protocol::Wireguard, &SESSION, Confidence::Certain, receiver);
        return;
    }
    let opposite = *findings.slot(SlotId::Wireguard, segment.direction.opposite());
    let slot = findings.slot(SlotId::Wireguard, segment.direction);
    let announced_receiver = slot.c;
    let step = slot.step(receiver, counter, Content::Encrypted(rest.get(12..).unwrap_or_default()));
    slot.c = announced_receiver;
    let hits = slot.hits;
    let follows_response = announced_receiver != 0 && u64::from(announced_receiver) == receiver;
    // The first data message of a session confirms the initiator's key (whitepaper 5.4.6): its counter is 0.
    let follows_initiation = counter == 0 && findings.of(&INITIATION, segment.direction).is_some();
    let confidence = match step {
        _ if follows_response || follows_initiation => Confidence::Likely,
        // Each side draws its own index.
        Step::Counted if hits >= LIKELY_HITS && opposite.hits >= LIKELY_HITS && opposite.a != receiver => {
            Confidence::Certain
        }
        Step::Counted if hits >= LIKELY_HITS => Confidence::Likely,
        Step::Counted => Confidence::Possible,
        Step::Started | Step::Tolerated | Step::Rekeyed | Step::Repeated => return,
    };
    findings.add(segment, Protocol::Wireguard, &COUNTER, confidence, receiver);
}

/// Whether the other side's handshake announced this index as its own.
fn is_announced(findings: &Findings, segment: &Segment<'_>, receiver: u64) -> bool {
    [&INITIATION, &RESPONSE, &RESPONSE_ALONE]
        .into_iter()
        .any(|code| findings.of(code, segment.direction.opposite()).is_some_and(|found| found.last_value == receiver))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, ciphertext, udp};
    use crate::flow::Direction::{Forward, Reverse};

    fn message(kind: u8, len: usize, words: &[u32]) -> Vec<u8> {
        let mut octets = vec![kind, 0, 0, 0];
        octets.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let seed = words.iter().fold(7, |seed, word| seed * 31 + u64::from(*word));
        octets.extend(ciphertext(seed, len - octets.len()));
        octets
    }

    fn data(receiver: u32, counter: u32, len: usize) -> Vec<u8> {
        message(4, len, &[receiver, counter, 0])
    }

    #[test]
    fn cases() {
        let initiation = message(1, 148, &[0xa1]);
        let response = message(2, 92, &[0xb2, 0xa1]);
        let possible = Some((Protocol::Wireguard, Confidence::Possible));
        let likely = Some((Protocol::Wireguard, Confidence::Likely));
        let certain = Some((Protocol::Wireguard, Confidence::Certain));
        #[rustfmt::skip]
        let cases = [
            ("empty", vec![(Forward, vec![])], None),
            ("initiation alone", vec![(Forward, initiation.clone())], possible),
            ("initiation, one octet short", vec![(Forward, initiation[..147].to_vec())], None),
            ("initiation, one octet long", vec![(Forward, message(1, 149, &[0xa1]))], None),
            ("handshake", vec![(Forward, initiation.clone()), (Reverse, response.clone())], certain),
            ("response to another", vec![(Forward, initiation.clone()), (Reverse, message(2, 92, &[0xb2, 0xa3]))], possible),
            ("response the wrong way", vec![(Forward, initiation.clone()), (Forward, response.clone())], possible),
            ("cookie reply", vec![(Forward, initiation.clone()), (Reverse, message(3, 64, &[0xa1]))], certain),
            ("DNS query of 64 octets, id 0x0300", vec![(Forward, message(3, 64, &[0x100]))], None),
            ("one datagram of type 4", vec![(Forward, data(7, 0, 32))], None),
            ("data, random receivers", vec![(Forward, data(7, 0, 32)), (Forward, data(8, 1, 32)), (Forward, data(9, 2, 32))], None),
            ("data, one way", vec![
                (Forward, data(7, 500, 96)), (Forward, data(7, 501, 32)), (Forward, data(7, 503, 1452)), (Forward, data(7, 504, 32)),
            ], likely),
            ("data whose content repeats itself", (1..9).map(|n| (Forward, [&data(7, n, 16)[..], &[0x5a; 48]].concat())).collect(), None),
            ("a clock for a counter", (1..9).map(|n| (Forward, data(7, n * 1000, 96))).collect(), None),
            ("one index for both ways", (1..9).flat_map(|n| [(Forward, data(7, n, 96)), (Reverse, data(7, n + 50, 96))]).collect(), likely),
            ("data, not padded", vec![(Forward, data(7, 1, 97)), (Forward, data(7, 2, 97)), (Forward, data(7, 3, 97))], None),
            ("data, both ways", vec![
                (Forward, data(7, 5, 32)), (Reverse, data(9, 5, 32)), (Forward, data(7, 6, 32)), (Reverse, data(9, 6, 32)),
                (Forward, data(7, 7, 32)), (Reverse, data(9, 7, 32)), (Forward, data(7, 8, 32)), (Reverse, data(9, 8, 32)),
            ], certain),
            ("initiator only", vec![(Forward, initiation.clone()), (Forward, data(7, 0, 32))], likely),
            ("responder only", vec![(Reverse, response.clone()), (Reverse, data(0xa1, 0, 32))], likely),
            ("response missed", vec![(Forward, initiation), (Reverse, data(0xa1, 0, 32))], certain),
        ];
        for (name, packets, expected) in cases {
            assert_eq!(
                best(&Wireguard, &packets.iter().map(|(way, octets)| udp(*way, octets)).collect::<Vec<_>>()),
                expected,
                "{name}"
            );
        }
    }
}
