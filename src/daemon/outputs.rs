//! Starts what takes records beside the log, as the settings ask for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::{DaemonError, clock};
use crate::config::{Config, When};
use crate::sink::inventory::{self, Inventory};
use crate::sink::journal::{Journal, SOCKET};
use crate::sink::live::LiveView;
use crate::sink::output::FileOutput;
use crate::sink::sealed::SealedLog;
use crate::sink::usage::Usage;
use crate::sink::{Losses, Sink, Views};
use crate::store::FLOW_LOG;

/// What was started.
pub(super) struct Outputs {
    pub sinks: Vec<Box<dyn Sink>>,
    /// What each of them lost, by its name.
    pub losses: Vec<(String, Losses)>,
    /// What the inventory tells of itself; `None`: there is none.
    pub inventory: Option<Arc<inventory::Gauge>>,
}

/// Starts them; the views that the daemon tells from are the first.
pub(super) fn start(
    config: &Config,
    [folder, state]: [&PathBuf; 2],
    log: &SealedLog,
    (live, usage): (&Arc<LiveView>, &Arc<Usage>),
) -> Result<Outputs, DaemonError> {
    let failed = |source| DaemonError::System { what: "start an output", source };
    let now = clock();
    let views = Views::new(Arc::clone(live), Arc::clone(usage), config.silence());
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(views)];
    let mut started = Outputs { sinks, losses: Vec::new(), inventory: None };
    for output in &config.outputs {
        info!(file = output.file, format = output.format.name(), "records are written there, too");
        let file = FileOutput::start(folder, output, now).map_err(failed)?;
        started.losses.push((output.file.clone(), file.losses()));
        started.sinks.push(Box::new(file));
    }
    let is_wanted = match config.journal.findings {
        When::Auto => logs_to_journal(),
        When::Always => true,
        When::Never => false,
    };
    if is_wanted {
        info!("findings are told to the journal");
        let journal = Journal::open(Path::new(SOCKET), now).map_err(failed)?;
        started.losses.push(("journal".to_owned(), journal.losses()));
        started.sinks.push(Box::new(journal));
        if !Path::new(SOCKET).exists() {
            warn!(path = SOCKET, "no journal listens there yet: findings are counted until one does");
        }
    }
    if config.inventory.enabled {
        let settings = inventory::Settings {
            folder: folder.clone(),
            log: FLOW_LOG.to_owned(),
            state: state.clone(),
            rows: config.inventory.tunnels,
            keep_for: config.records.log.keep_for,
        };
        let (inventory, gauge) = Inventory::spawn(settings, &log.position(), now).map_err(failed)?;
        started.sinks.push(Box::new(inventory));
        started.inventory = Some(gauge);
    }
    Ok(started)
}

/// Whether standard error goes to the journal: the variable alone is passed on to whatever a service starts
/// (`systemd.exec(5)`, `$JOURNAL_STREAM`).
fn logs_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = rustix::fs::fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", status.st_dev, status.st_ino)
}
