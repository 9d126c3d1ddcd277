//! Turns a batch of lines into its seal, one line of `X.seals`, and back: a chain of SHA-256 (FIPS 180-4) over all seals
//! of a log, its heads signed with Ed25519 (RFC 8032).
//!
//! | field | means |
//! |---|---|
//! | `seal` | number, from 1, over all segments and runs |
//! | `kind` | `open` (a run begins), `batch`, `recovered` (octets that a crash left behind the last seal), `close` (a segment or a run ends), `removed` (retention takes the oldest segments away) |
//! | `segment` | number of the file |
//! | `offset`, `octets`, `records` | which octets of the segment, uncompressed, and lines in them |
//! | `sha256` | of these octets |
//! | `time` | when it was sealed |
//! | `version`, `log`, `key` | `open`: of this format, the log's name, the sensor's public key in base64 |
//! | `torn`, `missing` | `recovered`: octets of a line cut by a crash, taken off; sealed octets that are not there |
//! | `foreign` | `recovered`: octets that stood behind the end of a log that its last run had closed, those of a cut line among them |
//! | `missing_seals` | seals that the sensor signed and that are not there |
//! | `removed_to`, `removed_chain` | `removed`: latest segment taken away, and the chain behind it |
//! | `total_records`, `total_octets` | signed ones: of the log since seal 1 |
//! | `chain` | SHA-256 of the chain before (32 octets) and this line up to `,"chain"` |
//! | `signature` | signed ones: over [`Head::message`] |

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::key::{PublicKey, SensorKey};
use crate::time::Timestamp;

/// Version of the format.
pub const VERSION: u32 = 1;
/// No batch is larger, so that a reader may hold one.
pub const MAX_BATCH: u64 = 16 << 20;

/// No log reaches it, and what is added to it does not overflow.
pub const MAX_NUMBER: u64 = 1 << 62;

/// A SHA-256, in lines as hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

/// What a seal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A run of the sensor begins.
    Open,
    /// Lines were written.
    Batch,
    /// A run ended without its `close`: what it left behind its last seal.
    Recovered,
    /// A segment or a run ends.
    Close,
    /// Retention takes the oldest segments away.
    Removed,
}

impl Kind {
    /// Whether behind it a run has ended and none has begun since; `before`: whether that was so.
    #[must_use]
    pub const fn is_closed(self, before: bool) -> bool {
        match self {
            Self::Close => true,
            Self::Open => false,
            Self::Batch | Self::Recovered | Self::Removed => before,
        }
    }
}

/// A line of `X.seals`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Number, from 1.
    pub seal: u64,
    /// What it is for.
    pub kind: Kind,
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Where in it the batch begins.
    pub offset: u64,
    /// How long it is.
    pub octets: u64,
    /// Lines in it.
    pub records: u64,
    /// Of its octets.
    pub sha256: Hash,
    /// When it was sealed.
    pub time: Timestamp,
    /// Of the format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The log's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The sensor's public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Octets of a cut line that were taken off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<u64>,
    /// Sealed octets that are not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Octets that no run of the sensor wrote: they stood behind a `close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<u64>,
    /// Seals that are not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_seals: Option<u64>,
    /// Latest segment that retention takes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_to: Option<u64>,
    /// The chain behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_chain: Option<Hash>,
    /// Lines since seal 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_records: Option<u64>,
    /// Octets since seal 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_octets: Option<u64>,
    /// Of everything up to here.
    #[serde(default, skip_serializing)]
    pub chain: Hash,
    /// In base64.
    #[serde(default, skip_serializing)]
    pub signature: Option<String>,
}

/// A signed seal by itself: what is kept elsewhere, so that a cut tail shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The log's name.
    pub log: String,
    /// Number of the seal.
    pub seal: u64,
    /// Its segment.
    pub segment: u64,
    /// Lines since seal 1.
    pub total_records: u64,
    /// Octets since seal 1.
    pub total_octets: u64,
    /// When it was signed.
    pub time: Timestamp,
    /// The chain there.
    pub chain: Hash,
    /// In base64.
    pub signature: String,
}

impl Seal {
    /// One that is not chained yet.
    #[must_use]
    pub fn new(kind: Kind, segment: u64, offset: u64, batch: Batch, time: Timestamp) -> Self {
        Self {
            seal: 0,
            kind,
            segment,
            offset,
            octets: batch.octets,
            records: batch.records,
            sha256: Hash(batch.hash.finalize().into()),
            time,
            version: None,
            log: None,
            key: None,
            torn: None,
            missing: None,
            foreign: None,
            missing_seals: None,
            removed_to: None,
            removed_chain: None,
            total_records: None,
            total_octets: None,
            chain: Hash::default(),
            signature: None,
        }
    }

