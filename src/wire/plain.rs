//! Turns the frames that nearly all traffic is made of into a [`ParsedPacket`] in a fraction of the steps: Ethernet, then
//! IPv4 without options or IPv6 without extension headers, whole, then UDP or TCP. Anything else is `None`; what is found
//! is what each layer's parser finds, which a test holds it to.
//!
//! | IPv4 (RFC 791 3.1) | IPv6 (RFC 8200 3) | octets | field |
//! |---|---|---|---|
//! | 12 | 12 | 2 | type: 0x0800, 0x86dd |
//! | 14 | 14 | 1 | version and header length: 0x45; version 6 in the upper half |
//! | 16 | 18 | 2 | total length; payload length |
//! | 20 | | 2 | more fragments and offset, 0 |
//! | 23 | 20 | 1 | protocol; next header |
//! | 26 | 22 | 8, 32 | source and destination |
//! | 34 | 54 | 20 | UDP (RFC 768) and what follows, or TCP (RFC 9293 3.1) |

use super::cursor::{u16_at, u32_at};
use super::link::ethertype;
use super::transport::{TCP, TCP_HEADER, UDP, UDP_HEADER};
use super::{Addresses, Frame, LinkType, ParsedPacket, TcpFlags, Transport};

const ETHERNET: usize = 14;
const BEHIND_IPV4: usize = ETHERNET + 20;
const BEHIND_IPV6: usize = ETHERNET + 40;

const MORE_FRAGMENTS_AND_OFFSET: u16 = 0x3fff;

