//! Finds what is valid in approvals but probably not meant: what is too wide, hidden, said twice, or over.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::Approvals;
use crate::detect::{CarrierKind, Protocol, REGISTRY};
use crate::policy::{Approval, ApprovalKind, PortRange};
use crate::time::Timestamp;

/// Something that is valid, but probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing, in a word or three.
    pub code: &'static str,
    /// `file:line:column`.
    pub place: String,
    /// In which approval.
    pub approval: Option<Arc<str>>,
    /// What it is, and what to do.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, text, .. } = self;
        match &self.approval {
            Some(id) => write!(f, "{place}: approval \"{id}\": {text}"),
            None => write!(f, "{place}: {text}"),
        }
    }
}

/// Approvals of one network that are held against each other.
const MOST_ALIKE: usize = 16;

/// What one approval shows by itself, whatever the time.
pub(super) fn of_one(approval: &Approval, place: &str, findings: &mut Vec<Finding>) {
    let mut find = |code, text: String| {
        findings.push(Finding { code, place: place.to_owned(), approval: Some(Arc::clone(&approval.id)), text });
    };
    for network in &approval.peers {
        let least = if network.addr().is_ipv4() { 8 } else { 16 };
        if network.prefix_len() < least {
            find("wide_network", format!("{network} approves a large part of the Internet"));
        }
    }
    if approval.kind == ApprovalKind::LeasedLine && !approval.is_line_by_path() {
        let text = "a leased line without path: only tunnels on it can be recognised, its plain traffic stays `other`";
        find("line_without_path", text.to_owned());
    }
    let portless = |protocol: &Protocol| {
        let mut detectors = REGISTRY.iter().map(|detector| detector.about());
        !detectors.any(|about| {
            let has_ports = about.carriers.iter().any(|carrier| !matches!(carrier, CarrierKind::Ip(_)));
            has_ports && about.protocols.contains(protocol)
        })
    };
    if !approval.ports.is_empty() && !approval.tunnels.is_empty() && approval.tunnels.iter().all(portless) {
        find("ports_of_no_use", "its tunnels have no ports, so that nothing fits its ports".to_owned());
    }
    for key in &approval.keys {
        let protocol = key.fingerprint().kind().protocol();
        if !approval.tunnels.is_empty() && !approval.tunnels.contains(&protocol) {
            let (name, key) = (protocol.name(), key.fingerprint());
            find("key_of_no_use", format!("its tunnels do not name {name}, so that its key {key} is good for nothing"));
        }
    }
}

impl Approvals {
    /// Which approvals had ended at `now`, end within `ahead`, or have not begun.
    #[must_use]
    pub fn warnings_at(&self, now: Timestamp, ahead: Duration) -> Vec<Finding> {
        let dated = self.with_places().filter_map(|(approval, place)| {
            let Approval { id, valid_from, valid_until, .. } = approval;
            let (code, text) = if *valid_until <= now {
                ("ended", format!("ended at {valid_until}: renew it or take it out"))
            } else if let Some(from) = valid_from.filter(|from| *from > now) {
                ("not_begun", format!("begins at {from} only"))
            } else if *valid_until <= now + ahead {
                ("ends_soon", format!("ends at {valid_until}: renew it before that, or let it end"))
            } else {
                return None;
            };
            Some(Finding { code, place: place.to_owned(), approval: Some(Arc::clone(id)), text })
        });
        dated.collect()
    }

    /// Everything that is valid but probably not meant, in the order of the files.
    #[must_use]
    pub fn lint(&self, now: Timestamp, ahead: Duration) -> Vec<Finding> {
        let mut findings: Vec<_> = self.warnings.iter().cloned().chain(self.warnings_at(now, ahead)).collect();
        for (approval, place) in self.with_places() {
            let mut find = |code, text: &str| {
                let text = text.to_owned();
                findings.push(Finding {
                    code,
                    place: place.to_owned(),
                    approval: Some(Arc::clone(&approval.id)),
                    text,
                });
            };
            if approval.need.is_none() {
                find("no_need", "says nothing of why it is needed: write `need`, by which a review can end it");
            }
            let is_any = approval.tunnels.is_empty() && approval.ports.is_empty() && approval.ip_protocols.is_empty();
            if approval.kind == ApprovalKind::Vpn && is_any && approval.keys.is_empty() {
                find("any_tunnel", "approves any tunnel on any port: name its `tunnels`, or its `ports`");
            }
            if !approval.keys.is_empty() && approval.path == crate::policy::Path::default() {
                find(
                    "keys_without_path",
                    "pins keys and names no path: whoever knows them is approved from any address on any link, and a WireGuard public key is no secret",
                );
            }
        }
        self.references(&mut findings);
        self.overlaps(now, &mut findings);
        // Each approval's together.
        let order: HashMap<&str, usize> =
            self.places().iter().zip(0..).map(|(place, at)| (place.as_str(), at)).collect();
        findings.sort_by_key(|finding| order.get(finding.place.as_str()).copied().unwrap_or(usize::MAX));
        findings
    }

