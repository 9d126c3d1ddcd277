//! Turns one captured frame into a [`ParsedPacket`]: addresses, ports and the transport payload, borrowed, never copied.

pub mod cursor;
mod decap;
mod ipv4;
mod ipv6;
mod link;
mod mpls;
mod plain;
mod pppoe;
mod transport;

pub use decap::{Content, Encapsulation, Opened, open};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::time::Timestamp;

/// Index into the list of interfaces (or capture files) that the edge opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InterfaceId(pub u16);

/// What the first octet of a frame belongs to (the tcpdump.org link-layer header types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// `LINKTYPE_ETHERNET`, 1.
    Ethernet,
    /// `LINKTYPE_RAW`, 101 (and 12, 14, `LINKTYPE_IPV4` 228, `LINKTYPE_IPV6` 229): an IP header first.
    RawIp,
    /// `LINKTYPE_LINUX_SLL`, 113.
    LinuxSll,
    /// `LINKTYPE_LINUX_SLL2`, 276.
    LinuxSll2,
    /// `LINKTYPE_NULL`, 0, and `LINKTYPE_LOOP`, 108: four octets of address family in either byte order.
    Loopback,
}

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag protocol identifier, for example `0x8100`.
    pub tpid: u16,
    /// Priority, drop eligibility and the 12-bit VLAN identifier.
    pub tci: u16,
}

/// One captured frame, borrowed from the ring or the file reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When the capture saw it.
    pub at: Timestamp,
    /// Position in the capture, counted from 1 as Wireshark does; live: per worker.
    pub number: u64,
    /// Octets on the wire (layer 2, with any tag the kernel took out); at least `data.len()`.
    pub wire_len: u32,
    /// Where it was seen.
    pub interface: InterfaceId,
    /// How to read `data`.
    pub link: LinkType,
    /// The outermost tag where the kernel took it out of the frame (`tpacket3_hdr`, `tp_vlan_tci`).
    pub stripped_vlan: Option<VlanTag>,
    /// The captured octets, from the link header on.
    pub data: &'a [u8],
}

/// IP version of the outermost IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Source and destination of an IP header, as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses<'a> {
    /// RFC 791 3.1, offset 12.
    V4(&'a [u8; 8]),
    /// RFC 8200 3, offset 8.
    V6(&'a [u8; 32]),
}

impl Addresses<'_> {
    /// The version of the header.
    #[must_use]
    #[inline]
    pub const fn version(self) -> IpVersion {
        match self {
            Self::V4(_) => IpVersion::V4,
            Self::V6(_) => IpVersion::V6,
        }
    }

    /// Source and destination.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        match self {
            Self::V4(octets) => {
                let both = u64::from_be_bytes(*octets);
                [(both >> 32) as u32, both as u32].map(|address| Ipv4Addr::from_bits(address).into())
            }
            Self::V6(octets) => {
                let (src, dst) = octets.split_at(16);
                [src, dst].map(|octets| Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap_or_default()).into())
            }
        }
    }
}

/// What a fragment may be believed about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentPosition {
    /// Offset 0 with more to come: the transport header is here.
    First,
    /// Offset above 0: octets here are never ports.
    Later,
}

/// A fragment of an IP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification (16 bits in IPv4, 32 in IPv6).
    pub id: u32,
    /// First or later.
    pub position: FragmentPosition,
    /// Where its octets stand in the datagram's payload.
    pub offset: u16,
    /// How many they are, on the wire.
    pub len: u16,
}

/// TCP flags, as on the wire (RFC 9293 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgment field is significant.
    pub const ACK: u8 = 0x10;

    /// Whether every flag of `mask` is set.
    #[must_use]
    pub const fn has(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}

/// What carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP, RFC 768.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
    },
    /// TCP, RFC 9293.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Sequence number of the first payload octet (of the SYN itself in a SYN).
        seq: u32,
        /// Flags.
        flags: TcpFlags,
    },
    /// Any other IP protocol, or a later fragment: the payload starts behind the IP headers.
    None,
}

/// A frame understood down to its transport payload.
#[derive(Clone, Copy, Debug)]
pub struct ParsedPacket<'a> {
    /// When the capture saw it.
    pub at: Timestamp,
    /// Position in the capture, from 1.
    pub number: u64,
    /// Octets of the frame on the wire.
    pub wire_len: u32,
    /// Where it was seen.
    pub interface: InterfaceId,
    /// VLAN identifiers, outer then inner; 0 where there is no tag (or a priority tag).
    pub vlan: [u16; 2],
    /// The bottom MPLS label, the one that names a circuit or VPN (RFC 3032, RFC 4364).
    pub mpls_label: Option<u32>,
    /// Of a packet inside a tunnel: which tunnel and network, 24 bits, never 0. Else 0.
    pub inside: u32,
    /// Source and destination address.
    pub addresses: Addresses<'a>,
    /// IP protocol number behind all extension headers.
    pub protocol: u8,
    /// Set on fragments.
    pub fragment: Option<Fragment>,
    /// Ports and TCP's fields, where there are any.
    pub transport: Transport,
    /// Captured octets behind the transport header (behind the IP headers for [`Transport::None`]), without link padding.
    pub payload: &'a [u8],
    /// Octets of that payload on the wire, at least `payload.len()`; of a UDP datagram's first fragment those of the whole.
    pub payload_len: u32,
}

