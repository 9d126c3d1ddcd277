//! Turns lines of a log into what a reader asks before it decompresses them: when they are from and what occurs in them.
//!
//! NDJSON beside the archive: a first line of type [`Header`], then a [`Frame`] a line, in the order of the archive. It is
//! made of the log and proves nothing: the seals do.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Version of the index's format.
pub const VERSION: u32 = 1;

/// The protocol's name of a record without a tunnel.
pub const NO_TUNNEL: &str = "none";

/// Values of one field that occur; one of too many values may hold any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Names(BTreeSet<String>);

/// Stands for every value.
const ANY: &str = "*";
/// More values than any field of the log's own format has.
const MOST: usize = 100;

impl Names {
    /// Whether such a value may occur.
    #[must_use]
    pub fn may_hold(&self, name: &str) -> bool {
        self.0.contains(name) || self.0.contains(ANY)
    }

    fn add(&mut self, name: &str) {
        if self.may_hold(name) {
            return;
        }
        if self.0.len() == MOST {
            self.0.clear();
            self.0.insert(ANY.to_owned());
        } else {
            self.0.insert(name.to_owned());
        }
    }
}

/// What some lines hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Lines.
    pub lines: u64,
    /// Lines that are no JSON object with a time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// Earliest start of a flow; of a line without a flow, its time.
    pub start: Option<Timestamp>,
    /// Earliest time of a line.
    pub first: Option<Timestamp>,
    /// Latest time of a line.
    pub last: Option<Timestamp>,
    /// Values of `kind`.
    pub kinds: Names,
    /// Values of `verdict`.
    pub labels: Names,
    /// Values of `tunnel`; [`NO_TUNNEL`] for null.
    pub protocols: Names,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is asked of a line.
#[derive(Deserialize)]
struct Glance<'a> {
    time: Timestamp,
    start: Option<Timestamp>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    verdict: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tunnel: Option<Cow<'a, str>>,
}

impl Contents {
    /// Of whole lines.
    #[must_use]
    pub fn of(lines: &[u8]) -> Self {
        let mut contents = Self::default();
        for line in lines.split_inclusive(|&octet| octet == b'\n') {
            contents.lines += 1;
            contents.add(line);
        }
        contents
    }

    fn add(&mut self, line: &[u8]) {
        let Ok(glance) = serde_json::from_slice::<Glance<'_>>(line) else {
            self.unreadable += 1;
            return;
        };
        self.span(Some(glance.start.unwrap_or(glance.time)), Some(glance.time), Some(glance.time));
        if let Some(kind) = glance.kind {
            self.kinds.add(&kind);
        }
        if let Some(label) = glance.verdict {
            self.labels.add(&label);
            self.protocols.add(glance.tunnel.as_deref().unwrap_or(NO_TUNNEL));
        }
    }

    fn span(&mut self, start: Option<Timestamp>, first: Option<Timestamp>, last: Option<Timestamp>) {
        self.start = self.start.into_iter().chain(start).min();
        self.first = self.first.into_iter().chain(first).min();
        self.last = self.last.max(last);
    }

    /// Whether nothing that is asked for by this is missed in lines that hold that.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let is_within = |least: Option<Timestamp>, other: Option<Timestamp>| {
            other.is_none_or(|other| least.is_some_and(|least| least <= other))
        };
        let names = [(&self.kinds, &other.kinds), (&self.labels, &other.labels), (&self.protocols, &other.protocols)];
        is_within(self.start, other.start)
            && is_within(self.first, other.first)
            && self.last >= other.last
            && names.iter().all(|(own, others)| others.0.iter().all(|name| own.may_hold(name)))
    }

    /// Takes in what other lines hold.
    pub fn join(&mut self, other: &Self) {
        self.lines += other.lines;
        self.unreadable += other.unreadable;
        self.span(other.start, other.first, other.last);
        let pairs = [
            (&mut self.kinds, &other.kinds),
            (&mut self.labels, &other.labels),
            (&mut self.protocols, &other.protocols),
        ];
        for (names, more) in pairs {
            more.0.iter().for_each(|name| names.add(name));
        }
    }
}

