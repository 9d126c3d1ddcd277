//! Turns OpenVPN packets, from UDP payloads or cut out of a TCP stream, into evidence, by the protocol's documentation
//! (<https://build.openvpn.net/doxygen/network_protocol.html>; draft "OpenVPN wire protocol").
//!
//! | offset | octets | control packet | data packet |
//! |---|---|---|---|
//! | 0 | 1 | opcode (5 bits), key (3 bits) | the same |
//! | 1 | 8 | session identifier of the sender | version 2: peer identifier (3) |
//! | 9 | 16 to 64 | tls-auth only: HMAC | AEAD: packet identifier (4), counting from 1 |
//! | 9 | 8 | tls-auth, tls-crypt: packet identifier, time | |
//! | 17 | 32 | tls-crypt only: HMAC, then all else encrypted | |
//! | next | 1 | number of acknowledgments, up to 8 | |
//! | next | 4 each | acknowledged message identifiers, then the other side's session identifier (8) | |
//! | next | 4 | message identifier (not in acknowledgments) | |
//!
//! Control packets are told by structure and by their 64-bit session identifiers: one side repeats its own while its
//! packet identifiers count by one (2^-92 a packet by chance), and repeats the other side's in acknowledgments. A guarded
//! session keeps its time, too (2^-32), and its HMACs never repeat. Data packets are told by a constant header of 32 bits
//! with a small peer identifier and a counter (2^-60 a packet) over ciphertext that does not repeat itself; both sides use
//! the same header. Where acknowledgments are encrypted (tls-crypt), both sides' counting sessions make it certain.

use super::identity::{OPENVPN_UNKNOWN, OPENVPN_VERIFIED};
use super::sequence::{Content, NEAR, Step};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, Slot, SlotId,
};
use crate::wire::cursor::{u32_at, u64_at};

/// OpenVPN over UDP on any port.
#[derive(Debug)]
pub struct OpenvpnUdp;

static CLIENT_RESET: Code = Code {
    name: "openvpn.client_reset",
    meaning: "a client's hard reset, which opens a session; value: session identifier, upper half",
    clause: "OpenVPN network protocol, P_CONTROL_HARD_RESET_CLIENT_V2 and V3",
    phase: Phase::Handshake,
};

static SERVER_RESET: Code = Code {
    name: "openvpn.server_reset",
    meaning: "a server's hard reset, its answer; value: session identifier, upper half",
    clause: "OpenVPN network protocol, P_CONTROL_HARD_RESET_SERVER_V2",
    phase: Phase::Handshake,
};

static ACKNOWLEDGED: Code = Code {
    name: "openvpn.acknowledged",
    meaning: "a control packet that names the other side's session in its acknowledgments; value: that session, upper half",
    clause: "OpenVPN network protocol, reliability layer",
    phase: Phase::Data,
};

static SESSION: Code = Code {
    name: "openvpn.session",
    meaning: "control packets of one session whose identifiers count; value: session identifier, upper half",
    clause: "OpenVPN network protocol, control channel",
    phase: Phase::Data,
};

static DATA_COUNTER: Code = Code {
    name: "openvpn.data_counter",
    meaning: "data packets of one header whose packet identifiers count; value: opcode, key and peer identifier",
    clause: "OpenVPN network protocol, P_DATA_V2 with AEAD",
    phase: Phase::Data,
};

static DATA_HEADER: Code = Code {
    name: "openvpn.data_header",
    meaning: "data packets with the same header from both sides; value: opcode, key and peer identifier",
    clause: "OpenVPN network protocol, P_DATA_V2",
    phase: Phase::Data,
};

pub(super) const CODES: &[&Code] = &[
    &CLIENT_RESET,
    &SERVER_RESET,
    &ACKNOWLEDGED,
    &SESSION,
    &DATA_COUNTER,
    &DATA_HEADER,
    &OPENVPN_VERIFIED,
    &OPENVPN_UNKNOWN,
];

pub(super) const SPECIFICATION: &str = "OpenVPN network protocol (doxygen), OpenVPN wire protocol draft";

