//! Turns UDP payloads into evidence of LISP: data with an IP packet inside (RFC 9300 5.1) and control messages (RFC 9301 5),
//! on any port (data 4341, control 4342).
//!
//! | offset | octets | data | control |
//! |---|---|---|---|
//! | 0 | 1 | flags N, L, E, V, I, R, K (2 bits) | type (4 bits), flags |
//! | 1 | 3 | nonce if N, map versions if V, else zero | flags; the last octet counts records |
//! | 4 | 4 | instance and status bits if I, status bits if L, else zero | nonce (8 octets) |
//! | 8 | | IP packet | behind the nonce: authentication of registrations, then records |
//!
//! The flags of data exclude each other: E wants N, V forbids N, R is zero, K is used with N alone; unused fields are zero.
//! That and an IP packet which checks out and ends with the datagram is chance once in 2^40 (IPv4) or 2^32 (IPv6). A header
//! without any flag is taken on port 4341 only, and so is one that reads as two MPLS labels as well.
//!
//! Control messages must be filled by exactly as many records as they count, whose addresses are of families that LISP uses
//! (16 bits each, address family numbers of IANA). Map-Reply and Map-Notify return the nonce of request and registration:
//! both ways is certain. An encapsulated one holds an IP packet for UDP with a control message in it.

use super::overlay::{self, Fit, Share};
use super::{About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment};
use crate::wire::cursor::{u16_at, u32_at, u64_at};

/// LISP over UDP on any port.
#[derive(Debug)]
pub struct Lisp;

static INNER: Code = Code {
    name: "lisp.inner",
    meaning: "a LISP header with an IP packet inside that checks out; value: instance identifier, 0 without one",
    clause: "RFC 9300 5.1, 5.3",
    phase: Phase::Stateless,
};

static CONTROL: Code = Code {
    name: "lisp.control",
    meaning: "a control message filled by the records that it counts; value: nonce",
    clause: "RFC 9301 5",
    phase: Phase::Handshake,
};

static ANSWER: Code = Code {
    name: "lisp.answer",
    meaning: "a Map-Reply or Map-Notify that returns the nonce of a Map-Request or Map-Register; value: nonce",
    clause: "RFC 9301 5.4, 5.7",
    phase: Phase::Handshake,
};

static ABOUT: About = About {
    name: "lisp",
    protocols: &[Protocol::Lisp],
    carriers: &[CarrierKind::Udp],
    begins: &[
        // Data: an IPv4 or IPv6 packet behind eight octets.
        Begin::Octets(".. .. .. .. .. .. .. .. 45 .. .. .. .. .. 0..00000 00"),
        Begin::Octets(".. .. .. .. .. .. .. .. 6. .. .. .. .. .. 06"),
        Begin::Octets(".. .. .. .. .. .. .. .. 6. .. .. .. .. .. 11"),
        Begin::Octets(".. .. .. .. .. .. .. .. 6. .. .. .. .. .. 3a"),
        // Map-Request, Map-Reply, Map-Register, Map-Notify and its acknowledgment, encapsulated messages.
        Begin::Octets("0001.... ..000000 0....... 0."),
        Begin::Octets("0010...0 00 00 0."),
        Begin::Octets("0011.... 00 000..... 0."),
        Begin::Octets("010..... 00 00 0."),
        Begin::Octets("1000.... 00 00 00 45"),
        Begin::Octets("1000.... 00 00 00 6."),
    ],
    recognises: "data by header and the IP packet inside; control by its records, and by answers that return a nonce",
    specification: "RFC 9300, RFC 9301",
    chance: "around IPv4: 2^-40 a packet, IPv6: 2^-32; a returned 64-bit nonce",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "encrypted data (RFC 8061); LISP-GPE (RFC 9305); Map-Referral and Info-Request",
    codes: &[&INNER, &CONTROL, &ANSWER],
};

impl Detector for Lisp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        if let Some((bits, instance)) = data(segment) {
            let value = instance.into();
            overlay::add(
                &Share { protocol: Protocol::Lisp, code: &INNER, bits, identity: value, value },
                segment,
                findings,
            );
        } else if let Some(message) = Message::read(segment.payload, segment.payload_len) {
            control(&message, segment, findings);
        }
    }
}

/// Bits that the flags rule out, with the fields that must be zero.
const HEADER: u32 = 8;
/// IANA's port for data.
const DATA_PORT: u16 = 4341;

