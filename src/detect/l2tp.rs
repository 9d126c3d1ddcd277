//! Turns payloads of UDP and of IP protocol 115 into evidence of L2TP: version 2 (RFC 2661 3.1) and version 3 (RFC 3931 3.2,
//! 4.1).
//!
//! | offset | octets | control, both versions | version 2 data | version 3 data over UDP |
//! |---|---|---|---|---|
//! | 0 | 2 | 0xc802, 0xc803: T, L and S set | T clear; L, S, O, P as needed; version | 0x0003 |
//! | 2 | 2 | length of the message | length, with L | reserved, zero |
//! | 4 | 4 | tunnel (2) and session (2); control connection (4) | tunnel, session | session |
//! | 8 | 4 | Ns, Nr | Ns and Nr with S; offset with O | cookie (0, 4 or 8), sublayer (0 or 4) |
//! | 12 | | attributes: flags and length (2), vendor (2), type (2), value | PPP | pseudowire |
//!
//! Over IP, data begin with the session, and control with a session of zero before the above.
//!
//! A control message has its exact length and attributes that fill it, the first of them the message type: random octets pass
//! once in 2^88. One may still be a probe; a message that names the tunnel that the other side assigned, or acknowledges the
//! other side's number, makes it certain. Data are told by what is inside: PPP with IP or a control protocol of PPP (with
//! IPv4 random octets pass once in 2^50), or an Ethernet frame or IP packet that checks out (2^39).

use super::overlay::{self, Fit, Share};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u16_at, u32_at};

/// L2TP versions 2 and 3.
#[derive(Debug)]
pub struct L2tp;

static REQUEST: Code = Code {
    name: "l2tp.request",
    meaning: "a request to set a control connection up (SCCRQ), with exact length and attributes; value: identifier that its sender assigns",
    clause: "RFC 2661 6.1, RFC 3931 6.1",
    phase: Phase::Handshake,
};

static REPLY: Code = Code {
    name: "l2tp.reply",
    meaning: "a reply to such a request (SCCRP), with exact length and attributes; value: identifier that its sender assigns",
    clause: "RFC 2661 6.2, RFC 3931 6.2",
    phase: Phase::Handshake,
};

static CONTROL: Code = Code {
    name: "l2tp.control",
    meaning: "a control message with exact length and attributes; value: tunnel or control connection",
    clause: "RFC 2661 3.1, RFC 3931 3.2.1",
    phase: Phase::Data,
};

static EXCHANGE: Code = Code {
    name: "l2tp.exchange",
    meaning: "a control message that names the tunnel the other side assigned, or acknowledges its message; value: tunnel or control connection",
    clause: "RFC 2661 5.8, RFC 3931 4.2",
    phase: Phase::Data,
};

static V2_DATA: Code = Code {
    name: "l2tp.v2_data",
    meaning: "version 2 data with PPP inside that checks out; value: tunnel, session",
    clause: "RFC 2661 3.1, RFC 1661 2",
    phase: Phase::Data,
};

static V3_DATA: Code = Code {
    name: "l2tp.v3_data",
    meaning: "version 3 data with a pseudowire inside that checks out; value: session",
    clause: "RFC 3931 4.1",
    phase: Phase::Data,
};

static V3_SESSION: Code = Code {
    name: "l2tp.v3_session",
    meaning: "packets of IP protocol 115 with the same session, their content not to be checked; value: session",
    clause: "RFC 3931 4.1.1.1",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "l2tp",
    protocols: &[Protocol::L2tp],
    carriers: &[CarrierKind::Udp, CarrierKind::Ip(115)],
    begins: &[
        Begin::Octets("00 03 00 00"),
        Begin::Octets("0.00.0.. 02"),
        Begin::Octets("c8 02"),
        Begin::Octets("c8 03"),
    ],
    recognises: "version 2 and 3: control by exact length, attributes and assigned tunnels; data by PPP, Ethernet or IP inside",
    specification: "RFC 2661, RFC 3931",
    chance: "control: 2^-88; data around IPv4 in PPP: 2^-50, a frame: 2^-39",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "data whose PPP is compressed or encrypted, or whose pseudowire is neither Ethernet, IP nor PPP; L2TP inside IPsec is esp",
    codes: &[&REQUEST, &REPLY, &CONTROL, &EXCHANGE, &V2_DATA, &V3_DATA, &V3_SESSION],
};

