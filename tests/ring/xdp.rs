//! `AF_XDP`: the same frames and records as the ring's, exact losses, whose interfaces it takes, and how it leaves them.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use linewarden::capture::{CaptureError, LiveSettings, XdpSettings, open_xdp};
use linewarden::config::{Instruction, XdpMode};
use linewarden::record::Record;
use linewarden::wire::{VlanTag, parse};
use serde_json::Value;

use crate::common::command::{LINEWARDEN, assert_adds_up, done, folder};
use crate::common::netns::Daemon;
use crate::common::pcap::frames as recorded;
use crate::daemon::{start, stop};
use crate::frames::{SERVICE_VLAN, VLAN, back, ethernet, ipv4, ipv6, tagged, udp};
use crate::link::{Capture, Sender, bridged, counted, in_namespace, run, settings, sysfs, until, until_up, up, veth};
use crate::records;

const XDP: XdpSettings = XdpSettings { mode: XdpMode::Auto, takes_frames: false, symmetric_rss: false };
const MEANT: XdpSettings = XdpSettings { takes_frames: true, ..XDP };
const SYMMETRIC: XdpSettings = XdpSettings { symmetric_rss: true, ..XDP };

fn frames() -> Vec<Vec<u8>> {
    (2..18)
        .flat_map(|number| [ipv4(number), ipv6(number)])
        .map(|pair| ethernet(&udp(pair, [1, 2], &[7; 400])))
        .collect()
}

const FRAMES: usize = 32;

fn refusal(settings: &LiveSettings, xdp: XdpSettings) -> String {
    let error = open_xdp(settings, xdp).map(|_| "opened").unwrap_err();
    assert!(matches!(error, CaptureError::Setting(_)), "{error:?}");
    error.to_string()
}

/// Whether a program is attached, as people see it.
fn has_program(interface: &str) -> bool {
    run(&format!("ip link show dev {interface}")).contains("prog/xdp")
}

/// A program in the driver shows as `xdp`, one in the stack as `xdpgeneric`.
fn is_in_stack(interface: &str) -> bool {
    run(&format!("ip link show dev {interface}")).contains("xdpgeneric")
}

/// Everything that a record says but its times.
fn timeless(records: &[Record]) -> Vec<String> {
    let without_times = |record: &Record| {
        let mut value = serde_json::to_value(record).unwrap();
        drop_times(&mut value);
        value.to_string()
    };
    let mut all: Vec<_> = records.iter().map(without_times).collect();
    all.sort();
    all
}

fn drop_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // The identifier of a flow is made of its start; records come in the order in which flows end.
            for key in ["time", "start", "end", "flow_id", "related_flow_ids", "outer_flow_id", "seq"] {
                map.remove(key);
            }
            map.values_mut().for_each(drop_times);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_times),
        _ => {}
    }
}

#[test]
fn xdp_gives_the_records_that_the_ring_gives() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let names = [
            "wireguard-port-51820",
            "ike-v2-certificates",
            "openvpn-udp-odd-port-tls-crypt",
            "openvpn-tcp-443",
            "gre-key-sequence",
            "benign-iperf3-udp",
        ];
        let mut verdicts = BTreeSet::new();
        for name in names {
            // What goes out at `far` comes in at `near`.
            let mut from_ring = Capture::rings(&settings(&["far"], 1));
            let mut from_xdp = Capture::xdp(&settings(&["near"], 1), XDP);
            let frames = recorded(name);
            for (number, frame) in frames.iter().enumerate() {
                let mut whole = frame.data.clone();
                whole.resize(frame.wire_len as usize, 0);
                far.send(&whole);
                if number % 32 == 0 {
                    from_xdp.poll();
                }
            }
            from_ring.until_received(frames.len());
            from_xdp.until_received(frames.len());
            for (one, other) in from_ring.frames[0].iter().zip(&from_xdp.frames[0]) {
                assert_eq!((one.wire_len, &one.data), (other.wire_len, &other.data), "{name}");
            }
            let [ring, xdp] = [from_ring, from_xdp].map(|mut capture| {
                capture.finish();
                assert_eq!(capture.counters().dropped_kernel, Some(0));
                records(&capture.frames, &["link"])
            });
            verdicts.extend(ring.iter().map(|record| format!("{:?}", record.tunnel)));
            assert_eq!(timeless(&ring), timeless(&xdp), "{name}");
        }
        assert!(verdicts.len() >= 5, "{verdicts:?}");
    });
}

