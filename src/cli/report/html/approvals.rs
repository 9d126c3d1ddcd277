//! Turns approvals into the tables of them, and their use into charts.

use std::cmp::Reverse;

use maud::{Markup, html};

use super::super::chart;
use super::super::text::{count, octets, percent, rate, time};
use super::{plural, remark};
use crate::policy::ApprovalKind;
use crate::store::report::{Approval, Remark, Report};
use crate::time::Timestamp;

/// Approvals whose use is drawn, those with most octets; the table has all.
const DRAWN: usize = 200;
/// Rows of the table of all; JSON and CSV have more.
const LISTED: usize = 2000;

/// Whether somebody has to do something about it.
pub(super) fn calls_for_decision(approval: &Approval) -> bool {
    approval.remarks.iter().any(|remark| !matches!(remark, Remark::Removed | Remark::NotYetValid))
}

pub(super) fn approvals(report: &Report) -> Markup {
    let mut to_decide: Vec<_> = report.approvals.iter().filter(|approval| calls_for_decision(approval)).collect();
    to_decide.sort_by_key(|approval| approval.remarks.first().copied());
    html! {
        h2 #approvals { "2  Approvals" }
        @if report.policy.is_empty() {
            p.bad-text { "Which approvals were in force, and what they say, is not known: there is no event of a sensor that tells. Below are those that records name." }
        } @else { div.wide { table {
            thead { tr { th { "" } th.number { "Approvals" } th { "Which" } } }
            tbody {
                tr { td { "in force at the range's end" } td.number { (count(report.approvals.iter().filter(|approval| approval.in_force == Some(true)).count() as u64)) } td { "all below that say so" } }
                @for kind in Remark::ALL {
                    @let of: Vec<_> = report.approvals.iter().filter(|approval| approval.remarks.contains(&kind)).map(|approval| &*approval.id).collect();
                    tr {
                        td { (kind.meaning()) }
                        td.number { (count(of.len() as u64)) }
                        td { (some(&of)) }
                    }
                }
            }
        } } }
        h3 { "To decide" }
        @if to_decide.is_empty() { p { "Nothing" @if report.policy.is_empty() { ", as far as records tell" } "." } }
        @else { (table(&to_decide, true)) }
        h3 { "All" }
        @if report.approvals.is_empty() { p { "No approval was in force in the range, and no record names one." } }
        @else { (table(&report.approvals.iter().collect::<Vec<_>>(), false)) }
    }
}

/// Names, the first of many.
fn some(names: &[&str]) -> String {
    const NAMED: usize = 12;
    let named = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn table(approvals: &[&Approval], with_boxes: bool) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "Approval" } th { "Owner" } th.roomy { "Reference, need" }
                @if !with_boxes { th.roomy { "For" } }
                th { "Valid (UTC)" } th { "Last used" } th.number { "Flows" } th.number { "Octets" }
                th { "Remarks" }
                @if with_boxes { th { "Decision" } }
            } }
            tbody {
                @for approval in approvals.iter().take(LISTED) {
                    tr {
                        td { b { (approval.id) } @if approval.in_force == Some(true) { br; span.soft { "in force" } } }
                        td { (approval.owner) }
                        td { (approval.reference) @if let Some(need) = approval.terms.as_ref().and_then(|terms| terms.need.as_ref()) { br; span.soft { (need) } } }
                        @if !with_boxes { td { (terms(approval)) } }
                        td.time { (valid(approval)) }
                        td.time { (approval.last_used.map_or_else(|| "not in the range".to_owned(), time)) }
                        td.number { (count(approval.flows)) }
                        td.number { (octets(approval.octets)) }
                        td {
                            @for one in &approval.remarks { (remark(*one)) }
                            @for refused in &approval.refused {
                                div.soft { (plural(refused.flows, "flow")) " refused: " (refused.reason) ", last " (time(refused.last_seen)) }
                            }
                        }
                        @if with_boxes { td.box { div {} } }
                    }
                }
            }
        } }
        @if approvals.len() > LISTED { p.note-text { (plural((approvals.len() - LISTED) as u64, "approval")) " not listed here; JSON and CSV have more." } }
    }
}

fn valid(approval: &Approval) -> Markup {
    html! {
        @match &approval.terms {
            None => "not known",
            Some(terms) => {
                @if let Some(from) = terms.valid_from { "from " (moment(from)) br; }
                (until(terms.valid_until))
                @if let Some(removed) = approval.removed { br; span.note-text { "removed " (time(removed)) } }
            }
        }
    }
}

