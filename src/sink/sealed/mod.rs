//! Turns records into a log that can be proved whole: lines of JSON in segments, each batch of them sealed in a chain that
//! is signed ([`seal`]), on a disk that may be full for a while, in files that may be renamed away.
//!
//! The caller gives the time, and calls [`SealedLog::tick`] about once a `sync_interval`. Records format:
//! `tests/record.schema.json`; seals: [`seal`] and `tests/seal.schema.json`.

pub mod clocks;
pub mod heads;
mod keeper;
pub mod key;
mod recover;
mod retention;
pub mod seal;
pub mod segments;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Serialize;
use tracing::{error, info, warn};

use self::heads::Heads;
use self::keeper::{Job, Keeper};
use self::key::{KeyError, SensorKey};
use self::retention::{Closed, Retention};
use self::seal::{Batch, Chain, Head, Kind, Seal};
use self::segments::{DATA, SEALS, open_regular};
use super::ndjson::encode;
use super::sensor::LogBreak;
use super::{count_lines, identity, remove_if_there};
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

/// What is amiss with a log that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The disk refuses.
    pub is_failing: bool,
    /// The file that is written is not where it should be: it, or its folder, was renamed or removed.
    pub is_displaced: bool,
    /// Signed heads cannot be kept.
    pub is_headless: bool,
    /// How often somebody cut or removed its file, or that of its seals, while they were written.
    pub harmed: u64,
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
    displaced: bool,
    /// Its file is cut or gone, and could not be opened anew.
    gone: bool,
    /// How often somebody cut or removed its file.
    harmed: u64,

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
    retention: Retention,

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

