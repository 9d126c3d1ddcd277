//! Packets of settled flows that the kernel counts: the records are those of a capture that is handed every packet, and
//! what could change a verdict comes up.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use linewarden::audit::{AuditSettings, Auditor, Counted, Elsewhere, Interest, SAMPLE};
use linewarden::capture::{self, FastPath, LiveSettings, Outbox, Report, Source, Worker, open_rings};
use linewarden::detect::{goes_beside, may_open};
use linewarden::flow::FlowKey;
use linewarden::record::Record;
use linewarden::time::Timestamp;
use linewarden::wire::{InterfaceId, LinkType, Transport, parse};
use tokio::sync::mpsc::Receiver;

use crate::common::pcap::frames;
use crate::common::{self, OwnedFrame, capture_folders, ends, pinning, policy};
use crate::frames::{
    Pair, SERVICE_VLAN, TCP, VLAN, back, esp, ethernet, fragments, ip, ipv4, ipv6, mpls, pppoe, tagged, udp,
};
use crate::link::{Sender, in_namespace, settings, tun, until, veth};

fn with_fast_path(interfaces: &[&str], workers: u16, flows: u32) -> LiveSettings {
    LiveSettings { fast_path: Some(FastPath { flows, vlan_in_key: true }), ..settings(interfaces, workers) }
}

/// Octets that look like nothing: by SplitMix64 (Steele, Lea and Flood 2014), and never the beginning of a tunnel.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| {
        let mut word = (seed << 20 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^ (word >> 27)
    };
    let octets = (1..).flat_map(|at| word(at).to_be_bytes());
    [0xee].into_iter().chain(octets).take(len).collect()
}

/// One capture at work: its workers, each with a core of its own, and their records.
struct Watch {
    workers: Vec<Worker>,
    records: Receiver<Record>,
}

impl Watch {
    fn start(live: &LiveSettings, audit: AuditSettings) -> Self {
        let (outbox, records) = Outbox::new(1 << 16);
        let audit = Arc::new(audit);
        let workers = open_rings(live).unwrap().into_iter().enumerate().map(|(id, source)| {
            let auditor = Auditor::new(Arc::clone(&audit), policy(Vec::new()));
            Worker::spawn(id, None, source, auditor, outbox.clone(), || {}).unwrap()
        });
        Self { workers: workers.collect(), records }
    }

    fn report(&self) -> Report {
        let mut sum = Report::default();
        for worker in &self.workers {
            let report = worker.status.report();
            sum.counters.add(&report.counters);
            sum.capture.add(&report.capture);
        }
        sum
    }

    #[track_caller]
    fn until_counted(&self, packets: u64) {
        until(&format!("{packets} packets"), || {
            assert!(self.workers.iter().all(|worker| !worker.is_over()), "a worker ended");
            self.report().counters.packets >= packets
        });
        assert_eq!(self.report().counters.packets, packets);
    }

    fn stop(mut self) -> (Vec<Record>, Report) {
        let mut sum = Report::default();
        for worker in self.workers.drain(..) {
            worker.tell(capture::Command::Stop);
            let (report, result) = worker.join();
            result.unwrap();
            sum.counters.add(&report.counters);
            sum.capture.add(&report.capture);
        }
        let mut records = Vec::new();
        while let Ok(record) = self.records.try_recv() {
            records.push(record);
        }
        common::assert_nothing_lost(&records, &sum.counters, "a capture");
        (records, sum)
    }
}

/// What must be the same, whoever counts.
fn answers(records: &[Record]) -> Vec<String> {
    let answer = |end: &&Record| {
        let flow = (end.src_ip, end.src_port, end.dst_ip, end.dst_port, end.proto, &end.vlan);
        let counts = (end.fwd_packets, end.fwd_octets, end.rev_packets, end.rev_octets);
        format!(
            "{flow:?} {counts:?} {:?} {:?} {:?} {:?} {:?} {}",
            end.verdict, end.reason, end.tunnel, end.confidence, end.end_reason, end.midstream
        )
    };
    let mut answers: Vec<_> = ends(records).iter().map(answer).collect();
    answers.sort();
    answers
}

