//! Shows payloads to detectors: a flow's first ones, then as long as something is open, then samples.

use super::case::{Case, Marks};
use crate::detect::{Confidence, Dispatch, Findings, Segment, Set};
use crate::wire::{FragmentPosition, ParsedPacket, Transport};

/// Every flow's first payloads are shown.
const FIRST: u16 = 32;

/// With evidence that is not yet certain, this many are.
pub(super) const WITH_EVIDENCE: u16 = 512;

/// Later packets of a flow that are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// So many packets in a row ...
    pub burst: u16,
    /// ... of every so many: a power of two.
    pub period: u16,
}

/// A tunnel that begins behind other traffic of the same flow is found, for less than a hundredth of the cost of looking at
/// every packet.
pub const SAMPLE: Sample = Sample { burst: 8, period: 1024 };
const PERIOD: u64 = SAMPLE.period as u64;
const BURST: u64 = SAMPLE.burst as u64;

/// Whether a flow's first payloads are not all shown yet.
pub(super) const fn is_first(case: &Case) -> bool {
    case.inspected < FIRST
}

/// Whether the `number`th packet of a flow, counted from 1, is one of the later ones that are looked at.
pub(super) const fn is_sample(number: u64) -> bool {
    number % PERIOD < BURST
}

/// The detectors that a packet's payload can be for; none for later fragments, whose octets are no message's beginning.
/// `is_mid_stream`: the flow's opening was not seen.
#[inline]
pub(super) fn detectors(dispatch: &Dispatch, packet: &ParsedPacket<'_>, case: &Case, is_mid_stream: bool) -> Set {
    if packet.payload.is_empty() {
        return Set::default();
    }
    let known = case.findings().map_or_else(Set::default, Findings::interested);
    match packet.transport {
        Transport::Udp { src_port, dst_port } => dispatch.udp(packet.payload, [src_port, dst_port], known),
        Transport::Tcp { src_port, dst_port, .. } => {
            dispatch.tcp(packet.payload, [src_port, dst_port], is_mid_stream, known)
        }
        Transport::None if packet.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later) => {
            Set::default()
        }
        Transport::None => dispatch.ip(packet.protocol),
    }
}

/// Whether the `number`th packet of a flow, counted from 1, is to be shown.
#[inline]
pub(super) fn wanted(case: &Case, number: u64) -> bool {
    if case.marks.has(Marks::SETTLED) {
        return false;
    }
    // Of a flow that is counted elsewhere, what comes here was chosen there.
    is_first(case)
        || is_sample(number)
        || case.marks.has(Marks::ELSEWHERE)
        || (case.inspected < WITH_EVIDENCE && case.file.as_ref().is_some_and(|file| file.detection.is_some()))
}

/// Shows one payload to `detectors`; `scratch` is empty and takes notes of flows that have none yet.
/// Returns whether the detection changed.
pub(super) fn inspect(
    case: &mut Case,
    number: u64,
    detectors: Set,
    segment: &Segment<'_>,
    scratch: &mut Findings,
) -> Inspected {
    case.inspected = case.inspected.checked_add(1).unwrap_or(u16::MAX - SAMPLE.burst + 1);
    case.calls = case.calls.saturating_add(u8::try_from(detectors.len()).unwrap_or(u8::MAX));
    let before = case.detection();
    let held = case.file.as_mut().and_then(|file| file.findings.as_deref_mut());
    let is_held = held.is_some();
    let findings = held.unwrap_or(scratch);
    for (set, detector) in detectors.detectors() {
        findings.show(segment, set, detector);
    }
    let detection = findings.detection();
    if let Some(detection) = detection {
        let is_settled = detection.confidence == Confidence::Certain && detection.protocol.settles();
        case.marks.set(Marks::SETTLED, is_settled);
    }
    let is_last = if case.marks.has(Marks::ELSEWHERE) {
        // Its number is known to who counts it.
        u64::from(case.inspected) % BURST == 0
    } else {
        number % PERIOD >= BURST - 1
    };
    let over = case.inspected >= FIRST && is_last;
    if detection.is_none() && over && is_held {
        // Numbers that led to nothing: give their memory back.
        case.forget_findings();
        return Inspected::Nothing;
    }
    if !is_held && !findings.is_empty() && (detection.is_some() || !over) {
        let kept = Box::new(findings.kept());
        findings.clear();
        return Inspected::Noted(kept, detection != before);
    }
    if !is_held {
        findings.clear();
    }
    if detection == before { Inspected::Nothing } else { Inspected::Changed }
}

/// What an inspection brought.
pub(super) enum Inspected {
    /// Nothing new.
    Nothing,
    /// First notes of the flow, to be kept; and whether they change the detection.
    Noted(Box<Findings>, bool),
    /// Another detection.
    Changed,
}
