//! The answers to random questions are those of a plain look at every line: no index, no prefilter, no threads.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use super::logs::{Form, lines, log};
use crate::common::command::run;

/// Rows in the order of the log, those of flows without an end last: an `end` each, else the latest.
fn rows(lines: &[String], kinds: &[&str]) -> Vec<Value> {
    let records = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    if !kinds.is_empty() {
        return records.filter(|record| kinds.contains(&text(record, "kind"))).collect();
    }
    let (mut rows, mut open) = (Vec::new(), HashMap::new());
    for (at, record) in records.enumerate() {
        let flow = text(&record, "flow_id").to_owned();
        if text(&record, "kind") == "end" {
            open.remove(&flow);
            rows.push(record);
        } else {
            open.insert(flow, (at, record));
        }
    }
    let mut open: Vec<_> = open.into_values().collect();
    open.sort_by_key(|(at, _)| *at);
    rows.extend(open.into_iter().map(|(_, record)| record));
    rows
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap()
}

/// One thing that is asked.
#[derive(Clone, Debug)]
enum Filter {
    From(String),
    To(String),
    Label(Vec<String>),
    Reason(String),
    Protocol(Vec<String>),
    Peer(IpNet),
    Network(IpNet),
    Approval(String),
    CommunityId(String),
    Flow(Vec<String>),
    Interface(String),
    Outermost,
}

impl Filter {
    fn arguments(&self) -> Vec<String> {
        let (option, value) = match self {
            Self::From(time) => ("from", time.clone()),
            Self::To(time) => ("to", time.clone()),
            Self::Label(labels) => ("label", labels.join(",")),
            Self::Reason(reason) => ("reason", reason.clone()),
            Self::Protocol(protocols) => ("protocol", protocols.join(",")),
            Self::Peer(net) if net.prefix_len() == net.max_prefix_len() => ("peer", net.addr().to_string()),
            Self::Peer(net) => ("peer", net.to_string()),
            Self::Network(net) => ("network", net.to_string()),
            Self::Approval(id) => ("approval", id.clone()),
            Self::CommunityId(id) => ("community-id", id.clone()),
            Self::Flow(ids) => ("flow", ids.join(",")),
            Self::Interface(name) => ("interface", name.clone()),
            Self::Outermost => return vec!["--outermost".to_owned()],
        };
        vec![format!("--{option}={value}")]
    }

    fn fits(&self, record: &Value, is_flow: bool) -> bool {
        let [first, last] = if is_flow { ["start", "end"] } else { ["time", "time"] };
        let is = |field: &str, value: &str| text(record, field) == value;
        match self {
            Self::From(time) => text(record, last) >= time.as_str(),
            Self::To(time) => text(record, first) < time.as_str(),
            Self::Label(labels) => labels.iter().any(|label| is("verdict", label)),
            Self::Reason(reason) => is("reason", reason),
            Self::Protocol(names) => names.iter().any(|name| *name == record["tunnel"].as_str().unwrap_or("none")),
            // Both ends together, see `fits`.
            Self::Peer(_) | Self::Network(_) => true,
            Self::Approval(id) => record["approval"]["id"] == **id,
            Self::CommunityId(id) => is("community_id", id),
            Self::Flow(ids) => ids.iter().any(|id| is("flow_id", id)),
            Self::Interface(name) => is("interface", name),
            Self::Outermost => record["outer_flow_id"].is_null(),
        }
    }
}

fn fits(filters: &[Filter], record: &Value, is_flow: bool) -> bool {
    let ends = ["src_ip", "dst_ip"].map(|end| text(record, end).parse::<IpAddr>().unwrap());
    let holds = |end: &IpAddr, is_peer: bool| {
        filters.iter().all(|filter| match filter {
            Filter::Peer(net) if is_peer => net.contains(end),
            Filter::Network(net) if !is_peer => net.contains(end),
            _ => true,
        })
    };
    let [src, dst] = ends;
    let ends_fit = (holds(&src, true) && holds(&dst, false)) || (holds(&dst, true) && holds(&src, false));
    ends_fit && filters.iter().all(|filter| filter.fits(record, is_flow))
}