const CONTROL_HEADER: usize = 12;
/// RFC 2661 3.1: reserved bits and the version's high bits are zero.
const V2_RESERVED: u16 = 0x34f0;
const LENGTH: u16 = 0x4000;
const SEQUENCE: u16 = 0x0800;
const OFFSET: u16 = 0x0200;
/// Packets of one session on IP protocol 115 before their number says something.
const LIKELY_PACKETS: u32 = 4;

impl Detector for L2tp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let (octets, len) = (segment.payload, segment.payload_len);
        let Some(flags) = u16_at(octets, 0) else { return };
        match segment.carrier {
            Carrier::Udp => match (flags & 0x000f, flags) {
                (2 | 3, 0xc802 | 0xc803) => {
                    if let Some(control) = Control::parse(octets, len) {
                        take(&control, segment, findings);
                    }
                }
                (2, _) if flags & (0x8000 | V2_RESERVED) == 0 => v2_data(flags, segment, findings),
                (3, 3) if u16_at(octets, 2) == Some(0) => v3_data(4, segment, findings),
                _ => {}
            },
            Carrier::Ip { protocol: 115, .. } => {
                let control = octets.strip_prefix(&[0; 4]);
                match control.and_then(|octets| Control::parse(octets, len.saturating_sub(4))) {
                    Some(control) => take(&control, segment, findings),
                    None => v3_data(0, segment, findings),
                }
            }
            _ => {}
        }
    }
}

/// What a control message says.
#[derive(Clone, Copy, Debug)]
struct Control {
    /// Tunnel or control connection, as the receiver assigned it; 0 in the first message.
    tunnel: u32,
    ns: u16,
    nr: u16,
    /// Absent in a message that only acknowledges.
    message: Option<u16>,
    /// The identifier that the sender wants to be called by.
    assigned: Option<u32>,
}

impl Control {
    const REQUEST: u16 = 1;
    const REPLY: u16 = 2;

    fn parse(octets: &[u8], len: u32) -> Option<Self> {
        let &[0xc8, version @ (2 | 3)] = octets.first_chunk()? else { return None };
        let is_v2 = version == 2;
        if u32::from(u16_at(octets, 2)?) != len || (len as usize) < CONTROL_HEADER {
            return None;
        }
        let tunnel = if is_v2 { u16_at(octets, 4)?.into() } else { u32_at(octets, 4)? };
        let (ns, nr) = (u16_at(octets, 8)?, u16_at(octets, 10)?);
        let mut control = Self { tunnel, ns, nr, message: None, assigned: None };
        let mut next = CONTROL_HEADER;
        while next < len as usize {
            let (Some(head), Some(vendor), Some(kind)) =
                (u16_at(octets, next), u16_at(octets, next + 2), u16_at(octets, next + 4))
            else {
                // Cut by the snap length: what was seen is right.
                break;
            };
            let length = usize::from(head & 0x03ff);
            if head & 0x3c00 != 0 || length < 6 || next + length > len as usize {
                return None;
            }
            match (vendor, kind) {
                // RFC 2661 4.4.1: the message type comes first, is not hidden, and there is one.
                (0, 0) => {
                    let message = u16_at(octets, next + 6)?;
                    if next != CONTROL_HEADER || length != 8 || head & 0x4000 != 0 || !(1..=32).contains(&message) {
                        return None;
                    }
                    control.message = Some(message);
                }
                _ if next == CONTROL_HEADER => return None,
                (0, 9) if is_v2 && length == 8 => control.assigned = u16_at(octets, next + 6).map(u32::from),
                (0, 61) if !is_v2 && length == 10 => control.assigned = u32_at(octets, next + 6),
                _ => {}
            }
            next += length;
        }
        // Beyond the header, only a message type makes a message.
        (len as usize == CONTROL_HEADER || control.message.is_some()).then_some(control)
    }
}

