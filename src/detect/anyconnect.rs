//! Turns UDP payloads into evidence of the DTLS channel of AnyConnect and OpenConnect
//! (draft-mavrogiannopoulos-openconnect 2.1.5; OpenConnect's technical notes,
//! <https://www.infradead.org/openconnect/technical.html>).
//!
//! | offset | octets | field (RFC 6347 4.1, 4.2.2) |
//! |---|---|---|
//! | 0 | 1 | content type: 20 to 23 |
//! | 1 | 2 | version: 0xfefd (1.2), 0xfeff (1.0), 0x0100 (the one of before the RFC, which Cisco kept) |
//! | 3 | 2 | epoch |
//! | 5 | 6 | sequence number |
//! | 11 | 2 | length of the record |
//! | 13 | 12 | of a handshake message in clear: type, length, sequence number, fragment's offset and length |
//!
//! The channel's key and the name of its session come over TLS before it, and that shows in three ways:
//!
//! - **Version 0x0100**, which nothing else speaks. Type, version, zero upper halves of the epoch and the sequence number and
//!   the exact length of one record are chance once in 2^62, a number that counts in each further one once in 2^44.
//! - **Nothing but pre-shared keys** offered with the name of a session (32 octets) that the server does not resume, then the
//!   identity `psk`, or that name again. An offer alone is what any device with a pre-shared key sends when it resumes, so it
//!   is possible; with the identity, 5 octets in the place of 7 that are fixed (2^-56), it is likely; with the server's
//!   refusal to resume in between, certain.
//! - **A session resumed** with the one cipher suite that the server has named over TLS. Other clients resume, too: possible,
//!   and likely only where a TLS connection stands between the same hosts, to the same port of the server.
//!
//! DTLS data of versions 1.0 and 1.2 is DTLS and nothing more.

use super::sequence::Content;
use super::text::number_of;
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, SlotId,
};
use crate::flow::Direction;
use crate::wire::cursor::{u16_at, u32_at};

/// AnyConnect's and OpenConnect's DTLS channel.
#[derive(Debug)]
pub struct AnyConnect;

static OLD_HANDSHAKE: Code = Code {
    name: "anyconnect.old_handshake",
    meaning: "a DTLS handshake of the version from before RFC 4347, which AnyConnect kept; value: type of the message, or 0",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.5, table 1",
    phase: Phase::Handshake,
};

static OLD_DATA: Code = Code {
    name: "anyconnect.old_data",
    meaning: "DTLS records of the version from before RFC 4347 whose sequence numbers count; value: sequence number",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.5, table 1; RFC 6347 4.1",
    phase: Phase::Data,
};

static OFFER: Code = Code {
    name: "anyconnect.offer",
    meaning: "a ClientHello that names a session of 32 octets and offers nothing but pre-shared keys; value: cipher suites",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.5",
    phase: Phase::Handshake,
};

static APPLICATION: Code = Code {
    name: "anyconnect.application_id",
    meaning: "a ClientHello with OpenConnect's own extension, 48018, around the name of its session; value: octets of the name",
    clause: "openconnect-internal.h, DTLS_APP_ID_EXT",
    phase: Phase::Handshake,
};

static IDENTITY: Code = Code {
    name: "anyconnect.identity",
    meaning: "a ClientKeyExchange whose identity is psk, or the name of the session; value: octets of the identity",
    clause: "gnutls-dtls.c of OpenConnect; RFC 4279 2",
    phase: Phase::Handshake,
};

static RESUMPTION: Code = Code {
    name: "anyconnect.resumption",
    meaning: "a session of 32 octets resumed with the one cipher suite that the client offered; value: cipher suite",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.5",
    phase: Phase::Handshake,
};

static BESIDE_TLS: Code = Code {
    name: "anyconnect.beside_tls",
    meaning: "the DTLS goes to the port at which the same two hosts speak TLS; value: that port",
    clause: "draft-mavrogiannopoulos-openconnect 2.1.4, 2.1.5",
    phase: Phase::Handshake,
};

