//! Turns sums into rows of an `SQLite` file (<https://www.sqlite.org/fileformat2.html>): a batch and the place in the log up to
//! which it goes are one transaction. `schema.sql` is the file's format, number [`VERSION`].

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, Transaction, params};

use super::fold::{Batch, Lane, Latest, Sums};

/// Of the file, kept in it as `user_version`.
pub const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
/// Of its name.
pub const FILE: &str = "inventory.sqlite";
/// A writer from outside is waited for.
const BUSY: Duration = Duration::from_secs(1);
/// Packets of a tunnel that is more than a try.
const A_FEW: u32 = 10;
/// Of the rows that are kept at most, the part that goes at once.
const EVICTED_PART: usize = 16;

/// Why the file is of no use, or cannot be written now.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// Nothing in it can be trusted.
    #[error("it is damaged: {0}")]
    Corrupt(String),
    /// Of another version of linewarden.
    #[error("its format is version {0}, and this linewarden writes version {VERSION}")]
    Version(i64),
}

impl BaseError {
    /// Whether only another file helps.
    pub(super) fn is_for_good(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Version(_) => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TypeMismatch)
            ),
            Self::File(_) => false,
        }
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub segment: u64,
    /// Whole lines of it, octets.
    pub octets: u64,
}

/// The last octets that were taken: by them a log is known again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Where they end.
    pub end: Place,
    pub octets: u64,
    pub sha256: [u8; 32],
}

/// The file.
#[derive(Debug)]
pub(super) struct Base {
    connection: Connection,
    path: PathBuf,
    inode: u64,
    /// Up to where it was told.
    pub place: Place,
    pub mark: Mark,
    /// Flows that are open in it.
    pub known: HashSet<u64>,
    /// Rows of `lanes`.
    pub rows: usize,
    /// Rows that went to make room, ever.
    pub evicted: u64,
}

impl Base {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, BaseError> {
        // SQLite would make it as the umask says.
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let inode = file.metadata()?.ino();
        drop(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection
            .execute_batch("PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000;")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if (version, tables) == (0, 0) {
            let making = connection.transaction()?;
            making.execute_batch(SCHEMA)?;
            making.pragma_update(None, "user_version", VERSION)?;
            making.commit()?;
        } else if version != VERSION {
            return Err(BaseError::Version(version));
        }
        quick_check(&connection)?;
        // A reader waits for nobody and nobody for it; what a crash leaves is put in order by the next who opens it. A
        // power failure may take what was written last, and nothing else: the log has it.
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 16777216;")?;
        let mut base = Self {
            connection,
            path: path.to_owned(),
            inode,
            place: Place::default(),
            mark: Mark::default(),
            known: HashSet::new(),
            rows: 0,
            evicted: 0,
        };
        base.read_state()?;
        Ok(base)
    }

    fn read_state(&mut self) -> Result<(), BaseError> {
        let wrong = |what: &str| BaseError::Corrupt(what.to_owned());
        let columns = "segment, octets, mark_segment, mark_end, mark_octets, mark_sha256, evicted";
        let state = self
            .connection
            .query_row(&format!("SELECT {columns} FROM state"), [], |row| {
                let place = Place { segment: row.get(0)?, octets: row.get(1)? };
                let end = Place { segment: row.get(2)?, octets: row.get(3)? };
                Ok((place, end, row.get::<_, u64>(4)?, row.get::<_, Vec<u8>>(5)?, row.get::<_, u64>(6)?))
            })
            .optional()?;
        let (place, end, octets, sha256, evicted) = state.ok_or_else(|| wrong("its table `state` is empty"))?;
        (self.place, self.evicted) = (place, evicted);
        self.mark = match sha256.try_into() {
            Ok(sha256) => Mark { end, octets, sha256 },
            Err(_) if octets == 0 => Mark::default(),
            Err(_) => return Err(wrong("its mark in the log is no SHA-256")),
        };
        let mut open = self.connection.prepare("SELECT flow_id FROM open_flows")?;
        let flows = open.query_map([], |row| row.get::<_, String>(0))?;
        let mut known = HashSet::new();
        for flow in flows {
            known.insert(u64::from_str_radix(&flow?, 16).map_err(|_| wrong("an open flow has no identifier"))?);
        }
        drop(open);
        self.known = known;
        self.rows = self.connection.query_row("SELECT count(*) FROM lanes", [], |row| row.get(0))?;
        Ok(())
    }

    /// Whether the file is still whole, as it is on the disk and not as it is remembered.
    pub(super) fn check(&self) -> Result<(), BaseError> {
        self.connection.execute_batch("PRAGMA shrink_memory")?;
        quick_check(&self.connection)
    }

