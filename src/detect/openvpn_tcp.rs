//! Cuts OpenVPN packets out of a TCP stream: each behind its length in two octets (OpenVPN network protocol, "TCP/UDP
//! packet format").
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 2 | length of the packet |
//! | 2 | length | an OpenVPN packet, see `openvpn.rs` |
//!
//! Senders write a packet at a time, so that a segment begins with a length more often than not: that is where a stream
//! picked up mid-way is entered, or else where a data packet's header stands behind a length. From there each length must
//! lead to the next packet.
//!
//! Random octets pass for a length and an opcode once in 23, which names nothing: what stands behind must pass as
//! `openvpn.rs` says, a session that counts (2^-92 a packet) or data under one header that counts (2^-60).

use super::openvpn::{CODES, SPECIFICATION, is_data_header, opcode, packet};
use super::{About, Begin, Carrier, CarrierKind, Confidence, Detector, Findings, Protocol, Segment, Slot, SlotId};
use crate::wire::TcpFlags;
use crate::wire::cursor::u16_at;

/// OpenVPN over TCP on any port.
#[derive(Debug)]
pub struct OpenvpnTcp;

static ABOUT: About = About {
    name: "openvpn-tcp",
    protocols: &[Protocol::Openvpn],
    carriers: &[CarrierKind::Tcp],
    begins: &[
        Begin::Octets("0. .. 1."),
        Begin::Octets("0. .. 2."),
        Begin::Octets("0. .. 3."),
        Begin::Octets("0. .. 4."),
        Begin::Octets("0. .. 5."),
        Begin::Octets("1. .. 1."),
        Begin::Octets("1. .. 2."),
        Begin::Octets("1. .. 3."),
        Begin::Octets("1. .. 4."),
        Begin::Octets("1. .. 5."),
        Begin::Octets("2. .. 1."),
        Begin::Octets("2. .. 2."),
        Begin::Octets("2. .. 3."),
        Begin::Octets("2. .. 4."),
        Begin::Octets("2. .. 5."),
        Begin::MidStream,
    ],
    recognises: "the same as over UDP, cut out of the stream by its lengths",
    specification: SPECIFICATION,
    chance: "lengths that lead from packet to packet, and the same as over UDP",
    midstream: Some(Confidence::Certain),
    reaches: Confidence::Certain,
    out_of_sight: "static keys; CBC data alone stays possible; full segments picked up mid-stream whose packets begin behind the snap length; packets of which nothing is kept behind the counter, and a side that sends little but acknowledgments of TCP, stay possible",
    codes: CODES,
};

/// Longer than any MTU that is in use, with overhead.
const MAX_PACKET: u32 = 10_000;
/// The shortest packet is an encrypted ping.
const MIN_PACKET: u32 = 14;
/// Packets cut out of one segment.
const MAX_PER_SEGMENT: usize = 16;

impl Detector for OpenvpnTcp {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    #[inline]
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings) {
        let Carrier::Tcp { seq, flags } = segment.carrier else { return };
        // Data in a SYN begins one later (RFC 9293 3.4).
        let seq = if flags.has(TcpFlags::SYN) { seq.wrapping_add(1) } else { seq };
        let next = findings.slot(SlotId::OpenvpnStream, segment.direction);
        let offset = match next.hits {
            0 => entry(segment, findings),
            // `a` is where the next packet begins: behind this segment, in it, or before it.
            _ => match (next.a as u32).wrapping_sub(seq) {
                offset if offset < segment.payload_len => offset,
                offset if offset <= MAX_PACKET => return,
                _ => {
                    *next = Slot::default();
                    0
                }
            },
        };
        let end = walk(offset, segment, findings);
        let next = findings.slot(SlotId::OpenvpnStream, segment.direction);
        match end {
            Some(end) => {
                next.a = seq.wrapping_add(end).into();
                next.hits = next.hits.saturating_add(1);
            }
            None => *next = Slot::default(),
        }
    }
}

/// Longer segments are full ones: the stream is busy, and packets begin anywhere.
const FULL: u32 = 1000;
/// Packets of one header after which no other is taken for an entry.
const KNOWN: u32 = 3;

/// Where the first packet of a segment begins, in a stream whose lengths are not known: at its front, or where what is
/// captured holds a length and a data packet's header.
fn entry(segment: &Segment<'_>, findings: &mut Findings) -> u32 {
    let octets = segment.payload;
    if segment.payload_len < FULL || is_packet(octets) {
        return 0;
    }
    let known = *findings.slot(SlotId::OpenvpnData, segment.direction);
    let found = octets.windows(6).position(|window| {
        let &[_, _, a, b, c, d] = window else { return false };
        let header = u32::from_be_bytes([a, b, c, d]);
        is_packet(window)
            && is_data_header(header)
            && (known.hits < KNOWN || known.a == u64::from(header & 0xf8ff_ffff))
    });
    found.map_or(0, |at| at as u32)
}

