//! Turns the daemon's answers into text for people.

use std::fmt::Write as _;
use std::io::{self, Write};

use comfy_table::Table;
use serde_json::Value;

use crate::daemon::control::protocol::{
    ApprovalAnswer, Body, End, InterfaceAnswer, ReloadAnswer, RotateAnswer, Span, StatusAnswer,
};
use crate::sink::live::LiveFlow;
use crate::sink::sensor::LinkState;
use crate::sink::table::{endpoint, plain, printed, protocol, to_the_second};
use crate::time::Timestamp;

/// What was answered so far.
#[derive(Default)]
pub(super) struct Tables {
    flows: Vec<LiveFlow>,
    approvals: Vec<ApprovalAnswer>,
    last: Option<Body>,
}

impl Tables {
    /// Takes a line; true where it was the last.
    pub(super) fn take(&mut self, body: Body) -> bool {
        match body {
            Body::Flow(flow) => self.flows.push(flow),
            Body::Approval(approval) => self.approvals.push(approval),
            body => {
                self.last = Some(body);
                return true;
            }
        }
        false
    }

    pub(super) fn print(self, out: &mut impl Write) -> io::Result<()> {
        match self.last {
            Some(Body::Status(status)) => write!(out, "{}", text(&status)),
            Some(Body::Stats(summary)) => write!(out, "{}", stats(&summary)),
            Some(Body::Reload(reload)) => write!(out, "{}", reloaded(&reload)),
            Some(Body::Rotate(RotateAnswer { log })) => writeln!(out, "a new file is written: {log}"),
            Some(Body::End(end)) if !self.flows.is_empty() => list(out, &flows(&self.flows), end),
            Some(Body::End(end)) if !self.approvals.is_empty() => list(out, &approvals(&self.approvals), end),
            Some(Body::End(_)) => writeln!(out, "none"),
            _ => Ok(()),
        }
    }
}

fn list(out: &mut impl Write, table: &Table, end: End) -> io::Result<()> {
    writeln!(out, "{}", printed(table))?;
    if end.left_out > 0 {
        writeln!(out, "{} more: raise --limit", end.left_out)?;
    }
    if end.unseen > 0 {
        writeln!(out, "the daemon's view of open flows was full: {} records of others found no room", end.unseen)?;
    }
    Ok(())
}

fn text(status: &StatusAnswer) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<11} {what}");
    };
    line(
        "sensor",
        &format!("{}, linewarden {}, up {}", status.sensor, status.program_version, span(status.uptime_seconds)),
    );
    if status.evidence.complete {
        line("evidence", "complete, as far as the last hour tells");
    }
    for (index, doubt) in status.evidence.doubts.iter().enumerate() {
        line(if index == 0 { "evidence" } else { "" }, &format!("MAY HAVE GAPS: {doubt}"));
    }
    let (records, log) = (&status.records, &status.log);
    line(
        "records",
        &format!(
            "{} written, {} waiting, {} lost ({} in the last hour, {} in the last day)",
            records.written,
            records.waiting,
            records.lost,
            records.last_hour.records_lost,
            records.last_day.records_lost
        ),
    );
    let state = if log.is_failing { "CANNOT BE WRITTEN" } else { "is written" };
    line("log", &format!("{} {state}, {}", log.path, log.octets.map_or_else(|| "gone".to_owned(), octets)));
    if let Some(inventory) = &status.inventory {
        let evicted =
            if inventory.evicted > 0 { format!(", {} went to make room", inventory.evicted) } else { String::new() };
        let state = inventory.error.as_ref().map_or_else(String::new, |error| format!(", CANNOT BE KEPT NOW: {error}"));
        line("inventory", &format!("{}, {} tunnels and circuits{evicted}{state}", inventory.path, inventory.tunnels));
    }
    let policy = &status.policy;
    line(
        "approvals",
        &format!(
            "{}: {} in force, {} expired, {} not yet; revision {}",
            policy.approvals,
            policy.in_force,
            policy.expired,
            policy.not_yet,
            policy.revision.get(..12).unwrap_or(&policy.revision)
        ),
    );
    for approval in &policy.expiring {
        line("", &format!("EXPIRES SOON: {} of {}, at {}", approval.id, approval.owner, short(approval.valid_until)));
    }
    let reloads = &status.reloads;
    let failure = reloads.last_failure.map_or_else(String::new, |at| format!(", the last failure at {}", short(at)));
    line(
        "reloads",
        &format!(
            "{} succeeded, {} failed{failure}; in force since {}",
            reloads.succeeded,
            reloads.failed,
            short(reloads.last_success)
        ),
    );
    line(
        "flows",
        &format!(
            "{} open in {} of memory, {} evicted; {} unapproved tunnels and {} authorized open",
            status.flows_open,
            octets(status.table_octets),
            status.flows_evicted,
            status.live.unapproved,
            status.live.authorized
        ),
    );
    let fast = if status.kernel_fast_path {
        format!("on, {} packets of settled flows counted there", status.kernel_packets)
    } else {
        "off".to_owned()
    };
    line("kernel", &format!("fast path {fast}"));
    for table in [interfaces(&status.interfaces), gaps(&status.interfaces), workers(status)] {
        let _ = writeln!(text, "\n{}", printed(&table));
    }
    text
}

