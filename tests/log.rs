//! The log as auditors meet it: whatever is done to it, `verify-log` says so and where; whatever ends the sensor, the log
//! verifies and goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "log/forged.rs"]
mod forged;
#[path = "log/rotating.rs"]
mod rotating;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::command::{Done, assert_says, run};
use linewarden::config::LogConfig;
use linewarden::daemon::clock;
use linewarden::sink::sealed::SealedLog;
use linewarden::sink::sealed::heads;
use linewarden::sink::sealed::key::PublicKey;
use linewarden::sink::sealed::segments::{self, Listing};
use linewarden::store::verify::{Finding, Means, Report, What, verify};
use linewarden::time::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;

const LOG: &str = "linewarden";

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + seconds)
}

fn small_segments() -> LogConfig {
    LogConfig { rotate_octets: 256 << 10, compress: false, ..LogConfig::default() }
}

/// A line as long as a record's, of a length of its own.
fn line(seq: u64) -> Value {
    json!({"version": 1, "seq": seq, "kind": "end", "text": "x".repeat(500 + (seq as usize * 7919) % 211)})
}

fn open(folder: &Path, config: &LogConfig, now: Timestamp) -> SealedLog {
    SealedLog::open(&folder.join("log"), LOG, &folder.join("state"), config, now).unwrap()
}

/// Three closed segments and one that is written, about 100 records in each of their batches, from two runs.
fn written(config: &LogConfig) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut seq = 0;
    for run in 0..2 {
        let mut log = open(folder.path(), config, at(1000 * run));
        for batch in 0..11 {
            for _ in 0..112 {
                seq += 1;
                log.write(&line(seq));
            }
            log.sync(at(1000 * run + batch + 1));
        }
        log.settle(at(1000 * run + 20));
        log.close(at(1000 * run + 30));
    }
    assert_eq!(listing(folder.path()).closed.len(), 5);
    folder
}

fn listing(folder: &Path) -> Listing {
    Listing::read(&folder.join("log"), LOG).unwrap()
}

fn data(folder: &Path, segment: u64) -> PathBuf {
    listing(folder).closed[&segment].data.clone().unwrap()
}

fn seals(folder: &Path, segment: u64) -> PathBuf {
    listing(folder).closed[&segment].seals.clone().unwrap()
}

fn live(folder: &Path, suffix: &str) -> PathBuf {
    segments::live(&folder.join("log"), LOG, suffix)
}

/// The one log of a folder, with or without the heads that its sensor kept.
fn verified(folder: &Path, with_heads: bool) -> Report {
    let key = PublicKey::load(&folder.join("state/sensor.pub")).unwrap();
    let heads = heads::read(&heads::path(&folder.join("state"), LOG)).map(|read| read.0);
    let heads = if with_heads { heads.unwrap_or_default() } else { Vec::new() };
    let means = Means { keys: &[key], heads: &heads, threads: 2, progress: &|_| {} };
    verify(&folder.join("log"), &means).unwrap().remove(0)
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for below in ["log", "state"] {
        fs::create_dir(to.path().join(below)).unwrap();
        for entry in fs::read_dir(from.join(below)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.path().join(below).join(path.file_name().unwrap())).unwrap();
        }
    }
    to
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let octets = fs::read(path).unwrap();
    let mut lines = octets.split_inclusive(|&octet| octet == b'\n').map(<[u8]>::to_vec).collect();
    edit(&mut lines);
    fs::write(path, lines.concat()).unwrap();
}

fn seqs(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
}

/// The only finding.
#[track_caller]
fn only(report: &Report) -> &Finding {
    assert!(!report.is_whole);
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    &report.findings[0]
}

/// A place: kind, segment, whether the line (from 1) is in the range that is named.
#[track_caller]
fn assert_place(finding: &Finding, what: What, segment: u64, line: u64) {
    assert_eq!((finding.what, finding.segment), (what, Some(segment)), "{finding}");
    let (from, to) = finding.lines.unwrap();
    assert!((from..=to).contains(&line), "line {line}: {finding}");
    assert!(to - from < 400, "it is named as narrowly as its batch: {finding}");
}

