//! The inventory held against a plain fold over all records, whatever happens to file, log and sensor meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use super::fold::server_port;
use super::*;
use crate::config::LogConfig;
use crate::detect::{Confidence, Protocol};
use crate::flow::FlowId;
use crate::policy::{Label, Reason};
use crate::record::tests_support::record;
use crate::record::{ApprovalRecord, Kind};
use crate::sink::sealed::SealedLog;

const LOG: &str = "linewarden";

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + seconds)
}

/// A log and its inventory, turned by hand.
struct House {
    folder: TempDir,
    rows: usize,
    log: Option<SealedLog>,
    follower: Option<Follower>,
    gauge: Arc<Gauge>,
    /// The clock, seconds: each run has its own.
    now: u64,
    /// All that was written.
    written: Vec<Record>,
}

impl House {
    fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut house =
            Self { folder, rows, log: None, follower: None, gauge: Arc::default(), now: 0, written: Vec::new() };
        house.start();
        house
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn file(&self) -> PathBuf {
        self.state().join(FILE)
    }

    fn log(&mut self) -> &mut SealedLog {
        self.log.as_mut().unwrap()
    }

    /// A run of the sensor begins; one that runs ends as it stands.
    fn start(&mut self) {
        self.follower = None;
        if let Some(mut log) = self.log.take() {
            // What packs its segments would go on beside the next run's, which no two processes do.
            log.settle(at(self.now));
        }
        self.now += 1;
        // Nobody will tell more of what it left open: its latest record is its last.
        let ended = |record: &&Record| Record { kind: Kind::End, ..(*record).clone() };
        let left: Vec<_> = flows(&self.written).iter().filter(|flow| flow.kind != Kind::End).map(ended).collect();
        self.written.extend(left);
        let config = LogConfig { rotate_octets: 8 << 10, ..LogConfig::default() };
        let log_folder = self.folder.path().join("log");
        let log = SealedLog::open(&log_folder, LOG, &self.state(), &config, at(0)).unwrap();
        let settings = Settings {
            folder: log_folder,
            log: LOG.to_owned(),
            state: self.state(),
            rows: self.rows,
            keep_for: Duration::from_hours(24 * 400),
        };
        self.gauge = Arc::default();
        let place = Place { segment: log.position().segment, octets: log.position().octets };
        self.follower = Some(Follower::new(settings, place, Arc::clone(&self.gauge)));
        self.log = Some(log);
    }

    fn write(&mut self, record: Record) {
        self.log().write(&record);
        self.written.push(record);
    }

    fn told(&mut self, now: Timestamp) -> Told {
        let log = self.log();
        log.tick(now);
        let Position { segment, octets, path } = log.position();
        Told {
            is_to_check: false,
            place: Place { segment, octets },
            file: open(path),
            now,
            is_awaited: false,
            is_closing: false,
            is_done: false,
        }
    }

    fn turn_at(&mut self, now: Timestamp) {
        let told = self.told(now);
        let follower = self.follower.as_mut().unwrap();
        while follower.turn(&told) {}
    }

    fn turn(&mut self) {
        self.turn_at(at(self.now));
        assert_eq!(self.gauge.error(), None);
    }

    fn select(&self, query: &str) -> Vec<Vec<Value>> {
        let connection = Connection::open(self.file()).unwrap();
        let mut select = connection.prepare(query).unwrap();
        let columns = select.column_count();
        let rows = select.query_map([], |row| (0..columns).map(|at| row.get(at)).collect());
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// The four views say of what was written what a plain fold over it does.
    #[track_caller]
    fn assert_agrees(&mut self) {
        self.turn();
        let flows = flows(&self.written);
        assert_eq!(self.select("SELECT * FROM tunnels ORDER BY protocol, a, b, port"), tunnels(&flows));
        assert_eq!(self.select("SELECT * FROM circuits ORDER BY approval, interface, vlan, mpls"), circuits(&flows));
        assert_eq!(self.select("SELECT * FROM approvals ORDER BY approval"), approvals(&flows));
        assert_eq!(self.select("SELECT * FROM days ORDER BY day, protocol, a, b, port, approval"), days(&flows));
    }

    fn aside(&self) -> usize {
        let names = std::fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains(".corrupt-")).count()
    }
}

