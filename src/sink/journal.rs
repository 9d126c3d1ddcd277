//! Turns findings into entries of systemd's journal, with fields to ask by: `journalctl LINEWARDEN_VERDICT=unapproved_vpn_tunnel`.
//!
//! Entries are written as `systemd.io/JOURNAL_NATIVE_PROTOCOL` says: a datagram an entry, a line a field. Crates that do it
//! (tracing-journald, libsystemd) keep to themselves what could not be sent, and that is to be counted here.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{info, warn};

use super::format::is_finding;
use super::table::{endpoint, protocol};
use super::{Losses, Sink};
use crate::flow::EndReason;
use crate::record::{Kind, Record};
use crate::time::Timestamp;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Of a finding.
pub const FINDING: &str = "e85598513d48436aa3785da15731c2d1";
/// Of the end of one.
pub const FINDING_ENDED: &str = "ce83cf56bde848b0b74731ab4ecd93ea";
/// Of findings that were left out.
pub const LEFT_OUT: &str = "3ba351b01f5e4c01a9039b106f1a1a92";

/// As `syslog(3)` numbers them.
const WARNING: u8 = 4;
const NOTICE: u8 = 5;

/// Entries in a minute; whoever forges tunnels must not fill the journal.
const MOST: u64 = 100;
const MINUTE: Duration = Duration::from_mins(1);
/// Flows that are remembered to have been told.
const MOST_TOLD: usize = 65_536;

/// Sends findings.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Open flows that an entry tells of.
    told: HashSet<u64>,
    /// When the minute began that the next two are of.
    minute: Timestamp,
    sent: u64,
    left_out: u64,
    /// Entries that the journal did not take.
    lost: Losses,
    failing: bool,
}

impl Journal {
    /// Sends to whoever listens on a socket, now or later.
    pub fn open(path: &Path, now: Timestamp) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // The journal may stand still: nobody waits for it.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            told: HashSet::new(),
            minute: now,
            sent: 0,
            left_out: 0,
            lost: Losses::default(),
            failing: false,
        })
    }

    /// Entries that the journal did not take so far, and will not.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Arc::clone(&self.lost)
    }

    /// What there is to tell of a record.
    fn news(&mut self, record: &Record) -> Option<Entry> {
        let flow = record.flow_id.number();
        let was_told = self.told.remove(&flow);
        if !is_finding(record) {
            return None;
        }
        if record.kind == Kind::End {
            // A flow behind the active timeout goes on under another name.
            let goes_on = record.end_reason == Some(EndReason::ActiveTimeout);
            if goes_on && was_told {
                self.told.insert(flow);
            }
            return (!goes_on || !was_told).then(|| Entry::of(record, true));
        }
        let goes_on = record.continues.is_some_and(|before| self.told.remove(&before.number()));
        if self.told.len() >= MOST_TOLD {
            // To tell twice is better than not at all.
            self.told.clear();
        }
        self.told.insert(flow);
        (!was_told && !goes_on).then(|| Entry::of(record, false))
    }

    fn send(&mut self, entry: &Entry) {
        match self.socket.send_to(&entry.0, &self.path) {
            Ok(_) => {
                if std::mem::take(&mut self.failing) {
                    let lost = self.lost.load(Ordering::Relaxed);
                    info!(lost, "the journal takes findings again");
                }
            }
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(path = %self.path.display(), %error, "the journal takes no findings: they are counted; the log has them");
                }
            }
        }
    }
}

impl Sink for Journal {
    fn write(&mut self, record: &Record) {
        let Some(entry) = self.news(record) else { return };
        if self.sent >= MOST {
            self.left_out += 1;
            return;
        }
        self.sent += 1;
        self.send(&entry);
    }

    fn tick(&mut self, now: Timestamp) {
        if now < self.minute + MINUTE {
            return;
        }
        (self.minute, self.sent) = (now, 0);
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            self.send(&Entry::left_out(left_out));
        }
    }

    fn close(&mut self, now: Timestamp) {
        // Those of the last minute are told, too.
        self.tick(now.max(self.minute + MINUTE));
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            warn!(lost, "findings are missing in the journal: the log has them");
        }
    }
}

/// What is sent.
struct Entry(Vec<u8>);

impl Entry {
    fn new(message_id: &str, priority: u8, message: &str) -> Self {
        let mut entry = Self(Vec::with_capacity(1024));
        entry.field("MESSAGE", message);
        entry.field("MESSAGE_ID", message_id);
        entry.field("PRIORITY", priority);
        entry.field("SYSLOG_IDENTIFIER", "linewarden");
        entry
    }

