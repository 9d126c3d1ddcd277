use std::path::{Path, PathBuf};

use bytes::BytesMut;
use tempfile::TempDir;

use super::super::ndjson::encode;
use super::seal::Hash;
use super::segments::Listing;
use super::*;
use crate::record::Record;
use crate::record::tests_support::record;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + seconds)
}

fn config() -> LogConfig {
    LogConfig { compress: false, ..LogConfig::default() }
}

fn open(folder: &TempDir, config: &LogConfig, now: Timestamp) -> SealedLog {
    SealedLog::open(&folder.path().join("log"), "l", &folder.path().join("state"), config, now).unwrap()
}

fn heads_of(folder: &TempDir) -> Heads {
    let state = folder.path().join("state");
    Heads::load(&state, "l", &key::PublicKey::load(&state.join(key::PUBLIC_FILE)).unwrap()).unwrap()
}

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("log/l.ndjson")
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn sequence(path: &Path) -> Vec<u64> {
    lines(path).iter().map(|line| serde_json::from_str::<Record>(line).unwrap().seq).collect()
}

/// All seals of the log in order, each held to its data, to the chain and to the key.
#[track_caller]
fn seals(folder: &TempDir) -> Vec<Seal> {
    let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
    let key = key::PublicKey::load(&folder.path().join("state").join(key::PUBLIC_FILE)).unwrap();
    let (mut all, mut chain) = (Vec::<Seal>::new(), Chain::new("l").value);
    for (segment, files) in listing.closed.values().chain([&listing.live]).enumerate() {
        let Some(path) = &files.seals else { continue };
        let mut data = Vec::new();
        if let Some(path) = &files.data {
            io::Read::read_to_end(&mut segments::open_data(path, |_| {}).unwrap(), &mut data).unwrap();
        }
        let mut end = 0;
        segments::read_seals(path, |line| {
            let (seal, body) = line.seal.unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), line.number));
            chain = Chain::next(chain, &body);
            assert_eq!(seal.chain, chain, "{seal:?}");
            assert_eq!((seal.seal, seal.segment, seal.offset), (all.len() as u64 + 1, segment as u64 + 1, end));
            let mut batch = Batch::default();
            let octets = &data[seal.offset as usize..seal.end() as usize];
            batch.add(octets, count_lines(octets));
            assert_eq!((seal.sha256, seal.records), (batch.hash(), batch.records), "{seal:?}");
            if let Some(head) = seal.head("l") {
                assert!(head.is_signed_by(std::slice::from_ref(&key)), "{seal:?}");
            }
            end = seal.end();
            all.push(seal);
        })
        .unwrap();
        assert_eq!(end, data.len() as u64, "all is sealed: {}", path.display());
    }
    all
}

fn kinds(seals: &[Seal]) -> Vec<Kind> {
    seals.iter().map(|seal| seal.kind).collect()
}

#[test]
fn order_is_kept_and_every_line_is_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    for seq in 1..=5000 {
        log.write(&record(seq));
    }
    log.sync(at(1));
    assert_eq!((log.written(), log.waiting(), log.lost()), (5000, 0, 0));
    assert_eq!(sequence(&path(&folder)), (1..=5000).collect::<Vec<_>>());
    let sealed = seals(&folder);
    assert!(sealed.len() > 3, "a mebibyte is a batch: {}", sealed.len());
    assert_eq!(sealed.last().unwrap().total_records, Some(5000));
    log.close(at(2));
    assert_eq!(seals(&folder).last().unwrap().kind, Kind::Close);
}

