//! What a frame is when it arrives: with the tag that the kernel took out, cut, filtered, joined from segments, and once.

use std::net::{TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use linewarden::capture::{CaptureError, LiveSettings, open_rings};
use linewarden::config::parse_filter;
use linewarden::wire::{LinkType, VlanTag, parse};

use crate::frames::{SERVICE_VLAN, UDP, VLAN, back, ethernet, ipv4, ipv6, tagged, tcp, udp};
use crate::link::{
    Capture, Host, Sender, bridged, counted, in_namespace, run, settings, tun, until, until_up, up, veth,
};
use crate::{Outline, outlines, records};

/// Tag protocol; priority and VLAN.
const TAGS: [(u16, u16); 4] = [(VLAN, 0x6064), (SERVICE_VLAN, 100), (VLAN, 0xffff), (VLAN, 0)];

#[test]
fn a_vlan_tag_that_the_kernel_took_out_is_put_back() {
    in_namespace(|| {
        // What comes in at `near` goes out at `out`, its tag still apart from it.
        bridged();
        let [mut incoming, mut outgoing] = ["near", "out"].map(|name| Capture::rings(&settings(&[name], 1)));
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        for (number, (tpid, tci)) in (1..).zip(TAGS) {
            let plain = ethernet(&udp(ipv4(2), [1, 2], &[7; 50]));
            let whole = tagged(tpid, tci, &plain);
            far.send(&whole);
            for capture in [&mut incoming, &mut outgoing] {
                capture.until_received(number);
                let frame = capture.frames[0].last().unwrap();
                assert_eq!(frame.stripped_vlan, Some(VlanTag { tpid, tci }));
                assert_eq!((frame.wire_len as usize, &frame.data), (whole.len(), &plain));
            }
        }
        // What is sent here keeps its tag in the frame; the flow is the same.
        for (number, (tpid, tci)) in (TAGS.len() + 1..).zip(TAGS) {
            let whole = tagged(tpid, tci, &ethernet(&udp(back(ipv4(2)), [2, 1], &[7; 50])));
            near.send(&whole);
            incoming.until_received(number);
            let frame = incoming.frames[0].last().unwrap();
            assert_eq!((frame.stripped_vlan, frame.wire_len as usize, &frame.data), (None, whole.len(), &whole));
        }
        let octets = 14 + 4 + 20 + 8 + 50;
        let flow = |vlan, packets| Outline {
            addresses: ipv4(2),
            ports: Some([1, 2]),
            proto: UDP,
            vlan,
            counts: [packets, packets * octets, packets, packets * octets],
        };
        let expected = [flow(vec![], 1), flow(vec![100], 2), flow(vec![4095], 1)];
        assert_eq!(outlines(&records(&incoming.frames, &["near"])), expected);
    });
}

#[test]
fn the_kernel_cuts_to_the_snap_length_and_the_frame_counts_whole() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        let mut capture = Capture::rings(&LiveSettings { snap_length: 96, ..settings(&["near"], 1) });
        let plain = ethernet(&udp(ipv4(2), [1, 2], &[7; 1400]));
        let in_vlan = tagged(VLAN, 5, &plain);
        let short = ethernet(&udp(ipv6(2), [1, 2], &[]));
        let jumbo = ethernet(&udp(back(ipv4(2)), [2, 1], &[7; 8000]));
        far.send(&plain);
        far.send(&in_vlan);
        far.send(&short);
        capture.until_received(3);
        near.send(&jumbo);
        capture.until_received(4);
        let found = capture.frames[0].iter().map(|frame| (frame.data.as_slice(), frame.wire_len as usize));
        let expected = [
            (&plain[..96], plain.len()),
            (&plain[..96], in_vlan.len()),
            (&short[..], short.len()),
            (&jumbo[..96], jumbo.len()),
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    });
}

/// `tcpdump -ddd udp`.
const ONLY_UDP: &str = "12
40 0 0 12
21 0 2 2048
48 0 0 23
21 6 7 17
21 0 6 34525
48 0 0 20
21 3 0 17
21 0 3 44
48 0 0 54
21 0 1 17
6 0 0 262144
6 0 0 0
";

#[test]
fn the_kernel_filters_what_comes_in_and_what_goes_out() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        let filter = parse_filter(ONLY_UDP).unwrap();
        let mut captures = [1, 2]
            .map(|workers| Capture::rings(&LiveSettings { filter: filter.clone(), ..settings(&["near"], workers) }));
        for pair in (2..12).flat_map(|number| [ipv4(number), ipv6(number)]) {
            for payload in [&[7; 10][..], &[7; 1000]] {
                for packet in [udp, tcp] {
                    far.send(&ethernet(&packet(pair, [1, 2], payload)));
                    near.send(&ethernet(&packet(back(pair), [2, 1], payload)));
                }
            }
        }
        for capture in &mut captures {
            capture.until_received(80);
            capture.finish();
            assert_eq!(capture.received(), 80);
            assert_eq!(capture.counters().dropped_kernel, Some(0), "what the filter leaves out is no drop");
            for frame in capture.frames.iter().flatten() {
                assert_eq!(parse(&frame.borrow()).unwrap().protocol, UDP);
                assert!(frame.data.len() <= 256, "the filter's own length is cut to the snap length");
            }
        }
    });
}

