//! Turns one queue of an interface into the memory that the kernel puts its frames in: the system calls of an `AF_XDP` socket, by the
//! kernel's `Documentation/networking/af_xdp.rst`. What then happens in that memory is in `rings`.
#![expect(unsafe_code, reason = "the standard library has no calls for it")]

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::rings::{CHUNK_ENTRY, Chunks, DESCRIPTOR, Offsets, Piece, Queue, Ring};
use crate::capture::mapping::Mapping;
use crate::capture::ring::{check, set_socket_option, socket_option};

/// A way to bind a socket to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The driver writes frames where we read them; else the kernel copies them there.
    pub zero_copy: bool,
    /// Frames that are longer than a chunk take several (Linux 6.6); else they are dropped and counted.
    pub several_chunks: bool,
}

/// What was attempted, and what the system said.
#[derive(Debug)]
pub struct Refusal {
    pub what: Step,
    pub error: io::Error,
}

/// The steps on the way to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Socket,
    Memory,
    Rings,
    Bind,
}

impl Step {
    const fn failed(self) -> impl Fn(io::Error) -> Refusal {
        move |error| Refusal { what: self, error }
    }
}

/// The kernel's counts since the socket was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Frames that were dropped.
    pub frames: u64,
    /// Times that the kernel found no chunk for one.
    pub no_chunk: u64,
}

/// One queue's socket.
pub struct Socket {
    descriptor: OwnedFd,
    queue: Queue,
}

impl Socket {
    /// Opens and binds. Frames come once the socket is in the map of the program on the interface.
    pub fn open(interface_index: u32, queue: u32, chunks: Chunks, way: Way) -> Result<Self, Refusal> {
        // SAFETY: no pointers.
        let raw = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
        let raw = raw.map_err(Step::Socket.failed())?;
        // SAFETY: a descriptor that the kernel just made and that nothing else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        let memory = Mapping::anonymous(chunks.octets * chunks.count as usize).map_err(Step::Memory.failed())?;
        let registered = libc::xdp_umem_reg {
            addr: memory.address(),
            len: memory.octets() as u64,
            chunk_size: chunks.octets as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(raw, libc::XDP_UMEM_REG, &registered).map_err(Step::Memory.failed())?;

        let entries = chunks.count.next_power_of_two();
        set_option(raw, libc::XDP_UMEM_FILL_RING, &entries).map_err(Step::Rings.failed())?;
        // Asked for by the kernel, although nothing is ever sent.
        set_option(raw, libc::XDP_UMEM_COMPLETION_RING, &1_u32).map_err(Step::Rings.failed())?;
        set_option(raw, libc::XDP_RX_RING, &entries).map_err(Step::Rings.failed())?;
        let offsets: libc::xdp_mmap_offsets =
            socket_option(raw, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS).map_err(Step::Rings.failed())?;
        let map = |page, at: &_, entry_octets| map(&descriptor, page, at, entries, entry_octets);
        let fill = map(libc::XDP_UMEM_PGOFF_FILL_RING.cast_signed(), &offsets.fr, CHUNK_ENTRY);
        let fill = fill.map_err(Step::Rings.failed())?;
        let received = map(libc::XDP_PGOFF_RX_RING, &offsets.rx, DESCRIPTOR).map_err(Step::Rings.failed())?;

        let socket = Self { queue: Queue::new(memory, chunks, fill, received), descriptor };
        socket.bind(interface_index, queue, way).map_err(Step::Bind.failed())?;
        socket.wake_if_asked();
        Ok(socket)
    }

    fn bind(&self, interface_index: u32, queue: u32, way: Way) -> io::Result<()> {
        let copy = if way.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
        let several = if way.several_chunks { libc::XDP_USE_SG } else { 0 };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: copy | several | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: interface_index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let length = size_of::<libc::sockaddr_xdp>() as u32;
        // SAFETY: the pointer is to a `sockaddr_xdp` that lives through the call, the length is its own.
        check(unsafe { libc::bind(self.descriptor.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), length) })
            .map(drop)
    }

    /// Looks how many pieces wait.
    pub fn look(&mut self) -> u32 {
        self.queue.look()
    }

    /// One of the pieces that the last look has found, counted from the first that was not released.
    pub fn piece(&self, at: u32) -> Option<Piece<'_>> {
        self.queue.piece(at)
    }

    /// Gives the chunks of the first `pieces` that the last look has found back to the kernel.
    pub fn release(&mut self, pieces: u32) {
        self.queue.release(pieces);
        self.wake_if_asked();
    }

    /// A driver that has stopped for want of chunks says so, and goes on only when it is told.
    fn wake_if_asked(&self) {
        if !self.queue.wants_waking() {
            return;
        }
        let (nothing, raw) = (std::ptr::null_mut(), self.descriptor.as_raw_fd());
        // SAFETY: no octets are asked for, so none are written. What it says does not matter: an interface that is gone is
        // found otherwise, and every wait wakes the driver, too.
        unsafe { libc::recvfrom(raw, nothing, 0, libc::MSG_DONTWAIT, std::ptr::null_mut(), std::ptr::null_mut()) };
    }

    /// Whether the driver writes frames where we read them.
    pub fn is_zero_copy(&self) -> bool {
        let options = socket_option::<libc::xdp_options>(self.descriptor.as_raw_fd(), libc::SOL_XDP, libc::XDP_OPTIONS);
        options.is_ok_and(|options| options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// What the kernel counts.
    pub fn drops(&self) -> io::Result<Drops> {
        let said: libc::xdp_statistics =
            socket_option(self.descriptor.as_raw_fd(), libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(Drops { frames: said.rx_dropped + said.rx_ring_full, no_chunk: said.rx_fill_ring_empty_descs })
    }

    /// The error that the socket waits to tell and forgets by telling: `ENETDOWN` once its interface is gone.
    pub fn take_error(&self) -> Option<io::Error> {
        let code = socket_option::<c_int>(self.descriptor.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR).ok()?;
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn map(
    socket: &OwnedFd,
    page: libc::off_t,
    at: &libc::xdp_ring_offset,
    entries: u32,
    entry_octets: usize,
) -> io::Result<Ring> {
    let [producer, consumer, flags, first] = [at.producer, at.consumer, at.flags, at.desc].map(|at| at as usize);
    let octets = entries as usize * entry_octets + first;
    let memory = Mapping::shared(socket.as_fd(), page, octets, libc::MAP_POPULATE)?;
    let ring = Ring::new(memory, Offsets { producer, consumer, flags, first }, entries, entry_octets);
    ring.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn set_option<T>(socket: RawFd, name: c_int, value: &T) -> io::Result<()> {
    set_socket_option(socket, libc::SOL_XDP, name, value)
}
