//! The service: opens the capture, starts the workers, listens to signals, reloads approvals, and tells the service manager.

mod records;
mod state;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use self::records::{Control, Log, run_log};
pub use self::state::clock;
use self::state::{Notifier, State};
use crate::audit::Auditor;
use crate::capture::{
    CaptureError, Command, FastPath, LiveSettings, Outbox, Source, Summary, Worker, WorkerError, XdpSettings,
    allowed_cores, default_route, open_pnet, open_rings, open_xdp, pin_interrupts,
};
use crate::config::{Backend, Config, ConfigError, no_approvals};
use crate::policy::Policy;
use crate::sink::live::LiveView;
use crate::sink::ndjson::NdjsonFile;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Configuration or approvals.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Neither a setting nor a default route names an interface.
    #[error(
        "no interface to capture: there is no default route, and capture.interfaces names none; `linewarden interfaces` lists them"
    )]
    NoDefaultRoute,
    /// Capture could not start.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The log cannot be written.
    #[error("{path}: records cannot be written there: {source}")]
    Records {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A worker ended by itself.
    #[error("worker {id} ended: {error}")]
    Worker {
        /// Which.
        id: usize,
        /// Why.
        error: WorkerError,
    },
}

/// How often the state is told, and workers are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. Opens the capture before it returns control to the runtime, so that errors come first.
pub fn run(config: &Config) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System { what: "start the control plane", source })?;
    runtime.block_on(serve(config))
}

/// The log's file name in its folder.
pub const LOG_FILE: &str = "linewarden.ndjson";
/// The summary's.
pub const SUMMARY_FILE: &str = "summary.json";

async fn serve(config: &Config) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    // Before anything else, so that no signal ends the process in the middle of its start.
    let mut signals = Signals::listen().map_err(system("listen to signals"))?;
    let sensor = config.sensor_name();
    let policy = load_policy(config)?;
    let (sources, names) = open_sources(config)?;
    let (log, log_path) = open_log(config)?;
    let live = Arc::<LiveView>::default();

    let (outbox, receiver) = Outbox::new(config.records.queue);
    let (control, controls) = mpsc::channel(4);
    let log = tokio::spawn(run_log(log, Arc::clone(&live), receiver, controls));

    let names: Vec<Arc<str>> = names.into_iter().map(Into::into).collect();
    let seed = RandomState::new().build_hasher().finish();
    let settings = Arc::new(config.audit_settings(Arc::clone(&sensor), names.clone(), sources.len(), seed));
    let cores = if config.capture.cores.is_empty() { allowed_cores() } else { config.capture.cores.clone() };
    // Put back where they were when this function ends.
    let _interrupts = config.capture.pin_interrupts.then(|| {
        let of_workers: Vec<_> = cores.iter().copied().cycle().take(sources.len()).collect();
        pin_interrupts(Path::new("/"), &names, &of_workers)
    });
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for (id, source) in sources.into_iter().enumerate() {
        let auditor = Auditor::new(Arc::clone(&settings), Arc::clone(&policy));
        let core = cores.get(id % cores.len().max(1)).copied();
        let ended = ended.clone();
        let tell = move || {
            let _ = ended.send(());
        };
        let worker = Worker::spawn(id, core, source, auditor, outbox.clone(), tell);
        workers.push(worker.map_err(system("start a worker thread"))?);
    }
    // The log's task ends when the last worker has let go of its way out.
    drop(outbox);

    let interfaces = names.join(", ");
    info!(%interfaces, workers = workers.len(), records = %log_path.display(), "capturing");
    let folder = log_path.parent().unwrap_or(Path::new("."));
    let mut state = State::new(sensor, interfaces, folder.join(SUMMARY_FILE), live, policy);
    let mut notifier = Notifier::new();
    notifier.ready();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            Some(()) = signals.terminate.recv() => break,
            Some(()) = signals.interrupt.recv() => break,
            Some(()) = signals.hangup.recv() => {
                tokio::task::block_in_place(|| reload(config, &workers, &mut state));
                let _ = control.send(Control::Reopen).await;
            }
            Some(()) = signals.user1.recv() => {
                let _ = control.send(Control::Reopen).await;
            }
            Some(()) = endings.recv() => break,
            _ = tick.tick() => tokio::task::block_in_place(|| {
                notifier.tick(&workers, &state);
                state.tick(&workers);
            }),
        }
    }

    notifier.stopping();
    info!("stopping: ending every flow and writing its record");
    for worker in &workers {
        worker.tell(Command::Stop);
    }
    let (mut reports, mut result) = (Vec::new(), Ok(()));
    for (id, worker) in workers.into_iter().enumerate() {
        let (report, outcome) = tokio::task::block_in_place(|| worker.join());
        reports.push(report);
        if let Err(error) = outcome {
            error!(worker = id, %error, "worker failed");
            result = result.and(Err(DaemonError::Worker { id, error }));
        }
    }
    let mut summary = Summary::of(&reports);
    if let Ok(log) = log.await {
        let lost = log.lost() + log.waiting();
        summary.records_lost += lost;
        summary.records = summary.records.saturating_sub(lost);
    }
    state.write(&summary, true);
    for line in summary.to_string().lines() {
        info!("{line}");
    }
    result
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }
}