fn interfaces(all: &[InterfaceAnswer]) -> Table {
    let mut table = plain();
    table.set_header([
        "interface",
        "link",
        "packets",
        "octets",
        "kernel dropped",
        "NIC missed",
        "undecodable",
        "one-way flows",
        "last packet (UTC)",
    ]);
    for of in all {
        let link = match of.link {
            LinkState::Up => "up".to_owned(),
            link => format!("{} since {}", link.name(), short(of.link_since)),
        };
        let dropped = of.dropped_kernel.map_or_else(|| "not counted".to_owned(), |count| count.to_string());
        let one_way = of
            .one_way_share
            .map_or_else(|| "none ended".to_owned(), |share| format!("{} of {}", percent(Some(share)), of.flows_ended));
        table.add_row([
            of.interface.clone(),
            link,
            of.packets.to_string(),
            octets(of.octets),
            dropped,
            of.dropped_nic.to_string(),
            percent(of.undecodable_share),
            one_way,
            of.last_packet.map_or_else(|| "none".to_owned(), short),
        ]);
    }
    table
}

fn gaps(all: &[InterfaceAnswer]) -> Table {
    let mut table = plain();
    table.set_header(["gaps", "over", "packets", "no link", "longest silence", "kernel dropped", "NIC missed"]);
    for of in all {
        for (name, of_span) in [("last hour", &of.last_hour), ("last day", &of.last_day)] {
            let Span { seconds, packets, dropped_kernel, dropped_nic, without_link_seconds, .. } = *of_span;
            table.add_row([
                of.interface.clone(),
                format!("{name} ({})", span(seconds)),
                packets.to_string(),
                span(without_link_seconds),
                span(of_span.longest_silence_seconds),
                dropped_kernel.to_string(),
                dropped_nic.to_string(),
            ]);
        }
    }
    table
}

fn workers(status: &StatusAnswer) -> Table {
    let mut table = plain();
    table.set_header(["worker", "last turn", "packets", "flows open", "ring full", "records lost"]);
    for worker in &status.workers {
        table.add_row([
            worker.worker.to_string(),
            format!("{:.1} s ago", worker.lag_seconds),
            worker.packets.to_string(),
            worker.flows_open.to_string(),
            worker.ring_full.to_string(),
            worker.records_lost.to_string(),
        ]);
    }
    table
}

fn flows(flows: &[LiveFlow]) -> Table {
    let mut table = plain();
    table.set_header([
        "start (UTC)",
        "source",
        "destination",
        "verdict",
        "reason",
        "tunnel",
        "packets",
        "octets",
        "approval / flow",
    ]);
    for flow in flows {
        let confidence = flow.confidence.map_or("", |confidence| confidence.name());
        table.add_row([
            short(flow.start),
            format!("{} {}", protocol(flow.proto), endpoint(flow.src_ip, flow.src_port)),
            endpoint(flow.dst_ip, flow.dst_port),
            flow.verdict.name().to_owned(),
            flow.reason.name().to_owned(),
            format!("{} {confidence}", flow.tunnel.map_or("-", |tunnel| tunnel.name())),
            flow.packets.to_string(),
            octets(flow.octets),
            flow.approval.as_deref().map_or_else(|| flow.flow_id.to_string(), str::to_owned),
        ]);
    }
    table
}

