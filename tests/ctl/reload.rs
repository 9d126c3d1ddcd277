//! Reloads: all workers or none, the same packets and flows as without them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::common::command::{approval, assert_adds_up, assert_says, assert_valid, folder};
use crate::common::netns::{Daemon, Namespace, until};
use crate::{SETTINGS, approved, asked, ctl, end, events, frames, fs, of_kind, start, wireguard};

#[test]
fn it_answers_once_every_worker_judges_by_the_new_approvals() {
    let namespace = Namespace::new("reload");
    let (mut daemon, folder) = start(&namespace, &approved());
    namespace.sender("far0").send(&wireguard());
    let before = daemon.record("the tunnel", |record| record["verdict"] == "authorized_leased_line");
    let other = approval("vpn", "partner", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]\ntunnels = [\"esp\"]");
    fs::write(folder.path().join("approvals.d/a.toml"), other).unwrap();
    let answer = asked(&folder, "reload");
    assert_eq!([&answer["workers"], &answer["approvals"]], [2, 1], "{answer}");
    assert_eq!(answer["before"], before["policy_revision"]);
    assert_ne!(answer["revision"], answer["before"]);
    assert_eq!(asked(&folder, "status")["policy"]["revision"], answer["revision"]);
    let after = daemon.record("the flow judged again", |record| record["reason"] == "protocol_not_approved");
    assert_eq!([&after["policy_revision"], &after["flow_id"]], [&answer["revision"], &before["flow_id"]]);
    let again = ctl(&folder, &["reload"]).expect(0).out;
    assert_says(&again, &["1 in force with all 2 workers, revision ", "(as before)"]);

    // Settings are not taken, and that is said.
    let more = SETTINGS.replace("workers = 2", "workers = 1") + "[flow]\nidle_timeout = \"60s\"\n";
    fs::write(folder.path().join("s.toml"), &more).unwrap();
    let answer = asked(&folder, "reload");
    assert_eq!(answer["ignored"], serde_json::json!(["capture.workers", "flow.idle_timeout"]));
    let text = ctl(&folder, &["reload"]).expect(0).out;
    assert_says(&text, &["settings   not taken", "capture.workers, flow.idle_timeout; restart for these"]);
    daemon.says("a reload takes approvals alone");
    end(&mut daemon);
    let events = events(folder.path());
    let revisions: Vec<_> = of_kind(&events, "policy").into_iter().map(|event| &event["revision"]).collect();
    assert_eq!(revisions.len(), 5);
    assert_eq!((revisions[0], revisions[4]), (&before["policy_revision"], &after["policy_revision"]));
}

#[test]
fn a_bad_file_changes_nothing_and_its_errors_are_named_as_check_config_does() {
    let namespace = Namespace::new("bad");
    let (mut daemon, folder) = start(&namespace, &approved());
    let file = folder.path().join("approvals.d/a.toml");
    let revision = asked(&folder, "status")["policy"]["revision"].clone();
    fs::write(&file, approved().replace("2099-12-31", "\"soon\"").replace("owner", "ownr")).unwrap();
    let done = ctl(&folder, &["reload"]).expect(78);
    let expected =
        ["approvals.d/a.toml:4:1: ownr is not a known key", "approvals.d/a.toml:6:15", "write a date such as"];
    assert_says(&done.err, &expected);
    let mut check = crate::linewarden(["check-config", "--approvals", "approvals.d"]);
    let checked = crate::done(check.current_dir(folder.path())).expect(78);
    assert_eq!(done.err, checked.err, "as check-config says it");
    let done = ctl(&folder, &["reload", "--json"]).expect(78);
    let answer: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(answer["error"]["code"], 78);
    daemon.says("approvals NOT reloaded");
    let status = asked(&folder, "status");
    assert_eq!([&status["policy"]["revision"], &status["reloads"]["failed"]], [&revision, &Value::from(2)]);
    assert!(status["reloads"]["last_failure"].is_string());

    fs::write(&file, approved()).unwrap();
    fs::write(folder.path().join("s.toml"), "[capture]\nworker = 1\n").unwrap();
    assert_says(&ctl(&folder, &["reload"]).expect(78).err, &["s.toml:2:1: capture.worker is not a known key"]);
    daemon.signal("HUP");
    until("SIGHUP fails, too", || (asked(&folder, "status")["reloads"]["failed"] == 4).then_some(()));
    fs::write(folder.path().join("s.toml"), SETTINGS).unwrap();
    ctl(&folder, &["reload"]).expect(0);
    end(&mut daemon);
    let events = events(folder.path());
    let failed = of_kind(&events, "reload_failed");
    assert_eq!((failed.len(), &failed[0]["revision"]), (4, &revision));
    assert!(failed[0]["errors"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains("ownr")));
}

