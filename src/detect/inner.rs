//! Turns the octets behind a tunnel header into a yes or no: is there a real IP packet of the right length inside?
//!
//! One packet is a probe or an accident, the same packet again says nothing more; others that check out, too, are none.

use super::text::number_of;
use super::{Confidence, Findings, Segment, SlotId};
use crate::wire::cursor::u16_at;

/// What stands behind a tunnel header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    /// An IP header whose version, lengths and (IPv4, where captured) checksum are right.
    Verified,
    /// Not that, or cut too short to tell.
    Unverified,
}

/// How sure inner packets make one: `inside` is one that checks out.
pub(super) fn confidence(findings: &mut Findings, segment: &Segment<'_>, inside: &[u8]) -> Confidence {
    let there = findings.slot(SlotId::Inner, segment.direction.opposite()).hits;
    let here = findings.slot(SlotId::Inner, segment.direction);
    let mark = fingerprint(inside);
    if here.hits == 0 || here.a != mark {
        here.a = mark;
        here.hits = here.hits.saturating_add(1);
    }
    match here.hits.saturating_add(there) {
        0 | 1 => Confidence::Possible,
        2 => Confidence::Likely,
        _ => Confidence::Certain,
    }
}

/// Tells packets apart by their headers and first octets of content.
pub(super) fn fingerprint(inside: &[u8]) -> u64 {
    number_of(inside.get(..128).unwrap_or(inside))
}

/// Length of a packet whose first fragment alone is here.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// Looks for an IPv4 packet of at most `len` octets (RFC 791 3.1). The checksum alone is chance once in 2^16; where the
/// sender's NIC is to fill it in it is zero, which is as rare.
pub(super) fn ipv4(octets: &[u8], len: u32) -> Inner {
    let (Some(&first), Some(total_len)) = (octets.first(), u16_at(octets, 2)) else { return Inner::Unverified };
    let header_len = usize::from(first & 0x0f) * 4;
    let right = first >> 4 == 4
        && header_len >= 20
        && usize::from(total_len) >= header_len
        && u32::from(total_len) <= len
        && octets.get(..header_len).is_some_and(|header| checksum(header) == 0 || u16_at(header, 10) == Some(0));
    if right { Inner::Verified } else { Inner::Unverified }
}

/// Looks for an IPv6 packet of exactly `len` octets (RFC 8200 3), which has no checksum: version, length and a known next
/// header are chance once in 2^23, of a first fragment once in 2^7.
pub(super) fn ipv6(octets: &[u8], len: u32) -> Inner {
    let (Some(&first), Some(payload_len), Some(next_header)) = (octets.first(), u16_at(octets, 4), octets.get(6))
    else {
        return Inner::Unverified;
    };
    // Hop-by-hop, IPv4, TCP, UDP, IPv6, routing, fragment, GRE, ESP, AH, ICMPv6, none, options, OSPF, PIM, L2TP, SCTP, mobility.
    let is_known =
        matches!(next_header, 0 | 4 | 6 | 17 | 41 | 43 | 44 | 47 | 50 | 51 | 58 | 59 | 60 | 89 | 103 | 115 | 132 | 135);
    // Multicast is never a source (RFC 4291 2.7).
    let right = first >> 4 == 6
        && is_known
        && (len == UNKNOWN || u32::from(payload_len) + 40 == len)
        && octets.get(8).is_some_and(|source| *source != 0xff);
    if right { Inner::Verified } else { Inner::Unverified }
}

/// Looks for an Ethernet frame that carries IP, ARP or a VLAN tag.
pub(super) fn ethernet(octets: &[u8], len: u32) -> Inner {
    let mut offset = 12;
    for _ in 0..3 {
        let inside = octets.get(offset + 2..).unwrap_or_default();
        let inside_len = len.saturating_sub(offset as u32 + 2);
        match u16_at(octets, offset) {
            Some(0x0800) => return ipv4(inside, inside_len),
            // A short frame may be padded: only the claim is checked.
            Some(0x86dd) => {
                let claimed = u16_at(inside, 4).map_or(u32::MAX, |length| u32::from(length) + 40);
                return if claimed <= inside_len { ipv6(inside, claimed) } else { Inner::Unverified };
            }
            // ARP for IPv4 over Ethernet (RFC 826).
            Some(0x0806) => {
                let arp = inside.starts_with(&[0, 1, 8, 0, 6, 4, 0]);
                return if arp { Inner::Verified } else { Inner::Unverified };
            }
            Some(0x8100 | 0x88a8) => offset += 4,
            _ => return Inner::Unverified,
        }
    }
    Inner::Unverified
}

/// RFC 1071: the ones' complement sum, 0 over a header with a right checksum.
pub(super) fn checksum(header: &[u8]) -> u16 {
    let sum: u32 =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes(pair.try_into().unwrap_or_default()))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An IPv4 header with a right checksum, for `payload` octets behind it.
    pub fn ipv4_packet(payload: usize) -> Vec<u8> {
        let mut octets = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2];
        octets[2..4].copy_from_slice(&(20 + payload as u16).to_be_bytes());
        let sum = checksum(&octets);
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
        octets.resize(20 + payload, 0xaa);
        octets
    }

    pub fn ipv6_packet(payload: usize) -> Vec<u8> {
        let mut octets = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        octets[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        octets.resize(40 + payload, 0x20);
        octets
    }

    #[test]
    fn cases() {
        let packet = ipv4_packet(8);
        let mut wrong = packet.clone();
        wrong[10] ^= 1;
        let ethernet_frame = [vec![2; 12], vec![8, 0], packet.clone()].concat();
        let tagged = [vec![2; 12], vec![0x81, 0, 0, 5, 8, 0], packet.clone()].concat();
        assert_eq!(ipv4(&packet, 28), Inner::Verified);
        assert_eq!(ipv4(&packet, 27), Inner::Unverified, "one octet short");
        assert_eq!(ipv4(&packet[..19], 28), Inner::Unverified, "cut");
        assert_eq!(ipv4(&wrong, 28), Inner::Unverified, "checksum");
        assert_eq!(ipv4(&[], 0), Inner::Unverified, "empty");
        assert_eq!(ipv6(&ipv6_packet(8), 48), Inner::Verified);
        assert_eq!(ipv6(&ipv6_packet(8), 49), Inner::Unverified, "one octet long");
        assert_eq!(ethernet(&ethernet_frame, 42), Inner::Verified);
        assert_eq!(ethernet(&tagged, 46), Inner::Verified);
        assert_eq!(ethernet(&ethernet_frame[..13], 42), Inner::Unverified);
    }
}