#[test]
fn what_is_old_is_on_the_disk_sealed_and_signed() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    log.keeper.settle(false);
    assert_eq!(kinds(&seals(&folder)), [Kind::Open]);
    log.write(&record(1));
    log.tick(at(1));
    log.keeper.settle(false);
    assert_eq!(lines(&path(&folder)).len(), 1, "on the disk");
    for seq in 2..200 {
        log.write(&record(seq));
    }
    log.tick(at(2));
    log.keeper.settle(false);
    let sealed = seals(&folder);
    assert_eq!(kinds(&sealed), [Kind::Open, Kind::Batch]);
    assert_eq!((sealed[1].records, sealed[1].signature.is_some()), (199, false));
    // Nothing new: the seal is signed all the same, once.
    for second in [60, 61, 62, 130] {
        log.tick(at(second));
        log.keeper.settle(false);
    }
    let sealed = seals(&folder);
    assert_eq!(kinds(&sealed), [Kind::Open, Kind::Batch, Kind::Batch]);
    let head = sealed[2].head("l").unwrap();
    assert_eq!((head.total_records, head.time), (199, at(60)));
    let heads = heads_of(&folder);
    assert_eq!(heads.latest(), Some(&head));
}

#[test]
fn a_clock_that_is_put_back_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(1_000_000));
    log.write(&record(1));
    log.tick(at(0));
    log.tick(at(60));
    log.keeper.settle(false);
    assert_eq!(kinds(&seals(&folder)), [Kind::Open, Kind::Batch]);
}

#[test]
fn segments_close_by_size_and_by_time_and_are_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { rotate_octets: 64 << 10, ..LogConfig::default() };
    let mut log = open(&folder, &config, at(0));
    for seq in 1..=300 {
        log.write(&record(seq));
    }
    log.settle(at(1));
    log.write(&record(301));
    log.tick(at(86_402));
    log.settle(at(86_403));
    log.rotate();
    log.settle(at(86_404));
    let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
    assert!(listing.closed.len() >= 3, "{listing:?}");
    let first = listing.closed[&1].data.clone().unwrap();
    assert!(first.ends_with("l-20231114T221320Z-000001.ndjson.zst"), "{}", first.display());
    let (mut all, mut packed) = (Vec::new(), 0);
    for files in listing.closed.values().chain([&listing.live]) {
        let path = files.data.as_ref().unwrap();
        packed += u32::from(path.extension().is_some_and(|extension| extension == "zst"));
        io::Read::read_to_end(&mut segments::open_data(path, |_| {}).unwrap(), &mut all).unwrap();
    }
    assert_eq!(packed as usize, listing.closed.len());
    let records = all.split(|&octet| octet == b'\n').filter(|line| !line.is_empty());
    let read: Vec<u64> = records.map(|line| serde_json::from_slice::<Record>(line).unwrap().seq).collect();
    assert_eq!(read, (1..=301).collect::<Vec<_>>());
    let sealed = seals(&folder);
    assert_eq!(sealed.iter().filter(|seal| seal.kind == Kind::Close).count(), listing.closed.len());
}

#[test]
fn the_oldest_segments_go_and_a_signed_seal_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { keep_octets: 300 << 10, rotate_octets: 64 << 10, ..config() };
    let mut log = open(&folder, &config, at(0));
    let mut sealed = Vec::new();
    for seq in 1..=1000 {
        log.write(&record(seq));
        // No segment is closed while the disk is behind.
        if seq % 25 == 0 {
            log.sync(at(1));
        }
        if seq == 100 {
            sealed = seals(&folder);
        }
    }
    assert!(sealed.len() > 1, "so far nothing went");
    log.sync(at(2));
    // What could not go while its seals were on their way goes now.
    log.sync(at(3));
    let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
    let octets: u64 = listing.closed.values().chain([&listing.live]).map(|files| files.octets).sum();
    assert!(octets <= config.keep_octets + config.rotate_octets, "{octets}");
    let first = *listing.closed.keys().next().unwrap();
    assert!(first > 1 && listing.closed.len() > 1);
    // Its own seals say behind what the first that is left begins.
    let mut removed = None;
    for files in listing.closed.values().chain([&listing.live]) {
        segments::read_seals(files.seals.as_ref().unwrap(), |line| {
            let (seal, _) = line.seal.unwrap();
            if seal.kind == Kind::Removed {
                removed = Some(seal);
            }
        })
        .unwrap();
    }
    let removed = removed.unwrap();
    assert_eq!(removed.removed_to, Some(first - 1));
    assert!(removed.signature.is_some());
    let mut begins = None::<bool>;
    segments::read_seals(listing.closed[&first].seals.as_ref().unwrap(), |line| {
        let (seal, body) = line.seal.unwrap();
        begins.get_or_insert(Chain::next(removed.removed_chain.unwrap(), &body) == seal.chain);
    })
    .unwrap();
    assert_eq!(begins, Some(true));
}