/// Bits of a data packet, and its instance identifier.
fn data(segment: &Segment<'_>) -> Option<(u32, u32)> {
    let (one, two) = (u32_at(segment.payload, 0)?, u32_at(segment.payload, 4)?);
    let inside = segment.payload.get(8..)?;
    if !matches!(inside.first()? >> 4, 4 | 6) || !flags_fit(one, two) {
        return None;
    }
    // RFC 3032 2.1: a label, more to come; a label, the last; both with hops to live.
    let is_labels = one & 0x1ff > 0 && one & 0x100 == 0 && two & 0x1ff > 0x100 && one & INSTANCE == 0;
    if (one >> 24 == 0 || is_labels) && !segment.ports.contains(&DATA_PORT) {
        return None;
    }
    let bits = HEADER + overlay::ip(inside, segment.payload_len.saturating_sub(8), Fit::Exact)?;
    Some((bits, if one & INSTANCE == 0 { 0 } else { two >> 8 }))
}

const NONCE: u32 = 0x8000_0000;
const STATUS: u32 = 0x4000_0000;
const ECHO: u32 = 0x2000_0000;
const VERSION: u32 = 0x1000_0000;
const INSTANCE: u32 = 0x0800_0000;
const RESERVED: u32 = 0x0400_0000;
const KEY: u32 = 0x0300_0000;

/// RFC 9300 5.3, RFC 8061 7: which flags may stand together, and which fields are zero without theirs.
fn flags_fit(one: u32, two: u32) -> bool {
    let has = |flag: u32| one & flag != 0;
    let first = one & 0x00ff_ffff;
    let excluded = has(RESERVED | KEY) || (has(ECHO) && !has(NONCE)) || (has(VERSION) && has(NONCE));
    let filled = (first == 0 || has(NONCE | VERSION)) && (two == 0 || has(STATUS | INSTANCE));
    filled && !excluded
}

/// What a control message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Map-Request, Map-Register.
    Asks,
    /// Map-Reply, Map-Notify and its acknowledgment.
    Answers,
}

/// A control message that checks out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    kind: Kind,
    nonce: u64,
    /// Addresses of a known family.
    addresses: u32,
    /// Bits that an IP packet around it rules out.
    around: u32,
}

impl Message {
    fn read(octets: &[u8], len: u32) -> Option<Self> {
        match octets.first()? >> 4 {
            8 => Self::encapsulated(octets, len),
            _ if octets.len() as u32 == len => Self::bare(octets),
            _ => None,
        }
    }

    /// RFC 9301 5.8: an IP packet for UDP around a message.
    fn encapsulated(octets: &[u8], len: u32) -> Option<Self> {
        let inside = octets.get(4..)?;
        // Signed ones have authentication between.
        if octets.first()? & 0x08 != 0 || octets.get(1..4)? != [0; 3] {
            return None;
        }
        let around = overlay::ip(inside, len.checked_sub(4)?, Fit::Exact)?;
        let behind = match (inside.first()? >> 4, inside.get(9)?, inside.get(6)?) {
            (4, 17, _) => usize::from(inside.first()? & 0x0f) * 4,
            (6, _, 17) => 40,
            _ => return None,
        };
        Some(Self { around, ..Self::bare(inside.get(behind + 8..)?)? })
    }

    fn bare(octets: &[u8]) -> Option<Self> {
        let (head, nonce) = (u32_at(octets, 0)?, u64_at(octets, 4)?);
        let records = head & 0xff;
        let mut walk = Walk { octets, at: 12, addresses: 0 };
        // RFC 9301 5.2 to 5.7: reserved bits, then the parts.
        let kind = match head >> 28 {
            1 if head & 0x003f_8000 == 0 => {
                walk.address()?;
                for _ in 0..=(head >> 8 & 0x1f) {
                    walk.address()?;
                }
                for _ in 0..records {
                    walk.skip(2)?;
                    walk.address()?;
                }
                // With the M flag a record of the asker's own follows.
                if head & 0x0400_0000 != 0 {
                    walk.record()?;
                }
                Kind::Asks
            }
            2 if head & 0x01ff_ff00 == 0 => {
                walk.records(records)?;
                Kind::Answers
            }
            3 if head & 0x00ff_e000 == 0 => {
                walk.authentication()?;
                walk.records(records)?;
                // RFC 9301 5.6: the identifiers of router and site, with the I flag.
                if head & 0x0200_0000 != 0 {
                    walk.skip(24)?;
                }
                Kind::Asks
            }
            4 | 5 if head & 0x00ff_ff00 == 0 => {
                walk.authentication()?;
                walk.records(records)?;
                if head & 0x0800_0000 != 0 {
                    walk.skip(24)?;
                }
                Kind::Answers
            }
            _ => return None,
        };
        let is_whole = walk.at == octets.len() && records > 0 && walk.addresses > 0;
        is_whole.then_some(Self { kind, nonce, addresses: walk.addresses, around: 0 })
    }
}