/// An IP packet behind all its headers: what the transport parsers get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network<'a> {
    addresses: Addresses<'a>,
    protocol: u8,
    fragment: Option<Fragment>,
    payload: &'a [u8],
    payload_len: u32,
}

/// Why a frame could not be given to a flow; counted, never printed per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ParseError {
    /// The captured octets end inside the link headers.
    TruncatedLink,
    /// Not IP: ARP, LLDP, spanning tree and the like.
    NotIp,
    /// More than eight VLAN tags, MPLS labels or link headers in a row.
    TooManyHeaders,
    /// The captured octets end inside the IP header or its extensions.
    TruncatedIp,
    /// Version or header length contradict the specification.
    BadIpHeader,
    /// The IP header claims more or fewer octets than its headers need or the frame holds.
    BadIpLength,
    /// The captured octets end inside the transport header.
    TruncatedTransport,
    /// The transport header contradicts itself or the IP length.
    BadTransport,
}

impl ParseError {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::TruncatedLink,
        Self::NotIp,
        Self::TooManyHeaders,
        Self::TruncatedIp,
        Self::BadIpHeader,
        Self::BadIpLength,
        Self::TruncatedTransport,
        Self::BadTransport,
    ];

    /// The reason's name in counters and summaries.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TruncatedLink => "truncated_link",
            Self::NotIp => "not_ip",
            Self::TooManyHeaders => "too_many_headers",
            Self::TruncatedIp => "truncated_ip",
            Self::BadIpHeader => "bad_ip_header",
            Self::BadIpLength => "bad_ip_length",
            Self::TruncatedTransport => "truncated_transport",
            Self::BadTransport => "bad_transport",
        }
    }
}

/// Parses one frame.
#[inline]
pub fn parse<'a>(frame: &Frame<'a>) -> Result<ParsedPacket<'a>, ParseError> {
    parse_snapped(frame, usize::MAX)
}

/// Parses one frame, looking at its first `snap_length` octets at most.
#[inline(always)]
#[expect(clippy::inline_always, reason = "what is parsed stays in registers until the flow's key is made of it")]
pub fn parse_snapped<'a>(frame: &Frame<'a>, snap_length: usize) -> Result<ParsedPacket<'a>, ParseError> {
    match parse_plain(frame, snap_length) {
        Some(packet) => Ok(packet),
        None => parse_layers(frame, snap_length),
    }
}

/// The same for the frames that nearly all traffic is made of, and nothing for others.
#[inline(always)]
#[expect(clippy::inline_always, reason = "what is parsed stays in registers until the flow's key is made of it")]
pub(crate) fn parse_plain<'a>(frame: &Frame<'a>, snap_length: usize) -> Option<ParsedPacket<'a>> {
    plain::parse(frame, frame.data.get(..snap_length).unwrap_or(frame.data))
}

/// The same for all frames, layer by layer.
pub(crate) fn parse_layers<'a>(frame: &Frame<'a>, snap_length: usize) -> Result<ParsedPacket<'a>, ParseError> {
    let link = link::parse(frame, frame.data.get(..snap_length).unwrap_or(frame.data))?;
    let network = match link.payload.first() {
        Some(first) if first >> 4 == 4 => ipv4::parse(link.payload, link.payload_len)?,
        Some(first) if first >> 4 == 6 => ipv6::parse(link.payload, link.payload_len)?,
        Some(_) => return Err(ParseError::BadIpHeader),
        None => return Err(ParseError::TruncatedIp),
    };
    let (transport, header_len) = transport::parse(&network)?;
    let (payload, payload_len) = match transport {
        Transport::Udp { .. } => transport::udp_payload(&network),
        _ => (
            network.payload.get(header_len..).unwrap_or_default(),
            network.payload_len.saturating_sub(header_len as u32),
        ),
    };
    Ok(ParsedPacket {
        at: frame.at,
        number: frame.number,
        wire_len: frame.wire_len,
        interface: frame.interface,
        vlan: link.vlan,
        mpls_label: link.mpls_label,
        inside: 0,
        addresses: network.addresses,
        protocol: network.protocol,
        fragment: network.fragment,
        transport,
        payload,
        payload_len,
    })
}

/// A hash of the outermost IP addresses alone, the same for both directions, for all fragments of a datagram and for
/// IKE and its ESP: frames with equal hashes must meet on one worker. 0 where there is no IP.
#[must_use]
pub fn pair_hash(frame: &Frame<'_>) -> u32 {
    let Ok(link) = link::parse(frame, frame.data) else { return 0 };
    let ip = link.payload;
    let folded = match ip.first().map(|first| first >> 4) {
        Some(4) => ip.get(12..20).map(|both| fold(both.split_at(4))),
        Some(6) => ip.get(8..40).map(|both| fold(both.split_at(16))),
        _ => None,
    };
    // Fibonacci hashing spreads neighbouring addresses over few workers evenly.
    folded.map_or(0, |folded| folded.wrapping_mul(0x9e37_79b9) >> 16)
}

/// Exclusive or of two addresses, word by word.
fn fold((src, dst): (&[u8], &[u8])) -> u32 {
    let words = |octets: &[u8]| {
        octets.chunks_exact(4).fold(0, |sum, word| sum ^ u32::from_be_bytes(word.try_into().unwrap_or_default()))
    };
    words(src) ^ words(dst)
}
