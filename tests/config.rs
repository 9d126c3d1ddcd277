//! Settings and approvals as people write them: the shipped files, everything that can be wrong, and what the error says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use linewarden::config::{Approvals, Config, Format, Only, When, is_own_file};
use linewarden::daemon::SUMMARY_FILE;
use linewarden::policy::ApprovalKind;
use linewarden::sink::sealed::key;
use linewarden::sink::{inventory, pseudonym};
use linewarden::time::Timestamp;
use proptest::prelude::*;

fn shipped(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|error| error.0.replace(&format!("{}/", folder.path().display()), ""))
}

fn approvals(files: &[(&str, &str)]) -> Result<Approvals, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    Approvals::load(folder.path()).map_err(|error| error.0.replace(&format!("{}/", folder.path().display()), ""))
}

const GOOD: &str = "id = \"a\"\nkind = \"vpn\"\nowner = \"o\"\nreference = \"r\"\nvalid_until = 2027-12-31\npeers = [\"198.51.100.7\"]\n";

#[test]
fn the_shipped_settings_are_the_defaults_and_show_every_key() {
    let text = shipped("config/linewarden.toml");
    assert_eq!(load(&text).unwrap(), Config::default());
    // The commented keys are known too.
    let all: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    let config = load(&all).unwrap();
    assert_eq!(config.policy.approvals.as_deref(), Some(Path::new("/etc/linewarden/approvals.d")));
    assert_eq!(config.records.dir.as_deref(), Some(Path::new("/var/log/linewarden")));
    assert_eq!(config.state.dir.as_deref(), Some(Path::new("/var/lib/linewarden")));
    // And there is no other: a nonsense key is answered with all that are known.
    let sections = ["capture", "decapsulate", "flow", "policy", "records", "journal", "privacy", "control", "metrics"];
    for section in sections.into_iter().chain(["sandbox", "state", "[outputs]"]) {
        let error = load(&format!("[{section}]\nqqqqqqqqqqqqqqqq = 1\n")).unwrap_err();
        let known = error.split("known here: ").nth(1).unwrap().lines().next().unwrap();
        for key in known.split(", ") {
            assert!(
                all.lines().any(|line| line.starts_with(&format!("{key} ="))),
                "{section}.{key} is not in config/linewarden.toml"
            );
        }
    }
}

#[test]
fn outputs_and_what_is_hidden_are_read_and_checked() {
    let config = load("[[outputs]]\nformat = \"zeek\"\nfile = \"z.log\"\nonly = \"findings\"\nkeep = 9\n[[outputs]]\nformat = \"ecs\"\nfile = \"e.json\"\n[journal]\nfindings = false\n").unwrap();
    let [zeek, ecs] = &config.outputs[..] else { panic!("{:?}", config.outputs) };
    assert_eq!((zeek.format, zeek.only, zeek.keep), (Format::Zeek, Only::Findings, 9));
    assert_eq!((ecs.format, ecs.only, ecs.rotate_octets, &*ecs.file), (Format::Ecs, Only::All, 256 << 20, "e.json"));
    assert_eq!(config.journal.findings, When::Never);
    let output = |keys: &str| format!("[[outputs]]\n{keys}\n");
    for (text, says) in [
        (output("format = \"cef\"\nfile = \"a\""), "\"eve-strict\""),
        (output("format = \"eve\""), "file is missing"),
        (output("format = \"eve\"\nfile = \"../a\""), "the name of a file"),
        (output("format = \"eve\"\nfile = \"sensor.ndjson\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"pseudonym.key\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"inventory.sqlite-wal\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"control.sock\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"state\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"metrics.lock\""), "the log's own"),
        (output("format = \"eve\"\nfile = \"a.json.1\""), "an older file's"),
        (output("format = \"eve\"\nfile = \"a\"\nkeep = 0"), "from 1 to 1000"),
        (
            output("format = \"eve\"\nfile = \"a\"\n[[outputs]]\nformat = \"ecs\"\nfile = \"a\""),
            "another output writes that file",
        ),
        (
            output("format = \"eve\"\nfile = \"k\"") + "[records]\ndir = \"log\"\n[privacy]\nkey = \"./log/k\"\n",
            "privacy.key, control.socket",
        ),
        (
            output("format = \"eve\"\nfile = \"m\"") + "[records]\ndir = \"log\"\n[metrics]\nlisten = \"unix:log/m\"\n",
            "metrics.listen",
        ),
        ("[journal]\nfindings = \"yes\"\n".to_owned(), "write \"auto\", or true or false"),
        ("[privacy]\npseudonyms = true\n".to_owned(), "flow.home_nets"),
    ] {
        let error = load(&text).unwrap_err();
        assert!(error.contains(says), "{text}\n{error}");
    }
    let hidden = load("[privacy]\npseudonyms = true\n[flow]\nhome_nets = [\"10.0.0.0/8\"]\n").unwrap();
    assert!(hidden.privacy.pseudonyms);
}

