//! Turns payloads into evidence of a tunnel protocol, and evidence into a detection.
//!
//! A detector holds no state: what it may remember of a flow is the evidence it gave earlier
//! and a small fixed slot per direction for sequence checks, both in [`Findings`].

mod anyconnect;
mod capwap;
mod dispatch;
mod dns;
mod esp;
mod etherip;
mod fastd;
mod findings;
mod geneve;
mod gre;
mod gre_udp;
mod gtp;
mod gue;
mod icmp;
mod identity;
mod ike;
mod inner;
mod ipcomp;
mod ipip;
mod l2tp;
mod lisp;
mod mpls;
mod n2n;
mod nebula;
mod openvpn;
mod openvpn_tcp;
mod overlay;
mod pptp_control;
mod sequence;
mod softether;
mod tailscale;
mod teredo;
mod text;
mod tinc;
mod vxlan;
mod wireguard;
mod wireguard_reserved;
mod without_tls;
mod zerotier;

pub use anyconnect::beside_tls;
pub use dispatch::{Begin, Dispatch, Set};
pub use findings::{Evidence, Findings, Slot, SlotId};
pub use identity::{
    Checks, Fingerprint, Identity, Key, KeyCounts, KeyError, KeyKind, Keyring, Seen, may_hold_handshake,
};

use serde::{Deserialize, Serialize};

use crate::flow::Direction;
use crate::time::Timestamp;
use crate::wire::TcpFlags;

/// How sure the evidence makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// One sign; never an alarm at the default setting.
    Possible,
    /// Several independent signs in one direction.
    Likely,
    /// A two-way exchange that only this protocol makes, or a verified key; for
    /// protocols without ports, an inner header that checks out.
    Certain,
}

impl Confidence {
    /// All, ascending.
    pub const ALL: [Self; 3] = [Self::Possible, Self::Likely, Self::Certain];

