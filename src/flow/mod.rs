//! Turns parsed packets into flows: keys, the table that holds them, their timeouts and their Community ID.

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
