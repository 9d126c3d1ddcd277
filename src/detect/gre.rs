//! Turns payloads of IP protocol 47 into evidence of GRE (RFC 2784, RFC 2890) or PPTP's enhanced GRE (RFC 2637 4.1), and of
//! what is built on GRE: ERSPAN (draft-foschiano-erspan 4), NVGRE (RFC 7637 3.2), MikroTik's EoIP (its documentation).
//!
//! | bits | GRE | enhanced GRE |
//! |---|---|---|
//! | 1 | C: checksum and reserved1 follow (4 octets) | 0 |
//! | 1 | 0 | 0 |
//! | 1 | K: key follows (4 octets) | 1 |
//! | 1 | S: sequence number follows (4 octets) | S |
//! | 4 | 0 | 0 |
//! | 5 | 0 | A: acknowledgment number follows, then 0 |
//! | 3 | version 0 | version 1 |
//! | 16 | protocol type (EtherType) | 0x880b, PPP |
//! | 32 | | key: payload length (16), call (16) |
//!
//! | variant | GRE | behind it |
//! |---|---|---|
//! | ERSPAN type I | 0x88be, no flags | Ethernet |
//! | ERSPAN type II | 0x88be, S | version 1 (4 bits), VLAN, session, index: 8 octets; Ethernet |
//! | ERSPAN type III | 0x22eb, S | version 2 (4 bits) and more: 12 octets, 8 more where the last bit is set; Ethernet |
//! | NVGRE | 0x6558, K alone; the key is a network (24 bits, 0x1000 and up) and a hash of the inner flow (8 bits) | Ethernet |
//! | EoIP | 0x6400, K, version 1; the key is the payload's length and a tunnel (little-endian) | Ethernet |
//!
//! ERSPAN and EoIP have types of their own, and three different frames that check out behind their header make them certain. NVGRE
//! is Ethernet over GRE but for its key: it is told by one network with two hashes; the same key always may be either, and is
//! called GRE.
//!
//! GRE is likely once two different packets hold inner packets that check out, with three certain: a probe may hold one.
//! Enhanced GRE repeats the payload's length and counts its packets: a constant call with counting numbers one way is
//! likely, both ways certain.
//!
//! Random octets in IP protocol 47 have a valid header once in 2^25 (nine reserved bits and the version zero, one of a dozen
//! types), and around an IPv4 packet once in 2^45 (version, checksum), an IPv6 packet once in 2^48, a frame once in 2^61;
//! enhanced GRE once in 2^44 (reserved bits, version, type, length), and counting once in 2^88.

use super::inner::{self, Inner};
use super::overlay::{self, Fit};
use super::sequence::{Content, Step};
use super::{
    About, Begin, Carrier, CarrierKind, Code, Confidence, Detector, Findings, Phase, Protocol, Segment, Slot, SlotId,
};
use crate::wire::cursor::{u16_at, u32_at};

/// GRE and PPTP.
#[derive(Debug)]
pub struct Gre;

static INNER: Code = Code {
    name: "gre.inner",
    meaning: "a GRE header with an inner packet that checks out; value: protocol type",
    clause: "RFC 2784 2.1",
    phase: Phase::Stateless,
};

static HEADER: Code = Code {
    name: "gre.header",
    meaning: "a valid GRE header whose content cannot be checked; value: protocol type",
    clause: "RFC 2784 2.1",
    phase: Phase::Stateless,
};

static ERSPAN_INNER: Code = Code {
    name: "erspan.inner",
    meaning: "a mirrored Ethernet frame that checks out behind an ERSPAN header; value: session (0 in type I)",
    clause: "draft-foschiano-erspan 4",
    phase: Phase::Stateless,
};

static NVGRE_INNER: Code = Code {
    name: "nvgre.inner",
    meaning: "Ethernet frames of one network whose keys end in different flow hashes; value: network (VSID)",
    clause: "RFC 7637 3.2",
    phase: Phase::Stateless,
};

static EOIP_INNER: Code = Code {
    name: "eoip.inner",
    meaning: "MikroTik's GRE with its payload's true length and an Ethernet frame that checks out; value: tunnel",
    clause: "MikroTik RouterOS documentation, EoIP",
    phase: Phase::Stateless,
};

