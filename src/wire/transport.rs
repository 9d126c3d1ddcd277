//! Turns an IP payload into ports and the payload behind the transport header: TCP (RFC 9293 3.1), UDP (RFC 768).
//!
//! | offset | octets | UDP | TCP |
//! |---|---|---|---|
//! | 0 | 2 | source port | source port |
//! | 2 | 2 | destination port | destination port |
//! | 4 | 2 | length | sequence number (4 octets) |
//! | 12 | 1 | | header length in words, upper four bits |
//! | 13 | 1 | | flags |

use super::cursor::{u16_at, u32_at};
use super::{FragmentPosition, Network, ParseError, TcpFlags, Transport};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const UDP_HEADER: usize = 8;
pub(super) const TCP_HEADER: usize = 20;

/// The transport and the length of its header.
#[inline]
pub(super) fn parse(network: &Network<'_>) -> Result<(Transport, usize), ParseError> {
    // A later fragment has no transport header: what stands there are octets from the middle.
    if network.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later) {
        return Ok((Transport::None, 0));
    }
    match network.protocol {
        UDP => {
            enough(network, UDP_HEADER)?;
            let (Some(src_port), Some(dst_port)) = (u16_at(network.payload, 0), u16_at(network.payload, 2)) else {
                return Err(ParseError::TruncatedTransport);
            };
            // RFC 2675 4: 0 in a jumbogram. Else the header itself counts.
            match u16_at(network.payload, 4) {
                Some(1..8) => Err(ParseError::BadTransport),
                _ => Ok((Transport::Udp { src_port, dst_port }, UDP_HEADER)),
            }
        }
        TCP => {
            enough(network, TCP_HEADER)?;
            let (Some(src_port), Some(dst_port), Some(seq), Some(&words), Some(&flags)) = (
                u16_at(network.payload, 0),
                u16_at(network.payload, 2),
                u32_at(network.payload, 4),
                network.payload.get(12),
                network.payload.get(13),
            ) else {
                return Err(ParseError::TruncatedTransport);
            };
            let header_len = usize::from(words >> 4) * 4;
            if header_len < TCP_HEADER || header_len as u32 > network.payload_len {
                return Err(ParseError::BadTransport);
            }
            Ok((Transport::Tcp { src_port, dst_port, seq, flags: TcpFlags(flags) }, header_len))
        }
        _ => Ok((Transport::None, 0)),
    }
}

/// A UDP datagram's payload: by its length field where that is shorter than the IP packet says. A first fragment's is
/// that of the whole datagram, of which octets are missing here.
#[inline]
pub(super) fn udp_payload<'a>(network: &Network<'a>) -> (&'a [u8], u32) {
    let whole = network.payload_len.saturating_sub(UDP_HEADER as u32);
    let len = match u16_at(network.payload, 4) {
        Some(length @ 8..) if network.fragment.is_some() => whole.max(u32::from(length) - UDP_HEADER as u32),
        Some(length @ 8..) => whole.min(u32::from(length) - UDP_HEADER as u32),
        _ => whole,
    };
    let captured = network.payload.get(UDP_HEADER..).unwrap_or_default();
    (captured.get(..len as usize).unwrap_or(captured), len)
}

fn enough(network: &Network<'_>, header: usize) -> Result<(), ParseError> {
    if (network.payload_len as usize) < header { Err(ParseError::BadTransport) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Addresses, Fragment};

    fn network(protocol: u8, payload: &[u8], payload_len: u32) -> Network<'_> {
        Network { addresses: Addresses::V4(&[0; 8]), protocol, fragment: None, payload, payload_len }
    }

    #[test]
    fn udp_cases() {
        let udp = Ok((Transport::Udp { src_port: 4500, dst_port: 53 }, 2, 2));
        #[rustfmt::skip]
        let cases: &[(&str, &[u8], u32, Result<(Transport, usize, u32), ParseError>)] = &[
            ("empty", &[], 0, Err(ParseError::BadTransport)),
            ("one octet short", &[0; 7], 7, Err(ParseError::BadTransport)),
            ("cut before the ports", &[0x11, 0x94, 0], 10, Err(ParseError::TruncatedTransport)),
            ("cut behind the ports", &[0x11, 0x94, 0, 53], 10, Ok((Transport::Udp { src_port: 4500, dst_port: 53 }, 0, 2))),
            ("whole", &[0x11, 0x94, 0, 53, 0, 10, 0, 0, 1, 2], 10, udp),
            ("trailer behind the datagram", &[0x11, 0x94, 0, 53, 0, 10, 0, 0, 1, 2, 3], 11, udp),
            ("length 0", &[0x11, 0x94, 0, 53, 0, 0, 0, 0, 1, 2], 10, udp),
            ("longer than this packet", &[0x11, 0x94, 0, 53, 0, 99, 0, 0, 1, 2], 10, udp),
            ("length 7", &[0x11, 0x94, 0, 53, 0, 7, 0, 0, 1, 2], 10, Err(ParseError::BadTransport)),
        ];
        for (name, payload, payload_len, expected) in cases {
            let network = network(UDP, payload, *payload_len);
            let found = parse(&network).map(|(transport, _)| {
                let (payload, len) = udp_payload(&network);
                (transport, payload.len(), len)
            });
            assert_eq!(found, *expected, "{name}");
        }
    }

    #[test]
    fn tcp_cases() {
        let mut header = [0; 24];
        header[..14].copy_from_slice(&[0, 80, 1, 187, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x12]);
        let flags = TcpFlags(TcpFlags::SYN | TcpFlags::ACK);
        let tcp = |len| Ok((Transport::Tcp { src_port: 80, dst_port: 443, seq: 9, flags }, len));
        assert_eq!(parse(&network(TCP, &header, 24)), tcp(20), "whole");
        assert_eq!(parse(&network(TCP, &header[..19], 19)), Err(ParseError::BadTransport), "one octet short");
        assert_eq!(parse(&network(TCP, &header[..13], 24)), Err(ParseError::TruncatedTransport), "cut");
        assert_eq!(parse(&network(TCP, &header[..14], 24)), tcp(20), "flags are the last that is needed");
        header[12] = 0x60;
        assert_eq!(parse(&network(TCP, &header, 24)), tcp(24), "options");
        header[12] = 0x70;
        assert_eq!(parse(&network(TCP, &header, 24)), Err(ParseError::BadTransport), "options behind the end");
        header[12] = 0x40;
        assert_eq!(parse(&network(TCP, &header, 24)), Err(ParseError::BadTransport), "header of four words");
    }

    #[test]
    fn a_first_fragment_knows_the_length_of_the_datagram() {
        let mut first = network(UDP, &[0x11, 0x94, 0, 53, 0, 99, 0, 0, 1, 2], 10);
        first.fragment = Some(Fragment { id: 1, position: FragmentPosition::First, offset: 0, len: 10 });
        assert_eq!(udp_payload(&first), (&[1, 2][..], 91));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut later = network(UDP, &[0x11, 0x94, 0, 53, 0, 10, 0, 0, 1, 2], 10);
        later.fragment = Some(Fragment { id: 1, position: FragmentPosition::Later, offset: 16, len: 10 });
        assert_eq!(parse(&later), Ok((Transport::None, 0)));
    }
}
