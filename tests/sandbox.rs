//! What a running daemon may still do: the binary live in a namespace of the test's own, and what the kernel says of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

// Registers and the numbers of calls are those of one architecture.
#[cfg(target_arch = "x86_64")]
#[path = "sandbox/intruder.rs"]
mod intruder;
#[cfg(target_arch = "x86_64")]
#[path = "sandbox/tries.rs"]
mod tries;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Stdio;

use common::command::{LINEWARDEN, approval, assert_adds_up, done, folder, linewarden};
use common::netns::{Namespace, until};
use common::pcap::frames;

const CAP_NET_RAW: u64 = 1 << 13;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
/// With `CAP_NET_RAW`, `CAP_NET_ADMIN`, `CAP_IPC_LOCK` and `CAP_BPF`.
const FOR_XDP: u64 = CAP_NET_RAW | 1 << 12 | 1 << 14 | 1 << 39;

/// A line of `/proc/PID/status`, or of one of its threads'.
fn field(status: &Path, name: &str) -> String {
    let text = fs::read_to_string(status).unwrap_or_else(|error| panic!("{}: {error}", status.display()));
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{} has no {name}", status.display())).trim().to_owned()
}

/// Name and capabilities of each thread: those in force, and those it could take up.
fn threads(process: u32) -> Vec<(String, [u64; 2])> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of = |status: &Path| {
        let mask = |name| u64::from_str_radix(&field(status, name), 16).unwrap();
        assert_eq!(field(status, "NoNewPrivs"), "1");
        assert_eq!(field(status, "Seccomp"), "2");
        (field(status, "Name"), ["CapEff", "CapPrm"].map(mask))
    };
    tasks.map(|task| of(&task.unwrap().path().join("status"))).collect()
}