#[test]
fn a_log_that_nobody_touched_is_whole_however_it_is_packed() {
    let folder = written(&small_segments());
    let report = verified(folder.path(), true);
    assert!(report.is_whole, "{:#?}", report.findings);
    assert_eq!((report.segments, report.records, report.breaks.len()), (6, 2 * 11 * 112, 0));
    assert_eq!(report.signed.as_ref().unwrap().total_records, report.records);
    assert!(report.heads > 10);

    let packed = written(&LogConfig { compress: true, ..small_segments() });
    assert!(data(packed.path(), 1).extension().unwrap() == "zst");
    assert!(verified(packed.path(), true).is_whole);

    // As logrotate and people do it: other names, gzip.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&fs::read(data(folder.path(), 2)).unwrap()).unwrap();
    fs::write(folder.path().join("log/linewarden.ndjson.2.gz"), gzip.finish().unwrap()).unwrap();
    fs::remove_file(data(folder.path(), 2)).unwrap();
    fs::rename(data(folder.path(), 1), folder.path().join("log/linewarden.ndjson-20231114")).unwrap();
    let report = verified(folder.path(), true);
    assert!(report.is_whole, "{:#?}", report.findings);
    assert_eq!((report.segments, report.records), (6, 2 * 11 * 112));
}

#[test]
fn every_seal_is_as_its_schema_documents_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { rotate_octets: 64 << 10, keep_octets: 400 << 10, ..small_segments() };
    for run in 0..2 {
        let mut log = open(folder.path(), &config, at(1000 * run));
        for seq in 1..=1000 {
            log.write(&line(seq));
            if seq % 100 == 0 {
                log.sync(at(1000 * run + seq / 100));
            }
        }
        log.close(at(1000 * run + 100));
        drop(log);
        let mut records = fs::OpenOptions::new().append(true).open(live(folder.path(), "ndjson")).unwrap();
        records.write_all(b"{\"torn").unwrap();
    }
    drop(open(folder.path(), &config, at(3000)));
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seal.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let listing = listing(folder.path());
    let mut fields = std::collections::BTreeSet::new();
    for files in listing.closed.values().chain([&listing.live]) {
        for line in fs::read_to_string(files.seals.as_ref().unwrap()).unwrap().lines() {
            let seal: Value = serde_json::from_str(line).unwrap();
            if let Err(error) = validator.validate(&seal) {
                panic!("{error}\n{line}");
            }
            fields.extend(seal.as_object().unwrap().keys().cloned());
        }
    }
    // All but those of a log that somebody cut.
    let documented = schema["properties"].as_object().unwrap().keys().filter(|key| !key.starts_with("missing"));
    assert_eq!(fields.iter().collect::<Vec<_>>(), documented.collect::<Vec<_>>());
}

