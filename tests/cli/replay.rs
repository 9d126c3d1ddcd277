//! `linewarden replay`: its records, where they go, the summary, exit codes, and readers that go away.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::Duration;

use linewarden::time::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::command::{
    LINEWARDEN, approval, assert_adds_up, assert_says, assert_valid, capture, closed_pipe, done, done_with_stdout,
    folder, linewarden, of_kind, plain, records, replay, replay_octets, run, verdicts, where_nothing_is_installed,
    without,
};
use crate::common::pcap::{ETHERNET, frames, insert, many_flows, pcap};
use crate::common::{OwnedFrame, capture_folders, name, read};

/// Every capture of real software, through the binary: the golden records, and nothing lost.
#[test]
fn the_binary_gives_the_records_of_every_capture() {
    for folder in capture_folders() {
        let golden = records(&fs::read_to_string(folder.join("expected.ndjson")).unwrap());
        let totals = tempfile::NamedTempFile::new().unwrap();
        let totals_option = format!("--summary-json={}", totals.path().display());
        let done = replay([folder.join("input.pcap")], &[&totals_option]).expect(0);
        let found = done.records();
        let of_edge = ["seq", "policy_revision"];
        let expected: Vec<_> = golden[1..].iter().map(|record| without(record.clone(), &of_edge)).collect();
        let ends: Vec<_> = of_kind(found.clone(), "end").into_iter().map(|record| without(record, &of_edge)).collect();
        assert_eq!(ends, expected, "{}", name(&folder));
        assert_valid(&found);
        let summary: Value = serde_json::from_str(&fs::read_to_string(totals.path()).unwrap()).unwrap();
        assert_adds_up(&summary, &found);
        assert_eq!([&summary["packets"], &summary["flows"]], [&golden[0]["packets"], &golden[0]["flows"]]);
        let numbers: Vec<_> = found.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn records_have_the_names_that_scripts_rely_on() {
    let peers = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    let folder = folder(&[("approvals.d/a.toml", &approval("vpn", "partner", peers))]);
    let approvals = format!("--approvals={}", folder.path().join("approvals.d").display());
    let done = run(["replay", "--quiet", &approvals, capture("wireguard-port-51820").to_str().unwrap()]).expect(0);
    let records = done.records();
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "update", "end"]);
    let end = &records[2];
    let expected = [
        ("src_ip", Value::from("198.51.100.1")),
        ("src_port", 51_820.into()),
        ("dst_ip", "198.51.100.2".into()),
        ("dst_port", 51_820.into()),
        ("proto", 17.into()),
        ("flow_id", "84f720bee2edfd57".into()),
        ("community_id", "1:4gKNXtIsiSFWbFP92JiVliWq2LE=".into()),
        ("verdict", "authorized_leased_line".into()),
        ("reason", "approved".into()),
        ("confidence", "certain".into()),
        ("tunnel", "wireguard".into()),
        ("midstream", false.into()),
        ("version", 1.into()),
        ("interface", "input.pcap".into()),
    ];
    for (field, value) in expected {
        assert_eq!(end[field], value, "{field}");
    }
    assert_eq!(
        [&end["evidence"][0]["code"], &end["evidence"][0]["packet"]],
        [&Value::from("wireguard.initiation"), &1.into()]
    );
    assert_eq!(
        [
            &end["approval"]["id"],
            &end["approval"]["owner"],
            &end["approval"]["reference"],
            &end["approval"]["valid_until"]
        ],
        ["partner", "network team", "CHG-partner", "2100-01-01T00:00:00.000000000Z"]
    );
    let checked = run(["check-config", &approvals]).expect(0);
    assert!(checked.out.contains(end["policy_revision"].as_str().unwrap()), "{}", checked.out);

    let plain = replay([capture("benign-dnsmasq-dns")], &[]).expect(0).ends();
    let dns = &plain[0];
    assert_eq!([&dns["tunnel"], &dns["confidence"], &dns["approval"]], [&Value::Null; 3]);
    assert_eq!([&dns["verdict"], &dns["reason"]], ["other", "not_a_tunnel"]);
    let esp = &replay([capture("esp-ip")], &[]).expect(0).ends()[0];
    assert_eq!([&esp["src_port"], &esp["dst_port"], &esp["proto"]], [&Value::Null, &Value::Null, &50.into()]);
}

