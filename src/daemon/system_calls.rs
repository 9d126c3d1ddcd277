//! Turns what the daemon does into the system calls that it may make (`seccomp(2)`).
//!
//! Three filters (a list, intruders' calls, `clone3`), of which the kernel takes the strictest answer:
//!
//! | call | answer | why |
//! |---|---|---|
//! | listed | made | the daemon, its libraries and the runtime make it |
//! | not listed | `EPERM` | a library that is updated may begin to make another one: that must cost one feature and an error in the log, and not the evidence of a sensor that nobody looks at |
//! | of an intruder | the process is killed | it is made by nothing in here at any version: running programs, tracing, namespaces, mounts, kernel modules, other processes' memory. The kernel's audit log names it, and the service manager starts the daemon again |
//! | `clone3` | `ENOSYS` | its flags lie in memory, where no filter sees a new namespace; the C library takes `clone` then, whose flags are looked at |
//!
//! No thread can open a socket to any network, connect one or start a process: what listens was opened before. Landlock knows
//! paths and knows neither modes nor Unix sockets, and a daemon without capabilities that root has started still owns root's
//! files and talks to root's services in root's name; so no call changes a file's mode by its name or sets the bits of `setuid`,
//! and of Unix sockets only those for datagrams can be made, which the service manager and the journal take: those of
//! containers, of the message bus and of `systemctl` are streams.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

/// Who is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// The daemon on rings: it opens no packet socket.
    Ring,
    /// The daemon on pnet's channel, which opens packet sockets.
    Pnet,
    /// The daemon on `AF_XDP`, which opens those and BPF maps.
    Xdp,
    /// The process that opens rings.
    Opener,
}

