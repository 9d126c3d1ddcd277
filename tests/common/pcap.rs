//! Turns frames into capture files of several formats and link types, and payloads into frames.

use std::io::Write;
use std::net::Ipv4Addr;

use linewarden::time::Timestamp;
use linewarden::wire::{InterfaceId, LinkType};

use super::OwnedFrame;
use super::command::capture;

/// The frames of a recorded capture.
pub fn frames(name: &str) -> Vec<OwnedFrame> {
    super::read(&capture(name))
}

/// `LINKTYPE_ETHERNET`, tcpdump.org/linktypes.html.
pub const ETHERNET: u16 = 1;

/// A pcap file with nanoseconds.
pub fn pcap(link_type: u16, frames: &[OwnedFrame]) -> Vec<u8> {
    let mut file = [0xa1b2_3c4d, 0x0004_0002, 0, 0, 262_144, u32::from(link_type)].map(u32::to_le_bytes).concat();
    for frame in frames {
        let (seconds, nanos) = (frame.at.as_nanos() / 1_000_000_000, frame.at.as_nanos() % 1_000_000_000);
        let words = [seconds as u32, nanos as u32, frame.data.len() as u32, frame.wire_len];
        file.extend(words.map(u32::to_le_bytes).concat());
        file.extend(&frame.data);
    }
    file
}

/// A pcapng file with one named interface and nanoseconds (draft-ietf-opsawg-pcapng).
pub fn pcapng(interface: &str, link_type: u16, frames: &[OwnedFrame]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let padding = vec![0; body.len().wrapping_neg() % 4];
        let len = (12 + body.len() + padding.len()) as u32;
        [&kind.to_le_bytes()[..], &len.to_le_bytes(), body, &padding, &len.to_le_bytes()].concat()
    };
    let option = |code: u16, value: &[u8]| {
        let padding = vec![0; value.len().wrapping_neg() % 4];
        [&code.to_le_bytes()[..], &(value.len() as u16).to_le_bytes(), value, &padding].concat()
    };
    // Byte-order magic, version 1.0, section length unknown.
    let mut file = block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[255; 8]].concat());
    // if_name, if_tsresol 10^-9, end of options.
    let options = [option(2, interface.as_bytes()), option(9, &[9]), option(0, &[])].concat();
    file.extend(block(1, &[&link_type.to_le_bytes()[..], &[0, 0], &262_144_u32.to_le_bytes(), &options].concat()));
    for frame in frames {
        let nanos = frame.at.as_nanos();
        let words = [0, (nanos >> 32) as u32, nanos as u32, frame.data.len() as u32, frame.wire_len];
        file.extend(block(6, &[&words.map(u32::to_le_bytes).concat()[..], &frame.data].concat()));
    }
    file
}

pub fn gzip(octets: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(octets).unwrap();
    encoder.finish().unwrap()
}

/// The EtherType of an Ethernet frame.
pub fn ethertype(frame: &OwnedFrame) -> u16 {
    u16::from_be_bytes([frame.data[12], frame.data[13]])
}

/// The same packet behind another header than Ethernet's.
pub fn relink(frame: &OwnedFrame, header: &[u8]) -> OwnedFrame {
    let data = [header, &frame.data[14..]].concat();
    OwnedFrame { wire_len: frame.wire_len - 14 + header.len() as u32, data, ..frame.clone() }
}

/// The frame with `octets` put in behind its addresses: a VLAN tag, or an EtherType and a label stack in place of its own.
pub fn insert(frame: &OwnedFrame, octets: &[u8], behind: usize) -> OwnedFrame {
    let data = [&frame.data[..12], octets, &frame.data[behind..]].concat();
    let wire_len = frame.wire_len + (data.len() - frame.data.len()) as u32;
    OwnedFrame { wire_len, data, ..frame.clone() }
}

/// An Ethernet frame with a UDP datagram.
pub fn udp(at_nanos: u64, src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), payload: &[u8]) -> OwnedFrame {
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip[12..16].copy_from_slice(&src.0.octets());
    ip[16..20].copy_from_slice(&dst.0.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let words = [src.1, dst.1, udp_len, 0].map(u16::to_be_bytes).concat();
    let data = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0][..], &ip, &words, payload].concat();
    OwnedFrame {
        at: Timestamp::from_nanos(at_nanos),
        number: 0,
        wire_len: data.len() as u32,
        interface: InterfaceId(0),
        link: LinkType::Ethernet,
        stripped_vlan: None,
        data,
    }
}

/// One packet each of as many flows, a millisecond apart.
pub fn many_flows(count: u32) -> Vec<OwnedFrame> {
    let flow = |number: u32| {
        let src = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number);
        udp(
            1_700_000_000_000_000_000 + u64::from(number) * 1_000_000,
            (src, 4000),
            (Ipv4Addr::new(192, 0, 2, 1), 53),
            b"who is it?",
        )
    };
    (0..count).map(flow).collect()
}