/// A TCP segment.
fn segment(pair: Pair, [src, dst]: [u16; 2], flags: u16, payload: &[u8]) -> Vec<u8> {
    let header = [src, dst, 0, 1, 0, 1, 5 << 12 | flags, 0xffff, 0, 0].map(u16::to_be_bytes).concat();
    ip(pair, TCP, &[&header, payload].concat())
}

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const ACK: u16 = 0x10;

type Packet = Box<dyn Fn(Pair, [u16; 2], u64) -> Vec<u8>>;

/// Kinds of flows: whether the kernel counts them, and a packet by its number.
fn kinds() -> Vec<(&'static str, bool, Packet)> {
    let of = |name, counted, packet: fn(Pair, [u16; 2], u64) -> Vec<u8>| (name, counted, Box::new(packet) as Packet);
    vec![
        of("UDP", true, |pair, ports, number| {
            ethernet(&udp(pair, ports, &noise(number, 100 + number as usize % 1200)))
        }),
        of("UDP, nearly empty", false, |pair, ports, number| ethernet(&udp(pair, ports, &noise(number, 3)))),
        of("UDP, short", true, |pair, ports, number| ethernet(&udp(pair, ports, &noise(number, 12)))),
        of("UDP, padded", true, |pair, ports, number| {
            let mut frame = ethernet(&udp(pair, ports, &noise(number, 40)));
            frame.extend([0; 9]);
            frame
        }),
        of("TCP", true, |pair, ports, number| {
            let flags = [SYN, SYN | ACK].get(number as usize).copied().unwrap_or(ACK);
            ethernet(&segment(pair, ports, flags, &noise(number, 300)))
        }),
        of("TCP, TLS", true, |pair, ports, number| {
            ethernet(&segment(pair, ports, ACK, &[&[23, 3, 3, 1, 0], &noise(number, 256)[..]].concat()))
        }),
        of("802.1Q", true, |pair, ports, number| {
            tagged(VLAN, 0x6064, &ethernet(&udp(pair, ports, &noise(number, 200))))
        }),
        of("802.1ad", true, |pair, ports, number| {
            tagged(SERVICE_VLAN, 100, &ethernet(&udp(pair, ports, &noise(number, 200))))
        }),
        of("QinQ", true, |pair, ports, number| {
            tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &ethernet(&udp(pair, ports, &noise(number, 200)))))
        }),
        of("three tags", false, |pair, ports, number| {
            let inner = tagged(VLAN, 9, &ethernet(&udp(pair, ports, &noise(number, 200))));
            tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &inner))
        }),
        of("priority tag", true, |pair, ports, number| {
            tagged(VLAN, 0xe000, &ethernet(&udp(pair, ports, &noise(number, 200))))
        }),
        of("MPLS", false, |pair, ports, number| mpls(2, &udp(pair, ports, &noise(number, 200)))),
        of("PPPoE", false, |pair, ports, number| {
            let protocol: &[u8] = if pair[0].is_ipv4() { &[0, 0x21] } else { &[0, 0x57] };
            pppoe(protocol, &udp(pair, ports, &noise(number, 200)))
        }),
        of("ESP", true, |pair, [src, dst], number| {
            let spi = if src < dst { 0x1234_5678 } else { 0x8765_4321 };
            ethernet(&esp(pair, spi, number as u32 + 1))
        }),
        of("wrong lengths", false, |pair, ports, number| {
            let mut packet = udp(pair, ports, &noise(number, 200));
            let at = if pair[0].is_ipv4() { 20 } else { 40 };
            packet[at + 4..at + 6].copy_from_slice(&[0, 7]);
            ethernet(&packet)
        }),
    ]
}

/// Packets of each direction before the flows are settled, and after.
const BEFORE: u64 = 300;
const AFTER: u64 = 1500;
/// The rings hold that many of all flows.
const TURN: u64 = 150;

