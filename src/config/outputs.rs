//! Turns `[[outputs]]` and the sections `journal` and `privacy` into what is written beside the log, and what is hidden in it.

use std::path::PathBuf;

use ipnet::IpNet;

use super::reader::{Section, Value};
use super::set;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As in the log.
    Ndjson,
    /// Suricata's events, with the fields of its schema alone.
    EveStrict,
    /// The same, and the record besides.
    Eve,
    /// Elastic Common Schema.
    Ecs,
    /// Zeek's tab-separated values.
    Zeek,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ndjson, Self::EveStrict, Self::Eve, Self::Ecs, Self::Zeek];

    /// The name in settings and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::EveStrict => "eve-strict",
            Self::Eve => "eve",
            Self::Ecs => "ecs",
            Self::Zeek => "zeek",
        }
    }
}

/// Which records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// All of them.
    #[default]
    All,
    /// Those that call a flow `unapproved_vpn_tunnel`.
    Findings,
}

/// A file that records are written to, beside the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputConfig {
    /// How.
    pub format: Format,
    /// Its name in the log's folder.
    pub file: String,
    /// Which.
    pub only: Only,
    /// Another is begun when it is this long, octets.
    pub rotate_octets: u64,
    /// So many older ones are kept.
    pub keep: u32,
}

/// Which findings the journal gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalConfig {
    /// When it gets any.
    pub findings: When,
}

/// Whether to do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Where the daemon's own log goes to the journal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What is hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivacyConfig {
    /// Pseudonyms stand for addresses of `flow.home_nets`.
    pub pseudonyms: bool,
    /// For those of these networks, too: no setting, but what the settings named where the command line names others.
    pub home_nets: Vec<IpNet>,
    /// Their key's file; `None`: `pseudonym.key` in the state's folder.
    pub key: Option<PathBuf>,
}

/// Names that belong to the log, its state and their companions begin so.
const TAKEN: [&str; 6] = ["linewarden", "sensor", "summary", "pseudonym", "inventory.sqlite", "control.sock"];
/// Names of locks, of signed heads, and of what is about to replace a file end so.
const TAKEN_ENDS: [&str; 3] = [".lock", ".heads", ".new"];
/// The state's folder beside the log.
const STATE: &str = "state";
const MAX_NAME: usize = 128;

impl OutputConfig {
    /// Other settings name files that outputs must not write over: `is_named` tells.
    pub(super) fn take_all(sections: &[Section<'_, '_>], is_named: &dyn Fn(&str) -> bool) -> Vec<Self> {
        let mut outputs: Vec<Self> = Vec::new();
        for section in sections {
            if let Some(output) = Self::take(section, &outputs, is_named) {
                outputs.push(output);
            }
        }
        outputs
    }

    fn take(section: &Section<'_, '_>, others: &[Self], is_named: &dyn Fn(&str) -> bool) -> Option<Self> {
        let value = |key| section.value(key);
        let formats = Format::ALL.map(|format| (format.name(), format));
        let format = section.required("format", "\"eve\"").and_then(|value| value.choice(&formats));
        let file = section.required("file", "\"eve.json\"").and_then(|value| file_name(&value, others, is_named));
        let onlys = [("all", Only::All), ("findings", Only::Findings)];
        let (mut only, mut rotate_octets, mut keep) = (Only::All, 256 << 20, 4);
        set(&mut only, value("only").and_then(|value| value.choice(&onlys)));
        let octets = value("rotate_octets").and_then(|value| value.octets(1 << 20..=16 << 30));
        set(&mut rotate_octets, octets.map(|octets| octets as u64));
        let files = value("keep").and_then(|value| value.integer(" of files", 1..=1000));
        set(&mut keep, files.map(|files| files as u32));
        section.finish();
        Some(Self { format: format?, file: file?, only, rotate_octets, keep })
    }
}

/// Whether the daemon writes files of that name itself, in the folder of the log or of its state.
#[must_use]
pub fn is_own_file(name: &str) -> bool {
    name == STATE
        || TAKEN.iter().any(|begin| name.starts_with(begin))
        || TAKEN_ENDS.iter().any(|end| name.ends_with(end))
}

fn file_name(value: &Value<'_, '_>, others: &[OutputConfig], is_named: &dyn Fn(&str) -> bool) -> Option<String> {
    let name = value.text()?;
    if name.contains('/') || name.starts_with('.') || name.len() > MAX_NAME {
        value.wrong(&"write the name of a file, which will be in the log's folder, such as \"eve.json\"");
        return None;
    }
    if is_own_file(name) {
        value.wrong(&format_args!(
            "`{STATE}`, and names that begin with `{}` or end with `{}` are the log's own: write another, such as \"eve.json\"",
            TAKEN.join("`, `"),
            TAKEN_ENDS.join("`, `")
        ));
        return None;
    }
    // Older files are called so.
    if name.rsplit_once('.').is_some_and(|(_, number)| number.parse::<u32>().is_ok()) {
        value.wrong(&"a number behind the last dot is an older file's: write another name, such as \"eve.json\"");
        return None;
    }
    if is_named(name) {
        value.wrong(
            &"privacy.key, control.socket, metrics.listen or state.dir names that: write another, such as \"eve.json\"",
        );
        return None;
    }
    if others.iter().any(|other| other.file == name) {
        value.wrong(&"another output writes that file: each needs its own");
        return None;
    }
    Some(name.to_owned())
}

impl JournalConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(value) = section.value("findings") {
            match value.as_str() {
                Some("auto") => self.findings = When::Auto,
                Some(_) => value.wrong(&"write \"auto\", or true or false without quotes"),
                None => {
                    let when = value.boolean().map(|wanted| if wanted { When::Always } else { When::Never });
                    set(&mut self.findings, when);
                }
            }
        }
        section.finish();
    }
}

impl PrivacyConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>, has_home_nets: bool) {
        if let Some(value) = section.value("pseudonyms") {
            set(&mut self.pseudonyms, value.boolean());
            if self.pseudonyms && !has_home_nets {
                value.wrong(
                    &"it is the addresses of flow.home_nets that are hidden, and that names no network: fill it in",
                );
            }
        }
        if let Some(path) = section.value("key").and_then(|value| value.text()) {
            self.key = Some(path.into());
        }
        section.finish();
    }
}
