//! `linewarden explain`: why one flow got its verdict, of a capture or as the log tells.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use ipnet::IpNet;

use super::query::source;
use super::replay::{Judging, Lanes, replay};
use super::{Failure, USAGE};
use crate::audit::OtherRecords;
use crate::config::Config;
use crate::detect::{Code, Detection, Identity, Seen};
use crate::flow::{Direction, FlowId};
use crate::policy::{Approval, Candidate, Policy, Reason, Subject};
use crate::record::{Kind, Record};
use crate::sink::pseudonym::{Missing, Pseudonyms};
use crate::sink::table::{endpoint, plain, printed, protocol};
use crate::store::{Rows, Selection};
use crate::time::Timestamp;

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    judging: Judging,
    /// Capture files in the order of their time
    #[arg(required_unless_present = "log", conflicts_with = "log", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Take the flow from the log instead: its folder or files. Approvals are shown as they are now
    #[arg(long, value_name = "DIR|FILE", conflicts_with_all = ["interface", "home_net"])]
    log: Vec<PathBuf>,
    /// Which flow: its `flow_id` (or the first digits of it), its Community ID, an address, address:port, or two of these
    /// joined by a comma
    #[arg(long, value_name = "FLOW")]
    flow: String,
}

/// Flows explained at once; more are only listed.
const EXPLAINED: usize = 10;
/// Flows kept at most.
const KEPT: usize = 1000;

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let wanted = Selector::parse(&options.flow)?;
    let (config, policy) = options.judging.load(true)?;
    let (histories, read) = if options.log.is_empty() {
        replayed(options, config, &policy, &wanted)?
    } else {
        logged(&options.log, None, &wanted)?
    };
    let mut out = io::stdout().lock();
    if histories.len() > EXPLAINED {
        return Err(list(&histories, &options.flow, &mut out)?);
    }
    for history in histories.values() {
        explain(history, &policy, &mut out)?;
    }
    read?;
    if histories.is_empty() {
        let lists = if options.log.is_empty() { "replay --other end" } else { "query" };
        let message = format!("no flow matches `{}`; `linewarden {lists}` lists all", options.flow);
        return Err(Failure::new(USAGE, message));
    }
    Ok(())
}

/// A record.
pub(super) struct Told {
    /// As it is shown.
    pub(super) shown: Record,
    /// By what addresses it was judged.
    addresses: [IpAddr; 2],
}

/// Lists flows of which one is to be named.
pub(super) fn list(histories: &Histories, flow: &str, out: &mut impl Write) -> io::Result<Failure> {
    for Told { shown: last, .. } in histories.values().filter_map(|history| history.last()) {
        writeln!(out, "{}  {}  {}", last.flow_id, flow_line(last), last.verdict.name())?;
    }
    let message = format!("{} flows match `{flow}`: name one of those above by its flow_id", histories.len());
    Ok(Failure::new(USAGE, message))
}

impl Told {
    fn of(mut record: Record, pseudonyms: Option<&Pseudonyms>) -> Self {
        let addresses = [record.src_ip, record.dst_ip];
        if let Some(pseudonyms) = pseudonyms {
            pseudonyms.apply(&mut record);
        }
        Self { shown: record, addresses }
    }
}

/// Flows by their start and number, each with its records.
pub(super) type Histories = BTreeMap<(Timestamp, u64), Vec<Told>>;

fn keep(histories: &mut Histories, told: Told) {
    let key = (told.shown.start, told.shown.flow_id.number());
    if histories.len() < KEPT || histories.contains_key(&key) {
        histories.entry(key).or_default().push(told);
    }
}

fn replayed(
    options: &Options,
    mut config: Config,
    policy: &Arc<Policy>,
    wanted: &Selector,
) -> Result<(Histories, Result<(), Failure>), Failure> {
    config.records.other = OtherRecords::All;
    let pseudonyms = Pseudonyms::open(&config, policy, Missing::Refuse)?;
    let histories = Mutex::new(Histories::new());
    let take = |record: Record| {
        // Who has the capture knows its addresses, and may ask by them.
        let is_wanted = wanted.matches(&record);
        let told = Told::of(record, pseudonyms.as_ref());
        if is_wanted || wanted.matches(&told.shown) {
            keep(&mut histories.lock().unwrap_or_else(PoisonError::into_inner), told);
        }
    };
    let interface = options.judging.interface.as_deref();
    let lanes = Lanes { config: &config, policy, workers: 1, interface, take: &take };
    let (_, read) = replay(&options.files, &lanes, false, &|| true);
    Ok((histories.into_inner().unwrap_or_else(PoisonError::into_inner), read))
}

