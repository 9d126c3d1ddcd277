//! Turns a folder with sealed logs into what is whole in it and what is not, and where: every segment, plain or packed, in
//! its place or renamed, against its seals, the chain of these, the sensor's public key, and signed heads kept elsewhere.
//! The format is that of `sink::sealed`.

mod align;
mod finding;
mod index;
mod segment;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::finding::{Break, Finding, Report, Signed, What};
use self::segment::{Context, Outcome, Segment};
use crate::sink::sealed::key::PublicKey;
use crate::sink::sealed::seal::{Batch, Chain, Hash, Head, Kind, Seal};
use crate::sink::sealed::segments::{self, Listing, SealLine, read_seals_from};
use crate::store::folder::{Folder, Source, Stranger, Why};

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
    /// Nothing is known of what may not be read.
    #[error("{0}: may not be read by this user: whether the log is whole cannot be told")]
    Denied(PathBuf),
    /// There is nothing in it.
    #[error(
        "{0}: no sealed log is there (no file X.seals): name the folder that `linewarden run` writes to, its setting records.dir"
    )]
    NoLog(PathBuf),
}

impl VerifyError {
    /// Another user could.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Folder { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Denied(_) => true,
            Self::NoLog(_) => false,
        }
    }
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
    logs(folder, means.heads)?.iter().map(|log| verify_log(folder, log, means)).collect()
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
    seals: Source,
    data: Option<Source>,
    live: Option<u64>,
    /// What the file's name says.
    named: Option<u64>,
    first: Seal,
    last: Seal,
    first_batch: Option<(u64, Hash)>,
    removed: Option<Seal>,
}

/// Segments that were found whole, by number, with where they lay.
type Known = BTreeMap<u64, (Segment, Outcome)>;

struct Verification<'a> {
    log: String,
    means: &'a Means<'a>,
    /// The latest that is there.
    last_seal: u64,
    report: Report,
}

/// Looks that are taken at a log that is being rotated.
const LOOKS: usize = 8;

/// A log may be rotated, packed and cut by retention meanwhile: where names changed while something was found, all is looked
/// at again, and what stays is told.
fn verify_log(folder: &Path, log: &str, means: &Means<'_>) -> Result<Report, VerifyError> {
    let failed = |source| VerifyError::Folder { path: folder.to_owned(), source };
    let (mut known, mut before) = (Known::new(), None::<Report>);
    let mut looks = 1;
    loop {
        let there = Folder::open(folder, log).map_err(failed)?;
        if let Some(path) = there.denied() {
            return Err(VerifyError::Denied(path));
        }
        let listing = there.listing.clone();
        let report = Report { log: log.to_owned(), ..Report::default() };
        let mut this = Verification { log: log.to_owned(), means, last_seal: 0, report };
        let claims = this.claims(&there);
        let segments = this.order(claims);
        this.tell_strangers(&there.strangers, &segments);
        this.hold(&segments, &mut known);
        let mut report = this.report;
        let stays = |finding: &Finding| {
            before.as_ref().is_some_and(|before| {
                before.findings.iter().any(|one| (one.what, one.segment) == (finding.what, finding.segment))
            })
        };
        let is_settled = report.findings.iter().all(stays) || list(folder, log)?.has_names_of(&listing);
        if is_settled || looks == LOOKS {
            if !is_settled {
                report.findings.retain(stays);
            }
            report.is_whole = report.findings.is_empty();
            return Ok(report);
        }
        (before, looks) = (Some(report), looks + 1);
    }
}

/// Whether a file of seals has no whole line yet: a crash came before the first one of the segment that was begun. Where it was
/// emptied, heads that were kept know of more seals.
fn is_begun(seals: &Source) -> bool {
    let is_short = seals.metadata().is_ok_and(|metadata| metadata.len() <= segments::MAX_LINE);
    let mut octets = Vec::new();
    let read = seals.open().and_then(|(_, mut file, _)| file.read_to_end(&mut octets));
    is_short && read.is_ok() && !octets.contains(&b'\n')
}

