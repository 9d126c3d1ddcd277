//! What an intruder gets to do who has taken over a thread of the running daemon, started by root: each thread is made to try.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use libc::{EACCES, ENOSYS, EPERM};

use super::children;
use super::intruder::{Arg, Intruder, Outcome};
use crate::common::command::{LINEWARDEN, approval, assert_adds_up, folder};
use crate::common::netns::{Daemon, Namespace, until};
use crate::common::pcap::frames;

/// What is tried.
struct Try {
    name: &'static str,
    call: i64,
    arguments: Vec<Arg>,
    /// The error that it is to get.
    refused: i32,
    /// Whether the same succeeds, and does no harm, where there is no sandbox: else it is known that it is well-formed otherwise.
    free: bool,
}

/// Of a Unix socket.
fn unix(path: &Path) -> Vec<u8> {
    [&1_u16.to_ne_bytes()[..], path.to_str().unwrap().as_bytes(), b"\0"].concat()
}

const READ: i32 = libc::O_RDONLY;
const MAKE: i32 = libc::O_WRONLY | libc::O_CREAT;
const HERE: i32 = libc::AT_FDCWD;

#[expect(clippy::too_many_lines, reason = "a table")]
fn tries(folder: &Path, elsewhere: &Path) -> Vec<Try> {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let other = |name: &str| elsewhere.join(name).to_str().unwrap().to_owned();
    let own = |name: &str| format!("/proc/{}/{name}", std::process::id());
    let mut all = Vec::new();
    let mut on = |name, call, arguments: Vec<Arg>, refused, free| {
        all.push(Try { name, call, arguments, refused, free });
    };
    let open = |file: &str, how: i32| vec![HERE.into(), file.into(), how.into(), 0o600.into()];
    for (name, file, how) in [
        ("read passwords", "/etc/shadow".to_owned(), READ),
        ("read users", "/etc/passwd".to_owned(), READ),
        ("read passwords by another name", "/proc/self/root/etc/shadow".to_owned(), READ),
        ("list a home", "/root".to_owned(), READ | libc::O_DIRECTORY),
        ("read what another process was started with", own("environ"), READ),
        ("read another process's files", own("root/etc/passwd"), READ),
        ("read a file elsewhere", other("file"), READ),
    ] {
        on(name, libc::SYS_openat, open(&file, how), EACCES, true);
    }
    for (name, file, how) in [
        ("write its own memory's file", "/proc/self/mem".to_owned(), libc::O_RDWR),
        ("set what runs when a program crashes", "/proc/sys/kernel/core_pattern".to_owned(), libc::O_WRONLY),
        ("have the kernel drop what it keeps", "/proc/sys/vm/drop_caches".to_owned(), libc::O_WRONLY),
        ("make a file elsewhere", other("made"), MAKE),
        ("make a file in /tmp", "/tmp/linewarden-intruder".to_owned(), MAKE),
        ("make a program", "/usr/local/bin/linewarden-intruder".to_owned(), MAKE),
        ("change an approval", path("etc/approvals.d/a.toml"), libc::O_WRONLY),
        ("make an approval", path("etc/approvals.d/made.toml"), MAKE),
        ("change the settings", path("etc/settings.toml"), libc::O_WRONLY),
        ("make a file beside the settings", path("etc/made"), MAKE),
        ("make a file beside a socket", path("run/made"), MAKE),
    ] {
        on(name, libc::SYS_openat, open(&file, how), EACCES, false);
    }
    let at = |file: &str| vec![HERE.into(), file.into()];
    on("remove an approval", libc::SYS_unlinkat, at(&path("etc/approvals.d/a.toml")), EACCES, false);
    let (from, to) = (path("log/linewarden.ndjson"), path("etc/approvals.d/moved.toml"));
    let rename = vec![HERE.into(), (&*from).into(), HERE.into(), (&*to).into(), 0.into()];
    on("move a file among the approvals", libc::SYS_renameat2, rename, EACCES, false);
    on("make a folder elsewhere", libc::SYS_mkdirat, [at(&other("made")), vec![0o700.into()]].concat(), EACCES, false);

    let mode = |mode: i32| [at(&other("file")), vec![mode.into()]].concat();
    on("open a file to all by its name", libc::SYS_fchmodat, mode(0o666), EPERM, true);
    on("make a program run as its owner", libc::SYS_chmod, vec![(&*other("file")).into(), 0o4755.into()], EPERM, true);
    on("make an open file run as its owner", libc::SYS_fchmod, vec![0.into(), 0o4755.into()], EPERM, false);
    on("open an open file to all", libc::SYS_fchmod, vec![0.into(), 0o666.into()], EPERM, false);
    let owner = vec![(&*other("file")).into(), 0.into(), 0.into()];
    on("give a file away", libc::SYS_chown, owner, EPERM, true);
    on("set a file's times", libc::SYS_utimensat, [at(&other("file")), vec![0.into(), 0.into()]].concat(), EPERM, true);
    on("link a file", libc::SYS_symlinkat, vec!["/etc".into(), HERE.into(), (&*other("link")).into()], EPERM, false);
    on(
        "make a device",
        libc::SYS_mknodat,
        [at(&other("node")), vec![0o20600.into(), 259.into()]].concat(),
        EPERM,
        false,
    );
    on("go elsewhere", libc::SYS_chdir, vec!["/".into()], EPERM, false);

    let socket = |family: i32, kind: i32| vec![family.into(), kind.into(), 0.into()];
    for (name, family, kind) in [
        ("a TCP socket", libc::AF_INET, libc::SOCK_STREAM),
        ("a UDP socket", libc::AF_INET, libc::SOCK_DGRAM),
        ("a TCP socket of IPv6", libc::AF_INET6, libc::SOCK_STREAM),
        ("a packet socket", libc::AF_PACKET, libc::SOCK_RAW),
        ("a netlink socket", libc::AF_NETLINK, libc::SOCK_RAW),
        ("a Unix stream, to a service of root's", libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC),
        ("Unix packets in sequence", libc::AF_UNIX, libc::SOCK_SEQPACKET),
    ] {
        on(name, libc::SYS_socket, socket(family, kind), EPERM, true);
    }
    for (name, family) in [("the kernel's ciphers", libc::AF_ALG), ("a virtual machine's host", libc::AF_VSOCK)] {
        on(name, libc::SYS_socket, socket(family, libc::SOCK_STREAM), EPERM, false);
    }
    let listen: Arg = vec![2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0].into();
    on("bind a port", libc::SYS_bind, vec![0.into(), listen.clone(), 16.into()], EPERM, false);
    on("listen", libc::SYS_listen, vec![0.into(), 1.into()], EPERM, false);
    on("connect", libc::SYS_connect, vec![0.into(), listen.clone(), 16.into()], EPERM, false);
    let fast = vec![0.into(), "x".into(), 1.into(), libc::MSG_FASTOPEN.into(), listen, 16.into()];
    on("connect by sending", libc::SYS_sendto, fast, EPERM, false);
    let fast = vec![0.into(), vec![0; 56].into(), libc::MSG_FASTOPEN.into()];
    on("connect by sending a message", libc::SYS_sendmsg, fast, EPERM, false);

    // Signal 0 is none, and asks whether one might be sent.
    let own = i64::from(std::process::id());
    on("signal a process", libc::SYS_kill, vec![own.into(), 0.into()], EPERM, true);
    on("signal a thread", libc::SYS_tgkill, vec![own.into(), own.into(), 0.into()], EPERM, true);
    on("hold a process", libc::SYS_pidfd_open, vec![own.into(), 0.into()], EPERM, true);
    on("limit a process", libc::SYS_prlimit64, vec![own.into(), 0.into(), 0.into(), 0.into()], EPERM, true);
    on("slow a process down", libc::SYS_setpriority, vec![0.into(), own.into(), 0.into()], EPERM, true);
    on("slow a user down", libc::SYS_setpriority, vec![2.into(), 0.into(), 0.into()], EPERM, false);
    let core = vec![own.into(), 8.into(), vec![0xff; 8].into()];
    on("move a process", libc::SYS_sched_setaffinity, core, EPERM, true);
    on("have a process signalled", libc::SYS_fcntl, vec![0.into(), libc::F_SETOWN.into(), own.into()], EPERM, true);
    on("start a process", libc::SYS_clone, vec![libc::SIGCHLD.into()], EPERM, false);
    on("start a process as of old", libc::SYS_fork, Vec::new(), EPERM, false);
    on("start one where no filter looks", libc::SYS_clone3, vec![vec![0; 88].into(), 88.into()], ENOSYS, false);
    let namespace = libc::CLONE_NEWUSER | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM;
    on("a thread in a namespace", libc::SYS_clone, vec![namespace.into()], EPERM, false);

    on("become a user", libc::SYS_setuid, vec![0.into()], EPERM, true);
    on("take groups", libc::SYS_setgroups, vec![0.into(), 0.into()], EPERM, false);
    on("take capabilities", libc::SYS_capset, vec![vec![0; 8].into(), vec![0xff; 24].into()], EPERM, false);
    on("run old programs' way", libc::SYS_personality, vec![0x040_0000.into()], EPERM, false);
    on("filters of its own", libc::SYS_seccomp, vec![0.into(), 0.into(), 0.into()], EPERM, false);
    on("be debugged", libc::SYS_prctl, vec![libc::PR_SET_DUMPABLE.into(), 1.into()], EPERM, true);
    on("type into the terminal", libc::SYS_ioctl, vec![0.into(), 0x5412.into(), "x".into()], EPERM, false);
    on("set an interface down", libc::SYS_ioctl, vec![0.into(), 0x8914.into(), vec![0; 40].into()], EPERM, false);
    on("set the clock", libc::SYS_clock_settime, vec![0.into(), vec![0; 16].into()], EPERM, false);
    on("name the host", libc::SYS_sethostname, vec!["x".into(), 0.into()], EPERM, false);
    on("read the kernel's log", libc::SYS_syslog, vec![10.into(), 0.into(), 0.into()], EPERM, false);
    let map = |protection: i32| {
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        vec![0.into(), 4096.into(), protection.into(), how.into(), (-1).into(), 0.into()]
    };
    let executable = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    on("bring code", libc::SYS_mmap, map(executable), EPERM, true);
    on("make data code", libc::SYS_mprotect, vec![0.into(), 4096.into(), libc::PROT_EXEC.into()], EPERM, false);
    on("a file of memory", libc::SYS_memfd_create, vec!["x".into(), 0.into()], EPERM, true);
    // `__X32_SYSCALL_BIT`: the numbers of another way to call the same.
    on("call by another door", 0x4000_0208, Vec::new(), EPERM, false);
    all
}

