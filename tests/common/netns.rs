//! A network namespace of the test's own, frames sent inside it, and the daemon that watches there.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::OwnedFrame;
use super::command::{LINEWARDEN, records};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A condition is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until something is there.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE.as_millis() / LOOK_AGAIN.as_millis() {
        if let Some(found) = condition() {
            return found;
        }
        thread::sleep(LOOK_AGAIN);
    }
    panic!("waited {PATIENCE:?} in vain: {what}");
}

/// Two ends of a cable, `wan0` and `far0`, that nothing else is attached to. Gone with the value.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(test: &str) -> Self {
        let namespace = Self { name: format!("lw-run-{}-{test}", std::process::id()) };
        ip(&["netns", "add", &namespace.name]);
        // No host here says anything by itself.
        let quiet = "for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $file ] || echo 1 >$file; done";
        assert!(namespace.command("sh").args(["-ec", quiet]).status().unwrap().success());
        namespace.ip("link set lo up");
        namespace.plug_in();
        namespace
    }

    /// As `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the cable.
    pub fn plug_in(&self) {
        self.ip("link add wan0 type veth peer name far0");
        self.ip("link set wan0 up");
        self.ip("link set far0 up");
    }

    /// Takes it away.
    pub fn unplug(&self) {
        self.ip("link delete wan0");
    }

    /// `ip` inside.
    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        ip(&arguments);
    }

    /// A program that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// `linewarden run` inside, in that folder.
    pub fn daemon(&self, folder: &Path, arguments: &[&str]) -> Daemon {
        let mut command = self.command(LINEWARDEN);
        command.arg("run").args(arguments).current_dir(folder);
        Daemon::start(command, folder.join("linewarden-log"))
    }

    /// Who sends frames from an interface.
    pub fn sender(&self, interface: &str) -> Sender {
        let script = "import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((sys.argv[1], 0))
for line in sys.stdin:
    link.send(bytes.fromhex(line))
    print(flush=True)";
        let mut command = self.command("python3");
        command.args(["-c", script, interface]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Sender { child, orders, answers }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !thread::panicking() {
            assert!(deleted.unwrap().success(), "{} is left", self.name);
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// Sends frames as they are.
pub struct Sender {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
}

impl Sender {
    /// Returns when the last one is sent. A frame that was cut when it was recorded is filled up with zeros.
    pub fn send(&mut self, frames: &[OwnedFrame]) {
        for frame in frames {
            let mut line = frame.data.iter().fold(String::new(), |mut line, octet| {
                let _ = write!(line, "{octet:02x}");
                line
            });
            line.push_str(&"00".repeat((frame.wire_len as usize).saturating_sub(frame.data.len())));
            writeln!(self.orders, "{line}").unwrap();
            self.orders.flush().unwrap();
            let mut answer = String::new();
            self.answers.read_line(&mut answer).unwrap();
            assert_eq!(answer, "\n", "the frame was not sent");
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running daemon and what it says. Ended with the value.
pub struct Daemon {
    child: Child,
    lines: Receiver<String>,
    /// What it said so far.
    pub said: Vec<String>,
    folder: PathBuf,
}

impl Daemon {
    /// Starts it; `folder` is where its log is expected.
    pub fn start(mut command: Command, folder: PathBuf) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines, said: Vec::new(), folder }
    }

    /// Waits for a line with this text that was not waited for yet.
    #[track_caller]
    pub fn says(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("`{text}` was not said within {PATIENCE:?}:\n{}", self.said.join("\n"));
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Its process: `ip netns exec` becomes what it is told to run.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Memory by a line of `/proc/PID/status`, octets.
    pub fn memory(&self, line: &str) -> u64 {
        let said = std::fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap();
        let found = said.lines().find_map(|said| said.strip_prefix(line)?.strip_prefix(':')).unwrap();
        found.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Whether it has ended, however.
    pub fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; gives the exit code.
    #[track_caller]
    pub fn ends(&mut self) -> i32 {
        let code = self.ends_anyhow();
        assert!(!self.said.iter().any(|line| line.contains("panicked")), "{:#?}", self.said);
        code
    }

    /// The same where a test made one of its threads panic.
    #[track_caller]
    pub fn ends_anyhow(&mut self) -> i32 {
        let status = until("the daemon ends", || self.child.try_wait().unwrap());
        self.said.extend(self.lines.iter());
        status.code().unwrap_or_else(|| panic!("ended by a signal: {status}"))
    }

    /// Whole lines of the log so far.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("linewarden.ndjson")).unwrap_or_default();
        records(text.rsplit_once('\n').map_or("", |(lines, _)| lines))
    }

    /// Waits for a record in the log.
    #[track_caller]
    pub fn record(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        until(what, || self.records().into_iter().find(&is_it))
    }

    pub fn summary(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.folder.join("summary.json")).unwrap()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
