//! Turns what stands behind an overlay's header into the bits of chance that it rules out, and adds them up over a flow.
//!
//! | inside | checked | bits |
//! |---|---|---|
//! | IPv4 (RFC 791 3.1) | version, checksum over the header (16), length that ends with the payload (12) | 32 |
//! | IPv4 cut inside its header | version and header length (8), length (12) | 20 |
//! | IPv6 (RFC 8200 3) | version (4), length (12), a next header in use, a hop limit, kinds of addresses (8) | 24 |
//! | Ethernet | its EtherType (12), then the above, or ARP's constants (RFC 826) | 12 + |
//! | PPP (RFC 1661 2) | address and control (16), protocol (12 or 4), then IP, or a control protocol's length (16) | 20 + |
//! | Ethernet to a group address of its own (LLDP, spanning tree, LACP) | that address and its type | 40 |
//!
//! Fields that are zero count for nothing: zero octets are common everywhere. 32 bits in one packet make a tunnel likely,
//! 64 over two or more make it certain: random octets do that once in 2^64 pairs of packets. The same packet again counts
//! for nothing, either.

use super::inner::{checksum, fingerprint};
use super::text::number_of;
use super::{Code, Confidence, Findings, Protocol, Segment, Slot, SlotId};
use crate::wire::cursor::{u16_at, u32_at};

/// Bits that the EtherType of a checked header adds: two octets, of which a handful of values are known.
pub(super) const ETHERTYPE: u32 = 12;
/// Bits in one packet that are likely no chance.
const LIKELY: u32 = 32;
/// Bits over several packets that are none.
const CERTAIN: u32 = 64;
/// Bits that the same identifier (of a network, tunnel, or pair of hosts) as in the packet before adds.
const REPEATED: u32 = 8;

/// What follows an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Nothing: it ends where the payload does.
    Exact,
    /// Perhaps a short frame's padding.
    Padded,
}

impl Fit {
    /// The bits that a claimed length rules out, `None` where it contradicts the payload's.
    fn bits(self, claimed: u32, len: u32) -> Option<u32> {
        if len > u32::from(u16::MAX) {
            // A first fragment, whose datagram's length nothing tells.
            Some(0)
        } else if claimed == len {
            Some(12)
        } else if self == Self::Padded && claimed < len && len <= 50 {
            // IEEE 802.3 3.2.8: data of less than 46 octets is padded, and the check sequence may be kept.
            Some(6)
        } else if claimed > len && len >= 256 && claimed <= 1600 {
            // The rest came in later fragments; text in UDP claims 0x2020 and more.
            Some(0)
        } else {
            None
        }
    }
}

/// An IPv4 or IPv6 packet, by its version.
pub(super) fn ip(octets: &[u8], len: u32, fit: Fit) -> Option<u32> {
    match octets.first()? >> 4 {
        4 => ipv4(octets, len, fit),
        6 => ipv6(octets, len, fit),
        _ => None,
    }
}

pub(super) fn ipv4(octets: &[u8], len: u32, fit: Fit) -> Option<u32> {
    let (first, total_len) = (*octets.first()?, u16_at(octets, 2)?);
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < 20 || usize::from(total_len) < header_len {
        return None;
    }
    let length = fit.bits(total_len.into(), len)?;
    match octets.get(..header_len) {
        Some(header) if checksum(header) == 0 && header.get(8) != Some(&0) => Some(20 + length),
        Some(_) => None,
        // Cut by the snap length: no options, a hop to live where that is captured.
        None => (first == 0x45 && length > 0 && octets.get(8) != Some(&0)).then_some(8 + length),
    }
}

pub(super) fn ipv6(octets: &[u8], len: u32, fit: Fit) -> Option<u32> {
    let (first, payload_len) = (*octets.first()?, u16_at(octets, 4)?);
    let (next_header, hop_limit, source) = (*octets.get(6)?, *octets.get(7)?, *octets.get(8)?);
    let destination = octets.get(24).copied();
    // What hosts and routers send: extension headers, TCP, UDP, ICMPv6 and the common tunnels.
    let in_use = matches!(next_header, 0 | 4 | 6 | 17 | 41 | 43 | 44 | 47 | 50 | 51 | 58 | 59 | 60 | 89 | 103 | 132);
    // RFC 4291 2.4: global unicast, local, link-local; the unspecified address, loopback and translated ones begin with 0.
    let is_unicast = |octet: u8| matches!(octet, 0x00 | 0x20..=0x3f | 0xfc..=0xfe);
    let addressed = is_unicast(source) && destination.is_none_or(|octet| is_unicast(octet) || octet == 0xff);
    if first >> 4 != 6 || !in_use || hop_limit == 0 || !addressed {
        return None;
    }
    Some(12 + fit.bits(u32::from(payload_len) + 40, len)?)
}

