//! Every frame is handed over or counted as lost, and the loss is the right one's.

use std::fs;
use std::time::Duration;

use linewarden::capture::LiveSettings;

use crate::frames::{VLAN, ethernet, ipv4, ipv6, mpls, pppoe, tagged, udp};
use crate::link::{Capture, Sender, counted, in_namespace, run, settings, until, veth};

const SENT: usize = 5000;

#[test]
fn what_the_ring_has_no_room_for_is_counted() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let small = |name, workers| LiveSettings {
            ring_octets: 128 << 10,
            block_octets: 64 << 10,
            ..settings(&[name], workers)
        };
        // Out at `far`, in at `near`.
        let mut captures = [("far", 1), ("far", 2), ("near", 1), ("near", 4)]
            .map(|(name, workers)| Capture::rings(&small(name, workers)));
        let frames: Vec<_> = (2..34).map(|number| ethernet(&udp(ipv4(number), [1, 2], &[7; 400]))).collect();
        // Nobody polls: each ring takes what it has room for.
        frames.iter().cycle().take(SENT).for_each(|frame| far.send(frame));
        let on_the_way = counted("near", "rx_dropped");
        assert!(on_the_way < SENT as u64 / 2, "{on_the_way} frames did not arrive");
        for (capture, missing) in captures.iter_mut().zip([0, 0, on_the_way, on_the_way]) {
            capture.finish();
            let counters = capture.counters();
            assert_eq!(counters.received + counters.dropped_kernel.unwrap() + missing, SENT as u64, "{counters:?}");
            assert!(
                counters.received > 0 && counters.dropped_kernel > Some(0) && counters.ring_full > 0,
                "{counters:?}"
            );
            assert_eq!(counters.dropped_kernel, capture.counters().dropped_kernel, "asked again, nothing more");
        }
    });
}

#[test]
fn a_ring_that_was_full_takes_frames_again() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut capture =
            Capture::rings(&LiveSettings { ring_octets: 128 << 10, block_octets: 64 << 10, ..settings(&["far"], 1) });
        let frame = ethernet(&udp(ipv4(2), [1, 2], &[7; 400]));
        let mut sent = 0;
        for _ in 0..5 {
            let before = capture.counters();
            (0..1000).for_each(|_| far.send(&frame));
            sent += 1000;
            until("what the ring holds", || {
                capture.poll();
                let now = capture.counters();
                now.received + now.dropped_kernel.unwrap() == sent
            });
            let now = capture.counters();
            assert!(now.received > before.received && now.dropped_kernel > before.dropped_kernel, "{before:?} {now:?}");
        }
    });
}

#[test]
fn frames_that_arrived_before_their_interface_went_away_are_handed_over() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        // The block is still the kernel's when the interface is found gone, a second after the start.
        let slow = |workers| LiveSettings { block_timeout: Duration::from_secs(2), ..settings(&["near"], workers) };
        let mut captures = [1, 2].map(|workers| Capture::rings(&slow(workers)));
        (2..12).for_each(|number| far.send(&ethernet(&udp(ipv4(number), [1, 2], &[7; 50]))));
        run("ip link delete near");
        captures.iter_mut().for_each(|capture| capture.until_received(10));
    });
}

/// A NIC and its driver, as far as this process sees.
fn nic_says(missed: u64, fifo: u64, dropped: u64) {
    for (name, count) in [("rx_missed_errors", missed), ("rx_fifo_errors", fifo), ("rx_dropped", dropped)] {
        fs::write(format!("/sys/class/net/near/statistics/{name}"), format!("{count}\n")).unwrap();
    }
}

#[test]
fn what_the_nic_missed_is_counted_apart() {
    in_namespace(|| {
        veth("far", "near");
        // Only this process and its namespace of mounts see these counts.
        run("mount -t tmpfs none /sys/class/net");
        fs::create_dir_all("/sys/class/net/near/statistics").unwrap();
        nic_says(1000, 0, 5);
        let mut capture = Capture::rings(&settings(&["near"], 2));
        let mut lost = |missed, fifo, dropped| {
            nic_says(missed, fifo, dropped);
            let counters = capture.counters();
            assert_eq!((counters.received, counters.dropped_kernel), (0, Some(0)));
            counters.dropped_nic
        };
        assert_eq!(lost(1000, 0, 5), 0, "what it missed before the start");
        assert_eq!(lost(1007, 0, 5), 7, "once, not for each worker");
        assert_eq!(lost(1007, 1009, 5), 9, "a driver that counts the same loss in both");
        assert_eq!(lost(2, 0, 0), 11, "a driver that was loaded anew");
        assert_eq!(lost(2, 0, 40), 11, "what the host has no use for");
    });
}

#[test]
fn frames_that_only_the_ring_has_use_for_are_no_loss() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut capture = Capture::rings(&settings(&["near"], 1));
        let packets = [ipv4(2), ipv6(2)].map(|pair| udp(pair, [1, 2], &[7; 50]));
        for packet in &packets {
            for frame in [mpls(1, packet), pppoe(&[0, 0x21], packet), ethernet(packet)] {
                far.send(&frame);
                far.send(&tagged(VLAN, 100, &frame));
            }
        }
        capture.until_received(12);
        assert_eq!(capture.counters().dropped_nic, 0, "the kernel's rx_dropped is {}", counted("near", "rx_dropped"));
    });
}