    /// Reads a line without its line feed; gives what it holds, and the octets that its chain is over.
    pub fn parse(line: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        const CHAIN: &str = ",\"chain\":\"";
        let text = std::str::from_utf8(line).map_err(|_| "no text")?;
        let (body, _) = text.rsplit_once(CHAIN).ok_or("no seal")?;
        let seal: Self = serde_json::from_str(text).map_err(|_| "no seal")?;
        // Nothing may stand in a line that neither the chain nor the signature guards.
        if seal.tail() != text.get(body.len()..).unwrap_or_default() {
            return Err("written otherwise than the sensor does");
        }
        let totals = [seal.total_records, seal.total_octets, seal.missing_seals].map(Option::unwrap_or_default);
        let is_far = [seal.seal, seal.segment, seal.offset].iter().chain(&totals).any(|&number| number > MAX_NUMBER);
        if is_far || seal.octets > MAX_BATCH || seal.records > seal.octets {
            return Err("numbers that cannot be");
        }
        Ok((seal, body.as_bytes()))
    }

    /// Where the batch ends in its segment.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.octets)
    }

    /// What stands behind the octets that the chain is over.
    fn tail(&self) -> String {
        let signature = self.signature.as_ref().map(|text| format!(",\"signature\":\"{text}\"")).unwrap_or_default();
        format!(",\"chain\":\"{}\"{signature}}}", self.chain)
    }

    /// The seal by itself, where it is signed.
    #[must_use]
    pub fn head(&self, log: &str) -> Option<Head> {
        Some(Head {
            log: log.to_owned(),
            seal: self.seal,
            segment: self.segment,
            total_records: self.total_records?,
            total_octets: self.total_octets?,
            time: self.time,
            chain: self.chain,
            signature: self.signature.clone()?,
        })
    }
}

impl Head {
    /// What is signed: seven lines of text, each with its line feed.
    #[must_use]
    pub fn message(&self) -> String {
        let Self { log, seal, segment, total_records, total_octets, chain, .. } = self;
        format!(
            "linewarden seal {VERSION}\nlog {log}\nseal {seal}\nsegment {segment}\nrecords {total_records}\noctets {total_octets}\nchain {chain}\n"
        )
    }

    /// Whether one of these keys signed it.
    #[must_use]
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        let signature = STANDARD.decode(&self.signature).unwrap_or_default();
        keys.iter().any(|key| key.verifies(self.message().as_bytes(), &signature))
    }
}

/// Octets on their way to a seal.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    hash: Sha256,
    /// How many.
    pub octets: u64,
    /// Line feeds among them.
    pub records: u64,
}

impl Batch {
    /// Takes octets that hold so many line feeds.
    pub fn add(&mut self, octets: &[u8], records: u64) {
        self.hash.update(octets);
        self.octets += octets.len() as u64;
        self.records += records;
    }

    /// Of the octets so far.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(self.hash.clone().finalize().into())
    }
}

/// Where the chain of a log stands.
#[derive(Clone, Debug)]
pub struct Chain {
    log: String,
    /// Number of the latest seal; 0: none yet.
    pub seal: u64,
    /// Behind it.
    pub value: Hash,
    /// Lines up to it.
    pub total_records: u64,
    /// Octets up to it.
    pub total_octets: u64,
}

impl Chain {
    /// Before the first seal: the hash of the log's name, so that logs cannot take each other's place.
    #[must_use]
    pub fn new(log: &str) -> Self {
        let value = Sha256::digest(format!("linewarden seals {VERSION} {log}").as_bytes());
        Self { log: log.to_owned(), seal: 0, value: Hash(value.into()), total_records: 0, total_octets: 0 }
    }

    /// Goes on behind what somebody else read or kept.
    pub fn go_to(&mut self, seal: u64, value: Hash) {
        (self.seal, self.value) = (seal, value);
    }

    /// The chain behind a line, whose octets these are.
    #[must_use]
    pub fn next(value: Hash, body: &[u8]) -> Hash {
        Hash(Sha256::new().chain_update(value.0).chain_update(body).finalize().into())
    }

