//! Turns the folder of approvals into [`Approval`]s and their revision. Each `*.toml` holds one, or several as `[[approval]]`.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use toml::value::{Datetime, Offset};

use super::ConfigError;
use super::keys::read_keys;
use super::lint::{Finding, of_one};
use super::reader::{Document, Section, Value, into_result, nearest, read};
use crate::detect::Protocol;
use crate::policy::{Approval, ApprovalKind, Path as ApprovalPath, PortRange};
use crate::time::Timestamp;

/// The approvals of a folder, checked.
#[derive(Clone, Debug)]
pub struct Approvals {
    /// In order of file name, then of position.
    pub list: Vec<Approval>,
    /// SHA-256 over them, lower-case hexadecimal: it changes with their meaning, not with where they stand.
    pub revision: Arc<str>,
    /// Things that are valid but probably not meant, each with its place.
    pub warnings: Vec<Finding>,
    /// Where each approval stands, in the order of `list`.
    places: Vec<String>,
}

/// What is read so far, over all files.
#[derive(Default)]
struct Reading {
    list: Vec<Approval>,
    places: Vec<String>,
    by_id: HashMap<Arc<str>, usize>,
    warnings: Vec<Finding>,
    problems: Vec<String>,
}

impl Approvals {
    /// Reads and checks every `*.toml` of a folder; a missing folder is an error, an empty one is not.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let mut reading = Reading::default();
        for path in files(dir)? {
            match read(&path) {
                Ok(text) => reading.file(&path, &text),
                Err(ConfigError(problem)) => reading.problems.push(problem),
            }
        }
        into_result(reading.problems)?;
        let revision = revision(&reading.list);
        Ok(Self { list: reading.list, revision, warnings: reading.warnings, places: reading.places })
    }

    /// What is wrong with a text that is to become a file of approvals, by line from 1.
    #[must_use]
    pub fn problems_of(text: &str) -> Vec<(usize, String)> {
        let document = Document::new(String::new(), text);
        Reading::default().document(&document, Path::new(""));
        document.problems_by_line()
    }

    /// The empty set.
    #[must_use]
    pub fn empty() -> Self {
        Self { list: Vec::new(), revision: revision(&[]), warnings: Vec::new(), places: Vec::new() }
    }

    /// Where each approval stands, in the order of `list`.
    pub(super) fn places(&self) -> &[String] {
        &self.places
    }

    pub(super) fn with_places(&self) -> impl Iterator<Item = (&Approval, &str)> {
        self.list.iter().zip(self.places.iter().map(String::as_str))
    }
}

/// `*.toml`, no hidden ones, by name.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |error: std::io::Error| {
        ConfigError(format!(
            "{}: the folder of approvals cannot be read: {error}; make it, or name another one with policy.approvals or --approvals",
            dir.display()
        ))
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Reading {
    fn file(&mut self, path: &Path, text: &str) {
        let document = Document::new(path.display().to_string(), text);
        self.document(&document, path);
        self.problems.extend(document.problems());
    }

    fn document(&mut self, document: &Document<'_>, path: &Path) {
        let table = document.parse();
        let top = document.top(&table);
        if document.is_broken() {
            // What is missing may stand behind the error.
        } else if top.has("approval") {
            let sections = top.sections("approval").unwrap_or_default();
            for section in &sections {
                self.approval(section, document, path);
            }
            top.finish();
        } else if !table.get_ref().is_empty() {
            self.approval(&top, document, path);
        } else {
            let (place, text) = (path.display().to_string(), "no approval in it".to_owned());
            self.warnings.push(Finding { code: "empty_file", place, approval: None, text });
        }
    }

    fn approval(&mut self, section: &Section<'_, '_>, document: &Document<'_>, path: &Path) {
        let place = document.place(section.span().start);
        let id_value = section.required("id", "\"a-name-of-its-own\"");
        let id = id_value.as_ref().and_then(Value::text).map(Arc::<str>::from);
        if let (Some(value), Some(id)) = (&id_value, &id)
            && let Some(other) = self.by_id.get(id).and_then(|&at| self.places.get(at))
        {
            value.wrong(&format_args!("this id is taken at {other}: give each approval its own"));
        }
        let approval = read_approval(section, id, path, &place, &mut self.warnings);
        section.finish();
        if let Some(approval) = approval {
            self.by_id.insert(Arc::clone(&approval.id), self.list.len());
            self.list.push(approval);
            self.places.push(place);
        }
    }
}

