//! Turns records into a log that can be proved whole: lines of JSON in segments, each batch of them sealed in a chain that
//! is signed ([`seal`]), on a disk that may be full for a while, in files that may be renamed away.
//!
//! The caller gives the time, and calls [`SealedLog::tick`] about once a `sync_interval`. Records format:
//! `tests/record.schema.json`; seals: [`seal`] and `tests/seal.schema.json`.

pub mod heads;
mod keeper;
pub mod key;
mod recover;
pub mod seal;
pub mod segments;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use serde::Serialize;
use tracing::{error, info, warn};

use self::heads::Heads;
use self::keeper::{Job, Keeper};
use self::key::{KeyError, SensorKey};
use self::seal::{Batch, Chain, Head, Kind, Seal};
use self::segments::{DATA, Listing, SEALS};
use super::ndjson::encode;
use super::sensor::LogBreak;
use crate::config::LogConfig;
use crate::time::Timestamp;

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log's folder.
    #[error("{path}: records cannot be written there: {source}")]
    Records {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state's folder.
    #[error("{path}: state cannot be kept there (state.dir): {source}")]
    State {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key that signs.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Two would break each other's chain.
    #[error(
        "{0} is held: another linewarden writes this log; stop it, or name another folder with records.dir and state.dir"
    )]
    Locked(PathBuf),
}

/// A log: `X.ndjson`, its seals, and the closed segments of both.
#[derive(Debug)]
pub struct SealedLog {
    folder: PathBuf,
    log: String,
    path: PathBuf,
    config: LogConfig,
    key: Arc<SensorKey>,
    /// Held as long as this is.
    _lock: File,
    file: Option<Arc<File>>,
    /// Encoded and not yet written: whole lines.
    pending: BytesMut,
    /// Lines in it.
    waiting: u64,
    /// Octets of its first line that are on the disk already.
    torn: usize,
    written: u64,
    lost: u64,
    failing: bool,
    stuck: bool,
    closed: bool,

    segment: u64,
    /// When it began.
    start: Timestamp,
    /// Whole lines of it that are written, octets.
    end: u64,
    /// Those that are not sealed yet end there.
    batch: Batch,
    chain: Chain,
    /// There are seals behind the last signed one.
    is_unsigned: bool,
    /// Latest segment that retention took away in this run.
    removed_to: u64,
    /// Some could not go yet.
    retain_again: bool,

    /// For the keeper. Grows where the disk takes lines and no seals, by a two-hundredth of what it takes.
    seals: Vec<u8>,
    head: Option<Head>,
    /// There is something to synchronise.
    is_dirty: bool,
    keeper: Keeper,
    /// Where the last run did not close it.
    breaks: Vec<LogBreak>,

    now: Timestamp,
    synced: Timestamp,
    signed: Timestamp,
    retained: Timestamp,
}

/// Up to where a log goes: whole lines that the system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position<'a> {
    /// The segment that is written now.
    pub segment: u64,
    /// Its octets.
    pub octets: u64,
    /// Its file.
    pub path: &'a Path,
}

/// While the disk refuses, this many octets of records wait for it; later ones are lost and counted.
const MAX_PENDING: usize = 8 << 20;
/// Written at once at least.
const CHUNK: usize = 64 << 10;
/// Written at once at most, but for the line that exceeds it.
const MAX_CHUNK: usize = 1 << 20;
/// A batch of this many octets is sealed at once.
const FULL_BATCH: u64 = 1 << 20;
/// A batch of this many octets is sealed when the log is synchronised; a smaller one when it is signed.
const WORTH_A_SEAL: u64 = 64 << 10;
/// No segment is closed while the keeper is this many jobs behind.
const MAX_BEHIND: usize = 8;
/// Age and size are looked at this often, beside every rotation.
const RETAIN_SECONDS: u64 = 3600;

