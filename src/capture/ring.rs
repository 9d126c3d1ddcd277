//! Turns one interface into blocks of frames: an `AF_PACKET` socket with a memory-mapped `TPACKET_V3` ring,
//! by `packet(7)` and the kernel's `Documentation/networking/packet_mmap.rst`.
//!
//! `blocks` reads what the kernel writes there.
#![expect(unsafe_code, reason = "the standard library has no calls for packet sockets")]

use std::ffi::{CString, c_int};
use std::io;
use std::mem::{size_of, zeroed};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::Blocks;
use super::bpf;
use super::mapping::Mapping;
use super::settled::Filters;
use super::{CaptureError, LinkLayer, LiveSettings};
use crate::config::Instruction;

/// How the members of a group share an interface's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// By the program of [`bpf::fanout`].
    Program,
    /// By the kernel's own hash, with fragments put together first: what is left where it refuses programs.
    Hash,
}

/// The drops since the last question.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    /// Frames that found no room.
    pub frames: u32,
    /// Times that the ring was found full.
    pub freezes: u32,
}

/// One interface's socket and ring.
pub struct Ring {
    socket: OwnedFd,
    blocks: Blocks,
    index: c_int,
    link: LinkLayer,
    filter: Vec<Instruction>,
    fast: Option<Arc<Filters>>,
}