static ABOUT: About = About {
    name: "openvpn",
    protocols: &[Protocol::Openvpn],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Octets("1."), Begin::Octets("2."), Begin::Octets("3."), Begin::Octets("4."), Begin::Octets("5.")],
    recognises: "resets and sessions, plain, tls-auth, tls-crypt and tls-crypt-v2; AEAD data by peer identifier and counter",
    specification: SPECIFICATION,
    chance: "a 64-bit session that counts: 2^-92 a packet; a data header with its counter: 2^-60",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "static keys (no header at all); CBC data alone, whose counter is encrypted, stays possible; so does AEAD data with peer identifiers above 65,535, or without one (version 1) from one side alone",
    codes: CODES,
};

impl Detector for OpenvpnUdp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier == Carrier::Udp {
            packet(segment.payload, segment.payload_len, segment, findings);
        }
    }
}

pub(super) mod opcode {
    pub const SOFT_RESET: u8 = 3;
    pub const CONTROL: u8 = 4;
    pub const ACK: u8 = 5;
    pub const DATA_V1: u8 = 6;
    pub const CLIENT_RESET_V2: u8 = 7;
    pub const SERVER_RESET_V2: u8 = 8;
    pub const DATA_V2: u8 = 9;
    pub const CLIENT_RESET_V3: u8 = 10;
    pub const CONTROL_WKC: u8 = 11;
}

/// What a data packet of version 2 begins with: opcode, key and a small peer identifier.
pub(super) const fn is_data_header(header: u32) -> bool {
    header >> 27 == opcode::DATA_V2 as u32 && matches!(header & 0x00ff_ffff, 0..=0xffff | 0x00ff_ffff)
}

/// Takes one OpenVPN packet of `len` octets, of which `octets` are captured.
#[inline]
pub(super) fn packet(octets: &[u8], len: u32, segment: &Segment<'_>, findings: &mut Findings) {
    let Some(&first) = octets.first() else { return };
    match first >> 3 {
        opcode::DATA_V1 | opcode::DATA_V2 => data(first, octets, len, segment, findings),
        opcode::SOFT_RESET..=opcode::CONTROL_WKC => {
            if let Some(control) = Control::parse(first, octets, len) {
                take(&control, octets, segment, findings);
            }
        }
        _ => {}
    }
}

/// What a control packet shows in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Control {
    opcode: u8,
    session: u64,
    /// The packet identifier that counts: of replay protection, or of the message in plain mode.
    counter: Option<u32>,
    /// The other side's session, where acknowledgments are in clear.
    remote: Option<u64>,
    /// Time of replay protection, the same all through a session; 0 in plain mode.
    time: u32,
    /// Where the HMAC begins; 0 in plain mode.
    hmac: usize,
}

/// HMAC lengths of tls-auth by digest: SHA-1, SHA-256, SHA-512, MD5, SHA-224, SHA-384.
const HMACS: [usize; 6] = [20, 32, 64, 16, 28, 48];

/// RFC-less but documented: a packet acknowledges at most eight messages.
const MAX_ACKS: u8 = 8;

/// Control packets are few; an identifier beyond this is no identifier.
const MAX_COUNTER: u32 = 1 << 16;

/// OpenVPN 2.6 begins here to say that it can negotiate early (`EARLY_NEG_START`).
const EARLY: u32 = 0x0f00_0000;

impl Control {
    fn parse(first: u8, octets: &[u8], len: u32) -> Option<Self> {
        let (opcode, key) = (first >> 3, first & 7);
        let is_reset = matches!(opcode, opcode::CLIENT_RESET_V2 | opcode::SERVER_RESET_V2 | opcode::CLIENT_RESET_V3);
        if (is_reset || opcode == opcode::CONTROL_WKC) && key != 0 {
            return None;
        }
        let session = u64_at(octets, 1)?;
        // Eight random octets: all but 1 in 300,000 have that many bits set, flags and small numbers have fewer.
        if !(14..=50).contains(&session.count_ones()) {
            return None;
        }
        let control = Self { opcode, session, counter: None, remote: None, time: 0, hmac: 0 };
        // tls-crypt first: its small packet identifier reads as an empty list of plain acknowledgments.
        control
            .tls_crypt(octets, len)
            .or_else(|| control.plain(octets, len))
            .or_else(|| HMACS.iter().find_map(|&hmac| control.tls_auth(octets, len, hmac)))
    }

