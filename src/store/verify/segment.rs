//! Holds one segment to its seals, and its seals to the chain and the keys.

use std::collections::BTreeMap;
use std::path::Path;

use super::align::{LOOK, Sealed, Window, explain, fits_again, hash};
use super::finding::{Break, Finding, Signed, What};
use super::index;
use crate::sink::archive::index::index_of;
use crate::sink::sealed::key::PublicKey;
use crate::sink::sealed::seal::{Chain, Hash, Kind, Seal};
use crate::sink::sealed::segments::{CUT, Counted, Packing, SealLine, find_renamed, read_seals_from, unpack};
use crate::store::folder::Source;
use crate::time::Timestamp;

/// A segment that is to be verified.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub seals: Source,
    pub data: Option<Source>,
    /// Octets of its lines when verification began, where they are being written.
    pub live: Option<u64>,
    /// The seal before, and the chain there, where these are known.
    pub before: Option<(u64, Hash)>,
    /// Octets and hash of its first batch that has some.
    pub first_batch: Option<(u64, Hash)>,
}

impl Segment {
    /// Whether another look found it in the same files, which nobody writes to.
    pub(super) fn is_where(&self, other: &Self) -> bool {
        let place = |segment: &Self| (segment.number, segment.before, segment.first_batch);
        let path = |source: &Option<Source>| source.as_ref().map(|source| source.path.clone());
        self.live.is_none()
            && other.live.is_none()
            && place(self) == place(other)
            && self.seals.path == other.seals.path
            && path(&self.data) == path(&other.data)
    }
}

/// What is the same for all segments of a log.
pub(super) struct Context<'a> {
    pub log: &'a str,
    pub keys: &'a [PublicKey],
    /// Chains that were kept elsewhere, by seal.
    pub heads: &'a BTreeMap<u64, Hash>,
    /// First batches of all segments, and the segments' numbers.
    pub first_batches: &'a [(u64, Hash, u64)],
    /// Hears of each octet taken from a disk.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub seals: u64,
    pub records: u64,
    pub octets: u64,
    pub time: Option<(Timestamp, Timestamp)>,
    pub signed: Option<Signed>,
    /// Behind the latest signature, or from the beginning where there is none.
    pub unsigned_records: u64,
    pub unsealed_octets: u64,
    pub breaks: Vec<Break>,
    pub findings: Vec<Finding>,
    pub left_out: u64,
}

/// Findings of one segment that are listed.
const MAX_FINDINGS: usize = 100;

pub(super) fn verify(segment: &Segment, context: &Context<'_>) -> Outcome {
    let mut check = Check {
        segment,
        context,
        outcome: Outcome::default(),
        before: segment.before,
        end: 0,
        line: 1,
        batches: Vec::new(),
        last: None,
        is_closed: false,
        signatures: (0, Vec::new()),
        key: None,
    };
    let read = segment.seals.open().and_then(|(_, file, _)| read_seals_from(file, |line| check.take(line)));
    if let Err(error) = read {
        check.say(&segment.seals.path, Finding::new(What::Unreadable, format!("its seals cannot be read: {error}")));
    }
    check.tell_signatures();
    check.hold_data();
    check.outcome
}

struct Check<'a> {
    segment: &'a Segment,
    context: &'a Context<'a>,
    outcome: Outcome,
    before: Option<(u64, Hash)>,
    /// Where the next batch must begin, and its first line.
    end: u64,
    line: u64,
    batches: Vec<Sealed>,
    last: Option<Kind>,
    /// A run has ended, and none has begun since.
    is_closed: bool,
    /// Signatures that verify, and seals with others.
    signatures: (u64, Vec<u64>),
    /// Whose the seals say they are.
    key: Option<String>,
}

