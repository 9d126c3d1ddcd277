//! The `bpf(2)` system call: maps, programs and links, each a descriptor that the kernel closes what it stands for with.
#![expect(
    unsafe_code,
    reason = "libc has no bpf(2); the kernel reads and writes through the pointers that it is given"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::Instruction;
use crate::capture::mapping::Mapping;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// What a map does (`enum bpf_map_type` of `linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Keys are numbers from 0 on.
    Array = 2,
    /// `AF_XDP` sockets by queue.
    Sockets = 17,
}

/// What a program is for (`enum bpf_prog_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramKind {
    /// A socket's filter.
    SocketFilter = 1,
    /// In front of everything, on an interface.
    Xdp = 6,
}

/// `BPF_F_MMAPABLE`: the map's memory can be mapped (Linux 5.5).
const MAPPABLE: u32 = 1 << 10;
/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// Octets of the verifier's own account of a refusal that are read.
const LOG_OCTETS: usize = 1 << 16;

#[derive(Default)]
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_octets: u32,
    value_octets: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[derive(Default)]
#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default)]
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_octets: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface_index: u32,
    attach_type: u32,
}

#[derive(Default)]
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// A map: what a program and this process share.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    key_octets: usize,
    value_octets: usize,
    entries: u32,
}

impl Map {
    /// Makes one. `name`: at most 15 letters, digits and underscores, for those who look with `bpftool`.
    pub fn new(kind: MapKind, name: &str, key_octets: usize, value_octets: usize, entries: u32) -> io::Result<Self> {
        Self::create(kind, name, key_octets, value_octets, entries, 0)
    }

    /// An array whose memory [`Self::memory`] can give. The values have a multiple of 8 octets.
    pub fn shared_array(name: &str, value_octets: usize, entries: u32) -> io::Result<Self> {
        Self::create(MapKind::Array, name, size_of::<u32>(), value_octets, entries, MAPPABLE)
    }

    fn create(
        kind: MapKind,
        name: &str,
        key_octets: usize,
        value_octets: usize,
        entries: u32,
        flags: u32,
    ) -> io::Result<Self> {
        let attributes = MapCreate {
            kind: kind as u32,
            key_octets: key_octets as u32,
            value_octets: value_octets as u32,
            entries,
            flags,
            name: self::name(name),
            ..MapCreate::default()
        };
        let descriptor = descriptor(MAP_CREATE, &attributes)?;
        Ok(Self { descriptor, key_octets, value_octets, entries })
    }

    /// Gives a key a value, whether it had one or not. `E2BIG`: the map is full.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value_octets {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attributes = MapElement { value: value.as_ptr() as u64, ..self.element(key)? };
        call(MAP_UPDATE_ELEM, &attributes).map(drop)
    }

    /// Takes a key out. Returns whether it was there.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        match call(MAP_DELETE_ELEM, &self.element(key)?) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The memory of a [`Self::shared_array`], as words of 64 bits that programs change at any time.
    pub fn memory(&self) -> io::Result<Mapping> {
        // The kernel rounds each value up to 8 octets.
        let octets = self.value_octets.next_multiple_of(size_of::<u64>()) * self.entries as usize;
        Mapping::shared(self.descriptor.as_fd(), 0, octets, 0)
    }

    fn element(&self, key: &[u8]) -> io::Result<MapElement> {
        if key.len() != self.key_octets {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = self.descriptor.as_raw_fd().cast_unsigned();
        Ok(MapElement { map, key: key.as_ptr() as u64, ..MapElement::default() })
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A program that the kernel has accepted.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads one. An error is the kernel's; the verifier's last words stand in it where it had any.
    pub fn load(kind: ProgramKind, name: &str, code: &[Instruction]) -> io::Result<Self> {
        Self::load_with(kind, 0, name, code)
    }

    /// The same with flags: `BPF_F_*` of `linux/bpf.h`.
    pub fn load_with(kind: ProgramKind, flags: u32, name: &str, code: &[Instruction]) -> io::Result<Self> {
        if cfg!(target_endian = "big") {
            // Instructions would have their registers the other way round.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let license = c"Apache-2.0";
        let mut attributes = ProgLoad {
            kind: kind as u32,
            instructions: code.len() as u32,
            code: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            flags,
            name: self::name(name),
            ..ProgLoad::default()
        };
        let error = match descriptor(PROG_LOAD, &attributes) {
            Ok(program) => return Ok(Self(program)),
            Err(error) => error,
        };
        if error.raw_os_error() == Some(libc::EPERM) {
            return Err(error);
        }
        // Once more, to hear why: writing it down costs too much where all is well.
        let mut log = vec![0_u8; LOG_OCTETS];
        (attributes.log_level, attributes.log_octets) = (1, LOG_OCTETS as u32);
        attributes.log = log.as_mut_ptr() as u64;
        match descriptor(PROG_LOAD, &attributes) {
            Ok(program) => Ok(Self(program)),
            Err(error) => {
                let end = log.iter().position(|&octet| octet == 0).unwrap_or(log.len());
                let said = String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned();
                let last: Vec<_> = said.lines().filter(|line| !line.starts_with("processed ")).collect();
                match last.last() {
                    Some(last) => Err(io::Error::new(error.kind(), format!("{error}: the verifier says: {last}"))),
                    None => Err(error),
                }
            }
        }
    }

    /// Lets an XDP program run on an interface, until the link is dropped. `flags`: `XDP_FLAGS_*` of `linux/if_link.h`.
    pub fn attach_xdp(&self, interface_index: u32, flags: u32) -> io::Result<Link> {
        let program = self.0.as_raw_fd().cast_unsigned();
        let attributes = LinkCreate { program, target: interface_index, attach_type: ATTACH_XDP, flags };
        descriptor(LINK_CREATE, &attributes).map(Link)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A program on an interface: gone with this value, or with the process.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Puts another program in the place of the one that runs, without a packet between them. The kernel does nothing where
    /// it is the same one.
    pub fn replace(&self, program: &Program) -> io::Result<()> {
        let [link, program] = [&self.0, &program.0].map(|descriptor| descriptor.as_raw_fd().cast_unsigned());
        let attributes = LinkUpdate { link, program, ..LinkUpdate::default() };
        call(LINK_UPDATE, &attributes).map(drop)
    }
}

/// Time since the start of the system, as `CLOCK_MONOTONIC` says.
pub fn uptime() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` that lives through the call. This clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
        *to = from;
    }
    name
}

fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let raw = call(command, attributes)?;
    // SAFETY: a descriptor that the kernel just made (close-on-exec) and that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: pointer and length are those of one `repr(C)` struct without padding that is laid out as this command's part
    // of `union bpf_attr`; what its own pointers point to lives through the call and has the length that the map or the
    // struct itself says (checked where they are made).
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, (&raw const *attributes).cast::<libc::c_void>(), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