    /// The name in records, settings and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// A tunnel protocol that linewarden names in records.
///
/// The order is that of preference at equal confidence: what carries the traffic
/// (ESP, PPTP's GRE) before what sets it up (IKE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// WireGuard.
    #[serde(rename = "wireguard")]
    Wireguard,
    /// OpenVPN over UDP or TCP.
    #[serde(rename = "openvpn")]
    Openvpn,
    /// AnyConnect and OpenConnect.
    #[serde(rename = "anyconnect")]
    AnyConnect,
    /// SoftEther VPN, beside its TLS.
    #[serde(rename = "softether")]
    SoftEther,
    /// SSTP.
    #[serde(rename = "sstp")]
    Sstp,
    /// IPsec ESP, plain or in UDP.
    #[serde(rename = "esp")]
    Esp,
    /// IPsec AH.
    #[serde(rename = "ah")]
    Ah,
    /// IKEv1 and IKEv2.
    #[serde(rename = "ike")]
    Ike,
    /// PPTP's enhanced GRE.
    #[serde(rename = "pptp")]
    Pptp,
    /// ERSPAN.
    #[serde(rename = "erspan")]
    Erspan,
    /// NVGRE.
    #[serde(rename = "nvgre")]
    Nvgre,
    /// MikroTik EoIP.
    #[serde(rename = "eoip")]
    EoIp,
    /// GRE.
    #[serde(rename = "gre")]
    Gre,
    /// IPv4 in IPv4.
    #[serde(rename = "ipip")]
    Ipip,
    /// IPv6 in IPv4.
    #[serde(rename = "6in4")]
    SixInFour,
    /// IPv4 in IPv6.
    #[serde(rename = "4in6")]
    FourInSix,
    /// IPv6 in IPv6.
    #[serde(rename = "6in6")]
    SixInSix,
    /// 6to4.
    #[serde(rename = "6to4")]
    SixToFour,
    /// ISATAP.
    #[serde(rename = "isatap")]
    Isatap,
    /// VXLAN and VXLAN-GPE.
    #[serde(rename = "vxlan")]
    Vxlan,
    /// Geneve.
    #[serde(rename = "geneve")]
    Geneve,
    /// LISP, data and control.
    #[serde(rename = "lisp")]
    Lisp,
    /// CAPWAP, control and data.
    #[serde(rename = "capwap")]
    Capwap,
    /// L2TP, versions 2 and 3.
    #[serde(rename = "l2tp")]
    L2tp,
    /// GTP user plane.
    #[serde(rename = "gtp-u")]
    GtpU,
    /// GTP control plane.
    #[serde(rename = "gtp-c")]
    GtpC,
    /// EtherIP.
    #[serde(rename = "etherip")]
    EtherIp,
    /// IPComp.
    #[serde(rename = "ipcomp")]
    IpComp,
    /// MPLS in IP.
    #[serde(rename = "mpls-in-ip")]
    MplsInIp,
    /// MPLS in UDP.
    #[serde(rename = "mpls-in-udp")]
    MplsInUdp,
    /// GRE in UDP.
    #[serde(rename = "gre-in-udp")]
    GreInUdp,
    /// GUE, variant 0.
    #[serde(rename = "gue")]
    Gue,
    /// IP bare in UDP: foo over UDP, GUE variant 1.
    #[serde(rename = "fou")]
    Fou,
    /// Teredo.
    #[serde(rename = "teredo")]
    Teredo,
    /// iodine: IP in DNS.
    #[serde(rename = "iodine")]
    Iodine,
    /// dns2tcp: TCP in DNS.
    #[serde(rename = "dns2tcp")]
    Dns2tcp,
    /// ptunnel and ptunnel-ng: TCP in ICMP echo.
    #[serde(rename = "ptunnel")]
    Ptunnel,
    /// IP in ICMP echo.
    #[serde(rename = "icmp-tunnel")]
    IcmpTunnel,
    /// Nebula.
    #[serde(rename = "nebula")]
    Nebula,
    /// n2n.
    #[serde(rename = "n2n")]
    N2n,
    /// fastd.
    #[serde(rename = "fastd")]
    Fastd,
    /// tinc.
    #[serde(rename = "tinc")]
    Tinc,
    /// Tailscale's disco, and what passes its peer relays.
    #[serde(rename = "tailscale")]
    Tailscale,
    /// ZeroTier.
    #[serde(rename = "zerotier")]
    Zerotier,
}

impl Protocol {
    /// All, in order of preference.
    pub const ALL: &[Self] = &[
        Self::Wireguard,
        Self::Openvpn,
        Self::AnyConnect,
        Self::SoftEther,
        Self::Sstp,
        Self::Esp,
        Self::Ah,
        Self::Ike,
        Self::Pptp,
        Self::Erspan,
        Self::Nvgre,
        Self::EoIp,
        Self::Gre,
        Self::Ipip,
        Self::SixInFour,
        Self::FourInSix,
        Self::SixInSix,
        Self::SixToFour,
        Self::Isatap,
        Self::Vxlan,
        Self::Geneve,
        Self::Lisp,
        Self::Capwap,
        Self::L2tp,
        Self::GtpU,
        Self::GtpC,
        Self::EtherIp,
        Self::IpComp,
        Self::MplsInIp,
        Self::MplsInUdp,
        Self::GreInUdp,
        Self::Gue,
        Self::Fou,
        Self::Teredo,
        Self::Iodine,
        Self::Dns2tcp,
        Self::Ptunnel,
        Self::IcmpTunnel,
        Self::Nebula,
        Self::N2n,
        Self::Fastd,
        Self::Tinc,
        Self::Tailscale,
        Self::Zerotier,
    ];

