//! The page: well-formed, fetches nothing, and takes nothing that it is told for markup.

use std::fs;
use std::path::Path;

use super::{DAY, PEER, log, report};
use crate::common::command::{approval, assert_says, folder, run};
use crate::logs::{lines, replayed};

/// Elements of a page that must balance, and what stands between them; fails where they do not.
fn texts(page: &str) -> String {
    const EMPTY: [&str; 4] = ["meta", "br", "!DOCTYPE", "link"];
    let (mut open, mut texts, mut rest) = (Vec::new(), String::new(), page);
    while let Some((text, tag)) = rest.split_once('<') {
        texts.push_str(text);
        let (tag, after) = tag.split_once('>').expect("a tag that does not end");
        rest = after;
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
            continue;
        }
        let name = tag.split_whitespace().next().unwrap();
        let names: Vec<_> = tag.split('"').step_by(2).filter_map(|part| part.trim().strip_suffix('=')).collect();
        assert!(names.iter().enumerate().all(|(at, name)| !names[..at].contains(name)), "an attribute twice: <{tag}>");
        assert!(names.iter().all(|name| !name.starts_with("on")), "a script: <{tag}>");
        if !EMPTY.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    texts + rest
}

#[track_caller]
fn assert_safe(page: &str) {
    let page = page.to_lowercase();
    for word in [
        "http:",
        "https:",
        "src=",
        "<script",
        "<iframe",
        "<object",
        "<embed",
        "<link",
        "<img",
        "@import",
        "javascript:",
        "xlink",
    ] {
        assert!(
            !page.contains(word),
            "{word}: {}",
            page.split(word).next().unwrap_or_default().lines().last().unwrap_or_default()
        );
    }
    for (word, may) in [("href=\"", "#"), ("url(", "#")] {
        for (at, _) in page.match_indices(word) {
            assert!(page[at + word.len()..].starts_with(may), "{}", &page[at..at + 40]);
        }
    }
}

const HOSTILE: &str = r#"<script>alert("1")</script>'&\u003c<img onerror=x>"#;

#[test]
fn the_page_is_well_formed_and_fetches_nothing() {
    let folder = log(lines(), &[]);
    let to = folder.path().join("r.html");
    let range = ["--from", "2026-11-20", "--to", "2026-11-28", "--no-verify", "--out", to.to_str().unwrap()];
    assert_eq!(report(folder.path(), &range).expect(0).out, "");
    let page = fs::read_to_string(&to).unwrap();
    assert_safe(&page);
    let texts = texts(&page);
    assert_says(
        &texts,
        &[
            "Evidence not complete",
            "Which approvals were in force, and what they say, is not known",
            "unapproved_vpn_tunnel",
            "an auditor",
            "openvpn.client_reset",
            "WireGuard whitepaper 5.4.2",
            "linewarden explain --log",
            "linewarden verify-log",
        ],
    );
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Content-Security-Policy"));
    assert!(!Path::new(&to.with_added_extension("part")).exists());
}

#[test]
fn whatever_a_name_is_it_stays_text() {
    let owner = HOSTILE.replace('\\', r"\\").replace('"', r#"\""#);
    let hostile = approval("vpn", "partner", PEER).replace("network team", &owner);
    let folder = replayed(&["wireguard-port-51820"], &hostile);
    let log = folder.path().join("log");
    // And a sensor, an interface and events that somebody made up.
    let record = fs::read_to_string(log.join("linewarden.ndjson")).unwrap();
    let json = serde_json::to_string(HOSTILE).unwrap();
    fs::write(log.join("linewarden.ndjson"), record.replace("\"input.pcap\"", &json).replace("\"test\"", &json))
        .unwrap();
    let event = |seq: u32, rest: &str| {
        format!(
            "{{\"version\":1,\"seq\":{seq},\"time\":\"2026-11-24T10:0{seq}:00.000000000Z\",\"sensor\":{json},{rest}}}\n"
        )
    };
    let start = format!(
        "\"kind\":\"start\",\"program_version\":{json},\"settings_sha256\":{json},\"interfaces\":[{json}],\"workers\":1,\"capabilities\":[],\"kernel_fast_path\":true"
    );
    let failed = format!("\"kind\":\"reload_failed\",\"revision\":{json},\"errors\":[{json}]");
    fs::write(log.join("sensor.ndjson"), event(1, &start) + &event(2, &failed)).unwrap();
    for (range, by) in [(DAY, HOSTILE), (["--from", "2026-11-24T07:54:51", "--to", "2026-11-24T12:00"], "\"><b>")] {
        let arguments = ["report", log.to_str().unwrap(), "--by", by, "--no-verify"];
        let page = run(arguments.iter().chain(&range)).expect(0).out;
        let texts = texts(&page);
        assert!(page.to_lowercase().matches("onerror=x").count() >= 5, "they are there");
        assert_eq!(page.matches("<img").count() + page.matches("<b>\"").count(), 0);
        assert_eq!(texts.matches("&lt;script&gt;alert(&quot;1&quot;)").count(), texts.matches("alert(").count());
        assert_safe(&page);
    }
}

#[test]
fn a_folder_with_a_strange_name_is_quoted_for_the_shell() {
    let folder = folder(&[("it's $(here) & there/.keep", "")]);
    let log = folder.path().join("it's $(here) & there");
    fs::write(log.join("linewarden.ndjson"), lines()[..200].concat_lines()).unwrap();
    let page = report(&log, &["--from", "2026-11-27", "--to", "2026-11-27"]).expect(0).out;
    texts(&page);
    assert_says(&page, &[r"verify-log '", r"/it'\''s $(here) &amp; there'"]);
}

trait Lines {
    fn concat_lines(&self) -> String;
}

impl Lines for [String] {
    fn concat_lines(&self) -> String {
        self.iter().flat_map(|line| [line, "\n"]).collect()
    }
}
