//! Takes over a thread of another process, as whoever found a hole in it would, and has it make system calls: what the kernel
//! answers is what that thread may do (`ptrace(2)`).
#![expect(unsafe_code, reason = "ptrace(2) and waitpid(2) have no safe way; only another process is changed")]

use std::fs::{self, File};
use std::mem::zeroed;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use libc::{c_int, c_void, pid_t, user_regs_struct};

/// A stopped thread. It goes on where it was when the value is gone.
pub struct Intruder {
    thread: pid_t,
    memory: File,
    before: user_regs_struct,
    /// Where the process has an instruction `syscall`.
    gate: u64,
    ended: bool,
}

/// An argument of a system call.
#[derive(Clone, Debug)]
pub enum Arg {
    Number(i64),
    /// A pointer to these octets.
    Octets(Vec<u8>),
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<c_int> for Arg {
    fn from(number: c_int) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Octets([text.as_bytes(), b"\0"].concat())
    }
}

impl From<Vec<u8>> for Arg {
    fn from(octets: Vec<u8>) -> Self {
        Self::Octets(octets)
    }
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(i64),
    Refused(c_int),
    /// The process is gone, by this signal.
    Killed(c_int),
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Octets below the stack that it is writing in.
const BELOW: u64 = 8192;

impl Intruder {
    /// Stops a thread.
    pub fn seize(process: u32, thread: u32) -> Self {
        let thread = pid_t::try_from(thread).unwrap();
        let memory = File::options().read(true).write(true).open(format!("/proc/{thread}/mem")).unwrap();
        let gate = gate(process, &memory);
        // SAFETY: all zeroes are registers.
        let before = unsafe { zeroed() };
        let mut intruder = Self { thread, memory, before, gate, ended: false };
        ptrace(libc::PTRACE_SEIZE, thread, null_mut());
        ptrace(libc::PTRACE_INTERRUPT, thread, null_mut());
        assert!(libc::WIFSTOPPED(intruder.wait()));
        intruder.before = intruder.registers();
        intruder
    }

    /// Has it make a call.
    pub fn call(&mut self, number: i64, arguments: &[Arg]) -> Outcome {
        let mut registers = self.before;
        let (mut place, mut values) = ((registers.rsp - BELOW) & !15, [0; 6]);
        for (argument, value) in arguments.iter().zip(&mut values) {
            *value = match argument {
                Arg::Number(number) => number.cast_unsigned(),
                Arg::Octets(octets) => {
                    self.memory.write_all_at(octets, place).unwrap();
                    place += (octets.len() as u64).next_multiple_of(16);
                    place - (octets.len() as u64).next_multiple_of(16)
                }
            };
        }
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = values;
        (registers.rax, registers.rip) = (number.cast_unsigned(), self.gate);
        // What it was interrupted in is not to begin again now.
        registers.orig_rax = u64::MAX;
        self.set(registers);
        loop {
            ptrace(libc::PTRACE_SINGLESTEP, self.thread, null_mut());
            let status = self.wait();
            if libc::WIFSIGNALED(status) {
                self.ended = true;
                return Outcome::Killed(libc::WTERMSIG(status));
            }
            assert!(libc::WIFSTOPPED(status), "{status:#x}");
            // Another signal comes before the call is made.
            if libc::WSTOPSIG(status) == libc::SIGTRAP {
                break;
            }
        }
        let result = self.registers().rax.cast_signed();
        if (-4095..0).contains(&result) { Outcome::Refused(-result as c_int) } else { Outcome::Done(result) }
    }

    fn wait(&self) -> c_int {
        let mut status = 0;
        // SAFETY: the status is an integer that lives through the call.
        let found = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(found, self.thread, "{}", std::io::Error::last_os_error());
        status
    }

    fn registers(&self) -> user_regs_struct {
        // SAFETY: all zeroes are registers.
        let mut registers: user_regs_struct = unsafe { zeroed() };
        ptrace(libc::PTRACE_GETREGS, self.thread, (&raw mut registers).cast());
        registers
    }

    fn set(&self, mut registers: user_regs_struct) {
        ptrace(libc::PTRACE_SETREGS, self.thread, (&raw mut registers).cast());
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        if !self.ended && !std::thread::panicking() {
            self.set(self.before);
            ptrace(libc::PTRACE_DETACH, self.thread, null_mut());
        }
    }
}

#[track_caller]
fn ptrace(request: libc::c_uint, thread: pid_t, data: *mut c_void) {
    // SAFETY: these requests write to another process, or to the registers that `data` points to, which live through the call.
    let result = unsafe { libc::ptrace(request, thread, null_mut::<c_void>(), data) };
    assert!(result == 0, "ptrace({request:#x}, {thread}): {}", std::io::Error::last_os_error());
}

/// Looks for the instruction in what the process may execute.
fn gate(process: u32, memory: &File) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let places = maps.lines().filter(|line| line.contains(" r-xp ") && line.contains(".so")).filter_map(|line| {
        let (first, last) = line.split(' ').next()?.split_once('-')?;
        let [first, last] = [first, last].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut octets = vec![0; usize::try_from(last - first).unwrap()];
        memory.read_exact_at(&mut octets, first).ok()?;
        Some(first + octets.windows(2).position(|pair| pair == SYSCALL)? as u64)
    });
    places.into_iter().next().expect("an instruction `syscall`")
}