/// In a slot: `a` is the identifier that this side assigned, `b` its next number (with `NUMBERED`), `c` the tunnel it names.
const NUMBERED: u64 = 1 << 32;

fn take(control: &Control, segment: &Segment<'_>, findings: &mut Findings) {
    let there = *findings.slot(SlotId::L2tp, segment.direction.opposite());
    let here = findings.slot(SlotId::L2tp, segment.direction);
    let next = NUMBERED | u64::from(control.ns.wrapping_add(u16::from(control.message.is_some())));
    // The same message again says nothing.
    let is_new = here.hits == 0 || here.b != next || here.c != control.tunnel;
    if here.hits > 0 && here.c != control.tunnel && here.c != 0 {
        here.hits = 0;
    }
    here.hits = here.hits.saturating_add(u32::from(is_new));
    here.b = next;
    here.c = control.tunnel;
    if let Some(assigned) = control.assigned {
        here.a = assigned.into();
    }
    let hits = here.hits;
    let names_theirs = control.tunnel != 0 && there.a == u64::from(control.tunnel);
    let acknowledges = there.b == NUMBERED | u64::from(control.nr) && control.nr != 0 && there.c != 0;
    if control.message == Some(Control::REQUEST) && control.tunnel == 0 {
        findings.originator.get_or_insert(segment.direction);
        let value = control.assigned.unwrap_or_default().into();
        findings.add(segment, Protocol::L2tp, &REQUEST, Confidence::Possible, value);
        return;
    }
    if control.message == Some(Control::REPLY) {
        findings.originator.get_or_insert(segment.direction.opposite());
        let value = control.assigned.unwrap_or_default().into();
        findings.add(segment, Protocol::L2tp, &REPLY, Confidence::Possible, value);
    }
    if control.tunnel != 0 && there.hits > 0 && (names_theirs || acknowledges) {
        findings.add(segment, Protocol::L2tp, &EXCHANGE, Confidence::Certain, control.tunnel.into());
    } else {
        let confidence = if hits >= 2 && control.tunnel != 0 { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::L2tp, &CONTROL, confidence, control.tunnel.into());
    }
}

fn v2_data(flags: u16, segment: &Segment<'_>, findings: &mut Findings) {
    // The octet of the version.
    let mut bits = 8;
    let mut next = 2;
    if flags & LENGTH != 0 {
        match u16_at(segment.payload, next).map(u32::from) {
            Some(length) if length == segment.payload_len => bits += 12,
            // A first fragment.
            Some(length) if length > segment.payload_len && segment.payload_len >= 256 => {}
            _ => return,
        }
        next += 2;
    }
    let (Some(tunnel), Some(session)) = (u16_at(segment.payload, next), u16_at(segment.payload, next + 2)) else {
        return;
    };
    if tunnel == 0 || session == 0 {
        return;
    }
    next += 4;
    if flags & SEQUENCE != 0 {
        next += 4;
    }
    if flags & OFFSET != 0 {
        let Some(offset) = u16_at(segment.payload, next) else { return };
        next += 2 + usize::from(offset);
    }
    let inside = segment.payload.get(next..).unwrap_or_default();
    let Some(content) = overlay::ppp(inside, segment.payload_len.saturating_sub(next as u32)) else { return };
    let value = u64::from(tunnel) << 16 | u64::from(session);
    let share = Share { protocol: Protocol::L2tp, code: &V2_DATA, bits: bits + content, identity: value, value };
    overlay::add(&share, segment, findings);
}