#[test]
fn a_change_of_any_kind_is_found_where_it_is() {
    let original = written(&small_segments());
    let packed = written(&LogConfig { compress: true, ..small_segments() });
    let first = seqs(&data(original.path(), 2))[0];
    // A line in the middle of the second segment.
    let n = 150;
    for is_packed in [false, true] {
        let change = |change: &dyn Fn(&mut Vec<Vec<u8>>)| -> Report {
            let folder = copy(if is_packed { packed.path() } else { original.path() });
            let path = data(folder.path(), 2);
            if is_packed {
                let plain = folder.path().join("log/plain");
                fs::write(&plain, zstd::decode_all(fs::File::open(&path).unwrap()).unwrap()).unwrap();
                edit(&plain, change);
                fs::write(&path, zstd::encode_all(fs::File::open(&plain).unwrap(), 1).unwrap()).unwrap();
            } else {
                edit(&path, change);
            }
            verified(folder.path(), true)
        };
        let report = change(&|lines| lines[n][20] ^= 1);
        assert_place(only(&report), What::Changed, 2, n as u64 + 1);
        let report = change(&|lines| lines[n][0] = b'[');
        assert_place(only(&report), What::Changed, 2, n as u64 + 1);
        assert!(only(&report).text.contains(&format!("line {} of the file is no JSON", n + 1)), "{}", only(&report));

        let report = change(&|lines| drop(lines.remove(n)));
        assert_place(only(&report), What::Removed, 2, n as u64 + 1);
        assert_eq!(only(&report).missing_seq, [(first + n as u64, first + n as u64)]);
        let report = change(&|lines| drop(lines.drain(50..300)));
        assert_eq!(
            (only(&report).what, &*only(&report).missing_seq),
            (What::Removed, &[(first + 50, first + 299)][..])
        );
        let report = change(&|lines| drop(lines.remove(0)));
        assert_place(only(&report), What::Removed, 2, 1);
        assert_eq!(only(&report).missing_seq, [(first, first)]);

        let report = change(&|lines| lines.swap(n, n + 1));
        assert_place(only(&report), What::Reordered, 2, n as u64 + 1);
        let report = change(&|lines| lines.insert(n, lines[n].clone()));
        assert_place(only(&report), What::Inserted, 2, n as u64 + 1);
        let report = change(&|lines| lines.push(lines[n].clone()));
        let finding = only(&report);
        assert_eq!((finding.what, finding.segment), (What::Inserted, Some(2)), "{finding}");
        assert!(finding.text.contains("behind the last seal"), "{finding}");

        let report = change(&|lines| lines.truncate(lines.len() - 1));
        assert_eq!((only(&report).what, only(&report).segment), (What::Cut, Some(2)), "{}", only(&report));
        let report = change(&|lines| lines.clear());
        assert_eq!((only(&report).what, only(&report).lines.unwrap().0), (What::Cut, 1), "{}", only(&report));

        // Two at once are two findings, each where it is.
        let report = change(&|lines| {
            let last = lines.len() - 20;
            lines.remove(last);
            lines[10][30] ^= 4;
        });
        let found: Vec<_> = report.findings.iter().map(|finding| finding.what).collect();
        assert_eq!(found, [What::Changed, What::Removed], "{:#?}", report.findings);
        // One line away and another in, far from it.
        let report = change(&|lines| {
            lines.remove(10);
            let line = lines[300].clone();
            lines.insert(300, line);
        });
        let found: Vec<_> = report.findings.iter().map(|finding| finding.what).collect();
        assert_eq!(found, [What::Removed, What::Inserted], "{:#?}", report.findings);
    }
}

/// Every octet counts: of the records, and of the seals.
#[test]
fn no_octet_can_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path(), &small_segments(), at(0));
    (1..=3).for_each(|seq| log.write(&json!({"seq": seq})));
    log.sync(at(1));
    (4..=5).for_each(|seq| log.write(&json!({"seq": seq})));
    log.close(at(2));
    assert!(verified(folder.path(), false).is_whole);
    for suffix in ["ndjson", "seals"] {
        let path = live(folder.path(), suffix);
        let octets = fs::read(&path).unwrap();
        for place in 0..octets.len() {
            let mut changed = octets.clone();
            changed[place] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(!verified(folder.path(), true).is_whole, "{suffix}, octet {place}");
        }
        for len in 0..octets.len() {
            fs::write(&path, &octets[..len]).unwrap();
            let is_whole = verified(folder.path(), true).is_whole;
            assert!(!is_whole, "{suffix} cut to {len} octets");
        }
        fs::write(&path, &octets).unwrap();
    }
    assert!(verified(folder.path(), true).is_whole);
}

