//! Turns the process, once everything is open, into one that may do little else: no capability, the files it needs, the system
//! calls it makes. What it parses comes from strangers.
//!
//! | by | what is left |
//! |---|---|
//! | capabilities (`capabilities(7)`) | none; what a backend cannot reopen an interface without, and the log says which |
//! | Landlock (`landlock(7)`) | reading settings, approvals, `/proc` and `/sys`; writing the log's and the state's folder; taking away sockets; no program, no TCP port, no signal to others |
//! | seccomp (`seccomp(2)`) | what [`filters`](super::system_calls) lists |
//!
//! All three belong to threads and pass on to threads that these start. So this is done by the first thread while it is alone,
//! before there is a runtime or a worker, and what the kernel says of every thread is read back: a thread that was started before
//! it would be one without it.
//!
//! Landlock and seccomp may be missing in a kernel: that is said and the daemon runs. Capabilities never are.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};
use tracing::{info, warn};

use super::system_calls::{self, Allowed};
use crate::config::{Backend, Config, Listen, RUN_FOLDER, STATE_FOLDER};

/// What is needed after the start.
#[derive(Debug)]
pub(super) struct Needs {
    /// Files and folders that are read.
    pub read: Vec<PathBuf>,
    /// Folders that are written to.
    pub write: Vec<PathBuf>,
    /// Folders of sockets, which are taken away at the end.
    pub sockets: Vec<PathBuf>,
    /// What reopens an interface that is made anew.
    pub backend: Backend,
}

/// Read for interfaces' state, counters and the process's own: parts of them cannot be named for good, as the kernel makes them
/// anew.
const SYSTEM: [&str; 4] = ["/proc", "/sys/class/net", "/sys/devices", "/sys/fs/cgroup"];
/// Where the settings lie in an installation.
const SETTINGS: &str = "/etc/linewarden";
/// The rights that this asks for; a kernel with fewer gives those that it has.
const LANDLOCK: ABI = ABI::V6;

impl Needs {
    /// What the settings ask for, with these folders of the log and its state.
    pub(super) fn of(config: &Config, folders: [&PathBuf; 2]) -> Self {
        let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        read.push(SETTINGS.into());
        read.extend(config.sandbox.read.iter().cloned());
        if let Some(folder) = config.approvals_folder() {
            // A link is followed: what it leads to is read from where that lies.
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let targets = entries.filter_map(|entry| std::fs::canonicalize(entry.path()).ok());
            let folders: HashSet<_> = targets.filter_map(|target| target.parent().map(Path::to_owned)).collect();
            read.extend(folders);
            read.push(folder);
        }
        let write = folders.map(PathBuf::clone).into();
        let mut sockets: Vec<PathBuf> = [STATE_FOLDER, RUN_FOLDER].map(PathBuf::from).into();
        let metrics = match &config.metrics.listen {
            Some(Listen::Unix(path)) => Some(path),
            _ => None,
        };
        for socket in config.control.socket.iter().chain(metrics) {
            sockets.extend(socket.parent().map(Path::to_owned));
        }
        for folder in sockets.iter_mut().filter(|folder| folder.as_os_str().is_empty()) {
            *folder = ".".into();
        }
        Self { read, write, sockets, backend: config.capture.backend }
    }
}

/// Lets go of everything else. Returns once every thread of the process is without it.
pub(super) fn enter(needs: &Needs) -> io::Result<()> {
    is_alone()?;
    let kept = kept(needs);
    let files = restrict_files(&needs.read, &needs.write, &needs.sockets);
    drop_all_but(&kept)?;
    let allowed = match needs.backend {
        Backend::Ring => Allowed::Ring,
        Backend::Pnet => Allowed::Pnet,
        Backend::Xdp => Allowed::Xdp,
    };
    let calls = system_calls::restrict(allowed);
    verify(&kept, calls.is_ok())?;
    say(&kept, files, calls);
    Ok(())
}

/// The same for the process that opens rings: one capability, no file at all.
pub(super) fn enter_opener() -> io::Result<()> {
    is_alone()?;
    let kept = held(&[Capability::CAP_NET_RAW]);
    // The daemon has said already what this kernel lacks.
    let _ = restrict_files(&[], &[], &[]);
    drop_all_but(&kept)?;
    let calls = system_calls::restrict(Allowed::Opener);
    verify(&kept, calls.is_ok())
}