/// Every file that the daemon keeps in the folder of its state, which may be that of the log.
#[test]
fn no_output_takes_the_name_of_a_key_or_a_base() {
    for name in
        [pseudonym::KEY_FILE, key::SECRET_FILE, key::PUBLIC_FILE, inventory::FILE, SUMMARY_FILE, "linewarden.heads"]
    {
        assert!(is_own_file(name), "{name}");
    }
    for name in ["eve.json", "statements.json", "inventory.json", "ecs.log"] {
        assert!(!is_own_file(name), "{name}");
    }
}

#[test]
fn the_shipped_example_holds_valid_approvals() {
    let text = shipped("config/approvals.d/example.toml.disabled");
    assert!(approvals(&[("example.toml.disabled", &text)]).unwrap().list.is_empty());
    let approvals = approvals(&[("example.toml", &text)]).unwrap();
    assert_eq!(approvals.list.len(), 3);
    assert!(approvals.warnings.is_empty(), "{:?}", approvals.warnings);
    assert_eq!(approvals.list[1].keys.len(), 1);
    assert_eq!(approvals.list[2].kind, ApprovalKind::LeasedLine);
    assert_eq!(approvals.list[2].capacity, Some(1_000_000_000));
    assert_eq!(approvals.list[0].valid_until.to_string(), "2027-07-01T00:00:00.000000000Z");
}

#[test]
fn the_shipped_example_shows_every_key() {
    let text = shipped("config/approvals.d/example.toml.disabled");
    for table in ["", "identity.", "path."] {
        let nonsense = format!("{GOOD}{table}qqqqqqqqqqqqqqqq = 1\n");
        let error = approvals(&[("a.toml", &nonsense)]).unwrap_err();
        let known = error.split("known here: ").nth(1).unwrap().lines().next().unwrap();
        for key in known.split(", ") {
            let shows = |line: &str| {
                line.trim_start_matches('#').starts_with(&format!("{key} =")) || line.contains(&format!(" {key} = "))
            };
            let is_table = text.contains(&format!("[approval.{key}]"));
            assert!(is_table || text.lines().any(shows), "{table}{key} is not in the example");
        }
    }
}