    /// The name in records, approvals and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Openvpn => "openvpn",
            Self::AnyConnect => "anyconnect",
            Self::SoftEther => "softether",
            Self::Sstp => "sstp",
            Self::Esp => "esp",
            Self::Ah => "ah",
            Self::Ike => "ike",
            Self::Pptp => "pptp",
            Self::Erspan => "erspan",
            Self::Nvgre => "nvgre",
            Self::EoIp => "eoip",
            Self::Gre => "gre",
            Self::Ipip => "ipip",
            Self::SixInFour => "6in4",
            Self::FourInSix => "4in6",
            Self::SixInSix => "6in6",
            Self::SixToFour => "6to4",
            Self::Isatap => "isatap",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Lisp => "lisp",
            Self::Capwap => "capwap",
            Self::L2tp => "l2tp",
            Self::GtpU => "gtp-u",
            Self::GtpC => "gtp-c",
            Self::EtherIp => "etherip",
            Self::IpComp => "ipcomp",
            Self::MplsInIp => "mpls-in-ip",
            Self::MplsInUdp => "mpls-in-udp",
            Self::GreInUdp => "gre-in-udp",
            Self::Gue => "gue",
            Self::Fou => "fou",
            Self::Teredo => "teredo",
            Self::Iodine => "iodine",
            Self::Dns2tcp => "dns2tcp",
            Self::Ptunnel => "ptunnel",
            Self::IcmpTunnel => "icmp-tunnel",
            Self::Nebula => "nebula",
            Self::N2n => "n2n",
            Self::Fastd => "fastd",
            Self::Tinc => "tinc",
            Self::Tailscale => "tailscale",
            Self::Zerotier => "zerotier",
        }
    }

    /// Whether a certain finding ends inspection. IKE's does not: on UDP 4500 the ESP that it sets up shares its flow.
    /// Nor does disco's, whose WireGuard follows on the same flow.
    #[must_use]
    pub const fn settles(self) -> bool {
        !matches!(self, Self::Ike | Self::Tailscale)
    }
}

/// Which part of a protocol a piece of evidence is from; tells whether a flow was picked up mid-stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The tunnel's set-up or its first packet (a sequence number of 1): seen from the start.
    Handshake,
    /// Data of a tunnel already up.
    Data,
    /// The protocol has no set-up (GRE, IP in IP).
    Stateless,
}

/// One kind of evidence that a detector can give.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `protocol.fact`, for example `wireguard.response`.
    pub name: &'static str,
    /// What it says, in a sentence that a network engineer understands.
    pub meaning: &'static str,
    /// Where the specification says so, for example `RFC 7296 3.1`.
    pub clause: &'static str,
    /// Which part of the protocol.
    pub phase: Phase,
}

impl Code {
    /// The code of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        REGISTRY.iter().flat_map(|detector| detector.about().codes).copied().find(|code| code.name == name)
    }
}

/// What the payload came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A UDP datagram (or its first fragment).
    Udp,
    /// Part of a TCP stream.
    Tcp {
        /// Sequence number of the payload's first octet.
        seq: u32,
        /// Flags.
        flags: TcpFlags,
    },
    /// An IP protocol without ports.
    Ip {
        /// IP protocol number.
        protocol: u8,
        /// Whether the outer header is IPv6.
        outer_v6: bool,
    },
}

/// One packet's payload, as a detector sees it: no addresses.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// When.
    pub at: Timestamp,
    /// Position in the capture, from 1.
    pub packet: u64,
    /// Which way.
    pub direction: Direction,
    /// What it came in.
    pub carrier: Carrier,
    /// Source and destination port, 0 where there are none. Never evidence for more than `possible`.
    pub ports: [u16; 2],
    /// Captured octets; may be fewer than `payload_len`.
    pub payload: &'a [u8],
    /// Octets on the wire; of a first fragment those of the whole datagram where its header tells (UDP), else its own.
    pub payload_len: u32,
    /// A first fragment: what is inside may be longer.
    pub is_fragment: bool,
}

impl Segment<'_> {
    /// Octets on the wire behind the first `offset` ones; [`inner::UNKNOWN`] in a first fragment.
    pub(crate) const fn len_behind(&self, offset: u32) -> u32 {
        if self.is_fragment { inner::UNKNOWN } else { self.payload_len.saturating_sub(offset) }
    }
}

