//! Turns handshake messages into evidence of who made them, by the keys that approvals pin.
//!
//! A mac1 of 128 bits fits by chance once in 2^128, an HMAC of tls-auth or tls-crypt once in 2^160 or less. But whoever saw a
//! message can send it again: one that verifies is `likely`, and its key counts only once the other end has a part in it. In
//! WireGuard that is a response that names the initiation's index, in OpenVPN, whose key is both ends', a message of either.
//! What it then proves is knowledge of the key: of an OpenVPN key, which is secret; of a WireGuard public key, which whoever
//! was given it may pass on.
//!
//! mac1 is keyed with the public key of a message's recipient, so that an initiation names one end and the response the
//! other. A pinned key may be either end's: only where both messages of a handshake verify by no pinned key is it another's.

mod key;
mod message;

pub use key::{Fingerprint, Key, KeyError, KeyKind};
pub use message::may_hold_handshake;

use std::ops::Range;
use std::sync::Arc;

use self::message::{Message, Part, Step, parts};
use super::{Code, Confidence, Findings, Phase, Protocol, Segment};
use crate::flow::{Direction, STEP};
use crate::time::Timestamp;

pub(super) static WIREGUARD_VERIFIED: Code = Code {
    name: "wireguard.key_verified",
    meaning: "a handshake message whose mac1 is made with a pinned public key, its recipient's; value: the key's fingerprint, first 48 bits",
    clause: "WireGuard whitepaper 5.4.4",
    phase: Phase::Stateless,
};

pub(super) static WIREGUARD_UNKNOWN: Code = Code {
    name: "wireguard.key_unknown",
    meaning: "a handshake message whose mac1 is made with none of the pinned public keys, though an approval of its address pins some: its recipient's is not pinned; value: pinned keys of WireGuard",
    clause: "WireGuard whitepaper 5.4.4",
    phase: Phase::Stateless,
};

pub(super) static OPENVPN_VERIFIED: Code = Code {
    name: "openvpn.key_verified",
    meaning: "a control packet whose HMAC is made with a pinned tls-auth, tls-crypt or tls-crypt-v2 key; value: the key's fingerprint, first 48 bits",
    clause: "OpenVPN network protocol, control channel; tls_crypt.h",
    phase: Phase::Stateless,
};

pub(super) static OPENVPN_UNKNOWN: Code = Code {
    name: "openvpn.key_unknown",
    meaning: "a control packet that none of the pinned tls-auth, tls-crypt and tls-crypt-v2 keys guards, though an approval of its address pins some; value: pinned keys of OpenVPN",
    clause: "OpenVPN network protocol, control channel; tls_crypt.h",
    phase: Phase::Stateless,
};

/// What the latest handshake messages of one direction say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// None was seen whole, or none could be checked.
    #[default]
    Nothing,
    /// It is made with this key.
    Key(Fingerprint),
    /// This many, [`ENOUGH`] at most, are made with none of the pinned keys.
    Unknown(u8),
}

impl Seen {
    /// The key, if one was verified.
    #[must_use]
    pub const fn key(self) -> Option<Fingerprint> {
        if let Self::Key(key) = self { Some(key) } else { None }
    }
}

/// Messages of one side, its peer's never seen, before none of the pinned keys is said to have a part in them.
const ENOUGH: u8 = 3;

/// What is known of a flow's keys, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// By direction.
    pub seen: [Seen; 2],
    /// By which [`Keyring`] it was checked.
    pub keyring: u64,
}

impl Identity {
    /// Whether enough was seen to say that a key that was not verified had no part in it: both messages of a
    /// handshake, or several from a side whose peer was never seen.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        match self.seen {
            [Seen::Nothing, seen] | [seen, Seen::Nothing] => matches!(seen, Seen::Unknown(ENOUGH..)),
            _ => true,
        }
    }
}

/// What a flow's findings remember of its keys.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notes {
    protocol: Option<Protocol>,
    identity: Identity,
    /// The latest handshakes that nobody has answered yet.
    openings: [Option<Opening>; 2],
    /// OpenVPN: the keys of messages that verified, by direction.
    verified: [Option<Fingerprint>; 2],
}

/// The message that opens a handshake.
#[derive(Clone, Copy, Debug)]
struct Opening {
    direction: Direction,
    index: u32,
    /// The pinned key that verifies it.
    key: Option<Fingerprint>,
}

impl Notes {
    /// What is known, if it is of this protocol.
    pub(super) fn identity(&self, protocol: Protocol) -> Identity {
        if self.protocol == Some(protocol) { self.identity } else { Identity::default() }
    }

