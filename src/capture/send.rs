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
        let descriptor = self.socket.as_raw_fd();
        hand_over(frames, &self.padding, |messages| {
            // SAFETY: pointer and length are those of one slice. Each message points to two parts, and each part to octets of a
            // frame or of the padding with their own length; the kernel only reads these, and all outlive the call.
            let sent = unsafe { libc::sendmmsg(descriptor, messages.as_mut_ptr(), messages.len() as libc::c_uint, 0) };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error())
        })
    }
}

/// Makes messages of frames, and calls until all were taken; a call says how many were.
fn hand_over(
    frames: &[Frame<'_>],
    padding: &[u8],
    mut call: impl FnMut(&mut [libc::mmsghdr]) -> io::Result<usize>,
) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid `iovec` and a valid `mmsghdr`: null pointers and lengths of zero.
    let mut parts: [[libc::iovec; 2]; BATCH] = unsafe { zeroed() };
    // SAFETY: as before.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    for ((frame, parts), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
        let missing = (frame.wire_len as usize).saturating_sub(frame.data.len());
        let padding = padding.get(..missing).unwrap_or(padding);
        for (part, octets) in parts.iter_mut().zip([frame.data, padding]) {
            *part = libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() };
        }
        message.msg_hdr.msg_iov = parts.as_mut_ptr();
        message.msg_hdr.msg_iovlen = parts.len();
    }
    let mut done = 0;
    while let Some(left @ [_, ..]) = messages.get_mut(done..frames.len()) {
        match call(left) {
            Ok(sent) => done += sent,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // The interface dropped this one, and counted it.
                Some(libc::ENOBUFS) => done += 1,
                _ => return Err(error),
            },
        }
    }
    Ok(done)
}

/// `linux/if_packet.h`.
const PACKET_QDISC_BYPASS: libc::c_int = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::wire::{InterfaceId, LinkType};

    fn frame(data: &[u8], wire_len: u32) -> Frame<'_> {
        let (at, interface, link) = (Timestamp::ZERO, InterfaceId(0), LinkType::Ethernet);
        Frame { at, number: 0, wire_len, interface, link, stripped_vlan: None, data }
    }

    /// What the kernel would read of a message.
    fn octets(message: &libc::mmsghdr) -> Vec<u8> {
        let libc::msghdr { msg_iov, msg_iovlen, .. } = message.msg_hdr;
        // SAFETY: as many parts as the message says, each as long as it says: what this test is about.
        let parts = unsafe { std::slice::from_raw_parts(msg_iov, msg_iovlen) };
        let part = |part: &libc::iovec| {
            // SAFETY: as before.
            unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len) }.to_vec()
        };
        parts.iter().flat_map(part).collect()
    }

    #[test]
    fn each_message_holds_its_frame_up_to_its_length_on_the_wire() {
        let padding = [0; 4];
        let frames = [frame(b"whole", 5), frame(b"cut", 5), frame(b"", 0), frame(b"far too short", 99)];
        let mut seen = Vec::new();
        let mut answers = [Ok(1), Err(libc::EINTR), Err(libc::ENOBUFS), Ok(2)].into_iter();
        let done = hand_over(&frames, &padding, |messages| {
            seen.push(messages.iter().map(octets).collect::<Vec<_>>());
            answers.next().unwrap().map_err(io::Error::from_raw_os_error)
        });
        assert_eq!(done.unwrap(), 4);
        let all = [&b"whole"[..], b"cut\0\0", b"", b"far too short\0\0\0\0"];
        assert_eq!(seen, [&all[..], &all[1..], &all[1..], &all[2..]]);
        let failed = hand_over(&frames, &padding, |_| Err(io::Error::from_raw_os_error(libc::ENETDOWN)));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    }

    #[test]
    fn a_full_batch_is_handed_over() {
        let frames = [frame(b"frame", 5); BATCH];
        let taken = hand_over(&frames, &[], |messages| {
            assert!(messages.iter().all(|message| octets(message) == b"frame"));
            Ok(messages.len().min(100))
        });
        assert_eq!(taken.unwrap(), BATCH);
    }
}
