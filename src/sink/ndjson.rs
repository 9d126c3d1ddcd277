//! Turns records into newline-delimited JSON, one object a line, in a file that may be renamed away (rotation) or fill up.
//!
//! Format: `tests/record.schema.json`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, BytesMut};
use serde::Serialize;
use tracing::{info, warn};

/// Appends a line and its line feed.
pub fn encode(record: &impl Serialize, to: &mut BytesMut) {
    let start = to.len();
    match serde_json::to_writer(to.writer(), record) {
        Ok(()) => to.put_u8(b'\n'),
        // No field of a record can fail; if one ever does, no half line is left.
        Err(_) => to.truncate(start),
    }
}

/// A log file.
#[derive(Debug)]
pub struct NdjsonFile {
    path: PathBuf,
    file: Option<File>,
    /// Encoded and not yet written.
    pending: BytesMut,
    /// Lines in it.
    waiting: u64,
    /// The line at its front is partly on the disk already.
    torn: bool,
    written: u64,
    lost: u64,
    failing: bool,
}

/// While the disk refuses, this many octets of records wait for it; later ones are lost and counted.
const MAX_PENDING: usize = 8 << 20;
/// Written at once.
const CHUNK: usize = 64 << 10;

impl NdjsonFile {
    /// Opens for appending; makes the folder if need be.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut sink = Self {
            path: path.to_owned(),
            file: None,
            pending: BytesMut::with_capacity(2 * CHUNK),
            waiting: 0,
            torn: false,
            written: 0,
            lost: 0,
            failing: false,
        };
        let mut file = sink.create()?;
        if is_torn(path)? {
            // A crash cut the last line: the next record must not become part of it.
            file.write_all(b"\n")?;
        }
        sink.file = Some(file);
        Ok(sink)
    }

    /// Takes a line; it is on its way to the disk after the next [`Self::flush`] at the latest.
    pub fn write(&mut self, record: &impl Serialize) {
        if self.pending.len() >= MAX_PENDING {
            self.lost += 1;
            return;
        }
        encode(record, &mut self.pending);
        self.waiting += 1;
        if self.pending.len() >= CHUNK && !self.failing {
            self.flush();
        }
    }

    /// Hands everything over to the system. Where it refuses, what is left waits for the next flush.
    pub fn flush(&mut self) {
        match self.try_flush() {
            Ok(()) if self.failing => {
                self.failing = false;
                info!(path = %self.path.display(), lost = self.lost, "records are written again");
            }
            Ok(()) => {}
            Err(error) if !self.failing => {
                self.failing = true;
                warn!(path = %self.path.display(), %error, "records cannot be written: they wait, and are lost and counted beyond {MAX_PENDING} octets");
            }
            Err(_) => {}
        }
    }

    /// Goes on in a file of the same name: after rotation by rename that is a new one.
    pub fn reopen(&mut self) {
        self.flush();
        match self.create() {
            Ok(file) => {
                let is_same = self.file.as_ref().is_some_and(|old| is_same(old, &file));
                self.file = Some(file);
                if self.torn && !is_same {
                    // Its front half is in the old file: the line is lost, and only that one.
                    self.skip_line();
                    self.lost += 1;
                }
            }
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the log cannot be opened anew: records go on into the old file");
            }
        }
    }

    /// Waits until the disk has what was handed over.
    pub fn sync(&mut self) {
        self.flush();
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            warn!(path = %self.path.display(), %error, "the log cannot be synchronised with its disk");
        }
    }

    /// Records handed over to the system.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Records lost for want of room.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The disk refuses.
    #[must_use]
    pub const fn is_failing(&self) -> bool {
        self.failing
    }

    /// Records that wait for the disk.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.waiting
    }

    fn create(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(&self.path)
    }

    fn try_flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            if self.file.is_none() {
                self.file = Some(self.create()?);
            }
            let Some(file) = self.file.as_mut() else { return Ok(()) };
            let chunk = self.pending.get(..CHUNK).unwrap_or(&self.pending);
            let taken = match file.write(chunk) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let lines = chunk.iter().take(taken).filter(|&&octet| octet == b'\n').count() as u64;
            self.torn = chunk.get(taken - 1) != Some(&b'\n');
            self.written += lines;
            self.waiting -= lines;
            self.pending.advance(taken);
        }
        self.pending.clear();
        Ok(())
    }

    fn skip_line(&mut self) {
        let end = self.pending.iter().position(|&octet| octet == b'\n').map_or(self.pending.len(), |at| at + 1);
        self.pending.advance(end);
        self.waiting = self.waiting.saturating_sub(1);
        self.torn = false;
    }
}

fn is_torn(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(one).is_some() && identity(one) == identity(other)
}

impl Drop for NdjsonFile {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;
    use crate::record::Record;

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn order_is_kept_and_every_line_is_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/linewarden.ndjson");
        let mut sink = NdjsonFile::open(&path).unwrap();
        for seq in 1..=5000 {
            sink.write(&record(seq));
        }
        sink.flush();
        let read: Vec<Record> = lines(&path).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=5000).collect::<Vec<_>>());
        assert_eq!((sink.written(), sink.waiting(), sink.lost()), (5000, 0, 0));
    }

    #[test]
    fn rotation_by_rename_goes_on_in_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linewarden.ndjson");
        let mut sink = NdjsonFile::open(&path).unwrap();
        sink.write(&record(1));
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        sink.write(&record(2));
        sink.reopen();
        sink.write(&record(3));
        sink.flush();
        assert_eq!(lines(&folder.path().join("old")).len(), 2);
        assert_eq!(lines(&path).len(), 1);
    }

    #[test]
    fn a_line_cut_by_a_crash_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linewarden.ndjson");
        std::fs::write(&path, "{\"kind\":\"en").unwrap();
        let mut sink = NdjsonFile::open(&path).unwrap();
        sink.write(&record(1));
        sink.flush();
        let lines = lines(&path);
        assert_eq!(lines.len(), 2);
        assert!(serde_json::from_str::<Record>(&lines[1]).is_ok());
    }

    /// `/dev/full` refuses every write, as a full disk does.
    #[test]
    fn a_full_disk_is_counted_and_recovered_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linewarden.ndjson");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut sink = NdjsonFile::open(&path).unwrap();
        let mut encoded = BytesMut::new();
        encode(&record(1), &mut encoded);
        let fitting = (MAX_PENDING / encoded.len() + 1) as u64;
        let total = fitting + 1000;
        for _ in 0..total {
            sink.write(&record(1));
            sink.flush();
        }
        assert_eq!(sink.written(), 0);
        assert!(sink.lost() > 0);
        assert_eq!(sink.waiting() + sink.lost(), total);
        std::fs::remove_file(&path).unwrap();
        sink.reopen();
        sink.flush();
        assert_eq!(sink.waiting(), 0);
        assert_eq!(sink.written() + sink.lost(), total);
        assert_eq!(lines(&path).len() as u64, sink.written());
    }
}
