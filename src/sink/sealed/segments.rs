//! Turns a folder into the segments of its logs: which file holds which, and how to read it whatever has packed it.
//!
//! | file | holds |
//! |---|---|
//! | `X.ndjson`, `X.seals` | the segment that is written now |
//! | `X-20261128T094756Z-000017.ndjson`, `.ndjson.zst`, `.seals`, others | segment 17, begun at that time (UTC) |
//! | other names that begin with `X` | perhaps a segment that somebody else renamed |

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::seal::{Hash, MAX_BATCH, Seal};
use crate::time::Timestamp;

/// Behind a log's name: its lines.
pub const DATA: &str = "ndjson";
/// Behind a log's name: their seals.
pub const SEALS: &str = "seals";
/// Behind the name of a closed segment: what the log makes of it and its archive, and gzip in its place.
pub(super) const OWN: [&str; 7] = [DATA, "ndjson.zst", "ndjson.gz", "ndjson.zst.part", "index", "index.part", SEALS];
/// A line of seals is no longer, octets.
pub const MAX_LINE: u64 = 8192;

/// What a folder holds of one log.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Closed segments by number.
    pub closed: BTreeMap<u64, Files>,
    /// The segment that is written now.
    pub live: Files,
    /// Files that may be segments that somebody renamed.
    pub others: Vec<PathBuf>,
    /// More files with the records or the seals of a segment that has one already, and its number.
    pub doubles: Vec<(u64, PathBuf)>,
    /// What is named as a segment's file and is no regular file: opening it might never end.
    pub special: Vec<PathBuf>,
    names: Vec<OsString>,
}

/// The files of a segment.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Its lines.
    pub data: Option<PathBuf>,
    /// Its seals.
    pub seals: Option<PathBuf>,
    /// All files, with those that lie beside.
    pub all: Vec<PathBuf>,
    /// Octets of all.
    pub octets: u64,
    /// When it began, as its name says.
    pub start: Timestamp,
}

/// `X.ndjson` or `X.seals`.
#[must_use]
pub fn live(folder: &Path, log: &str, suffix: &str) -> PathBuf {
    folder.join(format!("{log}.{suffix}"))
}

/// The name of a closed segment.
#[must_use]
pub fn closed(folder: &Path, log: &str, start: Timestamp, segment: u64, suffix: &str) -> PathBuf {
    let time: String = start.to_string().chars().filter(|c| !"-:".contains(*c)).take(15).collect();
    folder.join(format!("{log}-{time}Z-{segment:06}.{suffix}"))
}

/// When the segment began that a file is of, as its name says.
pub(super) fn start_of(path: &Path) -> Option<Timestamp> {
    parse_name(path).map(|(_, start, _)| start)
}

/// The number of the segment that a file is of, as its name says.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    parse_name(path).map(|(.., number)| number)
}

fn parse_name(path: &Path) -> Option<(&str, Timestamp, u64)> {
    let name = path.file_name()?.to_str()?;
    parse_stem(name.split_once('.').map_or(name, |(stem, _)| stem))
}

/// What the files of a closed segment take on the disk; holes in them do not count.
pub(super) fn octets(folder: &Path, log: &str, start: Timestamp, segment: u64) -> u64 {
    let metadata = |suffix: &&str| std::fs::metadata(closed(folder, log, start, segment, suffix)).ok();
    OWN.iter().filter_map(metadata).map(|one| one.len().min(one.blocks().saturating_mul(512))).sum()
}

/// The first line of a file of seals, if it is one.
pub(super) fn first_seal(path: &Path) -> Option<Seal> {
    let (mut line, file) = (Vec::new(), open_regular(path, File::options().read(true)).ok()?);
    BufReader::new(file).take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    Some(Seal::parse(line.strip_suffix(b"\n")?).ok()?.0)
}

/// Opens a file that is one: a pipe would make who opens it wait, and a device has no end.
pub(super) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "is no regular file: take it away");
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| match error.raw_os_error() {
        // A pipe that nobody reads.
        Some(libc::ENXIO) => refused(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// Names of the logs that have seals in a folder.
pub fn logs(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut logs = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".seals")) else { continue };
        let log = parse_stem(stem).map_or(stem, |(log, ..)| log);
        if !log.is_empty() {
            logs.insert(log.to_owned());
        }
    }
    Ok(logs)
}

/// A folder is read again this often, until two readings agree.
const READINGS: usize = 20;

impl Listing {
    /// Reads a folder. Names change while a log is rotated, and no folder is read at one moment: what two readings agree on,
    /// and what is there when it is looked at, is taken.
    pub fn read(folder: &Path, log: &str) -> io::Result<Self> {
        let mut before = names(folder, log)?;
        let mut readings = 1;
        loop {
            let now = names(folder, log)?;
            let is_same = now == before;
            before = now;
            readings += 1;
            if is_same || readings >= READINGS {
                let (listing, is_complete) = Self::of(folder, log, before.clone());
                if is_complete || readings >= READINGS {
                    return Ok(listing);
                }
            }
        }
    }