fn read_approval(
    section: &Section<'_, '_>,
    id: Option<Arc<str>>,
    file: &Path,
    place: &str,
    warnings: &mut Vec<Finding>,
) -> Option<Approval> {
    let text = |value: Option<Value<'_, '_>>| value.and_then(|value| value.text().map(Arc::<str>::from));
    let kinds = [("leased-line", ApprovalKind::LeasedLine), ("vpn", ApprovalKind::Vpn)];
    let kind = section.required("kind", "\"vpn\" or \"leased-line\"").and_then(|value| value.choice(&kinds));
    let owner = text(section.required("owner", "\"who answers for it\""));
    let reference = text(section.required("reference", "\"ticket, contract or circuit\""));
    let need = text(section.value("need"));
    let from_value = section.value("valid_from");
    let valid_from = from_value.as_ref().and_then(|value| time(value, Day::Begins));
    let valid_until = section.required("valid_until", "2027-12-31").and_then(|value| time(&value, Day::Ends));
    if let (Some(value), Some(from), Some(until)) = (&from_value, valid_from, valid_until)
        && from >= until
    {
        value.wrong(&"write a time before valid_until");
    }
    let peers_value = section.value("peers");
    let peers = peers_value.as_ref().map_or(Some(Vec::new()), |list| list.list(network));
    let ports = section.value("ports").map_or(Some(Vec::new()), |list| list.list(port_range));
    let ip_protocols = section.value("ip_protocols").map_or(Some(Vec::new()), |list| list.list(ip_protocol));
    let tunnels = section.value("tunnels").map_or(Some(Vec::new()), |list| list.list(tunnel));
    let path = section.section("path").map_or_else(ApprovalPath::default, |path| read_path(&path));

    let capacity = section.value("capacity").map_or(Some(None), |value| value.bit_rate().map(Some));
    let keys = section.section("identity").map_or(Some(Vec::new()), |identity| read_keys(&identity, file));

    let is_line_by_path = kind == Some(ApprovalKind::LeasedLine)
        && (path.interface.is_some() || path.vlan.is_some() || path.mpls_label.is_some());
    if let Some([]) = peers.as_deref() {
        let instead = "write the networks of the approved endpoint; only a leased line whose path names an interface, vlan or mpls_label, or an approval with an identity, can do without";
        let has_keys = keys.as_ref().is_none_or(|keys| !keys.is_empty());
        match &peers_value {
            Some(value) => value.wrong(&instead),
            None if !is_line_by_path && !has_keys => section.missing("peers", &instead),
            None => {}
        }
    }
    let approval = Approval {
        id: id?,
        kind: kind?,
        owner: owner?,
        reference: reference?,
        need,
        valid_from,
        valid_until: valid_until?,
        peers: peers?,
        ports: ports?,
        ip_protocols: ip_protocols?,
        tunnels: tunnels?,
        path,
        capacity: capacity?,
        keys: keys?,
    };
    of_one(&approval, place, warnings);
    Some(approval)
}

fn read_path(section: &Section<'_, '_>) -> ApprovalPath {
    let text = |key| section.value(key).and_then(|value| value.text().map(Arc::<str>::from));
    let path = ApprovalPath {
        sensor: text("sensor"),
        interface: text("interface"),
        vlan: section.value("vlan").and_then(|value| value.integer("", 1..=4094)).map(|vlan| vlan as u16),
        mpls_label: section
            .value("mpls_label")
            .and_then(|value| value.integer("", 0..=0xf_ffff))
            .map(|label| label as u32),
    };
    section.finish();
    path
}

/// A network or an address.
pub(super) fn network(value: &Value<'_, '_>) -> Option<IpNet> {
    let Some(text) = value.as_str() else {
        value.wrong(&"write a network in quotes, such as \"198.51.100.0/24\" or \"2001:db8::/32\"");
        return None;
    };
    let parsed = text.trim().parse::<IpNet>().ok().or_else(|| text.trim().parse::<IpAddr>().ok().map(IpNet::from));
    let Some(network) = parsed else {
        value.wrong(&"write a network such as \"198.51.100.0/24\" or \"2001:db8::/32\", or an address");
        return None;
    };
    if network.trunc() != network {
        value.wrong(&format_args!(
            "it has bits set behind its prefix: write \"{}\", or a longer prefix",
            network.trunc()
        ));
        return None;
    }
    if let IpAddr::V6(address) = network.addr()
        && address.to_ipv4_mapped().is_some()
    {
        value.wrong(&"an IPv4 address in IPv6's clothes: write it as IPv4");
        return None;
    }
    Some(network)
}

fn port_range(value: &Value<'_, '_>) -> Option<PortRange> {
    let range = match value.as_str() {
        None => value.number().map(|port| (port, port)),
        Some(text) => text
            .split_once('-')
            .or(Some((text, text)))
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?))),
    };
    let range = range.and_then(|(first, last)| {
        Some(PortRange { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? })
    });
    let range = range.filter(|range| range.first >= 1 && range.first <= range.last);
    if range.is_none() {
        value.wrong(&"write a port from 1 to 65535, or a range such as \"5000-5010\"");
    }
    range
}

/// Names of IP protocols (IANA "Protocol Numbers"), those that circuits and tunnels are made of.
const IP_PROTOCOLS: [(&str, u8); 16] = [
    ("icmp", 1),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("etherip", 97),
    ("pim", 103),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
];

