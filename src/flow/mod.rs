//! Turns parsed packets into flows: keys, the table that holds them, their timeouts and their Community ID.

mod community_id;
mod fragments;
mod identifier;
mod index;
mod key;
mod table;

pub use community_id::community_digest;
pub use fragments::{Datagram, Fragments, Orphan};
pub use identifier::{CommunityId, FlowId, IdentifierError};
pub use key::{FlowKey, HashSecrets, PortKind, Sender};
pub use table::{Flow, FlowIndex, FlowTable, LINGER, Opener, Pressure, Rank, STEP, Tenant};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::wire::IpVersion;

/// Direction relative to the first packet seen of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// As the first packet seen.
    Forward,
    /// Against it.
    Reverse,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }
}

/// How flows are told apart and when they end; see `config/linewarden.toml`, section `flow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSettings {
    /// A flow without a packet for this long has ended.
    pub idle_timeout: Duration,
    /// A flow older than this is ended and continued in a new one.
    pub active_timeout: Duration,
    /// Memory bound for flows and their evidence, octets per worker.
    pub memory_octets: usize,
    /// VLAN identifiers are part of the key.
    pub vlan_in_key: bool,
    /// One's own networks; empty: direction is told by who spoke first.
    pub home_nets: Vec<IpNet>,
}

/// Turns the wire's form of an address into the standard library's.
#[must_use]
pub fn ip_addr(version: IpVersion, octets: [u8; 16]) -> IpAddr {
    match version {
        IpVersion::V4 => {
            let [.., a, b, c, d] = octets;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        IpVersion::V6 => IpAddr::V6(Ipv6Addr::from(octets)),
    }
}

/// Why a flow's last record was written (IPFIX `flowEndReason`, information element 136).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// 1: no packet for the idle timeout.
    IdleTimeout,
    /// 2: older than the active timeout; continued in another flow.
    ActiveTimeout,
    /// 3: TCP's FIN in both directions, or RST.
    EndOfFlow,
    /// 4: the capture or the daemon ended.
    ForcedEnd,
    /// 5: evicted to keep the memory bound.
    LackOfResources,
}

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;
    use crate::time::Timestamp;
    use crate::wire::{Addresses, InterfaceId, ParsedPacket, Transport};

    pub fn settings() -> FlowSettings {
        FlowSettings {
            idle_timeout: Duration::from_mins(2),
            active_timeout: Duration::from_mins(30),
            memory_octets: 16 << 20,
            vlan_in_key: true,
            home_nets: Vec::new(),
        }
    }

    /// A packet with ports and no payload.
    pub fn packet(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16, protocol: u8) -> ParsedPacket<'static> {
        let mut packet = packet_between(&Ipv4Addr::from(src).to_string(), &Ipv4Addr::from(dst).to_string(), protocol);
        packet.transport = Transport::Udp { src_port, dst_port };
        packet
    }

    /// A packet without ports.
    pub fn packet_between(src: &str, dst: &str, protocol: u8) -> ParsedPacket<'static> {
        let octets = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // A test's packets may live as long as it does.
        let octets = [octets(src), octets(dst)].concat().leak();
        let addresses = match octets.first_chunk() {
            Some(octets) => Addresses::V6(octets),
            None => Addresses::V4(octets.first_chunk().unwrap()),
        };
        ParsedPacket {
            at: Timestamp::ZERO,
            number: 1,
            wire_len: 60,
            interface: InterfaceId(0),
            vlan: [0; 2],
            mpls_label: None,
            inside: 0,
            addresses,
            protocol,
            fragment: None,
            transport: Transport::None,
            payload: &[],
            payload_len: 0,
        }
    }
}