#[test]
fn wrong_settings_are_named_with_place_text_and_remedy() {
    let cases = [
        (
            "[capture]\nsnap_length = \"256\"",
            "t.toml:2:15: capture.snap_length is \"256\": write a whole number of octets from 64 to 65535, without quotes\n    2 | snap_length = \"256\"\n      |               ^^^^^",
        ),
        (
            "[capture]\nsnap_lenght = 256",
            "t.toml:2:1: capture.snap_lenght is not a known key: did you mean `snap_length`?",
        ),
        ("[captures]\n", "t.toml:1:2: captures is not a known key: did you mean `capture`?"),
        ("capture = 1", "t.toml:1:11: capture is 1: write a section `[capture]`"),
        (
            "[capture]\nbackend = \"rings\"",
            "capture.backend is \"rings\": write \"ring\", \"xdp\" or \"pnet\"; did you mean \"ring\"?",
        ),
        ("[capture]\ninterfaces = [\"a\", \"a\"]", "name each interface once"),
        ("[capture]\ninterfaces = \"a\"", "capture.interfaces is \"a\": write a list"),
        ("[capture]\nworkers = -1", "capture.workers is -1: write a whole number from 0 to 256"),
        ("[capture]\npromiscuous = 1", "write true or false"),
        ("[capture]\npin_interrupts = \"yes\"", "capture.pin_interrupts is \"yes\": write true or false"),
        ("[capture]\nring_octets = \"64MB\"", "write a size in quotes from \"128KiB\""),
        ("[capture]\nring_octets = \"1MiB\"", "must hold two blocks"),
        ("[capture]\nblock_octets = \"3MiB\"", "write a power of two"),
        ("[capture]\nblock_timeout = \"1us\"", "write a duration in quotes from \"1ms\" to \"1s\""),
        ("[flow]\nidle_timeout = 120", "flow.idle_timeout is 120: write a duration in quotes from \"1s\" to \"7d\""),
        (
            "[flow]\nhome_nets = [\"10.0.0.1/8\"]",
            "t.toml:2:14: flow.home_nets is \"10.0.0.1/8\": it has bits set behind its prefix: write \"10.0.0.0/8\"",
        ),
        (
            "[capture]\nfilter = \"udp\"",
            "t.toml:2:10: capture.filter: filter line 1: `udp` is not four numbers; write what `tcpdump -ddd EXPRESSION` prints",
        ),
        ("[decapsulate]\ndepth = 9", "decapsulate.depth is 9: write a whole number of tunnels from 0 to 8"),
        (
            "[records]\nrotate_octets = \"1MiB\"\nkeep_octets = \"1MiB\"",
            "t.toml:3:15: records.keep_octets is \"1MiB\": records.keep_octets must hold records.rotate_octets twice",
        ),
        (
            "[records]\nrotate_octets = \"64KiB\"",
            "t.toml:2:17: records.rotate_octets is \"64KiB\": records.keep_octets must not hold records.rotate_octets more than 100000 times: raise rotate_octets",
        ),
        ("[records]\nrotate_octets = \"1KiB\"", "write a size in quotes from \"64KiB\" to \"16GiB\""),
        ("[records]\nrotate_interval = \"1s\"", "write a duration in quotes from \"1m\" to \"31d\""),
        ("[records]\nkeep_for = \"1h\"", "write a duration in quotes from \"1d\" to \"36500d\""),
        ("[records]\nsync_interval = \"1d\"", "write a duration in quotes from \"10ms\" to \"1m\""),
        ("[records]\nsign_interval = \"0s\"", "write a duration in quotes from \"1s\" to \"1d\""),
        ("[records]\ncompress = \"zstd\"", "write true or false"),
        ("[state]\ndir = \"\"", "state.dir is \"\": write a text that is not empty"),
        (
            "[decapsulate]\nmirrors = [{ tunnel = \"vxlan\" }]",
            "t.toml:2:12: decapsulate.mirrors.to is missing: name the host that receives the copies",
        ),
        (
            "[decapsulate]\nmirrors = [{ tunnel = \"ipip\", to = \"192.0.2.9\" }]",
            "decapsulate.mirrors.tunnel is \"ipip\": write \"vxlan\", \"geneve\", \"gre\", \"erspan\" or \"gtp-u\"",
        ),
        (
            "[decapsulate]\nmirrors = [{ tunnel = \"gre\", to = \"192.0.2.9\", port = 9 }]",
            "decapsulate.mirrors.port is 9: GRE has no ports: take it out",
        ),
        (
            "[decapsulate]\nmirrors = [{ tunnel = \"gre\", from = \"2001:db8::1\", to = \"192.0.2.9\" }]",
            "t.toml:2:57: decapsulate.mirrors.to is \"192.0.2.9\": nothing from 2001:db8::1/128, of the other IP version",
        ),
        (
            "[decapsulate]\nmirrors = [{ tunnel = \"gre\", from = \"0.0.0.0/0\" }]",
            "t.toml:2:37: decapsulate.mirrors.from is \"0.0.0.0/0\": whoever sends what looks like a copy hides a tunnel in it",
        ),
        (
            "[decapsulate]\nmirrors = { tunnel = \"gre\", to = \"192.0.2.9\" }",
            "write `[[decapsulate.mirrors]]` above each",
        ),
        ("[policy]\nmin_confidence = \"sure\"", "write \"possible\", \"likely\" or \"certain\""),
        ("[records]\nother = \"ends\"", "did you mean \"end\"?"),
        ("[records]\nqueue = 0", "write a whole number of records from 1"),
        ("[control]\nsocket = \"\"", "control.socket is \"\": write a text that is not empty"),
        (
            "[metrics]\nlisten = \"0.0.0.0:9470\"",
            "metrics.listen is \"0.0.0.0:9470\": metrics are served without a password, so to this machine alone, and 0.0.0.0 is no loopback address",
        ),
        ("[metrics]\nlisten = \"[2001:db8::1]:9470\"", "2001:db8::1 is no loopback address"),
        ("[metrics]\nlisten = \"localhost:9470\"", "write \"unix:/run/linewarden/metrics.sock\", \"127.0.0.1:9470\""),
        ("[metrics]\nlisten = \"127.0.0.1:0\"", "port 0 is any port"),
        ("[inventory]\ntunnels = 10", "inventory.tunnels is 10: write a whole number of tunnels from 1000 to 10000000"),
        ("[metrics]\nlisten = \"unix:\"", "write \"unix:/run"),
        ("[records\n", "t.toml:1:"),
        ("sensor = 1\n[flow]\nidle = 1\n", "flow.idle is not a known key"),
    ];
    for (text, expected) in cases {
        let error = load(text).expect_err(text);
        assert!(error.contains(expected), "{text}\n  expected {expected}\n  found    {error}");
    }
    let all = load("sensor = 1\n[capture]\nworkers = true\n[flow]\nidle = 1\n").unwrap_err();
    assert_eq!(all.lines().filter(|line| line.starts_with("t.toml:")).count(), 3, "all at once: {all}");
}

