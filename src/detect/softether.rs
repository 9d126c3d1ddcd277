//! Turns UDP payloads and ICMP messages into evidence of SoftEther VPN beside its TLS: the messages by which a server is
//! reached through NAT, "VPN over DNS" and "VPN over ICMP" (SoftEther VPN manual 3.7, 10.1; `Network.h`, `Pack.c`).
//!
//! A message to or from the NAT-T server is a PACK, integers in network order:
//!
//! | octets | field |
//! |---|---|
//! | 4 | elements |
//! | 4, n | length of a name plus one, the name |
//! | 4, 4 | type (0 integer, 1 octets, 2 text, 3 Unicode text, 4 long integer), values |
//! | | each: 4 octets, 8 octets, or a length and that many |
//!
//! An element `opcode` is one of a few words, `tran_id` comes back in the answer: over 100 fixed octets.
//!
//! "VPN over DNS" hides a stream in messages of fixed form, whose only free octets are an identifier, a name and the data:
//!
//! | offset | octets | query | answer |
//! |---|---|---|---|
//! | 0 | 12 | identifier, 0100, counts 1 0 0 1 | identifier, 8180, counts 1 1 0 0 |
//! | 12 | 14 | a name of eight hexadecimal digits and no domain; DNSKEY, IN | the same form, **another name** |
//! | 26 | 11 or 16 | OPT of 4096 octets, DO; length | pointer, DNSKEY, IN, time to live, length, 0100 03 08 |
//! | | | data to the end, which is no EDNS option | data to the end |
//!
//! A resolver's answer repeats the question (RFC 1035 7.3), and no domain has a key under such a name: a query is possible,
//! three are likely, an answer to another question under the query's identifier is certain. The form fixes over 200 bits.
//!
//! "VPN over ICMP" sends its stream in information requests and replies (RFC 792; types 15 and 16), which RFC 6918 took out
//! of use, and which never carried data. Those of one side are possible, scans send them; both types with the same two
//! numbers but other data, one either way, are likely, with a third certain: 47 bits by chance.
//!
//! The stream itself, its fallback over plain UDP and UDP acceleration are octets without any form.

use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::wire::cursor::{u16_at, u32_at, u64_at};

/// SoftEther VPN's helpers and disguises.
#[derive(Debug)]
pub struct SoftEther;

static NAT_T: Code = Code {
    name: "softether.nat_t",
    meaning: "a message by which a VPN server is reached through NAT: a PACK with an opcode; value: transaction, or 0 where it is cut",
    clause: "SoftEther VPN, Network.c, RUDPDo_NatT_Interrupt; Pack.c",
    phase: Phase::Handshake,
};

static ADDRESS: Code = Code {
    name: "softether.address",
    meaning: "the NAT-T server's answer that says from where it was asked; value: port",
    clause: "SoftEther VPN, Network.c, RUDPParseIPAndPortStr",
    phase: Phase::Handshake,
};

static DNS_QUERY: Code = Code {
    name: "softether.dns_query",
    meaning: "a DNS query for the key of a name of eight digits, with data in place of EDNS options; value: the name",
    clause: "SoftEther VPN manual 10.1, VPN over DNS",
    phase: Phase::Stateless,
};

static DNS_ANSWER: Code = Code {
    name: "softether.dns_answer",
    meaning: "a DNS answer with a key under a name of eight digits, which is not the name asked for; value: the name",
    clause: "SoftEther VPN manual 10.1, VPN over DNS; RFC 1035 7.3",
    phase: Phase::Stateless,
};

static INFORMATION: Code = Code {
    name: "softether.icmp_information",
    meaning: "ICMP information messages with data, under one identifier and sequence number; value: these two",
    clause: "SoftEther VPN manual 10.1, VPN over ICMP; RFC 792",
    phase: Phase::Stateless,
};

