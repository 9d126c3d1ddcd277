//! Turns records into the use of each approval, the unapproved tunnels and sums by verdict: a flow counts once, where its
//! latest record puts it, as in a `query`.
//!
//! Lines are looked at in parallel; what shows a tunnel or names an approval is then followed record by record, in the
//! order of the log, until its flow ends.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use super::period::{Course, Period, Ways};
use super::tunnels::{Sighting, Tunnels};
use super::usage::{Uses, Way};
use crate::flow::FlowId;
use crate::policy::{Label, Reason};
use crate::record::{Kind, Record};
use crate::store::line::{Bound, Line};
use crate::time::Timestamp;

/// Flows, and their octets in the period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub flows: u64,
    /// Of flows inside no other.
    pub octets: u64,
    /// Flows inside a tunnel, whose octets the tunnel's flow counts.
    pub inside: u64,
}

impl Sum {
    fn add(&mut self, octets: u64, is_inside: bool) {
        self.flows += 1;
        if is_inside {
            self.inside += 1;
        } else {
            self.octets = self.octets.saturating_add(octets);
        }
    }

    fn join(&mut self, other: Self) {
        self.flows += other.flows;
        self.octets = self.octets.saturating_add(other.octets);
        self.inside += other.inside;
    }
}

/// A label and a reason, by their places among all.
type Verdict = (usize, usize);
pub(super) type Sums = BTreeMap<Verdict, Sum>;

/// What a chunk of lines gives.
#[derive(Debug, Default)]
pub struct Part {
    sums: Sums,
    events: Vec<Event>,
    foreign: u64,
}

#[derive(Debug)]
enum Event {
    /// A flow without a sign of a tunnel and without an approval, as it stands.
    Plain(u64, Plain),
    /// The end of one: it is in the sums.
    Over(u64),
    /// A record of any other.
    Marked(Box<Marked>),
}

#[derive(Clone, Copy, Debug)]
struct Plain {
    verdict: Verdict,
    octets: u64,
    is_inside: bool,
    is_in_period: bool,
}

/// What is needed of a record that shows a tunnel or names an approval.
#[derive(Debug)]
struct Marked {
    flow: u64,
    outer: Option<u64>,
    is_end: bool,
    verdict: Verdict,
    start: Timestamp,
    end: Timestamp,
    /// From the lower end to the higher, and back: whoever is found to be the originator later.
    octets: Ways,
    way: Way,
    /// The end that is not ours, as far as that is known.
    peer: IpAddr,
    seen_on: Box<str>,
    approval: Option<Named>,
    /// Of an unapproved tunnel.
    record: Option<Box<Record>>,
}

/// The approval that a record names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub id: Arc<str>,
    pub owner: Box<str>,
    pub reference: Box<str>,
}

/// A flow that has not ended.
#[derive(Debug)]
enum Open {
    Plain(Plain),
    Marked(Box<Followed>),
}

#[derive(Debug)]
struct Followed {
    last: Marked,
    course: Course,
    /// The approval of the flow that it is inside of.
    outer_approval: Option<Arc<str>>,
}

/// Everything that records tell for a report.
#[derive(Debug)]
pub struct Flows {
    period: Period,
    from: Bound,
    to: Bound,
    open: HashMap<u64, Open>,
    pub(super) sums: Sums,
    pub(super) uses: Uses,
    pub(super) tunnels: Tunnels,
    /// Records of another version.
    pub(super) foreign: u64,
}

/// How lines are looked at, shared by threads.
#[derive(Clone, Debug)]
pub struct Look {
    period: Period,
    from: Bound,
    to: Bound,
}

impl Look {
    /// Takes a record.
    pub fn take(&self, part: &mut Part, line: &Line<'_>, raw: &[u8]) {
        let label = Label::ALL.iter().position(|label| label.name() == line.verdict);
        let reason = Reason::ALL.iter().position(|reason| reason.name() == line.reason);
        let flow = line.flow_id.parse::<FlowId>().ok().map(|id| id.number());
        let (Some(label), Some(reason), Some(flow)) = (label, reason, flow) else {
            part.foreign += 1;
            return;
        };
        if line.tunnel.is_some() || line.approval.is_some() {
            match marked(flow, (label, reason), line, raw) {
                Some(marked) => part.events.push(Event::Marked(Box::new(marked))),
                None => part.foreign += 1,
            }
            return;
        }
        let plain = self.plain((label, reason), line);
        if line.kind != Kind::End {
            part.events.push(Event::Plain(flow, plain));
            return;
        }
        part.events.push(Event::Over(flow));
        if plain.is_in_period {
            part.sums.entry(plain.verdict).or_default().add(plain.octets, plain.is_inside);
        }
    }

    fn plain(&self, verdict: Verdict, line: &Line<'_>) -> Plain {
        let octets = line.fwd_octets.saturating_add(line.rev_octets);
        let order = |bound: &Bound, text: &str| bound.order_of(text);
        let is_in_period = order(&self.from, &line.end).is_some_and(std::cmp::Ordering::is_ge);
        let is_whole = order(&self.from, &line.start).is_some_and(std::cmp::Ordering::is_ge)
            && order(&self.to, &line.end).is_some_and(std::cmp::Ordering::is_lt);
        let octets = match (line.start.parse(), line.end.parse()) {
            (Ok(start), Ok(end)) if is_in_period && !is_whole => self.period.share(start, end, octets),
            _ => octets,
        };
        Plain { verdict, octets, is_inside: line.outer_flow_id.is_some(), is_in_period }
    }
}