#[test]
fn segments_that_are_gone_or_changed_places_are_named() {
    let original = written(&small_segments());
    let taken = |change: &dyn Fn(&Path)| -> Report {
        let folder = copy(original.path());
        change(folder.path());
        verified(folder.path(), true)
    };
    let report = taken(&|folder| {
        fs::remove_file(data(folder, 2)).unwrap();
        fs::remove_file(seals(folder, 2)).unwrap();
    });
    let finding = only(&report);
    assert_eq!((finding.what, finding.segment), (What::MissingSegment, Some(2)), "{finding}");
    assert!(finding.text.contains("segment 2 is missing") && finding.seals.is_some(), "{finding}");

    let report = taken(&|folder| {
        fs::remove_file(data(folder, 1)).unwrap();
        fs::remove_file(seals(folder, 1)).unwrap();
    });
    let finding = only(&report);
    assert_eq!((finding.what, finding.segment), (What::MissingSegment, Some(1)), "{finding}");
    assert!(finding.text.contains("no signed seal says that retention removed it"), "{finding}");

    let report = taken(&|folder| fs::remove_file(data(folder, 3)).unwrap());
    let finding = only(&report);
    assert_eq!((finding.what, finding.segment), (What::MissingRecords, Some(3)), "{finding}");
    let report = taken(&|folder| fs::remove_file(seals(folder, 3)).unwrap());
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.what, finding.segment)).collect();
    assert_eq!(found, [(What::MissingSeals, Some(3)), (What::MissingSegment, Some(3))]);

    let swap = |one: &Path, other: &Path| {
        fs::rename(one, one.with_extension("x")).unwrap();
        fs::rename(other, one).unwrap();
        fs::rename(one.with_extension("x"), other).unwrap();
    };
    let report = taken(&|folder| swap(&data(folder, 1), &data(folder, 3)));
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.what, finding.segment)).collect();
    assert_eq!(found, [(What::Swapped, Some(1)), (What::Swapped, Some(3))]);
    assert!(report.findings[0].text.contains("holds the records of segment 3"), "{}", report.findings[0]);
    let report = taken(&|folder| {
        swap(&data(folder, 1), &data(folder, 3));
        swap(&seals(folder, 1), &seals(folder, 3));
    });
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.what, finding.segment)).collect();
    assert_eq!(found, [(What::Swapped, Some(1)), (What::Swapped, Some(3))]);
    // A segment twice.
    let report = taken(&|folder| {
        for path in [data(folder, 2), seals(folder, 2)] {
            let name = path.to_str().unwrap().replace("-000002", "-000009");
            fs::copy(&path, name).unwrap();
        }
    });
    assert!(report.findings.iter().any(|finding| finding.what == What::Inserted), "{:#?}", report.findings);
}

#[test]
fn seals_that_are_gone_or_out_of_order_are_named() {
    let original = written(&small_segments());
    let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| -> Report {
        let folder = copy(original.path());
        edit(&seals(folder.path(), 2), change);
        verified(folder.path(), true)
    };
    let kinds = |report: &Report| report.findings.iter().map(|finding| finding.what).collect::<Vec<_>>();
    let report = changed(&|lines| drop(lines.remove(2)));
    assert_eq!(kinds(&report)[0], What::MissingSeals, "{:#?}", report.findings);
    let report = changed(&|lines| lines.swap(1, 2));
    assert!(kinds(&report).contains(&What::ChangedSeal), "{:#?}", report.findings);
    let report = changed(&|lines| lines[2] = b"what?\n".to_vec());
    assert!(kinds(&report).contains(&What::ChangedSeal), "{:#?}", report.findings);
    assert!(report.findings[0].text.contains("line 3 of the seals is none"), "{}", report.findings[0]);
    let report = changed(&|lines| *lines = vec![vec![0xff; 100_000]]);
    assert_eq!(kinds(&report)[0], What::MissingSeals, "{:#?}", report.findings);
    let report = changed(&Vec::clear);
    assert!(report.findings[0].text.contains("there is no seal in the file"), "{}", report.findings[0]);
}

/// The next start seals them, and does not make them the sensor's by that.
#[test]
fn lines_that_somebody_put_behind_a_closed_log_are_found_before_and_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path(), &small_segments(), at(0));
    (1..=3).for_each(|seq| log.write(&line(seq)));
    log.close(at(1));
    drop(log);
    let foreign = format!("{}\n{}\n", line(4), line(5));
    fs::OpenOptions::new()
        .append(true)
        .open(live(folder.path(), "ndjson"))
        .unwrap()
        .write_all(foreign.as_bytes())
        .unwrap();
    let report = verified(folder.path(), true);
    assert_eq!((only(&report).what, only(&report).segment), (What::Inserted, Some(1)), "{}", only(&report));
    for run in 1..3 {
        let mut log = open(folder.path(), &small_segments(), at(10 * run));
        log.write(&line(5 + run));
        log.close(at(10 * run + 1));
        drop(log);
        let report = verified(folder.path(), true);
        assert_place(only(&report), What::Inserted, 1, 4);
        assert_says(&only(&report).text, &["no run of the sensor wrote them"]);
        assert_eq!(report.breaks, [], "and no run ended otherwise than it should");
    }
}