static PPTP_FIRST: Code = Code {
    name: "pptp.first_packet",
    meaning: "the first packet of a call: enhanced GRE with sequence number 0 or 1; value: call identifier",
    clause: "RFC 2637 4.1",
    phase: Phase::Handshake,
};

static PPTP_SEQUENCE: Code = Code {
    name: "pptp.sequence",
    meaning: "enhanced GRE of one call with its payload's true length and a counting sequence number; value: call identifier",
    clause: "RFC 2637 4.1",
    phase: Phase::Data,
};

static ABOUT: About = About {
    name: "gre",
    protocols: &[Protocol::Gre, Protocol::Pptp, Protocol::Erspan, Protocol::Nvgre, Protocol::EoIp],
    carriers: &[CarrierKind::Ip(47)],
    begins: &[Begin::Any],
    recognises: "GRE by an inner packet (IP, Ethernet, MPLS) that checks out; PPTP's enhanced GRE by call, length and sequence; ERSPAN and EoIP by their headers and a frame; NVGRE by one network with several flow hashes",
    specification: "RFC 2784, RFC 2890, RFC 2637, draft-foschiano-erspan, RFC 7637",
    chance: "a header: 2^-25; around IPv4: 2^-45, a frame: 2^-61; a PPTP packet: 2^-44, counting 2^-88",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "GRE around content that has no checkable header stays likely at best; NVGRE of one inner flow, or without flow hashes, is gre",
    codes: &[&INNER, &HEADER, &PPTP_FIRST, &PPTP_SEQUENCE, &ERSPAN_INNER, &NVGRE_INNER, &EOIP_INNER],
};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const ACKNOWLEDGMENT: u16 = 0x0080;
const VERSION: u16 = 0x0007;
/// RFC 2784 2.3: bits 1 to 5 and 6 to 12 are zero but for RFC 2890's K and S.
const RESERVED: u16 = 0x4ff8;
/// RFC 2637 4.1: C, R, s, recursion and unused flags are zero.
const PPTP_RESERVED: u16 = 0xcf78;
const PPP: u16 = 0x880b;
const EOIP: u16 = 0x6400;
const ERSPAN_II: u16 = 0x88be;
const ERSPAN_III: u16 = 0x22eb;
const ETHERNET: u16 = 0x6558;
/// RFC 7637 3.2: networks below 0x1000 are reserved, the last one is a vendor's.
const NETWORKS: std::ops::RangeInclusive<u32> = 0x00_1000..=0xff_fffe;
/// Packets with keys that could be NVGRE's and never differ before they are GRE's.
const SAME_KEYS: u32 = 16;

/// Packets with a valid header and the same unverifiable content before GRE is likely.
const LIKELY_HEADERS: u32 = 4;

impl Detector for Gre {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        if !matches!(segment.carrier, Carrier::Ip { protocol: 47, .. }) {
            return;
        }
        let (Some(flags), Some(kind)) = (u16_at(segment.payload, 0), u16_at(segment.payload, 2)) else { return };
        match flags & VERSION {
            0 if flags & RESERVED == 0 => gre(flags, kind, segment, findings),
            1 if flags == KEY | 1 && kind == EOIP => eoip(segment, findings),
            1 if flags & PPTP_RESERVED == 0 && flags & KEY != 0 && kind == PPP => pptp(flags, segment, findings),
            _ => {}
        }
    }
}