#[test]
fn records_are_the_same_whoever_counts() {
    in_namespace(|| {
        veth("far", "near");
        for workers in [1, 2] {
            let audit = || AuditSettings { interfaces: vec!["near".into()], ..common::settings() };
            let fast = Watch::start(&with_fast_path(&["near"], workers, 256), audit());
            let slow = Watch::start(&settings(&["near"], workers), audit());
            let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
            let kinds = kinds();
            let flows: Vec<_> = kinds
                .iter()
                .enumerate()
                .flat_map(|(index, kind)| [ipv4, ipv6].map(|pair| (pair(2 + 2 * index as u8), kind)))
                .collect();
            let mut sent = 0;
            let mut send = |numbers: std::ops::Range<u64>| {
                for number in numbers.clone() {
                    for (pair, (_, _, packet)) in &flows {
                        far.send(&packet(*pair, [1000, 2000], 2 * number));
                        near.send(&packet(back(*pair), [2000, 1000], 2 * number + 1));
                        sent += 2;
                    }
                    if number % TURN == TURN - 1 {
                        // No more than the rings hold.
                        fast.until_counted(sent);
                        slow.until_counted(sent);
                    }
                }
                sent
            };
            send(0..BEFORE);
            let counted = 2 * kinds.iter().filter(|(_, counted, _)| *counted).count() as u64;
            until("all flows to be settled", || fast.report().counters.elsewhere.flows >= counted);
            // ... and what was on its way when they were.
            send(BEFORE..BEFORE + TURN);
            let before = fast.report().counters.elsewhere.packets;
            let mut sent = send(BEFORE + TURN..BEFORE + AFTER);
            // The end of TCP comes up, and ends the flow there, too.
            for (pair, (name, ..)) in &flows {
                if *name == "TCP" {
                    far.send(&ethernet(&segment(*pair, [1000, 2000], FIN | ACK, &[])));
                    near.send(&ethernet(&segment(back(*pair), [2000, 1000], FIN | ACK, &[])));
                    sent += 2;
                }
            }
            fast.until_counted(sent);
            slow.until_counted(sent);
            let (records, report) = fast.stop();
            let (expected, slow) = slow.stop();
            assert_eq!(answers(&records), answers(&expected), "{workers} workers");
            for report in [&report, &slow] {
                assert_eq!(report.capture.dropped_kernel, Some(0));
            }
            let elsewhere = report.counters.elsewhere;
            assert_eq!(report.capture.received + elsewhere.packets, sent);
            assert!(elsewhere.flows >= counted && elsewhere.refused == 0, "{elsewhere:?}");
            let most = counted * 2 * (AFTER - TURN);
            let samples = most * u64::from(SAMPLE.burst) / u64::from(SAMPLE.period) + counted * u64::from(SAMPLE.burst);
            let after = elsewhere.packets - before;
            assert!(after <= most && after >= most - samples, "{after} of {most} were counted in the kernel");
            assert_eq!(slow.counters.elsewhere.packets, 0);
        }
    });
}

/// UDP payloads of a capture, and whether the client sent them.
fn payloads(name: &str) -> Vec<(bool, Vec<u8>)> {
    let recorded = frames(name);
    let mut client = None;
    let mut payloads = Vec::new();
    for frame in &recorded {
        let Ok(packet) = parse(&frame.borrow()) else { continue };
        if let Transport::Udp { src_port, .. } = packet.transport {
            let client = *client.get_or_insert((packet.addresses.both()[0], src_port));
            let mut payload = packet.payload.to_vec();
            payload.resize(packet.payload_len as usize, 0);
            payloads.push((client == (packet.addresses.both()[0], src_port), payload));
        }
    }
    payloads
}

