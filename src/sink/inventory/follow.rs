//! Turns what the log has beyond the inventory's place into batches, one after the other, whatever happens to either: a crash,
//! a full disk, a file that is damaged, a log that is another one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::base::{Base, BaseError, FILE, Mark, Place};
use super::fold::{Batch, Glancer};
use super::lines::Segment;
use super::{Gauge, Settings, Told};
use crate::sink::sealed::segments::Listing;
use crate::time::Timestamp;

/// Octets of the log in one transaction, about.
const TURN: usize = 4 << 20;
/// Age is looked at this often.
const FORGET_SECONDS: u64 = 24 * 3600;
/// The file is checked this often.
const CHECK_SECONDS: u64 = 3600;
/// Files that were set aside and stay.
const ASIDE: usize = 2;
/// A file that has to be set aside again and again is made anew no more.
const MOST_ASIDE: u32 = 3;

/// Why a turn was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error("the log cannot be read: {0}")]
    Log(#[from] io::Error),
    #[error("the log cannot be read: its file is gone, or is none that can be read again")]
    NoFile,
    #[error(
        "it was set aside {MOST_ASIDE} times since the start, which looks like a broken disk: it is kept no more until the next start"
    )]
    GivenUp,
}

/// Follows the log.
pub(super) struct Follower {
    settings: Settings,
    path: PathBuf,
    gauge: Arc<Gauge>,
    /// Where this run of the sensor begins.
    began: Place,
    /// What earlier runs left open is not yet counted for good.
    is_before: bool,
    base: Option<Base>,
    segment: Option<Segment>,
    glancer: Glancer,
    is_current: bool,
    forgot: Timestamp,
    checked: Timestamp,
    asides: u32,
}

impl Follower {
    pub(super) fn new(settings: Settings, began: Place, gauge: Arc<Gauge>) -> Self {
        let path = settings.state.join(FILE);
        Self {
            settings,
            path,
            gauge,
            began,
            is_before: true,
            base: None,
            segment: None,
            glancer: Glancer::default(),
            is_current: false,
            forgot: Timestamp::ZERO,
            checked: Timestamp::ZERO,
            asides: 0,
        }
    }

    /// Takes some of what the log has more; true where there may be more still.
    pub(super) fn turn(&mut self, told: &Told) -> bool {
        match self.try_turn(told) {
            Ok(more) => {
                self.gauge.succeeded(&self.path);
                if !more && !self.is_current {
                    self.is_current = true;
                    info!(path = %self.path.display(), rows = self.base.as_ref().map_or(0, |base| base.rows), "the inventory holds what the log does");
                }
                more
            }
            Err(trouble) => {
                // Nothing of the turn is in the file: the log is read again from the file's own place.
                self.segment = None;
                match trouble {
                    Trouble::Base(error) if error.is_for_good() => {
                        self.base = None;
                        self.gauge.erred();
                        self.set_aside(&error.to_string(), told.now);
                        true
                    }
                    trouble => {
                        self.gauge.failed(&self.path, &trouble);
                        false
                    }
                }
            }
        }
    }

    /// Whether it took everything up to there.
    pub(super) fn is_at(&self, place: Place) -> bool {
        self.base.as_ref().is_some_and(|base| base.place == place)
    }

    pub(super) fn close(self) {
        if let Some(base) = self.base {
            base.close();
        }
    }

