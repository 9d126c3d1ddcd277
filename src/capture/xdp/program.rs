//! Turns an interface's frames over to sockets: the XDP program that hands each frame to the socket of its own queue, and the
//! map that says which one that is. Where a queue has none, the frame goes on to the host.
//!
//! ```text
//! return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_PASS);
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::socket::Socket;
use crate::capture::CaptureError;
use crate::capture::ebpf::{Assembler, Instruction, Link, Map, MapKind, Program, ProgramKind, Register, Size, helper};
use crate::capture::ring::{make_promiscuous, packet_socket};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the driver, before the kernel has made anything of the frame.
    Driver,
    /// In the kernel's stack, where the driver has no place for it: slower.
    Stack,
}

impl Place {
    /// For the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Stack => "stack",
        }
    }

    /// `linux/if_link.h`: `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Driver => 1 << 2,
            Self::Stack => 1 << 1,
        }
    }
}

/// An interface's program and map. Gone with this value, or with the process: then the host has its frames again.
pub struct Redirection {
    interface_index: u32,
    sockets: Map,
    /// Where it runs.
    pub place: Place,
    link: Link,
    /// Keeps the interface promiscuous.
    _promiscuous: Option<OwnedFd>,
}

/// More queues than any NIC has: an entry takes 8 octets.
pub const MOST_QUEUES: u32 = 1024;
/// `struct xdp_md` of `linux/bpf.h`.
const RX_QUEUE_INDEX: i16 = 16;
/// `enum xdp_action`.
const XDP_PASS: i32 = 2;
/// `BPF_F_XDP_HAS_FRAGS` (Linux 5.18): the program takes frames that lie in several pieces, as jumbo frames do.
const HAS_FRAGMENTS: u32 = 1 << 5;

impl Redirection {
    /// Loads the program and lets it run on the interface; every frame goes on to the host until its queue has a socket.
    /// `EBUSY` or `EEXIST`: there is a program already.
    pub fn attach(interface_index: u32, promiscuous: bool) -> io::Result<Self> {
        let sockets = Map::new(MapKind::Sockets, "linewarden_xsk", 4, 4, MOST_QUEUES)?;
        let program = load(&sockets)?;
        let (place, link) = match program.attach_xdp(interface_index, Place::Driver.flags()) {
            Ok(link) => (Place::Driver, link),
            Err(error) if is_taken(&error) => return Err(error),
            Err(_) => (Place::Stack, program.attach_xdp(interface_index, Place::Stack.flags())?),
        };
        let promiscuous = promiscuous.then(|| -> io::Result<OwnedFd> {
            let socket = packet_socket().map_err(|error| match error {
                CaptureError::Permission => io::Error::from_raw_os_error(libc::EPERM),
                error => io::Error::other(error),
            })?;
            make_promiscuous(&socket, interface_index.cast_signed())?;
            Ok(socket)
        });
        Ok(Self { interface_index, sockets, place, link, _promiscuous: promiscuous.transpose()? })
    }

    /// Which interface it runs on.
    pub const fn interface_index(&self) -> u32 {
        self.interface_index
    }

    /// Puts the program in place anew: a driver that got more queues may have left those without it (veth does).
    pub fn renew(&self) -> io::Result<()> {
        self.link.replace(&load(&self.sockets)?)
    }

    /// From now on, the frames of a queue go to this socket.
    pub fn admit(&self, queue: u32, socket: &Socket) -> io::Result<()> {
        let descriptor = socket.as_fd().as_raw_fd();
        self.sockets.set(&queue.to_ne_bytes(), &descriptor.to_ne_bytes())
    }

    /// From now on, the frames of a queue go to the host.
    pub fn dismiss(&self, queue: u32) -> io::Result<()> {
        self.sockets.remove(&queue.to_ne_bytes()).map(drop)
    }
}

/// Another program is there: the kernel says `EBUSY` of one of the same kind, `EEXIST` of one in the other place.
pub fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

fn load(sockets: &Map) -> io::Result<Program> {
    let code = redirect(sockets).ok_or(io::ErrorKind::InvalidData)?;
    match Program::load_with(ProgramKind::Xdp, HAS_FRAGMENTS, "linewarden", &code) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Program::load(ProgramKind::Xdp, "linewarden", &code)
        }
        loaded => loaded,
    }
}

fn redirect(sockets: &Map) -> Option<Vec<Instruction>> {
    let mut program = Assembler::default();
    program.load(Size::Word, Register::R2, Register::R1, RX_QUEUE_INDEX);
    program.load_map(Register::R1, sockets.as_fd());
    program.copy(Register::R3, XDP_PASS);
    program.call(helper::REDIRECT_MAP);
    program.exit();
    program.finish()
}
