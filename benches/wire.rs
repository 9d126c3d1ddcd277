//! What it costs to parse a packet down to its 5-tuple: a few frames that stay in the cache, many that do not, and real
//! captures. Beside it the floor, which is to touch each frame, and the parsers that one would otherwise take: pnet's and
//! etherparse's.
#![allow(clippy::unwrap_used, reason = "a failed bench may stop")]

mod common;

use std::cell::LazyCell;
use std::hint::black_box;
use std::net::IpAddr;

use common::{PACKETS, all_captures, criterion, frames, group, play, synthetic};
use criterion::{Criterion, criterion_group, criterion_main};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use linewarden::capture::reel::Reel;
use linewarden::capture::synthetic::Mode;
use linewarden::wire::{Frame, Transport, parse};
use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherTypes, EthernetPacket};
use pnet::packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet::packet::ipv4::Ipv4Packet;
use pnet::packet::ipv6::Ipv6Packet;
use pnet::packet::tcp::TcpPacket;
use pnet::packet::udp::UdpPacket;

const INPUTS: [(&str, fn() -> Reel); 3] = [
    ("warm", || checked(synthetic(256, 1 << 10, Mode::Steady))),
    ("cold", || checked(synthetic(100_000, 1 << 20, Mode::Steady))),
    ("captures", all_captures),
];

fn wire(c: &mut Criterion) {
    for (input, make) in INPUTS {
        let reel = LazyCell::new(make);
        bench(c, input, "touch", || &reel, |frame| frame.data.get(12).copied().unwrap_or(0).into());
        bench(c, input, "parse", || &reel, |frame| ours(frame).map_or(0, fold));
        bench(c, input, "pnet", || &reel, |frame| pnets(frame).map_or(0, fold));
        bench(c, input, "etherparse", || &reel, |frame| etherparses(frame).map_or(0, fold));
    }
}

fn bench<'a>(
    c: &mut Criterion,
    input: &str,
    name: &str,
    reel: impl Fn() -> &'a Reel,
    digest: impl Fn(&Frame<'_>) -> u64,
) {
    let mut player = None;
    group(c, format!("wire/{input}"), PACKETS).bench_function(name, |b| {
        let player = player.get_or_insert_with(|| reel().play().unwrap());
        b.iter(|| {
            play(player, PACKETS, |frames| {
                black_box(frames.iter().fold(0, |sum: u64, frame| sum.wrapping_add(digest(frame))));
            });
        });
    });
}

/// Only like can be compared with like: all parsers must find the same in every frame. In captures they do not: pnet does
/// less there (it reads ports from the middle of a datagram, and stops at a tag), and etherparse knows no MPLS or PPPoE.
fn checked(reel: Reel) -> Reel {
    for frame in frames(&reel) {
        assert_eq!(ours(&frame), pnets(&frame), "{frame:?}");
        assert_eq!(ours(&frame), etherparses(&frame), "{frame:?}");
    }
    reel
}

/// Addresses, IP protocol and ports.
type FiveTuple = (u128, u128, u8, u16, u16);

#[inline]
fn fold((src, dst, protocol, src_port, dst_port): FiveTuple) -> u64 {
    let both = src ^ dst;
    (both >> 64) as u64 ^ both as u64 ^ u64::from(src_port) << 16 ^ u64::from(dst_port) ^ u64::from(protocol) << 56
}

#[inline]
fn ours(frame: &Frame<'_>) -> Option<FiveTuple> {
    let packet = parse(frame).ok()?;
    let (src_port, dst_port) = match packet.transport {
        Transport::Udp { src_port, dst_port } | Transport::Tcp { src_port, dst_port, .. } => (src_port, dst_port),
        Transport::None => (0, 0),
    };
    let [src, dst] = packet.addresses.both().map(|address| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    });
    Some((src, dst, packet.protocol, src_port, dst_port))
}

/// As far as pnet goes without code of one's own: no VLAN tags, MPLS, PPPoE, extension headers or fragments.
#[inline]
fn pnets(frame: &Frame<'_>) -> Option<FiveTuple> {
    let ethernet = EthernetPacket::new(frame.data)?;
    match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = Ipv4Packet::new(ethernet.payload())?;
            let (src, dst) = (u32::from(ip.get_source()), u32::from(ip.get_destination()));
            with_ports(src.into(), dst.into(), ip.get_next_level_protocol(), ip.payload())
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(ethernet.payload())?;
            with_ports(ip.get_source().into(), ip.get_destination().into(), ip.get_next_header(), ip.payload())
        }
        _ => None,
    }
}

#[inline]
fn with_ports(src: u128, dst: u128, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Option<FiveTuple> {
    let (src_port, dst_port) = match protocol {
        IpNextHeaderProtocols::Tcp => {
            let tcp = TcpPacket::new(payload)?;
            (tcp.get_source(), tcp.get_destination())
        }
        IpNextHeaderProtocols::Udp => {
            let udp = UdpPacket::new(payload)?;
            (udp.get_source(), udp.get_destination())
        }
        _ => (0, 0),
    };
    Some((src, dst, protocol.0, src_port, dst_port))
}

/// Its lax mode, which takes frames that were cut when they were captured; the strict one refuses them.
#[inline]
fn etherparses(frame: &Frame<'_>) -> Option<FiveTuple> {
    let packet = LaxSlicedPacket::from_ethernet(frame.data).ok()?;
    let (src, dst, protocol) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let [src, dst] = [header.source(), header.destination()].map(u32::from_be_bytes);
            (src.into(), dst.into(), ip.payload().ip_number)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let [src, dst] = [header.source(), header.destination()].map(u128::from_be_bytes);
            (src, dst, ip.payload().ip_number)
        }
        _ => return None,
    };
    let (src_port, dst_port) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    Some((src, dst, protocol.0, src_port, dst_port))
}

criterion_group! { name = benches; config = criterion(); targets = wire }
criterion_main!(benches);
