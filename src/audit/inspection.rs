//! Shows payloads to detectors: a flow's first ones, then as long as something is open, then samples.

use super::case::Case;
use crate::detect::{CarrierKind, Confidence, Detector, Findings, REGISTRY, Segment};
use crate::wire::{FragmentPosition, ParsedPacket, Transport};

/// Every flow's first payloads are shown.
const FIRST: u16 = 32;

/// With evidence that is not yet certain, this many are.
const WITH_EVIDENCE: u16 = 512;

/// Later, `BURST` packets of every `PERIOD`: a tunnel that begins behind other traffic of the same flow is found,
/// for less than a hundredth of the cost of looking at every packet.
const PERIOD: u64 = 1024;
const BURST: u64 = 8;

/// Detectors by what they are shown.
pub(super) struct Detectors {
    udp: Vec<&'static dyn Detector>,
    tcp: Vec<&'static dyn Detector>,
    ip: Vec<(u8, Vec<&'static dyn Detector>)>,
}

impl Detectors {
    pub(super) fn new() -> Self {
        let of = |kind: CarrierKind| -> Vec<&'static dyn Detector> {
            REGISTRY.iter().copied().filter(|detector| detector.about().carriers.contains(&kind)).collect()
        };
        let ip = (0..=u8::MAX)
            .map(|protocol| (protocol, of(CarrierKind::Ip(protocol))))
            .filter(|(_, detectors)| !detectors.is_empty())
            .collect();
        Self { udp: of(CarrierKind::Udp), tcp: of(CarrierKind::Tcp), ip }
    }

    /// Those for a packet; none for later fragments, whose octets are no message's beginning.
    #[inline]
    pub(super) fn of(&self, packet: &ParsedPacket<'_>) -> &[&'static dyn Detector] {
        match packet.transport {
            _ if packet.payload.is_empty() => &[],
            Transport::Udp { .. } => &self.udp,
            Transport::Tcp { .. } => &self.tcp,
            Transport::None => {
                if packet.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later) {
                    return &[];
                }
                self.ip.iter().find(|(protocol, _)| *protocol == packet.protocol).map_or(&[], |(_, list)| list)
            }
        }
    }
}

/// Whether the `number`th packet of a flow, counted from 1, is to be shown.
#[inline]
pub(super) fn wanted(case: &Case, number: u64) -> bool {
    if case.settled {
        return false;
    }
    case.inspected < FIRST
        || number % PERIOD < BURST
        || (case.inspected < WITH_EVIDENCE && case.file.as_ref().is_some_and(|file| file.detection.is_some()))
}

/// Shows one payload to `detectors`; `scratch` is empty and takes notes of flows that have none yet.
/// Returns whether the detection changed.
pub(super) fn inspect(
    case: &mut Case,
    number: u64,
    detectors: &[&'static dyn Detector],
    segment: &Segment<'_>,
    scratch: &mut Findings,
) -> Inspected {
    case.inspected = case.inspected.saturating_add(1);
    let before = case.detection();
    let held = case.file.as_mut().and_then(|file| file.findings.as_deref_mut());
    let is_held = held.is_some();
    let findings = held.unwrap_or(scratch);
    for detector in detectors {
        detector.inspect(segment, findings);
    }
    let detection = findings.detection();
    if let Some(detection) = detection {
        case.settled = detection.confidence == Confidence::Certain && detection.protocol.settles();
    }
    let over = case.inspected >= FIRST && number % PERIOD >= BURST - 1;
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