/// Made by no version of the daemon: they end it. Arguments are such that nothing happens should they be made.
const KILLED: [(&str, i64); 24] = [
    ("run a program", libc::SYS_execve),
    ("run an open program", libc::SYS_execveat),
    ("trace", libc::SYS_ptrace),
    ("mount", libc::SYS_mount),
    ("take a mount away", libc::SYS_umount2),
    ("change the root", libc::SYS_chroot),
    ("turn the root over", libc::SYS_pivot_root),
    ("namespaces", libc::SYS_unshare),
    ("another's namespace", libc::SYS_setns),
    ("programs in the kernel", libc::SYS_bpf),
    ("faults", libc::SYS_userfaultfd),
    ("rings of calls", libc::SYS_io_uring_setup),
    ("a kernel module", libc::SYS_init_module),
    ("an open kernel module", libc::SYS_finit_module),
    ("take a module away", libc::SYS_delete_module),
    ("keys", libc::SYS_keyctl),
    ("a new key", libc::SYS_add_key),
    ("ask for a key", libc::SYS_request_key),
    ("counters", libc::SYS_perf_event_open),
    ("read another's memory", libc::SYS_process_vm_readv),
    ("write another's memory", libc::SYS_process_vm_writev),
    ("files without paths", libc::SYS_open_by_handle_at),
    ("another kernel", libc::SYS_kexec_load),
    ("restart", libc::SYS_reboot),
];