#[test]
fn unreadable_settings() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Config::load(&folder.path().join("none.toml")).unwrap_err().0;
    assert!(missing.contains("none.toml: cannot be read: No such file"), "{missing}");
    assert!(Config::load(folder.path()).unwrap_err().0.contains("not a file"));
    let path = folder.path().join("latin1.toml");
    fs::write(&path, b"sensor = \"a\"\n# caf\xe9\n").unwrap();
    assert!(Config::load(&path).unwrap_err().0.contains("line 2 is not UTF-8"));
}

#[test]
fn wrong_approvals_are_named_with_place_text_and_remedy() {
    let with = |line: &str| format!("{GOOD}{line}\n");
    let without = |key: &str| {
        GOOD.lines().filter(|line| !line.starts_with(key)).fold(String::new(), |all, line| all + line + "\n")
    };
    let changed = |key: &str, line: &str| without(key) + line + "\n";
    let cases = [
        (without("id"), "t.toml:1:1: id is missing: write `id ="),
        (without("kind"), "kind is missing"),
        (without("owner"), "owner is missing"),
        (without("reference"), "reference is missing"),
        (without("valid_until"), "valid_until is missing: write `valid_until = 2027-12-31`"),
        (without("peers"), "peers is missing: write the networks"),
        (changed("owner", "owner = \"  \""), "write a text that is not empty"),
        (changed("owner", "owner = \"a\\u001b[31mb\""), "without control characters"),
        (changed("kind", "kind = \"leased_line\""), "did you mean \"leased-line\"?"),
        (changed("peers", "peers = []"), "write the networks"),
        (
            changed("peers", "peers = [\"198.51.100.7/24\"]"),
            "t.toml:6:10: peers is \"198.51.100.7/24\": it has bits set behind its prefix: write \"198.51.100.0/24\"",
        ),
        (changed("peers", "peers = [\"::ffff:198.51.100.7\"]"), "write it as IPv4"),
        (changed("peers", "peers = [7]"), "write a network in quotes"),
        (changed("peers", "peers = [\"example.net\"]"), "or an address"),
        (changed("valid_until", "valid_until = 2027-02-30"), "t.toml:"),
        (changed("valid_until", "valid_until = 2027-12-31T12:00:00"), "whose clock?"),
        (changed("valid_until", "valid_until = \"soon\""), "write a date such as 2027-12-31"),
        (changed("valid_until", "valid_until = 1960-01-01"), "from 1970 on"),
        (with("valid_from = 2028-01-01"), "write a time before valid_until"),
        (with("ports = [0]"), "write a port from 1 to 65535"),
        (with("ports = [\"9-8\"]"), "write a port from 1 to 65535"),
        (with("ip_protocols = [\"udpp\"]"), "write a number from 0 to 255, or one of icmp"),
        (with("tunnels = [\"wiregard\"]"), "did you mean \"wireguard\"?"),
        (with("path = { vlan = 4095 }"), "path.vlan is 4095: write a whole number from 1 to 4094"),
        (with("path = { mpls_labl = 1 }"), "path.mpls_labl is not a known key: did you mean `mpls_label`?"),
        (with("capacity = \"1GB/s\""), "capacity is \"1GB/s\": write a rate in quotes, such as \"2048kbit/s\""),
        (with("capacity = \"0bit/s\""), "write a rate in quotes"),
        (with("capacity = 1000"), "write a rate in quotes"),
        (with("valid_untill = 2027-01-01"), "did you mean `valid_until`?"),
        (
            format!("[[approval]]\n{GOOD}[[approval]]\n{GOOD}"),
            "t.toml:9:6: id is \"a\": this id is taken at t.toml:1:1",
        ),
        (format!("approval = 1\n{GOOD}"), "write `[[approval]]`"),
    ];
    for (text, expected) in cases {
        let error = approvals(&[("t.toml", &text)]).expect_err(&text);
        assert!(error.contains(expected), "{text}\n  expected {expected}\n  found    {error}");
    }
    let broken = approvals(&[("t.toml", "x = [[[\n")]).unwrap_err();
    assert!(broken.contains("t.toml:1:") && !broken.contains("is missing"), "{broken}");
    let both = approvals(&[("a.TOML", GOOD), ("b.toml", GOOD)]).unwrap_err();
    assert!(both.contains("b.toml:1:6: id is \"a\": this id is taken at a.TOML:1:1"), "{both}");
    let missing = Approvals::load(Path::new("/nonexistent/approvals.d")).unwrap_err().0;
    assert!(missing.contains("/nonexistent/approvals.d: the folder of approvals cannot be read"), "{missing}");
}

