//! Turns TCP payloads and UDP datagrams into evidence of tinc 1.0 (tinc manual, chapter "The tinc protocol",
//! <https://www.tinc-vpn.org/documentation/>; protocol version 17) and 1.1 (`net_packet.c`, `sptps.c`; version 17.7).
//!
//! The meta protocol, over TCP, is lines of text until both sides hold keys, then a cipher without structure:
//!
//! | line | fields | sent |
//! |---|---|---|
//! | ID | `0`, name, `17` (1.1: `17.7`) | first, by both sides |
//! | METAKEY | `1`, cipher, digest, MAC length, compression, key in upper-case hexadecimal | second, by both sides |
//!
//! A packet, over UDP, is encrypted with everything in it unless `Cipher = none`:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 4 | sequence number, from 1 |
//! | 4 | 12 | Ethernet addresses; zero from a tun device |
//! | 16 | 2 | EtherType, then the packet, then a MAC (4 octets unless told otherwise) |
//!
//! A packet of 1.1, over UDP:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 6 | the receiver's identifier, zero from one neighbour to another |
//! | 6 | 6 | the sender's identifier, a hash of its name |
//! | 12 | 4 | sequence number |
//! | 16 | | encrypted type and packet, tag (16) |
//!
//! An ID line fixes 6 octets and the alphabet of the rest (below 2^-50 for random octets), a METAKEY line the places of
//! five numbers and at least 8 hexadecimal digits (below 2^-50); two of different names or keys, one from either side, are
//! certain. Packets of 1.1 fix six zeros (2^-48), each that follows six octets more and its number (2^-75), over ciphertext that
//! does not repeat itself: several in one direction are likely, with another identifier in the other certain. Packets in
//! clear fix 14 octets and a checksum (2^-128) and count. Encrypted packets show one thing: whole
//! blocks of 16 octets and a MAC of 4. Lengths and a port are no sign of who speaks: on tinc's own port they are possible,
//! elsewhere they get no name.

use super::inner::{self, Inner};
use super::sequence::{Content, Step};
use super::text::{digits, number_of};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u32_at, u64_at};

/// tinc over TCP and UDP.
#[derive(Debug)]
pub struct Tinc;

static ID: Code = Code {
    name: "tinc.id",
    meaning: "an ID line, with which either side begins; value: major version of the protocol",
    clause: "tinc manual, Authentication protocol, ID",
    phase: Phase::Handshake,
};

static METAKEY: Code = Code {
    name: "tinc.metakey",
    meaning: "a METAKEY line, which carries a session key under the other side's RSA key; value: octets of the line",
    clause: "tinc manual, Authentication protocol, METAKEY",
    phase: Phase::Handshake,
};

static CLEAR: Code = Code {
    name: "tinc.clear_packet",
    meaning: "counting packets without encryption, zero Ethernet addresses and an IP header that checks out; value: sequence number",
    clause: "tinc manual, The packet protocol",
    phase: Phase::Data,
};

static SPTPS: Code = Code {
    name: "tinc.sptps",
    meaning: "packets of tinc 1.1 from one sender's identifier straight to its neighbour, whose sequence number counts; value: that identifier",
    clause: "tinc 1.1 net_packet.c, SPTPS packets over UDP",
    phase: Phase::Data,
};

static BLOCKS: Code = Code {
    name: "tinc.blocks",
    meaning: "on tinc's port, nothing but lengths of whole cipher blocks and a MAC of 4 octets; value: octets of the packet",
    clause: "tinc manual, The packet protocol; Host configuration, Cipher, Digest, MACLength",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "tinc",
    protocols: &[Protocol::Tinc],
    carriers: &[CarrierKind::Tcp, CarrierKind::Udp],
    begins: &[
        Begin::Octets("30 20"),
        Begin::Octets("31 20"),
        Begin::Octets(".. .. .. .. 0000000. 00 00 00"),
        Begin::Octets("00 00 00 00 00 00"),
        Begin::Port(PORT),
    ],
    recognises: "ID and METAKEY lines of the meta connection; packets in clear by sequence and inner header; tinc 1.1's by identifier and sequence; on port 655 those of 1.0 by their lengths, as possible",
    specification: "tinc 1.0 manual, The tinc protocol; tinc 1.1 net_packet.c",
    chance: "an ID or METAKEY line: 2^-50; packets of 1.1: 2^-48, counting 2^-75; in clear: 2^-128",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "a meta connection after its first two lines; encrypted packets of 1.0, which show only their lengths; packets of 1.1 through a third node or over TCP",
    codes: &[&ID, &METAKEY, &CLEAR, &SPTPS, &BLOCKS],
};

