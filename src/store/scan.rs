//! Turns a log into rows, in parallel, and keeps to one row a flow without holding more than the flows that are open.
//!
//! A flow's `end` record is final. Of a flow without one the latest record counts, which is known only when all later ones
//! are: lines are looked at in the order of the log, an open flow is noted by the place of its record, and what is left at
//! the end is read again. Where lines were passed over for their verdict, which may change, a last look goes through them
//! for later records of exactly these flows.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use memchr::memmem::Finder;
use rayon::prelude::*;
use serde::de::IgnoredAny;

use super::line::{Glancer, Line};
use super::log::{Broken, Buffers, Chunk, Chunks, Log, StoreError};
use super::selection::{Needles, Rows, Selection};
use crate::record::Kind;
use crate::sink::archive::index::Contents;
use crate::time::Timestamp;

/// What is asked of a log.
pub struct Asked<'a> {
    /// Which rows.
    pub selection: &'a Selection,
    /// Of what.
    pub rows: Rows,
    /// Is told the octets on the disk that are behind.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What came of reading, beside the rows.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows that were asked for.
    pub rows: u64,
    /// Lines that could have been meant and are no records, and places that cannot be read.
    pub damaged: u64,
    /// The first of them, with file and line.
    pub damages: Vec<String>,
    /// What does no harm, and should be known.
    pub notices: Vec<String>,
}

/// Damages that are told one by one.
const TOLD: usize = 5;
/// Chunks in memory at once, for each thread.
const CHUNKS_PER_THREAD: usize = 16;

/// Hands every row to `take` in a part of its chunk, and the parts to `merge` in the order of the log (flows without an
/// end last), until it has enough.
pub fn scan<P: Send>(
    log: &Log,
    asked: &Asked<'_>,
    new: impl Fn() -> P + Sync,
    take: impl Fn(&mut P, &Line<'_>, &[u8]) + Sync,
    mut merge: impl FnMut(P) -> ControlFlow<()> + Send,
) -> Result<Report, StoreError> {
    let Asked { selection, rows, progress } = asked;
    let search = Search::new(selection, rows);
    let mut scan = Scan { log, report: Report::default(), sound: 0 };
    let mut open = OpenFlows::default();
    let wanted = |contents: &Contents| selection.may_be_in(contents, rows);
    let look = |chunk: &Chunk, lines: &[u8]| {
        let mut part = Part { part: new(), rows: 0, records: 0, events: Vec::new(), damages: Vec::new() };
        search.each_line(lines, |at, line| search.look(at, line, &mut part, &take));
        if chunk.offset == 0 && !search.needles.is_empty() {
            check_first(lines, &mut part.damages);
        }
        part
    };
    let flow = scan.run(
        &wanted,
        &look,
        progress,
        |chunk, part| {
            open.note(&chunk, part.events);
            (part.part, part.rows, part.records, part.damages)
        },
        &mut merge,
    );
    if flow.is_break() {
        return Ok(scan.report);
    }
    let mut left = scan.read_again(open, selection, rows);
    if search.passes_over && !left.is_empty() {
        scan.drop_superseded(&mut left);
    }
    for group in left.chunks(1024) {
        let mut part = new();
        for (_, line) in group {
            if let Ok(parsed) = Line::parse(&line.octets) {
                take(&mut part, &parsed, &line.octets);
                scan.report.rows += 1;
            }
        }
        if merge(part).is_break() {
            break;
        }
    }
    if scan.sound == 0 && scan.report.damaged > 0 {
        let first = scan.report.damages.into_iter().next().unwrap_or_default();
        return Err(StoreError::Unreadable { first });
    }
    Ok(scan.report)
}

/// How lines are looked through.
struct Search<'a> {
    selection: &'a Selection,
    rows: &'a Rows,
    needles: Vec<Finder<'static>>,
    /// Lines of flows that are asked for may be passed over, since their verdict was another at that time.
    passes_over: bool,
    glancer: Glancer,
}

/// What is found in a chunk.
struct Part<P> {
    part: P,
    rows: u64,
    records: u64,
    events: Vec<Event>,
    /// Places in the chunk, and what is wrong there.
    damages: Vec<(usize, String)>,
}

enum Event {
    /// A record that is not the flow's end, with its place in the chunk.
    Open { flow: u64, at: usize, octets: usize },
    /// The flow's end.
    Closed(u64),
}