/// An Ethernet frame, its tags and labels looked through.
pub(super) fn ethernet(octets: &[u8], len: u32) -> Option<u32> {
    let mut offset: usize = 12;
    // Service and customer tag, with room for one more.
    for _ in 0..4 {
        let kind = u16_at(octets, offset)?;
        let inside = octets.get(offset + 2..)?;
        let inside_len = len.checked_sub(offset as u32 + 2)?;
        return match kind {
            0x0800 => Some(ETHERTYPE + ipv4(inside, inside_len, Fit::Padded)?),
            0x86dd => Some(ETHERTYPE + ipv6(inside, inside_len, Fit::Padded)?),
            // RFC 826: ARP for IPv4 over Ethernet.
            0x0806 => inside.starts_with(&[0, 1, 8, 0, 6, 4, 0]).then_some(ETHERTYPE + 28),
            0x8847 | 0x8848 => Some(ETHERTYPE + mpls(inside, inside_len, Fit::Padded)?),
            0x8100 | 0x88a8 => {
                offset += 4;
                continue;
            }
            _ => group(octets, kind),
        };
    }
    None
}

/// IEEE 802.1Q 8.6.3: addresses that only one protocol uses.
fn group(octets: &[u8], kind: u16) -> Option<u32> {
    let own = match octets.strip_prefix(&[0x01, 0x80, 0xc2, 0, 0])?.first()? {
        // Spanning tree is LLC: a length where others have a type.
        0x00 | 0x08 if kind <= 1500 => octets.get(14..17) == Some(&[0x42, 0x42, 0x03]),
        0x02 => kind == 0x8809,
        0x00 | 0x03 | 0x0e => matches!(kind, 0x88cc | 0x888e | 0x88f7),
        _ => false,
    };
    own.then_some(40)
}

/// A label stack (RFC 3032 2.1) of at most four labels with an IP packet under it, or an Ethernet frame with or without a
/// control word (RFC 4448 4.6).
pub(super) fn mpls(octets: &[u8], len: u32, fit: Fit) -> Option<u32> {
    for position in 0..4 {
        let entry = u32_at(octets, position * 4)?;
        // A hop to live of zero is never sent (RFC 3443 2).
        if entry.trailing_zeros() >= 8 {
            return None;
        }
        if entry & 0x100 == 0 {
            continue;
        }
        let behind = position * 4 + 4;
        let inside = octets.get(behind..)?;
        let inside_len = len.checked_sub(behind as u32)?;
        let word = || (inside.first()? >> 4 == 0).then(|| ethernet(inside.get(4..)?, inside_len.checked_sub(4)?))?;
        return ip(inside, inside_len, fit).or_else(word).or_else(|| ethernet(inside, inside_len));
    }
    None
}

/// A PPP frame (RFC 1661 2) with IP inside, or one of its control protocols with the length that it claims; with or without
/// HDLC's address and control octets (RFC 1662 3.1).
pub(super) fn ppp(octets: &[u8], len: u32) -> Option<u32> {
    let framed = octets.starts_with(&[0xff, 0x03]);
    let start: usize = if framed { 2 } else { 0 };
    let first = *octets.get(start)?;
    // RFC 1661 6.5: a protocol below 256 may be sent as one octet, which is odd.
    let (kind, behind) =
        if first & 1 == 1 { (u16::from(first), start + 1) } else { (u16_at(octets, start)?, start + 2) };
    let inside = octets.get(behind..)?;
    let inside_len = len.checked_sub(behind as u32)?;
    let header = if framed { 16 } else { 0 } + if behind - start == 2 { 12 } else { 4 };
    let content = match kind {
        0x0021 => ipv4(inside, inside_len, Fit::Padded)?,
        0x0057 => ipv6(inside, inside_len, Fit::Padded)?,
        // LCP, PAP, CHAP, EAP, IPCP, IPV6CP, CCP, MPLSCP, BCP, ECP, LQR has another form.
        0xc021 | 0xc023 | 0xc223 | 0xc227 | 0x8021 | 0x8057 | 0x80fd | 0x8281 | 0x8031 | 0x8053 => {
            let (&code, claimed) = (inside.first()?, u32::from(u16_at(inside, 2)?));
            // RFC 1661 5: codes count from 1, the length is that of the packet but for padding.
            ((1..=15).contains(&code) && claimed >= 4 && claimed <= inside_len && inside_len < claimed + 48)
                .then_some(if claimed == inside_len { 16 } else { 10 })?
        }
        _ => return None,
    };
    Some(header + content)
}

/// A number for the pair of addresses in an IP packet's header, as far as captured.
pub(super) fn hosts(octets: &[u8]) -> u64 {
    let range = if octets.first().is_some_and(|first| first >> 4 == 6) { 8..40 } else { 12..20 };
    number_of(octets.get(range.start..octets.len().min(range.end)).unwrap_or_default())
}

/// One packet's share of what speaks for an overlay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub protocol: Protocol,
    pub code: &'static Code,
    /// Bits of chance ruled out by this packet alone.
    pub bits: u32,
    /// Its network or tunnel, tunnel or pair of hosts; the same again adds to it.
    pub identity: u64,
    /// For the record.
    pub value: u64,
}

