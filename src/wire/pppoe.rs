//! Turns a PPPoE session header into the place of the IP packet behind it (RFC 2516 4, RFC 1661 2).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | version 1, type 1 |
//! | 1 | 1 | code: 0 in a session |
//! | 2 | 2 | session |
//! | 4 | 2 | length of what follows |
//! | 6 | 2 (1 if compressed) | PPP protocol: 0x0021 IPv4, 0x0057 IPv6 |

use super::ParseError;
use super::cursor::u16_at;

/// A session packet that carries IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Octets up to the IP header.
    pub octets: usize,
    /// Octets from there on, by the length field.
    pub payload_len: u32,
}

/// Reads the header; other PPP protocols are not IP.
pub(super) fn parse(octets: &[u8]) -> Result<Session, ParseError> {
    let (Some(&version), Some(&code)) = (octets.first(), octets.get(1)) else { return Err(ParseError::TruncatedLink) };
    if version != 0x11 || code != 0 {
        return Err(ParseError::NotIp);
    }
    let length = u16_at(octets, 4).ok_or(ParseError::TruncatedLink)?;
    let header = match octets.get(6) {
        None => return Err(ParseError::TruncatedLink),
        // RFC 1661 6.5: with protocol field compression an odd first octet is the whole field.
        Some(0x21 | 0x57) => 1,
        Some(_) => match u16_at(octets, 6) {
            None => return Err(ParseError::TruncatedLink),
            Some(0x0021 | 0x0057) => 2,
            Some(_) => return Err(ParseError::NotIp),
        },
    };
    Ok(Session { octets: 6 + header, payload_len: u32::from(length).saturating_sub(header as u32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let cases: &[(&str, &[u8], Result<Session, ParseError>)] = &[
            ("empty", &[], Err(ParseError::TruncatedLink)),
            ("one octet short", &[0x11, 0, 0, 1, 0, 22, 0], Err(ParseError::TruncatedLink)),
            ("IPv4", &[0x11, 0, 0, 1, 0, 22, 0, 0x21], Ok(Session { octets: 8, payload_len: 20 })),
            ("IPv6, compressed", &[0x11, 0, 0, 1, 0, 41, 0x57], Ok(Session { octets: 7, payload_len: 40 })),
            ("discovery", &[0x11, 9, 0, 0, 0, 22, 0, 0x21], Err(ParseError::NotIp)),
            ("another version", &[0x21, 0, 0, 1, 0, 22, 0, 0x21], Err(ParseError::NotIp)),
        ];
        for (name, octets, expected) in cases {
            assert_eq!(parse(octets), *expected, "{name}");
        }
    }
}