    fn plain(self, octets: &[u8], len: u32) -> Option<Self> {
        let (remote, message) = self.reliability(octets, len, 9)?;
        Some(Self { counter: message, remote, ..self })
    }

    fn tls_auth(self, octets: &[u8], len: u32, hmac: usize) -> Option<Self> {
        let (counter, time) = replay_counter(octets, 9 + hmac)?;
        let (remote, _) = self.reliability(octets, len, 9 + hmac + 8)?;
        Some(Self { counter: Some(counter), remote, time, hmac: 9, ..self })
    }

    fn tls_crypt(self, octets: &[u8], len: u32) -> Option<Self> {
        // Session, packet identifier, time, HMAC of 256 bits, and the encrypted reliability layer.
        let least = 9 + 8 + 32 + if self.opcode == opcode::ACK { 1 + 4 + 8 } else { 1 + 4 };
        let (counter, time) = replay_counter(octets, 9)?;
        let is_first = counter & !EARLY == 1;
        let is_reset = matches!(self.opcode, opcode::CLIENT_RESET_V2 | opcode::CLIENT_RESET_V3);
        (len >= least && (is_first || !is_reset || counter & !EARLY < 64)).then_some(Self {
            counter: Some(counter),
            time,
            hmac: 17,
            ..self
        })
    }

    /// Acknowledgments and message identifier at `offset`: the other side's session and the identifier.
    fn reliability(self, octets: &[u8], len: u32, offset: usize) -> Option<(Option<u64>, Option<u32>)> {
        let acks = *octets.get(offset)?;
        if acks > MAX_ACKS {
            return None;
        }
        let mut next = offset + 1;
        for _ in 0..acks {
            if u32_at(octets, next)? >= MAX_COUNTER {
                return None;
            }
            next += 4;
        }
        let mut remote = None;
        if acks > 0 {
            remote = Some(u64_at(octets, next)?);
            next += 8;
        }
        if self.opcode == opcode::ACK {
            return (acks > 0 && len as usize == next).then_some((remote, None));
        }
        let message = u32_at(octets, next).filter(|&message| message < MAX_COUNTER)?;
        next += 4;
        let fits = match self.opcode {
            // The first message of a session, and nothing in it (V3 adds the wrapped key).
            opcode::CLIENT_RESET_V2 => message == 0 && acks == 0 && len as usize == next,
            opcode::CLIENT_RESET_V3 => message == 0 && acks == 0 && len as usize > next,
            opcode::SERVER_RESET_V2 => message == 0 && len as usize >= next,
            _ => len as usize >= next,
        };
        fits.then_some((remote, Some(message)))
    }
}

/// A packet identifier of replay protection with a time behind it that is one (after 2001).
pub(super) fn replay_counter(octets: &[u8], offset: usize) -> Option<(u32, u32)> {
    let (counter, time) = (u32_at(octets, offset)?, u32_at(octets, offset + 4)?);
    let counts = counter & !EARLY;
    let known = counter < MAX_COUNTER || counter & EARLY == EARLY;
    ((1..MAX_COUNTER).contains(&counts) && known && time > 1_000_000_000).then_some((counts, time))
}

/// Control packets come in order but for what is lost.
const CONTROL_NEAR: u64 = 4;
/// Plain control packets of one session, one way, before it is likely.
const PLAIN_HITS: u32 = 5;

