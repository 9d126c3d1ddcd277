//! Turns what the system says of itself into what figures are from: processor, kernel, governor, memory.

use std::fmt;

use serde::Serialize;

use crate::capture::allowed_cores;

/// What the figures are from; what the system does not tell stays empty.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub cpu: String,
    /// That this process may use.
    pub cores: usize,
    pub kernel: String,
    /// How the first core's frequency is governed; `None` in most virtual machines.
    governor: Option<String>,
    /// Of `/sys/kernel/mm/transparent_hugepage/enabled`: `always`, `madvise` or `never`.
    transparent_huge_pages: Option<String>,
    /// Pages set aside for `MAP_HUGETLB`.
    reserved_huge_pages: Option<u64>,
    memory_octets: Option<u64>,
}

impl Machine {
    pub(super) fn look() -> Self {
        let cpus = read("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let huge_pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
        Self {
            cpu: model.map_or("", |(_, name)| name.trim()).to_owned(),
            cores: allowed_cores().len(),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            transparent_huge_pages: huge_pages.as_deref().and_then(chosen).map(str::to_owned),
            reserved_huge_pages: read("/proc/sys/vm/nr_hugepages").and_then(|pages| pages.parse().ok()),
            memory_octets: amount("/proc/meminfo", "MemTotal:"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine: {}, {} cores, Linux {}", self.cpu, self.cores, self.kernel)?;
        if let Some(governor) = &self.governor {
            write!(f, ", governor {governor}")?;
        }
        if let Some(huge_pages) = &self.transparent_huge_pages {
            write!(f, ", huge pages {huge_pages}")?;
        }
        write!(f, ".")
    }
}

/// Memory that can be had without swapping, octets.
pub(super) fn available_octets() -> Option<u64> {
    amount("/proc/meminfo", "MemAvailable:")
}

/// Memory of this process in RAM, octets: now, and at its peak.
pub(super) fn resident_octets() -> (Option<u64>, Option<u64>) {
    (amount("/proc/self/status", "VmRSS:"), amount("/proc/self/status", "VmHWM:"))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A line such as `VmRSS:  1234 kB`, in octets.
fn amount(path: &str, name: &str) -> Option<u64> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_of_memory() {
        let (now, peak) = resident_octets();
        assert!(now.unwrap() > 1 << 20 && peak >= now);
        assert!(available_octets().unwrap() > 1 << 20);
        assert!(Machine::look().memory_octets.unwrap() >= available_octets().unwrap());
    }

    #[test]
    fn the_word_in_brackets_is_the_choice() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("always"), None);
    }
}