/// A filter by what some record holds, so that most questions have an answer.
fn filter() -> impl Strategy<Value = Filter> {
    (0..13_u8, any::<Index>(), any::<Index>(), 0..=32_u8, any::<bool>()).prop_map(
        |(which, one, other, shorter, rare)| {
            // Tunnels, whose verdicts change, are few among all.
            let some: Vec<_> = lines().iter().filter(|line| !rare || !line.contains("\"tunnel\":null")).collect();
            let record = |index: &Index| serde_json::from_str::<Value>(index.get::<&String>(&some)).unwrap();
            let (record, other) = (record(&one), record(&other));
            let net = |end: &str| {
                let address: IpAddr = text(&record, end).parse().unwrap();
                let length = if address.is_ipv4() { 32 } else { 128 };
                IpNet::new(address, length - shorter / 2).unwrap().trunc()
            };
            let both = |field: &str| vec![text(&record, field).to_owned(), text(&other, field).to_owned()];
            match which {
                0 => Filter::From(text(&record, "time").to_owned()),
                1 => Filter::To(text(&record, "end").to_owned()),
                2 => Filter::Label(vec![text(&record, "verdict").to_owned()]),
                3 => Filter::Label(vec!["unapproved_vpn_tunnel".to_owned(), text(&record, "verdict").to_owned()]),
                4 => Filter::Reason(text(&record, "reason").to_owned()),
                5 => {
                    let name = |record: &Value| record["tunnel"].as_str().unwrap_or("wireguard").to_owned();
                    Filter::Protocol(vec![name(&record), name(&other)])
                }
                6 => Filter::Peer(net("dst_ip")),
                7 => Filter::Network(net("src_ip")),
                8 => Filter::Approval(record["approval"]["id"].as_str().unwrap_or("vpn-000").to_owned()),
                9 => Filter::CommunityId(text(&record, "community_id").to_owned()),
                10 => Filter::Flow(both("flow_id")),
                11 => Filter::Interface(text(&record, "interface").to_owned()),
                _ => Filter::Outermost,
            }
        },
    )
}

/// At most one of a kind: several of one option mean any of them.
fn filters() -> impl Strategy<Value = Vec<Filter>> {
    prop::collection::vec(filter(), 0..4).prop_map(|filters| {
        let mut kept: Vec<Filter> = Vec::new();
        for filter in filters {
            if !kept.iter().any(|known| std::mem::discriminant(known) == std::mem::discriminant(&filter)) {
                kept.push(filter);
            }
        }
        // A range that ends before it begins is refused, which is another test's.
        let time = |kept: &[Filter], is_from: bool| {
            kept.iter().find_map(|filter| match filter {
                Filter::From(time) if is_from => Some(time.clone()),
                Filter::To(time) if !is_from => Some(time.clone()),
                _ => None,
            })
        };
        if let (Some(from), Some(to)) = (time(&kept, true), time(&kept, false))
            && from >= to
        {
            kept.retain(|filter| !matches!(filter, Filter::To(_)));
        }
        kept
    })
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![3 => Just(Form::Archive), 1 => Just(Form::ArchiveWithoutIndex), 1 => Just(Form::Plain), 1 => Just(Form::Both)]
}