impl<'a> Search<'a> {
    fn new(selection: &'a Selection, rows: &'a Rows) -> Self {
        let Needles { any_of, of_flow } = selection.needles();
        let is_blind = !any_of.is_empty() && !of_flow;
        Self {
            selection,
            rows,
            needles: any_of.iter().map(|text| Finder::new(text).into_owned()).collect(),
            passes_over: *rows == Rows::Flows && (is_blind || selection.skips_by_verdict()),
            glancer: Glancer::default(),
        }
    }

    /// Calls with the place and the octets of every line that may matter, in order.
    fn each_line<'l>(&self, lines: &'l [u8], mut call: impl FnMut(usize, &'l [u8])) {
        if self.needles.is_empty() {
            return each_line(lines, call);
        }
        let mut starts = Vec::new();
        for needle in &self.needles {
            let mut from = 0;
            while let Some(found) = needle.find(lines.get(from..).unwrap_or_default()) {
                let hit = from + found;
                starts.push(memchr::memrchr(b'\n', lines.get(..hit).unwrap_or_default()).map_or(0, |end| end + 1));
                from = memchr::memchr(b'\n', lines.get(hit..).unwrap_or_default())
                    .map_or(lines.len(), |end| hit + end + 1);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        for start in starts {
            let rest = lines.get(start..).unwrap_or_default();
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            call(start, rest.get(..end).unwrap_or_default());
        }
    }

    fn look<P>(&self, at: usize, line: &[u8], part: &mut Part<P>, take: &impl Fn(&mut P, &Line<'_>, &[u8])) {
        // The last line may be in the middle of being written.
        if line.last() != Some(&b'\n') && serde_json::from_slice::<IgnoredAny>(line).is_err() {
            return;
        }
        if let Some(glance) = self.glancer.look(line) {
            part.records += 1;
            let is_asked = match self.rows {
                Rows::Flows if glance.kind != Kind::End => {
                    part.events.push(Event::Open { flow: glance.flow, at, octets: line.len() });
                    false
                }
                Rows::Flows => {
                    part.events.push(Event::Closed(glance.flow));
                    true
                }
                Rows::Records(kinds) => kinds.contains(&glance.kind),
                Rows::Histories => true,
            };
            if !is_asked {
                return;
            }
        }
        match Line::parse(line) {
            Ok(parsed) if self.selection.fits(&parsed, self.rows) => {
                part.rows += 1;
                take(&mut part.part, &parsed, line);
            }
            Ok(_) => {}
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(error) => part.damages.push((at, what_is_wrong(line, &error))),
        }
    }
}

fn what_is_wrong(line: &[u8], error: &serde_json::Error) -> String {
    match serde_json::from_slice::<IgnoredAny>(line) {
        // serde_json counts lines of its own input.
        Ok(_) => format!("is no flow record: {}", without_place(error)),
        Err(error) => format!("is no JSON: {}", without_place(&error)),
    }
}

/// Where only lines that hold what is asked are looked at, the first one says whether the file is a log at all.
fn check_first(lines: &[u8], damages: &mut Vec<(usize, String)>) {
    let end = memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1);
    let line = lines.get(..end).unwrap_or_default();
    let is_torn = line.last() != Some(&b'\n') && line.starts_with(b"{");
    if is_torn || line.trim_ascii().is_empty() || damages.iter().any(|(at, _)| *at == 0) {
        return;
    }
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(line) {
        damages.push((0, what_is_wrong(line, &error)));
    }
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).map_or_else(|| text.clone(), |rest| format!("{rest} (column {})", error.column()))
}

fn each_line<'l>(lines: &'l [u8], mut call: impl FnMut(usize, &'l [u8])) {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', lines) {
        call(start, lines.get(start..=end).unwrap_or_default());
        start = end + 1;
    }
    if start < lines.len() {
        call(start, lines.get(start..).unwrap_or_default());
    }
}

/// Flows without an end so far, by their latest record: no more than the sensor had open at once, and those that it never
/// saw end.
#[derive(Default)]
struct OpenFlows(HashMap<u64, Place>);

struct Place {
    chunk: Arc<Chunk>,
    at: usize,
    octets: usize,
    /// The line, where it cannot be read again.
    held: Option<Box<[u8]>>,
}

