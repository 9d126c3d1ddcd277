//! `linewarden run` as a user runs it: live on a veth in a network namespace that each test makes, driven by signals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::OwnedFrame;
use common::command::{
    Done, LINEWARDEN, approval, assert_adds_up, assert_says, assert_valid, capture, done, folder, of_kind, records,
    run, verdicts, where_nothing_is_installed,
};
use common::netns::{Daemon, Namespace, until};
use common::pcap::frames;
use serde_json::Value;

/// A real WireGuard session, its handshake first.
fn wireguard() -> Vec<OwnedFrame> {
    frames("wireguard-port-51820")
}

/// The capture's one flow, from its second packet on.
fn is_the_tunnel(record: &Value) -> bool {
    record["dst_port"] == 51_820 && record["confidence"] == "certain"
}

/// SIGTERM, and what must hold after it; gives the records.
#[track_caller]
fn stop(mut daemon: Daemon) -> Vec<Value> {
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    let records = daemon.records();
    assert_valid(&records);
    let summary = daemon.summary();
    assert_eq!(summary["stopped"], true, "{summary}");
    assert_eq!(summary["records_lost"], 0, "{summary}");
    assert_adds_up(&summary, &records);
    assert_no_gap(&records);
    records
}

/// Sequence numbers are those of all workers, which take turns as they come.
#[track_caller]
fn assert_no_gap(records: &[Value]) {
    let mut numbers: Vec<_> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
}

#[test]
fn built_in_defaults_are_enough_and_say_where_the_records_go() {
    let namespace = Namespace::new("defaults");
    namespace.ip("address add 198.51.100.1/24 dev wan0");
    namespace.ip("route add default via 198.51.100.2 dev wan0");
    let folder = folder(&[]);
    let mut command = namespace.command(LINEWARDEN);
    command.arg("run").current_dir(folder.path());
    let mut daemon = Daemon::start(where_nothing_is_installed(&command), folder.path().join("linewarden-log"));
    let said = daemon.says("NO APPROVALS ARE IN FORCE");
    assert!(said.contains("there is no folder config/approvals.d nor /etc/linewarden/approvals.d"), "{said}");
    let said = daemon.says("capturing");
    assert!(said.contains("interfaces=wan0"), "{said}");
    assert!(said.contains("records=linewarden-log/linewarden.ndjson"), "{said}");
    let cores = std::thread::available_parallelism().unwrap();
    assert!(said.contains(&format!("workers={cores} ")), "one worker a core: {said}");

    let listed = done(namespace.command(LINEWARDEN).arg("interfaces")).expect(0).out;
    let wan = listed.lines().find(|line| line.split_whitespace().next() == Some("wan0")).unwrap();
    assert_says(wan, &["up", "Ethernet", "yes, the default", "198.51.100.1"]);

    namespace.sender("far0").send(&wireguard());
    let record = daemon.record("the tunnel", is_the_tunnel);
    assert_eq!(
        [&record["interface"], &record["verdict"], &record["reason"], &record["tunnel"]],
        ["wan0", "unapproved_vpn_tunnel", "no_approval", "wireguard"]
    );
    let records = stop(daemon);
    let end = &of_kind(records, "end")[0];
    assert_eq!([&end["fwd_packets"], &end["rev_packets"]], [38, 22]);
    assert_eq!(end["end_reason"], "forced_end");
}

#[test]
fn folders_of_an_installation_are_found() {
    let namespace = Namespace::new("installed");
    let approvals = approval("vpn", "installed", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]");
    let here = approval("vpn", "here", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]");
    let folder = folder(&[("etc/a.toml", &approvals), ("log/none", ""), ("here/config/approvals.d/a.toml", &here)]);
    // As after installation: /etc/linewarden/approvals.d and /var/log/linewarden are there.
    let script = "mkdir -p /etc/linewarden /var/log/linewarden
        cp -r \"$0/etc\" /etc/linewarden/approvals.d
        mount --bind \"$0/log\" /var/log/linewarden
        exec \"$@\" run --interface wan0";
    for (working_folder, approvals) in [("log", "/etc/linewarden/approvals.d"), ("here", "config/approvals.d")] {
        let mut command = namespace.command("sh");
        command.args(["-ec", script]).arg(folder.path()).arg(LINEWARDEN);
        command.current_dir(folder.path().join(working_folder));
        let mut daemon = Daemon::start(where_nothing_is_installed(&command), folder.path().join("log"));
        let said = daemon.says("approvals in force");
        assert!(said.contains("approvals=1") && said.ends_with(&format!("folder={approvals}")), "{said}");
        let said = daemon.says("capturing");
        assert!(said.contains("records=/var/log/linewarden/linewarden.ndjson"), "{said}");
        stop(daemon);
    }
}