const SETTINGS: &str = "[capture]\ninterfaces = [\"wan0\"]\nworkers = 2\n[control]\nsocket = \"run/c.sock\"\n[metrics]\nlisten = \"127.0.0.1:9470\"\n";

/// The daemon's folder, with approvals and settings.
fn installed() -> tempfile::TempDir {
    let peer = approval("vpn", "partner", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]");
    let off = format!("{SETTINGS}[sandbox]\nenabled = false\n");
    folder(&[("etc/approvals.d/a.toml", &peer), ("etc/settings.toml", SETTINGS), ("etc/off.toml", &off), ("log/x", "")])
}

fn start(namespace: &Namespace, folder: &Path, settings: &str) -> Daemon {
    let mut command = namespace.command(LINEWARDEN);
    command.args(["run", "--config", settings, "--approvals", "etc/approvals.d", "--records", "log"]);
    command.current_dir(folder);
    let mut daemon = Daemon::start(command, folder.join("log"));
    daemon.says("capturing");
    daemon
}

/// Number and name of each thread.
fn threads(process: u32) -> Vec<(u32, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap().trim().to_owned();
        (task.file_name().to_str().unwrap().parse().unwrap(), name)
    };
    tasks.map(|task| of(task.unwrap())).collect()
}

#[test]
fn who_takes_a_thread_over_gets_nowhere_and_the_daemon_goes_on() {
    let namespace = Namespace::new("tries");
    let (folder, elsewhere) = (installed(), folder(&[("file", "")]));
    let tries = tries(folder.path(), elsewhere.path());
    let mut daemon = start(&namespace, folder.path(), "etc/settings.toml");
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    let process = daemon.process();
    let threads = threads(process);
    for name in ["linewarden", "control", "worker-0", "worker-1"] {
        assert!(threads.iter().any(|(_, thread)| thread == name), "{name}: {threads:?}");
    }
    for (thread, name) in &threads {
        let mut intruder = Intruder::seize(process, *thread);
        for one in &tries {
            let outcome = intruder.call(one.call, &one.arguments);
            assert_eq!(outcome, Outcome::Refused(one.refused), "{name}: {}", one.name);
        }
        // What it needs it has.
        let mut done = |call, arguments: &[Arg]| match intruder.call(call, arguments) {
            Outcome::Done(result) => result,
            outcome => panic!("{name}: call {call} {arguments:?}: {outcome:?}"),
        };
        let path = |file: &str| Arg::from(folder.path().join(file).to_str().unwrap());
        let made = format!("log/of-{thread}");
        for (file, how) in
            [(path("etc/approvals.d/a.toml"), READ), ("/proc/self/status".into(), READ), (path(&made), MAKE)]
        {
            let file = done(libc::SYS_openat, &[HERE.into(), file, how.into(), 0o600.into()]);
            done(libc::SYS_close, &[file.into()]);
        }
        done(libc::SYS_unlinkat, &[HERE.into(), path(&made), 0.into()]);
        let socket = done(libc::SYS_socket, &[libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0.into()]);
        done(libc::SYS_close, &[socket.into()]);
    }
    println!("{} tries in each of {} threads: all refused", tries.len(), threads.len());

    namespace.sender("far0").send(&frames("wireguard-port-51820"));
    daemon.record("the tunnel", |record| record["confidence"] == "certain");
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    assert_adds_up(&daemon.summary(), &daemon.records());
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(elsewhere.path().join("file")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(folder.path().join("etc/approvals.d")).unwrap().count(), 1);
}

