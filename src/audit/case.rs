//! What the auditor keeps with each flow: 16 octets inline, the rest only for flows that showed something.

use super::associations::Family;
use super::describe::FlowName;
use crate::detect::{Confidence, Detection, Findings};
use crate::flow::{FlowKey, Rank, Tenant};
use crate::policy::{Reason, Verdict};
use crate::time::Timestamp;

/// Everything about a flow that is not plain.
#[derive(Debug)]
pub(super) struct File {
    pub verdict: Verdict,
    pub detection: Option<Detection>,
    pub findings: Option<Box<Findings>>,
    /// When the next interval's `update` is due.
    pub next_update: Timestamp,
    /// The flow that this one continues, by the number of its identifier.
    pub continues: Option<u64>,
    /// The tunnel's flow that this one is inside of.
    pub outer: Option<u64>,
    /// Among whose flows it was associated.
    pub family: Option<Family>,
    /// Flows of the same tunnel.
    pub related: Vec<u64>,
}

impl File {
    /// Whether a flow without a file would be told the same of.
    fn is_empty(&self) -> bool {
        self.findings.is_none()
            && self.detection.is_none()
            && self.continues.is_none()
            && self.outer.is_none()
            && self.related.is_empty()
            && self.verdict.reason == Reason::NotATunnel
            && self.verdict.approval.is_none()
            && self.verdict.holds_until == Timestamp::MAX
    }
}

/// The part of every flow.
#[derive(Debug, Default)]
pub(super) struct Case {
    pub file: Option<Box<File>>,
    /// Second at which a packet must look at updates and validity again.
    pub due: u32,
    /// Payloads that were looked at.
    pub inspected: u16,
    /// Calls of detectors for them, up to 255.
    pub calls: u8,
    /// What holds for the flow.
    pub marks: Marks,
}

/// Several yes or no in one octet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks(u8);

impl Marks {
    /// No detector needs to see more.
    pub(super) const SETTLED: u8 = 1;
    /// A record of the flow was written.
    pub(super) const ANNOUNCED: u8 = 2;
    /// The flow is a tunnel whose packets are opened.
    pub(super) const OPENED: u8 = 4;
    /// TLS was seen in the flow.
    pub(super) const TLS: u8 = 8;
    /// Packets of the flow are counted elsewhere.
    pub(super) const ELSEWHERE: u8 = 16;
    /// They cannot be counted elsewhere.
    pub(super) const HERE: u8 = 32;

    pub(super) const fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }

    pub(super) const fn set(&mut self, mark: u8, is_so: bool) {
        self.0 = if is_so { self.0 | mark } else { self.0 & !mark };
    }
}

impl Case {
    pub(super) fn findings(&self) -> Option<&Findings> {
        self.file.as_ref()?.findings.as_deref()
    }

    /// Gives up notes, and with them the file where nothing else stands in it.
    pub(super) fn forget_findings(&mut self) {
        let Some(file) = self.file.as_mut() else { return };
        file.findings = None;
        if file.is_empty() {
            self.file = None;
        }
    }

    pub(super) fn detection(&self) -> Option<Detection> {
        self.file.as_ref()?.detection
    }
}

impl Tenant for Case {
    fn rank(&self) -> Rank {
        let Some(file) = &self.file else { return Rank::Plain };
        match file.detection {
            Some(detection) if detection.confidence >= Confidence::Likely => Rank::Tunnel,
            Some(_) => Rank::Evident,
            None if file.verdict.approval.is_some() => Rank::Evident,
            None => Rank::Noted,
        }
    }

    fn octets(&self) -> usize {
        let of_file = |file: &File| {
            let findings = file.findings.as_ref().map_or(0, |findings| findings.octets());
            let names = file.related.capacity() * size_of::<u64>();
            size_of::<File>() + findings + names + usize::from(file.family.is_some()) * ASSOCIATION
        };
        self.file.as_deref().map_or(0, of_file)
    }
}

/// A place in the map of associations, with its first member.
const ASSOCIATION: usize = 2 * (size_of::<FlowKey>() + size_of::<FlowName>());
