//! The metrics: the text is `OpenMetrics`, and the shipped alert rules and dashboard name nothing that is not in it.
#![expect(clippy::float_cmp, reason = "whole numbers, written and read as such")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::common::command::{approval, done};
use crate::common::netns::{Namespace, until};
use crate::{approved, ctl, elsewhere, end, folder, fs, start, wireguard};

/// One HTTP answer: status line and headers, body.
fn http(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: sensor\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text}"));
    (head.to_ascii_lowercase(), body.to_owned())
}

/// A family of the exposition.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: String,
    has_help: bool,
    /// Names of samples and their labels, with the value.
    samples: BTreeMap<(String, Vec<(String, String)>), f64>,
}

/// Reads `OpenMetrics` 1.0 text, and refuses what the specification's ABNF and its rules of families do.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF and a line feed");
    assert!(!body.contains('\r') && !body.contains("# EOF") && !body.contains("\n\n"), "{body}");
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut parts = rest.splitn(3, ' ');
            let (what, name, value) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().expect(line));
            assert!(is_name(name) && name.starts_with("linewarden_"), "{line}");
            if name != current {
                assert!(!families.contains_key(name), "a family is in one piece: {line}");
                name.clone_into(&mut current);
            }
            let family = families.entry(current.clone()).or_default();
            assert!(family.samples.is_empty(), "metadata comes first: {line}");
            match what {
                "HELP" => {
                    assert!(!std::mem::replace(&mut family.has_help, true) && !value.is_empty(), "{line}");
                }
                "TYPE" => {
                    assert!(family.kind.is_empty() && ["counter", "gauge", "info"].contains(&value), "{line}");
                    value.clone_into(&mut family.kind);
                }
                "UNIT" => {
                    assert!(family.unit.is_empty() && name.ends_with(&format!("_{value}")), "{line}");
                    value.clone_into(&mut family.unit);
                }
                _ => panic!("unknown metadata: {line}"),
            }
            continue;
        }
        let end = line.find(['{', ' ']).expect(line);
        let (name, rest) = line.split_at(end);
        let family = families.get_mut(&current).expect("a sample follows its family");
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            "gauge" => "",
            other => panic!("type {other:?}: {line}"),
        };
        assert_eq!(name, format!("{current}{suffix}"), "{line}");
        let (labels, value) = labels(rest, line);
        let names: BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
        assert!(names.len() == labels.len() && labels.iter().all(|(name, _)| is_name(name)), "{line}");
        let number: f64 = value.strip_prefix(' ').expect(line).parse().expect(line);
        assert!(number.is_finite() && (suffix.is_empty() || number >= 0.0), "{line}");
        assert!(family.samples.insert((name.to_owned(), labels), number).is_none(), "twice: {line}");
    }
    for (name, family) in &families {
        assert!(family.has_help && !family.kind.is_empty(), "{name}");
        assert!(!name.ends_with("_total") && !name.ends_with("_info"), "the suffix is the sample's: {name}");
        for unit in ["seconds", "bytes"] {
            assert!(!name.ends_with(&format!("_{unit}")) || family.unit == unit, "{name}: no # UNIT");
        }
        assert!(
            !["_ms", "_milliseconds", "_octets", "_kib", "_minutes"].iter().any(|unit| name.ends_with(unit)),
            "{name}"
        );
    }
    families
}

/// `{name="value",…}` with its escapes, and the rest of the line.
fn labels<'a>(rest: &'a str, line: &str) -> (Vec<(String, String)>, &'a str) {
    let Some(mut rest) = rest.strip_prefix('{') else { return (Vec::new(), rest) };
    let mut labels = Vec::new();
    loop {
        let (name, value) = rest.split_once("=\"").expect(line);
        let (mut text, mut letters) = (String::new(), value.char_indices());
        let close = loop {
            match letters.next().expect(line) {
                (_, '\\') => match letters.next().expect(line).1 {
                    'n' => text.push('\n'),
                    escaped @ ('\\' | '"') => text.push(escaped),
                    other => panic!("escape {other}: {line}"),
                },
                (at, '"') => break at,
                (_, letter) => text.push(letter),
            }
        };
        labels.push((name.to_owned(), text));
        rest = &value[close + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, rest.strip_prefix('}').expect(line)),
        }
    }
}

