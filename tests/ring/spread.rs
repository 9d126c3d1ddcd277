//! Both directions of a flow, its fragments, and IKE with its ESP come to the same worker; so the number of workers changes no
//! verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use linewarden::record::Record;
use linewarden::wire::parse;

use crate::common::pcap::frames;
use crate::common::{OwnedFrame, audit_plainly, ends};
use crate::frames::{
    ESP, GRE, OLD_SERVICE_VLAN, Pair, SERVICE_VLAN, TCP, UDP, VLAN, back, esp, ethernet, fragments, gre, ipv4, ipv6,
    mpls, pppoe, tagged, tcp, udp,
};
use crate::link::{Capture, Sender, in_namespace, settings, veth};
use crate::{Outline, outlines, records};

const WORKERS: [u16; 3] = [1, 2, 4];

/// One direction of a flow: packets from the first address to the second, and its ports.
type Packets = fn(Pair, [u16; 2]) -> Vec<Vec<u8>>;
type Dress = fn(&[u8]) -> Vec<u8>;

/// Every kind of flow, and everything that it may travel in; and the VLANs that its record is to show.
#[rustfmt::skip]
const KINDS: &[(&str, u8, Packets, Dress, &[u16])] = &[
    ("TCP", TCP, one_tcp, ethernet, &[]),
    ("UDP", UDP, one_udp, ethernet, &[]),
    ("ESP", ESP, one_esp, ethernet, &[]),
    ("GRE", GRE, one_gre, ethernet, &[]),
    ("fragments", UDP, two_fragments, ethernet, &[]),
    ("fragments, the later first", UDP, later_first, ethernet, &[]),
    ("jumbo", UDP, one_jumbo, ethernet, &[]),
    ("802.1Q", UDP, one_udp, |packet| tagged(VLAN, 100, &ethernet(packet)), &[100]),
    ("802.1ad", UDP, one_udp, |packet| tagged(SERVICE_VLAN, 0xe064, &ethernet(packet)), &[100]),
    ("fragments in 802.1Q", UDP, two_fragments, |packet| tagged(VLAN, 100, &ethernet(packet)), &[100]),
    ("jumbo in 802.1Q", UDP, one_jumbo, |packet| tagged(VLAN, 100, &ethernet(packet)), &[100]),
    ("ESP in 802.1Q", ESP, one_esp, |packet| tagged(VLAN, 100, &ethernet(packet)), &[100]),
    ("QinQ", TCP, one_tcp, |packet| tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &ethernet(packet))), &[7, 8]),
    ("old QinQ", TCP, one_tcp, |packet| tagged(OLD_SERVICE_VLAN, 7, &tagged(VLAN, 8, &ethernet(packet))), &[7, 8]),
    ("jumbo in QinQ", UDP, one_jumbo, |packet| tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &ethernet(packet))), &[7, 8]),
    ("MPLS", UDP, one_udp, |packet| mpls(1, packet), &[]),
    ("MPLS, three labels", TCP, one_tcp, |packet| mpls(3, packet), &[]),
    ("MPLS in 802.1Q", TCP, one_tcp, |packet| tagged(VLAN, 100, &mpls(2, packet)), &[100]),
    ("jumbo in MPLS", UDP, one_jumbo, |packet| mpls(2, packet), &[]),
    ("PPPoE", UDP, one_udp, in_pppoe, &[]),
    ("PPPoE, compressed one way", UDP, one_udp, in_compressed_pppoe, &[]),
    ("PPPoE in QinQ", UDP, one_udp, |packet| tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &in_pppoe(packet))), &[7, 8]),
];

fn one_tcp(pair: Pair, ports: [u16; 2]) -> Vec<Vec<u8>> {
    vec![tcp(pair, ports, &[0; 100])]
}

fn one_udp(pair: Pair, ports: [u16; 2]) -> Vec<Vec<u8>> {
    vec![udp(pair, ports, &[0; 100])]
}

fn one_esp(pair: Pair, [src, _]: [u16; 2]) -> Vec<Vec<u8>> {
    vec![esp(pair, u32::from(src) << 16, 1)]
}

fn one_gre(pair: Pair, _: [u16; 2]) -> Vec<Vec<u8>> {
    vec![gre(pair, 5)]
}

fn two_fragments(pair: Pair, ports: [u16; 2]) -> Vec<Vec<u8>> {
    fragments(&udp(pair, ports, &[0; 1600]), ports[0] + ports[1], 1208).into()
}

fn later_first(pair: Pair, ports: [u16; 2]) -> Vec<Vec<u8>> {
    let [first, later] = fragments(&udp(pair, ports, &[0; 1600]), ports[0] + ports[1], 1208);
    vec![later, first]
}

/// Larger than a page: the kernel keeps most of it apart from the headers.
fn one_jumbo(pair: Pair, ports: [u16; 2]) -> Vec<Vec<u8>> {
    vec![udp(pair, ports, &[0; 8000])]
}

fn in_pppoe(packet: &[u8]) -> Vec<u8> {
    pppoe(if packet[0] >> 4 == 4 { &[0, 0x21] } else { &[0, 0x57] }, packet)
}

/// RFC 1661 6.5: a side compresses what the other said that it can read.
fn in_compressed_pppoe(packet: &[u8]) -> Vec<u8> {
    match (packet[0] >> 4, packet[12], packet[13]) {
        (4, 198, _) => pppoe(&[0x21], packet),
        (6, _, 1) => pppoe(&[0x57], packet),
        _ => in_pppoe(packet),
    }
}