/// The originator is `src`, also where its answerer was seen first.
#[test]
fn source_is_the_originator_where_it_is_known() {
    let mut reversed = frames("openvpn-tcp-1194");
    reversed.remove(0);
    assert_eq!(reversed[0].data[34..36], 1194_u16.to_be_bytes(), "the server's SYN ACK comes first now");
    let end = &replay_octets(&pcap(ETHERNET, &reversed), &[]).expect(0).ends()[0];
    assert_eq!(
        [&end["src_ip"], &end["dst_ip"], &end["dst_port"]],
        [&Value::from("198.51.100.1"), &"198.51.100.2".into(), &1194.into()]
    );
    let directions =
        |more: &[&str]| replay([capture("wireguard-port-51820")], more).expect(0).ends()[0]["direction"].clone();
    assert_eq!(directions(&[]), "initiator");
    assert_eq!(directions(&["--home-net", "198.51.100.1/32"]), "outbound");
    assert_eq!(directions(&["--home-net", "198.51.100.2/32"]), "inbound");
    assert_eq!(directions(&["--home-net", "198.51.100.0/24"]), "internal");
    assert_eq!(directions(&["--home-net", "192.0.2.0/24"]), "external");
    let unknown = &replay([capture("wireguard-midstream")], &[]).expect(0).ends()[0];
    assert_eq!([&unknown["direction"], &unknown["midstream"]], [&Value::from("unknown"), &true.into()]);
}

#[test]
fn updates_come_with_verdicts_and_intervals_and_long_flows_continue() {
    let config = |text: &str| {
        let folder = folder(&[("a.toml", text), ("none.d/none", "")]);
        let (config, approvals) = (folder.path().join("a.toml"), folder.path().join("none.d"));
        let done = run([
            OsStr::new("replay"),
            "--quiet".as_ref(),
            "--config".as_ref(),
            config.as_ref(),
            "--approvals".as_ref(),
            approvals.as_ref(),
            capture("wireguard-idle-keepalive").as_ref(),
        ]);
        done.expect(0).records()
    };
    let start_and_end = of_kind(config(""), "end");
    let seconds = |record: &Value, field: &str| -> f64 {
        let text = record[field].as_str().unwrap();
        let mut parts = text[11..29].split(':').map(|part| part.parse::<f64>().unwrap());
        (parts.next().unwrap() * 60.0 + parts.next().unwrap()) * 60.0 + parts.next().unwrap()
    };
    let lasted = seconds(&start_and_end[0], "end") - seconds(&start_and_end[0], "start");
    assert!(lasted > 30.0, "the capture is one of a long flow: {lasted}");

    let updates = of_kind(config("[records]\nupdate_interval = \"10s\"\n"), "update");
    let verdicts_only = of_kind(config("[records]\nupdate_interval = \"0s\"\n"), "update");
    assert_eq!(verdicts_only.len(), 1, "possible, then certain");
    let by_interval = updates.len() - verdicts_only.len();
    assert!(
        by_interval >= 1 && u32::try_from(by_interval).map(f64::from).unwrap() <= lasted / 10.0,
        "{by_interval} in {lasted} seconds"
    );

    let parts = config("[flow]\nactive_timeout = \"15s\"\n");
    let (starts, ends) = (of_kind(parts.clone(), "start"), of_kind(parts, "end"));
    assert!(starts.len() > 1 && starts.len() == ends.len());
    for (start, before) in starts.iter().skip(1).zip(&ends) {
        assert_eq!([&start["continues"], &before["end_reason"]], [&before["flow_id"], &"active_timeout".into()]);
        assert_eq!([&start["tunnel"], &start["confidence"]], ["wireguard", "certain"], "what was found is kept");
    }
    assert_eq!(starts[0]["continues"], Value::Null);
    let idle = config("[flow]\nidle_timeout = \"1s\"\n");
    assert!(idle.iter().any(|record| record["end_reason"] == "idle_timeout"));
}