/// Adds a packet's share to the flow's evidence.
pub(super) fn add(share: &Share, segment: &Segment<'_>, findings: &mut Findings) {
    let kind = share.protocol as u64 + 1;
    let of_kind = |slot: Slot| if slot.b == kind { slot } else { Slot { b: kind, ..Slot::default() } };
    let there = of_kind(*findings.slot(SlotId::Overlay, segment.direction.opposite()));
    let mut here = of_kind(*findings.slot(SlotId::Overlay, segment.direction));
    let mark = fingerprint(segment.payload);
    if here.hits > 0 && here.content == mark {
        return;
    }
    let repeated = here.hits > 0 && here.a == share.identity;
    here.content = mark;
    here.a = share.identity;
    here.hits = here.hits.saturating_add(1);
    here.c = here.c.saturating_add(share.bits + if repeated { REPEATED } else { 0 });
    *findings.slot(SlotId::Overlay, segment.direction) = here;
    let bits = here.c.saturating_add(there.c);
    let confidence = match here.hits + there.hits {
        2.. if bits >= CERTAIN => Confidence::Certain,
        _ if bits >= LIKELY => Confidence::Likely,
        _ => Confidence::Possible,
    };
    findings.add(segment, share.protocol, share.code, confidence, share.value);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::tests_support::{best, udp};
    use crate::detect::{Detector, Segment};
    use crate::flow::Direction;

    /// Packets that differ in their last octet.
    pub fn series(packet: impl AsRef<[u8]>, count: u8) -> Vec<(Direction, Vec<u8>)> {
        (0..count)
            .map(|number| {
                let mut packet = packet.as_ref().to_vec();
                packet.iter_mut().last().into_iter().for_each(|octet| *octet ^= number);
                (Direction::Forward, packet)
            })
            .collect()
    }

    pub fn frame(kind: u16, inside: &[u8]) -> Vec<u8> {
        [&[2; 12][..], &kind.to_be_bytes(), inside].concat()
    }

    /// How many of `count` random datagrams, some of whose octets `force` sets, a detector takes for something.
    pub fn taken_by_chance(detector: &dyn Detector, count: u32, force: impl Fn(&mut [u8], u32)) -> usize {
        let mut state: u64 = 0x1234_5678_9abc_def0;
        let mut taken = 0;
        let mut octets = [0; 160];
        for number in 0..count {
            for word in octets.chunks_exact_mut(8) {
                // SplitMix64.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
            }
            let len = 20 + (number as usize * 7) % 140;
            force(&mut octets[..len], number);
            let segments: [Segment<'_>; 1] = [udp(Direction::Forward, &octets[..len])];
            taken += usize::from(best(detector, &segments).is_some());
        }
        taken
    }

    #[test]
    fn contents() {
        let four = ipv4_packet(8);
        let mut wrong = four.clone();
        wrong[10] ^= 1;
        let long = ipv4_packet(600);
        let six = ipv6_packet(8);
        let label = [0x03, 0xe8, 0x11, 64];
        let padded = [four.clone(), vec![0; 18]].concat();
        #[rustfmt::skip]
        let cases: &[(&str, Option<u32>, Option<u32>)] = &[
            ("empty", ip(&[], 0, Fit::Exact), None),
            ("IPv4", ip(&four, 28, Fit::Exact), Some(32)),
            ("one octet short", ip(&four[..27], 27, Fit::Exact), None),
            ("one octet long", ip(&four, 29, Fit::Exact), None),
            ("a wrong checksum", ip(&wrong, 28, Fit::Exact), None),
            ("cut inside the header", ip(&four[..12], 28, Fit::Exact), Some(20)),
            ("first fragment", ip(&long[..400], 400, Fit::Exact), Some(20)),
            ("IPv6", ip(&six, 48, Fit::Exact), Some(24)),
            ("IPv6, one octet long", ip(&six, 49, Fit::Exact), None),
            ("Ethernet", ethernet(&frame(0x0800, &four), 42), Some(44)),
            ("Ethernet, padded", ethernet(&frame(0x0800, &padded), 60), Some(38)),
            ("Ethernet, tagged", ethernet(&frame(0x8100, &[&[0, 5, 8, 0][..], &four].concat()), 46), Some(44)),
            ("ARP", ethernet(&frame(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]), 60), Some(40)),
            ("MPLS", mpls(&[&label[..], &four].concat(), 32, Fit::Exact), Some(32)),
            ("MPLS without a bottom", mpls(&[0, 0, 0, 64].repeat(9), 36, Fit::Exact), None),
            ("MPLS, Ethernet behind a control word", mpls(&[&label[..], &[0; 4], &frame(0x0800, &four)].concat(), 50, Fit::Exact), Some(44)),
            ("PPP", ppp(&[&[0xff, 3, 0, 0x21][..], &four].concat(), 32), Some(60)),
            ("PPP, short protocol", ppp(&[&[0x21][..], &four].concat(), 29), Some(36)),
            ("LCP", ppp(&[0xff, 3, 0xc0, 0x21, 1, 1, 0, 4], 8), Some(44)),
            ("LCP, wrong length", ppp(&[0xff, 3, 0xc0, 0x21, 1, 1, 0, 5], 8), None),
        ];
        for (name, found, expected) in cases {
            assert_eq!(found, expected, "{name}");
        }
    }
}
