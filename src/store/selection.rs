//! Turns what is asked of the log into what a row must be, and into what need not be read at all.

use std::net::IpAddr;

use ipnet::IpNet;

use super::line::{Bound, Line};
use crate::flow::{CommunityId, FlowId};
use crate::policy::{Label, Reason};
use crate::record::Kind;
use crate::sink::archive::index::{Contents, NO_TUNNEL};
use crate::time::Timestamp;

/// What makes a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Each flow, by its `end` record; by its latest where it has none. A flow is in a time range where it had packets.
    Flows,
    /// Each record of these kinds. A record is in a time range by its `time`.
    Records(Vec<Kind>),
    /// Each record of the flows, those written later among them. A record is in a time range where its flow had had
    /// packets there by then.
    Histories,
}

/// What is asked: of each list one must fit, an empty one allows any.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    from: Option<Bound>,
    to: Option<Bound>,
    labels: Vec<&'static str>,
    reasons: Vec<&'static str>,
    protocols: Vec<String>,
    peers: Vec<IpNet>,
    networks: Vec<IpNet>,
    approvals: Vec<String>,
    community_ids: Vec<String>,
    flows: Vec<String>,
    interfaces: Vec<String>,
    outermost: bool,
}

/// What the lines that matter hold one of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needles {
    pub any_of: Vec<String>,
    /// Every record of a flow holds it, or none does.
    pub of_flow: bool,
}

impl Selection {
    /// From this time on.
    #[must_use]
    pub fn from(mut self, at: Option<Timestamp>) -> Self {
        self.from = at.map(Bound::new);
        self
    }

    /// Before this time.
    #[must_use]
    pub fn to(mut self, at: Option<Timestamp>) -> Self {
        self.to = at.map(Bound::new);
        self
    }

    /// With one of these labels.
    #[must_use]
    pub fn labels(mut self, labels: &[Label]) -> Self {
        self.labels = labels.iter().map(|label| label.name()).collect();
        self
    }

    /// For one of these reasons.
    #[must_use]
    pub fn reasons(mut self, reasons: &[Reason]) -> Self {
        self.reasons = reasons.iter().map(|reason| reason.name()).collect();
        self
    }

    /// With one of these tunnel protocols, by name; [`NO_TUNNEL`] for none.
    #[must_use]
    pub fn protocols(mut self, protocols: Vec<String>) -> Self {
        self.protocols = protocols;
        self
    }

    /// With an end in one of these networks; where [`Self::networks`] are asked for too, the other end.
    #[must_use]
    pub fn peers(mut self, peers: Vec<IpNet>) -> Self {
        self.peers = peers;
        self
    }

    /// With an end in one of these networks.
    #[must_use]
    pub fn networks(mut self, networks: Vec<IpNet>) -> Self {
        self.networks = networks;
        self
    }

    /// Naming one of these approvals.
    #[must_use]
    pub fn approvals(mut self, approvals: Vec<String>) -> Self {
        self.approvals = approvals;
        self
    }

    /// With one of these Community IDs.
    #[must_use]
    pub fn community_ids(mut self, ids: &[CommunityId]) -> Self {
        self.community_ids = ids.iter().map(ToString::to_string).collect();
        self
    }

    /// One of these flows.
    #[must_use]
    pub fn flows(mut self, flows: &[FlowId]) -> Self {
        self.flows = flows.iter().map(ToString::to_string).collect();
        self
    }

    /// Seen on one of these interfaces.
    #[must_use]
    pub fn interfaces(mut self, interfaces: Vec<String>) -> Self {
        self.interfaces = interfaces;
        self
    }

    /// Leaves out flows inside a tunnel, whose octets the tunnel's flow counts too.
    #[must_use]
    pub const fn outermost(mut self, only: bool) -> Self {
        self.outermost = only;
        self
    }

    /// Whether a line is asked for.
    pub(super) fn fits(&self, line: &Line<'_>, rows: &Rows) -> bool {
        one_of(&self.labels, &line.verdict)
            && one_of(&self.reasons, &line.reason)
            && one_of(&self.protocols, line.tunnel.as_deref().unwrap_or(NO_TUNNEL))
            && (self.approvals.is_empty()
                || line.approval.as_ref().is_some_and(|approval| one_of(&self.approvals, &approval.id)))
            && one_of(&self.community_ids, &line.community_id)
            && one_of(&self.flows, &line.flow_id)
            && one_of(&self.interfaces, &line.interface)
            && !(self.outermost && line.outer_flow_id.is_some())
            && self.is_in_time(line, rows)
            && self.ends_fit(line)
    }

