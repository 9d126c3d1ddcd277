//! Turns DNS messages over UDP (RFC 1035 4) into evidence of tunnels in them: iodine (its `doc/proto_00000502.txt`) and dns2tcp
//! (its README), and iodine's own datagrams, on any port.
//!
//! | offset | octets | field of DNS | here |
//! |---|---|---|---|
//! | 2 | 2 | flags, opcode, response code | a query or its response |
//! | 4 | 8 | counts | one question |
//! | 12 | | question: labels, type, class | the tunnel's way up; a response repeats it |
//! | next | | answer: name, type, class, time (4), length, data | the tunnel's way down |
//!
//! | first label of iodine | content |
//! |---|---|
//! | `v`, 10 characters | base32 of the protocol's version (4 octets) and a counter; answered by `VACK`, `VNAK` or `VFUL` |
//! | `l`, 31 characters | base32 of the login; answered by both addresses, `-` between, and more |
//! | `y`, 5; `s`, 5; `o`, 5; `z`, many | what is checked or set, and a counter of 15 bits (3 characters) |
//! | `r`, 3 characters and many | the user (4 bits) and a size |
//! | `p`, 7 characters | base32 of the user, a sequence number and a counter (2 octets) that counts by one |
//! | a hexadecimal digit, 4 characters, data | the user, a header (3), a counter of 36 steps |
//! | without DNS | 0x10d19e, command and user (4 bits each); a login is 20 octets long, a ping 4 |
//!
//! | first label of dns2tcp | content |
//! |---|---|
//! | base64 | session (2 octets), acknowledged and own sequence number (2 each), type, then data |
//! | the label behind, in the handshake | `=auth`, `=connect` |
//!
//! **Thresholds.** Long names, names that look random and rare types are common (content networks, virus scanners, DNSSEC, mail
//! keys), so none of them counts. A version query is possible, with its answer certain; random labels hold that version once in
//! 2^35. Checks of two kinds or more, whose counter counts by at most 16 (2^-11 by chance), are likely from the third on;
//! probes stay possible. A ping's counter must count by at most four (2^-14 by chance, and the same user), data must begin with
//! a label of 40 characters or more, one user and a counter that counts by one (2^-9 by chance). Numbered names of hosts count
//! as well: three pings or four of data are likely in queries for NULL or PRIVATE, which hosts do not ask for; in others three
//! pings or seven of data are, beside another sign of iodine. dns2tcp's session and counter (2^-28 by chance) are likely
//! behind its handshake, and with the server's answer in that session certain. A raw datagram (2^-25 by chance) is possible, a
//! second one of the same user likely, one either way certain.

use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::detect::sequence::{Content, Step};
use crate::wire::cursor::u16_at;

/// Tunnels in DNS over UDP on any port.
#[derive(Debug)]
pub struct Dns;

static VERSION: Code = Code {
    name: "iodine.version",
    meaning: "a query whose first label is the version of iodine's protocol; value: version",
    clause: "iodine proto_00000502, Version",
    phase: Phase::Handshake,
};

static ACCEPTED: Code = Code {
    name: "iodine.answer",
    meaning: "an answer with VACK, VNAK or VFUL to a version, or with both ends' addresses to a login; value: the question's \
              first letter",
    clause: "iodine proto_00000502, Version, Login",
    phase: Phase::Handshake,
};

static LOGIN: Code = Code {
    name: "iodine.login",
    meaning: "a login's label behind a version query; value: the label's length",
    clause: "iodine proto_00000502, Login",
    phase: Phase::Handshake,
};

static CHECK: Code = Code {
    name: "iodine.check",
    meaning: "checks and settings of codecs, of several kinds, whose counter counts; value: counter",
    clause: "iodine proto_00000502, Upstream and Downstream codec check, Switch codec, Options",
    phase: Phase::Handshake,
};

static PROBE: Code = Code {
    name: "iodine.probe",
    meaning: "long queries of one user that differ, as probes of an answer's size do; value: the size wanted",
    clause: "iodine proto_00000502, Probe downstream fragment size",
    phase: Phase::Handshake,
};

