//! `linewarden diff-policy`: which logged flows would get another verdict by other approvals.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde::Serialize;

use super::explain::{detection, identity, subject};
use super::query::source::{self, Range};
use super::written::cell;
use super::{CONFIGURATION, FINDINGS, Failure, Form};
use crate::config::{Approvals, Config};
use crate::detect::{Fingerprint, Identity, Seen};
use crate::flow::FlowId;
use crate::policy::{KeyState, Label, Policy, Reason, Verdict};
use crate::record::Record;
use crate::sink::table::{endpoint, plain, printed, protocol, to_the_second};
use crate::store::Rows;
use crate::time::Timestamp;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the approvals before
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// Folder of the approvals after
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Folders or files of the log [default: records.dir, else /var/log/linewarden, else linewarden-log]
    #[arg(long, value_name = "DIR|FILE")]
    log: Vec<PathBuf>,
    /// Settings, for the log's folder and from which confidence on a detection is a tunnel
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    /// Name also flows that keep their label, but for another reason or by another approval
    #[arg(long)]
    reasons: bool,
    /// How to name flows
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// No summary and no progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

/// A flow that is judged otherwise.
#[derive(Debug, Serialize)]
struct Change {
    flow_id: FlowId,
    start: Timestamp,
    end: Timestamp,
    interface: Arc<str>,
    proto: u8,
    src_ip: std::net::IpAddr,
    src_port: Option<u16>,
    dst_ip: std::net::IpAddr,
    dst_port: Option<u16>,
    tunnel: Option<&'static str>,
    octets: u64,
    old_verdict: Label,
    old_reason: Reason,
    old_approval: Option<Arc<str>>,
    new_verdict: Label,
    new_reason: Reason,
    new_approval: Option<Arc<str>>,
    /// Keys that one of the two pins were not tried when the flow was logged: its handshakes may say otherwise.
    keys_untried: bool,
}

/// One of the two sets, for each sensor of the log.
struct Side {
    approvals: Approvals,
    config: Config,
    policies: Mutex<HashMap<Arc<str>, Arc<Judge>>>,
}

/// A policy, and the keys that it pins.
struct Judge {
    policy: Policy,
    keys: HashSet<Fingerprint>,
}

/// What was found.
#[derive(Default)]
struct Found {
    flows: u64,
    changes: Vec<Change>,
    /// By old and new label.
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// The same label by another reason or approval.
    same_label: u64,
    keys_untried: u64,
    /// The log's label is not the one that the old approvals give.
    logged_otherwise: u64,
    unreadable: u64,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let config = Config::load_or_default(options.config.as_deref())?;
    if config.privacy.pseudonyms && !options.quiet {
        let warning = "a log with pseudonyms (privacy.pseudonyms) shows no home address that was not approved: such hosts are judged as strangers";
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let selection = options.range.selection()?;
    let [old, new] = [Side::load(&options.old, &config), Side::load(&options.new, &config)];
    let (old, new) = (old?, new?);
    let log = source::open(&options.log, options.config.as_deref())?;
    let has_lines = [&old, &new].into_iter().any(|side| side.judge(&"".into()).policy.plain_needs_judging());
    let mut found = Found::default();
    let mut out = Output::new(options.format)?;
    let report = source::read(
        &log,
        &selection,
        Rows::Flows,
        options.quiet,
        Found::default,
        |part, line, raw| {
            part.flows += 1;
            // What shows no tunnel is judged only by the path of a leased line.
            if line.tunnel.is_some() || has_lines || *line.verdict != *Label::Other.name() {
                match serde_json::from_slice::<Record>(raw) {
                    Ok(record) => part.judge(&record, &old, &new, options.reasons),
                    Err(_) => part.unreadable += 1,
                }
            }
        },
        |part| {
            out.write(&part.changes)?;
            found.join(part);
            Ok(())
        },
    )?;
    out.finish()?;
    let told = source::tell(&report?);
    if !options.quiet {
        let _ = found.summary(&mut io::stderr().lock());
    }
    told?;
    let changed: u64 = found.counts.values().sum();
    if changed == 0 {
        return Ok(());
    }
    Err(Failure::new(FINDINGS, format!("{changed} flows would change their verdict")))
}

impl Side {
    fn load(folder: &Path, config: &Config) -> Result<Self, Failure> {
        if !folder.is_dir() {
            let message = format!("{}: is no folder of approvals", folder.display());
            return Err(Failure::new(CONFIGURATION, message));
        }
        let approvals = Approvals::load(folder)?;
        Ok(Self { approvals, config: config.clone(), policies: Mutex::default() })
    }

