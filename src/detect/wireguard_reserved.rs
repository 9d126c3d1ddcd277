//! Turns WireGuard messages whose reserved octets are in use into evidence of WireGuard.
//!
//! The whitepaper (5.4) says zero; Cloudflare's WARP writes the three octets of a client identifier there, after the MACs were
//! computed, in every message of a flow, and reads them as zero. All else is as in `wireguard.rs`.
//!
//! Without the zeros a message alone has no sign but its type and length: an initiation is only remembered. A response of 92
//! octets that repeats its sender index (2^-32) with the same identifier (2^-24) and the next type (2^-8) is certain.
//! Data is told as ever, by receiver index and counter (2^-92 a packet) with the identifier as constant (2^-24) over
//! ciphertext that does not repeat itself, but from one side alone only after twice as many packets.

use super::sequence::{Content, Step};
use super::wireguard::{LIKELY_HITS, MAX_COUNTER, index_at, is_data_len};
use super::{Code, Confidence, Findings, Phase, Protocol, Segment, SlotId};
use crate::wire::cursor::u32_at;

pub(super) static RESERVED: Code = Code {
    name: "wireguard.reserved_response",
    meaning: "a handshake response that repeats the initiation's sender index, with the same identifier in the reserved octets; value: that identifier",
    clause: "WireGuard whitepaper 5.4.3; Cloudflare WARP, client_id",
    phase: Phase::Handshake,
};

pub(super) static RESERVED_COUNTER: Code = Code {
    name: "wireguard.reserved_counter",
    meaning: "data messages with one receiver index, one identifier in the reserved octets and a counter that counts; value: receiver index",
    clause: "WireGuard whitepaper 5.4.6; Cloudflare WARP, client_id",
    phase: Phase::Data,
};

pub(super) fn inspect(kind: u8, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    match (kind, segment.payload_len) {
        (1, 148) => initiation(rest, segment, findings),
        (2, 92) => response(rest, segment, findings),
        (4, len) if is_data_len(len) => data(rest, segment, findings),
        _ => {}
    }
}

/// The three octets behind the type.
fn identifier(segment: &Segment<'_>) -> u64 {
    u64::from(u32_at(segment.payload, 0).unwrap_or_default() & 0x00ff_ffff)
}

fn initiation(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(sender) = index_at(rest, 0) else { return };
    findings.slot(SlotId::WireguardReservedInitiation, segment.direction).a = identifier(segment) << 32 | sender;
}

fn response(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(receiver) = index_at(rest, 4) else { return };
    let asked = findings.slot(SlotId::WireguardReservedInitiation, segment.direction.opposite()).a;
    if asked == identifier(segment) << 32 | receiver {
        findings.add(segment, Protocol::Wireguard, &RESERVED, Confidence::Certain, identifier(segment));
        findings.originator.get_or_insert(segment.direction.opposite());
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
    let there = *findings.slot(SlotId::WireguardReserved, segment.direction.opposite());
    let slot = findings.slot(SlotId::WireguardReserved, segment.direction);
    let text = Content::Encrypted(rest.get(12..).unwrap_or_default());
    let step = slot.step(identifier(segment) << 32 | receiver, counter, text);
    let is_answered = there.hits >= LIKELY_HITS && there.a >> 32 == identifier(segment) && there.a != slot.a;
    let confidence = match (step, slot.hits) {
        (Step::Counted, LIKELY_HITS..) if is_answered => Confidence::Certain,
        (Step::Counted, hits) if hits >= 2 * LIKELY_HITS => Confidence::Likely,
        (Step::Counted, LIKELY_HITS..) => Confidence::Possible,
        _ => return,
    };
    findings.add(segment, Protocol::Wireguard, &RESERVED_COUNTER, confidence, receiver);
}

#[cfg(test)]
mod tests {
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::detect::wireguard::Wireguard;
    use crate::detect::{Carrier, Confidence, Protocol};
    use crate::flow::Direction::{self, Forward, Reverse};

    const CLIENT: [u8; 3] = [0xb9, 0x19, 0x81];

    fn message(kind: u8, reserved: [u8; 3], len: usize, words: &[u32]) -> Vec<u8> {
        let mut octets = [&[kind][..], &reserved].concat();
        octets.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let seed = words.iter().fold(7, |seed, word| seed * 31 + u64::from(*word));
        octets.extend(ciphertext(seed, len - octets.len()));
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Wireguard, confidence));
        let initiation = (Forward, message(1, CLIENT, 148, &[0xa1]));
        let response = |reserved| (Reverse, message(2, reserved, 92, &[0xb2, 0xa1]));
        let row = |way, receiver, count: u32| -> Vec<_> {
            (0..count).map(|n| (way, message(4, CLIENT, 96, &[receiver, n, 0]))).collect()
        };
        let other =
            |way, count: u32| -> Vec<_> { (0..count).map(|n| (way, message(4, [1, 2, 3], 96, &[9, n, 0]))).collect() };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("initiations alone", vec![initiation.clone(); 9], None),
            ("one octet short", vec![(Forward, message(1, CLIENT, 147, &[0xa1])), response(CLIENT)], None),
            ("handshake", vec![initiation.clone(), response(CLIENT)], level(Confidence::Certain)),
            ("response of another client", vec![initiation.clone(), response([1, 2, 3])], None),
            ("response to another", vec![initiation.clone(), (Reverse, message(2, CLIENT, 92, &[0xb2, 0xa2]))], None),
            ("response the wrong way", vec![initiation, (Forward, message(2, CLIENT, 92, &[0xb2, 0xa1]))], None),
            ("data, a few", row(Forward, 7, 3), None),
            ("data, some", row(Forward, 7, 4), level(Confidence::Possible)),
            ("data, one way", row(Forward, 7, 8), level(Confidence::Likely)),
            ("data, both ways", [row(Forward, 7, 4), row(Reverse, 9, 4)].concat(), level(Confidence::Certain)),
            ("data, both ways, one index", [row(Forward, 7, 4), row(Reverse, 7, 4)].concat(), level(Confidence::Possible)),
            ("data of two clients", [row(Forward, 7, 4), other(Reverse, 4)].concat(), level(Confidence::Possible)),
            ("data, not padded", (0..20).map(|n| (Forward, message(4, CLIENT, 97, &[7, n, 0]))).collect(), None),
            ("content that repeats itself", (0..20).map(|n| (Forward, [&message(4, CLIENT, 16, &[7, n, 0])[..], &[7; 48]].concat())).collect(), None),
            ("DNS queries", (0..20).map(|n| (Forward, message(4, [n, 1, 0], 64, &[0x100, 0, 7]))).collect(), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Wireguard, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        // With and without the reserved octets, in the lengths and with the types of all messages.
        let found = alarms(&Wireguard, Carrier::Udp, [2408, 40_000], |noise| {
            let kind = noise.below(4) as usize;
            let mut octets = noise.octets([148, 92, 64, 96][kind]);
            octets[0] = 1 + kind as u8;
            if noise.below(2) == 0 {
                octets[1..4].fill(0);
            }
            octets
        });
        assert_eq!(found, None);
    }
}
