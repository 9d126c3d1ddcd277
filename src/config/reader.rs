//! Turns a TOML text into values with their places, and collects everything that is wrong with it.

use std::cell::RefCell;
use std::fmt::{self, Display, Write};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// One file, and what is wrong with it so far.
pub(super) struct Document<'t> {
    name: String,
    text: &'t str,
    /// Where each line starts.
    lines: Vec<usize>,
    problems: RefCell<Vec<(usize, String)>>,
}

/// A table of the document; every key must be asked for before [`Section::finish`].
pub(super) struct Section<'a, 't> {
    document: &'a Document<'t>,
    table: &'a DeTable<'t>,
    /// `capture`, or nothing at the top.
    name: String,
    /// Where it stands, for keys that are missing.
    span: Range<usize>,
    known: RefCell<Vec<&'static str>>,
}

/// A value with its place and the full name of its key.
pub(super) struct Value<'a, 't> {
    document: &'a Document<'t>,
    key: String,
    span: Range<usize>,
    value: &'a DeValue<'t>,
}

/// Files larger than this are not read.
const MAX_FILE: u64 = 64 << 20;
/// Problems printed at once.
const MAX_PROBLEMS: usize = 100;
/// Longest line and longest text shown, in characters.
const MAX_SHOWN: usize = 100;

/// Reads a text file whole.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |what: &dyn Display| ConfigError(format!("{}: {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| fail(&format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(fail(&"not a file: name a TOML file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(fail(&format!("larger than {} MiB: this is no configuration", MAX_FILE >> 20)));
    }
    let octets = std::fs::read(path).map_err(|error| fail(&format!("cannot be read: {error}")))?;
    String::from_utf8(octets).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|&&octet| octet == b'\n').count() + 1;
        fail(&format!("line {line} is not UTF-8: save the file as UTF-8"))
    })
}

impl<'t> Document<'t> {
    pub(super) fn new(name: String, text: &'t str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at + 1);
        Self { name, text, lines: std::iter::once(0).chain(starts).collect(), problems: RefCell::default() }
    }

    /// The top table, as far as it can be read.
    pub(super) fn parse(&self) -> Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            self.problem(span, &format_args!("TOML: {}", error.message().replace('\n', ", ")));
        }
        table
    }

    /// Whether it is no TOML: what it does not seem to hold may stand behind the error.
    pub(super) fn is_broken(&self) -> bool {
        !self.problems.borrow().is_empty()
    }

    pub(super) fn top<'a>(&'a self, table: &'a Spanned<DeTable<'t>>) -> Section<'a, 't> {
        let known = RefCell::default();
        Section { document: self, table: table.get_ref(), name: String::new(), span: 0..0, known }
    }

    /// Notes something wrong, with its line underlined.
    pub(super) fn problem(&self, span: Range<usize>, what: &dyn Display) {
        if self.problems.borrow().len() >= MAX_PROBLEMS {
            // Counted only.
            self.problems.borrow_mut().push((usize::MAX, String::new()));
            return;
        }
        let place = self.place(span.start);
        let mut text = format!("{place}: {what}");
        let (number, start) = self.line(span.start);
        let line = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
        let before = self.text.get(start..span.start).unwrap_or("").chars().count();
        if before < MAX_SHOWN && !line.trim().is_empty() {
            let shown: String = line.chars().take(MAX_SHOWN).map(|c| if c == '\t' { ' ' } else { c }).collect();
            let length = self.text.get(span.clone()).unwrap_or("").lines().next().unwrap_or("").chars().count();
            let length = length.clamp(1, shown.chars().count().saturating_sub(before).max(1));
            let _ = write!(text, "\n{number:>5} | {shown}\n      | {}{}", " ".repeat(before), "^".repeat(length));
        }
        self.problems.borrow_mut().push((span.start, text));
    }

    /// `file:line:column`, columns in characters from 1.
    pub(super) fn place(&self, offset: usize) -> String {
        let (number, start) = self.line(offset);
        let column = self.text.get(start..offset).unwrap_or("").chars().count() + 1;
        format!("{}:{number}:{column}", self.name)
    }

    /// Number and start of the line that holds an octet.
    fn line(&self, offset: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|start| *start <= offset);
        (number, self.lines.get(number.saturating_sub(1)).copied().unwrap_or(0))
    }

    /// The same by line, from 1, without the place and without the line itself.
    pub(super) fn problems_by_line(self) -> Vec<(usize, String)> {
        let mut problems = self.problems.take();
        problems.sort_by_key(|(offset, _)| *offset);
        let bare = |(offset, text): (usize, String)| {
            let first = text.lines().next().unwrap_or("");
            let place = format!("{}: ", self.place(offset));
            (self.line(offset).0, first.strip_prefix(&place).unwrap_or(first).to_owned())
        };
        problems.into_iter().map(bare).collect()
    }

    /// What is wrong, in the order of the file.
    pub(super) fn problems(self) -> Vec<String> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(offset, _)| *offset);
        problems.into_iter().map(|(_, text)| text).collect()
    }
}