/// A frame of more octets is none of ours: its archive is read without the index.
pub const LARGEST_FRAME: u64 = 32 << 20;

impl Frame {
    /// Whether [`super::compress`] could have made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.plain_octets.max(self.octets) <= LARGEST_FRAME
    }
}

/// An archive as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub index: u32,
    /// Length of the archive.
    pub octets: u64,
    /// Length of what it was made of.
    pub plain_octets: u64,
    /// Frames, as many lines follow.
    pub frames: u64,
    /// What they hold.
    #[serde(flatten)]
    pub contents: Contents,
}

/// One zstd frame, which decompresses by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Where it begins in the archive.
    pub offset: u64,
    /// Its length there.
    pub octets: u64,
    /// Its length decompressed.
    pub plain_octets: u64,
    /// What it holds.
    #[serde(flatten)]
    pub contents: Contents,
}

/// An index being read, a frame after the other.
#[derive(Debug)]
pub struct Index {
    /// The archive as a whole.
    pub header: Header,
    lines: Lines<BufReader<File>>,
}

impl Index {
    /// Opens the index of an archive; an index of another archive or version is an error of kind `InvalidData`.
    pub fn open(archive: &Path) -> io::Result<Self> {
        let mut lines = BufReader::new(File::open(index_of(archive))?).lines();
        let line = lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
        let header: Header = serde_json::from_str(&line)?;
        let octets = std::fs::metadata(archive)?.len();
        if header.index != VERSION || header.octets != octets {
            return Err(invalid("the index is of another archive or version"));
        }
        Ok(Self { header, lines })
    }

    /// All frames, in order; an error where they do not cover the archive exactly.
    pub fn frames(self) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let mut at = 0;
        for line in self.lines {
            let frame: Frame = serde_json::from_str(&line?)?;
            if frame.offset != at {
                return Err(invalid("the frames of the index leave a gap"));
            }
            at = frame.octets.checked_add(at).ok_or_else(|| invalid("the frames of the index are too large"))?;
            frames.push(frame);
        }
        if at != self.header.octets || frames.len() as u64 != self.header.frames {
            return Err(invalid("the index does not cover the archive"));
        }
        Ok(frames)
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Where the index of `x.ndjson.zst` lies: `x.index`.
#[must_use]
pub fn index_of(archive: &Path) -> PathBuf {
    archive.with_extension("").with_extension("index")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_flows() {
        let lines = concat!(
            r#"{"kind":"end","time":"2026-11-28T10:00:00.000000000Z","start":"2026-11-28T09:59:00.000000000Z","verdict":"other","tunnel":null}"#,
            "\n",
            r#"{"kind":"coverage","time":"2026-11-28T10:01:00.000000000Z","interfaces":[]}"#,
            "\n",
            "{\"kind\":\"en\n",
        );
        let contents = Contents::of(lines.as_bytes());
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!((contents.lines, contents.unreadable), (3, 1));
        assert_eq!(contents.start, at("2026-11-28T09:59:00Z"));
        assert_eq!((contents.first, contents.last), (at("2026-11-28T10:00:00Z"), at("2026-11-28T10:01:00Z")));
        assert!(
            contents.kinds.may_hold("coverage") && contents.kinds.may_hold("end") && !contents.kinds.may_hold("start")
        );
        assert!(contents.labels.may_hold("other") && !contents.labels.may_hold("unapproved_vpn_tunnel"));
        assert!(contents.protocols.may_hold(NO_TUNNEL) && !contents.protocols.may_hold("esp"));
    }

    #[test]
    fn too_many_values_may_be_any() {
        let mut names = Names::default();
        (0..=MOST).for_each(|number| names.add(&number.to_string()));
        assert!(names.may_hold("whatever"));
        assert_eq!(names.0.len(), 1);
    }
}