static ABOUT: About = About {
    name: "softether",
    protocols: &[Protocol::SoftEther],
    carriers: &[CarrierKind::Udp, CarrierKind::Ip(1)],
    begins: &[
        Begin::Octets("00 00 00 000..... 00 00 00 .."),
        Begin::Octets("49 50 3d"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 00 00 30 00 01 00 00 29"),
        Begin::Octets(".. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. .. 00 00 30 00 01 c0 0c 00"),
    ],
    recognises: "messages to a NAT-T server; VPN over DNS by its form and an answer to another question; VPN over ICMP by information messages with data",
    specification: "SoftEther VPN manual; Network.c, Pack.c",
    chance: "NAT-T: 100 fixed octets; DNS: 200 fixed bits; ICMP: 2^-47",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "the main channel, which is TLS; UDP acceleration and the tunnel over plain UDP, which have no form; one message to a NAT-T server, or cut ones, and ICMP information from one side alone stay possible",
    codes: &[&NAT_T, &ADDRESS, &DNS_QUERY, &DNS_ANSWER, &INFORMATION],
};

impl Detector for SoftEther {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        match (segment.carrier, segment.payload) {
            (Carrier::Udp, [0, 0, 0, 1..=MAX_ELEMENTS, 0, 0, 0, ..]) => nat_t(segment, findings),
            (Carrier::Udp, [b'I', b'P', b'=', ..]) => address(segment, findings),
            (Carrier::Udp, [_, _, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, rest @ ..]) => query(rest, segment, findings),
            (Carrier::Udp, [_, _, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, rest @ ..]) => answer(rest, segment, findings),
            (Carrier::Ip { protocol: 1, .. }, [REQUEST | REPLY, 0, ..]) => information(segment, findings),
            _ => {}
        }
    }
}

/// More than any message has.
const MAX_ELEMENTS: u8 = 31;

fn nat_t(segment: &Segment<'_>, findings: &mut Findings) {
    let Some(Pack { opcode: Some(opcode), transaction }) = Pack::parse(segment) else { return };
    let there = findings.slot(SlotId::SoftEther, segment.direction.opposite()).a;
    let here = findings.slot(SlotId::SoftEther, segment.direction);
    if let Some(transaction) = transaction {
        here.a = transaction;
    }
    here.c |= 1 << opcode;
    let confidence = if transaction.is_some_and(|transaction| transaction != 0 && transaction == there) {
        Confidence::Certain
    } else if here.c.count_ones() >= 2 {
        Confidence::Likely
    } else {
        Confidence::Possible
    };
    findings.add(segment, Protocol::SoftEther, &NAT_T, confidence, transaction.unwrap_or(0));
}

/// What the NAT-T server is asked for, and what it tells.
const OPCODES: [&[u8]; 4] = [b"get_token", b"nat_t_register", b"nat_t_connect_request", b"nat_t_connect_relay"];

/// What is needed of a PACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pack {
    /// Index in [`OPCODES`].
    opcode: Option<usize>,
    transaction: Option<u64>,
}

impl Pack {
    /// A message as far as captured; `None` where its lengths contradict each other or the datagram's.
    fn parse(segment: &Segment<'_>) -> Option<Self> {
        let len = segment.payload_len as usize;
        let mut pack = Self::default();
        let mut offset = 4;
        for _ in 0..u32_at(segment.payload, 0)? {
            let Some(element) = segment.payload.get(offset..).and_then(Element::parse) else {
                // Cut by the snap length, or no PACK.
                return (segment.payload.len() < len && offset < len).then_some(pack);
            };
            match element.name {
                b"opcode" => pack.opcode = OPCODES.iter().position(|opcode| element.value == *opcode),
                b"tran_id" => pack.transaction = u64_at(element.value, 0),
                _ => {}
            }
            offset += element.len;
        }
        (offset == len).then_some(pack)
    }
}

/// One element with its only value.
#[derive(Clone, Copy, Debug)]
struct Element<'a> {
    name: &'a [u8],
    value: &'a [u8],
    /// Octets of all of it.
    len: usize,
}

impl<'a> Element<'a> {
    fn parse(octets: &'a [u8]) -> Option<Self> {
        let name_len = u32_at(octets, 0)?.checked_sub(1).filter(|len| (1..=63).contains(len))? as usize;
        let name = octets.get(4..4 + name_len)?;
        let known = name.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'@' | b'.'));
        let (kind, values) = (u32_at(octets, 4 + name_len)?, u32_at(octets, 8 + name_len)?);
        let at = 12 + name_len;
        let (at, value_len) = match kind {
            0 => (at, 4),
            4 => (at, 8),
            1..=3 => (at + 4, u32_at(octets, at)? as usize),
            _ => return None,
        };
        if !known || values != 1 || value_len > 2000 {
            return None;
        }
        Some(Self { name, value: octets.get(at..at + value_len)?, len: at + value_len })
    }
}

