//! Keys that an approval may pin, each made ready once so that a handshake message costs one look, and what OpenVPN's key
//! files say.
//!
//! WireGuard (whitepaper 5.4.4): `mac1 = Keyed-BLAKE2s-128(BLAKE2s-256("mac1----" || static public key of the message's
//! recipient), all octets before mac1)`.
//!
//! OpenVPN's static key file (`openvpn --genkey secret`) holds 256 octets as hexadecimal digits between two lines:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 64 | slot 0: cipher key |
//! | 64 | 64 | slot 0: HMAC key |
//! | 128 | 64 | slot 1: cipher key |
//! | 192 | 64 | slot 1: HMAC key |
//!
//! Of each field as many octets are used as the digest or the cipher wants. tls-auth sends with slot 0 where no direction or
//! direction 0 is set, with slot 1 where direction 1 is; tls-crypt's server sends with slot 0 and its client with slot 1.
//! Whoever knows either slot has the file, so both are tried whichever way a packet goes, and no direction need be set.
//!
//! A client key of tls-crypt-v2 (OpenVPN's `doc/tls-crypt-v2.txt`) is the same 256 octets and behind them the same key as
//! its server wrapped it, which ends in its own length in two octets: base64 between two lines. It guards as tls-crypt
//! does; the client sends the wrapped key behind its first packet, which the guard does not cover.

use std::fmt;

use aes::Aes256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::Hmac;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::message::{Guarded, Message};
use crate::detect::Protocol;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// A static public key of WireGuard.
    Wireguard,
    /// A static key of OpenVPN, used with `tls-auth`.
    OpenvpnTlsAuth,
    /// A static key of OpenVPN, used with `tls-crypt`.
    OpenvpnTlsCrypt,
    /// A client's key of OpenVPN's `tls-crypt-v2`.
    OpenvpnTlsCryptV2,
}

impl KeyKind {
    /// The name in records and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::OpenvpnTlsAuth => "openvpn-tls-auth",
            Self::OpenvpnTlsCrypt => "openvpn-tls-crypt",
            Self::OpenvpnTlsCryptV2 => "openvpn-tls-crypt-v2",
        }
    }

    /// Whose handshakes it verifies.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Wireguard => Protocol::Wireguard,
            Self::OpenvpnTlsAuth | Self::OpenvpnTlsCrypt | Self::OpenvpnTlsCryptV2 => Protocol::Openvpn,
        }
    }
}

/// Names a key without giving it away: the first half of a SHA-256 over its use and its octets.
///
/// A WireGuard public key is no secret, but who knows it can make a mac1 that verifies: it does not belong in logs either.
/// A static key of OpenVPN has 2048 random bits, so that nobody finds it by its hash; a key that somebody made up is found
/// no sooner by the hash than by any recorded packet, which is an HMAC over known octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    kind: KeyKind,
    hash: [u8; 16],
}

impl Fingerprint {
    fn of(kind: KeyKind, octets: &[u8]) -> Self {
        let digest = Sha256::new().chain_update("linewarden ").chain_update(kind.name()).chain_update(b"\0");
        let digest = digest.chain_update(octets).finalize();
        let mut hash = [0; 16];
        hash.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self { kind, hash }
    }

    /// Its first 48 bits, as evidence carries them: the first twelve digits of the text.
    #[must_use]
    pub fn short(self) -> u64 {
        self.hash.iter().take(6).fold(0, |bits, octet| bits << 8 | u64::from(*octet))
    }

    /// What the key is for.
    #[must_use]
    pub const fn kind(self) -> KeyKind {
        self.kind
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind.name())?;
        self.hash.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// A pinned key, ready to verify with. Its octets are wiped when it goes, and are in no text that it gives.
#[derive(Clone)]
pub struct Key {
    fingerprint: Fingerprint,
    material: Zeroizing<Vec<u8>>,
    /// Octets of the key as its server wrapped it, behind a client's first packet.
    wrapped_len: usize,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Key {}

/// Why a text holds no key of OpenVPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The line that begins it, or the one that ends it, is missing.
    NoFrame,
    /// Something else than digits stands between them.
    NotDigits,
    /// Too many or too few digits.
    Length,
}

impl KeyError {
    /// In a sentence.
    #[must_use]
    pub const fn meaning(self, kind: KeyKind) -> &'static str {
        match (kind, self) {
            (KeyKind::OpenvpnTlsCryptV2, Self::NoFrame) => {
                "its lines `-----BEGIN OpenVPN tls-crypt-v2 client key-----` and `-----END OpenVPN tls-crypt-v2 client key-----` are not both there"
            }
            (KeyKind::OpenvpnTlsCryptV2, Self::NotDigits) => {
                "something else than base64 stands between its first and its last line"
            }
            (KeyKind::OpenvpnTlsCryptV2, Self::Length) => "it does not hold 2048 bits and a wrapped key",
            (_, Self::NoFrame) => {
                "its lines `-----BEGIN OpenVPN Static key V1-----` and `-----END OpenVPN Static key V1-----` are not both there"
            }
            (_, Self::NotDigits) => "something else than hexadecimal digits stands between its first and its last line",
            (_, Self::Length) => "it does not hold 512 hexadecimal digits (2048 bits)",
        }
    }
}

/// Octets of a static key of OpenVPN.
const STATIC_KEY: usize = 256;

impl Key {
    /// A static public key of WireGuard.
    #[must_use]
    pub fn wireguard(public: &[u8; 32]) -> Self {
        let mac1_key = Blake2s256::new().chain_update(b"mac1----").chain_update(public).finalize();
        let material = Zeroizing::new(mac1_key.to_vec());
        Self { fingerprint: Fingerprint::of(KeyKind::Wireguard, public), material, wrapped_len: 0 }
    }

