//! Lets packets of settled flows be counted elsewhere, in front of the core: what is counted there is added to the flows
//! before anything is said of them, and what could change a verdict still comes here.

use super::case::Marks;
use super::inspection::{WITH_EVIDENCE, is_first, is_sample};
use super::{Auditor, Name, TCP, UDP};
use crate::flow::{Flow, FlowIndex, FlowKey, PortKind, Sender};
use crate::record::Record;
use crate::time::Timestamp;
use crate::wire::{InterfaceId, TcpFlags};

pub use super::inspection::SAMPLE;

/// Who counts packets of settled flows in the core's stead.
///
/// Of the packets of such a flow, these go on to the core all the same: TCP's with SYN, FIN or RST, fragments, samples
/// ([`SAMPLE`]) and what an [`Interest`] says.
pub trait Elsewhere: Send {
    /// Counts a flow's packets from now on, or learns what is of interest in those that it counts already. False: no room.
    fn take_over(&mut self, key: &FlowKey, interface: InterfaceId, interest: Interest) -> bool;

    /// What was counted of a flow since it was last told.
    fn counted(&mut self, key: &FlowKey) -> Option<Counted>;

    /// The same, and no packet of the flow is counted any more.
    fn give_back(&mut self, key: &FlowKey) -> Option<Counted>;

    /// What was counted of every flow since it was last told, of flows that were given back, too. No packets: none of the
    /// flow was ever counted since it was taken over, which was at `last`.
    fn read(&mut self, tell: &mut dyn FnMut(Counted));
}

/// Which packets of a flow the core wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Its tunnel is certain: no samples, and of UDP only what [`goes_beside`](crate::detect::goes_beside). Else what
    /// [`may_open`](crate::detect::may_open) a tunnel.
    pub settled: bool,
    /// It was seen to be TLS. Else a TCP segment that begins with a TLS record is of interest.
    pub is_tls: bool,
    /// Keys are pinned: what [`may_hold_handshake`](crate::detect::may_hold_handshake) is of interest.
    pub handshakes: bool,
}

/// What was counted of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which.
    pub key: FlowKey,
    /// Where it was first seen.
    pub interface: InterfaceId,
    /// Packets of the key's lower and of its higher endpoint.
    pub packets: [u64; 2],
    /// Octets on the wire, likewise.
    pub octets: [u64; 2],
    /// When the latest came.
    pub last: Timestamp,
}

/// Packets that were counted elsewhere; `Counters` has them among all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ElsewhereCounters {
    /// Times that a flow was taken over.
    pub flows: u64,
    /// Times that there was no room for one.
    pub refused: u64,
    /// Packets.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
}

const ESP: u8 = 50;

impl Auditor {
    /// Lets settled flows be counted elsewhere. [`Self::absorb`] must be called once a second from now on.
    pub fn count_elsewhere(&mut self, elsewhere: Box<dyn Elsewhere>) {
        self.elsewhere = Some(elsewhere);
    }

    /// Adds what was counted elsewhere to its flows, whose `update` records may be due.
    pub fn absorb(&mut self, emit: &mut impl FnMut(Record)) {
        let Some(mut elsewhere) = self.elsewhere.take() else { return };
        let mut all = Vec::new();
        elsewhere.read(&mut |counted| all.push(counted));
        self.elsewhere = Some(elsewhere);
        for counted in all {
            self.add(&counted, emit);
        }
    }

    fn add(&mut self, counted: &Counted, emit: &mut impl FnMut(Record)) {
        let at = counted.last;
        let hash = self.table.hash(&counted.key);
        if counted.packets == [0; 2] {
            // Packets came, all of them here: something about them is beyond who should count them.
            if let Some(index) = self.table.find(&counted.key, hash)
                && let Some(flow) = self.table.flow_mut(index)
                && flow.last > at
            {
                flow.tenant.marks.set(Marks::HERE, true);
                self.withdraw(index);
            }
            return;
        }
        let found = self.table.find(&counted.key, hash).filter(|&index| {
            let age = self.table.flow(index).map(|flow| at.since(flow.first));
            age.is_some_and(|age| age < self.settings.flow.active_timeout)
        });
        let (index, opened) = found.map_or_else(
            || {
                let sender = if counted.packets == [0, counted.packets[1]] { Sender::High } else { Sender::Low };
                let name = Name { key: counted.key, sender, hash };
                self.open(&name, counted.interface, at, TcpFlags::default(), emit)
            },
            |index| (index, false),
        );
        self.enter(index, counted);
        if opened {
            self.first_judgement(index, at);
            self.announce(index, crate::record::Kind::Start, at, None, emit);
        } else if self.table.flow(index).is_some_and(|flow| u64::from(flow.tenant.due) <= at.as_secs()) {
            self.look_again(index, at, emit);
        }
        if counted.key.protocol() == TCP && self.channels.wait(&counted.key) {
            self.tie(index, at, self.counters.packets, false, emit);
        }
    }

