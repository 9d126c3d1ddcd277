//! Turns folders and files of a log into chunks of whole lines, in the order in which they were written.
//!
//! A sensor may write, rotate and compress meanwhile: what was there when the log was opened is read, once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zstd::bulk::Decompressor;

use super::folder::{Folder, Source as FileSource, Why};
use crate::sink::archive::index::{Contents, Frame, Index, LARGEST_FRAME};
use crate::sink::sealed::segments::{Counted, Packing, unpack};

/// Name of the log of flow records, without its ending.
pub const FLOW_LOG: &str = "linewarden";
/// Name of the log of what the sensor says of itself.
pub const SENSOR_LOG: &str = "sensor";

/// A log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A folder or file cannot be read.
    #[error("{path}: cannot be read: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder that holds no log.
    #[error(
        "{folder}: holds no {name}.ndjson and no {name}-*.ndjson[.zst]: name the folder of the log (the setting records.dir), or its files"
    )]
    NoLog {
        /// Which.
        folder: PathBuf,
        /// The log that was looked for.
        name: &'static str,
    },
    /// Nothing of the log could be read.
    #[error("nothing of the log can be read: {first}")]
    Unreadable {
        /// The first trouble.
        first: String,
    },
}

/// A log as it lay there when it was opened.
#[derive(Debug)]
pub struct Log {
    segments: Vec<Segment>,
    octets: u64,
    use_index: bool,
    notices: Vec<String>,
}

/// A file of it.
#[derive(Debug)]
struct Segment {
    source: FileSource,
    octets: u64,
    /// In a folder: it may be removed any time.
    is_found: bool,
}

impl Log {
    /// Opens folders, of which the log `name` is read, and files, in the order given.
    pub fn open(paths: &[PathBuf], name: &'static str) -> Result<Self, StoreError> {
        let mut log = Self { segments: Vec::new(), octets: 0, use_index: true, notices: Vec::new() };
        let mut seen = BTreeSet::new();
        for path in paths {
            let metadata = fs::metadata(path).map_err(|error| StoreError::Read { path: path.clone(), error })?;
            let segments = if metadata.is_dir() { log.segments_of(path, name)? } else { vec![Segment::of(path)?] };
            for segment in segments {
                // One file given twice would count its flows twice.
                if segment.source.metadata().is_ok_and(|metadata| !seen.insert((metadata.dev(), metadata.ino()))) {
                    continue;
                }
                log.octets += segment.octets;
                log.segments.push(segment);
            }
        }
        Ok(log)
    }

    fn segments_of(&mut self, folder: &Path, name: &'static str) -> Result<Vec<Segment>, StoreError> {
        let found = Folder::open(folder, name).map_err(|error| StoreError::Read { path: folder.to_owned(), error })?;
        for stranger in found.strangers.iter().filter(|stranger| stranger.why != Why::Packed) {
            self.notices.push(format!("{}: not read: {stranger}", stranger.path.display()));
        }
        if found.parts.is_empty() && found.strangers.is_empty() {
            return Err(StoreError::NoLog { folder: folder.to_owned(), name });
        }
        let segment = |source: FileSource| {
            // What is gone by now was removed by retention.
            let octets = source.metadata().ok()?.len();
            Some(Segment { source, octets, is_found: true })
        };
        let (mut claimed, mut segments) = (BTreeSet::new(), Vec::new());
        for part in found.parts {
            let again = part.claimed().filter(|number| !claimed.insert(*number));
            match (part.data, again) {
                (Some(data), Some(number)) => self.notices.push(format!(
                    "{}: not read: it says that it is segment {number}, and so does a file before it: one of the two was put there",
                    data.path.display()
                )),
                (data, _) => segments.extend(data.and_then(segment)),
            }
        }
        Ok(segments)
    }

    /// Reads everything, whatever the indexes say.
    #[must_use]
    pub const fn without_indexes(mut self) -> Self {
        self.use_index = false;
        self
    }

    /// Octets on the disk.
    #[must_use]
    pub const fn octets(&self) -> u64 {
        self.octets
    }

