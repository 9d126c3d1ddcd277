//! Turns rows into a table, NDJSON or CSV: as they come, sorted, counted or summed up.

use std::cmp::{Ordering, Reverse};
use std::io::{self, BufWriter, Stdout, Write};

use bytes::BytesMut;
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment};
use serde::Serializer;

use super::{By, Options};
use crate::cli::written::cell;
use crate::config::Format;
use crate::daemon::clock;
use crate::record::{Kind, Record};
use crate::sink::format;
use crate::sink::table::{FlowRows, plain, printed, to_the_second};
use crate::store::{Field, Groups, Line, Rows, Sums};
use crate::time::Timestamp;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For people
    Table,
    /// One JSON object a line; of flows, the record as it stands in the log
    Ndjson,
    /// For spreadsheets
    Csv,
    /// Suricata's events, with the record as the object `linewarden`
    Eve,
    /// Suricata's events, with the fields of its schema alone
    EveStrict,
    /// Elastic Common Schema
    Ecs,
    /// Zeek's tab-separated values
    Zeek,
}

impl Form {
    /// The format of another tool that this is.
    pub(super) const fn of_another(self) -> Option<Format> {
        match self {
            Self::Table | Self::Ndjson | Self::Csv => None,
            Self::Eve => Some(Format::Eve),
            Self::EveStrict => Some(Format::EveStrict),
            Self::Ecs => Some(Format::Ecs),
            Self::Zeek => Some(Format::Zeek),
        }
    }
}

/// What is done with rows.
#[derive(Clone, Debug)]
enum Work {
    Count,
    Write,
    Sort(By),
    Sum(Vec<Field>),
}

/// What is done with rows, shared by threads.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    work: Work,
    form: Form,
    top: usize,
    is_reverse: bool,
}

/// What a chunk gives.
#[derive(Default)]
pub(super) struct Part {
    rows: u64,
    text: Vec<u8>,
    records: Vec<Record>,
    sorted: Vec<(u128, Box<[u8]>)>,
    groups: Groups,
}

/// The answer so far.
pub(super) struct Answer {
    plan: Plan,
    /// Whether sums of packets and octets mean anything.
    has_counts: bool,
    rows: u64,
    to: BufWriter<Stdout>,
    has_header: bool,
    table: FlowRows,
    sorted: Vec<(u128, Box<[u8]>)>,
    groups: Groups,
    by: Option<By>,
    only_count: bool,
}

/// Columns of CSV.
#[rustfmt::skip]
const COLUMNS: [&str; 27] = [
    "flow_id", "community_id", "kind", "start", "end", "sensor", "interface", "vlan", "direction", "proto", "src_ip",
    "src_port", "dst_ip", "dst_port", "fwd_packets", "fwd_octets", "rev_packets", "rev_octets", "verdict", "reason",
    "tunnel", "confidence", "approval", "owner", "reference", "end_reason", "outer_flow_id",
];

impl Plan {
    pub(super) fn part(&self) -> Part {
        Part::default()
    }

    pub(super) fn take(&self, part: &mut Part, line: &Line<'_>, raw: &[u8]) {
        part.rows += 1;
        match (&self.work, self.form) {
            (Work::Count, _) => {}
            (Work::Sum(fields), _) => part.groups.add(fields, line),
            (Work::Sort(by), _) => part.sorted.push((self.key(*by, line), raw.into())),
            (Work::Write, Form::Table) => part.records.extend(serde_json::from_slice::<Record>(raw)),
            (Work::Write, form) => write_row(form, line, raw, &mut part.text),
        }
    }

    /// What sorts first is least.
    fn key(&self, by: By, line: &Line<'_>) -> u128 {
        let nanos = |text: &str| text.parse::<Timestamp>().unwrap_or_default().as_nanos();
        let key: u128 = match by {
            By::Octets => u128::from(line.fwd_octets) + u128::from(line.rev_octets),
            By::Packets => u128::from(line.fwd_packets) + u128::from(line.rev_packets),
            By::First => nanos(&line.start).into(),
            By::Last => nanos(&line.end).into(),
            By::Duration => nanos(&line.end).saturating_sub(nanos(&line.start)).into(),
            By::Flows | By::Name => 0,
        };
        if self.is_reverse { key } else { u128::MAX - key }
    }
}

