//! Turns the board into metrics, in the text format of `OpenMetrics`. No address is a label; times and octets are in base units.

pub(super) mod http;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::board::{Board, octets_of};
use super::state::now;
use crate::audit::{Counters, tunnel_index};
use crate::detect::Protocol;
use crate::flow::Rank;
use crate::policy::Label;
use crate::sink::inventory;
use crate::sink::sensor::LinkState;
use crate::time::Timestamp;
use crate::wire::ParseError;

/// The media type of [`encode`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Approvals with metrics of their own at most: each is several time series in the reader's memory.
const MOST_APPROVALS: usize = 10_000;

/// Everything that is measured, now.
pub(super) fn encode(board: &Arc<Board>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("linewarden");
    registry.register_collector(Box::new(OfBoard(Arc::clone(board))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

struct OfBoard(Arc<Board>);

impl fmt::Debug for OfBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfBoard")
    }
}

/// Labels of a series.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Families of metrics, one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in series {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }
}

const BYTES: Option<&Unit> = Some(&Unit::Bytes);
const SECONDS: Option<&Unit> = Some(&Unit::Seconds);

impl Collector for OfBoard {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Families(encoder);
        let board = &*self.0;
        let mut build = to.0.encode_descriptor("build", "Which linewarden this is", None, MetricType::Info)?;
        build.encode_info(&vec![("version", env!("CARGO_PKG_VERSION"))])?;
        to.gauge("start_time", "When the daemon started, since the Unix epoch", SECONDS, seconds(board.facts.started))?;
        // Before the coverage is locked, which it looks into.
        let complete = board.status().evidence.complete;
        to.gauge(
            "evidence_complete",
            "1 where nothing speaks against the evidence of the last hour being complete",
            None,
            truth(complete),
        )?;
        interfaces(board, &mut to)?;
        core(board, &mut to)?;
        outputs(board, &mut to)?;
        workers(board, &mut to)?;
        policy(board, &mut to)
    }
}

fn of(interface: &str) -> Labels<'_> {
    vec![("interface", interface)]
}

fn interfaces(board: &Board, to: &mut Families<'_>) -> fmt::Result {
    let coverage = board.coverage();
    let all = || coverage.interfaces.iter();
    to.gauges(
        "interface_up",
        "1 where frames can come from the interface",
        None,
        all().map(|i| (of(&i.name), truth(i.totals.link == LinkState::Up))),
    )?;
    to.counters("interface_packets", "Packets taken", None, all().map(|i| (of(&i.name), i.totals.packets)))?;
    to.counters(
        "interface_received",
        "Octets on the wire of these",
        BYTES,
        all().map(|i| (of(&i.name), i.totals.octets)),
    )?;
    let dropped = all().flat_map(|i| {
        let by = |by, count| (vec![("interface", &*i.name), ("by", by)], count);
        [i.totals.dropped_kernel.map(|count| by("kernel", count)), Some(by("nic", i.totals.dropped_nic))]
    });
    to.counters("interface_dropped_packets", "Packets lost before linewarden saw them", None, dropped.flatten())?;
    let undecodable = all().flat_map(|i| {
        let reasons = ParseError::ALL.iter().zip(i.totals.undecodable);
        reasons.map(|(error, count)| (vec![("interface", &*i.name), ("reason", error.reason())], count))
    });
    to.counters("interface_undecodable_packets", "Packets that could not be read", None, undecodable)?;
    to.counters(
        "interface_flows_ended",
        "Flows of two packets or more that ended",
        None,
        all().map(|i| (of(&i.name), i.totals.flows_ended)),
    )?;
    to.counters(
        "interface_flows_one_way",
        "Those of them that showed one direction only",
        None,
        all().map(|i| (of(&i.name), i.totals.flows_one_way)),
    )?;
    to.counters(
        "interface_without_link",
        "How long the link was not up",
        SECONDS,
        all().map(|i| (of(&i.name), i.without_link.as_secs())),
    )?;
    let last = all().filter_map(|i| Some((of(&i.name), seconds(i.last_packet?))));
    to.gauges("interface_last_packet_timestamp", "When packets were last counted", SECONDS, last)
}

