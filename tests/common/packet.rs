//! Takes captured Ethernet frames apart and puts them together in another way.

use super::OwnedFrame;
use super::pcap::insert;

const MACS: usize = 12;

/// An IP packet behind a plain Ethernet header, without options, extension headers or fragments.
#[derive(Clone, Debug)]
pub struct Packet {
    macs: [u8; MACS],
    is_v6: bool,
    protocol: u8,
    /// Source and destination, each as its IP version has it.
    pub addresses: [Vec<u8>; 2],
    /// Behind the IP header, as captured.
    payload: Vec<u8>,
    /// The same on the wire, octets.
    payload_len: usize,
}

impl Packet {
    pub fn of(frame: &OwnedFrame) -> Option<Self> {
        let data = &frame.data;
        let ip = data.get(14..)?;
        let be = |at: usize| Some(usize::from(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?])));
        let (is_v6, protocol, header, payload_len, sides) =
            match (<[u8; 2]>::try_from(&data[MACS..14]).unwrap(), ip.first()? >> 4) {
                ([0x08, 0x00], 4) if *ip.first()? == 0x45 && matches!(be(6)?, 0 | 0x4000) => {
                    (false, *ip.get(9)?, 20, be(2)?.checked_sub(20)?, [12..16, 16..20])
                }
                ([0x86, 0xdd], 6) if !matches!(ip.get(6)?, 0 | 43 | 44 | 60) => {
                    (true, *ip.get(6)?, 40, be(4)?, [8..24, 24..40])
                }
                _ => return None,
            };
        let captured = ip.get(header..)?;
        Some(Self {
            macs: data[..MACS].try_into().unwrap(),
            is_v6,
            protocol,
            addresses: sides.map(|side| ip[side].to_vec()),
            payload: captured[..captured.len().min(payload_len)].to_vec(),
            payload_len,
        })
    }

    /// Source and destination port of UDP and TCP.
    pub fn ports(&self) -> Option<[u16; 2]> {
        let ports = matches!(self.protocol, 6 | 17).then(|| self.payload.get(..4)).flatten()?;
        Some([u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])])
    }

    pub fn with_ports(mut self, change: &dyn Fn(u16) -> u16) -> Self {
        if let Some(ports) = self.ports() {
            self.payload[..4].copy_from_slice(&ports.map(|port| change(port).to_be_bytes()).concat());
        }
        self
    }

    /// The same payload between other addresses, those of the other version.
    pub fn with_other_ip_version(mut self) -> Self {
        for address in &mut self.addresses {
            *address = if self.is_v6 {
                vec![198, 51, address[14], address[15]]
            } else {
                [&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0][..], address].concat()
            };
        }
        self.is_v6 = !self.is_v6;
        self
    }

    /// As a frame with the time and number of `like`.
    pub fn frame(&self, like: &OwnedFrame) -> OwnedFrame {
        self.part(like, &self.payload, self.payload_len, None)
    }

    /// A whole packet, or its fragment at an offset in octets, with or without more to come.
    fn part(&self, like: &OwnedFrame, payload: &[u8], len: usize, fragment: Option<(usize, bool)>) -> OwnedFrame {
        let mut data = self.macs.to_vec();
        let len_octets = |len: usize| u16::try_from(len).unwrap().to_be_bytes();
        if self.is_v6 {
            let extension = fragment.map(|(offset, more)| {
                let field = u16::try_from(offset).unwrap() | u16::from(more);
                [&[self.protocol, 0][..], &field.to_be_bytes(), &7_u32.to_be_bytes()].concat()
            });
            let next = if fragment.is_some() { 44 } else { self.protocol };
            let extension = extension.unwrap_or_default();
            data.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            data.extend(len_octets(len + extension.len()));
            data.extend([next, 64]);
            data.extend(self.addresses.concat());
            data.extend(extension);
        } else {
            data.extend([0x08, 0x00, 0x45, 0]);
            data.extend(len_octets(20 + len));
            let (offset, more) = fragment.unwrap_or((0, false));
            let id = u16::try_from(like.number % 60_000).unwrap();
            data.extend(id.to_be_bytes());
            data.extend((u16::try_from(offset / 8).unwrap() | if more { 0x2000 } else { 0 }).to_be_bytes());
            data.extend([64, self.protocol, 0, 0]);
            data.extend(self.addresses.concat());
        }
        let wire_len = (data.len() + len) as u32;
        data.extend(payload);
        OwnedFrame { wire_len, data, ..like.clone() }
    }
}

/// In two fragments, the first with the transport header.
pub fn fragmented(frame: &OwnedFrame) -> Vec<OwnedFrame> {
    let Some(packet) = Packet::of(frame).filter(|packet| packet.payload_len >= 64) else { return vec![frame.clone()] };
    let first = packet.payload_len / 2 / 8 * 8;
    let (front, back) = packet.payload.split_at(first.min(packet.payload.len()));
    vec![
        packet.part(frame, front, first, Some((0, true))),
        packet.part(frame, back, packet.payload_len - first, Some((first, false))),
    ]
}

/// In a PPPoE session (RFC 2516).
pub fn in_pppoe(frame: &OwnedFrame) -> OwnedFrame {
    let protocol = match frame.data.get(MACS..14) {
        Some([0x08, 0x00]) => 0x21,
        Some([0x86, 0xdd]) => 0x57,
        _ => return frame.clone(),
    };
    let len = u16::try_from(frame.wire_len - 14 + 2).unwrap().to_be_bytes();
    let header = [&[0x88, 0x64, 0x11, 0, 0, 1][..], &len, &[0, protocol]].concat();
    insert(frame, &header, 14)
}

/// What a tunnel carries of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// The whole frame.
    Frame,
    /// The IP packet behind a plain Ethernet header.
    Packet,
}

/// In an IPv4 packet between two other hosts, behind a tunnel's `header`.
pub fn tunnelled(frame: &OwnedFrame, hosts: [[u8; 4]; 2], protocol: u8, header: &[u8], carried: Carried) -> OwnedFrame {
    let skipped = if carried == Carried::Frame { 0 } else { 14 };
    let len = 20 + header.len() + frame.wire_len as usize - skipped;
    let len_octets = u16::try_from(len).unwrap().to_be_bytes();
    let mut data = [&[2; MACS][..], &[0x08, 0x00, 0x45, 0], &len_octets, &[0, 1, 0, 0, 64, protocol, 0, 0]].concat();
    data.extend(hosts.concat());
    let sum: u32 = data[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    data[24..26].copy_from_slice(&(!folded as u16).to_be_bytes());
    data.extend(header);
    data.extend(&frame.data[skipped..]);
    OwnedFrame { wire_len: (14 + len) as u32, data, ..frame.clone() }
}

/// The same over UDP.
pub fn tunnelled_in_udp(
    frame: &OwnedFrame,
    hosts: [[u8; 4]; 2],
    ports: [u16; 2],
    header: &[u8],
    carried: Carried,
) -> OwnedFrame {
    let skipped = if carried == Carried::Frame { 0 } else { 14 };
    let len = u16::try_from(8 + header.len() + frame.wire_len as usize - skipped).unwrap();
    let udp = [&ports.map(u16::to_be_bytes).concat()[..], &len.to_be_bytes(), &[0, 0], header].concat();
    tunnelled(frame, hosts, 17, &udp, carried)
}
