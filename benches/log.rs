//! What a record costs the log's task: its JSON, the hash of it, and the system call; on a file system in memory where there
//! is one, since the disk is the keeper's thread's matter.
#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, missing_docs, reason = "a bench")]

use std::path::Path;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use linewarden::config::LogConfig;
use linewarden::daemon::clock;
use linewarden::record::Record;
use linewarden::sink::ndjson::encode;
use linewarden::sink::sealed::SealedLog;

const BATCH: u64 = 1024;

/// Records of real captures, as their tests expect them.
fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for name in ["wireguard-port-51820", "benign-dnsmasq-dns", "esp-ip", "gre-ip"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name).join("expected.ndjson");
        let text = std::fs::read_to_string(path).unwrap();
        // The first line counts the calls of detectors.
        let lines = text.lines().filter(|line| line.contains("\"version\":"));
        records.extend(lines.map(|line| serde_json::from_str::<Record>(line).unwrap()));
    }
    records
}

fn log(criterion: &mut Criterion) {
    let records = records();
    let mut octets = BytesMut::new();
    records.iter().for_each(|record| encode(record, &mut octets));
    println!("{} octets a record", octets.len() / records.len());
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let config = LogConfig { compress: false, keep_octets: 600 << 20, ..LogConfig::default() };
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(BATCH));
    let mut cycle = records.iter().cycle();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            octets.clear();
            cycle.by_ref().take(BATCH as usize).for_each(|record| encode(record, &mut octets));
        });
    });
    let mut log =
        SealedLog::open(&folder.path().join("log"), "linewarden", &folder.path().join("state"), &config, clock())
            .unwrap();
    group.bench_function("encode, hash, write", |bencher| {
        bencher.iter(|| {
            cycle.by_ref().take(BATCH as usize).for_each(|record| log.write(record));
            log.tick(clock());
        });
    });
    group.finish();
    log.close(clock());
    assert_eq!(log.lost() + log.waiting(), 0);
}

criterion_group!(benches, log);
criterion_main!(benches);