fn core(board: &Board, to: &mut Families<'_>) -> fmt::Result {
    let mut counters = Counters::default();
    board.reports().iter().for_each(|report| counters.add(&report.counters));
    to.counter("flows_opened", "Flows opened", None, counters.flows)?;
    to.gauge("flows_open", "Flows in the table", None, float(counters.flows_open))?;
    to.gauge("flow_table", "Memory held for flows", BYTES, float(counters.table_octets))?;
    let evicted = Rank::ALL.iter().zip(counters.evicted);
    to.counters(
        "flows_evicted",
        "Flows ended early to keep the memory bound, by what was known of them",
        None,
        evicted.map(|(rank, count)| (vec![("rank", rank.name())], count)),
    )?;
    let tunnels = || std::iter::once(None).chain(Protocol::ALL.iter().copied().map(Some));
    let ended = |of: fn(&crate::audit::Tally) -> u64| {
        let counters = &counters;
        tunnels().flat_map(move |tunnel| {
            let labels = Label::ALL.iter().zip(counters.ended.0.get(tunnel_index(tunnel)).copied().unwrap_or_default());
            // What never was is no series, but for flows that are no tunnel.
            labels.filter(move |(_, tally)| tally.flows > 0 || tunnel.is_none()).map(move |(label, tally)| {
                let name = tunnel.map_or("none", Protocol::name);
                (vec![("verdict", label.name()), ("tunnel", name)], of(&tally))
            })
        })
    };
    to.counters("verdicts", "Flows ended, by label and tunnel protocol", None, ended(|tally| tally.flows))?;
    to.counters("verdict_packets", "Packets of these", None, ended(|tally| tally.packets))?;
    to.counters("verdict_traffic", "Octets on the wire of these", BYTES, ended(|tally| tally.octets))?;
    let live = [Label::AuthorizedLeasedLine, Label::UnapprovedVpnTunnel];
    #[expect(clippy::cast_precision_loss, reason = "a count of open flows")]
    let open = live.map(|label| (vec![("verdict", label.name())], board.live.count(label) as f64));
    to.gauges("live_flows", "Open tunnels and approved lines", None, open)?;
    to.gauge(
        "kernel_fast_path",
        "1 where packets of settled flows are counted in the kernel",
        None,
        truth(board.facts.kernel_fast_path),
    )?;
    to.counter("kernel_counted_packets", "Packets that were counted there", None, counters.elsewhere.packets)
}

fn outputs(board: &Board, to: &mut Families<'_>) -> fmt::Result {
    let logs = [("records", &board.log, &board.facts.log), ("sensor", &board.sensor_log, &board.facts.sensor_log)];
    let of = |log| vec![("log", log)];
    to.counters(
        "log_lines_written",
        "Lines handed to the disk: records, and events of the sensor",
        None,
        logs.map(|(log, gauge, _)| (of(log), gauge.written())),
    )?;
    let queue: u64 = board.reports().iter().map(|report| report.records_lost).sum();
    let lost = |log, reason, count| (vec![("log", log), ("reason", reason)], count);
    to.counters(
        "log_lines_lost",
        "Lines lost: the way to the log was full, or the disk refused",
        None,
        [
            lost("records", "queue", queue),
            lost("records", "disk", board.log.lost()),
            lost("sensor", "disk", board.sensor_log.lost()),
        ],
    )?;
    to.gauges(
        "log_lines_waiting",
        "Lines that wait for the disk",
        None,
        logs.map(|(log, gauge, _)| (of(log), float(gauge.waiting()))),
    )?;
    let outputs = board.facts.output_losses.iter();
    to.counters(
        "output_lines_lost",
        "Lines that an output beside the log could not write; the log has them",
        None,
        outputs.map(|(name, lost)| (vec![("output", name.as_str())], lost.load(Ordering::Relaxed))),
    )?;
    to.gauges(
        "log_failing",
        "1 where the log cannot be written now",
        None,
        logs.map(|(log, gauge, _)| (of(log), truth(gauge.health().is_failing))),
    )?;
    to.gauges(
        "log_displaced",
        "1 where the file that is written is not where it should be: it, or its folder, was renamed or removed",
        None,
        logs.map(|(log, gauge, _)| (of(log), truth(gauge.health().is_displaced))),
    )?;
    to.gauges(
        "log_headless",
        "1 where signed heads cannot be kept in state.dir",
        None,
        logs.map(|(log, gauge, _)| (of(log), truth(gauge.health().is_headless))),
    )?;
    to.counters(
        "log_harmed",
        "Times that the file that is written, or its seals, were cut or removed",
        None,
        logs.map(|(log, gauge, _)| (of(log), gauge.health().harmed)),
    )?;
    let sizes = logs.into_iter().filter_map(|(log, _, path)| Some((of(log), float(octets_of(path)?))));
    to.gauges("log_file", "Size of the file that is written now", BYTES, sizes)?;
    board.inventory.as_ref().map_or(Ok(()), |inventory| of_inventory(inventory, to))
}

