//! Turns records into a file beside the log, in a format of choice. It carries no seals: the log is the evidence.
//!
//! A thread of its own writes: neither a slow disk nor a full one makes records wait, nor the log. What it cannot take any
//! more is lost, counted and said.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tracing::{info, warn};

use super::format::{begin, encode, end, is_finding};
use super::{Losses, Sink, count_lines, identity};
use crate::config::{Format, Only, OutputConfig};
use crate::fault;
use crate::record::Record;
use crate::time::Timestamp;

/// Octets that may wait for the disk.
const MAX_WAITING: usize = 8 << 20;
/// Handed over at once.
const CHUNK: usize = 64 << 10;
/// What may be handed over before the thread has taken it.
const ORDERS: usize = 1024;
/// What goes on being lost is said this often.
const AGAIN: Duration = Duration::from_mins(1);

/// Writes one file.
#[derive(Debug)]
pub struct FileOutput {
    format: Format,
    only: Only,
    /// Lines that are not handed over.
    lines: BytesMut,
    count: u64,
    orders: Option<SyncSender<Order>>,
    /// The thread had no room to be told so.
    is_to_reopen: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Lines(BytesMut, Timestamp),
    Tick(Timestamp),
    Reopen(Timestamp),
}

/// What both sides count.
#[derive(Debug, Default)]
struct Shared {
    /// Octets that were handed over, and are not written.
    waiting: AtomicUsize,
    /// Lines that nobody will write.
    lost: Losses,
}

impl FileOutput {
    /// Starts to write in a folder. The file is opened by the thread, and as long as it cannot be, lines wait.
    pub fn start(folder: &Path, config: &OutputConfig, now: Timestamp) -> io::Result<Self> {
        let (orders, taken) = sync_channel(ORDERS);
        let shared = Arc::new(Shared::default());
        let mut writer = Writer::new(folder.join(&config.file), config, Arc::clone(&shared), now);
        let thread = std::thread::Builder::new().name("output".into()).spawn(move || writer.run(&taken))?;
        Ok(Self {
            format: config.format,
            only: config.only,
            lines: BytesMut::with_capacity(CHUNK),
            count: 0,
            orders: Some(orders),
            is_to_reopen: false,
            shared,
            thread: Some(thread),
        })
    }

    /// Lines that were lost so far, and will be.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Arc::clone(&self.shared.lost)
    }

    fn hand_over(&mut self, now: Timestamp) {
        if self.lines.is_empty() {
            return;
        }
        let (octets, count) = (self.lines.len(), std::mem::take(&mut self.count));
        let lines = self.lines.split();
        let has_room = self.shared.waiting.load(Ordering::Relaxed) + octets <= MAX_WAITING;
        if has_room {
            // Before it is taken, so that it never falls below zero.
            self.shared.waiting.fetch_add(octets, Ordering::Relaxed);
            if self.order(Order::Lines(lines, now)) {
                return;
            }
            self.shared.waiting.fetch_sub(octets, Ordering::Relaxed);
        }
        self.shared.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether the thread will take it.
    fn order(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_ok())
    }
}

impl Sink for FileOutput {
    fn write(&mut self, record: &Record) {
        if self.only == Only::Findings && !is_finding(record) {
            return;
        }
        let before = self.lines.len();
        encode(self.format, record, &mut self.lines);
        self.count += u64::from(self.lines.len() > before);
        if self.lines.len() >= CHUNK {
            self.hand_over(record.time);
        }
    }

    fn tick(&mut self, now: Timestamp) {
        if self.is_to_reopen {
            self.reopen(now);
            return;
        }
        self.hand_over(now);
        // One that finds no room is one too many.
        self.order(Order::Tick(now));
    }

    fn reopen(&mut self, now: Timestamp) {
        self.hand_over(now);
        self.is_to_reopen = !self.order(Order::Reopen(now));
    }

    fn close(&mut self, now: Timestamp) {
        self.hand_over(now);
        self.order(Order::Tick(now));
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    format: Format,
    rotate_octets: u64,
    keep: u32,
    shared: Arc<Shared>,
    file: Option<File>,
    /// Octets of the file.
    size: u64,
    /// It is no pipe or device, which cannot be rotated.
    is_regular: bool,
    /// Not written yet. The first line may be in the file in part.
    pending: BytesMut,
    is_torn: bool,
    /// It was said that it cannot be written.
    failing: bool,
    /// It was said that it cannot be rotated.
    stuck: bool,
    /// Lost when that was said last, and when.
    said: u64,
    said_at: Timestamp,
    now: Timestamp,
}

impl Writer {
    fn new(path: PathBuf, config: &OutputConfig, shared: Arc<Shared>, now: Timestamp) -> Self {
        Self {
            path,
            format: config.format,
            rotate_octets: config.rotate_octets,
            keep: config.keep,
            shared,
            file: None,
            size: 0,
            is_regular: true,
            pending: BytesMut::new(),
            is_torn: false,
            failing: false,
            stuck: false,
            said: 0,
            said_at: now,
            now,
        }
    }