#[test]
fn the_host_does_not_see_what_xdp_takes_and_xdp_does_not_see_what_the_host_sends() {
    in_namespace(|| {
        veth("far", "near");
        let (mut far, mut near) = (Sender::on("far"), Sender::on("near"));
        let mut host = Capture::rings(&settings(&["near"], 1));
        let mut capture = Capture::xdp(&settings(&["near"], 1), XDP);
        frames().iter().for_each(|frame| far.send(frame));
        capture.until_received(FRAMES);
        near.send(&frames()[0]);
        // The ring sees what is sent, and nothing of what came in.
        host.until_received(1);
        (0..3).for_each(|_| capture.poll());
        assert_eq!(capture.received(), FRAMES);
        capture.finish();
        far.send(&frames()[1]);
        host.until_received(2);
        assert_eq!(capture.received(), FRAMES, "at its end it lets go");
    });
}

#[test]
fn what_arrived_before_the_end_is_handed_over() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut capture = Capture::xdp(&settings(&["near"], 1), XDP);
        frames().iter().cycle().take(1000).for_each(|frame| far.send(frame));
        capture.finish();
        assert_eq!(capture.received() as u64 + counted("far", "tx_dropped"), 1000);
        assert_eq!(capture.counters().dropped_kernel, Some(0));
    });
}

#[test]
fn every_frame_is_handed_over_or_counted() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        // 64 chunks of 4096 octets: MTU 9000.
        let small = LiveSettings { ring_octets: 256 << 10, ..settings(&["near"], 1) };
        let mut capture = Capture::xdp(&small, XDP);
        let frame = ethernet(&udp(ipv4(2), [1, 2], &[7; 400]));
        let mut sent = 0;
        for _ in 0..5 {
            let before = capture.counters();
            // Nobody polls: the ring takes what it has room for.
            (0..1000).for_each(|_| far.send(&frame));
            sent += 1000;
            let lost_before = counted("far", "tx_dropped");
            until("what the ring holds", || {
                capture.poll();
                let now = capture.counters();
                now.received + now.dropped_kernel.unwrap() + lost_before == sent
            });
            let now = capture.counters();
            assert_eq!(now.received - before.received, 64, "{now:?}");
            assert!(now.dropped_kernel > before.dropped_kernel && now.ring_full > before.ring_full, "{now:?}");
        }
    });
}

#[test]
fn frames_longer_than_a_chunk_count_whole_and_are_cut() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        for snap_length in [256, 3840] {
            let mut capture = Capture::xdp(&LiveSettings { snap_length, ..settings(&["near"], 1) }, XDP);
            let packets: Vec<_> = [0_u16, 1400, 3780, 3798, 3799, 4000, 7680, 8900]
                .map(|octets| ethernet(&udp(ipv4(2), [1, 2], &(0..octets).map(|at| at as u8).collect::<Vec<_>>())))
                .into();
            packets.iter().for_each(|frame| far.send(frame));
            capture.until_received(packets.len());
            for (sent, found) in packets.iter().zip(&capture.frames[0]) {
                assert_eq!(found.wire_len as usize, sent.len());
                assert_eq!(found.data, sent[..sent.len().min(snap_length as usize)]);
            }
            assert_eq!(capture.counters().dropped_kernel, Some(0));
        }
        // Long frames use up the chunks sooner, and are lost as wholes.
        let small = LiveSettings { ring_octets: 256 << 10, ..settings(&["near"], 1) };
        let mut capture = Capture::xdp(&small, XDP);
        let frame = ethernet(&udp(ipv4(2), [1, 2], &[7; 8000]));
        (0..100).for_each(|_| far.send(&frame));
        until("all that was sent", || {
            capture.poll();
            let counters = capture.counters();
            counters.received + counters.dropped_kernel.unwrap() == 100
        });
        assert_eq!(capture.received(), 64 / 3);
        assert!(capture.frames[0].iter().all(|found| found.wire_len as usize == frame.len()));
    });
}

