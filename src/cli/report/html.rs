//! Turns a report into one HTML file: no script, nothing fetched, every text escaped, for the screen and for paper.

mod approvals;
mod tunnels;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart;
use super::text::{count, length, octets, percent, time};
use crate::policy::Label;
use crate::store::report::{Change, ChangeKind, Gap, Integrity, Remark, Report, Sensor};

/// Gaps that the page lists; JSON and CSV have more.
const GAPS: usize = 500;

/// Nothing may be fetched, whatever stands in the page.
const SECURITY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page.
pub(super) fn page(report: &Report) -> String {
    let names: Vec<_> = report.sensors.iter().map(|sensor| &*sensor.sensor).collect();
    let of = if names.is_empty() { "a log".to_owned() } else { names.join(", ") };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(SECURITY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "linewarden: report on " (of) ", " (time(report.head.from)) " to " (time(report.head.to)) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                (chart::hatching())
                (head(report, &of))
                (verdict(report))
                (tiles(report))
                (coverage(report))
                (approvals::approvals(report))
                (approvals::uses(report))
                (tunnels::tunnels(report))
                (policy(report))
                (integrity(report))
            }
        }
    };
    page.into_string()
}

fn head(report: &Report, of: &str) -> Markup {
    let head = &report.head;
    html! {
        header {
            h1 { "Leased lines and VPNs: report on " (of) }
            dl.head {
                dt { "Range" }
                dd { (time(head.from)) " to " (time(head.to)) " UTC, " (length(head.to.since(head.from).as_secs_f64())) }
                dt { "Covered" }
                dd { (covered(report)) }
                @for sensor in &report.sensors {
                    dt { "Sensor" }
                    dd {
                        (sensor.sensor)
                        @if let Some(version) = &sensor.program_version { ", linewarden " (version) }
                        @if let Some(settings) = &sensor.settings_sha256 { ", settings " code { (short(settings)) } }
                        ", " (plural(sensor.starts, "start")) " in the range"
                    }
                }
                dt { "Made of" }
                dd { @for (at, path) in head.logs.iter().enumerate() { @if at > 0 { ", " } code { (path.display()) } } }
                dt { "Made" }
                dd { (time(head.made_at)) " UTC by " (head.made_by) ", with linewarden " (head.program_version) }
            }
        }
    }
}

/// The worst of all interfaces.
fn worst(report: &Report) -> Option<f64> {
    let interfaces = report.sensors.iter().flat_map(|sensor| &sensor.interfaces);
    interfaces.map(|interface| interface.covered_share).min_by(f64::total_cmp)
}

fn covered(report: &Report) -> String {
    match worst(report) {
        Some(share) if share >= 1.0 => "all of it, on every interface".to_owned(),
        Some(share) => format!("{} of it on the interface with the least", percent(share)),
        None => "not known: nothing says what was captured".to_owned(),
    }
}

fn verdict(report: &Report) -> Markup {
    let evidence = &report.evidence;
    html! {
        section.verdict.good[evidence.complete] {
            @if evidence.complete {
                strong.good-text { "✓ Evidence complete" }
                p { "Every interface was covered for the whole range, nothing was dropped or lost, and the log is whole." }
            } @else {
                strong.bad-text { "✗ Evidence not complete" }
                p { "because" }
                ul { @for doubt in &evidence.doubts { li { (doubt) } } }
            }
            @for note in &report.notes { p.note-text { (note) } }
            p.soft {
                "The absence of findings does not prove the absence of tunnels: linewarden recognises published protocols, "
                "where it captures."
            }
        }
    }
}

fn total(report: &Report, label: Label) -> (u64, u64) {
    let of = report.totals.iter().filter(|total| total.verdict == label);
    of.fold((0, 0), |(flows, octets), total| (flows + total.flows, octets.saturating_add(total.octets)))
}

fn tiles(report: &Report) -> Markup {
    let (approved, approved_octets) = total(report, Label::AuthorizedLeasedLine);
    let (unapproved, unapproved_octets) = total(report, Label::UnapprovedVpnTunnel);
    let tunnels = report.tunnels.len() as u64 + report.tunnels_left_out.tunnels;
    let in_force = report.approvals.iter().filter(|approval| approval.in_force == Some(true)).count() as u64;
    let to_decide = report.approvals.iter().filter(|approval| approvals::calls_for_decision(approval)).count() as u64;
    let integrity = &report.integrity;
    let (whole, class) = if integrity.iter().any(|of| of.is_whole == Some(false)) {
        ("not whole", "bad-text")
    } else if integrity.iter().all(|of| of.is_whole == Some(true)) {
        ("whole", "good-text")
    } else {
        ("not verified", "note-text")
    };
    html! {
        div.tiles {
            div.tile { span.soft { "Covered" } b { (worst(report).map_or_else(|| "?".to_owned(), percent)) } "of the range, at least" }
            div.tile { span.soft { "Unapproved tunnels" } b.bad-text[tunnels > 0] { (count(tunnels)) }
                (plural(unapproved, "flow")) ", " (octets(unapproved_octets)) }
            div.tile { span.soft { "Approved use" } b { (octets(approved_octets)) } (plural(approved, "flow")) }
            div.tile {
                span.soft { "Approvals in force" }
                b { @if report.policy.is_empty() { "?" } @else { (count(in_force)) } }
                (count(to_decide)) " of all to decide on"
            }
            div.tile { span.soft { "The log" } b class=(class) { (whole) } "see " a href="#integrity" { "integrity" } }
        }
    }
}

