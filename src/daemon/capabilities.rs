//! Turns the process's effective capabilities (`capabilities(7)`) into their names.

use caps::Capability;

/// Those that the process has now; none where the system does not say.
pub(super) fn effective() -> Vec<String> {
    of_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn of_status(status: &str) -> Vec<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let mut held: Vec<Capability> = caps::all().into_iter().filter(|one| bits & one.bitmask() != 0).collect();
    held.sort_unstable_by_key(Capability::index);
    held.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_names() {
        assert_eq!(of_status("Name:\tx\nCapEff:\t0000008000002000\n"), ["CAP_NET_RAW", "CAP_BPF"]);
        assert!(of_status("CapEff:\t0000000000000000\n").is_empty());
        assert!(of_status("").is_empty());
        assert_eq!(of_status("CapEff:\t000001ffffffffff\n").len(), 41);
    }
}
