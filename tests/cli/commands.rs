//! Help, usage errors, and the commands that judge nothing: `detectors`, `interfaces`, `bench`.

use std::fs;
use std::path::Path;

use linewarden::detect::{Protocol, REGISTRY};
use serde_json::Value;

use crate::common::command::{
    approval, approved, assert_says, capture, closed_pipe, done_with_stdout, folder, linewarden, run,
};

const COMMANDS: [&str; 11] = [
    "run",
    "replay",
    "explain",
    "query",
    "inventory",
    "diff-policy",
    "check-config",
    "approvals",
    "detectors",
    "interfaces",
    "bench",
];

/// The text with its line breaks and indents taken out.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn version_and_help() {
    let version = format!("linewarden {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(["--version"]).expect(0).out, version);
    assert_eq!(run(["-V"]).expect(0).out, version);
    let codes = "Exit codes: 0 done; 1 failed while running; 2 findings (replay --fail-on unapproved, diff-policy, approvals lint); 64 usage; \
        65 bad data, a log that can be read in part only, or that is not whole; 69 no such interface now, which may come; 77 permission; 78 configuration.";
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let help = run(arguments).expect(0).out;
        assert_says(&flat(&help), &[codes]);
        assert_says(&help, &COMMANDS);
    }
    for command in COMMANDS {
        for arguments in [[command, "--help"], [command, "-h"], ["help", command]] {
            let help = run(arguments).expect(0).out;
            assert_says(&flat(&help), &[codes, &format!("Usage: linewarden {command}")]);
        }
    }
}

#[test]
fn usage_errors_are_64() {
    let file = capture("wireguard-port-51820");
    let file = file.to_str().unwrap();
    let cases: [(&[&str], &str); 16] = [
        (&[], "Usage: linewarden <COMMAND>"),
        (&["watch"], "unrecognized subcommand 'watch'"),
        (&["--verbose"], "unexpected argument '--verbose'"),
        (&["replay"], "<FILE>..."),
        (&["replay", "--format", "xml", file], "possible values: ndjson, table"),
        (&["replay", "--workers", "0", file], "0 is not in 1..=64"),
        (&["replay", "--fail-on", "everything", file], "possible values: unapproved"),
        (&["replay", "--home-net", "here", file], "'here' for '--home-net"),
        (&["replay", "--min-confidence", "sure", file], "possible values: possible, likely, certain"),
        (&["explain", file], "--flow <FLOW>"),
        (&["explain", "--flow", "everything", file], "write a flow_id of 4 to 16 hexadecimal digits"),
        (&["explain", "--flow", "10.0.0.1,10.0.0.2,10.0.0.3", file], "two of these joined by a comma"),
        (&["bench", "--flows", "0"], "0 is not in 1..="),
        (&["bench", "--sizes", "10"], "'10' for '--sizes"),
        (&["bench", "--pcap", file, "--flows", "5"], "cannot be used with"),
        (&["detectors", "--format", "html"], "possible values: table, markdown, json"),
    ];
    for (arguments, text) in cases {
        let done = run(arguments).expect(64);
        assert_says(&done.err, &[text]);
        assert_eq!(done.out, "", "{arguments:?}: what is wrong goes to standard error");
    }
}

