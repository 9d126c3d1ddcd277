//! Turns a folder with sealed logs into what is whole in it and what is not, and where: every segment, plain or packed, in
//! its place or renamed, against its seals, the chain of these, the sensor's public key, and signed heads kept elsewhere.
//! The format is that of `sink::sealed`.

mod align;
mod finding;
mod segment;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::finding::{Break, Finding, Report, Signed, What};
use self::segment::{Context, Outcome, Segment};
use crate::sink::sealed::key::PublicKey;
use crate::sink::sealed::seal::{Chain, Hash, Head, Kind, Seal};
use crate::sink::sealed::segments::{self, Files, Listing};

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The folder.
    #[error("{path}: the log's folder cannot be read: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error(
        "{0}: no sealed log is there (no file X.seals): name the folder that `linewarden run` writes to, its setting records.dir"
    )]
    NoLog(PathBuf),
}

/// By what logs are verified.
pub struct Means<'a> {
    /// The sensor's public keys.
    pub keys: &'a [PublicKey],
    /// Signed heads that were kept elsewhere; read before the log is.
    pub heads: &'a [Head],
    /// Threads.
    pub threads: usize,
    /// Hears of each octet taken from a disk.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Octets that verification of a folder will take from the disk.
pub fn work(folder: &Path, heads: &[Head]) -> Result<u64, VerifyError> {
    let mut octets = 0;
    for log in logs(folder, heads)? {
        let listing = list(folder, &log)?;
        octets += listing.live.octets + listing.closed.values().map(|files| files.octets).sum::<u64>();
    }
    Ok(octets)
}

/// Verifies all logs of a folder.
pub fn verify(folder: &Path, means: &Means<'_>) -> Result<Vec<Report>, VerifyError> {
    logs(folder, means.heads)?.into_iter().map(|log| verify_log(folder, log, means)).collect()
}

/// Those that have seals here, and those of which heads were kept: a whole log may have been taken away.
fn logs(folder: &Path, heads: &[Head]) -> Result<Vec<String>, VerifyError> {
    let mut logs = segments::logs(folder).map_err(|source| VerifyError::Folder { path: folder.to_owned(), source })?;
    logs.extend(heads.iter().map(|head| head.log.clone()));
    if logs.is_empty() { Err(VerifyError::NoLog(folder.to_owned())) } else { Ok(logs.into_iter().collect()) }
}

fn list(folder: &Path, log: &str) -> Result<Listing, VerifyError> {
    Listing::read(folder, log).map_err(|source| VerifyError::Folder { path: folder.to_owned(), source })
}

/// What the seals of a segment say, before they are held to anything.
struct Claim {
    seals: PathBuf,
    data: Option<PathBuf>,
    live: Option<u64>,
    /// What the file's name says.
    named: Option<u64>,
    first: Seal,
    last: Seal,
    first_batch: Option<(u64, Hash)>,
    removed: Option<Seal>,
}

struct Verification<'a> {
    folder: &'a Path,
    log: String,
    means: &'a Means<'a>,
    /// The latest that is there.
    last_seal: u64,
    report: Report,
}

fn verify_log(folder: &Path, log: String, means: &Means<'_>) -> Result<Report, VerifyError> {
    let report = Report { log: log.clone(), ..Report::default() };
    let mut this = Verification { folder, log, means, last_seal: 0, report };
    let (claims, others) = this.claims()?;
    let segments = this.order(claims, &others);
    this.hold(&segments);
    this.report.is_whole = this.report.findings.is_empty();
    Ok(this.report)
}

/// Whether a file of seals has no whole line yet: a crash came before the first one of the segment that was begun. Where it was
/// emptied, heads that were kept know of more seals.
fn is_begun(path: &Path) -> bool {
    let is_short = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() <= segments::MAX_LINE);
    is_short && std::fs::read(path).is_ok_and(|octets| !octets.contains(&b'\n'))
}