static ABOUT: About = About {
    name: "anyconnect",
    protocols: &[Protocol::AnyConnect],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("000101.. 01 00"), Begin::Octets("16 fe fd 00 00"), Begin::Octets("16 fe ff 00 00")],
    recognises: "the DTLS channel: Cisco's version 0x0100 by its records; OpenConnect's pre-shared keys by session name and identity; a session resumed with one suite as possible, beside TLS to the same port as likely",
    specification: "draft-mavrogiannopoulos-openconnect",
    chance: "one record of the old version: 2^-62; the identity: 2^-56, with the refusal before it",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "all that is inside TLS, where there is no DTLS channel; the data of DTLS 1.0 and 1.2, which any DTLS looks like, once its handshake has passed; a handshake of which only the server's side was seen; a resumed session whose hello or answer is missing, cut or in fragments",
    codes: &[&OLD_HANDSHAKE, &OLD_DATA, &OFFER, &APPLICATION, &IDENTITY, &RESUMPTION, &BESIDE_TLS],
};

/// What OpenSSL calls `DTLS1_BAD_VER` and GnuTLS DTLS 0.9.
const OLD: u16 = 0x0100;
const DTLS_1_0: u16 = 0xfeff;
const DTLS_1_2: u16 = 0xfefd;
/// RFC 6347 4.1: octets before a record's content.
const RECORD: usize = 13;
/// RFC 6347 4.2.2: octets before a handshake message's body.
const MESSAGE: usize = 12;
/// RFC 5246 6.2.1: handshake.
const HANDSHAKE: u8 = 22;
/// Records looked at in one datagram.
const MAX_RECORDS: usize = 4;

mod message {
    //! RFC 5246 7.4: types of handshake messages.
    pub const CLIENT_HELLO: u8 = 1;
    pub const SERVER_HELLO: u8 = 2;
    pub const CLIENT_KEY_EXCHANGE: u8 = 16;
}

impl Detector for AnyConnect {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        match *segment.payload {
            [20..=23, 0x01, 0x00, ..] => old(segment, findings),
            [HANDSHAKE, 0xfe, 0xfd | 0xff, 0, 0, ..] => handshake(segment, findings),
            _ => {}
        }
    }
}

/// A DTLS record's header, and its content as far as captured.
#[derive(Clone, Copy, Debug)]
struct Record<'a> {
    kind: u8,
    version: u16,
    epoch: u16,
    sequence: u64,
    content: &'a [u8],
}

/// The records of a datagram; none where their lengths do not fill it.
fn records<'a>(segment: &Segment<'a>) -> impl Iterator<Item = Record<'a>> + use<'a> {
    let (payload, len) = (segment.payload, segment.payload_len as usize);
    let mut offset = 0;
    std::iter::from_fn(move || {
        let header = payload.get(offset..)?;
        let (kind, version) = (*header.first()?, u16_at(header, 1)?);
        let (epoch, high, low, length) =
            (u16_at(header, 3)?, u16_at(header, 5)?, u32_at(header, 7)?, usize::from(u16_at(header, 11)?));
        // RFC 6347 4.1: a number starts from zero with each epoch, 2^32 records are hours of a full link.
        if !(20..=23).contains(&kind) || epoch > 0xff || high != 0 || length == 0 || offset + RECORD + length > len {
            return None;
        }
        let captured = header.get(RECORD..)?;
        offset += RECORD + length;
        let content = captured.get(..length).unwrap_or(captured);
        Some(Record { kind, version, epoch, sequence: low.into(), content })
    })
    .take(MAX_RECORDS)
}

