//! Turns a table with a row of headings into drafts: a row an approval.

use std::collections::HashMap;

use csv::{ErrorKind, ReaderBuilder, StringRecord, Trim};
use toml::Value;
use toml::value::Datetime;

use super::stanza::{Stanza, text};

/// What a cell holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Date,
    Number,
    List,
}

/// Columns: what they hold, and what a person is to write where one that is required is empty.
const COLUMNS: [(&str, Kind, Option<&str>); 17] = [
    ("id", Kind::Text, None),
    ("kind", Kind::Text, Some("\"vpn\" or \"leased-line\"")),
    ("owner", Kind::Text, Some("who answers for it")),
    ("reference", Kind::Text, Some("ticket, contract or circuit")),
    ("need", Kind::Text, None),
    ("valid_from", Kind::Date, None),
    ("valid_until", Kind::Date, Some("its last day, such as 2027-12-31")),
    ("peers", Kind::List, None),
    ("ports", Kind::List, None),
    ("ip_protocols", Kind::List, None),
    ("tunnels", Kind::List, None),
    ("capacity", Kind::Text, None),
    ("sensor", Kind::Text, None),
    ("interface", Kind::Text, None),
    ("vlan", Kind::Number, None),
    ("mpls_label", Kind::Number, None),
    ("wireguard_public_keys", Kind::List, None),
];
/// Columns that are keys of `path`.
const PATH: [&str; 4] = ["sensor", "interface", "vlan", "mpls_label"];
const KEYS: &str = "wireguard_public_keys";

/// The drafts, or everything that is wrong, each with line and column.
pub(super) fn drafts(file: &str, table: &str, skip: &[String]) -> Result<Vec<Stanza>, Vec<String>> {
    let heading = table.lines().next().unwrap_or("");
    let most = [b',', b';', b'\t'].into_iter().max_by_key(|delimiter| {
        // Of none, the comma: the last of equals is taken.
        (heading.bytes().filter(|octet| octet == delimiter).count(), *delimiter == b',')
    });
    let mut reader = ReaderBuilder::new().delimiter(most.unwrap_or(b',')).trim(Trim::All).from_reader(table.as_bytes());
    let headings = reader.headers().map_err(|error| vec![wrong_row(file, table, &error)])?.clone();
    let columns = columns(file, &headings, skip)?;
    let (mut drafts, mut problems, mut seen) = (Vec::new(), Vec::new(), HashMap::<String, u64>::new());
    for row in reader.records() {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                problems.push(wrong_row(file, table, &error));
                continue;
            }
        };
        let line = line_of(table, row.position());
        let place = |column: &str| {
            let index = columns.get(column).map_or(0, |index| index + 1);
            format!("{file}:{line}: column {index} ({column})")
        };
        let cell = |column: &str| columns.get(column).and_then(|index| row.get(*index)).filter(|cell| !cell.is_empty());
        let Some(id) = cell("id") else {
            problems.push(format!("{}: is empty: give each approval a name of its own", place("id")));
            continue;
        };
        if let Some(first) = seen.insert(id.to_owned(), line) {
            problems.push(format!("{}: \"{id}\" is taken in line {first}: give each its own", place("id")));
        }
        let draft = draft(file, line, id, &cell);
        problems.extend(draft.problems().iter().map(|(column, what)| format!("{}: {what}", place(column))));
        drafts.push(draft);
    }
    if drafts.is_empty() && problems.is_empty() {
        problems.push(format!("{file}: holds no row below its headings"));
    }
    if problems.is_empty() { Ok(drafts) } else { Err(problems) }
}

