//! Opens an unencrypted tunnel's packet: finds the one inside by the headers that its encapsulation puts before it.
//!
//! | encapsulation | before the packet inside | specification |
//! |---|---|---|
//! | IP in IP | nothing | RFC 2003, RFC 4213, RFC 2473 |
//! | AH in tunnel mode | 8 octets and its check value | RFC 4302 2 |
//! | GRE, and NVGRE, ERSPAN, EoIP, PPTP on it | 4 octets, checksum, key, sequence; ERSPAN's header, PPP | RFC 2784, RFC 2890, RFC 2637 4.1, RFC 7637 3.2, draft-foschiano-erspan 4 |
//! | VXLAN, VXLAN-GPE | 8 octets | RFC 7348 5, draft-ietf-nvo3-vxlan-gpe 3 |
//! | Geneve | 8 octets and options | RFC 8926 3.4 |
//! | L2TP version 2 | 6 octets and more by its flags, PPP | RFC 2661 3.1 |
//! | L2TP version 3 | session, cookie, sublayer; Ethernet or IP, told by what stands there | RFC 3931 4.1 |
//! | GTP-U | 8 octets, 4 more by its flags, extensions | TS 29.281 5 |
//! | EtherIP | 2 octets | RFC 3378 3 |
//! | MPLS | labels | RFC 4023, RFC 7510 |
//! | GUE | 4 octets and more by its length | draft-ietf-intarea-gue 3.1 |
//! | LISP | 8 octets | RFC 9300 5.1 |
//! | Teredo | authentication and origin, or nothing | RFC 4380 5.1.1 |
//! | ICMP echo | 8 octets, 4 or 5 more | RFC 792; icmptx, hans |
//! | CAPWAP | a header by its length; Ethernet, or 802.11 with SNAP | RFC 5415 4.3, 4.4.2 |

use super::cursor::{u16_at, u32_at};
use super::{Frame, LinkType, ParseError, ParsedPacket, Transport, mpls, parse};

/// What a tunnel puts before the packets that it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// Nothing: an IP packet.
    Ip,
    /// An authentication header.
    Ah,
    /// GRE, ERSPAN, NVGRE, `EoIP` or PPTP's enhanced GRE.
    Gre,
    /// VXLAN or VXLAN-GPE.
    Vxlan,
    /// Geneve.
    Geneve,
    /// L2TP, version 2 and 3.
    L2tp,
    /// GTP user plane.
    GtpU,
    /// `EtherIP`.
    EtherIp,
    /// An MPLS label stack.
    Mpls,
    /// GUE, variant 0.
    Gue,
    /// LISP data.
    Lisp,
    /// Teredo.
    Teredo,
    /// CAPWAP data.
    Capwap,
    /// ICMP echo.
    Echo,
}

/// Where a packet inside begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inside {
    /// Octets before it.
    offset: usize,
    /// What it begins with.
    link: LinkType,
    /// The network that the tunnel's header names, the same in both directions; 0 where it names none.
    network: u32,
}

/// A packet that was inside another.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// It, parsed.
    pub packet: Result<ParsedPacket<'a>, ParseError>,
    /// The network that the tunnel's header names; 0 where it names none.
    pub network: u32,
}

/// What a packet inside may have lost on its way into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: a tunnel carries whole packets.
    Whole,
    /// Its end: mirrors cut what they copy.
    Cut,
}

/// Opens one packet; `None` where its header says that no packet is inside, or is none of this encapsulation.
#[must_use]
pub fn open<'a>(encapsulation: Encapsulation, outer: &ParsedPacket<'a>, content: Content) -> Option<Opened<'a>> {
    let inside = find(encapsulation, outer)?;
    let data = outer.payload.get(inside.offset..)?;
    let wire_len = outer.payload_len.checked_sub(inside.offset as u32)?;
    // The rest of a fragmented packet comes later; a UDP header tells how much.
    let is_first = outer.fragment.is_some() && !matches!(outer.transport, Transport::Udp { .. });
    let is_cut = is_first || content == Content::Cut;
    let frame = Frame {
        at: outer.at,
        number: outer.number,
        wire_len: if is_cut { u32::from(u16::MAX) } else { wire_len },
        interface: outer.interface,
        link: inside.link,
        stripped_vlan: None,
        data,
    };
    let packet = parse(&frame).map(|packet| ParsedPacket { wire_len, ..packet });
    Some(Opened { packet, network: inside.network })
}