/// Whether the records end where the datagram does, as far as captured.
fn fills(segment: &Segment<'_>) -> bool {
    let length = |offset: usize| u16_at(segment.payload, offset + 11).map(usize::from);
    let len = segment.payload_len as usize;
    let mut offset = 0;
    for _ in 0..MAX_RECORDS {
        match length(offset) {
            Some(length) if offset + RECORD + length == len => return true,
            Some(length) if offset + RECORD + length < len => offset += RECORD + length,
            None => return offset > 0 && offset + RECORD < len,
            _ => return false,
        }
    }
    false
}

/// Records of one side before they are likely.
const LIKELY_HITS: u32 = 3;
/// Records of either side before they are certain.
const CERTAIN_HITS: u32 = 2;

/// A datagram of Cisco's own version.
fn old(segment: &Segment<'_>, findings: &mut Findings) {
    if !fills(segment) {
        return;
    }
    for record in records(segment).filter(|record| record.version == OLD) {
        let there = findings.slot(SlotId::AnyConnectRecords, segment.direction.opposite()).hits;
        let here = findings.slot(SlotId::AnyConnectRecords, segment.direction);
        // What is encrypted begins with an initialisation vector.
        let content = if record.epoch == 0 { Content::Open } else { Content::Encrypted(record.content) };
        let before = here.hits;
        here.step(record.epoch.into(), record.sequence, content);
        let hits = here.hits;
        let confidence = match (hits, there) {
            (CERTAIN_HITS.., CERTAIN_HITS..) => Confidence::Certain,
            (LIKELY_HITS.., _) => Confidence::Likely,
            _ => Confidence::Possible,
        };
        if record.epoch != 0 {
            if before < hits {
                findings.add(segment, Protocol::AnyConnect, &OLD_DATA, confidence, record.sequence);
            }
            continue;
        }
        let kind = if record.kind == HANDSHAKE { record.content.first().copied().unwrap_or(0) } else { 0 };
        let confidence = match Message::parse(&record) {
            Some(Message::ClientHello(hello)) => {
                note_hello(&hello, segment, findings);
                confidence
            }
            // RFC 5246 7.4.1.3: the session's name repeated means that it is resumed.
            Some(Message::ServerHello(hello))
                if hello_of_other(segment, findings) == Some(number_of(hello.session)) =>
            {
                Confidence::Certain
            }
            _ => confidence,
        };
        findings.add(segment, Protocol::AnyConnect, &OLD_HANDSHAKE, confidence, kind.into());
    }
}

/// Marks in a slot of the handshake.
const HELLO: u32 = 1;
const OFFERED: u32 = 2;
const REFUSED: u32 = 4;
const ONE_SUITE: u32 = 8;

fn note_hello(hello: &ClientHello<'_>, segment: &Segment<'_>, findings: &mut Findings) {
    findings.originator.get_or_insert(segment.direction);
    let slot = findings.slot(SlotId::AnyConnect, segment.direction);
    slot.a = number_of(hello.session);
    slot.c = HELLO;
    slot.b = 0;
}

/// The session's name in the other side's ClientHello, as a number.
fn hello_of_other(segment: &Segment<'_>, findings: &mut Findings) -> Option<u64> {
    let slot = findings.slot(SlotId::AnyConnect, segment.direction.opposite());
    (slot.c & HELLO != 0).then_some(slot.a)
}

/// A handshake message in clear of DTLS 1.0 or 1.2.
fn handshake(segment: &Segment<'_>, findings: &mut Findings) {
    if !fills(segment) {
        return;
    }
    for record in records(segment) {
        if record.kind != HANDSHAKE || record.epoch != 0 || !matches!(record.version, DTLS_1_0 | DTLS_1_2) {
            return;
        }
        match Message::parse(&record) {
            Some(Message::ClientHello(hello)) => client_hello(&hello, segment, findings),
            Some(Message::ServerHello(hello)) => server_hello(&hello, segment, findings),
            Some(Message::PskIdentity(identity)) => psk_identity(identity, segment, findings),
            None => {}
        }
    }
}

/// Octets of the name that a session gets over TLS.
const SESSION: usize = 32;