fn load_policy(config: &Config) -> Result<Arc<Policy>, ConfigError> {
    let (approvals, folder) = config.load_approvals()?;
    for warning in approvals.warnings.iter().chain(&approvals.warnings_at(clock())) {
        warn!("{warning}");
    }
    let policy = Arc::new(config.policy(config.sensor_name(), approvals));
    if policy.approvals().is_empty() {
        warn!("{}", no_approvals(folder.as_deref()));
    } else {
        info!(
            approvals = policy.approvals().len(),
            prefixes = policy.prefixes(),
            revision = %policy.revision(),
            folder = %folder.unwrap_or_default().display(),
            "approvals in force"
        );
    }
    Ok(policy)
}

/// A bad file keeps the approvals that are in force.
fn reload(config: &Config, workers: &[Worker], state: &mut State) {
    match load_policy(config) {
        Ok(policy) => {
            for worker in workers {
                worker.tell(Command::SetPolicy(Arc::clone(&policy)));
            }
            info!(revision = %policy.revision(), "approvals reloaded: every open flow is judged again");
            state.policy = policy;
        }
        Err(ConfigError(text)) => {
            for line in text.lines() {
                error!("{line}");
            }
            error!(revision = %state.policy.revision(), "approvals NOT reloaded: the old ones stay in force");
        }
    }
}

/// A source per worker, and the interfaces' names.
fn open_sources(config: &Config) -> Result<(Vec<Box<dyn Source>>, Vec<String>), DaemonError> {
    let capture = &config.capture;
    let mut interfaces = capture.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.push(default_route().ok_or(DaemonError::NoDefaultRoute)?);
    }
    let workers = match (capture.backend, capture.workers) {
        (Backend::Pnet | Backend::Xdp, 0) => 1,
        (Backend::Ring, 0) => allowed_cores().len().max(1),
        (_, workers) => workers,
    };
    let settings = LiveSettings {
        interfaces: interfaces.clone(),
        workers: u16::try_from(workers).unwrap_or(u16::MAX),
        snap_length: capture.snap_length,
        promiscuous: capture.promiscuous,
        ring_octets: capture.ring_octets,
        block_octets: capture.block_octets,
        block_timeout: capture.block_timeout,
        filter: capture.filter.clone(),
        fast_path: fast_path(config),
    };
    let sources = match capture.backend {
        Backend::Ring => open_rings(&settings)?,
        Backend::Xdp => {
            let (mode, takes_frames) = (capture.xdp_mode, capture.xdp_takes_frames);
            open_xdp(&settings, XdpSettings { mode, takes_frames, symmetric_rss: capture.xdp_symmetric_rss })?
        }
        Backend::Pnet => vec![open_pnet(&settings)?],
    };
    Ok((sources, interfaces))
}

/// Whether settled flows are counted in the kernel.
fn fast_path(config: &Config) -> Option<FastPath> {
    let flows = config.capture.kernel_flows;
    if flows == 0 || config.capture.backend != Backend::Ring {
        return None;
    }
    if !config.decapsulate.mirrors.is_empty() {
        info!("settled flows are not counted in the kernel: it cannot look into what decapsulate.mirrors names");
        return None;
    }
    Some(FastPath { flows, vlan_in_key: config.flow.vlan_in_key })
}

/// The folder that the settings name; else the system's where it may be written, else one in the working folder.
fn open_log(config: &Config) -> Result<(Log, PathBuf), DaemonError> {
    let open = |folder: &Path| {
        let path = folder.join(LOG_FILE);
        match NdjsonFile::open(&path) {
            Ok(file) => Ok((file, path)),
            Err(source) => Err(DaemonError::Records { path, source }),
        }
    };
    if let Some(folder) = &config.records.dir {
        return open(folder);
    }
    let system = Path::new("/var/log/linewarden");
    if system.is_dir()
        && let Ok(opened) = open(system)
    {
        return Ok(opened);
    }
    open(Path::new("linewarden-log"))
}
