//! Interfaces that are renamed, resized, moved away and back. Down, up and made anew: `tests/ring/daemon.rs`, `tests/ctl.rs`.

use crate::common::OwnedFrame;
use crate::common::command::{assert_adds_up, of_kind};
use crate::common::netns::{Daemon, Namespace, until};
use crate::{House, end, is_certain, tunnels, wireguard};

/// Waits for a tunnel from that port, which is sent again and again until it is seen: a new ring takes a moment.
fn seen(house: &House, daemon: &Daemon, from: &str, port: u16) {
    let mut sender = house.namespace.sender(from);
    let record = until("a tunnel", || {
        sender.send(&tunnels(port..port + 1));
        daemon.records().into_iter().find(|record| is_certain(record) && is_from(record, port))
    });
    assert_eq!(record["interface"], "wan0", "as the settings name it");
}

fn is_from(record: &serde_json::Value, port: u16) -> bool {
    [&record["src_port"], &record["dst_port"]].iter().any(|it| **it == port)
}

#[test]
fn a_renamed_interface_is_captured_on_until_another_one_has_its_name() {
    let house = House::new("renamed", "");
    let ip = |arguments: &str| house.namespace.ip(arguments);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    // Older kernels rename only what is down.
    ip("link set wan0 down");
    daemon.says("interface is down");
    ip("link set wan0 name lan0");
    ip("link set lan0 up");
    let said = daemon.says("interface was renamed");
    assert!(said.contains("WARN") && said.contains("interface=\"wan0\" called=\"lan0\""), "{said}");
    let is_up = || daemon_link(&house) == "up";
    until("the link is up under its new name", || is_up().then_some(()));
    seen(&house, &daemon, "far0", 2001);
    ip("link set lan0 down");
    ip("link set lan0 name wan0");
    ip("link set wan0 up");
    daemon.says("interface has its name again");
    until("the link is up under its name", || is_up().then_some(()));
    seen(&house, &daemon, "far0", 2002);

    // Names change places, as after a change of hardware: the one that has the name now is the one that is meant.
    ip("link set wan0 down");
    ip("link set wan0 name old0");
    ip("link set old0 up");
    ip("link set far0 name far1");
    daemon.says("called=\"old0\"");
    house.namespace.plug_in();
    daemon.says("interface is gone");
    daemon.says("interface is back");
    seen(&house, &daemon, "far0", 2003);
    house.namespace.sender("far1").send(&tunnels(2004..2005));
    seen(&house, &daemon, "far0", 2005);
    end(&mut daemon);
    let records = daemon.records();
    assert!(!records.iter().any(|record| is_from(record, 2004)), "the old one is captured no more");
    assert_adds_up(&daemon.summary(), &records);
    house.assert_whole();
}

fn daemon_link(house: &House) -> String {
    house.status()["interfaces"][0]["link"].as_str().unwrap().to_owned()
}

#[test]
fn frames_of_any_size_are_counted_whole_while_the_mtu_changes() {
    let house = House::new("mtu", "");
    let mut daemon = house.start();
    // UDP of all octets that the frame has; what is in it is nobody's.
    let frame = |port: u16, octets: usize| {
        let mut frame = wireguard()[0].clone();
        let ip = u16::try_from(octets - 14).unwrap();
        frame.data.resize(octets, 0);
        frame.data[42..].fill(7);
        frame.data[16..18].copy_from_slice(&ip.to_be_bytes());
        frame.data[38..40].copy_from_slice(&(ip - 20).to_be_bytes());
        frame.data[36..38].copy_from_slice(&port.to_be_bytes());
        OwnedFrame { wire_len: u32::try_from(octets).unwrap(), ..frame }
    };
    let mut expected = Vec::new();
    for (number, mtu) in [1500_u16, 9000, 1500, 9000, 576].into_iter().enumerate() {
        for end in ["wan0", "far0"] {
            house.namespace.ip(&format!("link set {end} mtu {mtu}"));
        }
        let (port, octets) = (3000 + number as u16, usize::from(mtu) + 14);
        house.send(&[frame(port, octets), frame(port, octets), frame(port, 100)]);
        expected.push((u64::from(port), 3, 2 * octets as u64 + 100));
    }
    end(&mut daemon);
    let ends = of_kind(daemon.records(), "end");
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let mut seen: Vec<_> = ends
        .iter()
        .map(|end| {
            let both = |name: &str| number(&end[format!("fwd_{name}")]) + number(&end[format!("rev_{name}")]);
            (number(&end["dst_port"]), both("packets"), both("octets"))
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    let summary = daemon.summary();
    assert_adds_up(&summary, &daemon.records());
    assert_eq!(summary["dropped_kernel"], 0);
    assert!(!daemon.said.iter().any(|line| line.contains("interface is")), "{:#?}", daemon.said);
}

#[test]
fn an_interface_that_is_moved_into_another_namespace_is_found_when_it_comes_back() {
    let (house, other) = (House::new("moved", ""), Namespace::new("other"));
    other.unplug();
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    house.namespace.ip(&format!("link set wan0 netns {}", other.name()));
    daemon.says("interface is gone");
    house.doubts("wan0: the link is gone since");
    other.ip(&format!("link set wan0 netns {}", house.namespace.name()));
    house.namespace.ip("link set wan0 up");
    daemon.says("interface is back");
    seen(&house, &daemon, "far0", 2001);
    end(&mut daemon);
    assert_adds_up(&daemon.summary(), &daemon.records());
}