    /// The policy as that sensor has it: an approval may name the sensor.
    fn judge(&self, sensor: &Arc<str>) -> Arc<Judge> {
        let mut policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        let made = policies.entry(Arc::clone(sensor)).or_insert_with(|| {
            let policy = self.config.policy(Arc::clone(sensor), self.approvals.clone());
            let keys = policy.keyring().keys().iter().map(|key| key.fingerprint()).collect();
            Arc::new(Judge { policy, keys })
        });
        Arc::clone(made)
    }
}

impl Judge {
    /// The verdict that these approvals give, and whether keys that they pin and that were not tried could change it.
    /// `tried`: those that were in force when the flow was logged.
    fn judge(&self, record: &Record, tried: Option<&Self>) -> (Verdict, bool) {
        let all_tried = tried.is_some_and(|tried| self.keys.is_subset(&tried.keys));
        let mut known = match tried {
            Some(tried) => {
                let mut known = identity(record, &tried.policy);
                for seen in &mut known.seen {
                    // A handshake made with a key that these do not pin is made with none that they pin.
                    if let Seen::Key(key) = *seen
                        && !self.keys.contains(&key)
                    {
                        *seen = Seen::Unknown(1);
                    }
                }
                known
            }
            None => verified_only(identity(record, &self.policy)),
        };
        // What other keys did not verify is no mismatch: see `policy`.
        let keyring = self.policy.keyring().id();
        known.keyring = if all_tried { keyring } else { !keyring };
        let detection = detection(record, known);
        let verdict = self.policy.judge(&subject(record), detection, record.end);
        let could_verify =
            record.tunnel.is_some_and(|tunnel| self.keys.iter().any(|key| key.kind().protocol() == tunnel));
        let is_open = verdict.keys == Some(KeyState::Unverified) || verdict.label == Label::UnapprovedVpnTunnel;
        (verdict, !all_tried && could_verify && is_open)
    }
}

/// Without knowing which keys were tried, only a key that verified says anything.
fn verified_only(mut known: Identity) -> Identity {
    for seen in &mut known.seen {
        if !matches!(seen, Seen::Key(_)) {
            *seen = Seen::Nothing;
        }
    }
    known
}

impl Found {
    fn judge(&mut self, record: &Record, old: &Side, new: &Side, with_reasons: bool) {
        let [old, new] = [old, new].map(|side| side.judge(&record.sensor));
        let tried = [&old, &new].into_iter().find(|judge| *judge.policy.revision() == record.policy_revision);
        let tried = tried.map(|judge| &**judge);
        let ((before, open_before), (after, open_after)) = (old.judge(record, tried), new.judge(record, tried));
        let keys_untried = open_before || open_after;
        self.keys_untried += u64::from(keys_untried);
        self.logged_otherwise += u64::from(before.label != record.verdict);
        let id = |verdict: &Verdict| verdict.approval.as_ref().map(|approval| Arc::clone(&approval.id));
        if before.label != after.label {
            *self.counts.entry((before.label.name(), after.label.name())).or_default() += 1;
        } else if before.reason != after.reason || id(&before) != id(&after) {
            self.same_label += 1;
            if !with_reasons {
                return;
            }
        } else {
            return;
        }
        self.changes.push(Change {
            flow_id: record.flow_id,
            start: record.start,
            end: record.end,
            interface: Arc::clone(&record.interface),
            proto: record.proto,
            src_ip: record.src_ip,
            src_port: record.src_port,
            dst_ip: record.dst_ip,
            dst_port: record.dst_port,
            tunnel: record.tunnel.map(crate::detect::Protocol::name),
            octets: record.fwd_octets.saturating_add(record.rev_octets),
            old_verdict: before.label,
            old_reason: before.reason,
            old_approval: id(&before),
            new_verdict: after.label,
            new_reason: after.reason,
            new_approval: id(&after),
            keys_untried,
        });
    }