impl Verification<'_> {
    fn say(&mut self, segment: Option<u64>, file: Option<&Path>, finding: Finding) {
        self.report.findings.push(Finding { segment, file: file.map(Path::to_owned), ..finding });
    }

    /// What is there, by what the seals say.
    fn claims(&mut self, folder: &Folder) -> Vec<Claim> {
        let (mut claims, mut bare) = (Vec::new(), Vec::new());
        for part in &folder.parts {
            let claim =
                part.seals.as_ref().and_then(|seals| self.claim(seals, part.number.filter(|_| seals.held.is_none())));
            match (claim, &part.data) {
                (Some(claim), data) => claims.push(Claim { data: data.clone(), live: part.live, ..claim }),
                // Seals that are no seals were told.
                (None, Some(data)) if part.seals.is_none() || part.number.is_none() => bare.push((part.number, data)),
                (None, _) => {}
            }
        }
        let newest = claims.iter().map(|claim| claim.first.segment).max();
        for (number, data) in bare {
            if number.is_none() || number > newest {
                // A crash came between the records and their seals: the next start seals them.
                self.report.unsealed_octets += data.metadata().map_or(0, |metadata| metadata.len());
                continue;
            }
            let text = "the seals of these records are missing: nothing says whether they are whole";
            self.say(number, Some(&data.path), Finding::new(What::MissingSeals, text));
        }
        claims
    }

    /// Files that are no part of the log, and that others could take for one.
    fn tell_strangers(&mut self, strangers: &[Stranger], segments: &[Segment]) {
        for stranger in strangers {
            let what = match stranger.why {
                Why::Double | Why::Unclaimed => What::Inserted,
                Why::Special => What::Unreadable,
                Why::Packed => {
                    let segment = segments.iter().find(|segment| Some(segment.number) == stranger.number);
                    let plain = segment.and_then(|segment| segment.data.as_ref());
                    if plain.is_some_and(|plain| holds_the_same(plain, &stranger.path)) {
                        continue;
                    }
                    What::Inserted
                }
            };
            // Of what retention removes, its seals may go and its records stay: where somebody else renamed them, or packing was
            // under way.
            let removed_to = self.report.removed_to;
            if stranger.why == Why::Unclaimed && removed_to.is_some() && stranger.number <= removed_to {
                self.report.unclaimed.push(stranger.path.clone());
                continue;
            }
            self.say(stranger.number, Some(&stranger.path), Finding::new(what, stranger.to_string()));
        }
    }

    fn claim(&mut self, seals: &Source, named: Option<u64>) -> Option<Claim> {
        let (mut claim, mut before) = (None::<Claim>, None);
        let take = |line: SealLine| {
            let Ok((seal, body)) = line.seal else { return };
            // The signature is over the chain: it vouches for what the seal says only where the chain is over that.
            let is_chained = before.is_some_and(|chain| Chain::next(chain, &body) == seal.chain);
            before = Some(seal.chain);
            let claim = claim.get_or_insert_with(|| Claim {
                seals: seals.clone(),
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
        };
        let read = seals.open().and_then(|(_, file, _)| read_seals_from(file, take));
        let path = Some(&*seals.path);
        if let Err(error) = read {
            self.say(named, path, Finding::new(What::Unreadable, format!("its seals cannot be read: {error}")));
        } else if claim.is_none() && !(named.is_none() && is_begun(seals)) {
            let text = "there is no seal in the file: emptied, or overwritten";
            self.say(named, path, Finding::new(What::MissingSeals, text));
        }
        claim
    }

    /// Segments in their order, with what is missing between them.
    fn order(&mut self, mut claims: Vec<Claim>) -> Vec<Segment> {
        claims.sort_by_key(|claim| (claim.first.segment, claim.first.seal));
        let removed =
            claims.iter().filter_map(|claim| claim.removed.as_ref()).max_by_key(|seal| seal.removed_to).cloned();
        let removed_to = removed.as_ref().and_then(|seal| seal.removed_to);
        self.report.removed_to = removed_to;
        // An interrupted removal leaves some of them. What still has its records is held to them; what names itself otherwise
        // than its file is none of these.
        let is_left =
            |claim: &Claim| claim.named.is_some_and(|named| removed_to >= Some(named) && claim.first.segment == named);
        claims.retain(|claim| !is_left(claim) || claim.data.is_some());

        let mut segments = Vec::<Segment>::new();
        let mut before = None::<(u64, u64, Hash)>;
        for claim in claims {
            let (number, first) = (claim.first.segment, &claim.first);
            if let Some(named) = claim.named.filter(|named| *named != number) {
                let text = format!("the file is named as segment {named}, and holds segment {number}");
                self.say(Some(number), Some(&claim.seals.path), Finding::new(What::Swapped, text));
            }
            if segments.last().is_some_and(|last| last.number == number) {
                let text = "there are two files of seals for this segment: one was put there";
                self.say(Some(number), Some(&claim.seals.path), Finding::new(What::Inserted, text));
                continue;
            }
            let known = match before {
                Some((segment, seal, chain)) => {
                    if number > segment.saturating_add(1) {
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
            let Claim { seals, data, live, first_batch, .. } = claim;
            segments.push(Segment { number, seals, data, live, before: known, first_batch });
        }
        segments
    }

    /// What the first segment that is there must follow from.
    fn beginning(&mut self, number: u64, first: &Seal, removed: Option<&Seal>) -> Option<(u64, Hash)> {
        let said = removed.filter(|seal| seal.removed_to == number.checked_sub(1)).and_then(|seal| seal.removed_chain);
        if let Some(chain) = said {
            return Some((first.seal.saturating_sub(1), chain));
        }
        // An interrupted removal leaves whole segments: the next one follows from them. Only what the first seal says itself is
        // held to nothing, which may not be records.
        if removed.is_some_and(|seal| seal.removed_to >= Some(number)) && first.octets == 0 {
            return None;
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
    fn hold(&mut self, segments: &[Segment], known: &mut Known) {
        let heads: Vec<&Head> = self.means.heads.iter().filter(|head| head.log == self.log).collect();
        let (good, bad): (Vec<&Head>, Vec<&Head>) =
            heads.into_iter().partition(|head| head.is_signed_by(self.means.keys));
        let chains: BTreeMap<u64, Hash> = good.iter().map(|head| (head.seal, head.chain)).collect();
        let first_batches: Vec<_> = segments
            .iter()
            .filter_map(|segment| segment.first_batch.map(|(octets, hash)| (octets, hash, segment.number)))
            .collect();
        let context = Context {
            log: &self.log,
            keys: self.means.keys,
            heads: &chains,
            first_batches: &first_batches,
            progress: self.means.progress,
        };
        let outcomes = in_parallel(segments, self.means.threads, |segment| match known.get(&segment.number) {
            Some((before, outcome)) if before.is_where(segment) => outcome.clone(),
            _ => segment::verify(segment, &context),
        });
        for (segment, outcome) in segments.iter().zip(outcomes) {
            if outcome.findings.is_empty() {
                known.insert(segment.number, (segment.clone(), outcome.clone()));
            }
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

fn missing_segments(from: u64, to: u64) -> String {
    if from >= to { format!("segment {from} is missing") } else { format!("segments {from} to {to} are missing") }
}

/// Whether an archive holds the records of the plain file that lies beside it.
fn holds_the_same(plain: &Source, archive: &Path) -> bool {
    let digest = |source: &Source| {
        let (packing, file, _) = source.open()?;
        let mut hash = Batch::default();
        let mut buffer = vec![0; 1 << 16];
        let mut records = segments::unpack(packing, file)?;
        loop {
            match records.read(&mut buffer)? {
                0 => return io::Result::Ok(hash.hash()),
                taken => hash.add(buffer.get(..taken).unwrap_or_default(), 0),
            }
        }
    };
    matches!((digest(plain), digest(&Source::of(archive.to_owned()))), (Ok(one), Ok(other)) if one == other)
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
