//! Turns UDP payloads into evidence of CAPWAP (RFC 5415, RFC 5416): access points tunnelled to their controller, on any port
//! (control 5246, data 5247).
//!
//! | offset | octets | field (RFC 5415 4.2, 4.3) |
//! |---|---|---|
//! | 0 | 1 | version (4 bits, 0), type (4 bits): 0 a CAPWAP header follows, 1 DTLS |
//! | 1 | 3 | DTLS: zero, then a DTLS record |
//! | 1 | 3 | else: header length in words (5 bits), radio (5), binding (5), flags T F L W M K (6), reserved (3, zero) |
//! | 4 | 4 | fragment identifier, offset (13 bits), reserved (3 bits, zero); zero without F |
//! | 8 | | radio's address if M, wireless information if W |
//! | next | 8 and more | control: message type (4), sequence number (1), length (2), flags (1, zero), elements: type (2), length (2), value |
//! | next | | data: an 802.3 frame, with T one of the binding (802.11); with K a session identifier |
//!
//! Without DTLS a control message must be filled by elements of known types in as many octets as it says, which random octets
//! are once in 2^70; responses return the sequence number of their requests. Data must hold a frame with an IP packet or
//! another one that checks out (44 bits and more). A record of DTLS behind the preamble is filled to its end: 44 bits, and
//! from both sides certain.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::{u16_at, u32_at};

/// CAPWAP over UDP on any port.
#[derive(Debug)]
pub struct Capwap;

static CONTROL: Code = Code {
    name: "capwap.control",
    meaning: "a control message filled by its elements; value: message type",
    clause: "RFC 5415 4.5",
    phase: Phase::Handshake,
};

static RESPONSE: Code = Code {
    name: "capwap.response",
    meaning: "the response to a request with its sequence number; value: message type",
    clause: "RFC 5415 4.5.1.2",
    phase: Phase::Handshake,
};

static KEEP_ALIVE: Code = Code {
    name: "capwap.keep_alive",
    meaning: "a data channel's keep-alive with its session identifier; value: the identifier's first 8 octets",
    clause: "RFC 5415 4.4.1",
    phase: Phase::Data,
};

static DTLS: Code = Code {
    name: "capwap.dtls",
    meaning: "a DTLS record behind CAPWAP's preamble; value: DTLS content type",
    clause: "RFC 5415 4.2",
    phase: Phase::Stateless,
};

static FRAME: Code = Code {
    name: "capwap.frame",
    meaning: "a CAPWAP header with a frame inside that checks out; value: radio",
    clause: "RFC 5415 4.4.2",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "capwap",
    protocols: &[Protocol::Capwap],
    carriers: &[CarrierKind::Udp],
    begins: &[
        // DTLS: change cipher spec, alert, handshake, data.
        Begin::Octets("01 00 00 00 000101.. fe f."),
        // Headers of 2 to 7 words, no fragment.
        Begin::Octets("00 0001.... ........ 00...000 00 00 00 00"),
        Begin::Octets("00 001..... ........ 00...000 00 00 00 00"),
        // First fragments.
        Begin::Octets("00 00...... ........ 10...000 .. .. 00 00"),
    ],
    recognises: "control messages by their elements, and by responses; data by the frame inside; both under DTLS by its preamble",
    specification: "RFC 5415, RFC 5416",
    chance: "control with its elements: 2^-70; a frame or DTLS record: 2^-44",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "802.11 management frames on the data channel; what is inside DTLS; LWAPP",
    codes: &[&CONTROL, &RESPONSE, &KEEP_ALIVE, &DTLS, &FRAME],
};

impl Detector for Capwap {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        match segment.payload {
            [0, ..] => {
                let Some(header) = Header::read(segment.payload) else { return };
                let len = segment.payload_len.saturating_sub(header.len as u32);
                let inside = segment.payload.get(header.len..).unwrap_or_default();
                if header.is_keep_alive {
                    keep_alive(inside, len, segment, findings);
                } else if let Some(message) = (!header.is_native).then(|| Message::read(inside, len)).flatten() {
                    control(message, segment, findings);
                } else if let Some(bits) = header.frame(inside, len) {
                    // Three bits reserved, and the header's length.
                    share(&FRAME, bits + 8, header.radio.into(), segment, findings);
                }
            }
            [1, 0, 0, 0, record @ ..] => dtls(record, segment, findings),
            _ => {}
        }
    }
}