fn of_inventory(inventory: &inventory::Gauge, to: &mut Families<'_>) -> fmt::Result {
    to.counter("inventory_records", "Lines of the log that the inventory took", None, inventory.lines())?;
    to.counter("inventory_errors", "Times that the inventory could not be read or written", None, inventory.errors())?;
    to.gauge(
        "inventory_failing",
        "1 where the inventory cannot be kept now",
        None,
        truth(inventory.error().is_some()),
    )?;
    to.gauge(
        "inventory_tunnels",
        "Tunnels and circuits in the inventory, each once for every approval and path",
        None,
        float(inventory.rows()),
    )?;
    to.counter("inventory_evicted", "Those that ever went to make room for others", None, inventory.evicted())?;
    to.counter(
        "inventory_left_out_records",
        "Records of open flows that found no room, whose flows count when they end",
        None,
        inventory.left_out(),
    )?;
    to.counter(
        "inventory_damaged_lines",
        "Lines or parts of the log that the inventory could not read",
        None,
        inventory.damaged(),
    )
}

fn workers(board: &Board, to: &mut Families<'_>) -> fmt::Result {
    let names: Vec<_> = (0..board.workers.len()).map(|worker| worker.to_string()).collect();
    let all = || board.workers.iter().zip(&names).map(|(worker, name)| (vec![("worker", name.as_str())], worker));
    to.gauges(
        "worker_lag",
        "How long ago the worker's loop turned",
        SECONDS,
        all().map(|(labels, worker)| (labels, worker.lag().as_secs_f64())),
    )?;
    to.counters(
        "worker_turns",
        "Turns of the worker's loop",
        None,
        all().map(|(labels, worker)| (labels, worker.turns())),
    )?;
    to.counters(
        "worker_ring_full",
        "Times that the kernel found the worker's ring full",
        None,
        all().map(|(labels, worker)| (labels, worker.report().capture.ring_full)),
    )
}

fn policy(board: &Board, to: &mut Families<'_>) -> fmt::Result {
    let (policy, reloads) = (board.policy(), board.reloads());
    let mut info = to.0.encode_descriptor("policy", "The approvals in force", None, MetricType::Info)?;
    info.encode_info(&vec![("revision", &**policy.revision())])?;
    #[expect(clippy::cast_precision_loss, reason = "a count of approvals")]
    to.gauge("approvals", "Approvals that were read, valid or not", None, policy.approvals().len() as f64)?;
    to.counters(
        "reloads",
        "Reloads of the approvals since the start",
        None,
        [("success", reloads.succeeded), ("failure", reloads.failed)]
            .map(|(result, count)| (vec![("result", result)], count)),
    )?;
    to.gauge(
        "reload_success",
        "1 where the latest reading of the approvals succeeded",
        None,
        truth(!reloads.is_failed),
    )?;
    to.gauge(
        "reload_success_timestamp",
        "When the approvals in force were read",
        SECONDS,
        seconds(reloads.last_success),
    )?;
    let approvals = || policy.approvals().iter().take(MOST_APPROVALS);
    to.gauges(
        "approval_expiry_timestamp",
        "When the approval ends",
        SECONDS,
        approvals().map(|approval| (vec![("approval", &*approval.id)], seconds(approval.valid_until))),
    )?;
    let uses: Vec<_> = approvals().map(|approval| (&*approval.id, board.usage.of(&approval.id))).collect();
    let used = uses.iter().filter_map(|(id, of)| Some((vec![("approval", *id)], seconds(of.last_used?))));
    to.gauges("approval_last_used_timestamp", "When the approval was used last, since the start", SECONDS, used)?;
    let after_end = uses.iter().filter_map(|(id, of)| Some((vec![("approval", *id)], seconds(of.used_after_end?))));
    to.gauges(
        "approval_used_after_end_timestamp",
        "When a flow was seen last that the approval would have covered, had it not ended; since the start",
        SECONDS,
        after_end,
    )?;
    to.gauge(
        "approval_warn_before",
        "How long before its end an approval is warned of",
        SECONDS,
        board.facts.warn_before.as_secs_f64(),
    )?;
    to.gauges(
        "approval_open_flows",
        "Flows open under the approval",
        None,
        uses.iter().map(|(id, of)| (vec![("approval", *id)], float(of.flows_open))),
    )?;
    to.gauge("uptime", "How long the daemon runs", SECONDS, now().duration_since(board.facts.began).as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "seconds and octets are exact up to 2^53")]
const fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(time: Timestamp) -> f64 {
    float(time.as_secs())
}

const fn truth(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}
