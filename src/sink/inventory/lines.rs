//! Turns a segment of the log, plain or packed, into its whole lines from some place on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::base::{Mark, Place};
use crate::sink::sealed::segments::{self, Packing};

/// Read at once, octets.
const CHUNK: usize = 1 << 20;
/// What has no end within these octets is no line.
const LONGEST_LINE: usize = 16 << 20;
/// A mark is over this many octets at most.
const MARK: usize = 4096;

/// A segment that is read.
pub(super) struct Segment {
    source: Source,
    /// Behind the last line that was given.
    pub at: Place,
    /// Whole lines, once they are given, and what was read of the next.
    buffer: Vec<u8>,
    /// Of the whole lines in it.
    given: usize,
}

enum Source {
    Plain(Arc<File>),
    Packed(Box<dyn Read + Send>),
}

impl Segment {
    /// The segment that is written now, which may get another name any time.
    pub(super) const fn live(file: Arc<File>, at: Place) -> Self {
        Self { source: Source::Plain(file), at, buffer: Vec::new(), given: 0 }
    }

    /// One that is closed, whatever has packed it.
    pub(super) fn closed(path: &Path, at: Place) -> io::Result<Self> {
        let source = if let (Packing::Plain, file) = segments::sniff(path)? {
            Source::Plain(Arc::new(file))
        } else {
            let mut packed = segments::open_data(path, |_| {})?;
            io::copy(&mut packed.by_ref().take(at.octets), &mut io::sink())?;
            Source::Packed(packed)
        };
        Ok(Self { source, at, buffer: Vec::new(), given: 0 })
    }

    /// The next whole lines, at most up to there in the segment; none where it ends, or holds no whole line more.
    pub(super) fn next(&mut self, end: u64) -> io::Result<&[u8]> {
        self.buffer.drain(..self.given);
        self.given = 0;
        loop {
            let have = self.buffer.len();
            let left = end.saturating_sub(self.at.octets + have as u64);
            let most = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            self.buffer.resize(have + most, 0);
            let into = self.buffer.get_mut(have..).unwrap_or_default();
            let read = match &mut self.source {
                Source::Plain(file) => file.read_at(into, self.at.octets + have as u64),
                Source::Packed(packed) => packed.read(into),
            };
            self.buffer.truncate(have + read.as_ref().map_or(0, |read| *read));
            let read = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let whole = memchr::memrchr(b'\n', self.buffer.get(have..).unwrap_or_default());
            if let Some(last) = whole {
                self.given = have + last + 1;
                self.at.octets += self.given as u64;
                return Ok(self.buffer.get(..self.given).unwrap_or_default());
            }
            if read == 0 {
                return Ok(&[]);
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
        }
    }

    /// Octets behind the last line that was given: of a line without an end.
    pub(super) fn torn(&self) -> usize {
        self.buffer.len() - self.given
    }
}

impl Mark {
    /// Of lines that end there.
    pub(super) fn of(lines: &[u8], end: Place) -> Self {
        let last = lines.get(lines.len().saturating_sub(MARK)..).unwrap_or_default();
        Self { end, octets: last.len() as u64, sha256: Sha256::digest(last).into() }
    }

    /// Where it begins.
    pub(super) const fn begins(&self) -> Place {
        Place { segment: self.end.segment, octets: self.end.octets.saturating_sub(self.octets) }
    }

    /// Whether these octets stand at this place of a segment, which was opened where the mark begins.
    pub(super) fn is_in(&self, segment: &mut Segment) -> io::Result<bool> {
        let mut found = vec![0; MARK.min(usize::try_from(self.octets).unwrap_or(MARK))];
        let read = match &mut segment.source {
            Source::Plain(file) => file.read_exact_at(&mut found, self.begins().octets),
            Source::Packed(packed) => packed.read_exact(&mut found),
        };
        match read {
            Ok(()) => Ok(self.sha256 == <[u8; 32]>::from(Sha256::digest(&found))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}