fn v3_data(session_at: usize, segment: &Segment<'_>, findings: &mut Findings) {
    let Some(session) = u32_at(segment.payload, session_at) else { return };
    if session == 0 {
        return;
    }
    let value = session.into();
    // RFC 3931 4.1: a cookie of 0, 4 or 8 octets, a sublayer of 0 or 4: told by what stands behind them.
    for skipped in [0, 4, 8, 12] {
        let next = session_at + 4 + skipped;
        let Some(len) = segment.payload_len.checked_sub(next as u32) else { break };
        let inside = segment.payload.get(next..).unwrap_or_default();
        let content = overlay::ethernet(inside, len)
            .or_else(|| overlay::ip(inside, len, Fit::Exact))
            .or_else(|| inside.starts_with(&[0xff, 0x03]).then(|| overlay::ppp(inside, len)).flatten());
        if let Some(content) = content {
            // Four places to look at.
            let bits = content - 2;
            overlay::add(
                &Share { protocol: Protocol::L2tp, code: &V3_DATA, bits, identity: value, value },
                segment,
                findings,
            );
            return;
        }
    }
    if segment.carrier != Carrier::Udp && segment.payload_len > 12 {
        let same = findings
            .of(&V3_SESSION, segment.direction)
            .map_or(0, |found| if found.last_value == value { found.count } else { 0 });
        let confidence = if same + 1 >= LIKELY_PACKETS { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::L2tp, &V3_SESSION, confidence, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::overlay::tests::{frame, series, taken_by_chance};
    use crate::detect::tests_support::{best, segment, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    /// A control message; `assigned` is the value of the attribute that assigns an identifier.
    fn control(version: u8, tunnel: [u8; 4], ns: u8, nr: u8, message: Option<u8>, assigned: &[u8]) -> Vec<u8> {
        let mut octets = [&[0xc8, version, 0, 0][..], &tunnel, &[0, ns, 0, nr]].concat();
        octets.extend(message.into_iter().flat_map(|message| [0x80, 8, 0, 0, 0, 0, 0, message]));
        if !assigned.is_empty() {
            let kind = if version == 2 { 9 } else { 61 };
            octets.extend([&[0x80, 6 + assigned.len() as u8, 0, 0, 0, kind][..], assigned].concat());
        }
        octets[3] = octets.len() as u8;
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::L2tp, confidence));
        let (possible, likely, certain) =
            (level(Confidence::Possible), level(Confidence::Likely), level(Confidence::Certain));
        let request = control(2, [0; 4], 0, 0, Some(1), &[0x12, 0x34]);
        let reply = control(2, [0x12, 0x34, 0, 0], 0, 1, Some(2), &[0x56, 0x78]);
        let hello = |ns| control(2, [0x56, 0x78, 0, 0], ns, 3, Some(6), &[]);
        let acknowledgment = |nr| control(2, [0x12, 0x34, 0, 0], 3, nr, None, &[]);
        let request3 = control(3, [0; 4], 0, 0, Some(1), &[1, 2, 3, 4]);
        let reply3 = control(3, [1, 2, 3, 4], 0, 1, Some(2), &[5, 6, 7, 8]);
        let mut long = reply.clone();
        long.push(0);
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let data = |head: &[u8], inside: &[u8]| [head, inside].concat();
        let plain = data(&[0, 2, 1, 2, 3, 4, 0xff, 3, 0, 0x21], &four);
        let counted = data(&[0x40, 2, 0, 40, 1, 2, 3, 4, 0xff, 3, 0, 0x21], &four);
        let lcp = data(&[0x40, 2, 0, 20, 1, 2, 3, 4, 0xff, 3, 0xc0, 0x21], &[1, 1, 0, 8, 1, 4, 5, 120]);
        let v3 = data(&[0, 3, 0, 0, 0, 0, 3, 0xe9], &frame(0x0800, &four));
        let v3_cookie = data(&[0, 3, 0, 0, 0, 0, 3, 0xe9, 9, 8, 7, 6, 5, 4, 3, 2, 0, 0, 0, 0], &frame(0x0800, &four));
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("a probe", series(request.clone(), 5), possible),
            ("a probe, sent back", vec![(Forward, request.clone()), (Reverse, request.clone())], possible),
            ("set up", vec![(Forward, request.clone()), (Reverse, reply.clone())], certain),
            ("an answer to another", vec![(Forward, control(2, [0; 4], 0, 0, Some(1), &[1, 1])), (Reverse, reply.clone())], possible),
            ("one octet short", series(&reply[..reply.len() - 1], 5), None),
            ("one octet long", series(long, 5), None),
            ("no message type", series(control(2, [0x12, 0x34, 0, 0], 0, 1, None, &[0x56, 0x78]), 5), None),
            ("a hello, acknowledged", vec![(Forward, hello(3)), (Reverse, acknowledgment(4))], certain),
            ("a hello, not acknowledged", vec![(Forward, hello(3)), (Reverse, acknowledgment(2))], possible),
            ("hellos, one way", vec![(Forward, hello(3)), (Forward, hello(4))], likely),
            ("version 3 set up", vec![(Forward, request3), (Reverse, reply3)], certain),
            ("data, once", vec![(Forward, plain.clone())], likely),
            ("data, one way", series(plain.clone(), 2), certain),
            ("data with length", vec![(Forward, counted.clone()), (Reverse, counted.clone())], certain),
            ("data, one octet long", series([&counted[..], &[0]].concat(), 5), None),
            ("LCP", vec![(Forward, lcp.clone()), (Reverse, lcp)], certain),
            ("data, bare PPP", series(data(&[0, 2, 1, 2, 3, 4, 0x21], &four), 2), certain),
            ("data, IPv6", series(data(&[0, 2, 1, 2, 3, 4, 0xff, 3, 0, 0x57], &six), 2), certain),
            ("data with numbers and offset", series(data(&[0x0a, 2, 1, 2, 3, 4, 0, 1, 0, 1, 0, 2, 9, 9, 0xff, 3, 0, 0x21], &four), 2), certain),
            ("no session", series(data(&[0, 2, 1, 2, 0, 0, 0xff, 3, 0, 0x21], &four), 5), None),
            ("reserved bit", series(data(&[0x10, 2, 1, 2, 3, 4, 0xff, 3, 0, 0x21], &four), 5), None),
            ("version 3", series(v3.clone(), 2), certain),
            ("version 3 with cookie and sublayer", series(v3_cookie, 2), certain),
            ("version 3 without content", series(&v3[..8], 5), None),
            ("version 4", series(data(&[0, 4, 0, 0, 0, 0, 3, 0xe9], &frame(0x0800, &four)), 5), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&L2tp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn over_ip() {
        let level = |confidence| Some((Protocol::L2tp, confidence));
        let request = [&[0; 4][..], &control(3, [0; 4], 0, 0, Some(1), &[1, 2, 3, 4])].concat();
        let reply = [&[0; 4][..], &control(3, [1, 2, 3, 4], 0, 1, Some(2), &[5, 6, 7, 8])].concat();
        let data = [&[0, 0, 3, 0xe9][..], &frame(0x0800, &ipv4_packet(8))].concat();
        let opaque = [&[0, 0, 3, 0xe9][..], &[0x5a; 40]].concat();
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("a probe of all protocols", vec![(Forward, vec![0; 20])], None),
            ("set up", vec![(Forward, request), (Reverse, reply)], level(Confidence::Certain)),
            ("data", series(data, 2), level(Confidence::Certain)),
            ("one session", series(opaque.clone(), 4), level(Confidence::Likely)),
            ("one packet", vec![(Forward, opaque)], level(Confidence::Possible)),
        ];
        for (name, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol: 115, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&L2tp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&L2tp, trials(), |octets, number| match number % 4 {
            0 => octets[..2].copy_from_slice(&[0, 2]),
            1 => octets[..4].copy_from_slice(&[0, 3, 0, 0]),
            2 => {
                let len = octets.len() as u8;
                octets[..4].copy_from_slice(&[0x40, 2, 0, len]);
            }
            _ => {
                let len = octets.len() as u8;
                octets[..4].copy_from_slice(&[0xc8, 2, 0, len]);
            }
        });
        assert_eq!(taken, 0);
    }
}