#[test]
fn a_tag_in_the_frame_stays_there_and_one_taken_out_is_lost() {
    in_namespace(|| {
        bridged();
        let mut far = Sender::on("far");
        let plain = ethernet(&udp(ipv4(2), [1, 2], &[7; 50]));
        let [one, two] = [tagged(VLAN, 100, &plain), tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &plain))];
        // The bridge hands the tag on apart from the frame, as a NIC does that takes it out.
        let mut beyond = Capture::xdp(&settings(&["end"], 1), XDP);
        far.send(&one);
        beyond.until_received(1);
        let found = &beyond.frames[0][0];
        assert_eq!((found.wire_len as usize, &found.data, found.stripped_vlan), (plain.len(), &plain, None::<VlanTag>));
        let mut capture = Capture::xdp(&settings(&["near"], 1), MEANT);
        for (number, frame) in [&one, &two].into_iter().enumerate() {
            far.send(frame);
            capture.until_received(number + 1);
            assert_eq!(&capture.frames[0][number].data, frame);
        }
        capture.finish();
        let mut vlans: Vec<_> = records(&capture.frames, &["near"]).into_iter().map(|end| end.vlan).collect();
        vlans.sort();
        assert_eq!(vlans, [vec![7, 8], vec![100]]);
    });
}

/// Both ends with as many queues.
fn cable(one: &str, other: &str, queues: u32) {
    let each = format!("numtxqueues {queues} numrxqueues {queues}");
    run(&format!("ip link add name {one} {each} type veth peer name {other} {each}"));
    for end in [one, other] {
        up(end);
    }
    [one, other].into_iter().for_each(until_up);
    assert_eq!(std::fs::read_dir(format!("/sys/class/net/{other}/queues")).unwrap().count() as u32, 2 * queues);
}

#[test]
fn queues_are_shared_by_the_workers_and_nothing_is_missed() {
    in_namespace(|| {
        cable("far", "near", 4);
        let mut far = Sender::on("far");
        let sent: Vec<_> = (2..255).map(|number| ethernet(&udp(ipv4(number), [1, 2], &[7; 50]))).collect();
        for workers in [1, 2, 3, 4] {
            let mut capture = Capture::xdp(&settings(&["near"], workers), SYMMETRIC);
            sent.iter().for_each(|frame| far.send(frame));
            capture.until_received(sent.len());
            let busy = capture.frames.iter().filter(|frames| !frames.is_empty()).count();
            assert!(busy == usize::from(workers), "{busy} of {workers} workers received frames");
            let sources = capture.frames.iter().map(|frames| {
                frames
                    .iter()
                    .map(|frame| parse(&frame.borrow()).unwrap().addresses.both()[0])
                    .collect::<BTreeSet<_>>()
                    .len()
            });
            assert_eq!(sources.sum::<usize>(), sent.len(), "each frame once");
            capture.finish();
            assert_eq!(capture.counters().dropped_kernel, Some(0));
        }
        assert!(refusal(&settings(&["near"], 5), SYMMETRIC).contains("there are only 4 queues"));
    });
}

/// `linux/ethtool.h`: `struct ethtool_channels` with so many queues for receiving and for sending.
const SET_QUEUES: &str = "
import ctypes, fcntl, socket, struct, sys
name, queues = sys.argv[1].encode(), int(sys.argv[2])
channels = ctypes.create_string_buffer(struct.pack('9I', 0x3d, 0, 0, 0, 0, queues, queues, 0, 0))
request = struct.pack('16sQ16x', name, ctypes.addressof(channels))
fcntl.ioctl(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), 0x8946, request)
";

#[test]
fn a_queue_that_comes_later_is_read_too() {
    in_namespace(|| {
        let set = |name, queues| {
            let set = Command::new("python3").args(["-c", SET_QUEUES, name, queues]).status();
            assert!(set.unwrap().success());
        };
        cable("far", "near", 2);
        ["far", "near"].into_iter().for_each(|name| set(name, "1"));
        let mut capture = Capture::xdp(&settings(&["near"], 1), XDP);
        ["near", "far"].into_iter().for_each(|name| set(name, "2"));
        let mut far = Sender::on("far");
        until("frames of all queues", || {
            let before = capture.received();
            frames().iter().for_each(|frame| far.send(frame));
            (0..3).for_each(|_| capture.poll());
            capture.received() == before + FRAMES
        });
    });
}

