//! Interfaces that have no address, go down, go away, come back, and several at once.

use linewarden::capture::{CaptureError, LiveSettings, open_rings};
use linewarden::wire::{Transport, parse};

use crate::common::OwnedFrame;
use crate::frames::{UDP, back, ethernet, ipv4, udp};
use crate::link::{Capture, Sender, in_namespace, run, settings, until, until_up, up, veth};
use crate::spread::workers_of_pairs;
use crate::{Outline, outlines, records};

fn frames(port: u16) -> impl Iterator<Item = Vec<u8>> {
    (2..18).map(move |number| ethernet(&udp(ipv4(number), [port, 2], &[7; 50])))
}

const FRAMES: usize = 16;

#[test]
fn several_interfaces_are_captured_at_once_each_under_its_name() {
    in_namespace(|| {
        let names = ["wan0", "lan0", "dmz0"];
        let far = ["wan1", "lan1", "dmz1"];
        for (name, far) in names.iter().zip(far) {
            veth(name, far);
            assert!(!run(&format!("ip address show dev {name}")).contains("inet"), "it has no address");
        }
        for workers in [1, 2] {
            let mut capture = Capture::rings(&settings(&names, workers));
            for (number, (name, far)) in (2..).zip(names.iter().zip(far)) {
                Sender::on(far).send(&ethernet(&udp(ipv4(number), [1, 2], &[7; 50])));
                Sender::on(name).send(&ethernet(&udp(back(ipv4(number)), [2, 1], &[7; 60])));
            }
            capture.until_received(6);
            capture.finish();
            let mut found: Vec<_> = records(&capture.frames, &names)
                .into_iter()
                .map(|end| (end.interface.to_string(), Outline::of(&end)))
                .collect();
            found.sort_by_key(|(_, outline)| outline.clone());
            let expected = (2..).zip(names).map(|(number, name)| {
                let counts = [1, 92, 1, 102];
                (
                    name.to_owned(),
                    Outline { addresses: ipv4(number), ports: Some([1, 2]), proto: UDP, vlan: vec![], counts },
                )
            });
            assert_eq!(found, expected.collect::<Vec<_>>());
        }
    });
}

#[test]
fn an_interface_may_go_down_and_come_up_again() {
    in_namespace(|| {
        veth("far", "near");
        veth("other", "end");
        let (mut far, mut end) = (Sender::on("far"), Sender::on("end"));
        for workers in [1, 2] {
            let mut capture = Capture::rings(&settings(&["near", "other"], workers));
            frames(1).for_each(|frame| far.send(&frame));
            capture.until_received(FRAMES);
            run("ip link set near down");
            // The other interface is captured as before.
            frames(1).for_each(|frame| end.send(&frame));
            capture.until_received(2 * FRAMES);
            up("near");
            until_up("near");
            until_up("far");
            frames(1).for_each(|frame| far.send(&frame));
            capture.until_received(3 * FRAMES);
            capture.finish();
            assert_eq!(workers_of_pairs(&capture).len(), usize::from(workers), "a flow stays at its worker");
            assert_eq!(outlines(&records(&capture.frames, &["near", "other"])).len(), FRAMES);
        }
    });
}

#[test]
fn an_interface_that_is_down_at_the_start_is_captured_once_it_is_up() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        for workers in [1, 2] {
            run("ip link set near down");
            let mut capture = Capture::rings(&settings(&["near"], workers));
            capture.poll();
            up("near");
            until_up("near");
            until_up("far");
            until_captured(&mut capture, &mut far);
            capture.finish();
        }
    });
}

/// Sends until every worker has had something; from then on nothing is missed, and every flow is at one worker.
fn until_captured(capture: &mut Capture, far: &mut Sender) {
    capture.forget();
    until("frames at every worker", || {
        frames(1).for_each(|frame| far.send(&frame));
        capture.poll();
        capture.frames.iter().all(|frames| !frames.is_empty())
    });
    capture.forget();
    frames(3).for_each(|frame| far.send(&frame));
    let later = |capture: &Capture| {
        let is_later = |frame: &&OwnedFrame| {
            matches!(parse(&frame.borrow()).unwrap().transport, Transport::Udp { src_port: 3, .. })
        };
        capture.frames.iter().flatten().filter(is_later).count()
    };
    until("the frames behind those", || {
        capture.poll();
        later(capture) == FRAMES
    });
    assert_eq!(workers_of_pairs(capture).len(), capture.frames.len());
}

#[test]
fn an_interface_may_be_deleted_and_made_anew() {
    in_namespace(|| {
        for workers in [1, 2, 4] {
            veth("far", "near");
            let mut capture = Capture::rings(&settings(&["near"], workers));
            for _ in 0..2 {
                until_captured(&mut capture, &mut Sender::on("far"));
                run("ip link delete near");
                capture.poll();
                veth("far", "near");
            }
            until_captured(&mut capture, &mut Sender::on("far"));
            run("ip link delete near");
        }
    });
}

#[test]
fn promiscuity_is_asked_for_and_given_back() {
    in_namespace(|| {
        veth("far", "near");
        let promiscuity = || {
            let shown = run("ip -d link show dev near");
            shown.split("promiscuity ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap()
        };
        assert_eq!(promiscuity(), 0);
        let capture = Capture::rings(&settings(&["near"], 1));
        assert_eq!(promiscuity(), 1);
        drop(capture);
        assert_eq!(promiscuity(), 0);
        let capture = Capture::rings(&LiveSettings { promiscuous: false, ..settings(&["near"], 2) });
        assert_eq!(promiscuity(), 0);
        drop(capture);
    });
}

#[test]
fn an_interface_that_is_not_there_at_the_start_is_an_error() {
    in_namespace(|| {
        veth("far", "near");
        let error = open_rings(&settings(&["near", "nearer"], 2)).map(|_| "opened").unwrap_err();
        assert!(matches!(&error, CaptureError::NoInterface(name) if name == "nearer"), "{error:?}");
    });
}
