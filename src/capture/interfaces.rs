//! Turns what the system says of its interfaces into a list of what can be captured, and what is missing if not.

use std::fs;
use std::net::IpAddr;

use super::LinkLayer;
use super::ring::{hardware_type, packet_socket};

/// One interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, as `capture.interfaces` takes it.
    pub name: String,
    /// Whether it runs: frames can come.
    pub running: bool,
    /// Its addresses; capture needs none.
    pub addresses: Vec<IpAddr>,
    /// What its frames start with; the hardware type (`ARPHRD_*`) where that cannot be read.
    pub link: Result<LinkLayer, u16>,
    /// Whether the default route leads over it.
    pub has_default_route: bool,
}

/// All interfaces, in the order of their index.
#[must_use]
pub fn interfaces() -> Vec<Interface> {
    let default = default_route();
    let mut found = pnet::datalink::interfaces();
    found.sort_by_key(|interface| interface.index);
    found
        .into_iter()
        .map(|interface| {
            let hardware_type = hardware_type(&interface.name).unwrap_or(u16::MAX);
            Interface {
                running: interface.is_up() && interface.is_running(),
                addresses: interface.ips.iter().map(pnet::ipnetwork::IpNetwork::ip).collect(),
                link: LinkLayer::of(hardware_type).ok_or(hardware_type),
                has_default_route: default.as_deref() == Some(&interface.name),
                name: interface.name,
            }
        })
        .collect()
}

/// The interface of the default route of lowest metric, IPv4 before IPv6.
#[must_use]
pub fn default_route() -> Option<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (ipv4, ipv6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
    default_ipv4(&ipv4).or_else(|| default_ipv6(&ipv6)).map(str::to_owned)
}

/// What keeps this process from capturing anything at all.
#[must_use]
pub fn obstacle() -> Option<String> {
    packet_socket().err().map(|error| error.to_string())
}

/// Flags of a route that is up and does not reject (`linux/route.h`, `linux/ipv6_route.h`).
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

fn usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (UP | REJECT) == UP)
}

/// Columns of `/proc/net/route`: interface, destination, gateway, flags, references, use, metric, mask.
fn default_ipv4(table: &str) -> Option<&str> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [name, "00000000", _, flags, _, _, metric, "00000000", ..] = columns[..] else { return None };
        usable(flags).then(|| (metric.parse().unwrap_or(u32::MAX), name))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

/// Columns of `/proc/net/ipv6_route`: destination and length, source and length, next hop, metric, references, use,
/// flags, interface; numbers in hexadecimal.
fn default_ipv6(table: &str) -> Option<&str> {
    let routes = table.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [destination, "00", _, _, _, metric, _, _, flags, name] = columns[..] else { return None };
        let wanted = destination.bytes().all(|digit| digit == b'0') && usable(flags) && name != "lo";
        wanted.then(|| (u32::from_str_radix(metric, 16).unwrap_or(u32::MAX), name))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn the_default_route_of_lowest_metric_counts() {
        let cases = [
            ("no route", String::new(), None),
            ("no default", "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n".into(), None),
            ("one", "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n".into(), Some("eth0")),
            (
                "two",
                "wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\nwan0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
                    .into(),
                Some("wan0"),
            ),
            ("rejecting", "lo\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n".into(), None),
            ("half of the Internet", "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n".into(), None),
            ("a line cut short", "eth0\t00000000\t0102".into(), None),
        ];
        for (name, table, expected) in &cases {
            assert_eq!(default_ipv4(&format!("{HEAD}{table}")), *expected, "{name}");
        }
    }

    #[test]
    fn ipv6_routes_that_reject_do_not_count() {
        let zeros = "0".repeat(32);
        let line = |flags, name| format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000003 00000000 {flags} {name}\n");
        assert_eq!(default_ipv6(&line("00000003", "eth0")), Some("eth0"));
        assert_eq!(default_ipv6(&(line("00200200", "lo") + &line("00000003", "eth1"))), Some("eth1"));
        assert_eq!(default_ipv6(&line("00200200", "lo")), None);
    }
}
