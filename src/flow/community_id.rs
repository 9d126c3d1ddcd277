//! Turns a flow key into its Community ID version 1 (github.com/corelight/community-id-spec):
//! `"1:" + base64(sha1(seed, low address, high address, protocol, 0, low port, high port))`.

use std::net::IpAddr;

use sha1::{Digest, Sha1};

use crate::flow::{FlowKey, PortKind, Sender};

/// The digest in the Community ID of a flow. `first` sent its first packet: it decides the order for ICMP without answers only.
#[must_use]
pub fn community_digest(key: &FlowKey, first: Sender, seed: u16) -> [u8; 20] {
    let sender = match key.port_kind() {
        // The specification keeps messages without an answer in the order of the wire.
        PortKind::IcmpOneWay => first,
        _ => Sender::Low,
    };
    let mut hash = Sha1::new();
    hash.update(seed.to_be_bytes());
    for address in key.addresses(sender) {
        match address {
            IpAddr::V4(address) => hash.update(address.octets()),
            IpAddr::V6(address) => hash.update(address.octets()),
        }
    }
    hash.update([key.protocol(), 0]);
    if key.port_kind() != PortKind::None {
        for port in key.raw_ports(sender) {
            hash.update(port.to_be_bytes());
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::CommunityId;
    use crate::flow::tests_support::packet_between;
    use crate::wire::Transport;

    struct Case {
        name: &'static str,
        from: &'static str,
        to: &'static str,
        protocol: u8,
        /// Ports, or ICMP type and code.
        ports: [u16; 2],
        seed: u16,
        expected: &'static str,
    }

    /// Vectors published with the specification (corelight/community-id-spec and pycommunityid).
    #[rustfmt::skip]
    const CASES: &[Case] = &[
        Case { name: "tcp", from: "128.232.110.120", to: "66.35.250.204", protocol: 6, ports: [34855, 80], seed: 0, expected: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=" },
        Case { name: "tcp, back", from: "66.35.250.204", to: "128.232.110.120", protocol: 6, ports: [80, 34855], seed: 0, expected: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=" },
        Case { name: "tcp, seed 1", from: "128.232.110.120", to: "66.35.250.204", protocol: 6, ports: [34855, 80], seed: 1, expected: "1:3V71V58M3Ksw/yuFALMcW0LAHvc=" },
        Case { name: "udp", from: "192.168.1.52", to: "8.8.8.8", protocol: 17, ports: [54585, 53], seed: 0, expected: "1:d/FP5EW3wiY1vCndhwleRRKHowQ=" },
        Case { name: "udp, seed 1", from: "192.168.1.52", to: "8.8.8.8", protocol: 17, ports: [54585, 53], seed: 1, expected: "1:Q9We8WO3piVF8yEQBNJF4uiSVrI=" },
        Case { name: "udp, same address", from: "192.168.1.42", to: "192.168.1.42", protocol: 6, ports: [42, 41], seed: 0, expected: "1:eRcf7I/xocOxnYo5pbJBV5NhVm0=" },
        Case { name: "icmp echo", from: "192.168.0.89", to: "192.168.0.1", protocol: 1, ports: [8, 0], seed: 0, expected: "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=" },
        Case { name: "icmp echo reply", from: "192.168.0.1", to: "192.168.0.89", protocol: 1, ports: [0, 0], seed: 0, expected: "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=" },
        Case { name: "icmp one-way, code 0", from: "192.168.0.89", to: "192.168.0.1", protocol: 1, ports: [20, 0], seed: 0, expected: "1:3o2RFccXzUgjl7zDpqmY7yJi8rI=" },
        Case { name: "icmp one-way, code 1", from: "192.168.0.89", to: "192.168.0.1", protocol: 1, ports: [20, 1], seed: 0, expected: "1:tz/fHIDUHs19NkixVVoOZywde+I=" },
        Case { name: "icmpv6 neighbour", from: "fe80::200:86ff:fe05:80da", to: "fe80::260:97ff:fe07:69ea", protocol: 58, ports: [135, 0], seed: 0, expected: "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=" },
        Case { name: "icmpv6 one-way", from: "3ffe:507:0:1:200:86ff:fe05:80da", to: "3ffe:507:0:1:260:97ff:fe07:69ea", protocol: 58, ports: [3, 0], seed: 0, expected: "1:/OGBt9BN1ofenrmSPWYicpij2Vc=" },
        Case { name: "sctp", from: "192.168.170.8", to: "192.168.170.56", protocol: 132, ports: [7, 80], seed: 0, expected: "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=" },
        Case { name: "rsvp", from: "1.2.3.4", to: "5.6.7.8", protocol: 46, ports: [0, 0], seed: 0, expected: "1:ikv3kmf89luf73WPz1jOs49S768=" },
    ];

    #[test]
    fn published_vectors() {
        for case in CASES {
            let [a, b] = case.ports;
            let [a_high, a_low] = a.to_be_bytes();
            let [b_high, b_low] = b.to_be_bytes();
            let ports = [a_high, a_low, b_high, b_low];
            let icmp = [a_low, b_low, 0, 0];
            let mut packet = packet_between(case.from, case.to, case.protocol);
            match case.protocol {
                6 | 17 => packet.transport = Transport::Udp { src_port: a, dst_port: b },
                132 => packet.payload = &ports,
                _ => packet.payload = &icmp,
            }
            let (key, sender) = FlowKey::of(&packet, true);
            let id = CommunityId::Digest(community_digest(&key, sender, case.seed));
            assert_eq!(id.to_string(), case.expected, "{}", case.name);
        }
    }
}
