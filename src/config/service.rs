//! Turns the sections `control` and `metrics` into where the daemon is asked; and settings files into what changed in them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::reader::{Section, Value, read};
use super::{Config, ConfigError};

/// Where `linewarden ctl` asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlConfig {
    /// The socket; `None`: `/run/linewarden/control.sock` where that may be written, else `control.sock` in the state's folder.
    pub socket: Option<PathBuf>,
}

/// Where metrics are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `None`: nowhere.
    pub listen: Option<Listen>,
}

/// An address that only this machine reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket file.
    Unix(PathBuf),
    /// A port of a loopback address.
    Loopback(SocketAddr),
}

/// The longest path that a socket's address holds (`sun_path` of `unix(7)`, its final zero apart).
pub const MAX_SOCKET_PATH: usize = 107;

impl ControlConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(value) = section.value("socket")
            && let Some(path) = value.text()
        {
            self.socket = socket_path(&value, path);
        }
        section.finish();
    }
}

impl MetricsConfig {
    pub(super) fn take(&mut self, section: &Section<'_, '_>) {
        if let Some(value) = section.value("listen")
            && let Some(text) = value.string()
        {
            self.listen = listen(&value, text.trim());
        }
        section.finish();
    }
}

fn socket_path(value: &Value<'_, '_>, path: &str) -> Option<PathBuf> {
    if path.len() > MAX_SOCKET_PATH {
        value.wrong(&format_args!("a socket's path has {MAX_SOCKET_PATH} octets at most: write a shorter one"));
        return None;
    }
    Some(path.into())
}

fn listen(value: &Value<'_, '_>, text: &str) -> Option<Listen> {
    const INSTEAD: &str =
        "write \"unix:/run/linewarden/metrics.sock\", \"127.0.0.1:9470\", \"[::1]:9470\" or \"\" for none";
    if text.is_empty() {
        return None;
    }
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains(char::is_control) {
            value.wrong(&INSTEAD);
            return None;
        }
        return socket_path(value, path).map(Listen::Unix);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_loopback() => {
            value.wrong(&format_args!(
                "metrics are served without a password, so to this machine alone, and {} is no loopback address: {INSTEAD}; a proxy that asks who is there can pass them on",
                address.ip()
            ));
            None
        }
        Ok(address) if address.port() == 0 => {
            value.wrong(&format_args!("port 0 is any port, which nobody finds: {INSTEAD}"));
            None
        }
        Ok(address) => Some(Listen::Loopback(address)),
        Err(_) => {
            value.wrong(&INSTEAD);
            None
        }
    }
}

/// A settings file as it was read, to tell what changed in it since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file; `None`: built-in defaults.
    pub file: Option<PathBuf>,
    /// Each key that it names, and the value's text.
    keys: BTreeMap<String, String>,
    /// What the command line said besides.
    overruled: BTreeMap<String, String>,
}

impl Origin {
    /// Reads and checks the file.
    pub fn read(file: Option<&Path>) -> Result<(Self, Config), ConfigError> {
        let Some(path) = file else { return Ok((Self::default(), Config::default())) };
        let config = Config::load(path)?;
        let table: toml::Table = toml::from_str(&read(path)?).map_err(|error| ConfigError(error.to_string()))?;
        let mut keys = BTreeMap::new();
        for (key, value) in table {
            match value {
                toml::Value::Table(section) => {
                    keys.extend(section.into_iter().map(|(name, value)| (format!("{key}.{name}"), value.to_string())));
                }
                value => {
                    keys.insert(key, value.to_string());
                }
            }
        }
        Ok((Self { file: Some(path.to_owned()), keys, overruled: BTreeMap::new() }, config))
    }

    /// Notes a setting that the command line gave.
    pub fn overrule(&mut self, key: &str, value: &impl ToString) {
        self.overruled.insert(key.to_owned(), value.to_string());
    }

    /// SHA-256 over the keys and their values, lower-case hexadecimal: the same for the same settings, whatever the comments.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let overruled = |key: &String| self.overruled.contains_key(key);
        let of_file = self.keys.iter().filter(|(key, _)| !overruled(key));
        let all: BTreeMap<_, _> = of_file.chain(&self.overruled).collect();
        for (key, value) in all {
            hash.update(key);
            hash.update(b"=");
            hash.update(value);
            hash.update(b"\n");
        }
        hash.finalize().iter().fold(String::new(), |mut text, octet| {
            let _ = write!(text, "{octet:02x}");
            text
        })
    }

    /// Keys whose value in the file is another one now, or that are new or gone.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let all = self.keys.keys().chain(now.keys.keys());
        let mut changed: Vec<_> = all.filter(|key| self.keys.get(*key) != now.keys.get(*key)).cloned().collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        Origin { file: None, ..Origin::read(Some(&path)).unwrap().0 }
    }

    #[test]
    fn a_digest_is_of_settings_and_changes_are_named() {
        let before = origin("sensor = \"a\"\n[capture]\nworkers = 2 # two\n[flow]\nvlan_in_key = true\n");
        let same = origin("# moved\nsensor = 'a'\n[flow]\nvlan_in_key = true\n[capture]\nworkers = 2\n");
        assert_eq!((before.digest(), before.changes(&same)), (same.digest(), Vec::new()));
        let mut after = origin("[capture]\nworkers = 3\nsnap_length = 512\n[flow]\nvlan_in_key = true\n");
        assert_eq!(before.changes(&after), ["capture.snap_length", "capture.workers", "sensor"]);
        assert_ne!(before.digest(), after.digest());
        let digest = after.digest();
        after.overrule("capture.workers", &4);
        assert_ne!(digest, after.digest(), "the command line has the last word");
        assert_eq!(before.changes(&after), ["capture.snap_length", "capture.workers", "sensor"]);
        assert_ne!(Origin::default().digest(), digest);
    }
}
