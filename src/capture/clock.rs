//! The clocks of the edge: how long to wait, and the time of frames that come without one.

use std::time::{Instant, SystemTime};

use crate::time::Timestamp;

#[expect(
    clippy::disallowed_methods,
    reason = "an edge: says how long to wait and what is due, never when a packet was"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "an edge: XDP and pnet give frames no time, so that of reading has to do; and a silent link brings none"
)]
pub(super) fn clock() -> Timestamp {
    Timestamp::ZERO + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