    fn run(&mut self, orders: &Receiver<Order>) {
        self.attempt();
        for order in orders {
            fault::point("output");
            match order {
                Order::Lines(lines, now) => {
                    self.now = self.now.max(now);
                    self.take(lines);
                }
                Order::Tick(now) => {
                    self.now = now;
                    self.attempt();
                }
                Order::Reopen(now) => {
                    self.now = now;
                    self.reopen();
                }
            }
        }
        self.attempt();
        self.finish();
        let unwritten = count_lines(&self.pending);
        let lost = self.shared.lost.fetch_add(unwritten, Ordering::Relaxed) + unwritten;
        if lost > 0 {
            warn!(path = %self.path.display(), lost, "records are missing in this output: the log has them");
        }
    }

    fn take(&mut self, lines: BytesMut) {
        let is_full = self.is_regular && self.size > 0 && self.size + lines.len() as u64 > self.rotate_octets;
        if is_full && self.pending.is_empty() {
            self.rotate();
        }
        self.pending.unsplit(lines);
        // While it fails, a tick tries again.
        if !self.failing {
            self.attempt();
        }
    }

    /// Opens what is not open, and writes what waits.
    fn attempt(&mut self) {
        match self.write_pending() {
            Ok(()) => {
                let lost = self.shared.lost.load(Ordering::Relaxed);
                let is_new = lost > self.said && self.now >= self.said_at + AGAIN;
                if std::mem::take(&mut self.failing) {
                    info!(path = %self.path.display(), lost, "the output is written again");
                    (self.said, self.said_at) = (lost, self.now);
                } else if is_new {
                    warn!(path = %self.path.display(), lost, "the disk does not keep up with the output: lines were lost; the log has them");
                    (self.said, self.said_at) = (lost, self.now);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(path = %self.path.display(), %error, "the output cannot be written: up to {MAX_WAITING} octets wait, then lines are lost and counted; the log has them");
                }
            }
        }
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(self.open()?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        while !self.pending.is_empty() {
            let written = match file.write(&self.pending) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.is_torn = self.pending.get(written - 1) != Some(&b'\n');
            self.pending.advance(written);
            self.size += written as u64;
            let counted = self.shared.waiting.load(Ordering::Relaxed).min(written);
            self.shared.waiting.fetch_sub(counted, Ordering::Relaxed);
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<File> {
        let mut how = OpenOptions::new();
        // Where it is a pipe that nobody reads, nobody waits for it either.
        how.create(true).append(true).read(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
        let mut file = how.open(&self.path)?;
        let metadata = file.metadata()?;
        (self.size, self.is_regular) = (metadata.len(), metadata.is_file());
        let mut text = BytesMut::new();
        if self.size > 0 && !ends_a_line(&mut file)? {
            // Of a run that was killed.
            text.extend_from_slice(b"\n");
        }
        begin(self.format, self.now, &mut text);
        file.write_all(&text)?;
        self.size += text.len() as u64;
        Ok(file)
    }

    /// Writes the end of a file, and lets go of it.
    fn finish(&mut self) {
        let Some(mut file) = self.file.take() else { return };
        let mut text = BytesMut::new();
        if std::mem::take(&mut self.is_torn) {
            text.extend_from_slice(b"\n");
            // Its other half would stand in another file.
            let rest = self.pending.iter().position(|octet| *octet == b'\n').map_or(self.pending.len(), |end| end + 1);
            self.pending.advance(rest);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            let counted = self.shared.waiting.load(Ordering::Relaxed).min(rest);
            self.shared.waiting.fetch_sub(counted, Ordering::Relaxed);
        }
        end(self.format, self.now, &mut text);
        // What it ends is whole without it.
        let _ = file.write_all(&text);
    }

    fn reopen(&mut self) {
        self.attempt();
        let open = self.file.as_ref().and_then(|file| identity(file.metadata()));
        if open != identity(std::fs::metadata(&self.path)) {
            self.finish();
        }
        self.attempt();
    }

    /// Gives older files the next numbers, and this one the first.
    fn rotate(&mut self) {
        self.finish();
        let named = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let rename = |from: &Path, to: &Path| match std::fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let renamed = (1..self.keep).rev().try_for_each(|number| rename(&named(number), &named(number + 1)));
        match renamed.and_then(|()| rename(&self.path, &named(1))) {
            Ok(()) => self.stuck = false,
            Err(error) => {
                if !std::mem::replace(&mut self.stuck, true) {
                    warn!(path = %self.path.display(), %error, "the output cannot be rotated: it goes on in the same file");
                }
            }
        }
    }
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::policy::Label;
    use crate::record::tests_support::record;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_100);

    fn config(format: Format, file: &str) -> OutputConfig {
        OutputConfig { format, file: file.into(), only: Only::All, rotate_octets: 1 << 20, keep: 2 }
    }

    fn lost(output: &FileOutput) -> u64 {
        output.losses().load(Ordering::Relaxed)
    }

    fn seqs(text: &str) -> Vec<u64> {
        let parse = |line: &str| serde_json::from_str::<Record>(line).unwrap().seq;
        text.lines().map(parse).collect()
    }

    #[test]
    fn lines_come_in_order_and_all_are_there_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        fs::write(&path, "half a li").unwrap();
        let mut output = FileOutput::start(folder.path(), &config(Format::Ndjson, "a.json"), NOW).unwrap();
        (1..=1000).for_each(|seq| output.write(&record(seq)));
        output.close(NOW);
        let text = fs::read_to_string(&path).unwrap();
        let rest = text.strip_prefix("half a li\n").unwrap();
        assert_eq!((seqs(rest), lost(&output)), ((1..=1000).collect(), 0));
    }

    #[test]
    fn findings_alone_if_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let only = OutputConfig { only: Only::Findings, ..config(Format::Ndjson, "a.json") };
        let mut output = FileOutput::start(folder.path(), &only, NOW).unwrap();
        output.write(&record(1));
        let mut finding = record(2);
        finding.verdict = Label::UnapprovedVpnTunnel;
        output.write(&finding);
        output.close(NOW);
        assert_eq!(seqs(&fs::read_to_string(folder.path().join("a.json")).unwrap()), [2]);
    }

    #[test]
    fn a_pipe_that_nobody_reads_makes_nobody_wait_and_is_not_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut output = FileOutput::start(folder.path(), &config(Format::Ndjson, "a.json"), NOW).unwrap();
        for seq in 1..=3000 {
            output.write(&record(seq));
        }
        output.close(NOW);
        // It holds 64 KiB, of two mebibytes.
        assert!((2500..3000).contains(&lost(&output)), "{}", lost(&output));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_are_bounded_and_each_of_zeek_has_its_header_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = FileOutput::start(folder.path(), &config(Format::Zeek, "z.log"), NOW).unwrap();
        for seq in 1..=12_000 {
            output.write(&record(seq));
            if seq % 100 == 0 {
                output.tick(NOW);
            }
        }
        output.close(NOW);
        assert_eq!(lost(&output), 0);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["z.log", "z.log.1", "z.log.2"], "no more than are kept");
        let mut last = 12_000;
        for name in names {
            let text = fs::read_to_string(folder.path().join(&name)).unwrap();
            assert!(text.len() <= (1 << 20) + 4096, "{name}: {}", text.len());
            assert!(text.starts_with("#separator \\x09\n"), "{name}");
            assert!(text.ends_with("#close\t2023-11-14-22-15-00\n"), "{name}");
            let fields = text.lines().find_map(|line| line.strip_prefix("#fields\t")).unwrap();
            let seq = fields.split('\t').position(|field| field == "seq").unwrap();
            let rows: Vec<u64> = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| line.split('\t').nth(seq).unwrap().parse().unwrap())
                .collect();
            assert!(rows.is_sorted() && *rows.last().unwrap() == last, "{name}: nothing is missing between files");
            last = rows[0] - 1;
        }
    }

    #[test]
    fn a_file_that_was_renamed_away_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("a.json"), folder.path().join("old"));
        let mut output = FileOutput::start(folder.path(), &config(Format::Ndjson, "a.json"), NOW).unwrap();
        output.write(&record(1));
        output.reopen(NOW);
        while !path.exists() {
            std::thread::yield_now();
        }
        fs::rename(&path, &old).unwrap();
        output.reopen(NOW);
        output.write(&record(2));
        output.close(NOW);
        let [old, new] = [old, path].map(|path| seqs(&fs::read_to_string(path).unwrap()));
        assert_eq!(new, [2]);
        assert_eq!(old, [1]);
    }

    /// A folder stands where the file is to be: it cannot be opened until that is gone.
    #[test]
    fn what_cannot_be_written_waits_up_to_a_bound_and_what_is_lost_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        fs::create_dir(&path).unwrap();
        let mut output = FileOutput::start(folder.path(), &config(Format::Ndjson, "a.json"), NOW).unwrap();
        let many = 30_000;
        (1..=many).for_each(|seq| output.write(&record(seq)));
        output.tick(NOW);
        assert!(lost(&output) > 0, "more than may wait");
        fs::remove_dir(&path).unwrap();
        output.tick(NOW);
        output.write(&record(many + 1));
        output.close(NOW);
        let text = (0..=2)
            .rev()
            .map(|number| if number == 0 { path.clone() } else { folder.path().join(format!("a.json.{number}")) })
            .filter_map(|path| fs::read_to_string(path).ok())
            .collect::<String>();
        assert_eq!(seqs(&text).len() as u64 + lost(&output), many + 1);
        assert_eq!(seqs(&text).last(), Some(&(many + 1)), "it goes on");
    }
}