impl Ring {
    /// Opens and maps, bound to the interface, but lets nothing in before [`Ring::unmute`]: neither before the
    /// filter is set nor while the members of a group are not yet complete.
    ///
    /// `fast`: filters that take the place of the settings'.
    pub fn open(name: &str, settings: &LiveSettings, fast: Option<Arc<Filters>>) -> Result<Self, CaptureError> {
        let failed = |what| move |source| CaptureError::System { interface: name.to_owned(), what, source };
        let socket = match (prepare(name, settings), &settings.opener) {
            (Err(CaptureError::Permission), Some(opener)) => opener.open(name).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => CaptureError::Permission,
                _ => failed("cannot have its ring opened")(error),
            })?,
            (socket, _) => socket?,
        };
        let index = bound_to(&socket).map_err(failed("cannot ask what its socket is bound to"))?;
        let hardware_type = hardware_type(name).map_err(failed("cannot ask for its hardware type"))?;
        let link = link_of(name, hardware_type)?;
        let (_, octets) = geometry(settings)?;
        // As long as `prepare` has set it up: the kernel refuses any other length.
        let memory = Mapping::shared(socket.as_fd(), 0, octets, 0).map_err(failed("cannot map the ring"))?;
        Ok(Self {
            socket,
            blocks: Blocks::new(memory, settings.block_octets),
            index,
            link,
            filter: bpf::snapped(&settings.filter, settings.snap_length),
            fast,
        })
    }

    /// Joins a group, or opens one that no other process has where `group` is `None`. Returns the group's number.
    pub fn join(&self, group: Option<u16>, spread: Spread) -> io::Result<u16> {
        let raw = self.socket.as_raw_fd();
        let mut flags = match spread {
            Spread::Program => libc::PACKET_FANOUT_CBPF,
            Spread::Hash => libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_DEFRAG,
        };
        if hardware_type_ignores_outgoing(raw) {
            flags |= libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        }
        if group.is_none() {
            flags |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
        }
        set_option(raw, libc::PACKET_FANOUT, &(u32::from(group.unwrap_or(0)) | flags << 16))?;
        if group.is_none() && spread == Spread::Program {
            let program = bpf::fanout(self.link);
            with_program(&program, |program| set_option(raw, libc::PACKET_FANOUT_DATA, program))?;
        }
        match group {
            Some(group) => Ok(group),
            None => option::<u32>(raw, libc::PACKET_FANOUT).map(|answer| answer as u16),
        }
    }

    /// Lets frames in, those that the filter takes.
    pub fn unmute(&self) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        let attached = self.fast.as_ref().map(|fast| {
            let program = fast.of(self.link).as_fd().as_raw_fd();
            set_socket_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program)
        });
        match attached {
            Some(Ok(())) => Ok(()),
            // Without the fast path everything comes here, which costs more and loses nothing.
            _ => attach(socket, &self.filter),
        }
    }

    /// Lets nothing more in.
    pub fn mute(&self) -> io::Result<()> {
        attach(self.socket.as_raw_fd(), &bpf::NOTHING)
    }

    /// The interface's index when the ring was opened.
    pub const fn interface_index(&self) -> i32 {
        self.index
    }

    /// How its frames start.
    pub const fn link(&self) -> LinkLayer {
        self.link
    }

    /// Whether the interface still exists: the kernel unbinds the socket of one that was deleted or moved away.
    pub fn is_bound(&self) -> bool {
        bound_to(&self.socket).is_ok_and(|index| index > 0)
    }

    /// The error that the socket waits to tell, `ENETDOWN` for instance, and forgets by telling.
    pub fn take_error(&self) -> Option<io::Error> {
        let code = socket_option::<c_int>(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR).ok()?;
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }

    /// The drops since the last question; asking sets them back to zero.
    pub fn take_drops(&self) -> io::Result<Drops> {
        let answer: libc::tpacket_stats_v3 = option(self.socket.as_raw_fd(), libc::PACKET_STATISTICS)?;
        Ok(Drops { frames: answer.tp_drops, freezes: answer.tp_freeze_q_cnt })
    }

    /// The next block's octets, where the kernel is done with it.
    pub fn block(&self) -> Option<&[u8]> {
        self.blocks.block()
    }

    /// Gives the block back to the kernel and goes on to the next.
    pub fn release(&mut self) {
        self.blocks.release();
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What takes a capability of a ring: its socket, set up and bound to the interface, and letting nothing in yet.
pub fn prepare(name: &str, settings: &LiveSettings) -> Result<OwnedFd, CaptureError> {
    let failed = |what| move |source| CaptureError::System { interface: name.to_owned(), what, source };
    let (blocks, octets) = geometry(settings)?;
    let index = interface_index(name).ok_or_else(|| CaptureError::NoInterface(name.to_owned()))?;
    let hardware_type = hardware_type(name).map_err(failed("cannot ask for its hardware type"))?;
    link_of(name, hardware_type)?;
    let socket = packet_socket()?;
    let raw = socket.as_raw_fd();

    // Tried while nothing can come in yet, so that a filter that the kernel refuses is said at the start.
    attach(raw, &bpf::snapped(&settings.filter, settings.snap_length)).map_err(|error| {
        let advice = "write what `tcpdump -ddd EXPRESSION` prints";
        CaptureError::Setting(format!("capture.filter: the kernel refuses it ({error}): {advice}"))
    })?;
    attach(raw, &bpf::NOTHING).map_err(failed("cannot attach a filter"))?;
    let version = libc::tpacket_versions::TPACKET_V3 as c_int;
    set_option(raw, libc::PACKET_VERSION, &version).map_err(failed("the kernel has no TPACKET_V3"))?;
    let request = libc::tpacket_req3 {
        tp_block_size: settings.block_octets as u32,
        tp_block_nr: blocks as u32,
        tp_frame_size: FRAME_OCTETS as u32,
        tp_frame_nr: (octets / FRAME_OCTETS) as u32,
        tp_retire_blk_tov: u32::try_from(settings.block_timeout.as_millis()).unwrap_or(u32::MAX).max(1),
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    set_option(raw, libc::PACKET_RX_RING, &request).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOMEM) => CaptureError::Memory { interface: name.to_owned(), octets },
        _ => failed("cannot set up the ring")(error),
    })?;
    if hardware_type == libc::ARPHRD_LOOPBACK {
        // What goes out of the loopback comes in at once: one copy is enough.
        set_option(raw, libc::PACKET_IGNORE_OUTGOING, &1_i32).map_err(failed("cannot ignore outgoing frames"))?;
    }
    if settings.promiscuous {
        make_promiscuous(&socket, index).map_err(failed("cannot make it promiscuous"))?;
    }
    bind(&socket, index).map_err(failed("cannot bind to it"))?;
    Ok(socket)
}