/// Flows as `query` has them: a row an `end` record, and the latest record of each flow that has none.
fn flows(records: &[Record]) -> Vec<&Record> {
    let (mut ended, mut open) = (Vec::new(), BTreeMap::new());
    for record in records {
        let flow = record.flow_id.number();
        if record.kind == Kind::End {
            open.remove(&flow);
            ended.push(record);
        } else {
            open.insert(flow, record);
        }
    }
    ended.into_iter().chain(open.into_values()).filter(|record| record.verdict != Label::Other).collect()
}

fn text(text: impl std::fmt::Display) -> Value {
    Value::Text(text.to_string())
}

fn or_null(of: impl std::fmt::Display) -> Value {
    let of = of.to_string();
    if of.is_empty() || of == "0" { Value::Null } else { Value::Text(of) }
}

fn sum(flows: &[&Record], of: impl Fn(&Record) -> u64) -> Value {
    Value::Integer(flows.iter().map(|flow| of(flow)).sum::<u64>() as i64)
}

fn dotted(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

fn approval(record: &Record) -> Option<&ApprovalRecord> {
    record.approval.as_ref().filter(|_| record.verdict == Label::AuthorizedLeasedLine)
}

fn id(record: &Record) -> String {
    approval(record).map_or_else(String::new, |approval| approval.id.to_string())
}

/// Whether the record's source is the lower end; plain traffic keeps its direction.
fn is_straight(record: &Record) -> bool {
    record.tunnel.is_none() || record.src_ip <= record.dst_ip
}

type Tunnel = (String, String, String, u16);

fn tunnel(record: &Record) -> Tunnel {
    let Some(protocol) = record.tunnel else { return Tunnel::default() };
    let (a, b) = if is_straight(record) { (record.src_ip, record.dst_ip) } else { (record.dst_ip, record.src_ip) };
    let port = record.src_port.map(|src| server_port(src, record.dst_port.unwrap(), record.originator_known));
    (protocol.name().to_owned(), a.to_string(), b.to_string(), port.unwrap_or(0))
}

fn grouped<'a, K: Ord>(flows: &[&'a Record], key: impl Fn(&Record) -> K) -> BTreeMap<K, Vec<&'a Record>> {
    let mut groups = BTreeMap::<K, Vec<_>>::new();
    flows.iter().for_each(|flow| groups.entry(key(flow)).or_default().push(*flow));
    groups
}

fn latest<'a>(flows: &[&'a Record]) -> &'a Record {
    flows.iter().max_by_key(|flow| (flow.end, flow.flow_id.to_string())).unwrap()
}

fn span(flows: &[&Record]) -> [Value; 2] {
    [text(flows.iter().map(|flow| flow.start).min().unwrap()), text(flows.iter().map(|flow| flow.end).max().unwrap())]
}

fn counts(flows: &[&Record]) -> [Value; 2] {
    [sum(flows, |_| 1), sum(flows, |flow| u64::from(flow.kind != Kind::End))]
}

fn ab(flow: &Record, forward: u64, reverse: u64) -> u64 {
    if is_straight(flow) { forward } else { reverse }
}

fn octets(flows: &[&Record]) -> [Value; 2] {
    [
        sum(flows, |flow| ab(flow, flow.fwd_octets, flow.rev_octets)),
        sum(flows, |flow| ab(flow, flow.rev_octets, flow.fwd_octets)),
    ]
}

