//! What is read, what is said of what cannot be, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use linewarden::config::LogConfig;
use linewarden::daemon::clock;
use linewarden::sink::sealed::SealedLog;

use super::logs::{Form, day, lines, log, replayed};
use crate::common::command::{
    Done, LINEWARDEN, approval, assert_says, assert_valid, capture, closed_pipe, done, done_with_stdout, folder,
    linewarden, run, where_nothing_is_installed,
};

fn query(log: &Path, more: &[&str]) -> Done {
    run(["query", log.to_str().unwrap()].iter().chain(more))
}

#[test]
fn a_day_is_the_same_for_the_same_seed_and_every_record_is_valid() {
    let one = day(3000, 1);
    assert_eq!(one, day(3000, 1));
    assert_ne!(one, day(3000, 2));
    let records: Vec<serde_json::Value> = one.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_valid(&records);
    assert!(records.is_sorted_by_key(|record| record["time"].as_str().unwrap().to_owned()));
    let folder = folder(&[("log/linewarden.ndjson", "")]);
    let log = folder.path().join("log");
    let refused = run(["bench", "--records", "1", "--out", log.to_str().unwrap()]).expect(1);
    assert_says(&refused.err, &["linewarden.ndjson is there already: name an empty folder"]);
    run(["bench", "--records", "1"]).expect(64);
    run(["bench", "--records", "0", "--out", "x"]).expect(64);
    run(["bench", "--out", "x"]).expect(64);
}