/// A segment's number of each file of seals that is there.
fn closed(folder: &TempDir) -> Vec<u64> {
    Listing::read(&folder.path().join("log"), "l").unwrap().closed.into_keys().collect()
}

/// Closes segments, each in a second of its own.
fn close_segments(log: &mut SealedLog, count: u64, from: u64) {
    for seconds in from..from + count {
        log.write(&record(seconds));
        log.sync(at(seconds));
        log.rotate();
        log.keeper.settle(true);
    }
}

/// Both clocks go on by so much, in steps of an hour.
fn let_pass(log: &mut SealedLog, from: (u64, u64), hours: u64) {
    for hour in 1..=hours {
        let (wall, open) = (at(from.0 + 3600 * hour), Duration::from_secs(from.1 + 3600 * hour));
        log.look_at_clocks(wall, open);
        log.tick(wall);
    }
    log.keeper.settle(true);
}

#[test]
fn what_is_too_old_goes_a_tenth_at_a_time_and_what_is_written_stays() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        LogConfig { keep_for: Duration::from_hours(24), rotate_interval: Duration::from_hours(744), ..config() };
    let mut log = open(&folder, &config, at(0));
    close_segments(&mut log, 25, 1);
    let_pass(&mut log, (25, 25), 23);
    assert_eq!(closed(&folder).len(), 25);
    let_pass(&mut log, (25 + 23 * 3600, 25 + 23 * 3600), 1);
    assert_eq!(closed(&folder), (4..=25).collect::<Vec<_>>());
    let_pass(&mut log, (25 + 24 * 3600, 25 + 24 * 3600), 40);
    assert_eq!(closed(&folder), [0_u64; 0]);
    log.close(at(100 * 3600));
    let sealed = seals_of(&folder.path().join("log/l.seals"));
    assert!(sealed.iter().any(|seal| seal.removed_to == Some(25)), "{sealed:?}");
}

#[test]
fn a_clock_that_is_put_forward_erases_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { rotate_interval: Duration::from_hours(744), ..config() };
    let mut log = open(&folder, &config, at(0));
    close_segments(&mut log, 20, 1);
    log.look_at_clocks(at(20), Duration::from_secs(20));
    // Without a look at the other clock nothing ages.
    let later = 500 * 86_400;
    log.tick(at(later));
    log.rotate();
    log.sync(at(later + 1));
    assert_eq!(closed(&folder), (1..=20).collect::<Vec<_>>());
    let_pass(&mut log, (later, 21), 23);
    assert_eq!(closed(&folder), (1..=20).collect::<Vec<_>>());
    // It has stayed so.
    let_pass(&mut log, (later + 23 * 3600, 21 + 23 * 3600), 3);
    assert!(closed(&folder).len() < 20 && closed(&folder).len() > 10, "{:?}", closed(&folder));
    log.close(at(later + 27 * 3600));
    drop(log);
    // Nor does one that was put forward while nobody ran.
    let left = closed(&folder);
    let mut log = open(&folder, &config, at(2 * later));
    log.look_at_clocks(at(2 * later), Duration::ZERO);
    log.sync(at(2 * later + 1));
    assert_eq!(closed(&folder), left);
}

