//! Turns the keys of `[records]` that say how a log is kept, and `[state]`, into settings.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::reader::Section;
use super::{Config, set};

/// How a log is rotated, bounded, synchronised and signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment is closed when it is this long, octets.
    pub rotate_octets: u64,
    /// A segment is closed when it is this old.
    pub rotate_interval: Duration,
    /// Closed segments are compressed.
    pub compress: bool,
    /// Octets on the disk of all segments of a log; beyond it the oldest go.
    pub keep_octets: u64,
    /// Segments whose latest record is older go.
    pub keep_for: Duration,
    /// The disk has what is older than this.
    pub sync_interval: Duration,
    /// What is older than this is signed.
    pub sign_interval: Duration,
}

/// Where state is kept that is no log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateConfig {
    /// Its folder; `None`: see [`Config::state_folder`].
    pub dir: Option<PathBuf>,
}

/// Where the log is if no setting names a folder: where the system keeps it, else in the working folder.
pub const LOG_FOLDERS: [&str; 2] = ["/var/log/linewarden", "linewarden-log"];
/// Where the system keeps the state of who writes the log there.
pub const STATE_FOLDER: &str = "/var/lib/linewarden";
/// What the service manager makes for the daemon.
pub const RUN_FOLDER: &str = "/run/linewarden";

impl LogConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        let value = |key| section.value(key);
        let days = |days: u64| Duration::from_hours(24 * days);
        let rotate = value("rotate_octets");
        let octets = rotate.as_ref().and_then(|rotate| rotate.octets(64 << 10..=16 << 30));
        set(&mut self.rotate_octets, octets.map(|octets| octets as u64));
        let intervals = Duration::from_mins(1)..=days(31);
        set(&mut self.rotate_interval, value("rotate_interval").and_then(|value| value.duration(intervals)));
        set(&mut self.compress, value("compress").and_then(|value| value.boolean()));
        let keep = value("keep_octets");
        let octets = keep.as_ref().and_then(|keep| keep.octets(1 << 20..=1 << 50));
        set(&mut self.keep_octets, octets.map(|octets| octets as u64));
        if self.keep_octets < self.rotate_octets.saturating_mul(2) {
            // The segment that is written is never taken away.
            let wrong = keep.as_ref().or(rotate.as_ref());
            wrong.iter().for_each(|value| value.wrong(&"records.keep_octets must hold records.rotate_octets twice"));
        }
        set(&mut self.keep_for, value("keep_for").and_then(|value| value.duration(days(1)..=days(36_500))));
        let syncs = Duration::from_millis(10)..=Duration::from_mins(1);
        set(&mut self.sync_interval, value("sync_interval").and_then(|value| value.duration(syncs)));
        let signs = Duration::from_secs(1)..=Duration::from_hours(24);
        set(&mut self.sign_interval, value("sign_interval").and_then(|value| value.duration(signs)));
    }
}

impl StateConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(folder) = section.value("dir").and_then(|value| value.text()) {
            self.dir = Some(folder.into());
        }
        section.finish();
    }
}

impl Config {
    /// The folder of the log: the setting; else the system's where it may be written, else one in the working folder.
    #[must_use]
    pub fn log_folder(&self) -> PathBuf {
        if let Some(folder) = &self.records.dir {
            return folder.clone();
        }
        let [system, working] = LOG_FOLDERS.map(Path::new);
        if may_write(system) { system.into() } else { working.into() }
    }

    /// The folder of the log for who only reads it: the setting; else the first of [`LOG_FOLDERS`] that holds a log and may be
    /// read; where none does, the one that may not be read, else where the log would be written.
    #[must_use]
    pub fn log_to_read(&self) -> PathBuf {
        if let Some(folder) = &self.records.dir {
            return folder.clone();
        }
        let folders = LOG_FOLDERS.map(Path::new);
        let found = folders.iter().find(|folder| holds_log(folder).unwrap_or(false));
        let closed = || folders.iter().find(|folder| holds_log(folder).is_err());
        found.or_else(closed).map_or_else(|| self.log_folder(), |folder| folder.to_path_buf())
    }

    /// The folder of the state of a log in `log`, for who only reads it.
    #[must_use]
    pub fn state_to_read(&self, log: &Path) -> PathBuf {
        let system_state = Path::new(STATE_FOLDER);
        let is_there = self.state.dir.is_none() && log == Path::new(LOG_FOLDERS[0]) && may_read(system_state);
        if is_there { system_state.into() } else { self.state_folder(log) }
    }

    /// The folder of the state of a log in `log`: the setting; else, for a log where the system keeps it,
    /// `/var/lib/linewarden` if that may be written; else `state` beside the log, so that logs in several folders do not
    /// get into each other's state.
    #[must_use]
    pub fn state_folder(&self, log: &Path) -> PathBuf {
        if let Some(folder) = &self.state.dir {
            return folder.clone();
        }
        let (system_log, system_state) = (Path::new(LOG_FOLDERS[0]), Path::new(STATE_FOLDER));
        if log == system_log && may_write(system_state) { system_state.into() } else { log.join("state") }
    }
}

fn may_write(folder: &Path) -> bool {
    folder.is_dir() && access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

fn may_read(folder: &Path) -> bool {
    folder.is_dir() && access(folder, Access::READ_OK | Access::EXEC_OK).is_ok()
}

/// Whether segments of a log, or its seals, lie there; an error where that is not for everybody to know.
fn holds_log(folder: &Path) -> Result<bool, PermissionDenied> {
    let is_of_log = |name: &str| name.contains(".ndjson") || name.contains(".seals");
    match std::fs::read_dir(folder) {
        Ok(mut entries) => {
            Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_of_log))))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(PermissionDenied),
        Err(_) => Ok(false),
    }
}

struct PermissionDenied;

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            rotate_octets: 256 << 20,
            rotate_interval: Duration::from_hours(24),
            compress: true,
            keep_octets: 20 << 30,
            keep_for: Duration::from_hours(24 * 400),
            sync_interval: Duration::from_secs(1),
            sign_interval: Duration::from_mins(1),
        }
    }
}
