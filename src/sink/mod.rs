//! Turns records into files and views: one file per output.
//!
//! | file | turns records into |
//! |---|---|
//! | `ndjson` | lines of JSON |
//! | `sealed` | a log of such lines that is rotated, bounded, and can be proved whole |
//! | `archive` | a closed segment of it into a compressed one |
//! | `format` | lines of other tools' formats |
//! | `output` | files beside the log, in any of these |
//! | `pseudonym` | records that show pseudonyms for home addresses |
//! | `table` | a table for people |
//! | `journal` | entries of findings in the journal |
//! | `live` | the tunnels that are open now |
//! | `usage` | the use of each approval |
//! | `inventory` | what was ever seen, in an `SQLite` file |
//!
//! `sensor` is the format of what the sensor says of itself; `secret` reads and writes the files of keys.

pub mod archive;
pub mod format;
pub mod inventory;
pub mod journal;
pub mod live;
pub mod ndjson;
pub mod output;
pub mod pseudonym;
pub mod sealed;
mod secret;
pub mod sensor;
pub mod table;
pub mod usage;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use self::live::LiveView;
use self::sealed::Position;
use self::usage::Usage;
use crate::record::Record;
use crate::time::Timestamp;

/// Waits until the disk has what was made, renamed and removed in a folder.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a file is known by, whatever its name.
fn identity(metadata: io::Result<Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|one| (one.dev(), one.ino()))
}

fn count_lines(octets: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', octets).count() as u64
}

/// How many records a sink could not write, for who tells of it while it runs.
pub type Losses = Arc<AtomicU64>;

/// What takes records beside the log. What it cannot write it counts, and makes nobody wait.
pub trait Sink: Send {
    /// Takes a record.
    fn write(&mut self, record: &Record);

    /// The log has whole lines up to there; comes before each [`Self::tick`] and [`Self::close`].
    fn logged(&mut self, _log: &Position<'_>) {}

    /// A batch of records is in the log, or some time has passed.
    fn tick(&mut self, _now: Timestamp) {}

    /// Opens files anew, after rotation by somebody else.
    fn reopen(&mut self, _now: Timestamp) {}

    /// The last record was written.
    fn close(&mut self, now: Timestamp) {
        self.tick(now);
    }
}

impl Sink for Arc<LiveView> {
    fn write(&mut self, record: &Record) {
        LiveView::write(self, record);
    }
}

impl Sink for Arc<Usage> {
    fn write(&mut self, record: &Record) {
        Usage::write(self, record);
    }
}

#[cfg(test)]
pub(crate) mod tests_support {
    use crate::flow::{CommunityId, EndReason, FlowId};
    use crate::policy::{Label, Reason};
    use crate::record::{FlowDirection, Kind, Record, VERSION};
    use crate::time::Timestamp;

    /// A record of a flow that is nothing special.
    pub fn record(seq: u64) -> Record {
        Record {
            version: VERSION,
            seq,
            kind: Kind::End,
            time: Timestamp::from_secs(1_700_000_010),
            sensor: "sensor".into(),
            interface: "eth0".into(),
            vlan: Vec::new(),
            mpls_labels: Vec::new(),
            flow_id: FlowId::Number(0x0123_4567_89ab_cdef),
            continues: None,
            outer_flow_id: None,
            related_flow_ids: Vec::new(),
            community_id: CommunityId::Digest([7; 20]),
            src_ip: "198.51.100.1".parse().unwrap(),
            src_port: Some(40_000),
            dst_ip: "198.51.100.2".parse().unwrap(),
            dst_port: Some(53),
            proto: 17,
            direction: FlowDirection::Initiator,
            originator_known: true,
            fwd_packets: 1,
            fwd_octets: 80,
            rev_packets: 1,
            rev_octets: 120,
            start: Timestamp::from_secs(1_700_000_000),
            end: Timestamp::from_secs(1_700_000_001),
            end_reason: Some(EndReason::IdleTimeout),
            verdict: Label::Other,
            reason: Reason::NotATunnel,
            tunnel: None,
            confidence: None,
            midstream: false,
            inspections: 0,
            evidence: Vec::new(),
            spi: Vec::new(),
            gre_key: Vec::new(),
            approval: None,
            policy_revision: "none".into(),
        }
    }
}
