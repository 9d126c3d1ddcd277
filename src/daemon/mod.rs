//! The service: opens the capture, starts the workers, listens to signals, reloads approvals, and tells the service manager.

mod board;
mod capabilities;
pub mod control;
mod coverage;
mod door;
mod end;
mod events;
mod expiry;
mod metrics;
mod opener;
mod outputs;
mod panics;
mod place;
mod records;
mod reload;
mod sandbox;
mod socket;
mod state;
mod system_calls;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::board::{Board, Facts};
use self::control::Ask;
use self::control::protocol::{ErrorAnswer, RotateAnswer};
use self::end::end;
use self::events::{Events, Spans, run_events, start};
use self::expiry::Expiry;
use self::metrics::http::{ListenError, Listener};
use self::opener::Opener;
pub use self::opener::{COMMAND as OPENER, serve as open_rings_for_another};
use self::panics::{Panic, caught};
use self::place::bind_control;
pub use self::place::control_sockets;
use self::records::{Control, run_log};
use self::reload::{Reloading, in_force};
use self::sandbox::Needs;
use self::socket::{Socket, SocketError};
pub use self::state::clock;
use self::state::{Notifier, State, now};
use crate::audit::Auditor;
use crate::capture::{
    CaptureError, FastPath, LiveSettings, Outbox, PinnedInterrupts, Source, Worker, WorkerError, XdpSettings,
    allowed_cores, default_route, open_pnet, open_rings, open_xdp, pin_interrupts,
};
use crate::config::{Backend, Config, ConfigError, Origin, Owners, check_written, no_approvals};
use crate::fault;
use crate::policy::Policy;
use crate::sink::live::LiveView;
use crate::sink::pseudonym::{KeyError, Missing, Pseudonyms, key_file};
use crate::sink::sealed::{LogError, SealedLog, segments};
use crate::sink::sensor::What;
use crate::sink::usage::Usage;
use crate::store::{FLOW_LOG, SENSOR_LOG};

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
    /// A log cannot be written, or not be signed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What is to be hidden cannot be.
    #[error(transparent)]
    Privacy(#[from] KeyError),
    /// `linewarden ctl` could not ask.
    #[error("control socket: {0}")]
    Control(SocketError),
    /// Nobody could read metrics.
    #[error("metrics.listen: {0}")]
    Metrics(ListenError),
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
    /// A thread did.
    #[error("{0}; the daemon has ended in order, to be started anew")]
    Panic(Panic),
    /// The second process did.
    #[error(
        "the process that opens rings has ended ({0}): an interface that is made anew could not be captured; the daemon has ended in order, to be started anew"
    )]
    Opener(ExitStatus),
}

/// Runs until SIGTERM or SIGINT; `origin` tells what changes in the settings meanwhile. Opens everything before the control
/// plane starts: errors come first, and what is not needed any more is let go of while there is one thread.
pub fn run(config: &Config, origin: &Origin) -> Result<(), DaemonError> {
    config.flow.warning().iter().for_each(|warning| warn!("{warning}"));
    let system = |what| move |source| DaemonError::System { what, source };
    // Before anything else, so that no signal ends the process in the middle of its start. Signals are the process's: the
    // runtime that is made later hears of those that came before it.
    let early = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let early = early.map_err(system("start the control plane"))?;
    let signals = {
        let _inside = early.enter();
        Signals::listen().map_err(system("listen to signals"))?
    };
    let opened = Opened::open(config, origin)?;
    if config.sandbox.enabled {
        let needs = Needs::of(config, [&opened.folder, &opened.state]);
        sandbox::enter(&needs).map_err(system("enter the sandbox (sandbox.enabled = false runs without it)"))?;
    } else {
        warn!("the sandbox is off (sandbox.enabled): the process keeps every capability it was started with");
    }
    // Its threads, and those that they start, inherit all that.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(system("start the control plane"))?;
    runtime.block_on(serve(config, origin, signals, opened))
}

/// At most so many tasks wait for the disk while others go on. More than wait at once but for a moment (two logs, the state, a
/// reload, and those who ask); woken by turns, threads never idle long enough to end, so that a chance peak stays.
const BLOCKING_THREADS: usize = 8;

/// The summary's.
pub const SUMMARY_FILE: &str = "summary.json";