impl Check<'_> {
    fn say(&mut self, file: &Path, mut finding: Finding) {
        finding.segment = finding.segment.or(Some(self.segment.number));
        finding.file = finding.file.or_else(|| Some(file.to_owned()));
        // Neighbours of one kind are one finding.
        if let Some(last) = self.outcome.findings.last_mut()
            && (last.what, &last.text) == (finding.what, &finding.text)
            && let (Some(seals), Some(more)) = (&mut last.seals, finding.seals)
            && seals.1.checked_add(1) == Some(more.0)
        {
            seals.1 = more.1;
            return;
        }
        if self.outcome.findings.len() < MAX_FINDINGS {
            self.outcome.findings.push(finding);
        } else {
            self.outcome.left_out += 1;
        }
    }

    fn take(&mut self, line: SealLine) {
        let file = &self.segment.seals.path;
        let (seal, body) = match line.seal {
            Ok(seal) => seal,
            // It is being written, or a crash cut it: the next start takes it off.
            Err(CUT) if self.segment.live.is_some() => return,
            Err(error) => {
                let text = format!("line {} of the seals is none: {error}", line.number);
                self.say(file, Finding::new(What::ChangedSeal, text));
                // The next one can follow from it, which nobody knows.
                self.before = self.before.map(|(seal, _)| (seal.saturating_add(1), Hash::default()));
                return;
            }
        };
        self.chain(&seal, &body);
        self.outcome.unsigned_records += seal.records;
        self.sign(&seal);
        // A run, and so a segment, begins with a signature, or with what a crash left: the sensor writes no other. Behind a close
        // nothing is left by a crash: the sensor itself seals what stands there as foreign.
        let begins = self.last.is_none() || self.is_closed;
        let is_left = self.is_closed && seal.kind == Kind::Recovered && seal.octets > 0 && seal.foreign.is_none();
        if is_left || begins && matches!(seal.kind, Kind::Batch | Kind::Removed) {
            let behind = if self.last.is_none() { "at the beginning of a segment" } else { "behind a close" };
            let text = format!("{behind} a run begins, signed; this seal begins none: somebody put it there");
            self.say(file, Finding::new(What::Inserted, text).seal(seal.seal));
        }
        self.is_closed = seal.kind.is_closed(self.is_closed);
        if seal.segment != self.segment.number {
            let text = format!("this seal is one of segment {}", seal.segment);
            self.say(file, Finding::new(What::Swapped, text).seal(seal.seal));
        }
        if seal.offset != self.end {
            let text = format!("it begins at octet {}, where {} should follow", seal.offset, self.end);
            self.say(file, Finding::new(What::ChangedSeal, text).seal(seal.seal));
            self.end = self.end.max(seal.offset);
        }
        if let Some(missing) = seal.missing {
            let text = format!("{missing} octets that were sealed were gone when the sensor looked at {}", seal.time);
            self.say(file, Finding::new(What::Cut, text).seal(seal.seal));
        }
        let Seal { seal: number, kind, segment, offset, octets, records, sha256, time, torn, foreign, .. } = seal;
        if let Some(foreign) = foreign {
            let text = format!(
                "{foreign} octets stood behind the end of a log that was closed: no run of the sensor wrote them, and the next one sealed them as they were"
            );
            let mut finding = Finding::new(What::Inserted, text).seal(number);
            (finding.octets, finding.lines) =
                (Some((offset, offset + octets)), (records > 0).then(|| (self.line, self.line + records - 1)));
            self.say(self.segment.data.as_ref().map_or(file, |data| data.path.as_path()), finding);
        } else if kind == Kind::Recovered && !is_left {
            self.outcome.breaks.push(Break { segment, seal: number, time, records, torn: torn.unwrap_or(0) });
        }
        if octets > 0 {
            self.batches.push(Sealed { seal: number, offset, octets, records, sha256, line: self.line });
        }
        self.line += records;
        self.end = self.end.max(offset + octets);
        self.last = Some(kind);
        self.key = seal.key.or(self.key.take());
        let outcome = &mut self.outcome;
        (outcome.seals, outcome.records, outcome.octets) =
            (outcome.seals + 1, outcome.records + records, outcome.octets + octets);
        let first = outcome.time.map_or(time, |(first, _)| first);
        outcome.time = Some((first, time));
    }

    /// Number, chain and what was kept elsewhere.
    fn chain(&mut self, seal: &Seal, body: &[u8]) {
        let file = &self.segment.seals.path;
        match self.before {
            Some((before, _)) if seal.seal > before.saturating_add(1) => {
                let mut text = "these seals are missing".to_owned();
                if seal.missing_seals.is_some() {
                    text.push_str(", as the sensor noticed itself when it started");
                }
                let mut finding = Finding::new(What::MissingSeals, text);
                finding.seals = Some((before + 1, seal.seal - 1));
                self.say(file, finding);
            }
            Some((before, _)) if seal.seal <= before => {
                let text = format!("it comes behind seal {before}: put there, or out of order");
                self.say(file, Finding::new(What::ChangedSeal, text).seal(seal.seal));
            }
            Some((_, chain)) if chain != Hash::default() && Chain::next(chain, body) != seal.chain => {
                let text = "it does not follow from the seal before: one of the two was changed";
                self.say(file, Finding::new(What::ChangedSeal, text).seal(seal.seal));
            }
            _ => {}
        }
        if self.context.heads.get(&seal.seal).is_some_and(|chain| *chain != seal.chain) {
            let text = "another seal of this number was signed: the log was written anew from here, or before";
            self.say(file, Finding::new(What::ChangedSeal, text).seal(seal.seal));
        }
        self.before = Some((seal.seal, seal.chain));
    }

    fn sign(&mut self, seal: &Seal) {
        let file = &self.segment.seals.path;
        let Some(head) = seal.head(self.context.log) else {
            if seal.signature.is_some() || matches!(seal.kind, Kind::Open | Kind::Close | Kind::Removed) {
                self.say(file, Finding::new(What::Signature, "it must be signed, and is not").seal(seal.seal));
            }
            return;
        };
        if head.is_signed_by(self.context.keys) {
            self.signatures.0 += 1;
            self.outcome.unsigned_records = 0;
            let (seal, time, chain, total_records) = (head.seal, head.time, head.chain, head.total_records);
            self.outcome.signed = Some(Signed { seal, time, chain, total_records });
        } else {
            self.signatures.1.push(seal.seal);
        }
    }

    fn tell_signatures(&mut self) {
        let (good, bad) = std::mem::take(&mut self.signatures);
        let file = &self.segment.seals.path;
        let known: Vec<_> = self.context.keys.iter().map(PublicKey::base64).collect();
        let stranger = self.key.take().filter(|key| good == 0 && !known.contains(key));
        let text = match stranger {
            Some(key) => format!(
                "signed by another key than yours; the seals name {key}: if the sensor had that key, give its sensor.pub, too (--key), else somebody wrote this log anew"
            ),
            None => "the signature does not fit: the seal, or one before it, was changed".to_owned(),
        };
        if let (Some(first), Some(last), 0) = (bad.first(), bad.last(), good) {
            let mut finding = Finding::new(What::Signature, text);
            finding.seals = Some((*first, *last));
            self.say(file, finding);
            return;
        }
        for seal in bad {
            self.say(file, Finding::new(What::Signature, text.clone()).seal(seal));
        }
    }

    fn hold_data(&mut self) {
        let batches = std::mem::take(&mut self.batches);
        let Some(data) = &self.segment.data else {
            if let (Some(first), Some(last)) = (batches.first(), batches.last()) {
                let text = "the file with its records is missing, and no other file holds them";
                let mut finding = Finding::new(What::MissingRecords, text);
                (finding.seals, finding.octets) = (Some((first.seal, last.seal)), Some((0, last.offset + last.octets)));
                finding.lines = Some((1, self.line - 1));
                self.say(&self.segment.seals.path, finding);
            }
            return;
        };
        let opened = data.open().and_then(|(packing, file, path)| {
            let file = Counted { file, read: self.context.progress };
            Ok((unpack(packing, file)?, packing, path))
        });
        let (mut window, packing, path) = match opened {
            Ok((reader, packing, path)) => (Window::new(reader), packing, path),
            Err(error) => {
                let text = format!("its records cannot be read: {error}");
                self.say(&data.path, Finding::new(What::Unreadable, text));
                return;
            }
        };
        let path = path.as_path();
        self.compare(path, &mut window, &batches);
        self.look_behind(path, &mut window);
        if let Some(error) = window.error.take() {
            let text = format!("it cannot be unpacked behind octet {} of its records: {error}", window.position());
            self.say(path, Finding::new(What::Unreadable, text));
        }
        if packing == Packing::Zstd
            && let Some(text) = index::lie(path)
        {
            self.say(&index_of(path), Finding::new(What::Changed, text));
        }
    }

    fn compare(&mut self, path: &Path, window: &mut Window<'_>, batches: &[Sealed]) {
        let (mut index, mut end) = (0, 0);
        while let Some(batch) = batches.get(index) {
            // A seal that is none leaves octets that nothing is known of.
            let unknown = usize::try_from(batch.offset.saturating_sub(end)).unwrap_or(usize::MAX);
            skip(window, unknown);
            let octets = batch.octets as usize;
            let found = window.fill(octets);
            if found.len() == octets && hash(found) == batch.sha256 {
                window.skip(octets);
                (index, end) = (index + 1, batch.offset + batch.octets);
                continue;
            }
            if window.position() == 0 && self.is_swapped(path, batch) {
                return;
            }
            let later = batches.get(index + 1..).unwrap_or_default();
            let total = self.segment.data.as_ref().and_then(total);
            let here = window.position();
            let again = fits_again(window.fill(LOOK), here, batch, later, total);
            let (count, len, next) = match again {
                Some((at, len)) => (at + 1, len, later.get(at).map_or(0, |batch| batch.octets as usize)),
                None => (batches.len() - index, window.fill(LOOK).len(), 0),
            };
            let region = batches.get(index..index + count).unwrap_or_default();
            let finding =
                if again.is_none() && len == LOOK { lost(region) } else { explain(window, region, len, next) };
            if let Some(finding) = finding {
                self.say(path, finding);
            }
            window.skip(len);
            index += count;
            end = batches.get(index).map_or(self.end, |batch| batch.offset);
            if again.is_none() {
                // What follows was looked at with the rest, or is beyond what can be told.
                skip(window, usize::MAX);
                return;
            }
        }
    }

    /// Whether the file holds what another segment should.
    fn is_swapped(&mut self, path: &Path, batch: &Sealed) -> bool {
        let number = self.segment.number;
        let others: Vec<_> =
            self.context.first_batches.iter().copied().filter(|(_, _, other)| *other != number).collect();
        let found = find_renamed(&[path.to_owned()], &others);
        let Some(other) = found.keys().next() else { return false };
        let text = format!("this file holds the records of segment {other}");
        let mut finding = Finding::new(What::Swapped, text);
        finding.octets = Some((batch.offset, self.end));
        finding.lines = Some((1, self.line - 1));
        self.say(path, finding);
        true
    }

    /// Octets behind the last seal are somebody else's, but in a segment that is being written.
    fn look_behind(&mut self, path: &Path, window: &mut Window<'_>) {
        let place = window.position();
        let more = match self.segment.live {
            Some(len) => len.saturating_sub(place.max(self.end)),
            None if self.outcome.findings.is_empty() => skip(window, usize::MAX),
            // Something did not fit, and is told: where it ends is not known.
            None => return,
        };
        if more == 0 {
            return;
        }
        if self.segment.live.is_some() && self.last != Some(Kind::Close) {
            self.outcome.unsealed_octets = more;
            return;
        }
        let text = format!("{more} octets stand behind the last seal: nobody sealed them");
        let mut finding = Finding::new(What::Inserted, text);
        finding.octets = Some((self.end, self.end + more));
        self.say(path, finding);
    }
}