fn share(code: &'static Code, bits: u32, value: u64, segment: &Segment<'_>, findings: &mut Findings) {
    overlay::add(&Share { protocol: Protocol::Capwap, code, bits, identity: value, value }, segment, findings);
}

/// RFC 6347 4.1: content type, version, epoch and sequence number, length; records fill the datagram.
fn dtls(record: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let len = segment.payload_len.saturating_sub(4);
    let Some(&content @ 20..=23) = record.first() else { return };
    let mut at: u32 = 0;
    while at < len {
        let header = record.get(at as usize..).unwrap_or_default();
        let is_record = matches!(header.first(), Some(20..=23)) && matches!(u16_at(header, 1), Some(0xfeff | 0xfefd));
        let Some(length) = u16_at(header, 11).filter(|_| is_record) else {
            // Behind the first record the rest may be cut.
            let is_cut = (record.len() as u32) < len && header.len() < 13;
            if at == 0 || !is_cut {
                return;
            }
            at = len;
            break;
        };
        at += 13 + u32::from(length);
    }
    if at > len && !segment.is_fragment {
        return;
    }
    let there = findings.of(&DTLS, segment.direction.opposite()).is_some();
    let confidence = if there { Confidence::Certain } else { Confidence::Likely };
    findings.add(segment, Protocol::Capwap, &DTLS, confidence, content.into());
}

/// What precedes a control message or frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Octets.
    len: usize,
    radio: u8,
    /// The binding's own frame format: 802.11.
    is_native: bool,
    is_keep_alive: bool,
    /// More fragments follow.
    is_cut: bool,
}

impl Header {
    /// `None` also for later fragments.
    fn read(octets: &[u8]) -> Option<Self> {
        let (word, fragment) = (u32_at(octets, 0)?, u32_at(octets, 4)?);
        let bit = |number: u32| word >> number & 1 == 1;
        let (is_native, is_fragment, is_last, wireless, radio_address) = (bit(8), bit(7), bit(6), bit(5), bit(4));
        let len = (word >> 19 & 0x1f) as usize * 4;
        let binding = word >> 9 & 0x1f;
        // Preamble and reserved bits; an offset of zero, and neither identifier nor last flag without fragments.
        let is_reserved = word >> 24 != 0 || word.trailing_zeros() < 3 || fragment.trailing_zeros() < 16 || binding > 3;
        if is_reserved || is_last || (!is_fragment && fragment != 0) {
            return None;
        }
        // RFC 5415 4.3: optional fields have a length octet, and are padded to words.
        let mut end = 8;
        for _ in 0..u8::from(radio_address) + u8::from(wireless) {
            end += (1 + usize::from(*octets.get(end)?)).next_multiple_of(4);
        }
        let radio = (word >> 14 & 0x1f) as u8;
        (end == len).then_some(Self { len, radio, is_native, is_keep_alive: bit(3), is_cut: is_fragment })
    }

    fn frame(&self, octets: &[u8], len: u32) -> Option<u32> {
        // The whole frame's length is in no fragment.
        let len = if self.is_cut { u32::MAX } else { len };
        if self.is_native { wireless_frame(octets, len) } else { overlay::ethernet(octets, len) }
    }
}

/// An 802.11 data frame (IEEE 802.11 9.2.3) with an IP packet or ARP behind LLC and SNAP. Some controllers swap the first two
/// octets.
fn wireless_frame(octets: &[u8], len: u32) -> Option<u32> {
    let control: [u8; 2] = *octets.first_chunk()?;
    let [low, flags] = if is_data(control[0]) { control } else { [control[1], control[0]] };
    if !is_data(low) {
        return None;
    }
    // To and from the distribution system: four addresses; quality of service: two octets more.
    let header = 24 + if flags & 3 == 3 { 6 } else { 0 } + if low & 0x80 != 0 { 2 } else { 0 };
    // RFC 1042: the SNAP header of Ethernet's types.
    let behind = octets.get(header..)?.strip_prefix(&[0xaa, 0xaa, 0x03, 0, 0, 0])?;
    let (kind, inside) = (u16_at(behind, 0)?, behind.get(2..)?);
    let inside_len = len.checked_sub(header as u32 + 8)?;
    let content = match kind {
        0x0800 => overlay::ipv4(inside, inside_len, Fit::Padded)?,
        0x86dd => overlay::ipv6(inside, inside_len, Fit::Padded)?,
        0x0806 => inside.starts_with(&[0, 1, 8, 0, 6, 4, 0]).then_some(28)?,
        _ => return None,
    };
    Some(content + 32)
}