fn write_row(form: Form, line: &Line<'_>, raw: &[u8], to: &mut Vec<u8>) {
    if form == Form::Ndjson {
        to.extend_from_slice(raw.trim_ascii_end());
        to.push(b'\n');
        return;
    }
    if let Some(format) = form.of_another() {
        if let Ok(record) = serde_json::from_slice(raw) {
            let mut text = BytesMut::new();
            format::encode(format, &record, &mut text);
            to.extend_from_slice(&text);
        }
        return;
    }
    let number = |number: Option<u16>| number.map_or_else(String::new, |number| number.to_string());
    let vlan = line.vlan.iter().map(u16::to_string).collect::<Vec<_>>().join(".");
    let approval =
        |name: fn(&crate::store::ApprovalName<'_>) -> String| line.approval.as_ref().map_or_else(String::new, name);
    let optional = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().unwrap_or_default().to_owned();
    let columns: [String; COLUMNS.len()] = [
        line.flow_id.to_string(),
        line.community_id.to_string(),
        line.kind.name().to_owned(),
        line.start.to_string(),
        line.end.to_string(),
        line.sensor.to_string(),
        line.interface.to_string(),
        vlan,
        line.direction.to_string(),
        line.proto.to_string(),
        line.src_ip.to_string(),
        number(line.src_port),
        line.dst_ip.to_string(),
        number(line.dst_port),
        line.fwd_packets.to_string(),
        line.fwd_octets.to_string(),
        line.rev_packets.to_string(),
        line.rev_octets.to_string(),
        line.verdict.to_string(),
        line.reason.to_string(),
        optional(&line.tunnel),
        optional(&line.confidence),
        approval(|approval| approval.id.to_string()),
        approval(|approval| approval.owner.to_string()),
        approval(|approval| approval.reference.to_string()),
        optional(&line.end_reason),
        optional(&line.outer_flow_id),
    ];
    // Into memory, which takes everything.
    let _ = write_csv(to, columns);
}

fn write_csv(to: &mut impl Write, columns: impl IntoIterator<Item = impl AsRef<[u8]>>) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().from_writer(to);
    for column in columns {
        writer.write_field(cell(column.as_ref()))?;
    }
    writer.write_record(None::<&[u8]>)?;
    writer.flush()
}

impl Answer {
    pub(super) fn new(options: &Options, rows: &Rows) -> Self {
        let work = if options.count && options.group_by.is_empty() {
            Work::Count
        } else if !options.group_by.is_empty() {
            Work::Sum(options.group_by.clone())
        } else if options.sort.is_some() || options.top.is_some() {
            Work::Sort(options.sort.unwrap_or(By::Octets))
        } else {
            Work::Write
        };
        let top = options.top.map_or(usize::MAX, |top| top as usize);
        Self {
            plan: Plan { work, form: options.format, top, is_reverse: options.reverse },
            has_counts: match rows {
                Rows::Flows => true,
                Rows::Records(kinds) => **kinds == [Kind::End],
                Rows::Histories => false,
            },
            rows: 0,
            to: BufWriter::with_capacity(1 << 16, io::stdout()),
            has_header: false,
            table: FlowRows::default(),
            sorted: Vec::new(),
            groups: Groups::default(),
            by: options.sort,
            only_count: options.count,
        }
    }

    pub(super) fn plan(&self) -> Plan {
        self.plan.clone()
    }