/// `IP=198.51.100.2,PORT=40000`.
fn address(segment: &Segment<'_>, findings: &mut Findings) {
    let octets = segment.payload;
    if segment.payload_len as usize != octets.len() || octets.len() > 64 {
        return;
    }
    let Some(comma) = octets.iter().position(|octet| *octet == b',') else { return };
    let (Some(ip), Some(port)) =
        (octets.get(3..comma), octets.get(comma..).and_then(|rest| rest.strip_prefix(b",PORT=")))
    else {
        return;
    };
    let text = |octets| std::str::from_utf8(octets).ok();
    let is_address = text(ip).is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok());
    let port = text(port).and_then(|port| port.parse::<u16>().ok());
    if let (true, Some(port)) = (is_address, port) {
        findings.add(segment, Protocol::SoftEther, &ADDRESS, Confidence::Possible, port.into());
    }
}

/// A question: eight hexadecimal digits, DNSKEY (48), IN; its digits and what follows.
fn question(octets: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = octets.strip_prefix(&[8])?.split_at_checked(8)?;
    let lower = |octet: &u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
    let rest = rest.strip_prefix(&[0, 0, 48, 0, 1])?;
    let digits = digits.iter().all(lower).then(|| std::str::from_utf8(digits).ok())??;
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}

/// Messages with other names before one side is likely.
const LIKELY_HITS: u32 = 3;
/// A signature is the least that a message carries.
const LEAST_DATA: usize = 20;
/// Octets before the query's data, and the answer's.
const QUERY: u32 = 37;
const ANSWER: u32 = 42;

fn query(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some((name, rest)) = question(rest) else { return };
    // RFC 6891 6.1.2: the root, OPT (41), 4096 octets, DO.
    let Some(rest) = rest.strip_prefix(&[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0]) else { return };
    let (Some(len), Some(data)) = (u16_at(rest, 0), rest.get(2..)) else { return };
    let fills = QUERY + u32::from(len) == segment.payload_len && usize::from(len) >= LEAST_DATA;
    if !fills || is_options(data, len.into()) {
        return;
    }
    let hits = series(name, segment, findings);
    let confidence = if hits >= LIKELY_HITS { Confidence::Likely } else { Confidence::Possible };
    findings.add(segment, Protocol::SoftEther, &DNS_QUERY, confidence, name.into());
}

/// Whether it is a list of EDNS options (RFC 6891 6.1.2), as far as captured.
fn is_options(data: &[u8], len: usize) -> bool {
    let mut offset = 0;
    while offset < len {
        let Some(option) = u16_at(data, offset + 2) else { return offset < data.len() || data.len() < len };
        offset += 4 + usize::from(option);
    }
    offset == len
}

fn answer(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some((name, rest)) = question(rest) else { return };
    // RFC 1035 4.1.4: the question's name again, DNSKEY, IN.
    let Some(rest) = rest.strip_prefix(&[0xc0, 12, 0, 48, 0, 1]) else { return };
    let Some(len) = u16_at(rest, 4) else { return };
    // RFC 4034 2.1: a zone key, protocol 3, RSA with SHA-256.
    let is_key = rest.get(6..).is_some_and(|key| key.starts_with(&[1, 0, 3, 8]));
    if !is_key || ANSWER - 4 + u32::from(len) != segment.payload_len || usize::from(len) < 4 + LEAST_DATA {
        return;
    }
    let asked = *findings.slot(SlotId::SoftEther, segment.direction.opposite());
    let hits = series(name, segment, findings);
    let identifier = u16_at(segment.payload, 0).map(u64::from);
    let confidence = match hits {
        _ if asked.hits > 0 && Some(asked.b) == identifier && asked.a != u64::from(name) => Confidence::Certain,
        LIKELY_HITS.. => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::SoftEther, &DNS_ANSWER, confidence, name.into());
}

