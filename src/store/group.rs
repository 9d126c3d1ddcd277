//! Turns rows into sums by the values of some fields.

use std::collections::HashMap;
use std::fmt::Write;

use super::line::Line;

/// What rows are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `verdict`.
    Label,
    /// `reason`.
    Reason,
    /// `tunnel`.
    Protocol,
    /// `confidence`.
    Confidence,
    /// The approval's `id`.
    Approval,
    /// Its `owner`.
    Owner,
    /// `interface`.
    Interface,
    /// `sensor`.
    Sensor,
    /// `vlan`, outer and inner.
    Vlan,
    /// `direction`.
    Direction,
    /// `proto`.
    Proto,
    /// `src_ip`.
    SrcIp,
    /// `src_port`.
    SrcPort,
    /// `dst_ip`.
    DstIp,
    /// `dst_port`.
    DstPort,
    /// `end_reason`.
    EndReason,
    /// `kind`.
    Kind,
    /// Day of `start`, UTC.
    Day,
    /// Hour of `start`, UTC.
    Hour,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Label,
        Self::Reason,
        Self::Protocol,
        Self::Confidence,
        Self::Approval,
        Self::Owner,
        Self::Interface,
        Self::Sensor,
        Self::Vlan,
        Self::Direction,
        Self::Proto,
        Self::SrcIp,
        Self::SrcPort,
        Self::DstIp,
        Self::DstPort,
        Self::EndReason,
        Self::Kind,
        Self::Day,
        Self::Hour,
    ];

    /// The name on the command line and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Reason => "reason",
            Self::Protocol => "protocol",
            Self::Confidence => "confidence",
            Self::Approval => "approval",
            Self::Owner => "owner",
            Self::Interface => "interface",
            Self::Sensor => "sensor",
            Self::Vlan => "vlan",
            Self::Direction => "direction",
            Self::Proto => "proto",
            Self::SrcIp => "src_ip",
            Self::SrcPort => "src_port",
            Self::DstIp => "dst_ip",
            Self::DstPort => "dst_port",
            Self::EndReason => "end_reason",
            Self::Kind => "kind",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    /// Whether its values are numbers.
    #[must_use]
    pub const fn is_number(self) -> bool {
        matches!(self, Self::Proto | Self::SrcPort | Self::DstPort)
    }

    /// Appends the line's value; nothing where it has none.
    fn write(self, line: &Line<'_>, to: &mut String) {
        let mut number = |number: Option<u64>| {
            if let Some(number) = number {
                let _ = write!(to, "{number}");
            }
        };
        let text = match self {
            Self::Label => &*line.verdict,
            Self::Reason => &*line.reason,
            Self::Protocol => line.tunnel.as_deref().unwrap_or_default(),
            Self::Confidence => line.confidence.as_deref().unwrap_or_default(),
            Self::Approval => line.approval.as_ref().map_or("", |approval| &*approval.id),
            Self::Owner => line.approval.as_ref().map_or("", |approval| &*approval.owner),
            Self::Interface => &*line.interface,
            Self::Sensor => &*line.sensor,
            Self::Direction => &*line.direction,
            Self::SrcIp => &*line.src_ip,
            Self::DstIp => &*line.dst_ip,
            Self::EndReason => line.end_reason.as_deref().unwrap_or_default(),
            Self::Kind => line.kind.name(),
            Self::Day => line.start.get(..10).unwrap_or_default(),
            Self::Hour => line.start.get(..13).unwrap_or_default(),
            Self::Proto => return number(Some(line.proto.into())),
            Self::SrcPort => return number(line.src_port.map(Into::into)),
            Self::DstPort => return number(line.dst_port.map(Into::into)),
            Self::Vlan => {
                for (at, vlan) in line.vlan.iter().enumerate() {
                    let _ = write!(to, "{}{vlan}", if at > 0 { "." } else { "" });
                }
                return;
            }
        };
        to.push_str(text);
    }
}

/// What the rows of a group come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Rows.
    pub rows: u64,
    /// Packets, both ways.
    pub packets: u64,
    /// Octets, both ways.
    pub octets: u64,
    /// Octets from `src` to `dst`.
    pub fwd_octets: u64,
    /// Octets from `dst` to `src`.
    pub rev_octets: u64,
    /// Earliest first packet.
    pub first: Box<str>,
    /// Latest packet.
    pub last: Box<str>,
}

impl Sums {
    fn add(&mut self, line: &Line<'_>) {
        self.rows += 1;
        self.packets = self.packets.saturating_add(line.fwd_packets).saturating_add(line.rev_packets);
        self.octets = self.octets.saturating_add(line.fwd_octets).saturating_add(line.rev_octets);
        self.fwd_octets = self.fwd_octets.saturating_add(line.fwd_octets);
        self.rev_octets = self.rev_octets.saturating_add(line.rev_octets);
        self.span(&line.start, &line.end);
    }

    fn span(&mut self, first: &str, last: &str) {
        if self.first.is_empty() || *first < *self.first {
            self.first = first.into();
        }
        if *last > *self.last {
            self.last = last.into();
        }
    }

    fn join(&mut self, other: &Self) {
        self.rows += other.rows;
        self.packets = self.packets.saturating_add(other.packets);
        self.octets = self.octets.saturating_add(other.octets);
        self.fwd_octets = self.fwd_octets.saturating_add(other.fwd_octets);
        self.rev_octets = self.rev_octets.saturating_add(other.rev_octets);
        self.span(&other.first, &other.last);
    }
}

/// Sums by group.
#[derive(Debug, Default)]
pub struct Groups {
    sums: HashMap<Box<str>, Sums>,
    key: String,
}

/// Between the values of a group: no value holds it.
const BETWEEN: char = '\0';

impl Groups {
    /// Adds a row.
    pub fn add(&mut self, fields: &[Field], line: &Line<'_>) {
        self.key.clear();
        for (at, field) in fields.iter().enumerate() {
            if at > 0 {
                self.key.push(BETWEEN);
            }
            field.write(line, &mut self.key);
        }
        match self.sums.get_mut(self.key.as_str()) {
            Some(sums) => sums.add(line),
            None => self.sums.entry(self.key.as_str().into()).or_default().add(line),
        }
    }

    /// Takes in another's.
    pub fn join(&mut self, other: Self) {
        for (key, sums) in other.sums {
            match self.sums.get_mut(&key) {
                Some(known) => known.join(&sums),
                None => {
                    self.sums.insert(key, sums);
                }
            }
        }
    }

    /// How many groups there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Each group's values, in the order of the fields, and its sums; in no order.
    pub fn into_rows(self) -> impl Iterator<Item = (Vec<String>, Sums)> {
        self.sums.into_iter().map(|(key, sums)| (key.split(BETWEEN).map(str::to_owned).collect(), sums))
    }
}