    fn try_turn(&mut self, told: &Told) -> Result<bool, Trouble> {
        if self.asides >= MOST_ASIDE {
            return Err(Trouble::GivenUp);
        }
        if self.base.as_ref().is_some_and(|base| !base.is_there()) {
            warn!(path = %self.path.display(), "somebody took the inventory away: it is made anew from the log");
            (self.base, self.segment) = (None, None);
        }
        if self.base.is_none() {
            let base = Base::open(&self.path)?;
            if let Some(why) = self.why_not(&base, told)? {
                drop(base);
                self.set_aside(why, told.now);
                return Ok(true);
            }
            self.is_before |= base.place < self.began;
            self.is_current = false;
            if base.place < told.place {
                info!(path = %self.path.display(), segment = base.place.segment, to = told.place.segment, "the inventory takes what the log has more");
            }
            self.segment = None;
            self.base = Some(base);
            self.checked = told.now;
        }
        self.check(told)?;
        let more = self.take(told)?;
        self.forget(told.now)?;
        if let Some(base) = &self.base {
            self.gauge.holds(base.rows, base.evicted);
        }
        Ok(more)
    }

    /// Why a file is not this log's.
    fn why_not(&self, base: &Base, told: &Told) -> Result<Option<&'static str>, Trouble> {
        if base.place > told.place {
            return Ok(Some("it is ahead of the log: the log was cut, or is another one"));
        }
        let mark = &base.mark;
        if mark.octets == 0 {
            return Ok(None);
        }
        // Retention may have taken it.
        let Some(mut segment) = open(&self.settings, told, mark.begins())? else { return Ok(None) };
        let is_there = mark.is_in(&mut segment)?;
        Ok((!is_there).then_some("the log does not hold what it was told last: it is another log, or was changed"))
    }

    /// One transaction.
    fn take(&mut self, told: &Told) -> Result<bool, Trouble> {
        let goal = if self.is_before { self.began } else { told.place };
        let Some(base) = &mut self.base else { return Ok(false) };
        let (mut batch, mut place, mut mark, mut octets) = (Batch::default(), base.place, base.mark, 0);
        while place < goal && octets < TURN {
            let held = self.segment.take().filter(|segment| segment.at == place);
            let mut segment = match held {
                Some(segment) => segment,
                None => match open(&self.settings, told, place)? {
                    Some(segment) => segment,
                    None if place.segment == told.place.segment => return Err(Trouble::NoFile),
                    None => {
                        if place.segment > 0 {
                            warn!(
                                segment = place.segment,
                                octets = place.octets,
                                "a segment of the log is not in its folder: what it holds from there on is not in the inventory"
                            );
                        }
                        place = next(&self.settings, place.segment, goal)?;
                        continue;
                    }
                },
            };
            let end = if place.segment == goal.segment { goal.octets } else { u64::MAX };
            let lines = match segment.next(end) {
                Ok(lines) => lines,
                Err(error) => {
                    warn!(segment = place.segment, octets = place.octets, %error, "a segment cannot be read from there on: what it holds is not in the inventory");
                    batch.damaged += 1;
                    place = if end == u64::MAX { next(&self.settings, place.segment, goal)? } else { goal };
                    continue;
                }
            };
            if !lines.is_empty() {
                batch.take(lines, &self.glancer, &base.known, self.settings.rows);
                octets += lines.len();
                place.octets += lines.len() as u64;
                mark = Mark::of(lines, place);
                self.segment = Some(segment);
                continue;
            }
            batch.damaged += u64::from(segment.torn() > 0);
            if end == u64::MAX {
                if !self.is_current {
                    info!(segment = place.segment, to = goal.segment, "the inventory has taken a segment of the log");
                }
                place = next(&self.settings, place.segment, goal)?;
            } else {
                warn!(
                    segment = place.segment,
                    octets = goal.octets - place.octets,
                    "the log is shorter than it was: somebody cut it"
                );
                place = goal;
            }
        }
        let has_come = place >= goal;
        let ends = self.is_before && has_come;
        if ends {
            base.apply(&batch, place, mark, self.settings.rows)?;
            self.gauge.took(&batch);
            batch = Batch::default();
            base.end_all(&mut batch)?;
        }
        if ends || place != base.place {
            base.apply(&batch, place, mark, self.settings.rows)?;
            self.gauge.took(&batch);
        }
        self.is_before &= !ends;
        Ok(place < goal && octets >= TURN || ends)
    }

    /// Whether somebody else wrote to the file. What is held of it in memory would not show it for long.
    fn check(&mut self, told: &Told) -> Result<(), Trouble> {
        // Where the clock was put back, the hour begins anew.
        self.checked = self.checked.min(told.now);
        if (told.is_to_check || told.now.since(self.checked).as_secs() >= CHECK_SECONDS)
            && let Some(base) = &self.base
        {
            base.check()?;
            self.checked = told.now;
        }
        Ok(())
    }

    fn forget(&mut self, now: Timestamp) -> Result<(), Trouble> {
        if now.since(self.forgot).as_secs() < FORGET_SECONDS {
            return Ok(());
        }
        let keep = u64::try_from(self.settings.keep_for.as_nanos()).unwrap_or(u64::MAX);
        let before = Timestamp::from_nanos(now.as_nanos().saturating_sub(keep));
        if let Some(base) = &mut self.base {
            base.forget(&before.to_string())?;
            self.forgot = now;
        }
        Ok(())
    }

    /// Another file is made in its place; it stays under another name, as do what lies beside it.
    fn set_aside(&mut self, why: &str, now: Timestamp) {
        self.asides += 1;
        self.is_before = true;
        let time: String = now.to_string().chars().filter(|c| !"-:".contains(*c)).take(15).collect();
        let aside = format!("{FILE}.corrupt-{time}Z");
        warn!(path = %self.path.display(), why, aside, "the inventory is made anew from the log");
        for beside in ["-wal", "-shm", ""] {
            let from = self.settings.state.join(format!("{FILE}{beside}"));
            let to = self.settings.state.join(format!("{aside}{beside}"));
            if let Err(error) = std::fs::rename(&from, to)
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(path = %from.display(), %error, "it cannot be set aside");
            }
        }
        remove_old(&self.settings.state);
    }
}

