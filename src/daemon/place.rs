//! Finds where the control socket is: for the daemon that makes it, and for `linewarden ctl`, which looks there.

use std::path::{Path, PathBuf};

use super::socket::{Socket, SocketError};

/// What the service manager makes for the daemon.
const RUN: &str = "/run/linewarden";
/// The state's folder of an installation.
const STATE: &str = "/var/lib/linewarden";
const NAME: &str = "control.sock";

/// Where `ctl` looks if nothing names a socket, in this order.
#[must_use]
pub fn control_sockets() -> [PathBuf; 3] {
    [RUN, STATE, "linewarden-log/state"].map(|folder| Path::new(folder).join(NAME))
}

/// The socket that the settings name; else the first of the usual ones that may be made. `None`: nowhere, and why.
pub(super) fn bind_control(named: Option<&Path>, state: &Path) -> Result<Result<Socket, SocketError>, SocketError> {
    if let Some(path) = named {
        return Socket::bind(path).map(Ok);
    }
    for folder in [RUN, STATE].map(Path::new) {
        if !folder.is_dir() {
            continue;
        }
        match Socket::bind(&folder.join(NAME)) {
            Err(SocketError::System { .. }) => {}
            bound => return bound.map(Ok),
        }
    }
    match Socket::bind(&state.join(NAME)) {
        Err(taken @ SocketError::Taken(_)) => Err(taken),
        bound => Ok(bound),
    }
}