#[test]
fn files_that_somebody_put_there_make_nothing_go() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { keep_octets: 2 << 20, ..config() };
    let mut log = open(&folder, &config, at(0));
    close_segments(&mut log, 5, 1);
    let inside = |name: &str| folder.path().join("log").join(name);
    // One beside, ones with the names of segments to come and of one that is there, with holes and without.
    let names =
        ["l-20290101T000000Z-900000.ndjson", "l-20290101T000000Z-000003.index", "l-20200101T000000Z-000002.seals"];
    for name in names {
        File::create(inside(name)).unwrap().set_len(30 << 30).unwrap();
    }
    std::fs::write(inside("l-20290101T000000Z-000004.ndjson"), vec![b'x'; 3 << 20]).unwrap();
    let hole = OpenOptions::new().append(true).open(inside("l-20231114T221321Z-000002.ndjson")).unwrap();
    hole.set_len(30 << 30).unwrap();
    close_segments(&mut log, 3, 10);
    assert_eq!(closed(&folder), [1, 2, 3, 4, 5, 6, 7, 8, 900_000]);
    // Nor at the next start.
    log.close(at(20));
    drop(log);
    let mut log = open(&folder, &config, at(21));
    close_segments(&mut log, 3, 22);
    assert_eq!(closed(&folder), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 900_000]);
    names.iter().for_each(|name| assert!(inside(name).exists(), "{name}"));
}

#[test]
fn what_is_compressed_counts_as_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { keep_octets: 1 << 20, rotate_octets: 256 << 10, compress: true, ..config() };
    let mut log = open(&folder, &config, at(0));
    for seq in 1..=4000 {
        log.write(&record(seq));
        if seq % 100 == 0 {
            log.settle(at(seq / 100));
        }
    }
    log.settle(at(50));
    let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
    assert!(listing.closed.len() >= 6 && listing.closed.contains_key(&1), "{listing:?}");
    log.retain();
    assert_eq!(log.retention.octets(), listing.closed.values().map(|files| files.octets).sum::<u64>());
}

/// A file of seals by itself.
fn seals_of(path: &Path) -> Vec<Seal> {
    let mut sealed = Vec::new();
    segments::read_seals(path, |line| sealed.extend(line.seal.ok().map(|(seal, _)| seal))).unwrap();
    sealed
}

#[test]
fn rotation_by_rename_goes_on_in_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let mut log = open(&folder, &config(), at(0));
    log.write(&record(1));
    log.tick(at(1));
    log.reopen(at(1));
    assert_eq!(log.segment, 1, "nobody renamed it");
    let old = path.with_extension("ndjson.1");
    std::fs::rename(&path, &old).unwrap();
    log.write(&record(2));
    log.reopen(at(2));
    log.write(&record(3));
    log.sync(at(3));
    assert_eq!((sequence(&old), sequence(&path)), (vec![1, 2], vec![3]));
    let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
    assert!(listing.closed[&1].seals.is_some());
    // Its seals tell which file it is, also when it is packed.
    let mut first = (0, Hash::default(), 1);
    segments::read_seals(listing.closed[&1].seals.as_ref().unwrap(), |line| {
        let (seal, _) = line.seal.unwrap();
        if seal.octets > 0 {
            (first.0, first.1) = (seal.octets, seal.sha256);
        }
    })
    .unwrap();
    assert_eq!(segments::find_renamed(&listing.others, &[first])[&1], old);
}

#[test]
fn lines_that_a_crash_left_are_sealed_as_recovered_and_half_a_line_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    log.write(&record(1));
    log.sync(at(1));
    log.close(at(1));
    drop(log);
    unclose(&folder);
    let mut octets = BytesMut::new();
    (2..=3000).for_each(|seq| encode(&record(seq), &mut octets));
    octets.extend_from_slice(b"{\"kind\":\"en");
    OpenOptions::new().append(true).open(path(&folder)).unwrap().write_all(&octets).unwrap();
    // And half a seal.
    let seals_path = folder.path().join("log/l.seals");
    OpenOptions::new().append(true).open(&seals_path).unwrap().write_all(b"{\"seal\":3,\"ki").unwrap();

    let mut log = open(&folder, &config(), at(5));
    log.write(&record(3001));
    log.close(at(6));
    assert_eq!(sequence(&path(&folder)), (1..=3001).collect::<Vec<_>>());
    let sealed = seals(&folder);
    let recovered: Vec<_> = sealed.iter().filter(|seal| seal.kind == Kind::Recovered).collect();
    assert!(recovered.len() > 1, "in pieces");
    assert_eq!(recovered.iter().map(|seal| seal.records).sum::<u64>(), 2999);
    assert_eq!(recovered.last().unwrap().torn, Some(11));
    // A run that ended well leaves no break, one that did not leaves one even if nothing is lost.
    drop(log);
    drop(open(&folder, &config(), at(7)));
    assert_eq!(kinds(&seals(&folder)).iter().filter(|&&kind| kind == Kind::Recovered).count(), recovered.len());
    unclose(&folder);
    drop(open(&folder, &config(), at(8)));
    assert_eq!(kinds(&seals(&folder)).iter().filter(|&&kind| kind == Kind::Recovered).count(), recovered.len() + 1);
}