/// Where each column stands.
fn columns(file: &str, headings: &StringRecord, skip: &[String]) -> Result<HashMap<&'static str, usize>, Vec<String>> {
    let plain = |heading: &str| heading.trim().to_ascii_lowercase().replace([' ', '-'], "_");
    let skipped: Vec<_> = skip.iter().map(|heading| plain(heading)).collect();
    let (mut columns, mut problems) = (HashMap::new(), Vec::new());
    for (heading, index) in headings.iter().zip(0..) {
        if heading.is_empty() || skipped.contains(&plain(heading)) {
            continue;
        }
        let place = format!("{file}:1: column {} ({heading:?})", index + 1);
        match COLUMNS.iter().find(|(name, ..)| *name == plain(heading)) {
            None => {
                let known: Vec<_> = COLUMNS.iter().map(|(name, ..)| *name).collect();
                let known = known.join(", ");
                problems.push(format!(
                    "{place}: is no column of approvals: name it one of {known}, or leave it out with --skip"
                ));
            }
            Some((name, ..)) => {
                if columns.insert(*name, index).is_some() {
                    problems.push(format!("{place}: is there twice"));
                }
            }
        }
    }
    if !columns.contains_key("id") && problems.is_empty() {
        problems.push(format!("{file}:1: there is no column `id`: the first row names the columns"));
    }
    if problems.is_empty() { Ok(columns) } else { Err(problems) }
}

/// Where a row begins, from 1. The reader counts a line when it meets its line feed, which with CRLF is after it gave the row, and
/// passes over empty ones.
fn line_of(table: &str, position: Option<&csv::Position>) -> u64 {
    let Some(position) = position else { return 0 };
    let behind = usize::try_from(position.byte()).ok().and_then(|at| table.as_bytes().get(at..)).unwrap_or_default();
    let blank = behind.iter().take_while(|octet| matches!(octet, b'\r' | b'\n'));
    position.line() + blank.filter(|octet| **octet == b'\n').count() as u64
}

fn wrong_row(file: &str, table: &str, error: &csv::Error) -> String {
    match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = line_of(table, pos.as_ref());
            format!(
                "{file}:{line}: has {len} cells, and the row of headings {expected_len}: is a separator missing, or a cell with one in it not in quotes?"
            )
        }
        _ => format!("{file}: {error}"),
    }
}

fn draft<'c>(file: &str, line: u64, id: &str, cell: &dyn Fn(&str) -> Option<&'c str>) -> Stanza {
    let mut draft = Stanza::new(id, &[format!("Drafted from {file}, line {line}.")]);
    for (column, kind, required) in COLUMNS.iter().filter(|(column, ..)| *column != "id" && *column != KEYS) {
        if PATH.contains(column) {
            continue;
        }
        match (cell(column), required) {
            (Some(cell), _) => draft.set(column, &value(*kind, cell)),
            (None, Some(what)) => draft.todo(column, what),
            (None, None) => {}
        }
    }
    let path: Vec<_> = COLUMNS
        .iter()
        .filter(|(column, ..)| PATH.contains(column))
        .filter_map(|(column, kind, _)| Some(format!("{column} = {}", value(*kind, cell(column)?))))
        .collect();
    if !path.is_empty() {
        draft.set("path", &format_args!("{{ {} }}", path.join(", ")));
    }
    if let Some(keys) = cell(KEYS) {
        draft.set("identity", &format_args!("{{ {KEYS} = {} }}", value(Kind::List, keys)));
    }
    let has_place = PATH.iter().filter(|column| **column != "sensor").any(|column| cell(column).is_some());
    match cell("kind") {
        Some("leased-line") if !has_place && cell("peers").is_none() => {
            draft.ask("path = { interface = \"wan0\", vlan = 100 }", "where its traffic is seen");
        }
        Some("vpn") if cell("peers").is_none() && cell(KEYS).is_none() => {
            draft.ask("peers = [\"192.0.2.1\"]", "addresses or networks of the other end");
        }
        _ => {}
    }
    draft
}

/// What is no date or number is written as a text, which the reader of approvals says is wrong.
fn value(kind: Kind, cell: &str) -> Value {
    let number = |text: &str| text.parse::<u32>().map_or_else(|_| self::text(text), Value::from);
    match kind {
        Kind::Text => text(cell),
        Kind::Date => cell.parse::<Datetime>().map_or_else(|_| text(cell), Value::from),
        Kind::Number => number(cell),
        Kind::List => {
            let items = cell.split(|letter: char| letter.is_whitespace() || matches!(letter, ',' | ';'));
            Value::Array(items.filter(|item| !item.is_empty()).map(number).collect())
        }
    }
}
