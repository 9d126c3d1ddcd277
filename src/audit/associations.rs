//! Which flows belong together: IKE and its ESP, PPTP's control connection and its GRE, and others that one pair of hosts
//! has side by side. Both ends of the pair come to one worker, so that no map is shared.

use std::collections::HashMap;
use std::sync::Arc;

use super::Auditor;
use super::describe::FlowName;
use crate::detect::Protocol;
use crate::flow::{FlowIndex, FlowKey};
use crate::time::Timestamp;

/// Protocols that make one tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// RFC 7296 1: IKE sets up ESP and AH.
    Ipsec,
    /// RFC 2637 2: a control connection, and GRE.
    Pptp,
    /// TS 29.281 4.3: control plane and user plane.
    Gtp,
    /// tinc's meta connection, and its packets.
    Tinc,
    /// Tailscale's disco, and the `WireGuard` that it finds ways for.
    Wireguard,
    /// `AnyConnect`'s channels.
    AnyConnect,
    /// LISP's control messages, and its data.
    Lisp,
    /// CAPWAP's control and data channels.
    Capwap,
    /// `SoftEther`'s channels.
    SoftEther,
}

impl Family {
    const fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Ike | Protocol::Esp | Protocol::Ah => Some(Self::Ipsec),
            Protocol::Pptp => Some(Self::Pptp),
            Protocol::GtpC | Protocol::GtpU => Some(Self::Gtp),
            Protocol::Tinc => Some(Self::Tinc),
            Protocol::Tailscale | Protocol::Wireguard => Some(Self::Wireguard),
            Protocol::AnyConnect => Some(Self::AnyConnect),
            Protocol::Lisp => Some(Self::Lisp),
            Protocol::Capwap => Some(Self::Capwap),
            Protocol::SoftEther => Some(Self::SoftEther),
            _ => None,
        }
    }
}

/// Flows of one family between two hosts that are remembered; those beyond name others, but are not named.
const MOST: usize = 8;

/// The tunnels' flows, by hosts and family: no more than there are open flows of these families.
#[derive(Debug, Default)]
pub(super) struct Associations {
    pairs: HashMap<(FlowKey, Family), Vec<FlowName>>,
}

impl Associations {
    /// Adds a flow to its pair's tunnel; gives back those that `is_open` says are still there, and forgets the others.
    fn join(&mut self, name: FlowName, family: Family, is_open: impl Fn(&FlowName) -> bool) -> Vec<FlowName> {
        let members = self.pairs.entry((name.key.pair(), family)).or_default();
        members.retain(|member| *member != name && is_open(member));
        let others = members.clone();
        if members.len() < MOST {
            members.push(name);
        }
        others
    }

    /// Takes a flow out again; the pair is forgotten with its last one.
    pub(super) fn leave(&mut self, name: &FlowName, family: Family) {
        let pair = (name.key.pair(), family);
        let Some(members) = self.pairs.get_mut(&pair) else { return };
        members.retain(|member| member != name);
        if members.is_empty() {
            self.pairs.remove(&pair);
        }
    }
}

impl Auditor {
    /// Lets a flow and those of the same tunnel that are open at that time name each other, once.
    pub(super) fn associate(&mut self, index: FlowIndex, at: Timestamp) {
        let Some(flow) = self.table.flow_mut(index) else { return };
        let name = FlowName::of(flow);
        let Some(file) = flow.tenant.file.as_mut() else { return };
        let family = file.detection.and_then(|detection| Family::of(detection.protocol));
        let before = std::mem::replace(&mut file.family, family);
        if before == family {
            return;
        }
        if let Some(before) = before {
            self.associations.leave(&name, before);
        }
        let Some(family) = family else { return };
        // A flow whose time is up may not have been ended yet: which ones have hangs on the batch.
        let is_open = |member: &FlowName| {
            let open = self.table.find(&member.key, self.table.hash(&member.key));
            let open = open.and_then(|index| self.table.flow(index));
            open.is_some_and(|flow| flow.first == member.first && self.table.deadline(flow) >= at)
        };
        let others = self.associations.join(name, family, is_open);
        for other in &others {
            self.relate(other, name.id());
            self.relate(&name, other.id());
        }
    }

    fn relate(&mut self, name: &FlowName, id: Arc<str>) {
        let Some(index) = self.table.find(&name.key, self.table.hash(&name.key)) else { return };
        self.table.with_tenant(index, |flow| {
            let Some(file) = flow.tenant.file.as_mut() else { return };
            if file.related.len() < MOST && !file.related.contains(&id) {
                file.related.push(id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::{packet, packet_between};

    fn name(packet: &crate::wire::ParsedPacket<'_>) -> FlowName {
        FlowName { key: FlowKey::of(packet, true).0, first: Timestamp::ZERO }
    }

    #[test]
    fn flows_of_one_family_between_two_hosts_find_each_other() {
        let ike = name(&packet([198, 51, 100, 1], 500, [198, 51, 100, 2], 500, 17));
        let esp = name(&packet_between("198.51.100.2", "198.51.100.1", 50));
        let other = name(&packet_between("198.51.100.2", "198.51.100.3", 50));
        let mut associations = Associations::default();
        assert!(associations.join(ike, Family::Ipsec, |_| true).is_empty());
        assert_eq!(associations.join(esp, Family::Ipsec, |_| true), [ike]);
        assert!(associations.join(other, Family::Ipsec, |_| true).is_empty(), "another host");
        assert!(associations.join(esp, Family::Gtp, |_| true).is_empty(), "another family");
        assert!(associations.join(esp, Family::Ipsec, |member| *member != ike).is_empty(), "over");
        associations.leave(&esp, Family::Gtp);
        associations.leave(&esp, Family::Ipsec);
        associations.leave(&other, Family::Ipsec);
        assert!(associations.pairs.is_empty());
    }

    #[test]
    fn a_scan_of_ports_is_remembered_in_part() {
        let mut associations = Associations::default();
        for port in 1..1000 {
            let scan = name(&packet([198, 51, 100, 1], port, [198, 51, 100, 2], 500, 17));
            assert!(associations.join(scan, Family::Ipsec, |_| true).len() <= MOST);
        }
    }
}
