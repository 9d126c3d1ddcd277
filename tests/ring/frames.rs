//! Turns a few words into frames for the wire: IP packets, what they travel in, and their fragments.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const GRE: u8 = 47;
pub const ESP: u8 = 50;

pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;
pub const OLD_SERVICE_VLAN: u16 = 0x9100;

/// Source and destination.
pub type Pair = [IpAddr; 2];

/// Neighbours, as real networks have them.
pub fn ipv4(number: u8) -> Pair {
    [[198, 51, 100, number].into(), [203, 0, 113, number / 2].into()]
}

pub fn ipv6(number: u8) -> Pair {
    let address = |net, host| [0x2001, 0xdb8, net, 0, 0, 0, 0, u16::from(host)].into();
    [address(1, number), address(2, number / 2)]
}

pub fn back([src, dst]: Pair) -> Pair {
    [dst, src]
}

/// An IP packet. Checksums stay zero, as with checksum offload.
pub fn ip([src, dst]: Pair, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [a, b] = (20 + len).to_be_bytes();
            let header = [0x45, 0, a, b, 0, 0, 0, 0, 64, protocol, 0, 0];
            [&header[..], &src.octets(), &dst.octets(), payload].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [a, b] = len.to_be_bytes();
            let header = [0x60, 0, 0, 0, a, b, protocol, 64];
            [&header[..], &src.octets(), &dst.octets(), payload].concat()
        }
        _ => panic!("two versions"),
    }
}

pub fn udp(pair: Pair, [src, dst]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let header = [src, dst, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
    ip(pair, UDP, &[&header, payload].concat())
}

pub fn tcp(pair: Pair, [src, dst]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    const ACK: u16 = 5 << 12 | 0x10;
    let header = [src, dst, 0, 1, 0, 1, ACK, 0xffff, 0, 0].map(u16::to_be_bytes).concat();
    ip(pair, TCP, &[&header, payload].concat())
}

pub fn esp(pair: Pair, spi: u32, sequence: u32) -> Vec<u8> {
    ip(pair, ESP, &[&spi.to_be_bytes()[..], &sequence.to_be_bytes(), &[0x5a; 64]].concat())
}

pub fn gre(pair: Pair, key: u32) -> Vec<u8> {
    // RFC 2890 2: key present; RFC 2784 2.4: IPv4 inside.
    ip(pair, GRE, &[&[0x20, 0, 8, 0], &key.to_be_bytes()[..], &[0; 40]].concat())
}

/// A packet in two: `first` octets of its payload, a multiple of 8, and the rest.
pub fn fragments(packet: &[u8], id: u16, first: usize) -> [Vec<u8>; 2] {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let (one, two) = packet[header..].split_at(first);
    [(one, 0, true), (two, first as u16 / 8, false)].map(|(part, offset, more)| {
        let mut fragment = packet[..header].to_vec();
        if header == 20 {
            let flags = offset | u16::from(more) << 13;
            fragment[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&id.to_be_bytes());
            fragment[6..8].copy_from_slice(&flags.to_be_bytes());
        } else {
            // RFC 8200 4.5: next header, reserved, offset and flag, identification.
            fragment[4..6].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            let next = std::mem::replace(&mut fragment[6], 44);
            fragment.extend([next, 0]);
            fragment.extend((offset << 3 | u16::from(more)).to_be_bytes());
            fragment.extend(u32::from(id).to_be_bytes());
        }
        fragment.extend(part);
        fragment
    })
}

/// Behind an Ethernet header.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    framed(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

pub fn framed(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let macs = [2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a];
    [&macs[..], &ethertype.to_be_bytes(), payload].concat()
}

/// With one tag more, the outermost.
pub fn tagged(tpid: u16, tci: u16, frame: &[u8]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &tpid.to_be_bytes(), &tci.to_be_bytes(), rest].concat()
}

pub fn mpls(labels: u32, packet: &[u8]) -> Vec<u8> {
    // RFC 3032 2.1: label, bottom of stack, time to live.
    let entry = |label: u32| (label << 12 | u32::from(label == labels) << 8 | 64).to_be_bytes();
    let stack: Vec<u8> = (1..=labels).flat_map(entry).collect();
    framed(0x8847, &[&stack, packet].concat())
}

/// `protocol`: two octets, or one with protocol field compression (RFC 1661 6.5).
pub fn pppoe(protocol: &[u8], packet: &[u8]) -> Vec<u8> {
    let [a, b] = ((protocol.len() + packet.len()) as u16).to_be_bytes();
    framed(0x8864, &[&[0x11, 0, 0, 7, a, b], protocol, packet].concat())
}