/// Else the test above would show nothing.
#[test]
fn without_the_sandbox_the_same_tries_succeed() {
    let namespace = Namespace::new("free");
    let (folder, elsewhere) = (installed(), folder(&[("file", "")]));
    let mut daemon = start(&namespace, folder.path(), "etc/off.toml");
    let process = daemon.process();
    let mut intruder = Intruder::seize(process, process);
    let mut free = 0;
    for one in tries(folder.path(), elsewhere.path()).iter().filter(|one| one.free) {
        let outcome = intruder.call(one.call, &one.arguments);
        assert!(matches!(outcome, Outcome::Done(_)), "{}: {outcome:?}", one.name);
        free += 1;
    }
    assert!(free >= 25, "{free}");
    drop(intruder);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
}

#[test]
fn calls_of_intruders_end_the_process() {
    let namespace = Namespace::new("killed");
    let folder = installed();
    for (name, call) in KILLED {
        let mut daemon = start(&namespace, folder.path(), "etc/settings.toml");
        let process = daemon.process();
        // It takes its name when it has begun.
        let worker = || threads(process).into_iter().find(|(_, name)| name == "worker-0");
        let (worker, _) = until("a worker", worker);
        let mut intruder = Intruder::seize(process, worker);
        assert_eq!(intruder.call(call, &[]), Outcome::Killed(libc::SIGSYS), "{name}");
        until("the whole process ends", || daemon.is_gone().then_some(()));
    }
}