/// Through the parts of a message.
#[derive(Clone, Copy, Debug)]
struct Walk<'a> {
    octets: &'a [u8],
    at: usize,
    addresses: u32,
}

impl Walk<'_> {
    fn skip(&mut self, octets: usize) -> Option<()> {
        self.at += octets;
        (self.at <= self.octets.len()).then_some(())
    }

    /// An address family number and the address (RFC 8060 3 for the canonical format).
    fn address(&mut self) -> Option<()> {
        let family = u16_at(self.octets, self.at)?;
        let len = match family {
            0 => 0,
            1 => 4,
            2 => 16,
            16_387 => 6 + usize::from(u16_at(self.octets, self.at + 6)?),
            16_389 => 6,
            _ => return None,
        };
        self.addresses += u32::from(family != 0);
        self.skip(2 + len)
    }

    fn authentication(&mut self) -> Option<()> {
        let len = u16_at(self.octets, self.at + 2)?;
        self.skip(4 + usize::from(len))
    }

    /// RFC 9301 5.4: time to live, count of locators, mask, action, version, EID; then its locators.
    fn record(&mut self) -> Option<()> {
        let locators = *self.octets.get(self.at + 4)?;
        self.skip(10)?;
        self.address()?;
        for _ in 0..locators {
            self.skip(6)?;
            self.address()?;
        }
        Some(())
    }

    fn records(&mut self, count: u32) -> Option<()> {
        (0..count).try_for_each(|_| self.record())
    }
}

