//! Turns what an earlier run left in a log's folder, however it ended, into where the log goes on: lines behind the last
//! seal are sealed as `recovered`, a cut line is taken off, a rotation that was interrupted is finished, and what is not
//! there any more is said.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tracing::{error, warn};

use super::clocks::Clocks;
use super::heads::Heads;
use super::key::SensorKey;
use super::retention::Retention;
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
    /// All closed segments.
    pub retention: Retention,
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
    /// A run has ended, and none has begun since.
    is_closed: bool,
    /// One of them is signed by us.
    is_ours: bool,
    /// That they name.
    key: Option<String>,
    /// Octets and hash of its first batch that has some.
    first_batch: Option<(u64, Hash)>,
    total_records: u64,
    total_octets: u64,
}

impl Summary {
    fn of(first: Seal, is_ours: bool) -> Self {
        Self {
            last: first.clone(),
            is_closed: first.kind.is_closed(false),
            is_ours,
            key: first.key.clone(),
            first_batch: (first.octets > 0).then_some((first.octets, first.sha256)),
            total_records: first.total_records.unwrap_or(first.records),
            total_octets: first.total_octets.unwrap_or(first.octets),
            first,
        }
    }

    /// Takes the next line if it is to be believed: it follows from the one before, or this sensor signed it (`signed`: whether
    /// it did, of a line that is). The seals of a sensor that had another key are all of that key.
    fn take(&mut self, seal: Seal, body: &[u8], signed: Option<bool>) -> bool {
        let follows = seal.seal == self.last.seal + 1 && Chain::next(self.last.chain, body) == seal.chain;
        let is_believed = match signed {
            Some(true) => follows || !self.is_ours || seal.seal > self.last.seal,
            Some(false) => follows && !self.is_ours,
            // Behind a close we seal what others wrote as foreign, and nothing else without a signature.
            None if self.is_closed && seal.octets > 0 && seal.foreign.is_none() => false,
            None => follows || seal.missing_seals.is_some_and(|missing| !self.is_ours && missing > 0),
        };
        if !is_believed {
            return false;
        }
        if signed == Some(true) && !self.is_ours && !follows {
            *self = Self::of(seal, true);
            return true;
        }
        self.is_ours |= signed == Some(true);
        if self.first_batch.is_none() && seal.octets > 0 {
            self.first_batch = Some((seal.octets, seal.sha256));
        }
        self.key = seal.key.clone().or(self.key.take());
        self.total_records = seal.total_records.unwrap_or(self.total_records.saturating_add(seal.records));
        self.total_octets = seal.total_octets.unwrap_or(self.total_octets.saturating_add(seal.octets));
        self.is_closed = seal.kind.is_closed(self.is_closed);
        self.last = seal;
        true
    }
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
    /// That the seals name, where it is not ours.
    other_key: Option<String>,
    breaks: Vec<LogBreak>,
}

/// How a segment was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It has no seal yet.
    Unsealed,
    /// Its last seal is one of a run that went on.
    Open,
    /// Its last seal is a `close`: nothing of ours comes behind it.
    Closed,
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
    let (lines, breaks) = (Vec::new(), Vec::new());
    Recovery { folder, log, key, now, listing, chain, lines, missing_seals: 0, other_key: None, breaks }.run(heads)
}

