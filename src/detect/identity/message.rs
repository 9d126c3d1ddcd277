//! Cuts the messages that a pinned key can verify out of UDP payloads and TCP segments.
//!
//! WireGuard (whitepaper 5.4.2 to 5.4.4): initiation and response, of 148 and 92 octets, whose last 32 are mac1 and mac2.
//!
//! OpenVPN, control packets of key identifier 0 (later ones are renegotiations, which OpenVPN 2.6 guards by a key of the
//! session's own):
//!
//! | offset | octets | tls-auth | offset | octets | tls-crypt |
//! |---|---|---|---|---|---|
//! | 0 | 9 | opcode, session | 0 | 9 | opcode, session |
//! | 9 | 20 to 64 | HMAC over replay, opcode and session, rest | 9 | 8 | replay: packet identifier, time |
//! | next | 8 | replay: packet identifier, time | 17 | 32 | HMAC-SHA256 over opcode and session, replay, plain rest |
//! | next | | rest | 49 | | rest, encrypted; behind a client's first packets of tls-crypt-v2 its wrapped key |

use crate::detect::openvpn::{opcode, replay_counter};
use crate::detect::{Carrier, Protocol, Segment};
use crate::wire::cursor::u16_at;

/// What a message is in its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Opens a handshake; WireGuard: by this index.
    Opens(u32),
    /// Answers it; WireGuard: by naming this index.
    Answers(u32),
    /// Belongs to one.
    Follows,
}

/// A message that a key may verify, captured whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message<'a> {
    Wireguard(Wireguard<'a>),
    Openvpn(Openvpn<'a>),
}

/// A handshake message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wireguard<'a> {
    step: Step,
    pub covered: &'a [u8],
    pub mac1: &'a [u8],
}

/// A control packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Openvpn<'a> {
    step: Step,
    /// As captured.
    octets: &'a [u8],
    /// On the wire.
    len: usize,
}

/// A control packet's parts, as a guard orders them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guarded<'a> {
    /// Opcode and session.
    pub head: &'a [u8],
    /// Packet identifier and time.
    pub replay: &'a [u8],
    pub tag: &'a [u8],
    pub rest: &'a [u8],
}

/// What a payload holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    Message(Message<'a>),
    /// A message of which too little is captured.
    Cut(Protocol),
}

impl Message<'_> {
    pub(super) const fn protocol(&self) -> Protocol {
        match self {
            Self::Wireguard(_) => Protocol::Wireguard,
            Self::Openvpn(_) => Protocol::Openvpn,
        }
    }

    pub(super) const fn step(&self) -> Step {
        match self {
            Self::Wireguard(message) => message.step,
            Self::Openvpn(message) => message.step,
        }
    }
}

/// Whether a payload may hold such a message: asked of every packet where keys are pinned.
#[must_use]
#[inline]
pub fn may_hold_handshake(segment: &Segment<'_>) -> bool {
    match (segment.carrier, segment.payload) {
        (Carrier::Udp, [1 | 2, 0, 0, 0, ..]) => true,
        (Carrier::Udp, [first, ..]) | (Carrier::Tcp { .. }, [_, _, first, ..]) => step(*first).is_some(),
        _ => false,
    }
}

/// Packets cut out of one segment.
const MAX_PER_SEGMENT: usize = 4;

/// The messages of a payload.
pub(super) fn parts<'a>(segment: &Segment<'a>) -> impl Iterator<Item = Part<'a>> {
    let (payload, len) = (segment.payload, segment.payload_len as usize);
    let (mut datagram, mut stream) = (None, None);
    match segment.carrier {
        Carrier::Udp => datagram = wireguard(payload, len).or_else(|| openvpn(payload, len)),
        // A handshake opens its stream, and its packets are sent one by one.
        Carrier::Tcp { .. } => stream = Some(payload),
        Carrier::Ip { .. } => {}
    }
    let packets = std::iter::from_fn(move || {
        let octets = stream?;
        let len = usize::from(u16_at(octets, 0)?);
        let packet = octets.get(2..)?;
        stream = packet.get(len..);
        Some(openvpn(packet.get(..len).unwrap_or(packet), len))
    });
    datagram.into_iter().chain(packets.take(MAX_PER_SEGMENT).map_while(|part| part))
}