#[test]
fn live_and_replayed_the_answer_is_the_same() {
    let namespace = Namespace::new("same");
    let names = ["wireguard-port-51820", "openvpn-tcp-1194", "esp-ip", "gre-ip", "esp-udp-ipv6", "benign-dnsmasq-dns"];
    let folder = folder(&[("approvals.d/none", ""), ("two.toml", "[capture]\nworkers = 2\n")]);
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--config", "two.toml"];
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    daemon.says("capturing");
    let mut sender = namespace.sender("far0");
    let mut replayed = Vec::new();
    for name in names {
        sender.send(&frames(name));
        let one = run([
            "replay".as_ref(),
            "--quiet".as_ref(),
            "--approvals".as_ref(),
            folder.path().join("approvals.d").as_os_str(),
            capture(name).as_os_str(),
        ]);
        replayed.extend(verdicts(one.expect(0).records()).into_values().map(|verdict| verdict.to_string()));
    }
    let mut live: Vec<_> = verdicts(stop(daemon)).into_values().map(|verdict| verdict.to_string()).collect();
    live.sort();
    replayed.sort();
    assert_eq!(live, replayed);
}

#[test]
fn a_reload_judges_open_flows_again_and_a_bad_file_changes_nothing() {
    let namespace = Namespace::new("reload");
    let peer = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    let folder = folder(&[("approvals.d/partner.toml", &approval("vpn", "first", peer))]);
    let file = folder.path().join("approvals.d/partner.toml");
    let mut daemon = namespace.daemon(folder.path(), &["--interface", "wan0", "--approvals", "approvals.d"]);
    let said = daemon.says("approvals in force");
    let first_revision = revision(&folder);
    assert!(said.contains(&first_revision), "{said}");
    daemon.says("capturing");
    let session = wireguard();
    let mut sender = namespace.sender("far0");
    sender.send(&session[..20]);
    let before = daemon.record("the tunnel", is_the_tunnel);
    assert_eq!(
        [&before["verdict"], &before["approval"]["id"], &before["policy_revision"]],
        ["authorized_leased_line", "first", &*first_revision]
    );

    fs::write(&file, approval("vpn", "broken", "valid_until = \"soon\"\npeers = [\"198.51.100.2\"]")).unwrap();
    daemon.signal("HUP");
    let said = daemon.says("partner.toml:6:15");
    assert!(said.contains("ERROR") && said.contains("\"soon\"") && said.contains("write a date such as"), "{said}");
    let said = daemon.says("approvals NOT reloaded");
    assert!(said.contains(&first_revision) && said.contains("the old ones stay in force"), "{said}");
    // A flow that opens now is still judged by the old ones.
    sender.send(&frames("wireguard-odd-port"));
    let other =
        daemon.record("another tunnel", |record| record["dst_port"] != 51_820 && record["confidence"] == "certain");
    assert_eq!([&other["approval"]["id"], &other["policy_revision"]], ["first", &*first_revision]);
    assert_eq!(other["verdict"], "authorized_leased_line");

    fs::write(&file, approval("vpn", "second", &format!("{peer}\ntunnels = [\"openvpn\"]"))).unwrap();
    let second_revision = revision(&folder);
    assert_ne!(first_revision, second_revision);
    daemon.signal("HUP");
    let said = daemon.says("approvals reloaded");
    assert!(said.contains(&second_revision), "{said}");
    for flow in [&before, &other] {
        let update = daemon.record("the flow judged again", |record| {
            record["flow_id"] == flow["flow_id"] && record["policy_revision"] == *second_revision
        });
        assert_eq!(
            [&update["kind"], &update["verdict"], &update["reason"], &update["approval"]["id"]],
            ["update", "unapproved_vpn_tunnel", "protocol_not_approved", "second"]
        );
    }

    sender.send(&session[20..]);
    let records = stop(daemon);
    let of_flow: Vec<_> = records.iter().filter(|record| record["flow_id"] == before["flow_id"]).collect();
    let kinds: Vec<_> = of_flow.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "update", "update", "end"], "certain and the reload change the verdict, nothing else");
    let end = of_flow.last().unwrap();
    assert_eq!([&end["fwd_packets"], &end["rev_packets"]], [38, 22], "no packet and no flow is lost over reloads");
}

