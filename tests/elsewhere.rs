//! Packets of settled flows may be counted elsewhere: every capture gives the same records, whoever counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{OwnedFrame, assert_nothing_lost, capture_folders, ends, name, pinning, policy, read, settings};
use linewarden::audit::{AuditSettings, Auditor, Counted, Counters, Elsewhere, Interest, SAMPLE};
use linewarden::detect::{goes_beside, may_open};
use linewarden::flow::EndReason::{ActiveTimeout, EndOfFlow, ForcedEnd, IdleTimeout, LackOfResources};
use linewarden::flow::{FlowKey, Sender};
use linewarden::policy::Policy;
use linewarden::record::{Kind, Record};
use linewarden::time::Timestamp;
use linewarden::wire::{InterfaceId, ParsedPacket, TcpFlags, Transport, parse};

/// Counts as the kernel would, by the rules of [`Elsewhere`].
#[derive(Clone, Default)]
struct Model(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    flows: HashMap<FlowKey, Flow>,
    now: Timestamp,
    /// Flows at once; none: as many as come.
    most: Option<usize>,
    taken: usize,
}

struct Flow {
    interface: InterfaceId,
    interest: Interest,
    number: u64,
    opened: Option<Timestamp>,
    fresh: bool,
    since: Timestamp,
    counted: Counted,
}

impl Flow {
    fn take(&mut self) -> Option<Counted> {
        let none = Counted { packets: [0; 2], octets: [0; 2], ..self.counted };
        let counted = std::mem::replace(&mut self.counted, none);
        self.fresh &= counted.packets == [0; 2];
        (counted.packets != [0; 2]).then_some(counted)
    }
}

impl Elsewhere for Model {
    fn take_over(&mut self, key: &FlowKey, interface: InterfaceId, interest: Interest) -> bool {
        let mut state = self.0.lock().unwrap();
        if let Some(flow) = state.flows.get_mut(key) {
            flow.interest = interest;
            return true;
        }
        if state.most.is_some_and(|most| state.flows.len() >= most) {
            return false;
        }
        let since = state.now;
        let counted = Counted { key: *key, interface, packets: [0; 2], octets: [0; 2], last: since };
        let number = u64::from(SAMPLE.burst);
        state.flows.insert(*key, Flow { interface, interest, number, opened: None, fresh: true, since, counted });
        state.taken += 1;
        true
    }

    fn counted(&mut self, key: &FlowKey) -> Option<Counted> {
        self.0.lock().unwrap().flows.get_mut(key)?.take()
    }

    fn give_back(&mut self, key: &FlowKey) -> Option<Counted> {
        self.0.lock().unwrap().flows.remove(key)?.take()
    }

    fn read(&mut self, tell: &mut dyn FnMut(Counted)) {
        let state = &mut *self.0.lock().unwrap();
        let mut flows: Vec<_> = state.flows.values_mut().collect();
        // In an order that does not change from run to run.
        flows.sort_by_key(|flow| format!("{:?}", flow.counted.key));
        for flow in flows {
            if let Some(counted) = flow.take() {
                tell(counted);
            } else if flow.fresh {
                tell(Counted { last: flow.since, ..flow.counted });
            }
        }
    }
}

impl Model {
    /// Whether a packet is counted here, and goes no further.
    fn keeps(&self, packet: &ParsedPacket<'_>, is_plain: bool) -> bool {
        let state = &mut *self.0.lock().unwrap();
        state.now = state.now.max(packet.at);
        let (key, sender) = FlowKey::of(packet, true);
        let Some(flow) = state.flows.get_mut(&key) else { return false };
        // What the kernel's filter does not read.
        if packet.fragment.is_some() || packet.mpls_label.is_some() || !is_plain {
            return false;
        }
        if let Transport::Tcp { flags: TcpFlags(flags), .. } = packet.transport
            && flags & (TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST) != 0
        {
            return false;
        }
        let interest = flow.interest;
        if !interest.settled {
            if flow.opened.is_some_and(|at| packet.at.since(at) < Duration::from_millis(600)) {
                return false;
            }
            flow.number += 1;
            if (flow.number - 1) % u64::from(SAMPLE.period) < u64::from(SAMPLE.burst) {
                return false;
            }
        }
        let payload = packet.payload;
        match packet.transport {
            Transport::Udp { .. } => {
                let holds = matches!(payload, [1 | 2, 0, 0, 0, ..] | [0x20 | 0x28 | 0x38 | 0x40 | 0x50 | 0x58, ..]);
                if goes_beside(payload) || (interest.handshakes && holds) {
                    return false;
                }
                if !interest.settled && may_open(payload, packet.payload_len) {
                    flow.opened = Some(packet.at);
                    return false;
                }
            }
            Transport::Tcp { .. } => {
                let holds = matches!(payload, [_, _, 0x20 | 0x28 | 0x38 | 0x40 | 0x50 | 0x58, ..]);
                let is_tls = matches!(payload, [20..=23, 3, 0..=4, ..]);
                if (interest.handshakes && holds) || (!interest.is_tls && is_tls) {
                    return false;
                }
            }
            Transport::None => {}
        }
        let place = usize::from(sender == Sender::High);
        flow.counted.packets[place] += 1;
        flow.counted.octets[place] += u64::from(packet.wire_len);
        flow.counted.last = packet.at;
        flow.counted.interface = flow.interface;
        true
    }
}