/// The end of a log is where nothing follows that could miss it.
#[test]
fn a_cut_tail_shows_by_the_heads_that_were_kept() {
    let folder = written(&small_segments());
    let path = live(folder.path(), "seals");
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<_> = text.lines().take(3).collect();
    let last: Value = serde_json::from_str(kept[2]).unwrap();
    let end = last["offset"].as_u64().unwrap() + last["octets"].as_u64().unwrap();
    fs::write(&path, kept.join("\n") + "\n").unwrap();
    let records = fs::OpenOptions::new().write(true).open(live(folder.path(), "ndjson")).unwrap();
    records.set_len(end).unwrap();
    let report = verified(folder.path(), false);
    assert!(report.is_whole, "nothing that is here says so: {:#?}", report.findings);
    let report = verified(folder.path(), true);
    let finding = only(&report);
    assert_eq!(finding.what, What::Cut);
    assert_eq!(finding.seals.unwrap().0, last["seal"].as_u64().unwrap() + 1);
    assert!(finding.text.contains("the log ends before what the sensor signed"), "{finding}");
    // The sensor itself goes on, and that is not forgotten.
    let mut log = open(folder.path(), &small_segments(), at(5000));
    log.write(&line(9999));
    log.close(at(5001));
    let report = verified(folder.path(), false);
    let finding = report.findings.iter().find(|finding| finding.what == What::MissingSeals).unwrap();
    assert!(finding.text.contains("as the sensor noticed itself"), "{finding}");
}

/// Seals that a crash left without a whole line look like emptied ones: what tells them apart is kept elsewhere.
#[test]
fn an_emptied_segment_shows_by_the_heads_that_were_kept() {
    let folder = written(&small_segments());
    for suffix in ["seals", "ndjson"] {
        fs::write(live(folder.path(), suffix), "").unwrap();
    }
    assert!(verified(folder.path(), false).is_whole);
    let report = verified(folder.path(), true);
    assert_eq!(only(&report).what, What::Cut);
}

#[test]
fn a_log_written_anew_with_another_key_is_not_the_sensors() {
    let folder = written(&small_segments());
    let forged = written(&small_segments());
    fs::remove_dir_all(folder.path().join("log")).unwrap();
    fs::rename(forged.path().join("log"), folder.path().join("log")).unwrap();
    let report = verified(folder.path(), false);
    assert!(report.findings.iter().all(|finding| finding.what == What::Signature), "{:#?}", report.findings);
    assert_says(&report.findings[0].text, &["signed by another key than yours"]);
    // Where the sensor's key was replaced, both are given.
    let keys: Vec<_> =
        [&folder, &forged].map(|of| PublicKey::load(&of.path().join("state/sensor.pub")).unwrap()).into();
    let means = Means { keys: &keys, heads: &[], threads: 1, progress: &|_| {} };
    assert!(verify(&folder.path().join("log"), &means).unwrap()[0].is_whole);
    // And the heads that the sensor kept speak against it even so.
    let heads = heads::read(&heads::path(&folder.path().join("state"), LOG)).unwrap().0;
    let report = verify(&folder.path().join("log"), &Means { heads: &heads, ..means }).unwrap().remove(0);
    assert!(report.findings.iter().any(|finding| finding.text.contains("written anew")), "{:#?}", report.findings);
}

#[test]
fn what_retention_removed_is_no_finding_unless_somebody_removed_more() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { rotate_octets: 64 << 10, keep_octets: 400 << 10, ..small_segments() };
    let mut log = open(folder.path(), &config, at(0));
    for seq in 1..=3000 {
        log.write(&line(seq));
        if seq % 100 == 0 {
            log.sync(at(seq / 100));
        }
    }
    log.close(at(100));
    let report = verified(folder.path(), true);
    assert!(report.is_whole, "{:#?}", report.findings);
    let first = *listing(folder.path()).closed.keys().next().unwrap();
    assert!(first > 2);
    assert_eq!(report.removed_to, Some(first - 1));
    for path in &listing(folder.path()).closed[&first].all {
        fs::remove_file(path).unwrap();
    }
    let report = verified(folder.path(), true);
    let finding = only(&report);
    assert_eq!((finding.what, finding.segment), (What::MissingSegment, Some(first)), "{finding}");
}

