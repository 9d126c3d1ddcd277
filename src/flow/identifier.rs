//! Turns a flow's key and first packet into the identifiers that its records bear, when somebody asks for them: a digest
//! costs more than everything else that a packet path does for a new flow.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha1::{Digest, Sha1};

use crate::flow::{FlowKey, Sender, community_digest};
use crate::time::Timestamp;

/// Sixteen hexadecimal digits, the same for all records of a flow, live and replayed: the first 64 bits of the SHA-1 of its
/// key and the time of its first packet.
#[derive(Clone, Copy, Debug)]
pub enum FlowId {
    /// Not yet made.
    Of(FlowKey, Timestamp),
    /// Its number.
    Number(u64),
}

impl FlowId {
    /// The number that the digits stand for.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Of(key, first) => {
                let mut hash = Sha1::new();
                hash.update(key.canonical());
                hash.update(first.as_nanos().to_be_bytes());
                let digest = <[u8; 20]>::from(hash.finalize());
                digest.first_chunk().map_or(0, |octets| u64::from_be_bytes(*octets))
            }
            Self::Number(number) => *number,
        }
    }
}

impl PartialEq for FlowId {
    fn eq(&self, other: &Self) -> bool {
        self.number() == other.number()
    }
}

impl Eq for FlowId {}

impl Hash for FlowId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number().hash(state);
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.number())
    }
}

impl FromStr for FlowId {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_id = text.len() == 16 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let number = is_id.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self::Number).ok_or(IdentifierError("a flow_id is 16 lower-case hexadecimal digits"))
    }
}

/// Community ID version 1, with seed 0.
#[derive(Clone, Copy, Debug)]
pub enum CommunityId {
    /// Not yet made: the key, and who sent the first packet.
    Of(FlowKey, Sender),
    /// Its digest.
    Digest([u8; 20]),
}

impl CommunityId {
    fn digest(&self) -> [u8; 20] {
        match self {
            Self::Of(key, first) => community_digest(key, *first, 0),
            Self::Digest(digest) => *digest,
        }
    }
}

impl PartialEq for CommunityId {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl Eq for CommunityId {}

impl fmt::Display for CommunityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 28];
        let len = STANDARD.encode_slice(self.digest(), &mut text).map_err(|_| fmt::Error)?;
        let text = text.get(..len).and_then(|text| str::from_utf8(text).ok()).ok_or(fmt::Error)?;
        f.write_str("1:")?;
        f.write_str(text)
    }
}

impl FromStr for CommunityId {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text.strip_prefix("1:").and_then(|text| STANDARD.decode(text).ok());
        let digest = digest.and_then(|digest| digest.try_into().ok());
        digest.map(Self::Digest).ok_or(IdentifierError("a Community ID is `1:` and 28 characters of base64"))
    }
}

/// A text that is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentifierError(&'static str);

impl Serialize for FlowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FlowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for CommunityId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CommunityId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::packet;

    #[test]
    fn texts_are_read_back() {
        let (key, sender) = FlowKey::of(&packet([198, 51, 100, 1], 40_000, [198, 51, 100, 2], 1194, 17), true);
        let (id, community) = (FlowId::Of(key, Timestamp::from_secs(7)), CommunityId::Of(key, sender));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(FlowId::Of(key, Timestamp::from_secs(8)), id);
        assert_eq!(community.to_string().parse(), Ok(community));
        for wrong in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "+123456789abcdef"] {
            assert!(wrong.parse::<FlowId>().is_err(), "{wrong}");
        }
        for wrong in ["", "1:", "2:LQU9qZlK+B5F3KDmev6m5PMibrg=", "1:LQU9qZlK", "1:LQU9qZlK+B5F3KDmev6m5PMibrg"] {
            assert!(wrong.parse::<CommunityId>().is_err(), "{wrong}");
        }
    }
}