static PING: Code = Code {
    name: "iodine.ping",
    meaning: "pings of one user whose counter counts; value: counter",
    clause: "iodine proto_00000502, Ping",
    phase: Phase::Data,
};

static DATA: Code = Code {
    name: "iodine.data",
    meaning: "data of one user whose counter of 36 steps counts by one; value: user",
    clause: "iodine proto_00000502, Data",
    phase: Phase::Data,
};

static RAW: Code = Code {
    name: "iodine.raw",
    meaning: "a datagram of the raw mode; value: command and user",
    clause: "iodine proto_00000502, Raw UDP protocol",
    phase: Phase::Data,
};

static HANDSHAKE: Code = Code {
    name: "dns2tcp.handshake",
    meaning: "a query whose second label is =auth or =connect; value: session, 0 before there is one",
    clause: "dns2tcp README, requests",
    phase: Phase::Handshake,
};

static SESSION: Code = Code {
    name: "dns2tcp.session",
    meaning: "messages of one session whose sequence number counts; value: session",
    clause: "dns2tcp README, requests",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "dns",
    protocols: &[Protocol::Iodine, Protocol::Dns2tcp],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets(".. .. .0000... .0...... 00 01 00 0. 00"), Begin::Octets("10 d1 9e")],
    recognises: "iodine by its version exchange, raw datagrams, and counters of pings and data; dns2tcp by its handshake, \
                 session and counter",
    specification: "iodine proto_00000502, dns2tcp",
    chance: "a version query: 2^-35; counters: 2^-9 to 2^-28 a query, several in a row; a raw datagram: 2^-25",
    midstream: Some(Confidence::Likely),
    reaches: Confidence::Certain,
    out_of_sight: "other tunnels in DNS; DNS over TCP, TLS and HTTPS; behind a resolver that asks from a new port each \
                   time, each flow shows one query: a version exchange is certain, all else stays possible",
    codes: &[&VERSION, &ACCEPTED, &LOGIN, &CHECK, &PROBE, &PING, &DATA, &RAW, &HANDSHAKE, &SESSION],
};

impl Detector for Dns {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        if let Some(&[0x10, 0xd1, 0x9e, what]) = segment.payload.first_chunk() {
            raw(what, segment, findings);
        } else if let Some(message) = Message::read(segment.payload) {
            iodine(&message, segment, findings);
            dns2tcp(&message, segment, findings);
        }
    }
}

/// iodine's raw mode.
fn raw(what: u8, segment: &Segment<'_>, findings: &mut Findings) {
    let fits = match what >> 4 {
        1 => segment.payload_len == 20,
        2 => segment.payload_len > 4,
        3 => segment.payload_len == 4,
        _ => false,
    };
    if !fits {
        return;
    }
    let user = u64::from(what & 0x0f);
    let of_user = |direction| findings.of(&RAW, direction).is_some_and(|found| found.last_value & 0x0f == user);
    let confidence = if of_user(segment.direction.opposite()) {
        Confidence::Certain
    } else if of_user(segment.direction) {
        Confidence::Likely
    } else {
        Confidence::Possible
    };
    findings.add(segment, Protocol::Iodine, &RAW, confidence, what.into());
}

/// The parts of a message that tunnels use.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    is_response: bool,
    /// As captured: at the end of a cut name fewer octets than its length says.
    first: &'a [u8],
    /// Whole; empty where it was cut.
    second: &'a [u8],
    /// 0 where it was cut.
    kind: u16,
    /// Data of the first answer.
    answer: &'a [u8],
}