/// As if the last run had been killed before its last seal.
fn unclose(folder: &TempDir) {
    let path = folder.path().join("log/l.seals");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.truncate(text.trim_end().rfind('\n').unwrap() + 1);
    std::fs::write(&path, text).unwrap();
    std::fs::remove_file(folder.path().join("state/l.heads")).unwrap();
}

#[test]
fn lines_behind_a_close_are_sealed_as_somebody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    log.write(&record(1));
    log.close(at(1));
    drop(log);
    let mut octets = BytesMut::new();
    (2..=3000).for_each(|seq| encode(&record(seq), &mut octets));
    let whole = octets.len() as u64;
    octets.extend_from_slice(b"{\"kind\":\"en");
    OpenOptions::new().append(true).open(path(&folder)).unwrap().write_all(&octets).unwrap();
    let mut log = open(&folder, &config(), at(5));
    let found = log.breaks()[0].clone();
    assert_eq!((found.foreign_octets, found.recovered_records, found.torn_octets), (whole + 11, 2999, 11));
    log.write(&record(3001));
    log.close(at(6));
    let sealed = seals(&folder);
    assert_eq!(sealed.iter().filter_map(|seal| seal.foreign).sum::<u64>(), whole + 11);
    assert!(sealed.iter().all(|seal| seal.foreign.is_some() == (seal.kind == Kind::Recovered)), "{sealed:?}");
    drop(log);
    // What comes behind them is the sensor's own again.
    assert_eq!(open(&folder, &config(), at(7)).breaks(), []);
}

/// A line that nobody signed, as somebody may write it who knows all but the key.
fn forged(mut seal: Seal, before: Hash, to: &mut Vec<u8>) {
    let mut chain = Chain::new("l");
    chain.go_to(seal.seal - 1, before);
    (seal.signature, seal.total_records, seal.total_octets) = (None, None, None);
    chain.append(seal, None, to);
}