fn client_hello(hello: &ClientHello<'_>, segment: &Segment<'_>, findings: &mut Findings) {
    // A ticket names a session of its own: whoever has one needs no name from elsewhere.
    if hello.session.len() != SESSION && hello.application.is_none() || hello.has_ticket {
        return;
    }
    let suites =
        || hello.suites.chunks_exact(2).filter_map(|suite| u16_at(suite, 0)).filter(|suite| !is_signal(*suite));
    let only_psk = suites().next().is_some() && suites().all(is_psk);
    let named = suites().next().filter(|suite| suites().nth(1).is_none() && is_named(*suite));
    if !only_psk && named.is_none() {
        return;
    }
    note_hello(hello, segment, findings);
    let slot = findings.slot(SlotId::AnyConnect, segment.direction);
    if let Some(suite) = named {
        slot.c |= ONE_SUITE;
        slot.b = suite.into();
    }
    if only_psk {
        slot.c |= OFFERED;
        let count = suites().count() as u64;
        findings.add(segment, Protocol::AnyConnect, &OFFER, Confidence::Possible, count);
        if let Some(name) = hello.application {
            findings.add(segment, Protocol::AnyConnect, &APPLICATION, Confidence::Likely, name.len() as u64);
        }
    }
}

fn server_hello(hello: &ServerHello<'_>, segment: &Segment<'_>, findings: &mut Findings) {
    let client = *findings.slot(SlotId::AnyConnect, segment.direction.opposite());
    if client.c & HELLO == 0 {
        return;
    }
    let is_resumed = hello.session.len() == SESSION && client.a == number_of(hello.session);
    if is_resumed && !hello.is_extended && client.c & ONE_SUITE != 0 && client.b == u64::from(hello.suite) {
        findings.add(segment, Protocol::AnyConnect, &RESUMPTION, Confidence::Possible, hello.suite.into());
    } else if !is_resumed && client.c & OFFERED != 0 && is_psk(hello.suite) {
        findings.slot(SlotId::AnyConnect, segment.direction).c |= REFUSED;
        if let Some(offer) = findings.of(&APPLICATION, segment.direction.opposite()) {
            let value = offer.value;
            findings.add(segment, Protocol::AnyConnect, &APPLICATION, Confidence::Certain, value);
        }
    }
}

fn psk_identity(identity: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let own = *findings.slot(SlotId::AnyConnect, segment.direction);
    let offered = own.c & OFFERED != 0;
    let is_name =
        offered && (number_of(identity) == own.a || from_hex(identity).is_some_and(|name| number_of(&name) == own.a));
    if identity != b"psk" && !is_name {
        return;
    }
    let refused = findings.slot(SlotId::AnyConnect, segment.direction.opposite()).c & REFUSED != 0;
    let confidence = match (offered, refused) {
        (true, true) => Confidence::Certain,
        (true, false) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, Protocol::AnyConnect, &IDENTITY, confidence, identity.len() as u64);
}

/// The octets that 64 hexadecimal digits stand for.
fn from_hex(digits: &[u8]) -> Option<[u8; SESSION]> {
    let mut octets = [0; SESSION];
    if digits.len() != 2 * SESSION {
        return None;
    }
    for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(octets)
}

/// A TLS connection stands between the same two hosts, to the port that this DTLS goes to: with a session resumed that no
/// handshake of its own began, that is likely no accident.
pub fn beside_tls(segment: &Segment<'_>, findings: &mut Findings) {
    let resumed = [Direction::Forward, Direction::Reverse].map(|direction| findings.of(&RESUMPTION, direction));
    if resumed.iter().all(Option::is_none) {
        return;
    }
    let [source, destination] = segment.ports;
    let to_server = findings.originator.is_none_or(|client| client == segment.direction);
    let port = if to_server { destination } else { source };
    findings.add(segment, Protocol::AnyConnect, &BESIDE_TLS, Confidence::Likely, port.into());
}