#[test]
fn workers_change_no_verdict() {
    let mut files: Vec<_> = capture_folders().iter().map(|folder| folder.join("input.pcap")).collect();
    files.sort_by_key(|file| read(file)[0].at);
    let one = verdicts(replay(&files, &[]).expect(0).records());
    assert!(one.len() > 100, "{}", one.len());
    for workers in ["2", "4"] {
        let found = verdicts(replay(&files, &["--workers", workers]).expect(0).records());
        assert_eq!(found, one, "{workers} workers");
    }
}

#[test]
fn records_go_to_a_file_if_asked() {
    let folder = folder(&[]);
    let path = folder.path().join("out.ndjson");
    let out = format!("--out={}", path.display());
    let done = replay([capture("wireguard-port-51820")], &[&out]).expect(0);
    assert_eq!(done.out, "");
    let expected = replay([capture("wireguard-port-51820")], &[]).out;
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    replay([capture("wireguard-port-51820")], &[&out, "--format", "table"]).expect(0);
    assert!(fs::read_to_string(&path).unwrap().contains("unapproved_vpn_tunnel"));

    for target in ["/proc/none/out", "/dev/full", "/"] {
        let done = replay([capture("wireguard-port-51820")], &[&format!("--out={target}")]).expect(1);
        assert!(done.err.contains(&format!("{target}: cannot be written")), "{}", done.err);
        let done = replay([capture("wireguard-port-51820")], &[&format!("--summary-json={target}")]).expect(1);
        assert!(done.err.contains(&format!("{target}: cannot be written")), "{}", done.err);
    }
    let mut full = linewarden(plain(&folder).into_iter().chain([capture("wireguard-port-51820").into()]));
    let done = done_with_stdout(&mut full, fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).expect(1);
    assert!(done.err.contains("standard output cannot be written"), "{}", done.err);
}

#[test]
fn a_capture_is_never_written_over() {
    let folder = folder(&[]);
    let path = folder.path().join("input.pcap");
    fs::copy(capture("wireguard-port-51820"), &path).unwrap();
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    for option in ["--out", "--summary-json"] {
        for target in [&path, &link] {
            let done = replay([&path], &[option, target.to_str().unwrap()]).expect(64);
            assert!(done.err.contains("is to be read, and would be overwritten"), "{}", done.err);
        }
    }
    assert_eq!(fs::read(&path).unwrap(), fs::read(capture("wireguard-port-51820")).unwrap());
    // Nor records by their summary, whether they are there already or not.
    let (records, detour) = (folder.path().join("records"), folder.path().join("./records"));
    for _ in 0..2 {
        let options = ["--out", records.to_str().unwrap(), "--summary-json", detour.to_str().unwrap()];
        let done = replay([&path], &options).expect(64);
        assert!(done.err.contains("the summary would overwrite the records"), "{}", done.err);
        assert!(fs::read(&records).unwrap_or_default().is_empty());
        fs::write(&records, "").unwrap();
    }
    replay([&path], &["--out", "/dev/null", "--summary-json", "/dev/null"]).expect(0);
}