#[test]
fn a_tunnel_that_begins_in_a_settled_flow_is_found_and_settles_again() {
    const TUNNELS: [&str; 2] = ["wireguard-ipv6", "openvpn-udp-ipv6"];
    in_namespace(|| {
        veth("far", "near");
        let audit = || AuditSettings { interfaces: vec!["near".into()], ..common::settings() };
        let fast = Watch::start(&with_fast_path(&["near"], 1, 256), audit());
        let slow = Watch::start(&settings(&["near"], 1), audit());
        // Both ends are behind `far`, so that their packets keep their order.
        let mut far = Sender::on("far");
        let mut sent = 0;
        let mut send = |pair, is_out: bool, payload: &[u8]| {
            let packet = if is_out { udp(pair, [4000, 5000], payload) } else { udp(back(pair), [5000, 4000], payload) };
            far.send(&ethernet(&packet));
            sent += 1;
            sent
        };
        for (number, name) in (2..).zip(TUNNELS) {
            let pair = ipv4(2 * number);
            let until_settled = |times| {
                until("the flow to be settled", || fast.report().counters.elsewhere.flows >= times);
            };
            let flows = 2 * u64::from(number - 2);
            for at in 0..100 {
                send(pair, at % 2 == 0, &noise(at, 200));
            }
            until_settled(flows + 1);
            for at in 0..400 {
                send(pair, at % 2 == 0, &noise(at, 200));
            }
            let tunnel = payloads(name);
            for (is_out, payload) in &tunnel {
                send(pair, *is_out, payload);
            }
            until_settled(flows + 2);
            let data = tunnel.iter().rev().cycle().take(400);
            let sent = data.fold(0, |_, (is_out, payload)| send(pair, *is_out, payload));
            fast.until_counted(sent);
            slow.until_counted(sent);
        }
        let (records, report) = fast.stop();
        let (expected, _) = slow.stop();
        assert_eq!(answers(&records), answers(&expected));
        let found = ends(&records).iter().filter(|end| end.tunnel.is_some()).count();
        assert_eq!(found, TUNNELS.len());
        assert!(report.counters.elsewhere.packets > 1000, "{:?}", report.counters.elsewhere);
    });
}

/// One ring whose flows the test itself settles.
struct Filter {
    source: Box<dyn Source>,
    elsewhere: Box<dyn Elsewhere>,
    frames: Vec<OwnedFrame>,
}

impl Filter {
    fn on(interface: &str, flows: u32) -> Self {
        let mut sources = open_rings(&with_fast_path(&[interface], 1, flows)).unwrap();
        let mut source = sources.remove(0);
        let elsewhere = source.elsewhere().expect("root may load programs");
        assert!(source.elsewhere().is_none(), "there is one");
        Self { source, elsewhere, frames: Vec::new() }
    }

    fn settle(&mut self, frame: &[u8], interest: Interest) -> FlowKey {
        let key = key(frame);
        assert!(self.elsewhere.take_over(&key, InterfaceId(0), interest));
        key
    }

    /// Frames that came up, and counts of the rest, once they are so many in all.
    fn until(&mut self, packets: u64) -> (Vec<OwnedFrame>, BTreeMap<String, Counted>) {
        let mut counted = BTreeMap::<String, Counted>::new();
        let mut known = 0;
        until(&format!("{packets} packets"), || {
            let frames = &mut self.frames;
            let patience = Duration::from_millis(1);
            self.source.poll(patience, &mut |batch| frames.extend(batch.iter().map(OwnedFrame::from))).unwrap();
            self.elsewhere.read(&mut |more| {
                known += more.packets.iter().sum::<u64>();
                let sum = counted.entry(format!("{:?}", more.key)).or_insert(Counted {
                    packets: [0; 2],
                    octets: [0; 2],
                    ..more
                });
                for place in 0..2 {
                    sum.packets[place] += more.packets[place];
                    sum.octets[place] += more.octets[place];
                }
            });
            self.frames.len() as u64 + known >= packets
        });
        assert_eq!(self.frames.len() as u64 + known, packets);
        (std::mem::take(&mut self.frames), counted)
    }
}

fn key(frame: &[u8]) -> FlowKey {
    let frame = OwnedFrame {
        at: Timestamp::ZERO,
        number: 1,
        wire_len: frame.len() as u32,
        interface: InterfaceId(0),
        link: LinkType::Ethernet,
        stripped_vlan: None,
        data: frame.to_vec(),
    };
    FlowKey::of(&parse(&frame.borrow()).unwrap(), true).0
}

