//! Turns a file into the text of a secret, if only its user may read it, and such a text into a file.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{remove_if_there, sync_folder};
use crate::config::anybody_above;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused.
    #[error("{path}: {whose} cannot be {what}: {source}")]
    System {
        /// Which file.
        path: PathBuf,
        /// `the sensor's key`.
        whose: &'static str,
        /// `read` or `written`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is there, and must not be used.
    #[error("{path} {what}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
}

/// A kind of secret, as messages name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Secret {
    /// `the sensor's key`.
    pub whose: &'static str,
    /// What others could do with it: `signs the log`.
    pub does: &'static str,
    /// Whose file it may be.
    pub owner: Owner,
}

/// Whose a file may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Of who runs this, or root's.
    Own,
    /// Of whoever keeps it.
    Any,
}

/// Files larger than this hold no key.
pub(super) const MAX_FILE: u64 = 4096;

impl Secret {
    /// The text of a file; `None` where there is none.
    pub(super) fn read(self, path: &Path) -> Result<Option<Zeroizing<String>>, KeyError> {
        let refused = |what| KeyError::Refused { path: path.to_owned(), what };
        let system = |source| self.failed(path, "read", source);
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(system(error)),
        };
        let metadata = file.metadata().map_err(system)?;
        let mode = metadata.mode() & 0o7777;
        if !metadata.is_file() {
            return Err(refused("is not a file: take it away, and a new key is made".into()));
        }
        if mode & 0o077 != 0 {
            return Err(refused(format!(
                "is open to other users (mode {mode:04o}), and {}: if nobody has read it run `chmod 600 {}`, else take it away, and a new key is made",
                self.does,
                path.display()
            )));
        }
        let own = rustix::process::geteuid().as_raw();
        if self.owner == Owner::Own && ![0, own].contains(&metadata.uid()) {
            return Err(refused(format!(
                "belongs to user {}, who is neither root nor the user that runs this ({own}): chown it",
                metadata.uid()
            )));
        }
        // Else a key of somebody else's could stand there tomorrow.
        anybody_above(path).map_err(refused)?;
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE).read_to_string(&mut text).map_err(system)?;
        Ok(Some(text))
    }

    pub(super) fn write(self, path: &Path, octets: &[u8], mode: u32) -> Result<(), KeyError> {
        write(path, octets, mode).map_err(|source| self.failed(path, "written", source))
    }

    pub(super) fn failed(self, path: &Path, what: &'static str, source: io::Error) -> KeyError {
        KeyError::System { path: path.to_owned(), whose: self.whose, what, source }
    }
}

/// Octets that nobody can foretell.
pub(super) fn random() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut_slice()).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(secret)
}

/// Whole or not at all, and on the disk.
fn write(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    remove_if_there(&beside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(folder)
}