/// Nothing fits any more, and there is too much of it to say why.
fn lost(batches: &[Sealed]) -> Option<Finding> {
    let (first, last) = (batches.first()?, batches.last()?);
    let records: u64 = batches.iter().map(|batch| batch.records).sum();
    let text = format!("from here on nothing fits its seals, {records} records to the end of the segment");
    let mut finding = Finding::new(What::Changed, text);
    finding.seals = Some((first.seal, last.seal));
    finding.octets = Some((first.offset, last.offset + last.octets));
    finding.lines = (records > 0).then(|| (first.line, first.line + records - 1));
    Some(finding)
}

/// Passes over octets; gives how many there were.
fn skip(window: &mut Window<'_>, octets: usize) -> u64 {
    let (mut left, mut passed) = (octets, 0);
    while left > 0 {
        let taken = window.fill(left.min(1 << 20)).len();
        if taken == 0 {
            break;
        }
        window.skip(taken);
        (left, passed) = (left - taken, passed + taken as u64);
    }
    passed
}

/// Octets of a segment as it is now, unpacked.
fn total(data: &Source) -> Option<u64> {
    let (packing, file, _) = data.open().ok()?;
    if packing == Packing::Plain {
        return Some(file.file.metadata().ok()?.len());
    }
    std::io::copy(&mut unpack(packing, file).ok()?, &mut std::io::sink()).ok()
}