/// Neighbouring addresses: IKE and its ESP and everything else between two hosts.
fn pairs() -> Vec<Pair> {
    (2..18).flat_map(|number| [ipv4(number), ipv6(number)]).collect()
}

#[test]
fn both_directions_and_all_fragments_of_a_flow_meet_on_one_worker() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        let mut captures = WORKERS.map(|workers| Capture::rings(&settings(&["near"], workers)));
        let mut expected = BTreeMap::new();
        let mut sent = 0;
        // First everything that comes in at `near`, then everything that goes out there.
        for outgoing in [false, true] {
            for pair in pairs() {
                for (index, &(_, proto, packets, dress, vlan)) in KINDS.iter().enumerate() {
                    let ports = [2000 + index as u16, 500];
                    let [src, dst] = ports;
                    let packets = if outgoing { packets(back(pair), [dst, src]) } else { packets(pair, ports) };
                    let outline = expected.entry((pair, index)).or_insert_with(|| {
                        let ports = [TCP, UDP].contains(&proto).then_some(ports);
                        Outline { addresses: pair, ports, proto, vlan: vlan.to_vec(), counts: [0; 4] }
                    });
                    for packet in &packets {
                        let frame = dress(packet);
                        if outgoing {
                            near.send(&frame);
                        } else {
                            far.send(&frame);
                        }
                        let direction = if outgoing { 2 } else { 0 };
                        outline.counts[direction] += 1;
                        outline.counts[direction + 1] += frame.len() as u64;
                        sent += 1;
                    }
                }
                captures.iter_mut().for_each(Capture::poll);
            }
            captures.iter_mut().for_each(|capture| capture.until_received(sent));
        }
        let mut expected: Vec<_> = expected.into_values().collect();
        expected.sort();
        for (mut capture, workers) in captures.into_iter().zip(WORKERS) {
            capture.finish();
            assert_eq!(capture.received(), sent, "{workers} workers: every frame once");
            let busy = workers_of_pairs(&capture);
            assert_eq!(busy.len(), usize::from(workers), "neighbouring addresses keep every worker busy");
            let found = outlines(&records(&capture.frames, &["near"]));
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{workers} workers");
            }
            assert_eq!(found.len(), expected.len(), "{workers} workers: records");
        }
    });
}

/// All that two hosts say to each other is at one worker. Gives the workers that have anything.
pub fn workers_of_pairs(capture: &Capture) -> BTreeSet<usize> {
    let mut at: BTreeMap<BTreeSet<IpAddr>, BTreeSet<usize>> = BTreeMap::new();
    for (worker, frames) in capture.frames.iter().enumerate() {
        for frame in frames {
            let packet = parse(&frame.borrow()).unwrap();
            let addresses = packet.addresses.both();
            at.entry(addresses.into()).or_default().insert(worker);
        }
    }
    for (addresses, workers) in &at {
        assert_eq!(workers.len(), 1, "{addresses:?} are at workers {workers:?}");
    }
    at.into_values().flatten().collect()
}

/// Tunnels of real software, IPv4 and IPv6; IKE and ESP are flows of their own, and so are PPTP's control and its GRE.
const CAPTURES: &[&str] = &[
    "6in4-tunnel",
    "ah-ip",
    "esp-ip",
    "esp-udp-behind-nat",
    "esp-udp-ipv6",
    "gre-key-sequence",
    "ike-v2-certificates",
    "openvpn-tcp-443",
    "openvpn-udp-ipv6",
    "pptp-call",
    "wireguard-ipv6",
];

#[test]
fn real_tunnels_get_the_verdicts_of_their_capture_whatever_the_number_of_workers() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        for name in CAPTURES {
            let recorded = frames(name);
            let expected = answers(&ends(&audit_plainly(&recorded).0));
            let mut captures = WORKERS.map(|workers| Capture::rings(&settings(&["near"], workers)));
            let client = recorded[0].data[6..12].to_vec();
            let is_out = |frame: &OwnedFrame| frame.data[6..12] == client;
            let mut sent = 0;
            // What is sent from one side may be on its way while the other side sends: one side after the other.
            for burst in recorded.chunk_by(|one, next| is_out(one) == is_out(next)) {
                for frame in burst {
                    let mut octets = frame.data.clone();
                    octets.resize(frame.wire_len as usize, 0);
                    if is_out(frame) { near.send(&octets) } else { far.send(&octets) }
                }
                sent += burst.len();
                captures.iter_mut().for_each(|capture| capture.until_received(sent));
            }
            for (capture, workers) in captures.iter().zip(WORKERS) {
                workers_of_pairs(capture);
                let records = records(&capture.frames, &["near"]);
                assert_eq!(answers(&records.iter().collect::<Vec<_>>()), expected, "{name}, {workers} workers");
            }
        }
    });
}

/// What must not depend on how the packets came.
fn answers(ends: &[&Record]) -> Vec<String> {
    let answer = |end: &&Record| {
        let signs: Vec<_> =
            end.evidence.iter().map(|sign| (&sign.code, sign.direction, sign.value, sign.count)).collect();
        let (outline, verdict) =
            (Outline::of(end), (end.verdict, end.reason, end.tunnel, end.confidence, end.midstream));
        format!("{outline:?} {verdict:?} {:?} {:?} {signs:?}", end.spi, end.gre_key)
    };
    let mut answers: Vec<_> = ends.iter().map(answer).collect();
    answers.sort();
    answers
}
