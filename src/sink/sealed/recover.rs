//! Turns what an earlier run left in a log's folder, however it ended, into where the log goes on: lines behind the last
//! seal are sealed as `recovered`, a cut line is taken off, a rotation that was interrupted is finished, and what is not
//! there any more is said.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tracing::{error, warn};

use super::heads::Heads;
use super::key::SensorKey;
use super::seal::{Batch, Chain, Hash, Kind, Seal};
use super::segments::{self, CUT, DATA, Listing, Packing, SEALS};
use crate::sink::sensor::LogBreak;
use crate::time::Timestamp;

/// Where a log goes on.
pub(super) struct Recovered {
    pub chain: Chain,
    pub segment: u64,
    /// When the segment began.
    pub start: Timestamp,
    /// Its octets that are sealed.
    pub end: u64,
    /// Lines for its file of seals that are not written yet.
    pub seals: Vec<u8>,
    /// Closed segments that nobody compressed.
    pub plain: Vec<PathBuf>,
    /// Where the last run did not close the log.
    pub breaks: Vec<LogBreak>,
}

/// One `recovered` seal is over about this much.
const PIECE: u64 = 1 << 20;
/// A line without an end is taken apart at this length.
const MAX_LINE: usize = 8 << 20;

/// What a file of seals says.
struct Summary {
    first: Seal,
    last: Seal,
    /// Octets and hash of its first batch that has some.
    first_batch: Option<(u64, Hash)>,
    total_records: u64,
    total_octets: u64,
}

/// What lies behind the last seal of a segment.
#[derive(Default)]
struct Tail {
    pieces: Vec<Batch>,
    torn: u64,
    missing: u64,
}

struct Recovery<'a> {
    folder: &'a Path,
    log: &'a str,
    key: &'a SensorKey,
    now: Timestamp,
    listing: Listing,
    chain: Chain,
    lines: Vec<u8>,
    missing_seals: u64,
    breaks: Vec<LogBreak>,
}

/// Looks at the folder and puts it in order.
pub(super) fn recover(
    folder: &Path,
    log: &str,
    heads: &Heads,
    key: &SensorKey,
    now: Timestamp,
) -> io::Result<Recovered> {
    let listing = Listing::read(folder, log)?;
    let chain = Chain::new(log);
    Recovery { folder, log, key, now, listing, chain, lines: Vec::new(), missing_seals: 0, breaks: Vec::new() }
        .run(heads)
}

