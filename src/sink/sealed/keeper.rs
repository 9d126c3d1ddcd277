//! Carries what a log has written to the disk, on a thread of its own, so that no disk makes the log wait: synchronises the
//! lines, then appends their seals, then keeps the signed head, in this order, so that nothing is sealed that a power
//! failure can take. A second thread of low priority compresses closed segments.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{error, info, warn};

use super::heads::Heads;
use super::open_live;
use super::retention::Closed;
use super::seal::Head;
use super::segments::{self, number_of, start_of};
use crate::fault;
use crate::sink::{archive, sync_folder};
use crate::time::Timestamp;

/// What the keeper is told; done in order.
pub(super) enum Job {
    /// Synchronise the lines, append their seals, keep the head.
    Keep { data: Option<Arc<File>>, seals: Vec<u8>, head: Option<Head> },
    /// The seals so far are those of a closed segment: they get the name of its file. Its lines may be compressed.
    Close { closed: Closed, archive: Option<PathBuf> },
    /// Retention takes away the files of segments, up to this one.
    Remove { to: u64, paths: Vec<PathBuf> },
    /// Answer when everything before is done; with `true`, when everything is compressed, too.
    Settle(SyncSender<()>, bool),
}

/// What it tells the log of itself.
#[derive(Debug, Default)]
struct Told {
    /// Heads cannot be kept.
    headless: AtomicBool,
    /// How often somebody removed the seals that were written.
    harmed: AtomicU64,
}

/// The log's end of it.
#[derive(Debug)]
pub(super) struct Keeper {
    jobs: Option<Sender<Job>>,
    outstanding: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
    sizes: Receiver<(u64, u64)>,
    told: Arc<Told>,
}

/// A disk that refused is tried again this often.
const RETRY: Duration = Duration::from_secs(1);
/// What is compressed gives way to everything else (`nice(2)`).
const LOWEST_PRIORITY: i32 = 19;

impl Keeper {
    /// Starts the threads; `plain` are closed segments that are to be compressed.
    pub(super) fn spawn(folder: &Path, log: &str, heads: Heads, plain: Vec<PathBuf>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let outstanding = Arc::<AtomicUsize>::default();
        let (archives, to_archive) = channel();
        let (measured, sizes) = channel();
        let measure =
            Measure { folder: folder.to_owned(), log: log.to_owned(), sizes: measured, removed_to: Arc::default() };
        let of_archives = measure.clone();
        // It ends with the process, or when it has done what it was told: half a file that it leaves is made anew.
        std::thread::Builder::new()
            .name(format!("{log}-archive"))
            .spawn(move || archive_all(&to_archive, &of_archives))?;
        plain.into_iter().for_each(|path| {
            let _ = archives.send(Archive::Segment(path));
        });
        let body = Body {
            folder: folder.to_owned(),
            path: segments::live(folder, log, segments::SEALS),
            file: None,
            jobs: VecDeque::new(),
            heads,
            outstanding: Arc::clone(&outstanding),
            archives,
            measure,
            failing: false,
            unsynced: false,
            told: Arc::default(),
        };
        let told = Arc::clone(&body.told);
        let thread = std::thread::Builder::new().name(format!("{log}-keeper")).spawn(move || body.run(&receiver))?;
        Ok(Self { jobs: Some(jobs), outstanding, thread: Some(thread), sizes, told })
    }

    /// Jobs that are not done yet.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Heads cannot be kept.
    pub(super) fn is_headless(&self) -> bool {
        self.told.headless.load(Ordering::Relaxed)
    }

    /// How often somebody removed the seals.
    pub(super) fn harmed(&self) -> u64 {
        self.told.harmed.load(Ordering::Relaxed)
    }