fn take(control: &Control, octets: &[u8], segment: &Segment<'_>, findings: &mut Findings) {
    let value = control.session >> 32;
    let there = *findings.slot(SlotId::Openvpn, segment.direction.opposite());
    let here = findings.slot(SlotId::Openvpn, segment.direction);
    // Each end draws a session of its own: one for both ways is another protocol's identifier.
    if there.hits > 0 && there.a == control.session {
        *here = Slot::default();
        return;
    }
    let is_guarded = control.hmac > 0;
    let content =
        if is_guarded { Content::Encrypted(octets.get(control.hmac..).unwrap_or_default()) } else { Content::Open };
    if here.hits > 0 && here.c != control.time {
        *here = Slot::default();
    }
    let step = match control.counter {
        Some(counter) => here.step_within(CONTROL_NEAR, control.session, counter.into(), content),
        // A plain acknowledgment has no identifier of its own.
        None if here.hits > 0 && here.a == control.session => Step::Repeated,
        None => here.step(control.session, 0, content),
    };
    here.c = control.time;
    let hits = here.hits;
    let acknowledges = there.hits > 0 && control.remote == Some(there.a);
    if acknowledges {
        findings.add(segment, Protocol::Openvpn, &ACKNOWLEDGED, Confidence::Certain, there.a >> 32);
    }
    let reset = match control.opcode {
        opcode::CLIENT_RESET_V2 | opcode::CLIENT_RESET_V3 => Some((&CLIENT_RESET, segment.direction)),
        opcode::SERVER_RESET_V2 => Some((&SERVER_RESET, segment.direction.opposite())),
        _ => None,
    };
    if let Some((code, originator)) = reset {
        // Alone it may be a probe, and its answer an accident.
        findings.add(segment, Protocol::Openvpn, code, Confidence::Possible, value);
        findings.originator.get_or_insert(originator);
    } else if step == Step::Counted {
        let confidence = match (hits, there.hits) {
            (2.., 2..) if is_guarded => Confidence::Certain,
            (3.., _) if is_guarded => Confidence::Likely,
            // In plain mode an acknowledgment names the other side's session soon enough.
            (PLAIN_HITS.., _) => Confidence::Likely,
            _ => Confidence::Possible,
        };
        findings.add(segment, Protocol::Openvpn, &SESSION, confidence, value);
    }
}

/// Counting data packets before one direction is likely.
const LIKELY_HITS: u32 = 5;
/// The same of the other direction, where both make it certain.
const FEW_HITS: u32 = 3;
/// Data packets of a stream between two whose headers are captured.
const STREAM_NEAR: u64 = 64;
/// The same of version 1, whose header is a single octet, asked of both directions.
const V1_HITS: u32 = 8;
/// Data packets with the same header from both sides before that says anything.
const HEADER_HITS: u32 = 8;
/// Flag in a data slot: a length that is no multiple of four, which ESP never has.
const NOT_WORDS: u32 = 1 << 31;
/// A data slot's count of packets with the same header.
const SAME_HEADER: u32 = 0xffff;

