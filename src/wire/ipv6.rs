//! Turns octets into an IPv6 packet behind its extension headers (RFC 8200 3 and 4).
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 4 | version 6, traffic class, flow label |
//! | 4 | 2 | payload length |
//! | 6 | 1 | next header |
//! | 8 | 16 | source |
//! | 24 | 16 | destination |
//!
//! Most extension headers: next header, length in 8 octets without the first 8, content. AH is left as it is: it is a
//! tunnel protocol of its own.

use super::cursor::{u16_at, u32_at};
use super::{Addresses, Fragment, FragmentPosition, Network, ParseError};

const HEADER: usize = 40;
const MAX_EXTENSIONS: usize = 16;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// Parses a packet of `len` octets on the wire, link padding included.
#[inline]
pub(super) fn parse(octets: &[u8], len: u32) -> Result<Network<'_>, ParseError> {
    let header: &[u8; HEADER] = octets.first_chunk().ok_or(ParseError::TruncatedIp)?;
    let [_, _, _, _, length_a, length_b, next_header, _, addresses @ ..] = header;
    let payload_len = match u32::from(u16::from_be_bytes([*length_a, *length_b])) {
        // RFC 2675 3, and segmentation offload: the frame knows.
        0 => len.saturating_sub(HEADER as u32),
        payload_len => payload_len,
    };
    if payload_len.saturating_add(HEADER as u32) > len {
        return Err(ParseError::BadIpLength);
    }
    let captured = octets.get(HEADER..).unwrap_or_default();
    let mut network = Network {
        addresses: Addresses::V6(addresses),
        protocol: *next_header,
        fragment: None,
        payload: captured.get(..payload_len as usize).unwrap_or(captured),
        payload_len,
    };
    for _ in 0..MAX_EXTENSIONS {
        let extension = match network.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                let &[_, length, ..] = network.payload else { return Err(truncated(&network)) };
                8 + usize::from(length) * 8
            }
            FRAGMENT => {
                network.fragment = fragment(&network)?;
                8
            }
            _ => return Ok(network),
        };
        if extension as u32 > network.payload_len {
            return Err(ParseError::BadIpLength);
        }
        let Some(&next) = network.payload.first() else { return Err(truncated(&network)) };
        network.payload = network.payload.get(extension..).ok_or(ParseError::TruncatedIp)?;
        network.payload_len -= extension as u32;
        network.protocol = next;
        if network.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later) {
            // Octets behind the header are from the middle of the datagram: no further header is there.
            return Ok(network);
        }
    }
    Err(ParseError::TooManyHeaders)
}

/// RFC 8200 4.5: next header, reserved, offset in 8 octets (13 bits), reserved, more fragments, identification.
fn fragment(network: &Network<'_>) -> Result<Option<Fragment>, ParseError> {
    let (Some(offset), Some(id)) = (u16_at(network.payload, 2), u32_at(network.payload, 4)) else {
        return Err(truncated(network));
    };
    let position = match (offset >> 3, offset & 1) {
        // RFC 6946: an atomic fragment is a whole datagram.
        (0, 0) => return Ok(None),
        (0, _) => FragmentPosition::First,
        _ => FragmentPosition::Later,
    };
    let len = u16::try_from(network.payload_len.saturating_sub(8)).unwrap_or(u16::MAX);
    Ok(Some(Fragment { id, position, offset: offset & 0xfff8, len }))
}

/// Whether the snap length or the sender cut an extension header.
const fn truncated(network: &Network<'_>) -> ParseError {
    if (network.payload.len() as u64) < network.payload_len as u64 {
        ParseError::TruncatedIp
    } else {
        ParseError::BadIpLength
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next_header, 64];
        octets.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        octets.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        octets.extend(payload);
        octets
    }

    type Outline = (u8, usize, u32, Option<Fragment>);

    #[test]
    fn cases() {
        let first = Some(Fragment { id: 7, position: FragmentPosition::First, offset: 0, len: 1 });
        let later = Some(Fragment { id: 7, position: FragmentPosition::Later, offset: 8, len: 1 });
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<u8>, Result<Outline, ParseError>)> = vec![
            ("empty", vec![], Err(ParseError::TruncatedIp)),
            ("one octet short", packet(17, &[])[..39].to_vec(), Err(ParseError::TruncatedIp)),
            ("no payload", packet(59, &[]), Ok((59, 0, 0, None))),
            ("udp", packet(17, &[1; 8]), Ok((17, 8, 8, None))),
            ("destination options", packet(60, &[17, 0, 0, 0, 0, 0, 0, 0, 9]), Ok((17, 1, 1, None))),
            ("options longer than the packet", packet(60, &[17, 1, 0, 0, 0, 0, 0, 0, 9]), Err(ParseError::BadIpLength)),
            ("options of one octet", packet(60, &[17]), Err(ParseError::BadIpLength)),
            ("AH stays", packet(51, &[17, 4, 0, 0]), Ok((51, 4, 4, None))),
            ("atomic fragment", packet(44, &[17, 0, 0, 0, 0, 0, 0, 7, 9]), Ok((17, 1, 1, None))),
            ("first fragment", packet(44, &[17, 0, 0, 1, 0, 0, 0, 7, 9]), Ok((17, 1, 1, first))),
            ("later fragment", packet(44, &[60, 0, 0, 8, 0, 0, 0, 7, 9]), Ok((60, 1, 1, later))),
            ("fragment header cut by its sender", packet(44, &[17, 0, 0]), Err(ParseError::BadIpLength)),
            ("17 headers", packet(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(17)), Err(ParseError::TooManyHeaders)),
        ];
        for (name, octets, expected) in cases {
            let found = parse(&octets, octets.len() as u32);
            let found = found.map(|ip| (ip.protocol, ip.payload.len(), ip.payload_len, ip.fragment));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_the_snap_length_cut_is_truncated() {
        let octets = packet(60, &[17, 0, 0, 0, 0, 0, 0, 0, 9]);
        let found = parse(&octets[..44], octets.len() as u32).map(|ip| ip.protocol);
        assert_eq!(found, Err(ParseError::TruncatedIp));
        let long = parse(&octets, octets.len() as u32 - 1).map(|ip| ip.protocol);
        assert_eq!(long, Err(ParseError::BadIpLength));
    }
}