    fn of(record: &Record, is_over: bool) -> Self {
        let tunnel = record.tunnel.map_or("tunnel", |tunnel| tunnel.name());
        let confidence = record.confidence.map_or("", |confidence| confidence.name());
        let message = format!(
            "{}{}: {tunnel} ({confidence}) {} {} -> {}, {}",
            record.verdict.name(),
            if is_over { " ended" } else { "" },
            protocol(record.proto),
            endpoint(record.src_ip, record.src_port),
            endpoint(record.dst_ip, record.dst_port),
            record.reason.meaning(),
        );
        let (id, priority) = if is_over { (FINDING_ENDED, NOTICE) } else { (FINDING, WARNING) };
        let mut entry = Self::new(id, priority, &message);
        entry.field("LINEWARDEN_RECORD", record.kind.name());
        entry.field("LINEWARDEN_SEQ", record.seq);
        entry.field("LINEWARDEN_TIME", record.time);
        entry.field("LINEWARDEN_SENSOR", &record.sensor);
        entry.field("LINEWARDEN_INTERFACE", &record.interface);
        record.vlan.iter().for_each(|vlan| entry.field("LINEWARDEN_VLAN", vlan));
        entry.field("LINEWARDEN_FLOW_ID", record.flow_id);
        record.outer_flow_id.iter().for_each(|outer| entry.field("LINEWARDEN_OUTER_FLOW_ID", outer));
        entry.field("LINEWARDEN_COMMUNITY_ID", record.community_id);
        entry.field("LINEWARDEN_SRC_IP", record.src_ip);
        record.src_port.iter().for_each(|port| entry.field("LINEWARDEN_SRC_PORT", port));
        entry.field("LINEWARDEN_DST_IP", record.dst_ip);
        record.dst_port.iter().for_each(|port| entry.field("LINEWARDEN_DST_PORT", port));
        entry.field("LINEWARDEN_PROTO", record.proto);
        entry.field("LINEWARDEN_VERDICT", record.verdict.name());
        entry.field("LINEWARDEN_REASON", record.reason.name());
        entry.field("LINEWARDEN_TUNNEL", tunnel);
        entry.field("LINEWARDEN_CONFIDENCE", confidence);
        // A field may be there several times.
        record.evidence.iter().for_each(|found| entry.field("LINEWARDEN_EVIDENCE", &found.code));
        record.approval.iter().for_each(|approval| entry.field("LINEWARDEN_APPROVAL", &approval.id));
        entry.field("LINEWARDEN_PACKETS", record.fwd_packets + record.rev_packets);
        entry.field("LINEWARDEN_OCTETS", record.fwd_octets + record.rev_octets);
        entry.field("LINEWARDEN_START", record.start);
        entry.field("LINEWARDEN_END", record.end);
        entry.field("LINEWARDEN_POLICY_REVISION", &record.policy_revision);
        entry
    }

    fn left_out(count: u64) -> Self {
        let message =
            format!("{count} findings or ends of some were left out of the journal within a minute: the log has them");
        let mut entry = Self::new(LEFT_OUT, WARNING, &message);
        entry.field("LINEWARDEN_LEFT_OUT", count);
        entry
    }

    fn field(&mut self, name: &str, value: impl Display) {
        let value = value.to_string();
        // Into memory, which takes everything.
        let _ = if value.contains('\n') {
            self.0.extend_from_slice(name.as_bytes());
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
            writeln!(self.0, "{value}")
        } else {
            writeln!(self.0, "{name}={value}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowId;
    use crate::policy::{Label, Reason};
    use crate::record::tests_support::record;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_100);

    /// A journal of the test's own, and what was sent to it.
    struct Listener(tempfile::TempDir, UnixDatagram);

    impl Listener {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = Self::bind(&folder);
            Self(folder, socket)
        }

        fn bind(folder: &tempfile::TempDir) -> UnixDatagram {
            let socket = UnixDatagram::bind(folder.path().join("s")).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        }

        fn journal(&self) -> Journal {
            Journal::open(&self.0.path().join("s"), NOW).unwrap()
        }

        fn entries(&self) -> Vec<String> {
            let mut buffer = [0; 4096];
            std::iter::from_fn(|| {
                self.1.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned())
            })
            .collect()
        }
    }

    fn lost(journal: &Journal) -> u64 {
        journal.losses().load(Ordering::Relaxed)
    }

