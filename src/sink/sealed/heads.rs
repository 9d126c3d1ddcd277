//! Keeps the latest signed heads of a log in `state/X.heads`, one JSON object a line: where the log must reach at least.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::key::PublicKey;
use super::make_private;
use super::seal::{Head, MAX_NUMBER};
use super::segments::open_regular;
use crate::sink::remove_if_there;

/// So many are kept.
const KEPT: usize = 64;
/// More than this is not read.
const MAX_FILE: u64 = 64 << 20;

/// The file, and what is in it.
#[derive(Debug)]
pub struct Heads {
    path: PathBuf,
    lines: VecDeque<Head>,
    /// The latest that this sensor's key signed.
    latest: Option<Head>,
}

impl Heads {
    /// The file of a log; none yet is none kept. What this key did not sign is somebody else's.
    pub fn load(state: &Path, log: &str, key: &PublicKey) -> io::Result<Self> {
        let path = path(state, log);
        let (heads, others) = match read(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), 0),
            Err(error) => return Err(error),
        };
        let is_ours =
            |head: &&Head| head.log == log && head.seal <= MAX_NUMBER && head.is_signed_by(std::slice::from_ref(key));
        let ours: Vec<&Head> = heads.iter().filter(is_ours).collect();
        let others = others + heads.len() - ours.len();
        if others > 0 {
            warn!(
                path = %path.display(),
                lines = others,
                "lines are there that are no heads which this sensor's key signed: they are not believed"
            );
        }
        let latest = ours.into_iter().max_by_key(|head| head.seal).cloned();
        Ok(Self { path, lines: heads.into(), latest })
    }

    /// The latest.
    #[must_use]
    pub const fn latest(&self) -> Option<&Head> {
        self.latest.as_ref()
    }

    /// So many.
    #[cfg(test)]
    pub(super) fn lines_len(&self) -> usize {
        self.lines.len()
    }

    /// Takes one more.
    pub fn push(&mut self, head: Head) {
        self.latest = Some(head.clone());
        self.lines.push_back(head);
        while self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    /// Writes the file, whole or not at all, and on the disk.
    pub fn write(&self) -> io::Result<()> {
        let beside = self.path.with_extension("heads.new");
        let mut text = Vec::new();
        for head in &self.lines {
            serde_json::to_writer(&mut text, head)?;
            text.push(b'\n');
        }
        // What is there may be somebody else's pipe, which would make us wait.
        remove_if_there(&beside)?;
        let mut file = match (File::create_new(&beside), self.path.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                // Somebody took the folder away.
                make_private(folder)?;
                File::create_new(&beside)?
            }
            (created, _) => created?,
        };
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&beside, &self.path)
    }
}

/// `state/X.heads`.
#[must_use]
pub fn path(state: &Path, log: &str) -> PathBuf {
    state.join(format!("{log}.heads"))
}

/// The heads in a file, and how many of its lines are none.
pub fn read(path: &Path) -> io::Result<(Vec<Head>, usize)> {
    let mut octets = Vec::new();
    open_regular(path, File::options().read(true))?.take(MAX_FILE).read_to_end(&mut octets)?;
    let lines = octets.split(|&octet| octet == b'\n').filter(|line| !line.is_empty());
    let (mut heads, mut others) = (Vec::new(), 0);
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(head) => heads.push(head),
            Err(_) => others += 1,
        }
    }
    Ok((heads, others))
}