impl Verification<'_> {
    fn say(&mut self, segment: Option<u64>, file: Option<&Path>, finding: Finding) {
        self.report.findings.push(Finding { segment, file: file.map(Path::to_owned), ..finding });
    }

    /// What is there, by what the seals say.
    fn claims(&mut self) -> Result<(Vec<Claim>, Vec<PathBuf>), VerifyError> {
        let folder = self.folder;
        // What is written meanwhile is not looked at: lines are there before their seals.
        let live_data = segments::live(folder, &self.log, segments::DATA);
        let live_octets = std::fs::metadata(&live_data).map_or(0, |metadata| metadata.len());
        let mut listing = list(folder, &self.log)?;
        let (mut claims, mut unsealed, mut bare) = (Vec::new(), live_octets, Vec::new());
        if let Some(path) = listing.live.seals.clone()
            && let Some(mut claim) = self.claim(&path, None)
        {
            // A rotation that is under way has renamed the records, and not yet the seals.
            let renamed = listing.closed.get_mut(&claim.first.segment);
            if let Some(files) = renamed.filter(|files| files.seals.is_none() && files.data.is_some()) {
                // It is done here.
                claim.data = files.data.take();
                // So far it may have octets that are not sealed.
                claim.live = Some(files.octets);
                files.seals = Some(path);
            } else {
                claim.data.clone_from(&listing.live.data);
                claim.live = Some(live_octets);
                unsealed = 0;
            }
            claims.push(claim);
        }
        let taken: Vec<PathBuf> = claims.iter().map(|claim| claim.seals.clone()).collect();
        for (number, Files { seals, data, octets, .. }) in &listing.closed {
            match (seals, data) {
                (Some(seals), _) if taken.contains(seals) => {}
                (Some(seals), data) => {
                    if let Some(mut claim) = self.claim(seals, Some(*number)) {
                        claim.data.clone_from(data);
                        claims.push(claim);
                    }
                }
                (None, Some(data)) => bare.push((*number, data, *octets)),
                (None, None) => {}
            }
        }
        let newest = claims.iter().map(|claim| claim.first.segment).max();
        for (number, data, octets) in bare {
            if Some(number) > newest {
                // A crash came between the records and their seals: the next start seals them.
                unsealed += octets;
                continue;
            }
            let text = "the seals of these records are missing: nothing says whether they are whole";
            self.say(Some(number), Some(data), Finding::new(What::MissingSeals, text));
        }
        self.report.unsealed_octets = unsealed;
        Ok((claims, listing.others))
    }

    fn claim(&mut self, path: &Path, named: Option<u64>) -> Option<Claim> {
        let (mut claim, mut before) = (None::<Claim>, None);
        let read = segments::read_seals(path, |line| {
            let Ok((seal, body)) = line.seal else { return };
            // The signature is over the chain: it vouches for what the seal says only where the chain is over that.
            let is_chained = before.is_some_and(|chain| Chain::next(chain, &body) == seal.chain);
            before = Some(seal.chain);
            let claim = claim.get_or_insert_with(|| Claim {
                seals: path.to_owned(),
                data: None,
                live: None,
                named,
                first: seal.clone(),
                last: seal.clone(),
                first_batch: None,
                removed: None,
            });
            if seal.octets > 0 && claim.first_batch.is_none() {
                claim.first_batch = Some((seal.octets, seal.sha256));
            }
            let is_kept = |removed_to| seal.segment > removed_to && named.is_none_or(|named| named > removed_to);
            if seal.kind == Kind::Removed
                && is_chained
                && seal.removed_to.is_some_and(is_kept)
                && seal.head(&self.log).is_some_and(|head| head.is_signed_by(self.means.keys))
            {
                claim.removed = Some(seal.clone());
            }
            claim.last = seal;
        });
        if let Err(error) = read {
            self.say(named, Some(path), Finding::new(What::Unreadable, format!("its seals cannot be read: {error}")));
        } else if claim.is_none() && !(named.is_none() && is_begun(path)) {
            let text = "there is no seal in the file: emptied, or overwritten";
            self.say(named, Some(path), Finding::new(What::MissingSeals, text));
        }
        claim
    }

    /// Segments in their order, with what is missing between them.
    fn order(&mut self, mut claims: Vec<Claim>, others: &[PathBuf]) -> Vec<Segment> {
        claims.sort_by_key(|claim| (claim.first.segment, claim.first.seal));
        let removed =
            claims.iter().filter_map(|claim| claim.removed.as_ref()).max_by_key(|seal| seal.removed_to).cloned();
        let removed_to = removed.as_ref().and_then(|seal| seal.removed_to);
        self.report.removed_to = removed_to;
        // An interrupted removal leaves some of them. What names itself otherwise than its file is none of these.
        let is_left =
            |claim: &Claim| claim.named.is_some_and(|named| removed_to >= Some(named) && claim.first.segment == named);
        claims.retain(|claim| !is_left(claim));

        let wanted: Vec<_> = claims
            .iter()
            .filter(|claim| claim.data.is_none() || claim.live.is_some_and(|len| len < claim.last.end()))
            .filter_map(|claim| claim.first_batch.map(|(octets, hash)| (octets, hash, claim.first.segment)))
            .collect();
        let mut renamed = segments::find_renamed(others, &wanted);

        let mut segments = Vec::<Segment>::new();
        let mut before = None::<(u64, u64, Hash)>;
        for claim in claims {
            let (number, first) = (claim.first.segment, &claim.first);
            if let Some(named) = claim.named.filter(|named| *named != number) {
                let text = format!("the file is named as segment {named}, and holds segment {number}");
                self.say(Some(number), Some(&claim.seals), Finding::new(What::Swapped, text));
            }
            if segments.last().is_some_and(|last| last.number == number) {
                let text = "there are two files of seals for this segment: one was put there";
                self.say(Some(number), Some(&claim.seals), Finding::new(What::Inserted, text));
                continue;
            }
            let known = match before {
                Some((segment, seal, chain)) => {
                    if number > segment + 1 {
                        let mut finding = Finding::new(What::MissingSegment, missing_segments(segment + 1, number - 1));
                        finding.seals = Some((seal + 1, first.seal.saturating_sub(1))).filter(|(from, to)| from <= to);
                        self.say(Some(segment + 1), None, finding);
                        None
                    } else {
                        Some((seal, chain))
                    }
                }
                None if first.seal == 1 || first.missing_seals.is_some() => Some((0, Chain::new(&self.log).value)),
                None => self.beginning(number, first, removed.as_ref()),
            };
            before = Some((number, claim.last.seal, claim.last.chain));
            self.last_seal = self.last_seal.max(claim.last.seal);
            let (data, live) = match renamed.remove(&number) {
                Some(path) => (Some(path), None),
                None => (claim.data, claim.live),
            };
            segments.push(Segment { number, seals: claim.seals, data, live, before: known });
        }
        segments
    }

    /// What the first segment that is there must follow from.
    fn beginning(&mut self, number: u64, first: &Seal, removed: Option<&Seal>) -> Option<(u64, Hash)> {
        let said = removed.filter(|seal| seal.removed_to == number.checked_sub(1)).and_then(|seal| seal.removed_chain);
        if let Some(chain) = said {
            return Some((first.seal.saturating_sub(1), chain));
        }
        let from = removed.and_then(|seal| seal.removed_to).unwrap_or(0) + 1;
        let text = format!(
            "{}, and no signed seal says that retention removed it",
            missing_segments(from, number.saturating_sub(1))
        );
        let mut finding = Finding::new(What::MissingSegment, text);
        finding.seals = (removed.is_none() && first.seal > 1).then(|| (1, first.seal - 1));
        self.say(Some(from), None, finding);
        None
    }

    /// Holds every segment to its seals, on all threads.
    fn hold(&mut self, segments: &[Segment]) {
        let heads: Vec<&Head> = self.means.heads.iter().filter(|head| head.log == self.log).collect();
        let (good, bad): (Vec<&Head>, Vec<&Head>) =
            heads.into_iter().partition(|head| head.is_signed_by(self.means.keys));
        let chains: BTreeMap<u64, Hash> = good.iter().map(|head| (head.seal, head.chain)).collect();
        let first_batches = first_batches(segments);
        let context = Context {
            log: &self.log,
            keys: self.means.keys,
            heads: &chains,
            first_batches: &first_batches,
            progress: self.means.progress,
        };
        let outcomes = in_parallel(segments, self.means.threads, |segment| {
            let mut segment = segment.clone();
            loop {
                let outcome = segment::verify(&segment, &context);
                // The sensor may have closed or compressed it meanwhile: then it is looked at again, where it is now.
                match moved(self.folder, &self.log, &segment) {
                    Some(now) if !outcome.findings.is_empty() => segment = now,
                    _ => return outcome,
                }
            }
        });
        for outcome in outcomes {
            self.add(outcome);
        }
        self.report.segments = segments.len() as u64;
        self.report.heads = good.len() as u64;
        if let (Some(first), Some(last)) = (bad.first(), bad.last()) {
            let text = format!(
                "{} signed heads that were kept are not signed by your key: they were changed, or the sensor had another key then (--key)",
                bad.len()
            );
            let mut finding = Finding::new(What::Signature, text);
            finding.seals = Some((first.seal.min(last.seal), first.seal.max(last.seal)));
            self.say(None, None, finding);
        }
        let Some(head) = good.into_iter().max_by_key(|head| head.seal) else { return };
        if head.seal > self.last_seal {
            let there = self.report.signed.as_ref().map_or(0, |signed| signed.total_records);
            let text = format!(
                "the log ends before what the sensor signed at {}: about {} records are missing at its end",
                head.time,
                head.total_records.saturating_sub(there)
            );
            let mut finding = Finding::new(What::Cut, text);
            finding.seals = Some((self.last_seal.saturating_add(1), head.seal));
            self.say(Some(head.segment), None, finding);
        }
    }

    fn add(&mut self, outcome: Outcome) {
        let report = &mut self.report;
        report.seals += outcome.seals;
        report.records += outcome.records;
        report.octets += outcome.octets;
        report.unsealed_octets += outcome.unsealed_octets;
        report.time = match (report.time, outcome.time) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (time, None) | (None, time) => time,
        };
        report.unsigned_records =
            outcome.unsigned_records + if outcome.signed.is_none() { report.unsigned_records } else { 0 };
        report.signed = outcome.signed.or(report.signed.take());
        report.breaks.extend(outcome.breaks);
        report.findings.extend(outcome.findings);
        report.findings_left_out += outcome.left_out;
    }
}