/// Version 0, data, with or without quality of service.
const fn is_data(control: u8) -> bool {
    matches!(control, 0x08 | 0x88)
}

/// A control message that checks out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    kind: u32,
    sequence: u8,
    /// As far as captured.
    elements: u32,
}

impl Message {
    fn read(octets: &[u8], len: u32) -> Option<Self> {
        let kind = u32_at(octets, 0)?;
        let (sequence, length, flags) = (*octets.get(4)?, u16_at(octets, 5)?, *octets.get(7)?);
        // RFC 5415 4.5.1.1: the base protocol's messages, and those of 802.11 (RFC 5416 5).
        let is_known = matches!(kind, 1..=26 | 0x0033_dd01 | 0x0033_dd02);
        // The length counts from itself on; some count the elements alone.
        let elements = len.checked_sub(8)?;
        if !is_known || flags != 0 || (u32::from(length) != elements + 3 && u32::from(length) != elements) {
            return None;
        }
        let (mut at, mut count): (usize, u32) = (8, 0);
        while (at as u32) < len {
            // RFC 5415 4.6: 1 to 53; bindings from 1024 on.
            let (Some(element), Some(length)) = (u16_at(octets, at), u16_at(octets, at + 2)) else {
                // Cut, behind elements that fit.
                return (at >= 24 && (octets.len() as u32) < len).then_some(Self { kind, sequence, elements: count });
            };
            if !matches!(element, 1..=60 | 1024..=1100) {
                return None;
            }
            at += 4 + usize::from(length);
            count += 1;
        }
        (at as u32 == len).then_some(Self { kind, sequence, elements: count })
    }
}

fn control(message: Message, segment: &Segment<'_>, findings: &mut Findings) {
    let Message { kind, sequence, elements } = message;
    // An echo has none: mostly zeros, which others send as well. It speaks beside others.
    if elements == 0 && !findings.has(Protocol::Capwap, Confidence::Possible) {
        return;
    }
    let number = u64::from(kind) << 8 | u64::from(sequence);
    // Requests have odd types, responses the even ones behind them.
    let asked = number.wrapping_sub(1 << 8);
    let is_answer = kind % 2 == 0
        && kind > 0
        && findings.of(&CONTROL, segment.direction.opposite()).is_some_and(|found| found.last_value == asked);
    if is_answer {
        findings.add(segment, Protocol::Capwap, &RESPONSE, Confidence::Certain, kind.into());
        return;
    }
    // One element of small numbers may be chance, several that fill the message, or another message, are none.
    let is_more = elements >= 2 || findings.of(&CONTROL, segment.direction).is_some_and(|found| found.value != number);
    let confidence = if is_more { Confidence::Likely } else { Confidence::Possible };
    findings.add(segment, Protocol::Capwap, &CONTROL, confidence, number);
}