#[test]
fn what_may_open_a_tunnel_or_hold_a_handshake_comes_up() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        // One payload of each beginning and length that the captures have, and what the rules are nearly true of.
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for folder in capture_folders() {
            for (_, payload) in payloads(common::name(&folder)) {
                if payload.len() <= 1400
                    && seen.insert((payload.len(), payload.iter().take(2).copied().collect::<Vec<_>>()))
                {
                    all.push(payload);
                }
            }
        }
        let crafted: &[(&[u8], usize)] = &[
            (&[1, 0, 0, 0], 148),
            (&[2, 0, 0, 0], 92),
            (&[0x38], 14),
            (&[0x38], 130),
            (&[0x50], 100),
            (&[0x10, 0, 0, 0, 0, 0, 0, 0], 48),
            (&[1, 0, 9, 9, 0, 0, 1, 0, 1], 48),
            (&[9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 33, 0x20, 34], 19),
            (&[9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 33, 0x20, 34], 20),
            (&[9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 4], 300),
            (&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac], 92),
        ];
        for (start, len) in crafted {
            let mut payload = noise(7, *len);
            payload[..start.len()].copy_from_slice(start);
            assert!(may_open(&payload, *len as u32), "{start:?}");
            all.push(payload);
        }
        let mut hello = noise(8, 137);
        hello[27] = 1;
        let address: [u8; 5] = hello[13..18].try_into().unwrap();
        hello[41..46].copy_from_slice(&address);
        assert!(may_open(&hello, 137));
        all.push(hello);
        assert!(all.len() > 500, "{} payloads", all.len());

        let known = Interest { is_tls: true, ..Interest::default() };
        let interests = [
            known,
            Interest { settled: true, ..known },
            Interest { handshakes: true, ..known },
            Interest { settled: true, handshakes: true, ..known },
        ];
        for (number, interest) in (1..).zip(interests) {
            for pair in [ipv4(2 * number), ipv6(2 * number)] {
                let keys = if interest.handshakes { pinning() } else { policy(Vec::new()) };
                let is_told = |payload: &[u8]| {
                    let len = payload.len() as u32;
                    let opens = if interest.settled { goes_beside(payload) } else { may_open(payload, len) };
                    // As `may_hold_handshake` has it, of UDP.
                    let holds = matches!(payload, [1 | 2, 0, 0, 0, ..] | [0x20 | 0x28 | 0x38 | 0x40 | 0x50 | 0x58, ..]);
                    opens || (!keys.keyring().is_empty() && holds)
                };
                let mut filter = Filter::on("near", 131_072);
                let mut up = HashSet::new();
                for (chunk, base) in all.chunks(500).zip((1000..).step_by(500)) {
                    // Each in a flow of its own: behind what may open a tunnel, all comes up.
                    for (payload, port) in chunk.iter().zip(base..) {
                        let frame = ethernet(&udp(pair, [port, 2], payload));
                        filter.settle(&frame, interest);
                        far.send(&frame);
                    }
                    for frame in filter.until(chunk.len() as u64).0 {
                        let Transport::Udp { src_port, .. } = parse(&frame.borrow()).unwrap().transport else {
                            panic!()
                        };
                        up.insert(src_port);
                    }
                }
                let missing = all.iter().zip(1000..).find(|(payload, port)| is_told(payload) && !up.contains(port));
                assert_eq!(missing, None, "{interest:?}");
                let told = all.iter().filter(|payload| is_told(payload)).count();
                assert!(told > 0 && up.len() < told + all.len() / 4, "{} of {}: {interest:?}", up.len(), all.len());
            }
        }
    });
}