/// The flows of a log, or of the one that `run` writes, and whether all of it could be read.
pub(super) fn logged(
    log: &[PathBuf],
    config: Option<&Path>,
    wanted: &Selector,
) -> Result<(Histories, Result<(), Failure>), Failure> {
    let log = source::open(log, config)?;
    let mut histories = Histories::new();
    let report = source::read(
        &log,
        &wanted.selection(),
        Rows::Records(Kind::ALL.to_vec()),
        false,
        Vec::new,
        |found: &mut Vec<Record>, _, raw| {
            found.extend(serde_json::from_slice(raw).ok().filter(|record| wanted.matches(record)));
        },
        |found| {
            found.into_iter().for_each(|record| keep(&mut histories, Told::of(record, None)));
            Ok(())
        },
    )?;
    Ok((histories, source::tell(&report?)))
}

/// Which flows are meant.
pub(super) enum Selector {
    FlowId(String),
    CommunityId(String),
    Endpoints(Vec<(IpAddr, Option<u16>)>),
}

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with("1:") {
            return Ok(Self::CommunityId(text.to_owned()));
        }
        let endpoint = |part: &str| {
            let part = part.trim();
            let address = part.parse::<SocketAddr>().map(|both| (both.ip(), Some(both.port())));
            address.or_else(|_| part.parse::<IpAddr>().map(|address| (address, None))).ok()
        };
        let endpoints: Option<Vec<_>> = text.split(',').map(endpoint).collect();
        match endpoints {
            Some(endpoints) if endpoints.len() <= 2 => Ok(Self::Endpoints(endpoints)),
            _ if (4..=16).contains(&text.len()) && text.chars().all(|digit| digit.is_ascii_hexdigit()) => {
                Ok(Self::FlowId(text.to_ascii_lowercase()))
            }
            _ => Err(Failure::new(
                USAGE,
                format!(
                    "--flow {text}: write a flow_id of 4 to 16 hexadecimal digits, a Community ID (1:…), an address, address:port, or two of these joined by a comma"
                ),
            )),
        }
    }

    /// What keeps the log's reader from looking at every line; [`Self::matches`] decides.
    fn selection(&self) -> Selection {
        let selection = Selection::default();
        match self {
            Self::FlowId(digits) => match digits.parse() {
                Ok(flow) => selection.flows(&[flow]),
                Err(_) => selection,
            },
            Self::CommunityId(text) => match text.parse() {
                Ok(id) => selection.community_ids(&[id]),
                Err(_) => selection,
            },
            Self::Endpoints(ends) => {
                selection.peers(ends.iter().map(|(address, _)| address.to_canonical().into()).collect())
            }
        }
    }

    fn matches(&self, record: &Record) -> bool {
        match self {
            Self::FlowId(id) => record.flow_id.to_string().starts_with(id.as_str()),
            Self::CommunityId(id) => record.community_id.to_string() == **id,
            Self::Endpoints(endpoints) => {
                let ends = [(record.src_ip, record.src_port), (record.dst_ip, record.dst_port)];
                let is = |wanted: &(IpAddr, Option<u16>), end: &(IpAddr, Option<u16>)| {
                    wanted.0 == end.0 && (wanted.1.is_none() || wanted.1 == end.1)
                };
                let [src, dst] = &ends;
                match endpoints.as_slice() {
                    [one, two] => (is(one, src) && is(two, dst)) || (is(one, dst) && is(two, src)),
                    some => some.iter().any(|one| is(one, src) || is(one, dst)),
                }
            }
        }
    }
}