/// It keeps `CAP_NET_RAW`, to open packet sockets, and can do nothing else.
#[test]
fn the_process_that_opens_rings_opens_those_and_no_file() {
    let namespace = Namespace::new("rings");
    let (folder, elsewhere) = (installed(), folder(&[("file", "")]));
    let mut daemon = start(&namespace, folder.path(), "etc/settings.toml");
    let opener = children(daemon.process())[0];
    let mut intruder = Intruder::seize(opener, opener);
    // What it makes itself it may bind; and it has no call at all that opens, makes, moves or removes a file.
    let may = ["a packet socket", "bind a port"];
    let all = tries(folder.path(), elsewhere.path());
    for one in all.iter().filter(|one| !may.contains(&one.name)) {
        let refused = if one.refused == EACCES { EPERM } else { one.refused };
        assert_eq!(intruder.call(one.call, &one.arguments), Outcome::Refused(refused), "{}", one.name);
    }
    let packet = intruder.call(libc::SYS_socket, &[libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0.into()]);
    assert!(matches!(packet, Outcome::Done(_)), "{packet:?}");
    println!("{} tries in the process that opens rings: all refused", all.len() - may.len());
    assert_eq!(intruder.call(libc::SYS_execve, &["/bin/sh".into()]), Outcome::Killed(libc::SIGSYS));
    drop(intruder);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
}

/// A metrics port is the one socket of a network that the daemon holds: nobody is reached by it.
#[test]
fn the_metrics_port_is_on_loopback_and_connects_nowhere() {
    let namespace = Namespace::new("port");
    let folder = installed();
    let mut daemon = start(&namespace, folder.path(), "etc/settings.toml");
    let process = daemon.process();
    // `/proc/net/tcp` of `proc_pid_net(5)`: local address, state 0A (it listens), inode.
    let table = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{process}/net/{name}")).unwrap()).concat();
    let listening: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let listening: Vec<_> = listening.iter().filter(|fields| fields.get(3) == Some(&"0A")).collect();
    assert_eq!(listening.len(), 1, "{table}");
    assert_eq!(listening[0][1], "0100007F:24FE", "127.0.0.1:9470 and no other address");
    let link = format!("socket:[{}]", listening[0][9]);
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().map(Result::unwrap);
    let port =
        descriptors.into_iter().find(|one| fs::read_link(one.path()).is_ok_and(|to| to.to_str() == Some(&*link)));
    let port: i64 = port.unwrap().file_name().to_str().unwrap().parse().unwrap();

    let mut intruder = Intruder::seize(process, process);
    // A socket that listens becomes one that may connect.
    assert_eq!(intruder.call(libc::SYS_shutdown, &[port.into(), libc::SHUT_RDWR.into()]), Outcome::Done(0));
    let to: Arg = vec![2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0].into();
    let connect = [port.into(), to.clone(), 16.into()];
    assert_eq!(intruder.call(libc::SYS_connect, &connect), Outcome::Refused(EPERM));
    let send = [port.into(), "x".into(), 1.into(), libc::MSG_FASTOPEN.into(), to, 16.into()];
    assert_eq!(intruder.call(libc::SYS_sendto, &send), Outcome::Refused(EPERM));
    // Nor is a service that takes datagrams spoken to under a connection.
    let service = folder.path().join("service.sock");
    let _service = UnixDatagram::bind(&service).unwrap();
    let Outcome::Done(socket) = intruder.call(libc::SYS_socket, &[1.into(), 2.into(), 0.into()]) else { panic!() };
    let address = unix(&service);
    let connect = [socket.into(), address.clone().into(), (address.len() as i64).into()];
    assert_eq!(intruder.call(libc::SYS_connect, &connect), Outcome::Refused(EPERM));
    drop(intruder);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
}

/// What the README says an intruder can still do: the kernel takes frames on any packet socket that is open.
#[test]
fn an_open_ring_still_sends() {
    let namespace = Namespace::new("sends");
    let folder = installed();
    let mut daemon = start(&namespace, folder.path(), "etc/settings.toml");
    let process = daemon.process();
    let descriptors: Vec<i64> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .map(|one| one.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    // `sockaddr_ll` of `packet(7)`.
    let link = namespace.command("cat").arg("/sys/class/net/wan0/ifindex").output().unwrap();
    let number: i32 = String::from_utf8(link.stdout).unwrap().trim().parse().unwrap();
    let address = [&17_u16.to_ne_bytes()[..], &[0x88, 0xb5], &number.to_ne_bytes(), &[0, 0, 0, 6], &[0xff; 8]].concat();
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[0; 46]].concat();
    let mut intruder = Intruder::seize(process, process);
    let sent = descriptors.iter().filter(|&&descriptor| {
        let send = [descriptor.into(), frame.clone().into(), 60.into(), 0.into(), address.clone().into(), 20.into()];
        intruder.call(libc::SYS_sendto, &send) == Outcome::Done(60)
    });
    assert!(sent.count() >= 1);
    drop(intruder);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
}