#[test]
fn a_table_is_for_people() {
    let table = replay([capture("wireguard-port-51820")], &["--format", "table"]).expect(0).out;
    let [header, row] = table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    for column in ["start (UTC)", "source", "destination", "verdict", "reason", "tunnel", "packets", "octets"] {
        assert!(header.contains(column), "{column}: {header}");
    }
    for cell in [
        "2026-11-24 07:54:50",
        "udp 198.51.100.1:51820",
        "198.51.100.2:51820",
        "unapproved_vpn_tunnel",
        "no_approval",
        "wireguard certain",
        "38/22",
        "35480/3192",
        "84f720bee2edfd57",
    ] {
        assert!(row.contains(cell), "{cell}: {row}");
    }
    let dns = |more: &[&str]| replay([capture("benign-dnsmasq-dns")], more).expect(0).out;
    assert_eq!(dns(&["--format", "table"]), "", "flows that are nothing special are left out");
    assert_eq!(dns(&["--format", "table", "--other", "end"]).lines().count(), 1 + 21);
    let lines = |other: &str| dns(&["--other", other]).lines().count();
    assert_eq!([lines("all"), lines("end"), lines("none")], [42, 21, 0]);
}

/// Tunnels of two protocols, plain flows, and what cannot be decoded.
fn mixture(folder: &TempDir) -> Vec<OsString> {
    let frame = &frames("wireguard-port-51820")[0];
    let cut = |len: usize| OwnedFrame { data: frame.data[..len].to_vec(), ..frame.clone() };
    let arp = insert(frame, &0x0806_u16.to_be_bytes(), 14);
    let path = folder.path().join("odd.pcap");
    fs::write(&path, pcap(ETHERNET, &[cut(10), cut(20), cut(20), arp])).unwrap();
    let files = [capture("wireguard-port-51820"), capture("esp-udp"), capture("benign-dnsmasq-dns"), path];
    files.map(OsString::from).into()
}

#[test]
fn the_summary_says_what_came_and_what_became_of_it() {
    let folder = folder(&[]);
    let totals = folder.path().join("summary.json");
    let arguments = |more: &[&str]| -> Vec<OsString> {
        plain(&folder).into_iter().chain(more.iter().map(OsString::from)).chain(mixture(&folder)).collect()
    };
    let done = run(arguments(&["--summary-json", totals.to_str().unwrap()])).expect(0);
    let summary: Value = serde_json::from_str(&fs::read_to_string(&totals).unwrap()).unwrap();
    assert_adds_up(&summary, &done.records());
    assert_eq!(summary["undecodable"], serde_json::json!({"truncated_link": 1, "truncated_ip": 2, "not_ip": 1}));
    let number = |value: &Value| value.as_u64().unwrap();
    let undecodable = 4;
    let (packets, octets, flows) = (number(&summary["packets"]), number(&summary["octets"]), number(&summary["flows"]));
    let mut lines = vec![
        format!(
            "packets  {packets} ({octets} octets): {} classified, {undecodable} undecodable, 0 dropped by the kernel",
            packets - undecodable
        ),
        "undecodable  not_ip 1".to_owned(),
        "undecodable  truncated_ip 2".to_owned(),
        format!("flows    {flows} (0 open"),
        format!("records  {} written, 0 lost", done.out.lines().count()),
    ];
    let ends = done.ends();
    for label in ["authorized_leased_line", "unapproved_vpn_tunnel", "other"] {
        let count = ends.iter().filter(|end| end["verdict"] == label).count();
        lines.push(format!("{label:<24} {count} flows"));
    }
    for tunnel in ["wireguard", "ike", "esp"] {
        let all: Vec<_> = ends.iter().filter(|end| end["tunnel"] == tunnel).collect();
        let packets: u64 = all.iter().map(|end| number(&end["fwd_packets"]) + number(&end["rev_packets"])).sum();
        assert!(packets > 0, "{tunnel}");
        lines.push(format!(
            "tunnel   {tunnel:<10} {:<24} {} flows, {packets} packets",
            "unapproved_vpn_tunnel",
            all.len()
        ));
    }
    assert_says(&done.err, &lines);

    // What the settings leave out of the records is in the summary all the same.
    for other in ["end", "none"] {
        let done = run(arguments(&["--other", other, "--summary-json", totals.to_str().unwrap()])).expect(0);
        let fewer: Value = serde_json::from_str(&fs::read_to_string(&totals).unwrap()).unwrap();
        assert_adds_up(&fewer, &done.records());
        for field in ["packets", "octets", "flows", "verdicts", "tunnels", "undecodable"] {
            assert_eq!(fewer[field], summary[field], "{field}");
        }
    }
    let quiet = run(arguments(&["--quiet"])).expect(0);
    assert!(!quiet.err.contains("packets"), "{}", quiet.err);
}