/// The most probable tunnel protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detection {
    /// Which protocol.
    pub protocol: Protocol,
    /// How sure.
    pub confidence: Confidence,
    /// The tunnel was up before its first packet was seen.
    pub midstream: bool,
    /// Whose keys its handshakes were made with, where the policy pins some.
    pub identity: Identity,
}

/// What the README's table and `linewarden detectors` say of a detector.
#[derive(Debug)]
pub struct About {
    /// The file's and captures' name: `wireguard`.
    pub name: &'static str,
    /// Protocols it can name.
    pub protocols: &'static [Protocol],
    /// What carries it: `udp`, `tcp`, `ip 50`.
    pub carriers: &'static [CarrierKind],
    /// What a payload over UDP or TCP must show for the detector to be called; it is called on every packet of its IP
    /// protocols. Once it took note of a flow, it is shown all of the flow's payloads that are looked at.
    pub begins: &'static [Begin],
    /// What is recognised, in one line.
    pub recognises: &'static str,
    /// The public specification.
    pub specification: &'static str,
    /// How often random octets pass, and so why it can be no chance; the file's header derives it.
    pub chance: &'static str,
    /// Whether it recognises a tunnel whose set-up was not seen, and how sure it can get.
    pub midstream: Option<Confidence>,
    /// How sure it can get at best.
    pub reaches: Confidence,
    /// What a passive eye cannot see.
    pub out_of_sight: &'static str,
    /// Every code of evidence it can give.
    pub codes: &'static [&'static Code],
}

/// Which payloads a detector is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// UDP datagrams on any port.
    Udp,
    /// TCP streams on any port.
    Tcp,
    /// An IP protocol number.
    Ip(u8),
}

/// Recognises one family of tunnels.
pub trait Detector: Sync {
    /// What it is.
    fn about(&self) -> &'static About;

