//! What may break around a running sensor, or in it, and what it says and loses then: the real daemon, in its sandbox, on a veth
//! in a network namespace of the test's own. `tests/faults/README.md` is the table of them.
//! Needs root, iproute2, util-linux (losetup, prlimit, unshare), e2fsprogs, python3 and a C compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/descriptors.rs"]
mod descriptors;
#[path = "faults/disks.rs"]
mod disks;
#[path = "faults/folders.rs"]
mod folders;
#[path = "faults/inventory.rs"]
mod inventory;
#[path = "faults/journal.rs"]
mod journal;
#[path = "faults/links.rs"]
mod links;
#[path = "faults/panics.rs"]
mod panics;

use std::path::Path;
use std::process::Command;

use common::OwnedFrame;
use common::command::{Done, LINEWARDEN, done, folder, linewarden};
use common::netns::{Daemon, Namespace, until};
use common::pcap::frames;
use serde_json::Value;
use tempfile::TempDir;

/// Sockets lie in a folder of their own, from which the sandbox lets the daemon only remove them. Two workers with small rings;
/// everything beside the log is on; all of it is on the disk at once, and signed every second.
const SETTINGS: &str = "[capture]
interfaces = [\"wan0\"]
workers = 2
ring_octets = \"8MiB\"
[control]
socket = \"run/c.sock\"
[metrics]
listen = \"unix:run/m.sock\"
[records]
sync_interval = \"10ms\"
sign_interval = \"1s\"
[[outputs]]
format = \"eve\"
file = \"eve.json\"
";
const ARGUMENTS: [&str; 6] = ["--config", "s.toml", "--approvals", "approvals.d", "--records", "linewarden-log"];

/// A daemon in a folder of its own.
struct House {
    namespace: Namespace,
    folder: TempDir,
}

impl House {
    /// `more` stands behind [`SETTINGS`].
    fn new(test: &str, more: &str) -> Self {
        let folder =
            folder(&[("approvals.d/none", ""), ("linewarden-log/none", ""), ("run/none", ""), ("s.toml", SETTINGS)]);
        let house = Self { namespace: Namespace::new(test), folder };
        std::fs::write(house.path("s.toml"), format!("{more}\n{SETTINGS}")).unwrap();
        house
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> std::path::PathBuf {
        self.path("linewarden-log")
    }

    fn start(&self) -> Daemon {
        self.start_by(self.namespace.command(LINEWARDEN))
    }

    /// Once it captures.
    fn start_by(&self, mut command: Command) -> Daemon {
        command.arg("run").args(ARGUMENTS).current_dir(self.folder.path());
        let mut daemon = Daemon::start(command, self.log());
        daemon.says("system_calls=\"restricted\"");
        daemon.says("capturing");
        daemon
    }

    fn send(&self, frames: &[OwnedFrame]) {
        self.namespace.sender("far0").send(frames);
    }

    /// `linewarden` in its folder.
    fn run(&self, arguments: &[&str]) -> Done {
        done(linewarden(arguments).current_dir(self.folder.path()))
    }

    fn ctl(&self, arguments: &[&str]) -> Done {
        self.run(&[&["ctl", "--socket", "run/c.sock"], arguments].concat())
    }

    #[track_caller]
    fn status(&self) -> Value {
        let done = self.ctl(&["status", "--json"]).expect(0);
        serde_json::from_str::<Value>(&done.out).unwrap()["status"].clone()
    }

    /// Waits until the status doubts the evidence for that.
    #[track_caller]
    fn doubts(&self, what: &str) {
        until(what, || self.status()["evidence"]["doubts"].to_string().contains(what).then_some(()));
    }

    /// What `verify-log` says with its exit code.
    #[track_caller]
    fn verify(&self) -> (i32, Value) {
        let done = self.run(&["verify-log", "linewarden-log", "--json", "--config", "s.toml"]);
        let report =
            serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {} {}", done.out, done.err));
        (done.code, report)
    }

    #[track_caller]
    fn assert_whole(&self) {
        let (code, report) = self.verify();
        assert_eq!((code, &report["is_whole"]), (0, &Value::Bool(true)), "{report:#}");
    }
}

/// A real WireGuard session.
fn wireguard() -> Vec<OwnedFrame> {
    frames("wireguard-port-51820")
}

/// Handshakes of tunnels from these ports of the client: three records each, by their ends.
fn tunnels(ports: std::ops::Range<u16>) -> Vec<OwnedFrame> {
    let handshake = &wireguard()[..2];
    let client = handshake[0].data[26..30].to_vec();
    let from =
        |port: u16| handshake.iter().cloned().map(move |mut frame| (port, std::mem::take(&mut frame.data), frame));
    let with_port = |(port, mut data, frame): (u16, Vec<u8>, OwnedFrame)| {
        let at = if data[26..30] == client { 34 } else { 36 };
        data[at..at + 2].copy_from_slice(&port.to_be_bytes());
        OwnedFrame { data, ..frame }
    };
    ports.flat_map(from).map(with_port).collect()
}

/// SIGTERM: it ends as it should.
#[track_caller]
fn end(daemon: &mut Daemon) {
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
}

fn is_certain(record: &Value) -> bool {
    record["confidence"] == "certain"
}

/// Every record in a folder's log, closed segments before the one that is written.
fn all_records(log: &Path) -> Vec<Value> {
    let done = done(linewarden(["query", "--kind", "all", "--format", "ndjson", "--quiet"]).arg(log)).expect(0);
    common::command::records(&done.out)
}

/// Runs the body of a test in a process whose mounts are its own and go with it.
fn in_own_mounts<F: FnOnce()>(body: F) {
    const INSIDE: &str = "LINEWARDEN_FAULTS_TEST";
    // A closure is named after the function that it is written in.
    let name = std::any::type_name::<F>();
    let test = name.trim_start_matches("faults::").trim_end_matches("::{{closure}}");
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        body();
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    let done = command.args(["--exact", test, "--nocapture"]).env(INSIDE, test).output().unwrap();
    let said = [done.stdout, done.stderr].map(|octets| String::from_utf8_lossy(&octets).into_owned()).concat();
    assert!(done.status.success() && said.contains("1 passed"), "with its own mounts: {}\n{said}", done.status);
}

/// A program that the test started, ended with it.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(script: &str, argument: &Path) {
    done(Command::new("sh").args(["-ec", script]).arg(argument)).expect(0);
}
