//! Turns what is closed of a log, how large and how old it is, into what may go. It is counted in memory, from what the log
//! itself closed: what else lies in the folder is not the log's, and makes nothing go.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use super::clocks::Clocks;
use super::seal::Hash;
use super::segments::{self, Listing, OWN, SEALS};
use crate::config::LogConfig;
use crate::time::Timestamp;

/// A segment that is not written any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub number: u64,
    /// When it began, as its files' name says.
    pub start: Timestamp,
    /// All its records are older.
    pub end: Timestamp,
    /// On the disk.
    pub octets: u64,
    /// Behind its last seal; `None`: an earlier run closed it, and its seals tell.
    pub chain: Option<Hash>,
}

impl Closed {
    /// Its file of that kind.
    pub fn path(&self, folder: &Path, log: &str, suffix: &str) -> PathBuf {
        segments::closed(folder, log, self.start, self.number, suffix)
    }
}

/// The closed segments of a log, the oldest first.
#[derive(Debug)]
pub(super) struct Retention {
    log: String,
    closed: VecDeque<Closed>,
    octets: u64,
    pub clocks: Clocks,
    /// When something was removed by its age, by the clock that nobody sets.
    aged: Option<Duration>,
    /// It is said that the clock is not believed.
    is_said: bool,
}

/// Of the closed segments, one in so many goes at once by its age, and one at least.
const SHARE: usize = 10;
/// And not more often than this.
const AGED_EVERY: Duration = Duration::from_hours(1);

impl Retention {
    /// What earlier runs left: segments below the one that is written, that have seals which say so.
    pub fn of(folder: &Path, log: &str, listing: &Listing, (segment, start): (u64, Timestamp), clocks: Clocks) -> Self {
        let (mut closed, mut strangers) = (VecDeque::<Closed>::new(), Vec::new());
        for (&number, files) in &listing.closed {
            let is_seals = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == SEALS);
            let own = files.all.iter().filter(is_seals).filter(|_| number < segment).find_map(|path| {
                let first = segments::first_seal(path).filter(|seal| seal.segment == number)?;
                Some((segments::start_of(path)?, first.time))
            });
            let Some((named, began)) = own else {
                strangers.extend(files.all.first());
                continue;
            };
            let octets = segments::octets(folder, log, named, number);
            if let Some(before) = closed.back_mut() {
                before.end = began;
            }
            closed.push_back(Closed { number, start: named, end: start, octets, chain: None });
        }
        if let Some(path) = strangers.first() {
            warn!(
                log,
                count = strangers.len(),
                example = %path.display(),
                "files in the log's folder have the names of segments and are none that it closed: they do not count, and nothing removes them"
            );
        }
        let octets = closed.iter().map(|one| one.octets).sum();
        Self { log: log.to_owned(), closed, octets, clocks, aged: None, is_said: false }
    }

    /// A file of each segment, where it would be.
    pub fn paths<'a>(&'a self, folder: &'a Path, log: &'a str, suffix: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.closed.iter().map(move |one| one.path(folder, log, suffix))
    }

    /// Of all of them, on the disk.
    #[cfg(test)]
    pub const fn octets(&self) -> u64 {
        self.octets
    }

    /// Takes one more, the newest.
    pub fn push(&mut self, closed: Closed) {
        self.octets += closed.octets;
        self.closed.push_back(closed);
    }

    /// What a segment takes on the disk now.
    pub fn measured(&mut self, number: u64, octets: u64) {
        let index = self.closed.binary_search_by_key(&number, |one| one.number);
        if let Some(one) = index.ok().and_then(|index| self.closed.get_mut(index)) {
            self.octets = self.octets - one.octets + octets;
            one.octets = octets;
        }
    }

    /// Takes out what is too much, with `live` octets in the segment that is written, or too old.
    pub fn take(&mut self, config: &LogConfig, live: u64) -> Vec<Closed> {
        let mut taken = Vec::new();
        while let Some(oldest) = self.closed.front()
            && self.octets + live > config.keep_octets
        {
            self.octets -= oldest.octets;
            taken.extend(self.closed.pop_front());
        }
        let is_over = |one: &Closed, now: Timestamp| now.since(one.end) > config.keep_for;
        if !self.closed.front().is_some_and(|oldest| is_over(oldest, self.clocks.wall())) {
            return taken;
        }
        let Some(now) = self.clocks.believed() else {
            if !self.is_said {
                self.is_said = true;
                warn!(
                    log = self.log,
                    "by the clock there are segments that are older than records.keep_for, but it was set, or nothing was logged for more than a day before the start: they go when it has gone evenly for a day"
                );
            }
            return taken;
        };
        let steady = self.clocks.steady();
        if self.aged.is_some_and(|aged| steady.saturating_sub(aged) < AGED_EVERY) {
            return taken;
        }
        (self.aged, self.is_said) = (Some(steady), false);
        for _ in 0..self.closed.len().div_ceil(SHARE) {
            let Some(oldest) = self.closed.pop_front_if(|oldest| is_over(oldest, now)) else { break };
            self.octets -= oldest.octets;
            taken.push(oldest);
        }
        taken
    }
}

/// What goes of a segment, its seals last: lines without seals would be somebody else's.
pub(super) fn files<'a>(closed: &'a [Closed], folder: &'a Path, log: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    closed.iter().flat_map(move |one| OWN.iter().map(move |suffix| one.path(folder, log, suffix)))
}
