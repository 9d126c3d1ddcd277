//! Turns an interface's name into a ring that somebody else has opened for this process, which may not do so any more.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Opens rings elsewhere. Two are equal where they are the same one.
#[derive(Clone)]
pub struct RingOpener(Arc<dyn Fn(&str) -> io::Result<OwnedFd> + Send + Sync>);

impl RingOpener {
    /// `open` gives what [`super::prepare`] has made of the interface with the same settings.
    pub fn new(open: impl Fn(&str) -> io::Result<OwnedFd> + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    pub(super) fn open(&self, interface: &str) -> io::Result<OwnedFd> {
        (self.0)(interface)
    }
}

impl fmt::Debug for RingOpener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RingOpener")
    }
}

impl PartialEq for RingOpener {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RingOpener {}
