//! The inventory as whoever runs a sensor meets it: on a veth in a network namespace that each test makes, killed and started
//! again, read while it is written, and compared with what `query` says of the log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::command::{Done, LINEWARDEN, approval, assert_says, done, folder, linewarden, records};
use common::netns::{Daemon, Namespace, until};
use common::pcap::frames;
use linewarden::daemon::clock;
use linewarden::time::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

/// Flows are short, so that there are many; the log is rotated every few hundred records.
const SETTINGS: &str = "[capture]\ninterfaces = [\"wan0\"]\nworkers = 1\n[flow]\nidle_timeout = \"1s\"\nactive_timeout = \"1s\"\n[records]\nupdate_interval = \"300ms\"\nrotate_octets = \"512KiB\"\n[control]\nsocket = \"c.sock\"\n";
const CAUGHT_UP: &str = "the inventory holds what the log does";

fn approvals() -> String {
    let vpn = approval("vpn", "partner", "valid_until = 2099-12-31\npeers = [\"198.51.0.0/18\"]");
    let line = approval(
        "leased-line",
        "line",
        "valid_until = 2099-12-31\npeers = [\"203.0.113.0/24\"]\npath = { interface = \"wan0\" }",
    );
    vpn + &line
}

fn house(settings: &str) -> TempDir {
    folder(&[("approvals.d/a.toml", &approvals()), ("s.toml", settings)])
}

fn start(namespace: &Namespace, folder: &TempDir) -> Daemon {
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    if !daemon.said.iter().any(|line| line.contains(CAUGHT_UP)) {
        daemon.says(CAUGHT_UP);
    }
    daemon
}

fn end(mut daemon: Daemon) {
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
}

fn inside(folder: &TempDir, arguments: &[&str]) -> Done {
    done(linewarden(arguments).current_dir(folder.path()))
}

fn inventory(folder: &TempDir, arguments: &[&str]) -> Vec<Value> {
    let common = ["inventory", "--format", "ndjson", "--state", "linewarden-log/state"];
    records(&inside(folder, &[&common[..], arguments].concat()).expect(0).out)
}

/// Flows, octets both ways, first and last packet.
type Sums = (u64, [u64; 2], String, String);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// What `query` says of the log, added up as the inventory does.
fn folded(rows: &[Value], key: impl Fn(&Value) -> Option<String>) -> BTreeMap<String, Sums> {
    let mut sums = BTreeMap::<String, Sums>::new();
    for row in rows {
        let Some(key) = key(row).filter(|_| row["verdict"] != "other") else { continue };
        let mut octets = [number(&row["fwd_octets"]), number(&row["rev_octets"])];
        if row["tunnel"].is_string() && ip(&row["src_ip"]) > ip(&row["dst_ip"]) {
            octets.reverse();
        }
        let (first, last) = (text(&row["start"]), text(&row["end"]));
        let sums = sums.entry(key).or_insert_with(|| (0, [0, 0], first.clone(), last.clone()));
        sums.0 += 1;
        sums.1 = [sums.1[0] + octets[0], sums.1[1] + octets[1]];
        sums.2 = sums.2.clone().min(first);
        sums.3 = sums.3.clone().max(last);
    }
    sums
}

fn ip(value: &Value) -> std::net::IpAddr {
    value.as_str().unwrap().parse().unwrap()
}

fn approval_of(row: &Value) -> Option<String> {
    (row["verdict"] == "authorized_leased_line").then(|| text(&row["approval"]["id"]))
}