    /// The text of a key file of OpenVPN; `kind` says how it is used.
    pub fn openvpn(kind: KeyKind, text: &str) -> Result<Self, KeyError> {
        let is_wrapped = kind == KeyKind::OpenvpnTlsCryptV2;
        let name = if is_wrapped { "OpenVPN tls-crypt-v2 client key" } else { "OpenVPN Static key V1" };
        let behind = text.split_once(&format!("-----BEGIN {name}-----")).map(|(_, behind)| behind);
        let between = behind.and_then(|behind| behind.split_once(&format!("-----END {name}-----")));
        let (digits, _) = between.ok_or(KeyError::NoFrame)?;
        let digits: Zeroizing<Vec<u8>> =
            Zeroizing::new(digits.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect());
        let mut material = Zeroizing::new(Vec::new());
        if is_wrapped {
            *material = STANDARD.decode(&*digits).map_err(|_| KeyError::NotDigits)?;
        } else {
            material.reserve_exact(digits.len().div_ceil(2));
            for pair in digits.chunks(2) {
                let octet = pair.iter().try_fold(0, |octet, digit| Some(octet << 4 | char::from(*digit).to_digit(16)?));
                material.push(octet.ok_or(KeyError::NotDigits)? as u8);
            }
        }
        let wrapped = material.get(STATIC_KEY..).ok_or(KeyError::Length)?;
        let wrapped_len = wrapped.len();
        // A wrapped key ends in its length.
        let says = wrapped.last_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
        let fits = if is_wrapped { wrapped_len > 0 && says == wrapped_len } else { digits.len() == 2 * STATIC_KEY };
        if !fits {
            return Err(KeyError::Length);
        }
        // What is wrapped is of no use here.
        material.truncate(STATIC_KEY);
        Ok(Self { fingerprint: Fingerprint::of(kind, &material), material, wrapped_len })
    }

    /// Its name.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether a message is guarded in the way that this key guards.
    pub(super) fn applies(&self, message: &Message<'_>) -> bool {
        match (self.fingerprint.kind, message) {
            (KeyKind::Wireguard, Message::Wireguard(_)) => true,
            (KeyKind::OpenvpnTlsAuth, Message::Openvpn(message)) => message.tls_auth().next().is_some(),
            (KeyKind::OpenvpnTlsCrypt | KeyKind::OpenvpnTlsCryptV2, Message::Openvpn(message)) => {
                message.tls_crypt(self.wrapped_len).is_some()
            }
            _ => false,
        }
    }

    /// Whether the message was made with this key: 128 bits of it at least say so.
    pub(super) fn verifies(&self, message: &Message<'_>) -> bool {
        match (self.fingerprint.kind, message) {
            (KeyKind::Wireguard, Message::Wireguard(message)) => {
                is_mac::<Blake2sMac<U16>>(&self.material, &[message.covered], message.mac1)
            }
            (KeyKind::OpenvpnTlsAuth, Message::Openvpn(message)) => {
                message.tls_auth().any(|guarded| self.slots().any(|(_, hmac)| is_tls_auth(hmac, &guarded)))
            }
            (KeyKind::OpenvpnTlsCrypt | KeyKind::OpenvpnTlsCryptV2, Message::Openvpn(message)) => message
                .tls_crypt(self.wrapped_len)
                .is_some_and(|guarded| self.slots().any(|(cipher, hmac)| is_tls_crypt(cipher, hmac, &guarded))),
            _ => false,
        }
    }

    /// Cipher and HMAC key of both slots.
    fn slots(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.material.chunks_exact(STATIC_KEY / 2).map(|slot| slot.split_at(STATIC_KEY / 4))
    }
}

fn is_mac<M: Mac + KeyInit>(key: &[u8], covered: &[&[u8]], tag: &[u8]) -> bool {
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return false };
    covered.iter().for_each(|octets| mac.update(octets));
    mac.verify_slice(tag).is_ok()
}

/// The digest is told by the length of the HMAC, and takes as many octets of the key.
fn is_tls_auth(key: &[u8], guarded: &Guarded<'_>) -> bool {
    let Some(key) = key.get(..guarded.tag.len()) else { return false };
    // OpenVPN moves packet identifier and time in front of opcode and session before it authenticates.
    let covered = [guarded.replay, guarded.head, guarded.rest];
    match guarded.tag.len() {
        20 => is_mac::<Hmac<Sha1>>(key, &covered, guarded.tag),
        28 => is_mac::<Hmac<Sha224>>(key, &covered, guarded.tag),
        32 => is_mac::<Hmac<Sha256>>(key, &covered, guarded.tag),
        48 => is_mac::<Hmac<Sha384>>(key, &covered, guarded.tag),
        64 => is_mac::<Hmac<Sha512>>(key, &covered, guarded.tag),
        _ => false,
    }
}

/// AES-256-CTR under HMAC-SHA256, whose first half is the initial counter (OpenVPN's `tls_crypt.h`).
fn is_tls_crypt(cipher: &[u8], hmac: &[u8], guarded: &Guarded<'_>) -> bool {
    let (Some(cipher), Some(hmac), Some(iv)) = (cipher.get(..32), hmac.get(..32), guarded.tag.get(..16)) else {
        return false;
    };
    let Ok(mut cipher) = Ctr128BE::<Aes256>::new_from_slices(cipher, iv) else { return false };
    let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(hmac) else { return false };
    mac.update(guarded.head);
    mac.update(guarded.replay);
    let mut buffer = [0; 64];
    for part in guarded.rest.chunks(buffer.len()) {
        let Some(plain) = buffer.get_mut(..part.len()) else { return false };
        plain.copy_from_slice(part);
        cipher.apply_keystream(plain);
        mac.update(plain);
    }
    mac.verify_slice(guarded.tag).is_ok()
}