async fn serve(config: &Config, origin: &Origin, mut signals: Signals, opened: Opened) -> Result<(), DaemonError> {
    let Opened { policy, sources, interfaces: names, interrupts: _interrupts, folder, state, .. } = opened;
    let Opened { control_socket, metrics, pseudonyms, opener, .. } = opened;
    let (ended, mut endings) = mpsc::unbounded_channel();
    panics::watch(ended.clone());
    let sensor = config.sensor_name();
    // They have threads of their own, which are to be in the sandbox.
    let open = |name| SealedLog::open(&folder, name, &state, &config.records.log, clock());
    let (log, sensor_log) = (open(FLOW_LOG)?, open(SENSOR_LOG)?);
    let breaks: Vec<_> = [&log, &sensor_log].iter().flat_map(|log| log.breaks().to_vec()).collect();
    let [log_path, sensor_path] = [&log, &sensor_log].map(|log| log.path().to_owned());
    let interval = config.records.log.sync_interval;
    let (live, usage) = (Arc::<LiveView>::default(), Arc::<Usage>::default());
    let gauges: [Arc<board::LogGauge>; 2] = Default::default();

    let (outbox, receiver) = Outbox::new(config.records.queue);
    let (control, controls) = mpsc::channel(4);
    let (sensor_control, sensor_controls) = mpsc::channel(4);
    let [gauge, sensor_gauge] = &gauges;
    let outputs = outputs::start(config, [&folder, &state], &log, (&live, &usage))?;
    let run = run_log(log, interval, pseudonyms.clone(), outputs.sinks, Arc::clone(gauge), receiver, controls);
    let log = tokio::spawn(run);
    let (mut events, said) = Events::new(Arc::clone(&sensor));
    let sensor_log = tokio::spawn(run_events(sensor_log, interval, said, sensor_controls, Arc::clone(sensor_gauge)));

    let names: Vec<Arc<str>> = names.into_iter().map(Into::into).collect();
    let workers = start_workers(config, (&sensor, &names, &policy), sources, &outbox, &ended)?;
    // The log's task ends when the last worker has let go of its way out.
    drop(outbox);

    let facts = Facts {
        sensor,
        interfaces: names.clone(),
        started: clock(),
        began: now(),
        log: log_path.clone(),
        sensor_log: sensor_path,
        kernel_fast_path: workers.iter().any(|worker| worker.counts_elsewhere),
        output_losses: outputs.losses,
        pseudonyms,
        warn_before: config.policy.warn_before,
    };
    events.say(What::Start(start(origin, &facts, workers.len())));
    breaks.into_iter().for_each(|found| events.say(What::LogBreak(found)));
    events.say(What::Policy(in_force(&policy)));
    let statuses = workers.iter().map(|worker| Arc::clone(&worker.status)).collect();
    let board = Arc::new(Board::new(facts, statuses, live, usage, gauges, outputs.inventory, policy));

    let (asker, mut asks) = mpsc::channel(4);
    let mut servers = start_servers(config, control_socket, metrics, (&board, &asker));
    info!(interfaces = %names.join(", "), workers = workers.len(), records = %log_path.display(), "capturing");
    let mut state = State::new(Arc::clone(&board), folder.join(SUMMARY_FILE));
    let (mut notifier, mut reloading) = (Notifier::new(), Reloading::default());
    notifier.ready();
    let mut tick = tokio::time::interval(coverage::TICK);
    let (mut spans, mut expiry, mut failure) = (Spans::new(), Expiry::default(), None);
    let watching = async {
        loop {
            fault::point("main");
            let (settings, running) = ((config, origin), (&*workers, &*board));
            tokio::select! {
                Some(()) = signals.terminate.recv() => break,
                Some(()) = signals.interrupt.recv() => break,
                Some(()) = signals.hangup.recv(), if reloading.is_idle() => {
                    notifier.reloading();
                    reloading.begin(settings, running, &mut events, None);
                    if reloading.is_idle() {
                        notifier.ready();
                    }
                    reopen(&[&control, &sensor_control]);
                }
                Some(ask) = asks.recv(), if reloading.is_idle() => match ask {
                    Ask::Reload(asker) => reloading.begin(settings, running, &mut events, Some(asker)),
                    Ask::Rotate(asker) => {
                        let rotating = rotate([control.clone(), sensor_control.clone()], log_path.clone());
                        tokio::spawn(async move { asker.send(rotating.await) });
                    }
                },
                () = reloading.done() => notifier.ready(),
                Some(()) = signals.user1.recv() => reopen(&[&control, &sensor_control]),
                Some(ended) = endings.recv() => {
                    failure = ended;
                    break;
                }
                _ = tick.tick() => {
                    tokio::task::block_in_place(|| {
                        notifier.tick(&board);
                        state.tick();
                        spans.tick(&board, &mut events);
                        expiry.tick(clock(), &board, &mut events);
                    });
                    failure = opener.as_ref().and_then(|opener| opener.ended()).map(DaemonError::Opener);
                    if failure.is_some() {
                        break;
                    }
                }
            }
        }
    };
    caught(watching).await;

    // A panic of this task itself is among them, too.
    let failure = failure.or_else(|| endings.try_recv().ok().flatten());
    servers.shutdown().await;
    notifier.stopping(failure.as_ref());
    let result = end(workers, (log, sensor_log), (&board, &mut state), (spans, events), failure.is_some()).await;
    // What began it comes before what came of it, and some may have panicked as they ended.
    failure.or_else(|| endings.try_recv().ok().flatten()).map_or(result, Err)
}

