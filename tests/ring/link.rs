//! Turns a test into a process in a network namespace of its own, and gives it interfaces, senders and captures there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::pnet::datalink::{self, Channel, DataLinkSender};
use linewarden::capture::{
    CaptureCounters, CaptureError, LiveSettings, Source, XdpSettings, open_pnet, open_rings, open_xdp,
};

use crate::common::{OwnedFrame, netns};

static NUMBER: AtomicU32 = AtomicU32::new(0);
/// What the kernel would send by itself (neighbour discovery, multicast reports) stays out.
const SILENCE: &str =
    "for file in /proc/sys/net/ipv6/conf/{all,default}/disable_ipv6; do [ ! -e $file ] || echo 1 >$file; done";
/// In the environment of a test's own process.
const INSIDE: &str = "LINEWARDEN_RING_TEST";

/// Runs the body of a test in a process of its own, in a new network namespace that ends with it. Gives what it printed.
pub fn in_namespace<F: FnOnce()>(body: F) -> String {
    let Some(done) = inside(body, Command::output) else { return String::new() };
    let said = [done.stdout, done.stderr].map(|octets| String::from_utf8_lossy(&octets).into_owned()).concat();
    assert!(done.status.success() && said.contains("1 passed"), "in its namespace: {}\n{said}", done.status);
    said
}

/// The same for a body that takes long: what it prints is seen at once.
pub fn in_namespace_aloud<F: FnOnce()>(body: F) {
    if let Some(status) = inside(body, Command::status) {
        assert!(status.success(), "in its namespace: {status}");
    }
}

