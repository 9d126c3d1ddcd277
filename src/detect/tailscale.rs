//! Turns UDP datagrams into evidence of Tailscale: its discovery messages (tailscale `disco/disco.go`) and what passes a
//! peer relay (`net/packet/geneve.go`; RFC 8926 3.4 for the header).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 6 | magic `54 53 f0 9f 92 ac`, "TS" and a speech balloon in UTF-8 |
//! | 6 | 32 | the sender's public key for discovery: one as long as the program runs |
//! | 38 | 24 | nonce, never the same twice |
//! | 62 | 18 and more | NaCl box: tag (16), type (1), version (1), message; a ping has 12 or 44 octets, a pong 30 |
//!
//! Through a peer relay a Geneve header stands before it, and before the WireGuard messages that it relays:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 2 | version 0, no options: 0; then 0, or 0x80 in the handshake with the relay |
//! | 2 | 2 | 0x7a11 disco, 0x7a12 WireGuard |
//! | 4 | 4 | network identifier, the relay's number for the two peers (3), zero (1) |
//!
//! The magic is chance once in 2^48, the same key again once in 2^256. One message is one sign; a second one with the same
//! key and another nonce makes it likely; messages of two keys, one either way, are certain. A relayed WireGuard message
//! fixes 39 bits of the Geneve header, its network identifier (24 bits from the second on) and 30 bits of its own header: 2^-93
//! for each that follows.
//!
//! Beside WireGuard on the same flow, WireGuard is what carries the traffic and gives the flow its name.

use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u32_at, u64_at};

/// Tailscale over UDP on any port.
#[derive(Debug)]
pub struct Tailscale;

static DISCO: Code = Code {
    name: "tailscale.disco",
    meaning: "a discovery message: magic, public key, nonce, box; value: a number for the sender's key",
    clause: "tailscale disco.go, Header",
    phase: Phase::Handshake,
};

static RELAY_DISCO: Code = Code {
    name: "tailscale.relay_disco",
    meaning: "a discovery message to or through a peer relay; value: a number for the sender's key",
    clause: "tailscale geneve.go, GeneveProtocolDisco",
    phase: Phase::Handshake,
};

static RELAY_DATA: Code = Code {
    name: "tailscale.relay_data",
    meaning: "WireGuard messages through a peer relay under one network identifier; value: that identifier",
    clause: "tailscale geneve.go, GeneveProtocolWireGuard",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "tailscale",
    protocols: &[Protocol::Tailscale],
    carriers: &[CarrierKind::Udp],
    begins: &[
        Begin::Octets("54 53 f0 9f 92 ac"),
        Begin::Octets("00 .0000000 7a 11 .. .. .. 00"),
        Begin::Octets("00 00 7a 12 .. .. .. 00"),
    ],
    recognises: "disco messages by magic and the keys of both sides, beside WireGuard or alone; what passes a peer relay",
    specification: "tailscale disco.go, geneve.go; RFC 8926",
    chance: "2^-48 a message, the same key again 2^-256",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "what goes by DERP, which is inside TLS; WireGuard between disco messages is wireguard, as is the whole flow",
    codes: &[&DISCO, &RELAY_DISCO, &RELAY_DATA],
};

pub(super) const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// Magic, key, nonce, tag, type and version.
const SHORTEST_DISCO: u32 = 6 + 32 + 24 + 16 + 2;
/// The Geneve header, which has no options.
const GENEVE: u32 = 8;

impl Detector for Tailscale {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        match segment.payload {
            [0x54, 0x53, ..] => disco(segment.payload, segment.payload_len, &DISCO, segment, findings),
            [0, 0 | 0x80, 0x7a, 0x11, _, _, _, 0, message @ ..] => {
                disco(message, segment.payload_len.saturating_sub(GENEVE), &RELAY_DISCO, segment, findings);
            }
            [0, 0, 0x7a, 0x12, _, _, _, 0, message @ ..] => relayed(message, segment, findings),
            _ => {}
        }
    }
}