#[test]
fn lines_that_are_no_records_are_told_with_file_and_line_and_hide_nothing_else() {
    let mut all: Vec<String> = lines()[..4000].to_vec();
    let sound = log(&all, &[]);
    let expected = query(sound.path(), &["--count"]).expect(0).out;
    all.insert(10, "garbage".to_owned());
    all.insert(2500, r#"{"kind":"end","flow_id":"0123456789abcdef"}"#.to_owned());
    all.insert(3900, all[3899][..200].to_owned() + "\0\0\0");
    all.insert(3950, String::new());
    for form in [Form::Archive, Form::ArchiveWithoutIndex, Form::Plain] {
        let folder = log(&all, &[(3000, form)]);
        let done = query(folder.path(), &["--count"]).expect(65);
        let name = if form == Form::Plain { "000000.ndjson" } else { "000000.ndjson.zst" };
        assert_says(
            &done.err,
            &[
                &format!("linewarden-20261127T000000Z-{name}:11: is no JSON: expected value (column 1)"),
                &format!("linewarden-20261127T000000Z-{name}:2501: is no flow record: missing field `time`"),
                "the answer is of the rest",
            ],
        );
        assert_eq!(done.out, expected, "{form:?}");
    }
    let garbage = vec!["garbage".to_owned(); 20];
    let done = query(log(&garbage, &[(10, Form::Archive)]).path(), &[]).expect(65);
    assert_says(&done.err, &["nothing of the log can be read: ", ".zst:1: is no JSON"]);
}

#[test]
fn damaged_archives_are_told_and_the_rest_is_read() {
    let all = &lines()[..6000];
    let cuts = [(3000, Form::Archive), (4000, Form::Archive)];
    let ask = |code, damage: &dyn Fn(&Path)| {
        let folder = log(all, &cuts);
        damage(&folder.path().join("linewarden-20261127T000000Z-000000.ndjson.zst"));
        query(folder.path(), &["--kind", "all", "--count"]).expect(code)
    };
    assert_eq!(ask(0, &|_| ()).out, "6000\n");
    // One frame is changed: the others are read.
    let done = ask(65, &|archive| {
        let mut octets = fs::read(archive).unwrap();
        let middle = octets.len() / 2;
        octets[middle] ^= 0xff;
        fs::write(archive, octets).unwrap();
    });
    assert_says(
        &done.err,
        &["000000.ndjson.zst: cannot be read from octet ", "1 lines or parts of the log cannot be read"],
    );
    let count: u32 = done.out.trim().parse().unwrap();
    assert!((3001..6000).contains(&count), "{count}");
    // Cut: the index is no longer of this archive.
    let done = ask(65, &|archive| {
        let octets = fs::read(archive).unwrap();
        fs::write(archive, &octets[..octets.len() - 100]).unwrap();
    });
    assert_says(
        &done.err,
        &["its index is of no use (the index is of another archive or version)", "cannot be read from octet "],
    );
    let count: u32 = done.out.trim().parse().unwrap();
    assert!((3001..6000).contains(&count), "{count}");
    // No archive at all.
    let done = ask(65, &|archive| fs::write(archive, "no archive").unwrap());
    assert_eq!(done.out, "3000\n");
    // An index that is no index.
    let done = ask(0, &|archive| {
        fs::write(archive.with_extension("").with_extension("index"), "{}\n").unwrap();
    });
    assert_says(&done.err, &["its index is of no use"]);
    assert_eq!(done.out, "6000\n");
}

#[test]
fn files_count_once_and_folders_are_found() {
    let folder = log(lines(), &[(3000, Form::Both), (3000, Form::Archive)]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let all = query(folder.path(), &["--kind", "all", "--count"]).expect(0).out;
    assert_eq!(all, format!("{}\n", lines().len()));
    let (archive, plain) = (path("linewarden-20261127T000000Z-000000.ndjson.zst"), path("linewarden.ndjson"));
    let whole = folder.path().to_str().unwrap();
    let arguments = ["query", "--kind", "all", "--count", &archive, &archive, &plain, whole];
    assert_eq!(run(arguments).expect(0).out, all);
    assert_eq!(run(["query", "--kind", "all", "--count", &archive]).expect(0).out, "3000\n");
    // Where nothing is named: the settings' folder, else linewarden-log.
    let config = folder.path().join("settings.toml");
    fs::write(&config, format!("[records]\ndir = \"{whole}\"\n")).unwrap();
    assert_eq!(run(["query", "--kind", "all", "--count", "--config", config.to_str().unwrap()]).expect(0).out, all);
    let above = crate::common::command::folder(&[("linewarden-log/linewarden.ndjson", &(lines()[0].clone() + "\n"))]);
    let mut command = linewarden(["query", "--kind", "all", "--count"]);
    assert_eq!(done(&mut where_nothing_is_installed(command.current_dir(above.path()))).expect(0).out, "1\n");
    let nowhere = crate::common::command::folder(&[]);
    let done = done(&mut where_nothing_is_installed(command.current_dir(nowhere.path()))).expect(64);
    assert_says(
        &done.err,
        &["there is no log in /var/log/linewarden nor in linewarden-log: name its folder or its files"],
    );
}

/// The service's log is its own, for a group to read: who is in that may not write there, and finds it all the same.
#[test]
fn who_may_read_the_services_log_and_not_write_it_gets_it() {
    let own = folder(&[("linewarden-log/linewarden.ndjson", "")]);
    let service = folder(&[("log/x", ""), ("state/x", "")]);
    let [log, state] = ["log", "state"].map(|name| service.path().join(name));
    let mut sealed = SealedLog::open(&log, "linewarden", &state, &LogConfig::default(), clock()).unwrap();
    sealed.write(&serde_json::from_str::<serde_json::Value>(&lines()[0]).unwrap());
    sealed.close(clock());
    let ask = |group: &str, question: &str| {
        let script = format!(
            "mount -t tmpfs none /var/log; mount -t tmpfs none /var/lib; mkdir -m 755 /var/lib/bin
            cp {LINEWARDEN} /var/lib/bin/linewarden
            mkdir -m 750 /var/log/linewarden /var/lib/linewarden; cd {}
            cp -r log/. /var/log/linewarden; cp -r state/. /var/lib/linewarden; cd {}
            chgrp -R 4711 /var/log/linewarden /var/lib/linewarden
            exec setpriv --reuid 65534 --regid {group} --clear-groups /var/lib/bin/linewarden {question}",
            service.path().display(),
            own.path().display(),
        );
        let mut command = Command::new("timeout");
        done(command.args(["--signal=KILL", "60", "unshare", "--mount", "sh", "-ec", &script]))
    };
    // Where it is asked from must be open to the reader, too.
    fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let count = "query --kind all --count --no-index";
    assert_eq!(ask("4711", count).expect(0).out, "1\n", "the one record of the service's log");
    // The state is the service's, too.
    let verified = ask("4711", "verify-log").expect(0);
    assert_says(&verified.out, &["1 records", "result     whole"]);
    // Who may not read it has a log of its own here; and without one, is told which log is meant.
    assert_eq!(ask("65534", count).expect(0).out, "0\n");
    fs::remove_file(own.path().join("linewarden-log/linewarden.ndjson")).unwrap();
    assert_says(&ask("65534", count).expect(65).err, &["/var/log/linewarden", "Permission denied"]);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = log(&lines()[..10], &[]);
    let empty = crate::common::command::folder(&[]);
    let cases: &[(&[&str], &str)] = &[
        (&["--from", "yesterday"], "--from yesterday: is no time; write a date (2026-11-28), a time"),
        (&["--to", "2026-13-01"], "--to 2026-13-01: is no time"),
        (
            &["--from", "2026-11-28", "--to", "2026-11-27"],
            "--from 2026-11-28 is not before --to 2026-11-27: nothing lies between them",
        ),
        (&["--last", "1 day"], "--last 1 day: is no length of time; write a number and s, m, h, d or w"),
        (&["--last", "1d", "--from", "now"], "cannot be used with"),
        (&["--label", "bad"], "[possible values: authorized_leased_line, unapproved_vpn_tunnel, other]"),
        (&["--reason", "bad"], "[possible values: approved, "),
        (&["--protocol", "bad"], "invalid value 'bad' for '--protocol <TUNNEL>'"),
        (&["--peer", "vpn.example"], "write an address or a network, as 198.51.100.0/24"),
        (&["--network", "10.0.0.0/33"], "write an address or a network"),
        (&["--community-id", "1:short"], "a Community ID is `1:` and 28 characters of base64"),
        (&["--flow", "84f7"], "a flow_id is 16 lower-case hexadecimal digits"),
        (&["--kind", "middle"], "[possible values: start, update, end, all]"),
        (&["--group-by", "colour"], "[possible values: label, reason, "),
        (&["--top", "0"], "0 is not in 1.."),
        (&["--sort", "colour"], "[possible values: octets, packets, "),
        (&["--sort", "flows"], "--sort flows and --sort name are for groups"),
        (&["--sort", "duration", "--group-by", "label"], "--sort duration is for flows"),
        (
            &["--sort", "octets", "--group-by", "label", "--kind", "update"],
            "the counts of start and update records are their flow's so far",
        ),
        (&["--reverse"], "--reverse is for rows in an order: add --sort"),
        (&["--format", "xml"], "[possible values: table, ndjson, csv, eve, eve-strict, ecs, zeek]"),
        (&["--count", "--top", "3"], "cannot be used with"),
    ];
    for (arguments, says) in cases {
        assert_says(&query(folder.path(), arguments).expect(64).err, &[says]);
    }
    assert_says(&query(Path::new("/nonexistent"), &[]).expect(65).err, &["/nonexistent: cannot be read: No such file"]);
    assert_says(
        &query(empty.path(), &[]).expect(65).err,
        &["holds no linewarden.ndjson and no linewarden-*.ndjson[.zst]"],
    );
    let done = query(folder.path(), &["--config", "/nonexistent.toml"]);
    assert_eq!(done.code, 0, "the settings are not needed where the log is named: {}", done.err);
    assert_says(&run(["query", "--config", "/nonexistent.toml"]).expect(78).err, &["/nonexistent.toml"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = log(lines(), &[(3000, Form::Archive)]);
    let log = folder.path().to_str().unwrap();
    for more in [&["--format", "ndjson"][..], &["--format", "csv"], &[], &["--group-by", "dst_ip"], &["--sort", "last"]]
    {
        let done = done_with_stdout(&mut linewarden(["query", log].iter().chain(more)), closed_pipe());
        assert_eq!((done.code, done.err), (0, String::new()), "{more:?}");
    }
}

#[test]
fn rows_are_sorted_and_summed_up_both_ways() {
    let folder = log(lines(), &[(3000, Form::Archive)]);
    let ask = |more: &[&str]| query(folder.path(), more).expect(0);
    let first = |rows: &[serde_json::Value], field: &str| rows[0][field].clone();
    for (by, field) in [("first", "start"), ("last", "end")] {
        let rows = ask(&["--format", "ndjson", "--sort", by]).records();
        let times: Vec<_> = rows.iter().map(|row| row[field].as_str().unwrap()).collect();
        assert!(times.is_sorted_by(|one, other| one >= other), "{by}");
        let turned = ask(&["--format", "ndjson", "--sort", by, "--reverse", "--top", "1"]).records();
        assert_eq!(first(&turned, field), *times.last().unwrap(), "{by}");
    }
    let names = ask(&["--format", "csv", "--group-by", "dst_port,label", "--sort", "name"]).out;
    assert!(names.starts_with("dst_port,label,flows,packets,octets,fwd_octets,rev_octets,first,last\n,"), "{names}");
    let ports: Vec<u32> =
        names.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap_or(0)).collect();
    assert!(ports.is_sorted(), "{ports:?}");
    assert_says(&ask(&["--group-by", "hour", "--top", "1"]).out, &["hour", "2026-11-2"]);
}

#[test]
fn a_logged_flow_is_explained_as_one_of_a_capture() {
    let of = |id: &str| approval("vpn", id, "valid_until = 2099-01-01\npeers = [\"198.51.100.2\"]");
    let folder = replayed(&["wireguard-port-51820", "esp-udp"], &of("a"));
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let explain = |more: &[&str]| {
        let (approvals, config) = (path("approvals.d"), path("plain.toml"));
        run(["explain", "--approvals", &approvals, "--config", &config].iter().chain(more))
    };
    let (file, log) = (capture("wireguard-port-51820"), path("log"));
    let live = explain(&["--flow", "84f720bee2edfd57", file.to_str().unwrap()]).expect(0).out;
    assert_says(&live, &["verdict   authorized_leased_line", "approvals asked, nearest first"]);
    for flow in ["84f720bee2edfd57", "84f7", "1:4gKNXtIsiSFWbFP92JiVliWq2LE=", "198.51.100.1:51820"] {
        assert_eq!(explain(&["--log", &log, "--flow", flow]).expect(0).out, live, "{flow}");
    }
    // Other approvals than those of the log are said to be others.
    fs::write(path("approvals.d/a.toml"), of("b")).unwrap();
    let later = explain(&["--log", &log, "--flow", "84f7"]).expect(0).out;
    assert_says(
        &later,
        &[
            "approvals have changed since: the verdict is by revision ",
            "verdict   authorized_leased_line",
            "b (owner network team",
        ],
    );
    let none = explain(&["--log", &log, "--flow", "203.0.113.99"]).expect(64);
    assert_says(&none.err, &["no flow matches `203.0.113.99`; `linewarden query` lists all"]);
    assert_says(
        &explain(&["--log", "/nonexistent", "--flow", "84f7"]).expect(65).err,
        &["/nonexistent: cannot be read"],
    );
    // A file that is no log at all is not one without such a flow.
    let rubbish = path("rubbish.ndjson");
    fs::write(&rubbish, b"\xfe\x00rubbish\n".repeat(100)).unwrap();
    let done = explain(&["--log", &rubbish, "--flow", "84f7"]).expect(65);
    assert_says(&done.err, &["nothing of the log can be read: ", "rubbish.ndjson:1: is no JSON"]);
    assert_says(
        &explain(&["--log", &log, "--flow", "84f7", file.to_str().unwrap()]).expect(64).err,
        &["cannot be used with"],
    );
    assert_says(&explain(&["--flow", "84f7"]).expect(64).err, &["required"]);
}