fn find(encapsulation: Encapsulation, outer: &ParsedPacket<'_>) -> Option<Inside> {
    let octets = outer.payload;
    match encapsulation {
        Encapsulation::Ip => Some(ip(0)),
        Encapsulation::Ah => ah(octets),
        Encapsulation::Gre => gre(octets),
        Encapsulation::Vxlan => vxlan(octets),
        Encapsulation::Geneve => geneve(octets),
        Encapsulation::L2tp => match (outer.transport, octets) {
            (Transport::Udp { .. }, [0, 3, 0, 0, ..]) => l2tp_3(octets, outer.payload_len, 4),
            (Transport::Udp { .. }, _) => l2tp_2(octets),
            // RFC 3931 4.1.1.2: over IP a control message begins with a session of zero.
            (_, [0, 0, 0, 0, ..]) => None,
            _ => l2tp_3(octets, outer.payload_len, 0),
        },
        Encapsulation::GtpU => gtp_u(octets),
        Encapsulation::EtherIp => (octets.first()? >> 4 == 3).then_some(ethernet(2, 0)),
        Encapsulation::Mpls => {
            let stack = mpls::parse(octets).ok()?;
            Some(match stack.inside {
                mpls::Inside::Ip => ip(stack.octets),
                mpls::Inside::Ethernet { control_word } => ethernet(stack.octets + control_word, 0),
            })
        }
        Encapsulation::Gue => {
            let first = *octets.first()?;
            let is_packet = first >> 5 == 0 && matches!(octets.get(1), Some(4 | 41));
            is_packet.then(|| ip(4 + usize::from(first & 0x1f) * 4))
        }
        Encapsulation::Lisp => lisp(octets),
        Encapsulation::Teredo => teredo(octets),
        Encapsulation::Capwap => capwap(octets, outer.payload_len),
        // icmptx puts nothing between, others four or five octets.
        Encapsulation::Echo => [8, 12, 13].into_iter().find_map(|next| filling(octets, outer.payload_len, next)),
    }
}

const fn ip(offset: usize) -> Inside {
    Inside { offset, link: LinkType::RawIp, network: 0 }
}

const fn ethernet(offset: usize, network: u32) -> Inside {
    Inside { offset, link: LinkType::Ethernet, network }
}

/// By EtherType.
fn typed(kind: u16, offset: usize, network: u32) -> Option<Inside> {
    match kind {
        0x0800 | 0x86dd => Some(Inside { network, ..ip(offset) }),
        0x6558 => Some(ethernet(offset, network)),
        _ => None,
    }
}

/// RFC 4302 2.2: the length is in words, less 2.
fn ah(octets: &[u8]) -> Option<Inside> {
    let &[next, length, ..] = octets else { return None };
    matches!(next, 4 | 41).then(|| ip((usize::from(length) + 2) * 4))
}

fn gre(octets: &[u8]) -> Option<Inside> {
    let (flags, kind) = (u16_at(octets, 0)?, u16_at(octets, 2)?);
    let is_set = |flag: u16| usize::from(flags & flag != 0);
    let (checksum, key, sequence, acknowledgment) = (is_set(0x8000), is_set(0x2000), is_set(0x1000), is_set(0x0080));
    let header = 4 + 4 * (checksum + key + sequence);
    match (flags & 7, kind) {
        // MikroTik's EoIP: a length and a tunnel stand in the key's place.
        (1, 0x6400) => Some(ethernet(8, u16_at(octets, 6)?.into())),
        (1, 0x880b) => ppp(octets, header + 4 * acknowledgment),
        (0, 0x88be) if sequence == 0 => Some(ethernet(header, 0)),
        (0, 0x88be) => Some(ethernet(header + 8, 0)),
        (0, 0x22eb) => {
            let has_subheader = u16_at(octets, header + 10)? & 1 == 1;
            Some(ethernet(header + if has_subheader { 20 } else { 12 }, 0))
        }
        (0, 0x8847 | 0x8848) => {
            let stack = mpls::parse(octets.get(header..)?).ok()?;
            matches!(stack.inside, mpls::Inside::Ip).then(|| ip(header + stack.octets))
        }
        (0, kind) => {
            // RFC 7637 3.2: behind the network stands a hash of the flow.
            let network = if flags == 0x2000 && kind == 0x6558 { u32_at(octets, 4)? >> 8 } else { 0 };
            typed(kind, header, network)
        }
        _ => None,
    }
}

