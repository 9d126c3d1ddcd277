//! What somebody with write access and without the key may try, so that a log with other records passes as whole.

use std::fs;
use std::path::Path;

use linewarden::sink::sealed::seal::{Batch, Chain, Kind, Seal};
use linewarden::store::verify::{Means, What, verify};

use super::*;

/// A seal as the sensor would write it, but for the signature.
fn unsigned(kind: Kind, segment: u64, lines: &[u8], before: &Seal) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.add(lines, lines.split_inclusive(|&octet| octet == b'\n').count() as u64);
    let offset = if segment == before.segment { before.end() } else { 0 };
    let mut chain = Chain::new(LOG);
    chain.go_to(before.seal, before.chain);
    let mut line = Vec::new();
    chain.append(Seal::new(kind, segment, offset, batch, at(9000)), None, &mut line);
    line
}

fn last_seal(path: &Path) -> Seal {
    let mut last = None;
    segments::read_seals(path, |line| last = line.seal.ok().map(|(seal, _)| seal)).unwrap();
    last.unwrap()
}

fn append(path: &Path, octets: &[u8]) {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(octets).unwrap();
}

#[test]
fn a_signature_taken_from_another_seal_removes_nothing() {
    let folder = written(&small_segments());
    // The signed `open` of the first segment says now that retention removed the first three.
    let text = fs::read_to_string(seals(folder.path(), 1)).unwrap();
    let open: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let chain = last_seal(&seals(folder.path(), 3)).chain;
    let forged = |to: u64| {
        let field = |name: &str| open[name].to_string();
        let names = ["segment", "offset", "octets", "records", "sha256", "time"];
        let fields: Vec<_> = names.iter().map(|name| format!("\"{name}\":{}", field(name))).collect();
        format!(
            "{{\"seal\":{},\"kind\":\"removed\",{},\"removed_to\":{to},\"removed_chain\":\"{chain}\",\"total_records\":{},\"total_octets\":{},\"chain\":{},\"signature\":{}}}\n",
            field("seal"),
            fields.join(","),
            field("total_records"),
            field("total_octets"),
            field("chain"),
            field("signature"),
        )
    };
    for segment in 1..=3 {
        for path in &listing(folder.path()).closed[&segment].all {
            fs::remove_file(path).unwrap();
        }
    }
    // Where the file that holds it is one of those removed, in a segment that is kept, and behind a seal of that.
    let kept = seals(folder.path(), 4);
    let whole = fs::read(&kept).unwrap();
    let own = folder.path().join("log/linewarden-20231114T221320Z-000001.seals");
    for (name, to) in [("its own", 3), ("kept", 3), ("kept, of none", 0)] {
        if name == "its own" {
            fs::write(&own, forged(to)).unwrap();
        } else {
            fs::write(&kept, [whole.as_slice(), forged(to).as_bytes()].concat()).unwrap();
        }
        let report = verified(folder.path(), true);
        let is_told = report.findings.iter().any(|finding| finding.what == What::MissingSegment);
        assert!(is_told && report.removed_to.is_none(), "{name}: {report:#?}");
        fs::write(&kept, &whole).unwrap();
        let _ = fs::remove_file(&own);
    }
}

#[test]
fn a_log_that_is_gone_altogether_is_missed_by_its_heads() {
    let folder = written(&small_segments());
    drop(SealedLog::open(&folder.path().join("log"), "sensor", &folder.path().join("state"), &small_segments(), at(1)));
    let key = PublicKey::load(&folder.path().join("state/sensor.pub")).unwrap();
    let heads = heads::read(&heads::path(&folder.path().join("state"), LOG)).unwrap().0;
    for entry in fs::read_dir(folder.path().join("log")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with(LOG) {
            fs::remove_file(path).unwrap();
        }
    }
    let means = Means { keys: &[key], heads: &heads, threads: 1, progress: &|_| {} };
    let reports = verify(&folder.path().join("log"), &means).unwrap();
    assert_eq!(reports.iter().map(|report| &*report.log).collect::<Vec<_>>(), [LOG, "sensor"]);
    assert_eq!(only(&reports[0]).what, What::Cut);
    assert!(reports[1].is_whole);
    // With nothing at all left, too.
    fs::remove_dir_all(folder.path().join("log")).unwrap();
    fs::create_dir(folder.path().join("log")).unwrap();
    assert_eq!(only(&verify(&folder.path().join("log"), &means).unwrap()[0]).what, What::Cut);
}

#[test]
fn nothing_unsigned_begins_a_segment_or_follows_a_close() {
    let folder = written(&small_segments());
    let lines = fs::read(data(folder.path(), 2)).unwrap();
    let (records, path) = (live(folder.path(), "ndjson"), live(folder.path(), "seals"));
    let last = last_seal(&path);
    assert_eq!(last.kind, Kind::Close);
    // Behind the close of the last run.
    let behind = copy(folder.path());
    append(&live(behind.path(), "ndjson"), &lines);
    append(&live(behind.path(), "seals"), &unsigned(Kind::Batch, last.segment, &lines, &last));
    let report = verified(behind.path(), true);
    assert_eq!((only(&report).what, only(&report).seals), (What::Inserted, Some((last.seal + 1, last.seal + 1))));
    // As what a crash left: no crash comes behind the end, and the next start signs none of it.
    let crashed = copy(folder.path());
    append(&live(crashed.path(), "ndjson"), &lines);
    append(&live(crashed.path(), "seals"), &unsigned(Kind::Recovered, last.segment, &lines, &last));
    let report = verified(crashed.path(), true);
    assert_eq!((only(&report).what, report.breaks.len()), (What::Inserted, 0), "{report:#?}");
    let mut log = open(crashed.path(), &small_segments(), at(1000));
    log.write(&line(1));
    log.close(at(1001));
    drop(log);
    let report = verified(crashed.path(), true);
    let inserted = report.findings.iter().filter(|finding| finding.what == What::Inserted);
    assert!(!report.is_whole && inserted.count() > 0, "{report:#?}");
    // In a segment of its own.
    for (from, suffix) in [(&records, "ndjson"), (&path, "seals")] {
        let name = format!("linewarden-20231114T223000Z-{:06}.{suffix}", last.segment);
        fs::rename(from, from.with_file_name(name)).unwrap();
    }
    append(&records, &lines);
    append(&path, &unsigned(Kind::Batch, last.segment + 1, &lines, &last));
    let report = verified(folder.path(), true);
    assert_eq!((only(&report).what, only(&report).segment), (What::Inserted, Some(last.segment + 1)));
    // What a crash left looks like this: nobody can sign it, and how much there is of it is said.
    fs::write(&path, unsigned(Kind::Recovered, last.segment + 1, &lines, &last)).unwrap();
    let report = verified(folder.path(), true);
    assert!(report.is_whole, "{report:#?}");
    let count = lines.split_inclusive(|&octet| octet == b'\n').count() as u64;
    assert_eq!((report.unsigned_records, report.breaks.len()), (count, 1));
}
