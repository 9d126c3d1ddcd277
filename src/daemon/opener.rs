//! Turns names of interfaces into rings, in a process of its own: the only one that keeps `CAP_NET_RAW` once the daemon runs.
//!
//! An interface that is made anew (a PPP session, a VPN's, a driver that was loaded again) needs a new ring, and a new ring the
//! capability. The daemon, which parses what strangers send, has none any more; so it asks this process, which parses nothing. A
//! request is the position of one of the names that it was started with, two octets; the answer is an error number, four octets,
//! and with 0 the ring's socket beside it (`unix(7)`, `SCM_RIGHTS`): bound, so that a daemon in wrong hands gets no other
//! interface. It ends when the daemon does; and where it ends before, the daemon does, too, to be started anew with another.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::sandbox;
use crate::capture::{CaptureError, LiveSettings, RingOpener, prepare};

/// The hidden command that is this process.
pub const COMMAND: &str = "open-rings";

/// The daemon's end.
pub(super) struct Opener {
    interfaces: Vec<String>,
    /// One request at a time: workers ask whenever they see that an interface is back.
    way: Mutex<OwnedFd>,
    process: Mutex<Child>,
    /// It had ended at the last look.
    was_gone: AtomicBool,
}

impl Opener {
    /// Starts the process, with the capabilities that this one still has.
    pub(super) fn start(settings: &LiveSettings) -> io::Result<Arc<Self>> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("linewarden").arg(COMMAND);
        let numbers = [
            ("--snap-length", u128::from(settings.snap_length)),
            ("--ring-octets", settings.ring_octets as u128),
            ("--block-octets", settings.block_octets as u128),
            ("--block-timeout", settings.block_timeout.as_millis()),
        ];
        for (name, number) in numbers {
            command.arg(format!("{name}={number}"));
        }
        if settings.promiscuous {
            command.arg("--promiscuous");
        }
        command.arg("--").args(&settings.interfaces);
        // Not in the terminal's group: Ctrl-C is for the daemon, and this process ends after it.
        let process = command.stdin(theirs).stdout(Stdio::null()).process_group(0).spawn()?;
        let (way, process) = (Mutex::new(ours), Mutex::new(process));
        Ok(Arc::new(Self { interfaces: settings.interfaces.clone(), way, process, was_gone: AtomicBool::default() }))
    }

    /// What workers ask by.
    pub(super) fn rings(this: &Arc<Self>) -> RingOpener {
        let this = Arc::clone(this);
        RingOpener::new(move |name| this.open(name))
    }

    /// How the process has ended. That is told at the second look: who ends the daemon may have ended both by a signal, and ours
    /// is to be heard first.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let status = process.try_wait().ok().flatten()?;
        self.was_gone.swap(true, Ordering::Relaxed).then_some(status)
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let position = self.interfaces.iter().position(|interface| interface == name);
        let position = position.and_then(|position| u16::try_from(position).ok()).ok_or(io::ErrorKind::NotFound)?;
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        ask(way.as_fd(), position)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        // A closed end is what it waits for.
        if let Ok((closed, _)) = std::os::unix::net::UnixStream::pair() {
            *self.way.get_mut().unwrap_or_else(PoisonError::into_inner) = closed.into();
            let _ = self.process.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
        }
    }
}

fn ask(way: BorrowedFd<'_>, position: u16) -> io::Result<OwnedFd> {
    let request = position.to_ne_bytes();
    sendmsg(way, &[IoSlice::new(&request)], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
    let mut answer = [0; 4];
    let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut room);
    let received = recvmsg(way, &mut [IoSliceMut::new(&mut answer)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes != answer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match i32::from_ne_bytes(answer) {
        0 => beside
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            })
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// What the process does: answers on standard input until its other end is closed.
pub fn serve(settings: &LiveSettings) -> io::Result<()> {
    // Else it would be called after the link that it was started by.
    rustix::thread::set_name(c"open-rings")?;
    sandbox::enter_opener()?;
    let way = rustix::stdio::stdin();
    loop {
        let mut request = [0; 2];
        let mut none = RecvAncillaryBuffer::default();
        let received = recvmsg(way, &mut [IoSliceMut::new(&mut request)], &mut none, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(());
        }
        let name = settings.interfaces.get(usize::from(u16::from_ne_bytes(request)));
        let opened = match name {
            Some(name) if received.bytes == request.len() => prepare(name, settings).map_err(|error| number(&error)),
            _ => Err(libc::EINVAL),
        };
        let answer = opened.as_ref().map_or_else(|number| *number, |_| 0).to_ne_bytes();
        let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut room);
        let descriptors = opened.as_ref().ok().map(AsFd::as_fd);
        if let Some(descriptor) = &descriptors {
            beside.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
        }
        match sendmsg(way, &[IoSlice::new(&answer)], &mut beside, SendFlags::NOSIGNAL) {
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            sent => sent?,
        };
    }
}

/// What the other end makes an error of again.
fn number(error: &CaptureError) -> i32 {
    match error {
        CaptureError::Permission | CaptureError::XdpPermission => libc::EPERM,
        CaptureError::NoInterface(_) => libc::ENODEV,
        CaptureError::NoPacketSockets | CaptureError::NoXdpSockets => libc::EAFNOSUPPORT,
        CaptureError::Memory { .. } | CaptureError::LockedMemory { .. } => libc::ENOMEM,
        CaptureError::Down(_) => libc::ENETDOWN,
        CaptureError::HardwareType { .. } | CaptureError::Setting(_) => libc::EINVAL,
        CaptureError::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
    }
}