    /// Whether a pinned key has or may have a part in the flow, so that messages made with others tell.
    fn is_watched(&self, protocol: Protocol) -> bool {
        self.protocol == Some(protocol)
            && (self.identity.seen.iter().any(|seen| seen.key().is_some())
                || self.openings.iter().flatten().any(|opening| opening.key.is_some())
                || self.verified.iter().any(Option::is_some))
    }

    fn note(
        &mut self,
        message: &Message<'_>,
        direction: Direction,
        key: Option<Fingerprint>,
        keyring: u64,
        is_peer_seen: bool,
    ) {
        if self.protocol != Some(message.protocol()) {
            *self = Self { protocol: Some(message.protocol()), ..Self::default() };
        }
        if self.identity.keyring != keyring {
            // Other keys were not tried, but one that was verified stays so.
            let seen = self.identity.seen.map(|seen| if let Seen::Unknown(_) = seen { Seen::Nothing } else { seen });
            *self = Self { protocol: self.protocol, identity: Identity { seen, keyring }, ..Self::default() };
        }
        let is_openvpn = message.protocol() == Protocol::Openvpn;
        let (here, there) = (direction as usize, direction.opposite() as usize);
        let mut both = None;
        match message.step() {
            Step::Opens(index) => {
                let [newest, older] = &mut self.openings;
                *older = newest.replace(Opening { direction, index, key });
            }
            Step::Answers(index) => {
                let is_asked = |opening: &Opening| opening.direction != direction && opening.index == index;
                let asked = self.openings.iter_mut().find(|opening| opening.as_ref().is_some_and(is_asked));
                if let Some(opening) = asked.and_then(Option::take) {
                    // Both ends made this handshake: what was known of an earlier one is over.
                    let is_unknown = key.is_none() && opening.key.is_none();
                    if is_unknown || !is_openvpn {
                        both = Some([key, opening.key]);
                    }
                }
            }
            Step::Follows => {}
        }
        if let (true, Some(_), Some(place)) = (is_openvpn, key, self.verified.get_mut(here)) {
            *place = key;
            if let [Some(forward), Some(reverse)] = self.verified {
                self.identity.seen = [Seen::Key(forward), Seen::Key(reverse)];
            }
        }
        if let Some(keys) = both {
            self.verified = [None; 2];
            for (at, key) in [here, there].into_iter().zip(keys) {
                if let Some(seen) = self.identity.seen.get_mut(at) {
                    *seen = key.map_or(Seen::Unknown(1), Seen::Key);
                }
            }
            return;
        }
        let Some(seen) = self.identity.seen.get_mut(here).filter(|_| key.is_none()) else { return };
        // From a forged address anybody may send as many as he likes: they tell only where the peer is out of sight.
        let most = if is_peer_seen { ENOUGH - 1 } else { ENOUGH };
        *seen = match *seen {
            Seen::Key(key) => Seen::Key(key),
            Seen::Nothing => Seen::Unknown(1),
            Seen::Unknown(times) => Seen::Unknown(times.max(most.min(times.saturating_add(1)))),
        };
    }
}

/// Every key that some approval pins.
#[derive(Debug, Default)]
pub struct Keyring {
    /// By kind, WireGuard's first.
    keys: Vec<Arc<Key>>,
    /// How many are WireGuard's.
    wireguard: u32,
    id: u64,
}

impl Keyring {
    /// Takes each key once.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = Arc<Key>>) -> Self {
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by_key(|key| key.fingerprint());
        keys.dedup();
        let mixed = |id: u64, key: &Arc<Key>| (id ^ key.fingerprint().short()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let id = keys.iter().fold(1, mixed);
        let wireguard = keys.partition_point(|key| key.fingerprint().kind() == KeyKind::Wireguard) as u32;
        Self { keys, wireguard, id }
    }

    /// Whether nothing is pinned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The same for the same keys.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The keys, by kind.
    #[must_use]
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// Where a key stands.
    #[must_use]
    pub fn position(&self, key: Fingerprint) -> Option<u32> {
        self.keys.binary_search_by_key(&key, |key| key.fingerprint()).ok().map(|position| position as u32)
    }

    /// Where those of a protocol stand.
    fn of(&self, protocol: Protocol) -> Range<u32> {
        if protocol == Protocol::Wireguard { 0..self.wireguard } else { self.wireguard..self.keys.len() as u32 }
    }
}

/// Keys tried for handshakes of addresses whose approvals pin some, in one second of packet time and by one worker.
const TRIALS: u32 = 20_000;

/// What handshakes may cost, and what they did.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    second: u64,
    /// Left for keys that an approval of the message's address pins; and for all others, so that handshakes of strangers
    /// never use up what those of approved addresses need.
    left: [u32; 2],
    /// Keys that an approval of the present message's address pins, by position.
    near: Vec<u32>,
    counts: KeyCounts,
}

