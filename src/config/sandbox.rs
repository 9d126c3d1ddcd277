//! Section `sandbox`: what the daemon lets go of once it has opened what it needs.

use std::path::PathBuf;

use super::reader::Section;

/// What the daemon may still do once it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Whether it gives up everything else.
    pub enabled: bool,
    /// More files and folders that are read after the start.
    pub read: Vec<PathBuf>,
}

impl SandboxConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        super::set(&mut self.enabled, section.value("enabled").and_then(|value| value.boolean()));
        let read = section.value("read").and_then(|list| list.list(|path| path.text().map(PathBuf::from)));
        super::set(&mut self.read, read);
        section.finish();
    }
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self { enabled: true, read: Vec::new() }
    }
}