/// What takes privileges, or must be there before the daemon says that it runs.
struct Opened {
    policy: Arc<Policy>,
    sources: Vec<Box<dyn Source>>,
    interfaces: Vec<String>,
    /// Put back where they were when this is dropped.
    interrupts: Option<PinnedInterrupts>,
    /// Of the logs, and of their state.
    folder: PathBuf,
    state: PathBuf,
    control_socket: Result<Socket, SocketError>,
    metrics: Option<Listener>,
    opener: Option<Arc<Opener>>,
    /// What outputs do not get to see.
    pseudonyms: Option<Arc<Pseudonyms>>,
}

impl Opened {
    fn open(config: &Config, origin: &Origin) -> Result<Self, DaemonError> {
        let policy = load_policy(config, origin)?.policy;
        let (sources, interfaces, opener) = open_sources(config)?;
        let interrupts = config.capture.pin_interrupts.then(|| {
            let of_workers: Vec<_> = cores(config).into_iter().cycle().take(sources.len()).collect();
            pin_interrupts(Path::new("/"), &interfaces, &of_workers)
        });
        // Made while that is allowed.
        let folder = config.log_folder();
        let state = config.state_folder(&folder);
        let made = make_folder(&folder);
        made.map_err(|source| LogError::Records { path: segments::live(&folder, FLOW_LOG, segments::DATA), source })?;
        let made = make_folder(&state);
        made.map_err(|source| LogError::State { path: state.clone(), source })?;
        check_written(&folder)?;
        check_written(&state)?;
        let owners = Owners::here().and_of(&folder).and_of(&state);
        let control_socket =
            bind_control(config.control.socket.as_deref(), &state, &owners).map_err(DaemonError::Control)?;
        let listen = config.metrics.listen.as_ref();
        let metrics = listen.map(|listen| Listener::bind(listen, &owners)).transpose().map_err(DaemonError::Metrics)?;
        let pseudonyms = Pseudonyms::open(config, &policy, Missing::Make)?.map(Arc::new);
        if pseudonyms.is_some() {
            info!(key = %key_file(config).display(), "home addresses that no approval names are hidden: pseudonyms stand for them");
        }
        Ok(Self { policy, sources, interfaces, interrupts, folder, state, control_socket, metrics, opener, pseudonyms })
    }
}

/// Makes a folder that its owner alone writes to, whatever the umask.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

/// What answers others, until it is shut down.
fn start_servers(
    config: &Config,
    control_socket: Result<Socket, SocketError>,
    metrics: Option<Listener>,
    (board, asker): (&Arc<Board>, &mpsc::Sender<Ask>),
) -> JoinSet<()> {
    let mut servers = JoinSet::new();
    match control_socket {
        Ok(socket) => {
            info!(socket = %socket.path.display(), "`linewarden ctl` is answered");
            servers.spawn(control::serve(socket, Arc::clone(board), asker.clone()));
        }
        Err(error) => warn!(%error, "`linewarden ctl` is not answered: control.socket names a place for its socket"),
    }
    if let (Some(metrics), Some(listen)) = (metrics, &config.metrics.listen) {
        info!(?listen, "metrics are served");
        servers.spawn(metrics.serve(Arc::clone(board)));
    }
    servers
}

