//! `linewarden report` as an auditor's colleague runs it: what it says of a log is what a plain look at every line says, and
//! what it writes is safe to open.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "query/logs.rs"]
mod logs;
#[path = "report/page.rs"]
mod page;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::command::{Done, approval, assert_says, done, folder, linewarden, run};
use common::netns::Namespace;
use common::pcap::frames;
use logs::{Form, lines, replayed};

/// A log in a folder without a sensor's word.
fn log(lines: &[String], cuts: &[(usize, Form)]) -> TempDir {
    let folder = logs::log(lines, cuts);
    fs::remove_file(folder.path().join("sensor.ndjson")).unwrap();
    folder
}

fn report(log: &Path, more: &[&str]) -> Done {
    run(["report", "--by", "an auditor", log.to_str().unwrap()].iter().chain(more))
}

fn json(log: &Path, more: &[&str]) -> Value {
    serde_json::from_str(
        &report(log, &["--format", "json", "--quiet"].iter().chain(more).copied().collect::<Vec<_>>()).expect(0).out,
    )
    .unwrap()
}

/// It is as `tests/report.schema.json` documents it, and says nothing that is not documented.
#[track_caller]
fn assert_documented(report: &Value) {
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report.schema.json")).unwrap();
    let schema = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    if let Err(error) = validator.validate(report) {
        panic!("{error} at {}", error.instance_path());
    }
    let mut wrong = report.clone();
    wrong["head"]["extra"] = 1.into();
    assert!(!validator.is_valid(&wrong), "the schema lets anything pass");
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap()
}

fn number(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_else(|| panic!("{field}: {record}"))
}

/// Each flow by its end, else by its latest record.
fn flows(lines: &[String]) -> Vec<Value> {
    let mut flows: HashMap<String, Value> = HashMap::new();
    for line in lines {
        let record: Value = serde_json::from_str(line).unwrap();
        flows.insert(text(&record, "flow_id").to_owned(), record);
    }
    flows.into_values().collect()
}

fn octets(flow: &Value) -> u64 {
    number(flow, "fwd_octets") + number(flow, "rev_octets")
}

/// A day and a few captures, in every form that a log lies there, give the sums of a plain look at their lines.
#[test]
fn figures_are_those_of_a_plain_look() {
    let lines = lines();
    let flows = flows(lines);
    let mut totals: BTreeMap<(String, String), (u64, u64, u64)> = BTreeMap::new();
    let mut approvals: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut tunnels: BTreeMap<(String, BTreeSet<String>), (u64, u64)> = BTreeMap::new();
    for flow in &flows {
        let is_inside = !flow["outer_flow_id"].is_null();
        let total = totals.entry((text(flow, "verdict").to_owned(), text(flow, "reason").to_owned())).or_default();
        total.0 += 1;
        total.1 += u64::from(is_inside);
        total.2 += if is_inside { 0 } else { octets(flow) };
        if flow["verdict"] == "authorized_leased_line" {
            let used = approvals.entry(text(&flow["approval"], "id").to_owned()).or_default();
            *used = (used.0 + 1, used.1 + octets(flow));
        }
        if flow["verdict"] == "unapproved_vpn_tunnel" {
            let ends = ["src_ip", "dst_ip"].map(|end| text(flow, end).to_owned()).into();
            let tunnel = tunnels.entry((text(flow, "tunnel").to_owned(), ends)).or_default();
            *tunnel = (tunnel.0 + 1, tunnel.1 + octets(flow));
        }
    }
    for cuts in [
        vec![],
        vec![(2000, Form::Archive), (4500, Form::ArchiveWithoutIndex), (5000, Form::Plain), (5500, Form::Both)],
    ] {
        let folder = log(lines, &cuts);
        let report = json(folder.path(), &["--from", "2026-10-01", "--to", "2026-11-29", "--no-verify"]);
        let found: BTreeMap<_, _> = report["totals"]
            .as_array()
            .unwrap()
            .iter()
            .map(|total| {
                let verdict = (text(total, "verdict").to_owned(), text(total, "reason").to_owned());
                (verdict, (number(total, "flows"), number(total, "inside"), number(total, "octets")))
            })
            .collect();
        assert_eq!(found, totals);
        let found: BTreeMap<_, _> = report["approvals"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| (text(of, "id").to_owned(), (number(of, "flows"), number(of, "octets"))))
            .collect();
        assert_eq!(found, approvals);
        let found: BTreeMap<_, _> = report["tunnels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| {
                // Without the port, and the brackets that go with it.
                let host = |end: &str| {
                    end.parse().or_else(|_| end.parse::<std::net::SocketAddr>().map(|end| end.ip())).unwrap()
                };
                let ends = ["source", "destination"].map(|end| host(text(of, end)).to_string()).into();
                ((text(of, "tunnel").to_owned(), ends), (number(of, "flows"), number(of, "octets")))
            })
            .collect();
        assert_eq!(found, tunnels);
        assert_eq!(report["evidence"]["complete"], false);
        assert_documented(&report);
    }
}

