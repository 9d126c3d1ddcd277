//! Section `inventory`: what is kept of every tunnel that was ever seen.

use super::reader::Section;
use super::set;

/// Whether there is an inventory, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryConfig {
    /// Whether it is kept.
    pub enabled: bool,
    /// Tunnels at most, each once for every approval and path.
    pub tunnels: usize,
}

impl InventoryConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        set(&mut self.enabled, section.value("enabled").and_then(|value| value.boolean()));
        let tunnels = section.value("tunnels").and_then(|value| value.integer(" of tunnels", 1_000..=10_000_000));
        set(&mut self.tunnels, tunnels.map(|tunnels| tunnels as usize));
        section.finish();
    }
}

impl Default for InventoryConfig {
    fn default() -> Self {
        Self { enabled: true, tunnels: 100_000 }
    }
}