/// Every view is what the log says.
#[track_caller]
fn assert_agrees(folder: &TempDir) {
    let rows = inside(folder, &["query", "linewarden-log", "--format", "ndjson", "--quiet"]).expect(0);
    let rows = records(&rows.out);
    let tunnels = inventory(folder, &["tunnels"]).into_iter().map(|row| {
        let key = format!("{} {} {} {}", text(&row["protocol"]), text(&row["a"]), text(&row["b"]), row["port"]);
        let octets = [number(&row["octets_ab"]), number(&row["octets_ba"])];
        (key, (number(&row["flows"]), octets, text(&row["first_seen"]), text(&row["last_seen"])))
    });
    let key = |row: &Value| {
        let (a, b) = (ip(&row["src_ip"]).min(ip(&row["dst_ip"])), ip(&row["src_ip"]).max(ip(&row["dst_ip"])));
        // All tunnels here are to this port.
        Some(format!("{} {a} {b} 51820", row["tunnel"].as_str()?))
    };
    assert_eq!(tunnels.collect::<BTreeMap<_, _>>(), folded(&rows, key));

    let both = |(key, (flows, [ab, ba], first, last)): (String, Sums)| (key, (flows, ab + ba, first, last));
    let of = |row: &Value, first: &str, last: &str| {
        (number(&row["flows"]), number(&row["octets"]), text(&row[first]), text(&row[last]))
    };
    let approvals = inventory(folder, &["approvals"]);
    let approvals = approvals.iter().map(|row| (text(&row["approval"]), of(row, "first_used", "last_used")));
    let expected: BTreeMap<_, _> = folded(&rows, approval_of).into_iter().map(both).collect();
    assert_eq!(approvals.collect::<BTreeMap<_, _>>(), expected);
    let circuits = inventory(folder, &["circuits"]);
    let circuits = circuits.iter().map(|row| (text(&row["approval"]), of(row, "first_seen", "last_seen")));
    assert_eq!(circuits.collect::<BTreeMap<_, _>>(), expected, "there is one path");

    let mut days = BTreeMap::<String, u64>::new();
    for row in inventory(folder, &["days"]) {
        *days.entry(text(&row["day"])).or_default() += number(&row["octets_ab"]) + number(&row["octets_ba"]);
    }
    let by_day = folded(&rows, |row| Some(text(&row["end"])[..10].to_owned()));
    assert_eq!(days, by_day.into_iter().map(|(day, (_, [ab, ba], ..))| (day, ab + ba)).collect());
}

/// Who sends WireGuard tunnels between ever new ports of 200 pairs of hosts, and as much plain traffic, until it is dropped.
struct Load(Child);

