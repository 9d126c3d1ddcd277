//! Turns a report into tables for spreadsheets, a CSV file each.

use crate::cli::written::cell;
use crate::store::report::Report;
use crate::time::Timestamp;

/// Name and content of every table.
pub(super) fn all(report: &Report) -> [(&'static str, Vec<u8>); 10] {
    [
        ("report", head(report)),
        ("coverage", coverage(report)),
        ("gaps", gaps(report)),
        ("flows", flows(report)),
        ("approvals", approvals(report)),
        ("octets", octets(report)),
        ("tunnels", tunnels(report)),
        ("evidence", evidence(report)),
        ("policy", policy(report)),
        ("integrity", integrity(report)),
    ]
}

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Into memory, which takes everything.
    let _ = writer.write_record(header);
    for row in rows {
        let _ = writer.write_record(row.iter().map(|text| cell(text.as_bytes())));
    }
    writer.into_inner().unwrap_or_default()
}

fn optional<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(String::new, T::to_string)
}

fn joined<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let mut all = String::new();
    for text in texts {
        if !all.is_empty() {
            all.push_str("; ");
        }
        all.push_str(text.as_ref());
    }
    all
}

fn head(report: &Report) -> Vec<u8> {
    let head = &report.head;
    let pair = |name: &str, value: String| [name.to_owned(), value];
    let mut rows = vec![
        pair("from", head.from.to_string()),
        pair("to", head.to.to_string()),
        pair("made_at", head.made_at.to_string()),
        pair("made_by", head.made_by.clone()),
        pair("program_version", head.program_version.to_owned()),
    ];
    rows.extend(head.logs.iter().map(|path| pair("log", path.display().to_string())));
    rows.push(pair("evidence_complete", report.evidence.complete.to_string()));
    rows.extend(report.evidence.doubts.iter().map(|doubt| pair("doubt", doubt.clone())));
    rows.extend(report.notes.iter().map(|note| pair("note", note.clone())));
    table(["what", "value"], rows)
}

fn coverage(report: &Report) -> Vec<u8> {
    let header = [
        "sensor",
        "interface",
        "asked_seconds",
        "covered_seconds",
        "covered_share",
        "packets",
        "octets",
        "dropped_kernel",
        "dropped_nic",
        "unreadable",
        "not_ip",
        "flows_ended",
        "flows_one_way",
        "without_link_seconds",
        "longest_silence_seconds",
        "sensor_records_written",
        "sensor_records_lost",
    ];
    let rows = report.sensors.iter().flat_map(|sensor| {
        sensor.interfaces.iter().map(|of| {
            [
                sensor.sensor.to_string(),
                of.interface.to_string(),
                of.asked_seconds.to_string(),
                of.covered_seconds.to_string(),
                of.covered_share.to_string(),
                of.packets.to_string(),
                of.octets.to_string(),
                optional(of.dropped_kernel.as_ref()),
                of.dropped_nic.to_string(),
                of.unreadable.to_string(),
                of.not_ip.to_string(),
                of.flows_ended.to_string(),
                of.flows_one_way.to_string(),
                of.without_link_seconds.to_string(),
                of.longest_silence_seconds.to_string(),
                sensor.records_written.to_string(),
                sensor.records_lost.to_string(),
            ]
        })
    });
    table(header, rows)
}

fn gaps(report: &Report) -> Vec<u8> {
    let rows = report.gaps.iter().map(|gap| {
        [
            gap.sensor.to_string(),
            if gap.interfaces.is_empty() { "all".to_owned() } else { joined(&gap.interfaces) },
            gap.from.to_string(),
            gap.to.to_string(),
            gap.to.since(gap.from).as_secs_f64().to_string(),
            gap.meaning.to_owned(),
            optional(gap.amount.as_ref()),
        ]
    });
    table(["sensor", "interface", "from", "to", "seconds", "why", "amount"], rows)
}

fn flows(report: &Report) -> Vec<u8> {
    let rows = report.totals.iter().map(|total| {
        [
            total.verdict.name().to_owned(),
            total.reason.name().to_owned(),
            total.flows.to_string(),
            total.inside.to_string(),
            total.octets.to_string(),
        ]
    });
    table(["verdict", "reason", "flows", "inside_a_tunnel", "octets"], rows)
}

fn approvals(report: &Report) -> Vec<u8> {
    let header = [
        "approval",
        "owner",
        "reference",
        "need",
        "valid_from",
        "valid_until",
        "in_force",
        "removed",
        "remarks",
        "flows",
        "octets",
        "first_used",
        "last_used",
        "peers",
        "seen_on",
        "capacity",
        "peak_bits_per_second",
        "peak_from",
        "peak_seconds",
        "peak_share_of_capacity",
        "refused_flows",
        "decision",
    ];
    let rows = report.approvals.iter().map(|of| {
        let terms = of.terms.as_ref();
        let peak = of.peak.as_ref();
        let at = |time: Option<Timestamp>| optional(time.as_ref());
        [
            of.id.to_string(),
            of.owner.clone(),
            of.reference.clone(),
            optional(terms.and_then(|terms| terms.need.as_ref())),
            at(terms.and_then(|terms| terms.valid_from)),
            at(terms.map(|terms| terms.valid_until)),
            optional(of.in_force.as_ref()),
            at(of.removed),
            joined(of.remarks.iter().map(|remark| remark.meaning())),
            of.flows.to_string(),
            of.octets.to_string(),
            at(of.first_used),
            at(of.last_used),
            of.peers.to_string(),
            joined(&of.seen_on),
            optional(terms.and_then(|terms| terms.capacity).as_ref()),
            optional(peak.map(|peak| peak.bits_per_second).as_ref()),
            at(peak.map(|peak| peak.from)),
            optional(peak.map(|peak| peak.seconds).as_ref()),
            optional(peak.and_then(|peak| peak.share_of_capacity).as_ref()),
            of.refused.iter().map(|refused| refused.flows).sum::<u64>().to_string(),
            String::new(),
        ]
    });
    table(header, rows)
}