/// A day's first moment is the day.
fn moment(at: Timestamp) -> String {
    let text = time(at);
    text.strip_suffix(" 00:00:00").map_or_else(|| text.clone(), str::to_owned)
}

/// The end of a validity, which is the first moment behind it.
fn until(at: Timestamp) -> String {
    if at.as_nanos().is_multiple_of(DAY) && at > Timestamp::ZERO {
        return format!("through {}", moment(Timestamp::from_nanos(at.as_nanos() - DAY)));
    }
    format!("until {}", time(at))
}

/// Nanoseconds of a day.
const DAY: u64 = 86_400_000_000_000;

/// What it is for.
fn terms(approval: &Approval) -> Markup {
    let Some(terms) = &approval.terms else { return html! { "not known" } };
    let path = &terms.path;
    let list = |name: &str, items: &[String]| {
        if items.is_empty() { None } else { Some(format!("{name} {}", items.join(", "))) }
    };
    let parts = [
        list("", &terms.peers),
        list("tunnels", &terms.tunnels),
        list("ports", &terms.ports),
        list("IP protocols", &terms.ip_protocols.iter().map(u8::to_string).collect::<Vec<_>>()),
        path.sensor.as_ref().map(|sensor| format!("sensor {sensor}")),
        path.interface.as_ref().map(|interface| format!("interface {interface}")),
        path.vlan.map(|vlan| format!("VLAN {vlan}")),
        path.mpls_label.map(|label| format!("MPLS label {label}")),
        terms.capacity.map(|capacity| format!("capacity {}", rate(capacity))),
        (!terms.keys.is_empty()).then(|| plural(terms.keys.len() as u64, "pinned key")),
    ];
    let kind = match terms.kind {
        ApprovalKind::LeasedLine => "leased line",
        ApprovalKind::Vpn => "VPN",
    };
    html! { (kind) @for part in parts.into_iter().flatten() { br; span.soft { (part.trim()) } } }
}

pub(super) fn uses(report: &Report) -> Markup {
    let mut used: Vec<_> = report.approvals.iter().filter(|approval| approval.flows > 0).collect();
    used.sort_by_key(|approval| Reverse(approval.octets));
    let minutes = report.head.peak_seconds / 60;
    html! {
        h2 #use { "3  Use of each circuit and VPN" }
        @if used.is_empty() { p { "No flow of the range is under an approval." } }
        @else {
            p.soft {
                "Octets by day, UTC, both ways together. The peak is the busiest " (count(minutes)) " minutes, the busier way, on average over "
                "them: records tell what came between two times, five minutes apart by default (records.update_interval), and not how it "
                "was spread between; shorter bursts were higher. Where no home networks are set the way is not known: then both ways together."
            }
            div.uses { @for approval in used.iter().take(DRAWN) { (one_use(report, approval)) } }
            @if used.len() > DRAWN { p.note-text { "Drawn are the " (DRAWN) " with most octets; the table above has all." } }
        }
    }
}

fn one_use(report: &Report, approval: &Approval) -> Markup {
    let capacity = approval.terms.as_ref().and_then(|terms| terms.capacity);
    html! {
        article.use {
            h3 { (approval.id) }
            p.soft {
                (approval.owner) ", " (approval.reference)
                @if !approval.seen_on.is_empty() { "; on " (approval.seen_on.join(", ")) }
            }
            (chart::days(&report.head, &approval.days))
            p {
                (octets(approval.octets)) " in " (plural(approval.flows, "flow")) ", "
                (plural(approval.peers as u64, "peer")) @if approval.has_more_peers { " or more" }
                @if !approval.peer_addresses.is_empty() && approval.peers <= 4 { ": " (approval.peer_addresses.join(", ")) }
            }
            @if let Some(peak) = &approval.peak {
                p {
                    "Peak " @if !peak.is_one_way { "at most " } b { (rate(peak.bits_per_second)) } " from " (time(peak.from))
                    @match (peak.share_of_capacity, capacity) {
                        (Some(share), Some(capacity)) => {
                            ": " b.bad-text[share > 1.0] { (percent(share)) } " of " (rate(capacity))
                        }
                        _ => { span.soft { "; the approval states no capacity" } }
                    }
                }
                @if let (Some(share), Some(capacity)) = (peak.share_of_capacity, capacity) { (chart::peak(peak, capacity, share)) }
            }
        }
    }
}