#[test]
fn the_log_goes_on_behind_what_it_signed_whatever_was_put_there() {
    let begin = || {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(&folder, &config(), at(0));
        log.write(&record(1));
        log.close(at(1));
        folder
    };
    let far = [u64::MAX, u64::MAX - 1, 1 << 62, 1 << 40];
    for number in far {
        // Heads, of which one says that the log is far ahead.
        let folder = begin();
        let heads_path = folder.path().join("state/l.heads");
        let text = std::fs::read_to_string(&heads_path).unwrap();
        let mut head: Head = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let next = head.seal + 2;
        head.seal = number;
        std::fs::write(&heads_path, text.clone() + &serde_json::to_string(&head).unwrap() + "\nwhat?\n").unwrap();
        let mut log = open(&folder, &config(), at(5));
        assert_eq!(log.chain.seal, next, "{number}");
        log.close(at(6));
        seals(&folder);
        assert_eq!(heads_of(&folder).lines_len(), text.lines().count() + 3, "all but what is no head stays");

        // Seals, of which one does; with the right chain, and with a word that explains it.
        for missing_seals in [None, Some(number - 4)] {
            let folder = begin();
            let seals_path = folder.path().join("log/l.seals");
            let sealed = seals(&folder);
            let last = sealed.last().unwrap();
            let mut line = Vec::new();
            let seal = Seal { seal: number, missing_seals, kind: Kind::Recovered, ..last.clone() };
            forged(seal, last.chain, &mut line);
            OpenOptions::new().append(true).open(&seals_path).unwrap().write_all(&line).unwrap();
            drop(open(&folder, &config(), at(5)));
            let after = seals_of(&seals_path);
            let after: Vec<_> = after.iter().filter(|seal| seal.time > at(1)).collect();
            assert_eq!(after.first().map(|seal| seal.seal), Some(last.seal + 1), "{number} {missing_seals:?}");
        }
    }
    // The same in the place of a closed segment, where the seals that are written are gone.
    let folder = begin();
    let mut log = open(&folder, &config(), at(2));
    log.rotate();
    log.close(at(3));
    let (number, segment) = (log.chain.seal, log.segment);
    drop(log);
    std::fs::remove_file(folder.path().join("log/l.seals")).unwrap();
    let mut line = Vec::new();
    let far = Seal {
        seal: 1 << 40,
        segment: 900_000,
        ..seals_of(&folder.path().join("log/l-20231114T221320Z-000001.seals"))[0].clone()
    };
    forged(far, Hash::default(), &mut line);
    std::fs::write(folder.path().join("log/l-20290101T000000Z-900000.seals"), line).unwrap();
    let log = open(&folder, &config(), at(5));
    assert_eq!(log.segment, segment);
    assert!(log.chain.seal > number && log.chain.seal < number + 5, "{} {number}", log.chain.seal);
    drop(log);
    // The same in front.
    let folder = begin();
    let seals_path = folder.path().join("log/l.seals");
    let sealed = seals(&folder);
    let (first, last) = (sealed.first().unwrap(), sealed.last().unwrap());
    let mut text = Vec::new();
    forged(Seal { seal: 1 << 40, ..first.clone() }, Chain::new("l").value, &mut text);
    text.extend(std::fs::read(&seals_path).unwrap());
    std::fs::write(&seals_path, text).unwrap();
    let log = open(&folder, &config(), at(5));
    assert_eq!((log.chain.seal, log.segment), (last.seal + 1, 1));
}

#[test]
fn a_log_that_names_another_key_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    log.write(&record(1));
    log.close(at(1));
    let key = log.key.public().base64();
    drop(log);
    std::fs::remove_dir_all(folder.path().join("state")).unwrap();
    let mut log = open(&folder, &config(), at(5));
    assert_eq!(log.breaks().len(), 1);
    assert_eq!((log.breaks()[0].other_key.as_ref(), log.breaks()[0].recovered_octets), (Some(&key), 0));
    assert_eq!(log.chain.seal, 3, "it goes on all the same");
    log.close(at(6));
    drop(log);
    assert_eq!(open(&folder, &config(), at(7)).breaks(), []);
}

/// Whoever opens a pipe waits, and a device has no end.
#[test]
fn what_is_no_file_is_refused() {
    for name in ["log/l.ndjson", "log/l.seals", "state/l.heads", "state/l.lock"] {
        for is_pipe in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            drop(open(&folder, &config(), at(0)));
            let path = folder.path().join(name);
            std::fs::remove_file(&path).unwrap();
            if is_pipe {
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
            } else {
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            }
            let inside = |name: &str| folder.path().join(name);
            let error =
                SealedLog::open(&inside("log"), "l", &inside("state"), &config(), at(1)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("is no regular file: take it away"), "{error}");
        }
    }
    // What is put there while the log is written makes nobody wait either.
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    log.write(&record(1));
    let new = folder.path().join("log/l.ndjson.new");
    rustix::fs::mkfifoat(rustix::fs::CWD, &new, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    log.sync(at(1));
    log.rotate();
    log.write(&record(2));
    log.close(at(2));
    assert_eq!(sequence(&path(&folder)), [2]);
    seals(&folder);
}