impl Detector for Tinc {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        match (segment.carrier, segment.payload) {
            (Carrier::Tcp { .. }, [b'0' | b'1', b' ', ..]) => meta(segment, findings),
            (Carrier::Udp, [_, _, _, _, 0 | 1, 0, 0, 0, ..]) if clear(segment, findings) => {}
            (Carrier::Udp, [0, 0, 0, 0, 0, 0, sender @ .., _, _, _, _]) if sender.len() >= 6 => {
                sptps(segment, findings);
            }
            (Carrier::Udp, _) if segment.ports.contains(&PORT) => blocks(segment, findings),
            _ => {}
        }
    }
}

fn meta(segment: &Segment<'_>, findings: &mut Findings) {
    let mut offset = 0;
    if let Some((name, len)) = id_line(segment.payload) {
        let there = findings.slot(SlotId::Tinc, segment.direction.opposite()).a;
        findings.slot(SlotId::Tinc, segment.direction).a = name;
        findings.originator.get_or_insert(segment.direction);
        // The same name from both sides is an echo: tinc refuses its own.
        let answered = there != 0 && there != name;
        let own_key = findings.of(&METAKEY, segment.direction).is_some();
        findings.add(segment, Protocol::Tinc, &ID, level(answered, own_key), 17);
        offset = len;
    }
    let rest = segment.payload.get(offset..).unwrap_or_default();
    if let Some(key) = metakey_line(rest, segment.payload_len.saturating_sub(offset as u32)) {
        let there = findings.slot(SlotId::Tinc, segment.direction.opposite()).b;
        findings.slot(SlotId::Tinc, segment.direction).b = key;
        let answered = there != 0 && there != key;
        let own_id = findings.of(&ID, segment.direction).is_some();
        findings.add(segment, Protocol::Tinc, &METAKEY, level(answered, own_id), segment.payload_len.into());
    }
}

const fn level(answered: bool, second_line: bool) -> Confidence {
    match (answered, second_line) {
        (true, _) => Confidence::Certain,
        (_, true) => Confidence::Likely,
        _ => Confidence::Possible,
    }
}

/// Longer than any name in use.
const MAX_ID: usize = 80;

/// A number for the name, and the octets of the line.
fn id_line(octets: &[u8]) -> Option<(u64, usize)> {
    let end = octets.iter().take(MAX_ID).position(|octet| *octet == b'\n')?;
    let line = octets.get(..end)?.strip_prefix(b"0 ")?;
    let space = line.iter().position(|octet| *octet == b' ')?;
    let (name, version) = line.split_at_checked(space)?;
    // tinc manual, Name: letters, digits and underscores.
    let is_name = !name.is_empty() && name.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'_');
    let is_17 = match version.strip_prefix(b" 17")? {
        [] => true,
        [b'.', minor @ ..] => digits(minor, 2).is_some_and(<[u8]>::is_empty),
        _ => false,
    };
    (is_name && is_17).then(|| (number_of(name), end + 1))
}

/// The digits of the shortest RSA key in use, 1024 bits.
const MIN_KEY_DIGITS: usize = 256;
/// The digits that must be captured, and that keys are told apart by.
const KEY_DIGITS: usize = 8;

