//! Turns one queue of an interface into frames in memory that the kernel shares with us: an `AF_XDP` socket, by the kernel's
//! `Documentation/networking/af_xdp.rst`.
//!
//! The memory for frames is divided into chunks of equal size. Each belongs either to the kernel or to us, and two rings hand
//! them over: the fill ring gives chunks to the kernel, the receive ring brings them back with a frame inside. Each ring is an
//! array with a power of two of entries, and counts what was produced and what was consumed (32 bits each, which wrap).
//!
//! | ring | entry | octets | who produces | who consumes |
//! |---|---|---|---|---|
//! | fill | address of a chunk | 8 | we | the kernel |
//! | receive | `struct xdp_desc`: address 8, octets 4, options 4 | 16 | the kernel | we |
//!
//! Both have room for every chunk: neither is ever full, and only a kernel without chunks drops a frame.
#![expect(unsafe_code, reason = "the kernel shares rings and frames with us; nothing else of AF_XDP needs it")]

use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::capture::ring::{advise_huge_pages, check, set_socket_option, socket_option};

/// How the memory of a socket is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Of one chunk: 2048 or 4096.
    pub octets: usize,
    /// How many.
    pub count: u32,
}

impl Chunks {
    /// Octets of a frame that a chunk of `octets` has room for: the kernel leaves 256 free in front of it
    /// (`XDP_PACKET_HEADROOM`).
    #[must_use]
    pub const fn room(octets: usize) -> usize {
        octets - 256
    }
}

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

