//! Turns a parsed packet into the key of its flow: two ordered endpoints, the IP protocol and the VLANs.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use crate::flow::ip_addr;
use crate::wire::{Addresses, FragmentPosition, IpVersion, ParsedPacket, Transport};

const ICMP: u8 = 1;
const SCTP: u8 = 132;
const ICMPV6: u8 = 58;

const VERSION_6: u32 = 1 << 24;
const PORTS: u32 = 1 << 25;
const ICMP_PAIR: u32 = 1 << 26;
const ICMP_ONE_WAY: u32 = 1 << 27;
const INSIDE: u32 = 1 << 28;

/// What the two port fields of a key hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Ports of UDP, TCP or SCTP.
    Ports,
    /// ICMP type and the type of its answer: both directions are one flow.
    IcmpPair,
    /// ICMP type and code of a message without an answer.
    IcmpOneWay,
    /// Nothing: a protocol without ports, or later fragments whose first one was never seen.
    None,
}

/// The key of a flow, 44 octets. Equal for both directions.
#[derive(Clone, Copy, Debug, Eq)]
#[repr(C)]
pub struct FlowKey {
    /// Lower and higher endpoint by (address, port).
    addresses: [[u8; 16]; 2],
    ports: [u16; 2],
    /// Outer VLAN identifier (12 bits), inner one (12 bits), or the tunnel that it is inside (24 bits); then flags.
    tags: u32,
    protocol: u8,
    /// VLAN identifiers as seen, outer and inner, 12 bits each: an attribute, never compared or hashed.
    vlan: [u8; 3],
}

impl FlowKey {
    /// Of no flow.
    pub const EMPTY: Self = Self { addresses: [[0; 16]; 2], ports: [0; 2], tags: 0, protocol: 0, vlan: [0; 3] };
}

impl PartialEq for FlowKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.ports == other.ports
            && self.addresses == other.addresses
            && self.tags == other.tags
            && self.protocol == other.protocol
    }
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.addresses, self.ports, self.tags, self.protocol).hash(state);
    }
}

/// Which endpoint of a key sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The lower endpoint.
    Low,
    /// The higher endpoint.
    High,
}

impl Sender {
    #[inline]
    const fn of(is_low: bool) -> Self {
        if is_low { Self::Low } else { Self::High }
    }

    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

impl FlowKey {
    /// The key of a packet's flow, and which endpoint sent it.
    #[must_use]
    #[inline]
    pub fn of(packet: &ParsedPacket<'_>, vlan_in_key: bool) -> (Self, Sender) {
        Self::with_ports(packet, ports(packet), vlan_in_key)
    }

    /// The key of the flow without ports between a packet's endpoints.
    #[must_use]
    pub fn portless(packet: &ParsedPacket<'_>, vlan_in_key: bool) -> (Self, Sender) {
        Self::with_ports(packet, (0, 0, PortKind::None), vlan_in_key)
    }

    #[inline]
    fn with_ports(packet: &ParsedPacket<'_>, ports: (u16, u16, PortKind), vlan_in_key: bool) -> (Self, Sender) {
        let (src_port, dst_port, kind) = ports;
        let mut tags = match kind {
            PortKind::Ports => PORTS,
            PortKind::IcmpPair => ICMP_PAIR,
            PortKind::IcmpOneWay => ICMP_ONE_WAY,
            PortKind::None => 0,
        };
        let [outer, inner] = packet.vlan;
        let both = u32::from(outer & 0xfff) << 12 | u32::from(inner & 0xfff);
        let [_, vlan @ ..] = both.to_be_bytes();
        if packet.inside != 0 {
            tags |= INSIDE | (packet.inside & 0x00ff_ffff);
        } else if vlan_in_key {
            tags |= both;
        }
        // Which way a packet goes is chance, which no processor foretells: no branch may hang on it.
        let (sender, addresses, ports) = match packet.addresses {
            Addresses::V4(octets) => {
                let both = u64::from_be_bytes(*octets);
                // One number of 48 bits an endpoint.
                let (src, dst) = (both >> 32 << 16 | u64::from(src_port), both << 32 >> 16 | u64::from(dst_port));
                let (low, high) = (src.min(dst), src.max(dst));
                (Sender::of(src <= dst), [[0, low >> 16], [0, high >> 16]], [low as u16, high as u16])
            }
            Addresses::V6(octets) => {
                tags |= VERSION_6;
                let (words, _) = octets.as_chunks();
                let [a, b, c, d] = words.try_into().map_or([0; 4], |words: [_; 4]| words.map(u64::from_be_bytes));
                let number = |high, low| u128::from(high) << 64 | u128::from(low);
                let is_low = (number(a, b), src_port) <= (number(c, d), dst_port);
                let swap = u64::from(is_low).wrapping_sub(1);
                let (one, two, ports) = ((a ^ c) & swap, (b ^ d) & swap, (src_port ^ dst_port) & swap as u16);
                (Sender::of(is_low), [[a ^ one, b ^ two], [c ^ one, d ^ two]], [src_port ^ ports, dst_port ^ ports])
            }
        };
        let addresses = addresses.map(|[high, low]| (u128::from(high) << 64 | u128::from(low)).to_be_bytes());
        let key = Self { addresses, ports, tags, protocol: packet.protocol, vlan };
        (key, sender)
    }