    /// Adds the counts alone.
    fn enter(&mut self, index: FlowIndex, counted: &Counted) {
        let (packets, octets) = (counted.packets.iter().sum::<u64>(), counted.octets.iter().sum::<u64>());
        self.counters.packets += packets;
        self.counters.octets += octets;
        self.counters.classified += packets;
        self.counters.classified_octets += octets;
        self.counters.elsewhere.packets += packets;
        self.counters.elsewhere.octets += octets;
        self.counters.of_interface(counted.interface, |counters| {
            counters.elsewhere += packets;
            counters.elsewhere_octets += octets;
        });
        let Some(flow) = self.table.flow_mut(index) else { return };
        for ((sender, packets), octets) in
            [Sender::Low, Sender::High].into_iter().zip(counted.packets).zip(counted.octets)
        {
            let direction = flow.direction(sender);
            flow.count(direction, counted.last, packets, octets);
        }
    }

    /// Lets a flow be counted elsewhere, or here again, as its state says by now.
    pub(super) fn settle(&mut self, index: FlowIndex) {
        if self.elsewhere.is_none() {
            return;
        }
        let Some(flow) = self.table.flow(index) else { return };
        let (wish, key, interface) = (self.interest(flow), *flow.key(), flow.interface);
        let is_elsewhere = flow.tenant.marks.has(Marks::ELSEWHERE);
        let Some(elsewhere) = &mut self.elsewhere else { return };
        match wish {
            Some(interest) => {
                let taken = elsewhere.take_over(&key, interface, interest);
                self.counters.elsewhere.flows += u64::from(taken && !is_elsewhere);
                self.counters.elsewhere.refused += u64::from(!taken);
                if let Some(flow) = self.table.flow_mut(index) {
                    flow.tenant.marks.set(Marks::ELSEWHERE, taken);
                }
            }
            None if is_elsewhere => self.withdraw(index),
            None => {}
        }
    }

    /// Counts a flow's packets here again, those that were counted elsewhere included.
    pub(super) fn withdraw(&mut self, index: FlowIndex) {
        let Some(flow) = self.table.flow_mut(index) else { return };
        flow.tenant.marks.set(Marks::ELSEWHERE, false);
        let key = *flow.key();
        if let Some(counted) = self.elsewhere.as_mut().and_then(|elsewhere| elsewhere.give_back(&key)) {
            self.enter(index, &counted);
        }
    }

    /// Asks for a flow that seems to be over; whether packets of it were counted elsewhere.
    pub(super) fn goes_on(&mut self, index: FlowIndex, emit: &mut impl FnMut(Record)) -> bool {
        let counted = self.counted(index);
        if let Some(counted) = &counted {
            self.add(counted, emit);
        }
        counted.is_some()
    }

    /// Adds to a flow what was counted of it elsewhere by now; false: nothing was.
    pub(super) fn catch_up(&mut self, index: FlowIndex) -> bool {
        let counted = self.counted(index).filter(|counted| counted.packets != [0; 2]);
        if let Some(counted) = &counted {
            self.enter(index, counted);
        }
        counted.is_some()
    }

    /// What was counted of a flow elsewhere since that was asked last.
    fn counted(&mut self, index: FlowIndex) -> Option<Counted> {
        let flow = self.table.flow(index).filter(|flow| flow.tenant.marks.has(Marks::ELSEWHERE))?;
        self.elsewhere.as_mut()?.counted(flow.key())
    }

    /// What is of interest in the rest of a flow; `None` where every packet is.
    fn interest(&self, flow: &Flow<super::Case>) -> Option<Interest> {
        let (key, case) = (flow.key(), &flow.tenant);
        let handshakes = !self.policy.keyring().is_empty();
        let interest =
            Interest { settled: case.marks.has(Marks::SETTLED), is_tls: case.marks.has(Marks::TLS), handshakes };
        // Packets that are opened are all looked into; mirrors' are not those of the flow that they seem to be of.
        if key.is_inside()
            || flow.is_closed()
            || case.marks.has(Marks::OPENED)
            || case.marks.has(Marks::HERE)
            || flow.mpls_labels() != [None; 2]
            || !self.settings.decapsulation.mirrors.is_empty()
        {
            return None;
        }
        match (key.protocol(), key.port_kind()) {
            (TCP | UDP, PortKind::Ports) => {}
            (ESP, PortKind::None) if interest.settled => {}
            _ => return None,
        }
        let evident = case.file.as_ref().is_some_and(|file| file.detection.is_some());
        let number: u64 = flow.packets.iter().sum();
        let is_inspected = is_first(case)
            || (evident && case.inspected < WITH_EVIDENCE)
            || (!case.marks.has(Marks::ELSEWHERE) && is_sample(number + 1));
        (interest.settled || !is_inspected).then_some(interest)
    }
}