/// The processes that one has started.
fn children(process: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    text.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

#[test]
fn no_thread_has_a_capability_and_one_process_that_parses_nothing_has_one() {
    let namespace = Namespace::new("sandbox");
    let folder = folder(&[("approvals.d/none", ""), ("two.toml", "[capture]\nworkers = 2\n")]);
    let arguments = ["--interface", "wan0", "--config", "two.toml", "--approvals", "approvals.d"];
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    let said = daemon.says("sandbox in force");
    assert!(said.contains("capabilities=\"none\" files=\"restricted\" system_calls=\"restricted\""), "{said}");
    daemon.says("capturing");
    // A reload lets the runtime start more threads.
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    let threads = threads(daemon.process());
    for name in ["linewarden", "control", "worker-0", "worker-1"] {
        assert!(threads.iter().any(|(thread, _)| thread == name), "{name}: {threads:?}");
    }
    assert!(threads.iter().all(|(_, masks)| *masks == [0, 0]), "{threads:?}");

    let children = children(daemon.process());
    assert_eq!(children.len(), 1);
    let opener = self::threads(children[0]);
    assert_eq!(opener, [("open-rings".to_owned(), [CAP_NET_RAW; 2])]);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
    assert!(!Path::new(&format!("/proc/{}", children[0])).exists(), "it ends with the daemon");
}

/// Nothing is taken away with the sandbox: interfaces, approvals and log come anew while it is in force.
#[test]
fn capture_reload_and_rotation_go_on_in_it() {
    let namespace = Namespace::new("goes-on");
    let folder = folder(&[("approvals.d/none", ""), ("one.toml", "[capture]\nworkers = 1\n")]);
    let arguments = ["--interface", "wan0", "--config", "one.toml", "--approvals", "approvals.d"];
    let mut daemon = namespace.daemon(folder.path(), &[&arguments[..], &["--records", "linewarden-log"]].concat());
    daemon.says("sandbox in force");
    daemon.says("capturing");
    namespace.ip("link set wan0 down");
    daemon.says("interface is down");
    namespace.ip("link set wan0 up");
    daemon.says("interface is up again");
    let session = frames("wireguard-port-51820");
    namespace.sender("far0").send(&session[..20]);
    daemon.record("the tunnel", |record| record["confidence"] == "certain");
    // More often than any number of sockets that could lie ready.
    for _ in 0..3 {
        namespace.unplug();
        daemon.says("interface is gone");
        namespace.plug_in();
        daemon.says("interface is back");
    }

    let log = folder.path().join("linewarden-log/linewarden.ndjson");
    let rotated = log.with_extension("1");
    fs::rename(&log, &rotated).unwrap();
    let peer = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    fs::write(folder.path().join("approvals.d/partner.toml"), approval("vpn", "partner", peer)).unwrap();
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    until("a new log", || log.exists().then_some(()));
    namespace.sender("far0").send(&session[20..]);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    let text = fs::read_to_string(&rotated).unwrap() + &fs::read_to_string(&log).unwrap();
    let records = common::command::records(&text);
    assert_adds_up(&daemon.summary(), &records);
    let is_end = |record: &&serde_json::Value| record["kind"] == "end" && record["dst_port"] == 51_820;
    let ends: Vec<_> = records.iter().filter(is_end).collect();
    assert_eq!(ends.len(), 1);
    assert_eq!([&ends[0]["fwd_packets"], &ends[0]["rev_packets"]], [38, 22], "every packet that was sent");
    assert_eq!(ends[0]["approval"]["id"], "partner");
}

/// A process of the daemon's rights, in the kernel's eyes, is tried from outside by what the daemon itself reads and writes.
#[test]
fn files_elsewhere_are_out_of_reach_and_the_log_says_what_to_do() {
    let namespace = Namespace::new("elsewhere");
    let folder = folder(&[("approvals.d/none", ""), ("linked/a.toml", ""), ("secret/b.toml", "")]);
    let peer = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    for (file, id) in [("linked/a.toml", "a"), ("secret/b.toml", "b")] {
        fs::write(folder.path().join(file), approval("vpn", id, peer)).unwrap();
    }
    symlink("../linked/a.toml", folder.path().join("approvals.d/a.toml")).unwrap();
    let mut daemon = namespace.daemon(folder.path(), &["--interface", "wan0", "--approvals", "approvals.d"]);
    daemon.says("sandbox in force");
    daemon.says("capturing");
    daemon.signal("HUP");
    daemon.says("approvals reloaded");

    // One that came later and leads elsewhere cannot be read.
    symlink("../secret/b.toml", folder.path().join("approvals.d/b.toml")).unwrap();
    daemon.signal("HUP");
    let said = daemon.says("b.toml: cannot be read");
    assert!(said.contains("Permission denied"), "{said}");
    let said = daemon.says("approvals NOT reloaded");
    assert!(said.contains("sandbox.read"), "what to do: {said}");
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);

    // Named in the settings it can, and so can what lies where the log is taken to, but nothing is written outside.
    let settings = format!("[sandbox]\nread = [\"{}\"]\n", folder.path().join("secret").display());
    fs::write(folder.path().join("settings.toml"), settings).unwrap();
    fs::remove_file(folder.path().join("approvals.d/b.toml")).unwrap();
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--config", "settings.toml"];
    let mut daemon = namespace.daemon(folder.path(), &[&arguments[..], &["--records", "linewarden-log"]].concat());
    daemon.says("capturing");
    symlink("../secret/b.toml", folder.path().join("approvals.d/b.toml")).unwrap();
    daemon.signal("HUP");
    let said = daemon.says("approvals in force approvals=2");
    assert!(!said.contains("ERROR"), "{said}");
    // The log's own name now leads out of its folder.
    let log = folder.path().join("linewarden-log/linewarden.ndjson");
    fs::rename(&log, log.with_extension("1")).unwrap();
    symlink("../secret/outside.ndjson", &log).unwrap();
    daemon.signal("USR1");
    let said = daemon.says("the log cannot be opened anew");
    assert!(said.contains("Permission denied"), "{said}");
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
    assert!(!folder.path().join("secret/outside.ndjson").exists());
}

