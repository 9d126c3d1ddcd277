//! Turns payloads of IP protocols 50 and 51 and of UDP into evidence of IPsec: ESP (RFC 4303 2), AH (RFC 4302 2),
//! ESP in UDP (RFC 3948 2).
//!
//! | offset | octets | ESP | AH |
//! |---|---|---|---|
//! | 0 | 4 | SPI, 256 and up | next header, length in words less 2, reserved (zero) |
//! | 4 | 4 | sequence number, from 1 | SPI |
//! | 8 | 4 | encrypted, a multiple of 4 octets | sequence number |
//!
//! What is constant and counting is checked over several packets: the same SPI (2^-32 a packet by chance) with a sequence
//! number that moves on by little (2^-28). In UDP that is also the habit of other protocols (an identifier and a counter),
//! so there it must come with an IKE exchange in the same flow; or with lengths that are all multiples of 4, ciphertext
//! that does not repeat itself and SPIs as random as RFC 4303 2.1 wants them, on ports 4500 and 4501 (GlobalProtect's) from
//! one side, elsewhere from both with different SPIs. A header that is OpenVPN's more probably is left to OpenVPN.

use super::ike::is_marked;
use super::openvpn::is_data_header;
use super::sequence::{Content, Step};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, Slot, SlotId,
};
use crate::flow::Direction;
use crate::wire::cursor::u32_at;

/// ESP, IP protocol 50.
#[derive(Debug)]
pub struct Esp;

/// ESP in UDP on any port.
#[derive(Debug)]
pub struct EspInUdp;

/// AH, IP protocol 51.
#[derive(Debug)]
pub struct Ah;

static ESP_FIRST: Code = Code {
    name: "esp.first_packet",
    meaning: "the first packet of a security association: sequence number 1; value: SPI",
    clause: "RFC 4303 2.2",
    phase: Phase::Handshake,
};

static ESP_HEADER: Code = Code {
    name: "esp.header",
    meaning: "a header with an SPI that is not reserved, a sequence number and a length of whole words; value: SPI",
    clause: "RFC 4303 2.1, 2.4",
    phase: Phase::Data,
};

static ESP_SEQUENCE: Code = Code {
    name: "esp.sequence",
    meaning: "packets of one SPI whose sequence numbers count; value: SPI",
    clause: "RFC 4303 2.2",
    phase: Phase::Data,
};

static UDP_SEQUENCE: Code = Code {
    name: "esp.udp_sequence",
    meaning: "UDP datagrams that begin with one SPI and a counting sequence number; value: SPI",
    clause: "RFC 3948 2.1",
    phase: Phase::Data,
};

static UDP_BEHIND_IKE: Code = Code {
    name: "esp.udp_behind_ike",
    meaning: "ESP in UDP between the ports of an IKE exchange; value: SPI",
    clause: "RFC 3948 3.4, RFC 7296 2.23",
    phase: Phase::Data,
};

static KEEPALIVE: Code = Code {
    name: "esp.nat_keepalive",
    meaning: "a NAT keepalive of one octet, 0xff, among IKE or ESP",
    clause: "RFC 3948 2.3",
    phase: Phase::Data,
};

static AH_FIRST: Code = Code {
    name: "ah.first_packet",
    meaning: "the first packet of a security association: sequence number 1; value: SPI",
    clause: "RFC 4302 2.5",
    phase: Phase::Handshake,
};

static AH_HEADER: Code = Code {
    name: "ah.header",
    meaning: "a header with a known next header, a length that fits and zero where reserved; value: SPI",
    clause: "RFC 4302 2",
    phase: Phase::Data,
};

static AH_SEQUENCE: Code = Code {
    name: "ah.sequence",
    meaning: "packets of one SPI whose sequence numbers count; value: SPI",
    clause: "RFC 4302 2.5",
    phase: Phase::Data,
};

static ESP_ABOUT: About = About {
    name: "esp",
    protocols: &[Protocol::Esp],
    carriers: &[CarrierKind::Ip(50)],
    begins: &[Begin::Any],
    recognises: "SPI and counting sequence numbers",
    specification: "RFC 4303",
    chance: "the same SPI: 2^-32 a packet; a number that counts: 2^-28",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "what is inside, and whether it is transport or tunnel mode",
    codes: &[&ESP_FIRST, &ESP_HEADER, &ESP_SEQUENCE],
};