/// From here on, for every thread. The error says what the kernel or the compiler of filters said.
pub(super) fn restrict(allowed: Allowed) -> Result<(), String> {
    // The list comes last: it does not hold the call that sets filters.
    let programs = [without_clone3(), intruder(allowed), list(allowed)].into_iter().collect::<Result<Vec<_>, _>>()?;
    programs.iter().try_for_each(|program| apply_filter_all_threads(program).map_err(|error| error.to_string()))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn list(allowed: Allowed) -> Result<BpfProgram, String> {
    let mut rules = Rules::new();
    let mut always = |calls: &[i64]| calls.iter().for_each(|&call| drop(rules.insert(call, Vec::new())));
    always(MEMORY_AND_THREADS);
    always(WAITING);
    always(DESCRIPTORS);
    always(SOCKETS);
    // The stricter answer is another filter's; of two errors the kernel would take this one's.
    always(&[libc::SYS_clone3]);
    if allowed != Allowed::Opener {
        always(FILES);
        #[cfg(target_arch = "x86_64")]
        always(OLD_FILES);
    }
    #[cfg(target_arch = "x86_64")]
    always(OLD);
    if allowed != Allowed::Ring {
        always(&[libc::SYS_bind]);
    }
    if allowed == Allowed::Xdp {
        always(&[libc::SYS_bpf]);
    }
    let mut when = |call, conditions: Vec<Result<SeccompRule, String>>| {
        rules.insert(call, conditions.into_iter().collect::<Result<Vec<_>, _>>()?);
        Ok::<_, String>(())
    };
    let families: &[libc::c_int] = match allowed {
        Allowed::Ring => &[],
        Allowed::Pnet | Allowed::Opener => &[libc::AF_PACKET],
        Allowed::Xdp => &[libc::AF_PACKET, libc::AF_XDP],
    };
    let mut sockets: Vec<_> = families.iter().map(|family| is(0, family.unsigned_abs().into())).collect();
    if matches!(allowed, Allowed::Pnet | Allowed::Xdp) {
        // They ask for interfaces and their addresses.
        let route = libc::NETLINK_ROUTE.unsigned_abs().into();
        sockets.push(all(&[(0, Op::Eq, libc::AF_NETLINK.unsigned_abs().into()), (2, Op::Eq, route)]));
    }
    let datagrams = Op::MaskedEq(SOCKET_TYPE);
    sockets.push(all(&[
        (0, Op::Eq, libc::AF_UNIX.unsigned_abs().into()),
        (1, datagrams, libc::SOCK_DGRAM.unsigned_abs().into()),
    ]));
    when(libc::SYS_socket, sockets)?;
    when(libc::SYS_socketpair, vec![is(0, libc::AF_UNIX.unsigned_abs().into())])?;
    // To send with the first packet of a connection is to connect.
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        when(call, vec![rule(flags, Op::MaskedEq(libc::MSG_FASTOPEN.unsigned_abs().into()), 0)])?;
    }
    // Of oneself alone: without capabilities root may still end and slow down what else is root's.
    for call in [libc::SYS_prlimit64, libc::SYS_sched_setaffinity] {
        when(call, vec![is(0, 0)])?;
    }
    when(libc::SYS_setpriority, vec![all(&[(0, Op::Eq, libc::PRIO_PROCESS.into()), (1, Op::Eq, 0)])])?;
    when(libc::SYS_tgkill, vec![is(0, std::process::id().into())])?;
    let signals = |command: libc::c_int| (1, Op::Ne, u64::from(command.unsigned_abs()));
    when(libc::SYS_fcntl, vec![all(&[signals(libc::F_SETOWN), signals(F_SETOWN_EX)])])?;
    // No code but what the program came with.
    let not_executable = || rule(2, Op::MaskedEq(libc::PROT_EXEC.unsigned_abs().into()), 0);
    when(libc::SYS_mmap, vec![not_executable()])?;
    when(libc::SYS_mprotect, vec![not_executable()])?;
    if allowed != Allowed::Opener {
        let thread = libc::CLONE_THREAD.unsigned_abs().into();
        when(libc::SYS_clone, vec![rule(0, Op::MaskedEq(NEW_NAMESPACES | thread), thread)])?;
        when(libc::SYS_fchmod, vec![rule(1, Op::MaskedEq(OTHERS_RIGHTS), 0)])?;
        // Times of what is open: no path is given.
        let open = SeccompCondition::new(1, Len::Qword, Op::Eq, 0).and_then(|open| SeccompRule::new(vec![open]));
        when(libc::SYS_utimensat, vec![open.map_err(|error| error.to_string())])?;
    }
    when(libc::SYS_prctl, PRCTL.iter().map(|&option| is(0, option.unsigned_abs().into())).collect())?;
    when(libc::SYS_ioctl, IOCTL.iter().map(|&request| is(1, request)).collect())?;
    compile(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)
}

