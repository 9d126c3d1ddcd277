//! Turns TCP payloads into evidence of two VPNs that run inside TLS, where the TLS is taken off: between a reverse proxy and
//! its server, or on a mirror behind an inspecting gateway.
//!
//! AnyConnect and OpenConnect (draft-mavrogiannopoulos-openconnect 2.1.3, 2.1.4, 2.2): `CONNECT /CSCOSSLC/tunnel HTTP/1.1`,
//! answered with 200, then packets:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 4 | `STF`, 1 |
//! | 4 | 2 | length of what follows the header |
//! | 6 | 1 | type: 0 data, 3 to 5, 7 to 9 |
//! | 7 | 1 | zero |
//!
//! SSTP (MS-SSTP 2.2, 3.2.4.1): `SSTP_DUPLEX_POST` to one fixed path, answered with 200, then packets:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | version, 0x10 |
//! | 1 | 1 | 1 control, 0 data |
//! | 2 | 2 | length of the whole, 12 bits |
//! | 4 | 2 | of control: type, 1 to 9; of data: a PPP frame |
//! | 6 | 2 | of control: number of attributes |
//!
//! A request fixes 28 octets and more and is possible, its answer makes it certain. Mid-stream a packet of AnyConnect's fixes
//! 61 bits, one of SSTP's 55 (control) or 52 (data, by what stands in the PPP frame): three of one side are likely, two of
//! either certain.

use super::overlay::{Fit, ip, ppp};
use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::u16_at;

/// The TLS channel of AnyConnect, without TLS.
#[derive(Debug)]
pub struct Cstp;

/// SSTP without TLS.
#[derive(Debug)]
pub struct Sstp;

static CONNECT: Code = Code {
    name: "anyconnect.connect",
    meaning: "an HTTP request for AnyConnect's tunnel, in clear",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.3",
    phase: Phase::Handshake,
};

static CONNECTED: Code = Code {
    name: "anyconnect.connected",
    meaning: "the answer that opens AnyConnect's tunnel; value: HTTP status",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.3, 2.1.4",
    phase: Phase::Handshake,
};

static CSTP_PACKET: Code = Code {
    name: "anyconnect.packet",
    meaning: "packets of AnyConnect's channel in clear: header, length and IP inside; value: type of the packet",
    clause: "draft-mavrogiannopoulos-openconnect 2.2",
    phase: Phase::Data,
};

static POST: Code = Code {
    name: "sstp.request",
    meaning: "an HTTP request for an SSTP connection, in clear",
    clause: "MS-SSTP 3.2.4.1",
    phase: Phase::Handshake,
};

static ACCEPTED: Code = Code {
    name: "sstp.accepted",
    meaning: "the answer that opens an SSTP connection; value: HTTP status",
    clause: "MS-SSTP 3.3.2.1",
    phase: Phase::Handshake,
};

static CONTROL: Code = Code {
    name: "sstp.control",
    meaning: "control packets of SSTP in clear, of the right length; value: type of the message",
    clause: "MS-SSTP 2.2.2",
    phase: Phase::Data,
};

static DATA: Code = Code {
    name: "sstp.data",
    meaning: "data packets of SSTP in clear with a PPP frame inside that checks out; value: length of the packet",
    clause: "MS-SSTP 2.2.3",
    phase: Phase::Data,
};

const WITHOUT_TLS: &str = "everything, as long as TLS is on: then it is TLS and nothing more";

static CSTP_ABOUT: About = About {
    name: "anyconnect-without-tls",
    protocols: &[Protocol::AnyConnect],
    carriers: &[CarrierKind::Tcp],
    begins: &[Begin::Octets("43 4f 4e 4e 45 43 54 20"), Begin::Octets("53 54 46 01")],
    recognises: "where TLS is taken off: the request for the tunnel and its answer; packets by header, length and IP inside",
    specification: "draft-mavrogiannopoulos-openconnect",
    chance: "the request: 28 fixed octets; a packet: 2^-61",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: WITHOUT_TLS,
    codes: &[&CONNECT, &CONNECTED, &CSTP_PACKET],
};

static SSTP_ABOUT: About = About {
    name: "sstp",
    protocols: &[Protocol::Sstp],
    carriers: &[CarrierKind::Tcp],
    begins: &[Begin::Octets("53 53 54 50 5f 44 55 50"), Begin::Octets("10 0000000. 0000....")],
    recognises: "where TLS is taken off: the request and its answer; control packets by length, data by the PPP frame inside",
    specification: "MS-SSTP",
    chance: "the request: 28 fixed octets; a packet: 2^-52",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: WITHOUT_TLS,
    codes: &[&POST, &ACCEPTED, &CONTROL, &DATA],
};

const CONNECT_LINE: &[u8] = b"CONNECT /CSCOSSLC/tunnel HTTP/1.";
const POST_LINE: &[u8] = b"SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.";

