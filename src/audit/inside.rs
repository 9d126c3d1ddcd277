//! Packets inside packets: mirrors are opened before a flow is looked for, unencrypted tunnels behind their own flow.

use ipnet::IpNet;

use super::describe::FlowName;
use super::{Auditor, Name};
use crate::detect::{Confidence, Detection, Protocol};
use crate::flow::{FlowIndex, FlowKey};
use crate::record::Record;
use crate::wire::{Content, Encapsulation, FragmentPosition, ParseError, ParsedPacket, Transport, open};

/// What is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decapsulation {
    /// Copies of a link's traffic that come in an encapsulation: what is inside is what is on the link.
    pub mirrors: Vec<Mirror>,
    /// Tunnels within each other that are looked into; 0: none.
    pub depth: u8,
}

impl Default for Decapsulation {
    fn default() -> Self {
        Self { mirrors: Vec::new(), depth: 4 }
    }
}

/// Where mirrored traffic comes from, or goes to, and in what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// What the settings call it: ERSPAN is GRE, too.
    pub name: &'static str,
    /// VXLAN, Geneve, GRE (ERSPAN, too) or GTP-U.
    pub encapsulation: Encapsulation,
    /// Who sends the copies; `None`: anybody.
    pub from: Option<IpNet>,
    /// Who receives them; `None`: anybody.
    pub to: Option<IpNet>,
    /// UDP port that they are sent to; `None` for GRE.
    pub port: Option<u16>,
}

/// Mirrors in mirrors that are opened.
const MIRRORS_DEEP: usize = 4;

impl Mirror {
    fn carries(&self, packet: &ParsedPacket<'_>) -> bool {
        let fits_port = match (packet.transport, self.port) {
            (Transport::Udp { dst_port, .. }, Some(port)) => dst_port == port,
            (Transport::None, None) => packet.protocol == GRE,
            _ => false,
        };
        let [src, dst] = packet.addresses.both();
        let is_in = |net: Option<IpNet>, address| net.is_none_or(|net| net.contains(&address));
        let is_later = packet.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later);
        fits_port && !is_later && is_in(self.from, src) && is_in(self.to, dst)
    }
}

const GRE: u8 = 47;

/// Whether a flow's packets are opened, and how.
pub(super) fn encapsulation(detection: Option<Detection>) -> Option<Encapsulation> {
    let detection = detection.filter(|detection| detection.confidence >= Confidence::Likely)?;
    Some(match detection.protocol {
        Protocol::Ipip
        | Protocol::SixInFour
        | Protocol::FourInSix
        | Protocol::SixInSix
        | Protocol::SixToFour
        | Protocol::Isatap
        | Protocol::Fou => Encapsulation::Ip,
        Protocol::Lisp => Encapsulation::Lisp,
        Protocol::Teredo => Encapsulation::Teredo,
        Protocol::Capwap => Encapsulation::Capwap,
        Protocol::IcmpTunnel => Encapsulation::Echo,
        Protocol::Ah => Encapsulation::Ah,
        Protocol::Gre | Protocol::GreInUdp | Protocol::Nvgre | Protocol::Erspan | Protocol::EoIp | Protocol::Pptp => {
            Encapsulation::Gre
        }
        Protocol::Vxlan => Encapsulation::Vxlan,
        Protocol::Geneve => Encapsulation::Geneve,
        Protocol::L2tp => Encapsulation::L2tp,
        Protocol::GtpU => Encapsulation::GtpU,
        Protocol::EtherIp => Encapsulation::EtherIp,
        Protocol::MplsInIp | Protocol::MplsInUdp => Encapsulation::Mpls,
        Protocol::Gue => Encapsulation::Gue,
        // Encrypted, compressed, or without packets inside.
        _ => return None,
    })
}

impl Auditor {
    /// The packet that a mirror copied, or the packet itself.
    pub(super) fn unmirror<'a>(&mut self, mut packet: ParsedPacket<'a>) -> Result<ParsedPacket<'a>, ParseError> {
        let most = packet.wire_len;
        for _ in 0..MIRRORS_DEEP {
            let mirrors = &self.settings.decapsulation.mirrors;
            let Some(mirror) = mirrors.iter().find(|mirror| mirror.carries(&packet)) else { break };
            let Some(opened) = open(mirror.encapsulation, &packet, Content::Cut) else { break };
            self.counters.mirrored += 1;
            // A first fragment claims more than it brings.
            packet = opened.packet.map(|inside| ParsedPacket { wire_len: inside.wire_len.min(most), ..inside })?;
        }
        Ok(packet)
    }

    /// Gives the packet inside a tunnel's to its own flow, which names the tunnel's.
    pub(super) fn look_inside(
        &mut self,
        outer: &ParsedPacket<'_>,
        index: FlowIndex,
        depth: u8,
        emit: &mut impl FnMut(Record),
    ) {
        if outer.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later) {
            return;
        }
        let Some(flow) = self.table.flow(index) else { return };
        let Some(opened) =
            encapsulation(flow.tenant.detection()).and_then(|encapsulation| open(encapsulation, outer, Content::Whole))
        else {
            return;
        };
        let tunnel = FlowName::of(flow);
        self.counters.inside.packets += 1;
        let Ok(packet) = opened.packet else {
            self.counters.inside.undecodable += 1;
            return;
        };
        let vlan_in_key = self.settings.flow.vlan_in_key;
        let inside = FlowKey::tunnel(outer, vlan_in_key, opened.network);
        // What is inside goes the tunnel's way: an approval by path covers it as it covers the tunnel.
        let packet = ParsedPacket { vlan: outer.vlan, mpls_label: outer.mpls_label, inside, ..packet };
        let (key, sender) = FlowKey::of(&packet, vlan_in_key);
        let mut name = Name { key, sender, hash: self.table.hash(&key) };
        if packet.fragment.is_none_or(|fragment| self.resolve(fragment, &packet, &mut name, emit)) {
            self.take(&packet, &name, depth + 1, Some(&tunnel), emit);
        }
    }
}