/// What became of the handshake messages that were shown to keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KeyCounts {
    /// Keys tried.
    pub trials: u64,
    /// Messages that a pinned key verified.
    pub verified: u64,
    /// Messages that none of those tried verified, all keys that approvals of their address pin among them.
    pub unknown: u64,
    /// Messages that were not shown to all keys, since too many came within a second.
    pub skipped: u64,
    /// Messages of which too little was captured.
    pub cut: u64,
}

impl KeyCounts {
    /// Adds those of another worker.
    pub const fn add(&mut self, other: &Self) {
        self.trials += other.trials;
        self.verified += other.verified;
        self.unknown += other.unknown;
        self.skipped += other.skipped;
        self.cut += other.cut;
    }
}

/// What the keys say of a message.
enum Answer {
    Verified(Fingerprint),
    /// By none of its address's keys, nor by another that was tried; so many are pinned.
    Unknown(u32),
    /// No approval of its address pins a key, nor has one a part in its flow, and no other verifies it; or too many came.
    Nothing,
}

impl Checks {
    /// What was checked so far.
    #[must_use]
    pub const fn counts(&self) -> &KeyCounts {
        &self.counts
    }

    /// Shows a payload's handshake messages to the keys, first to those at the positions `near`, which approvals of its
    /// address pin. Notes what they say in `findings`; a flow without evidence is given some by a verified key only.
    pub fn check(
        &mut self,
        segment: &Segment<'_>,
        keyring: &Keyring,
        near: impl Iterator<Item = u32>,
        findings: &mut Findings,
    ) {
        let mut near = Some(near);
        for part in parts(segment) {
            let message = match part {
                Part::Message(message) => message,
                Part::Cut(protocol) => {
                    self.counts.cut += u64::from(findings.has(protocol, Confidence::Possible));
                    continue;
                }
            };
            let protocol = message.protocol();
            let known = findings.identity.identity(protocol);
            let is_evident = findings.has(protocol, Confidence::Possible);
            // Packets within a handshake are for those that did not see enough of its beginning.
            let seen = known.seen.get(segment.direction as usize);
            if message.step() == Step::Follows
                && (!is_evident || matches!(seen, Some(Seen::Key(_) | Seen::Unknown(ENOUGH..))))
            {
                continue;
            }
            if let Some(near) = near.take() {
                self.near.clear();
                self.near.extend(near);
                self.near.sort_unstable();
                self.near.dedup();
            }
            let (verified, unknown) = match protocol {
                Protocol::Wireguard => (&WIREGUARD_VERIFIED, &WIREGUARD_UNKNOWN),
                _ => (&OPENVPN_VERIFIED, &OPENVPN_UNKNOWN),
            };
            let is_peer_seen = findings.evidence().iter().any(|found| found.direction != segment.direction);
            match self.ask(&message, keyring, segment.at, findings.identity.is_watched(protocol)) {
                Answer::Verified(key) => {
                    self.counts.verified += 1;
                    findings.identity.note(&message, segment.direction, Some(key), keyring.id, is_peer_seen);
                    let is_told = findings.identity.identity(protocol).seen.contains(&Seen::Key(key));
                    let confidence = if is_told { Confidence::Certain } else { Confidence::Likely };
                    findings.add(segment, protocol, verified, confidence, key.short());
                }
                Answer::Unknown(pinned) if is_evident => {
                    findings.identity.note(&message, segment.direction, None, keyring.id, is_peer_seen);
                    // Beside a verified key it is the other end's, which need not be pinned.
                    let seen = findings.identity.identity(protocol).seen;
                    if !seen.iter().any(|seen| matches!(seen, Seen::Key(_))) {
                        self.counts.unknown += 1;
                        findings.add(segment, protocol, unknown, Confidence::Possible, pinned.into());
                    }
                }
                Answer::Unknown(_) | Answer::Nothing => {}
            }
        }
    }