impl Load {
    fn new(namespace: &Namespace) -> Self {
        let script = "import socket, sys, time
frames = [bytearray.fromhex(line) for line in sys.stdin.read().split()]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(('far0', 0))
client = frames[0][26:30]
plain = bytearray(frames[0])
plain[26:34] = bytes([203, 0, 113, 1, 203, 0, 114, 1])
plain[42:] = bytes(len(plain) - 42)
port = 1024
while True:
    port = 1024 + (port - 1023) % 40000
    number = port.to_bytes(2, 'big')
    for frame in frames:
        at = 34 if frame[26:30] == client else 36
        kept = bytes(frame)
        frame[at:at + 2] = number
        frame[28] = frame[32] = port % 200
        link.send(frame)
        frame[:] = kept
    plain[34:36] = number
    plain[28] = 113 if port % 2 else 115
    link.send(plain)
    time.sleep(0.001)";
        let mut child = namespace.command("python3").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let lines = frames("wireguard-port-51820").iter().take(12).fold(String::new(), |mut lines, frame| {
            frame.data.iter().for_each(|octet| write!(lines, "{octet:02x}").unwrap());
            lines + "\n"
        });
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        Self(child)
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status(folder: &TempDir) -> Value {
    let done = inside(folder, &["ctl", "--socket", "c.sock", "status", "--json"]).expect(0);
    serde_json::from_str::<Value>(&done.out).unwrap()["status"].clone()
}

/// How many times the sensor is killed; more with `LINEWARDEN_KILLS`.
const KILLS: u64 = 5;
/// The setting `records.sync_interval`, and what a machine that is busy with other tests may lag behind.
const SYNC: Duration = Duration::from_secs(1);
const LAG: Duration = Duration::from_secs(5);

/// `kill -9` at any moment, under load, in the sandbox: the log verifies, all that the sensor said was written is in it, and
/// the inventory opens at once, and agrees with the log to the octet after the next start.
#[test]
fn killed_at_any_moment_log_and_inventory_agree() {
    let kills = std::env::var("LINEWARDEN_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let namespace = Namespace::new("killed");
    let folder = house(SETTINGS);
    let load = Load::new(&namespace);
    let (mut random, mut lines, mut worst) = (clock().as_nanos() | 1, 0, Duration::ZERO);
    let mut total = 0;
    for round in 1..=kills {
        load.signal("STOP");
        let mut daemon = start(&namespace, &folder);
        let context = format!("round {round} of {kills}");
        // Nothing is sent: log and inventory stand still.
        if round > 1 {
            assert_agrees(&folder);
            inside(&folder, &["verify-log", "linewarden-log"]).expect(0);
        }
        load.signal("CONT");
        until("a tunnel is in the log", || (number(&status(&folder)["records"]["written"]) > 20).then_some(()));
        // Marsaglia's xorshift: any moment, another in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_millis(random % 600));
        let written = number(&status(&folder)["records"]["written"]);
        let killed = clock();
        daemon.signal("KILL");
        until("the daemon is gone", || daemon.is_gone().then_some(()));

        // As the crash left them.
        inventory(&folder, &["tunnels"]);
        let rows = inside(&folder, &["query", "linewarden-log", "--kind", "all", "--format", "ndjson", "--quiet"]);
        let rows = records(&rows.expect(0).out);
        let of_run = &rows[lines..];
        assert!(of_run.len() as u64 >= written, "{context}: {written} were written, {} are there", of_run.len());
        let seqs: Vec<_> = of_run.iter().map(|row| number(&row["seq"])).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{context}");
        let latest = of_run.iter().map(|row| text(&row["time"]).parse::<Timestamp>().unwrap()).max().unwrap();
        let lost = killed.since(latest);
        assert!(lost <= SYNC + LAG, "{context}: the log ends {lost:?} before the sensor was killed");
        (lines, worst, total) = (rows.len(), worst.max(lost), total + of_run.len());
    }
    load.signal("STOP");
    let daemon = start(&namespace, &folder);
    assert_agrees(&folder);
    let tunnels = inventory(&folder, &["tunnels"]);
    let labels: BTreeSet<_> = tunnels.iter().map(|row| text(&row["label"])).collect();
    assert_eq!(labels.len(), 2, "{labels:?}");
    end(daemon);
    assert_agrees(&folder);
    let done = inside(&folder, &["verify-log", "linewarden-log"]).expect(0);
    assert_says(&done.out, &["result     whole"]);
    println!(
        "killed {kills} times: {total} records, {} tunnels; the log ended {worst:?} before the kill at most",
        tunnels.len()
    );
}

/// As a member of the sensor's group, who may write nothing.
fn as_member(folder: &TempDir, arguments: &[&str]) -> Done {
    // Where it was built others may not look.
    let program = folder.path().join("linewarden");
    if !program.exists() {
        fs::copy(LINEWARDEN, &program).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "./linewarden"]).args(arguments);
    done(command.current_dir(folder.path()).stdin(Stdio::null()))
}

#[test]
fn it_is_read_while_it_is_written_by_who_may_write_nothing() {
    let namespace = Namespace::new("inventory");
    let folder = house(&format!("{SETTINGS}[state]\ndir = \"s\"\n"));
    let state = folder.path().join("s");
    fs::create_dir(&state).unwrap();
    chown(&state, None, Some(65_534)).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let load = Load::new(&namespace);
    let mut daemon = start(&namespace, &folder);
    let arguments = ["inventory", "--state", "s", "--format", "ndjson"];
    let seen = until("tunnels are in it", || {
        let rows = records(&as_member(&folder, &arguments).expect(0).out);
        (rows.len() > 20).then_some(rows)
    });
    assert!(seen.iter().all(|row| row["protocol"] == "wireguard" && row["confidence"] == "certain"), "{seen:?}");
    // The daemon says so behind it.
    let inventory = until("the daemon says so, too", || {
        let inventory = status(&folder)["inventory"].clone();
        (number(&inventory["tunnels"]) > 20).then_some(inventory)
    });
    assert!(inventory["error"].is_null(), "{inventory}");

    // Who holds it up is told of, once, and made up for; nobody else waits.
    let holder = rusqlite::Connection::open(state.join("inventory.sqlite")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    daemon.says("the inventory cannot be kept now");
    let shown = inside(&folder, &["ctl", "--socket", "c.sock", "status"]).expect(0).out;
    assert_says(&shown, &["CANNOT BE KEPT NOW: database is locked"]);
    let written = number(&status(&folder)["records"]["written"]);
    until("records go on", || (number(&status(&folder)["records"]["written"]) > written).then_some(()));
    holder.execute_batch("COMMIT").unwrap();
    daemon.says("the inventory is kept again");
    assert!(status(&folder)["inventory"]["error"].is_null());
    drop((load, holder));

    // What a crash leaves is read as well, and what an end leaves.
    daemon.signal("KILL");
    until("the daemon is gone", || daemon.is_gone().then_some(()));
    assert!(state.join("inventory.sqlite-wal").exists());
    assert!(records(&as_member(&folder, &arguments).expect(0).out).len() > 20);
    end(start(&namespace, &folder));
    assert!(!state.join("inventory.sqlite-wal").exists());
    let all = records(&as_member(&folder, &arguments).expect(0).out);

    // What is asked for.
    let asked = |more: &[&str]| records(&as_member(&folder, &[&arguments[..], more].concat()).expect(0).out);
    let approved = asked(&["--label", "authorized_leased_line"]);
    assert!(!approved.is_empty() && approved.len() < all.len());
    assert_eq!(asked(&["--approval", "partner"]), approved);
    assert_eq!(asked(&["--protocol", "wireguard"]), all);
    assert!(asked(&["--protocol", "openvpn"]).is_empty());
    let at = text(&all[0]["a"]);
    assert_eq!(asked(&["--peer", &at]), all[..1]);
    assert_eq!(asked(&["--peer", "198.51.0.0/16"]), all);
    let plain = asked(&["days", "--protocol", "none"]);
    assert!(plain.iter().all(|row| row["approval"] == "line" && row["a"].is_null()), "{plain:?}");
    let csv = as_member(&folder, &["inventory", "approvals", "--state", "s", "--format", "csv"]).expect(0).out;
    assert!(csv.starts_with("approval,owner,reference,first_used,last_used,flows,"), "{csv}");
    assert!(csv.lines().any(|line| line.starts_with("partner,network team,CHG-partner,20")), "{csv}");
    let table = as_member(&folder, &["inventory", "circuits", "--state", "s"]).expect(0).out;
    assert_says(&table, &["interface", "wan0", "plain flows"]);

    // And what cannot be answered.
    let cases: [(&[&str], i32, &str); 5] = [
        (&["inventory", "--state", "approvals.d"], 64, "inventory.sqlite: cannot be read: No such file"),
        (&["inventory"], 64, "name its folder with --state"),
        (&["inventory", "approvals", "--peer", "198.51.100.1", "--state", "s"], 64, "--peer is for tunnels and days"),
        (&["inventory", "--protocol", "carrier-pigeon"], 64, "carrier-pigeon"),
        (&["inventory", "--state", "damaged"], 65, "inventory.sqlite: is no inventory that can be read"),
    ];
    let damaged = folder.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("inventory.sqlite"), "no database, whatever it is called").unwrap();
    for (arguments, code, says) in cases {
        assert_says(&inside(&folder, arguments).expect(code).err, &[says]);
    }
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    assert_says(&as_member(&folder, &arguments).expect(77).err, &["Permission denied"]);
}

#[test]
fn without_it_nothing_is_kept_and_a_damaged_one_is_made_anew() {
    let namespace = Namespace::new("anew");
    let folder = house(&format!("{SETTINGS}[inventory]\nenabled = false\n"));
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    let load = Load::new(&namespace);
    daemon.record("a tunnel", |record| record["verdict"] == "unapproved_vpn_tunnel");
    assert!(status(&folder)["inventory"].is_null());
    end(daemon);
    drop(load);
    let file = folder.path().join("linewarden-log/state/inventory.sqlite");
    assert!(!file.exists());

    // From then on it is kept, and holds what was logged before.
    fs::write(folder.path().join("s.toml"), SETTINGS).unwrap();
    end(start(&namespace, &folder));
    assert_agrees(&folder);
    assert!(!inventory(&folder, &[]).is_empty());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);

    fs::write(&file, vec![7; 40_000]).unwrap();
    let daemon = start(&namespace, &folder);
    assert!(daemon.said.iter().any(|line| line.contains("the inventory is made anew from the log")));
    assert_agrees(&folder);
    end(daemon);
    let aside = aside(&file);
    assert_eq!(aside.len(), 1, "{aside:?}");
}

fn aside(file: &Path) -> Vec<String> {
    let names = fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("inventory.sqlite.corrupt-"))
        .collect()
}
