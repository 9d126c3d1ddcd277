//! Turns ICMP echo messages (RFC 792, RFC 4443 4) into evidence of tunnels in them: ptunnel and ptunnel-ng (its web page, "The
//! protocol"), and IP packets in echoes (icmptx, hans and others).
//!
//! | offset | octets | echo | ptunnel |
//! |---|---|---|---|
//! | 0 | 1 | type: 8 and 0; 128 and 129 over IPv6 | |
//! | 1 | 3 | code (0), checksum | |
//! | 4 | 4 | identifier, sequence number | |
//! | 8 | 4 | data, returned as it is | magic: 0xd5200880, ptunnel-ng: 0xdeadc0de, or an operator's own |
//! | 12 | 6 | | where the tunnel ends: IPv4 address, port (4 octets) |
//! | 20 | 4 | | state (0 to 6), and a bit for the user (30) or the proxy (31) |
//! | 24 | 8 | | acknowledged (4), length of the data (4) |
//! | 32 | 4 | | sequence number, session (2 each), then the data |
//!
//! **Thresholds.** ptunnel's state and length are chance once in 2^44: with a known magic number likely at once, with another
//! one from the second message of it on; the user's and the proxy's side with the same number are certain. An IP packet that
//! checks out and fills the echo (2^-32, at three places where one may begin) may be a probe: one is possible, two are
//! likely, four certain. Data that a reply returns changed (RFC 792: it must be the same) is possible, however often: hosts
//! and routers cut and mark it. Patterns, clocks, sizes and random octets of pings count for nothing.

use super::overlay::{self, Fit, Share};
use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::u32_at;

/// Tunnels in ICMP echo.
#[derive(Debug)]
pub struct Icmp;

static PTUNNEL: Code = Code {
    name: "ptunnel.message",
    meaning: "an echo whose data are a header of ptunnel and as many octets as it says; value: magic number, and 1 from the \
              user, 2 from the proxy",
    clause: "ptunnel, The protocol",
    phase: Phase::Stateless,
};

static INNER: Code = Code {
    name: "icmp.inner",
    meaning: "an echo whose data are an IP packet that checks out; value: where it begins",
    clause: "RFC 792, RFC 791 3.1",
    phase: Phase::Stateless,
};

static CHANGED: Code = Code {
    name: "icmp.changed_reply",
    meaning: "an echo reply that does not return the request's data; value: identifier and sequence number",
    clause: "RFC 792, Echo",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "icmp",
    protocols: &[Protocol::Ptunnel, Protocol::IcmpTunnel],
    carriers: &[CarrierKind::Ip(1), CarrierKind::Ip(58)],
    begins: &[Begin::Any],
    recognises: "ptunnel's header and lengths from user and proxy; IP packets in echoes; replies with other data than asked \
                 (possible)",
    specification: "RFC 792, RFC 4443, ptunnel",
    chance: "ptunnel's state and length: 2^-44; an IP packet that fills the echo: 2^-32",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "echoes whose data are encrypted or compressed, or hold no IP packet (possible at best)",
    codes: &[&PTUNNEL, &INNER, &CHANGED],
};

impl Detector for Icmp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let Carrier::Ip { protocol, .. } = segment.carrier else { return };
        let kind = match (protocol, segment.payload) {
            (1, [8, 0, ..]) | (58, [128, 0, ..]) => Kind::Request,
            (1, [0, 0, ..]) | (58, [129, 0, ..]) => Kind::Reply,
            _ => return,
        };
        let Some(data) = segment.payload.get(8..).filter(|data| !data.is_empty()) else { return };
        let len = segment.len_behind(8);
        if let Some(message) = Message::read(data, len) {
            ptunnel(message, segment, findings);
        } else if let Some((place, bits)) = packet(data, len) {
            let value = place as u64;
            let share = Share { protocol: Protocol::IcmpTunnel, code: &INNER, bits, identity: value, value };
            overlay::add(&share, segment, findings);
        }
        echo(kind, data, segment, findings);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Reply,
}

/// A header of ptunnel's that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    magic: u32,
    is_proxy: bool,
}

impl Message {
    fn read(data: &[u8], len: u32) -> Option<Self> {
        let (magic, state, length) = (u32_at(data, 0)?, u32_at(data, 12)?, u32_at(data, 20)?);
        let is_state = state & 0x3fff_ffff <= 6 && matches!(state >> 30, 1 | 2);
        if magic == 0 || !is_state || length > 1400 {
            return None;
        }
        // Data of an odd length are filled up.
        let fits = len.checked_sub(28).is_some_and(|behind| behind == length || behind == length + (length & 1));
        fits.then_some(Self { magic, is_proxy: state >> 31 == 1 })
    }
}