fn disco(octets: &[u8], len: u32, code: &'static Code, segment: &Segment<'_>, findings: &mut Findings) {
    // The key is captured even where the frame is cut to 96 octets; the nonce may not be.
    let Some(key) = octets.get(MAGIC.len()..MAGIC.len() + 32) else { return };
    if !octets.starts_with(&MAGIC) || len < SHORTEST_DISCO {
        return;
    }
    let key = number_of(key);
    let nonce = u64_at(octets, 38);
    let there = *findings.slot(SlotId::Tailscale, segment.direction.opposite());
    let slot = findings.slot(SlotId::Tailscale, segment.direction);
    if slot.hits == 0 || slot.a != key {
        (slot.a, slot.hits) = (key, 0);
    } else if nonce.is_some_and(|nonce| nonce == slot.content) {
        // The same message again.
        return;
    }
    slot.content = nonce.unwrap_or_default();
    slot.hits = slot.hits.saturating_add(1);
    let confidence = match (slot.hits, there.hits) {
        // The same key from both sides is an echo.
        (_, 1..) if there.a != key => Confidence::Certain,
        (2.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.originator.get_or_insert(segment.direction);
    findings.add(segment, Protocol::Tailscale, code, confidence, key);
}

/// Relayed messages of one network before one direction is likely.
const LIKELY_HITS: u32 = 4;
/// The same in either direction before it is certain.
const CERTAIN_HITS: u32 = 3;

fn relayed(message: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let [kind @ 1..=4, 0, 0, 0, rest @ ..] = message else { return };
    let len = segment.payload_len.saturating_sub(GENEVE);
    // WireGuard whitepaper 5.4: lengths of its messages.
    if !matches!((kind, len), (1, 148) | (2, 92) | (3, 64) | (4, 32..)) {
        return;
    }
    // An initiation begins with an index and a key, data with an index and a counter: never the same twice.
    let (Some(network), Some(content)) = (u32_at(segment.payload, 4), u64_at(rest, 4)) else { return };
    let network = u64::from(network >> 8);
    let there = *findings.slot(SlotId::TailscaleRelay, segment.direction.opposite());
    let slot = findings.slot(SlotId::TailscaleRelay, segment.direction);
    if slot.hits == 0 || slot.a != network {
        (slot.a, slot.hits) = (network, 0);
    } else if slot.content == content {
        return;
    }
    slot.content = content;
    slot.hits = slot.hits.saturating_add(1);
    let confidence = match (slot.hits, if there.a == network { there.hits } else { 0 }) {
        (CERTAIN_HITS.., CERTAIN_HITS..) => Confidence::Certain,
        (LIKELY_HITS.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::Tailscale, &RELAY_DATA, confidence, network);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::detect::wireguard::Wireguard;
    use crate::flow::Direction::{self, Forward, Reverse};

    fn disco(key: u8, nonce: u64, len: usize) -> Vec<u8> {
        [&MAGIC[..], &[key; 32], &ciphertext(nonce, len - 38)].concat()
    }

    fn geneve(flags: u8, kind: u8, network: u8, message: &[u8]) -> Vec<u8> {
        [&[0, flags, 0x7a, kind, 0, 1, network, 0][..], message].concat()
    }

    fn data(receiver: u8, counter: u8) -> Vec<u8> {
        let head = [4, 0, 0, 0, receiver, 7, 7, 7, counter, 0, 0, 0, 0, 0, 0, 0];
        [&head[..], &ciphertext(u64::from(counter) << 8 | u64::from(receiver), 80)].concat()
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Tailscale, confidence));
        let wrong_magic = [&MAGIC[..5], &[0xad], &ciphertext(1, 110)].concat();
        let relay = |way, network, count: u8| -> Vec<_> {
            (0..count).map(|n| (way, geneve(0, 0x12, network, &data(way as u8, n)))).collect()
        };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, disco(1, 1, 79)); 4], None),
            ("the shortest", vec![(Forward, disco(1, 1, 80))], level(Confidence::Possible)),
            ("the same ping again", vec![(Forward, disco(1, 1, 124)); 9], level(Confidence::Possible)),
            ("pings without an answer", vec![(Forward, disco(1, 1, 124)), (Forward, disco(1, 2, 124))], level(Confidence::Likely)),
            ("keys that change", (1..9).map(|n| (Forward, disco(n, n.into(), 124))).collect(), level(Confidence::Possible)),
            ("a ping and a pong", vec![(Forward, disco(1, 1, 124)), (Reverse, disco(2, 2, 110))], level(Confidence::Certain)),
            ("an echo", vec![(Forward, disco(1, 1, 124)), (Reverse, disco(1, 1, 124))], level(Confidence::Possible)),
            ("nearly the magic", vec![(Forward, wrong_magic); 9], None),
            ("text that begins so", vec![(Forward, [b"TS3INIT1".to_vec(), vec![7; 99]].concat()); 9], None),
            ("the handshake with a relay", vec![
                (Forward, geneve(0x80, 0x11, 1, &disco(1, 1, 150))), (Reverse, geneve(0x80, 0x11, 1, &disco(2, 2, 182))),
            ], level(Confidence::Certain)),
            ("through a relay, one way", relay(Forward, 1, 4), level(Confidence::Likely)),
            ("through a relay, a few", relay(Forward, 1, 3), level(Confidence::Possible)),
            ("through a relay, both ways", [relay(Forward, 1, 3), relay(Reverse, 1, 3)].concat(), level(Confidence::Certain)),
            ("of two networks", [relay(Forward, 1, 3), relay(Reverse, 2, 3)].concat(), level(Confidence::Possible)),
            ("the same data again", vec![(Forward, geneve(0, 0x12, 1, &data(1, 1))); 9], level(Confidence::Possible)),
            ("Geneve around Ethernet", vec![(Forward, [&[0, 0, 0x65, 0x58, 0, 0, 1, 0][..], &[2; 99]].concat()); 9], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Tailscale, &segments), expected, "{name}");
        }
    }

    #[test]
    fn a_cut_nonce_is_no_repetition() {
        let octets = disco(1, 1, 124);
        let cut = Segment { payload: &octets[..40], payload_len: 124, ..udp(Forward, &octets) };
        let mut findings = Findings::default();
        for _ in 0..2 {
            Tailscale.inspect(&cut, &mut findings);
        }
        assert_eq!(findings.detection().map(|found| found.confidence), Some(Confidence::Likely));
    }

    #[test]
    fn wireguard_names_the_flow_that_both_share() {
        let (ping, pong) = (disco(1, 1, 124), disco(2, 2, 110));
        let disco = [(Forward, ping), (Reverse, pong)];
        let wireguard: Vec<_> = (0..6_u8).flat_map(|n| [(Forward, data(1, n)), (Reverse, data(2, n))]).collect();
        for order in [[&disco[..], &wireguard[..]].concat(), [&wireguard[..], &disco[..]].concat()] {
            let mut findings = Findings::default();
            for (way, octets) in &order {
                Wireguard.inspect(&udp(*way, octets), &mut findings);
                Tailscale.inspect(&udp(*way, octets), &mut findings);
            }
            let found = findings.detection().map(|found| (found.protocol, found.confidence));
            assert_eq!(found, Some((Protocol::Wireguard, Confidence::Certain)));
            assert!(findings.has(Protocol::Tailscale, Confidence::Certain));
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&Tailscale, Carrier::Udp, [41_641, 41_641], |noise| {
            let len = 80 + noise.below(100) as usize;
            let mut octets = noise.octets(len);
            match noise.below(3) {
                0 => octets[..4].copy_from_slice(&MAGIC[..4]),
                1 => octets[..4].copy_from_slice(&[0, 0, 0x7a, 0x12]),
                _ => octets[..4].copy_from_slice(&[0, 0x80, 0x7a, 0x11]),
            }
            octets
        });
        assert_eq!(found, None);
    }
}