fn vxlan(octets: &[u8]) -> Option<Inside> {
    let &[flags, _, _, next, ..] = octets else { return None };
    let network = u32_at(octets, 4)? >> 8;
    let content = |next: u8, offset: usize| match next {
        1 | 2 => Some(Inside { network, ..ip(offset) }),
        3 => Some(ethernet(offset, network)),
        _ => None,
    };
    match (flags & 0x08, flags & 0x34) {
        (0, _) => None,
        // Next protocol, version 0; 4 is a service header (RFC 8300 2.2), whose length is in words.
        (_, 0x04) if next == 4 => {
            let &[_, words, _, next] = octets.get(8..)?.first_chunk()?;
            content(next, 8 + usize::from(words & 0x3f) * 4)
        }
        (_, 0x04) => content(next, 8).or(Some(ethernet(8, network))),
        _ => Some(ethernet(8, network)),
    }
}

fn geneve(octets: &[u8]) -> Option<Inside> {
    let first = *octets.first()?;
    let network = u32_at(octets, 4)? >> 8;
    (first >> 6 == 0).then(|| typed(u16_at(octets, 2)?, 8 + usize::from(first & 0x3f) * 4, network))?
}

/// Cookie and sublayer have 0 to 12 octets, as both ends agreed.
fn l2tp_3(octets: &[u8], len: u32, session_at: usize) -> Option<Inside> {
    [4, 8, 12, 16].into_iter().map(|skipped| session_at + skipped).find_map(|next| match u16_at(octets, next + 12) {
        Some(0x0800 | 0x86dd | 0x0806 | 0x8100 | 0x88a8) => Some(ethernet(next, 0)),
        _ => filling(octets, len, next),
    })
}

/// An IP packet that ends where the payload does.
fn filling(octets: &[u8], len: u32, offset: usize) -> Option<Inside> {
    let claimed = match octets.get(offset)? >> 4 {
        4 => u32::from(u16_at(octets, offset + 2)?),
        6 => u32::from(u16_at(octets, offset + 4)?) + 40,
        _ => return None,
    };
    (Some(claimed) == len.checked_sub(offset as u32)).then(|| ip(offset))
}

fn l2tp_2(octets: &[u8]) -> Option<Inside> {
    let flags = u16_at(octets, 0)?;
    let is_set = |flag: u16| usize::from(flags & flag != 0);
    // Version 2, no control message.
    if flags & 0x800f != 2 {
        return None;
    }
    let mut next = 6 + 2 * is_set(0x4000) + 4 * is_set(0x0800);
    if is_set(0x0200) == 1 {
        next += 2 + usize::from(u16_at(octets, next)?);
    }
    ppp(octets, next)
}

/// RFC 1661 2, behind HDLC's address and control octets or not (RFC 1662 3.1); a protocol below 256 may be one octet.
fn ppp(octets: &[u8], offset: usize) -> Option<Inside> {
    let frame = octets.get(offset..)?;
    let framing = if frame.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
    match frame.get(framing..)? {
        [0x21 | 0x57, ..] => Some(ip(offset + framing + 1)),
        [0, 0x21 | 0x57, ..] => Some(ip(offset + framing + 2)),
        _ => None,
    }
}