/// Counts messages with names of their own.
fn series(name: u32, segment: &Segment<'_>, findings: &mut Findings) -> u32 {
    let slot = findings.slot(SlotId::SoftEther, segment.direction);
    if slot.hits == 0 || slot.a != u64::from(name) {
        slot.hits = slot.hits.saturating_add(1);
    }
    slot.a = name.into();
    slot.b = u16_at(segment.payload, 0).unwrap_or(0).into();
    slot.hits
}

/// RFC 792: information request and reply.
const REQUEST: u8 = 15;
const REPLY: u8 = 16;
const ICMP: usize = 8;

fn information(segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(&kind), Some(numbers)) = (segment.payload.first(), u32_at(segment.payload, 4)) else { return };
    let Some(data) = segment.payload.get(ICMP..ICMP + LEAST_DATA) else { return };
    let content = number_of(data);
    let there = *findings.slot(SlotId::SoftEther, segment.direction.opposite());
    let here = findings.slot(SlotId::SoftEther, segment.direction);
    let is_same = here.hits > 0 && here.a == u64::from(numbers);
    if is_same && here.content == content {
        return;
    }
    here.hits = if is_same { here.hits.saturating_add(1) } else { 1 };
    (here.a, here.content, here.c) = (numbers.into(), content, kind.into());
    let hits = here.hits;
    let answered =
        there.hits > 0 && there.a == u64::from(numbers) && there.c != u32::from(kind) && there.content != content;
    let confidence = match hits + there.hits {
        3.. if answered => Confidence::Certain,
        _ if answered => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::SoftEther, &INFORMATION, confidence, numbers.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, segment, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn text(name: &str, value: &[u8]) -> Vec<u8> {
        element(name, 2, &[&(value.len() as u32).to_be_bytes()[..], value].concat())
    }

    fn element(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let name_len = (name.len() as u32 + 1).to_be_bytes();
        [&name_len[..], name.as_bytes(), &kind.to_be_bytes(), &1_u32.to_be_bytes(), value].concat()
    }

    fn pack(opcode: &[u8], transaction: u64) -> Vec<u8> {
        let transaction = element("tran_id", 4, &transaction.to_be_bytes());
        [&[0, 0, 0, 3][..], &text("opcode", opcode), &transaction, &element("version", 0, &[0, 0, 0, 1])].concat()
    }

    fn asked(identifier: u16, name: &str, data: &[u8]) -> Vec<u8> {
        let options = [0, 0, 41, 0x10, 0, 0, 0, 0x80, 0];
        let front =
            [&identifier.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 8], name.as_bytes(), &[0, 0, 48, 0, 1]];
        [&front.concat()[..], &options, &(data.len() as u16).to_be_bytes(), data].concat()
    }

    fn answered(identifier: u16, name: &str, data: &[u8]) -> Vec<u8> {
        let front = [
            &identifier.to_be_bytes()[..],
            &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 8],
            name.as_bytes(),
            &[0, 0, 48, 0, 1],
        ];
        let len = (data.len() as u16 + 4).to_be_bytes();
        [&front.concat()[..], &[0xc0, 12, 0, 48, 0, 1, 0, 0, 7, 8], &len, &[1, 0, 3, 8], data].concat()
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::SoftEther, confidence));
        let token = pack(b"get_token", 7);
        let register = pack(b"nat_t_register", 7);
        let data = ciphertext(3, 40);
        let options = [&[0, 10, 0, 36][..], &[7; 36]].concat();
        let ask = |n: u16, name: &str| asked(n, name, &ciphertext(n.into(), 40));
        let told = |n: u16, name: &str| answered(n, name, &ciphertext(n.into(), 40));
        let mut upper = ask(1, "673e515e");
        upper[13] = b'A';
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, token[..token.len() - 1].to_vec())], None),
            ("one octet long", vec![(Forward, [&token[..], &[0]].concat())], None),
            ("a token asked for", vec![(Forward, token.clone()); 4], level(Confidence::Possible)),
            ("a token and a registration", vec![(Forward, token.clone()), (Forward, register.clone())], level(Confidence::Likely)),
            ("answered", vec![(Forward, token.clone()), (Reverse, token.clone())], level(Confidence::Certain)),
            ("another's answer", vec![(Forward, token), (Reverse, pack(b"get_token", 8))], level(Confidence::Possible)),
            ("another opcode", vec![(Forward, pack(b"open_door", 7))], None),
            ("an address", vec![(Reverse, b"IP=198.51.100.2,PORT=40000".to_vec()); 4], level(Confidence::Possible)),
            ("no address", vec![(Reverse, b"IP=198.51.100,PORT=40000".to_vec())], None),
            ("a query", vec![(Forward, ask(1, "673e515e")); 4], level(Confidence::Possible)),
            ("three queries", (1..4).map(|n| (Forward, ask(n, &format!("673e515{n}")))).collect(), level(Confidence::Likely)),
            ("three answers", (1..4).map(|n| (Reverse, told(n, &format!("673e515{n}")))).collect(), level(Confidence::Likely)),
            ("a query and its answer", vec![(Forward, ask(9, "673e515e")), (Reverse, told(9, "130f3ca1"))], level(Confidence::Certain)),
            ("an answer to the question", vec![(Forward, ask(9, "673e515e")), (Reverse, told(9, "673e515e"))], level(Confidence::Possible)),
            ("an answer to another query", vec![(Forward, ask(9, "673e515e")), (Reverse, told(8, "130f3ca1"))], level(Confidence::Possible)),
            ("a name that is none", vec![(Forward, upper)], None),
            ("a resolver's query", vec![(Forward, asked(1, "673e515e", &options)); 4], None),
            ("a query without data", vec![(Forward, asked(1, "673e515e", &[])); 4], None),
            ("a query of another length", vec![(Forward, [&asked(1, "673e515e", &data)[..], &[0]].concat())], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&SoftEther, &segments), expected, "{name}");
        }
    }

    #[test]
    fn icmp() {
        let level = |confidence| Some((Protocol::SoftEther, confidence));
        let message = |kind: u8, numbers: u32, seed: u64| {
            [&[kind, 0, 1, 2][..], &numbers.to_be_bytes(), &ciphertext(seed, 60)].concat()
        };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short", vec![(Forward, message(15, 7, 1)[..27].to_vec())], None),
            ("as RFC 792 has it", vec![(Forward, message(15, 7, 1)[..8].to_vec()); 4], None),
            ("one", vec![(Forward, message(15, 7, 1)); 4], level(Confidence::Possible)),
            ("several", (1..9).map(|n| (Forward, message(15, 7, n))).collect(), level(Confidence::Possible)),
            ("several of other numbers", (1..5).map(|n| (Forward, message(15, n as u32, n))).collect(), level(Confidence::Possible)),
            ("both ways", vec![(Forward, message(15, 7, 1)), (Reverse, message(16, 7, 2))], level(Confidence::Likely)),
            ("both ways, and one more", vec![(Forward, message(15, 7, 1)), (Reverse, message(16, 7, 2)), (Reverse, message(16, 7, 3))], level(Confidence::Certain)),
            ("an echo", vec![(Forward, message(15, 7, 1)), (Reverse, message(16, 7, 1))], level(Confidence::Possible)),
            ("pings", (1..9).flat_map(|n| [(Forward, message(8, 7, n)), (Reverse, message(0, 7, n))]).collect(), None),
        ];
        let carrier = Carrier::Ip { protocol: 1, outer_v6: false };
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&SoftEther, &segments), expected, "{name}");
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        let found = alarms(&SoftEther, Carrier::Udp, [40_000, 5004], |noise| {
            let len = 60 + noise.below(100) as usize;
            let mut octets = noise.octets(len);
            match noise.below(3) {
                0 => octets[..8].copy_from_slice(&[0, 0, 0, 1 + noise.below(9) as u8, 0, 0, 0, 7]),
                1 => {
                    octets[2..13].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 8]);
                    octets[21..35].copy_from_slice(&[0, 0, 48, 0, 1, 0, 0, 41, 0x10, 0, 0, 0, 0x80, 0]);
                }
                _ => octets[2..13].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, 8]),
            }
            octets
        });
        assert_eq!(found, None);
        let found = alarms(&SoftEther, Carrier::Ip { protocol: 1, outer_v6: false }, [0, 0], |noise| {
            let mut octets = noise.octets(64);
            octets[..2].copy_from_slice(&[15 + noise.below(2) as u8, 0]);
            octets
        });
        assert_eq!(found, None);
    }
}