/// Of what was set aside, the latest stay.
fn remove_old(folder: &Path) {
    let prefix = format!("{FILE}.corrupt-");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> =
        entries.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(&prefix)).collect();
    names.sort();
    let mut times: Vec<_> = names.iter().filter_map(|name| name.get(prefix.len()..prefix.len() + 16)).collect();
    times.dedup();
    let Some(kept) = times.len().checked_sub(ASIDE).and_then(|at| times.get(at)) else { return };
    for name in &names {
        if name.get(prefix.len()..).is_some_and(|time| time < *kept) {
            let _ = std::fs::remove_file(folder.join(name));
        }
    }
}

/// A segment is looked for this often: while it is packed it may change its name as the folder is read.
const LOOKS: usize = 3;

/// A segment from there on; `None` where it is not in the folder.
fn open(settings: &Settings, told: &Told, at: Place) -> io::Result<Option<Segment>> {
    if at.segment == told.place.segment {
        return Ok(told.file.as_ref().map(|file| Segment::live(Arc::clone(file), at)));
    }
    for _ in 0..LOOKS {
        let listing = Listing::read(&settings.folder, &settings.log)?;
        let Some(path) = listing.closed.get(&at.segment).and_then(|files| files.data.as_ref()) else { continue };
        match Segment::closed(path, at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// The beginning of the segment behind this one.
fn next(settings: &Settings, behind: u64, goal: Place) -> io::Result<Place> {
    let mut found = goal.segment;
    for _ in 0..LOOKS {
        let listing = Listing::read(&settings.folder, &settings.log)?;
        let mut later = listing.closed.range(behind + 1..goal.segment);
        found = later.find_map(|(&number, files)| files.data.as_ref().map(|_| number)).unwrap_or(goal.segment);
        if found == behind + 1 {
            break;
        }
    }
    if behind > 0 && found > behind + 1 {
        warn!(
            from = behind + 1,
            to = found - 1,
            "segments of the log are not in its folder: what they hold is not in the inventory"
        );
    }
    Ok(Place { segment: found, octets: 0 })
}