#[test]
fn detectors_are_those_of_the_readme() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let table: String = readme
        .lines()
        .skip_while(|line| !line.starts_with("| protocol |"))
        .take_while(|line| line.starts_with('|'))
        .fold(String::new(), |table, line| table + line + "\n");
    assert_eq!(run(["detectors", "--format", "markdown"]).expect(0).out, table);

    let plain = run(["detectors"]).expect(0).out;
    assert_says(plain.lines().next().unwrap(), &["protocol", "recognised", "mid-stream", "reaches"]);
    let json: Value = serde_json::from_str(&run(["detectors", "--format", "json"]).expect(0).out).unwrap();
    for protocol in Protocol::ALL {
        assert!(
            plain.lines().any(|line| line
                .split("  ")
                .next()
                .unwrap()
                .trim()
                .split(", ")
                .any(|name| name == protocol.name())),
            "{}",
            protocol.name()
        );
        let of_it: Vec<_> = json.as_array().unwrap().iter().filter(|row| row["protocol"] == protocol.name()).collect();
        assert!(!of_it.is_empty(), "{}", protocol.name());
        for field in ["recognised", "by_chance", "mid_stream", "reaches", "specification", "out_of_sight"] {
            assert!(of_it.iter().all(|row| row[field].as_str().is_some_and(|text| !text.is_empty())), "{field}");
        }
    }
    let codes = run(["detectors", "--codes", "--format", "markdown"]).expect(0).out;
    for code in REGISTRY.iter().flat_map(|detector| detector.about().codes) {
        let row = format!("| `{}` |", code.name);
        let rows: Vec<_> = codes.lines().filter(|line| line.starts_with(&row)).collect();
        assert_eq!(rows.len(), 1, "{}: {rows:?}", code.name);
        assert_says(rows[0], &[code.clause]);
    }
}

#[test]
fn interfaces_are_listed() {
    let out = run(["interfaces"]).expect(0).out;
    assert_says(out.lines().next().unwrap(), &["interface", "state", "frames", "capture", "addresses"]);
    let lo = out.lines().find(|line| line.split_whitespace().next() == Some("lo")).unwrap();
    assert_says(lo, &["Ethernet", "yes"]);
    assert_says(&out, &["This process may capture."]);
}

#[test]
fn bench_has_the_figures_that_scripts_rely_on() {
    let bench = |more: &[&str]| -> Value {
        let small = ["bench", "--json", "--seconds", "1", "--packets", "2000"];
        serde_json::from_str(&run(small.iter().chain(more)).expect(0).out).unwrap()
    };
    let made_up = bench(&["--flows", "200", "--sizes", "64", "--tunnels", "50"]);
    let captured = bench(&["--pcap", capture("wireguard-port-51820").to_str().unwrap()]);
    for report in [&made_up, &captured] {
        for figure in ["ns_per_packet", "parse_only_ns_per_packet", "octets_per_flow", "packets_per_second"] {
            assert!(report[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {report}");
        }
        assert_eq!(report["stages"].as_array().unwrap().len(), 4, "{report}");
    }
    assert_eq!([&made_up["flows"], &made_up["tunnels"]], [200, 100]);
    assert_eq!(captured["flows"], 1);
    let foreign = folder(&[("foreign.pcap", "no capture at all")]);
    let done = run(["bench".as_ref(), "--pcap".as_ref(), foreign.path().join("foreign.pcap").as_os_str()]).expect(65);
    assert_says(&done.err, &["foreign.pcap: neither pcap nor pcapng"]);
}

#[test]
fn nobody_reads_what_any_command_says() {
    let folder = approved(&approval("vpn", "a", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]"));
    let file = capture("wireguard-port-51820");
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 11] = [
        &["--help"],
        &["--version"],
        &["replay", "--approvals", "approvals.d", file],
        &["replay", "--approvals", "approvals.d", "--format", "table", file],
        &["explain", "--approvals", "approvals.d", "--flow", "84f7", file],
        &["check-config", "--approvals", "approvals.d"],
        &["detectors"],
        &["detectors", "--codes", "--format", "json"],
        &["interfaces"],
        &["bench", "--seconds", "1", "--packets", "1000", "--flows", "10"],
        &["bench", "--json", "--seconds", "1", "--packets", "1000", "--pcap", file],
    ];
    for arguments in commands {
        let done = done_with_stdout(linewarden(arguments).current_dir(folder.path()), closed_pipe());
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
        assert!(!done.err.contains("cannot be written"), "{arguments:?}: {}", done.err);
    }
}