fn link_of(name: &str, hardware_type: u16) -> Result<LinkLayer, CaptureError> {
    LinkLayer::of(hardware_type).ok_or_else(|| CaptureError::HardwareType { interface: name.to_owned(), hardware_type })
}

fn bind(socket: &OwnedFd, interface_index: c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface_index;
    // SAFETY: the pointer is to a `sockaddr_ll` that lives through the call, the length is its own.
    let result = unsafe {
        let length = size_of::<libc::sockaddr_ll>() as u32;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), length)
    };
    check(result).map(drop)
}

/// The interface that a packet socket is bound to; 0 or less where that does not exist any more.
fn bound_to(socket: &OwnedFd) -> io::Result<c_int> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: both pointers are to values that live through the call; `length` is the room behind the first.
    let result =
        unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast::<libc::sockaddr>(), &raw mut length) };
    check(result).map(|_| address.sll_ifindex)
}

/// Only bounds how many frames the kernel believes a block could hold; `TPACKET_V3` packs frames of any length.
const FRAME_OCTETS: usize = 2048;
/// Headers in front of a frame in a block: the block's, the frame's and the address, with alignment.
const HEADROOM: usize = 256;

/// Number of blocks and octets of the whole ring.
fn geometry(settings: &LiveSettings) -> Result<(usize, usize), CaptureError> {
    let block = settings.block_octets;
    let snap = settings.snap_length as usize;
    let wrong = |text: String| Err(CaptureError::Setting(text));
    if snap == 0 {
        return wrong("capture.snap_length is 0: no frame could be read; 256 is enough for every detector".to_owned());
    }
    if !block.is_power_of_two() || !(1 << 16..=1 << 27).contains(&block) {
        return wrong(format!("capture.block_octets is {block}: write a power of two from 65536 to 134217728"));
    }
    if block < snap.saturating_add(HEADROOM) {
        return wrong(format!(
            "capture.block_octets is {block}, too few for one frame of capture.snap_length {snap}: raise the first or lower the second"
        ));
    }
    let blocks = settings.ring_octets / block;
    let octets = blocks.saturating_mul(block);
    if blocks < 2 || octets > u32::MAX as usize {
        return wrong(format!(
            "capture.ring_octets is {}: write from two blocks ({}) to 4294967295 octets",
            settings.ring_octets,
            2 * block
        ));
    }
    Ok((blocks, octets))
}

/// Waits until one of `sockets` has something or `timeout` passed; a signal ends the wait early.
pub fn wait(sockets: &mut Vec<libc::pollfd>, timeout: Duration) -> io::Result<()> {
    let milliseconds = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: pointer and length are those of one vector that is borrowed through the call.
    let result = unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, milliseconds) };
    match check(result) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Keeps the calling thread on one core.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `core` is within the set, as just checked.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: 0 is the calling thread; pointer and length are those of one set that lives through the call.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Asks for huge pages behind reserved memory, from address to address: a million flows are spread over more pages than a
/// processor keeps the places of. The system may have none; nothing but speed hangs on it.
pub fn advise_huge_pages(reserved: Range<usize>) {
    let (start, end) = (reserved.start.next_multiple_of(HUGE_PAGE), reserved.end / HUGE_PAGE * HUGE_PAGE);
    // Miri knows no advice.
    if start < end && !cfg!(miri) {
        // SAFETY: the advice changes neither what the memory holds nor what may be done with it, wherever it is.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Of `x86_64`, and of `aarch64` with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// Cores that this process may use, ascending.
#[must_use]
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: 0 is the calling thread; pointer and length are those of one set that lives through the call.
    if check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) }).is_err() {
        return Vec::new();
    }
    // SAFETY: every core asked for is within the set.
    (0..8 * size_of::<libc::cpu_set_t>()).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// A packet socket that receives nothing yet; also the test whether there could be one.