    /// Whether another reading of the folder saw the same names.
    #[must_use]
    pub fn has_names_of(&self, other: &Self) -> bool {
        self.names == other.names
    }

    /// What these names hold, and whether they were all there.
    fn of(folder: &Path, log: &str, names: Vec<OsString>) -> (Self, bool) {
        let (mut listing, mut is_complete) = (Self::default(), true);
        for name in &names {
            let path = folder.join(name);
            let Some(name) = name.to_str() else { continue };
            let rest = name.strip_prefix(log).unwrap_or_default();
            let (stem, suffix) = name.split_once('.').unwrap_or((name, ""));
            let metadata = std::fs::metadata(&path);
            if metadata.is_err() && std::fs::symlink_metadata(&path).is_err() {
                // It has been renamed or removed since.
                is_complete = false;
                continue;
            }
            let octets = metadata.ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            let (files, number) = match (rest, parse_stem(stem)) {
                (".ndjson" | ".seals", _) => (&mut listing.live, None),
                (_, Some((of, start, number))) if of == log => {
                    let files = listing.closed.entry(number).or_default();
                    files.start = start;
                    (files, Some(number))
                }
                _ => {
                    if octets.is_some() && rest.starts_with(['.', '-', '_']) {
                        listing.others.push(path);
                    }
                    continue;
                }
            };
            let Some(octets) = octets else {
                listing.special.push(path);
                continue;
            };
            files.octets += octets;
            files.all.push(path.clone());
            // Where packing was interrupted, both are there: the plain one is the older and surer.
            let double = match suffix {
                SEALS if files.seals.is_none() => files.seals.replace(path),
                DATA if files.data.as_ref().is_none_or(|data| data.extension().is_none_or(|end| end != DATA)) => {
                    files.data.replace(path)
                }
                "ndjson.zst" | "ndjson.gz" if files.data.is_none() => files.data.replace(path),
                SEALS | DATA | "ndjson.zst" | "ndjson.gz" => Some(path),
                _ => None,
            };
            listing.doubles.extend(number.zip(double));
        }
        listing.names = names;
        (listing, is_complete)
    }
}

/// Names of a folder that may be of a log, in order.
fn names(folder: &Path, log: &str) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(log));
        if rest.is_some_and(|rest| rest != ".ndjson.new") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `X-20261128T094756Z-000017`.
fn parse_stem(stem: &str) -> Option<(&str, Timestamp, u64)> {
    let mut parts = stem.rsplitn(3, '-');
    let (number, time, log) = (parts.next()?, parts.next()?, parts.next()?);
    if number.len() < 6 || !number.bytes().all(|c| c.is_ascii_digit()) || time.len() != 16 {
        return None;
    }
    let part = |at: std::ops::Range<usize>| time.get(at);
    let (date, clock) = (time.get(..8)?, time.get(8..)?);
    if !clock.starts_with('T') || !clock.ends_with('Z') || !date.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(9..11)?,
        part(11..13)?,
        part(13..15)?
    );
    Some((log, text.parse().ok()?, number.parse().ok()?))
}

/// How a file is packed, by its first octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

/// Opens a file of a log; what is no regular file is refused, and not waited for.
pub fn open(path: &Path) -> io::Result<File> {
    open_regular(path, File::options().read(true))
}

/// How it is packed, and the file at its beginning.
pub fn sniff(path: &Path) -> io::Result<(Packing, File)> {
    let file = open(path)?;
    Ok((packing(&file)?, file))
}

/// How a file is packed.
pub fn packing(file: &File) -> io::Result<Packing> {
    let (mut first, mut taken) = ([0; 4], 0);
    while taken < first.len() {
        match file.read_at(first.get_mut(taken..).unwrap_or_default(), taken as u64)? {
            0 => break,
            more => taken += more,
        }
    }
    Ok(match first.get(..taken).unwrap_or_default() {
        [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
        [0x1f, 0x8b, ..] => Packing::Gzip,
        _ => Packing::Plain,
    })
}

/// The lines of a segment, whatever has packed it; `read` hears of each octet that is taken from the disk.
pub fn open_data<'a>(path: &Path, read: impl FnMut(u64) + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let file = open(path)?;
    unpack(packing(&file)?, Counted { file, read })
}

/// The lines in what is packed so.
pub fn unpack<'a>(packing: Packing, from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match packing {
        Packing::Plain => Box::new(from),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(from)?),
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, from))),
    })
}

/// Says how much is read.
pub struct Counted<R, F> {
    /// From where.
    pub file: R,
    /// To whom.
    pub read: F,
}

impl<R: Read, F: FnMut(u64)> Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.file.read(buffer)?;
        (self.read)(taken as u64);
        Ok(taken)
    }
}