    /// Files.
    #[must_use]
    pub const fn files(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn path(&self, segment: usize) -> &Path {
        self.segments.get(segment).map_or(Path::new(""), |segment| &segment.source.path)
    }

    pub(super) fn chunks<'a>(&'a self, wanted: &'a dyn Fn(&Contents) -> bool) -> Chunks<'a> {
        Chunks {
            log: self,
            wanted,
            next: 0,
            segment: 0,
            state: State::Done,
            offset: 0,
            line: 0,
            passed: 0,
            unwanted: 0,
            notices: self.notices.clone(),
        }
    }

    /// The number of the line at this place of a segment, from 1; reads the segment up to there.
    pub(super) fn line_at(&self, segment: usize, offset: u64) -> Option<u64> {
        let segment = self.segments.get(segment)?;
        let (packing, file, _) = segment.source.open().ok()?;
        let mut from = unpack(packing, file).ok()?;
        let (mut left, mut lines, mut buffer) = (offset, 1, vec![0; CHUNK]);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = from.read(buffer.get_mut(..most)?).ok().filter(|read| *read > 0)?;
            lines += memchr::memchr_iter(b'\n', buffer.get(..read)?).count() as u64;
            left -= read as u64;
        }
        Some(lines)
    }
}

impl Segment {
    /// A file by its name; of one that is there plain and packed, the plain one, and of one that was packed since, that.
    fn of(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::Read { path: path.to_owned(), error };
        let plain = path.with_extension("");
        let is_both = path.extension().is_some_and(|end| end == "zst") && plain.is_file();
        let source = FileSource::of(if is_both { plain } else { path.to_owned() });
        let (_, from, path) = source.open().map_err(failed)?;
        let octets = from.file.metadata().map_err(failed)?.len();
        Ok(Self { source: FileSource::of(path), octets, is_found: false })
    }
}

/// Some whole lines, not yet read.
#[derive(Debug)]
pub(super) struct Chunk {
    pub segment: usize,
    /// Where it begins in the segment, decompressed.
    pub offset: u64,
    /// Number of its first line, from 1, where that is known without counting.
    pub first_line: Option<u64>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Plain { file: Arc<File>, octets: usize },
    Frame { file: Arc<File>, at: u64, octets: usize, plain_octets: usize },
    Lines(Vec<u8>),
}

/// What is read into again and again.
#[derive(Default)]
pub(super) struct Buffers {
    lines: Vec<u8>,
    compressed: Vec<u8>,
    decompressor: Option<Decompressor<'static>>,
}

impl Chunk {
    /// Whether the lines are held in memory: there is no way to read them again by themselves.
    pub(super) const fn held(&self) -> Option<&Vec<u8>> {
        if let Source::Lines(lines) = &self.source { Some(lines) } else { None }
    }

    /// The same place without its lines.
    pub(super) const fn emptied(&self) -> Self {
        let Self { segment, offset, first_line, .. } = *self;
        Self { segment, offset, first_line, source: Source::Lines(Vec::new()) }
    }

    pub(super) fn read<'a>(&'a self, buffers: &'a mut Buffers) -> io::Result<&'a [u8]> {
        let Buffers { lines, compressed, decompressor } = buffers;
        match &self.source {
            Source::Lines(lines) => return Ok(lines),
            Source::Plain { file, octets } => {
                lines.resize(*octets, 0);
                file.read_exact_at(lines, self.offset)?;
            }
            Source::Frame { file, at, octets, plain_octets } => {
                compressed.resize(*octets, 0);
                file.read_exact_at(compressed, *at)?;
                lines.clear();
                lines.reserve(*plain_octets);
                let decompressor = match decompressor {
                    Some(decompressor) => decompressor,
                    None => decompressor.insert(Decompressor::new()?),
                };
                decompressor.decompress_to_buffer(compressed, lines)?;
                if lines.len() != *plain_octets {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the index gives another length"));
                }
            }
        }
        Ok(lines)
    }
}

/// Octets that one chunk has, about.
const CHUNK: usize = 1 << 20;

/// The chunks of a log.
pub(super) struct Chunks<'a> {
    log: &'a Log,
    wanted: &'a dyn Fn(&Contents) -> bool,
    next: usize,
    segment: usize,
    state: State,
    offset: u64,
    line: u64,
    /// Octets on the disk that are behind us.
    pub passed: u64,
    /// Frames, or whole archives, that were passed over.
    pub unwanted: u64,
    /// What went otherwise than planned, and did no harm.
    pub notices: Vec<String>,
}

enum State {
    Done,
    Plain { file: Arc<File>, octets: u64 },
    Frames { file: Arc<File>, frames: std::vec::IntoIter<Frame> },
    Stream { from: Box<dyn Read + Send>, taken: Arc<AtomicU64>, rest: Vec<u8> },
}