fn say(kept: &HashSet<Capability>, files: Result<RulesetStatus, RulesetError>, calls: Result<(), String>) {
    let mut names: Vec<_> = kept.iter().map(|capability| capability.to_string().to_lowercase()).collect();
    names.sort();
    let capabilities = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let files = match files {
        Ok(RulesetStatus::FullyEnforced) => "restricted",
        Ok(RulesetStatus::PartiallyEnforced) => "restricted as far as this kernel's Landlock can",
        Ok(RulesetStatus::NotEnforced) => {
            warn!(
                "files are not restricted: this kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, and `landlock` in lsm=)"
            );
            "not restricted"
        }
        Err(error) => {
            warn!(%error, "files are not restricted: Landlock refuses");
            "not restricted"
        }
    };
    let system_calls = match calls {
        Ok(()) => "restricted",
        Err(error) => {
            warn!(error, "system calls are not restricted: seccomp refuses (it takes CONFIG_SECCOMP_FILTER)");
            "not restricted"
        }
    };
    info!(capabilities, files, system_calls, "sandbox in force");
}

/// Of these capabilities, the ones that this process has.
fn held(wanted: &[Capability]) -> HashSet<Capability> {
    wanted.iter().copied().filter(|&one| caps::has_cap(None, CapSet::Permitted, one).unwrap_or(false)).collect()
}

/// What the backend and the folders need later.
fn kept(needs: &Needs) -> HashSet<Capability> {
    let mut wanted = match needs.backend {
        // The process that opens rings has it.
        Backend::Ring => Vec::new(),
        Backend::Pnet => vec![Capability::CAP_NET_RAW],
        // Queues come later, too, each with a socket, its memory and a place in the program's map.
        Backend::Xdp => {
            vec![Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_IPC_LOCK]
        }
    };
    if let Some(folder) =
        needs.write.iter().chain(&needs.sockets).chain(&needs.read).find(|folder| is_of_somebody_else(folder))
    {
        wanted.push(Capability::CAP_DAC_OVERRIDE);
        let folder = folder.display();
        info!(%folder, "started as root, and another user owns that: CAP_DAC_OVERRIDE is kept to go on there");
    }
    held(&wanted)
}

/// Root without capabilities is a user like any other. Only root is asked: another user has no such capability.
fn is_of_somebody_else(path: &Path) -> bool {
    let own = std::fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid());
    let is_foreign = |path: &Path| std::fs::metadata(path).is_ok_and(|metadata| metadata.uid() != own);
    let is_system = SYSTEM.iter().any(|system| path == Path::new(system));
    own == 0 && !is_system && is_foreign(path)
}

fn drop_all_but(kept: &HashSet<Capability>) -> io::Result<()> {
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    // Of no use to a process that starts no other; and root would need CAP_SETPCAP for the bounding set.
    for capability in caps::all() {
        let _ = caps::drop(None, CapSet::Bounding, capability);
    }
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, kept).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

fn restrict_files(read: &[PathBuf], write: &[PathBuf], sockets: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    // The service manager may listen on an abstract socket, which is no file.
    let is_told_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| path.as_bytes().starts_with(b"@"));
    let scopes = if is_told_there { Scope::Signal.into() } else { Scope::from_all(LANDLOCK) };
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let devices = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let writing: BitFlags<AccessFs> = AccessFs::from_all(LANDLOCK) & !devices;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(scopes)?
        .create()?
        .add_rules(path_beneath_rules(read, reading))?
        .add_rules(path_beneath_rules(write, writing))?
        .add_rules(path_beneath_rules(sockets, AccessFs::RemoveFile))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Landlock holds for the thread that asks for it and those that it starts, and no kernel says afterwards for which it does.
fn is_alone() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!("{threads} threads run already, and one alone can enter"))),
    }
}

/// What the kernel says of each thread (`proc_pid_status(5)`).
fn verify(kept: &HashSet<Capability>, calls_restricted: bool) -> io::Result<()> {
    let expected: u64 = kept.iter().map(Capability::bitmask).fold(0, |all, one| all | one);
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        // One that has ended meanwhile does nothing any more.
        let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let has_only = |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()) == Some(expected);
        let is_inside = has_only("CapEff:")
            && has_only("CapPrm:")
            && (!calls_restricted || field("Seccomp:") == Some("2") && field("NoNewPrivs:") == Some("1"));
        if !is_inside {
            let name = field("Name:").unwrap_or_default();
            return Err(io::Error::other(format!("thread `{name}` is outside: it was started too early")));
        }
    }
    Ok(())
}