/// Parses one frame, of which `octets` are to be looked at.
#[inline(always)]
#[expect(clippy::inline_always, reason = "what is parsed stays in registers until the flow's key is made of it")]
pub(super) fn parse<'a>(frame: &Frame<'a>, octets: &'a [u8]) -> Option<ParsedPacket<'a>> {
    let head: &[u8; BEHIND_IPV4 + TCP_HEADER] = octets.first_chunk()?;
    let (vlan, tag_octets) = frame.stripped_vlan.map_or((0, 0), |tag| (tag.tci & 0x0fff, 4));
    let len = frame.wire_len.saturating_sub(tag_octets).max(octets.len() as u32) - ETHERNET as u32;
    let (addresses, protocol, network_len, network) = match (frame.link, u16_at(head, 12)?) {
        (LinkType::Ethernet, ethertype::IPV4) => {
            let total = u32::from(u16_at(head, 16)?);
            if head[14] != 0x45 || u16_at(head, 20)? & MORE_FRAGMENTS_AND_OFFSET != 0 || total > len {
                return None;
            }
            let addresses = Addresses::V4(head.get(26..)?.first_chunk()?);
            (addresses, head[23], total.checked_sub(20)?, octets.get(BEHIND_IPV4..)?)
        }
        (LinkType::Ethernet, ethertype::IPV6) => {
            let head: &[u8; BEHIND_IPV6 + TCP_HEADER] = octets.first_chunk()?;
            let payload = u32::from(u16_at(head, 18)?);
            // RFC 2675 3: 0 is a jumbogram.
            if head[14] >> 4 != 6 || payload == 0 || payload + 40 > len {
                return None;
            }
            let addresses = Addresses::V6(head.get(22..)?.first_chunk()?);
            (addresses, head[20], payload, octets.get(BEHIND_IPV6..)?)
        }
        _ => return None,
    };
    let head: &[u8; TCP_HEADER] = network.first_chunk()?;
    let network = network.get(..network_len as usize).unwrap_or(network);
    let [src_port, dst_port] = [u16_at(head, 0)?, u16_at(head, 2)?];
    let (transport, payload, payload_len) = match protocol {
        UDP => {
            // 0, which a jumbogram has, and less than a header are left to others.
            let len = u32::from(u16_at(head, 4)?).min(network_len).checked_sub(UDP_HEADER as u32)?;
            let payload = network.get(UDP_HEADER..)?;
            (Transport::Udp { src_port, dst_port }, payload.get(..len as usize).unwrap_or(payload), len)
        }
        TCP => {
            let header_len = usize::from(head[12] >> 4) * 4;
            let payload_len = network_len.checked_sub(header_len as u32)?;
            if header_len < TCP_HEADER {
                return None;
            }
            let transport = Transport::Tcp { src_port, dst_port, seq: u32_at(head, 4)?, flags: TcpFlags(head[13]) };
            (transport, network.get(header_len..).unwrap_or_default(), payload_len)
        }
        _ => return None,
    };
    Some(ParsedPacket {
        at: frame.at,
        number: frame.number,
        wire_len: frame.wire_len,
        interface: frame.interface,
        vlan: [vlan, 0],
        mpls_label: None,
        inside: 0,
        addresses,
        protocol,
        fragment: None,
        transport,
        payload,
        payload_len,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{InterfaceId, VlanTag, parse_layers, parse_plain};
    use super::*;
    use crate::time::Timestamp;

    /// Ethernet and the type.
    fn ethernet(ethertype: u16, rest: &[&[u8]]) -> Vec<u8> {
        [&[2; 12], &ethertype.to_be_bytes()[..], &rest.concat()].concat()
    }

    const UDP_4: [u8; 20] = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 17, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2];
    const TCP_4: [u8; 20] = [0x45, 0, 0, 48, 0, 1, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2];
    const UDP: [u8; 8] = [0x11, 0x94, 0, 53, 0, 20, 0, 0];
    const TCP: [u8; 24] = [0x11, 0x94, 0, 53, 1, 2, 3, 4, 5, 6, 7, 8, 0x60, 0x18, 1, 0, 0, 0, 0, 0, 2, 4, 5, 0xb4];
    const PAYLOAD: [u8; 12] = [9; 12];

    fn ipv6(payload_len: u16, next_header: u8) -> Vec<u8> {
        [&[0x60, 0, 0, 0], &payload_len.to_be_bytes()[..], &[next_header, 64], &[0x20; 16], &[0x21; 16]].concat()
    }

    fn frames() -> Vec<(&'static str, Vec<u8>)> {
        let padding = [0; 12];
        vec![
            ("IPv4 UDP", ethernet(0x0800, &[&UDP_4, &UDP, &PAYLOAD])),
            ("IPv4 UDP, padded", ethernet(0x0800, &[&UDP_4, &UDP, &PAYLOAD, &padding])),
            ("IPv4 TCP", ethernet(0x0800, &[&TCP_4, &TCP, &PAYLOAD[..4]])),
            ("IPv4 TCP, padded", ethernet(0x0800, &[&TCP_4, &TCP, &PAYLOAD[..4], &padding])),
            ("IPv6 UDP", ethernet(0x86dd, &[&ipv6(20, 17), &UDP, &PAYLOAD])),
            ("IPv6 TCP", ethernet(0x86dd, &[&ipv6(28, 6), &TCP, &PAYLOAD[..4]])),
        ]
    }

    /// Whether it was parsed in a few steps; what is found then is what layer by layer would be.
    fn check(name: &str, data: &[u8], wire_len: u32, stripped_vlan: Option<VlanTag>) -> bool {
        let (at, interface) = (Timestamp::from_secs(7), InterfaceId(3));
        let frame = Frame { at, number: 5, wire_len, interface, link: LinkType::Ethernet, stripped_vlan, data };
        let found = parse_plain(&frame, usize::MAX);
        if let Some(found) = &found {
            let layers = parse_layers(&frame, usize::MAX);
            assert_eq!(format!("{:?}", Ok::<_, ()>(found)), format!("{layers:?}"), "{name}: {data:02x?}");
        }
        found.is_some()
    }

    #[test]
    fn finds_what_each_layer_finds() {
        let tag = Some(VlanTag { tpid: 0x8100, tci: 0x2064 });
        for (name, frame) in frames() {
            let len = frame.len() as u32;
            assert!(check(name, &frame, len, None), "{name} is to be found");
            for wire_len in [len, len + 4, len + 1000, len - 1] {
                for stripped in [None, tag] {
                    for cut in 0..=frame.len() {
                        check(name, &frame[..cut], wire_len, stripped);
                    }
                    for (at, octet) in (0..frame.len()).flat_map(|at| (0..=255).map(move |octet| (at, octet))) {
                        let mut changed = frame.clone();
                        changed[at] = octet;
                        check(name, &changed, wire_len, stripped);
                    }
                }
            }
        }
    }

    #[test]
    fn leaves_what_takes_more_steps() {
        let options = [&[0x46, 0, 0, 44], &UDP_4[4..], &[1; 4]].concat();
        let cases = [
            ("empty", vec![]),
            ("one octet short of a TCP header", frames()[2].1[..53].to_vec()),
            ("ARP", ethernet(0x0806, &[&[0; 60]])),
            ("802.1Q", ethernet(0x8100, &[&[0, 5, 8, 0], &UDP_4, &UDP, &PAYLOAD])),
            ("options", ethernet(0x0800, &[&options, &UDP, &PAYLOAD])),
            ("first fragment", ethernet(0x0800, &[&UDP_4[..6], &[0x20], &UDP_4[7..], &UDP, &PAYLOAD])),
            ("later fragment", ethernet(0x0800, &[&UDP_4[..7], &[1], &UDP_4[8..], &UDP, &PAYLOAD])),
            ("ESP", ethernet(0x0800, &[&UDP_4[..9], &[50], &UDP_4[10..], &UDP, &PAYLOAD])),
            ("hop-by-hop options", ethernet(0x86dd, &[&ipv6(28, 0), &[17, 0, 1, 4, 0, 0, 0, 0], &UDP, &PAYLOAD])),
            ("jumbogram", ethernet(0x86dd, &[&ipv6(0, 17), &UDP, &PAYLOAD])),
        ];
        for (name, frame) in cases {
            assert!(!check(name, &frame, frame.len() as u32, None), "{name}");
        }
    }
}