impl Recovery<'_> {
    fn run(mut self, heads: &Heads) -> io::Result<Recovered> {
        let live = self.listing.live.seals.as_deref().map(summarize_live).transpose()?.flatten();
        let is_live = live.is_some();
        let newest = || self.listing.closed.values().rev().find_map(|files| files.seals.as_deref());
        let summary = match live {
            Some(live) => Some(live),
            None => newest().map(summarize).transpose()?.flatten(),
        };
        let (mut segment, mut start, mut end, mut was_closed) = (1, self.now, 0, true);
        if let Some(summary) = &summary {
            let last = &summary.last;
            self.chain.go_to(last.seal, last.chain);
            (self.chain.total_records, self.chain.total_octets) = (summary.total_records, summary.total_octets);
            if is_live {
                (segment, start, end) = (last.segment, summary.first.time, last.end());
                was_closed = last.kind == Kind::Close;
            } else {
                segment = last.segment + 1;
            }
        }
        if let Some(head) = heads.latest().filter(|head| head.seal > self.chain.seal) {
            self.missing_seals = head.seal - self.chain.seal;
            error!(
                log = self.log,
                seals = self.missing_seals,
                signed = head.seal,
                found = self.chain.seal,
                "SEALS ARE MISSING that this sensor signed: somebody cut the log, or its state is another log's; it goes on, and verify-log will tell"
            );
            self.chain.go_to(head.seal, head.chain);
            (self.chain.total_records, self.chain.total_octets) = (head.total_records, head.total_octets);
            if !is_live {
                segment = segment.max(head.segment);
            }
        }
        let mut first_batch = summary.filter(|_| is_live).and_then(|summary| summary.first_batch);
        loop {
            let (data, is_elsewhere) = self.find(segment, end, first_batch)?;
            let tail = match &data {
                Some(data) => look_behind(data, end)?,
                None => Tail { missing: end, ..Tail::default() },
            };
            let (is_short, missing) = (tail.missing > 0, tail.missing);
            end = self.seal(segment, end, tail, was_closed);
            if is_short {
                error!(
                    log = self.log,
                    segment,
                    octets = missing,
                    "SEALED RECORDS ARE MISSING: somebody cut the log, or the disk lost them; it goes on in a new segment, and verify-log will tell"
                );
            }
            if !is_elsewhere && !is_short {
                break;
            }
            let close = Seal::new(Kind::Close, segment, end, Batch::default(), self.now);
            self.chain.append(close, Some(self.key), &mut self.lines);
            if let Some(data) = data.filter(|_| !is_elsewhere) {
                std::fs::rename(data, segments::closed(self.folder, self.log, start, segment, DATA))?;
            }
            self.close(segment, start)?;
            segment += 1;
            (start, end, was_closed, first_batch) = (self.now, 0, true, None);
            if let Some(files) = self.listing.closed.get(&segment) {
                start = files.start;
            }
        }
        let mut plain = Vec::new();
        for files in Listing::read(self.folder, self.log)?.closed.into_values() {
            plain.extend(files.data.filter(|path| path.extension().is_some_and(|extension| extension == DATA)));
        }
        Ok(Recovered { chain: self.chain, segment, start, end, seals: self.lines, plain, breaks: self.breaks })
    }

    /// The lines of a segment, and whether these are in a file that is not written any more.
    fn find(&self, segment: u64, end: u64, first: Option<(u64, Hash)>) -> io::Result<(Option<PathBuf>, bool)> {
        if let Some(path) = self.listing.closed.get(&segment).and_then(|files| files.data.clone()) {
            return Ok((Some(path), true));
        }
        let live = segments::live(self.folder, self.log, DATA);
        let len = match std::fs::metadata(&live) {
            Ok(metadata) => Some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if len.unwrap_or(0) < end
            && let Some((octets, hash)) = first
            && let Some(path) =
                segments::find_renamed(&self.listing.others, &[(octets, hash, segment)]).remove(&segment)
        {
            return Ok((Some(path), true));
        }
        Ok((len.map(|_| live), false))
    }

    /// Seals what lies behind; gives where that ends.
    fn seal(&mut self, segment: u64, begins: u64, mut tail: Tail, was_closed: bool) -> u64 {
        let mut end = begins;
        let is_break = !was_closed || tail.missing > 0 || tail.torn > 0 || self.missing_seals > 0;
        if is_break && tail.pieces.is_empty() {
            tail.pieces.push(Batch::default());
        }
        let records: u64 = tail.pieces.iter().map(|piece| piece.records).sum();
        if is_break || records > 0 {
            warn!(
                log = self.log,
                segment,
                records,
                torn = tail.torn,
                "the log was not closed by its last run: what it had written is sealed as recovered"
            );
            self.breaks.push(LogBreak {
                log: self.log.to_owned(),
                segment,
                recovered_records: records,
                recovered_octets: tail.pieces.iter().map(|piece| piece.octets).sum(),
                torn_octets: tail.torn,
                missing_octets: tail.missing,
                missing_seals: self.missing_seals,
            });
        }
        let count = tail.pieces.len();
        for (piece, number) in tail.pieces.into_iter().zip(1..) {
            let mut seal = Seal::new(Kind::Recovered, segment, end, piece, self.now);
            end = seal.end();
            if number == count {
                let some = |number: u64| (number > 0).then_some(number);
                (seal.torn, seal.missing) = (some(tail.torn), some(tail.missing));
                seal.missing_seals = some(std::mem::take(&mut self.missing_seals));
            }
            self.chain.append(seal, None, &mut self.lines);
        }
        end
    }

    /// Writes the seals of a segment that is over, under its own name.
    fn close(&mut self, segment: u64, start: Timestamp) -> io::Result<()> {
        let live = segments::live(self.folder, self.log, SEALS);
        let mut file = OpenOptions::new().create(true).append(true).open(&live)?;
        file.write_all(&self.lines)?;
        file.sync_data()?;
        self.lines.clear();
        std::fs::rename(live, segments::closed(self.folder, self.log, start, segment, SEALS))
    }
}

