//! Turns what NetBox answers (`/api/circuits/circuits/`, `/api/circuits/circuit-terminations/`) into drafts: an active circuit
//! a leased line.

use std::collections::HashSet;
use std::io::{self, Write};

use serde::Deserialize;
use serde_json::Value as Json;
use toml::value::Datetime;

use super::stanza::{Stanza, name, text};

/// An answer of NetBox's REST API: a page of a list, or the list itself.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Page { count: Option<u64>, results: Vec<Json> },
    List(Vec<Json>),
}

/// A circuit, as far as an approval asks for it.
#[derive(Deserialize)]
struct Circuit {
    id: u64,
    cid: String,
    provider: Option<Named>,
    r#type: Option<Named>,
    status: Option<Choice>,
    tenant: Option<Named>,
    install_date: Option<String>,
    termination_date: Option<String>,
    /// Kilobits a second.
    commit_rate: Option<u64>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    comments: String,
}

/// Where a circuit ends.
#[derive(Deserialize)]
struct Termination {
    circuit: CircuitId,
    term_side: String,
    /// NetBox 4.2 and later: a site, a location, a region.
    termination: Option<Named>,
    site: Option<Named>,
    /// Kilobits a second.
    port_speed: Option<u64>,
    #[serde(default)]
    xconnect_id: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    connected_endpoints: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct CircuitId {
    id: u64,
}

/// An interface of a device that a circuit is plugged into.
#[derive(Deserialize)]
struct Port {
    device: Option<Named>,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
    display: Option<String>,
}

impl Named {
    fn text(&self) -> Option<&str> {
        self.name.as_deref().or(self.display.as_deref()).map(str::trim).filter(|name| !name.is_empty())
    }
}

/// A choice is `{"value": "active", "label": "Active"}`; old versions wrote its value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Choice {
    Both { value: String },
    Value(String),
}