#[test]
fn it_is_said_where_it_is_off_and_what_other_backends_keep() {
    let namespace = Namespace::new("off");
    let folder = folder(&[
        ("approvals.d/none", ""),
        ("off.toml", "[sandbox]\nenabled = false\n"),
        ("pnet.toml", "[capture]\nbackend = \"pnet\"\n"),
        ("xdp.toml", "[capture]\nbackend = \"xdp\"\n"),
    ]);
    let start = |settings: &str| {
        let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--config", settings];
        namespace.daemon(folder.path(), &arguments)
    };
    let mut daemon = start("off.toml");
    let said = daemon.says("the sandbox is off");
    assert!(said.contains("WARN") && said.contains("sandbox.enabled"), "{said}");
    daemon.says("capturing");
    assert!(children(daemon.process()).is_empty());
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);

    let kept = [
        ("pnet.toml", "cap_net_raw", CAP_NET_RAW, "interface is gone or down", "interface is back"),
        // Where it is found before it is up, it is said to be up again, not back.
        (
            "xdp.toml",
            "cap_bpf cap_ipc_lock cap_net_admin cap_net_raw",
            FOR_XDP,
            "interface is gone",
            "XDP takes the frames",
        ),
    ];
    for (settings, names, mask, gone, back) in kept {
        let mut daemon = start(settings);
        let said = daemon.says("sandbox in force");
        assert!(said.contains(&format!("capabilities=\"{names}\"")), "{said}");
        daemon.says("capturing");
        let threads = threads(daemon.process());
        assert!(threads.iter().all(|(_, masks)| *masks == [mask; 2]), "{threads:?}");
        assert!(children(daemon.process()).is_empty());
        namespace.unplug();
        daemon.says(gone);
        namespace.plug_in();
        daemon.says(back);
        daemon.signal("TERM");
        assert_eq!(daemon.ends(), 0);
    }
}

/// Root without capabilities may not write where another user's files are.
#[test]
fn root_goes_on_in_another_users_folder() {
    let namespace = Namespace::new("foreign");
    let folder = folder(&[("approvals.d/none", ""), ("linewarden-log/none", "")]);
    let log = folder.path().join("linewarden-log");
    chown(&log, Some(65_534), Some(65_534)).unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o750)).unwrap();
    let arguments = ["--interface", "wan0", "--approvals", "approvals.d", "--records", "linewarden-log"];
    let mut daemon = namespace.daemon(folder.path(), &arguments);
    let said = daemon.says("CAP_DAC_OVERRIDE is kept");
    assert!(said.contains("linewarden-log"), "{said}");
    daemon.says("capturing");
    let threads = threads(daemon.process());
    assert!(threads.iter().all(|(_, masks)| *masks == [CAP_DAC_OVERRIDE; 2]), "{threads:?}");
    let file = log.join("linewarden.ndjson");
    fs::rename(&file, log.join("1")).unwrap();
    daemon.signal("USR1");
    until("a new log", || file.exists().then_some(()));
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0);
}

/// The process answers nothing but positions of the names that it was started with.
#[test]
fn who_asks_for_another_interface_gets_none() {
    let script = "import array, os, socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
numbers = ['--snap-length=256', '--ring-octets=131072', '--block-octets=65536', '--block-timeout=50']
child = subprocess.Popen([sys.argv[1], 'open-rings'] + numbers + ['--', 'lo', 'nix0'], stdin=theirs)
theirs.close()
def ask(request):
    ours.send(request)
    answer, beside, _, _ = ours.recvmsg(4, socket.CMSG_SPACE(4))
    descriptors = array.array('i', beside[0][2]) if beside else []
    names = [socket.socket(fileno=descriptor).getsockname()[0] for descriptor in descriptors]
    print(int.from_bytes(answer, sys.byteorder, signed=True), *names, flush=True)
for number in [0, 1, 2, 65535]:
    ask(number.to_bytes(2, sys.byteorder))
ask(b'x')
ours.close()
print('exit', child.wait())";
    let namespace = Namespace::new("ask");
    let done = done(namespace.command("timeout").args(["60", "python3", "-c", script, LINEWARDEN])).expect(0);
    // ENODEV, EINVAL.
    assert_eq!(done.out.lines().collect::<Vec<_>>(), ["0 lo", "19", "22", "22", "22", "exit 0"], "{}", done.err);
}

#[test]
fn as_a_command_of_its_own_it_says_what_it_is_for() {
    let help = linewarden(["--help"]).stdout(Stdio::piped()).output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("open-rings"), "nobody is meant to start it");
    let numbers = ["--snap-length=256", "--ring-octets=131072", "--block-octets=65536", "--block-timeout=50"];
    let done = done(linewarden(["open-rings"]).args(numbers).arg("lo"));
    assert_eq!(done.code, 1, "standard input is no socket");
    assert!(done.err.contains("open-rings: cannot answer on standard input"), "{}", done.err);
}