/// Two ranges that touch have together what the range over both has, however the flows lie across.
#[test]
fn ranges_that_touch_add_up() {
    let folder = log(lines(), &[(2000, Form::Archive), (4500, Form::Plain)]);
    let sums = |from: &str, to: &str| {
        let report = json(folder.path(), &["--from", from, "--to", to, "--no-verify"]);
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for of in report["approvals"].as_array().unwrap() {
            let days: u64 = of["days"].as_array().unwrap().iter().map(|day| number(day, "octets")).sum();
            assert_eq!(days, number(of, "octets"), "{of}");
            *sums.entry(text(of, "id").to_owned()).or_default() += days;
        }
        for total in report["totals"].as_array().unwrap() {
            *sums.entry(text(total, "verdict").to_owned()).or_default() += number(total, "octets");
        }
        sums.retain(|_, octets| *octets > 0);
        sums
    };
    let all = sums("2026-11-20", "2026-11-29");
    assert!(all.len() > 20);
    for cut in ["2026-11-27T03:00", "2026-11-27T11:17:31.123456789Z", "2026-11-27T22:30"] {
        let mut both = sums("2026-11-20", cut);
        for (name, octets) in sums(cut, "2026-11-29") {
            *both.entry(name).or_default() += octets;
        }
        assert_eq!(both, all, "{cut}");
    }
}

const PEER: &str = "valid_until = 2099-01-01\npeers = [\"198.51.100.2\"]\ntunnels = [\"wireguard\"]";
const DAY: [&str; 4] = ["--from", "2026-11-24", "--to", "2026-11-24"];

/// The report of a capture, to the letter but for what every run has its own.
#[test]
fn a_report_is_as_it_was() {
    let folder = replayed(&["wireguard-port-51820", "esp-udp"], &approval("vpn", "partner", PEER));
    let log = folder.path().join("log");
    let range: Vec<_> = ["--from", "2026-11-20", "--to", "2026-11-27"].to_vec();
    let mut report = json(&log, &range);
    report["head"]["made_at"] = json!("now");
    report["head"]["program_version"] = json!("this");
    let text = serde_json::to_string_pretty(&report).unwrap().replace(log.to_str().unwrap(), "LOG") + "\n";
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report/expected.json");
    if std::env::var_os("LINEWARDEN_WRITE_EXPECTED").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&golden).unwrap(), "LINEWARDEN_WRITE_EXPECTED=1 writes it anew");
}