impl Recovery<'_> {
    fn run(mut self, heads: &Heads) -> io::Result<Recovered> {
        let live = self.listing.live.seals.as_deref().map(|path| self.summarize_live(path)).transpose()?.flatten();
        let is_live = live.is_some();
        let summary = match live {
            Some(live) => Some(live),
            None => self.newest()?,
        };
        let (mut segment, mut start, mut end, mut left) = (1, self.now, 0, Left::Unsealed);
        let last_time = summary.as_ref().map(|summary| summary.last.time);
        if let Some(summary) = &summary {
            let last = &summary.last;
            self.chain.go_to(last.seal, last.chain);
            (self.chain.total_records, self.chain.total_octets) = (summary.total_records, summary.total_octets);
            if is_live {
                (segment, start, end) = (last.segment, summary.first.time, last.end());
                left = if summary.is_closed { Left::Closed } else { Left::Open };
            } else {
                segment = last.segment + 1;
            }
        }
        let ours = self.key.public().base64();
        self.other_key = summary.as_ref().and_then(|summary| summary.key.clone()).filter(|key| *key != ours);
        if let Some(key) = &self.other_key {
            error!(
                log = self.log,
                seals = key,
                sensor = ours,
                "THE LOG NAMES ANOTHER KEY than this sensor has: its state was taken away or is another's, or somebody wrote the log anew; it goes on with this key, and verify-log takes both"
            );
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
            end = self.seal(segment, end, tail, left);
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
            (start, end, left, first_batch) = (self.now, 0, Left::Unsealed, None);
            if let Some(files) = self.listing.closed.get(&segment) {
                start = files.start;
            }
        }
        let listing = Listing::read(self.folder, self.log)?;
        let clocks = Clocks::new(self.now, last_time);
        let retention = Retention::of(self.folder, self.log, &listing, (segment, start), clocks);
        let plain = retention.paths(self.folder, self.log, DATA).filter(|path| path.is_file()).collect();
        Ok(Recovered {
            chain: self.chain,
            segment,
            start,
            end,
            seals: self.lines,
            plain,
            retention,
            breaks: self.breaks,
        })
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
    fn seal(&mut self, segment: u64, begins: u64, mut tail: Tail, left: Left) -> u64 {
        let mut end = begins;
        let is_break = left == Left::Open || tail.missing > 0 || tail.torn > 0 || self.missing_seals > 0;
        if is_break && tail.pieces.is_empty() {
            tail.pieces.push(Batch::default());
        }
        let records: u64 = tail.pieces.iter().map(|piece| piece.records).sum();
        let octets: u64 = tail.pieces.iter().map(|piece| piece.octets).sum();
        let foreign = if left == Left::Closed { octets + tail.torn } else { 0 };
        if foreign > 0 {
            error!(
                log = self.log,
                segment,
                records,
                octets = foreign,
                "SOMEBODY WROTE BEHIND THE END of a log that was closed: it is sealed as foreign, and verify-log will tell"
            );
        } else if is_break || records > 0 {
            warn!(
                log = self.log,
                segment,
                records,
                torn = tail.torn,
                "the log was not closed by its last run: what it had written is sealed as recovered"
            );
        }
        if is_break || octets > 0 || self.other_key.is_some() {
            self.breaks.push(LogBreak {
                log: self.log.to_owned(),
                segment,
                recovered_records: records,
                recovered_octets: octets,
                torn_octets: tail.torn,
                missing_octets: tail.missing,
                missing_seals: self.missing_seals,
                foreign_octets: foreign,
                other_key: self.other_key.take(),
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
            if foreign > 0 {
                seal.foreign = Some(seal.octets + seal.torn.unwrap_or(0));
            }
            self.chain.append(seal, None, &mut self.lines);
        }
        end
    }

    /// The newest closed segment of ours; where none is, as that of a sensor that had another key, the newest.
    fn newest(&self) -> io::Result<Option<Summary>> {
        let mut newest = None;
        for path in self.listing.closed.values().rev().filter_map(|files| files.seals.as_deref()) {
            let Some(summary) = self.summarize_to(path)?.0 else { continue };
            if summary.is_ours {
                return Ok(Some(summary));
            }
            newest = newest.or(Some(summary));
        }
        Ok(newest)
    }

    /// The same of the file that is written; a line that a crash cut is taken off.
    fn summarize_live(&self, path: &Path) -> io::Result<Option<Summary>> {
        let (summary, cut) = self.summarize_to(path)?;
        if let Some(whole) = cut {
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(whole)?;
            file.sync_data()?;
        }
        Ok(summary)
    }

    /// And where a cut last line begins.
    fn summarize_to(&self, path: &Path) -> io::Result<(Option<Summary>, Option<u64>)> {
        let (mut summary, mut whole, mut cut) = (None::<Summary>, 0, None);
        // Lines that are not believed, and the chain behind the line before.
        let (mut others, mut before) = (0_u64, Hash::default());
        let ours = [self.key.public()];
        segments::read_seals(path, |line| {
            match line.seal {
                Ok((seal, body)) => {
                    let signed = seal.head(self.log).map(|head| head.is_signed_by(&ours));
                    if signed == Some(true) && Chain::next(before, &body) == seal.chain {
                        // The signature is over those, too.
                        others = 0;
                    }
                    before = seal.chain;
                    match &mut summary {
                        None => summary = Some(Summary::of(seal, signed == Some(true))),
                        Some(summary) => others += u64::from(!summary.take(seal, &body, signed)),
                    }
                }
                Err(CUT) => cut = Some(whole),
                // Verification tells; the log goes on behind the last line that is one.
                Err(_) => {}
            }
            whole = line.end;
        })?;
        if others > 0 {
            error!(
                path = %path.display(),
                lines = others,
                "SEALS ARE THERE THAT DO NOT FOLLOW from those before them, or that this sensor did not sign: the log goes on without them, and verify-log will tell"
            );
        }
        Ok((summary, cut))
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
