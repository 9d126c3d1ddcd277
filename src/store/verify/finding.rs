//! What verification has to say: findings, where a log is not whole, and breaks, which the sensor itself recorded.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::sink::sealed::seal::Hash;
use crate::time::Timestamp;

/// What happened to a part of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Records are not what was sealed.
    Changed,
    /// Records are missing in between.
    Removed,
    /// There are records that were not sealed.
    Inserted,
    /// The same records in another order.
    Reordered,
    /// The end is missing.
    Cut,
    /// Files have each other's name or content.
    Swapped,
    /// Both files of a segment are missing.
    MissingSegment,
    /// The records of a segment are missing.
    MissingRecords,
    /// Seals are missing.
    MissingSeals,
    /// A seal is not what was written.
    ChangedSeal,
    /// A signature is not the sensor's.
    Signature,
    /// A file cannot be read.
    Unreadable,
}

/// A place where a log is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What happened.
    pub what: What,
    /// The segment.
    pub segment: Option<u64>,
    /// The file that shows it.
    pub file: Option<PathBuf>,
    /// First and last seal that it concerns.
    pub seals: Option<(u64, u64)>,
    /// Sealed octets of the segment, uncompressed: from, and up to and not including.
    pub octets: Option<(u64, u64)>,
    /// First and last line of the segment as it was sealed.
    pub lines: Option<(u64, u64)>,
    /// Sequence numbers (`seq`) of records that are missing, first and last of each run of them.
    pub missing_seq: Vec<(u64, u64)>,
    /// In words.
    pub text: String,
}

/// A run that did not end as it should, as the next one found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Break {
    /// The segment.
    pub segment: u64,
    /// The seal that says so.
    pub seal: u64,
    /// When it was sealed.
    pub time: Timestamp,
    /// Records that had not been sealed before: until then nothing guarded them.
    pub records: u64,
    /// Octets of half a record that were taken off.
    pub torn: u64,
}

/// The latest signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// The seal that is signed.
    pub seal: u64,
    /// When.
    pub time: Timestamp,
    /// The chain there.
    pub chain: Hash,
    /// Records since seal 1.
    pub total_records: u64,
}

/// What became of one log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Its name.
    pub log: String,
    /// Nothing was found.
    pub is_whole: bool,
    /// Segments that are there.
    pub segments: u64,
    /// Seals that are there.
    pub seals: u64,
    /// Records that they cover.
    pub records: u64,
    /// Their octets, uncompressed.
    pub octets: u64,
    /// When the first and the last seal were made.
    pub time: Option<(Timestamp, Timestamp)>,
    /// The latest signature that verifies.
    pub signed: Option<Signed>,
    /// Records behind it: sealed, and guarded against accidents only.
    pub unsigned_records: u64,
    /// Heads kept elsewhere that were compared.
    pub heads: u64,
    /// Retention removed segments up to this one; signed.
    pub removed_to: Option<u64>,
    /// Octets behind the last seal, of a log that is being written.
    pub unsealed_octets: u64,
    /// Files with records that no seal here is of: retention may have removed what was.
    pub unclaimed: Vec<PathBuf>,
    /// Runs that did not end as they should.
    pub breaks: Vec<Break>,
    /// Where it is not whole, in the order of the log.
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub findings_left_out: u64,
}

impl Finding {
    pub(super) fn new(what: What, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { what, segment: None, file: None, seals: None, octets: None, lines: None, missing_seq: Vec::new(), text }
    }

    pub(super) fn seal(mut self, seal: u64) -> Self {
        self.seals = Some((seal, seal));
        self
    }
}

impl What {
    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Inserted => "inserted",
            Self::Reordered => "reordered",
            Self::Cut => "cut",
            Self::Swapped => "swapped",
            Self::MissingSegment => "missing_segment",
            Self::MissingRecords => "missing_records",
            Self::MissingSeals => "missing_seals",
            Self::ChangedSeal => "changed_seal",
            Self::Signature => "signature",
            Self::Unreadable => "unreadable",
        }
    }
}

impl fmt::Display for Finding {
    /// One line: what, where, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what.name())?;
        if let Some(segment) = self.segment {
            write!(f, ", segment {segment}")?;
        }
        let range = |f: &mut fmt::Formatter<'_>, what: &str, range: Option<(u64, u64)>| match range {
            None => Ok(()),
            Some((from, to)) if from == to => write!(f, ", {what} {from}"),
            Some((from, to)) => write!(f, ", {what}s {from} to {to}"),
        };
        range(f, "seal", self.seals)?;
        range(f, "line", self.lines)?;
        if let Some((from, to)) = self.octets {
            write!(f, ", octets {from} to {to}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ", {}", file.display())?;
        }
        write!(f, ": {}", self.text)?;
        if !self.missing_seq.is_empty() {
            let runs = self
                .missing_seq
                .iter()
                .map(|(from, to)| if from == to { from.to_string() } else { format!("{from} to {to}") });
            write!(f, "; records missing by seq: {}", runs.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, seal, time, records, torn } = self;
        write!(
            f,
            "segment {segment}, seal {seal}, {time}: a run had ended without closing the log; {records} records behind its last seal were sealed then"
        )?;
        if *torn > 0 { write!(f, ", half a record of {torn} octets was taken off") } else { Ok(()) }
    }
}