impl<'a> Message<'a> {
    fn read(octets: &'a [u8]) -> Option<Self> {
        let (flags, questions, answers) = (u16_at(octets, 2)?, u16_at(octets, 4)?, u16_at(octets, 6)?);
        let is_response = flags & 0x8000 != 0;
        // RFC 1035 4.1.1: opcode 0, the bit that stays zero, one question; a query holds no answer.
        if flags & 0x7840 != 0 || questions != 1 || (!is_response && answers != 0) {
            return None;
        }
        let len = usize::from(*octets.get(12)?);
        let first = octets.get(13..octets.len().min(13 + len))?;
        // RFC 1035 2.3.4: labels are 63 octets long at most.
        if !(1..=63).contains(&len) {
            return None;
        }
        let mut message = Self { is_response, first, second: &[], kind: 0, answer: &[] };
        let Some(end) = name_end(octets, 12) else { return Some(message) };
        let second = octets.get(13 + len).map_or(0, |octet| usize::from(*octet));
        message.second = octets.get(14 + len..14 + len + second).unwrap_or_default();
        message.kind = u16_at(octets, end).unwrap_or(0);
        if answers > 0 {
            message.answer = answer(octets, end + 4).unwrap_or_default();
        }
        Some(message)
    }
}

/// Behind the name at `at`, which ends with the root or a pointer; `None` where it is cut or too long.
fn name_end(octets: &[u8], mut at: usize) -> Option<usize> {
    // RFC 1035 2.3.4: 255 octets are 127 labels at most.
    for _ in 0..128 {
        let len = usize::from(*octets.get(at)?);
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + len,
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

/// The data of the record at `at`, as captured.
fn answer(octets: &[u8], at: usize) -> Option<&[u8]> {
    let at = name_end(octets, at)?;
    let len = usize::from(u16_at(octets, at + 8)?);
    let start = at + 10;
    octets.get(start..octets.len().min(start + len))
}

/// The value of one of iodine's base32 characters.
const fn base32(character: u8) -> Option<u64> {
    match character.to_ascii_lowercase() {
        letter @ b'a'..=b'z' => Some((letter - b'a') as u64),
        digit @ b'0'..=b'5' => Some((digit - b'0') as u64 + 26),
        _ => None,
    }
}

/// Up to 12 characters as one number, five bits each.
fn base32_number(characters: &[u8]) -> Option<u64> {
    characters.iter().take(12).try_fold(0, |number, character| Some(number << 5 | base32(*character)?))
}

/// The value of a base64 character (RFC 4648 4).
const fn base64(character: u8) -> Option<u64> {
    match character {
        letter @ b'A'..=b'Z' => Some((letter - b'A') as u64),
        letter @ b'a'..=b'z' => Some((letter - b'a') as u64 + 26),
        digit @ b'0'..=b'9' => Some((digit - b'0') as u64 + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

fn iodine(message: &Message<'_>, segment: &Segment<'_>, findings: &mut Findings) {
    let Some((letter, rest)) = message.first.split_first() else { return };
    match (letter.to_ascii_lowercase(), rest.len()) {
        (b'v', 10) => version(message, rest, segment, findings),
        (b'l', 31) => login(message, rest, segment, findings),
        (b'y' | b's' | b'o', 5) | (b'z', LEAST_CHECK..) => check(*letter, rest, segment, findings),
        (b'r', LEAST_PROBE..) => probe(rest, segment, findings),
        (b'p', 7) => ping(message, rest, segment, findings),
        (b'0'..=b'9' | b'a'..=b'f', LEAST_DATA..) => data(message, *letter, rest, segment, findings),
        _ => {}
    }
}

/// Characters behind the user that data must have: a compressed packet takes as many.
const LEAST_DATA: usize = 39;

fn version(message: &Message<'_>, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    // 48 bits and 2 of padding; version 0x500 to 0x5ff.
    let Some(number) = base32_number(rest) else { return };
    let (version, padding) = (number >> 18, number & 3);
    if version >> 8 != 5 || padding != 0 {
        return;
    }
    if !message.is_response {
        findings.add(segment, Protocol::Iodine, &VERSION, Confidence::Possible, version);
        return;
    }
    // Raw in NULL and PRIVATE; else base32 behind a letter, in TXT behind the string's length: the same four letters each.
    let raw = [&b"VACK"[..], b"VNAK", b"VFUL"];
    let coded = [&b"kzaugs"[..], b"kzhecs", b"kzdfkt"];
    let is_told = raw.iter().any(|word| message.answer.starts_with(word))
        || (1..=2).filter_map(|skip| message.answer.get(skip..)).any(|answer| {
            let front = answer.get(..6).unwrap_or_default();
            coded.iter().any(|word| front.eq_ignore_ascii_case(word))
        });
    if is_told {
        answered(&VERSION, b'v', segment, findings);
    }
}

/// An answer is certain if its question was seen.
fn answered(question: &'static Code, letter: u8, segment: &Segment<'_>, findings: &mut Findings) {
    let is_asked = findings.of(question, segment.direction.opposite()).is_some();
    let confidence = if is_asked { Confidence::Certain } else { Confidence::Likely };
    findings.add(segment, Protocol::Iodine, &ACCEPTED, confidence, letter.into());
}

fn login(message: &Message<'_>, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    if !rest.iter().all(|character| base32(*character).is_some()) {
        return;
    }
    if message.is_response {
        // Two addresses, a packet size and a prefix length.
        let splits = |by: u8| message.answer.split(|octet| *octet == by).count();
        let is_text = message.answer.iter().all(|octet| octet.is_ascii_digit() || b".-".contains(octet));
        if is_text && splits(b'-') == 4 && splits(b'.') == 7 {
            answered(&LOGIN, b'l', segment, findings);
        }
    } else if findings.of(&VERSION, segment.direction).is_some() {
        findings.add(segment, Protocol::Iodine, &LOGIN, Confidence::Likely, 32);
    }
}

/// Characters that a check of a codec takes up at least.
const LEAST_CHECK: usize = 29;
/// Characters of a probe's first label.
const LEAST_PROBE: usize = 50;

fn check(letter: u8, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let letter = letter.to_ascii_lowercase();
    let at = |place: usize| rest.get(place).map_or(0, u8::to_ascii_lowercase);
    // User identifiers are below 16.
    let is_user = base32(at(0)).is_some_and(|user| user < 16);
    let (fits, kind, place) = match letter {
        // A downstream codec and the one variant; upstream codecs of 5, 6, 26 and 7 bits; options.
        b'y' => (b"tsuvr".contains(&at(0)) && at(1) == b'b', 1, 2),
        b's' => (is_user && b"fg0h".contains(&at(1)), 2, 2),
        b'o' => (is_user && b"tsuvrli".contains(&at(1)), 4, 2),
        _ => (true, 8, 0),
    };
    let Some(counter) = rest.get(place..place + 3).and_then(base32_number).filter(|_| fits) else { return };
    let slot = findings.slot(SlotId::IodineCheck, segment.direction);
    let step = slot.step(1, counter, Content::Open);
    slot.c |= kind;
    // Numbered hosts count as well, but are of one kind.
    if step == Step::Counted && slot.c.count_ones() >= 2 {
        let confidence = if slot.hits >= 3 { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::Iodine, &CHECK, confidence, counter);
    }
}

fn probe(rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let Some(number) = rest.get(..3).and_then(base32_number) else { return };
    let (user, size) = (number >> 11, number & 0x7ff);
    let content = number_of(rest.get(3..).unwrap_or_default());
    let slot = findings.slot(SlotId::IodineProbe, segment.direction);
    if slot.hits > 0 && slot.content == content {
        return;
    }
    slot.hits = if slot.hits > 0 && slot.a == user { slot.hits.saturating_add(1) } else { 1 };
    (slot.a, slot.content) = (user, content);
    if slot.hits >= 3 {
        findings.add(segment, Protocol::Iodine, &PROBE, Confidence::Possible, size);
    }
}

fn ping(message: &Message<'_>, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    // 32 bits and 3 of padding.
    let Some(number) = base32_number(rest).filter(|number| number.trailing_zeros() >= 3) else { return };
    let (user, counter) = (number >> 31, number >> 3 & 0xffff);
    let slot = findings.slot(SlotId::IodinePing, segment.direction);
    if slot.step_within(4, user, counter, Content::Open) == Step::Counted && slot.hits >= 2 {
        let enough = slot.hits >= 3 && (is_odd(message.kind) || is_iodine(&PING, findings));
        let confidence = if enough { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::Iodine, &PING, confidence, counter);
    }
}

fn data(message: &Message<'_>, user: u8, rest: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let header = rest.get(..3).unwrap_or_default();
    let counter = match rest.get(3).map(u8::to_ascii_lowercase) {
        Some(letter @ b'a'..=b'z') => letter - b'a',
        Some(digit @ b'0'..=b'9') => digit - b'0' + 26,
        _ => return,
    };
    if !header.iter().all(|character| base32(*character).is_some()) {
        return;
    }
    let user = u64::from(user.to_ascii_lowercase());
    let content = number_of(rest.get(4..).unwrap_or_default());
    let slot = findings.slot(SlotId::IodineData, segment.direction);
    if slot.hits > 0 && slot.content == content {
        return;
    }
    let is_next = slot.hits > 0 && slot.a == user && (slot.b + 1) % 36 == u64::from(counter);
    slot.hits = if is_next { slot.hits.saturating_add(1) } else { 1 };
    (slot.a, slot.b, slot.content) = (user, counter.into(), content);
    let hits = slot.hits;
    if hits >= 3 {
        // Numbered names of hosts and objects count as well.
        let enough = if is_odd(message.kind) { hits >= 4 } else { hits >= 7 && is_iodine(&DATA, findings) };
        let confidence = if enough { Confidence::Likely } else { Confidence::Possible };
        findings.add(segment, Protocol::Iodine, &DATA, confidence, user);
    }
}

/// Types that hosts do not ask for.
const fn is_odd(kind: u16) -> bool {
    matches!(kind, NULL | PRIVATE)
}

/// Whether there is a sign of iodine beside `own`.
fn is_iodine(own: &'static Code, findings: &Findings) -> bool {
    findings.evidence().iter().any(|found| found.protocol == Protocol::Iodine && !std::ptr::eq(found.code, own))
}

/// RFC 1035 3.3.10.
const NULL: u16 = 10;
/// The type that iodine takes of those for private use (RFC 6895 3.1).
const PRIVATE: u16 = 65_399;
const TXT: u16 = 16;
/// RFC 2535 3.
const KEY: u16 = 25;

fn dns2tcp(message: &Message<'_>, segment: &Segment<'_>, findings: &mut Findings) {
    if !matches!(message.kind, TXT | KEY) {
        return;
    }
    // Seven octets: session, acknowledged, sequence number, type.
    let Some(header) = message
        .first
        .get(..10)
        .and_then(|label| label.iter().try_fold(0_u64, |number, character| Some(number << 6 | base64(*character)?)))
    else {
        return;
    };
    let (session, counter) = (header >> 44, header >> 12 & 0xffff);
    let behind = segment.direction.opposite();
    if matches!(message.second, b"=auth" | b"=connect") && !message.is_response {
        // A session that the server told before.
        let is_known = session != 0 && findings.slot(SlotId::Dns2tcp, behind).a == session;
        let confidence = if is_known { Confidence::Certain } else { Confidence::Likely };
        findings.add(segment, Protocol::Dns2tcp, &HANDSHAKE, confidence, session);
        return;
    }
    if message.is_response {
        // The server's header, coded likewise, behind the string's length and a letter.
        let told = message.answer.get(2..5).and_then(|label| {
            label.iter().try_fold(0_u64, |number, character| Some(number << 6 | base64(*character)?))
        });
        let of_server = told.map(|number| number >> 2).filter(|number| *number != 0);
        if let Some(of_server) = of_server.filter(|of_server| session == *of_server || session == 0) {
            let is_asked = findings.of(&HANDSHAKE, behind).is_some() || findings.of(&SESSION, behind).is_some();
            if session == 0 && !is_asked {
                return;
            }
            findings.slot(SlotId::Dns2tcp, segment.direction).a = of_server;
        }
    }
    if session == 0 {
        return;
    }
    let slot = findings.slot(SlotId::Dns2tcpCount, segment.direction);
    if slot.step_within(4, session, counter, Content::Open) == Step::Counted && slot.hits >= 3 {
        let is_answered = findings.slot(SlotId::Dns2tcp, behind).a == session;
        let is_begun = findings.of(&HANDSHAKE, segment.direction).or(findings.of(&HANDSHAKE, behind)).is_some();
        // Names of hosts with a running number in that place count as well.
        let confidence = match (is_answered, is_begun) {
            (true, _) => Confidence::Certain,
            (_, true) => Confidence::Likely,
            _ => Confidence::Possible,
        };
        findings.add(segment, Protocol::Dns2tcp, &SESSION, confidence, session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, udp};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn name(labels: &[&[u8]]) -> Vec<u8> {
        let mut octets: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8][..], label].concat()).collect();
        octets.push(0);
        octets
    }

    fn query(labels: &[&[u8]], kind: u16) -> Vec<u8> {
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&head[..], &name(labels), &kind.to_be_bytes(), &[0, 1]].concat()
    }

    fn response(labels: &[&[u8]], kind: u16, data: &[u8]) -> Vec<u8> {
        let mut octets = query(labels, kind);
        (octets[2], octets[3], octets[7]) = (0x84, 0, 1);
        octets.extend([0xc0, 12]);
        octets.extend(kind.to_be_bytes());
        octets.extend([0, 1, 0, 0, 0, 0]);
        octets.extend((data.len() as u16).to_be_bytes());
        octets.extend(data);
        octets
    }

    /// Ping `number` of a user: its base32.
    fn ping(number: u32) -> Vec<u8> {
        let bits = u64::from(0x0040_3530 + number) << 3;
        let digits = (0..7).map(|at| b"abcdefghijklmnopqrstuvwxyz012345"[(bits >> (30 - 5 * at) & 31) as usize]);
        std::iter::once(b'p').chain(digits).collect()
    }

    /// Data packet `number` of a user.
    fn data(number: usize) -> Vec<u8> {
        let counter = b"abcdefghijklmnopqrstuvwxyz0123456789"[number % 36];
        [&b"0iab"[..], &[counter], &[b'a' + number as u8 % 26; 50]].concat()
    }

    fn of_session(session: [u8; 2], number: u8) -> Vec<u8> {
        let octets = [session[0], session[1], 0, 0, 0, number, 4];
        let bits = octets.iter().fold(0_u64, |bits, octet| bits << 8 | u64::from(*octet)) << 4;
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        (0..10).map(|at| digits[(bits >> (54 - 6 * at) & 63) as usize]).collect()
    }

    #[test]
    fn cases() {
        let iodine = |confidence| Some((Protocol::Iodine, confidence));
        let dns2tcp = |confidence| Some((Protocol::Dns2tcp, confidence));
        let (possible, likely, certain) = (Confidence::Possible, Confidence::Likely, Confidence::Certain);
        let domain: [&[u8]; 2] = [b"example", b"net"];
        let of = |label: &[u8], kind| query(&[label, domain[0], domain[1]], kind);
        let told = |label: &[u8], kind, data: &[u8]| response(&[label, domain[0], domain[1]], kind, data);
        let version = b"vaaaakasumq";
        let login = b"lacjb42nhwleb4nut2nlfldugnibvizi";
        let raw = |what, len| [&[0x10, 0xd1, 0x9e, what][..], &vec![7; len]].concat();
        let queries = |label: &dyn Fn(usize) -> Vec<u8>, kind, count| -> Vec<(Direction, Vec<u8>)> {
            (0..count).map(|number| (Forward, of(&label(number), kind))).collect()
        };
        let auth = query(&[b"AAAAAOBhAA", b"=auth", domain[0]], TXT);
        let greeting = auth.clone();
        let told_session = [&b"\x22A"[..], &of_session([0xc1, 0x9e], 0)].concat();
        let host = |number: usize| format!("edge{number}").into_bytes();
        let long_host = |number: usize| [&data(number)[..4], b"a", &data(number)[5..]].concat();
        let digest = |number: usize| {
            let octets = crate::detect::tests_support::ciphertext(number as u64, 52);
            octets.iter().map(|octet| b"abcdefghijklmnopqrstuvwxyz012345"[usize::from(octet & 31)]).collect::<Vec<_>>()
        };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("header only", vec![(Forward, of(version, NULL)[..12].to_vec())], None),
            ("version", vec![(Forward, of(version, NULL))], iodine(possible)),
            ("version and answer", vec![(Forward, of(version, NULL)), (Reverse, told(version, NULL, b"VACK\x01\x02\x03\x04\x00"))], iodine(certain)),
            ("in TXT", vec![(Forward, of(version, TXT)), (Reverse, told(version, TXT, b"\x10tkzaugsyaaaaaaaa"))], iodine(certain)),
            ("in CNAME", vec![(Forward, of(version, 5)), (Reverse, told(version, 5, b"\x10hKZAUGSYaaaaaaaa\0"))], iodine(certain)),
            ("answer alone", vec![(Reverse, told(version, NULL, b"VNAK\x00\x00\x05\x02\x00"))], iodine(likely)),
            ("another answer", vec![(Forward, of(version, NULL)), (Reverse, told(version, NULL, &[1; 9]))], iodine(possible)),
            ("another version", vec![(Forward, of(b"vbaaakasumq", NULL))], None),
            ("version, one octet short", vec![(Forward, of(&version[..10], NULL))], None),
            ("version, one octet long", vec![(Forward, of(b"vaaaakasumqa", NULL))], None),
            ("login alone", vec![(Forward, of(login, NULL))], None),
            ("version and login", vec![(Forward, of(version, NULL)), (Forward, of(login, NULL))], iodine(likely)),
            ("addresses", vec![(Reverse, told(login, NULL, b"203.0.113.2-203.0.113.3-1130-24"))], iodine(likely)),
            ("checks", [&b"yrbvdg"[..], b"sahvdh", b"oalvdi"].iter().map(|label| (Forward, of(label, TXT))).collect(), iodine(likely)),
            ("two checks", [&b"yrbvdg"[..], b"sahvdh"].iter().map(|label| (Forward, of(label, TXT))).collect(), iodine(possible)),
            ("checks that do not count", [&b"yrbvdg"[..], b"sahaaa", b"oalzdi"].iter().map(|label| (Forward, of(label, TXT))).collect(), None),
            ("numbered servers", queries(&|number| format!("oat00{number}").into_bytes(), 1, 6), None),
            ("other numbered servers", queries(&|number| format!("srv00{number}").into_bytes(), 1, 6), None),
            ("probes", queries(&|number| [&b"rbea"[..], &data(number)].concat(), NULL, 9), iodine(possible)),
            ("two pings", queries(&|number| ping(number as u32), NULL, 2), iodine(possible)),
            ("pings", queries(&|number| ping(number as u32), NULL, 3), iodine(likely)),
            ("one ping again and again", queries(&|_| ping(7), NULL, 9), None),
            ("pings that do not count", queries(&|number| ping(number as u32 * 99), NULL, 9), None),
            ("printers", queries(&|number| format!("printer{number}").into_bytes(), 1, 6), None),
            ("data in NULL", queries(&data, NULL, 4), iodine(likely)),
            ("data in TXT", queries(&data, TXT, 6), iodine(possible)),
            ("more data in TXT", queries(&data, TXT, 9), iodine(possible)),
            ("pings in A, or names of hosts", queries(&|number| ping(number as u32), 1, 9), iodine(possible)),
            ("data and pings in TXT", [queries(&data, TXT, 3), queries(&|number| ping(number as u32), TXT, 3)].concat(), iodine(likely)),
            ("counting hosts", queries(&host, 1, 9), None),
            ("long names that do not count", queries(&long_host, NULL, 9), None),
            ("names of digests", queries(&digest, TXT, 32), None),
            ("raw login", vec![(Forward, raw(0x10, 16))], iodine(possible)),
            ("raw logins", vec![(Forward, raw(0x10, 16)); 2], iodine(likely)),
            ("raw login, one octet short", vec![(Forward, raw(0x10, 15))], None),
            ("raw both ways", vec![(Forward, raw(0x10, 16)), (Reverse, raw(0x10, 16))], iodine(certain)),
            ("raw data", vec![(Forward, raw(0x20, 40)); 2], iodine(likely)),
            ("raw data of two users", vec![(Forward, raw(0x20, 40)), (Reverse, raw(0x21, 40))], iodine(possible)),
            ("raw ping, one octet long", vec![(Forward, raw(0x30, 1))], None),
            ("dns2tcp's greeting", vec![(Forward, auth.clone())], dns2tcp(likely)),
            ("dns2tcp's greeting in A", vec![(Forward, query(&[b"AAAAAOBhAA", b"=auth", domain[0]], 1))], None),
            ("dns2tcp's session", vec![
                (Forward, auth), (Reverse, response(&[b"AAAAAOBhAA", b"=auth", domain[0]], TXT, &told_session)),
                (Forward, query(&[&of_session([0xc1, 0x9e], 1), b"=connect", domain[0]], TXT)),
            ], dns2tcp(certain)),
            ("dns2tcp's data", queries(&|number| of_session([0xc1, 0x9e], number as u8), TXT, 9), dns2tcp(possible)),
            ("dns2tcp's greeting and data", [vec![(Forward, greeting.clone())], queries(&|number| of_session([0xc1, 0x9e], number as u8), TXT, 3)].concat(), dns2tcp(likely)),
            ("dns2tcp's sessions", queries(&|number| of_session([0xc1, number as u8], number as u8), TXT, 9), None),
            ("mail's key", queries(&|_| b"selector1".to_vec(), TXT, 9), None),
        ];
        for (title, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&Dns, &segments), expected, "{title}");
        }
    }

    #[test]
    fn nothing_is_read_behind_the_end() {
        let whole = response(&[b"vaaaakasumq", b"example", b"net"], NULL, b"VACK\x01\x02\x03\x04\x00");
        for end in 0..whole.len() {
            // From the word of the answer on.
            let expected = (end >= whole.len() - 5).then_some((Protocol::Iodine, Confidence::Likely));
            assert_eq!(best(&Dns, &[udp(Forward, &whole[..end])]), expected, "{end}");
        }
        let looped = [&query(&[b"a"], NULL)[..12], &[0xc0, 12, 0, 10, 0, 1]].concat();
        assert_eq!(best(&Dns, &[udp(Forward, &looped)]), None);
    }

    #[test]
    fn chance() {
        // Random names in queries and responses, in the alphabet that fits most, of one user.
        let found = alarms(&Dns, Carrier::Udp, [40_000, 53], |noise| {
            let len = [8, 11, 32, 10, 60][noise.below(5) as usize];
            let mut label: Vec<u8> =
                (0..len).map(|_| b"abcdefghijklmnopqrstuvwxyz012345"[noise.below(32) as usize]).collect();
            label[0] = b"pvl0a"[noise.below(5) as usize];
            let kind = [1, NULL, TXT, PRIVATE][noise.below(4) as usize];
            if noise.below(2) == 0 { query(&[&label, b"net"], kind) } else { response(&[&label, b"net"], kind, &label) }
        });
        assert_eq!(found, None);
        let found = alarms(&Dns, Carrier::Udp, [40_000, 53], |noise| {
            let len = 4 + noise.below(60) as usize;
            noise.octets(len)
        });
        assert_eq!(found, None);
    }
}