fn intruder(allowed: Allowed) -> Result<BpfProgram, String> {
    let bpf = (allowed != Allowed::Xdp).then_some(libc::SYS_bpf);
    let rules = INTRUDER.iter().copied().chain(bpf).map(|call| (call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn without_clone3() -> Result<BpfProgram, String> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

fn compile(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, String> {
    let architecture = std::env::consts::ARCH.try_into().map_err(|error| format!("{error}"))?;
    let filter = SeccompFilter::new(rules, otherwise, listed, architecture).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

/// An argument, from 0, has this value in its lower 32 bits.
fn is(argument: u8, value: u64) -> Result<SeccompRule, String> {
    rule(argument, Op::Eq, value)
}

fn rule(argument: u8, operator: Op, value: u64) -> Result<SeccompRule, String> {
    all(&[(argument, operator, value)])
}

/// Arguments of which each holds.
fn all(arguments: &[(u8, Op, u64)]) -> Result<SeccompRule, String> {
    let condition = |&(argument, ref operator, value): &(u8, Op, u64)| {
        SeccompCondition::new(argument, Len::Dword, operator.clone(), value)
    };
    let conditions = arguments.iter().map(condition).collect::<Result<_, _>>();
    conditions.and_then(SeccompRule::new).map_err(|error| error.to_string())
}

const MEMORY_AND_THREADS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_mempolicy,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_mincore,
    // To fewer threads than all, the kernel's way to order memory between them.
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

const WAITING: &[i64] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
];

const DESCRIPTORS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
];

const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
];

/// Of sockets that are open, or came in on one that listens.
const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// What newer architectures have no number for; the C library makes these here.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_time,
];

#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_creat,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];

/// Nothing in this program or its libraries makes these.
const INTRUDER: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// The type of a socket, without the flags beside it (`SOCK_TYPE_MASK` of `linux/net.h`).
const SOCKET_TYPE: u64 = 0xf;

/// `F_SETOWN_EX` of `asm-generic/fcntl.h`.
const F_SETOWN_EX: libc::c_int = 15;

/// Modes that give others what is their owner's: `S_ISUID`, `S_ISGID`, `S_IWOTH`.
const OTHERS_RIGHTS: u64 = 0o6002;

/// `CLONE_NEW*` of `linux/sched.h`.
const NEW_NAMESPACES: u64 = 0x0002_0000 | 0x7e00_0000 | 0x80;

/// Names of threads and of memory, and what the runtime asks of itself (`linux/prctl.h`).
const PRCTL: &[libc::c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_SECCOMP,
    libc::PR_CAPBSET_READ,
];

/// Of terminals and descriptors, and what is asked of interfaces.
const IOCTL: &[libc::Ioctl] = &[
    libc::TCGETS,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    libc::FIOCLEX,
    libc::FIONREAD,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFNAME,
    libc::SIOCGIFFLAGS,
    libc::SIOCGIFHWADDR,
    libc::SIOCGIFMTU,
    libc::SIOCETHTOOL,
];

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, ExitStatus};

    use super::*;

    #[test]
    fn no_call_is_both_listed_and_an_intruders() {
        let all = [MEMORY_AND_THREADS, WAITING, DESCRIPTORS, SOCKETS, FILES].concat();
        let both: Vec<_> = INTRUDER.iter().filter(|call| all.contains(call)).collect();
        assert!(both.is_empty(), "{both:?}");
    }

    #[test]
    fn every_filter_is_one_that_the_kernel_takes() {
        for allowed in [Allowed::Ring, Allowed::Pnet, Allowed::Xdp, Allowed::Opener] {
            for program in [list(allowed), intruder(allowed), without_clone3()] {
                let length = program.unwrap().len();
                assert!(length < 4096, "{allowed:?}: {length} instructions"); // BPF_MAXINSNS
            }
        }
    }

    /// What the tests of this file start again as, to be restricted.
    const INSIDE: &str = "LINEWARDEN_TEST_INSIDE";

    /// One test of this file, in a process of its own: here its end and what it said, in that process nothing.
    fn inside(test: &str) -> Option<(ExitStatus, String)> {
        if std::env::var_os(INSIDE).is_some() {
            restrict(Allowed::Ring).unwrap();
            return None;
        }
        let name = format!("daemon::system_calls::tests::{test}");
        let mut command = Command::new(std::env::current_exe().unwrap());
        let done =
            command.args(["--exact", &name, "--test-threads=1", "--nocapture"]).env(INSIDE, "1").output().unwrap();
        let said = [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        Some((done.status, said))
    }

    #[test]
    fn a_network_cannot_be_reached_and_the_error_is_one_that_programs_know() {
        if let Some((status, said)) = inside("a_network_cannot_be_reached_and_the_error_is_one_that_programs_know") {
            assert!(status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EPERM);
        assert!(refused(UdpSocket::bind("127.0.0.1:0").map(drop)));
        assert!(refused(TcpStream::connect("127.0.0.1:9").map(drop)));
        assert!(refused(UnixListener::bind("/nonexistent/socket").map(drop)));
        assert!(refused(UnixStream::connect("/nonexistent/socket").map(drop)));
        assert!(refused(Command::new("/bin/true").status().map(drop)), "no new process");
        UnixDatagram::unbound().unwrap();
        let threads: Vec<_> = (0..4).map(|number| std::thread::spawn(move || number)).collect();
        assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<i32>(), 6, "threads go on");
    }

    #[test]
    fn who_becomes_another_program_is_killed() {
        match inside("who_becomes_another_program_is_killed") {
            Some((status, said)) => assert_eq!(status.signal(), Some(libc::SIGSYS), "{said}"),
            None => panic!("{}", Command::new("/bin/true").exec()),
        }
    }
}