/// The records of frames that come in blocks of `block`, with what was counted elsewhere added once a second.
fn watched(
    audit: &AuditSettings,
    policy: &Arc<Policy>,
    frames: &[OwnedFrame],
    block: usize,
    most: Option<usize>,
) -> (Vec<Record>, Counters, usize) {
    let model = Model::default();
    model.0.lock().unwrap().most = most;
    let mut auditor = Auditor::new(Arc::new(audit.clone()), Arc::clone(policy));
    auditor.count_elsewhere(Box::new(model.clone()));
    let mut records = Vec::new();
    let mut emit = |record| records.push(record);
    let mut up = Vec::new();
    let mut read = Timestamp::ZERO;
    for (frame, at) in frames.iter().zip(1..) {
        let borrowed = frame.borrow();
        let is_plain =
            [&[0x08, 0][..], &[0x86, 0xdd], &[0x81, 0]].iter().any(|kind| frame.data.get(12..14) == Some(kind));
        let is_kept = parse(&borrowed).is_ok_and(|packet| model.keeps(&packet, is_plain));
        if !is_kept {
            up.push(borrowed);
        }
        if at % block == 0 {
            auditor.observe(&std::mem::take(&mut up), &mut emit);
        }
        if frame.at.since(read) >= Duration::from_millis(500) {
            auditor.observe(&std::mem::take(&mut up), &mut emit);
            auditor.absorb(&mut emit);
            read = frame.at;
        }
    }
    auditor.observe(&up, &mut emit);
    auditor.finish(&mut emit);
    let taken = model.0.lock().unwrap().taken;
    assert!(model.0.lock().unwrap().flows.is_empty(), "a flow that has ended is counted nowhere");
    (records, auditor.counters(), taken)
}

fn plainly(audit: &AuditSettings, policy: &Arc<Policy>, frames: &[OwnedFrame]) -> (Vec<Record>, Counters) {
    let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    common::audit(audit.clone(), Arc::clone(policy), &borrowed)
}

/// What a flow's last record says of it, by flow.
fn answers(records: &[Record]) -> BTreeMap<String, String> {
    let answer = |end: &&Record| {
        let counts = [end.fwd_packets, end.fwd_octets, end.rev_packets, end.rev_octets];
        let verdict = (end.verdict, end.reason, end.tunnel, end.confidence, end.midstream);
        let outer = end.outer_flow_id.map(|outer| outer.to_string()).unwrap_or_default();
        let name = format!("{} {outer}", end.flow_id);
        (name, format!("{counts:?} {verdict:?} {:?} {} {}", end.end_reason, end.start, end.end))
    };
    ends(records).iter().map(answer).collect()
}

#[test]
fn every_capture_gives_the_same_records() {
    let mut elsewhere = 0;
    for policy in [policy(Vec::new()), pinning()] {
        for folder in capture_folders() {
            let frames = read(&folder.join("input.pcap"));
            let (expected, counters) = plainly(&settings(), &policy, &frames);
            for block in [1, 16, 64] {
                let (records, with, _) = watched(&settings(), &policy, &frames, block, None);
                assert_nothing_lost(&records, &with, name(&folder));
                assert_eq!(answers(&records), answers(&expected), "{}, blocks of {block}", name(&folder));
                assert_eq!((with.packets, with.octets), (counters.packets, counters.octets));
                elsewhere += with.elsewhere.packets;
            }
        }
    }
    assert!(elsewhere > 10_000, "{elsewhere} packets were counted elsewhere");
}

/// The longer captures, one behind the other.
fn long_captures() -> Vec<OwnedFrame> {
    let mut all: Vec<OwnedFrame> = Vec::new();
    for folder in capture_folders() {
        let frames = read(&folder.join("input.pcap"));
        if frames.len() > 50 {
            let offset = all.last().map_or(1_700_000_000_000_000_000, |frame| frame.at.as_nanos() + 1_000_000_000);
            let first = frames[0].at.as_nanos();
            for frame in frames {
                let at = Timestamp::from_nanos(offset + frame.at.as_nanos().saturating_sub(first));
                all.push(OwnedFrame { at, number: all.len() as u64 + 1, ..frame });
            }
        }
    }
    all
}

#[test]
fn nothing_is_lost_where_flows_end_by_every_reason() {
    let frames = long_captures();
    let mut audit = settings();
    audit.flow.active_timeout = Duration::from_secs(2);
    audit.flow.idle_timeout = Duration::from_secs(1);
    audit.update_interval = Duration::from_secs(1);
    let policy = policy(Vec::new());
    let mut reasons = Vec::new();
    for (memory, most) in [(64 << 20, None), (64 << 20, Some(1)), (1 << 16, None)] {
        audit.flow.memory_octets = memory;
        if memory < 1 << 20 {
            audit.flow.idle_timeout = Duration::from_mins(2);
        }
        let (records, counters, taken) = watched(&audit, &policy, &frames, 16, most);
        assert_nothing_lost(&records, &counters, "short timeouts");
        let (_, expected) = plainly(&audit, &policy, &frames);
        assert_eq!((counters.packets, counters.octets), (expected.packets, expected.octets));
        assert_eq!(counters.elsewhere.refused > 0, most.is_some(), "{:?}", counters.elsewhere);
        assert!(
            counters.elsewhere.packets > 100 && taken as u64 == counters.elsewhere.flows,
            "{:?}",
            counters.elsewhere
        );
        assert!(records.iter().any(|record| record.kind == Kind::Update));
        reasons.extend(ends(&records).iter().filter_map(|end| end.end_reason));
    }
    for reason in [ActiveTimeout, EndOfFlow, ForcedEnd, IdleTimeout, LackOfResources] {
        assert!(reasons.contains(&reason), "no flow ended by {reason:?}");
    }
}
