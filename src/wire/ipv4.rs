//! Turns octets into an IPv4 packet (RFC 791 3.1).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | version 4, header length in words |
//! | 2 | 2 | total length |
//! | 4 | 2 | identification |
//! | 6 | 2 | flags (bit 13: more fragments), fragment offset in 8 octets |
//! | 9 | 1 | protocol |
//! | 12 | 4 | source |
//! | 16 | 4 | destination |
//! | 20 | 0 to 40 | options |

use super::{Addresses, Fragment, FragmentPosition, Network, ParseError};

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Parses a packet of `len` octets on the wire, link padding included.
#[inline]
pub(super) fn parse(octets: &[u8], len: u32) -> Result<Network<'_>, ParseError> {
    let header: &[u8; 20] = octets.first_chunk().ok_or(ParseError::TruncatedIp)?;
    let &[version, _, total_a, total_b, id_a, id_b, fragment_a, fragment_b, _, protocol, _, _, ref addresses @ ..] =
        header;
    let header_len = u32::from(version & 0x0f) * 4;
    if header_len < 20 {
        return Err(ParseError::BadIpHeader);
    }
    let total_len = match u32::from(u16::from_be_bytes([total_a, total_b])) {
        // Segmentation offload: the NIC will fill it in, the frame knows (RFC 791 has no such packet on the wire).
        0 => len,
        total_len => total_len,
    };
    if total_len < header_len || total_len > len {
        return Err(ParseError::BadIpLength);
    }
    let captured = octets.get(..total_len as usize).unwrap_or(octets);
    let payload = captured.get(header_len as usize..).ok_or(ParseError::TruncatedIp)?;
    let flags = u16::from_be_bytes([fragment_a, fragment_b]);
    let position = match (flags & OFFSET, flags & MORE_FRAGMENTS) {
        (0, 0) => None,
        (0, _) => Some(FragmentPosition::First),
        _ => Some(FragmentPosition::Later),
    };
    let id = u32::from(u16::from_be_bytes([id_a, id_b]));
    Ok(Network {
        addresses: Addresses::V4(addresses),
        protocol,
        fragment: position.map(|position| Fragment {
            id,
            position,
            offset: (flags & OFFSET) << 3,
            len: u16::try_from(total_len - header_len).unwrap_or(u16::MAX),
        }),
        payload,
        payload_len: total_len - header_len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; 20] = [0x45, 0, 0, 24, 0x12, 0x34, 0, 0, 64, 50, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2];

    fn with(changes: &[(usize, u8)], extra: &[u8]) -> Vec<u8> {
        let mut octets = HEADER.to_vec();
        octets.extend(extra);
        for &(at, octet) in changes {
            octets[at] = octet;
        }
        octets
    }

    type Outline = (u8, usize, u32, Option<Fragment>);

    #[test]
    fn cases() {
        let first = Some(Fragment { id: 0x1234, position: FragmentPosition::First, offset: 0, len: 4 });
        let later = Some(Fragment { id: 0x1234, position: FragmentPosition::Later, offset: 8, len: 4 });
        let four = &[1, 2, 3, 4];
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<u8>, u32, Result<Outline, ParseError>)> = vec![
            ("empty", vec![], 0, Err(ParseError::TruncatedIp)),
            ("one octet short", HEADER[..19].to_vec(), 24, Err(ParseError::TruncatedIp)),
            ("header only captured", HEADER.to_vec(), 24, Ok((50, 0, 4, None))),
            ("whole", with(&[], four), 24, Ok((50, 4, 4, None))),
            ("padding", with(&[], &[1, 2, 3, 4, 0, 0]), 26, Ok((50, 4, 4, None))),
            ("cut", with(&[], &[1]), 24, Ok((50, 1, 4, None))),
            ("longer than the frame", with(&[], four), 23, Err(ParseError::BadIpLength)),
            ("shorter than its header", with(&[(3, 19)], four), 24, Err(ParseError::BadIpLength)),
            ("length 0: offload", with(&[(3, 0)], four), 70_000, Ok((50, 4, 69_980, None))),
            ("header length 4 words", with(&[(0, 0x44)], four), 24, Err(ParseError::BadIpHeader)),
            ("options", with(&[(0, 0x46)], four), 24, Ok((50, 0, 0, None))),
            ("options cut", with(&[(0, 0x47), (3, 40)], four), 40, Err(ParseError::TruncatedIp)),
            ("first fragment", with(&[(6, 0x20)], four), 24, Ok((50, 4, 4, first))),
            ("later fragment", with(&[(7, 1)], four), 24, Ok((50, 4, 4, later))),
            ("don't fragment", with(&[(6, 0x40)], four), 24, Ok((50, 4, 4, None))),
        ];
        for (name, octets, len, expected) in cases {
            let found = parse(&octets, len).map(|ip| (ip.protocol, ip.payload.len(), ip.payload_len, ip.fragment));
            assert_eq!(found, expected, "{name}");
        }
    }
}