/// Packets of one side before they are likely.
const LIKELY_HITS: u32 = 3;
/// Packets of either side before they are certain.
const CERTAIN_HITS: u32 = 2;

impl Detector for Cstp {
    fn about(&self) -> &'static About {
        &CSTP_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let Carrier::Tcp { .. } = segment.carrier else { return };
        match segment.payload {
            [b'C', b'O', ..] => request(CONNECT_LINE, Protocol::AnyConnect, &CONNECT, segment, findings),
            [b'H', b'T', ..] => answer(Protocol::AnyConnect, [&CONNECT, &CONNECTED], segment, findings),
            [b'S', b'T', b'F', 1, ..] => {
                if let Some(kind) = cstp(segment) {
                    let confidence = count(SlotId::Cstp, segment, findings);
                    findings.add(segment, Protocol::AnyConnect, &CSTP_PACKET, confidence, kind.into());
                }
            }
            _ => {}
        }
    }
}

impl Detector for Sstp {
    fn about(&self) -> &'static About {
        &SSTP_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let Carrier::Tcp { seq, .. } = segment.carrier else { return };
        match *segment.payload {
            [b'S', b'S', ..] => request(POST_LINE, Protocol::Sstp, &POST, segment, findings),
            [b'H', b'T', ..] => answer(Protocol::Sstp, [&POST, &ACCEPTED], segment, findings),
            [VERSION, control @ (0 | 1), high, low, ref body @ ..] if high & 0xf0 == 0 => {
                let len = u32::from(high) << 8 | u32::from(low);
                if segment.payload_len == HEADER {
                    // Some write a header and what it is for one after the other.
                    let slot = findings.slot(SlotId::SstpHeader, segment.direction);
                    (slot.a, slot.b) = (seq.wrapping_add(HEADER).into(), len.into());
                    slot.c = control.into();
                } else {
                    packet(control, len, body, segment.payload_len - HEADER, segment, findings);
                }
            }
            _ => {
                let slot = findings.slot(SlotId::SstpHeader, segment.direction);
                if slot.b != 0 && slot.a == u64::from(seq) {
                    let (len, control) = (slot.b as u32, slot.c as u8);
                    slot.b = 0;
                    packet(control, len, segment.payload, segment.payload_len, segment, findings);
                }
            }
        }
    }
}

/// The first line of an HTTP request that fixes the protocol.
fn request(line: &[u8], protocol: Protocol, code: &'static Code, segment: &Segment<'_>, findings: &mut Findings) {
    // Cut by the snap length, at least the path's beginning must be there.
    let captured = segment.payload.get(..line.len()).unwrap_or(segment.payload);
    let is_cut = (segment.payload_len as usize) > segment.payload.len() && captured.len() >= LEAST_LINE;
    let fits = line.get(..captured.len()).is_some_and(|line| line.eq_ignore_ascii_case(captured));
    if fits && (captured.len() == line.len() || is_cut) {
        findings.originator.get_or_insert(segment.direction);
        findings.add(segment, protocol, code, Confidence::Possible, 0);
    }
}

/// Octets of a request line that no other has.
const LEAST_LINE: usize = 20;