/// Whether a length and an opcode stand here.
fn is_packet(octets: &[u8]) -> bool {
    let &[a, b, first, ..] = octets else { return false };
    (MIN_PACKET..=MAX_PACKET).contains(&u32::from(u16::from_be_bytes([a, b])))
        && matches!(first >> 3, opcode::SOFT_RESET..=opcode::CONTROL_WKC)
}

/// Takes the packets of a segment from `offset` on; returns where the next one begins, unless the chain broke.
fn walk(offset: u32, segment: &Segment<'_>, findings: &mut Findings) -> Option<u32> {
    let mut offset = offset;
    for _ in 0..MAX_PER_SEGMENT {
        if offset >= segment.payload_len {
            return Some(offset);
        }
        let at = offset as usize;
        let len = u32::from(u16_at(segment.payload, at)?);
        if !is_packet(segment.payload.get(at..)?) {
            return None;
        }
        let captured = segment.payload.get(at + 2..).unwrap_or_default();
        packet(captured.get(..len as usize).unwrap_or(captured), len, segment, findings);
        offset += 2 + len;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests_support::{best, ciphertext, segment};
    use crate::flow::Direction::{self, Forward, Reverse};

    fn framed(packets: &[Vec<u8>]) -> Vec<u8> {
        packets.iter().flat_map(|packet| [&(packet.len() as u16).to_be_bytes()[..], packet].concat()).collect()
    }

    fn aead(id: u32, len: usize) -> Vec<u8> {
        let mut octets = 0x4800_0003_u32.to_be_bytes().to_vec();
        octets.extend(id.to_be_bytes());
        octets.extend(ciphertext(id.into(), len - octets.len()));
        octets
    }

    fn stream(writes: &[(Direction, Vec<u8>)]) -> Vec<(Direction, u32, Vec<u8>)> {
        let mut seqs = [1000_u32, u32::MAX - 20];
        writes
            .iter()
            .map(|(way, octets)| {
                let seq = seqs[*way as usize];
                seqs[*way as usize] = seq.wrapping_add(octets.len() as u32);
                (*way, seq, octets.clone())
            })
            .collect()
    }

    fn found(segments: &[(Direction, u32, Vec<u8>)]) -> Option<Confidence> {
        let flags = TcpFlags(TcpFlags::ACK);
        let segments: Vec<_> = segments
            .iter()
            .map(|(way, seq, octets)| segment(*way, Carrier::Tcp { seq: *seq, flags }, octets))
            .collect();
        best(&OpenvpnTcp, &segments).map(|(_, confidence)| confidence)
    }

    #[test]
    fn cases() {
        let one_each: Vec<_> = (5..10).map(|id| (Forward, framed(&[aead(id, 90)]))).collect();
        let together = vec![(Forward, framed(&[aead(5, 90), aead(6, 91), aead(7, 92), aead(8, 30), aead(9, 40)]))];
        let whole = framed(&[aead(5, 90), aead(6, 90), aead(7, 90), aead(8, 90), aead(9, 90), aead(10, 90)]);
        let split = vec![(Forward, whole[..100].to_vec()), (Forward, whole[100..].to_vec())];
        let both: Vec<_> = (5..10)
            .flat_map(|id| [(Forward, framed(&[aead(id, 90)])), (Reverse, framed(&[aead(id + 90, 90)]))])
            .collect();
        let tls = vec![(Forward, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()); 9];
        let http = vec![(Forward, b"GET / HTTP/1.1\r\nHost: example.net\r\n\r\n".to_vec()); 9];
        let cases = [
            ("empty", vec![], None),
            ("a packet a segment", one_each, Some(Confidence::Likely)),
            ("packets together", together, Some(Confidence::Likely)),
            ("packets split over segments", split, Some(Confidence::Likely)),
            ("both ways, sequence numbers turning over", both, Some(Confidence::Certain)),
            ("TLS", tls, None),
            ("HTTP", http, None),
            ("SSH", vec![(Forward, b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec())], None),
        ];
        for (name, writes, expected) in cases {
            assert_eq!(found(&stream(&writes)), expected, "{name}");
        }
    }

    #[test]
    fn full_segments_are_entered_where_a_header_stands() {
        let whole = framed(&(5..40).map(|id| aead(id, 700)).collect::<Vec<_>>());
        let segments: Vec<_> = whole[333..].chunks(1400).map(|part| (Forward, part.to_vec())).collect();
        assert_eq!(found(&stream(&segments)), Some(Confidence::Likely));
    }

    #[test]
    fn a_lost_segment_is_got_over() {
        let writes: Vec<_> = (5..12).map(|id| (Forward, framed(&[aead(id, 90)]))).collect();
        let mut segments = stream(&writes);
        segments.remove(1);
        assert_eq!(found(&segments), Some(Confidence::Likely));
    }
}