fn gre(flags: u16, kind: u16, segment: &Segment<'_>, findings: &mut Findings) {
    let mut offset = if flags & CHECKSUM == 0 { 4 } else { 8 };
    let mut key = None;
    if flags & KEY != 0 {
        key = u32_at(segment.payload, offset);
        offset += 4;
    }
    if flags & SEQUENCE != 0 {
        offset += 4;
    }
    if segment.payload_len < offset as u32 {
        return;
    }
    let len = segment.len_behind(offset as u32);
    let inside = segment.payload.get(offset..).unwrap_or_default();
    let inner = match kind {
        0x0800 => inner::ipv4(inside, len),
        0x86dd => inner::ipv6(inside, len),
        // RFC 1701 (transparent Ethernet bridging), as in NVGRE, RFC 7637 3.2.
        ETHERNET => inner::ethernet(inside, len),
        0x8847 | 0x8848 if overlay::mpls(inside, len, Fit::Padded).is_some() => Inner::Verified,
        ERSPAN_II | ERSPAN_III => {
            if erspan(flags, kind, inside, len, segment, findings) {
                return;
            }
            Inner::Unverified
        }
        // MPLS (RFC 4023), WCCP, NHRP (RFC 2332), PPP, IS-IS, frame relay, keepalives (protocol type 0).
        0x8847 | 0x8848 | 0x883e | 0x2001 | 0x880b | 0x00fe | 0x6559 | 0 => Inner::Unverified,
        _ => return,
    };
    if let Some(own) = findings.gre_key.get_mut(segment.direction as usize) {
        *own = key.or(*own);
    }
    if inner == Inner::Verified {
        let confidence = inner::confidence(findings, segment, inside);
        let network = key.filter(|key| kind == ETHERNET && flags == KEY && NETWORKS.contains(&(key >> 8)));
        let confidence = network.map_or(confidence, |key| confidence.min(nvgre(key, segment, findings)));
        findings.add(segment, Protocol::Gre, &INNER, confidence, kind.into());
        return;
    }
    // Keepalives and probes have no content at all, or always the same.
    let mark = inner::fingerprint(inside);
    let slot = findings.slot(SlotId::Gre, segment.direction);
    if slot.c != u32::from(kind) {
        *slot = Slot { c: kind.into(), ..Slot::default() };
    }
    if len > 0 && kind != 0 && slot.a != mark {
        slot.a = mark;
        slot.hits = slot.hits.saturating_add(1);
    }
    let confidence = if slot.hits >= LIKELY_HEADERS { Confidence::Likely } else { Confidence::Possible };
    findings.add(segment, Protocol::Gre, &HEADER, confidence, kind.into());
}

/// Ethernet whose key may be NVGRE's; returns how sure it is that this is GRE.
fn nvgre(key: u32, segment: &Segment<'_>, findings: &mut Findings) -> Confidence {
    let network = u64::from(key >> 8);
    let slot = findings.slot(SlotId::Gre, segment.direction);
    if slot.a != network {
        // Another network in the same tunnel is NVGRE's habit too, but not its alone.
        (slot.a, slot.b) = (network, key.into());
    }
    slot.hits = slot.hits.saturating_add(1);
    let (hits, differs) = (slot.hits, slot.b != u64::from(key));
    if differs {
        findings.add(segment, Protocol::Nvgre, &NVGRE_INNER, Confidence::Certain, network);
    }
    if differs || hits < SAME_KEYS { Confidence::Likely } else { Confidence::Certain }
}

/// Whether an ERSPAN header with a frame that checks out stands behind GRE's.
fn erspan(flags: u16, kind: u16, inside: &[u8], len: u32, segment: &Segment<'_>, findings: &mut Findings) -> bool {
    let word = |offset| u16_at(inside, offset).unwrap_or_default();
    let version = word(0) >> 12;
    let header: usize = match (kind, flags & SEQUENCE != 0, version) {
        (ERSPAN_II, false, _) => 0,
        (ERSPAN_II, true, 1) => 8,
        (ERSPAN_III, true, 2) => {
            if word(10) & 1 == 0 {
                12
            } else {
                20
            }
        }
        _ => return false,
    };
    let frame = inside.get(header..).unwrap_or_default();
    if overlay::ethernet(frame, len.saturating_sub(header as u32)).is_none() {
        return false;
    }
    let session = if header == 0 { 0 } else { word(2) & 0x03ff };
    let confidence = inner::confidence(findings, segment, frame);
    findings.add(segment, Protocol::Erspan, &ERSPAN_INNER, confidence, session.into());
    true
}

fn eoip(segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(length), Some(&[low, high])) =
        (u16_at(segment.payload, 4), segment.payload.get(6..).and_then(|octets| octets.first_chunk()))
    else {
        return;
    };
    let length = u32::from(length);
    let frame = segment.payload.get(8..).unwrap_or_default();
    // A keepalive has no frame.
    if length + 8 != segment.payload_len || overlay::ethernet(frame, length).is_none() {
        return;
    }
    let confidence = inner::confidence(findings, segment, frame);
    findings.add(segment, Protocol::EoIp, &EOIP_INNER, confidence, u16::from_le_bytes([low, high]).into());
}