fn data(first: u8, octets: &[u8], len: u32, segment: &Segment<'_>, findings: &mut Findings) {
    // Header, packet identifier and tag.
    if len < 21 {
        return;
    }
    let is_v2 = first >> 3 == opcode::DATA_V2;
    let (header, counter) =
        if is_v2 { (u32_at(octets, 0), u32_at(octets, 4)) } else { (Some(u32::from(first) << 24), u32_at(octets, 1)) };
    let (Some(header), Some(counter)) = (header, counter) else { return };
    // A key change moves the key's three bits only.
    let id = u64::from(header & 0xf8ff_ffff);
    let there = *findings.slot(SlotId::OpenvpnData, segment.direction.opposite());
    let slot = findings.slot(SlotId::OpenvpnData, segment.direction);
    let mut marks = if slot.hits > 0 && slot.a == id { slot.c } else { 0 };
    if marks & SAME_HEADER < SAME_HEADER {
        marks += 1;
    }
    if !len.is_multiple_of(4) {
        marks |= NOT_WORDS;
    }
    let rekeyed = slot.hits >= 3 && slot.a == id && u64::from(counter) < slot.b && counter < 64;
    if rekeyed {
        slot.b = u64::from(counter).saturating_sub(1);
    }
    // Behind the packet identifier stands the tag, or (epoch format) what is encrypted.
    let content = octets.get(if is_v2 { 8 } else { 5 }..).unwrap_or_default();
    // In a stream not every packet's header is captured.
    let near = if segment.carrier == Carrier::Udp { NEAR } else { STREAM_NEAR };
    let step = slot.step_within(near, id, counter.into(), Content::Encrypted(content));
    slot.c = marks;
    let hits = slot.hits;
    let same_peer = there.a == id && is_v2;
    // A server counts its clients from 0; without a server the identifier is all ones.
    let is_peer = is_data_header(header);
    let value = header.into();
    if step == Step::Counted && hits >= 2 {
        let not_esp = (marks | there.c) & NOT_WORDS != 0;
        let confidence = match (hits, there.hits) {
            // The server gives the peer identifier, and both sides use it.
            (LIKELY_HITS.., FEW_HITS..) | (FEW_HITS.., LIKELY_HITS..) if is_peer && same_peer => Confidence::Certain,
            (LIKELY_HITS.., _) if is_peer => Confidence::Likely,
            (V1_HITS.., V1_HITS..) if !is_v2 && not_esp && there.a == id => Confidence::Likely,
            _ => Confidence::Possible,
        };
        findings.add(segment, Protocol::Openvpn, &DATA_COUNTER, confidence, value);
    } else if same_peer && marks & SAME_HEADER >= HEADER_HITS && there.c & SAME_HEADER >= HEADER_HITS {
        findings.add(segment, Protocol::Openvpn, &DATA_HEADER, Confidence::Possible, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, ciphertext, udp};
    use crate::flow::Direction::{Forward, Reverse};

    const CLIENT: u64 = 0x1122_3344_5566_7788;
    const SERVER: u64 = 0x99aa_bbcc_ddee_ff01;

    fn control(
        opcode: u8,
        session: u64,
        wrap: &[u8],
        acks: &[u32],
        remote: u64,
        message: Option<u32>,
        rest: usize,
    ) -> Vec<u8> {
        let mut octets = vec![opcode << 3];
        octets.extend(session.to_be_bytes());
        octets.extend(wrap);
        octets.push(acks.len() as u8);
        octets.extend(acks.iter().flat_map(|ack| ack.to_be_bytes()));
        if !acks.is_empty() {
            octets.extend(remote.to_be_bytes());
        }
        octets.extend(message.map(u32::to_be_bytes).into_iter().flatten());
        octets.resize(octets.len() + rest, 0x16);
        octets
    }

    fn tls_auth(hmac: usize, id: u32) -> Vec<u8> {
        [&ciphertext(id.into(), hmac)[..], &id.to_be_bytes(), &1_700_000_000_u32.to_be_bytes()].concat()
    }

    fn tls_crypt(opcode: u8, session: u64, id: u32, len: usize) -> Vec<u8> {
        let mut octets = vec![opcode << 3];
        octets.extend(session.to_be_bytes());
        octets.extend(id.to_be_bytes());
        octets.extend(1_700_000_000_u32.to_be_bytes());
        octets.extend(ciphertext(session ^ u64::from(id), len - octets.len()));
        octets
    }

    fn aead(peer: u32, id: u32, len: usize) -> Vec<u8> {
        let mut octets = (0x4800_0000 | peer).to_be_bytes().to_vec();
        octets.extend(id.to_be_bytes());
        octets.extend(ciphertext(u64::from(peer ^ id), len - octets.len()));
        octets
    }

    #[test]
    fn cases() {
        let level = |confidence| Some((Protocol::Openvpn, confidence));
        let plain = control(7, CLIENT, &[], &[], 0, Some(0), 0);
        let plain_answer = control(8, SERVER, &[], &[0], CLIENT, Some(0), 0);
        let auth = control(7, CLIENT, &tls_auth(20, 1), &[], 0, Some(0), 0);
        let auth_answer = control(8, SERVER, &tls_auth(20, 1), &[0], CLIENT, Some(0), 0);
        let sha512 = control(7, CLIENT, &tls_auth(64, 1), &[], 0, Some(0), 0);
        let mut long = plain.clone();
        long.push(0);
        let mut random = vec![0x38];
        random.resize(42, 0x91);
        let data =
            |ids: std::ops::Range<u32>, len: usize| ids.map(move |id| (Forward, aead(0, id, len))).collect::<Vec<_>>();
        let v1 = |id: u32| [&[0x30][..], &id.to_be_bytes(), &ciphertext(id.into(), 85)].concat();
        let both = (5..10).flat_map(|id| [(Forward, aead(3, id, 88)), (Reverse, aead(3, id, 88))]).collect::<Vec<_>>();
        let cbc: Vec<_> = (0..9_u32)
            .flat_map(|n| {
                let id = n.wrapping_mul(0x9e37_79b9);
                [(Forward, aead(3, id, 101)), (Reverse, aead(3, !id, 101))]
            })
            .collect();
        #[rustfmt::skip]
        let cases = [
            ("empty", vec![(Forward, vec![])], None),
            ("client reset", vec![(Forward, plain.clone())], level(Confidence::Possible)),
            ("one octet short", vec![(Forward, plain[..13].to_vec())], None),
            ("one octet long", vec![(Forward, long)], None),
            ("plain", vec![(Forward, plain.clone()), (Reverse, plain_answer)], level(Confidence::Certain)),
            ("answer to another", vec![(Forward, plain), (Reverse, control(8, SERVER, &[], &[0], CLIENT + 1, Some(0), 0))], level(Confidence::Possible)),
            ("tls-auth", vec![(Forward, auth), (Reverse, auth_answer)], level(Confidence::Certain)),
            ("tls-auth, SHA-512", vec![(Forward, sha512)], level(Confidence::Possible)),
            ("tls-crypt, resets", vec![(Forward, tls_crypt(7, CLIENT, 1, 54)), (Reverse, tls_crypt(8, SERVER, 1, 66))], level(Confidence::Possible)),
            ("tls-crypt", vec![
                (Forward, tls_crypt(7, CLIENT, 1, 54)), (Reverse, tls_crypt(8, SERVER, 1, 66)),
                (Forward, tls_crypt(4, CLIENT, 2, 300)), (Reverse, tls_crypt(4, SERVER, 2, 300)),
            ], level(Confidence::Certain)),
            ("tls-crypt-v2, early negotiation", vec![
                (Forward, tls_crypt(10, CLIENT, EARLY | 1, 400)), (Reverse, tls_crypt(8, SERVER, 1, 72)),
                (Forward, tls_crypt(11, CLIENT, EARLY | 2, 500)), (Reverse, tls_crypt(4, SERVER, 2, 300)),
            ], level(Confidence::Certain)),
            ("mid-stream control, one way", (5..8).map(|id| (Forward, tls_crypt(4, CLIENT, id, 300))).collect(), level(Confidence::Likely)),
            ("first octet of a reset, then random", vec![(Forward, random)], None),
            ("DNS queries of one identifier", (b'a'..b'i').map(|first| {
                let mut query = b"\x20\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03net\x00\x00\x01\x00\x01".to_vec();
                query[13] = first;
                (Forward, query)
            }).collect(), None),
            ("the same DNS query again", vec![(Forward, b"\x20\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03net\x00\x00\x01\x00\x01".to_vec()); 6], None),
            ("data, one way", data(5..10, 90), level(Confidence::Likely)),
            ("data, one way, whole words", data(5..10, 88), level(Confidence::Likely)),
            ("data of a peer that no server numbers so", (5..12).map(|id| (Forward, aead(0x0061_6263, id, 90))).collect(), level(Confidence::Possible)),
            ("text", (0..9).map(|n| (Forward, format!("Hello {n} from the test client").into_bytes())).collect(), None),
            ("version 1, one way", (5..15).map(|id| (Forward, v1(id))).collect(), level(Confidence::Possible)),
            ("version 1, both ways", (5..15).flat_map(|id| [(Forward, v1(id)), (Reverse, v1(id + 90))]).collect(), level(Confidence::Likely)),
            ("data, both ways", both, level(Confidence::Certain)),
            ("CBC data, both ways", cbc, level(Confidence::Possible)),
            ("QUIC short headers", (0..9_u8).map(|n| (Forward, vec![0x40 | ((n * 7) & 0x3f); 40])).collect(), None),
        ];
        for (name, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| udp(*way, octets)).collect();
            assert_eq!(best(&OpenvpnUdp, &segments), expected, "{name}");
        }
    }
}
