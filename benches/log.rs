//! What a record costs the log's task: its JSON, the hash of it, and the system call; on a file system in memory where there
//! is one, since the disk is the keeper's thread's matter. And what it costs the inventory's thread, which reads it there.
#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, missing_docs, reason = "a bench")]

use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use linewarden::config::LogConfig;
use linewarden::daemon::clock;
use linewarden::flow::FlowId;
use linewarden::policy::Label;
use linewarden::record::{Kind, Record};
use linewarden::sink::Sink;
use linewarden::sink::inventory::{self, Inventory, Settings};
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

/// A log of so many records, and an inventory made of it.
fn an_inventory(criterion: &mut Criterion) {
    const RECORDS: usize = 100_000;
    let (tunnels, others): (Vec<_>, Vec<_>) =
        records().into_iter().partition(|record| record.verdict != Label::Other && record.kind == Kind::End);
    let mut group = criterion.benchmark_group("inventory");
    group.throughput(Throughput::Elements(RECORDS as u64)).sample_size(10);
    for (name, records, fresh) in [
        ("of other flows", &others, false),
        ("of tunnels, ended", &tunnels, false),
        ("of tunnels, open", &tunnels, true),
    ] {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let [log_folder, state] = ["log", "state"].map(|name| folder.path().join(name));
        let config = LogConfig { compress: false, ..LogConfig::default() };
        let mut log = SealedLog::open(&log_folder, "linewarden", &state, &config, clock()).unwrap();
        let at_start = log.position().segment;
        for (number, record) in records.iter().cycle().take(RECORDS).enumerate() {
            let mut record = record.clone();
            record.flow_id = FlowId::Number(number as u64);
            if fresh {
                record.kind = Kind::Update;
            } else if record.verdict == Label::Other {
                record.kind = Kind::End;
            }
            log.write(&record);
        }
        log.tick(clock());
        assert_eq!(at_start, log.position().segment);
        let settings = Settings {
            folder: log_folder,
            log: "linewarden".to_owned(),
            state: state.clone(),
            rows: 100_000,
            keep_for: Duration::from_hours(24 * 36_500),
        };
        group.bench_function(name, |bencher| {
            let remove = || drop(std::fs::remove_file(state.join(inventory::FILE)));
            bencher.iter_batched(
                remove,
                |()| {
                    let (mut inventory, gauge) = Inventory::spawn(settings.clone(), &log.position(), clock()).unwrap();
                    while gauge.lines() < RECORDS as u64 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    inventory.close(clock());
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, log, an_inventory);
criterion_main!(benches);