    /// Numbers, chains and, with a key, signs a seal; writes its line.
    pub fn append(&mut self, mut seal: Seal, key: Option<&SensorKey>, to: &mut Vec<u8>) -> Option<Head> {
        self.seal += 1;
        self.total_records += seal.records;
        self.total_octets += seal.octets;
        seal.seal = self.seal;
        if key.is_some() {
            (seal.total_records, seal.total_octets) = (Some(self.total_records), Some(self.total_octets));
        }
        let start = to.len();
        // Writing to memory cannot fail, and no field can.
        let _ = serde_json::to_writer(&mut *to, &seal);
        to.pop();
        self.value = Self::next(self.value, to.get(start..).unwrap_or_default());
        seal.chain = self.value;
        let head = key.and_then(|key| {
            seal.signature = Some(String::new());
            let mut head = seal.head(&self.log)?;
            head.signature = STANDARD.encode(key.sign(head.message().as_bytes()));
            Some(head)
        });
        seal.signature = head.as_ref().map(|head| head.signature.clone());
        let _ = writeln!(to, "{}", seal.tail());
        head
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = |at: usize| text.get(2 * at..2 * at + 2).filter(|two| two.bytes().all(|c| c.is_ascii_hexdigit()));
        let mut hash = [0; 32];
        for (at, octet) in hash.iter_mut().enumerate() {
            let value = digits(at).and_then(|two| u8::from_str_radix(two, 16).ok());
            *octet = value.ok_or_else(|| serde::de::Error::custom("no SHA-256 in hexadecimal digits"))?;
        }
        if text.len() == 64 { Ok(Self(hash)) } else { Err(serde::de::Error::custom("no SHA-256")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(octets: &[u8]) -> Seal {
        let mut batch = Batch::default();
        batch.add(octets, 1);
        Seal::new(Kind::Batch, 3, 100, batch, Timestamp::from_secs(1_700_000_000))
    }

    #[test]
    fn a_line_reads_back_and_every_octet_of_it_counts() {
        let key = SensorKey::generate().unwrap();
        let mut chain = Chain::new("linewarden");
        let genesis = chain.value;
        let mut line = Vec::new();
        let head = chain.append(seal(b"{}\n"), Some(&key), &mut line).unwrap();
        assert!(head.is_signed_by(&[key.public()]));
        assert!(!head.is_signed_by(&[SensorKey::generate().unwrap().public()]));
        assert_eq!(line.pop(), Some(b'\n'));
        let (read, body) = Seal::parse(&line).unwrap();
        assert_eq!((read.seal, read.octets, read.total_octets), (1, 3, Some(3)));
        assert_eq!(Chain::next(genesis, body), read.chain);
        assert_eq!(read.head("linewarden"), Some(head));
        // The log's name and each number are signed.
        assert!(!read.head("sensor").unwrap().is_signed_by(&[key.public()]));
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                let is_whole = Seal::parse(&changed).is_ok_and(|(seal, body)| {
                    Chain::next(genesis, body) == seal.chain
                        && seal.head("linewarden").is_some_and(|head| head.is_signed_by(&[key.public()]))
                });
                assert!(!is_whole, "octet {at}, bit {bit}: {}", String::from_utf8_lossy(&changed));
            }
        }
    }

    #[test]
    fn what_is_no_seal_is_refused() {
        let mut chain = Chain::new("x");
        let mut line = Vec::new();
        chain.append(seal(b"a\n"), None, &mut line);
        let text = String::from_utf8(line).unwrap();
        let text = text.trim_end();
        assert!(Seal::parse(text.as_bytes()).is_ok());
        let cases = [
            String::new(),
            "{}".into(),
            text.replace("\"octets\":2", "\"octets\":99999999999"),
            text.replace("\"offset\":100", "\"offset\":18446744073709551615"),
            text.replace("\"seal\":1,", "\"seal\":1,\"more\":1,"),
            text.replace(",\"chain\"", " ,\"chain\""),
            text.replace(",\"chain\":\"", ",\"chain\":\"0"),
            text.replace('}', ",\"signature\":null}"),
            text.replace('}', ",\"kind\":\"open\"}"),
            format!("{text} "),
        ];
        for case in cases {
            let parsed = Seal::parse(case.as_bytes());
            let is_refused = match &parsed {
                Ok((seal, body)) => Chain::next(Chain::new("x").value, body) != seal.chain,
                Err(_) => true,
            };
            assert!(is_refused, "{case}: {parsed:?}");
        }
    }
}
