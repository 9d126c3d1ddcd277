//! `linewarden query`: the log's flows or records that are asked for, as they are or summed up.

mod answer;
pub(super) mod source;
pub(super) mod when;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use self::answer::{Answer, Form};
use self::source::Range;
use super::{Failure, USAGE};
use crate::detect::Protocol;
use crate::flow::{CommunityId, FlowId};
use crate::policy::{Label, Reason};
use crate::record::Kind;
use crate::store::{Field, Rows, Selection};

/// Arguments of the command.
#[derive(Debug, Args)]
pub struct Options {
    /// Folders of the log, or files of it (.ndjson, .ndjson.zst) in the order of their time [default: records.dir, else
    /// /var/log/linewarden, else linewarden-log]
    #[arg(value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// Settings, for records.dir
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    /// With this label
    #[arg(long, value_name = "LABEL", value_delimiter = ',', value_parser = named(Label::ALL.map(|label| (label.name(), label)).to_vec()))]
    label: Vec<Label>,
    /// With this reason
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = named(Reason::ALL.map(|reason| (reason.name(), reason)).to_vec()))]
    reason: Vec<Reason>,
    /// With signs of this tunnel, as `linewarden detectors` names it; none: without
    #[arg(long, value_name = "TUNNEL", value_delimiter = ',', value_parser = PossibleValuesParser::new(protocols()), hide_possible_values = true)]
    protocol: Vec<String>,
    /// With this address, or one of this network, at an end; with --network, at the other end
    #[arg(long, value_name = "IP|CIDR", value_delimiter = ',', value_parser = network)]
    peer: Vec<IpNet>,
    /// With an end in this network
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    network: Vec<IpNet>,
    /// Naming this approval
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    approval: Vec<String>,
    /// With this Community ID
    #[arg(long, value_name = "ID")]
    community_id: Vec<CommunityId>,
    /// This flow
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    flow: Vec<FlowId>,
    /// Seen on this interface
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    interface: Vec<String>,
    /// Leave out flows inside a tunnel, whose octets the tunnel's flow counts, too
    #[arg(long)]
    outermost: bool,
    /// A row a record of this kind, in the range by its time, instead of a row a flow
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<Which>,
    /// Sum up by these fields: flows (with --kind, records), packets and octets, first and last packet
    #[arg(long, value_name = "FIELD", value_delimiter = ',', value_parser = named(Field::ALL.map(|field| (field.name(), field)).to_vec()))]
    group_by: Vec<Field>,
    /// Only so many rows, those that sort first [default order then: octets]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Largest first, names in order of the alphabet; without --top, memory grows with the rows [default: as in the log;
    /// with --group-by, octets]
    #[arg(long, value_enum, value_name = "BY")]
    sort: Option<By>,
    /// The other way round
    #[arg(long)]
    reverse: bool,
    /// How to write rows
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
    /// Only how many rows there are
    #[arg(long, conflicts_with_all = ["top", "sort", "reverse", "format"])]
    count: bool,
    /// Do not trust the indexes beside the archives: read everything
    #[arg(long)]
    no_index: bool,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The first of a flow
    Start,
    /// The verdict changed, or the interval passed
    Update,
    /// The last of a flow
    End,
    /// All three
    All,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum By {
    /// Octets both ways
    Octets,
    /// Packets both ways
    Packets,
    /// Rows of the group
    Flows,
    /// First packet
    First,
    /// Latest packet
    Last,
    /// Between these two
    Duration,
    /// The fields of --group-by
    Name,
}

/// A parser of names that shows them all in the help and where one is wrong.
pub(super) fn named<T: Copy + Send + Sync + 'static>(
    names: Vec<(&'static str, T)>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).try_map(move |given| {
        let known = names.iter().find(|(name, _)| **name == *given);
        known.map(|(_, value)| *value).ok_or("is not one of them")
    })
}

pub(super) fn protocols() -> impl Iterator<Item = &'static str> {
    Protocol::ALL.iter().map(|protocol| protocol.name()).chain([crate::sink::archive::index::NO_TUNNEL])
}

/// An address is the network of itself alone.
pub(super) fn network(text: &str) -> Result<IpNet, &'static str> {
    let network =
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(|address| address.to_canonical().into()));
    network.map(|network| network.trunc()).map_err(|_| "write an address or a network, as 198.51.100.0/24")
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let rows = if options.kind.is_empty() {
        Rows::Flows
    } else {
        Rows::Records(Kind::ALL.into_iter().filter(|kind| options.kind.iter().any(|which| which.is(*kind))).collect())
    };
    options.check(&rows)?;
    let selection = options.selection()?;
    let mut log = source::open(&options.paths, options.config.as_deref())?;
    if options.no_index {
        log = log.without_indexes();
    }
    let mut answer = Answer::new(options, &rows);
    let plan = answer.plan();
    let report = source::read(
        &log,
        &selection,
        rows,
        options.quiet,
        || plan.part(),
        |part, line, raw| plan.take(part, line, raw),
        |part| answer.merge(part),
    )?;
    answer.finish()?;
    source::tell(&report?)
}

impl Options {
    fn check(&self, rows: &Rows) -> Result<(), Failure> {
        let wrong = |message: &str| Err(Failure::new(USAGE, message));
        let sums_up = !self.group_by.is_empty();
        let has_counts = match rows {
            Rows::Flows => true,
            Rows::Records(kinds) => **kinds == [Kind::End],
            Rows::Histories => false,
        };
        match self.sort {
            Some(By::Flows | By::Name) if !sums_up => {
                wrong("--sort flows and --sort name are for groups: name fields with --group-by")
            }
            Some(By::Duration) if sums_up => wrong("--sort duration is for flows: leave out --group-by"),
            Some(By::Octets | By::Packets) if sums_up && !has_counts => wrong(
                "--sort by what adds up is for flows: the counts of start and update records are their flow's so far",
            ),
            None if self.reverse && self.top.is_none() && !sums_up => {
                wrong("--reverse is for rows in an order: add --sort")
            }
            _ if sums_up && self.format.of_another().is_some() => {
                wrong("--format eve, eve-strict, ecs and zeek are for flows: sums are written as table, ndjson or csv")
            }
            _ => Ok(()),
        }
    }

    fn selection(&self) -> Result<Selection, Failure> {
        let selection = self.range.selection()?;
        Ok(selection
            .labels(&self.label)
            .reasons(&self.reason)
            .protocols(self.protocol.clone())
            .peers(self.peer.clone())
            .networks(self.network.clone())
            .approvals(self.approval.clone())
            .community_ids(&self.community_id)
            .flows(&self.flow)
            .interfaces(self.interface.clone())
            .outermost(self.outermost))
    }
}

impl Which {
    fn is(self, kind: Kind) -> bool {
        match self {
            Self::Start => kind == Kind::Start,
            Self::Update => kind == Kind::Update,
            Self::End => kind == Kind::End,
            Self::All => true,
        }
    }
}