/// The drafts, or everything that is wrong. What is left out is said on standard error.
pub(super) fn drafts(files: &[(String, String)]) -> Result<Vec<Stanza>, Vec<String>> {
    let (mut circuits, mut terminations, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    // Of circuits and of terminations: how many there are said to be.
    let mut counts = [None::<u64>; 2];
    for (file, text) in files {
        let Ok(answer) = serde_json::from_str::<Answer>(text) else {
            problems.push(no_list(file, text));
            continue;
        };
        let (count, results) = match answer {
            Answer::Page { count, results } => (count, results),
            Answer::List(results) => (None, results),
        };
        for (result, number) in results.into_iter().zip(1..) {
            let is_termination = result.get("term_side").is_some();
            let [of_circuits, of_terminations] = &mut counts;
            let of = if is_termination { of_terminations } else { of_circuits };
            *of = (*of).max(count);
            let read = if is_termination {
                serde_json::from_value(result).map(|termination| terminations.push(termination))
            } else {
                serde_json::from_value(result).map(|circuit| circuits.push((file.as_str(), circuit)))
            };
            if let Err(error) = read {
                let what = if is_termination { "termination" } else { "circuit" };
                problems.push(format!("{file}: result {number} is no {what} of NetBox: {error}"));
            }
        }
    }
    let had: [(&str, Option<u64>, usize); 2] =
        [("circuits", counts[0], circuits.len()), ("terminations", counts[1], terminations.len())];
    for (what, count, had) in had {
        if let Some(count) = count.filter(|count| *count > had as u64) {
            say(&format!("ONLY {had} of {count} {what} are given: ask NetBox with ?limit=0, or give every page"));
        }
    }
    let mut seen = HashSet::new();
    circuits.retain(|(_, circuit): &(&str, Circuit)| seen.insert(circuit.id));
    let (mut drafts, mut ids) = (Vec::new(), HashSet::new());
    for (file, circuit) in &circuits {
        let status = match &circuit.status {
            Some(Choice::Both { value } | Choice::Value(value)) => value.as_str(),
            None => "of no status",
        };
        if status != "active" {
            say(&format!("circuit {:?} is {status}: left out", circuit.cid));
            continue;
        }
        let ends = terminations.iter().filter(|end: &&Termination| end.circuit.id == circuit.id);
        let draft = draft(file, circuit, &ends.collect::<Vec<_>>(), &mut ids);
        let wrong = draft.problems().into_iter();
        problems.extend(wrong.map(|(_, what)| format!("{file}: circuit {:?}: {what}", circuit.cid)));
        drafts.push(draft);
    }
    if circuits.is_empty() && problems.is_empty() {
        problems.push("there is no circuit in what is given: name the answer of /api/circuits/circuits/".to_owned());
    }
    if problems.is_empty() { Ok(drafts) } else { Err(problems) }
}

/// Why a text is no list: where it is no JSON, or that it is something else.
fn no_list(file: &str, text: &str) -> String {
    match serde_json::from_str::<Json>(text) {
        Err(error) => format!("{file}:{}:{}: is no JSON: {error}", error.line(), error.column()),
        Ok(other) => {
            let detail = other.get("detail").and_then(Json::as_str);
            let said = detail.map_or_else(String::new, |detail| format!(" (it says {detail:?})"));
            format!("{file}: is no list of NetBox's{said}: name the answer of /api/circuits/circuits/")
        }
    }
}

fn say(what: &str) {
    let _ = writeln!(io::stderr(), "linewarden: {what}");
}

fn draft(file: &str, circuit: &Circuit, ends: &[&Termination], ids: &mut HashSet<String>) -> Stanza {
    let provider = circuit.provider.as_ref().and_then(Named::text);
    // Circuits of one provider have numbers of their own.
    let id = format!("line-{}", name(&circuit.cid));
    let id = if ids.contains(&id) { format!("{id}-{}", name(provider.unwrap_or("other"))) } else { id };
    let id = if ids.contains(&id) { format!("{id}-{}", circuit.id) } else { id };
    ids.insert(id.clone());
    let about = [
        Some(format!("Drafted from {file}: circuit {} (NetBox {}).", circuit.cid, circuit.id)),
        circuit.r#type.as_ref().and_then(Named::text).map(|kind| format!("Type: {kind}. A leased line?")),
    ];
    let mut draft = Stanza::new(&id, &about.into_iter().flatten().collect::<Vec<_>>());
    draft.set("kind", &text("leased-line"));
    match circuit.tenant.as_ref().and_then(Named::text) {
        Some(tenant) => draft.set_noted("owner", &text(tenant), "the circuit's tenant"),
        None => draft.todo("owner", "who answers for it"),
    }
    draft.set("reference", &text(&[provider.unwrap_or(""), " circuit ", &circuit.cid].concat()));
    match [&circuit.description, &circuit.comments].into_iter().find(|text| !text.trim().is_empty()) {
        Some(need) => draft.set_noted("need", &text(need), "as NetBox describes it"),
        None => draft.todo("need", "why it is needed"),
    }
    let date = |date: &String| date.parse::<Datetime>().map_or_else(|_| text(date), toml::Value::from);
    if let Some(from) = &circuit.install_date {
        draft.set("valid_from", &date(from));
    }
    match &circuit.termination_date {
        Some(until) => draft.set("valid_until", &date(until)),
        None => draft.todo("valid_until", "its last day, such as 2027-12-31"),
    }
    let rate = circuit.commit_rate.or_else(|| ends.iter().filter_map(|end| end.port_speed).min());
    if let Some(rate) = rate.filter(|rate| *rate > 0) {
        draft.set("capacity", &text(&bit_rate(rate)));
    }
    for end in ends {
        let place = end.termination.as_ref().or(end.site.as_ref()).and_then(Named::text).unwrap_or("no site");
        let ports = end
            .connected_endpoints
            .iter()
            .flatten()
            .map(|port| [port.device.as_ref().and_then(Named::text).unwrap_or(""), " ", &port.name].concat());
        let more = [&end.xconnect_id, &end.description].into_iter().cloned();
        let all: Vec<_> = std::iter::once(place.to_owned()).chain(ports).chain(more).collect();
        let all: Vec<_> = all.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
        draft.comment(&format!("End {}: {}", end.term_side, all.join(", ")));
    }
    draft.ask(
        "path = { interface = \"wan0\", vlan = 100 }",
        "where its traffic is seen: sensor, interface, vlan, mpls_label",
    );
    draft.offer("peers = [\"192.0.2.1\"]  # only for this end's addresses or networks");
    draft
}

/// Kilobits a second, as lines are sold.
fn bit_rate(kilobits: u64) -> String {
    let units = [(1_000_000, "Gbit/s"), (1000, "Mbit/s"), (1, "kbit/s")];
    let fitting = units.into_iter().find(|(unit, _)| kilobits.is_multiple_of(*unit));
    fitting.map_or_else(String::new, |(unit, name)| format!("{}{name}", kilobits / unit))
}
