//! Turns nothing into a link: two network namespaces, a thread in each, and a veth pair between them. Neither namespace
//! has a name: the kernel takes all of it away with the process, however that ends.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::Scope;

use anyhow::{Context, anyhow, bail};

use crate::capture::{enter_new_network, pin};

/// The end that sends, and the one that is captured on.
pub(super) const SENDING: &str = "lwsend";
pub(super) const RECEIVING: &str = "lwrecv";

/// A thread in a network namespace of its own, pinned to a core, that does what it is told.
/// Its thread ends when the last one who could tell it something has let go of it.
#[derive(Clone)]
pub(super) struct Host<'scope>(Sender<Order<'scope>>);

type Order<'scope> = Box<dyn FnOnce() + Send + 'scope>;

impl<'scope> Host<'scope> {
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>, core: usize) -> anyhow::Result<Self> {
        let (orders, receiver) = channel::<Order<'scope>>();
        scope.spawn(move || {
            for order in receiver {
                order();
            }
        });
        let host = Self(orders);
        host.run(move || {
            enter_new_network().map_err(|error| {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    anyhow!(super::Forbidden)
                } else {
                    anyhow!("cannot make a network namespace: {error}; the kernel needs CONFIG_NET_NS")
                }
            })?;
            pin(core).with_context(|| format!("cannot pin a thread to core {core}"))?;
            silence();
            anyhow::Ok(())
        })??;
        Ok(host)
    }

    /// Runs there, and waits for it.
    pub(super) fn run<T: Send + 'scope>(&self, what: impl FnOnce() -> T + Send + 'scope) -> anyhow::Result<T> {
        let (answer, answers) = channel();
        let order = Box::new(move || {
            let _ = answer.send(what());
        });
        match (self.0.send(order), answers.recv()) {
            (Ok(()), Ok(answer)) => Ok(answer),
            _ => bail!("a thread of the bench has ended: a defect of linewarden"),
        }
    }
}

/// What the kernel would send by itself (neighbour discovery, multicast reports) stays out. `/proc/sys/net` is the
/// calling thread's own network. Where there is no IPv6, there is nothing to turn off.
fn silence() {
    for which in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
}

/// Lays the cable. What comes out of it is handled on `core`, where it is captured, and not on the sender's.
pub(super) fn connect(sender: &Host<'_>, receiver: &Host<'_>, core: usize) -> anyhow::Result<()> {
    let there = receiver.run(thread_id)??;
    sender.run(move || {
        ip(&format!("link add name {SENDING} mtu 65535 type veth peer name {RECEIVING} mtu 65535 netns {there}"))?;
        ip(&format!("link set {SENDING} up"))
    })??;
    receiver.run(move || {
        ip(&format!("link set {RECEIVING} up"))?;
        steer(core)
    })?
}

/// The calling thread's number; `ip` takes it for its namespace.
fn thread_id() -> anyhow::Result<String> {
    let link = std::fs::read_link("/proc/thread-self").context("/proc/thread-self: cannot be read")?;
    link.file_name().map(|name| name.to_string_lossy().into_owned()).context("/proc/thread-self leads nowhere")
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let done = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output();
    let done = done.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("`ip` is not installed, and makes the link: install the package iproute2"),
        _ => anyhow!("`ip` cannot be run: {error}"),
    })?;
    if !done.status.success() {
        bail!("`ip {arguments}` failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Receive packet steering (the kernel's `Documentation/networking/scaling.rst`). `/sys` shows the network that it was
/// mounted in: the file is reached through a mount of this network, which nobody else sees.
fn steer(core: usize) -> anyhow::Result<()> {
    let mut words = vec![0_u32; core / 32 + 1];
    if let Some(word) = words.last_mut() {
        *word = 1 << (core % 32);
    }
    let mask = words.iter().rev().map(|word| format!("{word:08x}")).collect::<Vec<_>>().join(",");
    let path = format!("/sys/class/net/{RECEIVING}/queues/rx-0/rps_cpus");
    let script = format!("mount -t sysfs sysfs /sys && echo {mask} >{path}");
    let done = Command::new("unshare").args(["--mount", "sh", "-ec", &script]).stdin(Stdio::null()).output();
    let done = done.context("`unshare` cannot be run: install the package util-linux")?;
    if !done.status.success() {
        bail!("{path}: cannot be written: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Packets that an interface of the calling thread's network has sent, and those that it dropped instead.
pub(super) fn sent(interface: &str) -> anyhow::Result<[u64; 2]> {
    let path = Path::new("/proc/thread-self/net/dev");
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let counts = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let field = |number: usize| counts?.split_whitespace().nth(number)?.parse().ok();
    // Eight columns of what was received come first: octets, packets, errors, drops and so on.
    Option::zip(field(9), field(11)).map(|(sent, dropped)| [sent, dropped]).context("/proc/net/dev lacks the link")
}
