//! Turns the section `decapsulate` into what the core opens.

use ipnet::IpNet;

use super::reader::Section;
use super::{approvals, set};
use crate::audit::{Decapsulation, Mirror};
use crate::wire::Encapsulation;

/// Tunnels within each other that may be looked into.
const DEEPEST: u64 = 8;

/// Names, encapsulations and registered UDP ports (IANA; TS 29.281 4.4.2.3 for GTP-U) of what carries a mirror.
const CARRIERS: [(&str, Encapsulation, Option<u16>); 5] = [
    ("vxlan", Encapsulation::Vxlan, Some(4789)),
    ("geneve", Encapsulation::Geneve, Some(6081)),
    ("gre", Encapsulation::Gre, None),
    ("erspan", Encapsulation::Gre, None),
    ("gtp-u", Encapsulation::GtpU, Some(2152)),
];

pub(super) fn take(decapsulation: &mut Decapsulation, section: &Section<'_, '_>) {
    let depth = section.value("depth").and_then(|value| value.integer(" of tunnels", 0..=DEEPEST));
    set(&mut decapsulation.depth, depth.and_then(|depth| u8::try_from(depth).ok()));
    let mirrors = section.sections("mirrors").unwrap_or_default();
    decapsulation.mirrors.extend(mirrors.iter().filter_map(mirror));
    section.finish();
}

fn mirror(section: &Section<'_, '_>) -> Option<Mirror> {
    let carriers = CARRIERS.map(|carrier| (carrier.0, carrier));
    let tunnel = section.required("tunnel", "\"vxlan\"").and_then(|value| value.choice(&carriers));
    let (from_value, to_value) = (section.value("from"), section.value("to"));
    let from = from_value.as_ref().and_then(approvals::network);
    let to = to_value.as_ref().and_then(approvals::network);
    if let (Some(value), Some(from), Some(to)) = (&to_value, from, to)
        && from.addr().is_ipv4() != to.addr().is_ipv4()
    {
        value.wrong(&format_args!("nothing from {from}, of the other IP version, is sent there"));
    }
    let are_wide = [from, to].iter().flatten().map(is_wide).reduce(|one, other| one && other);
    if let (Some(value), Some(true)) = (from_value.as_ref().or(to_value.as_ref()), are_wide) {
        value.wrong(&"whoever sends what looks like a copy hides a tunnel in it: name the hosts that send or get them");
    }
    if !section.has("from") && !section.has("to") {
        // Whoever may send in any mirror's name hides a tunnel in it.
        section.missing("to", &"name the host that receives the copies, such as `to = \"192.0.2.9\"`, or with `from` the one that sends them");
    }
    let own = section.value("port");
    let port = own.as_ref().and_then(|value| value.integer("", 1..=65_535)).and_then(|port| u16::try_from(port).ok());
    section.finish();
    let (name, encapsulation, registered) = tunnel?;
    if let (Some(value), None) = (&own, registered) {
        value.wrong(&"GRE has no ports: take it out");
    }
    Some(Mirror { name, encapsulation, from, to, port: registered.map(|registered| port.unwrap_or(registered)) })
}

/// A mirror for people.
#[must_use]
pub fn mirror_name(mirror: &Mirror) -> String {
    let end = |end: Option<IpNet>| end.map_or_else(|| "anybody".to_owned(), |end| end.to_string());
    let port = mirror.port.map_or_else(String::new, |port| format!(", UDP port {port}"));
    format!("{} from {} to {}{port}", mirror.name, end(mirror.from), end(mirror.to))
}

/// A large part of the Internet.
fn is_wide(network: &IpNet) -> bool {
    network.prefix_len() < if network.addr().is_ipv4() { 8 } else { 16 }
}