/// All problems of all files as one error, or none.
pub(super) fn into_result(problems: Vec<String>) -> Result<(), ConfigError> {
    if problems.is_empty() {
        return Ok(());
    }
    let count = problems.len();
    let shown: Vec<_> = problems.into_iter().filter(|text| !text.is_empty()).take(MAX_PROBLEMS).collect();
    let more = count - shown.len();
    let mut text = shown.join("\n");
    if more > 0 {
        let _ = write!(text, "\nand {more} more");
    }
    Err(ConfigError(text))
}

impl<'a, 't> Section<'a, 't> {
    /// A value, if the key is there.
    pub(super) fn value(&self, key: &'static str) -> Option<Value<'a, 't>> {
        self.known.borrow_mut().push(key);
        let (_, value) = self.table.get_key_value(key)?;
        Some(Value { document: self.document, key: self.full(key), span: value.span(), value: value.get_ref() })
    }

    /// A value that must be there.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Value<'a, 't>> {
        let value = self.value(key);
        if value.is_none() {
            self.missing(key, &format_args!("write `{key} = {example}`"));
        }
        value
    }

    /// Notes that a key is not there.
    pub(super) fn missing(&self, key: &'static str, instead: &dyn Display) {
        self.document.problem(self.span.clone(), &format_args!("{} is missing: {instead}", self.full(key)));
    }

    /// A table below this one.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a, 't>> {
        let value = self.value(key)?;
        let Some(table) = value.value.as_table() else {
            value.wrong(&format_args!("write a section `[{}]`", value.key));
            return None;
        };
        Some(Section { document: self.document, table, name: value.key, span: value.span, known: RefCell::default() })
    }

    /// Tables of an array below this one, `[[key]]`.
    pub(super) fn sections(&self, key: &'static str) -> Option<Vec<Section<'a, 't>>> {
        let value = self.value(key)?;
        let mut sections = Vec::new();
        let instead = format!("write `[[{}]]` above each", self.full(key));
        for item in value.items(&instead)? {
            let Some(table) = item.value.as_table() else {
                item.wrong(&instead);
                continue;
            };
            let name = if self.name.is_empty() { String::new() } else { self.full(key) };
            let known = RefCell::default();
            sections.push(Section { document: self.document, table, name, span: item.span, known });
        }
        Some(sections)
    }

    /// Whether a key is there, without taking it for known.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Where the section begins.
    pub(super) const fn span(&self) -> &Range<usize> {
        &self.span
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let full = self.full(name);
            let instead = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.document.problem(key.span(), &format_args!("{} is not a known key: {instead}", clipped(&full)));
        }
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

impl<'a, 't> Value<'a, 't> {
    /// Notes that the value is wrong: what stands there, and what to write instead.
    pub(super) fn wrong(&self, instead: &dyn Display) {
        let found = self.document.text.get(self.span.clone()).unwrap_or("").lines().next().unwrap_or("");
        self.document.problem(self.span.clone(), &format_args!("{} is {}: {instead}", self.key, clipped(found)));
    }

    /// Notes what is wrong with a value that is too long to be shown.
    pub(super) fn problem(&self, what: &dyn Display) {
        self.document.problem(self.span.clone(), &format_args!("{}: {what}", self.key));
    }

    pub(super) fn place(&self) -> String {
        self.document.place(self.span.start)
    }