/// The process may die between any two steps of a rotation.
#[test]
fn an_interrupted_rotation_is_finished() {
    let begin = |folder: &TempDir| {
        let mut log = open(folder, &config(), at(0));
        log.write(&record(1));
        log.sync(at(1));
        log.close(at(2));
    };
    let closed = |suffix| format!("log/l-20231114T221320Z-000001.{suffix}");
    for step in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        begin(&folder);
        let inside = |name: &str| folder.path().join(name);
        if step == 0 {
            std::fs::write(inside("log/l.ndjson.new"), "").unwrap();
        } else {
            std::fs::rename(path(&folder), inside(&closed("ndjson"))).unwrap();
        }
        if step >= 2 {
            // Lines of the new segment, and not one seal yet.
            let mut octets = BytesMut::new();
            encode(&record(2), &mut octets);
            std::fs::write(path(&folder), &octets).unwrap();
        }
        if step == 3 {
            std::fs::rename(inside("log/l.seals"), inside(&closed("seals"))).unwrap();
        }
        let mut log = open(&folder, &config(), at(10));
        log.write(&record(3));
        log.close(at(11));
        let mut all = Vec::new();
        if step > 0 {
            all = sequence(&inside(&closed("ndjson")));
            assert!(inside(&closed("seals")).exists());
        }
        all.extend(sequence(&path(&folder)));
        let expected: &[u64] = if step >= 2 { &[1, 2, 3] } else { &[1, 3] };
        assert_eq!(all, expected, "step {step}");
        seals(&folder);
    }
}

#[test]
fn what_somebody_took_from_the_log_is_said_and_the_log_goes_on() {
    // The file was cut while nobody wrote.
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    (1..=10).for_each(|seq| log.write(&record(seq)));
    log.close(at(1));
    drop(log);
    let octets = std::fs::read(path(&folder)).unwrap();
    std::fs::write(path(&folder), &octets[..octets.len() / 2]).unwrap();
    let mut log = open(&folder, &config(), at(2));
    log.write(&record(11));
    log.close(at(3));
    assert_eq!(sequence(&path(&folder)), [11]);
    let sealed = {
        let listing = Listing::read(&folder.path().join("log"), "l").unwrap();
        let mut sealed = Vec::new();
        segments::read_seals(listing.closed[&1].seals.as_ref().unwrap(), |line| sealed.push(line.seal.unwrap().0))
            .unwrap();
        sealed
    };
    let missing = (octets.len() - octets.len() / 2) as u64;
    assert_eq!(sealed.iter().find_map(|seal| seal.missing), Some(missing));

    // The file was cut under the writer's hands, then removed.
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    (1..=10).for_each(|seq| log.write(&record(seq)));
    log.sync(at(1));
    File::options().write(true).open(path(&folder)).unwrap().set_len(0).unwrap();
    log.tick(at(3));
    assert_eq!(log.segment, 2);
    log.write(&record(11));
    log.sync(at(4));
    assert_eq!(sequence(&path(&folder)), [11]);
    std::fs::remove_file(path(&folder)).unwrap();
    log.keeper.settle(false);
    log.tick(at(6));
    log.write(&record(12));
    log.sync(at(7));
    assert_eq!(sequence(&path(&folder)), [12]);

    // Seals that were signed are gone, with everything.
    drop(log);
    std::fs::remove_dir_all(folder.path().join("log")).unwrap();
    let before = heads_of(&folder).latest().unwrap().clone();
    drop(open(&folder, &config(), at(8)));
    let mut first = None;
    segments::read_seals(&folder.path().join("log/l.seals"), |line| {
        first.get_or_insert(line.seal.unwrap().0);
    })
    .unwrap();
    let first = first.unwrap();
    assert_eq!((first.kind, first.seal, first.missing_seals), (Kind::Recovered, before.seal + 1, Some(before.seal)));
}

#[test]
fn a_log_of_before_there_were_seals_is_sealed_as_recovered() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("log")).unwrap();
    let mut octets = BytesMut::new();
    (1..=3).for_each(|seq| encode(&record(seq), &mut octets));
    std::fs::write(path(&folder), &octets).unwrap();
    drop(open(&folder, &config(), at(0)));
    let sealed = seals(&folder);
    assert_eq!(kinds(&sealed), [Kind::Recovered, Kind::Open, Kind::Close]);
    assert_eq!((sealed[0].records, sealed[0].torn), (3, None));
}

