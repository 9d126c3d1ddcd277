//! Turns the log into an inventory of what was ever seen: tunnels, circuits, the use of approvals, octets by day; in an
//! `SQLite` file, `inventory.sqlite` in the folder of the state, which anybody may read while it is written.
//!
//! | view | a row is | says |
//! |---|---|---|
//! | `tunnels` | a tunnel: its protocol, the addresses of both ends (`a` the lower), the server's port where there are ports | first and last seen, flows, packets and octets both ways, best confidence; of the flow seen last: label, reason, approval, interface, VLAN, revision of the approvals, `flow_id` |
//! | `circuits` | an approval, and a path (interface, VLAN, MPLS labels) that traffic took under it | owner, reference, first and last seen, flows (`plain_flows`: those without a tunnel, which leased lines alone have), packets, octets |
//! | `approvals` | an approval that was used | owner, reference, first and last used, flows, packets, octets, pairs of peers with tunnels under it |
//! | `days` | a tunnel, or plain traffic, under an approval, and a day (UTC) | flows whose latest packet came that day, and their octets |
//!
//! | file | what |
//! |---|---|
//! | `lines` | segments of the log into whole lines |
//! | `fold` | lines into sums |
//! | `base`, `schema.sql` | sums into rows |
//! | `follow` | one after the other, whatever happens |
//!
//! Each flow counts once, with its `end` record or its latest, exactly as `linewarden query` counts it. For that the
//! inventory takes nothing from whom writes the log: it reads the log itself, behind it, on a thread of low priority, and
//! notes in each transaction up to where it read. A start after a crash, a disk that was full, a file that is gone and the
//! daily run are then all the same: it reads on from its place. A file that is damaged, or not of this log, is set aside as
//! `inventory.sqlite.corrupt-TIME` and made anew from what is kept of the log; it is checked at the start, once an hour, and when
//! the logs are opened anew.

mod base;
mod fold;
mod follow;
mod lines;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use self::base::Place;
pub use self::base::{FILE, VERSION};
use self::fold::Batch;
use self::follow::{Follower, Trouble};
use super::Sink;
use super::sealed::Position;
use crate::fault;
use crate::record::Record;
use crate::time::Timestamp;

/// What the inventory is of, and how much of it is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The log's folder.
    pub folder: PathBuf,
    /// Its name.
    pub log: String,
    /// The folder of the state.
    pub state: PathBuf,
    /// Rows at most: a tunnel is one for each approval and path that it was seen with.
    pub rows: usize,
    /// What was seen last longer ago goes.
    pub keep_for: Duration,
}

/// Transactions are this far apart at least, unless there is much to take.
const PAUSE: Duration = Duration::from_secs(1);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// Age is looked at, also where nothing comes.
const LOOK: Duration = Duration::from_mins(1);
/// At the end the log's last records are waited for; what takes longer is taken by the next run.
const PATIENCE: Duration = Duration::from_secs(10);
/// It gives way to everything else (`nice(2)`).
const LOWEST_PRIORITY: i32 = 19;

/// What the follower is told.
#[derive(Clone, Debug)]
struct Told {
    /// The log has whole lines up to there.
    place: Place,
    /// The file of that segment, where it could be opened.
    file: Option<Arc<File>>,
    now: Timestamp,
    /// The follower waits for more. It looks for it once a [`PAUSE`], and is not woken for each batch.
    is_awaited: bool,
    /// Somebody wants to know whether the file is still whole.
    is_to_check: bool,
    is_closing: bool,
    is_done: bool,
}

impl Told {
    /// As it is; a wish is granted once.
    fn take(&mut self) -> Self {
        let told = self.clone();
        self.is_to_check = false;
        told
    }
}

#[derive(Debug)]
struct Shared {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long at most while it is so.
    fn wait_while(&self, most: Duration, is_so: impl Fn(&Told) -> bool) -> Told {
        let waited = self.changed.wait_timeout_while(self.told(), most, |told| is_so(told));
        waited.map_or_else(|poisoned| poisoned.into_inner().0.clone(), |(told, _)| told.clone())
    }
}

/// The inventory's end in the log's task: it tells up to where the log goes.
#[derive(Debug)]
pub struct Inventory {
    shared: Arc<Shared>,
}