/// Gives nothing where it ran the body, because this is the process in the namespace.
fn inside<F: FnOnce(), T>(body: F, run_to_end: impl FnOnce(&mut Command) -> std::io::Result<T>) -> Option<T> {
    // A closure is named after the function that it is written in.
    let name = std::any::type_name::<F>();
    let test = name.trim_start_matches("ring::").trim_end_matches("::{{closure}}");
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        run_shell(SILENCE);
        body();
        return None;
    }
    let namespace = Namespace(format!("lwring-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    run(&format!("ip netns add {}", namespace.0));
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &namespace.0])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, test)
        .stdin(Stdio::null());
    Some(run_to_end(&mut command).unwrap())
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Runs a command to its end; words are split at spaces. Gives what it printed.
pub fn run(command: &str) -> String {
    let words: Vec<_> = command.split(' ').collect();
    let done = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A line of bash.
fn run_shell(line: &str) {
    shell(&mut Command::new("bash"), line);
}

fn shell(bash: &mut Command, line: &str) {
    let done = bash.args(["-c", line]).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A program that the test started, ended with it.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes `far`-`near` and `out`-`end`, with a bridge between `near` and `out`: what comes in at one goes out at the other.
pub fn bridged() {
    veth("far", "near");
    veth("out", "end");
    // Without snooping the bridge sends nothing of its own.
    run("ip link add name bridge type bridge mcast_snooping 0");
    up("bridge");
    for port in ["near", "out"] {
        run(&format!("ip link set {port} master bridge"));
        // linux/if_bridge.h: BR_STATE_FORWARDING.
        until("the bridge to forward", || sysfs(port, "brport/state") == "3");
    }
}

/// The TUN interface `tun0`, and who holds it.
pub struct Tun {
    _holder: Program,
    to: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Tun {
    /// Lets a packet in, and ends when the kernel has handed it to who captures: what is sent after that comes after it.
    pub fn send(&mut self, packet: &[u8]) {
        let mut line = Vec::new();
        packet.iter().for_each(|octet| write!(line, "{octet:02x}").unwrap());
        line.push(b'\n');
        self.to.write_all(&line).unwrap();
        self.hears("in");
    }

    fn hears(&mut self, wanted: &str) {
        let mut said = String::new();
        self.answers.read_line(&mut said).unwrap();
        assert_eq!(said.trim_end(), wanted);
    }
}

/// Makes `tun0`.
pub fn tun() -> Tun {
    let mut command = Command::new("python3");
    command.args(["-c", TUN]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Program(command.spawn().unwrap());
    let (to, answers) = (holder.0.stdin.take().unwrap(), BufReader::new(holder.0.stdout.take().unwrap()));
    let mut tun = Tun { _holder: holder, to, answers };
    tun.hears("ready");
    up("tun0");
    tun
}

/// Holds a TUN interface, and lets in the packets that it reads in hexadecimal.
const TUN: &str = "
import fcntl, os, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'tun0', 0x1001))
print('ready', flush=True)
for line in sys.stdin:
    os.write(tun, bytes.fromhex(line))
    print('in', flush=True)
";

/// Another host: a network namespace that lives with this value.
pub struct Host(Program);

impl Host {
    pub fn start() -> Self {
        // `cat` reads until its standard input closes.
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let host = Self(Program(command.spawn().unwrap()));
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        until("the other host", || namespace(&host.id().to_string()) != namespace("self"));
        host.run_shell(SILENCE);
        host
    }

    pub fn id(&self) -> u32 {
        self.0.0.id()
    }

    /// As [`run`], there.
    pub fn run(&self, command: &str) {
        run(&format!("nsenter --net=/proc/{}/ns/net {command}", self.id()));
    }

    /// As [`run_shell`], there.
    pub fn run_shell(&self, line: &str) {
        shell(Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", self.id())).arg("bash"), line);
    }
}

/// Two interfaces joined by a cable, without addresses, up.
pub fn veth(one: &str, other: &str) {
    run(&format!("ip link add name {one} mtu 9000 type veth peer name {other} mtu 9000"));
    up(one);
    up(other);
    until_up(one);
    until_up(other);
}

pub fn up(interface: &str) {
    run(&format!("ip link set {interface} up"));
}

/// Both ends are up, and the kernel has taken notice: what is sent before that goes nowhere.
pub fn until_up(interface: &str) {
    until(&format!("{interface} to be up"), || run(&format!("ip link show dev {interface}")).contains("state UP"));
}

/// What the kernel says of an interface.
pub fn sysfs(interface: &str, what: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{interface}/{what}")).unwrap().trim().to_owned()
}

/// A count of the kernel's own.
pub fn counted(interface: &str, what: &str) -> u64 {
    sysfs(interface, &format!("statistics/{what}")).parse().unwrap()
}

/// Puts frames on the wire as they are.
pub struct Sender(Box<dyn DataLinkSender>);

impl Sender {
    pub fn on(name: &str) -> Self {
        let interface = datalink::interfaces().into_iter().find(|interface| interface.name == name).unwrap();
        match datalink::channel(&interface, datalink::Config { promiscuous: false, ..Default::default() }).unwrap() {
            Channel::Ethernet(sender, _) => Self(sender),
            _ => panic!("no frames on {name}"),
        }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.0.send_to(frame, None).unwrap().unwrap();
    }
}

/// Asks until the answer is yes.
#[track_caller]
pub fn until(what: &str, mut asked: impl FnMut() -> bool) {
    netns::until(what, || asked().then_some(()));
}

/// Small blocks that come soon, and so many that a ring lasts for more than a second without a turn of its worker.
pub fn settings(interfaces: &[&str], workers: u16) -> LiveSettings {
    LiveSettings {
        interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
        workers,
        snap_length: 256,
        promiscuous: true,
        ring_octets: 8 << 20,
        block_octets: 64 << 10,
        block_timeout: Duration::from_millis(10),
        opener: None,
        filter: Vec::new(),
        fast_path: None,
    }
}

/// The workers of one capture, and what each was handed.
pub struct Capture {
    sources: Vec<Box<dyn Source>>,
    forgotten: usize,
    pub frames: Vec<Vec<OwnedFrame>>,
}

const PATIENCE: Duration = Duration::from_millis(1);

impl Capture {
    pub fn rings(settings: &LiveSettings) -> Self {
        Self::of(open_rings(settings)).unwrap()
    }

    pub fn pnet(settings: &LiveSettings) -> Self {
        Self::of(open_pnet(settings).map(|source| vec![source])).unwrap()
    }

    pub fn xdp(settings: &LiveSettings, xdp: XdpSettings) -> Self {
        Self::of(open_xdp(settings, xdp)).unwrap()
    }

    fn of(sources: Result<Vec<Box<dyn Source>>, CaptureError>) -> Result<Self, CaptureError> {
        let sources = sources?;
        Ok(Self { frames: sources.iter().map(|_| Vec::new()).collect(), sources, forgotten: 0 })
    }

    /// Each worker's turn.
    pub fn poll(&mut self) {
        for (source, frames) in self.sources.iter_mut().zip(&mut self.frames) {
            source.poll(PATIENCE, &mut |batch| frames.extend(batch.iter().map(OwnedFrame::from))).unwrap();
        }
    }

    /// Goes on until so many frames have come; more are a failure.
    pub fn until_received(&mut self, frames: usize) {
        until(&format!("{frames} frames"), || {
            self.poll();
            self.received() >= frames
        });
        assert_eq!(self.received(), frames, "frames received");
    }

    pub fn received(&self) -> usize {
        self.frames.iter().map(Vec::len).sum()
    }

    /// Starts anew with what was handed over.
    pub fn forget(&mut self) {
        self.forgotten += self.received();
        self.frames.iter_mut().for_each(Vec::clear);
    }

    /// Of all workers.
    pub fn counters(&mut self) -> CaptureCounters {
        let mut sum = CaptureCounters::default();
        for source in &mut self.sources {
            sum.add(&source.counters());
        }
        sum
    }

    /// Lets nothing new in and takes what had arrived.
    pub fn finish(&mut self) {
        for (source, frames) in self.sources.iter_mut().zip(&mut self.frames) {
            source.finish(&mut |batch| frames.extend(batch.iter().map(OwnedFrame::from))).unwrap();
        }
        assert_eq!(
            self.counters().received,
            (self.forgotten + self.received()) as u64,
            "what is counted is what was handed over"
        );
    }
}
