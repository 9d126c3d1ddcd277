//! Turns unapproved tunnels into a table with a place for a ticket and a decision.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::text::{count, octets, time};
use super::plural;
use crate::store::report::{Report, Tunnel};

/// Tunnels that the page lists; JSON and CSV have more.
const LISTED: usize = 1000;

pub(super) fn tunnels(report: &Report) -> Markup {
    let listed: Vec<_> = report.tunnels.iter().take(LISTED).collect();
    let more = (report.tunnels.len() - listed.len()) as u64 + report.tunnels_left_out.tunnels;
    html! {
        h2 #tunnels { "4  Unapproved tunnels" }
        @if listed.is_empty() { p { "None was seen." } }
        @else {
            p.soft {
                "A tunnel is one protocol between two hosts, however many flows it took. Those with most octets come first. "
                "First and last are its packets', of flows that had some in the range."
            }
            div.wide { table.tunnels {
                thead { tr {
                    th.number { "#" } th { "Tunnel" } th { "Between" } th { "Seen on" } th { "First (UTC)" } th { "Last" }
                    th.number { "Flows" } th.number { "Octets" } th { "Ticket" } th { "Decision" }
                } }
                @for (number, tunnel) in listed.iter().enumerate() { (row(report, number + 1, tunnel)) }
            } }
            @if more > 0 {
                p.note-text { (plural(more, "tunnel")) " with fewer octets not listed here; JSON and CSV have the first twenty thousand." }
            }
            h3 { "Their evidence" }
            div.wide { table {
                thead { tr { th { "Code" } th { "Meaning" } th { "Clause" } } }
                tbody { @for (code, (meaning, clause)) in codes(&listed) { tr { td.time { code { (code) } } td { (meaning) } td { (clause) } } } }
            } }
        }
    }
}

fn row(report: &Report, number: usize, tunnel: &Tunnel) -> Markup {
    html! {
        tbody {
            tr {
                td.number { (number) }
                td { b { (tunnel.tunnel.name()) } br; span.soft { (tunnel.confidence.name()) ", over " (tunnel.over) @if tunnel.inside { ", inside another tunnel" } } }
                td { (tunnel.source) br; "→ " (tunnel.destination) }
                td { (tunnel.seen_on) br; span.soft { (tunnel.sensor) } }
                td.time { (time(tunnel.first_seen)) }
                td.time { (time(tunnel.last_seen)) }
                td.number { (count(tunnel.flows)) }
                td.number { (octets(tunnel.octets)) }
                td.box { div {} }
                td.box { div {} }
            }
            tr {
                td {}
                td colspan="9" {
                    b { (tunnel.reason.name()) } ": " (tunnel.meaning)
                    @if let Some(approval) = &tunnel.approval { " (" (approval) ")" }
                    @if tunnel.ports.len() > 1 { "; ports " (tunnel.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")) }
                    br;
                    span.soft {
                        "Evidence: "
                        @for (at, sign) in tunnel.evidence.iter().enumerate() {
                            @if at > 0 { ", " }
                            code { (sign.code) } " " (sign.confidence.name()) @if sign.count > 1 { " ×" (sign.count) }
                        }
                        ". " code { (report.head.explain) " " (tunnel.flow_id) }
                    }
                }
            }
        }
    }
}

/// Each code once.
fn codes<'a>(tunnels: &[&'a Tunnel]) -> BTreeMap<&'a str, (&'static str, &'static str)> {
    let signs = tunnels.iter().flat_map(|tunnel| &tunnel.evidence);
    signs.map(|sign| (sign.code.as_str(), (sign.meaning, sign.clause))).collect()
}