fn tunnels(flows: &[&Record]) -> Vec<Vec<Value>> {
    let mut groups = grouped(flows, tunnel);
    groups.remove(&Tunnel::default());
    let row = |((protocol, a, b, port), flows): (Tunnel, Vec<&Record>)| {
        let latest = latest(&flows);
        let port = if port == 0 { Value::Null } else { Value::Integer(port.into()) };
        let best = flows.iter().filter_map(|flow| flow.confidence).max().map_or(Value::Null, |best| text(best.name()));
        let mut row = vec![text(protocol), text(a), text(b), port];
        row.extend(span(&flows).into_iter().chain(counts(&flows)));
        row.push(sum(&flows, |flow| ab(flow, flow.fwd_packets, flow.rev_packets)));
        row.push(sum(&flows, |flow| ab(flow, flow.rev_packets, flow.fwd_packets)));
        row.extend(octets(&flows));
        row.extend([best, text(latest.verdict.name()), text(latest.reason.name()), or_null(id(latest))]);
        row.extend([text(&latest.interface), or_null(dotted(&latest.vlan))]);
        row.extend([text(&latest.policy_revision), text(latest.flow_id)]);
        row
    };
    groups.into_iter().map(row).collect()
}

fn owner(flows: &[&Record]) -> [Value; 2] {
    let approval = approval(latest(flows)).unwrap();
    [text(&approval.owner), text(&approval.reference)]
}

fn totals(flows: &[&Record]) -> [Value; 2] {
    [sum(flows, |flow| flow.fwd_packets + flow.rev_packets), sum(flows, |flow| flow.fwd_octets + flow.rev_octets)]
}

fn approved<'a>(flows: &[&'a Record]) -> Vec<&'a Record> {
    flows.iter().copied().filter(|flow| approval(flow).is_some()).collect()
}

fn circuits(flows: &[&Record]) -> Vec<Vec<Value>> {
    let key = |flow: &Record| (id(flow), flow.interface.to_string(), dotted(&flow.vlan), dotted(&flow.mpls_labels));
    let row = |((id, interface, vlan, mpls), flows): ((String, String, String, String), Vec<&Record>)| {
        let mut row = vec![text(id), text(interface), or_null(vlan), or_null(mpls)];
        row.extend(owner(&flows).into_iter().chain(span(&flows)).chain(counts(&flows)));
        row.push(sum(&flows, |flow| u64::from(flow.tunnel.is_none())));
        row.extend(totals(&flows));
        row
    };
    grouped(&approved(flows), key).into_iter().map(row).collect()
}

fn approvals(flows: &[&Record]) -> Vec<Vec<Value>> {
    let row = |(id, flows): (String, Vec<&Record>)| {
        let mut row = vec![text(id)];
        row.extend(owner(&flows).into_iter().chain(span(&flows)).chain(counts(&flows)).chain(totals(&flows)));
        let tunnels = flows.iter().filter(|flow| flow.tunnel.is_some()).map(|flow| tunnel(flow));
        row.push(Value::Integer(tunnels.map(|(_, a, b, _)| (a, b)).collect::<BTreeSet<_>>().len() as i64));
        row
    };
    grouped(&approved(flows), id).into_iter().map(row).collect()
}

fn days(flows: &[&Record]) -> Vec<Vec<Value>> {
    let key = |flow: &Record| (flow.end.to_string()[..10].to_owned(), tunnel(flow), id(flow));
    let row = |((day, (protocol, a, b, port), id), flows): ((String, Tunnel, String), Vec<&Record>)| {
        let port = if port == 0 { Value::Null } else { Value::Integer(port.into()) };
        let mut row = vec![text(day), or_null(protocol), or_null(a), or_null(b), port, or_null(id)];
        row.push(sum(&flows, |_| 1));
        row.extend(octets(&flows));
        row
    };
    grouped(flows, key).into_iter().map(row).collect()
}

/// A tunnel that no approval covers.
fn unapproved(flow: u64) -> Record {
    let mut record = record(flow + 1);
    record.flow_id = FlowId::Number(flow);
    record.verdict = Label::UnapprovedVpnTunnel;
    record.reason = Reason::NoApproval;
    (record.tunnel, record.confidence) = (Some(Protocol::Wireguard), Some(Confidence::Certain));
    record
}