#[derive(Clone, Copy, Debug)]
enum Message<'a> {
    ClientHello(ClientHello<'a>),
    ServerHello(ServerHello<'a>),
    /// The identity in a ClientKeyExchange that holds nothing else (RFC 4279 2).
    PskIdentity(&'a [u8]),
}

#[derive(Clone, Copy, Debug)]
struct ClientHello<'a> {
    session: &'a [u8],
    suites: &'a [u8],
    /// A session ticket that is not empty (RFC 5077 3.2).
    has_ticket: bool,
    /// The content of OpenConnect's own extension.
    application: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug)]
struct ServerHello<'a> {
    session: &'a [u8],
    suite: u16,
    /// RFC 7627 5.3: a session of a full handshake with the extended master secret is resumed with it; one that comes from
    /// elsewhere has none.
    is_extended: bool,
}

impl<'a> Message<'a> {
    /// A whole message, as far as captured.
    fn parse(record: &Record<'a>) -> Option<Self> {
        let header = record.content.get(..MESSAGE)?;
        let (kind, length) = (*header.first()?, u32_at(header, 0)? & 0x00ff_ffff);
        let (offset, here) = (u32_at(header, 5)? & 0x00ff_ffff, u32_at(header, 8)? & 0x00ff_ffff);
        if record.kind != HANDSHAKE || offset != 0 || here != length {
            return None;
        }
        let body = record.content.get(MESSAGE..)?;
        match kind {
            message::CLIENT_HELLO => ClientHello::parse(body, record.version).map(Self::ClientHello),
            message::SERVER_HELLO => ServerHello::parse(body, record.version).map(Self::ServerHello),
            message::CLIENT_KEY_EXCHANGE => {
                let identity = body.get(2..)?;
                let is_whole = u32::from(u16_at(body, 0)?) + 2 == length && identity.len() + 2 == length as usize;
                is_whole.then_some(Self::PskIdentity(identity))
            }
            _ => None,
        }
    }
}

/// RFC 5246 7.4.1.2: octets of a random number.
const RANDOM: usize = 32;

/// The version in a hello: what the record says, or what it may say for it (RFC 6347 4.1: a record may be older).
fn is_hello_version(body: &[u8], record: u16) -> bool {
    match u16_at(body, 0) {
        Some(OLD) => record == OLD,
        Some(DTLS_1_0 | DTLS_1_2) => record != OLD,
        _ => false,
    }
}

/// Octets behind a length of one octet, and what follows them.
fn short(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = octets.split_first()?;
    rest.split_at_checked(len.into())
}

/// Types and contents of extensions behind their common length (RFC 5246 7.4.1.4), as far as captured.
fn extensions(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = octets.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (kind, len) = (u16_at(rest, 0)?, u16_at(rest, 2)?);
        let (content, next) = rest.get(4..)?.split_at_checked(len.into())?;
        rest = next;
        Some((kind, content))
    })
}

/// Octets that fill what stands behind their length.
fn whole(octets: &[u8]) -> Option<&[u8]> {
    short(octets).filter(|(own, rest)| !own.is_empty() && rest.is_empty()).map(|(own, _)| own)
}

impl<'a> ClientHello<'a> {
    fn parse(body: &'a [u8], record: u16) -> Option<Self> {
        if !is_hello_version(body, record) {
            return None;
        }
        let (session, rest) = short(body.get(2 + RANDOM..)?)?;
        let (_cookie, rest) = short(rest)?;
        let (suites, rest) = rest.get(2..)?.split_at_checked(u16_at(rest, 0)?.into())?;
        let (_compression, rest) = short(rest)?;
        let (mut has_ticket, mut application) = (false, None);
        for (kind, content) in extensions(rest) {
            match kind {
                // RFC 5077 3.2.
                35 => has_ticket = !content.is_empty(),
                48_018 => application = whole(content),
                _ => {}
            }
        }
        (suites.len().is_multiple_of(2)).then_some(Self { session, suites, has_ticket, application })
    }
}