    /// What stands there, unless that is no string.
    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong(&"write a text in quotes");
        }
        text
    }

    /// A text with something in it.
    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.string()?.trim();
        if text.is_empty() {
            self.wrong(&"write a text that is not empty");
            return None;
        }
        if text.contains(char::is_control) {
            // It would reach terminals and logs.
            self.wrong(&"write a text of one line, without control characters");
            return None;
        }
        Some(text)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.wrong(&"write true or false, without quotes");
        }
        value
    }

    /// A whole number; `unit` is for the message: ` of octets`.
    pub(super) fn integer(&self, unit: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.number().filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(&format_args!(
                "write a whole number{unit} from {} to {}, without quotes",
                range.start(),
                range.end()
            ));
        }
        number
    }

    /// A whole number, if it is one.
    pub(super) fn number(&self) -> Option<u64> {
        let integer = self.value.as_integer()?;
        u64::from_str_radix(integer.as_str().trim_start_matches('+'), integer.radix()).ok()
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = self.value.as_str().and_then(duration).filter(|duration| range.contains(duration));
        if duration.is_none() {
            let (least, most) = (shown(*range.start()), shown(*range.end()));
            self.wrong(&format_args!("write a duration in quotes from \"{least}\" to \"{most}\", such as \"500ms\", \"120s\", \"30m\", \"2h\", \"1d\""));
        }
        duration
    }

    pub(super) fn octets(&self, range: RangeInclusive<usize>) -> Option<usize> {
        let octets = self.value.as_str().map_or_else(|| self.number(), octets);
        let octets = octets.and_then(|octets| usize::try_from(octets).ok()).filter(|octets| range.contains(octets));
        if octets.is_none() {
            let (least, most) = (Size(*range.start()), Size(*range.end()));
            self.wrong(&format_args!(
                "write a size in quotes from \"{least}\" to \"{most}\", such as \"64KiB\", \"64MiB\", \"1GiB\""
            ));
        }
        octets
    }

    /// Bits a second.
    pub(super) fn bit_rate(&self) -> Option<u64> {
        let rate = self.value.as_str().and_then(bit_rate).filter(|rate| *rate > 0);
        if rate.is_none() {
            self.wrong(&"write a rate in quotes, such as \"2048kbit/s\", \"100Mbit/s\", \"10Gbit/s\"");
        }
        rate
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let found = self.value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            let meant = self.value.as_str().and_then(|text| nearest(text, choices.iter().map(|(name, _)| *name)));
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
            self.wrong(&format_args!("write {}{meant}", or(&names)));
        }
        found.map(|(_, value)| *value)
    }

    /// The items of a list; `instead` says what to write where it is none.
    pub(super) fn items(&self, instead: &dyn Display) -> Option<Vec<Value<'a, 't>>> {
        let Some(array) = self.value.as_array() else {
            self.wrong(instead);
            return None;
        };
        let item = |item: &'a Spanned<DeValue<'t>>| Value {
            document: self.document,
            key: self.key.clone(),
            span: item.span(),
            value: item.get_ref(),
        };
        Some(array.iter().map(item).collect())
    }

    /// The items of a list that `read` understands; it has noted what is wrong with the others.
    pub(super) fn list<T>(&self, read: impl Fn(&Value<'a, 't>) -> Option<T>) -> Option<Vec<T>> {
        let items = self.items(&"write a list: [ … ]")?;
        let count = items.len();
        let read: Vec<_> = items.iter().filter_map(read).collect();
        (read.len() == count).then_some(read)
    }

    pub(super) fn datetime(&self) -> Option<toml::value::Datetime> {
        let quoted = || self.value.as_str()?.trim().parse().ok();
        self.value.as_datetime().copied().or_else(quoted)
    }
}

/// `120s`, `30m`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// `64MiB`.
fn octets(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// `100Mbit/s`: lines are sold in powers of ten.
fn bit_rate(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "bit/s" => 1,
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        "Tbit/s" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    Some((number.parse().ok()?, unit.trim_start()))
}

fn shown(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let fitting = units.into_iter().find(|(unit, _)| milliseconds.is_multiple_of(*unit) && milliseconds > 0);
    fitting.map_or_else(|| format!("{milliseconds}ms"), |(unit, name)| format!("{}{name}", milliseconds / unit))
}

/// A number of octets as people write it.
struct Size(usize);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let fitting = units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match fitting {
            Some((shift, name)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

fn clipped(text: &str) -> String {
    if text.chars().count() <= MAX_SHOWN {
        return text.to_owned();
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}

fn or(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [some @ .., last] => format!("{} or {last}", some.join(", ")),
    }
}

/// The known word that was probably meant: at most a third of its letters differ.
pub(super) fn nearest(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let distances = known.map(|name| (distance(word, name), name));
    distances.filter(|(distance, name)| *distance * 3 <= name.len().max(3)).min().map(|(_, name)| name)
}

/// Letters to insert, drop or change (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    // A word this long is no misspelt key.
    if one.len() > 64 {
        return usize::MAX / 4;
    }
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut left = i + 1;
        let mut corner = i;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(other.chars()) {
            let changed = corner + usize::from(a != b);
            corner = *cell;
            *cell = changed.min(corner + 1).min(left + 1);
            left = *cell;
        }
    }
    row.last().copied().unwrap_or(0)
}