const KINDS: [&[&str]; 6] = [&[], &[], &[], &["end"], &["start", "update"], &["start", "update", "end"]];
const FIELDS: [(&str, &str); 7] = [
    ("label", "/verdict"),
    ("reason", "/reason"),
    ("protocol", "/tunnel"),
    ("approval", "/approval/id"),
    ("dst_ip", "/dst_ip"),
    ("dst_port", "/dst_port"),
    ("end_reason", "/end_reason"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_a_plain_look(
        filters in filters(),
        cuts in prop::collection::vec((any::<Index>(), forms()), 0..4),
        kinds in prop::sample::select(&KINDS[..]),
        fields in prop::sample::subsequence(&FIELDS[..], 1..=2),
        top in 1..40_usize,
        trusts_index: bool,
    ) {
        let all = lines();
        let mut cuts: Vec<_> = cuts.iter().map(|(cut, form)| (cut.index(all.len() + 1), *form)).collect();
        cuts.sort_by_key(|(cut, _)| *cut);
        let folder = log(all, &cuts);
        let mut arguments = vec!["query".to_owned(), folder.path().to_str().unwrap().to_owned()];
        arguments.extend(filters.iter().flat_map(Filter::arguments));
        if !kinds.is_empty() {
            arguments.push(format!("--kind={}", kinds.join(",")));
        }
        if !trusts_index {
            arguments.push("--no-index".to_owned());
        }
        let ask = |more: &[&str]| {
            let done = run(arguments.iter().map(String::as_str).chain(more.iter().copied())).expect(0);
            assert_eq!(done.err, "", "{arguments:?}");
            done
        };
        let is_flow = kinds.is_empty();
        let expected: Vec<_> = rows(all, kinds).into_iter().filter(|row| fits(&filters, row, is_flow)).collect();

        prop_assert_eq!(&ask(&["--format", "ndjson"]).records(), &expected, "{:?} {:?}", arguments, cuts);
        prop_assert_eq!(ask(&["--count"]).out, format!("{}\n", expected.len()));
        prop_assert_eq!(ask(&["--format", "csv"]).out.lines().count(), expected.len() + 1);
        let printed = ask(&[]).out;
        prop_assert_eq!(printed.lines().count(), if expected.is_empty() { 0 } else { expected.len() + 1 });

        let octets = |row: &Value| row["fwd_octets"].as_u64().unwrap() + row["rev_octets"].as_u64().unwrap();
        let mut sorted = expected.clone();
        sorted.sort_by_key(|row| std::cmp::Reverse(octets(row)));
        sorted.truncate(top);
        let top = top.to_string();
        prop_assert_eq!(&ask(&["--format", "ndjson", "--top", &top]).records(), &sorted);

        // Sums: rows, packets, octets, by the values of the fields.
        let mut sums = BTreeMap::<Vec<String>, (u64, u64, u64, String, String)>::new();
        for row in &expected {
            let key = fields.iter().map(|(_, pointer)| row.pointer(pointer).unwrap_or(&Value::Null).to_string()).collect();
            let sum = sums.entry(key).or_insert_with(|| (0, 0, 0, "~".to_owned(), String::new()));
            sum.0 += 1;
            sum.1 += row["fwd_packets"].as_u64().unwrap() + row["rev_packets"].as_u64().unwrap();
            sum.2 += octets(row);
            sum.3 = sum.3.clone().min(text(row, "start").to_owned());
            sum.4 = sum.4.clone().max(text(row, "end").to_owned());
        }
        let names = fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
        let groups = ask(&["--format", "ndjson", "--group-by", &names]).records();
        let has_counts = is_flow || kinds == ["end"];
        prop_assert_eq!(groups.len(), sums.len());
        for group in &groups {
            let key: Vec<_> = fields.iter().map(|(name, _)| group[*name].to_string()).collect();
            let (rows, packets, octets, first, last) = &sums[&key];
            prop_assert_eq!(&group[if has_counts { "flows" } else { "records" }], rows);
            prop_assert_eq!((&group["first"], &group["last"]), (&first.as_str().into(), &last.as_str().into()));
            if has_counts {
                prop_assert_eq!((&group["packets"], &group["octets"]), (&(*packets).into(), &(*octets).into()));
            } else {
                prop_assert_eq!(&group["octets"], &Value::Null);
            }
        }
        let by = if has_counts { "octets" } else { "records" };
        prop_assert!(groups.is_sorted_by_key(|group| std::cmp::Reverse(group[by].as_u64().unwrap())));
        prop_assert_eq!(ask(&["--count", "--group-by", &names]).out, format!("{}\n", sums.len()));
    }
}

/// Each flow goes through all labels, and is asked for by that of its latest record alone, however its records are spread
/// over segments of which all others are passed over.
#[test]
fn a_label_of_before_is_not_found() {
    let is_plain = |line: &&String| line.contains("\"kind\":\"start\"") && line.contains("\"tunnel\":null");
    let line = lines().iter().find(is_plain).unwrap();
    let record = |flow: usize, kind: &str, label: &str, reason: &str| {
        // In the text, so that fields keep their order.
        let before: Value = serde_json::from_str(line).unwrap();
        let fields = [("kind", kind), ("verdict", label), ("reason", reason), ("flow_id", &format!("{flow:016x}"))];
        fields.iter().fold(line.clone(), |line, (field, value)| {
            line.replacen(&format!("\"{field}\":{}", before[field]), &format!("\"{field}\":\"{value}\""), 1)
        })
    };
    let (other, unapproved, approved) = ("other", "unapproved_vpn_tunnel", "authorized_leased_line");
    let all = [
        record(1, "start", other, "low_confidence"),
        record(2, "start", other, "low_confidence"),
        record(3, "start", other, "low_confidence"),
        record(1, "update", unapproved, "no_approval"),
        record(2, "update", unapproved, "no_approval"),
        record(3, "update", unapproved, "no_approval"),
        record(1, "update", approved, "approved"),
        record(2, "update", approved, "approved"),
        record(1, "end", approved, "approved"),
    ];
    for cuts in [vec![], vec![(3, Form::Archive), (6, Form::Archive)], (1..9).map(|cut| (cut, Form::Archive)).collect()]
    {
        let folder = log(&all, &cuts);
        let flows = |options: &[&str]| -> Vec<_> {
            let log = ["query", "--format=ndjson", folder.path().to_str().unwrap()];
            let rows = run(log.iter().chain(options)).expect(0).records();
            rows.iter().map(|row| text(row, "flow_id")[15..].to_owned()).collect()
        };
        for (option, expected) in [
            ("--label=other", &[][..]),
            ("--label=unapproved_vpn_tunnel", &["3"]),
            ("--label=authorized_leased_line", &["1", "2"]),
            ("--label=unapproved_vpn_tunnel,other", &["3"]),
            ("--reason=low_confidence", &[]),
            ("--reason=no_approval", &["3"]),
            ("--reason=no_approval,low_confidence", &["3"]),
        ] {
            assert_eq!(flows(&[option]), expected, "{option} {cuts:?}");
            assert_eq!(flows(&[option, "--no-index"]), expected, "{option} {cuts:?}");
        }
    }
}

/// That the property above means something: the log has what it asks for.
#[test]
fn the_made_up_log_has_everything() {
    let starts = rows(lines(), &["start"]);
    let rows = rows(lines(), &[]);
    for label in ["other", "authorized_leased_line", "unapproved_vpn_tunnel"] {
        assert!(rows.iter().filter(|row| text(row, "verdict") == label).count() > 3, "{label}");
    }
    assert!(rows.iter().filter(|row| text(row, "kind") != "end").count() > 3, "open flows");
    assert!(rows.iter().filter(|row| row["outer_flow_id"].is_string()).count() > 0, "flows inside tunnels");
    assert!(rows.iter().filter(|row| row["continues"].is_string()).count() > 3, "flows in parts");
    // Flows that were labelled otherwise at first: their earlier records must not count.
    let ends: HashMap<_, _> = rows.iter().map(|row| (text(row, "flow_id"), text(row, "verdict"))).collect();
    let turned = starts.iter().filter(|start| ends[text(start, "flow_id")] != text(start, "verdict")).count();
    assert!(turned > 10, "{turned}");
}