fn pptp(flags: u16, segment: &Segment<'_>, findings: &mut Findings) {
    let (Some(claimed), Some(call)) = (u16_at(segment.payload, 4), u16_at(segment.payload, 6)) else { return };
    let mut header = 8;
    let mut sequence = None;
    if flags & SEQUENCE != 0 {
        sequence = u32_at(segment.payload, header as usize);
        header += 4;
    }
    if flags & ACKNOWLEDGMENT != 0 {
        header += 4;
    }
    // RFC 2637 4.1: the payload length is there with or without a payload.
    let len = u32::from(claimed) + header;
    if len != segment.payload_len && !(segment.is_fragment && len > segment.payload_len) {
        return;
    }
    if let Some(own) = findings.gre_key.get_mut(segment.direction as usize) {
        *own = Some(call.into());
    }
    let Some(sequence) = sequence else { return };
    let opposite_hits = findings.slot(SlotId::Gre, segment.direction.opposite()).hits;
    let slot = findings.slot(SlotId::Gre, segment.direction);
    let step = slot.step(call.into(), sequence.into(), Content::Open);
    let hits = slot.hits;
    let confidence = match (step, hits, opposite_hits) {
        (Step::Started, _, _) => Confidence::Possible,
        (Step::Repeated | Step::Tolerated, _, _) => return,
        (_, 2.., 2..) => Confidence::Certain,
        (_, 2.., _) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    if sequence <= 1 && step == Step::Started {
        findings.add(segment, Protocol::Pptp, &PPTP_FIRST, confidence, call.into());
    } else {
        findings.add(segment, Protocol::Pptp, &PPTP_SEQUENCE, confidence, call.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::inner::tests::{ipv4_packet, ipv6_packet};
    use crate::detect::tests_support::{best, segment};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn gre(flags: u16, kind: u16, extra: usize, inner: &[u8]) -> Vec<u8> {
        [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &vec![0; extra], inner].concat()
    }

    fn pptp(call: u16, sequence: u32) -> Vec<u8> {
        [&[0x30, 0x01, 0x88, 0x0b, 0, 4][..], &call.to_be_bytes(), &sequence.to_be_bytes(), &[0xff, 3, 0xc0, 0x21]]
            .concat()
    }

    #[test]
    fn cases() {
        let four = ipv4_packet(8);
        let three = |flags: u16, extra: usize| -> Vec<_> {
            (8..11).map(|len| (Forward, gre(flags, 0x0800, extra, &ipv4_packet(len)))).collect()
        };
        let bridged = |len| [vec![2; 12], vec![8, 0], ipv4_packet(len)].concat();
        let likely = Some((Protocol::Gre, Confidence::Likely));
        let possible = Some((Protocol::Gre, Confidence::Possible));
        let certain = Some((Protocol::Gre, Confidence::Certain));
        let level = |protocol| Some((protocol, Confidence::Certain));
        let frames =
            |packet: fn(&[u8]) -> Vec<u8>| -> Vec<_> { (8..11).map(|len| (Forward, packet(&bridged(len)))).collect() };
        let keyed_with =
            |key: u32, more: usize| [&[0x20, 0, 0x65, 0x58][..], &key.to_be_bytes(), &bridged(8 + more)].concat();
        let keyed = |key: u32| keyed_with(key, key as usize % 4);
        let eoip = |frame: &[u8]| [&[0x20, 1, 0x64, 0, 0, frame.len() as u8, 7, 0][..], frame].concat();
        let pptp_level = |confidence| Some((Protocol::Pptp, confidence));
        #[rustfmt::skip]
        let cases: Vec<(&str, Vec<(Direction, Vec<u8>)>, _)> = vec![
            ("empty", vec![(Forward, vec![])], None),
            ("one octet short of a header", vec![(Forward, vec![0, 0, 8])], None),
            ("a probe: header only", vec![(Forward, gre(0, 0x0800, 0, &[]))], possible),
            ("one inner packet, again and again", vec![(Forward, gre(0, 0x0800, 0, &four)); 5], possible),
            ("two inner packets", three(0, 0)[..2].to_vec(), likely),
            ("three inner packets", three(0, 0), certain),
            ("IPv6 inside", (8..11).map(|len| (Forward, gre(0, 0x86dd, 0, &ipv6_packet(len)))).collect(), certain),
            ("key and sequence", three(0x3000, 8), certain),
            ("checksum", three(0x8000, 4), certain),
            ("Ethernet inside", (8..11).map(|len| (Forward, gre(0x2000, 0x6558, 4, &bridged(len)))).collect(), certain),
            ("MPLS inside", (1..5).map(|n| (Forward, gre(0, 0x8847, 0, &[n; 20]))).collect(), likely),
            ("a probe with MPLS inside, again and again", vec![(Forward, gre(0, 0x8847, 0, &[0; 20])); 9], possible),
            ("MPLS inside, with IPv4", vec![(Forward, gre(0, 0x8847, 0, &[&[0x03, 0xe8, 0x11, 64][..], &four].concat())); 3], possible),
            ("MPLS inside, with others", (8..11).map(|len| (Forward, gre(0, 0x8847, 0, &[&[0x03, 0xe8, 0x11, 64][..], &ipv4_packet(len)].concat()))).collect(), certain),
            ("ERSPAN I", frames(|frame| gre(0, 0x88be, 0, frame)), level(Protocol::Erspan)),
            ("ERSPAN II", frames(|frame| gre(0x1000, 0x88be, 4, &[&[0x10, 0, 0, 9, 0, 0, 0, 7][..], frame].concat())), level(Protocol::Erspan)),
            ("ERSPAN III", frames(|frame| gre(0x1000, 0x22eb, 4, &[&[0x20, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 0][..], frame].concat())), level(Protocol::Erspan)),
            ("ERSPAN III, longer", frames(|frame| gre(0x1000, 0x22eb, 4, &[&[0x20, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], frame].concat())), level(Protocol::Erspan)),
            ("ERSPAN without a frame", vec![(Forward, gre(0x1000, 0x88be, 4, &[0x10, 0, 0, 9, 0, 0, 0, 7])); 2], possible),
            ("NVGRE", (1..4).map(|n| (Forward, keyed(0x1234_5600 + n))).collect(), level(Protocol::Nvgre)),
            ("a large key, always the same", (1..17).map(|n| (Forward, keyed_with(0x1234_5601, n))).collect(), certain),
            ("a large key, so far the same", (1..16).map(|n| (Forward, keyed_with(0x1234_5601, n))).collect(), likely),
            ("a small key", (1..4).map(|n| (Forward, keyed_with(42, n))).collect(), certain),
            ("EoIP", (8..11).map(|len| (Forward, eoip(&bridged(len)))).collect(), level(Protocol::EoIp)),
            ("EoIP, one octet long", (8..11).map(|len| (Forward, [&eoip(&bridged(len))[..], &[0]].concat())).collect(), None),
            ("EoIP's keepalive", vec![(Forward, vec![0x20, 1, 0x64, 0, 0, 0, 7, 0]); 2], None),
            ("keepalives", vec![(Forward, gre(0, 0, 0, &[])); 9], possible),
            ("reserved flag", vec![(Forward, gre(0x0400, 0x0800, 0, &four)); 2], None),
            ("another version", vec![(Forward, gre(0x0002, 0x0800, 0, &four)); 2], None),
            ("unknown protocol type", vec![(Forward, gre(0, 0x1234, 0, &four)); 2], None),
            ("PPTP, one packet", vec![(Forward, pptp(9, 0))], pptp_level(Confidence::Possible)),
            ("PPTP, one way", vec![(Forward, pptp(9, 500)), (Forward, pptp(9, 501))], pptp_level(Confidence::Likely)),
            ("PPTP, both ways", vec![(Forward, pptp(9, 0)), (Reverse, pptp(5, 0)), (Forward, pptp(9, 1)), (Reverse, pptp(5, 1))], pptp_level(Confidence::Certain)),
            ("PPTP, wrong length", vec![(Forward, [pptp(9, 0), vec![1]].concat()); 2], None),
        ];
        for (name, packets, expected) in cases {
            let carrier = Carrier::Ip { protocol: 47, outer_v6: false };
            let segments: Vec<_> = packets.iter().map(|(way, octets)| segment(*way, carrier, octets)).collect();
            assert_eq!(best(&Gre, &segments), expected, "{name}");
        }
    }
}