fn start_workers(
    config: &Config,
    (sensor, names, policy): (&Arc<str>, &[Arc<str>], &Arc<Policy>),
    sources: Vec<Box<dyn Source>>,
    outbox: &Outbox,
    ended: &mpsc::UnboundedSender<Option<DaemonError>>,
) -> Result<Vec<Worker>, DaemonError> {
    let seed = RandomState::new().build_hasher().finish();
    let settings = Arc::new(config.audit_settings(Arc::clone(sensor), names.to_vec(), sources.len(), seed));
    let cores = cores(config);
    let start = |(id, source)| {
        let auditor = Auditor::new(Arc::clone(&settings), Arc::clone(policy));
        let core = cores.get(id % cores.len().max(1)).copied();
        let ended = ended.clone();
        let tell = move || {
            let _ = ended.send(None);
        };
        Worker::spawn(id, core, source, auditor, outbox.clone(), tell)
            .map_err(|source| DaemonError::System { what: "start a worker thread", source })
    };
    sources.into_iter().enumerate().map(start).collect()
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

/// Approvals, checked.
struct Loaded {
    policy: Arc<Policy>,
    /// What is valid but probably not meant.
    warnings: Vec<String>,
}

/// Files that other users could have written are as wrong as any other.
fn load_policy(config: &Config, origin: &Origin) -> Result<Loaded, ConfigError> {
    config.check_owners(origin.file.as_deref())?;
    let (approvals, folder) = config.load_approvals()?;
    let dated = approvals.warnings_at(clock(), config.policy.warn_before);
    let mut warnings: Vec<_> = approvals.warnings.iter().chain(&dated).map(ToString::to_string).collect();
    for warning in &warnings {
        warn!("{warning}");
    }
    let policy = Arc::new(config.policy(config.sensor_name(), approvals));
    if policy.approvals().is_empty() {
        let warning = no_approvals(folder.as_deref());
        warn!("{warning}");
        warnings.push(warning);
    } else {
        info!(
            approvals = policy.approvals().len(),
            prefixes = policy.prefixes(),
            revision = %policy.revision(),
            folder = %folder.unwrap_or_default().display(),
            "approvals in force"
        );
    }
    Ok(Loaded { policy, warnings })
}

/// A log whose task is busy with it already needs no second word.
fn reopen(logs: &[&mpsc::Sender<Control>]) {
    for log in logs {
        let _ = log.try_send(Control::Reopen);
    }
}

/// Has every log begin a new file.
async fn rotate(logs: [mpsc::Sender<Control>; 2], path: PathBuf) -> Result<RotateAnswer, ErrorAnswer> {
    let failed = |message: String| ErrorAnswer { code: 1, message };
    for log in logs {
        let (done, answer) = oneshot::channel();
        log.send(Control::Rotate(done)).await.map_err(|_| failed("the daemon ends".to_owned()))?;
        let rotated = answer.await.map_err(|_| failed("the daemon ends".to_owned()))?;
        rotated.map_err(|error| failed(format!("{}: {error}", path.display())))?;
    }
    Ok(RotateAnswer { log: path.display().to_string() })
}

/// The workers' cores, in order.
fn cores(config: &Config) -> Vec<usize> {
    if config.capture.cores.is_empty() { allowed_cores() } else { config.capture.cores.clone() }
}

/// A source per worker, the interfaces' names, and who opens those that are made anew.
fn open_sources(config: &Config) -> Result<(Vec<Box<dyn Source>>, Vec<String>, Option<Arc<Opener>>), DaemonError> {
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
    let mut settings = LiveSettings {
        interfaces: interfaces.clone(),
        workers: u16::try_from(workers).unwrap_or(u16::MAX),
        snap_length: capture.snap_length,
        promiscuous: capture.promiscuous,
        ring_octets: capture.ring_octets,
        block_octets: capture.block_octets,
        block_timeout: capture.block_timeout,
        filter: capture.filter.clone(),
        fast_path: fast_path(config),
        opener: None,
    };
    let mut opener = None;
    if config.sandbox.enabled && capture.backend == Backend::Ring {
        let what = "start the process that opens rings (sandbox.enabled = false needs none)";
        let started = Opener::start(&settings).map_err(|source| DaemonError::System { what, source })?;
        settings.opener = Some(Opener::rings(&started));
        opener = Some(started);
    }
    let sources = match capture.backend {
        Backend::Ring => open_rings(&settings)?,
        Backend::Xdp => {
            let (mode, takes_frames) = (capture.xdp_mode, capture.xdp_takes_frames);
            open_xdp(&settings, XdpSettings { mode, takes_frames, symmetric_rss: capture.xdp_symmetric_rss })?
        }
        Backend::Pnet => vec![open_pnet(&settings)?],
    };
    Ok((sources, interfaces, opener))
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
