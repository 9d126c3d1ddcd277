//! Turns a log's folder into its segments in their order, each with the files that hold it: the same for all who read a log
//! back, so that what is verified is what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::sink::archive::archive_of;
use crate::sink::sealed::seal::{Hash, Seal};
use crate::sink::sealed::segments::{self, DATA, Listing, Packing, SEALS};

/// A folder as it was at one moment.
pub(super) struct Folder {
    /// In the order in which they were written.
    pub parts: Vec<Part>,
    /// What looks like a part of the log and is none.
    pub strangers: Vec<Stranger>,
    pub listing: Listing,
}

/// A segment, or records that no seal numbers yet.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// As the files are named, or as the seals say of those that are written.
    pub number: Option<u64>,
    pub data: Option<Source>,
    pub seals: Option<Source>,
    /// Octets of the records when the folder was opened, where these are being written.
    pub live: Option<u64>,
}

impl Part {
    /// The segment that its seals say they are of, by their first line; else as its files are named.
    pub(super) fn claimed(&self) -> Option<u64> {
        let closed = self.seals.as_ref().filter(|_| self.live.is_none());
        let first = closed.and_then(|seals| {
            let mut line = Vec::new();
            BufReader::new(seals.open().ok()?.1.take(FIRST_LINE)).read_until(b'\n', &mut line).ok()?;
            Some(Seal::parse(line.strip_suffix(b"\n")?).ok()?.0.segment)
        });
        first.or(self.number)
    }
}

/// Octets of a line of seals at most.
const FIRST_LINE: u64 = 8 << 10;

/// A file that is not read.
#[derive(Debug)]
pub(super) struct Stranger {
    pub number: Option<u64>,
    pub path: PathBuf,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// There is another file for the same.
    Double,
    /// The same, packed, beside the plain one.
    Packed,
    /// Records that no seal is of.
    Unclaimed,
    /// A FIFO, a device, a folder.
    Special,
}

/// A file, by its name or held open, since it may get another name any time.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub held: Option<Arc<File>>,
}

/// What the seals of a segment say of its records.
struct Summary {
    segment: u64,
    end: u64,
    first_batch: Option<(u64, Hash)>,
}

/// The sensor is never more segments ahead of their seals.
const AHEAD: u64 = 8;

impl Folder {
    /// Looks at the log `log`. What is written now is opened first: seals, then records, then names.
    pub(super) fn open(folder: &Path, log: &str) -> io::Result<Self> {
        let seals = Source::hold(segments::live(folder, log, SEALS))?;
        let data = Source::hold(segments::live(folder, log, DATA))?;
        let mut listing = Listing::read(folder, log)?;
        let mut parts: BTreeMap<u64, Part> = BTreeMap::new();
        for (number, files) in &mut listing.closed {
            let (data, seals) = (files.data.clone().map(Source::of), files.seals.clone().map(Source::of));
            if data.is_some() || seals.is_some() {
                parts.insert(*number, Part { number: Some(*number), data, seals, live: None });
            }
        }
        let mut strangers = Vec::new();
        let mut live = data.filter(|data| !data.is_one_of(parts.values().filter_map(|part| part.data.as_ref())));
        let mut current = None;
        // Of a rotation that is under way: without a whole line they are nobody's yet.
        let (seals, summary) = (seals.as_ref(), seals.as_ref().and_then(summarize));
        let is_blank = summary.is_none();
        if let (Some(seals), Some(summary)) = (seals, summary) {
            let part = parts.entry(summary.segment).or_default();
            part.number = Some(summary.segment);
            match &part.seals {
                // It was closed since.
                Some(closed) if closed.is_one_of([seals]) => {}
                Some(closed) => {
                    let (number, path) = (part.number, closed.path.clone());
                    strangers.push(Stranger { number, path, why: Why::Double });
                }
                None => {
                    if part.data.is_none() {
                        part.data = live.take();
                    }
                    // Where a rotation is under way they have their name, and may be longer than their seals.
                    part.live = Some(part.data.as_ref().map_or(0, Source::octets));
                    part.seals = Some(seals.clone());
                    current = Some(summary);
                }
            }
        }
        let is_sealed = parts.values().any(|part| part.seals.is_some());
        let mut this = Self { parts: Vec::new(), strangers, listing };
        this.tell_others(&parts);
        if is_sealed {
            let unclaimed = this.find_renamed(&mut parts, current.as_ref());
            this.leave_out(&mut parts, unclaimed);
        } else {
            this.parts.extend(
                this.listing
                    .others
                    .iter()
                    .filter(|path| is_records(path, log))
                    .map(|path| Part { data: Some(Source::of(path.clone())), ..Part::default() }),
            );
        }
        this.parts.extend(parts.into_values());
        let blank = seals.filter(|_| is_blank).cloned();
        if live.is_some() || blank.is_some() {
            let octets = live.as_ref().map_or(0, Source::octets);
            this.parts.push(Part { number: None, data: live, seals: blank, live: Some(octets) });
        }
        Ok(this)
    }

