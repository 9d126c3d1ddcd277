//! The daemon itself on such interfaces: its records and its summary, whatever happens to it and to them.

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::command::{LINEWARDEN, assert_adds_up, folder, of_kind};
use crate::common::netns::{Daemon, until};
use crate::frames::{SERVICE_VLAN, VLAN, back, esp, ethernet, ipv4, tagged, udp};
use crate::link::{Sender, in_namespace, run, up, veth};

/// `linewarden run` with these settings of `[capture]`, once it captures.
pub fn start(capture: &str) -> (Daemon, TempDir) {
    start_by(Command::new(LINEWARDEN), capture)
}

fn start_by(mut command: Command, capture: &str) -> (Daemon, TempDir) {
    let folder = folder(&[("approvals.d/none", ""), ("settings.toml", &format!("[capture]\n{capture}\n"))]);
    let arguments = ["run", "--config", "settings.toml", "--approvals", "approvals.d", "--records", "log"];
    command.args(arguments).current_dir(folder.path()).env_remove("RUST_LOG").stdin(Stdio::null());
    let mut daemon = Daemon::start(command, folder.path().join("log"));
    daemon.says("capturing");
    (daemon, folder)
}

/// SIGTERM; gives the last records and the summary.
pub fn stop(daemon: &mut Daemon) -> (Vec<Value>, Value) {
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    (of_kind(daemon.records(), "end"), daemon.summary())
}

#[test]
fn interrupts_that_an_interface_does_not_have_are_said_once_and_needed_by_nobody() {
    in_namespace(|| {
        veth("far", "near");
        let (mut daemon, _folder) = start("interfaces = [\"near\"]\nworkers = 2\npin_interrupts = true");
        Sender::on("far").send(&ethernet(&udp(ipv4(2), [1, 2], &[7; 50])));
        let (ends, _) = stop(&mut daemon);
        assert_eq!(ends.len(), 1);
        let said: Vec<_> = daemon.said.iter().filter(|line| line.contains("pin_interrupts")).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("WARN") && said[0].contains("near") && said[0].contains("none of its own"),
            "{said:?}"
        );
    });
}

const SENT: usize = 5000;

#[test]
fn a_daemon_that_stands_still_counts_what_it_missed() {
    in_namespace(|| {
        veth("far", "near");
        let small = "ring_octets = \"128KiB\"\nblock_octets = \"64KiB\"";
        let (mut daemon, _folder) = start(&format!("interfaces = [\"far\"]\nworkers = 2\n{small}"));
        let mut far = Sender::on("far");
        let frames: Vec<_> = (2..34).map(|number| ethernet(&udp(ipv4(number), [1, 2], &[7; 400]))).collect();
        daemon.signal("STOP");
        frames.iter().cycle().take(SENT).for_each(|frame| far.send(frame));
        daemon.signal("CONT");
        let (ends, summary) = stop(&mut daemon);
        assert_adds_up(&summary, &daemon.records());
        assert_eq!(summary["packets"], SENT, "{summary}");
        assert!(summary["dropped_kernel"].as_u64().unwrap() > 0, "{summary}");
        assert_eq!(ends.len(), frames.len(), "something was seen of every flow");
    });
}