fn coverage(report: &Report) -> Markup {
    html! {
        h2 #coverage { "1  Coverage and gaps" }
        @if report.sensors.is_empty() {
            p.bad-text { "There is no sensor.ndjson beside the records: which interfaces were captured, when, and what was dropped is not known." }
        }
        @for sensor in &report.sensors { (interfaces(sensor)) }
        @if !report.sensors.is_empty() {
            p.legend {
                span { svg viewBox="0 0 20 8" preserveAspectRatio="none" { rect.covered width="20" height="8" {} } "covered" }
                span { svg viewBox="0 0 20 8" preserveAspectRatio="none" { rect.hole width="20" height="8" {} } "not covered, to the minute" }
            }
        }
        h3 { "Gaps" }
        @if report.gaps.is_empty() { p { @if report.sensors.is_empty() { "Not known." } @else { "None." } } }
        @if !report.gaps.is_empty() {
            div.wide { table {
                thead { tr { th { "Sensor, interface" } th { "From (UTC)" } th { "To" } th.number { "Length" } th { "Why" } th.number { "How much" } } }
                tbody {
                    @for gap in report.gaps.iter().take(GAPS) {
                        tr {
                            td { (gap.sensor) ": " (places(gap)) }
                            td.time { (time(gap.from)) }
                            td.time { (time(gap.to)) }
                            td.number { (length(chart::seconds(gap))) }
                            td { (gap.meaning) }
                            td.number { (amount(gap)) }
                        }
                    }
                }
            } }
            @let more = report.gaps.len().saturating_sub(GAPS) as u64 + report.gaps_left_out;
            @if more > 0 { p.note-text { (plural(more, "later gap")) " not listed here; JSON and CSV have the first ten thousand." } }
        }
        h3 { "Flows seen" }
        div.wide { table {
            thead { tr { th { "Verdict" } th { "Reason" } th.number { "Flows" } th.number { "inside a tunnel" } th.number { "Octets in the range" } } }
            tbody {
                @for total in &report.totals {
                    tr {
                        td { (total.verdict.name()) }
                        td { (total.reason.name()) span.soft { ": " (total.reason.meaning()) } }
                        td.number { (count(total.flows)) }
                        td.number { (count(total.inside)) }
                        td.number { (octets(total.octets)) }
                    }
                }
            }
            caption {
                "A flow counts once, where its latest record puts it, if it had packets in the range. What its records say came "
                "between two times is spread evenly over the time between, and what of it lies in the range counts. Octets of "
                "flows inside a tunnel are in the tunnel's. Flows that were not recorded (records.other) are in none of these."
            }
        } }
    }
}

fn interfaces(sensor: &Sensor) -> Markup {
    html! {
        h3 { "Sensor " (sensor.sensor) }
        div.wide { table {
            thead { tr {
                th { "Interface" } th { "Covered" } th.number { "Packets" } th.number { "Octets" }
                th.number { "Dropped by" br; "kernel, NIC" } th.number { "Unreadable" }
                th.number { "One-way flows" } th.number { "Longest" br; "silence" }
            } }
            tbody {
                @for of in &sensor.interfaces {
                    tr {
                        td { (of.interface) }
                        td { (chart::timeline(of)) (percent(of.covered_share)) }
                        td.number { (count(of.packets)) }
                        td.number { (octets(of.octets)) }
                        td.number {
                            @match of.dropped_kernel { Some(dropped) => { (count(dropped)) } None => { "not counted" } }
                            ", " (count(of.dropped_nic))
                        }
                        td.number { (count(of.unreadable)) @if let Some(share) = of.unreadable_share { br; (percent(share)) } }
                        td.number { (count(of.flows_one_way)) @if let Some(share) = of.one_way_share { br; (percent(share)) } }
                        td.number { (count(of.longest_silence_seconds)) " s" }
                    }
                }
            }
            caption {
                (count(sensor.records_written)) " records written, " (count(sensor.records_lost)) " lost; the longest standstill of a worker was "
                (count(sensor.longest_standstill_seconds)) " s. Unreadable: IP packets that could not be parsed. One-way: of ended flows with two packets or more."
            }
        } }
    }
}

fn places(gap: &Gap) -> String {
    if gap.interfaces.is_empty() { "all".to_owned() } else { gap.interfaces.join(", ") }
}

fn amount(gap: &Gap) -> String {
    use crate::store::report::Why;
    let Some(amount) = gap.amount else { return String::new() };
    match gap.why {
        Why::Drops => plural(amount, "packet"),
        Why::RecordsLost => plural(amount, "record"),
        _ => format!("{} s", count(amount)),
    }
}