/// A number for the key; the line may be cut or go on in the next segment.
fn metakey_line(octets: &[u8], len: u32) -> Option<u64> {
    let mut rest = octets.strip_prefix(b"1 ")?;
    for _ in 0..4 {
        rest = digits(rest, 5)?.strip_prefix(b" ")?;
    }
    let captured = rest.strip_suffix(b"\n").unwrap_or(rest);
    let is_hex = captured.iter().all(|octet| matches!(octet, b'0'..=b'9' | b'A'..=b'F'));
    let missing = (len as usize).checked_sub(octets.len())?;
    (is_hex && captured.len() + missing >= MIN_KEY_DIGITS).then(|| captured.get(..KEY_DIGITS).map(number_of)).flatten()
}

/// Packets in clear before they are certain.
const CERTAIN_CLEAR: u32 = 3;
/// Packets that may be missing between two.
const MAX_GAP: u32 = 1 << 16;

/// Whether it is a packet in clear.
fn clear(segment: &Segment<'_>, findings: &mut Findings) -> bool {
    let Some(sequence) = u32_at(segment.payload, 0) else { return false };
    let is_tun = segment.payload.get(5..16).is_some_and(|addresses| addresses.iter().all(|octet| *octet == 0));
    let frame = segment.payload.get(4..).unwrap_or_default();
    if !is_tun || inner::ethernet(frame, segment.len_behind(4)) != Inner::Verified {
        return false;
    }
    let slot = findings.slot(SlotId::Tinc, segment.direction);
    let step = sequence.wrapping_sub(slot.a as u32);
    let counts = slot.hits > 0 && (1..MAX_GAP).contains(&step);
    slot.a = sequence.into();
    slot.hits = if counts { slot.hits.saturating_add(1) } else { 1 };
    let confidence = match slot.hits {
        CERTAIN_CLEAR.. => Confidence::Certain,
        2 => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::Tinc, &CLEAR, confidence, sequence.into());
    true
}

/// Packets of 1.1 that count before one direction is likely.
const LIKELY_SPTPS: u32 = 4;
/// The same in either direction before it is certain.
const CERTAIN_SPTPS: u32 = 3;
/// Identifiers, number, type and tag.
const SHORTEST_SPTPS: u32 = 6 + 6 + 4 + 1 + 16;

fn sptps(segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(sender), Some(sequence)) = (u64_at(segment.payload, 4), u32_at(segment.payload, 12)) else { return };
    // A hash: with zero octets around, two zeros in it are a number rather.
    let is_identifier = sender.to_be_bytes().into_iter().map(|octet| u32::from(octet == 0)).sum::<u32>() <= 3;
    if !is_identifier || segment.payload_len < SHORTEST_SPTPS {
        return;
    }
    let there = *findings.slot(SlotId::Tinc, segment.direction.opposite());
    let slot = findings.slot(SlotId::Tinc, segment.direction);
    let text = Content::Encrypted(segment.payload.get(16..).unwrap_or_default());
    let step = slot.step(sender, sequence.into(), text);
    let confidence = match (step, slot.hits, there.hits) {
        (Step::Counted, CERTAIN_SPTPS.., CERTAIN_SPTPS..) if there.a != sender => Confidence::Certain,
        (Step::Counted, LIKELY_SPTPS.., _) => Confidence::Likely,
        (Step::Counted, ..) => Confidence::Possible,
        _ => return,
    };
    findings.add(segment, Protocol::Tinc, &SPTPS, confidence, sender);
}

/// IANA: tinc.
const PORT: u16 = 655;
/// AES's block, and the MAC behind the blocks.
const BLOCK: u32 = 16;
const MAC: u32 = 4;
/// Packets in a row before lengths say anything.
const LEAST_BLOCKS: u64 = 4;