static UDP_ABOUT: About = About {
    name: "esp-udp",
    protocols: &[Protocol::Esp],
    carriers: &[CarrierKind::Udp],
    begins: &[Begin::Any],
    recognises: "ESP beside IKE on any port; alone by SPI and sequence, on ports 4500 and 4501 (GlobalProtect) from one side, elsewhere from both",
    specification: "RFC 3948",
    chance: "the same SPI and a number that counts: 2^-60 a packet, several in a row",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "without IKE: ESP without encryption (RFC 2410), SPIs that are not random or begin with 0x4800 to 0x4f00; off these ports one direction alone, or all packets of one length, stay possible",
    codes: &[&UDP_BEHIND_IKE, &UDP_SEQUENCE, &KEEPALIVE],
};

static AH_ABOUT: About = About {
    name: "ah",
    protocols: &[Protocol::Ah],
    carriers: &[CarrierKind::Ip(51)],
    begins: &[Begin::Any],
    recognises: "header that fits, SPI and counting sequence numbers",
    specification: "RFC 4302",
    chance: "the same SPI and a number that counts: 2^-60 a packet, and the header",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "whether it is transport or tunnel mode where the next header is cut",
    codes: &[&AH_FIRST, &AH_HEADER, &AH_SEQUENCE],
};

/// RFC 4303 2.1: 0 to 255 are reserved.
const LOWEST_SPI: u32 = 256;
/// SPI, sequence number, and at least an integrity check value (96 bits) or padded trailer.
const SHORTEST: u32 = 16;

impl Detector for Esp {
    fn about(&self) -> &'static About {
        &ESP_ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if !matches!(segment.carrier, Carrier::Ip { protocol: 50, .. }) {
            return;
        }
        let (Some(spi), Some(sequence)) = (u32_at(segment.payload, 0), u32_at(segment.payload, 4)) else { return };
        // RFC 4303 2.4: padding ends the packet on a word.
        if spi < LOWEST_SPI || segment.payload_len < SHORTEST || !segment.payload_len.is_multiple_of(4) {
            return;
        }
        let codes = [&ESP_FIRST, &ESP_HEADER, &ESP_SEQUENCE];
        association(Protocol::Esp, codes, spi, sequence, segment, findings);
    }
}

impl Detector for Ah {
    fn about(&self) -> &'static About {
        &AH_ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if !matches!(segment.carrier, Carrier::Ip { protocol: 51, .. }) {
            return;
        }
        let &[next_header, words, 0, 0, ..] = segment.payload else { return };
        let (Some(spi), Some(sequence)) = (u32_at(segment.payload, 4), u32_at(segment.payload, 8)) else { return };
        // RFC 4302 2.2: length in words less 2, the 12 fixed octets and an integrity check value inside.
        let len = (u32::from(words) + 2) * 4;
        // IP in IP, TCP, UDP, ICMP, GRE, ESP, OSPF, L2TP, SCTP and the like.
        let known = matches!(
            next_header,
            1 | 2 | 4 | 6 | 17 | 41 | 43 | 44 | 47 | 50 | 58 | 59 | 60 | 89 | 103 | 112 | 115 | 132
        );
        if !known || spi < LOWEST_SPI || !(16..=80).contains(&len) || len > segment.payload_len {
            return;
        }
        association(Protocol::Ah, [&AH_FIRST, &AH_HEADER, &AH_SEQUENCE], spi, sequence, segment, findings);
    }
}