/// Tries to be the only writer, and the time between two.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
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
        let heads = Heads::load(state, log, &key.public())
            .map_err(|source| LogError::State { path: heads::path(state, log), source })?;
        for suffix in [DATA, SEALS] {
            let path = segments::live(folder, log, suffix);
            match open_regular(&path, File::options().read(true)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(LogError::Records { path, source });
                }
                _ => {}
            }
        }
        let found = recover::recover(folder, log, &heads, &key, now).map_err(in_log)?;
        let file = open_live(&path).map_err(in_log)?;
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
            displaced: false,
            gone: false,
            harmed: 0,
            segment: found.segment,
            start: found.start,
            end: found.end,
            batch: Batch::default(),
            chain: found.chain,
            is_unsigned: false,
            retention: found.retention,
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
        if now.since(self.retained).as_secs() >= RETAIN_SECONDS {
            self.retain();
        }
    }

    /// How long the log is open, by a clock that nobody sets, at the moment of `now`. Age is counted by the latest look: after a
    /// step of the wall clock nothing goes by its age for a day. Without this nothing ages.
    pub fn look_at_clocks(&mut self, now: Timestamp, open: Duration) {
        self.retention.clocks.look(now, open);
    }

    /// Goes on in a file of the same name, where somebody renamed the old one away.
    pub fn reopen(&mut self, now: Timestamp) {
        self.tick(now);
        let old = self.file.as_ref().and_then(|file| identity(file.metadata()));
        if old.is_some() && old == identity(std::fs::metadata(&self.path)) {
            return;
        }
        let created = std::fs::create_dir_all(&self.folder);
        let opened = created.and_then(|()| open_live(&self.path));
        let file = match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok(opened) => opened,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the log cannot be opened anew: records go on into the old file");
                return;
            }
        };
        self.take_off_torn();
        (self.displaced, self.gone) = (false, false);
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
            // One that is there is somebody else's, or of a rotation that was interrupted: empty.
            remove_if_there(&new)?;
            let file = OpenOptions::new().create_new(true).append(true).open(&new)?;
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

    /// What is amiss.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            is_failing: self.failing,
            is_displaced: self.displaced,
            is_headless: self.keeper.is_headless(),
            harmed: self.harmed + self.keeper.harmed(),
        }
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
            // What goes into a file that is gone is nowhere.
            let Some(file) = self.file.as_ref().filter(|_| !self.gone) else {
                return Err(io::ErrorKind::NotFound.into());
            };
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
        // The keeper measures it, here and once it is compressed.
        let closed = Closed {
            number: self.segment,
            start: self.start,
            end: self.now,
            octets: self.end,
            chain: Some(self.chain.value),
        };
        self.retention.push(closed.clone());
        self.keeper.tell(Job::Close { closed, archive });
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

    /// Somebody may have cut the file that is written, or taken it away.
    fn look_after(&mut self) {
        let Some(Ok(metadata)) = self.file.as_ref().map(|file| file.metadata()) else { return };
        if !metadata.is_file() {
            return;
        }
        let expected = self.end + self.torn as u64;
        let is_gone = metadata.nlink() == 0;
        if metadata.len() >= expected && !is_gone {
            let is_there = identity(std::fs::metadata(&self.path)) == Some((metadata.dev(), metadata.ino()));
            if !is_there && !self.displaced {
                warn!(path = %self.path.display(), "the file that is written is not there any more: it, or its folder, was renamed; records go on into it, and SIGUSR1 begins a new one");
            }
            self.displaced = !is_there;
            return;
        }
        if !self.gone {
            self.harmed += 1;
            error!(path = %self.path.display(), expected, found = metadata.len(), is_gone, "SOMEBODY CUT OR REMOVED THE LOG: it goes on in a new segment, and verify-log will tell; rotate by rename, never by copytruncate");
        }
        let closed = segments::closed(&self.folder, &self.log, self.start, self.segment, DATA);
        let moved = if is_gone { std::fs::create_dir_all(&self.folder) } else { std::fs::rename(&self.path, closed) };
        match moved.and_then(|()| open_live(&self.path)) {
            Ok(file) => {
                (self.displaced, self.gone) = (false, false);
                let missing = expected.saturating_sub(metadata.len()).min(self.end);
                self.torn = 0;
                self.seal(Kind::Batch, true, |seal| seal.missing = (missing > 0).then_some(missing));
                self.next_segment(file, None);
                self.begin();
            }
            Err(error) => {
                if !self.gone {
                    warn!(path = %self.path.display(), %error, "the log cannot be opened anew: where its folder was removed and the sandbox is on, that takes a restart");
                }
                (self.displaced, self.gone) = (true, true);
            }
        }
    }

    /// Removes the oldest closed segments that are too old or too many. A signed seal comes first.
    fn retain(&mut self) {
        self.retained = self.now;
        for (segment, octets) in self.keeper.sizes() {
            self.retention.measured(segment, octets);
        }
        let taken = self.retention.take(&self.config, self.end);
        let Some(last) = taken.last() else { return };
        let chain = last.chain.or_else(|| {
            let (mut chain, path) = (None, last.path(&self.folder, &self.log, SEALS));
            let take = |line: segments::SealLine| chain = line.seal.ok().map(|(seal, _)| seal.chain).or(chain);
            if let Err(error) = segments::read_seals(&path, take) {
                warn!(path = %path.display(), %error, "the seals of a segment that is to be removed cannot be read");
            }
            chain
        });
        info!(log = %self.log, segments = taken.len(), last = last.number, "retention removes the oldest segments");
        let to = last.number;
        let paths = retention::files(&taken, &self.folder, &self.log).collect();
        self.seal(Kind::Removed, true, |seal| (seal.removed_to, seal.removed_chain) = (Some(to), chain));
        self.keep();
        self.keeper.tell(Job::Remove { to, paths });
    }
}

impl Drop for SealedLog {
    fn drop(&mut self) {
        self.close(self.now);
    }
}

/// Opens a file to append to, made if need be.
fn open_live(path: &Path) -> io::Result<File> {
    open_regular(path, OpenOptions::new().create(true).append(true))
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

/// Waits a moment for it: what the last writer was just starting, a child before its `exec`, holds its files, too.
fn lock(path: &Path) -> Result<File, LogError> {
    let state = |source| LogError::State { path: path.to_owned(), source };
    let file = open_live(path).map_err(state)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(state(source)),
        }
    }
    Err(LogError::Locked(path.to_owned()))
}

#[cfg(test)]
mod tests;