fn policy(report: &Report) -> Markup {
    html! {
        h2 #policy { "5  Policy history" }
        @if report.policy.is_empty() { p { "Not known: there is no event of a sensor that tells." } }
        @else {
            div.wide { table {
                thead { tr { th { "Time (UTC)" } th { "Sensor" } th { "What" } th { "Revision" } th.number { "Approvals" } th { "Difference" } } }
                tbody {
                    @for change in &report.policy {
                        tr {
                            td.time { (time(change.time)) }
                            td.time { (change.sensor) }
                            td { @match change.what {
                                ChangeKind::AtFirst => "in force when the range began",
                                ChangeKind::Loaded => "came into force",
                                ChangeKind::ReloadFailed => { span.bad-text { "was wrong, and changed nothing" } }
                            } }
                            td.time { code { (short(&change.revision)) } }
                            td.number { @if let Some(approvals) = change.approvals { (count(approvals as u64)) } }
                            td { (difference(change)) }
                        }
                    }
                }
                caption { "A revision is the SHA-256 of the approvals in force, of which the first twelve digits are shown; each record names it." }
            } }
        }
    }
}

fn difference(change: &Change) -> Markup {
    html! {
        @if !change.added.is_empty() { div { "added " (change.added.join(", ")) } }
        @if !change.removed.is_empty() { div { "removed " (change.removed.join(", ")) } }
        @for changed in &change.changed {
            div { "changed " (changed.id) ": "
                @for (at, [name, before, after]) in changed.fields.iter().enumerate() {
                    @if at > 0 { "; " }
                    (name) " " code { (before) } " → " code { (after) }
                }
            }
        }
        @if change.left_out > 0 { div.note-text { "and " (count(change.left_out as u64)) " more" } }
        @for error in &change.errors { pre { (error) } }
    }
}

fn integrity(report: &Report) -> Markup {
    html! {
        h2 #integrity { "6  Integrity" }
        @for of in &report.integrity { (folder(of)) }
    }
}

fn folder(of: &Integrity) -> Markup {
    html! {
        h3 { code { (of.folder.display()) } ": "
            @match (of.is_whole, &of.not_verified) {
                (Some(true), _) => { span.good-text { "✓ whole" } }
                (Some(false), _) => { span.bad-text { "✗ not whole" } }
                (None, _) => { span.note-text { "not verified" } }
            }
        }
        @if let Some(why) = &of.not_verified { p { (why) } }
        @if !of.logs.is_empty() {
            div.wide { table {
                thead { tr { th { "Log" } th { "Result" } th.number { "Segments" } th.number { "Seals" } th.number { "Records" } th { "Sealed (UTC)" } th { "Signed up to" } th { "Heads" } } }
                tbody {
                    @for log in &of.logs {
                        tr {
                            td { (log.log) }
                            td { @if log.is_whole { span.good-text { "✓ whole" } } @else { span.bad-text { "✗ not whole" } } }
                            td.number { (count(log.segments)) }
                            td.number { (count(log.seals)) }
                            td.number { (count(log.records)) }
                            td.time { @if let Some((first, last)) = log.time { (time(first)) " to " br; (time(last)) } }
                            td { @match &log.signed {
                                Some(signed) => { "seal " (count(signed.seal)) " at " (time(signed.time)) ", chain " code { (signed.chain.to_string()) } }
                                None => { span.bad-text { "nothing by this key" } }
                            } }
                            td { @match log.heads {
                                0 => "none to compare with: a cut tail would not show",
                                heads => { "compared with " (count(heads)) }
                            } }
                        }
                    }
                }
            } }
            @for log in &of.logs {
                @for finding in &log.findings { p.bad-text { (log.log) ": " (finding.to_string()) } }
                @if log.findings_left_out > 0 { p.bad-text { (log.log) ": and " (plural(log.findings_left_out, "finding")) " more" } }
                @for one in &log.breaks { p.note-text { (log.log) ": break, " (one.to_string()) } }
                @if let Some(segment) = log.removed_to { p { (log.log) ": retention removed segments up to " (count(segment)) ", as a signed seal says." } }
                @if log.unsealed_octets > 0 { p.note-text { (log.log) ": " (octets(log.unsealed_octets)) " at the end are not sealed yet: the log is being written, or was not closed." } }
            }
        }
        @for key in &of.keys {
            p { "Verified by the key with the SHA-256 " code { (key.sha256) } " (of " code { "openssl pkey -pubin -in sensor.pub -outform DER" } "). Compare it with the copy that you keep elsewhere." }
        }
        p { "All of the folder is verified, whatever the range, by" }
        pre { (of.command) }
    }
}

/// The first digits of a SHA-256.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// A number of things.
fn plural(number: u64, thing: &str) -> String {
    format!("{}\u{a0}{thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A remark, and how much it matters.
fn remark(remark: Remark) -> Markup {
    let class = match remark {
        Remark::ExpiredButUsed | Remark::WithoutOwner => "bad-text",
        Remark::EndsWithin30Days | Remark::Expired | Remark::Unused | Remark::OnlyInRecords => "note-text",
        _ => "soft",
    };
    html! { span class={ "remark " (class) } { (remark.meaning()) } }
}