#[test]
fn tables_say_the_same_as_json() {
    let folder = log(lines(), &[(3000, Form::Archive)]);
    let range = ["--from", "2026-11-27", "--to", "2026-11-27", "--no-verify"];
    let tables = folder.path().join("tables");
    let arguments: Vec<_> = ["--format", "csv", "--out", tables.to_str().unwrap()].into_iter().chain(range).collect();
    let done = report(folder.path(), &arguments).expect(0);
    assert_eq!(done.out, "");
    let table = |name: &str| {
        let mut reader = csv::Reader::from_path(tables.join(name)).unwrap();
        let header = reader.headers().unwrap().clone();
        let row = |row: Result<csv::StringRecord, csv::Error>| {
            let row = row.unwrap();
            header.iter().zip(&row).map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<HashMap<_, _>>()
        };
        reader.records().map(row).collect::<Vec<_>>()
    };
    let report = json(folder.path(), &range);
    let count = |name: &str| report[name].as_array().unwrap().len();
    assert_eq!(table("approvals.csv").len(), count("approvals"));
    assert_eq!(table("tunnels.csv").len(), count("tunnels"));
    assert_eq!(table("flows.csv").len(), count("totals"));
    assert_eq!(table("coverage.csv").len() + table("gaps.csv").len() + table("policy.csv").len(), 0);
    let mut days: HashMap<String, u64> = HashMap::new();
    for row in table("octets.csv") {
        assert_eq!(row["day"], "2026-11-27");
        *days.entry(row["approval"].clone()).or_default() += row["octets"].parse::<u64>().unwrap();
    }
    for row in table("approvals.csv").iter().filter(|row| row["octets"] != "0") {
        assert_eq!(days[&row["approval"]], row["octets"].parse::<u64>().unwrap());
    }
    let tunnel = &table("tunnels.csv")[0];
    assert_eq!((&*tunnel["ticket"], &*tunnel["decision"]), ("", ""));
    // What explains it does.
    let command: Vec<_> = tunnel["explain"].split(' ').skip(1).collect();
    assert_says(&run(&command).expect(0).out, &["unapproved_vpn_tunnel", &tunnel["flow_id"]]);
    assert!(table("evidence.csv").iter().any(|row| row["flow_id"] == tunnel["flow_id"]));
    assert_says(&table("integrity.csv")[0]["result"], &["not verified: --no-verify was given"]);
    let names: BTreeSet<_> =
        fs::read_dir(&tables).unwrap().map(|entry| entry.unwrap().path().with_extension("")).collect();
    assert_eq!(names.len(), fs::read_dir(&tables).unwrap().count(), "nothing else is left: {names:?}");
}

const SETTINGS: &str = "sensor = \"berlin-1\"\n[capture]\ninterfaces = [\"wan0\"]\n[control]\nsocket = \"c.sock\"\n";

