//! Turns records into the view of what is open now: every flow that is a tunnel or uses an approved line.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::detect::{Confidence, Protocol};
use crate::flow::FlowId;
use crate::policy::{Label, Reason};
use crate::record::{Kind, Record};
use crate::time::Timestamp;

/// An open flow, by its latest record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveFlow {
    /// As in records.
    pub flow_id: FlowId,
    /// Source's address.
    pub src_ip: IpAddr,
    /// Its port.
    pub src_port: Option<u16>,
    /// Destination's address.
    pub dst_ip: IpAddr,
    /// Its port.
    pub dst_port: Option<u16>,
    /// IP protocol number.
    pub proto: u8,
    /// The label.
    pub verdict: Label,
    /// Why.
    pub reason: Reason,
    /// Tunnel protocol.
    pub tunnel: Option<Protocol>,
    /// How sure.
    pub confidence: Option<Confidence>,
    /// The approval's id.
    pub approval: Option<Arc<str>>,
    /// Packets of both directions, as of the latest record.
    pub packets: u64,
    /// Their octets on the wire.
    pub octets: u64,
    /// First packet.
    pub start: Timestamp,
    /// Of the latest record.
    pub updated: Timestamp,
}

/// Written by the records' task, read by whoever tells the state; bounded.
#[derive(Debug, Default)]
pub struct LiveView {
    flows: DashMap<u64, LiveFlow>,
    /// Flows that found the view full.
    left_out: AtomicU64,
}

/// The view holds this many flows at most.
const MAX_FLOWS: usize = 65_536;

impl LiveView {
    /// Takes a record.
    pub fn write(&self, record: &Record) {
        let flow_id = record.flow_id.number();
        if record.kind == Kind::End || record.verdict == Label::Other {
            self.flows.remove(&flow_id);
            return;
        }
        if self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(&flow_id) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.flows.insert(
            flow_id,
            LiveFlow {
                flow_id: FlowId::Number(flow_id),
                src_ip: record.src_ip,
                src_port: record.src_port,
                dst_ip: record.dst_ip,
                dst_port: record.dst_port,
                proto: record.proto,
                verdict: record.verdict,
                reason: record.reason,
                tunnel: record.tunnel,
                confidence: record.confidence,
                approval: record.approval.as_ref().map(|approval| Arc::clone(&approval.id)),
                packets: record.fwd_packets + record.rev_packets,
                octets: record.fwd_octets + record.rev_octets,
                start: record.start,
                updated: record.time,
            },
        );
    }

    /// Lets go of flows of which no record told since then.
    pub fn forget(&self, oldest: Timestamp) {
        self.flows.retain(|_, flow| flow.updated >= oldest);
    }

    /// Open flows with this label.
    #[must_use]
    pub fn count(&self, label: Label) -> usize {
        self.flows.iter().filter(|flow| flow.verdict == label).count()
    }

    /// Flows that found no room, counted once a record.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn flows(&self) -> Vec<LiveFlow> {
        let mut flows: Vec<_> = self.flows.iter().map(|flow| flow.value().clone()).collect();
        flows.sort_by_key(|flow| (flow.start, flow.flow_id.number()));
        flows
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::tests_support::record;
    use crate::sink::usage::Usage;
    use crate::sink::{Sink, Views};

    #[test]
    fn holds_open_tunnels_only() {
        let view = LiveView::default();
        let mut open = record(1);
        (open.kind, open.verdict) = (Kind::Start, Label::UnapprovedVpnTunnel);
        view.write(&open);
        let mut other = record(2);
        (other.kind, other.flow_id) = (Kind::Start, FlowId::Number(0xfedc_ba98_7654_3210));
        view.write(&other);
        assert_eq!((view.count(Label::UnapprovedVpnTunnel), view.flows().len()), (1, 1));
        open.kind = Kind::End;
        view.write(&open);
        assert!(view.flows().is_empty());
    }

    #[test]
    fn a_flow_whose_end_was_lost_leaves_once_it_would_have_been_told_of() {
        let (live, usage) = <(Arc<LiveView>, Arc<Usage>)>::default();
        let minute = Duration::from_mins(1);
        let mut views = Views::new(Arc::clone(&live), Arc::clone(&usage), 8 * minute);
        let mut open = record(1);
        (open.kind, open.verdict) = (Kind::Start, Label::UnapprovedVpnTunnel);
        let told = open.time;
        views.write(&open);
        for minutes in 0..=8 {
            views.tick(told + minutes * minute);
            assert_eq!(live.flows().len(), 1, "{minutes}");
        }
        (open.kind, open.time) = (Kind::Update, told + 8 * minute);
        views.write(&open);
        views.tick(told + 16 * minute);
        assert_eq!(live.flows().len(), 1);
        views.tick(told + 17 * minute);
        assert!(live.flows().is_empty());
    }
}