    /// A number of 24 bits, never 0, for a tunnel between a packet's endpoints and a network in it: the same in both
    /// directions, for all ports (overlays draw a new one per inner flow), and for each run. Flows inside bear it, so that
    /// networks that use the same addresses do not mix.
    #[must_use]
    pub fn tunnel(outer: &ParsedPacket<'_>, vlan_in_key: bool, network: u32) -> u32 {
        // Two rounds of multiply and fold under constants (the digits of pi): it need not resist, only spread.
        let spread = HashSecrets([
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
            0xa409_3822_299f_31d0,
            0x082e_fa98_ec4e_6c89,
            0x4528_21e6_38d0_1377,
            0xbe54_66cf_34e9_0c6c ^ u64::from(network),
        ]);
        let (portless, _) = Self::portless(outer, vlan_in_key);
        ((portless.hash(&spread) >> 40) as u32).max(1)
    }

    /// The key of everything between the same two hosts, on the same VLANs and inside the same tunnel.
    #[must_use]
    pub fn pair(&self) -> Self {
        let [low, high] = self.addresses;
        let addresses = if low <= high { [low, high] } else { [high, low] };
        let tags = self.tags & !(PORTS | ICMP_PAIR | ICMP_ONE_WAY);
        Self { addresses, ports: [0; 2], tags, protocol: 0, vlan: [0; 3] }
    }

    /// A number that all keys of one [`Self::pair`] share and most others do not.
    #[must_use]
    pub fn pair_mark(&self) -> u16 {
        let [low, high] = self.addresses.map(u128::from_ne_bytes);
        let both = low ^ high;
        (((both ^ (both >> 64)) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
    }

    /// Whether the flow is inside a tunnel.
    #[must_use]
    pub const fn is_inside(&self) -> bool {
        self.tags & INSIDE != 0
    }

    /// A keyed 64-bit hash: multiply and fold, with secrets that an outsider does not know.
    #[must_use]
    #[inline]
    pub fn hash(&self, secrets: &HashSecrets) -> u64 {
        let [low, high] = self.addresses;
        let (low, high) = (u128::from_le_bytes(low), u128::from_le_bytes(high));
        let [a, b] = self.ports;
        let rest = u64::from(self.tags) << 32 | u64::from(a) << 16 | u64::from(b);
        let [k0, k1, k2, k3, k4, k5] = secrets.0;
        let one = fold(low as u64 ^ k0, (low >> 64) as u64 ^ k1);
        let two = fold(high as u64 ^ k2, (high >> 64) as u64 ^ k3);
        fold(one ^ rest ^ k4, two.rotate_left(23) ^ u64::from(self.protocol) ^ k5)
    }

    /// IP version.
    #[must_use]
    pub const fn version(&self) -> IpVersion {
        if self.tags & VERSION_6 == 0 { IpVersion::V4 } else { IpVersion::V6 }
    }

    /// IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// VLAN identifiers of the first packet, outer then inner; 0 for none.
    #[must_use]
    pub const fn vlan(&self) -> [u16; 2] {
        let [a, b, c] = self.vlan;
        let both = u32::from_be_bytes([0, a, b, c]);
        [(both >> 12) as u16, (both & 0xfff) as u16]
    }

    /// What [`Self::raw_ports`] are.
    #[must_use]
    pub const fn port_kind(&self) -> PortKind {
        if self.tags & PORTS != 0 {
            PortKind::Ports
        } else if self.tags & ICMP_PAIR != 0 {
            PortKind::IcmpPair
        } else if self.tags & ICMP_ONE_WAY != 0 {
            PortKind::IcmpOneWay
        } else {
            PortKind::None
        }
    }

    /// Addresses as seen from `sender`: its own first.
    #[must_use]
    pub fn addresses(&self, sender: Sender) -> [IpAddr; 2] {
        let [low, high] = self.addresses.map(|octets| ip_addr(self.version(), octets));
        match sender {
            Sender::Low => [low, high],
            Sender::High => [high, low],
        }
    }

    /// The key of a flow between the addresses that `map` gives for these, each of the same IP version; and whether the lower
    /// endpoint is another one then.
    #[must_use]
    pub fn between(&self, mut map: impl FnMut(IpAddr) -> IpAddr) -> (Self, bool) {
        let [low, high] = self.addresses(Sender::Low).map(|address| match map(address) {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        });
        let [low_port, high_port] = self.ports;
        let is_turned = (low, low_port) > (high, high_port);
        let (addresses, ports) =
            if is_turned { ([high, low], [high_port, low_port]) } else { ([low, high], self.ports) };
        (Self { addresses: addresses.map(u128::to_be_bytes), ports, ..*self }, is_turned)
    }

    /// Port fields as seen from `sender`, whatever they hold.
    #[must_use]
    pub const fn raw_ports(&self, sender: Sender) -> [u16; 2] {
        let [low, high] = self.ports;
        match sender {
            Sender::Low => [low, high],
            Sender::High => [high, low],
        }
    }

    /// Ports as seen from `sender`; `None` where the protocol has none.
    #[must_use]
    pub fn ports(&self, sender: Sender) -> Option<[u16; 2]> {
        (self.port_kind() == PortKind::Ports).then(|| self.raw_ports(sender))
    }

    /// Every octet of the key, for identifiers that must not change between versions.
    #[must_use]
    pub fn canonical(&self) -> [u8; 44] {
        let mut octets = [0; 44];
        let (addresses, rest) = octets.split_at_mut(32);
        let (ports, rest) = rest.split_at_mut(4);
        let (tags, rest) = rest.split_at_mut(4);
        addresses.copy_from_slice(self.addresses.as_flattened());
        ports.copy_from_slice(self.ports.map(u16::to_be_bytes).as_flattened());
        tags.copy_from_slice(&self.tags.to_be_bytes());
        if let Some(protocol) = rest.first_mut() {
            *protocol = self.protocol;
        }
        octets
    }
}

/// Secrets of the keyed hash, spread from one seed.
#[derive(Clone, Copy, Debug)]
pub struct HashSecrets([u64; 6]);

impl HashSecrets {
    /// From a seed that the edge drew at random.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        // SplitMix64 (Steele, Lea and Flood 2014): one seed, six unrelated words.
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        }))
    }
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn ports(packet: &ParsedPacket<'_>) -> (u16, u16, PortKind) {
    match packet.transport {
        Transport::Udp { src_port, dst_port } | Transport::Tcp { src_port, dst_port, .. } => {
            (src_port, dst_port, PortKind::Ports)
        }
        Transport::None => {
            let later = packet.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later);
            match (packet.protocol, packet.payload) {
                _ if later => (0, 0, PortKind::None),
                // RFC 9260 3.1: the common header begins with both ports.
                (SCTP, [a, b, c, d, ..]) => {
                    (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]), PortKind::Ports)
                }
                (ICMP, [kind, code, ..]) => icmp(*kind, *code, ICMP_ANSWERS),
                (ICMPV6, [kind, code, ..]) => icmp(*kind, *code, ICMPV6_ANSWERS),
                _ => (0, 0, PortKind::None),
            }
        }
    }
}

