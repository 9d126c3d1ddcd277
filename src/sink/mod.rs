//! Turns records into files and views: one file per output.
//!
//! | file | turns records into |
//! |---|---|
//! | `ndjson` | lines of JSON |
//! | `sealed` | a log of such lines that is rotated, bounded, and can be proved whole |
//! | `archive` | a closed segment of it into a compressed one |
//! | `format` | lines of other tools' formats |
//! | `output` | files beside the log, in any of these |
//! | `pseudonym` | records that show pseudonyms for home addresses |
//! | `table` | a table for people |
//! | `journal` | entries of findings in the journal |
//! | `live` | the tunnels that are open now |
//! | `usage` | the use of each approval |
//! | `inventory` | what was ever seen, in an `SQLite` file |
//!
//! `sensor` is the format of what the sensor says of itself; `secret` reads and writes the files of keys.

pub mod archive;
pub mod format;
pub mod inventory;
pub mod journal;
pub mod live;
pub mod ndjson;
pub mod output;
pub mod pseudonym;
pub mod sealed;
mod secret;
pub mod sensor;
pub mod table;
pub mod usage;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use self::live::LiveView;
use self::sealed::Position;
use self::usage::Usage;
use crate::record::Record;
use crate::time::Timestamp;

/// Waits until the disk has what was made, renamed and removed in a folder.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a file is known by, whatever its name.
fn identity(metadata: io::Result<Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|one| (one.dev(), one.ino()))
}

fn count_lines(octets: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', octets).count() as u64
}

/// How many records a sink could not write, for who tells of it while it runs.
pub type Losses = Arc<AtomicU64>;

/// What takes records beside the log. What it cannot write it counts, and makes nobody wait.
pub trait Sink: Send {
    /// Takes a record.
    fn write(&mut self, record: &Record);

    /// The log has whole lines up to there; comes before each [`Self::tick`] and [`Self::close`].
    fn logged(&mut self, _log: &Position<'_>) {}

    /// A batch of records is in the log, or some time has passed.
    fn tick(&mut self, _now: Timestamp) {}

    /// Opens files anew, after rotation by somebody else.
    fn reopen(&mut self, _now: Timestamp) {}

    /// The last record was written.
    fn close(&mut self, now: Timestamp) {
        self.tick(now);
    }
}

/// What is open now, and what of it uses which approval. Of a flow whose `end` was lost nobody would hear again: it leaves both
/// once it would have been told of.
#[derive(Debug)]
pub struct Views {
    live: Arc<LiveView>,
    usage: Arc<Usage>,
    /// An open flow is told of at least this often.
    silence: Duration,
    /// When this was looked at last.
    looked: Timestamp,
}

/// Views look for flows that are over this often.
const LOOK: Duration = Duration::from_mins(1);

impl Views {
    /// Both are for others to read.
    #[must_use]
    pub const fn new(live: Arc<LiveView>, usage: Arc<Usage>, silence: Duration) -> Self {
        Self { live, usage, silence, looked: Timestamp::ZERO }
    }
}

impl Sink for Views {
    fn write(&mut self, record: &Record) {
        self.live.write(record);
        self.usage.write(record);
    }

    fn tick(&mut self, now: Timestamp) {
        // Where the clock was put back, the minute begins anew.
        self.looked = self.looked.min(now);
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            let oldest = Timestamp::ZERO + now.since(Timestamp::ZERO + self.silence);
            self.live.forget(oldest);
            self.usage.forget(oldest);
        }
    }
}