#[test]
fn several_interfaces_are_captured_at_once() {
    in_namespace(|| {
        let (names, far) = (["wan0", "lan0"], ["wan1", "lan1"]);
        names.iter().zip(far).for_each(|(name, far)| veth(name, far));
        let mut capture = Capture::xdp(&settings(&names, 1), XDP);
        for (number, far) in (2..).zip(far) {
            Sender::on(far).send(&ethernet(&udp(ipv4(number), [1, 2], &[7; 50])));
            Sender::on(far).send(&ethernet(&udp(back(ipv4(number)), [2, 1], &[7; 50])));
        }
        capture.until_received(4);
        capture.finish();
        let mut found: Vec<_> = records(&capture.frames, &names)
            .iter()
            .map(|end| (end.interface.to_string(), end.src_ip, end.fwd_packets, end.rev_packets))
            .collect();
        found.sort();
        let expected = [("lan0", ipv4(3)[0], 1, 1), ("wan0", ipv4(2)[0], 1, 1)];
        assert_eq!(found, expected.map(|(name, ip, forward, reverse)| (name.to_owned(), ip, forward, reverse)));
    });
}

#[test]
fn an_interface_that_the_host_talks_over_is_refused_unless_it_is_meant() {
    in_namespace(|| {
        veth("far", "near");
        let [plain, both] = [settings(&["near"], 1), settings(&["far", "near"], 1)];
        run("ip address add 198.51.100.1/24 dev near");
        for settings in [&plain, &both] {
            let said = refusal(settings, XDP);
            assert!(said.starts_with("interface `near` has the address 198.51.100.1: XDP would take"), "{said}");
            assert!(said.contains("capture.xdp_takes_frames = true"), "{said}");
        }
        assert!(!has_program("near") && !has_program("far"));
        drop(Capture::xdp(&plain, MEANT));
        run("ip address flush dev near");
        run("ip route add default dev near");
        let said = refusal(&plain, XDP);
        assert!(said.starts_with("interface `near` is that of the default route: "), "{said}");
        run("ip route del default dev near");
        drop(Capture::xdp(&plain, XDP));
        run("ip link add name bridge type bridge");
        run("ip link set near master bridge");
        let said = refusal(&plain, XDP);
        assert!(said.starts_with("interface `near` carries `bridge`: "), "{said}");
        run("ip link set near nomaster");
        // What the kernel gives every interface.
        std::fs::write("/proc/sys/net/ipv6/conf/near/disable_ipv6", "0").unwrap();
        until("a link-local address", || run("ip address show dev near").contains("inet6 fe80"));
        drop(Capture::xdp(&plain, XDP));
        run("ip address add 2001:db8::1/64 dev near");
        assert!(refusal(&plain, XDP).contains("has the address 2001:db8::1"));
        up("lo");
        assert!(refusal(&settings(&["lo"], 1), XDP).contains("has the address 127.0.0.1"));
    });
}

#[test]
fn a_program_of_somebody_else_is_not_replaced() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut capture = Capture::xdp(&settings(&["near"], 1), XDP);
        let said = refusal(&settings(&["near"], 1), XDP);
        assert!(said.starts_with("interface `near` has an XDP program already"), "{said}");
        // The first one goes on.
        frames().iter().for_each(|frame| far.send(frame));
        capture.until_received(FRAMES);
        drop(capture);
        assert!(!has_program("near"));
        drop(Capture::xdp(&settings(&["near"], 1), XDP));
    });
}

#[test]
fn a_driver_without_zero_copy_is_refused_where_it_is_asked_for() {
    in_namespace(|| {
        veth("far", "near");
        let said = refusal(&settings(&["near"], 1), XdpSettings { mode: XdpMode::ZeroCopy, ..XDP });
        assert!(said.starts_with("interface `near`: its driver has no zero-copy mode"), "{said}");
        assert!(said.contains("Operation not supported") && said.contains("capture.xdp_mode"), "{said}");
        assert!(!has_program("near"), "and leaves nothing behind");
        let mut capture = Capture::xdp(&settings(&["near"], 1), XdpSettings { mode: XdpMode::Copy, ..XDP });
        Sender::on("far").send(&frames()[0]);
        capture.until_received(1);
    });
}