impl<'a> ServerHello<'a> {
    fn parse(body: &'a [u8], record: u16) -> Option<Self> {
        if !is_hello_version(body, record) {
            return None;
        }
        let (session, rest) = short(body.get(2 + RANDOM..)?)?;
        let is_extended = extensions(rest.get(3..).unwrap_or_default()).any(|(kind, _)| kind == 23);
        Some(Self { session, suite: u16_at(rest, 0)?, is_extended })
    }
}

/// RFC 5746 3.3, RFC 7507 4: suites that only say something.
const fn is_signal(suite: u16) -> bool {
    matches!(suite, 0x00ff | 0x5600)
}

/// IANA, TLS Cipher Suites: those whose key exchange is a pre-shared key, alone or with another.
const fn is_psk(suite: u16) -> bool {
    matches!(
        suite,
        0x002c..=0x002e
            | 0x008a..=0x0095
            | 0x00a8..=0x00b9
            | 0xc033..=0xc03b
            | 0xc064..=0xc071
            | 0xc08e..=0xc09b
            | 0xc0a4..=0xc0ab
            | 0xccab..=0xccae
            | 0xd001..=0xd005
    )
}

/// Those that a server names over TLS: RSA, alone or with an ephemeral exchange, with AES or 3DES.
const fn is_named(suite: u16) -> bool {
    matches!(
        suite,
        0x000a | 0x002f | 0x0033 | 0x0035 | 0x0039 | 0x003c | 0x003d | 0x0067 | 0x006b | 0x009c
            ..=0x009f | 0xc013 | 0xc014 | 0xc027 | 0xc028 | 0xc02f | 0xc030
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{alarms, best, ciphertext, udp};
    use crate::flow::Direction::{Forward, Reverse};

    const NAME: [u8; 32] = [0x5a; 32];
    const OTHER: [u8; 32] = [0xa5; 32];
    const RSA: u16 = 0x009d;
    const PSK: u16 = 0x00a9;

    fn record(kind: u8, version: u16, epoch: u16, sequence: u32, content: &[u8]) -> Vec<u8> {
        let header = [&[kind][..], &version.to_be_bytes(), &epoch.to_be_bytes(), &[0, 0], &sequence.to_be_bytes()];
        [&header.concat()[..], &(content.len() as u16).to_be_bytes(), content].concat()
    }

    fn message(version: u16, kind: u8, body: &[u8]) -> Vec<u8> {
        let len = &(body.len() as u32).to_be_bytes()[1..];
        record(HANDSHAKE, version, 0, 0, &[&[kind][..], len, &[0, 0, 0, 0, 0], len, body].concat())
    }

    fn hello(version: u16, session: &[u8], suites: &[u16], extension: &[u8]) -> Vec<u8> {
        let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
        let mut body = version.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.push(session.len() as u8);
        body.extend(session);
        body.push(0);
        body.extend((suites.len() as u16).to_be_bytes());
        body.extend(suites);
        body.extend([1, 0]);
        body.extend((extension.len() as u16).to_be_bytes());
        body.extend(extension);
        message(version, message::CLIENT_HELLO, &body)
    }

    fn answer(version: u16, session: &[u8], suite: u16) -> Vec<u8> {
        let body =
            [&version.to_be_bytes()[..], &[8; 32], &[session.len() as u8], session, &suite.to_be_bytes(), &[0, 0, 0]];
        message(version, message::SERVER_HELLO, &body.concat())
    }

    fn identity(name: &[u8]) -> Vec<u8> {
        message(DTLS_1_2, message::CLIENT_KEY_EXCHANGE, &[&(name.len() as u16).to_be_bytes()[..], name].concat())
    }

    fn data(version: u16, epoch: u16, sequence: u32) -> Vec<u8> {
        record(23, version, epoch, sequence, &ciphertext(sequence.into(), 80))
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::AnyConnect, confidence));
        let old = hello(OLD, &NAME, &[0x002f, 0x00ff], &[]);
        let long = [&old[..], &[0]].concat();
        let offer = hello(DTLS_1_2, &NAME, &[PSK, 0xccab, 0x00ff], &[]);
        let own = [&[0xbb, 0x92, 0, 33, 32][..], &NAME].concat();
        let extended = hello(DTLS_1_2, &[], &[PSK], &own);
        let resumed = hello(DTLS_1_2, &NAME, &[RSA], &[0, 35, 0, 0]);
        let ticket = hello(DTLS_1_2, &NAME, &[RSA], &[0, 35, 0, 1, 9]);
        let body = [&DTLS_1_2.to_be_bytes()[..], &[8; 32], &[32], &NAME, &RSA.to_be_bytes(), &[0, 0, 4, 0, 23, 0, 0]];
        let extended_answer = message(DTLS_1_2, message::SERVER_HELLO, &body.concat());
        let hex: Vec<u8> = NAME.iter().flat_map(|octet| format!("{octet:02X}").into_bytes()).collect();
        let both = |version, epoch| {
            (5..9).flat_map(|n| [(Forward, data(version, epoch, n)), (Reverse, data(version, epoch, n + 90))]).collect()
        };
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("old, one octet short", vec![(Forward, old[..old.len() - 1].to_vec())], None),
            ("old, one octet long", vec![(Forward, long)], None),
            ("old, a hello", vec![(Forward, old.clone()); 3], level(Confidence::Possible)),
            ("old, a session resumed", vec![(Forward, old.clone()), (Reverse, answer(OLD, &NAME, 0x002f))], level(Confidence::Certain)),
            ("old, another session", vec![(Forward, old.clone()), (Reverse, answer(OLD, &OTHER, 0x002f))], level(Confidence::Possible)),
            ("old, data, both ways", both(OLD, 1), level(Confidence::Certain)),
            ("old, data, one way", (5..8).map(|n| (Reverse, data(OLD, 1, n))).collect(), level(Confidence::Likely)),
            ("old, the same data again", vec![(Reverse, data(OLD, 1, 5)); 9], level(Confidence::Possible)),
            ("old, a wild epoch", both(OLD, 0x4000), None),
            ("DTLS 1.2's data", both(DTLS_1_2, 1), None),
            ("DTLS 1.0's data", both(DTLS_1_0, 1), None),
            ("an offer", vec![(Forward, offer.clone()); 3], level(Confidence::Possible)),
            ("an offer, a full handshake, psk", vec![(Forward, offer.clone()), (Reverse, answer(DTLS_1_2, &OTHER, PSK)), (Forward, identity(b"psk"))], level(Confidence::Certain)),
            ("its name as the identity", vec![(Forward, offer.clone()), (Reverse, answer(DTLS_1_2, &OTHER, PSK)), (Forward, identity(&NAME))], level(Confidence::Certain)),
            ("its name in digits", vec![(Forward, offer.clone()), (Reverse, answer(DTLS_1_2, &[], PSK)), (Forward, identity(&hex))], level(Confidence::Certain)),
            ("a device's full handshake", vec![(Forward, offer.clone()), (Reverse, answer(DTLS_1_2, &OTHER, PSK)), (Forward, identity(b"Client_identity"))], level(Confidence::Possible)),
            ("a device's resumption", vec![(Forward, offer.clone()), (Reverse, answer(DTLS_1_2, &NAME, PSK))], level(Confidence::Possible)),
            ("one side", vec![(Forward, offer.clone()), (Forward, identity(b"psk"))], level(Confidence::Likely)),
            ("an identity alone", vec![(Forward, identity(b"psk")); 4], level(Confidence::Possible)),
            ("another identity alone", vec![(Forward, identity(b"pskx"))], None),
            ("no session", vec![(Forward, hello(DTLS_1_2, &[], &[PSK], &[])), (Reverse, answer(DTLS_1_2, &OTHER, PSK))], None),
            ("a short session", vec![(Forward, hello(DTLS_1_2, &NAME[..16], &[PSK], &[]))], None),
            ("OpenConnect's extension", vec![(Forward, extended.clone())], level(Confidence::Likely)),
            ("OpenConnect's extension, answered", vec![(Forward, extended), (Reverse, answer(DTLS_1_2, &OTHER, PSK))], level(Confidence::Certain)),
            ("a resumption asked for", vec![(Forward, resumed.clone())], None),
            ("a resumption", vec![(Forward, resumed.clone()), (Reverse, answer(DTLS_1_2, &NAME, RSA))], level(Confidence::Possible)),
            ("a resumption of a session of its own", vec![(Forward, resumed.clone()), (Reverse, extended_answer)], None),
            ("a resumption refused", vec![(Forward, resumed), (Reverse, answer(DTLS_1_2, &OTHER, RSA))], None),
            ("a resumption by ticket", vec![(Forward, ticket), (Reverse, answer(DTLS_1_2, &NAME, RSA))], None),
            ("a resumption with a choice", vec![(Forward, hello(DTLS_1_2, &NAME, &[RSA, 0x009c], &[])), (Reverse, answer(DTLS_1_2, &NAME, RSA))], None),
            ("a browser's call", vec![(Forward, hello(DTLS_1_2, &[], &[0xc02b, 0xc02f, RSA], &[])), (Reverse, answer(DTLS_1_2, &[], 0xc02b))], None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&AnyConnect, &segments), expected, "{name}");
        }
    }

    #[test]
    fn tls_beside_it_makes_a_resumption_likely_and_nothing_else() {
        let resumed = hello(DTLS_1_2, &NAME, &[RSA], &[]);
        let answered = answer(DTLS_1_2, &NAME, RSA);
        // A device with a pre-shared key that resumes.
        let (offer, accepted) = (hello(DTLS_1_2, &NAME, &[PSK], &[]), answer(DTLS_1_2, &NAME, PSK));
        for (packets, expected) in [
            (vec![(Forward, &resumed), (Reverse, &answered)], Some(Confidence::Likely)),
            (vec![(Forward, &resumed)], None),
            (vec![(Forward, &offer), (Reverse, &accepted)], Some(Confidence::Possible)),
        ] {
            let mut findings = Findings::default();
            for (way, octets) in packets {
                AnyConnect.inspect(&Segment { ports: [50_000, 443], ..udp(way, octets) }, &mut findings);
            }
            beside_tls(&Segment { ports: [443, 50_000], ..udp(Reverse, &answered) }, &mut findings);
            assert_eq!(findings.detection().map(|found| found.confidence), expected);
            assert!(findings.of(&BESIDE_TLS, Reverse).is_none_or(|found| found.value == 443));
        }
    }

    #[test]
    fn random_octets_raise_no_alarm() {
        for kind in 0..3 {
            let found = alarms(&AnyConnect, Carrier::Udp, [40_000, 443], |noise| {
                let len = 30 + noise.below(200) as usize;
                let mut octets = noise.octets(len);
                let version = if kind == 0 { [1, 0] } else { [0xfe, 0xfd] };
                octets[..3].copy_from_slice(&[20 + noise.below(4) as u8, version[0], version[1]]);
                octets[11..13].copy_from_slice(&(len as u16 - 13).to_be_bytes());
                if kind > 0 {
                    // A message of the right length and a random kind.
                    octets[..13].copy_from_slice(&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, len as u8 - 13]);
                    octets[14..25].copy_from_slice(&[0, 0, len as u8 - 25, 0, 0, 0, 0, 0, 0, 0, len as u8 - 25]);
                    octets[13] = [1, 2, 16][noise.below(3) as usize];
                    octets[25..27].copy_from_slice(&[0xfe, 0xfd]);
                }
                octets
            });
            assert_eq!(found, None, "{kind}");
        }
    }
}