/// Under a flood the oldest flows without evidence go first, tunnels last, and each is counted.
#[test]
fn a_memory_bound_takes_plain_flows_first() {
    let mut flood = frames("wireguard-port-51820");
    for (frame, milli) in flood.iter_mut().zip(0..) {
        frame.at = Timestamp::from_secs(1_699_999_999) + Duration::from_millis(milli);
    }
    flood.extend(many_flows(20_000));
    let folder = folder(&[("tight.toml", "[flow]\nmemory_octets = \"1MiB\"\n"), ("none.d/none", "")]);
    fs::write(folder.path().join("flood.pcap"), pcap(ETHERNET, &flood)).unwrap();
    let arguments = ["replay", "--config=tight.toml", "--approvals=none.d", "--summary-json=sums.json", "flood.pcap"];
    let done = done(linewarden(arguments).current_dir(folder.path())).expect(0);
    let summary: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("sums.json")).unwrap()).unwrap();
    let records = done.records();
    assert_adds_up(&summary, &records);
    let evicted = summary["evicted"]["plain"].as_u64().unwrap();
    assert!(evicted > 1000, "{summary}");
    assert_says(&done.err, &[format!("{evicted} evicted to keep the memory bound")]);
    let ends = of_kind(records, "end");
    let by_force: Vec<_> = ends.iter().filter(|end| end["end_reason"] == "lack_of_resources").collect();
    assert_eq!(by_force.len() as u64, evicted);
    assert!(by_force.iter().all(|end| end["tunnel"] == Value::Null), "a tunnel went before plain flows");
    assert_eq!([&by_force[0]["src_ip"], &by_force[1]["src_ip"]], ["10.0.0.0", "10.0.0.1"], "the oldest first");
}

#[test]
fn findings_are_an_exit_code_if_asked() {
    let file = capture("wireguard-port-51820");
    replay([&file], &[]).expect(0);
    let done = replay([&file], &["--fail-on", "unapproved"]).expect(2);
    assert!(done.err.contains("1 flows are tunnels that no approval covers"), "{}", done.err);
    assert_eq!(done.records().len(), 3, "the records come all the same");
    replay([capture("benign-dnsmasq-dns")], &["--fail-on", "unapproved"]).expect(0);
    replay([&file], &["--fail-on", "unapproved", "--format", "table"]).expect(2);
    replay([&file], &["--fail-on", "unapproved", "--other", "none"]).expect(2);
    let covering = folder(&[(
        "a.toml",
        &approval("vpn", "a", "valid_until = 2099-12-31\npeers = [\"198.51.100.0/24\"]\ntunnels = [\"wireguard\"]"),
    )]);
    let approvals = format!("--approvals={}", covering.path().display());
    let arguments = ["replay", "--quiet", "--fail-on", "unapproved", &approvals];
    let with = |name| arguments.map(OsString::from).into_iter().chain([capture(name).into()]);
    run(with("wireguard-port-51820")).expect(0);
    run(with("esp-ip")).expect(2);
}

