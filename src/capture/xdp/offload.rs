//! Turns an interface's name into whether its NIC takes VLAN tags out of frames, by `linux/ethtool.h`.
#![expect(unsafe_code, reason = "ioctl(2) takes pointers, and one of them is in a union")]

use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::capture::ring::check;

/// `ETHTOOL_GFLAGS`, and `ETH_FLAG_RXVLAN` of what it answers.
const GET_FLAGS: u32 = 0x25;
const TAKES_TAGS_OUT: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `false` also where the driver does not say.
pub fn takes_vlan_tags_out(name: &str) -> bool {
    // Any socket will do; one of this family is allowed in the service's sandbox.
    let Ok(socket) = UnixDatagram::unbound() else { return false };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return false;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut value = Value { command: GET_FLAGS, data: 0 };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request is an `ifreq` with a NUL behind its name that points to an `ethtool_value`, which is what this command
    // reads and writes; both live through the call.
    let asked = check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) });
    asked.is_ok() && value.data & TAKES_TAGS_OUT != 0
}