    /// Segments whose files have changed, and the octets that they take on the disk now.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sizes.try_iter()
    }

    pub(super) fn tell(&self, job: Job) {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// Waits until everything is done that can be; what the disk refuses is not.
    pub(super) fn settle(&self, compressed: bool) {
        let (answer, answered) = sync_channel(1);
        self.tell(Job::Settle(answer, compressed));
        let _ = answered.recv();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells the log how large its closed segments are.
#[derive(Clone)]
struct Measure {
    folder: PathBuf,
    log: String,
    sizes: Sender<(u64, u64)>,
    /// Latest segment that retention takes away; set before it does.
    removed_to: Arc<AtomicU64>,
}

impl Measure {
    fn tell(&self, segment: u64, start: Timestamp) {
        let _ = self.sizes.send((segment, segments::octets(&self.folder, &self.log, start, segment)));
    }
}

struct Body {
    folder: PathBuf,
    /// Of the seals that are written now.
    path: PathBuf,
    file: Option<File>,
    jobs: VecDeque<Job>,
    heads: Heads,
    outstanding: Arc<AtomicUsize>,
    archives: Sender<Archive>,
    measure: Measure,
    failing: bool,
    unsynced: bool,
    told: Arc<Told>,
}

impl Body {
    fn run(mut self, receiver: &Receiver<Job>) {
        loop {
            fault::point(format_args!("{}-keeper", self.measure.log));
            match receiver.recv_timeout(RETRY) {
                Ok(job) => self.jobs.push_back(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.work();
                    return;
                }
            }
            self.work();
            if self.told.headless.load(Ordering::Relaxed) {
                self.write_heads();
            }
        }
    }

    /// Does what can be done.
    fn work(&mut self) {
        while let Some(mut job) = self.jobs.pop_front() {
            match self.attempt(&mut job) {
                Ok(()) if self.failing => {
                    self.failing = false;
                    info!(path = %self.path.display(), "seals are written again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !self.failing {
                        self.failing = true;
                        warn!(path = %self.path.display(), %error, "seals cannot be written: they wait, and records go on");
                    }
                    // Who waits for what cannot be done is told so by not waiting longer.
                    self.jobs.push_front(job);
                    let before = self.jobs.len();
                    self.jobs.retain(|job| !matches!(job, Job::Settle(..)));
                    self.outstanding.fetch_sub(before - self.jobs.len(), Ordering::AcqRel);
                    return;
                }
            }
            self.outstanding.fetch_sub(1, Ordering::AcqRel);
            if let Job::Settle(answer, _) = job {
                let _ = answer.send(());
            }
        }
    }

    fn attempt(&mut self, job: &mut Job) -> io::Result<()> {
        match job {
            Job::Keep { data, seals, head } => {
                if let Some(data) = data.take() {
                    self.sync(&data);
                }
                self.append(seals)?;
                if let Some(head) = head.take() {
                    self.keep(head);
                }
            }
            Job::Close { closed, archive } => {
                // No seals are there where not one could be written; then there is no name to give.
                match std::fs::rename(&self.path, closed.path(&self.folder, &self.measure.log, segments::SEALS)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                self.file = None;
                self.sync_folder();
                self.measure.tell(closed.number, closed.start);
                if let Some(plain) = archive.take() {
                    let _ = self.archives.send(Archive::Segment(plain));
                }
            }
            Job::Remove { to, paths } => {
                self.measure.removed_to.fetch_max(*to, Ordering::SeqCst);
                for path in paths.drain(..) {
                    match std::fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            warn!(path = %path.display(), %error, "retention cannot remove a segment");
                        }
                        _ => {}
                    }
                }
                self.sync_folder();
            }
            Job::Settle(_, compressed) => {
                if *compressed {
                    let (done, all_done) = sync_channel(1);
                    let _ = self.archives.send(Archive::Settle(done));
                    let _ = all_done.recv();
                }
            }
        }
        Ok(())
    }

    fn sync(&mut self, data: &File) {
        match data.sync_data() {
            Ok(()) => self.unsynced = false,
            // Pipes and devices cannot, and have nothing to lose.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) if !self.unsynced => {
                self.unsynced = true;
                warn!(folder = %self.folder.display(), %error, "the log cannot be synchronised with its disk: a power failure may take more than records.sync_interval");
            }
            Err(_) => {}
        }
    }

    /// What was taken is not offered again.
    fn append(&mut self, seals: &mut Vec<u8>) -> io::Result<()> {
        if seals.is_empty() {
            return Ok(());
        }
        if let Some(file) = &self.file
            && file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
        {
            self.told.harmed.fetch_add(1, Ordering::Relaxed);
            error!(path = %self.path.display(), "SOMEBODY REMOVED THE SEALS of the log: they go on in a new file, and verify-log will tell");
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open_live(&self.path)?),
        };
        while !seals.is_empty() {
            match file.write(seals) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => drop(seals.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let synced = file.sync_data();
        if let Err(error) = synced
            && !self.unsynced
        {
            self.unsynced = true;
            warn!(path = %self.path.display(), %error, "seals cannot be synchronised with their disk");
        }
        Ok(())
    }

    fn keep(&mut self, head: Head) {
        info!(log = %head.log, seal = head.seal, segment = head.segment, records = head.total_records, chain = %head.chain, "log signed");
        self.heads.push(head);
        self.write_heads();
    }

    fn write_heads(&self) {
        match self.heads.write() {
            Ok(()) => self.told.headless.store(false, Ordering::Relaxed),
            Err(error) if !self.told.headless.swap(true, Ordering::Relaxed) => {
                warn!(%error, "the state folder cannot be written: where the log was signed last is not kept, and a cut tail may not show");
            }
            Err(_) => {}
        }
    }

    fn sync_folder(&self) {
        // Names are kept by most file systems without it; those that cannot say so.
        let _ = sync_folder(&self.folder);
    }
}

enum Archive {
    /// Compress this.
    Segment(PathBuf),
    /// Answer when everything before is done.
    Settle(SyncSender<()>),
}

fn archive_all(segments: &Receiver<Archive>, measure: &Measure) {
    // Of this thread alone. Where it may not, it competes with the others.
    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
    let mut waiting = VecDeque::new();
    for order in segments {
        fault::point(format_args!("{}-archive", measure.log));
        match order {
            Archive::Segment(path) => waiting.push_back(path),
            Archive::Settle(answer) => {
                let _ = answer.send(());
                continue;
            }
        }
        // What failed before is tried again.
        for _ in 0..waiting.len() {
            let Some(path) = waiting.pop_front() else { break };
            let compressed = archive::compress(&path);
            let Some((number, start)) = number_of(&path).zip(start_of(&path)) else { continue };
            if number <= measure.removed_to.load(Ordering::SeqCst) {
                // Retention was faster, and may not have seen what is made by now.
                archive::remove(&path);
                continue;
            }
            match compressed {
                Ok(_) => measure.tell(number, start),
                Err(error) if path.exists() => {
                    warn!(path = %path.display(), %error, "a closed segment cannot be compressed: it stays as it is until the next one, or the next start");
                    waiting.push_back(path);
                }
                Err(error) => warn!(path = %path.display(), %error, "a closed segment is gone"),
            }
        }
    }
}