/// What a real sensor left behind, and when its first minute began and its last ended.
fn watched(test: &str) -> (TempDir, String, String) {
    let namespace = Namespace::new(test);
    let line = format!("{PEER}\nneed = \"orders\"\ncapacity = \"10Mbit/s\"");
    let folder = folder(&[("approvals.d/a.toml", &approval("vpn", "partner", &line)), ("s.toml", SETTINGS)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    namespace.sender("far0").send(&frames("wireguard-port-51820"));
    namespace.sender("far0").send(&frames("openvpn-udp-tls-auth"));
    daemon.record("the tunnel", |record| record["tunnel"] == "openvpn" && record["confidence"] == "certain");
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    let events = fs::read_to_string(folder.path().join("linewarden-log/sensor.ndjson")).unwrap();
    let minutes: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["kind"] == "coverage")
        .collect();
    let (first, last) = (&minutes[0], minutes.last().unwrap());
    (folder, text(first, "since").to_owned(), text(last, "time").to_owned())
}

/// In the folder that the sensor was started in, as whoever started it would.
fn there(folder: &TempDir, arguments: &[&str]) -> Done {
    done(linewarden(["report", "--config", "s.toml"].iter().chain(arguments)).current_dir(folder.path()))
}

#[test]
fn what_a_sensor_left_behind_is_complete_and_whole_until_somebody_changes_it() {
    let (folder, from, to) = watched("report");
    let range = ["linewarden-log", "--from", &from, "--to", &to, "--format", "json"];
    let done = there(&folder, &range).expect(0);
    assert_eq!(done.err, "");
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["evidence"], json!({"complete": true, "doubts": []}), "{report:#}");
    assert_documented(&report);
    assert_eq!(report["sensors"][0]["sensor"], "berlin-1");
    let wan = &report["sensors"][0]["interfaces"][0];
    assert_eq!((&wan["interface"], &wan["covered_share"]), (&json!("wan0"), &json!(1.0)));
    assert!(number(wan, "packets") > 50);
    let partner = &report["approvals"][0];
    assert_eq!(
        [&partner["id"], &partner["in_force"], &partner["terms"]["need"]],
        [&json!("partner"), &json!(true), &json!("orders")]
    );
    assert!(number(partner, "octets") > 1000 && partner["remarks"] == json!([]), "{partner}");
    assert!(partner["peak"]["share_of_capacity"].as_f64().unwrap() > 0.0);
    assert_eq!(report["tunnels"].as_array().unwrap().len(), 1);
    assert_eq!(report["tunnels"][0]["tunnel"], "openvpn");
    assert!(report["tunnels"][0]["evidence"].as_array().unwrap().len() > 1);
    assert_eq!(report["policy"].as_array().unwrap().len(), 1, "{}", report["policy"]);
    let integrity = &report["integrity"][0];
    assert_eq!((&integrity["is_whole"], integrity["logs"].as_array().unwrap().len()), (&json!(true), 2));
    // The command that it names verifies it.
    let command: Vec<_> = text(integrity, "command").split(' ').skip(1).map(str::to_owned).collect();
    assert_eq!(command[0], "verify-log");
    done_there(&folder, &command).expect(0);
    // Before the sensor was there, and after it had gone.
    let day = there(&folder, &["linewarden-log", "--last", "1d", "--format", "json"]).expect(0);
    assert_says(&day.err, &["evidence not complete: wan0 of berlin-1: not covered for"]);
    let whys: Vec<_> = serde_json::from_str::<Value>(&day.out).unwrap()["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| gap["why"].clone())
        .collect();
    assert_eq!(whys, ["nothing_before", "stopped"]);
    // Without its key it is not verified, and that is said.
    let key = folder.path().join("linewarden-log/state/sensor.pub");
    let octets = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let unverified = there(&folder, &range).expect(78);
    assert_says(&unverified.err, &["the log was not verified", "the log is NOT VERIFIED", "name the sensor.pub"]);
    assert_documented(&serde_json::from_str(&unverified.out).unwrap());
    there(&folder, &[&range[..], &["--no-verify"]].concat()).expect(0);
    assert_says(&there(&folder, &[&range[..], &["--key", "nowhere"]].concat()).expect(78).err, &["nowhere"]);
    fs::write(&key, octets).unwrap();
    // Somebody moves an octet from one flow to another.
    let log = folder.path().join("linewarden-log/linewarden.ndjson");
    let changed = fs::read_to_string(&log).unwrap().replacen("\"fwd_packets\":1,", "\"fwd_packets\":2,", 1);
    fs::write(&log, changed).unwrap();
    let page = folder.path().join("r.html");
    let broken = there(&folder, &["linewarden-log", "--from", &from, "--to", &to, "--out", "r.html"]).expect(65);
    assert_says(&broken.err, &["the log is not whole", "the log is NOT WHOLE: the report says where"]);
    assert_says(&fs::read_to_string(page).unwrap(), &["✗ not whole", "linewarden: changed, segment 1"]);
}

#[test]
fn no_cell_is_a_formula() {
    let line = PEER.to_owned() + "\nneed = \"=HYPERLINK(1)\"";
    let folder = replayed(&["wireguard-port-51820"], &approval("vpn", "-partner", &line));
    let (log, tables) = (folder.path().join("log"), folder.path().join("tables"));
    report(&log, &[&["--format", "csv", "--out", tables.to_str().unwrap()], &DAY[..]].concat()).expect(0);
    assert_says(&fs::read_to_string(tables.join("approvals.csv")).unwrap(), &["'-partner,"]);
    let query = ["query", log.to_str().unwrap(), "--format", "csv"];
    for more in [&[][..], &["--group-by", "approval"]] {
        assert_says(&run(query.iter().chain(more)).expect(0).out, &["'-partner,"]);
    }
}

/// Whatever `--out` names, the log, its keys and what is no file stay as they are.
#[test]
fn a_report_replaces_nothing_but_a_report() {
    let folder = replayed(&["wireguard-port-51820"], "");
    let log = folder.path().join("log");
    let inside = |name: &str| log.join(name);
    fs::create_dir(inside("state")).unwrap();
    fs::write(inside("state/sensor.key"), "key").unwrap();
    fs::copy(inside("linewarden.ndjson"), folder.path().join("other")).unwrap();
    symlink("linewarden.ndjson", inside("link")).unwrap();
    symlink("nowhere", inside("dangling")).unwrap();
    let before = fs::read(inside("linewarden.ndjson")).unwrap();
    let to = |log: &Path, out: &Path| {
        run(["report", log.to_str().unwrap(), "--out", out.to_str().unwrap()].iter().chain(&DAY))
    };
    for (name, says) in [
        ("linewarden.ndjson", "the log's own"),
        ("linewarden.seals", "the log's own"),
        ("../log/summary.json", "the log's own"),
        ("state/sensor.key", "the log's own"),
        ("link", "no regular file"),
        ("dangling", "no regular file"),
        ("state", "the log's own"),
    ] {
        assert_says(&to(&log, &inside(name)).expect(64).err, &[says]);
        to(&inside("linewarden.ndjson"), &inside(name)).expect(64);
    }
    let other = folder.path().join("other");
    assert_says(&to(&other, &other).expect(64).err, &["is to be read, and would be overwritten"]);
    assert_eq!(fs::read(&other).unwrap(), before);
    assert_eq!(fs::read(inside("linewarden.ndjson")).unwrap(), before);
    assert_eq!(fs::read(inside("state/sensor.key")).unwrap(), b"key");
    assert!(!inside("linewarden.seals").exists() && !inside("nowhere").exists());
    // A link under the name of a table is no table.
    let tables = folder.path().join("tables");
    fs::create_dir(&tables).unwrap();
    symlink("../other", tables.join("report.csv")).unwrap();
    let csv = [&["--format", "csv", "--out", tables.to_str().unwrap()], &DAY[..]].concat();
    assert_says(&report(&log, &csv).expect(64).err, &["report.csv: cannot be written", "no regular file"]);
    assert_eq!(fs::read(&other).unwrap(), before);
    // What was a report may be one again.
    for _ in 0..2 {
        to(&log, &inside("r.html")).expect(0);
    }
}

fn done_there(folder: &TempDir, arguments: &[String]) -> Done {
    done(linewarden(arguments).current_dir(folder.path()))
}

#[test]
fn what_is_wrong_is_said() {
    let folder = replayed(&["wireguard-port-51820"], "");
    let log = folder.path().join("log");
    let refused = |more: &[&str], code: i32, says: &[&str]| assert_says(&report(&log, more).expect(code).err, says);
    refused(&["--format", "csv"], 64, &["name a folder for them with --out"]);
    refused(&["--from", "yesterday"], 64, &["--from yesterday: is no time"]);
    refused(&["--from", "2099-01-01"], 64, &["--from 2099-01-01 00:00:00 is not in the past"]);
    refused(&["--from", "2001-01-01"], 64, &["a report is of 3660 days at most"]);
    refused(&["--from", "2026-11-24", "--last", "1d"], 64, &["cannot be used with"]);
    refused(&["--no-verify", "--key", "x"], 64, &["cannot be used with"]);
    let before = ["--from", "2026-10-01", "--to", "2026-10-02"];
    refused(&before, 65, &["neither records nor events of a sensor from 2026-10-01 00:00:00 to 2026-10-03 00:00:00"]);
    refused(&[&DAY[..], &["--out", "/nonexistent/r.html"]].concat(), 1, &["/nonexistent/r.html: cannot be written"]);
    refused(&[&DAY[..], &["--format", "csv", "--out", "/proc/x"]].concat(), 1, &["/proc/x: cannot be written"]);
    assert_says(&run(["report", "/nonexistent"]).expect(65).err, &["/nonexistent: cannot be read"]);
    assert_says(&run(["report", folder.path().to_str().unwrap()]).expect(65).err, &["holds no linewarden.ndjson"]);
    // A report of what can be read is written all the same, and is no success.
    let lines = fs::read_to_string(log.join("linewarden.ndjson")).unwrap();
    fs::write(log.join("linewarden.ndjson"), lines + "garbage\n").unwrap();
    let done = report(&log, &DAY).expect(65);
    assert_says(&done.err, &["linewarden.ndjson:", "parts of the log cannot be read"]);
    assert_says(&done.out, &["1 lines or parts of the records cannot be read", "wireguard"]);
}