fn gtp_u(octets: &[u8]) -> Option<Inside> {
    let &[first, 0xff, ..] = octets else { return None };
    if first >> 4 != 3 {
        return None;
    }
    // TS 29.281 5.1: sequence number, N-PDU number and next extension stand there if one of them is used.
    if first.trailing_zeros() >= 3 {
        return Some(ip(8));
    }
    let mut next = 12;
    let mut kind = *octets.get(11)?;
    // TS 29.281 5.2.1: length in words first, next extension last.
    for _ in 0..MAX_EXTENSIONS {
        if first & 4 == 0 || kind == 0 {
            return Some(ip(next));
        }
        let words = usize::from(*octets.get(next)?);
        if words == 0 {
            return None;
        }
        next += words * 4;
        kind = *octets.get(next - 1)?;
    }
    None
}

/// RFC 9300 5.1, 5.3: what no flag fills is zero. A control message of the same flow has its nonce there.
fn lisp(octets: &[u8]) -> Option<Inside> {
    let (one, two) = (u32_at(octets, 0)?, u32_at(octets, 4)?);
    // N or V fill the first word, L or I the second, and E wants N.
    let is_data = (one.trailing_zeros() >= 24 || one & 0x9000_0000 != 0)
        && (two == 0 || one & 0x4800_0000 != 0)
        && one & 0xa000_0000 != 0x2000_0000;
    (is_data && matches!(octets.get(8)? >> 4, 4 | 6)).then_some(ip(8))
}

fn teredo(octets: &[u8]) -> Option<Inside> {
    let mut next = 0;
    if let [0, 1, id, value, ..] = octets {
        next = 13 + usize::from(*id) + usize::from(*value);
    }
    if octets.get(next..)?.starts_with(&[0, 0]) {
        next += 8;
    }
    (octets.get(next)? >> 4 == 6).then(|| ip(next))
}

fn capwap(octets: &[u8], len: u32) -> Option<Inside> {
    let &[0, length, flags, more, ..] = octets else { return None };
    let next = usize::from(length >> 3) * 4;
    // F: a fragment, whose rest comes apart; K: a keep-alive.
    if more & 0x88 != 0 {
        return None;
    }
    if flags & 1 == 0 {
        // RFC 5415 4.5.1.1: a control message begins with its type, and counts its octets from the length on; some count
        // its elements alone.
        let is_type = matches!(u32_at(octets, next), Some(1..=26 | 0x0033_dd01 | 0x0033_dd02));
        let length = u16_at(octets, next + 5).map(usize::from);
        let is_control =
            is_type && length.is_some_and(|length| [5, 8].contains(&(len as usize).wrapping_sub(next + length)));
        return (!is_control).then_some(ethernet(next, 0));
    }
    // IEEE 802.11 9.2.3, 9.2.4: data frames, whose subtypes from 8 on have two octets more for their quality of service.
    let control = *octets.get(next)?;
    let header = if control & 0x80 == 0 { 24 } else { 26 };
    let is_data = control & 0x0c == 0x08 && control & 0x40 == 0;
    let snap = octets.get(next + header..)?.starts_with(&[0xaa, 0xaa, 3, 0, 0, 0]);
    (is_data && snap).then(|| typed(u16_at(octets, next + header + 6)?, next + header + 8, 0))?
}