    /// Whether the file is still the one of that name.
    pub(super) fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Takes a batch that goes up to `place`; keeps no more than so many rows. Nothing of it is in the file, or known here,
    /// where it fails.
    pub(super) fn apply(&mut self, batch: &Batch, place: Place, mark: Mark, most: usize) -> Result<(), BaseError> {
        let change = self.connection.transaction()?;
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        {
            let mut close = change.prepare("DELETE FROM open_flows WHERE flow_id = ?1")?;
            let mut to_lane = change.prepare(ADD_TO_LANE)?;
            let mut to_day = change.prepare(ADD_TO_DAY)?;
            let mut open = change.prepare(SET_OPEN)?;
            for (lane, (sums, days)) in &batch.ended {
                let id = add_to_lane(&mut to_lane, lane, sums)?;
                for (day, of_day) in days {
                    to_day.execute(params![id, day, of_day.flows, of_day.octets_ab, of_day.octets_ba])?;
                }
            }
            let nothing = Sums::default();
            for (flow, state) in &batch.open {
                let Some((lane, sums)) = state else {
                    close.execute([format!("{flow:016x}")])?;
                    closed.push(*flow);
                    continue;
                };
                let id = add_to_lane(&mut to_lane, lane, &nothing)?;
                let Sums { first_seen, last_seen, packets_ab, packets_ba, octets_ab, octets_ba, confidence, .. } = sums;
                let Latest { label, reason, owner, reference, policy_revision, flow_id } = &sums.latest;
                open.execute(params![
                    flow_id,
                    id,
                    sums.flows,
                    first_seen,
                    last_seen,
                    packets_ab,
                    packets_ba,
                    octets_ab,
                    octets_ba,
                    confidence,
                    label,
                    reason,
                    owner,
                    reference,
                    policy_revision
                ])?;
                opened.push(*flow);
            }
        }
        change.execute(
            "UPDATE state SET segment = ?1, octets = ?2, mark_segment = ?3, mark_end = ?4, mark_octets = ?5,
             mark_sha256 = ?6, lines = lines + ?7, damaged = damaged + ?8, left_out = left_out + ?9",
            params![
                place.segment,
                place.octets,
                mark.end.segment,
                mark.end.octets,
                mark.octets,
                mark.sha256,
                batch.lines,
                batch.damaged,
                batch.left_out
            ],
        )?;
        let mut rows = change.query_row("SELECT count(*) FROM lanes", [], |row| row.get(0))?;
        let mut evicted = 0;
        if rows > most {
            let (gone, flows) = evict(&change, rows - most + most / EVICTED_PART)?;
            (rows, evicted) = (rows - gone, gone as u64);
            closed.extend(flows);
        }
        change.commit()?;
        (self.place, self.mark, self.rows) = (place, mark, rows);
        self.evicted += evicted;
        self.known.extend(opened);
        for flow in &closed {
            self.known.remove(flow);
        }
        Ok(())
    }

    /// What is open in the file, to be counted for good: nobody will tell of it any more.
    pub(super) fn end_all(&self, batch: &mut Batch) -> Result<(), BaseError> {
        let mut all = self.connection.prepare(ALL_OPEN)?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let (flow, lane, sums) = open_flow(row)?;
            batch.end(lane, &sums);
            batch.open.insert(flow, None);
        }
        Ok(())
    }

    /// Removes what was last seen before a time, and days before it.
    pub(super) fn forget(&mut self, before: &str) -> Result<(), BaseError> {
        let change = self.connection.transaction()?;
        delete_lanes(&change, "last_seen < ?1 AND id NOT IN (SELECT lane FROM open_flows)", params![before])?;
        let day = before.get(..10).unwrap_or_default();
        change.execute("DELETE FROM ended_days WHERE day < ?1", [day])?;
        let rows = change.query_row("SELECT count(*) FROM lanes", [], |row| row.get(0))?;
        change.commit()?;
        self.rows = rows;
        Ok(())
    }

    /// Leaves a file that can be read without writing anything beside it.
    pub(super) fn close(self) {
        // A reader that is still there keeps it as it is, which harms nobody.
        let _ = self.connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()));
    }
}

fn quick_check(connection: &Connection) -> Result<(), BaseError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(BaseError::Corrupt(found)) }
}

const ADD_TO_LANE: &str = "
INSERT INTO lanes (protocol, a, b, port, approval, interface, vlan, mpls, flows, first_seen, last_seen, packets_ab,
    packets_ba, octets_ab, octets_ba, confidence, label, reason, owner, reference, policy_revision, flow_id)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)
ON CONFLICT (protocol, a, b, port, approval, interface, vlan, mpls) DO UPDATE SET
    flows = flows + excluded.flows, first_seen = min(first_seen, excluded.first_seen),
    packets_ab = packets_ab + excluded.packets_ab, packets_ba = packets_ba + excluded.packets_ba,
    octets_ab = octets_ab + excluded.octets_ab, octets_ba = octets_ba + excluded.octets_ba,
    confidence = max(confidence, excluded.confidence), last_seen = max(last_seen, excluded.last_seen),
    (label, reason, owner, reference, policy_revision, flow_id) = (
        SELECT excluded.label, excluded.reason, excluded.owner, excluded.reference, excluded.policy_revision,
            excluded.flow_id WHERE (excluded.last_seen, excluded.flow_id) > (lanes.last_seen, lanes.flow_id)
        UNION ALL SELECT label, reason, owner, reference, policy_revision, flow_id LIMIT 1)
