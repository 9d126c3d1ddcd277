//! Turns an MPLS label stack into its bottom label and what lies under it (RFC 3032 2.1).
//!
//! | bits | field |
//! |---|---|
//! | 20 | label |
//! | 3 | traffic class |
//! | 1 | bottom of stack |
//! | 8 | time to live |

use super::ParseError;
use super::cursor::u32_at;

/// What a stack carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inside {
    /// An IP header.
    Ip,
    /// An Ethernet frame behind this many octets of control word.
    Ethernet {
        /// 4 (RFC 4448 4.6).
        control_word: usize,
    },
}

/// A label stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    pub octets: usize,
    pub bottom_label: u32,
    pub inside: Inside,
}

const MAX_LABELS: usize = 8;
const BOTTOM: u32 = 1 << 8;

/// Reads a stack to its bottom.
pub(super) fn parse(octets: &[u8]) -> Result<Stack, ParseError> {
    for position in 0..MAX_LABELS {
        let entry = u32_at(octets, position * 4).ok_or(ParseError::TruncatedLink)?;
        if entry & BOTTOM == 0 {
            continue;
        }
        let len = (position + 1) * 4;
        // RFC 4928 2: nothing in the stack names its content; routers too look at the first four bits behind it.
        let inside = match octets.get(len).map(|first| first >> 4) {
            Some(4 | 6) => Inside::Ip,
            // RFC 4385 3: a pseudowire's control word begins with 0000.
            Some(0) => Inside::Ethernet { control_word: 4 },
            Some(_) => return Err(ParseError::NotIp),
            None => return Err(ParseError::TruncatedLink),
        };
        return Ok(Stack { octets: len, bottom_label: entry >> 12, inside });
    }
    Err(ParseError::TooManyHeaders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let ip = Ok(Stack { octets: 4, bottom_label: 16, inside: Inside::Ip });
        let cases: &[(&str, &[u8], Result<Stack, ParseError>)] = &[
            ("empty", &[], Err(ParseError::TruncatedLink)),
            ("one octet short", &[0, 1, 0x01], Err(ParseError::TruncatedLink)),
            ("nothing behind", &[0, 1, 0x01, 64], Err(ParseError::TruncatedLink)),
            ("ip", &[0, 1, 0x01, 64, 0x45], ip),
            ("neither IP nor control word", &[0, 1, 0x01, 64, 0x90], Err(ParseError::NotIp)),
            ("no bottom", &[0; 64], Err(ParseError::TooManyHeaders)),
        ];
        for (name, octets, expected) in cases {
            assert_eq!(parse(octets), *expected, "{name}");
        }
    }
}
