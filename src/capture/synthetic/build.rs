//! Turns a packet's payload into an Ethernet frame around it, with pnet's packet builders.

use std::net::IpAddr;

use pnet::packet::MutablePacket;
use pnet::packet::ethernet::{EtherTypes, MutableEthernetPacket};
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet::packet::ipv4::{self, MutableIpv4Packet};
use pnet::packet::ipv6::MutableIpv6Packet;
use pnet::packet::tcp::{MutableTcpPacket, TcpFlags};
use pnet::packet::udp::MutableUdpPacket;
use pnet::util::MacAddr;

use super::exchange::{Content, Payload, SynthFlow, Way};
use super::{Mode, Random};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;
const GRE: usize = 4;
/// The frame check sequence, which no capture shows.
const CHECK: usize = 4;
/// The shortest frame without it (IEEE 802.3 4.4.2).
const SHORTEST: usize = 60;

/// Builds one frame at a time in memory of its own.
#[derive(Debug)]
pub(super) struct Builder {
    snap_length: usize,
    payload: Vec<u8>,
    frame: Vec<u8>,
}

impl Builder {
    pub(super) const fn new(snap_length: u32) -> Self {
        Self { snap_length: snap_length as usize, payload: Vec::new(), frame: Vec::new() }
    }

    /// The whole frame of a flow's packet, of about `size` octets where it carries data.
    pub(super) fn frame(
        &mut self,
        flow: &SynthFlow,
        number: u32,
        size: usize,
        mode: Mode,
        random: &mut Random,
    ) -> Option<&[u8]> {
        let [client, server] = flow.addresses;
        let transport = match flow.content {
            Content::Tls => TCP,
            Content::Quic | Content::Wireguard | Content::Openvpn => UDP,
            Content::Esp | Content::Gre => 0,
        };
        let headers = ETHERNET + if client.is_ipv4() { IPV4 } else { IPV6 } + transport;
        let room = size.saturating_sub(CHECK + headers);
        let way = flow.way(number, random);
        self.payload.clear();
        let mut payload = Payload { octets: &mut self.payload, random, seen: self.snap_length };
        flow.payload(number, way, room, mode, &mut payload);
        self.frame.clear();
        self.frame.resize((headers + self.payload.len()).max(SHORTEST), 0);
        let (src, dst) = match way {
            Way::ToServer => (client, server),
            Way::ToClient => (server, client),
        };
        let protocol = match flow.content {
            Content::Tls => IpNextHeaderProtocols::Tcp,
            Content::Quic | Content::Wireguard | Content::Openvpn => IpNextHeaderProtocols::Udp,
            Content::Esp => IpNextHeaderProtocols::Esp,
            Content::Gre => IpNextHeaderProtocols::Gre,
        };
        let mut ethernet = MutableEthernetPacket::new(&mut self.frame)?;
        let macs = [MacAddr::new(2, 0, 0, 0, 0, 1), MacAddr::new(2, 0, 0, 0, 0, 2)];
        let [source, destination] = if way == Way::ToServer { macs } else { [macs[1], macs[0]] };
        ethernet.set_source(source);
        ethernet.set_destination(destination);
        ethernet.set_ethertype(if src.is_ipv4() { EtherTypes::Ipv4 } else { EtherTypes::Ipv6 });
        let behind = internet(ethernet.payload_mut(), number, src, dst, protocol, transport + self.payload.len())?;
        transport_header(behind, flow, number, way, mode, self.payload.len())?;
        behind.get_mut(transport..transport + self.payload.len())?.copy_from_slice(&self.payload);
        if flow.content == Content::Gre {
            inner(number, behind.get_mut(GRE..self.payload.len())?)?;
        }
        Some(&self.frame)
    }
}

/// Writes an IP header for `len` octets and gives what is behind it. The packet's number is its identification.
fn internet(
    octets: &mut [u8],
    number: u32,
    src: IpAddr,
    dst: IpAddr,
    protocol: IpNextHeaderProtocol,
    len: usize,
) -> Option<&mut [u8]> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = MutableIpv4Packet::new(octets)?;
            ip.set_version(4);
            ip.set_header_length((IPV4 / 4) as u8);
            ip.set_total_length((IPV4 + len) as u16);
            ip.set_identification(number as u16);
            ip.set_flags(ipv4::Ipv4Flags::DontFragment);
            ip.set_ttl(64);
            ip.set_next_level_protocol(protocol);
            ip.set_source(src);
            ip.set_destination(dst);
            ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
            octets.get_mut(IPV4..)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip = MutableIpv6Packet::new(octets)?;
            ip.set_version(6);
            ip.set_payload_length(len as u16);
            ip.set_next_header(protocol);
            ip.set_hop_limit(64);
            ip.set_source(src);
            ip.set_destination(dst);
            octets.get_mut(IPV6..)
        }
        _ => None,
    }
}

fn transport_header(
    octets: &mut [u8],
    flow: &SynthFlow,
    number: u32,
    way: Way,
    mode: Mode,
    payload: usize,
) -> Option<()> {
    let [client, server] = flow.ports;
    let (src, dst) = if way == Way::ToServer { (client, server) } else { (server, client) };
    match flow.content {
        Content::Tls => {
            let mut tcp = MutableTcpPacket::new(octets)?;
            tcp.set_source(src);
            tcp.set_destination(dst);
            tcp.set_sequence(number.wrapping_mul(1460));
            tcp.set_data_offset((TCP / 4) as u8);
            tcp.set_window(u16::MAX);
            tcp.set_flags(if mode == Mode::New { TcpFlags::SYN } else { TcpFlags::ACK | TcpFlags::PSH });
        }
        Content::Quic | Content::Wireguard | Content::Openvpn => {
            let mut udp = MutableUdpPacket::new(octets)?;
            udp.set_source(src);
            udp.set_destination(dst);
            udp.set_length((UDP + payload) as u16);
        }
        Content::Esp | Content::Gre => {}
    }
    Some(())
}

/// GRE's content: an IPv4 packet with a UDP datagram.
fn inner(number: u32, octets: &mut [u8]) -> Option<()> {
    let len = octets.len() - IPV4;
    let (src, dst) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    // What the header does not name must be zero first.
    octets.get_mut(..IPV4)?.fill(0);
    let behind = internet(octets, number, src, dst, IpNextHeaderProtocols::Udp, len)?;
    let mut udp = MutableUdpPacket::new(behind)?;
    udp.set_source(5000);
    udp.set_destination(5001);
    udp.set_length(len as u16);
    udp.set_checksum(0);
    Some(())
}