fn approve(record: &mut Record, id: &str) {
    (record.verdict, record.reason) = (Label::AuthorizedLeasedLine, Reason::Approved);
    record.approval = Some(ApprovalRecord {
        id: id.into(),
        owner: format!("owner of {id}").into(),
        reference: "CHG-1".into(),
        valid_until: Timestamp::MAX,
        identity: None,
        key: None,
    });
}

#[derive(Clone, Debug)]
enum Step {
    /// A flow of this run, what it is then, its octets, when.
    Record {
        flow: u64,
        kind: Kind,
        what: u8,
        octets: u64,
        hours: u64,
    },
    /// The follower comes by.
    Turn,
    /// The sensor is killed and starts again.
    Kill,
    /// The same, and the file is damaged meanwhile.
    Damage,
    Rotate,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![2 => Just(Kind::Start), 3 => Just(Kind::Update), 3 => Just(Kind::End)];
    let record = (0..10_u64, kind, 0..8_u8, 0..1_000_000_u64, 0..60_u64)
        .prop_map(|(flow, kind, what, octets, hours)| Step::Record { flow, kind, what, octets, hours });
    prop_oneof![20 => record, 3 => Just(Step::Turn), 1 => Just(Step::Kill), 1 => Just(Step::Damage), 1 => Just(Step::Rotate)]
}

fn made(run: u64, flow: u64, kind: Kind, what: u8, octets: u64, hours: u64) -> Record {
    let mut record = unapproved(run << 32 | flow);
    let start = record.start + Duration::from_hours(flow);
    (record.kind, record.start, record.end) = (kind, start, start + Duration::from_hours(hours));
    (record.fwd_octets, record.rev_octets, record.fwd_packets) = (octets, octets / 3, octets / 100);
    record.src_ip = ["198.51.100.1", "198.51.100.10", "2001:db8::1"][flow as usize % 3].parse().unwrap();
    record.dst_ip = ["198.51.100.2", "198.51.100.9", "2001:db8::2"][flow as usize % 3].parse().unwrap();
    record.vlan = vec![100; flow as usize % 2];
    record.originator_known = flow.is_multiple_of(4);
    match what {
        0 => record.verdict = Label::Other,
        1 => approve(&mut record, "a"),
        2 => approve(&mut record, "b"),
        3 => {
            approve(&mut record, "line");
            (record.tunnel, record.confidence, record.mpls_labels) = (None, None, vec![16_001, 16_002]);
        }
        4 => {
            (record.tunnel, record.src_port, record.dst_port) = (Some(Protocol::Esp), None, None);
            record.confidence = Some(Confidence::Likely);
        }
        _ => {}
    }
    record
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Wherever batches are cut, the sensor killed, the log rotated and packed, or the file damaged.
    #[test]
    fn the_inventory_is_the_fold_of_the_log(steps in proptest::collection::vec(step(), 1..120)) {
        let mut house = House::new(100_000);
        let mut run = 0;
        for step in steps {
            match step {
                Step::Record { flow, kind, what, octets, hours } => {
                    let mut record = made(run, flow, kind, what, octets, hours);
                    // No two records of a flow are of the same time: which of them is the latest would be chance.
                    record.end = record.end + Duration::from_secs(house.written.len() as u64);
                    house.write(record);
                }
                Step::Turn => house.turn(),
                Step::Kill | Step::Damage => {
                    house.follower = None;
                    if matches!(step, Step::Damage) {
                        let _ = std::fs::write(house.file(), "no database at all");
                    }
                    house.start();
                    run += 1;
                }
                Step::Rotate => house.log().rotate(),
            }
        }
        house.assert_agrees();
        house.start();
        house.assert_agrees();
        prop_assert_eq!(house.select("SELECT count(*) FROM open_flows"), [[Value::Integer(0)]]);
    }
}