    fn references(&self, findings: &mut Vec<Finding>) {
        let mut first = HashMap::new();
        for (approval, place) in self.with_places() {
            let (other, at) = *first.entry(&approval.reference).or_insert((&approval.id, place));
            if at != place {
                findings.push(Finding {
                    code: "same_reference",
                    place: place.to_owned(),
                    approval: Some(Arc::clone(&approval.id)),
                    text: format!("its reference \"{}\" is that of \"{other}\" ({at}), too", approval.reference),
                });
            }
        }
    }

    /// The longest prefix decides which approvals are asked: a narrower network that allows less hides a wider one's approval,
    /// and an approval adds nothing where another of the same networks allows as much.
    fn overlaps(&self, now: Timestamp, findings: &mut Vec<Finding>) {
        let mut by_network = HashMap::<IpNet, Vec<usize>>::new();
        for (approval, at) in self.list.iter().zip(0..) {
            for network in &approval.peers {
                by_network.entry(*network).or_default().push(at);
            }
        }
        let of = |at: usize| self.list.get(at).zip(self.places().get(at));
        for (approval, at) in self.list.iter().zip(0..) {
            let Some(place) = self.places().get(at) else { continue };
            let mut find = |code, text| {
                findings.push(Finding { code, place: place.clone(), approval: Some(Arc::clone(&approval.id)), text });
            };
            let mut hidden = BTreeMap::<usize, (IpNet, IpNet)>::new();
            for network in &approval.peers {
                let mut wider = std::iter::successors(network.supernet(), IpNet::supernet);
                let around = wider.find_map(|wide| Some((wide, by_network.get(&wide)?)));
                let Some((wide, others)) = around else { continue };
                let here = by_network.get(network).map_or(&[][..], Vec::as_slice);
                for &other in others.iter().take(MOST_ALIKE) {
                    let Some((by, _)) = of(other).filter(|(by, _)| by.valid_until > now) else { continue };
                    // Another approval of the same network may allow what this one does not.
                    let mut asked = here.iter().take(MOST_ALIKE).filter_map(|&at| of(at));
                    if !asked.any(|(asked, _)| asked.id == by.id || allows_as_much(asked, by)) {
                        hidden.entry(other).or_insert((*network, wide));
                    }
                }
            }
            for (other, (network, wide)) in hidden {
                let Some((by, at)) = of(other) else { continue };
                find(
                    "hides",
                    format!(
                        "its {network} lies within {wide} of \"{}\" ({at}), which is not asked there though it allows what this one does not",
                        by.id
                    ),
                );
            }
            let twin = |network: &IpNet| {
                let others = by_network.get(network)?.iter().take(MOST_ALIKE).filter(|&&other| other != at);
                others.copied().find(|&other| {
                    of(other).is_some_and(|(by, _)| {
                        // Keys approve from anywhere, too. Of two that are alike, the later one is too many.
                        allows_as_much(by, approval)
                            && approval.keys == by.keys
                            && (other < at || by.peers.len() > approval.peers.len() || !allows_as_much(approval, by))
                    })
                })
            };
            let twins: Option<Vec<_>> = approval.peers.iter().map(twin).collect();
            if let Some(first) = twins.as_ref().and_then(|twins| twins.first())
                && let Some((by, at)) = of(*first)
            {
                find("adds_nothing", format!("all that it allows, \"{}\" ({at}) allows, too", by.id));
            }
        }
    }
}

/// Whether all that `other` allows at an address is allowed by `one` at the same address.
fn allows_as_much(one: &Approval, other: &Approval) -> bool {
    fn holds<T: PartialEq>(one: &[T], other: &[T]) -> bool {
        one.is_empty() || !other.is_empty() && other.iter().all(|item| one.contains(item))
    }
    let holds_port =
        |range: &PortRange| one.ports.iter().any(|around| around.first <= range.first && range.last <= around.last);
    let (path, within) = (&one.path, &other.path);
    one.valid_from.unwrap_or(Timestamp::ZERO) <= other.valid_from.unwrap_or(Timestamp::ZERO)
        && one.valid_until >= other.valid_until
        && holds(&one.tunnels, &other.tunnels)
        && holds(&one.ip_protocols, &other.ip_protocols)
        && (one.ports.is_empty() || !other.ports.is_empty() && other.ports.iter().all(holds_port))
        && (path.sensor.is_none() || path.sensor == within.sensor)
        && (path.interface.is_none() || path.interface == within.interface)
        && (path.vlan.is_none() || path.vlan == within.vlan)
        && (path.mpls_label.is_none() || path.mpls_label == within.mpls_label)
        && (one.keys.is_empty() || one.keys == other.keys)
        // A line's path approves plain traffic, too.
        && (one.kind == other.kind || !other.is_line_by_path())
}