#[test]
fn dates_are_whole_days_and_times_have_offsets() {
    let until = |text: &str| {
        let text = GOOD.replace("2027-12-31", text);
        approvals(&[("t.toml", &text)]).unwrap().list[0].valid_until.to_string()
    };
    assert_eq!(until("2027-12-31"), "2028-01-01T00:00:00.000000000Z");
    assert_eq!(until("\"2027-12-31\""), "2028-01-01T00:00:00.000000000Z");
    assert_eq!(until("2027-12-31T12:00:00Z"), "2027-12-31T12:00:00.000000000Z");
    assert_eq!(until("2027-12-31T12:00:00.5+02:00"), "2027-12-31T10:00:00.500000000Z");
    let never = GOOD.replace("2027-12-31", "9999-12-31");
    assert_eq!(approvals(&[("t.toml", &never)]).unwrap().list[0].valid_until, Timestamp::MAX);
}

#[test]
fn the_revision_changes_with_the_meaning_only() {
    let other = GOOD.replace("\"a\"", "\"b\"");
    let revision = |files: &[(&str, &str)]| approvals(files).unwrap().revision;
    let one = revision(&[("1.toml", GOOD), ("2.toml", &other)]);
    assert_eq!(one.len(), 64);
    assert_eq!(one, revision(&[("x.toml", &format!("# moved\n[[approval]]\n{other}[[approval]]\n{GOOD}"))]));
    assert_ne!(one, revision(&[("1.toml", GOOD)]));
    for (from, to) in [("\"o\"", "\"p\""), ("2027", "2028"), ("100.7", "100.8"), ("vpn", "leased-line")] {
        assert_ne!(one, revision(&[("1.toml", &GOOD.replace(from, to)), ("2.toml", &other)]), "{to}");
    }
    let with_capacity = |rate| format!("{GOOD}capacity = \"{rate}\"\n");
    let fast = revision(&[("1.toml", &with_capacity("1Gbit/s"))]);
    assert_ne!(fast, revision(&[("1.toml", GOOD)]));
    assert_eq!(fast, revision(&[("1.toml", &with_capacity("1000Mbit/s"))]));
    assert_eq!(Approvals::empty().revision, revision(&[]));
    assert_eq!(&*revision(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

#[test]
fn what_is_valid_but_hardly_meant_is_warned_of() {
    let warnings = |text: &str| approvals(&[("t.toml", text)]).unwrap().warnings;
    let warnings = |text: &str| warnings(text).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(warnings(&GOOD.replace("198.51.100.7", "0.0.0.0/0")).contains("a large part of the Internet"));
    assert!(warnings(&GOOD.replace("vpn", "leased-line")).contains("without path"));
    assert!(warnings(&format!("{GOOD}ports = [1]\ntunnels = [\"gre\"]\n")).contains("have no ports"));
    assert!(warnings("# nothing\n").contains("no approval in it"));
    let dated = approvals(&[("t.toml", GOOD)]).unwrap();
    let month = Duration::from_hours(30 * 24);
    let at = |time: &str| {
        dated.warnings_at(time.parse().unwrap(), month).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(at("2027-12-01T23:59:59Z").is_empty());
    assert!(at("2027-12-02T00:00:00Z")[0].contains("t.toml:1:1: approval \"a\": ends at 2028-01-01"));
    assert!(at("2028-01-01T00:00:00Z")[0].contains("t.toml:1:1: approval \"a\": ended at 2028-01-01"));
}

/// The findings of approvals, as `id code`, at the beginning of 2027.
fn lint(approvals_text: &str) -> Vec<String> {
    let now = "2027-01-01T00:00:00Z".parse().unwrap();
    let findings = approvals(&[("t.toml", approvals_text)]).unwrap().lint(now, Duration::from_hours(30 * 24));
    findings.iter().map(|finding| format!("{} {}", finding.approval.as_deref().unwrap_or("-"), finding.code)).collect()
}

#[test]
fn lint_finds_what_was_hardly_meant_and_nothing_else() {
    const KEY: &str = "identity = { wireguard_public_keys = [\"sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA=\"] }";
    // One that there is nothing to say of, but for what a case changes.
    let one = |id: &str, more: &str| {
        let mut lines = vec![
            format!("id = \"{id}\""),
            "kind = \"vpn\"".into(),
            "owner = \"o\"".into(),
            format!("reference = \"r-{id}\""),
            "need = \"n\"".into(),
            "valid_until = 2027-12-31".into(),
            "peers = [\"198.51.100.7\"]".into(),
            "tunnels = [\"wireguard\"]".into(),
        ];
        for line in more.lines() {
            let key = line.split(' ').next().unwrap();
            lines.retain(|old| old.split(' ').next() != Some(key));
            if !line.ends_with("= -") {
                lines.push(line.to_owned());
            }
        }
        format!("[[approval]]\n{}\n", lines.join("\n"))
    };
    let wide = |more: &str| one("b", &format!("peers = [\"198.51.0.0/16\"]\n{more}"));
    #[rustfmt::skip]
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("nothing", one("a", ""), &[]),
        ("no need", one("a", "need = -"), &["a no_need"]),
        ("any tunnel", one("a", "tunnels = -"), &["a any_tunnel"]),
        ("any tunnel on a port", one("a", "tunnels = -\nports = [1]"), &[]),
        ("any tunnel with a key", one("a", &format!("tunnels = -\npath = {{ vlan = 7 }}\n{KEY}")), &[]),
        ("a key without path", one("a", KEY), &["a keys_without_path"]),
        ("ended", one("a", "valid_until = 2026-12-30"), &["a ended"]),
        ("ends within thirty days", one("a", "valid_until = 2027-01-30"), &["a ends_soon"]),
        ("ends later", one("a", "valid_until = 2027-01-31"), &[]),
        ("not begun", one("a", "valid_from = 2027-01-02"), &["a not_begun"]),
        ("a wide network", one("a", "peers = [\"0.0.0.0/0\"]"), &["a wide_network"]),
        ("an eighth of a wide one", one("a", "peers = [\"10.0.0.0/8\"]"), &[]),
        ("a line without path", one("a", "kind = \"leased-line\""), &["a line_without_path"]),
        ("nothing at all", "# nothing\n".into(), &["- empty_file"]),
        ("the same reference", one("a", "") + &one("b", "reference = \"r-a\"\npeers = [\"192.0.2.1\"]"), &["b same_reference"]),
        ("other networks", one("a", "") + &one("b", "peers = [\"192.0.2.1\"]"), &[]),
        ("the same twice", one("a", "") + &one("b", ""), &["b adds_nothing"]),
        ("the same, the later allows more", one("a", "") + &one("b", "valid_until = 2028-12-31"), &["a adds_nothing"]),
        ("the same, each allows something", one("a", "") + &one("b", "tunnels = [\"esp\"]"), &[]),
        ("two networks, one of them the same", one("a", "") + &one("b", "peers = [\"198.51.100.7\", \"192.0.2.1\"]"), &["a adds_nothing"]),
        ("a narrower one that allows as much", one("a", "") + &wide(""), &[]),
        ("a narrower one that allows less: another tunnel", one("a", "") + &wide("tunnels = [\"esp\"]"), &["a hides"]),
        ("a narrower one that allows less: a shorter time", one("a", "") + &wide("valid_until = 2028-12-31"), &["a hides"]),
        ("a narrower one that allows less: a port", one("a", "ports = [5]") + &wide("ports = [\"1-9\"]"), &["a hides"]),
        ("a narrower one that has ended", one("a", "valid_until = 2026-12-01") + &wide(""), &["a ended", "a hides"]),
        ("a wider one that has ended", one("a", "tunnels = [\"esp\"]") + &wide("valid_until = 2026-12-01"), &["b ended"]),
        ("a narrower one of more ports", one("a", "ports = [\"1-9\"]") + &wide("ports = [5]"), &[]),
        ("a narrower one of another path", one("a", "path = { vlan = 7 }") + &wide("path = { vlan = 8 }"), &["a hides"]),
        ("the wider one names the narrower network, too", one("a", "") + &one("b", "peers = [\"198.51.0.0/16\", \"198.51.100.7\"]\ntunnels = [\"esp\"]"), &[]),
        ("a narrower one of IPv6", one("a", "peers = [\"2001:db8::7\"]") + &one("b", "peers = [\"2001:db8::/32\"]\ntunnels = [\"esp\"]"), &["a hides"]),
    ];
    for (name, text, expected) in cases {
        assert_eq!(lint(&text), expected, "{name}\n{text}");
    }
}

#[test]
fn findings_of_a_hundred_thousand_prefixes_in_their_order() {
    let mut text = String::new();
    for number in 0..100_000_u32 {
        let [_, a, b, c] = (number * 2).to_be_bytes();
        writeln!(text, "[[approval]]\nid = \"p{number}\"\nkind = \"vpn\"\nowner = \"o\"\nreference = \"r{number}\"\nneed = \"n\"\nvalid_until = 2027-12-31\ntunnels = [\"esp\"]\npeers = [\"10.{a}.{b}.{c}\", \"2001:db8::/32\"]").unwrap();
    }
    let found = lint(&text);
    assert!(found.is_empty(), "{:?}", &found[..found.len().min(3)]);
}

#[test]
fn a_hundred_thousand_prefixes() {
    let mut text = String::new();
    for file in 0..100_000_u32 {
        let [_, a, b, c] = (file * 16).to_be_bytes();
        writeln!(text, "[[approval]]\nid = \"p{file}\"\nkind = \"vpn\"\nowner = \"o\"\nreference = \"r\"\nvalid_until = 2027-12-31\npeers = [\"10.{a}.{b}.{c}/28\"]").unwrap();
    }
    let approvals = approvals(&[("many.toml", &text)]).unwrap();
    assert_eq!(approvals.list.len(), 100_000);
    let policy = Config::default().policy("sensor".into(), approvals);
    assert_eq!(policy.prefixes(), 100_000);
}

#[test]
fn endless_mistakes_are_cut_off() {
    let text: String = (0..50_000).fold(String::new(), |mut text, key| {
        writeln!(text, "k{key} = 1").unwrap();
        text
    });
    let error = load(&text).unwrap_err();
    assert!(error.ends_with("and 49900 more"), "{}", error.lines().last().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = load(&text);
        let _ = approvals(&[("t.toml", &text)]);
    }

    #[test]
    fn no_change_of_a_valid_file_panics(at in any::<prop::sample::Index>(), octet in any::<u8>(), cut in any::<bool>()) {
        for good in [shipped("config/linewarden.toml"), shipped("config/approvals.d/example.toml.disabled")] {
            let mut octets = good.into_bytes();
            let at = at.index(octets.len());
            octets[at] = octet;
            if cut {
                octets.truncate(at);
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("t.toml");
            fs::write(&path, octets).unwrap();
            let _ = Config::load(&path);
            let _ = Approvals::load(folder.path());
        }
    }
}