    /// Looks at one payload and adds what it finds. Must not panic whatever the octets, and must cost next to nothing
    /// on payloads that are not its own.
    fn inspect(&self, segment: &Segment<'_>, findings: &mut Findings);
}

/// Whether a UDP payload may open a tunnel: looked at even in flows that showed none so far, for hole punching, STUN or a
/// probe may come first. A few octets and a length, no more.
#[must_use]
#[inline]
pub fn may_open(payload: &[u8], len: u32) -> bool {
    match *payload {
        // WireGuard: initiation and response (whitepaper 5.4).
        [1, 0, 0, 0, ..] => len == 148,
        [2, 0, 0, 0, ..] => len == 92,
        // OpenVPN: a client's reset, version 2 in its sizes with and without guards, version 3 with a wrapped key.
        [0x38, ..] => (14..=130).contains(&len),
        [0x50, ..] => len >= 100,
        // Nebula: a first handshake message, without an index.
        [0x10, 0, 0, 0, 0, 0, 0, 0, ..] => len >= 48,
        // fastd: a handshake request.
        [1, 0, _, _, 0, 0, 1, 0, 1, ..] => len >= 48,
        // IKE: no responder's SPI yet; version 2's IKE_SA_INIT, version 1's main and aggressive mode (RFC 7296 3.1).
        [_, _, _, _, _, _, _, _, 0, 0, 0, 0, 0, 0, 0, 0, _, version, exchange, ..] => {
            matches!((version, exchange), (0x20, 34) | (0x10, 2 | 4))
        }
        // Tailscale: a disco ping.
        [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac, ..] => len >= 92,
        // ZeroTier: a HELLO, verb 1 without a cipher, in which the sender's address comes twice.
        _ if len >= 112 && payload.get(27) == Some(&1) => payload.get(13..18) == payload.get(41..46),
        _ => false,
    }
}

/// Whether a UDP payload says something of a flow whose tunnel is certain: Tailscale's disco shares WireGuard's.
#[must_use]
#[inline]
pub fn goes_beside(payload: &[u8]) -> bool {
    payload.starts_with(&tailscale::MAGIC)
}

/// Every detector. The order is that of the tables.
pub const REGISTRY: &[&dyn Detector] = &[
    &wireguard::Wireguard,
    &openvpn::OpenvpnUdp,
    &openvpn_tcp::OpenvpnTcp,
    &anyconnect::AnyConnect,
    &without_tls::Cstp,
    &without_tls::Sstp,
    &softether::SoftEther,
    &ike::Ike,
    &esp::Esp,
    &esp::EspInUdp,
    &esp::Ah,
    &gre::Gre,
    &pptp_control::PptpControl,
    &ipip::IpInIp,
    &vxlan::Vxlan,
    &geneve::Geneve,
    &lisp::Lisp,
    &capwap::Capwap,
    &l2tp::L2tp,
    &gtp::Gtp,
    &etherip::EtherIp,
    &ipcomp::IpComp,
    &mpls::MplsInIp,
    &gre_udp::GreInUdp,
    &gue::Gue,
    &gue::Fou,
    &teredo::Teredo,
    &dns::Dns,
    &icmp::Icmp,
    &mpls::MplsInUdp,
    &nebula::Nebula,
    &n2n::N2n,
    &fastd::Fastd,
    &tinc::Tinc,
    &tailscale::Tailscale,
    &zerotier::Zerotier,
];

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    /// A UDP payload between ports that mean nothing.
    pub fn udp(direction: Direction, payload: &[u8]) -> Segment<'_> {
        segment(direction, Carrier::Udp, payload)
    }

    pub fn segment(direction: Direction, carrier: Carrier, payload: &[u8]) -> Segment<'_> {
        Segment {
            at: Timestamp::from_secs(1_700_000_000),
            packet: 1,
            direction,
            carrier,
            ports: [40_000, 40_001],
            payload,
            payload_len: payload.len() as u32,
            is_fragment: false,
        }
    }

    /// Octets that do not repeat themselves, as ciphertext does not.
    pub fn ciphertext(seed: u64, len: usize) -> Vec<u8> {
        // SplitMix64 (Steele, Lea and Flood 2014).
        let word = |at: u64| {
            let mut word = (seed << 20 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word ^ (word >> 27)
        };
        (1..).flat_map(|at| word(at).to_be_bytes()).take(len).collect()
    }

    /// What a detector makes of some packets.
    pub fn best(detector: &dyn Detector, packets: &[Segment<'_>]) -> Option<(Protocol, Confidence)> {
        let mut findings = Findings::default();
        for segment in packets {
            detector.inspect(segment, &mut findings);
        }
        findings.detection().map(|detection| (detection.protocol, detection.confidence))
    }

    /// Octets by xorshift: the same at each run.
    pub struct Noise(u64);

    impl Default for Noise {
        fn default() -> Self {
            Self(0x9e37_79b9_7f4a_7c15)
        }
    }

    impl Noise {
        pub fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % end
        }

        pub fn octets(&mut self, len: usize) -> Vec<u8> {
            (0..len).map(|_| self.below(256) as u8).collect()
        }
    }

    /// Random datagrams in tests of chance: few, or as many as `LINEWARDEN_NOISE` said when this was built.
    pub fn trials() -> u32 {
        option_env!("LINEWARDEN_NOISE").and_then(|count| count.parse().ok()).unwrap_or(200_000)
    }

    /// [`trials`] random datagrams, in flows of 32 whose directions take turns; the first that a flow is more than
    /// `possible` for.
    pub fn alarms(
        detector: &dyn Detector,
        carrier: Carrier,
        ports: [u16; 2],
        mut datagram: impl FnMut(&mut Noise) -> Vec<u8>,
    ) -> Option<String> {
        let mut noise = Noise::default();
        for flow in 0..trials() / 32 {
            let mut findings = Findings::default();
            for packet in 0..32 {
                let octets = datagram(&mut noise);
                let direction = if packet % 2 == 0 { Direction::Forward } else { Direction::Reverse };
                detector.inspect(&Segment { ports, ..segment(direction, carrier, &octets) }, &mut findings);
            }
            let found = findings.detection().filter(|found| found.confidence > Confidence::Possible);
            if let Some(found) = found {
                return Some(format!("flow {flow}: {found:?}"));
            }
        }
        None
    }
}