    fn ask(&mut self, message: &Message<'_>, keyring: &Keyring, at: Timestamp, is_watched: bool) -> Answer {
        // A second that comes again has no trials of its own, unless the clock was put back for good.
        if self.second < at.as_secs() || self.second - at.as_secs() > STEP.as_secs() {
            (self.second, self.left) = (at.as_secs(), [TRIALS; 2]);
        }
        let all = keyring.of(message.protocol());
        let near: &[u32] = {
            let start = self.near.partition_point(|position| *position < all.start);
            let end = self.near.partition_point(|position| *position < all.end);
            self.near.get(start..end).unwrap_or_default()
        };
        let Self { left: [left_near, left_far], counts, .. } = self;
        let is_silent = near.is_empty() && !is_watched;
        let mut answer = if is_silent { Answer::Nothing } else { Answer::Unknown(all.len() as u32) };
        let positions = near.iter().copied().map(|position| (position, true));
        let others = all.filter(|position| near.binary_search(position).is_err()).map(|position| (position, false));
        for (position, is_near) in positions.chain(others) {
            let Some(key) = keyring.keys.get(position as usize).filter(|key| key.applies(message)) else { continue };
            let left = if is_near { &mut *left_near } else { &mut *left_far };
            if *left == 0 {
                counts.skipped += 1;
                // Who was not asked did not say no.
                if is_near || near.is_empty() {
                    answer = Answer::Nothing;
                }
                break;
            }
            *left -= 1;
            counts.trials += 1;
            if key.verifies(message) {
                answer = Answer::Verified(key.fingerprint());
                break;
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{Noise, segment, trials, udp};
    use crate::detect::{Carrier, Detection, Evidence};
    use crate::flow::Direction::{Forward, Reverse};
    use crate::wire::TcpFlags;

    const SERVER: &str = "sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA=";
    const CLIENT: &str = "Y8ouswK9NbgOtZfMYuRChpP11L80hRNbwHUI1osbd3E=";
    const CLIENT_V2: &str = include_str!("../../../tests/captures/openvpn-udp-pinned-tls-crypt-v2/keys/client.key");
    const STATIC: &str = include_str!("../../../tests/captures/openvpn-udp-pinned-tls-auth/keys/ta.key");

    // Of the captures `*-pinned*`: what real software sent, made with the keys above.
    const INITIATION: &str = "010000007412213af32df7300adbc527db0cc1c0c77a9153aae931d7554be5b04203c364461b462a379aa56b34f70796bd2bbdcdf364b694a9372aae7080736fcd9c6e975415eebddf197a3b000f5c1925379e8b0eb089e0fdd2029d200c20b8560262506bd53b9550d895e3ee0a996ef11e2f9fdb8f65135ed52e1784a2c32d25cddc2a00000000000000000000000000000000";
    const RESPONSE: &str = "02000000475f1e027412213ad42a2ab29c6ddc3ccd18d8f2e171c640d2fc4713267186ea4aa160c30b75ec682c51f9fad77f742010490b4eb8ee1353d453b7f45f2f57b3f7779c7c10665a6b00000000000000000000000000000000";
    const TLS_AUTH: [&str; 2] = [
        "38f2726e3a388706398d4dca40098dc12df33280592f0b9f4b0a8bc0d3000000016b0650e50000000000",
        "40ed5bc8c0f0f79e6b2d950cb39e07d6c4c1b851ee460c8ef094b17045000000016b0650e50100000000f2726e3a3887063900000000",
    ];
    const TLS_AUTH_SHA512: [&str; 2] = [
        "38c29f60512330ac21eecdcd4c7255f8fe4648d645752fa549a8de3709c972c3004ebaf58babd9b1666c0c14dd63f3c2eb9e0ab324668e8b5133d23eb8b1f1f665c0fb68e7b3f50b4e000000016b0650ea0000000000",
        "40fb9c0e9c2718ae9e1fe46ef8d9bd0dac6d320e5a73b8d3258a17b0ff3365dee03d69767bdbc61b86eb5483b134a19faf98523e33ae25508cf318a04913f76f688d877f836f0ec1e1000000016b0650ea0100000000c29f60512330ac2100000000",
    ];
    const TLS_CRYPT: [&str; 2] = [
        "386bf399bd5e4c2ff4000000016b0650f0bdc96d5a5e215a107cdc1d70897517866f42b0e00a809eb73430ebb6c9b4809626ce003c84",
        "408fb8888246c246bf000000016b0650f01b1dcbf30f87d4df98d39f90b7606d3aa2ac979a0574fdb9ffa10815844861e6e9c20a0b84fba510694d6b0030973aa2f8",
    ];
    /// The first is captured up to its wrapped key, which brings it to 353 octets.
    const TLS_CRYPT_V2: [&str; 2] = [
        "50b400f43de4b0373b0f0000016b065ab16b3961679858b3f10863959dcef51e760d1801d037bc05397d4d3d1b73e495fcc51a6ad1f6",
        "40f3066db7f538dbc1000000016b065ab10f3375b37e9b4a9ed1bd9cca5373be5343750b7a0e9163f263bce3289cbb3d71420ba59eae94379e63fdc13c6a1679044d858aaca0a4f5",
    ];
    const BARE: [&str; 2] = ["38f2726e3a388706390000000000", "40ed5bc8c0f0f79e6b0100000000f2726e3a3887063900000000"];

    fn octets(hexadecimal: &str) -> Vec<u8> {
        hexadecimal
            .as_bytes()
            .chunks(2)
            .map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    fn wireguard(text: &str) -> Key {
        use base64::Engine;
        let octets = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        Key::wireguard(octets.as_slice().try_into().unwrap())
    }

    fn openvpn(kind: KeyKind) -> Key {
        Key::openvpn(kind, STATIC).unwrap()
    }

    /// A key that made nothing here.
    fn stranger(kind: KeyKind, number: u8) -> Key {
        match kind {
            KeyKind::Wireguard => Key::wireguard(&[number; 32]),
            kind => {
                let digits = format!("{number:02x}").repeat(256);
                let lines = ["-----BEGIN OpenVPN Static key V1-----", &digits, "-----END OpenVPN Static key V1-----"];
                Key::openvpn(kind, &lines.join("\n")).unwrap()
            }
        }
    }

    fn ring(keys: Vec<Key>) -> Keyring {
        Keyring::new(keys.into_iter().map(Arc::new))
    }

    /// A flow that the detectors took for this protocol, and what the keys make of its messages, all of an address
    /// whose approval pins every key.
    fn shown(keyring: &Keyring, messages: &[(Direction, Carrier, Vec<u8>)]) -> (Findings, Checks) {
        let (mut findings, mut checks) = (Findings::default(), Checks::default());
        for (way, carrier, octets) in messages {
            let segment = segment(*way, *carrier, octets);
            for detector in crate::detect::REGISTRY {
                detector.inspect(&segment, &mut findings);
            }
            let near = 0..keyring.keys().len() as u32;
            if may_hold_handshake(&segment) {
                checks.check(&segment, keyring, near, &mut findings);
            }
        }
        (findings, checks)
    }

    fn seen(keyring: &Keyring, messages: &[(Direction, Vec<u8>)]) -> ([Seen; 2], bool) {
        let messages: Vec<_> = messages.iter().map(|(way, octets)| (*way, Carrier::Udp, octets.clone())).collect();
        let identity = shown(keyring, &messages).0.detection().map(|found| found.identity).unwrap_or_default();
        (identity.seen, identity.is_whole())
    }

    #[test]
    fn what_real_software_sent_verifies_by_its_keys_alone() {
        use KeyKind::{OpenvpnTlsAuth as Auth, OpenvpnTlsCrypt as Crypt, Wireguard};
        let pair = |texts: [&str; 2]| vec![(Forward, octets(texts[0])), (Reverse, octets(texts[1]))];
        let mut broken = octets(INITIATION);
        broken[60] ^= 1;
        let mut foreign = octets(INITIATION);
        foreign[4..8].copy_from_slice(&[9; 4]);
        let mut foreign_answer = octets(RESPONSE);
        foreign_answer[8..12].copy_from_slice(&[9; 4]);
        let mut other_mac2 = octets(INITIATION);
        other_mac2[140] ^= 1;
        let mut turned = octets(TLS_CRYPT[0]);
        turned[53] ^= 1;
        let key = |key: &Key| Seen::Key(key.fingerprint());
        let (server, client) = (wireguard(SERVER), wireguard(CLIENT));
        let (auth, crypt) = (openvpn(Auth), openvpn(Crypt));
        let unknown = Seen::Unknown(1);
        #[rustfmt::skip]
        let cases = [
            ("server's key", vec![server.clone()], pair([INITIATION, RESPONSE]), [key(&server), unknown], true),
            ("client's key", vec![client.clone()], pair([INITIATION, RESPONSE]), [unknown, key(&client)], true),
            ("both", vec![client.clone(), server.clone()], pair([INITIATION, RESPONSE]), [key(&server), key(&client)], true),
            ("neither", vec![stranger(Wireguard, 7)], pair([INITIATION, RESPONSE]), [unknown; 2], true),
            ("initiation alone, another key", vec![stranger(Wireguard, 7)], vec![(Forward, octets(INITIATION))], [unknown, Seen::Nothing], false),
            ("three initiations, another key", vec![stranger(Wireguard, 7)], vec![(Forward, octets(INITIATION)); 3], [Seen::Unknown(3), Seen::Nothing], true),
            ("an octet changed", vec![server.clone()], vec![(Forward, broken)], [unknown, Seen::Nothing], false),
            ("mac2 is no part of it", vec![server.clone()], vec![(Forward, other_mac2), (Reverse, octets(RESPONSE))], [key(&server), unknown], true),
            ("initiation alone, which anybody may send again", vec![server.clone()], vec![(Forward, octets(INITIATION)); 9], [Seen::Nothing; 2], false),
            ("reset alone, which anybody may send again", vec![auth.clone()], vec![(Forward, octets(TLS_AUTH[0])); 9], [Seen::Nothing; 2], false),
            ("sent again into another handshake", vec![server.clone()], vec![(Forward, foreign.clone()), (Forward, octets(INITIATION)), (Reverse, foreign_answer.clone())], [unknown; 2], true),
            ("sent again before another handshake", vec![server.clone()], vec![(Forward, octets(INITIATION)), (Forward, foreign), (Reverse, foreign_answer)], [unknown; 2], true),
            ("OpenVPN's keys say nothing of it", vec![auth.clone(), crypt.clone()], pair([INITIATION, RESPONSE]), [Seen::Nothing; 2], false),
            ("tls-auth, SHA-1, directions 0 and 1", vec![auth.clone()], pair(TLS_AUTH), [key(&auth); 2], true),
            ("tls-auth, SHA-512, no direction", vec![auth.clone()], pair(TLS_AUTH_SHA512), [key(&auth); 2], true),
            ("tls-auth, another key", vec![stranger(Auth, 7)], pair(TLS_AUTH), [unknown; 2], true),
            ("tls-auth by a tls-crypt key", vec![crypt.clone()], pair(TLS_AUTH), [unknown; 2], true),
            ("tls-crypt", vec![crypt.clone()], pair(TLS_CRYPT), [key(&crypt); 2], true),
            ("tls-crypt, another key", vec![stranger(Crypt, 7)], pair(TLS_CRYPT), [unknown; 2], true),
            ("tls-crypt by a tls-auth key", vec![auth.clone()], pair(TLS_CRYPT), [unknown; 2], true),
            ("tls-crypt, ciphertext changed", vec![crypt.clone()], vec![(Forward, turned)], [unknown, Seen::Nothing], false),
            ("among others", (0..9).map(|n| stranger(Crypt, n)).chain([crypt.clone()]).collect(), pair(TLS_CRYPT), [key(&crypt); 2], true),
            ("no guard", vec![auth.clone(), crypt.clone()], pair(BARE), [unknown; 2], true),
            ("no keys of this protocol", vec![server.clone()], pair(TLS_CRYPT), [Seen::Nothing; 2], false),
        ];
        for (name, keys, messages, expected, is_whole) in cases {
            assert_eq!(seen(&ring(keys), &messages), (expected, is_whole), "{name}");
        }
    }

    #[test]
    fn a_wrapped_key_need_not_be_captured() {
        let key = Key::openvpn(KeyKind::OpenvpnTlsCryptV2, CLIENT_V2).unwrap();
        let [reset, answer] = TLS_CRYPT_V2.map(octets);
        let seen = |key: Key, captured: usize, len: u32| {
            let (keyring, mut findings, mut checks) = (ring(vec![key]), Findings::default(), Checks::default());
            let reset = Segment { payload: &reset[..captured], payload_len: len, ..udp(Forward, &reset) };
            for segment in [reset, udp(Reverse, &answer)] {
                crate::detect::REGISTRY[1].inspect(&segment, &mut findings);
                checks.check(&segment, &keyring, 0..1, &mut findings);
            }
            findings.detection().unwrap().identity.seen
        };
        let verified = Seen::Key(key.fingerprint());
        assert_eq!(seen(key.clone(), 54, 353), [verified; 2]);
        assert_eq!(seen(key.clone(), 53, 353), [Seen::Nothing; 2], "an octet too few");
        assert_eq!(seen(key, 54, 352), [Seen::Unknown(1), Seen::Nothing], "another wrapped key's length");
        assert_eq!(seen(openvpn(KeyKind::OpenvpnTlsCrypt), 54, 353), [Seen::Unknown(1); 2]);
    }

    #[test]
    fn a_verified_key_is_certain_and_named() {
        let key = wireguard(SERVER);
        let messages = [(Forward, Carrier::Udp, octets(INITIATION)), (Reverse, Carrier::Udp, octets(RESPONSE))];
        let (alone, _) = shown(&ring(vec![key.clone()]), &messages[..1]);
        assert_eq!(alone.detection().map(|found| found.confidence), Some(Confidence::Likely));
        let (findings, checks) = shown(&ring(vec![key.clone()]), &messages);
        let Some(Detection {
            protocol: Protocol::Wireguard, confidence: Confidence::Certain, midstream: false, ..
        }) = findings.detection()
        else {
            panic!("{findings:?}")
        };
        let Evidence { value, .. } = findings.of(&WIREGUARD_VERIFIED, Forward).unwrap();
        assert!(key.fingerprint().to_string().starts_with(&format!("wireguard:{value:012x}")));
        assert_eq!(*checks.counts(), KeyCounts { trials: 2, verified: 1, ..KeyCounts::default() });
    }

    #[test]
    fn a_stream_is_cut_into_its_packets() {
        let key = openvpn(KeyKind::OpenvpnTlsCrypt);
        let carrier = Carrier::Tcp { seq: 1, flags: TcpFlags(TcpFlags::ACK) };
        let framed = |text: &str| [&(octets(text).len() as u16).to_be_bytes()[..], &octets(text)].concat();
        let messages = [(Forward, carrier, framed(TLS_CRYPT[0])), (Reverse, carrier, framed(TLS_CRYPT[1]))];
        let (findings, _) = shown(&ring(vec![key.clone()]), &messages);
        assert_eq!(findings.detection().unwrap().identity.seen, [Seen::Key(key.fingerprint()); 2]);
        for len in 0..messages[0].2.len() {
            shown(&ring(vec![key.clone()]), &[(Forward, carrier, messages[0].2[..len].to_vec())]);
        }
    }

    /// Anybody can send a message from a forged address; only both ends make a handshake.
    #[test]
    fn a_forged_message_takes_nothing_from_a_verified_flow() {
        let server = wireguard(SERVER);
        let keyring = ring(vec![server.clone()]);
        let mut forged = octets(INITIATION);
        forged[4..8].copy_from_slice(&[9; 4]);
        let mut answer = octets(RESPONSE);
        answer[8..12].copy_from_slice(&[9; 4]);
        let mut messages = vec![(Forward, octets(INITIATION)), (Reverse, octets(RESPONSE)), (Forward, forged.clone())];
        messages.push((Forward, forged));
        assert_eq!(seen(&keyring, &messages).0, [Seen::Key(server.fingerprint()), Seen::Unknown(1)]);
        // Answered, it is another handshake.
        messages.push((Reverse, answer));
        assert_eq!(seen(&keyring, &messages).0, [Seen::Unknown(1); 2]);
        messages.extend([(Forward, octets(INITIATION)), (Reverse, octets(RESPONSE))]);
        assert_eq!(seen(&keyring, &messages).0, [Seen::Key(server.fingerprint()), Seen::Unknown(1)]);
    }

    #[test]
    fn too_little_captured_is_counted() {
        let keyring = ring(vec![wireguard(SERVER)]);
        let (mut findings, mut checks) = (Findings::default(), Checks::default());
        let message = octets(INITIATION);
        let segment = Segment { payload: &message[..54], ..udp(Forward, &message) };
        crate::detect::REGISTRY[0].inspect(&segment, &mut findings);
        checks.check(&segment, &keyring, 0..1, &mut findings);
        assert_eq!(findings.detection().unwrap().identity, Identity::default());
        assert_eq!(*checks.counts(), KeyCounts { cut: 1, ..KeyCounts::default() });
    }

    #[test]
    fn a_flood_tries_so_many_keys_a_second() {
        let keyring = ring((0..100).map(|number| stranger(KeyKind::Wireguard, number)).collect());
        let (mut noise, mut checks) = (Noise::default(), Checks::default());
        let mut flood = |checks: &mut Checks, second, near: Range<u32>| {
            let before = checks.counts().trials;
            for _ in 0..3000 {
                let message = [&[1, 0, 0, 0][..], &noise.octets(144)].concat();
                let segment = Segment { at: Timestamp::from_secs(second), ..udp(Forward, &message) };
                let mut findings = Findings::default();
                crate::detect::REGISTRY[0].inspect(&segment, &mut findings);
                checks.check(&segment, &keyring, near.clone(), &mut findings);
            }
            checks.counts().trials - before
        };
        // Of addresses that no approval names.
        assert_eq!(flood(&mut checks, 1, 0..0), u64::from(TRIALS));
        assert_eq!(checks.counts().skipped, 3000 - u64::from(TRIALS) / 100);
        // Which leaves those of approved addresses enough.
        assert_eq!(flood(&mut checks, 1, 0..2), 6000);
        assert_eq!(checks.counts().unknown, 3000);
        assert_eq!(flood(&mut checks, 2, 0..100), u64::from(TRIALS));
    }

    #[test]
    fn keys_keep_what_was_verified_and_forget_what_others_did_not_verify() {
        let (server, client) = (wireguard(SERVER), wireguard(CLIENT));
        let (old, new) = (ring(vec![server.clone()]), ring(vec![server.clone(), client.clone()]));
        assert_ne!(old.id(), new.id());
        let (mut findings, mut checks) = (Findings::default(), Checks::default());
        for (keyring, way, text) in [
            (&old, Forward, INITIATION),
            (&old, Reverse, RESPONSE),
            (&new, Forward, INITIATION),
            (&new, Reverse, RESPONSE),
        ] {
            let message = octets(text);
            crate::detect::REGISTRY[0].inspect(&udp(way, &message), &mut findings);
            checks.check(&udp(way, &message), keyring, 0..2, &mut findings);
        }
        let seen = findings.detection().unwrap().identity.seen;
        assert_eq!(seen, [Seen::Key(server.fingerprint()), Seen::Key(client.fingerprint())]);
    }

    #[test]
    fn random_octets_are_made_with_no_key() {
        let keyring =
            ring(vec![wireguard(SERVER), openvpn(KeyKind::OpenvpnTlsAuth), openvpn(KeyKind::OpenvpnTlsCrypt)]);
        let (mut noise, mut checks) = (Noise::default(), Checks::default());
        for number in 0..trials() {
            // All that a message has in clear, and the rest by chance.
            let mut message = noise.octets(148);
            let front: &[u8] = match number % 3 {
                0 => &[1, 0, 0, 0],
                1 => &[0x38, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0x6b, 0, 0, 0],
                _ => &[0x38],
            };
            message[..front.len()].copy_from_slice(front);
            message[29..37].copy_from_slice(&[0, 0, 0, 1, 0x6b, 0, 0, 0]);
            let segment = Segment { at: Timestamp::from_secs(number.into()), ..udp(Forward, &message) };
            checks.check(&segment, &keyring, 0..3, &mut Findings::default());
        }
        assert!(checks.counts().trials >= trials().into());
        assert_eq!(checks.counts().verified, 0);
    }

    #[test]
    fn key_files() {
        let (begin, end) = ("-----BEGIN OpenVPN Static key V1-----\n", "-----END OpenVPN Static key V1-----\n");
        let digits = "0123456789abcdef0123456789ABCDEF\n".repeat(16);
        let read = |text: &str| Key::openvpn(KeyKind::OpenvpnTlsAuth, text).map(|_| ());
        for (name, text, expected) in [
            ("as openvpn writes it", STATIC.to_owned(), Ok(())),
            ("DOS lines", STATIC.replace('\n', "\r\n"), Ok(())),
            ("empty", String::new(), Err(KeyError::NoFrame)),
            ("no beginning", format!("{digits}{end}"), Err(KeyError::NoFrame)),
            ("no end", format!("{begin}{digits}"), Err(KeyError::NoFrame)),
            ("a digit short", format!("{begin}{}{end}", &digits[..digits.len() - 2]), Err(KeyError::Length)),
            ("an octet long", format!("{begin}{digits}00{end}"), Err(KeyError::Length)),
            ("no digits", format!("{begin}{}{end}", digits.replace('0', "g")), Err(KeyError::NotDigits)),
            ("a certificate", "-----BEGIN CERTIFICATE-----".to_owned(), Err(KeyError::NoFrame)),
        ] {
            assert_eq!(read(&text), expected, "{name}");
        }
    }

    #[test]
    fn client_key_files() {
        let read = |text: &str| Key::openvpn(KeyKind::OpenvpnTlsCryptV2, text).map(|_| ());
        let (first, last) = (CLIENT_V2.find('\n').unwrap() + 1, CLIENT_V2.rfind("-----END").unwrap());
        let with = |octets: &[u8]| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(octets);
            format!("{}{text}\n{}", &CLIENT_V2[..first], &CLIENT_V2[last..])
        };
        for (name, text, expected) in [
            ("as openvpn writes it", CLIENT_V2.to_owned(), Ok(())),
            ("a static key", STATIC.to_owned(), Err(KeyError::NoFrame)),
            ("a server's key", CLIENT_V2.replace("client", "server"), Err(KeyError::NoFrame)),
            ("no base64", CLIENT_V2.replace('\n', "\n!"), Err(KeyError::NotDigits)),
            ("no wrapped key", with(&[7; 256]), Err(KeyError::Length)),
            ("an octet short", with(&[7; 255]), Err(KeyError::Length)),
            ("the least", with(&[&[7; 256][..], &[0, 2]].concat()), Ok(())),
            ("another length than it says", with(&[&[7; 257][..], &[0, 2]].concat()), Err(KeyError::Length)),
        ] {
            assert_eq!(read(&text), expected, "{name}");
        }
    }

    #[test]
    fn no_text_gives_a_key_away() {
        let key = openvpn(KeyKind::OpenvpnTlsAuth);
        let digits: String = STATIC.lines().filter(|line| line.len() == 32).collect();
        assert_eq!(format!("{key:?}"), format!("Key({})", key.fingerprint()));
        for text in [format!("{key:?}"), format!("{:?}", ring(vec![key.clone()]))] {
            // Nor does any 32 bits of it stand there as a number.
            assert!((0..digits.len() - 8).all(|at| !text.contains(&digits[at..at + 8])), "{text}");
        }
        // The same octets used otherwise are another key.
        assert_ne!(key.fingerprint(), openvpn(KeyKind::OpenvpnTlsCrypt).fingerprint());
    }
}
