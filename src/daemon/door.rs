//! Says once that nobody can come in any more, and once that they can again.

use std::io;
use std::time::Duration;

use tracing::{info, warn};

/// Where a descriptor is wanting, say, it may not be by then.
const PAUSE: Duration = Duration::from_secs(1);

/// What accepts connections.
pub(super) struct Door {
    /// As the log names it.
    name: &'static str,
    is_shut: bool,
}

impl Door {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, is_shut: false }
    }

    /// Gives the connection, or waits before the next try.
    pub(super) async fn pass<T>(&mut self, accepted: io::Result<T>) -> Option<T> {
        match accepted {
            Ok(connection) => {
                if std::mem::take(&mut self.is_shut) {
                    info!("{} accepts again", self.name);
                }
                Some(connection)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_shut, true) {
                    warn!(%error, "{} accepts nobody", self.name);
                }
                tokio::time::sleep(PAUSE).await;
                None
            }
        }
    }
}