fn blocks(segment: &Segment<'_>, findings: &mut Findings) {
    let slot = findings.slot(SlotId::Tinc, segment.direction);
    let len = segment.payload_len;
    // Sequence number and Ethernet header fill two blocks.
    if len < 2 * BLOCK + MAC || len % BLOCK != MAC {
        // One that does not fit is enough: `b` counts anew, from behind zero.
        slot.b = 0;
        return;
    }
    slot.b = slot.b.saturating_add(1);
    if slot.b >= LEAST_BLOCKS {
        findings.add(segment, Protocol::Tinc, &BLOCKS, Confidence::Possible, len.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::ipv4_packet;
    use crate::detect::tests_support::{alarms, best, ciphertext, segment, udp};
    use crate::flow::Direction::{self, Forward, Reverse};
    use crate::wire::TcpFlags;

    fn tcp(way: Direction, octets: &[u8]) -> Segment<'_> {
        segment(way, Carrier::Tcp { seq: 1, flags: TcpFlags(TcpFlags::ACK) }, octets)
    }

    fn metakey(first: &str) -> Vec<u8> {
        format!("1 429 672 0 0 {first}{}\n", "A5".repeat(256 - first.len() / 2)).into_bytes()
    }

    #[test]
    fn meta_protocol() {
        let level = |confidence| Some((Protocol::Tinc, confidence));
        let id = |name: &str| format!("0 {name} 17\n").into_bytes();
        let both = [id("nodeb"), metakey("0123456789ABCDEF")].concat();
        let mut cut = metakey("0123456789ABCDEF");
        cut.truncate(90);
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, b"0 nodea 17".to_vec())], None),
            ("one octet long", vec![(Forward, b"0 nodea 171\n".to_vec())], None),
            ("no name", vec![(Forward, b"0  17\n".to_vec())], None),
            ("a name that is none", vec![(Forward, b"0 node-a 17\n".to_vec())], None),
            ("another version", vec![(Forward, b"0 nodea 16\n".to_vec())], None),
            ("one side", vec![(Forward, id("nodea"))], level(Confidence::Possible)),
            ("one side, both lines", vec![(Forward, both.clone())], level(Confidence::Likely)),
            ("both sides", vec![(Forward, id("nodea")), (Reverse, id("nodeb"))], level(Confidence::Certain)),
            ("an echo", vec![(Forward, id("nodea")), (Reverse, id("nodea"))], level(Confidence::Possible)),
            ("tinc 1.1", vec![(Forward, id("nodea")), (Reverse, b"0 nodeb 17.7\n".to_vec())], level(Confidence::Certain)),
            ("keys only", vec![(Reverse, metakey("11111111")), (Forward, metakey("22222222"))], level(Confidence::Certain)),
            ("a key only", vec![(Reverse, metakey("11111111"))], level(Confidence::Possible)),
            ("a short key", vec![(Reverse, b"1 429 672 0 0 0123456789ABCDEF\n".to_vec())], None),
            ("lower case", vec![(Reverse, metakey("abcdef0123456789"))], None),
            ("other text", vec![(Forward, b"1 2 3 4 5 six\n".to_vec()), (Reverse, b"0 OK\n".to_vec())], None),
            ("SMTP", vec![(Reverse, b"220 mail.example.net ESMTP\r\n".to_vec())], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| tcp(*way, octets)).collect();
            assert_eq!(best(&Tinc, &segments), expected, "{name}");
        }
        let cut = Segment { payload_len: 527, ..tcp(Forward, &cut) };
        assert_eq!(best(&Tinc, &[cut]), level(Confidence::Possible), "cut by the snap length");
    }

    fn clear(sequence: u32) -> Vec<u8> {
        [&sequence.to_be_bytes()[..], &[0; 12], &[8, 0], &ipv4_packet(40)].concat()
    }

    #[test]
    fn packets() {
        let level = |confidence| Some((Protocol::Tinc, confidence));
        let counting: Vec<_> = (1..5).map(clear).collect();
        let found =
            |packets: &[Vec<u8>]| best(&Tinc, &packets.iter().map(|octets| udp(Forward, octets)).collect::<Vec<_>>());
        assert_eq!(found(&counting[..1]), level(Confidence::Possible), "one packet in clear");
        assert_eq!(found(&counting), level(Confidence::Certain), "packets in clear");
        assert_eq!(found(&vec![clear(7); 9]), level(Confidence::Possible), "no sequence");
        assert_eq!(found(&[clear(1)[..40].to_vec(), vec![]]), None, "inner packet longer than its frame");

        let lengths = [84, 100, 164, 1396, 84, 212, 84, 84, 532];
        let on = |port: u16, lengths: &[u32], ways: &[Direction]| {
            let octets = [0x99; 40];
            let packets: Vec<_> = lengths
                .iter()
                .flat_map(|len| {
                    let of = |way: &Direction| Segment { ports: [port, 655], payload_len: *len, ..udp(*way, &octets) };
                    ways.iter().map(of).collect::<Vec<_>>()
                })
                .map(|packet| if port == 1 { Segment { ports: [7, 7], ..packet } } else { packet })
                .collect();
            best(&Tinc, &packets)
        };
        assert_eq!(on(655, &lengths, &[Forward, Reverse]), level(Confidence::Possible), "both sides");
        assert_eq!(on(655, &lengths, &[Forward]), level(Confidence::Possible), "one side");
        assert_eq!(on(655, &[84; 40], &[Forward, Reverse]), level(Confidence::Possible), "one length");
        assert_eq!(on(1, &lengths, &[Forward, Reverse]), None, "another port");
        assert_eq!(on(655, &[85, 101, 165, 213], &[Forward, Reverse]), None, "other lengths");
    }

    #[test]
    fn packets_of_1_1() {
        const HERE: [u8; 6] = [0x0b, 0xab, 0xe5, 0xea, 0x84, 0xdc];
        const THERE: [u8; 6] = [0xc5, 0x88, 0x8a, 0x30, 0x27, 0x17];
        let level = |confidence| Some((Protocol::Tinc, confidence));
        let packet = |sender: [u8; 6], sequence: u32| {
            [
                &[0; 6][..],
                &sender,
                &sequence.to_be_bytes(),
                &ciphertext(u64::from(sequence) << 8 | u64::from(sender[0]), 40),
            ]
            .concat()
        };
        let row = |way, sender, count: u32| (1..=count).map(|n| (way, packet(sender, n))).collect::<Vec<_>>();
        let stamped = (1..20).map(|n| (Forward, [&packet(HERE, n)[..16], &[0x5a; 40]].concat())).collect();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("one", row(Forward, HERE, 1), None),
            ("two", row(Forward, HERE, 2), level(Confidence::Possible)),
            ("one way", row(Forward, HERE, 4), level(Confidence::Likely)),
            ("both ways", [row(Forward, HERE, 3), row(Reverse, THERE, 3)].concat(), level(Confidence::Certain)),
            ("an echo", [row(Forward, HERE, 3), row(Reverse, HERE, 3)].concat(), level(Confidence::Possible)),
            ("through a third node", row(Forward, HERE, 9).into_iter().map(|(way, packet)| (way, [&THERE[..], &packet[6..]].concat())).collect(), None),
            ("one octet short", row(Forward, HERE, 9).into_iter().map(|(way, packet)| (way, packet[..32].to_vec())).collect(), None),
            ("a number for an identifier", row(Forward, [0, 0, 0, 0, 1, 7], 9), None),
            ("content that repeats itself", stamped, None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Tinc, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&Tinc, Carrier::Udp, [655, 655], |noise| {
            let len = 36 + noise.below(1200) as usize;
            let mut octets = noise.octets(len);
            if noise.below(2) == 0 {
                octets[5..12].fill(0);
            } else {
                octets[..6].fill(0);
            }
            octets
        });
        assert_eq!(found, None);
        let tcp = Carrier::Tcp { seq: 1, flags: TcpFlags(TcpFlags::ACK) };
        let found = alarms(&Tinc, tcp, [655, 40_000], |noise| {
            let mut octets = noise.octets(300);
            octets[0] = b'0' + noise.below(2) as u8;
            octets[1] = b' ';
            octets
        });
        assert_eq!(found, None);
    }
}