/// A file that cannot be read from some place on.
#[derive(Debug)]
pub(super) struct Broken {
    pub segment: usize,
    pub offset: u64,
    pub error: io::Error,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.advance() {
                Ok(Some(chunk)) => return Some(Ok(chunk)),
                Ok(None) => {
                    let segment = self.log.segments.get(self.next)?;
                    (self.segment, self.next, self.offset, self.line) = (self.next, self.next + 1, 0, 1);
                    self.passed = self.log.segments.iter().take(self.segment).map(|segment| segment.octets).sum();
                    match self.begin(segment) {
                        Ok(state) => self.state = state,
                        Err(error) if segment.is_found && error.kind() == io::ErrorKind::NotFound => {
                            let path = segment.source.path.display();
                            self.notices.push(format!("{path}: it was removed meanwhile, as retention does"));
                        }
                        Err(error) => return Some(Err(self.broken(error))),
                    }
                }
                Err(error) => {
                    self.state = State::Done;
                    return Some(Err(self.broken(error)));
                }
            }
        }
    }
}

impl Chunks<'_> {
    const fn broken(&self, error: io::Error) -> Broken {
        Broken { segment: self.segment, offset: self.offset, error }
    }

    fn begin(&mut self, segment: &Segment) -> io::Result<State> {
        let (packing, from, archive) = segment.source.open()?;
        if packing == Packing::Plain {
            return Ok(State::Plain { file: from.file, octets: segment.octets });
        }
        if self.log.use_index && packing == Packing::Zstd {
            let index = Index::open(&archive);
            match &index {
                Ok(index) if !(self.wanted)(&index.header.contents) => {
                    self.unwanted += 1;
                    return Ok(State::Done);
                }
                _ => {}
            }
            let frames = index.and_then(Index::frames).and_then(|frames| {
                let is_ours = frames.iter().all(Frame::is_ours);
                if is_ours { Ok(frames) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "frames too large")) }
            });
            match frames {
                Ok(frames) => return Ok(State::Frames { file: from.file, frames: frames.into_iter() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = archive.display();
                    self.notices
                        .push(format!("{path}: its index is of no use ({error}): read without it, which takes longer"));
                }
            }
        }
        let taken = Arc::<AtomicU64>::default();
        let count = Arc::clone(&taken);
        let from = Counted {
            file: from,
            read: move |octets| {
                count.fetch_add(octets, Ordering::Relaxed);
            },
        };
        Ok(State::Stream { from: unpack(packing, from)?, taken, rest: Vec::new() })
    }

    fn advance(&mut self) -> io::Result<Option<Chunk>> {
        let (segment, offset, first_line) = (self.segment, self.offset, self.line);
        let chunk = |source, first_line| Some(Chunk { segment, offset, first_line, source });
        match &mut self.state {
            State::Done => Ok(None),
            State::Plain { file, octets } => {
                let end = line_end(file, offset, *octets)?;
                if end == offset {
                    return Ok(None);
                }
                self.offset = end;
                self.passed += end - offset;
                let octets = usize::try_from(end - offset).unwrap_or(usize::MAX);
                Ok(chunk(Source::Plain { file: Arc::clone(file), octets }, (offset == 0).then_some(1)))
            }
            State::Frames { file, frames } => {
                for frame in frames {
                    let offset = self.offset;
                    let line = self.line;
                    self.offset += frame.plain_octets;
                    self.line = self.line.saturating_add(frame.contents.lines);
                    self.passed += frame.octets;
                    if (self.wanted)(&frame.contents) {
                        let source = Source::Frame {
                            file: Arc::clone(file),
                            at: frame.offset,
                            octets: usize::try_from(frame.octets).unwrap_or(usize::MAX),
                            plain_octets: usize::try_from(frame.plain_octets).unwrap_or(usize::MAX),
                        };
                        return Ok(Some(Chunk { segment, offset, first_line: Some(line), source }));
                    }
                    self.unwanted += 1;
                }
                Ok(None)
            }
            State::Stream { from, taken, rest } => {
                let mut lines = std::mem::take(rest);
                let outcome = from.by_ref().take(CHUNK as u64).read_to_end(&mut lines);
                self.passed = self.log.segments.iter().take(segment).map(|segment| segment.octets).sum::<u64>()
                    + taken.load(Ordering::Relaxed);
                match (outcome, memchr::memrchr(b'\n', &lines)) {
                    // What came before the damage is whole.
                    (Err(error), last) if last.is_none() || lines.is_empty() => return Err(error),
                    (Err(_), Some(last)) => lines.truncate(last + 1),
                    (Ok(0), _) if lines.is_empty() => return Ok(None),
                    (Ok(0), _) => {}
                    (Ok(_), Some(last)) => *rest = lines.split_off(last + 1),
                    // A line longer than a chunk.
                    (_, None) => {
                        *rest = lines;
                        return if rest.len() as u64 > LARGEST_FRAME {
                            Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"))
                        } else {
                            self.advance()
                        };
                    }
                }
                self.offset += lines.len() as u64;
                self.line += memchr::memchr_iter(b'\n', &lines).count() as u64;
                Ok(chunk(Source::Lines(lines), Some(first_line)))
            }
        }
    }
}

