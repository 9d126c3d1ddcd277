//! Turns records into a table for people: one row a flow, from its last record.

use std::fmt::Write;
use std::net::IpAddr;

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};

use crate::policy::Label;
use crate::record::{Kind, Record};

/// Rows are collected and handed over as one table, so that its columns fit.
#[derive(Debug, Default)]
pub struct FlowRows {
    rows: Vec<Vec<String>>,
    alarms: Vec<bool>,
}

/// Rows of one table at most; beyond it another table begins.
pub const MAX_ROWS: usize = 10_000;

const HEADER: [&str; 9] =
    ["start (UTC)", "source", "destination", "verdict", "reason", "tunnel", "packets", "octets", "approval / flow"];

impl FlowRows {
    /// Takes a record; only `end` records make rows.
    pub fn write(&mut self, record: &Record) {
        if record.kind == Kind::End {
            self.add(record);
        }
    }

    /// Takes a record of whichever kind as a row.
    pub fn add(&mut self, record: &Record) {
        self.rows.push(row(record));
        self.alarms.push(record.verdict == Label::UnapprovedVpnTunnel);
    }

    /// Whether it is time to print.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS
    }

    /// The table of what was collected, `None` where that is nothing; starts anew.
    pub fn take(&mut self) -> Option<Table> {
        if self.rows.is_empty() {
            return None;
        }
        let mut table = plain();
        table.set_header(HEADER);
        for (row, alarm) in self.rows.drain(..).zip(self.alarms.drain(..)) {
            table.add_row(row.into_iter().enumerate().map(|(column, text)| {
                let cell = Cell::new(text);
                if alarm && column == 3 { cell.add_attribute(Attribute::Bold) } else { cell }
            }));
        }
        Some(table)
    }
}

/// The look of every table of linewarden: as wide as the terminal, without frames.
#[must_use]
pub fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// A table as it is printed: the name of an interface, or whatever else a row brings, is not for the terminal to obey.
#[must_use]
pub fn printed(table: &Table) -> String {
    // The system gives interfaces names with any octet but blanks, `/` and `:`.
    const OWN: [&str; 2] = ["\u{1b}[1m", "\u{1b}[0m"];
    let text = table.trim_fmt();
    let (mut printed, mut rest) = (String::with_capacity(text.len()), &*text);
    while let Some(at) = rest.find(|letter: char| letter.is_control() && letter != '\n') {
        let (before, behind) = rest.split_at(at);
        printed.push_str(before);
        let own = OWN.iter().find(|code| behind.starts_with(**code));
        printed.push_str(own.unwrap_or(&"\u{fffd}"));
        let length = own.map_or_else(|| behind.chars().next().map_or(0, char::len_utf8), |code| code.len());
        rest = behind.split_at(length).1;
    }
    printed + rest
}

/// A time as records write it, as people read it: to the second.
#[must_use]
pub fn to_the_second(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

/// Address and port as people write them.
#[must_use]
pub fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

/// Name of the common IP protocol numbers.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        4 => "ipip".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        41 => "ipv6".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmpv6".into(),
        other => other.to_string(),
    }
}

fn row(record: &Record) -> Vec<String> {
    let mut tunnel = record.tunnel.map_or_else(|| "-".to_owned(), |tunnel| tunnel.name().to_owned());
    if let Some(confidence) = record.confidence {
        let _ = write!(tunnel, " {}{}", confidence.name(), if record.midstream { ", mid-stream" } else { "" });
    }
    if let Some(outer) = &record.outer_flow_id {
        let _ = write!(tunnel, ", inside {:08x}", outer.number() >> 32);
    }
    let start = record.start.to_string();
    vec![
        to_the_second(&start),
        format!("{} {}", protocol(record.proto), endpoint(record.src_ip, record.src_port)),
        endpoint(record.dst_ip, record.dst_port),
        record.verdict.name().to_owned(),
        record.reason.name().to_owned(),
        tunnel,
        format!("{}/{}", record.fwd_packets, record.rev_packets),
        format!("{}/{}", record.fwd_octets, record.rev_octets),
        record.approval.as_ref().map_or_else(|| record.flow_id.to_string(), |approval| approval.id.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_in_a_row_moves_the_terminal() {
        let mut table = plain();
        table.set_width(80);
        table.add_row([Cell::new("wan0\u{1b}]0;title\u{7}\u{9b}2J"), Cell::new("\r\u{1b}[2Jünnecessary")]);
        let text = printed(&table);
        assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{text:?}");
        assert!(text.contains("wan0\u{fffd}]0;title\u{fffd}\u{fffd}2J") && text.contains("ünnecessary"), "{text:?}");
        let mut table = plain();
        table.enforce_styling().add_row([Cell::new("verdict").add_attribute(Attribute::Bold)]);
        assert_eq!(printed(&table), table.trim_fmt(), "what is bold stays so");
    }
}