/// A line of a file of seals.
#[derive(Debug)]
pub struct SealLine {
    /// Number of the line, from 1.
    pub number: u64,
    /// Where it ends in the file, its line feed included.
    pub end: u64,
    /// What it says, and the octets that its chain is over; or why it is none.
    pub seal: Result<(Seal, Vec<u8>), &'static str>,
}

/// Why the last line of a file is none.
pub const CUT: &str = "cut: its line feed is missing";

/// Reads a file of seals line by line.
pub fn read_seals(path: &Path, take: impl FnMut(SealLine)) -> io::Result<()> {
    read_seals_from(open(path)?, take)
}

/// The same of one that is open.
pub fn read_seals_from(file: impl Read, mut take: impl FnMut(SealLine)) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 16, file);
    let (mut number, mut end, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let taken = Read::by_ref(&mut file).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if taken == 0 {
            return Ok(());
        }
        (number, end) = (number + 1, end + taken as u64);
        let seal = if line.last() == Some(&b'\n') {
            line.pop();
            Seal::parse(&line).map(|(seal, body)| (seal, body.to_vec()))
        } else if taken as u64 == MAX_LINE {
            // Whatever it is: not line by line of 8 KiB.
            end += file.skip_until(b'\n')? as u64;
            Err("no seal")
        } else {
            Err(CUT)
        };
        take(SealLine { number, end, seal });
    }
}

/// Which file holds which segment, told by the first batch of each: for files that somebody else renamed. `wanted` are
/// octets and hash of first batches, with the segment's number.
#[must_use]
pub fn find_renamed(others: &[PathBuf], wanted: &[(u64, Hash, u64)]) -> BTreeMap<u64, PathBuf> {
    let lengths: BTreeSet<u64> =
        wanted.iter().map(|(octets, ..)| *octets).filter(|o| (1..=MAX_BATCH).contains(o)).collect();
    let mut found = BTreeMap::new();
    if lengths.is_empty() {
        return found;
    }
    for path in others {
        // What cannot be read, or is shorter, is none of them.
        let Ok(mut data) = open_data(path, |_| {}) else { continue };
        let (mut batch, mut buffer) = (super::seal::Batch::default(), Vec::new());
        for &length in &lengths {
            buffer.clear();
            let more = length - batch.octets;
            if Read::by_ref(&mut data).take(more).read_to_end(&mut buffer).ok() != usize::try_from(more).ok() {
                break;
            }
            batch.add(&buffer, 0);
            let hash = batch.hash();
            let fits = |(octets, sha256, segment): &&(u64, Hash, u64)| {
                *octets == length && *sha256 == hash && !found.contains_key(segment)
            };
            if let Some((_, _, segment)) = wanted.iter().find(fits) {
                found.insert(*segment, path.clone());
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_log_time_and_number() {
        let start = Timestamp::from_secs(1_700_000_000);
        let path = closed(Path::new("/f"), "a-b", start, 17, DATA);
        assert_eq!(path, Path::new("/f/a-b-20231114T221320Z-000017.ndjson"));
        assert_eq!(parse_stem("a-b-20231114T221320Z-000017"), Some(("a-b", start, 17)));
        for none in ["", "a", "a-17", "a-20231114T221320Z-17", "a-20231114-000017", "a-2023111é221320Z-000017"] {
            assert_eq!(parse_stem(none), None, "{none}");
        }
    }

    #[test]
    fn a_folder_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let names = [
            "l.ndjson",
            "l.seals",
            "l-20231114T221320Z-000017.ndjson.zst",
            "l-20231114T221320Z-000017.ndjson",
            "l-20231114T221320Z-000017.seals",
            "l-20231114T221320Z-000017.index",
            "l.ndjson.1.gz",
            "long.ndjson",
            "m-20231114T221320Z-000001.seals",
        ];
        for name in names {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(logs(folder.path()).unwrap().into_iter().collect::<Vec<_>>(), ["l", "m"]);
        // A second file of the same number, and what would be waited for without end.
        for name in ["l-20240101T000000Z-000017.ndjson", "l-20240101T000000Z-000017.seals"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let fifo = folder.path().join("l-20240101T000000Z-000018.ndjson");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert_eq!(open(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("l-20240101T000000Z-000018.seals")).unwrap();

        let listing = Listing::read(folder.path(), "l").unwrap();
        assert_eq!(listing.special.len(), 2);
        let doubles: Vec<_> = listing.doubles.iter().map(|(_, path)| path.file_name().unwrap()).collect();
        let expected = [
            "l-20231114T221320Z-000017.ndjson.zst",
            "l-20240101T000000Z-000017.ndjson",
            "l-20240101T000000Z-000017.seals",
        ];
        assert_eq!(doubles, expected);
        let files = &listing.closed[&17];
        assert_eq!((files.all.len(), files.octets), (6, 6));
        assert!(files.data.as_ref().unwrap().ends_with("l-20231114T221320Z-000017.ndjson"));
        assert!(listing.live.data.is_some() && listing.live.seals.is_some());
        assert_eq!(listing.others, [folder.path().join("l.ndjson.1.gz")]);
    }
}