fn octets(report: &Report) -> Vec<u8> {
    let rows = report
        .approvals
        .iter()
        .flat_map(|of| of.days.iter().map(|day| [of.id.to_string(), day.day.clone(), day.octets.to_string()]));
    table(["approval", "day", "octets"], rows)
}

fn tunnels(report: &Report) -> Vec<u8> {
    let header = [
        "tunnel",
        "confidence",
        "over",
        "source",
        "destination",
        "ports",
        "inside",
        "sensor",
        "seen_on",
        "first_seen",
        "last_seen",
        "flows",
        "octets",
        "reason",
        "nearest_approval",
        "evidence",
        "flow_id",
        "explain",
        "ticket",
        "decision",
    ];
    let rows = report.tunnels.iter().map(|of| {
        [
            of.tunnel.name().to_owned(),
            of.confidence.name().to_owned(),
            of.over.clone(),
            of.source.clone(),
            of.destination.clone(),
            joined(of.ports.iter().map(u16::to_string)),
            of.inside.to_string(),
            of.sensor.clone(),
            of.seen_on.clone(),
            of.first_seen.to_string(),
            of.last_seen.to_string(),
            of.flows.to_string(),
            of.octets.to_string(),
            of.reason.name().to_owned(),
            optional(of.approval.as_ref()),
            joined(of.evidence.iter().map(|sign| &sign.code)),
            of.flow_id.to_string(),
            format!("{} {}", report.head.explain, of.flow_id),
            String::new(),
            String::new(),
        ]
    });
    table(header, rows)
}

fn evidence(report: &Report) -> Vec<u8> {
    let rows = report.tunnels.iter().flat_map(|of| {
        of.evidence.iter().map(|sign| {
            [
                of.flow_id.to_string(),
                sign.time.to_string(),
                sign.code.clone(),
                sign.confidence.name().to_owned(),
                sign.count.to_string(),
                sign.meaning.to_owned(),
                sign.clause.to_owned(),
            ]
        })
    });
    table(["flow_id", "time", "code", "confidence", "count", "meaning", "clause"], rows)
}

fn policy(report: &Report) -> Vec<u8> {
    let rows = report.policy.iter().map(|change| {
        let what = serde_json::to_value(change.what).ok();
        let changed = change.changed.iter().map(|changed| {
            let fields = changed.fields.iter().map(|[name, before, after]| format!("{name} {before} -> {after}"));
            format!("{}: {}", changed.id, fields.collect::<Vec<_>>().join(", "))
        });
        [
            change.time.to_string(),
            change.sensor.to_string(),
            what.and_then(|what| what.as_str().map(str::to_owned)).unwrap_or_default(),
            change.revision.to_string(),
            optional(change.approvals.as_ref()),
            joined(&change.added),
            joined(&change.removed),
            joined(changed),
            joined(&change.errors),
        ]
    });
    table(["time", "sensor", "what", "revision", "approvals", "added", "removed", "changed", "errors"], rows)
}

fn integrity(report: &Report) -> Vec<u8> {
    let header = [
        "folder",
        "log",
        "result",
        "segments",
        "seals",
        "records",
        "signed_seal",
        "signed_at",
        "chain",
        "heads",
        "findings",
        "breaks",
        "key_sha256",
        "command",
    ];
    let rows = report.integrity.iter().flat_map(|of| {
        let folder = of.folder.display().to_string();
        let keys = joined(of.keys.iter().map(|key| &key.sha256));
        let mut rows: Vec<_> = of
            .logs
            .iter()
            .map(|log| {
                let signed = log.signed.as_ref();
                [
                    folder.clone(),
                    log.log.clone(),
                    if log.is_whole { "whole" } else { "not whole" }.to_owned(),
                    log.segments.to_string(),
                    log.seals.to_string(),
                    log.records.to_string(),
                    optional(signed.map(|signed| signed.seal).as_ref()),
                    optional(signed.map(|signed| signed.time).as_ref()),
                    optional(signed.map(|signed| signed.chain).as_ref()),
                    log.heads.to_string(),
                    joined(log.findings.iter().map(ToString::to_string)),
                    joined(log.breaks.iter().map(ToString::to_string)),
                    keys.clone(),
                    of.command.clone(),
                ]
            })
            .collect();
        if rows.is_empty() {
            let mut row = [const { String::new() }; 14];
            row[0] = folder;
            row[2] = format!("not verified: {}", of.not_verified.as_deref().unwrap_or_default());
            row[13].clone_from(&of.command);
            rows.push(row);
        }
        rows
    });
    table(header, rows)
}