#[test]
fn a_daemon_outlives_its_interface_and_loses_no_record() {
    in_namespace(|| {
        veth("far", "near");
        veth("other", "end");
        let (mut daemon, _folder) = start("interfaces = [\"near\", \"other\"]\nworkers = 2");
        let mut end = Sender::on("end");
        Sender::on("far").send(&tagged(SERVICE_VLAN, 7, &tagged(VLAN, 8, &ethernet(&udp(ipv4(2), [1, 2], &[7; 50])))));
        run("ip link set near down");
        daemon.says("interface is down");
        up("near");
        daemon.says("interface is up again");
        run("ip link delete near");
        daemon.says("interface is gone");
        end.send(&ethernet(&esp(ipv4(3), 0x1234_5678, 1)));
        veth("far", "near");
        daemon.says("interface is back");
        // Every worker has to find it before frames come.
        let mut far = Sender::on("far");
        until("records from the new interface", || {
            far.send(&ethernet(&udp(back(ipv4(4)), [2, 1], &[7; 50])));
            daemon.records().into_iter().find(|record| record["src_port"] == 2)
        });
        let (ends, summary) = stop(&mut daemon);
        let said = daemon.said.join("\n");
        let told = |what: &str| said.matches(&format!("interface is {what}")).count();
        // A deletion takes the interface down first, if there is time to see it.
        let downs = [1, 2].contains(&told("down"));
        assert!(downs && ["up again", "gone", "back"].map(told) == [1; 3], "each once, not by each worker: {said}");
        assert_adds_up(&summary, &daemon.records());
        assert_eq!(summary["dropped_kernel"], 0);
        let mut seen: Vec<_> = ends
            .iter()
            .map(|end| json!([end["src_ip"], end["interface"], end["vlan"], end["proto"]]).to_string())
            .collect();
        seen.sort();
        let expected = [
            json!(["198.51.100.2", "near", [7, 8], 17]),
            json!(["198.51.100.3", "other", [], 50]),
            json!(["203.0.113.2", "near", [], 17]),
        ];
        assert_eq!(seen, expected.map(|value| value.to_string()));
    });
}

#[test]
fn a_daemon_on_pnets_channel_says_that_nobody_counts_the_kernels_drops() {
    in_namespace(|| {
        veth("far", "near");
        let (mut daemon, _folder) = start("interfaces = [\"near\"]\nbackend = \"pnet\"");
        let mut far = Sender::on("far");
        for number in 2..12 {
            far.send(&ethernet(&udp(ipv4(number), [1, 2], &[7; 50])));
        }
        until("all records", || (daemon.records().len() == 10).then_some(()));
        run("ip link set near down");
        daemon.says("interface is gone or down");
        let (ends, summary) = stop(&mut daemon);
        assert_eq!(ends.len(), 10);
        assert_eq!(json!([summary["packets"], summary["dropped_kernel"]]), json!([10, null]));
    });
}

#[test]
fn a_daemon_says_whether_settled_flows_are_counted_in_the_kernel() {
    in_namespace(|| {
        veth("far", "near");
        let mut far = Sender::on("far");
        let frames = |numbers: std::ops::Range<u32>| {
            let both = |number| [esp(ipv4(2), 0x1234_5678, number), esp(back(ipv4(2)), 0x8765_4321, number)];
            numbers.flat_map(both).map(|packet| ethernet(&packet)).collect::<Vec<_>>()
        };
        // What it may do, what its settings say, what it says.
        let filter = "filter = \"\"\"1\n6 0 0 262144\n\"\"\"";
        let cases = [
            ("+net_raw,+bpf", "", "packets of settled flows are counted in the kernel"),
            ("+net_raw", "", "every packet comes up: that takes the capability CAP_BPF"),
            ("+net_raw,+bpf", filter, "its filter's place is taken by capture.filter"),
            ("+net_raw,+bpf", "kernel_flows = 0", "capturing"),
        ];
        for (capabilities, settings, said) in cases {
            let mut command = Command::new("setpriv");
            command.arg(format!("--bounding-set=-all,{capabilities}")).arg(LINEWARDEN);
            let (mut daemon, _folder) = start_by(command, &format!("interfaces = [\"near\"]\n{settings}\nworkers = 2"));
            assert!(daemon.said.iter().any(|line| line.contains(said)), "{said}: {:#?}", daemon.said);
            let is_on = said.starts_with("packets");
            frames(1..30).iter().for_each(|frame| far.send(frame));
            daemon.record("the tunnel to be certain", |record| record["confidence"] == "certain");
            frames(30..500).iter().for_each(|frame| far.send(frame));
            let (ends, summary) = stop(&mut daemon);
            assert_adds_up(&summary, &daemon.records());
            assert_eq!((ends.len(), &summary["packets"]), (1, &json!(2 * 499)), "{summary}");
            assert_eq!(summary["kernel"]["packets"].as_u64().unwrap() > 0, is_on, "{summary}");
        }
    });
}