fn ip_protocol(value: &Value<'_, '_>) -> Option<u8> {
    let number = match value.as_str() {
        None => value.number().and_then(|number| u8::try_from(number).ok()),
        Some(name) => IP_PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number),
    };
    if number.is_none() {
        let names: Vec<_> = IP_PROTOCOLS.iter().map(|(name, _)| *name).collect();
        value.wrong(&format_args!("write a number from 0 to 255, or one of {}", names.join(", ")));
    }
    number
}

fn tunnel(value: &Value<'_, '_>) -> Option<Protocol> {
    let name = value.as_str().unwrap_or("");
    let found = Protocol::ALL.iter().copied().find(|protocol| protocol.name() == name);
    if found.is_none() {
        let names = || Protocol::ALL.iter().map(|protocol| protocol.name());
        let meant = nearest(name, names()).map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"));
        value.wrong(&format_args!("write one of {}{meant}", names().collect::<Vec<_>>().join(", ")));
    }
    found
}

/// What a date without time means.
#[derive(Clone, Copy)]
enum Day {
    Begins,
    /// Through its end.
    Ends,
}

fn time(value: &Value<'_, '_>, day: Day) -> Option<Timestamp> {
    let Some(datetime) = value.datetime() else {
        value.wrong(&"write a date such as 2027-12-31, or a time such as 2027-12-31T12:00:00Z");
        return None;
    };
    let timestamp = match (datetime.date, datetime.time, datetime.offset) {
        (Some(_), None, None) => date(&datetime, day),
        (Some(_), Some(_), Some(_)) => moment(&datetime),
        (Some(_), Some(_), None) => {
            value.wrong(&"whose clock? add Z for UTC, or an offset such as +02:00");
            return None;
        }
        _ => None,
    };
    if timestamp.is_none() {
        value.wrong(&"write a date such as 2027-12-31, or a time such as 2027-12-31T12:00:00Z, from 1970 on");
    }
    timestamp
}

fn date(datetime: &Datetime, day: Day) -> Option<Timestamp> {
    let date = datetime.date?;
    let civil = jiff::civil::Date::new(i16::try_from(date.year).ok()?, date.month as i8, date.day as i8).ok()?;
    let civil = match day {
        Day::Begins => civil,
        // 9999-12-31, which some write for "never ends", has no day behind it.
        Day::Ends => match civil.tomorrow() {
            Ok(next) => next,
            Err(_) => return Some(Timestamp::MAX),
        },
    };
    timestamp(jiff::tz::Offset::UTC.to_timestamp(civil.at(0, 0, 0, 0)).ok()?)
}

fn moment(datetime: &Datetime) -> Option<Timestamp> {
    let (date, time, offset) = (datetime.date?, datetime.time?, datetime.offset?);
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i32::from(minutes),
    };
    let second = time.second.unwrap_or(0).min(59);
    let civil = jiff::civil::DateTime::new(
        i16::try_from(date.year).ok()?,
        date.month as i8,
        date.day as i8,
        time.hour as i8,
        time.minute as i8,
        second as i8,
        i32::try_from(time.nanosecond.unwrap_or(0)).ok()?,
    );
    let offset = jiff::tz::Offset::from_seconds(minutes * 60).ok()?;
    timestamp(offset.to_timestamp(civil.ok()?).ok()?)
}

/// Times beyond the year 2554 do not fit 64 bits of nanoseconds: they are as good as never.
fn timestamp(time: jiff::Timestamp) -> Option<Timestamp> {
    let nanos = time.as_nanosecond();
    (nanos >= 0).then(|| Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

/// One line an approval, sorted, its lists sorted too.
fn revision(list: &[Approval]) -> Arc<str> {
    let mut lines: Vec<_> = list.iter().map(canonical).collect();
    lines.sort_unstable();
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    let mut text = String::with_capacity(64);
    for octet in hash.finalize() {
        let _ = write!(text, "{octet:02x}");
    }
    text.into()
}

fn canonical(approval: &Approval) -> String {
    fn sorted<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
        let mut items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
        items.sort_unstable();
        items.dedup();
        items
    }
    let Approval {
        id,
        kind,
        owner,
        reference,
        need,
        valid_from,
        valid_until,
        peers,
        ports,
        ip_protocols,
        tunnels,
        path,
        capacity,
        keys,
    } = approval;
    let ApprovalPath { sensor, interface, vlan, mpls_label } = path;
    let mut line = serde_json::json!([
        id,
        kind,
        owner,
        reference,
        need,
        valid_from.map(Timestamp::as_nanos),
        valid_until.as_nanos(),
        sorted(peers),
        sorted(ports),
        sorted(ip_protocols),
        sorted(tunnels.iter().map(|tunnel| tunnel.name())),
        [sensor, interface],
        [vlan.map(u32::from), *mpls_label],
    ]);
    if let Some(line) = line.as_array_mut().filter(|_| !keys.is_empty()) {
        // Fingerprints name keys without giving them away.
        line.push(sorted(keys.iter().map(|key| key.fingerprint())).into());
    }
    if let Some(line) = line.as_array_mut()
        && let Some(capacity) = capacity
    {
        line.push(serde_json::json!({ "capacity": capacity }));
    }
    line.to_string()
}
