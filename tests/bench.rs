//! `linewarden bench` as a user runs it, from memory and live: that figures are there and add up, and that nothing is left
//! behind. How fast anything is is no matter here. Needs root, `ip` (iproute2), `unshare` and `setpriv` (util-linux).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use common::command::{LINEWARDEN, assert_says, done, linewarden, run};
use common::netns::until;
use serde_json::Value;

const SMALL: [&str; 6] = ["bench", "--flows", "200", "--seconds", "1", "--packets"];

fn bench(arguments: &[&str]) -> Value {
    let done = run(SMALL.iter().chain(&["2000", "--json"]).chain(arguments)).expect(0);
    serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {}", done.out))
}

/// Names of interfaces and network namespaces here.
fn surroundings() -> [BTreeSet<String>; 2] {
    ["/sys/class/net", "/run/netns"].map(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        // Other tests make namespaces at the same time: those that name themselves after them are not ours.
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("lw-") && !name.starts_with("lwring-")).collect()
    })
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name}: {value}"))
}

fn assert_adds_up(steps: &Value) {
    let steps = steps.as_array().unwrap();
    assert!(!steps.is_empty());
    for step in steps {
        assert!(number(step, "sent") > 0, "{step}");
        assert_eq!(number(step, "sent"), number(step, "received") + number(step, "dropped"), "{step}");
        let of_receiver = step["dropped_by_receiver"].as_u64().unwrap_or(0);
        assert_eq!(number(step, "dropped"), of_receiver + number(step, "dropped_by_link"), "{step}");
        assert!(step["core"]["kernel"].as_f64().is_some(), "{step}");
    }
}

#[test]
fn from_memory_everything_is_there() {
    let json = bench(&["--workers", "1", "--curve", "300"]);
    for name in ["ns_per_packet", "parse_only_ns_per_packet", "octets_per_flow", "packets_per_second"] {
        assert!(json[name].as_f64().is_some_and(|figure| figure > 0.0), "{name}");
    }
    assert_eq!(json["drops"], 0);
    assert_eq!(json["curve"]["points"][0]["flows"], 300);
    for name in ["cpu", "kernel", "cores", "governor", "transparent_huge_pages", "reserved_huge_pages"] {
        assert!(json["machine"].get(name).is_some(), "{name}");
    }
}

#[test]
fn live_at_a_stated_rate_what_is_sent_is_received_or_dropped() {
    let before = surroundings();
    let json = bench(&["--live", "--rate", "5000", "--compare", "none"]);
    assert_adds_up(&json["live"]["steps"]);
    assert_eq!(json["live"]["steps"].as_array().unwrap().len(), 1);
    assert_eq!(json["live"]["steps"][0]["asked_per_second"], 5000.0);
    assert_eq!(json["settings"]["rate"], 5000);
    assert_eq!(json["live"]["backend"], "ring");
    assert_eq!(json["live"]["compared"], Value::Null);
    assert_eq!(number(&json, "drops"), number(&json["live"]["steps"][0], "dropped"));
    assert_eq!(surroundings(), before);
}

#[test]
fn live_the_block_size_is_as_asked() {
    let json = bench(&["--live", "--rate", "5000", "--compare", "none", "--block-octets", "64KiB"]);
    assert_adds_up(&json["live"]["steps"]);
    assert_eq!(json["settings"]["block_octets"], 65_536);
    for wrong in ["3MiB", "64MiB", "4096", "x"] {
        let done = run(["bench", "--live", "--block-octets", wrong]).expect(64);
        assert_says(&done.err, &["a power of two from 64KiB to 32MiB"]);
    }
    run(["bench", "--block-octets", "64KiB"]).expect(64);
}

#[test]
fn what_is_counted_by_instructions_is_a_fixed_number_of_packets() {
    for (kind, says) in [("settled", "2000 packets\n"), ("new", "400 packets\n")] {
        let arguments =
            ["bench", "--flows", "200", "--packets", "2000", "--tunnels", "0", "--count-instructions", kind];
        assert_eq!(run(arguments).expect(0).out, says);
    }
}

#[test]
fn live_the_search_ends_and_its_steps_add_up() {
    let before = surroundings();
    let json = bench(&["--live"]);
    assert_adds_up(&json["live"]["steps"]);
    match &json["live"]["compared"] {
        Value::Null => assert_eq!(json["live"]["not_compared"], "tcpdump is not installed"),
        compared => assert_adds_up(&compared["steps"]),
    }
    assert_eq!(surroundings(), before);
}

#[test]
fn live_a_capture_is_driven_and_pnet_takes_it() {
    let capture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/wireguard-psk/input.pcap");
    let arguments = ["bench", "--live", "--pcap", capture, "--seconds", "1", "--rate", "2000", "--backend", "pnet"];
    let done = run(arguments.iter().chain(&["--compare", "none"])).expect(0);
    assert_says(&done.out, &["pnet backend", "2 k", "linewarden"]);
}

/// Ended with the test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn live_nothing_is_left_when_it_is_interrupted() {
    let before = surroundings();
    let mut bench = Command::new(LINEWARDEN);
    bench.args(["bench", "--live", "--flows", "200", "--packets", "2000", "--rate", "1000", "--seconds", "600"]);
    bench.args(["--compare", "none"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = Running(bench.spawn().unwrap());
    let worker = format!("/proc/{}/task", child.0.id());
    until("the worker runs", || {
        let tasks = std::fs::read_dir(&worker).ok()?.flatten();
        let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.find(|name| name.trim() == "worker-0")
    });
    // Not INT, which a shell lets its background jobs ignore.
    let kill = format!("kill -s TERM {}", child.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let status = child.0.wait().unwrap();
    assert!(!status.success());
    assert_eq!(surroundings(), before);
    assert!(!std::path::Path::new(&worker).exists());
}

#[test]
fn live_without_root_is_refused_with_what_is_missing() {
    let mut command = linewarden(["bench", "--live", "--flows", "10", "--packets", "100"]);
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]);
    bare.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    command = bare;
    let refused = done(&mut command).expect(77);
    assert_says(&refused.err, &["CAP_SYS_ADMIN", "root"]);
}

#[test]
fn live_without_ip_names_the_package() {
    let nothing = tempfile::tempdir().unwrap();
    let mut command = Command::new(LINEWARDEN);
    command.args(["bench", "--live", "--flows", "10", "--packets", "100"]).env("PATH", nothing.path());
    let failed = done(command.stdin(Stdio::null())).expect(1);
    assert_says(&failed.err, &["iproute2"]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for arguments in [
        &["bench", "--rate", "100"][..],
        &["bench", "--live", "--workers", "2"],
        &["bench", "--live", "--curve"],
        &["bench", "--live", "--rate", "0"],
        &["bench", "--workers", "0"],
    ] {
        run(arguments).expect(64);
    }
    let refused = run(["bench", "--workers", "1024", "--flows", "10", "--packets", "100", "--seconds", "1"]).expect(64);
    assert_says(&refused.err, &["--workers 1024", "cores"]);
}