pub fn packet_socket() -> Result<OwnedFd, CaptureError> {
    // SAFETY: no pointers.
    let result = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    match check(result) {
        // SAFETY: a descriptor that the kernel just made and that nothing else owns.
        Ok(raw) => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => CaptureError::Permission,
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => CaptureError::NoPacketSockets,
            _ => {
                CaptureError::System { interface: "any".to_owned(), what: "cannot open a packet socket", source: error }
            }
        }),
    }
}

/// The interface shows frames addressed to others, too, until the packet socket is closed.
pub fn make_promiscuous(socket: &OwnedFd, interface_index: c_int) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: interface_index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(socket.as_raw_fd(), libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// The number of an interface that exists.
pub fn interface_index(name: &str) -> Option<c_int> {
    let name = CString::new(name).ok()?;
    // SAFETY: a string with its NUL that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    c_int::try_from(index).ok().filter(|&index| index > 0)
}

/// `ARPHRD_*` of an interface.
pub fn hardware_type(name: &str) -> io::Result<u16> {
    // Any socket will do; one of this family is allowed in the service's sandbox.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is an `ifreq` with a NUL behind its name, and lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) })?;
    // SAFETY: the kernel filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

fn hardware_type_ignores_outgoing(socket: RawFd) -> bool {
    option::<c_int>(socket, libc::PACKET_IGNORE_OUTGOING).is_ok_and(|on| on != 0)
}

fn attach(socket: RawFd, program: &[Instruction]) -> io::Result<()> {
    with_program(program, |program| set_socket_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program))
}

fn with_program<T>(program: &[Instruction], run: impl FnOnce(&libc::sock_fprog) -> T) -> T {
    let to_kernel = |i: &Instruction| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
    let mut code: Vec<libc::sock_filter> = program.iter().map(to_kernel).collect();
    run(&libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() })
}

fn set_option<T>(socket: RawFd, name: c_int, value: &T) -> io::Result<()> {
    set_socket_option(socket, libc::SOL_PACKET, name, value)
}

/// `setsockopt(2)` with one value; what it points to must outlive the call.
pub fn set_socket_option<T>(socket: RawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length are those of one value that lives through the call, and so does what it points to
    // (`with_program`).
    check(unsafe { libc::setsockopt(socket, level, name, (&raw const *value).cast(), size_of::<T>() as u32) }).map(drop)
}

fn option<T: Plain>(socket: RawFd, name: c_int) -> io::Result<T> {
    socket_option(socket, libc::SOL_PACKET, name)
}

/// `getsockopt(2)` of one value; what the kernel leaves out is 0.
pub fn socket_option<T: Plain>(socket: RawFd, level: c_int, name: c_int) -> io::Result<T> {
    // SAFETY: `Plain` types are valid as zeroes.
    let mut value: T = unsafe { zeroed() };
    let mut length = size_of::<T>() as u32;
    // SAFETY: pointer and length are those of one value that lives through the call; any octets are a valid `Plain`.
    check(unsafe { libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}

/// Integers, and structs of integers: any octets are a value.
pub trait Plain {}

impl Plain for c_int {}
impl Plain for u32 {}
impl Plain for libc::tpacket_stats_v3 {}
impl Plain for libc::xdp_mmap_offsets {}
impl Plain for libc::xdp_statistics {}
impl Plain for libc::xdp_options {}

/// The system's error, where a call says that there is one.
pub fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_on_a_core_that_it_may_use() {
        std::thread::spawn(|| {
            let last = *allowed_cores().last().unwrap();
            pin(last).unwrap();
            assert_eq!(allowed_cores(), [last]);
            for none in [8 * size_of::<libc::cpu_set_t>(), usize::MAX] {
                assert_eq!(pin(none).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            }
        })
        .join()
        .unwrap();
    }
}