fn summarize(path: &Path) -> io::Result<Option<Summary>> {
    Ok(summarize_to(path)?.0)
}

/// The same of the file that is written; a line that a crash cut is taken off.
fn summarize_live(path: &Path) -> io::Result<Option<Summary>> {
    let (summary, cut) = summarize_to(path)?;
    if let Some(whole) = cut {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole)?;
        file.sync_data()?;
    }
    Ok(summary)
}

/// And where a cut last line begins.
fn summarize_to(path: &Path) -> io::Result<(Option<Summary>, Option<u64>)> {
    let (mut summary, mut whole, mut cut) = (None::<Summary>, 0, None);
    segments::read_seals(path, |line| {
        match line.seal {
            Ok((seal, _)) => {
                let summary = summary.get_or_insert_with(|| Summary {
                    first: seal.clone(),
                    last: seal.clone(),
                    first_batch: None,
                    total_records: 0,
                    total_octets: 0,
                });
                if seal.octets > 0 && summary.first_batch.is_none() {
                    summary.first_batch = Some((seal.octets, seal.sha256));
                }
                summary.total_records = seal.total_records.unwrap_or(summary.total_records + seal.records);
                summary.total_octets = seal.total_octets.unwrap_or(summary.total_octets + seal.octets);
                summary.last = seal;
            }
            Err(CUT) => cut = Some(whole),
            // Verification tells; the log goes on behind the last line that is one.
            Err(_) => {}
        }
        whole = line.end;
    })?;
    Ok((summary, cut))
}

/// What a segment holds behind its last seal; a line that was cut is taken off.
fn look_behind(path: &Path, sealed: u64) -> io::Result<Tail> {
    let (packing, mut file) = segments::sniff(path)?;
    let metadata = file.metadata()?;
    // Whoever packed it took it as it was; what is no file keeps nothing.
    if packing != Packing::Plain || !metadata.is_file() {
        return Ok(Tail::default());
    }
    let len = metadata.len();
    if len < sealed {
        return Ok(Tail { missing: sealed - len, ..Tail::default() });
    }
    file.seek(SeekFrom::Start(sealed))?;
    let (mut tail, mut batch, mut line) = (Tail::default(), Batch::default(), Vec::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        let taken = file.read(&mut buffer)?;
        if taken == 0 {
            break;
        }
        for part in buffer.get(..taken).unwrap_or_default().split_inclusive(|&octet| octet == b'\n') {
            line.extend_from_slice(part);
            let is_whole = part.last() == Some(&b'\n');
            if is_whole || line.len() > MAX_LINE {
                batch.add(&line, u64::from(is_whole));
                line.clear();
            }
            if batch.octets >= PIECE {
                tail.pieces.push(std::mem::take(&mut batch));
            }
        }
    }
    if !line.is_empty() {
        let mut file = OpenOptions::new().append(true).open(path)?;
        let whole = file.seek(SeekFrom::End(0))? - line.len() as u64;
        if cut(&file, whole).is_ok() {
            tail.torn = line.len() as u64;
        } else {
            // A file that may only grow (chattr +a) keeps half a line: the next must not become part of it.
            file.write_all(b"\n")?;
            line.push(b'\n');
            batch.add(&line, 1);
        }
    }
    if batch.octets > 0 {
        tail.pieces.push(batch);
    }
    Ok(tail)
}

/// Takes off what is behind.
pub(super) fn cut(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    file.sync_data()
}