fn explain(history: &[Told], policy: &Policy, out: &mut impl Write) -> io::Result<()> {
    let Some(told) = history.last() else { return Ok(()) };
    let last = &told.shown;
    writeln!(out, "flow      {}  (Community ID {})", last.flow_id, last.community_id)?;
    writeln!(out, "          {}", flow_line(last))?;
    writeln!(
        out,
        "          {} to {}, {} packets and {} octets forward, {} and {} back{}",
        last.start,
        last.end,
        last.fwd_packets,
        last.fwd_octets,
        last.rev_packets,
        last.rev_octets,
        if last.midstream { "; was up before the capture began" } else { "" }
    )?;
    writeln!(out, "verdict   {}", last.verdict.name())?;
    writeln!(out, "reason    {}: {}", last.reason.name(), last.reason.meaning())?;
    match (last.tunnel, last.confidence) {
        (Some(tunnel), Some(confidence)) => writeln!(
            out,
            "tunnel    {}, {}; the policy takes {} or more for a tunnel",
            tunnel.name(),
            confidence.name(),
            policy.min_confidence().name()
        )?,
        _ => writeln!(out, "tunnel    no sign of one")?,
    }
    if !last.related_flow_ids.is_empty() {
        writeln!(
            out,
            "related   {}: flows of the same tunnel between the same hosts",
            last.related_flow_ids.iter().map(FlowId::to_string).collect::<Vec<_>>().join(" and ")
        )?;
    }
    if !last.evidence.is_empty() {
        evidence(last, out)?;
    }
    if history.len() > 1 {
        verdicts(history, out)?;
    }
    approvals(told, policy, out)?;
    writeln!(out)
}

pub(super) fn flow_line(record: &Record) -> String {
    let path = [
        (!record.interface.is_empty()).then(|| format!("on {}", record.interface)),
        record.outer_flow_id.as_ref().map(|outer| format!("inside the tunnel {outer}")),
        (!record.vlan.is_empty()).then(|| format!("VLAN {}", joined(&record.vlan))),
        (!record.mpls_labels.is_empty()).then(|| format!("MPLS label {}", joined(&record.mpls_labels))),
        (!record.spi.is_empty()).then(|| {
            let spis: Vec<_> = record.spi.iter().map(|spi| format!("0x{spi:08x}")).collect();
            format!("SPI {}", spis.join(" and "))
        }),
        (!record.gre_key.is_empty()).then(|| format!("GRE key {}", joined(&record.gre_key))),
    ];
    let path: Vec<_> = path.into_iter().flatten().collect();
    format!(
        "{} {} -> {}, {}",
        protocol(record.proto),
        endpoint(record.src_ip, record.src_port),
        endpoint(record.dst_ip, record.dst_port),
        path.join(", ")
    )
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn evidence(record: &Record, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "evidence")?;
    for found in &record.evidence {
        let code = Code::named(&found.code);
        let way = if found.direction == Direction::Forward { "->" } else { "<-" };
        writeln!(
            out,
            "  packet {}  {}  {way}  {}  makes it {}{}",
            found.packet,
            found.time,
            found.code,
            found.confidence.name(),
            if found.count > 1 { format!("; {} packets inspected showed it", found.count) } else { String::new() }
        )?;
        if let Some(code) = code {
            writeln!(out, "      {} [{}]  (value {}, 0x{:x})", code.meaning, code.clause, found.value, found.value)?;
        }
    }
    Ok(())
}

fn verdicts(history: &[Told], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "history")?;
    let mut table = plain();
    for Told { shown: record, .. } in history {
        let found = match (record.tunnel, record.confidence) {
            (Some(tunnel), Some(confidence)) => format!("{} {}", tunnel.name(), confidence.name()),
            _ => "-".to_owned(),
        };
        table.add_row([
            String::new(),
            record.time.to_string(),
            record.kind.name().to_owned(),
            match record.fwd_packets + record.rev_packets {
                1 => "1 packet".to_owned(),
                packets => format!("{packets} packets"),
            },
            found,
            record.verdict.name().to_owned(),
            record.reason.name().to_owned(),
        ]);
    }
    writeln!(out, "{}", printed(&table))
}

/// Every approval that was asked, and where none was, the one whose network comes nearest.
fn approvals(told: &Told, policy: &Policy, out: &mut impl Write) -> io::Result<()> {
    let Told { shown: record, addresses } = told;
    if record.policy_revision != *policy.revision() {
        writeln!(
            out,
            "approvals have changed since: the verdict is by revision {}, what follows by {}",
            short(&record.policy_revision),
            short(policy.revision())
        )?;
    }
    if policy.approvals().is_empty() {
        return writeln!(out, "approvals none are in force");
    }
    let detection = detection(record, identity(record, policy));
    let judged = Subject { addresses: *addresses, ..subject(record) };
    let candidates = policy.candidates(&judged, detection, record.end);
    if candidates.is_empty() {
        writeln!(out, "approvals none names {} or {}", record.src_ip, record.dst_ip)?;
        // Of a hidden address nobody is told how much of it an approval shares.
        if record.reason == Reason::NoApproval
            && *addresses == [record.src_ip, record.dst_ip]
            && let Some((network, approval, bits)) = nearest(record, policy)
        {
            writeln!(out, "  nearest: {network} of {} shares the first {bits} bits only", describe(approval))?;
        }
        return Ok(());
    }
    writeln!(out, "approvals asked, nearest first")?;
    candidates.iter().try_for_each(|candidate| show(candidate, out))
}

