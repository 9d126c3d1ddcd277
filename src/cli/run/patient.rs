//! Turns lines of the daemon's log into what standard error takes: one that its reader has no room for is lost and counted. A
//! journal that stands still, or a pipe that nobody reads, must not make a thread wait that has packets to take.

use std::io::{self, Stderr, Write, stderr};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Standard error. It is one for the whole process, as are the losses.
pub(super) struct StandardError;

static LOST: Mutex<Lost> = Mutex::new(Lost { lines: 0, is_cut: false });

struct Lost {
    lines: u64,
    /// The first of them ended in its middle.
    is_cut: bool,
}

/// A reader that only is slow is waited for, once.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const NONE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Where there is room at all, there is for as much (`pipe(7)`, `PIPE_BUF`).
const PIECE: usize = 4096;

impl Write for StandardError {
    /// Takes a line, whatever becomes of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
        let mut to = stderr();
        let patience = if lost.lines > 0 { NONE } else { PATIENCE };
        if lost.lines > 0 {
            if !has_room(&to, NONE) {
                lost.lines += 1;
                return Ok(line.len());
            }
            let feed = if lost.is_cut { "\n" } else { "" };
            writeln!(to, "{feed}WARN {} lines of this log are lost: nobody read them in time", lost.lines)?;
            *lost = Lost { lines: 0, is_cut: false };
        }
        for (number, piece) in line.chunks(PIECE).enumerate() {
            if !has_room(&to, patience) {
                *lost = Lost { lines: 1, is_cut: number > 0 };
                break;
            }
            to.write_all(piece)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn has_room(to: &Stderr, patience: Timespec) -> bool {
    // What cannot be asked, is written to.
    poll(&mut [PollFd::new(to, PollFlags::OUT)], Some(&patience)).map_or(true, |ready| ready > 0)
}
