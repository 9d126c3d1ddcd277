//! Finds where the control socket is: for the daemon that makes it, and for `linewarden ctl`, which looks there.

use std::path::{Path, PathBuf};

use super::socket::{Socket, SocketError};
use crate::config::{LOG_FOLDERS, Owners, RUN_FOLDER, STATE_FOLDER};

const NAME: &str = "control.sock";

/// Where `ctl` looks if nothing names a socket, in this order.
#[must_use]
pub fn control_sockets() -> [PathBuf; 3] {
    [Path::new(RUN_FOLDER), Path::new(STATE_FOLDER), &Path::new(LOG_FOLDERS[1]).join("state")]
        .map(|folder| folder.join(NAME))
}

/// The socket that the settings name; else the first of the usual ones that may be made. `Err` in `Ok`: nowhere, and why.
pub(super) fn bind_control(
    named: Option<&Path>,
    state: &Path,
    owners: &Owners,
) -> Result<Result<Socket, SocketError>, SocketError> {
    if let Some(path) = named {
        return Socket::bind(path, owners).map(Ok);
    }
    for folder in [RUN_FOLDER, STATE_FOLDER].map(Path::new) {
        if !folder.is_dir() {
            continue;
        }
        match Socket::bind(&folder.join(NAME), owners) {
            Err(SocketError::System { .. } | SocketError::Folder(_)) => {}
            bound => return bound.map(Ok),
        }
    }
    match Socket::bind(&state.join(NAME), owners) {
        Err(taken @ SocketError::Taken(_)) => Err(taken),
        bound => Ok(bound),
    }
}