#[test]
fn a_file_that_is_damaged_or_of_another_version_is_set_aside_and_made_anew() {
    let damages: [fn(&Path); 4] = [
        |file| std::fs::write(file, [0xff; 8192]).unwrap(),
        // In the middle of it: SQLite's own check finds it.
        |file| {
            let mut octets = std::fs::read(file).unwrap();
            let len = octets.len();
            octets[4096..len - 4096].fill(0xaa);
            std::fs::write(file, octets).unwrap();
        },
        |file| Connection::open(file).unwrap().pragma_update(None, "user_version", 99).unwrap(),
        |file| Connection::open(file).unwrap().execute_batch("DELETE FROM state").unwrap(),
    ];
    for damage in damages {
        let mut house = House::new(1000);
        (0..300).for_each(|flow| house.write(made(0, flow, Kind::End, 0, 5, 1)));
        (0..300).for_each(|flow| house.write(unapproved(flow)));
        house.turn();
        house.follower.take().unwrap().close();
        damage(&house.file());
        house.start();
        house.turn_at(at(2));
        house.assert_agrees();
        assert_eq!((house.aside(), house.gauge.rows()), (1, 1));
    }
}

#[test]
fn an_inventory_that_is_ahead_or_of_another_log_is_made_anew() {
    let mut house = House::new(1000);
    (0..30).for_each(|flow| house.write(unapproved(flow)));
    house.turn();
    house.log().settle(at(1));
    (house.follower, house.log) = (None, None);
    for entry in std::fs::read_dir(house.folder.path().join("log")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    std::fs::remove_file(house.state().join("linewarden.heads")).unwrap();
    house.written.clear();
    house.start();
    house.write(unapproved(1));
    house.assert_agrees();
    assert_eq!(house.aside(), 1, "ahead");

    // As long as the old one, and other lines in it.
    house.log().settle(at(1));
    (house.follower, house.log) = (None, None);
    let path = house.folder.path().join("log/linewarden.ndjson");
    let other = std::fs::read_to_string(&path).unwrap().replace("198.51.100.1", "198.51.100.7");
    std::fs::write(&path, other).unwrap();
    house.written[0].src_ip = "198.51.100.7".parse().unwrap();
    house.start();
    house.assert_agrees();
    assert_eq!(house.aside(), 2, "another log");
}

#[test]
fn a_file_that_cannot_be_written_is_said_and_made_up_for() {
    let mut house = House::new(1000);
    house.write(unapproved(1));
    house.turn();
    let other = Connection::open(house.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    house.write(unapproved(2));
    house.turn_at(at(2));
    house.turn_at(at(3));
    assert!(house.gauge.error().unwrap().contains("locked"), "{:?}", house.gauge.error());
    assert_eq!((house.gauge.errors(), house.gauge.lines()), (2, 1));
    other.execute_batch("COMMIT").unwrap();
    house.assert_agrees();
    assert_eq!(house.gauge.lines(), 2);

    // Somebody takes it away.
    std::fs::remove_file(house.file()).unwrap();
    house.write(unapproved(3));
    house.assert_agrees();
}

#[test]
fn a_flood_pushes_out_small_old_tunnels_and_no_approved_one() {
    let mut house = House::new(64);
    let peer = |number: u64| format!("198.51.{}.{}", number / 250, number % 250 + 1).parse().unwrap();
    for number in 0..20 {
        let mut approved = unapproved(number);
        approve(&mut approved, "a");
        approved.dst_ip = peer(number);
        house.write(approved);
        let mut busy = unapproved(100 + number);
        (busy.fwd_packets, busy.dst_ip) = (1000, peer(100 + number));
        house.write(busy);
    }
    house.turn();
    for number in 0..500 {
        let mut forged = unapproved(1000 + number);
        forged.dst_ip = peer(1000 + number);
        forged.end = forged.end + Duration::from_secs(number);
        // Half of them never end.
        forged.kind = if number % 2 == 0 { Kind::End } else { Kind::Update };
        house.write(forged);
        if number % 50 == 0 {
            house.turn();
        }
    }
    // More at once than the file may have open.
    for number in 0..200 {
        let mut forged = unapproved(5000 + number);
        (forged.dst_ip, forged.kind) = (peer(2000 + number), Kind::Update);
        house.write(forged);
    }
    house.turn();
    let count = |query: &str| match house.select(query)[0][0] {
        Value::Integer(number) => u64::try_from(number).unwrap(),
        _ => panic!("no number"),
    };
    let rows = count("SELECT count(*) FROM lanes");
    assert!(rows <= 64 && rows == house.gauge.rows(), "{rows}");
    assert!(house.gauge.evicted() > 300 && house.gauge.evicted() == count("SELECT evicted FROM state"));
    assert_eq!(count("SELECT count(*) FROM tunnels WHERE approval = 'a'"), 20);
    assert_eq!(count("SELECT count(*) FROM tunnels WHERE packets_ab + packets_ba > 1000"), 20);
    assert!(count("SELECT count(*) FROM open_flows") <= 64);
    assert!(house.gauge.left_out() > 0);
    let orphans = "SELECT count(*) FROM ended_days WHERE lane NOT IN (SELECT id FROM lanes)";
    assert_eq!(count(orphans), 0);
}

#[test]
fn what_is_too_old_goes() {
    let mut house = House::new(1000);
    house.write(unapproved(1));
    let mut young = unapproved(2);
    (young.dst_ip, young.end) = ("203.0.113.1".parse().unwrap(), young.end + Duration::from_hours(24 * 30));
    house.write(young);
    house.turn();
    house.turn_at(at(3600 * 24 * 400 + 100));
    assert_eq!(house.select("SELECT b FROM tunnels"), [[text("203.0.113.1")]]);
    assert_eq!(house.select("SELECT count(*) FROM ended_days"), [[Value::Integer(1)]]);
    assert_eq!(house.gauge.rows(), 1);
}

#[test]
fn what_is_no_record_is_counted_and_passed_over() {
    let mut house = House::new(1000);
    house.write(unapproved(1));
    let log = house.log();
    log.write(&"no record");
    log.write(&serde_json::json!({"verdict": "unapproved_vpn_tunnel", "flow_id": "x"}));
    let mut forged = serde_json::to_value(unapproved(2)).unwrap();
    forged["fwd_octets"] = u64::MAX.into();
    log.write(&forged);
    house.assert_agrees();
    assert_eq!((house.gauge.damaged(), house.gauge.lines()), (3, 4));
}

#[test]
fn the_servers_port_is_the_same_whoever_spoke_first() {
    for ([one, other], known, port) in [
        ([40_000, 51_820], true, 51_820),
        ([51_820, 40_000], false, 51_820),
        ([60_000, 1194], false, 1194),
        ([1194, 60_000], false, 1194),
        ([1194, 60_000], true, 60_000),
        ([51_820, 51_820], true, 51_820),
        ([41_641, 50_001], true, 41_641),
    ] {
        assert_eq!(server_port(one, other, known), port, "{one} {other}");
    }
}

/// The thread, as the daemon has it.
#[test]
fn it_follows_by_itself_and_is_at_the_end_of_the_log_when_it_is_closed() {
    let mut house = House::new(1000);
    house.follower = None;
    let settings = Settings {
        folder: house.folder.path().join("log"),
        log: LOG.to_owned(),
        state: house.state(),
        rows: 1000,
        keep_for: Duration::from_hours(24),
    };
    let (mut inventory, gauge) = Inventory::spawn(settings, &house.log().position(), at(0)).unwrap();
    for flow in 0..200 {
        house.write(unapproved(flow));
        house.log().tick(at(1));
        inventory.logged(&house.log().position());
    }
    inventory.close(at(2));
    assert_eq!((gauge.lines(), gauge.error(), gauge.path()), (200, None, house.file().as_path()));
    assert_eq!(house.select("SELECT flows FROM tunnels"), [[Value::Integer(200)]]);
    assert!(!house.state().join(format!("{FILE}-wal")).exists());
}
