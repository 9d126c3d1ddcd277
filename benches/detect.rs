//! What a look at one payload costs: each detector at its own protocol, each at everybody else's traffic, and all of
//! them one after the other as the auditor calls them.
#![allow(clippy::unwrap_used, reason = "a failed bench may stop")]

mod common;

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use common::{captures, criterion, frames, group};
use criterion::{Criterion, criterion_group, criterion_main};
use linewarden::capture::reel::Reel;
use linewarden::detect::{Carrier, CarrierKind, Detector, Findings, REGISTRY, Segment};
use linewarden::flow::{Direction, FlowKey};
use linewarden::wire::{FragmentPosition, IpVersion, ParsedPacket, Transport, parse};

fn own(c: &mut Criterion) {
    let captures = captures();
    for &detector in REGISTRY {
        let about = detector.about();
        let is_own =
            |name: &str| about.protocols.iter().any(|protocol| name.starts_with(&format!("{}-", protocol.name())));
        let flows = shown_to(&[detector], captures.iter().filter(|(name, _)| is_own(name)));
        bench(c, "detect/own", about.name, &flows);
    }
    bench(
        c,
        "detect/own",
        "all",
        &shown_to(REGISTRY, captures.iter().filter(|(name, _)| !name.starts_with("benign-"))),
    );
}

fn benign(c: &mut Criterion) {
    let captures = captures();
    let benign = || captures.iter().filter(|(name, _)| name.starts_with("benign-"));
    for &detector in REGISTRY {
        let flows = shown_to(&[detector], benign());
        // No benign capture has ESP, AH, GRE or IP in IP.
        if !flows.is_empty() {
            bench(c, "detect/benign", detector.about().name, &flows);
        }
    }
    bench(c, "detect/benign", "all", &shown_to(REGISTRY, benign()));
}

fn bench(c: &mut Criterion, group_name: &str, name: &str, flows: &[Vec<Shown<'_>>]) {
    let payloads = flows.iter().map(Vec::len).sum::<usize>() as u64;
    let mut group = group(c, group_name, payloads);
    // There are many, and each takes microseconds.
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
    group.bench_function(name, |b| {
        b.iter(|| {
            for flow in flows {
                let mut findings = Findings::default();
                for shown in flow {
                    for detector in &shown.to {
                        detector.inspect(&shown.segment, &mut findings);
                    }
                    black_box(findings.detection());
                }
            }
        });
    });
}

/// One payload, and who is shown it.
struct Shown<'a> {
    segment: Segment<'a>,
    to: Vec<&'static dyn Detector>,
}

/// The payloads of some captures that any of `detectors` is shown, flow by flow.
fn shown_to<'a>(
    detectors: &[&'static dyn Detector],
    captures: impl Iterator<Item = &'a (String, Reel)>,
) -> Vec<Vec<Shown<'a>>> {
    let mut flows = Vec::new();
    for (_, reel) in captures {
        let mut of_capture = HashMap::new();
        for frame in frames(reel) {
            let Ok(packet) = parse(&frame) else { continue };
            let Some((kind, carrier, ports)) = carrier(&packet) else { continue };
            let to: Vec<_> =
                detectors.iter().copied().filter(|detector| detector.about().carriers.contains(&kind)).collect();
            if to.is_empty() || packet.payload.is_empty() {
                continue;
            }
            let (key, sender) = FlowKey::of(&packet, true);
            let (first, flow) = of_capture.entry(key.canonical()).or_insert_with(|| (sender, Vec::new()));
            let direction = if sender == *first { Direction::Forward } else { Direction::Reverse };
            let segment = Segment {
                at: packet.at,
                packet: packet.number,
                direction,
                carrier,
                ports,
                payload: packet.payload,
                payload_len: packet.payload_len,
                is_fragment: packet.fragment.is_some(),
            };
            flow.push(Shown { segment, to });
        }
        flows.extend(of_capture.into_values().map(|(_, flow)| flow));
    }
    flows
}

/// What a packet's payload came in; later fragments are shown to nobody.
fn carrier(packet: &ParsedPacket<'_>) -> Option<(CarrierKind, Carrier, [u16; 2])> {
    let later = packet.fragment.is_some_and(|fragment| fragment.position == FragmentPosition::Later);
    match packet.transport {
        Transport::Udp { src_port, dst_port } => Some((CarrierKind::Udp, Carrier::Udp, [src_port, dst_port])),
        Transport::Tcp { src_port, dst_port, seq, flags } => {
            Some((CarrierKind::Tcp, Carrier::Tcp { seq, flags }, [src_port, dst_port]))
        }
        Transport::None => {
            let (protocol, outer_v6) = (packet.protocol, packet.addresses.version() == IpVersion::V6);
            (!later).then_some((CarrierKind::Ip(protocol), Carrier::Ip { protocol, outer_v6 }, [0; 2]))
        }
    }
}

criterion_group! { name = benches; config = criterion(); targets = own, benign }
criterion_main!(benches);