#[test]
fn behind_what_may_open_a_tunnel_all_comes_up_for_a_while() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut filter = Filter::on("near", 64);
        let pair = ipv4(2);
        let other = ethernet(&udp(back(pair), [2, 1], &noise(1, 100)));
        filter.settle(&other, Interest { is_tls: true, ..Interest::default() });
        let mut comes = |payload: &[u8]| {
            far.send(&ethernet(&udp(pair, [1, 2], payload)));
            far.send(&other);
            filter.until(2).0.len()
        };
        assert_eq!(comes(&noise(2, 100)), 0);
        let mut quic = noise(3, 200);
        quic[0] = 0x50;
        assert_eq!(comes(&quic), 1, "it opens nothing");
        // OpenVPN's reset of version 3, tls-crypt: opcode, session, packet identifier 1, time.
        quic[9..13].copy_from_slice(&[0x0f, 0, 0, 1]);
        assert_eq!(comes(&quic), 2);
        assert_eq!(comes(&noise(4, 100)), 2);
        until("the flow to be counted again", || comes(&noise(5, 100)) == 0);
    });
}

#[test]
fn a_segment_that_shows_tls_or_ends_something_comes_up() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut filter = Filter::on("near", 64);
        let tls: &[u8] = &[22, 3, 1, 0, 9, 9, 9];
        let handshake: &[u8] = &[0, 50, 0x38, 1, 2, 3];
        // Interest, flags, payload; whether it comes up.
        let cases: &[(bool, bool, u16, &[u8], bool)] = &[
            (false, false, ACK, &[], false),
            (false, false, ACK, &[7; 50], false),
            (false, false, ACK, tls, true),
            (false, false, ACK, &[23, 3, 4], true),
            (false, false, ACK, &[24, 3, 4], false),
            (false, false, ACK, &[19, 3, 4], false),
            (false, false, ACK, &[23, 3, 5], false),
            (false, false, ACK, &[23, 2, 4], false),
            (false, false, ACK, &[23, 3], false),
            (true, false, ACK, tls, false),
            (true, false, ACK, handshake, false),
            (true, true, ACK, handshake, true),
            (false, true, ACK, handshake, true),
            (false, true, ACK, tls, true),
            (true, true, ACK, tls, false),
            (true, true, ACK, &[0, 50], false),
            (true, false, FIN | ACK, &[7; 50], true),
            (true, false, SYN, &[], true),
            (true, false, 0x04, &[], true),
        ];
        for pair in [ipv4(2), ipv6(2)] {
            for (is_tls, handshakes, flags, payload, comes) in cases {
                let frame = ethernet(&segment(pair, [1, 2], *flags, payload));
                filter.settle(&frame, Interest { settled: true, is_tls: *is_tls, handshakes: *handshakes });
                far.send(&frame);
                let (up, counted) = filter.until(1);
                assert_eq!(up.len() == 1, *comes, "{is_tls} {handshakes} {flags} {payload:?}");
                if !comes {
                    let [counted] = &counted.values().collect::<Vec<_>>()[..] else { panic!("one flow") };
                    assert_eq!(counted.octets.iter().sum::<u64>(), frame.len() as u64);
                }
            }
            // Fragments, options and extension headers.
            let whole = udp(pair, [3, 4], &[7; 400]);
            filter.settle(&ethernet(&whole), Interest::default());
            let [first, later] = fragments(&whole, 9, 208);
            let mut odd = vec![ethernet(&first), ethernet(&later)];
            if pair[0].is_ipv4() {
                let mut options = whole.clone();
                options[0] = 0x46;
                options[2..4].copy_from_slice(&(whole.len() as u16 + 4).to_be_bytes());
                options.splice(20..20, [1; 4]);
                odd.push(ethernet(&options));
            } else {
                let mut extended = whole.clone();
                extended[4..6].copy_from_slice(&(whole.len() as u16 - 40 + 8).to_be_bytes());
                extended[6] = 60;
                extended.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
                odd.push(ethernet(&extended));
            }
            odd.iter().for_each(|frame| far.send(frame));
            let (up, _) = filter.until(odd.len() as u64);
            assert_eq!(up.len(), odd.len());
            far.send(&ethernet(&whole));
            assert_eq!(filter.until(1).0.len(), 0, "the whole is counted");
        }
    });
}