impl SealedLog {
    /// Opens a log for appending, makes its folder and the sensor's key if need be, and puts in order what a crash left.
    /// `log` is its name: `linewarden` in `linewarden.ndjson`.
    pub fn open(folder: &Path, log: &str, state: &Path, config: &LogConfig, now: Timestamp) -> Result<Self, LogError> {
        let path = segments::live(folder, log, DATA);
        let in_log = |source| LogError::Records { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(in_log)?;
        make_private(state).map_err(|source| LogError::State { path: state.to_owned(), source })?;
        let lock = lock(&state.join(format!("{log}.lock")))?;
        let key = Arc::new(SensorKey::load_or_make(state)?);
        let heads =
            Heads::load(state, log).map_err(|source| LogError::State { path: heads::path(state, log), source })?;
        let found = recover::recover(folder, log, &heads, &key, now).map_err(in_log)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(in_log)?;
        let plain = if config.compress { found.plain } else { Vec::new() };
        let keeper = Keeper::spawn(folder, log, heads, plain).map_err(in_log)?;
        let mut this = Self {
            folder: folder.to_owned(),
            log: log.to_owned(),
            path,
            config: config.clone(),
            key,
            _lock: lock,
            file: Some(Arc::new(file)),
            pending: BytesMut::with_capacity(2 * CHUNK),
            waiting: 0,
            torn: 0,
            written: 0,
            lost: 0,
            failing: false,
            stuck: false,
            closed: false,
            segment: found.segment,
            start: found.start,
            end: found.end,
            batch: Batch::default(),
            chain: found.chain,
            is_unsigned: false,
            removed_to: 0,
            retain_again: false,
            seals: found.seals,
            head: None,
            is_dirty: true,
            keeper,
            breaks: found.breaks,
            now,
            synced: now,
            signed: now,
            retained: now,
        };
        this.begin();
        this.retain();
        this.keep();
        // Records behind a `close` and without an `open` are somebody else's: ours come after it.
        this.keeper.settle(false);
        Ok(this)
    }

    /// Where the last run did not close it, as was found when it was opened.
    #[must_use]
    pub fn breaks(&self) -> &[LogBreak] {
        &self.breaks
    }

    /// Takes a record, or anything that is a line of JSON; it is on its way to the disk after the next [`Self::flush`] at the
    /// latest.
    pub fn write(&mut self, line: &impl Serialize) {
        if self.pending.len() >= MAX_PENDING {
            self.lost += 1;
            return;
        }
        let before = self.pending.len();
        encode(line, &mut self.pending);
        if self.pending.len() == before {
            self.lost += 1;
            return;
        }
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
        if self.end >= self.config.rotate_octets {
            self.rotate();
        }
    }

    /// Flushes, and does what the time asks for: synchronise, sign, rotate, remove.
    pub fn tick(&mut self, now: Timestamp) {
        if now < self.now {
            // Somebody put the clock back: intervals begin anew.
            (self.synced, self.signed, self.retained) = (now, now, now);
        }
        self.now = now;
        self.flush();
        let is_sync_due = now.since(self.synced) >= self.config.sync_interval;
        let is_sign_due = now.since(self.signed) >= self.config.sign_interval;
        if is_sign_due && (self.batch.octets > 0 || self.is_unsigned) {
            self.seal(Kind::Batch, true, |_| {});
        } else if is_sync_due && self.batch.octets >= WORTH_A_SEAL {
            self.seal(Kind::Batch, false, |_| {});
        }
        // Where the disk is slower than that, it is not asked again before it answered.
        if is_sync_due && self.keeper.outstanding() == 0 {
            self.look_after();
            self.keep();
        }
        if self.end > 0 && now.since(self.start) >= self.config.rotate_interval {
            self.rotate();
        }
        let is_again = self.retain_again && self.keeper.outstanding() == 0;
        if is_again || now.since(self.retained).as_secs() >= RETAIN_SECONDS {
            self.retain();
        }
    }

    /// Goes on in a file of the same name, where somebody renamed the old one away.
    pub fn reopen(&mut self, now: Timestamp) {
        self.tick(now);
        let identity = |metadata: io::Result<std::fs::Metadata>| metadata.ok().map(|one| (one.dev(), one.ino()));
        let old = self.file.as_ref().and_then(|file| identity(file.metadata()));
        if old.is_some() && old == identity(std::fs::metadata(&self.path)) {
            return;
        }
        let created = std::fs::create_dir_all(&self.folder);
        let opened = created.and_then(|()| OpenOptions::new().create(true).append(true).open(&self.path));
        let file = match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok(opened) => opened,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the log cannot be opened anew: records go on into the old file");
                return;
            }
        };
        self.take_off_torn();
        let (len, file) = file;
        self.next_segment(file, None);
        // Octets that are there are somebody else's.
        self.end = if self.path.is_file() { len } else { 0 };
        self.begin();
        self.flush();
        self.keep();
    }

    /// Closes the segment and begins the next. Not while the disk refuses: what waits belongs to the old one.
    pub fn rotate(&mut self) {
        if self.torn > 0 || self.failing || self.end == 0 || self.keeper.outstanding() > MAX_BEHIND {
            return;
        }
        let new = self.path.with_extension("ndjson.new");
        let closed = segments::closed(&self.folder, &self.log, self.start, self.segment, DATA);
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&new)?;
            std::fs::rename(&self.path, &closed)?;
            std::fs::rename(&new, &self.path)?;
            Ok::<_, io::Error>(file)
        };
        match open() {
            Ok(file) => {
                self.stuck = false;
                self.next_segment(file, self.config.compress.then_some(closed));
                self.begin();
                self.retain();
                self.keep();
            }
            Err(error) => {
                if !self.stuck {
                    self.stuck = true;
                    warn!(path = %self.path.display(), %error, "the log cannot be rotated: it goes on in the same segment");
                }
            }
        }
    }

    /// Seals and signs everything, and waits until the disk has it.
    pub fn sync(&mut self, now: Timestamp) {
        self.tick(now);
        if self.batch.octets > 0 || self.is_unsigned {
            self.seal(Kind::Batch, true, |_| {});
        }
        self.keep();
        self.keeper.settle(false);
    }

    /// The same, and until closed segments are compressed.
    pub fn settle(&mut self, now: Timestamp) {
        self.sync(now);
        self.keeper.settle(true);
    }

    /// The run ends: its last seal says so.
    pub fn close(&mut self, now: Timestamp) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.tick(now);
        self.take_off_torn();
        self.seal(Kind::Close, true, |_| {});
        self.keep();
        self.keeper.settle(false);
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

    /// Up to where it goes.
    #[must_use]
    pub fn position(&self) -> Position<'_> {
        Position { segment: self.segment, octets: self.end, path: &self.path }
    }

    /// The file that is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn try_flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
            let limit = chunk(&self.pending);
            let taken = match file.as_ref().write(self.pending.get(self.torn..limit).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.is_dirty = true;
            let reached = self.torn + taken;
            let on_disk = self.pending.get(..reached).unwrap_or_default();
            let whole = on_disk.iter().rposition(|&octet| octet == b'\n').map_or(0, |at| at + 1);
            let lines = if whole == self.pending.len() { self.waiting } else { count_lines(on_disk) };
            self.batch.add(self.pending.get(..whole).unwrap_or_default(), lines);
            self.end += whole as u64;
            self.written += lines;
            self.waiting -= lines;
            self.torn = reached - whole;
            self.pending.advance(whole);
            if self.batch.octets >= FULL_BATCH {
                self.seal(Kind::Batch, false, |_| {});
            }
        }
        self.pending.clear();
        Ok(())
    }

    /// Seals what was written since the last seal.
    fn seal(&mut self, kind: Kind, is_signed: bool, say: impl FnOnce(&mut Seal)) {
        let batch = std::mem::take(&mut self.batch);
        let mut seal = Seal::new(kind, self.segment, self.end - batch.octets, batch, self.now);
        say(&mut seal);
        let key = is_signed.then_some(&*self.key);
        let head = self.chain.append(seal, key, &mut self.seals);
        self.is_unsigned = !is_signed;
        if head.is_some() {
            (self.head, self.signed) = (head, self.now);
        }
    }

    /// A run or a segment begins: its first seal says in what format, of which log and by whose key.
    fn begin(&mut self) {
        let (log, key) = (self.log.clone(), self.key.public().base64());
        self.seal(Kind::Open, true, |seal| {
            (seal.version, seal.log, seal.key) = (Some(seal::VERSION), Some(log), Some(key));
        });
    }

    /// Goes on in a file whose segment has no seal yet; `archive` is where the old one's lines are, to be compressed.
    fn next_segment(&mut self, file: File, archive: Option<PathBuf>) {
        self.seal(Kind::Close, true, |_| {});
        self.keep();
        let seals = segments::closed(&self.folder, &self.log, self.start, self.segment, SEALS);
        self.keeper.tell(Job::Close { seals, archive });
        self.file = Some(Arc::new(file));
        (self.segment, self.start, self.end) = (self.segment + 1, self.now, 0);
        self.is_dirty = true;
    }

    fn keep(&mut self) {
        let data = self.is_dirty.then(|| self.file.clone()).flatten();
        self.synced = self.now;
        if data.is_none() && self.seals.is_empty() {
            return;
        }
        self.is_dirty = false;
        self.keeper.tell(Job::Keep { data, seals: std::mem::take(&mut self.seals), head: self.head.take() });
    }

    /// Half a line that the disk took before it refused is not to stay.
    fn take_off_torn(&mut self) {
        if self.torn == 0 {
            return;
        }
        // Where it cannot be taken off, verification finds it behind the last seal.
        if let Some(Err(error)) = self.file.as_ref().map(|file| recover::cut(file, self.end)) {
            warn!(path = %self.path.display(), %error, "half a line cannot be taken off the log");
        }
        self.torn = 0;
    }

    /// Somebody may have cut the file that is written, or taken it away for good.
    fn look_after(&mut self) {
        let Some(Ok(metadata)) = self.file.as_ref().map(|file| file.metadata()) else { return };
        if !metadata.is_file() {
            return;
        }
        let expected = self.end + self.torn as u64;
        let is_gone = metadata.nlink() == 0;
        if metadata.len() >= expected && !is_gone {
            return;
        }
        error!(path = %self.path.display(), expected, found = metadata.len(), is_gone, "SOMEBODY CUT OR REMOVED THE LOG: it goes on in a new segment, and verify-log will tell; rotate by rename, never by copytruncate");
        let missing = expected.saturating_sub(metadata.len()).min(self.end);
        self.torn = 0;
        self.seal(Kind::Batch, true, |seal| seal.missing = (missing > 0).then_some(missing));
        let closed = segments::closed(&self.folder, &self.log, self.start, self.segment, DATA);
        let renamed = if is_gone { Ok(()) } else { std::fs::rename(&self.path, closed) };
        let opened = renamed.and_then(|()| OpenOptions::new().create(true).append(true).open(&self.path));
        match opened {
            Ok(file) => {
                self.next_segment(file, None);
                self.begin();
            }
            Err(error) => warn!(path = %self.path.display(), %error, "the log cannot be opened anew"),
        }
    }

    /// Removes the oldest closed segments that are too old or too many. A signed seal comes first.
    fn retain(&mut self) {
        (self.retained, self.retain_again) = (self.now, false);
        let listing = match Listing::read(&self.folder, &self.log) {
            Ok(listing) => listing,
            Err(error) => {
                warn!(folder = %self.folder.display(), %error, "the log's folder cannot be read: nothing is removed from it");
                return;
            }
        };
        let mut total = listing.live.octets + listing.closed.values().map(|files| files.octets).sum::<u64>();
        // A segment's latest record is older than the next segment.
        let ends = listing.closed.values().skip(1).map(|files| files.start).chain([self.start]);
        let (mut paths, mut last) = (Vec::new(), None);
        for ((&number, files), end) in listing.closed.iter().zip(ends) {
            let is_over = number <= self.removed_to || total > self.config.keep_octets;
            if number >= self.segment || !(is_over || self.now.since(end) > self.config.keep_for) {
                break;
            }
            if files.seals.is_none() && self.keeper.outstanding() > 0 {
                // It was closed just now.
                self.retain_again = true;
                break;
            }
            total -= files.octets;
            paths.extend(files.all.iter().cloned());
            last = Some((number, files.seals.clone()));
        }
        let Some((number, seals)) = last else { return };
        if number > self.removed_to {
            self.removed_to = number;
            let mut chain = None;
            if let Some(path) = seals {
                let take = |line: segments::SealLine| chain = line.seal.ok().map(|(seal, _)| seal.chain).or(chain);
                if let Err(error) = segments::read_seals(&path, take) {
                    warn!(path = %path.display(), %error, "the seals of a segment that is to be removed cannot be read");
                }
            }
            info!(log = %self.log, segment = number, files = paths.len(), "retention removes segments up to this one");
            self.seal(Kind::Removed, true, |seal| (seal.removed_to, seal.removed_chain) = (Some(number), chain));
        }
        self.keep();
        self.keeper.tell(Job::Remove(paths));
    }
}

impl Drop for SealedLog {
    fn drop(&mut self) {
        self.close(self.now);
    }
}

/// How much of what waits is written at once: whole lines.
fn chunk(pending: &[u8]) -> usize {
    let Some(most) = pending.get(..MAX_CHUNK) else { return pending.len() };
    let within = most.iter().rposition(|&octet| octet == b'\n').map(|at| at + 1);
    within.unwrap_or_else(|| pending.iter().position(|&octet| octet == b'\n').map_or(pending.len(), |at| at + 1))
}

/// Makes a folder that others may not enter; one that is there stays as it is.
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, LogError> {
    let state = |source| LogError::State { path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(state)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(state(source)),
    }
}

#[expect(clippy::naive_bytecount, reason = "only where the disk is full, and the compiler does well enough")]
fn count_lines(octets: &[u8]) -> u64 {
    octets.iter().filter(|&&octet| octet == b'\n').count() as u64
}

#[cfg(test)]
mod tests;
