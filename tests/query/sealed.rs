//! A sealed log that somebody put files into: what `query` reads is what `verify-log` holds to the seals, and nothing else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use linewarden::config::LogConfig;
use linewarden::record::Record;
use linewarden::sink::archive::index::index_of;
use linewarden::sink::sealed::SealedLog;
use linewarden::sink::sealed::segments::Listing;
use linewarden::time::Timestamp;
use tempfile::TempDir;

use super::logs::lines;
use crate::common::command::{Done, assert_says, run};

/// Half of the lines written at each of these times, in seconds; segments of half a mebibyte.
fn sealed(compress: bool, times: [u64; 2]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { rotate_octets: 512 << 10, compress, ..LogConfig::default() };
    for (part, seconds) in lines().chunks(lines().len().div_ceil(2)).zip(times) {
        let at = Timestamp::from_secs(1_700_000_000 + seconds);
        let mut log = SealedLog::open(folder.path(), "linewarden", &folder.path().join("state"), &config, at).unwrap();
        for (line, number) in part.iter().zip(1..) {
            log.write(&serde_json::from_str::<Record>(line).unwrap());
            // Nothing is rotated while the disk is behind.
            if number % 200 == 0 {
                log.sync(at);
            }
        }
        log.rotate();
        log.settle(at);
        log.close(at);
    }
    folder
}

fn data(folder: &Path, segment: u64) -> PathBuf {
    Listing::read(folder, "linewarden").unwrap().closed[&segment].data.clone().unwrap()
}

/// Of a plain log of the same lines.
fn expected(arguments: &[&str]) -> String {
    let plain = super::logs::log(lines(), &[]);
    query(plain.path(), arguments).expect(0).out
}

fn query(folder: &Path, arguments: &[&str]) -> Done {
    run(["query", folder.to_str().unwrap()].iter().chain(arguments))
}

fn verify(folder: &Path) -> Done {
    run(["verify-log", folder.to_str().unwrap()])
}

const ALL: [&str; 3] = ["--kind", "all", "--count"];

#[test]
fn what_is_read_is_what_is_verified() {
    let all = expected(&ALL);
    let folder = sealed(false, [0, 1000]);
    let path = |name: &str| folder.path().join(name);
    // As logrotate and people do it: other names, gzip. Neither hides a record.
    fs::rename(data(folder.path(), 1), path("linewarden.ndjson.1")).unwrap();
    let second = data(folder.path(), 2);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&fs::read(&second).unwrap()).unwrap();
    fs::write(second.with_added_extension("gz"), gzip.finish().unwrap()).unwrap();
    fs::remove_file(&second).unwrap();
    let done = query(folder.path(), &ALL).expect(0);
    assert_eq!((done.out, done.err), (all.clone(), String::new()));
    assert_says(&verify(folder.path()).expect(0).out, &["result     whole"]);

    // What somebody put there is not counted, and told by both.
    let third = data(folder.path(), 3);
    let text = fs::read_to_string(&third).unwrap();
    let forged = text.replace("\"kind\":\"end\"", "\"kind\":\"update\"");
    assert_ne!(text, forged);
    let archive = zstd::encode_all(forged.as_bytes(), 1).unwrap();
    let packed = third.with_added_extension("zst");
    let strange: [(PathBuf, &[u8], &str); 5] = [
        (path("linewarden-evil.ndjson"), forged.as_bytes(), "no seal is of these records"),
        (path("linewarden.ndjson.7"), forged.as_bytes(), "no seal is of these records"),
        (path("linewarden-20290101T000000Z-900000.ndjson"), forged.as_bytes(), "no seal is of these records"),
        (path("linewarden-20290101T000000Z-000003.ndjson"), forged.as_bytes(), "there is another file"),
        (packed, &archive, "packed from other records"),
    ];
    for (path, octets, text) in strange {
        fs::write(&path, octets).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let done = query(folder.path(), &ALL).expect(0);
        assert_eq!(done.out, all, "{name}");
        let done = verify(folder.path()).expect(65);
        assert_says(&done.out, &["NOT WHOLE  inserted", name, text]);
        fs::remove_file(path).unwrap();
    }
    assert_says(&verify(folder.path()).expect(0).out, &["result     whole"]);
    // A whole segment with its seals, under a number of its own.
    let copy = path("linewarden-20290101T000000Z-000900.ndjson");
    for from in [third.clone(), third.with_extension("seals")] {
        fs::copy(&from, copy.with_extension(from.extension().unwrap())).unwrap();
    }
    let done = query(folder.path(), &ALL).expect(0);
    assert_eq!(done.out, all);
    assert_says(&done.err, &["-000900.ndjson: not read: it says that it is segment 3, and so does a file before it"]);
    assert_says(&verify(folder.path()).expect(65).out, &["there are two files of seals for this segment"]);
    for end in ["ndjson", "seals"] {
        fs::remove_file(copy.with_extension(end)).unwrap();
    }
    // An archive of the same beside the plain file is what an interrupted compression leaves.
    fs::write(third.with_added_extension("zst"), zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    assert_eq!(query(folder.path(), &ALL).expect(0).out, all);
    verify(folder.path()).expect(0);
}

