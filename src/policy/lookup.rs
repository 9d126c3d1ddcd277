//! Finds the approvals of the longest prefix that holds an address: one hash map a prefix length, longest first.
//! Asked once a flow and policy revision; 100,000 prefixes take a few milliseconds to build.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// Approvals, by position in the policy's list.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    v4: Lengths,
    v6: Lengths,
}

/// Prefix length in bits (negated, so that the longest comes first) to prefix to approvals.
type Lengths = BTreeMap<std::cmp::Reverse<u8>, HashMap<u128, Vec<u32>>>;

impl Prefixes {
    /// Adds an approval under one network.
    pub(super) fn insert(&mut self, network: &IpNet, approval: u32) {
        let (lengths, bits) = match network.network() {
            IpAddr::V4(address) => (&mut self.v4, u128::from(address.to_bits())),
            IpAddr::V6(address) => (&mut self.v6, address.to_bits()),
        };
        let length = network.prefix_len();
        let known = lengths.entry(std::cmp::Reverse(length)).or_default();
        known.entry(masked(bits, length, network.max_prefix_len())).or_default().push(approval);
    }

    /// The approvals of the longest prefix that holds `address`, and its length.
    pub(super) fn longest(&self, address: IpAddr) -> Option<(u8, &[u32])> {
        // An IPv4-mapped address (RFC 4291 2.5.5.2) is the IPv4 address that an approval names.
        let (lengths, bits, width) = match address.to_canonical() {
            IpAddr::V4(address) => (&self.v4, u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (&self.v6, address.to_bits(), 128),
        };
        lengths.iter().find_map(|(&std::cmp::Reverse(length), known)| {
            Some((length, known.get(&masked(bits, length, width))?.as_slice()))
        })
    }

    /// Prefixes held.
    pub(super) fn len(&self) -> usize {
        self.v4.values().chain(self.v6.values()).map(HashMap::len).sum()
    }
}

/// The first `length` of `width` bits.
fn masked(bits: u128, length: u8, width: u8) -> u128 {
    bits.checked_shr(u32::from(width - length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        // Few distinct octets, so that prefixes nest.
        let v4 = (prop::array::uniform4(0..3u8), 0..=32u8)
            .prop_map(|(octets, length)| IpNet::new(IpAddr::from(octets), length).unwrap().trunc());
        let v6 = (prop::array::uniform16(0..2u8), 0..=128u8)
            .prop_map(|(octets, length)| IpNet::new(IpAddr::from(octets), length).unwrap().trunc());
        prop::collection::vec(prop_oneof![v4, v6], 0..60)
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_of_all_finds(
            networks in networks(), four in prop::array::uniform4(0..3u8), six in prop::array::uniform16(0..2u8),
        ) {
            let mut prefixes = Prefixes::default();
            for (network, position) in networks.iter().zip(0..) {
                prefixes.insert(network, position);
            }
            for address in [IpAddr::from(four), IpAddr::from(six)] {
                let longest = networks.iter().filter(|network| network.contains(&address)).map(IpNet::prefix_len).max();
                let expected = longest.map(|length| {
                    let same = |network: &&IpNet| network.contains(&address) && network.prefix_len() == length;
                    (length, networks.iter().zip(0_u32..).filter(|(network, _)| same(network)).map(|(_, n)| n).collect::<Vec<_>>())
                });
                let found = prefixes.longest(address).map(|(length, approvals)| (length, approvals.to_vec()));
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn an_empty_table_holds_nothing() {
        let prefixes = Prefixes::default();
        assert_eq!(prefixes.longest(IpAddr::from([1, 2, 3, 4])), None);
        assert_eq!(prefixes.len(), 0);
    }
}