/// The answer of 200 to such a request.
fn answer(protocol: Protocol, [asked, code]: [&'static Code; 2], segment: &Segment<'_>, findings: &mut Findings) {
    let is_ok = segment.payload.starts_with(b"HTTP/1.") && segment.payload.get(8..12) == Some(b" 200");
    if is_ok && findings.of(asked, segment.direction.opposite()).is_some() {
        findings.add(segment, protocol, code, Confidence::Certain, 200);
    }
}

/// Octets of AnyConnect's header.
const CSTP_HEADER: u32 = 8;
/// A longer segment may end before its packet does.
const FULL: u32 = 500;
/// Octets of an inner packet that show what it is.
const SHOWN: usize = 20;

/// The type of a packet of AnyConnect's that is what it says.
fn cstp(segment: &Segment<'_>) -> Option<u8> {
    let (octets, payload_len) = (segment.payload, segment.payload_len);
    let (length, &[kind, 0]) = (u32::from(u16_at(octets, 4)?), octets.get(6..8)?) else { return None };
    let end = CSTP_HEADER + length;
    let goes_on = end > payload_len && (payload_len >= FULL || segment.is_fragment);
    let next = octets.get(end as usize..).filter(|_| end < payload_len).unwrap_or_default();
    let is_followed = end < payload_len && b"STF\x01".starts_with(next.get(..4).unwrap_or(next));
    let content = octets.get(CSTP_HEADER as usize..)?;
    let inside = content.get(..length as usize).unwrap_or(content);
    let checks = match kind {
        0 => inside.len() < SHOWN || ip(inside, length, Fit::Exact).is_some(),
        // Draft, table 2: detection of dead peers and its answer, disconnect, keepalive, compressed data, terminate.
        3..=5 | 7..=9 => true,
        _ => false,
    };
    (checks && (end == payload_len || goes_on || is_followed)).then_some(kind)
}

/// MS-SSTP 2.2.1: version 1.0.
const VERSION: u8 = 0x10;
/// Octets of SSTP's header.
const HEADER: u32 = 4;

/// A packet of SSTP with `len` octets, whose `body` follows the header; `body_len` of it are in the segment.
fn packet(control: u8, len: u32, body: &[u8], body_len: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let Some(inside_len) = len.checked_sub(HEADER) else { return };
    if inside_len > body_len && !segment.is_fragment {
        return;
    }
    let inside = body.get(..inside_len as usize).unwrap_or(body);
    let next = body.get(inside_len as usize..).filter(|_| inside_len < body_len).unwrap_or_default();
    // Another packet may follow, behind its own header.
    if inside_len < body_len && !matches!(next, [] | [VERSION] | [VERSION, 0 | 1, ..]) {
        return;
    }
    if control == 0 {
        if ppp(inside, inside_len).is_some() {
            let confidence = count(SlotId::Sstp, segment, findings);
            findings.add(segment, Protocol::Sstp, &DATA, confidence, len.into());
        }
        return;
    }
    let (Some(kind), Some(attributes)) = (u16_at(inside, 0), u16_at(inside, 2)) else { return };
    // MS-SSTP 2.2.9 to 2.2.16: what each message may carry, an attribute taking 4 octets and more.
    let fits = match (kind, attributes) {
        (1, 1..=4) => len >= 14,
        (2, 1) => len == 48,
        (3, 1..=4) => len >= 20,
        (4, 1) => len == 112,
        (5 | 6, 0..=1) => matches!(len, 8 | 20..=84),
        (7..=9, 0) => len == 8,
        _ => false,
    };
    if fits {
        let confidence = count(SlotId::Sstp, segment, findings);
        findings.add(segment, Protocol::Sstp, &CONTROL, confidence, kind.into());
    }
}

/// Counts a side's packets, each other than the one before.
fn count(id: SlotId, segment: &Segment<'_>, findings: &mut Findings) -> Confidence {
    let there = findings.slot(id, segment.direction.opposite()).hits;
    let here = findings.slot(id, segment.direction);
    let mark = number_of(segment.payload.get(..128).unwrap_or(segment.payload));
    if here.hits == 0 || here.content != mark {
        here.hits = here.hits.saturating_add(1);
        here.content = mark;
    }
    match (here.hits, there) {
        (CERTAIN_HITS.., CERTAIN_HITS..) => Confidence::Certain,
        (LIKELY_HITS.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::ipv4_packet;
    use crate::detect::tests_support::{alarms, best, ciphertext, segment};
    use crate::flow::Direction::{self, Forward, Reverse};
    use crate::wire::TcpFlags;

    fn tcp(way: Direction, seq: u32, octets: &[u8]) -> Segment<'_> {
        segment(way, Carrier::Tcp { seq, flags: TcpFlags(TcpFlags::ACK) }, octets)
    }

    fn stf(kind: u8, content: &[u8]) -> Vec<u8> {
        [b"STF\x01", &(content.len() as u16).to_be_bytes()[..], &[kind, 0], content].concat()
    }

    fn inner(id: u8) -> Vec<u8> {
        let mut packet = ipv4_packet(40 + usize::from(id));
        packet[30] = id;
        packet
    }

    fn sstp(control: u8, content: &[u8]) -> Vec<u8> {
        [&[0x10, control][..], &(content.len() as u16 + 4).to_be_bytes(), content].concat()
    }

    fn data(id: u8) -> Vec<u8> {
        sstp(0, &[&[0xff, 3, 0, 0x21][..], &inner(id)].concat())
    }

    fn check(
        detector: &dyn Detector,
        protocol: Protocol,
        cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, Option<Confidence>)>,
    ) {
        for (name, packets, expected) in cases {
            let mut seqs = [1000_u32, 2000];
            let mut segments = Vec::new();
            for (way, octets) in &packets {
                segments.push(tcp(*way, seqs[*way as usize], octets));
                seqs[*way as usize] += octets.len() as u32;
            }
            assert_eq!(best(detector, &segments), expected.map(|level| (protocol, level)), "{name}");
        }
    }

    #[test]
    fn anyconnect() {
        let connect = b"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\nHost: example.net\r\n\r\n".to_vec();
        let ok = b"HTTP/1.1 200 CONNECTED\r\nX-CSTP-Version: 1\r\n\r\n".to_vec();
        let refused = b"HTTP/1.1 401 Unauthorized\r\n\r\n".to_vec();
        let packet = |id| stf(0, &inner(id));
        let both: Vec<_> = (1..4).flat_map(|id| [(Forward, packet(id)), (Reverse, packet(id + 9))]).collect();
        let together = [packet(1), packet(2)].concat();
        check(
            &Cstp,
            Protocol::AnyConnect,
            vec![
                ("empty", vec![(Forward, vec![])], None),
                ("one octet short", vec![(Forward, connect[..31].to_vec())], None),
                ("a request", vec![(Forward, connect.clone()); 3], Some(Confidence::Possible)),
                (
                    "a request and its answer",
                    vec![(Forward, connect.clone()), (Reverse, ok.clone())],
                    Some(Confidence::Certain),
                ),
                ("a request refused", vec![(Forward, connect), (Reverse, refused)], Some(Confidence::Possible)),
                ("an answer", vec![(Reverse, ok.clone())], None),
                ("a proxy", vec![(Forward, b"CONNECT example.net:443 HTTP/1.1\r\n\r\n".to_vec()), (Reverse, ok)], None),
                ("packets, both ways", both, Some(Confidence::Certain)),
                ("packets, one way", (1..4).map(|id| (Reverse, packet(id))).collect(), Some(Confidence::Likely)),
                ("packets together", vec![(Reverse, together)], Some(Confidence::Possible)),
                ("the same packet again", vec![(Reverse, packet(1)); 9], Some(Confidence::Possible)),
                ("a keepalive", vec![(Forward, stf(7, &[]))], Some(Confidence::Possible)),
                ("an unknown type", vec![(Forward, stf(1, &inner(1)))], None),
                ("no IP inside", vec![(Forward, stf(0, &ciphertext(1, 60)))], None),
                ("a packet one octet long", vec![(Forward, [&packet(1)[..], &[0]].concat())], None),
                ("another format's magic", vec![(Forward, b"STF\x02\x00\x04\x00\x00abcd".to_vec())], None),
            ],
        );
    }

    #[test]
    fn sstp_cases() {
        let post =
            b"SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: example.net\r\n\r\n"
                .to_vec();
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec();
        let ask = sstp(1, &[0, 1, 0, 1, 0, 1, 0, 6, 0, 1]);
        let accept = sstp(1, &[&[0, 2, 0, 1, 0, 4, 0, 40, 0, 0, 0, 3][..], &[7; 32]].concat());
        let echo = sstp(1, &[0, 8, 0, 0]);
        let both: Vec<_> = (1..4).flat_map(|id| [(Forward, data(id)), (Reverse, data(id + 9))]).collect();
        let apart: Vec<_> =
            (1..4).flat_map(|id| [(Reverse, data(id)[..4].to_vec()), (Reverse, data(id)[4..].to_vec())]).collect();
        check(
            &Sstp,
            Protocol::Sstp,
            vec![
                ("empty", vec![(Forward, vec![])], None),
                ("one octet short", vec![(Forward, post[..60].to_vec())], None),
                ("a request", vec![(Forward, post.clone())], Some(Confidence::Possible)),
                ("a request and its answer", vec![(Forward, post), (Reverse, ok)], Some(Confidence::Certain)),
                ("control, both ways", vec![(Forward, ask.clone()), (Reverse, accept)], Some(Confidence::Possible)),
                ("an echo", vec![(Forward, echo)], Some(Confidence::Possible)),
                ("control of another length", vec![(Forward, [&ask[..], &[0]].concat())], None),
                ("data, both ways", both, Some(Confidence::Certain)),
                ("data, one way", (1..4).map(|id| (Reverse, data(id))).collect(), Some(Confidence::Likely)),
                ("headers apart from their data", apart, Some(Confidence::Likely)),
                ("no PPP inside", vec![(Reverse, sstp(0, &ciphertext(1, 80))); 4], None),
                ("MQTT", vec![(Forward, b"\x10\x1a\x00\x04MQTT\x04\x02\x00\x3c\x00\x0eclient".to_vec())], None),
            ],
        );
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let carrier = Carrier::Tcp { seq: 1, flags: TcpFlags(TcpFlags::ACK) };
        let found = alarms(&Cstp, carrier, [40_000, 8080], |noise| {
            let len = 30 + noise.below(200) as usize;
            let mut octets = noise.octets(len);
            octets[..6].copy_from_slice(&[b'S', b'T', b'F', 1, 0, len as u8 - 8]);
            octets[7] = 0;
            // Data: control messages carry anything.
            octets[6] = [0, 1, 2, 6][noise.below(4) as usize];
            octets
        });
        assert_eq!(found, None);
        let found = alarms(&Sstp, carrier, [40_000, 8080], |noise| {
            let len = 30 + noise.below(200) as usize;
            let mut octets = noise.octets(len);
            octets[..4].copy_from_slice(&[0x10, noise.below(2) as u8, 0, len as u8]);
            octets
        });
        assert_eq!(found, None);
    }
}
