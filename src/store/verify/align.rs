//! Turns lines that do not fit their seal into what happened to them: looks for the next batch that does fit, near where it
//! was, and compares what lies between with what was sealed.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::finding::{Finding, What};
use crate::sink::sealed::seal::Hash;

/// Octets of a segment that are looked at together where something does not fit.
pub(super) const LOOK: usize = 16 << 20;
/// Octets hashed in search of one place.
const BUDGET: usize = 512 << 20;
/// Batches that are looked for at any line.
const SOUGHT: usize = 8;
/// Runs of missing sequence numbers that are listed.
const MAX_RUNS: usize = 32;
/// Sequence numbers of several workers come this much out of order.
const DISORDER: u64 = 64;

/// A batch as it was sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub seal: u64,
    pub offset: u64,
    pub octets: u64,
    pub records: u64,
    pub sha256: Hash,
    /// Number of its first line, from 1.
    pub line: u64,
}

/// The lines of a segment, a part of them in memory.
pub(super) struct Window<'a> {
    reader: Box<dyn Read + Send + 'a>,
    buffer: Vec<u8>,
    /// Where in it the next batch begins.
    at: usize,
    /// Where in it the batch before begins.
    before: usize,
    /// Octets of the segment that are not in it any more.
    gone: u64,
    is_over: bool,
    /// What ended it, if that was not its end.
    pub error: Option<std::io::Error>,
}

impl<'a> Window<'a> {
    pub(super) fn new(reader: Box<dyn Read + Send + 'a>) -> Self {
        Self { reader, buffer: Vec::new(), at: 0, before: 0, gone: 0, is_over: false, error: None }
    }