#[test]
fn where_no_approvals_are_found_the_set_is_empty_and_that_is_said() {
    let folder = folder(&[("empty.d/none", "")]);
    let file = capture("wireguard-port-51820");
    let mut command = linewarden([OsStr::new("replay"), file.as_ref()]);
    let found = done(&mut where_nothing_is_installed(command.current_dir(folder.path()))).expect(0);
    let said = "NO APPROVALS ARE IN FORCE (there is no folder config/approvals.d nor /etc/linewarden/approvals.d)";
    assert!(found.err.contains(said), "{}", found.err);
    assert_eq!(found.ends()[0]["reason"], "no_approval");
    let mut command = linewarden([
        OsStr::new("replay"),
        "--quiet".as_ref(),
        "--approvals".as_ref(),
        "empty.d".as_ref(),
        file.as_ref(),
    ]);
    let found = done(command.current_dir(folder.path())).expect(0);
    assert!(found.err.contains("NO APPROVALS ARE IN FORCE (empty.d holds none)"), "said however quiet: {}", found.err);
    // The folder of the working folder is the first that is looked for.
    let peers = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    fs::create_dir_all(folder.path().join("config/approvals.d")).unwrap();
    fs::write(folder.path().join("config/approvals.d/a.toml"), approval("vpn", "a", peers)).unwrap();
    let mut command = linewarden([OsStr::new("replay"), file.as_ref()]);
    let found = done(command.current_dir(folder.path())).expect(0);
    assert_eq!(found.ends()[0]["approval"]["id"], "a");
    assert!(!found.err.contains("NO APPROVALS"), "{}", found.err);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = folder(&[]);
    let path = folder.path().join("many.pcap");
    fs::write(&path, pcap(ETHERNET, &many_flows(20_000))).unwrap();
    let script = "set -o pipefail; \"$@\" 2>\"$0\" | head -1";
    let said = folder.path().join("said");
    let found =
        done(Command::new("bash").args(["-c", script]).arg(&said).arg(LINEWARDEN).args(plain(&folder)).arg(&path));
    assert_eq!(found.expect(0).records().len(), 1);
    let said = fs::read_to_string(&said).unwrap();
    assert!(!said.contains("panicked") && !said.contains("cannot be written"), "{said}");

    // Who asks for more than the records gets it.
    let totals = folder.path().join("summary.json");
    let with = |more: &[&str]| {
        let files = [path.clone().into(), capture("wireguard-port-51820").into()];
        linewarden(plain(&folder).into_iter().chain(more.iter().map(OsString::from)).chain(files))
    };
    done_with_stdout(&mut with(&["--fail-on", "unapproved"]), closed_pipe()).expect(2);
    done_with_stdout(&mut with(&["--summary-json", totals.to_str().unwrap()]), closed_pipe()).expect(0);
    let summary: Value = serde_json::from_str(&fs::read_to_string(&totals).unwrap()).unwrap();
    assert_eq!(summary["packets"], 20_060);
}

#[test]
fn a_terminal_sees_progress_and_a_file_does_not() {
    let folder = folder(&[]);
    let path = folder.path().join("long.pcap");
    fs::write(&path, pcap(ETHERNET, &many_flows(50_000))).unwrap();
    let arguments = || plain(&folder).into_iter().chain(["--out".into(), "/dev/null".into(), path.clone().into()]);
    let quoted: Vec<_> = arguments().map(|argument| format!("'{}'", argument.to_str().unwrap())).collect();
    // `script` runs a command on a terminal of its own.
    let terminal = |more: &str| {
        let line = format!("stty cols 200; '{LINEWARDEN}' {} {more}", quoted.join(" "));
        done(Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null()))
    };
    let shown = terminal("").expect(0).out;
    assert!(shown.contains("long.pcap ") && shown.contains("MiB"), "{shown}");
    assert!(shown.contains("50000 classified"), "the summary comes behind it: {shown}");
    assert!(!terminal("--quiet").expect(0).out.contains("MiB"));
    let plainly = run(arguments()).expect(0);
    assert!(!plainly.err.contains("long.pcap"), "{}", plainly.err);
}