fn marked(flow: u64, verdict: Verdict, line: &Line<'_>, raw: &[u8]) -> Option<Marked> {
    let is_unapproved = Label::ALL.get(verdict.0) == Some(&Label::UnapprovedVpnTunnel);
    let record = if is_unapproved { Some(Box::new(serde_json::from_slice::<Record>(raw).ok()?)) } else { None };
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let (src, dst) = (address(&line.src_ip)?, address(&line.dst_ip)?);
    let (forward, back) = (line.fwd_octets, line.rev_octets);
    let is_ascending = (src, line.src_port) <= (dst, line.dst_port);
    let (way, peer) = match &*line.direction {
        "outbound" => (if is_ascending { Way::Out } else { Way::In }, dst),
        "inbound" => (if is_ascending { Way::In } else { Way::Out }, src),
        _ => (Way::Unknown, dst),
    };
    let mut seen_on = line.interface.to_string();
    if !line.vlan.is_empty() {
        let vlan = line.vlan.iter().map(u16::to_string).collect::<Vec<_>>().join(".");
        let _ = write!(seen_on, " VLAN {vlan}");
    }
    Some(Marked {
        flow,
        outer: line.outer_flow_id.as_ref().and_then(|id| id.parse::<FlowId>().ok()).map(|id| id.number()),
        is_end: line.kind == Kind::End,
        verdict,
        start: line.start.parse().ok()?,
        end: line.end.parse().ok()?,
        octets: if is_ascending { [forward, back] } else { [back, forward] },
        way,
        peer,
        seen_on: seen_on.into(),
        approval: line.approval.as_ref().map(|approval| Named {
            id: (&*approval.id).into(),
            owner: (&*approval.owner).into(),
            reference: (&*approval.reference).into(),
        }),
        record,
    })
}

impl Flows {
    /// Nothing yet.
    #[must_use]
    pub fn new(period: Period) -> Self {
        Self {
            period,
            from: Bound::new(period.from),
            to: Bound::new(period.to),
            open: HashMap::new(),
            sums: Sums::new(),
            uses: Uses::default(),
            tunnels: Tunnels::default(),
            foreign: 0,
        }
    }

    /// For the threads.
    #[must_use]
    pub fn look(&self) -> Look {
        Look { period: self.period, from: self.from.clone(), to: self.to.clone() }
    }

    /// Takes what a chunk gave; chunks come in the order of the log.
    pub fn merge(&mut self, part: Part) {
        self.foreign += part.foreign;
        for (verdict, sum) in part.sums {
            self.sums.entry(verdict).or_default().join(sum);
        }
        for event in part.events {
            match event {
                Event::Plain(flow, plain) => {
                    self.open.insert(flow, Open::Plain(plain));
                }
                Event::Over(flow) => {
                    self.open.remove(&flow);
                }
                Event::Marked(marked) => self.follow(*marked),
            }
        }
    }

    fn follow(&mut self, marked: Marked) {
        let (flow, is_end) = (marked.flow, marked.is_end);
        let mut followed = if let Some(Open::Marked(mut followed)) = self.open.remove(&flow) {
            followed.last = marked;
            followed
        } else {
            let outer = marked.outer.and_then(|outer| self.open.get(&outer));
            let outer_approval = match outer {
                Some(Open::Marked(outer)) => outer.last.approval.as_ref().map(|named| Arc::clone(&named.id)),
                _ => None,
            };
            Box::new(Followed { course: Course::new(marked.start), last: marked, outer_approval })
        };
        followed.course.push(&self.period, followed.last.end, followed.last.octets);
        if is_end {
            self.close(*followed);
        } else {
            self.open.insert(flow, Open::Marked(followed));
        }
    }

    /// There is nothing more: flows without an end count as they stand.
    pub(super) fn finish(&mut self) {
        // In the order of their numbers, so that a report is always the same.
        let mut open: Vec<_> = std::mem::take(&mut self.open).into_iter().collect();
        open.sort_unstable_by_key(|(flow, _)| *flow);
        for (_, open) in open {
            match open {
                Open::Plain(plain) if plain.is_in_period => {
                    self.sums.entry(plain.verdict).or_default().add(plain.octets, plain.is_inside);
                }
                Open::Plain(_) => {}
                Open::Marked(followed) => self.close(*followed),
            }
        }
    }

    fn close(&mut self, followed: Followed) {
        let Followed { last, course, outer_approval } = followed;
        if last.end < self.period.from {
            return;
        }
        let mut octets = 0_u64;
        course.spread(&self.period, |_, [one, other]| octets = octets.saturating_add(one).saturating_add(other));
        self.sums.entry(last.verdict).or_default().add(octets, last.outer.is_some());
        let (label, reason) = last.verdict;
        let is_approved = Label::ALL.get(label) == Some(&Label::AuthorizedLeasedLine);
        if let Some(named) = &last.approval {
            let approval = self.uses.of(named);
            if is_approved {
                approval.add(last.start, last.end, last.peer, &last.seen_on);
                // Else the octets would count twice for one approval.
                if outer_approval.as_ref() != Some(&named.id) {
                    let period = &self.period;
                    course.spread(period, |slot, ways| approval.spread(period, slot, last.way.sort(ways)));
                }
            } else if let Some(reason) = Reason::ALL.get(reason) {
                approval.refuse(*reason, octets, last.end);
            }
        }
        if let Some(record) = last.record {
            self.tunnels.add(Sighting { record, octets, seen_on: last.seen_on });
        }
    }
}