    pub(super) fn merge(&mut self, mut part: Part) -> io::Result<()> {
        self.rows += part.rows;
        match self.plan.work {
            Work::Count => {}
            Work::Sum(_) => self.groups.join(part.groups),
            Work::Sort(_) => {
                self.sorted.append(&mut part.sorted);
                if self.sorted.len() / 2 > self.plan.top.max(ROOM) {
                    self.cut();
                }
            }
            Work::Write => {
                self.header()?;
                self.to.write_all(&part.text)?;
                for record in &part.records {
                    self.table.add(record);
                    if self.table.is_full() {
                        self.print_table()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps what sorts first; of equals, those that came first.
    fn cut(&mut self) {
        self.sorted.sort_by_key(|(key, _)| *key);
        self.sorted.truncate(self.plan.top);
    }

    fn header(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.has_header, true) {
            return Ok(());
        }
        if self.plan.form == Form::Csv {
            write_csv(&mut self.to, COLUMNS)?;
        }
        self.edge(format::begin)
    }

    /// What stands before all rows, or behind them.
    fn edge(&mut self, of: impl Fn(Format, Timestamp, &mut BytesMut)) -> io::Result<()> {
        let Some(format) = self.plan.form.of_another() else { return Ok(()) };
        let mut text = BytesMut::new();
        of(format, clock(), &mut text);
        self.to.write_all(&text)
    }

    fn print_table(&mut self) -> io::Result<()> {
        self.table.take().map_or(Ok(()), |table| writeln!(self.to, "{}", printed(&table)))
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        match self.plan.work.clone() {
            Work::Count => writeln!(self.to, "{}", self.rows)?,
            Work::Sum(_) if self.only_count => writeln!(self.to, "{}", self.groups.len())?,
            Work::Sum(fields) => self.sums(&fields)?,
            Work::Write => {
                self.header()?;
                self.print_table()?;
                self.edge(format::end)?;
            }
            Work::Sort(_) => {
                self.cut();
                self.header()?;
                let mut text = Vec::new();
                for (_, raw) in std::mem::take(&mut self.sorted) {
                    match (self.plan.form, Line::parse(&raw)) {
                        (Form::Table, _) => {
                            if let Ok(record) = serde_json::from_slice(&raw) {
                                self.table.add(&record);
                            }
                            if self.table.is_full() {
                                self.print_table()?;
                            }
                        }
                        (form, Ok(line)) => {
                            text.clear();
                            write_row(form, &line, &raw, &mut text);
                            self.to.write_all(&text)?;
                        }
                        (_, Err(_)) => {}
                    }
                }
                self.print_table()?;
                self.edge(format::end)?;
            }
        }
        self.to.flush()
    }

    fn sums(&mut self, fields: &[Field]) -> io::Result<()> {
        let mut rows: Vec<_> = std::mem::take(&mut self.groups).into_rows().collect();
        let by = self.by.unwrap_or(if self.has_counts { By::Octets } else { By::Flows });
        rows.sort_by(|one, other| {
            let order = order(fields, by, one, other);
            if self.plan.is_reverse { order.reverse() } else { order }
        });
        rows.truncate(self.plan.top);
        let counted = if self.has_counts { "flows" } else { "records" };
        let mut names: Vec<_> = fields.iter().map(|field| field.name()).chain([counted]).collect();
        if self.has_counts {
            names.extend(["packets", "octets", "fwd_octets", "rev_octets"]);
        }
        names.extend(["first", "last"]);
        let numbers = |sums: &Sums| {
            let all = [sums.rows, sums.packets, sums.octets, sums.fwd_octets, sums.rev_octets];
            all.into_iter().take(if self.has_counts { all.len() } else { 1 }).collect::<Vec<_>>()
        };
        match self.plan.form {
            Form::Ndjson => {
                for (values, sums) in &rows {
                    let values = fields.iter().zip(values).map(|(field, value)| json(*field, value));
                    let numbers = numbers(sums).into_iter().map(serde_json::Value::from);
                    let times = [&sums.first, &sums.last].map(|time| serde_json::Value::from(&**time));
                    // In the order of the columns, which a map of serde_json would not keep.
                    let pairs = names.iter().zip(values.chain(numbers).chain(times));
                    serde_json::Serializer::new(&mut self.to).collect_map(pairs)?;
                    writeln!(self.to)?;
                }
            }
            Form::Csv => {
                write_csv(&mut self.to, &names)?;
                for (values, sums) in &rows {
                    let numbers = numbers(sums).into_iter().map(|number| number.to_string());
                    let times = [&sums.first, &sums.last].map(ToString::to_string);
                    write_csv(&mut self.to, values.iter().cloned().chain(numbers).chain(times))?;
                }
            }
            _ => {
                if rows.is_empty() {
                    return Ok(());
                }
                let mut table = plain();
                table.set_header(&names);
                for (values, sums) in &rows {
                    let name = |value: &String| Cell::new(if value.is_empty() { "-" } else { value });
                    let number = |number: u64| Cell::new(number).set_alignment(CellAlignment::Right);
                    let time = |time: &str| Cell::new(to_the_second(time));
                    let numbers = numbers(sums).into_iter().map(number);
                    let times = [&sums.first, &sums.last].map(|text| time(text));
                    table.add_row(values.iter().map(name).chain(numbers).chain(times));
                }
                writeln!(self.to, "{}", printed(&table))?;
            }
        }
        Ok(())
    }
}

/// Rows that wait to be sorted, at least.
const ROOM: usize = 4096;

type Row = (Vec<String>, Sums);

/// Names where everything else is the same, so that an answer is always the same.
fn order(fields: &[Field], by: By, one: &Row, other: &Row) -> Ordering {
    let names = || {
        let pairs = fields.iter().zip(one.0.iter().zip(&other.0));
        let mut orders = pairs.map(|(field, (one, other))| match (one.parse::<u64>(), other.parse::<u64>()) {
            (Ok(one), Ok(other)) if field.is_number() => one.cmp(&other),
            _ => one.cmp(other),
        });
        orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    };
    let (one, other) = (&one.1, &other.1);
    let order = match by {
        By::Octets => Reverse(one.octets).cmp(&Reverse(other.octets)),
        By::Packets => Reverse(one.packets).cmp(&Reverse(other.packets)),
        By::Flows => Reverse(one.rows).cmp(&Reverse(other.rows)),
        By::First => Reverse(&one.first).cmp(&Reverse(&other.first)),
        By::Last => Reverse(&one.last).cmp(&Reverse(&other.last)),
        By::Duration | By::Name => Ordering::Equal,
    };
    order.then_with(names)
}

fn json(field: Field, value: &str) -> serde_json::Value {
    match value.parse::<u64>() {
        _ if value.is_empty() => serde_json::Value::Null,
        Ok(number) if field.is_number() => number.into(),
        _ => value.into(),
    }
}