fn verify_log(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Done {
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
    run(std::iter::once("verify-log".into()).chain(arguments))
}

#[test]
fn the_command_says_what_it_found_and_where_its_means_are() {
    let folder = written(&small_segments());
    let (log, state) = (folder.path().join("log"), folder.path().join("state"));
    let key = state.join("sensor.pub");
    let done = verify_log(&[&log, &"--key", &key, &"--heads", &state]).expect(0);
    assert_says(&done.out, &["linewarden: 6 segments", "2464 records", "compared with", "result     whole"]);
    let done = verify_log(&[&log, &"--key", &key]).expect(0);
    assert_says(&done.out, &["whether the end was cut off cannot be told"]);

    edit(&data(folder.path(), 2), |lines| drop(lines.remove(150)));
    let done = verify_log(&[&log, &"--key", &key]).expect(65);
    assert_says(
        &done.out,
        &["NOT WHOLE  removed, segment 2, seal ", "-000002.ndjson: 1 of ", "records missing by seq: "],
    );
    assert_says(&done.err, &["the log is NOT WHOLE: 1 findings"]);
    let done = verify_log(&[&log, &"--key", &key, &"--json"]).expect(65);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let finding = &report["logs"][0]["findings"][0];
    assert_eq!(
        (&report["is_whole"], &finding["what"], &finding["segment"]),
        (&json!(false), &json!("removed"), &json!(2))
    );

    // With settings, nothing else needs to be said.
    let config = folder.path().join("c.toml");
    let text = format!("[records]\ndir = \"{}\"\n[state]\ndir = \"{}\"\n", log.display(), state.display());
    fs::write(&config, text).unwrap();
    let done = verify_log(&[&"--config", &config]).expect(65);
    assert_says(&done.out, &["compared with"]);
}

#[test]
fn bad_input_has_its_exit_code_and_its_remedy() {
    let folder = written(&LogConfig { compress: true, ..small_segments() });
    let (log, state) = (folder.path().join("log"), folder.path().join("state"));
    let key = state.join("sensor.pub");
    let none = folder.path().join("none");
    fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = folder.path().join("empty");
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, "what?\n").unwrap();
    let cases: [(&[&dyn AsRef<std::ffi::OsStr>], i32, &str); 8] = [
        (&[&none], 1, "none: the log's folder cannot be read"),
        (&[&empty], 1, "empty: no sealed log is there"),
        (&[&garbage], 1, "garbage: the log's folder cannot be read"),
        (
            &[&log],
            78,
            "log/state/sensor.pub: the sensor's key cannot be read: No such file or directory (os error 2): name the sensor.pub",
        ),
        (&[&log, &"--key", &garbage], 78, "garbage holds no Ed25519 public key"),
        (&[&log, &"--key", &key, &"--heads", &garbage], 78, "garbage: signed heads cannot be read: 1 of its lines"),
        (
            &[&log, &"--key", &key, &"--heads", &empty],
            78,
            "empty: signed heads cannot be read: there is no file X.heads",
        ),
        (&[&log, &"--key", &key, &"--heads", &none], 78, "none: signed heads cannot be read"),
    ];
    for (arguments, code, text) in cases {
        let done = verify_log(arguments).expect(code);
        assert_says(&done.err, &[text]);
        assert_eq!(done.out, "");
    }
    // One line of the kept heads is damaged: the others are compared, and the log is verified.
    let kept = state.join("linewarden.heads");
    let octets = fs::read(&kept).unwrap();
    fs::write(&kept, [b"what?\n", octets.as_slice()].concat()).unwrap();
    let done = verify_log(&[&log, &"--key", &key, &"--heads", &state]).expect(78);
    assert_says(&done.out, &["result     whole", "compared with"]);
    assert_says(&done.err, &["linewarden.heads: signed heads cannot be read: 1 of its lines"]);
    fs::write(&kept, octets).unwrap();
    let secret = state.join("sensor.key");
    let done = verify_log(&[&log, &"--key", &secret]).expect(78);
    assert_says(&done.err, &["holds a secret key: name sensor.pub"]);

    let packed = data(folder.path(), 2);
    let octets = fs::read(&packed).unwrap();
    fs::write(&packed, &octets[..octets.len() / 2]).unwrap();
    let done = verify_log(&[&log, &"--key", &key]).expect(65);
    assert_says(&done.out, &["unreadable, segment 2", "cannot be unpacked behind octet"]);
    fs::write(live(folder.path(), "seals"), [0_u8, 255, 10, 13].repeat(9999)).unwrap();
    let done = verify_log(&[&log, &"--key", &key]).expect(65);
    assert_says(&done.out, &["missing_seals", "there is no seal in the file"]);
}