fn approvals(approvals: &[ApprovalAnswer]) -> Table {
    let mut table = plain();
    table.set_header([
        "id",
        "state",
        "owner",
        "reference",
        "from (UTC)",
        "until (UTC)",
        "last used",
        "open flows",
        "open octets",
    ]);
    for approval in approvals {
        table.add_row([
            approval.id.clone(),
            approval.state.name().to_owned(),
            approval.owner.clone(),
            approval.reference.clone(),
            approval.valid_from.map_or_else(|| "always".to_owned(), short),
            short(approval.valid_until),
            match (approval.r#use.used_after_end, approval.r#use.last_used) {
                (Some(after), _) => format!("{}, after its end", short(after)),
                (None, Some(last)) => short(last),
                (None, None) => "not since the start".to_owned(),
            },
            approval.r#use.flows_open.to_string(),
            octets(approval.r#use.octets_open),
        ]);
    }
    table
}

fn reloaded(reload: &ReloadAnswer) -> String {
    let mut text = String::new();
    for warning in &reload.warnings {
        let _ = writeln!(text, "warning    {warning}");
    }
    let change = if reload.revision == reload.before { "as before" } else { "new" };
    let _ = writeln!(
        text,
        "approvals  {} in force with all {} workers, revision {} ({change})",
        reload.approvals, reload.workers, reload.revision
    );
    if !reload.ignored.is_empty() {
        let _ = writeln!(
            text,
            "settings   not taken, a reload takes approvals alone: {}; restart for these",
            reload.ignored.join(", ")
        );
    }
    text
}

/// Every number of the summary, one a line; of tables a row each.
fn stats(summary: &Value) -> String {
    let mut table = plain();
    for (name, value) in summary.as_object().into_iter().flatten() {
        match value {
            Value::Object(parts) => {
                for (part, value) in parts {
                    table.add_row([format!("{name}.{part}"), shown(value)]);
                }
            }
            Value::Array(rows) => {
                for row in rows {
                    let of = |key: &str| row.get(key).map(shown).unwrap_or_default();
                    let label = format!("{name}.{}.{}", of("tunnel"), of("verdict"));
                    let total = format!("{} flows, {} packets, {} octets", of("flows"), of("packets"), of("octets"));
                    table.add_row([label, total]);
                }
            }
            value => {
                table.add_row([name.clone(), shown(value)]);
            }
        }
    }
    format!("{}\n", printed(&table))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "not counted".to_owned(),
        Value::Object(parts) => {
            let parts: Vec<_> = parts.iter().map(|(name, value)| format!("{} {name}", shown(value))).collect();
            parts.join(", ")
        }
        value => value.to_string(),
    }
}

fn short(time: Timestamp) -> String {
    to_the_second(&time.to_string())
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(at) = units.iter().position(|(unit, _)| seconds >= *unit) else { return "0 s".to_owned() };
    let parts = units.iter().skip(at).take(2).map(|(unit, name)| (seconds % next(*unit) / unit, name));
    parts.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(" ")
}

/// The unit above.
const fn next(unit: u64) -> u64 {
    match unit {
        1 => 60,
        60 => 3600,
        3600 => 86_400,
        _ => u64::MAX,
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn octets(count: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units.into_iter().find(|(shift, _)| count >> shift > 0);
    fitting.map_or_else(
        || format!("{count} B"),
        |(shift, unit)| format!("{:.1} {unit}", count as f64 / (1_u64 << shift) as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let spans =
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (86_400, "1 d")];
        for (seconds, expected) in spans {
            assert_eq!(span(seconds), expected);
        }
        for (count, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(octets(count), expected);
        }
        assert_eq!((percent(None), percent(Some(0.125))), ("-".to_owned(), "12.5 %".to_owned()));
    }
}