/// What the policy may know of a flow, as its record tells.
pub(super) fn subject(record: &Record) -> Subject<'_> {
    let mut labels = record.mpls_labels.iter().copied();
    Subject {
        addresses: [record.src_ip, record.dst_ip],
        ports: record.src_port.zip(record.dst_port).map(|(src, dst)| [src, dst]),
        protocol: record.proto,
        interface: &record.interface,
        vlan: [record.vlan.first().copied().unwrap_or(0), record.vlan.get(1).copied().unwrap_or(0)],
        mpls_labels: [labels.next(), labels.next()],
    }
}

/// What was detected, as the record tells.
pub(super) fn detection(record: &Record, identity: Identity) -> Option<Detection> {
    record.tunnel.zip(record.confidence).map(|(protocol, confidence)| Detection {
        protocol,
        confidence,
        midstream: record.midstream,
        identity,
    })
}

/// Enough of a revision to tell it from others.
fn short(revision: &str) -> &str {
    revision.get(..12).unwrap_or(revision)
}

/// What is known of the flow's keys, as its evidence and its reason tell.
pub(super) fn identity(record: &Record, policy: &Policy) -> Identity {
    let keyring = policy.keyring();
    let mut identity = Identity { keyring: keyring.id(), ..Identity::default() };
    let is_mismatch = record.reason == Reason::IdentityMismatch;
    for found in &record.evidence {
        let Some(seen) = identity.seen.get_mut(found.direction as usize) else { continue };
        match found.code.split_once('.') {
            Some((_, "key_unknown")) => *seen = Seen::Unknown(if is_mismatch { u8::MAX } else { 1 }),
            Some((_, "key_verified")) if !is_mismatch => {
                let key = keyring.keys().iter().map(|key| key.fingerprint()).find(|key| key.short() == found.value);
                *seen = key.map_or(*seen, Seen::Key);
            }
            _ => {}
        }
    }
    identity
}

fn show(candidate: &Candidate, out: &mut impl Write) -> io::Result<()> {
    let approval = &candidate.approval;
    let by = match candidate.prefix_len {
        0 if candidate.is_by_key => "by a key that it pins".to_owned(),
        0 => "by its path".to_owned(),
        length => format!("by its /{length}"),
    };
    writeln!(out, "  {} {by}", describe(approval))?;
    for check in &candidate.checks {
        let mark = if check.passed { "fits" } else { "FAILS" };
        writeln!(out, "    {mark:<5} {}: allowed {}; found {}", check.name, check.wanted, check.found)?;
    }
    Ok(())
}

fn describe(approval: &Approval) -> String {
    format!("{} (owner {}, reference {})", approval.id, approval.owner, approval.reference)
}

/// The approved network that shares most leading bits with either address.
fn nearest<'a>(record: &Record, policy: &'a Policy) -> Option<(IpNet, &'a Approval, u32)> {
    let all = policy
        .approvals()
        .iter()
        .flat_map(|approval| approval.peers.iter().map(move |network| (*network, &**approval)));
    let with_bits = all.filter_map(|(network, approval)| {
        let bits = [record.src_ip, record.dst_ip].into_iter().filter_map(|address| shared(address, network)).max()?;
        Some((network, approval, bits))
    });
    with_bits.filter(|(.., bits)| *bits > 0).max_by_key(|(.., bits)| *bits)
}

fn shared(address: IpAddr, network: IpNet) -> Option<u32> {
    match (address, network.network()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => Some((one.to_bits() ^ other.to_bits()).leading_zeros()),
        (IpAddr::V6(one), IpAddr::V6(other)) => Some((one.to_bits() ^ other.to_bits()).leading_zeros()),
        _ => None,
    }
}