#[test]
fn one_log_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder, &config(), at(0));
    let again = SealedLog::open(&folder.path().join("log"), "l", &folder.path().join("state"), &config(), at(0));
    let error = again.unwrap_err().to_string();
    assert!(error.contains("another linewarden writes this log"), "{error}");
    drop(log);
    drop(open(&folder, &config(), at(1)));
}

#[test]
fn a_pipe_in_the_place_of_new_heads_makes_nobody_wait() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder, &config(), at(0));
    let pipe = folder.path().join("state/l.heads.new");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    log.write(&record(1));
    log.close(at(1));
    assert!(!log.health().is_headless && !pipe.exists());
}

/// `/dev/full` refuses every write, as a full disk does.
#[test]
fn a_full_disk_is_counted_and_recovered_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let mut log = open(&folder, &config(), at(0));
    log.file = Some(Arc::new(OpenOptions::new().append(true).open("/dev/full").unwrap()));
    let mut encoded = BytesMut::new();
    encode(&record(1), &mut encoded);
    let fitting = (MAX_PENDING / encoded.len() + 1) as u64;
    let total = fitting + 1000;
    for _ in 0..total {
        log.write(&record(1));
        log.flush();
    }
    assert_eq!(log.written(), 0);
    assert!(log.lost() > 0);
    assert_eq!(log.waiting() + log.lost(), total);
    log.reopen(at(1));
    assert_eq!(log.waiting(), 0, "failing: {}, {:?}", log.is_failing(), log.file.as_ref().map(|file| file.metadata()));
    assert_eq!(log.written() + log.lost(), total);
    assert_eq!(lines(&path).len() as u64, log.written());
    log.close(at(2));
    seals(&folder);
}

/// A file system of one mebibyte fills up in the middle of a line, and of a seal.
#[test]
fn a_disk_that_fills_up_leaves_whole_lines_and_whole_seals() {
    let script = "mount -t tmpfs -o size=1m none \"$1\" && exec \"$2\" --exact sink::sealed::tests::on_a_small_disk --ignored --nocapture";
    let folder = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-ec", script, "sh"])
        .args([folder.path(), &me])
        .env("LINEWARDEN_SMALL_DISK", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs a small disk of its own: the test above makes one"]
fn on_a_small_disk() {
    let small = PathBuf::from(std::env::var_os("LINEWARDEN_SMALL_DISK").unwrap());
    let state = tempfile::tempdir().unwrap();
    let folder = TempDir::new_in(&small).unwrap();
    std::os::unix::fs::symlink(state.path(), folder.path().join("state")).unwrap();
    let mut log = open(&folder, &config(), at(0));
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![0; 300_000]).unwrap();
    for seq in 1..=3000 {
        log.write(&record(seq));
    }
    log.tick(at(1));
    assert!(log.failing && log.torn > 0 && log.waiting() > 0, "{log:?}");
    log.tick(at(100));
    std::fs::remove_file(&ballast).unwrap();
    log.reopen(at(101));
    log.tick(at(102));
    let written = log.written();
    assert!(log.failing, "three thousand records do not fit");
    // A crash here leaves half a line; a good end does not.
    log.close(at(103));
    let read = sequence(&path(&folder));
    assert_eq!(read, (1..=written).collect::<Vec<_>>());
    drop(log);
    std::fs::remove_dir_all(folder.path().join("log")).unwrap();
}

#[test]
fn nanoseconds_are_kept() {
    let seal = Seal::new(Kind::Batch, 1, 0, Batch::default(), Timestamp::from_nanos(17 * SECOND + 1));
    let mut line = Vec::new();
    Chain::new("l").append(seal, None, &mut line);
    assert_eq!(Seal::parse(line.trim_ascii_end()).unwrap().0.time.as_nanos(), 17 * SECOND + 1);
}
