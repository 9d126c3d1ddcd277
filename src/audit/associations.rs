//! Which flows belong together: IKE and its ESP, PPTP's control connection and its GRE, and others that one pair of hosts
//! has side by side. Both ends of the pair come to one worker, so that no map is shared.

use std::collections::HashMap;

use super::case::{Case, Marks};
use super::describe::FlowName;
use super::{Auditor, UDP};
use crate::detect::{Carrier, Protocol, Segment, beside_tls};
use crate::flow::{Direction, Flow, FlowIndex, FlowKey, FlowTable, Sender};
use crate::record::Record;
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
        // Most pairs have one: a list that grows by itself begins with room for four.
        let members = self.pairs.entry((name.key.pair(), family)).or_insert_with(|| Vec::with_capacity(1));
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

/// DTLS channels that wait for the TLS beside them.
#[derive(Debug)]
pub(super) struct Channels {
    /// By hosts and the server's port.
    waiting: HashMap<(FlowKey, u16), FlowName>,
    /// How many wait by [`FlowKey::pair_mark`]: one look tells most hosts apart from those that have one waiting.
    marks: [u16; MARKS],
}

/// Channels that wait at once; those beyond stay as they are.
const MOST_CHANNELS: usize = 1024;
const MARKS: usize = 1024;

impl Default for Channels {
    fn default() -> Self {
        Self { waiting: HashMap::new(), marks: [0; MARKS] }
    }
}

impl Channels {
    /// Whether one may wait for TLS between a flow's hosts.
    #[inline]
    pub(super) fn wait(&self, key: &FlowKey) -> bool {
        !self.waiting.is_empty() && self.marks.get(place(key)).is_some_and(|count| *count != 0)
    }

    fn insert(&mut self, name: FlowName, port: u16) {
        if self.waiting.len() < MOST_CHANNELS
            && self.waiting.insert((name.key.pair(), port), name).is_none()
            && let Some(count) = self.marks.get_mut(place(&name.key))
        {
            *count += 1;
        }
    }

    /// Takes out the one that waits between a flow's hosts for a port.
    fn remove(&mut self, key: &FlowKey, port: u16) -> Option<FlowName> {
        let removed = self.waiting.remove(&(key.pair(), port))?;
        if let Some(count) = self.marks.get_mut(place(key)) {
            *count -= 1;
        }
        Some(removed)
    }
}

/// Of a flow's hosts in [`Channels::marks`].
fn place(key: &FlowKey) -> usize {
    usize::from(key.pair_mark()) % MARKS
}

/// Whether a TCP payload begins with a record of TLS (RFC 8446 5.1): type, version 3 and a minor one.
pub(super) const fn is_tls(payload: &[u8]) -> bool {
    matches!(payload, [20..=23, 3, 0..=4, ..])
}

impl Auditor {
    /// Ties TLS to a DTLS channel between the same hosts that goes to the same port of the server.
    /// `number`: of the TCP segment that came; `is_tls`: it shows TLS itself.
    pub(super) fn tie(
        &mut self,
        index: FlowIndex,
        at: Timestamp,
        number: u64,
        is_tls: bool,
        emit: &mut impl FnMut(Record),
    ) {
        let Some(flow) = self.table.flow(index) else { return };
        if !flow.tenant.marks.has(Marks::TLS) && !is_tls {
            return;
        }
        let tls = FlowName::of(flow);
        let mut ports = tls.key.raw_ports(Sender::Low).into_iter();
        let Some(channel) = ports.find_map(|port| self.channels.remove(&tls.key, port)) else { return };
        let Some(index) = open_at(&self.table, &channel, at) else { return };
        let tied = self.table.with_tenant(index, |flow| {
            let sender = flow.first_sender();
            let Some(findings) = flow.tenant.file.as_mut().and_then(|file| file.findings.as_deref_mut()) else {
                return false;
            };
            let direction = findings.originator.unwrap_or(Direction::Forward);
            let sender = if direction == Direction::Forward { sender } else { sender.opposite() };
            let segment = Segment {
                at,
                packet: number,
                direction,
                carrier: Carrier::Udp,
                ports: channel.key.raw_ports(sender),
                payload: &[],
                payload_len: 0,
                is_fragment: false,
            };
            beside_tls(&segment, findings);
            true
        });
        if tied == Some(true) {
            self.relate(&channel, &tls);
            self.relate(&tls, &channel);
            self.judge(index, at, emit);
        }
    }

