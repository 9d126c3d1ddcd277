//! Turns the reports of all workers into one summary: what came in, and what became of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::worker::{Report, Unread};
use crate::audit::{ElsewhereCounters, InsideCounters, Tally, tunnel_index};
use crate::detect::{KeyCounts, Protocol};
use crate::flow::Rank;
use crate::policy::Label;
use crate::wire::ParseError;

/// Flows of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Flows that ended.
    pub flows: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Octets on the wire.
    pub octets: u64,
}

/// Tunnels of one protocol with one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TunnelTotal {
    /// Which protocol.
    pub tunnel: Protocol,
    /// Which label.
    pub verdict: Label,
    /// How many.
    #[serde(flatten)]
    pub total: Total,
}

/// `packets` = `classified` + the sum of `undecodable` + `dropped_kernel`, always (0 for what nobody counts).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Packets that the capture was to take.
    pub packets: u64,
    /// Octets on the wire of those that it took.
    pub octets: u64,
    /// Packets that belong to a flow.
    pub classified: u64,
    /// Their octets.
    pub classified_octets: u64,
    /// Packets that could not be read, by reason.
    pub undecodable: BTreeMap<&'static str, u64>,
    /// Their octets.
    pub undecodable_octets: u64,
    /// Encapsulations of mirrors that were opened.
    pub mirrored: u64,
    /// Their octets: `octets` = `classified_octets` + `undecodable_octets` + these.
    pub mirror_octets: u64,
    /// Fragments with octets of their datagram that had come before: duplicates, or somebody's game (RFC 5722).
    pub fragment_overlaps: u64,
    /// Packets inside unencrypted tunnels: they came in packets that `packets` counts, and are not in it.
    pub inside: InsideCounters,
    /// Packets that the kernel dropped since the ring was full; `None` where nobody counts them.
    pub dropped_kernel: Option<u64>,
    /// Packets that the NIC says it missed; they never reached the kernel and are not in `packets`.
    pub dropped_nic: u64,
    /// What the kernel calls `rx_dropped`: some drivers' losses, and frames of protocols that this host does not know,
    /// which are in `packets` all the same.
    pub rx_dropped: u64,
    /// Flows opened, those inside tunnels among them.
    pub flows: u64,
    /// Flows open now.
    pub flows_open: u64,
    /// Flows ended early to keep the memory bound, by rank.
    pub evicted: BTreeMap<&'static str, u64>,
    /// Flows ended, by label.
    pub verdicts: BTreeMap<&'static str, Total>,
    /// Flows ended that showed a tunnel, by protocol and label.
    pub tunnels: Vec<TunnelTotal>,
    /// Records handed to the outputs.
    pub records: u64,
    /// Records lost: the outputs were behind, or the disk refused.
    pub records_lost: u64,
    /// Packets of flows whose `end` record the settings left out.
    pub unrecorded: u64,
    /// Their octets.
    pub unrecorded_octets: u64,
    /// Memory held for flows, octets.
    pub table_octets: u64,
    /// Handshakes that were shown to the keys that approvals pin.
    pub keys: KeyCounts,
    /// Packets of settled flows that were counted in the kernel; `packets` and `classified` have them.
    pub kernel: ElsewhereCounters,
}

impl Summary {
    /// Adds up.
    #[must_use]
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Self {
        let mut total = Report::default();
        for report in reports {
            total.counters.add(&report.counters);
            total.capture.add(&report.capture);
            total.records += report.records;
            total.records_lost += report.records_lost;
            total.unread.packets += report.unread.packets;
            total.unread.octets += report.unread.octets;
        }
        let counters = &total.counters;
        let dropped_kernel = total.capture.dropped_kernel;
        let labels = Label::ALL.iter().enumerate();
        let ended = |tunnel, label: usize| {
            counters.ended.0.get(tunnel_index(tunnel)).and_then(|labels| labels.get(label)).copied().unwrap_or_default()
        };
        let tunnels = Protocol::ALL.iter().flat_map(|&tunnel| {
            labels.clone().map(move |(index, &verdict)| (tunnel, verdict, ended(Some(tunnel), index)))
        });
        let verdicts = labels.clone().map(|(index, label)| {
            let mut sum = ended(None, index);
            Protocol::ALL.iter().for_each(|&tunnel| sum.add(&ended(Some(tunnel), index)));
            (label.name(), Total::from(sum))
        });
        let undecodable = ParseError::ALL.iter().zip(counters.undecodable);
        let evicted = Rank::ALL.iter().zip(counters.evicted);
        let mut summary = Self {
            packets: counters.packets + dropped_kernel.unwrap_or(0),
            octets: counters.octets,
            classified: counters.classified,
            classified_octets: counters.classified_octets,
            undecodable: undecodable
                .map(|(error, count)| (error.reason(), count))
                .filter(|(_, count)| *count > 0)
                .collect(),
            undecodable_octets: counters.undecodable_octets,
            mirrored: counters.mirrored,
            mirror_octets: counters.mirror_octets,
            fragment_overlaps: counters.fragment_overlaps,
            inside: counters.inside,
            dropped_kernel,
            dropped_nic: total.capture.dropped_nic,
            rx_dropped: total.capture.rx_dropped,
            flows: counters.flows,
            flows_open: counters.flows_open,
            evicted: evicted.map(|(rank, count)| (rank.name(), count)).collect(),
            verdicts: verdicts.collect(),
            tunnels: tunnels
                .filter(|(.., tally)| tally.flows > 0)
                .map(|(tunnel, verdict, tally)| TunnelTotal { tunnel, verdict, total: tally.into() })
                .collect(),
            records: total.records,
            records_lost: total.records_lost,
            unrecorded: counters.unrecorded,
            unrecorded_octets: counters.unrecorded_octets,
            table_octets: counters.table_octets,
            keys: counters.keys,
            kernel: counters.elsewhere,
        };
        summary.add_unread("worker_panic", total.unread);
        summary
    }