/// A piece of a frame, and whether the next one belongs to the same frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub data: &'a [u8],
    pub goes_on: bool,
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
    /// Chunk after chunk.
    memory: Mapping,
    chunks: Chunks,
    fill: Shared<u64>,
    received: Shared<libc::xdp_desc>,
    /// Chunks given to the kernel since the start, as the fill ring counts them.
    given: u32,
    /// Pieces that were released, as the receive ring counts them.
    released: u32,
    /// Pieces that wait behind those: a copy of what the kernel says.
    waiting: u32,
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
            addr: memory.start.as_ptr() as u64,
            len: memory.octets as u64,
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
        let fill = Shared::map(raw, libc::XDP_UMEM_PGOFF_FILL_RING.cast_signed(), &offsets.fr, entries);
        let fill = fill.map_err(Step::Rings.failed())?;
        let received = Shared::map(raw, libc::XDP_PGOFF_RX_RING, &offsets.rx, entries).map_err(Step::Rings.failed())?;

        let mut socket = Self { descriptor, memory, chunks, fill, received, given: 0, released: 0, waiting: 0 };
        for chunk in 0..chunks.count {
            socket.fill.write(chunk, u64::from(chunk) * chunks.octets as u64);
        }
        socket.give(chunks.count);
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
        // Acquire: what the kernel wrote before it counted is seen.
        let produced = self.received.producer().load(Ordering::Acquire);
        self.waiting = produced.wrapping_sub(self.released).min(self.received.entries);
        self.waiting
    }

    /// One of the pieces that the last look has found, counted from the first that was not released.
    pub fn piece(&self, at: u32) -> Option<Piece<'_>> {
        if at >= self.waiting {
            return None;
        }
        let found = self.received.read(self.released.wrapping_add(at));
        let goes_on = found.options & libc::XDP_PKT_CONTD != 0;
        let (start, octets) = (usize::try_from(found.addr).ok()?, found.len as usize);
        let inside = start.checked_add(octets).is_some_and(|end| end <= self.memory.octets);
        let data = if inside {
            // SAFETY: within the mapping, as just checked. The chunk is ours: the kernel gave it to us with this piece, and
            // writes to it only after `release` has given it back, which needs `&mut self` and so cannot happen while this
            // borrow lives.
            unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(start), octets) }
        } else {
            // What the kernel never says: counted as a frame that cannot be read.
            &[]
        };
        Some(Piece { data, goes_on })
    }

    /// Gives the chunks of the first `pieces` that the last look has found back to the kernel.
    pub fn release(&mut self, pieces: u32) {
        let pieces = pieces.min(self.waiting);
        for at in 0..pieces {
            let found = self.received.read(self.released.wrapping_add(at));
            self.fill.write(self.given.wrapping_add(at), found.addr & !(self.chunks.octets as u64 - 1));
        }
        self.waiting -= pieces;
        self.released = self.released.wrapping_add(pieces);
        // Release: the entries were read before the kernel may write there again.
        self.received.consumer().store(self.released, Ordering::Release);
        self.give(pieces);
        self.wake_if_asked();
    }

    /// Counts chunks that stand in the fill ring as given.
    fn give(&mut self, chunks: u32) {
        self.given = self.given.wrapping_add(chunks);
        // Release: the kernel sees the entries once it sees the count.
        self.fill.producer().store(self.given, Ordering::Release);
    }

    /// A driver that has stopped for want of chunks says so, and goes on only when it is told.
    fn wake_if_asked(&self) {
        if self.fill.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP == 0 {
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

/// A ring that the kernel shares with us. Only one side writes each of the two counts.
struct Shared<T> {
    memory: Mapping,
    offsets: Offsets,
    /// A power of two.
    entries: u32,
    entry: PhantomData<T>,
}

/// Where the parts of a ring are in its memory.
#[derive(Clone, Copy)]
struct Offsets {
    producer: usize,
    consumer: usize,
    flags: usize,
    first: usize,
}

/// Entries of the rings, as the kernel lays them out; any octets are a value.
trait Entry: Copy {}

impl Entry for u64 {}
impl Entry for libc::xdp_desc {}

impl<T: Entry> Shared<T> {
    fn map(socket: RawFd, page: libc::off_t, at: &libc::xdp_ring_offset, entries: u32) -> io::Result<Self> {
        let [producer, consumer, flags, first] = [at.producer, at.consumer, at.flags, at.desc].map(|at| at as usize);
        let octets = entries as usize * size_of::<T>() + first;
        let is_word = |at: usize| at.is_multiple_of(size_of::<u32>()) && at < octets.saturating_sub(size_of::<u32>());
        // `flags` is 0, and the others are not, on a kernel before 5.4, which has no wake-ups: the word there is never read
        // as a flag, since that kernel refuses to bind.
        if !entries.is_power_of_two() || ![producer, consumer, flags].into_iter().all(is_word) || first % 8 != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let memory = Mapping::of(socket, page, octets)?;
        let offsets = Offsets { producer, consumer, flags, first };
        Ok(Self { memory, offsets, entries, entry: PhantomData })
    }

    fn producer(&self) -> &AtomicU32 {
        self.word(self.offsets.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.word(self.offsets.consumer)
    }

    fn flags(&self) -> &AtomicU32 {
        self.word(self.offsets.flags)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: within the mapping and aligned, as checked in `map`. Kernel and process both reach these words with single
        // accesses only.
        unsafe { AtomicU32::from_ptr(self.memory.start.as_ptr().add(at).cast()) }
    }

    fn entry(&self, count: u32) -> *mut T {
        let at = (count & (self.entries - 1)) as usize;
        // SAFETY: below the number of entries, so within the mapping.
        unsafe { self.memory.start.as_ptr().add(self.offsets.first).cast::<T>().add(at) }
    }

    fn read(&self, count: u32) -> T {
        // SAFETY: an entry within the mapping and aligned to 8 octets, as the mapping and `first` are; any octets are a value.
        // The kernel does not write to an entry that it has counted as produced until we count it as consumed.
        unsafe { self.entry(count).read() }
    }

    fn write(&mut self, count: u32, value: T) {
        // SAFETY: as in `read`; the kernel reads an entry only after we have counted it as produced.
        unsafe { self.entry(count).write(value) }
    }
}

/// Memory of this process, shared with the kernel.
struct Mapping {
    start: NonNull<u8>,
    octets: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through its owner only; no thread-local state is involved.
unsafe impl Send for Mapping {}

impl Mapping {
    fn anonymous(octets: usize) -> io::Result<Self> {
        let mapping = Self::new(octets, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        let start = mapping.start.as_ptr().addr();
        advise_huge_pages(start..start + octets);
        Ok(mapping)
    }

    fn of(socket: RawFd, page: libc::off_t, octets: usize) -> io::Result<Self> {
        Self::new(octets, libc::MAP_SHARED | libc::MAP_POPULATE, socket, page)
    }

    fn new(octets: usize, flags: c_int, descriptor: RawFd, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel checks descriptor and length.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), octets, protection, flags, descriptor, offset) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(memory.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, octets })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, with its own length; nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast::<c_void>(), self.octets) };
    }
}

fn set_option<T>(socket: RawFd, name: c_int, value: &T) -> io::Result<()> {
    set_socket_option(socket, libc::SOL_XDP, name, value)
}