#[test]
fn a_filter_that_the_kernel_refuses_is_said_at_the_start() {
    in_namespace(|| {
        veth("far", "near");
        // A jump behind the end.
        let filter = parse_filter("21 200 0 1\n6 0 0 262144\n").unwrap();
        for workers in [1, 2] {
            let opened = open_rings(&LiveSettings { filter: filter.clone(), ..settings(&["near"], workers) });
            let error = opened.map(|_| "opened").unwrap_err();
            assert!(matches!(error, CaptureError::Setting(_)), "{error:?}");
            assert!(error.to_string().starts_with("capture.filter"), "{error}");
        }
    });
}

#[test]
fn segments_that_the_kernel_has_joined_count_whole() {
    in_namespace(|| {
        let host = Host::start();
        run(&format!("ip link add name near type veth peer name far netns {}", host.id()));
        run("ip address add 198.51.100.1/24 dev near");
        up("near");
        host.run("ip address add 198.51.100.2/24 dev far");
        host.run("ip link set far up");
        until_up("near");
        // Room for all of it, without a turn of the workers; once whole, once cut.
        let slow = LiveSettings { block_timeout: Duration::from_millis(200), ..settings(&["near"], 2) };
        let whole = LiveSettings { snap_length: 65_535, block_octets: 1 << 20, ring_octets: 16 << 20, ..slow.clone() };
        let mut captures = [Capture::rings(&slow), Capture::rings(&whole)];
        let kernel = || ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes"].map(|what| counted("near", what));
        let before = kernel();
        let listener = TcpListener::bind("198.51.100.1:5001").unwrap();
        let server = thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
        host.run_shell("head -c 5000000 /dev/zero > /dev/tcp/198.51.100.1/5001");
        assert_eq!(server.join().unwrap().unwrap(), 5_000_000);
        for (capture, snap_length) in captures.iter_mut().zip([slow.snap_length, whole.snap_length]) {
            until("all that the interface counts", || {
                capture.poll();
                let [rx_packets, tx_packets, rx_bytes, tx_bytes] = kernel();
                let frames = capture.frames.iter().flatten();
                let octets: u64 = frames.map(|frame| u64::from(frame.wire_len)).sum();
                let packets = rx_packets + tx_packets - before[0] - before[1];
                (capture.received() as u64, octets) == (packets, rx_bytes + tx_bytes - before[2] - before[3])
            });
            assert_eq!(capture.counters().dropped_kernel, Some(0));
            let all = || capture.frames.iter().flatten();
            let longest = all().map(|frame| frame.wire_len).max().unwrap();
            assert!(longest > 1514, "the kernel joined no segments: the longest frame has {longest} octets");
            assert_eq!(all().map(|frame| frame.data.len() as u32).max().unwrap(), longest.min(snap_length));
            let [flow] = &outlines(&records(&capture.frames, &["near"]))[..] else { panic!("more than one flow") };
            assert!(flow.counts[1] > 5_000_000 && flow.counts[2] > 0, "{flow:?}");
        }
    });
}

#[test]
fn a_frame_on_the_loopback_counts_once() {
    in_namespace(|| {
        up("lo");
        let [one, two] = ["127.0.0.1:5001", "127.0.0.2:5002"].map(|address| UdpSocket::bind(address).unwrap());
        let mut captures = [1, 2].map(|workers| Capture::rings(&settings(&["lo"], workers)));
        for _ in 0..5 {
            one.send_to(&[7; 100], "127.0.0.2:5002").unwrap();
            two.send_to(&[7; 100], "127.0.0.1:5001").unwrap();
        }
        for capture in &mut captures {
            capture.until_received(10);
            capture.finish();
            let expected = Outline {
                addresses: [[127, 0, 0, 1], [127, 0, 0, 2]].map(Into::into),
                ports: Some([5001, 5002]),
                proto: UDP,
                vlan: vec![],
                counts: [5, 710, 5, 710],
            };
            assert_eq!(outlines(&records(&capture.frames, &["lo"])), [expected]);
        }
    });
}

#[test]
fn an_interface_without_link_headers_is_captured() {
    in_namespace(|| {
        let mut inside = tun();
        let mut outside = Sender::on("tun0");
        let mut captures = [1, 2, 4].map(|workers| Capture::rings(&settings(&["tun0"], workers)));
        let pairs: Vec<_> = (2..10).flat_map(|number| [ipv4(number), ipv6(number)]).collect();
        for &pair in &pairs {
            inside.send(&udp(pair, [1, 2], &[7; 52]));
        }
        captures.iter_mut().for_each(|capture| capture.until_received(pairs.len()));
        pairs.iter().for_each(|&pair| outside.send(&udp(back(pair), [2, 1], &[7; 72])));
        let mut expected: Vec<_> = pairs
            .iter()
            .map(|&addresses| {
                let header = if addresses[0].is_ipv4() { 20 } else { 40 };
                let counts = [1, header + 60, 1, header + 80];
                Outline { addresses, ports: Some([1, 2]), proto: UDP, vlan: vec![], counts }
            })
            .collect();
        expected.sort();
        for capture in &mut captures {
            capture.until_received(2 * pairs.len());
            capture.finish();
            assert!(capture.frames.iter().flatten().all(|frame| frame.link == LinkType::RawIp));
            assert_eq!(outlines(&records(&capture.frames, &["tun0"])), expected);
        }
    });
}