/// One packet of an association under an IP protocol of its own.
fn association(
    protocol: Protocol,
    [first, header, counting]: [&'static Code; 3],
    spi: u32,
    sequence: u32,
    segment: &Segment<'_>,
    findings: &mut Findings,
) {
    if let Some(own) = findings.spi.get_mut(segment.direction as usize) {
        *own = Some(spi);
    }
    let opposite_hits = hits(findings, segment.direction.opposite());
    // RFC 2410 and AH: what follows may be in clear.
    let (step, hits) = count(findings, segment, spi, sequence, Content::Open);
    if matches!(step, Step::Repeated | Step::Tolerated) {
        return;
    }
    let confidence = match (hits, opposite_hits) {
        (2.., 2..) => Confidence::Certain,
        (3.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    let code = match step {
        Step::Started if sequence == 1 => first,
        Step::Started => header,
        _ => counting,
    };
    findings.add(segment, protocol, code, confidence, spi.into());
}

/// Counts a packet in the slot of its SPI; two associations may be in use in turn.
fn count(findings: &mut Findings, segment: &Segment<'_>, spi: u32, sequence: u32, content: Content<'_>) -> (Step, u32) {
    let other = *findings.slot(SlotId::IpsecOther, segment.direction);
    let own = *findings.slot(SlotId::Ipsec, segment.direction);
    let is_other = other.hits > 0 && other.a == u64::from(spi);
    let is_own = own.hits == 0 || own.a == u64::from(spi);
    // A new SPI takes the slot with less behind it; an old one is kept in its place.
    let id = if is_other || (!is_own && other.hits < own.hits) { SlotId::IpsecOther } else { SlotId::Ipsec };
    let slot = findings.slot(id, segment.direction);
    let step = slot.step(spi.into(), sequence.into(), content);
    (step, slot.hits)
}

fn hits(findings: &mut Findings, direction: Direction) -> u32 {
    findings.slot(SlotId::Ipsec, direction).hits.max(findings.slot(SlotId::IpsecOther, direction).hits)
}

/// RFC 3948 2.1: the port that NAT traversal uses unless told otherwise; and GlobalProtect's, whose gateways speak ESP there
/// after a set-up inside TLS (PAN-OS administrator's guide, Ports used for GlobalProtect).
const NAT_T_PORTS: [u16; 2] = [4500, 4501];

/// Consistent packets before such a port makes one direction likely, and both certain.
const NAT_T_HITS: u32 = 5;
/// The same on any other port, asked of both directions.
const ANY_PORT_HITS: u32 = 8;
/// SPI, sequence number and an initialisation vector of 8 octets, which may count: ciphertext follows.
const CIPHERTEXT: usize = 16;

impl Detector for EspInUdp {
    fn about(&self) -> &'static About {
        &UDP_ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if segment.carrier != Carrier::Udp {
            return;
        }
        let (Some(spi), Some(sequence)) = (u32_at(segment.payload, 0), u32_at(segment.payload, 4)) else {
            if segment.payload == [0xff] && segment.payload_len == 1 && is_ipsec(findings) {
                findings.add(segment, Protocol::Esp, &KEEPALIVE, Confidence::Possible, 0);
            }
            return;
        };
        if spi < LOWEST_SPI {
            // RFC 3948 2.2: zero marks IKE, which shares the ports.
            return;
        }
        if segment.payload_len < SHORTEST || !segment.payload_len.is_multiple_of(4) {
            // A datagram of another shape breaks the series: ESP never has one.
            *findings.slot(SlotId::Ipsec, segment.direction) = Slot::default();
            return;
        }
        let has_ike = findings.has(Protocol::Ike, Confidence::Possible);
        let behind_ike = has_ike && is_marked(findings);
        if has_ike && !behind_ike {
            // IKE without the marker: these ports carry no ESP, and its messages begin with an SPI of their own.
            return;
        }
        if behind_ike || is_random(spi) {
            in_udp(spi, sequence, behind_ike, segment, findings);
        }
    }
}

/// RFC 4303 2.1: a receiver draws SPIs at random. Bits in both halves, as all but 1 in 2,000 have, and not what OpenVPN's
/// data begins with: its opcode and a small peer identifier.
const fn is_random(spi: u32) -> bool {
    (spi >> 16).count_ones() >= 2 && (spi as u16).count_ones() >= 2 && spi.count_ones() >= 5 && !is_data_header(spi)
}

fn in_udp(spi: u32, sequence: u32, behind_ike: bool, segment: &Segment<'_>, findings: &mut Findings) {
    let opposite = *findings.slot(SlotId::Ipsec, segment.direction.opposite());
    let opposite_hits = hits(findings, segment.direction.opposite());
    let length = 1 << (segment.payload_len / 4 % 32);
    let lengths = findings.slot(SlotId::Ipsec, segment.direction).c | length;
    let content = if behind_ike {
        Content::Open
    } else {
        Content::Encrypted(segment.payload.get(CIPHERTEXT..).unwrap_or_default())
    };
    let (step, hits) = count(findings, segment, spi, sequence, content);
    let slot = findings.slot(SlotId::Ipsec, segment.direction);
    slot.c = if step == Step::Started { length } else { lengths };
    let varied = (slot.c | opposite.c).count_ones() >= 2;
    // A receiver's SPI is its own: one for both ways is another protocol's identifier.
    let is_foreign = opposite.hits > 0 && opposite.a == u64::from(spi);
    if behind_ike {
        let two_way = hits >= 1 && opposite_hits >= 1 || hits >= 2;
        let confidence = if two_way { Confidence::Certain } else { Confidence::Likely };
        spis(findings, segment, spi);
        findings.add(segment, Protocol::Esp, &UDP_BEHIND_IKE, confidence, spi.into());
        return;
    }
    if step != Step::Counted || is_foreign {
        return;
    }
    let nat_t = NAT_T_PORTS.iter().any(|port| segment.ports.contains(port));
    let confidence = match (hits, opposite_hits) {
        (NAT_T_HITS.., NAT_T_HITS..) if nat_t => Confidence::Certain,
        (NAT_T_HITS.., _) if nat_t => Confidence::Likely,
        // An identifier and a counter are common elsewhere: never certain without IKE.
        (ANY_PORT_HITS.., ANY_PORT_HITS..) if varied => Confidence::Likely,
        (3.., _) => Confidence::Possible,
        _ => return,
    };
    spis(findings, segment, spi);
    findings.add(segment, Protocol::Esp, &UDP_SEQUENCE, confidence, spi.into());
}

fn spis(findings: &mut Findings, segment: &Segment<'_>, spi: u32) {
    if let Some(own) = findings.spi.get_mut(segment.direction as usize) {
        *own = Some(spi);
    }
}

fn is_ipsec(findings: &Findings) -> bool {
    findings.has(Protocol::Ike, Confidence::Possible) || findings.has(Protocol::Esp, Confidence::Possible)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, ciphertext, segment, udp};
    use crate::flow::Direction::{Forward, Reverse};

    fn esp(spi: u32, sequence: u32, len: usize) -> Vec<u8> {
        let content = ciphertext(u64::from(spi ^ sequence), len - 8);
        [&spi.to_be_bytes()[..], &sequence.to_be_bytes(), &content].concat()
    }

    fn ah(spi: u32, sequence: u32) -> Vec<u8> {
        [&[4, 5, 0, 0][..], &spi.to_be_bytes(), &sequence.to_be_bytes(), &[0; 40]].concat()
    }

    #[test]
    fn esp_cases() {
        let level = |confidence| Some((Protocol::Esp, confidence));
        #[rustfmt::skip]
        let cases = [
            ("empty", vec![(Forward, vec![])], None),
            ("a probe", vec![(Forward, vec![0; 20])], None),
            ("one packet", vec![(Forward, esp(0xc000_0001, 1, 88))], level(Confidence::Possible)),
            ("one octet long", vec![(Forward, esp(0xc000_0001, 1, 89))], None),
            ("reserved SPI", vec![(Forward, esp(255, 1, 88))], None),
            ("one way", vec![(Forward, esp(0xc1, 7, 88)); 5], None),
            ("one way, counting", (7..10).map(|n| (Forward, esp(0xc100, n, 88))).collect(), level(Confidence::Likely)),
            ("the same packet again", vec![(Forward, esp(0xc100, 7, 88)); 5], level(Confidence::Possible)),
            ("both ways", vec![(Forward, esp(0xc100, 1, 88)), (Reverse, esp(0xd100, 1, 88)), (Forward, esp(0xc100, 2, 88)), (Reverse, esp(0xd100, 2, 88))], level(Confidence::Certain)),
            ("two associations in turn", (7..10).flat_map(|n| [(Forward, esp(0xc100, n, 88)), (Forward, esp(0xc200, n + 50, 88))]).collect(), level(Confidence::Likely)),
            ("random", (0..9).map(|n: u32| (Forward, esp(n.wrapping_mul(0x9e37_79b9) | 0x100, n.wrapping_mul(0x85eb_ca6b), 88))).collect(), level(Confidence::Possible)),
        ];
        for (name, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol: 50, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&Esp, &segments), expected, "{name}");
        }
    }

    #[test]
    fn ah_cases() {
        let level = |confidence| Some((Protocol::Ah, confidence));
        let cases = [
            ("a probe", vec![(Forward, vec![0; 40])], None),
            ("one packet", vec![(Forward, ah(0x100, 1))], level(Confidence::Possible)),
            ("one octet short", vec![(Forward, ah(0x100, 1)[..27].to_vec())], None),
            ("one way", (1..4).map(|n| (Forward, ah(0x100, n))).collect(), level(Confidence::Likely)),
            (
                "both ways",
                (1..3).flat_map(|n| [(Forward, ah(0x100, n)), (Reverse, ah(0x200, n))]).collect(),
                level(Confidence::Certain),
            ),
        ];
        for (name, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol: 51, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&Ah, &segments), expected, "{name}");
        }
    }

    #[test]
    fn udp_cases() {
        let level = |confidence| Some((Protocol::Esp, confidence));
        let lens = [88, 104, 120, 88, 136, 92, 88, 88, 88];
        let both = |spis: [u32; 2], lens: [usize; 9]| -> Vec<_> {
            (1..10)
                .zip(lens)
                .flat_map(|(n, len)| [(Forward, esp(spis[0], n, len)), (Reverse, esp(spis[1], n, len))])
                .collect()
        };
        let one_way: Vec<_> = (1..10).zip(lens).map(|(n, len)| (Forward, esp(0xc1f0_0701, n, len))).collect();
        let both_ways = both([0xc1f0_0701, 0xd2e0_0e02], lens);
        let openvpn = both([0x4800_0001, 0x4800_0001], lens);
        let game = both([0xc1f0_0701, 0xc1f0_0701], lens);
        let counter = both([1000, 1001], lens);
        let clear: Vec<_> =
            (1..10).map(|n| (Forward, [&esp(0xc1f0_0701, n, 16)[..], b"player 1 at 17.25 4.12 0"].concat())).collect();
        let odd: Vec<_> = both_ways.iter().map(|(way, octets)| (*way, [&octets[..], &[0]].concat())).collect();
        #[rustfmt::skip]
        let cases: [(&str, [u16; 2], Vec<_>, _); 15] = [
            ("a NAT keepalive alone", [4500, 4500], vec![(Forward, vec![0xff])], None),
            ("non-ESP marker", [4500, 4500], vec![(Forward, vec![0; 40]); 6], None),
            ("4500, one way", [4500, 50_000], one_way.clone(), level(Confidence::Likely)),
            ("4500, both ways", [4500, 50_000], both_ways.clone(), level(Confidence::Certain)),
            ("4501, one way", [50_000, 4501], one_way.clone(), level(Confidence::Likely)),
            ("4501, both ways", [50_000, 4501], both_ways.clone(), level(Confidence::Certain)),
            ("4502, one way", [50_000, 4502], one_way.clone(), level(Confidence::Possible)),
            ("4500, content in clear", [4500, 50_000], clear, None),
            ("any port, one way", [1, 2], one_way, level(Confidence::Possible)),
            ("any port, both ways", [1, 2], both_ways, level(Confidence::Likely)),
            ("any port, one length", [1, 2], both([0xc1f0_0701, 0xd2e0_0e02], [88; 9]), level(Confidence::Possible)),
            ("one identifier for both ways", [1, 2], game, None),
            ("small identifiers", [1, 2], counter, None),
            ("any port, odd lengths", [1, 2], odd, None),
            ("OpenVPN's data", [1, 2], openvpn, None),
        ];
        for (name, ports, packets, expected) in cases {
            let segments: Vec<_> = packets.iter().map(|(way, octets)| Segment { ports, ..udp(*way, octets) }).collect();
            assert_eq!(best(&EspInUdp, &segments), expected, "{name}");
        }
    }
}