/// Where a segment is now, if it is not where it was.
fn moved(folder: &Path, log: &str, segment: &Segment) -> Option<Segment> {
    let mut now = segment.clone();
    if segment.live.is_some() {
        let listing = Listing::read(folder, log).ok()?;
        let files = listing.closed.get(&segment.number)?;
        now.data = Some(files.data.clone()?);
        now.seals = files.seals.clone().unwrap_or(now.seals);
        now.live = None;
    } else if let Some(data) = now.data.as_mut().filter(|data| !data.exists()) {
        data.as_mut_os_string().push(".zst");
        now.data.as_ref().filter(|data| data.exists())?;
    }
    (now != *segment).then_some(now)
}

fn missing_segments(from: u64, to: u64) -> String {
    if from >= to { format!("segment {from} is missing") } else { format!("segments {from} to {to} are missing") }
}

fn first_batches(segments: &[Segment]) -> Vec<(u64, Hash, u64)> {
    let mut found = Vec::new();
    for segment in segments {
        let mut first = None;
        // What cannot be read is told where it is verified.
        let _ = segments::read_seals(&segment.seals, |line| {
            if first.is_none()
                && let Ok((seal, _)) = line.seal
                && seal.octets > 0
            {
                first = Some((seal.octets, seal.sha256, segment.number));
            }
        });
        found.extend(first);
    }
    found
}

/// The largest files are the oldest: taken in order, whoever is free takes the next.
fn in_parallel(segments: &[Segment], threads: usize, verify: impl Fn(&Segment) -> Outcome + Sync) -> Vec<Outcome> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, segments.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(segment) = segments.get(index) else { break };
                    let outcome = verify(segment);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, outcome);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}
