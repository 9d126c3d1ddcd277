//! Turns interfaces and capture files into [`Frame`]s.

pub mod file;

use std::time::Duration;

use crate::wire::Frame;

/// Live counts of one source, added up over its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounters {
    /// Frames handed to the core.
    pub received: u64,
    /// Frames that the kernel dropped because the ring was full (`PACKET_STATISTICS`).
    pub dropped_kernel: u64,
    /// Frames that the NIC says it missed since the start (`rx_missed_errors`, `rx_dropped`… of sysfs).
    pub dropped_nic: u64,
}

/// Where a worker's frames come from: rings of one or several interfaces.
pub trait Source {
    /// Waits at most `timeout` for frames and hands over batches of them, in order per interface.
    /// Returns the number of frames; 0 after a quiet `timeout`. An interface that goes away is said once in the log and
    /// looked for again; it is no error.
    fn poll(&mut self, timeout: Duration, take: &mut dyn FnMut(&[Frame<'_>])) -> std::io::Result<usize>;

    /// Counts since the start.
    fn counters(&mut self) -> CaptureCounters;
}