    /// Counts packets that no link layer could be found for.
    pub fn add_unsupported(&mut self, packets: u64) {
        self.add_unread("unknown_link_type", Unread { packets, octets: 0 });
    }

    fn add_unread(&mut self, reason: &'static str, Unread { packets, octets }: Unread) {
        if packets > 0 {
            self.packets += packets;
            self.octets += octets;
            self.undecodable_octets += octets;
            *self.undecodable.entry(reason).or_default() += packets;
        }
    }

    /// Packets that were lost before they came here, as far as anybody counts them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_kernel.unwrap_or(0) + self.dropped_nic
    }

    /// Flows with this label that ended.
    #[must_use]
    pub fn flows_with(&self, label: Label) -> u64 {
        self.verdicts.get(label.name()).map_or(0, |total| total.flows)
    }
}

impl From<Tally> for Total {
    fn from(tally: Tally) -> Self {
        Self { flows: tally.flows, packets: tally.packets, octets: tally.octets }
    }
}

impl fmt::Display for Summary {
    /// For people, a few lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let undecodable: u64 = self.undecodable.values().sum();
        let dropped = self.dropped_kernel.map_or_else(|| "an unknown number".to_owned(), |count| count.to_string());
        writeln!(
            f,
            "packets  {} ({} octets): {} classified, {undecodable} undecodable, {dropped} dropped by the kernel, {} missed by the NIC",
            self.packets, self.octets, self.classified, self.dropped_nic
        )?;
        for (reason, count) in &self.undecodable {
            writeln!(f, "           undecodable  {reason} {count}")?;
        }
        if self.mirrored > 0 {
            writeln!(f, "mirrors  {} encapsulations opened, {} octets of theirs", self.mirrored, self.mirror_octets)?;
        }
        if self.fragment_overlaps > 0 {
            writeln!(f, "overlaps {} fragments with octets that had come before", self.fragment_overlaps)?;
        }
        if self.inside.packets > 0 {
            let InsideCounters { packets, undecodable, flows, .. } = self.inside;
            writeln!(
                f,
                "inside   {packets} packets in tunnels' packets, {undecodable} undecodable, in {flows} flows of their own"
            )?;
        }
        if self.kernel.packets > 0 {
            let ElsewhereCounters { packets, refused, .. } = self.kernel;
            writeln!(
                f,
                "kernel   {packets} packets of settled flows counted there; no room for a flow {refused} times"
            )?;
        }
        let evicted: u64 = self.evicted.values().sum();
        writeln!(f, "flows    {} ({} open, {evicted} evicted to keep the memory bound)", self.flows, self.flows_open)?;
        for (label, total) in &self.verdicts {
            writeln!(
                f,
                "           {label:<24} {} flows, {} packets, {} octets",
                total.flows, total.packets, total.octets
            )?;
        }
        for tunnel in &self.tunnels {
            let (name, label, total) = (tunnel.tunnel.name(), tunnel.verdict.name(), &tunnel.total);
            writeln!(
                f,
                "tunnel   {name:<10} {label:<24} {} flows, {} packets, {} octets",
                total.flows, total.packets, total.octets
            )?;
        }
        if self.keys != KeyCounts::default() {
            let KeyCounts { trials, verified, unknown, skipped, cut } = self.keys;
            writeln!(
                f,
                "keys     {trials} tried: {verified} handshake messages verified, {unknown} made with no key pinned for their address, {skipped} not shown to every key since too many came, {cut} cut too short to tell"
            )?;
        }
        write!(f, "records  {} written, {} lost", self.records, self.records_lost)
    }
}
