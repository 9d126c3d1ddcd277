//! `linewarden diff-policy`: flows are judged again by both sets, and what the log cannot tell is said.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::logs::replayed;
use crate::common::command::{Done, approval, assert_says, run};

const PEER: &str = "valid_until = 2099-01-01\npeers = [\"198.51.100.2\"]\ntunnels = [\"wireguard\"]";

/// Writes both sets beside the log, and compares.
fn diff(folder: &TempDir, old: &str, new: &str, more: &[&str]) -> Done {
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, text) in [("old.d", old), ("new.d", new)] {
        fs::create_dir_all(path(name)).unwrap();
        fs::write(folder.path().join(name).join("a.toml"), text).unwrap();
    }
    let (old, new, log) = (path("old.d"), path("new.d"), path("log"));
    run(["diff-policy", &old, &new, "--log", &log].iter().chain(more))
}

#[test]
fn flows_whose_verdict_changes_are_named() {
    let folder = replayed(&["wireguard-port-51820", "esp-udp", "benign-dnsmasq-dns"], "");
    let new = approval("vpn", "partner", PEER);
    let done = diff(&folder, "", &new, &["--format", "ndjson"]).expect(2);
    let changes = done.records();
    assert_eq!(changes.len(), 1, "{changes:?}");
    let change = &changes[0];
    assert_eq!(change["flow_id"], "84f720bee2edfd57");
    assert_eq!(
        [&change["old_verdict"], &change["old_reason"], &change["old_approval"]],
        [&json!("unapproved_vpn_tunnel"), &json!("no_approval"), &json!(null)]
    );
    assert_eq!(
        [&change["new_verdict"], &change["new_reason"], &change["new_approval"]],
        [&json!("authorized_leased_line"), &json!("approved"), &json!("partner")]
    );
    assert_eq!(change["keys_untried"], false);
    assert_says(
        &done.err,
        &[
            "1 verdicts change",
            "1 from unapproved_vpn_tunnel to authorized_leased_line",
            "more keep their label for another reason or by another approval (--reasons names them)",
            "1 flows would change their verdict",
        ],
    );
    // Backwards; the log was written without approvals.
    let back = diff(&folder, &new, "", &[]).expect(2);
    assert_says(
        &back.out,
        &["authorized_leased_line: approved (partner)", "unapproved_vpn_tunnel: no_approval", "84f720bee2edfd57"],
    );
    assert_says(&back.err, &["1 were logged with another label than OLD gives"]);
    let csv = diff(&folder, "", &new, &["--format", "csv", "--quiet"]).expect(2);
    assert!(csv.out.starts_with("flow_id,start,end,interface,proto,src_ip,"), "{}", csv.out);
    assert_eq!(csv.out.lines().count(), 2);
    // Whoever names an approval does not compute in a spreadsheet.
    let formula = approval("vpn", "=1+1", PEER);
    let csv = diff(&folder, "", &formula, &["--format", "csv", "--quiet"]).expect(2);
    assert!(csv.out.contains(",approved,'=1+1,") && csv.out.lines().count() == 2, "{}", csv.out);
    // Neither changes anything.
    let same = diff(&folder, &new, &new, &[]).expect(0);
    assert_eq!(same.out, "");
    assert_says(&same.err, &["0 verdicts change"]);
    // Another time, other flows.
    let later = diff(&folder, "", &new, &["--from", "2026-11-24T07:54:52"]).expect(0);
    assert_says(&later.err, &["0 verdicts change"]);
}

#[test]
fn another_reason_or_approval_is_no_other_verdict() {
    let folder = replayed(&["wireguard-port-51820"], "");
    let (one, other) = (approval("vpn", "one", PEER), approval("vpn", "other", PEER));
    let done = diff(&folder, &one, &other, &[]).expect(0);
    assert_eq!(done.out, "");
    assert_says(&done.err, &["1 more keep their label"]);
    let named = diff(&folder, &one, &other, &["--reasons"]).expect(0);
    assert_says(&named.out, &["authorized_leased_line: approved (one)", "authorized_leased_line: approved (other)"]);
    let over = approval("vpn", "one", &PEER.replace("2099-01-01", "2020-01-01"));
    let done = diff(&folder, &one, &over, &["--format", "ndjson"]).expect(2);
    assert_eq!(done.records()[0]["new_reason"], "approval_expired");
}

/// A path needs no tunnel: what shows none is judged, too.
#[test]
fn plain_flows_are_judged_by_their_path() {
    let folder = replayed(&["benign-dnsmasq-dns"], "");
    let line = approval("leased-line", "line", "valid_until = 2099-01-01\npath = { interface = \"input.pcap\" }");
    let done = diff(&folder, "", &line, &["--format", "ndjson"]).expect(2);
    let changes = done.records();
    assert!(changes.len() > 10);
    assert!(changes.iter().all(|change| change["old_verdict"] == "other" && change["new_approval"] == "line"));
}

#[test]
fn keys_that_were_not_tried_are_said_to_be() {
    let pins =
        |key: &str| approval("vpn", "a", &format!("{PEER}\nidentity = {{ wireguard_public_keys = [\"{key}\"] }}"));
    let (right, wrong) =
        (pins("sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA="), pins("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="));
    let plain = approval("vpn", "a", PEER);
    // Logged while the right key was pinned: the log holds that it verified.
    let folder = replayed(&["wireguard-pinned"], &right);
    let kept = diff(&folder, &right, &plain, &["--reasons", "--format", "ndjson"]).expect(0);
    let change = &kept.records()[0];
    assert_eq!([&change["old_reason"], &change["new_reason"]], [&json!("approved_by_key"), &json!("approved")]);
    assert_eq!(change["keys_untried"], false);
    // Nobody tried the wrong one.
    let unknown = diff(&folder, &right, &wrong, &["--reasons", "--format", "ndjson"]).expect(0);
    let change = &unknown.records()[0];
    assert_eq!([&change["new_reason"], &change["keys_untried"]], [&json!("identity_unverified"), &json!(true)]);
    assert_says(&unknown.err, &["cannot be told for sure: keys are pinned that were not tried when they were logged"]);
    // Logged while the wrong key was pinned: a mismatch, and the right one is not known to fit.
    let folder = replayed(&["wireguard-pinned"], &wrong);
    let done = diff(&folder, &wrong, &right, &["--format", "ndjson"]).expect(2);
    let change = &done.records()[0];
    assert_eq!(
        [&change["old_reason"], &change["new_reason"]],
        [&json!("identity_mismatch"), &json!("identity_unverified")]
    );
    assert_eq!(change["keys_untried"], true);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = replayed(&["wireguard-port-51820"], "");
    let bad = diff(&folder, "", "id = 7\n", &[]).expect(78);
    assert_says(&bad.err, &["new.d/a.toml:1:"]);
    let here = folder.path().join("log");
    let here = here.to_str().unwrap();
    assert_says(
        &run(["diff-policy", here, "/nonexistent"]).expect(78).err,
        &["/nonexistent: is no folder of approvals"],
    );
    assert_says(
        &run(["diff-policy", here, here, "--log", "/nonexistent"]).expect(65).err,
        &["/nonexistent: cannot be read"],
    );
    assert_says(&run(["diff-policy", here]).expect(64).err, &["<NEW>"]);
    assert_says(&run(["diff-policy", here, here, "--from", "x"]).expect(64).err, &["--from x: is no time"]);
    assert_says(
        &run(["diff-policy", here, here, "--format", "xml"]).expect(64).err,
        &["[possible values: table, ndjson, csv]"],
    );
}