fn icmp(kind: u8, code: u8, answers: &[(u8, u8)]) -> (u16, u16, PortKind) {
    for &(ask, answer) in answers {
        if kind == ask {
            return (u16::from(ask), u16::from(answer), PortKind::IcmpPair);
        }
        if kind == answer {
            return (u16::from(answer), u16::from(ask), PortKind::IcmpPair);
        }
    }
    (u16::from(kind), u16::from(code), PortKind::IcmpOneWay)
}

/// ICMP messages and their answers (community-id-spec, "ICMP"): echo, router, timestamp, information, address mask.
const ICMP_ANSWERS: &[(u8, u8)] = &[(8, 0), (10, 9), (13, 14), (15, 16), (17, 18)];

/// The same for `ICMPv6`: echo, multicast listener, router, neighbour, node information, home agent.
const ICMPV6_ANSWERS: &[(u8, u8)] = &[(128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::packet;

    #[test]
    fn both_directions_share_a_key() {
        let there = packet([198, 51, 100, 1], 40000, [198, 51, 100, 2], 1194, 17);
        let back = packet([198, 51, 100, 2], 1194, [198, 51, 100, 1], 40000, 17);
        let (one, low) = FlowKey::of(&there, true);
        let (two, high) = FlowKey::of(&back, true);
        assert_eq!(one, two);
        assert_eq!((low, high), (Sender::Low, Sender::High));
        assert_eq!(one.ports(Sender::High), Some([1194, 40000]));
        let secrets = HashSecrets::new(7);
        assert_eq!(one.hash(&secrets), two.hash(&secrets));
        assert_ne!(one.hash(&secrets), one.hash(&HashSecrets::new(8)));
    }

    #[test]
    fn a_vlan_is_part_of_the_key_if_wanted() {
        let plain = packet([198, 51, 100, 1], 1, [198, 51, 100, 2], 2, 6);
        let mut tagged = plain;
        tagged.vlan = [100, 7];
        assert_ne!(FlowKey::of(&plain, true).0, FlowKey::of(&tagged, true).0);
        assert_eq!(FlowKey::of(&plain, false).0, FlowKey::of(&tagged, false).0);
        assert_eq!(FlowKey::of(&tagged, false).0.vlan(), [100, 7]);
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut later = packet([198, 51, 100, 1], 1, [198, 51, 100, 2], 2, 17);
        later.transport = Transport::None;
        later.fragment = Some(crate::wire::Fragment { id: 1, position: FragmentPosition::Later, offset: 8, len: 4 });
        later.payload = &[0x12, 0x34, 0x56, 0x78];
        assert_eq!(FlowKey::of(&later, true).0.ports(Sender::Low), None);
    }

    #[test]
    fn the_size_is_known() {
        assert_eq!(size_of::<FlowKey>(), 44);
    }
}