    fn join(&mut self, part: Self) {
        self.flows += part.flows;
        self.same_label += part.same_label;
        self.keys_untried += part.keys_untried;
        self.logged_otherwise += part.logged_otherwise;
        self.unreadable += part.unreadable;
        for (labels, count) in part.counts {
            *self.counts.entry(labels).or_default() += count;
        }
    }

    fn summary(&self, to: &mut impl Write) -> io::Result<()> {
        let changed: u64 = self.counts.values().sum();
        writeln!(to, "{} flows judged by both; {changed} verdicts change", self.flows)?;
        for ((old, new), count) in &self.counts {
            writeln!(to, "  {count} from {old} to {new}")?;
        }
        if self.same_label > 0 {
            writeln!(
                to,
                "{} more keep their label for another reason or by another approval (--reasons names them)",
                self.same_label
            )?;
        }
        if self.keys_untried > 0 {
            writeln!(
                to,
                "{} cannot be told for sure: keys are pinned that were not tried when they were logged, and the log keeps no handshakes (keys_untried)",
                self.keys_untried
            )?;
        }
        if self.logged_otherwise > 0 {
            writeln!(
                to,
                "{} were logged with another label than OLD gives: the log was written under other approvals or settings",
                self.logged_otherwise
            )?;
        }
        if self.unreadable > 0 {
            writeln!(to, "{} records are of another version and were not judged", self.unreadable)?;
        }
        Ok(())
    }
}

/// Where changes go.
struct Output {
    form: Form,
    to: BufWriter<io::Stdout>,
    csv: csv::Writer<io::Stdout>,
    is_headed: bool,
    table: comfy_table::Table,
}

const HEADER: [&str; 8] = ["start (UTC)", "source", "destination", "tunnel", "old", "new", "keys", "flow"];
/// Rows of one table; beyond it another begins.
const ROWS: usize = 1000;

impl Output {
    fn new(form: Form) -> io::Result<Self> {
        let to = BufWriter::new(io::stdout());
        Ok(Self { form, to, csv: csv::Writer::from_writer(io::stdout()), is_headed: false, table: plain() })
    }

    fn write(&mut self, changes: &[Change]) -> io::Result<()> {
        for change in changes {
            match self.form {
                Form::Ndjson => {
                    serde_json::to_writer(&mut self.to, change)?;
                    self.to.write_all(b"\n")?;
                }
                Form::Csv => {
                    write_csv(&mut self.csv, change, !self.is_headed)?;
                    self.is_headed = true;
                }
                Form::Table => {
                    self.table.add_row(change.row());
                    if self.table.row_count() >= ROWS {
                        self.print()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn print(&mut self) -> io::Result<()> {
        let mut table = std::mem::replace(&mut self.table, plain());
        table.set_header(HEADER);
        writeln!(self.to, "{}", printed(&table))
    }

    fn finish(mut self) -> io::Result<()> {
        if self.table.row_count() > 0 {
            self.print()?;
        }
        self.csv.flush()?;
        self.to.flush()
    }
}

/// No cell is a formula.
fn write_csv(to: &mut csv::Writer<io::Stdout>, change: &Change, with_headings: bool) -> io::Result<()> {
    let mut one = csv::WriterBuilder::new().has_headers(with_headings).from_writer(Vec::new());
    one.serialize(change)?;
    let text = one.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    for row in csv::ReaderBuilder::new().has_headers(false).from_reader(&*text).byte_records() {
        to.write_record(row?.iter().map(cell))?;
    }
    Ok(())
}

impl Change {
    fn row(&self) -> [String; 8] {
        let verdict = |label: Label, reason: Reason, approval: &Option<Arc<str>>| {
            let by = approval.as_ref().map_or_else(String::new, |id| format!(" ({id})"));
            format!("{}: {}{by}", label.name(), reason.name())
        };
        [
            to_the_second(&self.start.to_string()),
            format!("{} {}", protocol(self.proto), endpoint(self.src_ip, self.src_port)),
            endpoint(self.dst_ip, self.dst_port),
            self.tunnel.unwrap_or("-").to_owned(),
            verdict(self.old_verdict, self.old_reason, &self.old_approval),
            verdict(self.new_verdict, self.new_reason, &self.new_approval),
            if self.keys_untried { "untried" } else { "-" }.to_owned(),
            self.flow_id.to_string(),
        ]
    }
}