    /// Lets a DTLS channel wait for TLS beside it.
    fn await_tls(&mut self, name: FlowName, sender: Sender) {
        let [_, port] = name.key.raw_ports(sender);
        self.channels.insert(name, port);
    }

    /// Takes a flow that has ended out of everything that names it.
    pub(super) fn forget(&mut self, flow: &Flow<Case>) {
        let Some(family) = flow.tenant.file.as_ref().and_then(|file| file.family) else { return };
        let name = FlowName::of(flow);
        self.associations.leave(&name, family);
        if family == Family::AnyConnect {
            for port in name.key.raw_ports(Sender::Low) {
                if self.channels.waiting.get(&(name.key.pair(), port)) == Some(&name) {
                    self.channels.remove(&name.key, port);
                }
            }
        }
    }

    /// Lets a flow and those of the same tunnel that are open at that time name each other, once.
    pub(super) fn associate(&mut self, index: FlowIndex, at: Timestamp) {
        let Some(flow) = self.table.flow(index) else { return };
        let (name, sender) = (FlowName::of(flow), flow.first_sender());
        let Some(file) = flow.tenant.file.as_ref() else { return };
        let family = file.detection.and_then(|detection| Family::of(detection.protocol));
        let before = file.family;
        if before == family {
            return;
        }
        let awaits = (family == Some(Family::AnyConnect) && name.key.protocol() == UDP).then(|| {
            let client = file.findings.as_ref().and_then(|findings| findings.originator);
            if client == Some(Direction::Reverse) { sender.opposite() } else { sender }
        });
        self.with_file(index, |file| file.family = family);
        if let Some(before) = before {
            self.associations.leave(&name, before);
        }
        let Some(family) = family else { return };
        let table = &self.table;
        let others = self.associations.join(name, family, |member| open_at(table, member, at).is_some());
        if let Some(client) = awaits {
            self.await_tls(name, client);
        }
        for other in &others {
            self.relate(other, &name);
            self.relate(&name, other);
        }
    }

    fn relate(&mut self, name: &FlowName, other: &FlowName) {
        let Some(index) = self.table.find(&name.key, self.table.hash(&name.key)) else { return };
        let number = other.id().number();
        self.with_file(index, |file| {
            if file.related.len() < MOST && !file.related.contains(&number) {
                file.related.push(number);
            }
        });
    }
}

/// The place of a flow that is open at that time: one whose time is up may not have been ended yet, for that hangs on the
/// batch.
fn open_at(table: &FlowTable<Case>, name: &FlowName, at: Timestamp) -> Option<FlowIndex> {
    let index = table.find(&name.key, table.hash(&name.key))?;
    let flow = table.flow(index)?;
    (flow.first == name.first && table.deadline(flow) >= at).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests_support::{packet, packet_between};
    use crate::wire::ParsedPacket;

    fn name(packet: &ParsedPacket<'_>) -> FlowName {
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
    fn a_channel_waits_between_its_hosts_alone_and_until_it_is_taken() {
        let channel = name(&packet([198, 51, 100, 1], 40_000, [198, 51, 100, 2], 443, 17));
        let back = name(&packet([198, 51, 100, 2], 443, [198, 51, 100, 1], 50_000, 6));
        let other = name(&packet([198, 51, 100, 1], 50_000, [198, 51, 100, 3], 443, 6));
        let mut channels = Channels::default();
        assert!(!channels.wait(&back.key));
        channels.insert(channel, 443);
        channels.insert(channel, 443);
        assert!(channels.wait(&back.key), "either direction");
        assert!(!channels.wait(&other.key), "another host");
        assert_eq!(channels.remove(&back.key, 443), Some(channel));
        assert_eq!(channels.remove(&back.key, 443), None);
        assert!(channels.marks.iter().all(|count| *count == 0));
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