/// ptunnel's and ptunnel-ng's.
const KNOWN: [u32; 2] = [0xd520_0880, 0xdead_c0de];

fn ptunnel(message: Message, segment: &Segment<'_>, findings: &mut Findings) {
    let value = |is_proxy| u64::from(message.magic) << 2 | if is_proxy { 2 } else { 1 };
    let last = |direction| findings.of(&PTUNNEL, direction).map(|found| found.last_value);
    // A kernel that answers echoes as well returns the user's: those say nothing of a proxy.
    let confidence = if last(segment.direction.opposite()) == Some(value(!message.is_proxy)) {
        Confidence::Certain
    } else if KNOWN.contains(&message.magic) || last(segment.direction) == Some(value(message.is_proxy)) {
        Confidence::Likely
    } else {
        Confidence::Possible
    };
    findings.add(segment, Protocol::Ptunnel, &PTUNNEL, confidence, value(message.is_proxy));
}

/// Where an IP packet that fills the data begins, and the bits that it rules out.
fn packet(data: &[u8], len: u32) -> Option<(usize, u32)> {
    // At once; behind a TUN device's flags and EtherType; behind hans' magic and type.
    [0_usize, 4, 5].into_iter().find_map(|place| {
        let bits = overlay::ip(data.get(place..)?, len.checked_sub(place as u32)?, Fit::Exact)?;
        // Less for the places, and so that one packet, which may be a probe, is possible.
        Some((place, bits.checked_sub(14)?))
    })
}

/// Compares a reply with the latest request.
fn echo(kind: Kind, data: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(number), Some(front)) = (u32_at(segment.payload, 4), data.get(..COMPARED)) else { return };
    let mark = number_of(front);
    if kind == Kind::Request {
        let slot = findings.slot(SlotId::Echo, segment.direction);
        (slot.a, slot.content, slot.hits) = (number.into(), mark, 1);
        return;
    }
    let asked = *findings.slot(SlotId::Echo, segment.direction.opposite());
    if asked.hits == 1 && asked.a == u64::from(number) && asked.content != mark {
        findings.add(segment, Protocol::IcmpTunnel, &CHANGED, Confidence::Possible, number.into());
    }
}