#[test]
fn samples_of_a_flow_without_a_tunnel_come_up_and_a_flow_that_is_given_back_comes_whole() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        let mut filter = Filter::on("near", 64);
        let pair = ipv4(2);
        let frame = |number| ethernet(&udp(pair, [1, 2], &noise(number, 100)));
        let answer = |number| ethernet(&udp(back(pair), [2, 1], &noise(number, 100)));
        let key = filter.settle(&frame(0), Interest::default());
        let rounds = 2;
        let period = u64::from(SAMPLE.period);
        let mut up = 0;
        for number in 0..rounds * period / 2 {
            far.send(&frame(number));
            near.send(&answer(number));
            up += filter.until(2).0.len();
        }
        assert_eq!(up as u64, rounds * u64::from(SAMPLE.burst));
        let rest = filter.elsewhere.give_back(&key);
        assert_eq!(rest, None, "all was told");
        far.send(&frame(0));
        near.send(&answer(0));
        assert_eq!(filter.until(2).0.len(), 2);
        assert_eq!(filter.elsewhere.counted(&key), None);
        // No more than the settings say.
        let taken = (0..80_u16).filter(|port| {
            let key = self::key(&ethernet(&udp(ipv4(4), [100 + port, 2], &[7; 50])));
            filter.elsewhere.take_over(&key, InterfaceId(0), Interest::default())
        });
        assert_eq!(taken.count(), 64);
    });
}

#[test]
fn an_endpoint_that_talks_to_itself_is_counted_one_way() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut filter = Filter::on("near", 64);
        for pair in [ipv4(2), ipv6(2)] {
            let [host, _] = pair;
            // The same address, and ports in either order, or the same.
            let frames = [[1, 2], [2, 1], [3, 3]].map(|ports| ethernet(&udp([host; 2], ports, &noise(1, 100))));
            for frame in &frames {
                filter.settle(frame, Interest { is_tls: true, ..Interest::default() });
                far.send(frame);
            }
            let (up, counted) = filter.until(3);
            assert_eq!(up.len(), 0);
            let mut packets: Vec<_> = counted.values().map(|counted| counted.packets).collect();
            packets.sort_unstable();
            assert_eq!(packets, [[1, 0], [1, 1]]);
        }
    });
}

#[test]
fn flows_without_link_headers_are_counted_too() {
    in_namespace(|| {
        let mut inside = tun();
        let mut outside = Sender::on("tun0");
        let audit = || AuditSettings { interfaces: vec!["tun0".into()], ..common::settings() };
        let fast = Watch::start(&with_fast_path(&["tun0"], 2, 256), audit());
        let slow = Watch::start(&settings(&["tun0"], 2), audit());
        let pairs: Vec<_> = (2..6).flat_map(|number| [ipv4(number), ipv6(number)]).collect();
        let mut sent = 0;
        for round in 0..20 {
            for number in 0..40 {
                for &pair in &pairs {
                    let payload = noise(round * 100 + number, 150);
                    // One after the other: who speaks first decides what a flow's forward direction is.
                    inside.send(&udp(pair, [1, 2], &payload));
                    outside.send(&udp(back(pair), [2, 1], &payload));
                    sent += 2;
                }
            }
            fast.until_counted(sent);
            slow.until_counted(sent);
            until("all flows to be settled", || fast.report().counters.elsewhere.flows == pairs.len() as u64);
        }
        let (records, report) = fast.stop();
        let (expected, _) = slow.stop();
        assert_eq!(answers(&records), answers(&expected));
        assert_eq!(report.capture.received + report.counters.elsewhere.packets, sent);
        assert!(report.counters.elsewhere.packets > sent / 2, "{:?}", report.counters.elsewhere);
    });
}

/// Processor time of a thread of this process, nanoseconds (the kernel's `Documentation/scheduler/sched-stats.rst`).
fn processor_time(thread: &str) -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == thread {
            return read("schedstat").split(' ').next().unwrap().parse().unwrap();
        }
    }
    panic!("no thread {thread}")
}