#[test]
fn they_are_openmetrics_and_have_every_name_of_the_alert_rules_and_the_dashboard() {
    let namespace = Namespace::new("metrics");
    let odd = "\n[[approval]]\nid = \"a \\\"b\\\" \\\\ c\"\nkind = \"leased-line\"\nowner = \"o\"\nreference = \"r\"\nvalid_until = 2030-06-30\npath = { vlan = 7 }\n";
    let ended = approval("vpn", "ended", "valid_until = 2020-12-31\npeers = [\"203.0.113.2\"]");
    let (mut daemon, folder) = start(&namespace, &(approved() + odd + &ended));
    let session = [wireguard(), elsewhere()].concat();
    namespace.sender("far0").send(&session);
    daemon.record("the approved tunnel", |record| record["verdict"] == "authorized_leased_line");
    daemon.record("that of the ended approval", |record| record["reason"] == "approval_expired");
    let socket = folder.path().join("m.sock");
    let families = until("all is counted", || {
        let (head, text) = http(&socket, "GET /metrics");
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(
            head.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
            "{head}"
        );
        let families = parse(&text);
        let packets = families["linewarden_interface_packets"].samples.values().sum::<f64>();
        let has_seen_it = !families["linewarden_interface_last_packet_timestamp_seconds"].samples.is_empty();
        let is_used = !families["linewarden_approval_used_after_end_timestamp_seconds"].samples.is_empty();
        (packets == f64::from(session.len() as u32) && has_seen_it && is_used).then_some(families)
    });
    let value = |family: &str, labels: &[(&str, &str)]| -> f64 {
        let has = |found: &[(String, String)]| {
            labels.iter().all(|(name, value)| found.iter().any(|(n, v)| n == name && v == value))
        };
        let samples = families[family].samples.iter();
        let found: Vec<_> = samples.filter(|((_, found), _)| has(found)).map(|(_, value)| *value).collect();
        assert_eq!(found.len(), 1, "{family} {labels:?}");
        found[0]
    };
    let octets: u32 = session.iter().map(|frame| frame.wire_len).sum();
    assert_eq!(value("linewarden_interface_received_bytes", &[("interface", "wan0")]), f64::from(octets));
    assert_eq!(value("linewarden_interface_up", &[("interface", "wan0")]), 1.0);
    assert_eq!(value("linewarden_approval_expiry_timestamp_seconds", &[("approval", "a \"b\" \\ c")]), 1_909_094_400.0);
    assert!(value("linewarden_approval_used_after_end_timestamp_seconds", &[("approval", "ended")]) > 1_909_000.0);
    assert_eq!(value("linewarden_approval_warn_before_seconds", &[]), 30.0 * 86_400.0);
    assert_eq!(value("linewarden_approval_open_flows", &[("approval", "partner")]), 1.0);
    assert_eq!(value("linewarden_reload_success", &[]), 1.0);
    assert_eq!(value("linewarden_live_flows", &[("verdict", "authorized_leased_line")]), 1.0);
    assert!(value("linewarden_worker_lag_seconds", &[("worker", "1")]) < 10.0);

    // No address is a label, whoever talked to whom.
    for ((name, labels), _) in families.values().flat_map(|family| &family.samples) {
        for (label, value) in labels {
            assert!(value.parse::<std::net::IpAddr>().is_err() && !value.contains("198.51"), "{name} {label}={value}");
        }
    }

    let samples: BTreeSet<&str> =
        families.values().flat_map(|family| family.samples.keys()).map(|(name, _)| name.as_str()).collect();
    let shipped =
        |file: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)).unwrap();
    for file in ["prometheus-alerts.yml", "grafana-dashboard.json"] {
        let text = shipped(file);
        let used: BTreeSet<_> = text
            .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .filter(|word| word.starts_with("linewarden_"))
            .collect();
        assert!(used.len() > 10, "{file}: {used:?}");
        for name in used {
            assert!(samples.contains(name), "{file} names {name}, which is not measured");
        }
    }
    let dashboard: Value = serde_json::from_str(&shipped("grafana-dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().iter().all(|panel| panel["targets"][0]["expr"].is_string()));

    // A failed reload shows, and a good one after it.
    let file = folder.path().join("approvals.d/a.toml");
    fs::write(&file, "id = 1\n").unwrap();
    ctl(&folder, &["reload"]).expect(78);
    let reload = |what: &str| parse(&http(&socket, "GET /metrics").1)[what].samples.values().sum::<f64>();
    assert_eq!(reload("linewarden_reload_success"), 0.0);
    fs::write(&file, approved()).unwrap();
    ctl(&folder, &["reload"]).expect(0);
    assert_eq!(reload("linewarden_reload_success"), 1.0);
    assert_eq!(reload("linewarden_reloads"), 2.0);

    assert!(http(&socket, "GET /").0.starts_with("http/1.1 404 "));
    assert!(http(&socket, "HEAD /metrics").1.is_empty());
    let (head, _) = http(&socket, "POST /metrics");
    assert!(head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: get, head"), "{head}");
    // A head that is too long, and one that never ends: refused or closed, and others are served meanwhile.
    let mut long = UnixStream::connect(&socket).unwrap();
    let mut slow = UnixStream::connect(&socket).unwrap();
    let _ = long.write_all(format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)).as_bytes());
    slow.write_all(b"GET /metrics").unwrap();
    assert!(http(&socket, "GET /metrics").0.starts_with("http/1.1 200 "));
    for stream in [&mut long, &mut slow] {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        let closed = stream.read_to_end(&mut answer);
        assert!(!matches!(&closed, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "not closed");
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    }
    end(&mut daemon);
    assert!(!socket.exists());
}

#[test]
fn a_loopback_port_serves_them_and_one_that_is_taken_is_said() {
    let namespace = Namespace::new("port");
    let settings =
        "[capture]\ninterfaces = [\"wan0\"]\n[control]\nsocket = \"c.sock\"\n[metrics]\nlisten = \"127.0.0.1:9470\"\n";
    let folder = folder(&[("approvals.d/none", ""), ("s.toml", settings)]);
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    let sandbox = daemon.says("sandbox in force");
    assert!(sandbox.contains("system_calls=\"restricted\""), "{sandbox}");
    daemon.says("capturing");
    let fetch = "import urllib.request
answer = urllib.request.urlopen('http://127.0.0.1:9470/metrics')
print(answer.headers['content-type'])
print(answer.read().decode(), end='')";
    let done_well = done(namespace.command("python3").args(["-c", fetch])).expect(0);
    let (kind, text) = done_well.out.split_once('\n').unwrap();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let families = parse(text);
    assert!(families["linewarden_approval_expiry_timestamp_seconds"].samples.is_empty(), "no approvals");
    let other = settings.replace("c.sock", "d.sock");
    fs::write(folder.path().join("t.toml"), other).unwrap();
    let mut second = namespace.command("timeout");
    second.args(["--signal=KILL", "60", crate::LINEWARDEN, "run", "--config", "t.toml", "--approvals", "approvals.d"]);
    let refused = done(second.current_dir(folder.path())).expect(78);
    assert!(
        refused.err.contains("metrics.listen: 127.0.0.1:9470: cannot listen there: Address already in use"),
        "{}",
        refused.err
    );
    end(&mut daemon);
}