/// Octets of data that are compared: what hosts that cut replies return at least.
const COMPARED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::tests_support::{best, segment, trials};
    use crate::flow::Direction::{self, Forward, Reverse};

    const V4: Carrier = Carrier::Ip { protocol: 1, outer_v6: false };
    const V6: Carrier = Carrier::Ip { protocol: 58, outer_v6: true };

    fn echo(kind: u8, number: u8, data: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0x12, 0x34, 0, 7, 0, number][..], data].concat()
    }

    fn ptunnel(magic: u32, state: u32, data: &[u8]) -> Vec<u8> {
        let len = data.len() as u32;
        let words = [magic, 0x7f00_0001, 22, state, 0xffff, len, 7];
        [words.map(u32::to_be_bytes).as_flattened(), data].concat()
    }

    #[test]
    fn cases() {
        let level = |protocol, confidence| Some((protocol, confidence));
        let ptunnel_is = |confidence| level(Protocol::Ptunnel, confidence);
        let inner_is = |confidence| level(Protocol::IcmpTunnel, confidence);
        let (possible, likely, certain) = (Confidence::Possible, Confidence::Likely, Confidence::Certain);
        let user = |magic, data: &[u8]| ptunnel(magic, 1 << 30, data);
        let proxy = |magic, data: &[u8]| ptunnel(magic, 1 << 31 | 2, data);
        let known = 0xd520_0880;
        let timed: Vec<u8> = (0..56).collect();
        let windows = b"abcdefghijklmnopqrstuvwabcdefghi";
        let packets: Vec<_> = (8..14).map(ipv4_packet).collect();
        #[rustfmt::skip]
        let cases: Vec<(&str, Carrier, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", V4, vec![(Forward, vec![])], None),
            ("no data", V4, vec![(Forward, echo(8, 1, &[]))], None),
            ("ping", V4, vec![(Forward, echo(8, 1, &timed)), (Reverse, echo(0, 1, &timed))], None),
            ("Windows' ping", V4, vec![(Forward, echo(8, 1, windows)), (Reverse, echo(0, 1, windows))], None),
            ("zeros", V4, vec![(Forward, echo(8, 1, &[0; 1400])), (Reverse, echo(0, 1, &[0; 1400]))], None),
            ("a cut reply", V4, vec![(Forward, echo(8, 1, &timed)), (Reverse, echo(0, 1, &timed[..40]))], None),
            ("an older reply", V4, vec![(Forward, echo(8, 2, &timed)), (Reverse, echo(0, 1, windows))], None),
            ("another reply", V4, vec![(Forward, echo(8, 1, &timed)), (Reverse, echo(0, 1, windows))], inner_is(possible)),
            ("other replies", V4, [1, 2, 3, 4, 5, 6].into_iter().flat_map(|number| {
                [(Forward, echo(8, number, &timed)), (Reverse, echo(0, number, windows))]
            }).collect(), inner_is(possible)),
            ("one packet", V4, vec![(Forward, echo(8, 1, &packets[0]))], inner_is(possible)),
            ("one packet, and its echo", V4, vec![(Forward, echo(8, 1, &packets[0])), (Reverse, echo(0, 1, &packets[0]))], inner_is(likely)),
            ("two packets", V4, (0..2).map(|at| (Forward, echo(8, 1, &packets[at]))).collect(), inner_is(likely)),
            ("four packets", V4, (0..4).map(|at| (Forward, echo(8, 1, &packets[at]))).collect(), inner_is(certain)),
            ("one octet long", V4, (0..4).map(|at| (Forward, echo(8, 1, &[&packets[at][..], &[0]].concat()))).collect(), None),
            ("one octet short", V4, (0..4).map(|at| (Forward, echo(8, 1, &packets[at][..27]))).collect(), None),
            ("behind flags and type", V4, (0..4).map(|at| (Forward, echo(8, 1, &[&[0, 0, 8, 0][..], &packets[at]].concat()))).collect(), inner_is(certain)),
            ("behind a magic and a type", V4, (0..4).map(|at| (Reverse, echo(0, 1, &[&b"hans\x07"[..], &packets[at]].concat()))).collect(), inner_is(certain)),
            ("IPv6 in ICMPv6", V6, (8..16).map(|len| (Forward, echo(128, 1, &ipv6_packet(len)))).collect(), inner_is(certain)),
            ("time exceeded", V4, (0..4).map(|at| (Forward, echo(11, 1, &packets[at]))).collect(), None),
            ("ptunnel's user", V4, vec![(Forward, echo(8, 1, &user(known, &[])))], ptunnel_is(likely)),
            ("returned by a kernel", V4, vec![(Forward, echo(8, 1, &user(known, &[]))), (Reverse, echo(0, 1, &user(known, &[])))], ptunnel_is(likely)),
            ("user and proxy", V4, vec![(Forward, echo(8, 1, &user(known, &[]))), (Reverse, echo(0, 1, &proxy(known, &[9; 5])))], ptunnel_is(certain)),
            ("two magic numbers", V4, vec![(Forward, echo(8, 1, &user(known, &[]))), (Reverse, echo(0, 1, &proxy(77, &[9; 5])))], ptunnel_is(likely)),
            ("an operator's number", V4, vec![(Forward, echo(8, 1, &user(77, &[])))], ptunnel_is(possible)),
            ("the same again", V4, vec![(Forward, echo(8, 1, &user(77, &[]))), (Forward, echo(8, 2, &user(77, &[1; 4])))], ptunnel_is(likely)),
            ("ptunnel, one octet short", V4, vec![(Forward, echo(8, 1, &user(known, &[1; 4])[..31]))], None),
            ("ptunnel, one octet long", V4, vec![(Forward, echo(8, 1, &[&user(known, &[1; 4])[..], &[0]].concat()))], None),
            ("both sides at once", V4, vec![(Forward, echo(8, 1, &ptunnel(known, 3 << 30, &[])))], None),
        ];
        for (name, carrier, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&Icmp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn chance() {
        use crate::detect::tests_support::alarms;
        let found = alarms(&Icmp, V4, [0, 0], |noise| {
            let kind = if noise.below(2) == 0 { 8 } else { 0 };
            let len = 16 + noise.below(200) as usize;
            let mut data = noise.octets(len);
            let version = [0x45, 0x60, data[0], data[0]][noise.below(4) as usize];
            data[0] = version;
            echo(kind, noise.below(4) as u8, &data)
        });
        assert_eq!(found, None, "{}", trials());
    }
}
