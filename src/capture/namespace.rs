//! Turns the calling thread into one with a network of its own: a network namespace without a name, which the kernel
//! takes away with the last thread and process in it, however these end (`network_namespaces(7)`).
#![expect(unsafe_code, reason = "the standard library has no call for it")]

use std::io;

/// Moves the calling thread into a new network namespace; threads and processes that it starts are in it, too.
/// Needs `CAP_SYS_ADMIN`.
pub fn enter_new_network() -> io::Result<()> {
    // SAFETY: no pointers; other threads keep the namespace that they have.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