/// RFC 5415 4.4.1: a length and one session identifier, which is 16 octets long.
fn keep_alive(octets: &[u8], len: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(length), Some(element)) = (u16_at(octets, 0), octets.get(2..6)) else { return };
    let Some(identifier) = octets.get(6..14) else { return };
    if element != [0, 35, 0, 16] || len != 22 || !matches!(length, 20 | 22) {
        return;
    }
    let identifier = u64::from_be_bytes(*identifier.first_chunk().unwrap_or(&[0; 8]));
    let there = findings.of(&KEEP_ALIVE, segment.direction.opposite());
    let confidence = match there.map(|there| there.last_value) {
        Some(other) if other == identifier => Confidence::Certain,
        _ => Confidence::Likely,
    };
    findings.add(segment, Protocol::Capwap, &KEEP_ALIVE, confidence, identifier);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{frame, series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    const PLAIN: [u8; 8] = [0, 0x10, 0x42, 0, 0, 0, 0, 0];
    const NATIVE: [u8; 8] = [0, 0x10, 0x43, 0, 0, 0, 0, 0];

    fn message(kind: u8, sequence: u8, elements: &[u8]) -> Vec<u8> {
        let len = elements.len() as u8 + 3;
        [&PLAIN[..], &[0, 0, 0, kind, sequence, 0, len, 0], elements].concat()
    }

    fn wireless(control: [u8; 2], inside: &[u8]) -> Vec<u8> {
        let qos: &[u8] = if control.contains(&0x88) { &[0, 0] } else { &[] };
        [&NATIVE[..], &control, &[2; 22], qos, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], inside].concat()
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Capwap, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let data = [&PLAIN[..], &frame(0x0800, &four)].concat();
        let with_radio =
            [&[0, 0x20, 0x42, 0x10, 0, 0, 0, 0, 6, 2, 2, 2, 2, 2, 2, 0][..], &frame(0x86dd, &six)].concat();
        let ask = message(1, 7, &[0, 20, 0, 1, 1, 0, 44, 0, 1, 0]);
        let answer = message(2, 7, &[0, 20, 0, 1, 1]);
        let alive = [&[0, 0x10, 0x42, 8, 0, 0, 0, 0, 0, 22, 0, 35, 0, 16][..], &[9; 16]].concat();
        let dtls = [&[1, 0, 0, 0, 23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 5, 0, 4][..], &[7; 4]].concat();
        let mut other_element = ask.clone();
        other_element[16] = 9;
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", vec![(Forward, PLAIN.to_vec())], None),
            ("request", vec![(Forward, ask.clone())], likely),
            ("requests", vec![(Forward, ask.clone()), (Forward, message(1, 8, &[]))], likely),
            ("request and response", vec![(Forward, ask.clone()), (Reverse, answer.clone())], certain),
            ("response to another", vec![(Forward, ask.clone()), (Reverse, message(2, 8, &[]))], likely),
            ("response of another type", vec![(Forward, ask.clone()), (Reverse, message(4, 7, &[]))], likely),
            ("request, one octet short", vec![(Forward, ask[..ask.len() - 1].to_vec())], None),
            ("request, one octet long", vec![(Forward, [&ask[..], &[0]].concat())], None),
            ("an unknown element", vec![(Forward, other_element)], None),
            ("a frame", vec![(Forward, data.clone())], likely),
            ("frames one way", series(&data, 2), certain),
            ("a frame one octet short", series(&data[..data.len() - 1], 5), None),
            ("with the radio's address", series(with_radio, 2), certain),
            ("802.11", series(wireless([0x08, 1], &four), 2), certain),
            ("802.11 with quality of service", series(wireless([0x88, 2], &four), 2), certain),
            ("802.11, octets swapped", series(wireless([1, 0x88], &four), 2), certain),
            ("802.11 management", series(wireless([0x40, 0], &four), 5), None),
            ("keep-alive", vec![(Forward, alive.clone())], likely),
            ("keep-alive both ways", vec![(Forward, alive.clone()), (Reverse, alive.clone())], certain),
            ("DTLS one way", vec![(Forward, dtls.clone()); 5], likely),
            ("DTLS both ways", vec![(Forward, dtls.clone()), (Reverse, dtls.clone())], certain),
            ("DTLS, one octet short", series(&dtls[..dtls.len() - 1], 5), None),
            ("DTLS, one octet long", series([&dtls[..], &[0]].concat(), 5), None),
            ("DTLS alone", series(&dtls[4..], 5), None),
            ("WireGuard's initiation", series([&[1, 0, 0, 0][..], &[9; 144]].concat(), 5), None),
            ("VXLAN", series([&[8, 0, 0, 0, 0, 0, 42, 0][..], &frame(0x0800, &four)].concat(), 5), None),
            ("Geneve", series([&[0, 0, 0x65, 0x58, 0, 0, 42, 0][..], &frame(0x0800, &four)].concat(), 5), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Capwap, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Capwap, trials(), |octets, number| match number % 3 {
            0 => octets[..8].copy_from_slice(&PLAIN),
            1 => octets[..8].copy_from_slice(&NATIVE),
            _ => octets[..4].copy_from_slice(&[1, 0, 0, 0]),
        });
        assert_eq!(taken, 0);
    }
}