/// The writer of the test below, in a process of its own. It says what it handed over, after it did.
#[test]
#[ignore = "is killed: the test below starts it"]
fn a_writer_under_load() {
    let folder = PathBuf::from(std::env::var_os("LINEWARDEN_WRITER").unwrap());
    let mut seq: u64 = std::env::var("LINEWARDEN_FROM").unwrap().parse().unwrap();
    let mut log = open(&folder, &killed(), clock());
    let mut out = std::io::stdout().lock();
    loop {
        for _ in 0..=(seq % 61) {
            log.write(&line(seq));
            seq += 1;
        }
        log.tick(clock());
        writeln!(out, "\nwritten {}", seq - 1).unwrap();
    }
}

fn killed() -> LogConfig {
    LogConfig {
        rotate_octets: 512 << 10,
        sync_interval: std::time::Duration::from_millis(10),
        sign_interval: std::time::Duration::from_millis(50),
        ..LogConfig::default()
    }
}

#[test]
fn killed_at_any_moment_it_verifies_loses_nothing_that_was_handed_over_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut from, mut random) = (1, 0x2545_f491_4f6c_dd1d_u64);
    for round in 1..=42 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_writer_under_load", "--ignored", "--nocapture", "--test-threads=1"])
            .env("LINEWARDEN_WRITER", folder.path())
            .env("LINEWARDEN_FROM", from.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Marsaglia's xorshift: any moments, and the same in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut handed_over = from - 1;
        let mut left = random % 120;
        let mut line = String::new();
        while left > 0 {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the writer ended by itself in round {round}");
            if let Some(seq) = line.trim_end().strip_prefix("written ") {
                handed_over = seq.parse().unwrap();
                left -= 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts, too.
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let said =
            rest.lines().rev().skip(usize::from(!rest.ends_with('\n'))).find_map(|line| line.strip_prefix("written "));
        handed_over = said.map_or(handed_over, |seq| seq.parse().unwrap());

        // As the crash left it, then as the next start has put it in order.
        if live(folder.path(), "seals").exists() {
            let report = verified(folder.path(), true);
            assert!(report.is_whole, "round {round}: {:#?}", report.findings);
        }
        let mut log = open(folder.path(), &killed(), clock());
        log.settle(clock());
        log.close(clock());
        drop(log);
        let report = verified(folder.path(), true);
        assert!(report.is_whole, "round {round}: {:#?}", report.findings);
        let read = all_seqs(folder.path());
        assert_eq!(read, (1..=read.len() as u64).collect::<Vec<_>>(), "round {round}");
        assert!(
            read.len() as u64 >= handed_over,
            "round {round}: {handed_over} were handed over, {} are there",
            read.len()
        );
        from = read.len() as u64 + 1;
    }
    let report = verified(folder.path(), true);
    assert!(
        report.breaks.len() >= 35,
        "each kill is a break, but for those before the log was open: {}",
        report.breaks.len()
    );
    assert!(report.segments > 5, "{} segments", report.segments);
}

fn all_seqs(folder: &Path) -> Vec<u64> {
    let listing = listing(folder);
    let mut text = String::new();
    for files in listing.closed.values().chain([&listing.live]) {
        segments::open_data(files.data.as_ref().unwrap(), |_| {}).unwrap().read_to_string(&mut text).unwrap();
    }
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect()
}