    /// The first file that this user may not read.
    pub(super) fn denied(&self) -> Option<PathBuf> {
        let sources = self.parts.iter().flat_map(|part| [&part.seals, &part.data]).flatten();
        let closed = sources.filter(|source| source.held.is_none());
        let is_denied = |path: &PathBuf| access(path, Access::READ_OK) == Err(Errno::ACCESS);
        closed.map(|source| source.path.clone()).find(is_denied)
    }

    /// Finds records that somebody renamed by what their seals say of them; gives the files that none are of.
    fn find_renamed(&self, parts: &mut BTreeMap<u64, Part>, current: Option<&Summary>) -> BTreeSet<PathBuf> {
        let mut wanted = Vec::new();
        for (number, part) in parts.iter() {
            let is_current = current.is_some_and(|current| current.segment == *number);
            let is_short = is_current && part.live < current.map(|current| current.end);
            if part.data.is_some() && !is_short {
                continue;
            }
            let read = if is_current { None } else { part.seals.as_ref().and_then(summarize) };
            let summary = if is_current { current } else { read.as_ref() };
            wanted
                .extend(summary.and_then(|summary| summary.first_batch).map(|(octets, hash)| (octets, hash, *number)));
        }
        let renamed = segments::find_renamed(&self.listing.others, &wanted);
        let mut unclaimed: BTreeSet<PathBuf> = self.listing.others.iter().cloned().collect();
        for (number, path) in renamed {
            unclaimed.remove(&path);
            if let Some(part) = parts.get_mut(&number) {
                let data = Source::of(path);
                part.live = part.live.map(|_| data.octets());
                part.data = Some(data);
            }
        }
        unclaimed
    }

    /// Takes out what no seal is of, and cannot be what a crash left.
    fn leave_out(&mut self, parts: &mut BTreeMap<u64, Part>, unclaimed: BTreeSet<PathBuf>) {
        // What is older than all seals is left of what retention removed, or somebody's.
        let sealed = || parts.values().filter(|part| part.seals.is_some()).filter_map(|part| part.number);
        let (oldest, mut newest) = (sealed().min(), sealed().max());
        let most = newest.map(|number| number.saturating_add(AHEAD));
        parts.retain(|number, part| {
            if part.seals.is_some() || (oldest < Some(*number) && Some(*number) < newest) {
                return true;
            }
            if Some(*number) <= most && newest.and_then(|newest| newest.checked_add(1)) == Some(*number) {
                newest = Some(*number);
                return true;
            }
            let path = part.data.take().map(|data| data.path).unwrap_or_default();
            self.strangers.push(Stranger { number: Some(*number), path, why: Why::Unclaimed });
            false
        });
        let records = |path: &PathBuf| path.to_string_lossy().contains(".ndjson");
        let unclaimed = unclaimed.into_iter().filter(records);
        self.strangers.extend(unclaimed.map(|path| Stranger { number: None, path, why: Why::Unclaimed }));
    }

