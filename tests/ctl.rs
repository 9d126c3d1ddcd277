//! `linewarden ctl`, the metrics and `sensor.ndjson`, as whoever runs a sensor meets them: on a veth in a network namespace
//! that each test makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "ctl/metrics.rs"]
mod metrics;
#[path = "ctl/owners.rs"]
mod owners;
#[path = "ctl/reload.rs"]
mod reload;
#[path = "ctl/robust.rs"]
mod robust;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::OwnedFrame;
use common::command::{Done, LINEWARDEN, approval, assert_says, done, folder, linewarden};
use common::netns::{Daemon, Namespace, until};
use common::pcap::frames;
use serde_json::Value;
use tempfile::TempDir;

/// Settings with the sockets where the tests look for them.
const SETTINGS: &str = "[capture]\ninterfaces = [\"wan0\"]\nworkers = 2\n[control]\nsocket = \"c.sock\"\n[metrics]\nlisten = \"unix:m.sock\"\n[[outputs]]\nformat = \"eve\"\nfile = \"eve.json\"\n";

fn approved() -> String {
    approval("vpn", "partner", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]")
}

/// A daemon that captures `wan0`, in a folder with these approvals.
fn start(namespace: &Namespace, approvals: &str) -> (Daemon, TempDir) {
    let folder = folder(&[("approvals.d/a.toml", approvals), ("s.toml", SETTINGS)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    (daemon, folder)
}

fn ctl(folder: &TempDir, arguments: &[&str]) -> Done {
    done(linewarden(["ctl", "--socket", "c.sock"].iter().chain(arguments)).current_dir(folder.path()))
}

/// The one line of the answer.
#[track_caller]
fn asked(folder: &TempDir, command: &str) -> Value {
    let done = ctl(folder, &[command, "--json"]).expect(0);
    assert_eq!(done.out.lines().count(), 1, "{}", done.out);
    let answer: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(answer["version"], 1);
    answer[command].clone()
}

fn wireguard() -> Vec<OwnedFrame> {
    frames("wireguard-port-51820")
}

#[track_caller]
fn end(daemon: &mut Daemon) {
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
}

/// The same session at addresses that begin with 203.0.113; the headers' checksums are nobody's business.
fn elsewhere() -> Vec<OwnedFrame> {
    let mut frames = wireguard();
    for frame in &mut frames {
        for address in [26, 30] {
            frame.data[address..address + 3].copy_from_slice(&[203, 0, 113]);
        }
    }
    frames
}

/// What the sensor said of itself, each line as `tests/sensor.schema.json` documents it, none missing.
#[track_caller]
fn events(folder: &Path) -> Vec<Value> {
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sensor.schema.json")).unwrap();
    let schema = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let text = fs::read_to_string(folder.join("linewarden-log/sensor.ndjson")).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut number = 0;
    for event in &events {
        if let Err(error) = validator.validate(event) {
            panic!("{error}\n{event}");
        }
        number = if event["kind"] == "start" { 1 } else { number + 1 };
        assert_eq!(event["seq"], number, "{text}");
        let mut wrong = event.clone();
        wrong["extra"] = 1.into();
        assert!(!validator.is_valid(&wrong), "the schema lets anything pass");
    }
    events
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

#[test]
fn status_tells_whether_evidence_is_complete_and_what_speaks_against_it() {
    let namespace = Namespace::new("status");
    let (mut daemon, folder) = start(&namespace, &approved());
    let session = wireguard();
    namespace.sender("far0").send(&session);
    let status = until("all packets are counted", || {
        let status = asked(&folder, "status");
        (status["interfaces"][0]["packets"] == session.len()).then_some(status)
    });
    let octets: u64 = session.iter().map(|frame| u64::from(frame.wire_len)).sum();
    let wan = &status["interfaces"][0];
    assert_eq!([&wan["interface"], &wan["link"]], ["wan0", "up"]);
    assert_eq!([&wan["octets"], &wan["dropped_kernel"], &wan["dropped_nic"]], [octets, 0, 0]);
    assert_eq!(wan["last_hour"]["packets"], session.len());
    assert_eq!(status["evidence"]["complete"], true, "{status}");
    let workers = status["workers"].as_array().unwrap();
    assert_eq!(workers.iter().map(|worker| worker["packets"].as_u64().unwrap()).sum::<u64>(), session.len() as u64);
    assert!(workers.iter().all(|worker| worker["lag_seconds"].as_f64().unwrap() < 10.0), "{status}");
    assert_eq!(status["policy"]["in_force"], 1);

    namespace.ip("link set wan0 down");
    let down = until("the link is told to be down", || {
        let status = asked(&folder, "status");
        (status["interfaces"][0]["link"] == "down").then_some(status)
    });
    assert_eq!(down["evidence"]["complete"], false);
    assert!(down["evidence"]["doubts"][0].as_str().unwrap().starts_with("wan0: the link is down since "), "{down}");
    let text = ctl(&folder, &["status"]).expect(0).out;
    assert_says(&text, &["evidence    MAY HAVE GAPS: wan0: the link is down", "down since ", "no link", "last hour ("]);
    namespace.ip("link set wan0 up");
    until("the link is up", || (asked(&folder, "status")["interfaces"][0]["link"] == "up").then_some(()));
    // A cable that leads nowhere: nothing is wrong with the interface itself.
    namespace.ip("link set far0 down");
    until("no carrier", || (asked(&folder, "status")["interfaces"][0]["link"] == "no_carrier").then_some(()));
    end(&mut daemon);

    let events = events(folder.path());
    assert_eq!(of_kind(&events, "interface")[0]["link"], "down");
    let links: Vec<_> = of_kind(&events, "interface").into_iter().map(|event| event["link"].clone()).collect();
    assert_eq!(links.last().unwrap(), "no_carrier", "{links:?}");
    let coverage = of_kind(&events, "coverage");
    let packets: u64 = coverage.iter().map(|span| span["interfaces"][0]["packets"].as_u64().unwrap()).sum();
    assert_eq!(packets, session.len() as u64);
    let ended: u64 = coverage.iter().map(|span| span["interfaces"][0]["flows_ended"].as_u64().unwrap()).sum();
    let one_way: u64 = coverage.iter().map(|span| span["interfaces"][0]["flows_one_way"].as_u64().unwrap()).sum();
    assert_eq!((ended, one_way), (1, 0), "a session of two directions");
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["start", "policy"]);
    let stop = events.last().unwrap();
    assert_eq!([&stop["kind"], &stop["clean"]], [&Value::from("stop"), &Value::from(true)]);
    assert_eq!([&stop["packets"], &stop["flows"]], [session.len() as u64, 1]);
    assert_eq!(stop["records"], daemon.records().len());
}

#[test]
fn half_of_a_link_is_told_by_its_flows() {
    let namespace = Namespace::new("half");
    let (mut daemon, folder) = start(&namespace, &approved());
    let session = wireguard();
    // One direction: frames of the first one's sender.
    let half: Vec<_> = session.into_iter().filter(|frame| frame.data[30..34] == [198, 51, 100, 2]).collect();
    let mut sender = namespace.sender("far0");
    for port in 0..25_u8 {
        let mut frames = half.clone();
        frames.iter_mut().for_each(|frame| frame.data[35] = port);
        sender.send(&frames);
    }
    daemon.record("the last flow", |record| record["src_port"].as_u64().is_some_and(|port| port % 256 == 24));
    end(&mut daemon);
    let coverage = events(folder.path());
    let span = of_kind(&coverage, "coverage").last().copied().unwrap().clone();
    let wan = &span["interfaces"][0];
    assert_eq!([&wan["flows_ended"], &wan["flows_one_way"]], [25, 25], "{span}");
}

#[test]
fn flows_are_filtered_and_approvals_tell_their_use() {
    let namespace = Namespace::new("flows");
    let ended = approval("vpn", "ended", "valid_until = 2020-12-31\npeers = [\"203.0.113.2\"]");
    let (mut daemon, folder) = start(&namespace, &(approved() + &ended));
    assert_eq!(ctl(&folder, &["flows"]).expect(0).out, "none\n");
    let mut sender = namespace.sender("far0");
    sender.send(&wireguard());
    daemon.record("the approved tunnel", |record| record["verdict"] == "authorized_leased_line");
    sender.send(&elsewhere());
    daemon.record("the other tunnel", |record| record["verdict"] == "unapproved_vpn_tunnel");
    let flows = |arguments: &[&str]| -> Vec<Value> {
        let done = ctl(&folder, &[&["flows", "--json"], arguments].concat()).expect(0);
        let mut lines: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let end = lines.pop().unwrap();
        assert_eq!(end["end"]["count"], lines.len(), "{}", done.out);
        lines.into_iter().map(|line| line["flow"].clone()).collect()
    };
    until("both are in the view", || (flows(&[]).len() == 2).then_some(()));
    let alarms = flows(&["--label", "unapproved_vpn_tunnel"]);
    assert_eq!((alarms.len(), &alarms[0]["reason"]), (1, &Value::from("approval_expired")));
    let of_partner = flows(&["--peer", "198.51.100.0/24"]);
    assert_eq!((of_partner.len(), &of_partner[0]["approval"]), (1, &Value::from("partner")));
    assert_eq!(flows(&["--peer", "198.51.100.2"]), of_partner);
    assert!(flows(&["--peer", "192.0.2.1"]).is_empty());
    assert_eq!(flows(&["--limit", "1"]).len(), 1);
    let text = ctl(&folder, &["flows", "--limit", "1"]).expect(0).out;
    assert_says(&text, &["wireguard certain", "authorized_leased_line", "1 more: raise --limit"]);

    let done = ctl(&folder, &["approvals", "--json"]).expect(0);
    let approvals: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (partner, ended) = (&approvals[0]["approval"], &approvals[1]["approval"]);
    assert_eq!([&partner["id"], &partner["state"]], ["partner", "in_force"]);
    assert_eq!(partner["use"]["flows_open"], 1);
    assert!(partner["use"]["last_used"].is_string() && partner["use"]["octets_open"].as_u64() > Some(0), "{partner}");
    assert_eq!([&ended["id"], &ended["state"]], ["ended", "expired"]);
    assert!(ended["use"]["last_used"].is_null() && ended["use"]["used_after_end"].is_string(), "{ended}");
    let text = ctl(&folder, &["approvals"]).expect(0).out;
    assert_says(&text, &["partner", "in force", "expired", ", after its end"]);

    let stats = until("all is counted", || {
        let stats = asked(&folder, "stats");
        (stats["packets"] == 2 * wireguard().len()).then_some(stats)
    });
    assert_eq!(stats["flows_open"], 2);
    assert_says(&ctl(&folder, &["stats"]).expect(0).out, &["flows_open", "verdicts.other"]);
    end(&mut daemon);
    let summary = daemon.summary();
    assert_eq!(summary["packets"], stats["packets"]);
}

#[test]
fn approvals_that_end_are_told_at_the_start_and_at_a_reload() {
    let namespace = Namespace::new("ends");
    let ends = |id: &str, hours: i64| {
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let peer = if hours < 0 { "203.0.113.2" } else { "192.0.2.1" };
        approval("vpn", id, &format!("valid_until = {end}\npeers = [\"{peer}\"]"))
    };
    let (mut daemon, folder) =
        start(&namespace, &(ends("soon", 24 * 29) + &ends("later", 24 * 31) + &ends("over", -1)));
    assert_says(&daemon.said.join("\n"), &["approval \"soon\": ends at ", "approval \"over\": ended at "]);
    let told = |count| {
        until("the ends are told", || {
            let events = events(folder.path());
            let told: Vec<_> = of_kind(&events, "expiry").into_iter().cloned().collect();
            (told.len() == count).then_some(told)
        })
    };
    let first = &told(1)[0];
    assert_eq!(first["within_seconds"], 30 * 86_400);
    assert_eq!([&first["ending"][0]["id"], &first["ended"][0]["id"]], ["soon", "over"], "{first}");
    assert!(first["ending"][1].is_null() && first["ended"][1].is_null(), "{first}");
    assert!(first["ended"][0]["used_after_end"].is_null(), "{first}");
    let status = asked(&folder, "status");
    assert_eq!(status["policy"]["expiring"][0]["id"], "soon");

    // What is used after its end is told with it.
    namespace.sender("far0").send(&elsewhere());
    daemon.record("the tunnel of the ended approval", |record| record["reason"] == "approval_expired");
    fs::write(folder.path().join("approvals.d/a.toml"), ends("over", -1)).unwrap();
    asked(&folder, "reload");
    let second = &told(2)[1];
    assert_eq!([&second["ending"], &second["ended"][0]["id"]], [&serde_json::json!([]), &Value::from("over")]);
    assert!(second["ended"][0]["used_after_end"].is_string(), "{second}");
    fs::write(folder.path().join("approvals.d/a.toml"), ends("later", 24 * 31)).unwrap();
    asked(&folder, "reload");
    end(&mut daemon);
    assert_eq!(of_kind(&events(folder.path()), "expiry").len(), 2, "where nothing ends, nothing is told");
}

#[test]
fn a_log_that_was_not_closed_is_told_with_what_was_found_of_it() {
    let namespace = Namespace::new("break");
    // Nothing is signed, and so sealed, before the kill.
    let settings = format!("{SETTINGS}[records]\nsign_interval = \"1d\"\n");
    let folder = folder(&[("approvals.d/a.toml", &approved()), ("s.toml", &settings)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    namespace.sender("far0").send(&wireguard());
    daemon.record("a record in the log", |record| record["confidence"] == "certain");
    daemon.signal("KILL");
    until("it is gone", || daemon.is_gone().then_some(()));
    let log = folder.path().join("linewarden-log/linewarden.ndjson");
    let lines = fs::read_to_string(&log).unwrap();
    let (whole, half) = (lines.rfind('\n').unwrap() + 1, "{\"version\":1,\"seq\":");
    fs::write(&log, [&lines[..whole], half].concat()).unwrap();

    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("the log was not closed by its last run");
    daemon.says("capturing");
    end(&mut daemon);
    let events = events(folder.path());
    let begins = events.iter().rposition(|event| event["kind"] == "start").unwrap();
    let breaks = of_kind(&events[begins..], "log_break");
    assert_eq!(of_kind(&events[..begins], "log_break").len(), 0);
    assert_eq!(breaks.iter().map(|found| found["log"].as_str().unwrap()).collect::<Vec<_>>(), ["linewarden", "sensor"]);
    let of = |key: &str| breaks[0][key].as_u64().unwrap();
    assert_eq!((of("torn_octets"), of("segment")), (half.len() as u64, 1), "{}", breaks[0]);
    assert_eq!((of("missing_octets"), of("missing_seals")), (0, 0), "{}", breaks[0]);
    let records = lines[..whole].lines().count() as u64;
    assert_eq!((of("recovered_records"), of("recovered_octets")), (records, whole as u64), "{}", breaks[0]);

    // And a run that was closed is no break.
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    end(&mut daemon);
    let after = crate::events(folder.path());
    assert_eq!(of_kind(&after, "log_break").len(), 2);
}

#[test]
fn a_log_that_somebody_takes_away_speaks_against_the_evidence() {
    let namespace = Namespace::new("taken");
    let settings = format!("{SETTINGS}[records]\nsync_interval = \"10ms\"\nsign_interval = \"1s\"\n");
    let folder = folder(&[("approvals.d/a.toml", &approved()), ("s.toml", &settings)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    let (log, away) = (folder.path().join("linewarden-log"), folder.path().join("away"));
    let doubts = || asked(&folder, "status")["evidence"]["doubts"].to_string();
    let doubted = |what: &str| until(what, || doubts().contains(what).then_some(()));
    assert_eq!(doubts(), "[]");
    // The state's folder, which is made anew when something is signed.
    until("it is gone, whatever the daemon writes there", || fs::remove_dir_all(log.join("state")).ok());
    namespace.sender("far0").send(&wireguard());
    until("heads are kept again", || log.join("state/linewarden.heads").exists().then_some(()));
    assert_eq!(doubts(), "[]");
    fs::rename(&log, &away).unwrap();
    daemon.says("the file that is written is not there any more");
    doubted("linewarden.ndjson is not the file that is written");
    until("it is put back, for what the daemon made in its place", || {
        let _ = fs::remove_dir_all(&log);
        fs::rename(&away, &log).ok()
    });
    until("it is there again", || (doubts() == "[]").then_some(()));
    // In two steps, each of which alone is harmless.
    fs::rename(log.join("linewarden.ndjson"), log.join("x")).unwrap();
    doubted("linewarden.ndjson is not the file that is written");
    fs::remove_file(log.join("x")).unwrap();
    daemon.says("SOMEBODY CUT OR REMOVED THE LOG");
    doubted("linewarden.ndjson or its seals were cut or removed at ");
    fs::remove_file(log.join("sensor.seals")).unwrap();
    asked(&folder, "reload");
    daemon.says("SOMEBODY REMOVED THE SEALS");
    doubted("sensor.ndjson or its seals were cut or removed at ");
    let status = asked(&folder, "status");
    assert_eq!((&status["log"]["harmed"], &status["sensor_log"]["harmed"]), (&1.into(), &1.into()), "{status}");
    end(&mut daemon);
}

#[test]
fn a_pipe_in_the_place_of_the_log_is_refused_and_its_name_said() {
    let namespace = Namespace::new("pipe");
    for name in ["linewarden.ndjson", "sensor.seals"] {
        let folder = folder(&[("approvals.d/a.toml", &approved()), ("s.toml", SETTINGS)]);
        fs::create_dir(folder.path().join("linewarden-log")).unwrap();
        let pipe = folder.path().join("linewarden-log").join(name);
        done(Command::new("mkfifo").arg(&pipe)).expect(0);
        let mut daemon = namespace.command("timeout");
        daemon.args(["--signal=KILL", "60", LINEWARDEN, "run", "--config", "s.toml", "--approvals", "approvals.d"]);
        let refused = done(daemon.current_dir(folder.path()));
        assert!(refused.code != 0 && refused.code != 137, "{}: {}", refused.code, refused.err);
        assert!(
            refused.err.contains(&format!("{name}: records cannot be written there: is no regular file")),
            "{}",
            refused.err
        );
    }
}

#[test]
fn a_log_is_rotated_on_request() {
    let namespace = Namespace::new("rotate");
    let (mut daemon, folder) = start(&namespace, &approved());
    let log = folder.path().join("linewarden-log");
    for name in ["linewarden.ndjson", "sensor.ndjson"] {
        fs::rename(log.join(name), log.join(format!("{name}.1"))).unwrap();
    }
    let done = ctl(&folder, &["rotate"]).expect(0);
    assert_eq!(done.out, "a new file is written: linewarden-log/linewarden.ndjson\n");
    assert!(log.join("linewarden.ndjson").exists() && log.join("sensor.ndjson").exists(), "before it answers");
    namespace.sender("far0").send(&wireguard());
    daemon.record("a record in the new file", |record| record["confidence"] == "certain");
    end(&mut daemon);
}

#[test]
fn the_socket_is_where_both_look_for_it() {
    let namespace = Namespace::new("place");
    // As where nothing is installed, and as where the service manager made the folder.
    let cases = [
        ("true", "linewarden-log/state/control.sock"),
        ("mkdir /var/lib/linewarden", "/var/lib/linewarden/control.sock"),
        ("mkdir /run/linewarden /var/lib/linewarden", "/run/linewarden/control.sock"),
    ];
    for (prepare, place) in cases {
        let folder = folder(&[("approvals.d/none", "")]);
        let script = format!(
            "mount -t tmpfs none /run; mount -t tmpfs none /var/lib; mount -t tmpfs none /var/log; {prepare}
            mkfifo ready
            (read line <ready; $0 ctl status >status 2>&1; echo $? >code) &
            \"$0\" run --interface wan0 --approvals approvals.d --records linewarden-log 2> >(tee log >&2) &
            daemon=$!
            until grep -q capturing log 2>/dev/null; do sleep 0.05; done
            echo go >ready
            until [ -s code ]; do sleep 0.05; done
            kill $daemon; wait $daemon"
        );
        let mut command = namespace.command("timeout");
        command.args(["--signal=KILL", "60", "bash", "-c", &script, LINEWARDEN]).current_dir(folder.path());
        let done = done(&mut command).expect(0);
        assert!(done.err.contains(&format!("socket={place}")), "{}", done.err);
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("code"), "0\n", "{}", read("status"));
        assert_says(&read("status"), &["evidence    complete", "wan0"]);
    }
}

#[test]
fn without_a_daemon_it_says_where_it_looked() {
    let folder = folder(&[("s.toml", SETTINGS), ("bad.toml", "[control]\nsockets = 1\n")]);
    let done = ctl(&folder, &["status"]).expect(1);
    assert!(done.err.contains("no daemon answers at c.sock: start one"), "{}", done.err);
    let ask = |arguments: &[&str]| {
        common::command::done(linewarden(["ctl"].iter().chain(arguments)).current_dir(folder.path()))
    };
    assert!(ask(&["status", "--config", "s.toml"]).expect(1).err.contains("no daemon answers at c.sock"));
    assert!(ask(&["status", "--config", "bad.toml"]).expect(78).err.contains("did you mean `socket`?"));
    assert!(ask(&["stop"]).expect(64).err.contains("unrecognized subcommand 'stop'"));
    assert!(ask(&["flows", "--peer", "example.net"]).expect(64).err.contains("write an address, or a network"));
    assert!(ask(&["flows", "--label", "other"]).expect(64).err.contains("unapproved_vpn_tunnel"));
    assert!(ask(&["status", "--socket", "s.toml"]).expect(1).err.contains("no daemon answers at s.toml"));
}