#[test]
fn a_driver_without_a_place_for_programs_is_captured_from_the_stack() {
    in_namespace(|| {
        veth("far", "near");
        run("ip link add name bridge type bridge mcast_snooping 0");
        up("bridge");
        run("ip link set near master bridge");
        until("the bridge to forward", || sysfs("near", "brport/state") == "3");
        let mut far = Sender::on("far");
        let mut capture = Capture::xdp(&settings(&["bridge"], 1), XDP);
        assert!(is_in_stack("bridge"));
        // A bridge looks at IPv4's checksums; IPv6 has none.
        let mut sent: Vec<_> = (2..18).map(|number| ethernet(&udp(ipv6(number), [1, 2], &[7; 400]))).collect();
        sent.push(ethernet(&udp(ipv6(2), [1, 2], &[7; 8000])));
        sent.iter().for_each(|frame| far.send(frame));
        capture.until_received(sent.len());
        for (sent, found) in sent.iter().zip(&capture.frames[0]) {
            assert_eq!((found.wire_len as usize, &found.data[..]), (sent.len(), &sent[..256]));
        }
        drop(capture);
        assert!(!is_in_stack("bridge"));
    });
}

#[test]
fn settings_that_xdp_cannot_follow_are_refused() {
    in_namespace(|| {
        veth("far", "near");
        let plain = settings(&["near"], 1);
        let everything = Instruction { code: 6, jt: 0, jf: 0, k: 262_144 };
        let cases = [
            ("capture.filter needs", LiveSettings { filter: vec![everything], ..plain.clone() }),
            ("capture.workers above 1 needs", settings(&["near"], 2)),
            ("capture.snap_length is 3841", LiveSettings { snap_length: 3841, ..plain.clone() }),
            ("capture.ring_octets is 131072", LiveSettings { ring_octets: 128 << 10, ..plain.clone() }),
            ("capture needs an interface", settings(&[], 1)),
            ("capture needs an interface", settings(&["near"], 0)),
        ];
        for (expected, settings) in cases {
            let said = refusal(&settings, XDP);
            assert!(said.starts_with(expected), "{expected}: {said}");
        }
        let error = open_xdp(&settings(&["near", "nearer"], 1), XDP).map(|_| "opened").unwrap_err();
        assert!(matches!(&error, CaptureError::NoInterface(name) if name == "nearer"), "{error:?}");
        assert!(!has_program("near"), "what was opened before the error is closed");
    });
}

#[test]
fn xdp_is_promiscuous_if_it_is_asked_to() {
    in_namespace(|| {
        veth("far", "near");
        for (promiscuous, expected) in [(true, "promiscuity 1"), (false, "promiscuity 0")] {
            let capture = Capture::xdp(&LiveSettings { promiscuous, ..settings(&["near"], 1) }, XDP);
            assert!(run("ip -d link show dev near").contains(expected));
            drop(capture);
            assert!(run("ip -d link show dev near").contains("promiscuity 0"));
        }
    });
}

#[test]
fn an_interface_that_xdp_captures_may_go_down_and_away_and_come_back() {
    in_namespace(|| {
        for workers in [1, 2] {
            cable("far", "near", 2);
            veth("other", "end");
            let mut capture = Capture::xdp(&settings(&["near", "end"], workers), SYMMETRIC);
            let send = |name| {
                let mut far = Sender::on(name);
                frames().iter().for_each(|frame| far.send(frame));
            };
            send("far");
            capture.until_received(FRAMES);
            run("ip link set near down");
            // The other interface is captured as before.
            send("other");
            capture.until_received(2 * FRAMES);
            up("near");
            ["near", "far"].into_iter().for_each(until_up);
            send("far");
            capture.until_received(3 * FRAMES);
            // What arrived before is not lost with the interface.
            send("far");
            run("ip link delete near");
            capture.until_received(4 * FRAMES);
            cable("far", "near", 2);
            let mut far = Sender::on("far");
            until("frames again", || {
                let before = capture.received();
                // Every worker has to find it.
                frames().iter().for_each(|frame| far.send(frame));
                (0..3).for_each(|_| capture.poll());
                capture.received() == before + FRAMES
            });
            assert_eq!(capture.counters().dropped_kernel, Some(0));
            drop(capture);
            assert!(!has_program("near"));
            run("ip link delete near");
            run("ip link delete end");
        }
    });
}