/// Keys that come with a reload are asked of the handshakes that follow it: none is kept.
#[test]
fn keys_that_are_reloaded_judge_the_next_handshake() {
    let namespace = Namespace::new("keys");
    let peer = |identity: &str| {
        approval("vpn", "a", &format!("valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]\n{identity}"))
    };
    let folder = folder(&[("approvals.d/partner.toml", &peer("")), ("approvals.d/open.key", "")]);
    let file = folder.path().join("approvals.d/partner.toml");
    let mut daemon = namespace.daemon(folder.path(), &["--interface", "wan0", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    let handshake = &frames("wireguard-pinned")[..2];
    let mut sender = namespace.sender("far0");
    let reason = |daemon: &Daemon, reason: &str| daemon.record(reason, |record| record["reason"] == reason);
    sender.send(handshake);
    reason(&daemon, "approved");

    let secret = folder.path().join("approvals.d/open.key");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, peer("identity.openvpn_tls_auth = [\"open.key\"]")).unwrap();
    daemon.signal("HUP");
    let said = daemon.says("open.key is open to other users (mode 0644)");
    assert!(said.contains("ERROR") && said.contains("partner.toml:8:"), "{said}");
    daemon.says("approvals NOT reloaded");

    let stranger = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    fs::write(&file, peer(&format!("identity.wireguard_public_keys = [\"{stranger}\"]"))).unwrap();
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    let update = reason(&daemon, "identity_unverified");
    assert_eq!([&update["verdict"], &update["approval"]["identity"]], ["authorized_leased_line", "unverified"]);
    sender.send(handshake);
    let update = reason(&daemon, "identity_mismatch");
    assert_eq!([&update["verdict"], &update["approval"]["identity"]], ["unapproved_vpn_tunnel", "mismatched"]);

    let server = fs::read_to_string(capture("wireguard-pinned").with_file_name("keys/server.pub")).unwrap();
    fs::write(&file, peer(&format!("identity.wireguard_public_keys = [\"{}\"]", server.trim()))).unwrap();
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    let is_unverified = |record: &&Value| record["reason"] == "identity_unverified";
    until("unverified again", || (daemon.records().iter().filter(is_unverified).count() == 2).then_some(()));
    sender.send(handshake);
    let update = reason(&daemon, "approved_by_key");
    assert_eq!([&update["verdict"], &update["approval"]["identity"]], ["authorized_leased_line", "verified"]);

    // A key that goes takes its approval along, at once.
    fs::write(
        &file,
        peer(&format!("identity.wireguard_public_keys = [\"{stranger}\"]")).replace("198.51.100.2", "203.0.113.9"),
    )
    .unwrap();
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    reason(&daemon, "no_approval");
    let records = stop(daemon);
    let steps: Vec<_> = records.iter().map(|record| record["reason"].as_str().unwrap()).collect();
    let expected = [
        "low_confidence",
        "approved",
        "identity_unverified",
        "identity_mismatch",
        "identity_unverified",
        "approved_by_key",
        "no_approval",
        "no_approval",
    ];
    assert_eq!(steps, expected);
}

/// What `check-config` calls the approvals of a folder.
fn revision(folder: &tempfile::TempDir) -> String {
    let approvals = folder.path().join("approvals.d");
    let done = run(["check-config".as_ref(), "--approvals".as_ref(), approvals.as_os_str()]).expect(0);
    done.out.split_once("revision ").unwrap().1.lines().next().unwrap().to_owned()
}

#[test]
fn the_log_is_opened_anew_after_rotation_by_rename() {
    let namespace = Namespace::new("rotate");
    let folder = folder(&[("approvals.d/none", "")]);
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--records", "linewarden-log"];
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    daemon.says("capturing");
    let log = folder.path().join("linewarden-log/linewarden.ndjson");
    let mut sender = namespace.sender("far0");
    let mut old = Vec::new();
    let names = ["wireguard-port-51820", "wireguard-odd-port", "wireguard-port-443"];
    for (name, signal) in names.into_iter().zip(["USR1", "HUP", ""]) {
        sender.send(&frames(name));
        daemon.record(name, |record| record["confidence"] == "certain");
        if !signal.is_empty() {
            let rotated = log.with_extension(signal);
            fs::rename(&log, &rotated).unwrap();
            daemon.signal(signal);
            until("a new log", || log.exists().then_some(()));
            old.push(rotated);
        }
    }
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
    let mut all = Vec::new();
    for path in old.iter().chain([&log]) {
        let records = records(&fs::read_to_string(path).unwrap());
        assert!(records.iter().any(|record| record["kind"] == "start"), "{}: its flow began there", path.display());
        all.extend(records);
    }
    assert_no_gap(&all);
    assert_adds_up(&daemon.summary(), &all);
}

/// `kill -9` while packets come in: whatever was in the log stays in it, it verifies, and the next run goes on.
#[test]
fn killed_at_any_moment_the_log_verifies_and_goes_on() {
    let namespace = Namespace::new("killed");
    let settings = "[records]\nsync_interval = \"10ms\"\nsign_interval = \"1s\"\n";
    let folder = folder(&[("approvals.d/none", ""), ("c.toml", settings)]);
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--config", "c.toml"];
    let arguments = [arguments.as_slice(), &["--records", "linewarden-log"]].concat();
    let verify = || {
        let done = run(["verify-log".as_ref(), "--json".as_ref(), folder.path().join("linewarden-log").as_os_str()]);
        let report: Value = serde_json::from_str(&done.expect(0).out).unwrap();
        assert_eq!(report["is_whole"], true, "{report}");
        report["logs"][0].clone()
    };
    let names = ["wireguard-port-51820", "openvpn-tcp-1194", "benign-dnsmasq-dns", "wireguard-odd-port"];
    let load: Vec<_> = names.iter().flat_map(|name| frames(name)).collect();
    let (mut sealed, mut before) = (0, 0);
    for round in 0..8 {
        let mut daemon = namespace.daemon(folder.path(), &arguments);
        daemon.says("capturing");
        // Any number of packets, the same in every run of this test.
        let count = 1 + (round * 7919 + 13) % load.len();
        namespace.sender("far0").send(&load[..count]);
        let seen = until("a record of this run", || Some(daemon.records()).filter(|seen| seen.len() > before));
        daemon.signal("KILL");
        // Waits for its end.
        drop(daemon);
        // As the crash left it: nothing that is sealed is harmed.
        verify();
        let text = fs::read_to_string(folder.path().join("linewarden-log/linewarden.ndjson")).unwrap();
        let whole = records(text.rsplit_once('\n').unwrap().0);
        assert!(whole.starts_with(&seen), "what was seen in the log stays in it");
        before = whole.len();
        let report = verify();
        assert!(report["seals"].as_u64().unwrap() > sealed, "the log goes on: {report}");
        sealed = report["seals"].as_u64().unwrap();
    }
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    daemon.says("capturing");
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    let report = verify();
    assert_eq!(report["breaks"].as_array().unwrap().len(), 8, "a break for each kill: {report}");
    assert_eq!(report["unsealed_octets"], 0, "{report}");
}

#[test]
fn an_interface_that_vanishes_does_not_end_it() {
    let namespace = Namespace::new("vanish");
    let folder = folder(&[("approvals.d/none", ""), ("one.toml", "[capture]\nworkers = 1\ninterfaces = [\"wan0\"]\n")]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "one.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    let session = wireguard();
    namespace.sender("far0").send(&session[..20]);
    let before = daemon.record("the tunnel", is_the_tunnel);
    namespace.unplug();
    daemon.says("interface is gone");
    namespace.plug_in();
    daemon.says("interface is back");
    namespace.sender("far0").send(&session[20..]);
    namespace.sender("far0").send(&frames("wireguard-odd-port"));
    daemon.record("what comes after", |record| record["dst_port"] != 51_820 && record["confidence"] == "certain");
    let ends = of_kind(stop(daemon), "end");
    let end = ends.iter().find(|end| end["flow_id"] == before["flow_id"]).unwrap();
    assert_eq!([&end["fwd_packets"], &end["rev_packets"]], [38, 22], "the flow goes on where it was");
}

#[test]
fn the_service_manager_hears_of_start_watchdog_and_stop() {
    let namespace = Namespace::new("notify");
    let folder = folder(&[("approvals.d/none", "")]);
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let hear = |wanted: &str| {
        let mut message = [0; 4096];
        loop {
            let len = socket.recv(&mut message).unwrap_or_else(|error| panic!("{wanted} was not heard: {error}"));
            let text = str::from_utf8(&message[..len]).unwrap();
            if text.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let mut command = namespace.command(LINEWARDEN);
    command.args(["run", "--interface", "wan0", "--approvals", "approvals.d"]).current_dir(folder.path());
    command.env("NOTIFY_SOCKET", folder.path().join("notify"));
    let mut daemon = Daemon::start(command, folder.path().join("linewarden-log"));
    hear("READY=1");
    daemon.says("capturing");
    hear("WATCHDOG=1");
    daemon.signal("HUP");
    hear("RELOADING=1");
    hear("READY=1");
    daemon.signal("INT");
    hear("STOPPING=1");
    assert_eq!(daemon.ends(), 0, "SIGINT ends it as SIGTERM does");
}

#[test]
fn what_keeps_it_from_starting_has_its_exit_code_and_its_remedy() {
    let namespace = Namespace::new("refuse");
    let broken = approval("vpn", "broken", "peers = [\"198.51.100.2\"]");
    let folder = folder(&[
        ("approvals.d/none", ""),
        ("broken.d/a.toml", &broken),
        ("unknown.toml", "[capture]\nsnap_lenght = 256\n"),
        ("filter.toml", "[capture]\nfilter = \"udp\"\n"),
        ("file", ""),
        ("open.toml", "[state]\ndir = \"state\"\n"),
        ("state/sensor.key", ""),
    ]);
    fs::set_permissions(folder.path().join("state/sensor.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = |arguments: &[&str]| -> Done {
        let mut command = namespace.command("timeout");
        command.args(["--signal=KILL", "60", LINEWARDEN, "run"]).args(arguments).current_dir(folder.path());
        done(&mut command)
    };
    let cases: [(&[&str], i32, &[&str]); 10] = [
        (&["--interface", "nix0"], 69, &["no interface is called `nix0`", "`linewarden interfaces` lists them"]),
        (&[], 69, &["there is no default route", "capture.interfaces"]),
        (&["--config", "none.toml"], 78, &["none.toml: cannot be read"]),
        (&["--config", "unknown.toml"], 78, &["unknown.toml:2:1: capture.snap_lenght", "did you mean `snap_length`?"]),
        (&["--interface", "wan0", "--config", "filter.toml"], 78, &["capture.filter", "tcpdump -ddd"]),
        (&["--interface", "wan0", "--approvals", "broken.d"], 78, &["broken.d/a.toml:1:1: valid_until is missing"]),
        (&["--interface", "wan0", "--approvals", "none.d"], 78, &["none.d: the folder of approvals cannot be read"]),
        (
            &["--interface", "wan0", "--approvals", "approvals.d", "--records", "log", "--config", "open.toml"],
            78,
            &["state/sensor.key is open to other users (mode 0644)", "chmod 600"],
        ),
        (
            &["--interface", "wan0", "--records", "file"],
            1,
            &["file/linewarden.ndjson: records cannot be written there"],
        ),
        (&["--interface", "wan0", "--interface", "wan0"], 64, &["--interface: name each interface once"]),
    ];
    for (arguments, code, texts) in cases {
        let done = refused(arguments).expect(code);
        assert_says(&done.err, texts);
    }
}

#[test]
fn without_the_capability_it_says_which_one_and_replay_needs_none() {
    let namespace = Namespace::new("capability");
    let folder = folder(&[("approvals.d/none", "")]);
    let bare = |arguments: &[&str]| -> Done {
        let mut command = namespace.command("timeout");
        command.args(["--signal=KILL", "60", "setpriv", "--bounding-set=-all", "--inh-caps=-all", LINEWARDEN]);
        done(command.args(arguments).current_dir(folder.path()))
    };
    let done = bare(&["run", "--interface", "wan0"]).expect(77);
    assert!(done.err.contains("CAP_NET_RAW") && done.err.contains("`linewarden replay` needs none"), "{}", done.err);
    assert!(!folder.path().join("linewarden-log").exists(), "nothing is made before it is known that it can start");
    let path = capture("wireguard-port-51820");
    let done = bare(&["replay", "--approvals", "approvals.d", path.to_str().unwrap()]).expect(0);
    assert_eq!(done.ends()[0]["tunnel"], "wireguard");
    bare(&["explain", "--approvals", "approvals.d", "--flow", "198.51.100.2", path.to_str().unwrap()]).expect(0);
    bare(&["check-config", "--approvals", "approvals.d"]).expect(0);
    let done = bare(&["interfaces"]).expect(0);
    assert!(done.out.contains("may not capture") && done.out.contains("CAP_NET_RAW"), "{}", done.out);
    assert!(done.out.lines().any(|line| line.trim().starts_with("wan0")), "{}", done.out);
}