    fn tell_others(&mut self, parts: &BTreeMap<u64, Part>) {
        let doubles = self.listing.doubles.iter().map(|(number, path)| {
            let data = parts.get(number).and_then(|part| part.data.as_ref());
            let is_packed = data.is_some_and(|data| data.path == path.with_extension(""));
            let why = if is_packed { Why::Packed } else { Why::Double };
            Stranger { number: Some(*number), path: path.clone(), why }
        });
        let special = self.listing.special.iter();
        let special = special.map(|path| Stranger { number: None, path: path.clone(), why: Why::Special });
        self.strangers.extend(doubles.chain(special));
    }
}

/// Whether a log without seals is in this file, too.
fn is_records(path: &Path, log: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = [".ndjson", ".ndjson.zst", ".ndjson.gz"].iter().find_map(|end| name.strip_suffix(end));
    stem.is_some_and(|stem| stem.strip_prefix(log).is_some_and(|rest| rest.starts_with('-')))
}

fn summarize(seals: &Source) -> Option<Summary> {
    let mut summary = None::<Summary>;
    let take = |line: segments::SealLine| {
        let Ok((Seal { segment, octets, offset, sha256, .. }, _)) = line.seal else { return };
        let summary = summary.get_or_insert(Summary { segment, end: 0, first_batch: None });
        summary.end = offset.saturating_add(octets);
        if octets > 0 {
            summary.first_batch.get_or_insert((octets, sha256));
        }
    };
    // What cannot be read is told by who verifies it.
    let _ = segments::read_seals_from(seals.open().ok()?.1, take);
    summary
}

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.why {
            Why::Double => "there is another file for the same segment: one of the two was put there",
            Why::Packed => "it is packed from other records than the plain file beside it",
            Why::Unclaimed => "no seal is of these records: they are no part of the log",
            Why::Special => "it is no regular file: it is not opened",
        })
    }
}

impl Source {
    pub(super) const fn of(path: PathBuf) -> Self {
        Self { path, held: None }
    }

    /// One that may get another name; none where there is none, or nothing that could be read.
    fn hold(path: PathBuf) -> io::Result<Option<Self>> {
        match segments::open(&path) {
            Ok(file) => Ok(Some(Self { path, held: Some(Arc::new(file)) })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    /// The file from its beginning, how it is packed, and where it is now.
    pub(super) fn open(&self) -> io::Result<(Packing, ReadAt, PathBuf)> {
        let (file, path) = match &self.held {
            // It is being written: nobody packs that.
            Some(file) => return Ok((Packing::Plain, ReadAt { file: Arc::clone(file), at: 0 }, self.path.clone())),
            None => match segments::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Compressed since it was looked for.
                    let archive = archive_of(&self.path);
                    (segments::open(&archive).map_err(|_| error)?, archive)
                }
                opened => (opened?, self.path.clone()),
            },
        };
        let packing = segments::packing(&file)?;
        if packing == Packing::Plain && path.extension().is_some_and(|end| end == "zst" || end == "gz") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not packed as its name says"));
        }
        Ok((packing, ReadAt { file: Arc::new(file), at: 0 }, path))
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        match &self.held {
            Some(file) => file.metadata(),
            None => std::fs::metadata(&self.path)
                .or_else(|error| std::fs::metadata(archive_of(&self.path)).map_err(|_| error)),
        }
    }

    fn octets(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Whether it is one of these by another name, or has none any more.
    fn is_one_of<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> bool {
        let Ok(own) = self.metadata() else { return false };
        own.nlink() == 0
            || others
                .into_iter()
                .any(|other| other.metadata().is_ok_and(|other| (own.dev(), own.ino()) == (other.dev(), other.ino())))
    }
}

/// Reads a file from its beginning, wherever others who share it are.
pub(super) struct ReadAt {
    pub file: Arc<File>,
    pub at: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
