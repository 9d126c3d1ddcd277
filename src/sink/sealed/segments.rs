//! Turns a folder into the segments of its logs: which file holds which, and how to read it whatever has packed it.
//!
//! | file | holds |
//! |---|---|
//! | `X.ndjson`, `X.seals` | the segment that is written now |
//! | `X-20261128T094756Z-000017.ndjson`, `.ndjson.zst`, `.seals`, others | segment 17, begun at that time (UTC) |
//! | other names that begin with `X` | perhaps a segment that somebody else renamed |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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

impl Listing {
    /// Reads a folder.
    pub fn read(folder: &Path, log: &str) -> io::Result<Self> {
        let mut listing = Self::default();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(log)) else { continue };
            // It may have been renamed since.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            // Folders, and what would make who opens it wait.
            if !metadata.is_file() {
                continue;
            }
            let name = name.to_string_lossy();
            let (stem, suffix) = name.split_once('.').unwrap_or((&name, ""));
            let files = match (rest, parse_stem(stem)) {
                (".ndjson" | ".seals", _) => &mut listing.live,
                (".ndjson.new", _) => continue,
                (_, Some((of, start, number))) if of == log => {
                    let files = listing.closed.entry(number).or_default();
                    files.start = start;
                    files
                }
                _ => {
                    if rest.starts_with(['.', '-', '_']) {
                        listing.others.push(path);
                    }
                    continue;
                }
            };
            files.octets += metadata.len();
            files.all.push(path.clone());
            match suffix {
                SEALS => files.seals = Some(path),
                // Where packing was interrupted, both are there: the plain one is the older and surer.
                DATA => files.data = Some(path),
                "ndjson.zst" | "ndjson.gz" if files.data.is_none() => files.data = Some(path),
                _ => {}
            }
        }
        listing.others.sort();
        Ok(listing)
    }
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

/// How it is packed, and the file at its beginning.
pub fn sniff(path: &Path) -> io::Result<(Packing, File)> {
    let mut first = Vec::with_capacity(4);
    let mut file = File::open(path)?;
    Read::by_ref(&mut file).take(4).read_to_end(&mut first)?;
    io::Seek::rewind(&mut file)?;
    let packing = match first.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
        [0x1f, 0x8b, ..] => Packing::Gzip,
        _ => Packing::Plain,
    };
    Ok((packing, file))
}

/// The lines of a segment, whatever has packed it; `read` hears of each octet that is taken from the disk.
pub fn open_data<'a>(path: &Path, read: impl FnMut(u64) + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let (packing, file) = sniff(path)?;
    let file = Counted { file, read };
    Ok(match packing {
        Packing::Plain => Box::new(file),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
        Packing::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file))),
    })
}

struct Counted<F> {
    file: File,
    read: F,
}

impl<F: FnMut(u64)> Read for Counted<F> {
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
pub fn read_seals(path: &Path, mut take: impl FnMut(SealLine)) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
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
        let listing = Listing::read(folder.path(), "l").unwrap();
        let files = &listing.closed[&17];
        assert_eq!((files.all.len(), files.octets), (4, 4));
        assert!(files.data.as_ref().unwrap().ends_with("l-20231114T221320Z-000017.ndjson"));
        assert!(listing.live.data.is_some() && listing.live.seals.is_some());
        assert_eq!(listing.others, [folder.path().join("l.ndjson.1.gz")]);
    }
}