#[test]
fn nothing_is_waited_for_without_end() {
    let folder = sealed(false, [0, 1000]);
    let fifo = |path: &Path| {
        fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let plain = data(folder.path(), 2);
    let octets = fs::read(&plain).unwrap();
    fifo(&plain);
    assert_says(
        &verify(folder.path()).expect(65).out,
        &["unreadable", "is no regular file", "missing_records, segment 2"],
    );
    assert_says(&query(folder.path(), &ALL).err, &["is no regular file"]);
    assert_says(&run(["query", plain.to_str().unwrap()]).expect(65).err, &["is no regular file"]);
    fs::remove_file(&plain).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &plain).unwrap();
    verify(folder.path()).expect(65);
    query(folder.path(), &ALL);
    fs::remove_file(&plain).unwrap();
    fs::write(&plain, octets).unwrap();
    verify(folder.path()).expect(0);
    for name in ["linewarden.ndjson", "linewarden.seals"] {
        let path = folder.path().join(name);
        let octets = fs::read(&path).unwrap();
        fifo(&path);
        assert_says(&verify(folder.path()).expect(65).out, &["is no regular file"]);
        query(folder.path(), &ALL);
        fs::remove_file(&path).unwrap();
        fs::write(&path, octets).unwrap();
    }
}

#[test]
fn an_index_that_hides_records_is_told() {
    let folder = sealed(true, [0, 1000]);
    verify(folder.path()).expect(0);
    let archive = data(folder.path(), 2);
    let index = index_of(&archive);
    let text = fs::read_to_string(&index).unwrap();
    let label = ["--label", "unapproved_vpn_tunnel", "--kind", "all", "--count"];
    let all = query(folder.path(), &label).expect(0).out;
    fs::write(&index, text.replace("unapproved_vpn_tunnel", "other")).unwrap();
    assert_ne!(query(folder.path(), &label).out, all, "it does hide some");
    let name = index.file_name().unwrap().to_str().unwrap();
    assert_says(&verify(folder.path()).expect(65).out, &["NOT WHOLE  changed, segment 2", name, "leaves out records"]);
    // Of the archive as a whole only, and one that cuts it otherwise than it is.
    let (header, frames) = text.split_once('\n').unwrap();
    fs::write(&index, [header.replace("unapproved_vpn_tunnel", "other").as_str(), frames].join("\n")).unwrap();
    assert_says(&verify(folder.path()).expect(65).out, &["what it says of the archive leaves out records"]);
    // One that is none is not asked: no harm.
    fs::write(&index, "rubbish\n").unwrap();
    verify(folder.path()).expect(0);
    assert_eq!(query(folder.path(), &label).expect(0).out, all);
}

/// Segments are in the order of their numbers: their names' times go back with the clock.
#[test]
fn a_clock_that_was_put_back_counts_no_flow_twice() {
    let folder = sealed(true, [90_000, 0]);
    assert_eq!(query(folder.path(), &["--count"]).expect(0).out, expected(&["--count"]));
    verify(folder.path()).expect(0);
}
