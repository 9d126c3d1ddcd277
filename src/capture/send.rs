//! Turns frames into packets on an interface: an `AF_PACKET` socket that only sends, past the queueing discipline, many
//! frames in a system call (`packet(7)`, `sendmmsg(2)`). What `linewarden bench --live` drives its link with; nothing
//! else here ever sends.
#![expect(unsafe_code, reason = "the system call that sends many frames takes raw pointers")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};

use super::ring::{interface_index, packet_socket};
use super::{BATCH, CaptureError};
use crate::wire::Frame;

/// A socket bound to one interface.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    /// Behind what was kept of a frame, up to its length on the wire.
    padding: Vec<u8>,
}

/// The longest frame.
const LONGEST: usize = 65_535 + 18;

impl Sender {
    /// Opens a socket that receives nothing.
    pub fn open(interface: &str) -> Result<Self, CaptureError> {
        let failed = |what| move |source| CaptureError::System { interface: interface.to_owned(), what, source };
        let index = interface_index(interface).ok_or_else(|| CaptureError::NoInterface(interface.to_owned()))?;
        let socket = packet_socket()?;
        let on: libc::c_int = 1;
        // SAFETY: pointer and length are those of one integer that lives through the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        if result < 0 {
            return Err(failed("cannot send past its queue")(io::Error::last_os_error()));
        }
        // SAFETY: all zeroes is a valid `sockaddr_ll`; protocol 0 is none, so that nothing is received.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index;
        // SAFETY: the pointer is to a `sockaddr_ll` that lives through the call, the length is its own.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast::<libc::sockaddr>(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if result < 0 {
            return Err(failed("cannot bind to it")(io::Error::last_os_error()));
        }
        Ok(Self { socket, padding: vec![0; LONGEST] })
    }

    /// Sends at most [`BATCH`] frames in whole length: what was not kept of one is zeros. Returns how many were handed
    /// to the interface; a frame that it dropped for want of room is one of them.
    pub fn send(&mut self, frames: &[Frame<'_>]) -> io::Result<usize> {
        let frames = frames.get(..BATCH).unwrap_or(frames);
        // SAFETY: all zeroes is a valid `iovec` and a valid `mmsghdr`: null pointers and lengths of zero.
        let mut parts: [[libc::iovec; 2]; BATCH] = unsafe { zeroed() };
        // SAFETY: as before.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for ((frame, parts), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
            let missing = (frame.wire_len as usize).saturating_sub(frame.data.len());
            let padding = self.padding.get(..missing).unwrap_or(&self.padding);
            for (part, octets) in parts.iter_mut().zip([frame.data, padding]) {
                *part = libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
            }
            message.msg_hdr.msg_iov = parts.as_mut_ptr();
            message.msg_hdr.msg_iovlen = parts.len();
        }
        let mut done = 0;
        while let Some(left @ [_, ..]) = messages.get_mut(done..frames.len()) {
            // SAFETY: pointer and length are those of one slice. Each message points to two parts in `parts`, and each
            // part to octets of a frame or of the padding with their own length; the kernel only reads these, and all
            // outlive the call.
            let result =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), left.as_mut_ptr(), left.len() as libc::c_uint, 0) };
            if let Ok(sent) = usize::try_from(result) {
                done += sent;
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // The interface dropped this one, and counted it.
                Some(libc::ENOBUFS) => done += 1,
                _ => return Err(error),
            }
        }
        Ok(done)
    }
}

/// `linux/if_packet.h`.
const PACKET_QDISC_BYPASS: libc::c_int = 20;
