//! Turns a flow and its verdict into a [`Record`].

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::AuditSettings;
use super::case::Case;
use crate::detect::Findings;
use crate::flow::{CommunityId, Direction, EndReason, Flow, FlowId, FlowKey, Opener};
use crate::policy::{Label, Policy, Reason, Subject};
use crate::record::{ApprovalRecord, EvidenceRecord, FlowDirection, Kind, Record, VERSION};
use crate::time::Timestamp;

/// What the policy may know of a flow.
pub(super) fn subject<'a>(settings: &'a AuditSettings, flow: &Flow<Case>) -> Subject<'a> {
    let sender = flow.first_sender();
    let key = flow.key();
    Subject {
        addresses: key.addresses(sender),
        ports: key.ports(sender),
        protocol: key.protocol(),
        interface: interface(settings, flow),
        vlan: key.vlan(),
        mpls_labels: flow.mpls_labels(),
    }
}

/// What a flow's identifier is made of: the key and the time of the first packet, the same wherever the flow is seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowName {
    pub key: FlowKey,
    pub first: Timestamp,
}

impl FlowName {
    pub(super) fn of(flow: &Flow<Case>) -> Self {
        Self { key: *flow.key(), first: flow.first }
    }

    pub(super) const fn id(&self) -> FlowId {
        FlowId::Of(self.key, self.first)
    }
}

/// The record of a flow as it stands.
pub(super) fn describe(
    settings: &AuditSettings,
    policy: &Policy,
    flow: &Flow<Case>,
    kind: Kind,
    at: Timestamp,
    end_reason: Option<EndReason>,
) -> Record {
    let key = flow.key();
    let file = flow.tenant.file.as_deref();
    let findings = flow.tenant.findings();
    let (forward, originator_known) = orientation(settings, flow);
    let sender = match forward {
        Direction::Forward => flow.first_sender(),
        Direction::Reverse => flow.first_sender().opposite(),
    };
    let [src_ip, dst_ip] = key.addresses(sender);
    let ports = key.ports(sender);
    let verdict = file.map(|file| &file.verdict);
    let oriented = |direction: Direction| if forward == Direction::Forward { direction } else { direction.opposite() };
    let [fwd_packets, rev_packets] = turned(flow.packets, forward);
    let [fwd_octets, rev_octets] = turned(flow.octets, forward);
    Record {
        version: VERSION,
        seq: 0,
        kind,
        time: at,
        sensor: Arc::clone(&settings.sensor),
        interface: settings.interfaces.get(usize::from(flow.interface.0)).cloned().unwrap_or_else(|| "".into()),
        vlan: key.vlan().into_iter().filter(|&vlan| vlan != 0).collect(),
        mpls_labels: turned(flow.mpls_labels(), forward).into_iter().flatten().collect(),
        flow_id: FlowName::of(flow).id(),
        continues: file.and_then(|file| file.continues).map(FlowId::Number),
        outer_flow_id: file.and_then(|file| file.outer).map(FlowId::Number),
        related_flow_ids: file.map_or_else(Vec::new, |file| file.related.iter().copied().map(FlowId::Number).collect()),
        community_id: CommunityId::Of(*key, flow.first_sender()),
        src_ip,
        src_port: ports.map(|[src, _]| src),
        dst_ip,
        dst_port: ports.map(|[_, dst]| dst),
        proto: key.protocol(),
        direction: direction(settings, src_ip, dst_ip, originator_known),
        originator_known,
        fwd_packets,
        fwd_octets,
        rev_packets,
        rev_octets,
        start: flow.first,
        end: flow.last,
        end_reason,
        verdict: verdict.map_or(Label::Other, |verdict| verdict.label),
        reason: verdict.map_or(Reason::NotATunnel, |verdict| verdict.reason),
        tunnel: verdict.and_then(|verdict| verdict.tunnel),
        confidence: verdict.and_then(|verdict| verdict.confidence),
        midstream: is_midstream(flow),
        inspections: flow.tenant.calls,
        evidence: findings.map_or_else(Vec::new, |findings| {
            findings
                .evidence()
                .iter()
                .map(|found| EvidenceRecord {
                    code: Cow::Borrowed(found.code.name),
                    protocol: found.protocol,
                    confidence: found.confidence,
                    packet: found.packet,
                    time: found.at,
                    direction: oriented(found.direction),
                    value: found.value,
                    count: found.count,
                })
                .collect()
        }),
        spi: attribute(findings, forward, |findings| findings.spi),
        gre_key: attribute(findings, forward, |findings| findings.gre_key),
        approval: verdict.and_then(|verdict| verdict.approval.as_ref()).map(|approval| ApprovalRecord {
            id: Arc::clone(&approval.id),
            owner: Arc::clone(&approval.owner),
            reference: Arc::clone(&approval.reference),
            valid_until: approval.valid_until,
            identity: verdict.and_then(|verdict| verdict.keys).map(|keys| Cow::Borrowed(keys.name())),
            key: verdict.and_then(|verdict| verdict.keys?.key()).map(|key| key.to_string().into()),
        }),
        policy_revision: Arc::clone(policy.revision()),
    }
}

/// Which direction of the flow is `src` to `dst`, and whether that is known to be the originator's.
fn orientation(settings: &AuditSettings, flow: &Flow<Case>) -> (Direction, bool) {
    if let Some(direction) = flow.tenant.findings().and_then(|findings| findings.originator) {
        return (direction, true);
    }
    match flow.opener() {
        Opener::Other => (Direction::Reverse, true),
        Opener::First if !is_midstream(flow) => (Direction::Forward, true),
        // Nobody was seen opening it: one's own side first, so that the record does not hang on
        // which packet came first (RFC 5103 6.3, perimeter).
        _ => {
            let [first, other] = flow.key().addresses(flow.first_sender());
            let turned = !is_home(settings, first) && is_home(settings, other);
            (if turned { Direction::Reverse } else { Direction::Forward }, false)
        }
    }
}

fn is_midstream(flow: &Flow<Case>) -> bool {
    match flow.tenant.detection() {
        Some(detection) => detection.midstream,
        None => flow.opener() == Opener::Unknown,
    }
}

fn direction(settings: &AuditSettings, src: IpAddr, dst: IpAddr, originator_known: bool) -> FlowDirection {
    if settings.flow.home_nets.is_empty() {
        return if originator_known { FlowDirection::Initiator } else { FlowDirection::Unknown };
    }
    match (is_home(settings, src), is_home(settings, dst)) {
        (true, true) => FlowDirection::Internal,
        (true, false) => FlowDirection::Outbound,
        (false, true) => FlowDirection::Inbound,
        (false, false) => FlowDirection::External,
    }
}

fn is_home(settings: &AuditSettings, address: IpAddr) -> bool {
    settings.flow.home_nets.iter().any(|net| net.contains(&address))
}

fn interface<'a>(settings: &'a AuditSettings, flow: &Flow<Case>) -> &'a str {
    settings.interfaces.get(usize::from(flow.interface.0)).map_or("", AsRef::as_ref)
}

fn turned<T>(pair: [T; 2], forward: Direction) -> [T; 2] {
    let [one, two] = pair;
    match forward {
        Direction::Forward => [one, two],
        Direction::Reverse => [two, one],
    }
}

fn attribute(findings: Option<&Findings>, forward: Direction, of: impl Fn(&Findings) -> [Option<u32>; 2]) -> Vec<u32> {
    findings.map_or_else(Vec::new, |findings| turned(of(findings), forward).into_iter().flatten().collect())
}