fn control(message: &Message, segment: &Segment<'_>, findings: &mut Findings) {
    let Message { kind, nonce, addresses, around } = *message;
    let asked = findings.of(&CONTROL, segment.direction.opposite());
    if kind == Kind::Answers && nonce != 0 && asked.is_some_and(|asked| asked.last_value == nonce) {
        findings.add(segment, Protocol::Lisp, &ANSWER, Confidence::Certain, nonce);
        return;
    }
    let bits = HEADER + 12 + 16 * addresses.min(4) + around;
    overlay::add(
        &Share { protocol: Protocol::Lisp, code: &CONTROL, bits, identity: nonce, value: nonce },
        segment,
        findings,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::checksum;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::mpls::MplsInUdp;
    use crate::detect::overlay::tests::{series, taken_by_chance};
    use crate::detect::tests_support::{best, trials, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    const REQUEST: &[u8] = &[
        0x10, 0, 0, 1, 9, 8, 7, 6, 5, 4, 3, 2, 0, 1, 192, 0, 2, 1, 0, 1, 198, 51, 100, 1, 0, 32, 0, 1, 203, 0, 113, 9,
    ];
    const REPLY: &[u8] = &[
        0x20, 0, 0, 1, 9, 8, 7, 6, 5, 4, 3, 2, 0, 0, 5, 160, 1, 24, 0x10, 0, 0, 0, 0, 1, 203, 0, 113, 0, 1, 100, 255,
        0, 0, 5, 0, 1, 198, 51, 100, 2,
    ];

    /// Both messages with authentication of four octets.
    fn register_and_notify() -> [Vec<u8>; 2] {
        let with = |head: [u8; 4]| [&head, &REPLY[4..12], &[0, 1, 0, 4, 7, 7, 7, 7], &REPLY[12..]].concat();
        [with([0x30, 0, 1, 1]), with([0x40, 0, 0, 1])]
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Lisp, confidence));
        let (likely, certain) = (level(Confidence::Likely), level(Confidence::Certain));
        let (four, six) = (ipv4_packet(8), ipv6_packet(8));
        let lisp = |head: [u8; 8], inside: &[u8]| [&head, inside].concat();
        let whole = lisp([0xc0, 1, 0x22, 3, 0, 0, 0, 3], &four);
        let [register, notify] = register_and_notify();
        let mut encapsulated = ipv4_packet(8 + REQUEST.len());
        encapsulated.truncate(28);
        encapsulated.extend(REQUEST);
        assert_eq!(checksum(&encapsulated[..20]), 0);
        let encapsulated = [&[0x80, 0, 0, 0][..], &encapsulated].concat();
        let mut other_nonce = REPLY.to_vec();
        other_nonce[4] ^= 1;
        let mut other_family = REQUEST.to_vec();
        other_family[13] = 3;
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", series(&whole[..8], 5), None),
            ("one packet", vec![(Forward, whole.clone())], likely),
            ("one way", series(&whole, 2), certain),
            ("both ways", vec![(Forward, whole.clone()), (Reverse, whole.clone())], certain),
            ("one octet short", series(&whole[..whole.len() - 1], 5), None),
            ("one octet long", series([&whole[..], &[0]].concat(), 5), None),
            ("IPv6 of an instance", series(lisp([0x48, 0, 0, 0, 0, 0, 77, 1], &six), 2), certain),
            ("no flag", series(lisp([0; 8], &four), 5), None),
            ("map versions", series(lisp([0x50, 0, 0x10, 2, 0, 0, 0, 1], &four), 2), certain),
            ("map versions and a nonce", series(lisp([0xd0, 0, 0x10, 2, 0, 0, 0, 1], &four), 5), None),
            ("a nonce without its flag", series(lisp([0x40, 0, 0, 2, 0, 0, 0, 1], &four), 5), None),
            ("status bits without their flag", series(lisp([0x80, 0, 0, 2, 0, 0, 0, 1], &four), 5), None),
            ("the reserved flag: VXLAN-GPE", series(lisp([0x0c, 0, 0, 1, 0, 0, 42, 0], &four), 5), None),
            ("GTP-U", series(lisp([0x30, 0xff, 0, 28, 0, 0, 0, 1], &four), 5), None),
            ("Geneve", series(lisp([0, 0, 8, 0, 0, 0, 42, 0], &four), 5), None),
            ("GRE with a key, in UDP", series(lisp([0x20, 0, 8, 0, 0, 0, 0, 42], &four), 5), None),
            ("two MPLS labels", series(lisp([0xc3, 0xe9, 0x10, 64, 0x03, 0xe8, 0x11, 64], &four), 5), None),
            ("request", vec![(Forward, REQUEST.to_vec())], likely),
            ("request and reply", vec![(Forward, REQUEST.to_vec()), (Reverse, REPLY.to_vec())], certain),
            ("reply to another", vec![(Forward, REQUEST.to_vec()), (Forward, other_nonce)], certain),
            ("request, one octet short", vec![(Forward, REQUEST[..REQUEST.len() - 1].to_vec())], None),
            ("request, one octet long", vec![(Forward, [REQUEST, &[0]].concat())], None),
            ("request of another family", vec![(Forward, other_family)], None),
            ("registration", vec![(Forward, register), (Reverse, notify)], certain),
            ("encapsulated request", vec![(Forward, encapsulated)], likely),
            ("a clock's question (NTP)", series([&[0x23, 0, 0, 0][..], &[0; 44]].concat(), 5), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Lisp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn a_port_settles_what_two_labels_may_be() {
        let labels = [&[0xc0, 0xe9, 0x10, 64, 0x03, 0xe8, 0x11, 64][..], &ipv4_packet(8)].concat();
        let segment = udp(Forward, &labels);
        assert_eq!(best(&Lisp, &[segment]), None);
        assert_eq!(best(&MplsInUdp, &[segment]), Some((Protocol::MplsInUdp, Confidence::Possible)));
        let on_port = Segment { ports: [40_000, DATA_PORT], ..segment };
        assert_eq!(best(&Lisp, &[on_port]), Some((Protocol::Lisp, Confidence::Likely)));
    }

    #[test]
    fn chance() {
        let taken = taken_by_chance(&Lisp, trials(), |octets, number| {
            let heads = [[0xc0, 1, 2, 3], [0x48, 0, 0, 0], [0x10, 0, 0, 1], [0x20, 0, 0, 1], [0x80, 0, 0, 0]];
            octets[..4].copy_from_slice(&heads[number as usize % heads.len()]);
            octets[8] = if number % 2 == 0 { 0x45 } else { 0x60 };
        });
        // Octets that begin like IPv6 pass once in 2^28, and are possible, no more.
        assert!(taken <= 1 + trials() as usize / 10_000_000, "{taken}");
    }
}