RETURNING id";

const ADD_TO_DAY: &str = "
INSERT INTO ended_days VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (lane, day) DO UPDATE SET flows = flows + excluded.flows, octets_ab = octets_ab + excluded.octets_ab,
    octets_ba = octets_ba + excluded.octets_ba";

const SET_OPEN: &str =
    "INSERT OR REPLACE INTO open_flows VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";

const ALL_OPEN: &str = "
SELECT l.protocol, l.a, l.b, l.port, l.approval, l.interface, l.vlan, l.mpls, o.flows, o.first_seen, o.last_seen,
    o.packets_ab, o.packets_ba, o.octets_ab, o.octets_ba, o.confidence, o.label, o.reason, o.owner, o.reference,
    o.policy_revision, o.flow_id
FROM open_flows AS o JOIN lanes AS l ON l.id = o.lane";

fn add_to_lane(to_lane: &mut rusqlite::Statement<'_>, lane: &Lane, sums: &Sums) -> rusqlite::Result<i64> {
    let Lane { protocol, a, b, port, approval, interface, vlan, mpls } = lane;
    let Sums { first_seen, last_seen, packets_ab, packets_ba, octets_ab, octets_ba, confidence, .. } = sums;
    let Latest { label, reason, owner, reference, policy_revision, flow_id } = &sums.latest;
    let values = params![
        protocol,
        a,
        b,
        port,
        approval,
        interface,
        vlan,
        mpls,
        sums.flows,
        first_seen,
        last_seen,
        packets_ab,
        packets_ba,
        octets_ab,
        octets_ba,
        confidence,
        label,
        reason,
        owner,
        reference,
        policy_revision,
        flow_id
    ];
    to_lane.query_row(values, |row| row.get(0))
}

/// In the order of [`ALL_OPEN`].
fn open_flow(row: &Row<'_>) -> Result<(u64, Lane, Sums), BaseError> {
    let lane = Lane {
        protocol: row.get(0)?,
        a: row.get(1)?,
        b: row.get(2)?,
        port: row.get(3)?,
        approval: row.get(4)?,
        interface: row.get(5)?,
        vlan: row.get(6)?,
        mpls: row.get(7)?,
    };
    let latest = Latest {
        label: row.get(16)?,
        reason: row.get(17)?,
        owner: row.get(18)?,
        reference: row.get(19)?,
        policy_revision: row.get(20)?,
        flow_id: row.get(21)?,
    };
    let sums = Sums {
        flows: row.get(8)?,
        first_seen: row.get(9)?,
        last_seen: row.get(10)?,
        packets_ab: row.get(11)?,
        packets_ba: row.get(12)?,
        octets_ab: row.get(13)?,
        octets_ba: row.get(14)?,
        confidence: row.get(15)?,
        latest,
    };
    let flow = u64::from_str_radix(&sums.latest.flow_id, 16);
    let flow = flow.map_err(|_| BaseError::Corrupt("an open flow has no identifier".to_owned()))?;
    Ok((flow, lane, sums))
}

/// Makes room: what no approval covers first, of that what has few packets, and of that the oldest. Gives how many went, and
/// the open flows among them, which are taken anew where they go on.
fn evict(change: &Transaction<'_>, count: usize) -> Result<(usize, Vec<u64>), BaseError> {
    let gone = delete_lanes(
        change,
        "id IN (
             SELECT l.id FROM lanes AS l LEFT JOIN (
                 SELECT lane, sum(packets_ab + packets_ba) AS packets, max(last_seen) AS last_seen
                 FROM open_flows GROUP BY lane
             ) AS o ON o.lane = l.id
             ORDER BY l.approval <> '', l.packets_ab + l.packets_ba + coalesce(o.packets, 0) >= ?1,
                 max(l.last_seen, coalesce(o.last_seen, '')) LIMIT ?2)",
        params![A_FEW, count],
    )?;
    let mut flows = Vec::new();
    let mut delete =
        change.prepare("DELETE FROM open_flows WHERE lane NOT IN (SELECT id FROM lanes) RETURNING flow_id")?;
    for flow in delete.query_map([], |row| row.get::<_, String>(0))? {
        flows.extend(u64::from_str_radix(&flow?, 16));
    }
    change.execute("UPDATE state SET evicted = evicted + ?1", [gone])?;
    Ok((gone, flows))
}

/// Removes rows and their days; gives how many.
fn delete_lanes(change: &Transaction<'_>, which: &str, values: &[&dyn ToSql]) -> Result<usize, BaseError> {
    let mut delete = change.prepare(&format!("DELETE FROM lanes WHERE {which} RETURNING id"))?;
    let gone = delete.query_map(values, |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    let mut delete_days = change.prepare("DELETE FROM ended_days WHERE lane = ?1")?;
    for lane in &gone {
        delete_days.execute([lane])?;
    }
    Ok(gone.len())
}