/// Where the lines that begin in the next chunk end.
fn line_end(file: &File, from: u64, octets: u64) -> io::Result<u64> {
    let mut at = from + CHUNK as u64;
    let mut look = [0; 4096];
    while at < octets && at - from <= LARGEST_FRAME {
        let read = file.read_at(&mut look, at - 1)?;
        match memchr::memchr(b'\n', look.get(..read).unwrap_or_default()) {
            Some(found) => return Ok((at + found as u64).min(octets)),
            None if read == 0 => break,
            None => at += read as u64,
        }
    }
    Ok(at.min(octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::archive::compress;

    fn lines(log: &Log) -> Vec<u8> {
        let mut buffers = Buffers::default();
        let all = |_: &Contents| true;
        log.chunks(&all).flat_map(|chunk| chunk.unwrap().read(&mut buffers).unwrap().to_vec()).collect()
    }

    fn write(path: &Path, from: u32, to: u32) {
        let lines: Vec<_> = (from..to).map(|number| format!("{{\"n\":{number}}}\n")).collect();
        fs::write(path, lines.concat()).unwrap();
    }

    /// Three segments, the middle one compressed, the last one written to.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&path("linewarden-20261127T000000Z-000001.ndjson"), 0, 200_000);
        write(&path("linewarden-20261127T010000Z-000002.ndjson"), 200_000, 300_000);
        write(&path("linewarden.ndjson"), 300_000, 310_000);
        let plain = path("linewarden-20261127T000000Z-000001.ndjson");
        compress(&path("linewarden-20261127T010000Z-000002.ndjson")).unwrap();
        (folder, plain)
    }

    fn expected() -> Vec<u8> {
        (0..310_000).flat_map(|number| format!("{{\"n\":{number}}}\n").into_bytes()).collect()
    }

    #[test]
    fn segments_are_read_in_order_and_whole() {
        let (folder, _) = folder();
        let log = Log::open(&[folder.path().to_owned()], FLOW_LOG).unwrap();
        assert_eq!(log.files(), 3);
        assert!(lines(&log) == expected());
        assert!(lines(&log.without_indexes()) == expected());
    }

    #[test]
    fn what_is_rotated_and_compressed_meanwhile_is_read_once() {
        let (folder, plain) = folder();
        let log = Log::open(&[folder.path().to_owned()], FLOW_LOG).unwrap();
        compress(&plain).unwrap();
        let rotated = folder.path().join("linewarden-20261127T020000Z-000003.ndjson");
        fs::rename(folder.path().join("linewarden.ndjson"), &rotated).unwrap();
        write(&folder.path().join("linewarden.ndjson"), 400_000, 400_001);
        compress(&rotated).unwrap();
        assert!(lines(&log) == expected());
    }

    #[test]
    fn every_chunk_is_whole_lines_and_its_number_is_right() {
        let (folder, _) = folder();
        let log = Log::open(&[folder.path().to_owned()], FLOW_LOG).unwrap();
        let all = |_: &Contents| true;
        let mut buffers = Buffers::default();
        for chunk in log.chunks(&all) {
            let chunk = chunk.unwrap();
            let number = log.line_at(chunk.segment, chunk.offset).unwrap();
            assert!(chunk.first_line.is_none_or(|first| first == number));
            let first: u64 = [0, 200_000, 300_000][chunk.segment];
            let lines = chunk.read(&mut buffers).unwrap();
            assert!(lines.starts_with(format!("{{\"n\":{}}}\n", first + number - 1).as_bytes()));
            assert_eq!(lines.last(), Some(&b'\n'));
        }
    }

    #[test]
    fn a_folder_without_a_log_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("sensor.ndjson"), "").unwrap();
        let error = Log::open(&[folder.path().to_owned()], FLOW_LOG).unwrap_err();
        assert!(matches!(error, StoreError::NoLog { .. }), "{error}");
    }
}
