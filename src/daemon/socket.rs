//! Turns a path into a listening Unix socket of mode 0660: a dead daemon's is replaced, a living one's never.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::{MAX_SOCKET_PATH, Owners};
use crate::sink::remove_if_there;

/// A socket that is gone with the value.
#[derive(Debug)]
pub(super) struct Socket {
    /// What listens; made before there is a runtime, which takes it over with `listener`.
    listener: UnixListener,
    /// Where.
    pub path: PathBuf,
    /// Held as long as the socket is: the system lets go of it however this process ends.
    _lock: File,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody is there.
    #[error("{0}: another linewarden answers there: end it, or name another path")]
    Taken(PathBuf),
    /// Something else has the name.
    #[error("{0} is there and no socket: it is left alone; name another path")]
    NoSocket(PathBuf),
    /// `sun_path` is short.
    #[error("{0}: a socket's path has {MAX_SOCKET_PATH} octets at most: name a shorter one")]
    TooLong(PathBuf),
    /// Others could put another socket in its place.
    #[error("{0}")]
    Folder(String),
    /// The system refused.
    #[error("{path}: no socket can be made there: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Owner and group may ask.
const MODE: u32 = 0o660;

impl Socket {
    /// Listens at `path`, whose folder is made if need be, and lies where nobody but `owners` moves it.
    pub(super) fn bind(path: &Path, owners: &Owners) -> Result<Self, SocketError> {
        let system = |source| SocketError::System { path: path.to_owned(), source };
        // Made beside it under another name, and moved there with its mode: nobody sees one that is open to all.
        let (beside, lock) = (path.with_added_extension("new"), path.with_added_extension("lock"));
        if beside.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        if let Some(folder) = path.parent() {
            super::make_folder(folder).map_err(system)?;
            owners.check_above(path).map_err(|what| SocketError::Folder(format!("{} {what}", path.display())))?;
        }
        let lock = OpenOptions::new().create(true).append(true).mode(MODE).open(lock).map_err(system)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SocketError::Taken(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(system(source)),
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
            // Some other program may listen there, which knows nothing of the lock.
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
            _ => {}
        }
        remove_if_there(&beside).map_err(system)?;
        let listener = UnixListener::bind(&beside).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let moved = std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(MODE))
            .and_then(|()| std::fs::rename(&beside, path));
        if let Err(error) = moved {
            let _ = std::fs::remove_file(&beside);
            return Err(system(error));
        }
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// What listens, for the runtime that this is called in.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_ones_socket_is_replaced_and_a_living_ones_is_not() {
        let (folder, owners) = (tempfile::tempdir().unwrap(), Owners::here());
        let path = folder.path().join("made/control.sock");
        let first = Socket::bind(&path, &owners).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(matches!(Socket::bind(&path, &owners), Err(SocketError::Taken(_))));
        drop(first);
        assert!(!path.exists());
        // As after a crash: the socket's file is there, and nobody listens.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Socket::bind(&path, &owners).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        let other = UnixListener::bind(&path).unwrap();
        assert!(
            matches!(Socket::bind(&path, &owners), Err(SocketError::Taken(_))),
            "one that knows nothing of the lock"
        );
        drop(other);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let (folder, owners) = (tempfile::tempdir().unwrap(), Owners::here());
        let path = folder.path().join("file");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Socket::bind(&path, &owners), Err(SocketError::NoSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let long = folder.path().join("x".repeat(MAX_SOCKET_PATH));
        assert!(matches!(Socket::bind(&long, &owners), Err(SocketError::TooLong(_))));
    }

    #[test]
    fn others_cannot_put_another_in_its_place() {
        let (folder, owners) = (tempfile::tempdir().unwrap(), Owners::here());
        let mode = |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let path = folder.path().join("c.sock");
        for (bits, is_refused) in [(0o777, true), (0o772, true), (0o1777, false), (0o755, false)] {
            mode(bits);
            match Socket::bind(&path, &owners) {
                Err(SocketError::Folder(text)) => {
                    assert!(is_refused && text.contains("run `chmod go-w ") && !path.exists(), "{bits:o}: {text}");
                }
                bound => assert!(!is_refused && bound.is_ok(), "{bits:o}"),
            }
        }
    }
}