/// Flows, and packets of each.
const FLOWS: usize = 64;
const PACKETS: usize = 400;
const RELOADS: usize = 20;

/// Ends of flows, by endpoints: packets and octets of both directions.
fn ends(records: &[Value]) -> BTreeMap<String, [u64; 4]> {
    let numbers = ["fwd_packets", "fwd_octets", "rev_packets", "rev_octets"];
    let ends = records.iter().filter(|record| record["kind"] == "end");
    ends.map(|end| (end["community_id"].to_string(), numbers.map(|number| end[number].as_u64().unwrap()))).collect()
}

/// Sends a counted stream while `meanwhile` does what it does; returns the daemon's summary and records.
fn under_load(name: &str, meanwhile: impl FnOnce(&mut Daemon, &tempfile::TempDir)) -> (Value, Vec<Value>) {
    let namespace = Namespace::new(name);
    let folder = folder(&[("approvals.d/a.toml", &approved()), ("s.toml", SETTINGS)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    let session = wireguard();
    namespace.sender("far0").send(&session);
    daemon.record("the tunnel", |record| record["confidence"] == "certain");
    // Frames of one flow, each time from another port: as fast as one process sends them, until all are sent.
    let script = format!(
        "import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(('far0', 0))
frame = bytearray.fromhex(sys.stdin.readline())
for packet in range({PACKETS}):
    for flow in range({FLOWS}):
        frame[34:36] = (20000 + flow).to_bytes(2, 'big')
        link.send(frame)"
    );
    let mut command = namespace.command("python3");
    let mut sender = command.args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
    let frame = frames("benign-game-like-udp")[0].clone();
    let hex = frame.data.iter().fold(String::new(), |mut hex, octet| {
        let _ = write!(hex, "{octet:02x}");
        hex
    });
    writeln!(sender.stdin.take().unwrap(), "{hex}").unwrap();
    meanwhile(&mut daemon, &folder);
    assert!(sender.wait().unwrap().success());
    end(&mut daemon);
    let (summary, records) = (daemon.summary(), daemon.records());
    assert_valid(&records);
    assert_adds_up(&summary, &records);
    let sent = session.len() + FLOWS * PACKETS;
    assert_eq!(summary["packets"], sent, "classified, undecodable or dropped: {summary}");
    assert_eq!([&summary["dropped_kernel"], &summary["dropped_nic"], &summary["records_lost"]], [0, 0, 0], "{summary}");
    (summary, records)
}

#[test]
fn under_load_no_packet_and_no_flow_is_lost_that_would_not_be_without() {
    let (plain, plain_records) = under_load("plain", |_, _| {});
    let mut revisions = Vec::new();
    let (summary, records) = under_load("loaded", |daemon, folder| {
        let esp = approved() + "tunnels = [\"esp\"]\n";
        for round in 0..RELOADS {
            let text = if round % 2 == 0 { esp.clone() } else { approved() };
            fs::write(folder.path().join("approvals.d/a.toml"), text).unwrap();
            if round % 4 < 2 {
                let answer = asked(folder, "reload");
                assert_eq!(answer["workers"], 2, "{answer}");
            } else {
                daemon.signal("HUP");
            }
            let said = daemon.says("approvals reloaded");
            revisions.push(said.split("revision=").nth(1).unwrap().split(' ').next().unwrap().to_owned());
        }
    });
    for count in ["packets", "octets", "classified", "flows", "undecodable"] {
        assert_eq!(summary[count], plain[count], "{count}");
    }
    assert_eq!(ends(&records), ends(&plain_records), "the same flows, packet by packet");
    assert_eq!(summary["flows"], 1 + FLOWS);
    assert!(records.iter().all(|record| record["continues"].is_null()), "no flow was begun anew");
    // The tunnel was judged again each time, by the approvals of that time.
    let tunnel = records.iter().filter(|record| record["dst_port"] == 51_820 && record["kind"] == "update");
    let told: Vec<_> = tunnel.map(|update| update["policy_revision"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told[told.len() - RELOADS..], revisions);
    let tunnel = records.iter().find(|record| record["dst_port"] == 51_820 && record["kind"] == "end").unwrap();
    assert_eq!(&tunnel["policy_revision"], revisions.last().unwrap());
}