#[test]
fn an_interface_that_is_down_at_the_start_is_waited_for_by_xdp() {
    in_namespace(|| {
        run("ip link add name far type veth peer name near");
        let mut capture = Capture::xdp(&settings(&["near"], 1), XDP);
        (0..3).for_each(|_| capture.poll());
        up("far");
        up("near");
        until_up("far");
        let mut far = Sender::on("far");
        until("frames", || {
            far.send(&frames()[0]);
            capture.poll();
            capture.received() > 0
        });
    });
}

#[test]
fn an_interface_that_comes_back_with_an_address_is_left_alone() {
    in_namespace(|| {
        veth("far", "near");
        let (mut daemon, _folder) = start("interfaces = [\"near\"]\nbackend = \"xdp\"");
        run("ip link delete near");
        daemon.says("interface is gone");
        run("ip link add name far type veth peer name near");
        run("ip address add 198.51.100.1/24 dev near");
        ["near", "far"].into_iter().for_each(up);
        let said = daemon.says("interface is not captured");
        assert!(said.contains("has the address 198.51.100.1"), "{said}");
        assert!(!has_program("near"));
        run("ip address flush dev near");
        daemon.says("interface is back");
        assert!(has_program("near"));
        stop(&mut daemon);
        assert!(!has_program("near"));
    });
}

/// Records and summary of a daemon that saw each frame once.
fn assert_saw_all(daemon: &mut Daemon) {
    let (ends, summary) = stop(daemon);
    assert_adds_up(&summary, &daemon.records());
    assert_eq!(summary["packets"], FRAMES, "{summary}");
    assert_eq!(summary["dropped_kernel"], 0, "{summary}");
    assert_eq!(ends.len(), FRAMES);
}

#[test]
fn a_daemon_lets_go_of_the_interface_however_it_ends_and_starts_again_at_once() {
    in_namespace(|| {
        veth("far", "near");
        let capture = "interfaces = [\"near\"]\nbackend = \"xdp\"";
        let mut far = Sender::on("far");
        for _ in 0..3 {
            let (mut daemon, _folder) = start(capture);
            let said = daemon.said.join("\n");
            assert!(said.contains("the driver has no zero-copy mode: frames are copied"), "{said}");
            assert!(said.contains("rxvlan off"), "{said}");
            assert!(has_program("near"));
            frames().iter().for_each(|frame| far.send(frame));
            assert_saw_all(&mut daemon);
            assert!(!has_program("near"));

            let (daemon, _folder) = start(capture);
            assert!(has_program("near"));
            daemon.signal("KILL");
            until("the program to go with its process", || !has_program("near"));
            drop(daemon);
        }
    });
}

const ARGUMENTS: [&str; 7] = ["run", "--config", "settings.toml", "--approvals", "approvals.d", "--records", "log"];

#[test]
fn without_privileges_the_daemon_says_what_is_missing() {
    in_namespace(|| {
        veth("far", "near");
        let folder = folder(&[
            ("approvals.d/none", ""),
            ("settings.toml", "[capture]\ninterfaces = [\"near\"]\nbackend = \"xdp\"\n"),
        ]);
        let run_under = |limits: &str| {
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "60"]).args(limits.split(' ')).arg(LINEWARDEN).args(ARGUMENTS);
            done(command.current_dir(folder.path()).env_remove("RUST_LOG").stdin(Stdio::null()))
        };
        // CAP_SYS_ADMIN stands for the others in bpf(2).
        for missing in ["-net_raw", "-net_admin,-sys_admin", "-bpf,-sys_admin", "-all"] {
            let done = run_under(&format!("setpriv --bounding-set {missing}"));
            assert_eq!(done.code, 77, "{missing}: {}", done.err);
            assert!(done.err.contains("CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"), "{missing}: {}", done.err);
        }
        // All that the service's file asks for.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all,+net_raw,+net_admin,+bpf,+ipc_lock", LINEWARDEN]).args(ARGUMENTS);
        command.current_dir(folder.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        let mut daemon = Daemon::start(command, folder.path().join("log"));
        daemon.says("capturing");
        assert!(has_program("near"));
        stop(&mut daemon);
        let done = run_under("prlimit --memlock=8388608 setpriv --bounding-set -ipc_lock");
        assert!(done.err.contains("does not let 67108864 octets be shared"), "{}", done.err);
        assert!(done.err.contains("CAP_IPC_LOCK"), "{}", done.err);
        assert!(!has_program("near"));
    });
}