/// What a packet of a settled flow costs, with and without the fast path: frames are sent and received by one thread, for
/// the cable's other end is served on the way out of the call that sends; the worker is another. Both are counted by their
/// processor time, so that other work on the machine adds little. What sending costs where nobody listens is taken off.
///
/// `cargo test --test ring -- --ignored what_a_packet --nocapture`
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_a_packet_of_a_settled_flow_costs() {
    const FLOWS: u64 = 1000;
    const PACKETS: u32 = 200_000;
    const ROUNDS: usize = 7;
    print!(
        "{}",
        in_namespace(|| {
            veth("far", "near");
            let mut far = Sender::on("far");
            let frame = |number: u64, v6: bool, is_tcp: bool, len| {
                let flow = number % FLOWS;
                let pair = if v6 { ipv6(flow as u8 | 1) } else { ipv4(flow as u8 | 1) };
                let (pair, ports) = match number / FLOWS % 2 {
                    0 => (pair, [flow as u16, 9]),
                    _ => (back(pair), [9, flow as u16]),
                };
                let payload = [&[23, 3, 3, 1, 0], &noise(flow, len)[..]].concat();
                ethernet(&if is_tcp { segment(pair, ports, ACK, &payload) } else { udp(pair, ports, &payload[5..]) })
            };
            let audit = || AuditSettings { interfaces: vec!["near".into()], ..common::settings() };
            println!();
            for (name, v6, is_tcp, len) in [
                ("UDP over IPv4, 100 octets", false, false, 100),
                ("UDP over IPv6, 1200 octets", true, false, 1200),
                ("TLS over IPv4, 1200 octets", false, true, 1200),
            ] {
                let frames: Vec<_> = (0..2 * FLOWS).map(|number| frame(number, v6, is_tcp, len)).collect();
                // Per packet: by the sending thread, by the worker.
                let mut best = [[f64::MAX; 2]; 3];
                for _ in 0..ROUNDS {
                    for (live, best) in [
                        None,
                        Some(LiveSettings { ring_octets: 256 << 20, block_octets: 1 << 20, ..settings(&["near"], 1) }),
                        Some(LiveSettings {
                            ring_octets: 256 << 20,
                            block_octets: 1 << 20,
                            ..with_fast_path(&["near"], 1, 4096)
                        }),
                    ]
                    .into_iter()
                    .zip(&mut best)
                    {
                        let watch = live.map(|live| Watch::start(&live, audit()));
                        let warm: u64 = 50 * 2 * FLOWS;
                        (0..warm).for_each(|at| far.send(&frames[(at % (2 * FLOWS)) as usize]));
                        if let Some(watch) = &watch {
                            watch.until_counted(warm);
                        }
                        let me = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
                        let look = || {
                            let worker = if watch.is_some() { processor_time("worker-0") } else { 0 };
                            [processor_time(me.trim()), worker]
                        };
                        let before = look();
                        (0..PACKETS).for_each(|at| far.send(&frames[at as usize % frames.len()]));
                        if let Some(watch) = &watch {
                            watch.until_counted(warm + u64::from(PACKETS));
                        }
                        let after = look();
                        for (best, (after, before)) in best.iter_mut().zip(after.into_iter().zip(before)) {
                            *best =
                                best.min(Duration::from_nanos(after - before).as_secs_f64() * 1e9 / f64::from(PACKETS));
                        }
                        if let Some(watch) = watch {
                            watch.stop();
                        }
                    }
                }
                let [[alone, _], slow, fast] = best;
                let net = |[sender, worker]: [f64; 2]| [sender - alone, worker, sender - alone + worker];
                let ([slow, slow_worker, slow_all], [fast, fast_worker, fast_all]) = (net(slow), net(fast));
                println!(
                    "{name}: without {slow:.0} ns in the kernel + {slow_worker:.0} in the worker, with {fast:.0} + {fast_worker:.0}: {:.0}% (nobody listens: {alone:.0} ns)",
                    100.0 * fast_all / slow_all
                );
            }
        })
    );
}