    fn is_in_time(&self, line: &Line<'_>, rows: &Rows) -> bool {
        let (first, last) = match rows {
            Rows::Flows | Rows::Histories => (&line.start, &line.end),
            Rows::Records(_) => (&line.time, &line.time),
        };
        let is_from = |bound: &Bound| bound.order_of(last).is_some_and(std::cmp::Ordering::is_ge);
        let is_to = |bound: &Bound| bound.order_of(first).is_some_and(std::cmp::Ordering::is_lt);
        self.from.as_ref().is_none_or(is_from) && self.to.as_ref().is_none_or(is_to)
    }

    fn ends_fit(&self, line: &Line<'_>) -> bool {
        if self.peers.is_empty() && self.networks.is_empty() {
            return true;
        }
        let (Some(src), Some(dst)) = (address(&line.src_ip), address(&line.dst_ip)) else { return false };
        let is_peer = |end: &IpAddr| self.peers.is_empty() || self.peers.iter().any(|peer| peer.contains(end));
        let is_own = |end: &IpAddr| self.networks.is_empty() || self.networks.iter().any(|own| own.contains(end));
        (is_own(&src) && is_peer(&dst)) || (is_own(&dst) && is_peer(&src))
    }

    /// Whether lines that hold this much may hold one that is asked for.
    pub(super) fn may_be_in(&self, contents: &Contents, rows: &Rows) -> bool {
        let begins = match rows {
            Rows::Flows | Rows::Histories => contents.start,
            Rows::Records(kinds) => {
                if !kinds.iter().any(|kind| contents.kinds.may_hold(kind.name())) {
                    return false;
                }
                contents.first
            }
        };
        self.from.as_ref().is_none_or(|from| contents.last.is_some_and(|last| last >= from.at))
            && self.to.as_ref().is_none_or(|to| begins.is_some_and(|begins| begins < to.at))
            && (self.labels.is_empty() || self.labels.iter().any(|label| contents.labels.may_hold(label)))
            && (self.protocols.is_empty() || self.protocols.iter().any(|name| contents.protocols.may_hold(name)))
    }

    /// Whether [`Self::may_be_in`] leaves out lines for what changes while a flow goes on.
    pub(super) fn skips_by_verdict(&self) -> bool {
        !(self.labels.is_empty() && self.protocols.is_empty())
    }

    /// Texts of which a line that is asked for holds one; none where nothing is that rare.
    pub(super) fn needles(&self) -> Needles {
        let quoted = |texts: &[String]| texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>();
        let of_flow = [&self.flows, &self.community_ids].into_iter().find(|texts| !texts.is_empty());
        if let Some(texts) = of_flow {
            return Needles { any_of: quoted(texts), of_flow: true };
        }
        let is_host = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
        for ends in [&self.peers, &self.networks] {
            if !ends.is_empty() && ends.iter().all(is_host) {
                // Without the first quotation mark, so that an IPv4-mapped address is found, too.
                let any_of = ends.iter().map(|end| format!("{}\"", end.addr())).collect();
                return Needles { any_of, of_flow: true };
            }
        }
        let escaped = |texts: &[String]| texts.iter().filter_map(|text| serde_json::to_string(text).ok()).collect();
        let names = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
        if !self.approvals.is_empty() {
            return Needles { any_of: escaped(&self.approvals), of_flow: false };
        }
        let common = [Reason::NotATunnel.name(), Label::Other.name(), NO_TUNNEL];
        let rare = |texts: &[&str]| !texts.is_empty() && !texts.iter().any(|text| common.contains(text));
        let protocols: Vec<_> = self.protocols.iter().map(String::as_str).collect();
        for texts in [&*self.reasons, &*protocols, &*self.labels] {
            if rare(texts) {
                return Needles { any_of: names(texts), of_flow: false };
            }
        }
        Needles::default()
    }
}

fn one_of(allowed: &[impl AsRef<str>], text: &str) -> bool {
    allowed.is_empty() || allowed.iter().any(|one| one.as_ref() == text)
}

/// An IPv4-mapped address is the IPv4 address, as for approvals.
fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}