fn wireguard(payload: &[u8], len: usize) -> Option<Part<'_>> {
    let (&[kind @ 1..=2, 0, 0, 0], rest) = payload.split_first_chunk()? else { return None };
    let word = |offset: usize| Some(u32::from_le_bytes(*rest.get(offset..)?.first_chunk()?));
    let (step, covered) = match (kind, len) {
        (1, 148) => (Step::Opens(word(0)?), 116),
        (2, 92) => (Step::Answers(word(4)?), 60),
        _ => return None,
    };
    let parts = payload.get(..covered).zip(payload.get(covered..covered + 16));
    Some(parts.map_or(Part::Cut(Protocol::Wireguard), |(covered, mac1)| {
        Part::Message(Message::Wireguard(Wireguard { step, covered, mac1 }))
    }))
}

/// A control packet by its first octet, if its key identifier is 0.
const fn step(first: u8) -> Option<Step> {
    match (first >> 3, first & 7) {
        (opcode::CLIENT_RESET_V2 | opcode::CLIENT_RESET_V3, 0) => Some(Step::Opens(0)),
        (opcode::SERVER_RESET_V2, 0) => Some(Step::Answers(0)),
        (opcode::CONTROL | opcode::ACK | opcode::CONTROL_WKC, 0) => Some(Step::Follows),
        _ => None,
    }
}

/// Lengths of resets without a guard: alone, and with one acknowledgment.
const BARE_RESETS: [usize; 2] = [9 + 1 + 4, 9 + 1 + 4 + 8 + 4];

fn openvpn(octets: &[u8], len: usize) -> Option<Part<'_>> {
    let first = *octets.first()?;
    let packet = Openvpn { step: step(first)?, octets, len };
    let is_guarded = replay_counter(octets, HEAD).is_some() || packet.tls_auth().next().is_some();
    let is_bare = packet.step != Step::Follows && BARE_RESETS.contains(&len);
    // What a reset of tls-crypt-v2 guards comes before the wrapped key, which may be cut.
    let least = if first >> 3 == opcode::CLIENT_RESET_V3 { len.min(HEAD + REPLAY + TAG + EMPTY) } else { len };
    let part =
        if octets.len() < least { Part::Cut(Protocol::Openvpn) } else { Part::Message(Message::Openvpn(packet)) };
    (is_guarded || is_bare).then_some(part)
}

/// HMAC lengths that a key can be verified by: SHA-1, SHA-256, SHA-512, SHA-224, SHA-384.
const HMACS: [usize; 5] = [20, 32, 64, 28, 48];
/// Opcode and session.
const HEAD: usize = 9;
/// Packet identifier and time.
const REPLAY: usize = 8;
/// HMAC-SHA256.
const TAG: usize = 32;
/// A reset's rest: no acknowledgments, a message identifier.
const EMPTY: usize = 5;

impl<'a> Openvpn<'a> {
    /// As tls-auth would read it, by each digest that leaves a packet identifier and a time in their place.
    pub(super) fn tls_auth(&self) -> impl Iterator<Item = Guarded<'a>> {
        let octets = self.octets;
        HMACS.into_iter().filter(move |hmac| replay_counter(octets, HEAD + hmac).is_some()).filter_map(move |hmac| {
            let (head, behind) = octets.split_at_checked(HEAD)?;
            let (tag, behind) = behind.split_at_checked(hmac)?;
            let (replay, rest) = behind.split_at_checked(REPLAY)?;
            Some(Guarded { head, replay, tag, rest })
        })
    }

    /// As tls-crypt would read it, with a wrapped key of so many octets behind it where one belongs.
    pub(super) fn tls_crypt(&self, wrapped_len: usize) -> Option<Guarded<'a>> {
        replay_counter(self.octets, HEAD)?;
        let (head, behind) = self.octets.split_at_checked(HEAD)?;
        let (replay, behind) = behind.split_at_checked(REPLAY)?;
        let (tag, rest) = behind.split_at_checked(TAG)?;
        let has_wrapped = self
            .octets
            .first()
            .is_some_and(|first| matches!(first >> 3, opcode::CLIENT_RESET_V3 | opcode::CONTROL_WKC));
        let len = self.len.checked_sub(HEAD + REPLAY + TAG)?.checked_sub(if has_wrapped { wrapped_len } else { 0 })?;
        Some(Guarded { head, replay, tag, rest: rest.get(..len)? })
    }
}