    fn finding(flow: u64, kind: Kind) -> Record {
        let mut record = record(flow);
        (record.flow_id, record.kind) = (FlowId::Number(flow), kind);
        (record.verdict, record.reason) = (Label::UnapprovedVpnTunnel, Reason::NoApproval);
        record
    }

    fn value<'a>(entry: &'a str, name: &str) -> &'a str {
        entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap()
    }

    #[test]
    fn a_finding_is_told_once_and_its_end_once() {
        let listener = Listener::new();
        let mut journal = listener.journal();
        let mut other = finding(7, Kind::Start);
        other.verdict = Label::Other;
        let mut before = finding(7, Kind::End);
        before.end_reason = Some(EndReason::ActiveTimeout);
        let mut after = finding(8, Kind::Start);
        after.continues = Some(FlowId::Number(7));
        let records = [
            other,
            finding(7, Kind::Update),
            finding(7, Kind::Update),
            before,
            after,
            finding(8, Kind::Update),
            finding(8, Kind::End),
        ];
        records.iter().for_each(|record| journal.write(record));
        let entries = listener.entries();
        let told: Vec<_> =
            entries.iter().map(|entry| (value(entry, "MESSAGE_ID"), value(entry, "LINEWARDEN_FLOW_ID"))).collect();
        assert_eq!(told, [(FINDING, "0000000000000007"), (FINDING_ENDED, "0000000000000008")]);
        assert_eq!(value(&entries[0], "PRIORITY"), "4");
        assert_eq!(value(&entries[0], "LINEWARDEN_VERDICT"), "unapproved_vpn_tunnel");
        assert_eq!(value(&entries[0], "LINEWARDEN_SRC_IP"), "198.51.100.1");
        assert_eq!(value(&entries[0], "LINEWARDEN_DST_PORT"), "53");
        assert!(journal.told.is_empty(), "nothing is kept of what is over");

        // Approved in between: it is news when it is not any more.
        let mut approved = finding(9, Kind::Update);
        approved.verdict = Label::AuthorizedLeasedLine;
        [finding(9, Kind::Start), approved, finding(9, Kind::Update)].iter().for_each(|record| journal.write(record));
        assert_eq!(listener.entries().len(), 2);
    }

    #[test]
    fn a_flood_is_bounded_and_what_is_left_out_is_said() {
        let listener = Listener::new();
        let mut journal = listener.journal();
        let mut entries = Vec::new();
        for flow in 0..MOST + 50 {
            journal.write(&finding(flow, Kind::Start));
            entries.extend(listener.entries());
        }
        assert_eq!(entries.len() as u64, MOST);
        journal.tick(NOW + Duration::from_secs(59));
        assert!(listener.entries().is_empty());
        journal.tick(NOW + MINUTE);
        let said = listener.entries();
        assert_eq!(said.len(), 1);
        assert_eq!((value(&said[0], "MESSAGE_ID"), value(&said[0], "LINEWARDEN_LEFT_OUT")), (LEFT_OUT, "50"));
        journal.write(&finding(MOST + 50, Kind::Start));
        assert_eq!(listener.entries().len(), 1, "a new minute");
        journal.close(NOW + MINUTE);
        assert!(listener.entries().is_empty());
    }

    #[test]
    fn a_journal_that_is_away_is_counted_and_comes_back() {
        let mut listener = Listener::new();
        let mut journal = listener.journal();
        std::fs::remove_file(listener.0.path().join("s")).unwrap();
        journal.write(&finding(1, Kind::Start));
        journal.write(&finding(2, Kind::Start));
        assert_eq!(lost(&journal), 2);
        listener.1 = Listener::bind(&listener.0);
        journal.write(&finding(3, Kind::Start));
        assert_eq!((lost(&journal), listener.entries().len()), (2, 1));
        // Nobody reads, and there is no room for one more: nobody waits.
        loop {
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            let path = listener.0.path().join("s");
            if (0..100_000).take_while(|_| filler.send_to(b"A=b", &path).is_ok()).count() == 0 {
                break;
            }
        }
        journal.write(&finding(4, Kind::Start));
        assert_eq!(lost(&journal), 3);
    }

    #[test]
    fn a_value_of_several_lines_is_one_value() {
        let mut entry = Entry(Vec::new());
        entry.field("A", "b");
        entry.field("C", "d\nE=f");
        assert_eq!(entry.0, b"A=b\nC\n\x05\0\0\0\0\0\0\0d\nE=f\n");
    }
}
