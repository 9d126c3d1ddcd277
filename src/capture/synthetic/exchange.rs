//! Turns a flow's number into who speaks to whom, and a packet's number into what is said: direction and payload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Mode, Random, Settings, is_tunnel, tunnels_before};

/// Packets that make a tunnel certain: ESP needs two from each side, OpenVPN's exchange has four.
pub(super) const LEAST_TUNNEL: u32 = 6;
/// One from each side.
pub(super) const LEAST_PLAIN: u32 = 2;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// TLS records over TCP.
    Tls,
    /// QUIC over UDP.
    Quic,
    Wireguard,
    Openvpn,
    Esp,
    Gre,
}

/// One flow, made from its number alone.
#[derive(Clone, Debug)]
pub(super) struct SynthFlow {
    pub content: Content,
    /// The client's address and the server's.
    pub addresses: [IpAddr; 2],
    /// Their ports, where the protocol has any.
    pub ports: [u16; 2],
    /// Random numbers that stay with the flow: identifiers of either side.
    identifiers: [u64; 2],
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToServer,
    ToClient,
}

impl SynthFlow {
    pub(super) fn new(settings: &Settings, id: u32) -> Self {
        let mut random = Random(settings.seed ^ u64::from(id) << 32);
        let content = if is_tunnel(settings, id) {
            match tunnels_before(settings, id) % 4 {
                0 => Content::Wireguard,
                1 => Content::Openvpn,
                2 => Content::Esp,
                _ => Content::Gre,
            }
        } else if random.next().is_multiple_of(4) {
            Content::Quic
        } else {
            Content::Tls
        };
        // An odd factor keeps 24 bits apart.
        let client = id.wrapping_mul(0x009e_3779).wrapping_add(settings.seed as u32) & 0x00ff_ffff;
        let server = random.next() as u32 & 0x0001_ffff;
        let addresses = if random.next().is_multiple_of(8) {
            let address =
                |net: u16, host: u32| Ipv6Addr::new(0x2001, 2, 0, net, 0, 0, (host >> 16) as u16, host as u16);
            [address(1, client).into(), address(2, server).into()]
        } else {
            [Ipv4Addr::from(0x0a00_0000 | client).into(), Ipv4Addr::from(0xc612_0000 | server).into()]
        };
        let port = match content {
            Content::Tls | Content::Quic => 443,
            Content::Wireguard => 51_820,
            Content::Openvpn => 1194,
            Content::Esp | Content::Gre => 0,
        };
        let ports = [1024 + (random.next() % 64_000) as u16, port];
        // Never zero in either half: SPIs above 255, sessions that are not mostly zero.
        let identifiers = [random.next(), random.next()].map(|word| word | 0x0100_0000_0100_0000);
        Self { content, addresses, ports, identifiers }
    }

    /// Tunnels speak in turn; the first packet is the client's.
    pub(super) fn way(&self, number: u32, random: &mut Random) -> Way {
        let to_server = match self.content {
            Content::Tls | Content::Quic => number == 0 || (number > 1 && random.next().is_multiple_of(2)),
            _ => number.is_multiple_of(2),
        };
        if to_server { Way::ToServer } else { Way::ToClient }
    }

    /// Writes the payload of a packet: `room` octets where it is data, fewer where the protocol rounds down, and more
    /// where it needs them. Random octets are written up to `seen`, zeros behind.
    pub(super) fn payload(&self, number: u32, way: Way, room: usize, mode: Mode, out: &mut Payload<'_>) {
        let [client, server] = self.identifiers;
        let (own, other) = match way {
            Way::ToServer => (client, server),
            Way::ToClient => (server, client),
        };
        match self.content {
            // A new connection opens with a SYN; steady ones are seen mid-stream.
            Content::Tls if mode == Mode::New => {}
            Content::Tls => {
                // RFC 8446 5.2: application data.
                let record = room.saturating_sub(5) as u16;
                out.put(&[0x17, 3, 3]).put(&record.to_be_bytes()).random(room.max(5));
            }
            Content::Quic if mode == Mode::New => {
                // RFC 9000 17.2.2: Initial, version 1, a connection identifier of eight octets, none of the client's own.
                out.put(&[0xc3, 0, 0, 0, 1, 8]).put(&other.to_be_bytes()).put(&[0, 0]).random(room.max(46));
            }
            Content::Quic => {
                // RFC 9000 17.3.1: short header; the lower five bits are protected.
                let first = 0x40 | (out.random.next() as u8 & 0x3f);
                out.put(&[first]).put(&other.to_be_bytes()).random(room.max(17));
            }
            Content::Wireguard => wireguard(number, own as u32, other as u32, room, out),
            Content::Openvpn => openvpn(number, own, other, room, out),
            Content::Esp => {
                // RFC 4303 2: SPI of the receiver, sequence number from 1, whole words.
                out.put(&(other as u32).to_be_bytes()).put(&(1 + number / 2).to_be_bytes());
                out.random((room / 4 * 4).max(36));
            }
            Content::Gre => {
                // RFC 2784 2: no option, IPv4 inside; the inner headers are the builder's.
                out.put(&[0, 0, 8, 0]).random(room.max(4 + 28));
            }
        }
    }
}

/// WireGuard whitepaper 5.4: initiation, response, then data by turns, each with its sender's counter.
fn wireguard(number: u32, own: u32, other: u32, room: usize, out: &mut Payload<'_>) {
    match number {
        0 => out.put(&[1, 0, 0, 0]).put(&own.to_le_bytes()).random(148),
        1 => out.put(&[2, 0, 0, 0]).put(&own.to_le_bytes()).put(&other.to_le_bytes()).random(92),
        _ => {
            let counter = u64::from((number - 2) / 2);
            out.put(&[4, 0, 0, 0]).put(&other.to_le_bytes()).put(&counter.to_le_bytes());
            out.random((room / 16 * 16).max(32));
        }
    }
}

/// OpenVPN network protocol: both resets, a TLS message from each side, then `P_DATA_V2` with AEAD's counter from 1.
fn openvpn(number: u32, own: u64, other: u64, room: usize, out: &mut Payload<'_>) {
    let (own, other) = (own.to_be_bytes(), other.to_be_bytes());
    match number {
        0 => {
            out.put(&[7 << 3]).put(&own).put(&[0]).put(&[0; 4]);
        }
        1 => {
            out.put(&[8 << 3]).put(&own).put(&[1, 0, 0, 0, 0]).put(&other).put(&[0; 4]);
        }
        2 | 3 => {
            let acknowledged = [1, 0, 0, 0, (number - 2) as u8];
            out.put(&[4 << 3]).put(&own).put(&acknowledged).put(&other).put(&[0, 0, 0, 1, 0x16, 3, 1]).random(300);
        }
        _ => {
            let counter = 1 + (number - 4) / 2;
            out.put(&[9 << 3, 0, 0, 0]).put(&counter.to_be_bytes()).random(room.max(25));
        }
    }
}

/// Where a payload is written.
pub(super) struct Payload<'a> {
    pub octets: &'a mut Vec<u8>,
    pub random: &'a mut Random,
    /// Octets that will be seen.
    pub seen: usize,
}

impl Payload<'_> {
    fn put(&mut self, octets: &[u8]) -> &mut Self {
        self.octets.extend_from_slice(octets);
        self
    }

    /// Fills up to `len` octets in all.
    fn random(&mut self, len: usize) {
        let start = self.octets.len();
        self.octets.resize(len.max(start), 0);
        let end = self.octets.len().min(self.seen);
        if let Some(rest) = self.octets.get_mut(start..end) {
            self.random.fill(rest);
        }
    }
}
