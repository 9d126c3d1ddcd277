//! Turns a panic of any thread into the end of the daemon, in order and said: a part that died in silence would leave a sensor
//! that looks alive and is blind. What is left writes what it knows, and the service manager starts it anew.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::pin::pin;
use std::task::Poll;
use std::thread;

use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

use super::DaemonError;
use crate::capture::panic_message;

/// A thread that panicked.
#[derive(Clone, Debug)]
pub struct Panic {
    thread: String,
    place: String,
    message: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thread, place, message } = self;
        write!(formatter, "thread `{thread}` panicked at {place}, which is a defect of linewarden: {message}")
    }
}

/// From here on, the main loop hears of every panic of the process, and the log does.
pub(super) fn watch(endings: UnboundedSender<Option<DaemonError>>) {
    set_hook(Box::new(move |info| {
        let panic = describe(info);
        // Where nobody hears it any more, the daemon is at its end.
        let _ = endings.send(Some(DaemonError::Panic(panic.clone())));
        error!("{panic}");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            error!("{backtrace}");
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> Panic {
    Panic {
        thread: thread::current().name().unwrap_or("without a name").to_owned(),
        place: info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string),
        message: panic_message(info.payload()),
    }
}

/// Runs to its end, or to its panic, of which [`watch`] has told.
pub(super) async fn caught(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        polled.unwrap_or(Poll::Ready(()))
    })
    .await;
}
