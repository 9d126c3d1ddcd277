//! `pnet`'s channel, the portable fallback: what it shows of the same traffic, and what it cannot show.

use linewarden::capture::{LiveSettings, open_pnet};
use linewarden::config::Instruction;

use crate::frames::{UDP, VLAN, back, ethernet, ipv4, ipv6, tagged, udp};
use crate::link::{Capture, Sender, in_namespace, run, settings, until, until_up, up, veth};
use crate::{Outline, outlines, records};

fn frames() -> Vec<Vec<u8>> {
    (2..18)
        .flat_map(|number| [ipv4(number), ipv6(number)])
        .map(|pair| ethernet(&udp(pair, [1, 2], &[7; 400])))
        .collect()
}

fn answers() -> Vec<Vec<u8>> {
    (2..18)
        .flat_map(|number| [ipv4(number), ipv6(number)])
        .map(|pair| ethernet(&udp(back(pair), [2, 1], &[7; 8000])))
        .collect()
}

#[test]
fn the_channel_gives_the_records_that_the_ring_gives() {
    in_namespace(|| {
        let names = ["wan0", "lan0"];
        veth("wan0", "wan1");
        veth("lan0", "lan1");
        let mut captures = [Capture::pnet(&settings(&names, 1)), Capture::rings(&settings(&names, 2))];
        let (mut far, mut near, mut end) = (Sender::on("wan1"), Sender::on("wan0"), Sender::on("lan1"));
        frames().iter().for_each(|frame| far.send(frame));
        end.send(&ethernet(&udp(ipv4(99), [5, 6], &[7; 20])));
        captures.iter_mut().for_each(|capture| capture.until_received(33));
        // No more at once than the socket has room for: what it drops, nobody counts.
        for (sent, frame) in (34..).zip(answers()) {
            near.send(&frame);
            captures[0].until_received(sent);
        }
        let [from_pnet, from_ring] = captures.map(|mut capture| {
            capture.until_received(65);
            capture.finish();
            let mut records: Vec<_> = records(&capture.frames, &names)
                .iter()
                .map(|end| (end.interface.to_string(), Outline::of(end)))
                .collect();
            records.sort_by_key(|(_, outline)| outline.clone());
            records
        });
        assert_eq!(from_pnet, from_ring);
        assert_eq!(from_pnet.len(), 33);
    });
}

#[test]
fn what_the_channel_had_received_is_handed_over_at_the_end() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let mut capture = Capture::pnet(&settings(&["near"], 1));
        // More than one turn takes, and no more than the socket has room for.
        for _ in 0..5 {
            frames().iter().for_each(|frame| far.send(frame));
        }
        capture.finish();
        assert_eq!(capture.received(), 160);
        assert_eq!(capture.counters().dropped_kernel, None, "nobody counts them");
    });
}

#[test]
fn a_tag_that_the_kernel_took_out_is_lost_to_the_channel() {
    in_namespace(|| {
        veth("far", "near");
        let mut capture = Capture::pnet(&settings(&["near"], 1));
        let whole = tagged(VLAN, 100, &ethernet(&udp(ipv4(2), [1, 2], &[7; 50])));
        Sender::on("far").send(&whole);
        capture.until_received(1);
        let octets = whole.len() as u64 - 4;
        let counts = [1, octets, 0, 0];
        let expected = Outline { addresses: ipv4(2), ports: Some([1, 2]), proto: UDP, vlan: vec![], counts };
        assert_eq!(outlines(&records(&capture.frames, &["near"])), [expected]);
    });
}

#[test]
fn the_channel_outlives_its_interface() {
    in_namespace(|| {
        veth("far", "near");
        let mut capture = Capture::pnet(&settings(&["near"], 1));
        let frame = ethernet(&udp(ipv4(2), [1, 2], &[7; 50]));
        Sender::on("far").send(&frame);
        // What arrived before is not lost with the interface.
        run("ip link set near down");
        capture.until_received(1);
        up("near");
        until_up("near");
        until_up("far");
        let mut far = Sender::on("far");
        let captured_again = |capture: &mut Capture, far: &mut Sender| {
            let before = capture.received();
            until("frames again", || {
                far.send(&frame);
                capture.poll();
                capture.received() > before
            });
        };
        captured_again(&mut capture, &mut far);
        far.send(&frame);
        run("ip link delete near");
        capture.poll();
        veth("far", "near");
        captured_again(&mut capture, &mut Sender::on("far"));
    });
}

#[test]
fn an_interface_that_is_down_at_the_start_is_waited_for() {
    in_namespace(|| {
        run("ip link add name far type veth peer name near");
        let mut capture = Capture::pnet(&settings(&["near"], 1));
        (0..3).for_each(|_| capture.poll());
        up("far");
        up("near");
        until_up("far");
        let mut far = Sender::on("far");
        until("frames", || {
            far.send(&ethernet(&udp(ipv4(2), [1, 2], &[7; 50])));
            capture.poll();
            capture.received() > 0
        });
    });
}

#[test]
fn settings_that_the_channel_cannot_follow_are_refused() {
    in_namespace(|| {
        veth("far", "near");
        let everything = Instruction { code: 6, jt: 0, jf: 0, k: 262_144 };
        let filter = LiveSettings { filter: vec![everything], ..settings(&["near"], 1) };
        for (setting, settings) in [("capture.filter", filter), ("capture.workers", settings(&["near"], 2))] {
            let error = open_pnet(&settings).map(|_| "opened").unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
    });
}