impl Inventory {
    /// Starts its thread. `log` is where this run of the sensor begins: before it nothing goes on.
    pub fn spawn(settings: Settings, log: &Position<'_>, now: Timestamp) -> io::Result<(Self, Arc<Gauge>)> {
        let place = Place { segment: log.segment, octets: log.octets };
        let told = Told {
            place,
            file: open(log.path),
            now,
            is_awaited: false,
            is_to_check: false,
            is_closing: false,
            is_done: false,
        };
        let shared = Arc::new(Shared { told: Mutex::new(told), changed: Condvar::new() });
        let gauge = Arc::new(Gauge { path: settings.state.join(FILE), ..Gauge::default() });
        let follower = Follower::new(settings, place, Arc::clone(&gauge));
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("inventory".to_owned()).spawn(move || run(follower, &of_thread))?;
        Ok((Self { shared }, gauge))
    }
}

impl Sink for Inventory {
    /// The log brings it.
    fn write(&mut self, _record: &Record) {}

    fn logged(&mut self, log: &Position<'_>) {
        let place = Place { segment: log.segment, octets: log.octets };
        let mut told = self.shared.told();
        if told.place == place && told.file.is_some() {
            return;
        }
        // Nobody rotates the log while this is called: the file of that name is the segment's.
        if told.place.segment != place.segment || told.file.is_none() {
            told.file = open(log.path);
        }
        told.place = place;
        if std::mem::take(&mut told.is_awaited) {
            drop(told);
            self.shared.changed.notify_all();
        }
    }

    fn tick(&mut self, now: Timestamp) {
        self.shared.told().now = now;
    }

    /// Something was done to the log's files: is the inventory's still what it was?
    fn reopen(&mut self, now: Timestamp) {
        self.tick(now);
        self.shared.told().is_to_check = true;
        self.shared.changed.notify_all();
    }

    fn close(&mut self, now: Timestamp) {
        self.tick(now);
        self.shared.told().is_closing = true;
        self.shared.changed.notify_all();
        if !self.shared.wait_while(PATIENCE, |told| !told.is_done).is_done {
            info!("the inventory is not at the end of the log: the next start takes the rest");
        }
    }
}

/// A log that is no file, a pipe for instance, cannot be read again.
fn open(path: &Path) -> Option<Arc<File>> {
    path.is_file().then(|| File::open(path).ok().map(Arc::new)).flatten()
}

fn run(mut follower: Follower, shared: &Shared) {
    // Of this thread alone. Where it may not, it competes with the others.
    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
    let mut told = shared.told().take();
    loop {
        fault::point("inventory");
        while follower.turn(&told) {
            told.is_to_check = false;
        }
        if told.is_closing {
            break;
        }
        let has_come = follower.is_at(told.place);
        let before = told.place;
        shared.wait_while(if has_come { PAUSE } else { RETRY }, |told| !told.is_closing);
        shared.told().is_awaited = true;
        let is_nothing_new = |told: &Told| has_come && told.place == before && !told.is_to_check && !told.is_closing;
        drop(shared.wait_while(LOOK, is_nothing_new));
        told = shared.told().take();
    }
    follower.close();
    shared.told().is_done = true;
    shared.changed.notify_all();
}

/// What the inventory's thread tells of it.
#[derive(Debug, Default)]
pub struct Gauge {
    path: PathBuf,
    lines: AtomicU64,
    damaged: AtomicU64,
    left_out: AtomicU64,
    errors: AtomicU64,
    rows: AtomicU64,
    evicted: AtomicU64,
    is_failing: AtomicBool,
    error: Mutex<Option<String>>,
}

impl Gauge {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines of the log that it was told since the start.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Lines of the log, or parts of it, that could not be read.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Records of open flows that found no room: these count when the flow ends.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Times that the file could not be read or written.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Tunnels and circuits in it, each once for every approval and path.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Rows that went to make room for others, ever.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Why it cannot be kept now.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn took(&self, batch: &Batch) {
        self.lines.fetch_add(batch.lines, Ordering::Relaxed);
        self.damaged.fetch_add(batch.damaged, Ordering::Relaxed);
        self.left_out.fetch_add(batch.left_out, Ordering::Relaxed);
    }

    fn holds(&self, rows: usize, evicted: u64) {
        self.rows.store(rows as u64, Ordering::Relaxed);
        self.evicted.store(evicted, Ordering::Relaxed);
    }

    fn erred(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, path: &Path, trouble: &Trouble) {
        self.erred();
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.to_string());
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            warn!(path = %path.display(), error = %trouble, "the inventory cannot be kept now: it takes from the log what it missed when it can");
        }
    }

    fn succeeded(&self, path: &Path) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
            info!(path = %path.display(), "the inventory is kept again");
        }
    }
}