impl OpenFlows {
    fn note(&mut self, chunk: &Arc<Chunk>, events: Vec<Event>) {
        // Where lines are held, the chunk need not be.
        let again = if chunk.held().is_some() { Arc::new(chunk.emptied()) } else { Arc::clone(chunk) };
        for event in events {
            match event {
                Event::Open { flow, at, octets } => {
                    let held = chunk.held().and_then(|lines| lines.get(at..at + octets)).map(Box::from);
                    self.0.insert(flow, Place { chunk: Arc::clone(&again), at, octets, held });
                }
                Event::Closed(flow) => {
                    self.0.remove(&flow);
                }
            }
        }
    }
}

/// An open flow's latest record.
struct Latest {
    octets: Vec<u8>,
    /// Segment and offset of the line.
    place: (usize, u64),
    start: Timestamp,
    time: Timestamp,
}

struct Scan<'a> {
    log: &'a Log,
    report: Report,
    /// Chunks that hold something that can be read, or were passed over.
    sound: u64,
}

impl Scan<'_> {
    /// Looks at chunks in parallel; what is found is merged, in order, while the next ones are looked at.
    fn run<T: Send, P>(
        &mut self,
        wanted: &dyn Fn(&Contents) -> bool,
        look: &(impl Fn(&Chunk, &[u8]) -> T + Sync),
        progress: &(dyn Fn(u64) + Sync),
        mut unpack: impl FnMut(Arc<Chunk>, T) -> (P, u64, u64, Vec<(usize, String)>) + Send,
        merge: &mut (impl FnMut(P) -> ControlFlow<()> + Send),
    ) -> ControlFlow<()> {
        let log = self.log;
        let mut chunks = log.chunks(wanted);
        let at_once = rayon::current_num_threads() * CHUNKS_PER_THREAD;
        let mut flow = ControlFlow::Continue(());
        let mut before = Vec::new();
        loop {
            let batch = self.collect(&mut chunks, at_once);
            if batch.is_empty() && before.is_empty() {
                break;
            }
            let looked = std::mem::take(&mut before);
            let (next, merged) = rayon::join(
                || {
                    let look = |buffers: &mut Buffers, chunk: Chunk| {
                        let found = chunk.read(buffers).map(|lines| look(&chunk, lines));
                        (chunk, found)
                    };
                    batch.into_par_iter().map_init(Buffers::default, look).collect::<Vec<_>>()
                },
                || looked.into_iter().try_for_each(|(chunk, found)| self.merge(chunk, found, &mut unpack, merge)),
            );
            progress(chunks.passed);
            before = next;
            if merged.is_break() {
                flow = merged;
                break;
            }
        }
        self.sound += chunks.unwanted;
        self.report.notices.append(&mut chunks.notices);
        flow
    }

    fn merge<T, P>(
        &mut self,
        chunk: Chunk,
        found: io::Result<T>,
        unpack: &mut impl FnMut(Arc<Chunk>, T) -> (P, u64, u64, Vec<(usize, String)>),
        merge: &mut impl FnMut(P) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.broken(&Broken { segment: chunk.segment, offset: chunk.offset, error });
                return ControlFlow::Continue(());
            }
        };
        let chunk = Arc::new(chunk);
        let (part, rows, records, damages) = unpack(Arc::clone(&chunk), found);
        self.report.rows += rows;
        self.sound += u64::from(records > 0 || damages.is_empty());
        for (at, what) in damages {
            self.damage(&chunk, at, &what);
        }
        merge(part)
    }

    fn collect(&mut self, chunks: &mut Chunks<'_>, most: usize) -> Vec<Chunk> {
        let mut batch = Vec::with_capacity(most);
        for chunk in chunks.by_ref() {
            match chunk {
                Ok(chunk) => batch.push(chunk),
                Err(broken) => self.broken(&broken),
            }
            if batch.len() == most {
                break;
            }
        }
        batch
    }

    fn broken(&mut self, broken: &Broken) {
        let path = self.log.path(broken.segment).display();
        let told = format!("{path}: cannot be read from octet {} (uncompressed) on: {}", broken.offset, broken.error);
        self.tell(told);
    }

    fn damage(&mut self, chunk: &Chunk, at: usize, what: &str) {
        if self.report.damages.len() >= TOLD {
            self.report.damaged += 1;
            return;
        }
        let offset = chunk.offset + at as u64;
        let number = match (chunk.first_line, chunk.held()) {
            (Some(first), Some(lines)) => {
                Some(first + memchr::memchr_iter(b'\n', lines.get(..at).unwrap_or_default()).count() as u64)
            }
            _ => self.log.line_at(chunk.segment, offset),
        };
        let number = number.map_or_else(|| format!("octet {offset}"), |number| number.to_string());
        self.tell(format!("{}:{number}: {what}", self.log.path(chunk.segment).display()));
    }

    fn tell(&mut self, told: String) {
        self.report.damaged += 1;
        if self.report.damages.len() < TOLD {
            self.report.damages.push(told);
        }
    }

    /// Reads the records of flows that are left open, in the order of the log; keeps those that are asked for.
    fn read_again(&mut self, open: OpenFlows, selection: &Selection, rows: &Rows) -> Vec<(u64, Latest)> {
        let mut places: Vec<_> = open.0.into_iter().collect();
        places.sort_by_key(|(_, place)| (place.chunk.segment, place.chunk.offset, place.at));
        let groups: Vec<_> = places.chunk_by(|(_, one), (_, other)| Arc::ptr_eq(&one.chunk, &other.chunk)).collect();
        let read: Vec<_> = groups
            .into_par_iter()
            .map_init(Buffers::default, |buffers, group| {
                let chunk = group.first().map(|(_, place)| &place.chunk);
                let lines = match chunk.map(|chunk| chunk.read(buffers)) {
                    Some(Ok(lines)) => lines,
                    _ => &[],
                };
                let (mut found, mut damages) = (Vec::new(), Vec::new());
                for (flow, place) in group {
                    let octets = place.held.as_deref().or_else(|| lines.get(place.at..place.at + place.octets));
                    let octets = octets.unwrap_or_default();
                    match Line::parse(octets) {
                        Ok(line) if selection.fits(&line, rows) => {
                            let time = |text: &str| text.parse::<Timestamp>().unwrap_or_default();
                            let latest = Latest {
                                octets: octets.to_vec(),
                                place: (place.chunk.segment, place.chunk.offset + place.at as u64),
                                start: time(&line.start),
                                time: time(&line.time),
                            };
                            found.push((*flow, latest));
                        }
                        Ok(_) => {}
                        Err(error) => damages.push((place, what_is_wrong(octets, &error))),
                    }
                }
                (found, damages)
            })
            .collect();
        let mut all = Vec::new();
        for (mut found, damages) in read {
            all.append(&mut found);
            for (place, what) in damages {
                self.damage(&place.chunk, place.at, &what);
            }
        }
        all
    }

    /// Takes out flows of which a later record was passed over: by that one they are not asked for.
    fn drop_superseded(&mut self, left: &mut Vec<(u64, Latest)>) {
        let places: HashMap<u64, (usize, u64)> = left.iter().map(|(flow, latest)| (*flow, latest.place)).collect();
        // A later record of a flow lies where lines begin no later than the flow and end no earlier than its record.
        let mut spans: Vec<_> = left.iter().map(|(_, latest)| (latest.start, latest.time)).collect();
        spans.sort_unstable();
        for at in (1..spans.len()).rev() {
            let (later, before) = (spans.get(at).map(|span| span.1), spans.get_mut(at - 1));
            if let (Some(later), Some(before)) = (later, before) {
                before.1 = before.1.min(later);
            }
        }
        let wanted = |contents: &Contents| {
            let begins = contents.start.unwrap_or(Timestamp::ZERO);
            let from = spans.partition_point(|span| span.0 < begins);
            spans.get(from).is_some_and(|span| contents.last.is_some_and(|last| span.1 <= last))
        };
        let glancer = Glancer::default();
        let look = |chunk: &Chunk, lines: &[u8]| {
            let mut over = Vec::new();
            each_line(lines, |at, line| {
                if let Some(glance) = glancer.look(line)
                    && let Some(place) = places.get(&glance.flow)
                    && (chunk.segment, chunk.offset + at as u64) > *place
                {
                    over.push(glance.flow);
                }
            });
            over
        };
        let mut superseded = std::collections::HashSet::new();
        let _ = self.run(&wanted, &look, &|_| (), |_, over| (over, 0, 0, Vec::new()), &mut |over: Vec<u64>| {
            superseded.extend(over);
            ControlFlow::Continue(())
        });
        left.retain(|(flow, _)| !superseded.contains(flow));
    }
}