/// Extension headers of GTP-U that are looked through.
const MAX_EXTENSIONS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::wire::{Addresses, InterfaceId};

    fn udp(payload: &[u8]) -> ParsedPacket<'_> {
        ParsedPacket {
            at: Timestamp::ZERO,
            number: 1,
            wire_len: payload.len() as u32 + 42,
            interface: InterfaceId(0),
            vlan: [0; 2],
            mpls_label: None,
            inside: 0,
            addresses: Addresses::V4(&[192, 0, 2, 1, 192, 0, 2, 2]),
            protocol: 17,
            fragment: None,
            transport: Transport::Udp { src_port: 1, dst_port: 2 },
            payload,
            payload_len: payload.len() as u32,
        }
    }

    #[test]
    fn cases() {
        let eth = |offset, network| Some(ethernet(offset, network));
        #[rustfmt::skip]
        let cases: &[(&str, Encapsulation, &[u8], Option<Inside>)] = &[
            ("AH, tunnel mode", Encapsulation::Ah, &[4, 4, 0, 0], Some(ip(24))),
            ("AH, transport mode", Encapsulation::Ah, &[6, 4, 0, 0], None),
            ("GRE, empty", Encapsulation::Gre, &[], None),
            ("GRE, one octet short", Encapsulation::Gre, &[0, 0, 8], None),
            ("GRE", Encapsulation::Gre, &[0, 0, 8, 0], Some(ip(4))),
            ("GRE, keepalive", Encapsulation::Gre, &[0, 0, 0, 0], None),
            ("GRE, checksum, key, sequence", Encapsulation::Gre, &[0xb0, 0, 0x86, 0xdd], Some(ip(16))),
            ("GRE, MPLS", Encapsulation::Gre, &[0, 0, 0x88, 0x47, 0, 1, 0x31, 64, 0x45], Some(ip(8))),
            ("NVGRE", Encapsulation::Gre, &[0x20, 0, 0x65, 0x58, 0, 0x10, 1, 7], eth(8, 0x1001)),
            ("ERSPAN I", Encapsulation::Gre, &[0, 0, 0x88, 0xbe], eth(4, 0)),
            ("ERSPAN II", Encapsulation::Gre, &[0x10, 0, 0x88, 0xbe], eth(16, 0)),
            ("ERSPAN III", Encapsulation::Gre, &[0x10, 0, 0x22, 0xeb, 0, 0, 0, 1, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], eth(28, 0)),
            ("EoIP", Encapsulation::Gre, &[0x20, 1, 0x64, 0, 0, 60, 7, 0], eth(8, 0x0700)),
            ("PPTP, IPv4", Encapsulation::Gre, &[0x30, 1, 0x88, 0x0b, 0, 3, 0, 7, 0, 0, 0, 1, 0x21, 0x45], Some(ip(13))),
            ("PPTP, encrypted", Encapsulation::Gre, &[0x30, 1, 0x88, 0x0b, 0, 3, 0, 7, 0, 0, 0, 1, 0, 0xfd, 0x90], None),
            ("PPTP, acknowledgment alone", Encapsulation::Gre, &[0x20, 0x81, 0x88, 0x0b, 0, 0, 0, 7, 0, 0, 0, 1], None),
            ("VXLAN", Encapsulation::Vxlan, &[8, 0, 0, 0, 0, 0, 42, 0], eth(8, 42)),
            ("VXLAN, no network", Encapsulation::Vxlan, &[0, 0, 0, 0, 0, 0, 42, 0], None),
            ("VXLAN-GPE", Encapsulation::Vxlan, &[0x0c, 0, 0, 2, 0, 0, 42, 0], Some(Inside { network: 42, ..ip(8) })),
            ("VXLAN-GPE, service header", Encapsulation::Vxlan, &[0x0c, 0, 0, 4, 0, 0, 42, 0, 0, 6, 1, 3], eth(32, 42)),
            ("Geneve", Encapsulation::Geneve, &[2, 0, 0x65, 0x58, 0, 0, 42, 0], eth(16, 42)),
            ("Geneve, another version", Encapsulation::Geneve, &[0x42, 0, 0x65, 0x58, 0, 0, 42, 0], None),
            ("L2TP", Encapsulation::L2tp, &[0x40, 2, 0, 9, 0, 1, 0, 1, 0xff, 3, 0, 0x21, 0x45], Some(ip(12))),
            ("L2TP, control", Encapsulation::L2tp, &[0xc8, 2, 0, 12, 0, 1, 0, 0, 0, 0, 0, 0], None),
            ("L2TP, LCP", Encapsulation::L2tp, &[0, 2, 0, 1, 0, 1, 0xff, 3, 0xc0, 0x21], None),
            ("L2TPv3, cookie, IPv4", Encapsulation::L2tp, &[0, 3, 0, 0, 0, 0, 0, 7, 9, 9, 9, 9, 0x45, 0, 0, 4], Some(ip(12))),
            ("L2TPv3, Ethernet", Encapsulation::L2tp, &[0, 3, 0, 0, 0, 0, 0, 7, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 8, 0], eth(8, 0)),
            ("GTP-U", Encapsulation::GtpU, &[0x30, 0xff, 0, 20, 0, 0, 0, 1], Some(ip(8))),
            ("GTP-U, echo", Encapsulation::GtpU, &[0x32, 1, 0, 4, 0, 0, 0, 0], None),
            ("GTP-U, sequence", Encapsulation::GtpU, &[0x32, 0xff, 0, 24, 0, 0, 0, 1, 0, 1, 0, 0], Some(ip(12))),
            ("GTP-U, extension", Encapsulation::GtpU, &[0x34, 0xff, 0, 28, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 9, 0], Some(ip(16))),
            ("GTP-U, extension without a length", Encapsulation::GtpU, &[0x34, 0xff, 0, 28, 0, 0, 0, 1, 0, 0, 0, 0x85, 0, 0, 9, 0], None),
            ("EtherIP", Encapsulation::EtherIp, &[0x30, 0], eth(2, 0)),
            ("MPLS", Encapsulation::Mpls, &[0, 1, 0x31, 64, 0x45], Some(ip(4))),
            ("GUE", Encapsulation::Gue, &[1, 4, 0, 0], Some(ip(8))),
            ("LISP", Encapsulation::Lisp, &[0x08, 0, 0, 0, 0, 0, 7, 0, 0x45], Some(ip(8))),
            ("LISP, nonce and instance", Encapsulation::Lisp, &[0x88, 9, 9, 9, 0, 0, 7, 0, 0x60], Some(ip(8))),
            ("LISP, Map-Request", Encapsulation::Lisp, &[0x10, 0, 0, 1, 9, 9, 9, 9, 0x45], None),
            ("LISP, Map-Register", Encapsulation::Lisp, &[0x38, 0, 0, 1, 9, 9, 9, 9, 0x45], None),
            ("LISP, encapsulated control", Encapsulation::Lisp, &[0x80, 0, 0, 0, 0x45, 0, 0, 60, 0x45], None),
            ("Teredo", Encapsulation::Teredo, &[0x60, 0], Some(ip(0))),
            ("Teredo, origin", Encapsulation::Teredo, &[0, 0, 1, 2, 3, 4, 5, 6, 0x60], Some(ip(8))),
            ("Teredo, authentication, origin", Encapsulation::Teredo, &[0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0x60], Some(ip(21))),
            ("ICMP echo", Encapsulation::Echo, &[8, 0, 1, 1, 0, 1, 0, 1, 0x45, 0, 0, 4], Some(ip(8))),
            ("ICMP echo, pattern", Encapsulation::Echo, &[8, 0, 1, 1, 0, 1, 0, 1, 0x45, 0x46, 0x47, 0x48], None),
            ("CAPWAP, Ethernet", Encapsulation::Capwap, &[0, 0x10, 0, 0, 0, 0, 0, 0], eth(8, 0)),
            ("CAPWAP, control", Encapsulation::Capwap, &[0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 7, 0, 3, 0], None),
            ("CAPWAP, keep-alive", Encapsulation::Capwap, &[0, 0x10, 0, 8, 0, 0, 0, 0], None),
            ("CAPWAP, DTLS", Encapsulation::Capwap, &[1, 0, 0, 0, 22], None),
            ("CAPWAP, 802.11", Encapsulation::Capwap, &[0, 0x10, 3, 0, 0, 0, 0, 0, 0x08, 1, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], Some(ip(40))),
            ("GUE, control", Encapsulation::Gue, &[0x20, 4, 0, 0], None),
        ];
        for (name, encapsulation, octets, expected) in cases {
            assert_eq!(find(*encapsulation, &udp(octets)), *expected, "{name}");
            for len in 0..octets.len() {
                let _ = find(*encapsulation, &udp(&octets[..len]));
            }
        }
    }
}