    /// What comes next: so many octets, or all that there are.
    pub(super) fn fill(&mut self, octets: usize) -> &[u8] {
        if self.before > LOOK {
            self.buffer.drain(..self.before);
            self.gone += self.before as u64;
            (self.at, self.before) = (self.at - self.before, 0);
        }
        let wanted = self.at + octets;
        while self.buffer.len() < wanted && !self.is_over {
            let len = self.buffer.len();
            let step = (wanted - len).min(1 << 20);
            self.buffer.resize(len + step, 0);
            let taken = self.reader.read(self.buffer.get_mut(len..).unwrap_or_default());
            let taken = match taken {
                Ok(taken) => {
                    self.is_over = taken == 0;
                    taken
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => {
                    (self.is_over, self.error) = (true, Some(error));
                    0
                }
            };
            self.buffer.truncate(len + taken);
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        rest.get(..octets).unwrap_or(rest)
    }

    /// Where the next batch begins, as the segment is now.
    pub(super) const fn position(&self) -> u64 {
        self.gone + self.at as u64
    }

    pub(super) fn skip(&mut self, octets: usize) {
        self.before = self.at;
        self.at = (self.at + octets).min(self.buffer.len());
    }

    fn batch_before(&self) -> &[u8] {
        self.buffer.get(self.before..self.at).unwrap_or_default()
    }
}

pub(super) fn hash(octets: &[u8]) -> Hash {
    Hash(Sha256::digest(octets).into())
}

/// Where the log fits again: which batch, and how many octets behind the window's place. `total`: octets of the whole
/// segment as it is now.
pub(super) fn fits_again(
    ahead: &[u8],
    here: u64,
    first: &Sealed,
    later: &[Sealed],
    total: Option<u64>,
) -> Option<(usize, usize)> {
    let mut budget = BUDGET;
    let mut fits = |batch: &Sealed, at: usize| {
        let octets = usize::try_from(batch.octets).ok()?;
        let found = ahead.get(at..at.checked_add(octets)?)?;
        // Batches are whole lines.
        let begins = at == 0 || ahead.get(at - 1) == Some(&b'\n');
        if octets == 0 || octets > budget || !begins || found.last() != Some(&b'\n') {
            return None;
        }
        budget -= octets;
        (hash(found) == batch.sha256).then_some(())
    };
    let place = |batch: &Sealed| batch.offset - first.offset;
    let mut found = None;
    // At the place where it was: changed, nothing more or less.
    for (index, batch) in later.iter().enumerate() {
        let at = place(batch);
        if at > ahead.len() as u64 {
            break;
        }
        if fits(batch, at as usize).is_some() {
            found = Some((index, at as usize));
            break;
        }
    }
    // As far from its place as the segment is longer or shorter now: lines removed or inserted once.
    if let (None, Some(total), Some(last)) = (found, total, later.last()) {
        let was = i128::from(last.offset + last.octets - first.offset);
        let shift = i128::from(total) - i128::from(here) - was;
        for (index, batch) in later.iter().enumerate() {
            let Ok(at) = usize::try_from(i128::from(place(batch)) + shift) else { continue };
            if at > ahead.len() {
                break;
            }
            if fits(batch, at).is_some() {
                found = Some((index, at));
                break;
            }
        }
    }
    // An earlier one at any line, nearest first: several changes.
    let (before, most) = found.unwrap_or((later.len(), ahead.len()));
    let sought = || later.iter().enumerate().take(before).filter(|(_, batch)| batch.octets > 0).take(SOUGHT);
    if sought().next().is_none() {
        return found;
    }
    let starts = ahead.iter().enumerate().filter(|(_, octet)| **octet == b'\n').map(|(at, _)| at + 1);
    let mut starts: Vec<usize> = std::iter::once(0).chain(starts).take_while(|at| *at <= most).collect();
    for (index, batch) in sought() {
        let Ok(place) = usize::try_from(place(batch)) else { break };
        starts.sort_unstable_by_key(|at| at.abs_diff(place));
        if let Some(&at) = starts.iter().find(|&&at| fits(batch, at).is_some()) {
            return Some((index, at));
        }
    }
    found
}

/// What a line says of its number.
#[derive(Deserialize)]
struct Numbered {
    seq: Option<u64>,
}

struct Lines {
    count: u64,
    seqs: Vec<u64>,
    /// Number of the first that is no JSON, from 1.
    broken: Option<u64>,
}

fn read(octets: &[u8]) -> Lines {
    let mut lines = Lines { count: 0, seqs: Vec::new(), broken: None };
    for line in octets.split_inclusive(|&octet| octet == b'\n') {
        lines.count += 1;
        match serde_json::from_slice::<Numbered>(line) {
            Ok(numbered) => lines.seqs.extend(numbered.seq),
            Err(_) => lines.broken = lines.broken.or(Some(lines.count)),
        }
    }
    lines
}

/// What happened to batches, of which `len` octets are left that do not fit them; `next`: octets of the batch behind that
/// fits again, 0 where none does.
pub(super) fn explain(window: &mut Window<'_>, batches: &[Sealed], len: usize, next: usize) -> Option<Finding> {
    let (first, last) = (batches.first()?, batches.last()?);
    let sealed_octets = last.offset + last.octets - first.offset;
    let sealed_lines: u64 = batches.iter().map(|batch| batch.records).sum();
    let ahead = window.fill(len + next);
    let found = read(ahead.get(..len).unwrap_or_default());
    let after = read(ahead.get(len..).unwrap_or_default());
    let before = read(window.batch_before());
    let mut missing = missing(&before.seqs, &found.seqs, &after.seqs);
    let mut missing_count: u64 = missing.iter().map(|(from, to)| to - from + 1).sum();
    let least = found.seqs.iter().chain(&after.seqs).min().copied().unwrap_or(0);
    let at_front = sealed_lines.saturating_sub(found.count).saturating_sub(missing_count);
    if before.count == 0 && at_front > 0 && next > 0 && least > at_front {
        // Nothing stands before that could tell: what is not missing in between is missing at the front.
        missing.insert(0, (least - at_front, least - 1));
        missing_count += at_front;
    }
    let is_same_size = found.count == sealed_lines && len as u64 == sealed_octets;
    let unique: BTreeSet<_> = found.seqs.iter().collect();
    let is_end = next == 0;
    let (what, mut text) = if is_end && len == 0 {
        (What::Cut, format!("the records end here: {sealed_lines} are missing"))
    } else if is_same_size
        && missing.is_empty()
        && found.broken.is_none()
        && unique.len() as u64 == found.count
        && !found.seqs.is_sorted()
    {
        (What::Reordered, "the same records in another order".to_owned())
    } else if found.count < sealed_lines && is_end && missing.is_empty() {
        (What::Cut, format!("{} of {sealed_lines} records are left here, and then the records end", found.count))
    } else if found.count < sealed_lines {
        (What::Removed, format!("{} of {sealed_lines} records are missing here", sealed_lines - found.count))
    } else if found.count > sealed_lines {
        (
            What::Inserted,
            format!("{} records more than the {sealed_lines} that were sealed", found.count - sealed_lines),
        )
    } else {
        (What::Changed, format!("among these {sealed_lines} records are some that are not as they were sealed"))
    };
    if let Some(broken) = found.broken {
        let more = format!("; line {} of the file is no JSON any more", first.line + broken - 1);
        text.push_str(&more);
    }
    if missing_count > sealed_lines.saturating_sub(found.count) && what == What::Removed {
        text.push_str("; the sensor may have lost some of those listed itself");
    }
    let mut finding = Finding::new(what, text);
    finding.seals = Some((first.seal, last.seal));
    finding.octets = Some((first.offset, first.offset + sealed_octets));
    finding.lines = (sealed_lines > 0).then(|| (first.line, first.line + sealed_lines - 1));
    // Where as many records are there as were sealed, a gap is the sensor's own loss.
    if found.count < sealed_lines || !is_same_size {
        finding.missing_seq = missing;
    }
    Some(finding)
}

/// Runs of numbers that should be in between.
fn missing(before: &[u64], found: &[u64], after: &[u64]) -> Vec<(u64, u64)> {
    let all: BTreeSet<u64> = before.iter().chain(found).chain(after).copied().collect();
    let least =
        before.iter().max().map(|max| max.saturating_sub(DISORDER).max(before.iter().min().copied().unwrap_or(0)));
    let most = after.iter().min().map(|min| (min + DISORDER).min(after.iter().max().copied().unwrap_or(0)));
    let inside = || found.iter().copied();
    let (Some(least), Some(most)) = (least.or_else(|| inside().min()), most.or_else(|| inside().max())) else {
        return Vec::new();
    };
    // Numbers begin anew with each run of the sensor.
    if least > most {
        return Vec::new();
    }
    let (mut runs, mut expected) = (Vec::new(), least);
    for &number in all.range(least..=most) {
        if number > expected {
            runs.push((expected, number - 1));
        }
        expected = number + 1;
    }
    runs.truncate(MAX_RUNS);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_missing_are_told_in_runs() {
        let cases: [(&str, &[u64], &[u64], &[u64], &[(u64, u64)]); 6] = [
            ("none", &[1, 2], &[3, 4], &[5], &[]),
            ("in the middle", &[1, 2], &[3, 6], &[7, 8], &[(4, 5)]),
            ("at both ends", &[1, 2], &[4], &[6, 7], &[(3, 3), (5, 5)]),
            ("out of order", &[1, 3], &[2, 5, 4], &[7, 6, 8], &[]),
            ("all", &[1, 2], &[], &[5, 6], &[(3, 4)]),
            ("a new run", &[900, 901], &[902, 1], &[2, 3], &[]),
        ];
        for (name, before, found, after, expected) in cases {
            assert_eq!(missing(before, found, after), expected, "{name}");
        }
    }
}
