//! Turns TCP payloads into evidence of PPTP's control connection (RFC 2637 1.4, 2), on port 1723 or any other.
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 2 | length of the message, fixed for each type |
//! | 2 | 2 | PPTP message type: 1, control |
//! | 4 | 4 | magic cookie, 0x1a2b3c4d |
//! | 8 | 2 | control message type, 1 to 15 |
//! | 10 | 2 | reserved, zero |
//!
//! The header fixes 96 bits but for 15 pairs of length and type: 2^-92 by chance. One message is a knock at the door; two of
//! one side are likely, one of either side makes it certain.

use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::{u16_at, u32_at};

/// PPTP's control connection.
#[derive(Debug)]
pub struct PptpControl;

static START: Code = Code {
    name: "pptp.control_start",
    meaning: "a control connection's or call's set-up: start-control-connection, outgoing or incoming call; value: message type",
    clause: "RFC 2637 2.1, 2.2, 2.7 to 2.11",
    phase: Phase::Handshake,
};

static MESSAGE: Code = Code {
    name: "pptp.control_message",
    meaning: "a control message of a connection that is up: echo, stop, clear, disconnect, error, link information; value: message type",
    clause: "RFC 2637 2.3 to 2.6, 2.12 to 2.15",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "pptp-control",
    protocols: &[Protocol::Pptp],
    carriers: &[CarrierKind::Tcp],
    begins: &[Begin::Octets("00 .. 00 01 1a 2b 3c 4d")],
    recognises: "the control connection by magic cookie, message type and exact length",
    specification: "RFC 2637",
    chance: "2^-92 a message",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "a connection that stays silent; echoes pass once a minute",
    codes: &[&START, &MESSAGE],
};

const COOKIE: u32 = 0x1a2b_3c4d;
/// Octets of each control message, by type (RFC 2637 2.1 to 2.15); 0 where there is none.
const LENGTHS: [u16; 16] = [0, 156, 156, 16, 16, 16, 20, 168, 32, 220, 24, 28, 16, 148, 40, 24];
/// Messages cut out of one segment.
const MAX_PER_SEGMENT: usize = 8;

impl Detector for PptpControl {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let [0, _, 0, 1, 0x1a, 0x2b, 0x3c, 0x4d, ..] = segment.payload else { return };
        if !matches!(segment.carrier, Carrier::Tcp { .. }) {
            return;
        }
        let mut offset = 0;
        for _ in 0..MAX_PER_SEGMENT {
            let Some((kind, len)) = message(segment.payload.get(offset..).unwrap_or_default()) else { return };
            offset += usize::from(len);
            if offset as u64 > u64::from(segment.len_behind(0)) {
                return;
            }
            take(kind, segment, findings);
        }
    }
}

/// Type and length of the message that begins here.
fn message(octets: &[u8]) -> Option<(u16, u16)> {
    let (len, kind) = (u16_at(octets, 0)?, u16_at(octets, 8)?);
    let right = u16_at(octets, 2)? == 1
        && u32_at(octets, 4)? == COOKIE
        && u16_at(octets, 10)? == 0
        && len != 0
        && LENGTHS.get(usize::from(kind)) == Some(&len);
    right.then_some((kind, len))
}

fn take(kind: u16, segment: &Segment<'_>, findings: &mut Findings) {
    let count = |findings: &Findings, direction| {
        [&START, &MESSAGE]
            .into_iter()
            .filter_map(|code| findings.of(code, direction))
            .map(|found| found.count)
            .sum::<u32>()
    };
    let (here, there) = (count(findings, segment.direction), count(findings, segment.direction.opposite()));
    let confidence = match (here, there) {
        (_, 1..) => Confidence::Certain,
        (1.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    // Start, outgoing and incoming calls: 1, 2 and 7 to 11.
    let code = if matches!(kind, 1 | 2 | 7..=11) { &START } else { &MESSAGE };
    findings.add(segment, Protocol::Pptp, code, confidence, kind.into());
    // RFC 2637 2.1: whoever asks for the connection.
    match kind {
        1 => drop(findings.originator.get_or_insert(segment.direction)),
        2 => drop(findings.originator.get_or_insert(segment.direction.opposite())),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, segment};
    use crate::flow::Direction::{self, Forward, Reverse};
    use crate::wire::TcpFlags;

    const TCP: Carrier = Carrier::Tcp { seq: 1, flags: TcpFlags(TcpFlags::ACK) };

    fn control(kind: u16, len: u16) -> Vec<u8> {
        let mut octets =
            [&len.to_be_bytes()[..], &[0, 1, 0x1a, 0x2b, 0x3c, 0x4d], &kind.to_be_bytes(), &[0, 0]].concat();
        octets.resize(usize::from(len), 0);
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Pptp, confidence));
        let changed = |offset: usize, value: u8| {
            let mut octets = control(1, 156);
            octets[offset] = value;
            vec![(Forward, octets)]
        };
        let (ask, answer, call) = (control(1, 156), control(2, 156), control(7, 168));
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, ask[..155].to_vec())], None),
            ("one octet short of a header", vec![(Forward, ask[..11].to_vec())], None),
            ("a length one octet long", vec![(Forward, control(1, 157))], None),
            ("a knock", vec![(Forward, ask.clone())], level(Confidence::Possible)),
            ("one side", vec![(Forward, ask.clone()), (Forward, call.clone())], level(Confidence::Likely)),
            ("one side, in one segment", vec![(Forward, [ask.clone(), call].concat())], level(Confidence::Likely)),
            ("both sides", vec![(Forward, ask), (Reverse, answer)], level(Confidence::Certain)),
            ("mid-stream", vec![(Forward, control(5, 16)), (Reverse, control(6, 20))], level(Confidence::Certain)),
            ("another cookie", changed(7, 0x4e), None),
            ("management message", changed(3, 2), None),
            ("reserved", changed(11, 1), None),
            ("unknown type", vec![(Forward, control(16, 16))], None),
            ("no type", vec![(Forward, control(0, 16))], None),
            ("TLS", vec![(Forward, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec())], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, TCP, octets)).collect();
            assert_eq!(best(&PptpControl, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&PptpControl, TCP, [1723, 40_000], |noise| {
            let mut octets = noise.octets(168);
            octets[0] = 0;
            octets[2..7].copy_from_slice(&[0, 1, 0x1a, 0x2b, 0x3c]);
            octets
        });
        assert_eq!(found, None);
    }
}
