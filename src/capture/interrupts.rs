//! Turns the receive interrupts of the captured NICs into ones that come in on the workers' cores, and back at the end
//! (the kernel's `Documentation/core-api/irq/irq-affinity.rst`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

/// Interrupts that come in elsewhere than before, until this goes away.
#[derive(Debug, Default)]
pub struct PinnedInterrupts(Vec<Pinned>);

#[derive(Debug)]
struct Pinned {
    path: PathBuf,
    /// Kept open: a process that has given up its rights may still put back what it changed.
    file: File,
    before: String,
}

/// Spreads the receive interrupts of each interface over `cores`, the workers' own, in order. What cannot be pinned is said
/// in the log, one line an interface, and stays as it was. `root` is `/`; tests have a tree of their own.
#[must_use]
pub fn pin_interrupts(root: &Path, interfaces: &[impl AsRef<str>], cores: &[usize]) -> PinnedInterrupts {
    let mut pinned = PinnedInterrupts::default();
    for interface in interfaces.iter().map(AsRef::as_ref) {
        let earlier = pinned.0.len();
        let found = receive_interrupts(root, interface).and_then(|interrupts| {
            let mut of_a_core = interrupts.iter().zip(cores.iter().cycle());
            of_a_core.try_for_each(|(interrupt, core)| pinned.pin(root, *interrupt, *core))?;
            Ok(interrupts.len())
        });
        match found {
            Ok(interrupts) => info!(interface, interrupts, ?cores, "receive interrupts come in on the workers' cores"),
            Err(obstacle) => {
                pinned.0.truncate(earlier);
                warn!(interface, "its interrupts are not pinned (capture.pin_interrupts): {obstacle}");
            }
        }
    }
    pinned
}

/// Why interrupts stay where they are.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("it has none of its own: veth, TUN, bridges, bonds and VLANs have none, only a NIC on a bus with MSI has")]
    NoInterrupts,
    #[error("none of them is known as a receive queue's: {0}")]
    NoQueues(String),
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: cannot be written: {error}{}", path.display(), remedy(error))]
    Refused { path: PathBuf, error: io::Error },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; run as root, or give the service what config/linewarden.toml says of this key"
        }
        // What the kernel says of interrupts that it spreads itself.
        _ if error.raw_os_error() == Some(libc::EIO) => "; the kernel keeps this driver's interrupts where it put them",
        _ => "",
    }
}

impl PinnedInterrupts {
    fn pin(&mut self, root: &Path, interrupt: u32, core: usize) -> Result<(), Obstacle> {
        let path = root.join(format!("proc/irq/{interrupt}/smp_affinity_list"));
        // The ports of one card may share its interrupts.
        if self.0.iter().any(|pinned| pinned.path == path) {
            return Ok(());
        }
        let pin = || {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut before = String::new();
            file.read_to_string(&mut before)?;
            rewrite(&mut file, &core.to_string())?;
            Ok((file, before))
        };
        match pin() {
            Ok((file, before)) => {
                self.0.push(Pinned { path, file, before: before.trim().to_owned() });
                Ok(())
            }
            Err(error) => Err(Obstacle::Refused { path, error }),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let Self { path, file, before } = self;
        if let Err(error) = rewrite(file, before) {
            warn!(path = %path.display(), %before, %error, "an interrupt could not be put back to where it came in");
        }
    }
}

fn rewrite(file: &mut File, cores: &str) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    // In one write, for the kernel takes each for the whole.
    file.write_all(format!("{cores}\n").as_bytes())
}

/// The numbers of an interface's receive interrupts, by queue.
fn receive_interrupts(root: &Path, interface: &str) -> Result<Vec<u32>, Obstacle> {
    let device = root.join("sys/class/net").join(interface).join("device");
    let own = message_interrupts(&device);
    if own.is_empty() {
        return Err(Obstacle::NoInterrupts);
    }
    let path = root.join("proc/interrupts");
    let text = fs::read_to_string(&path).map_err(|error| Obstacle::Unreadable { path, error })?;
    let names: Vec<(u32, &str)> = text.lines().filter_map(interrupt_line).filter(|(n, _)| own.contains(n)).collect();
    let mut queues: Vec<_> =
        names.iter().filter_map(|(number, name)| Some((receive_queue(name, interface)?, *number, *name))).collect();
    // Ports of one card that have their interrupts in one list have their own names in them.
    if queues.iter().any(|(_, _, name)| names_interface(name, interface)) {
        queues.retain(|(_, _, name)| names_interface(name, interface));
    }
    queues.sort_unstable();
    match (queues.as_slice(), names.as_slice()) {
        // A NIC with a single interrupt has it for everything.
        ([], [(number, _)]) => Ok(vec![*number]),
        ([], []) => Err(Obstacle::NoInterrupts),
        ([], names) => Err(Obstacle::NoQueues(names.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", "))),
        (queues, _) => Ok(queues.iter().map(|(_, number, _)| *number).collect()),
    }
}

/// The interrupts of a device on a bus; those of a virtio device are its PCI function's.
fn message_interrupts(device: &Path) -> Vec<u32> {
    let is_virtio = fs::read_link(device.join("subsystem")).is_ok_and(|bus| bus.ends_with("virtio"));
    let folder = if is_virtio { device.join("../msi_irqs") } else { device.join("msi_irqs") };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Number and name of a line of `/proc/interrupts`: the name comes last, behind a count for each core and the controller.
fn interrupt_line(line: &str) -> Option<(u32, &str)> {
    let (number, rest) = line.split_once(':')?;
    Some((number.trim().parse().ok()?, rest.split_whitespace().next_back()?))
}

/// The number of the receive queue that an interrupt is named after, in any driver's way; none of those that send only,
/// tell of the link's state, or serve flow director.
fn receive_queue(name: &str, interface: &str) -> Option<u32> {
    let name = name.split('@').next().unwrap_or(name);
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let queue = name.strip_prefix(stem)?.parse().ok()?;
    let stem = stem.trim_end_matches(['-', '.', '_']);
    // sfc and atlantic: `eth0-3`; mlx4: `mlx4-3`.
    if stem == interface || stem == "mlx4" {
        return Some(queue);
    }
    let stem = stem.to_ascii_lowercase();
    // ixgbe, i40e, ice, igb, bnxt, ena, hns3 end with Rx; vmxnet3, nfp with rxtx; bnx2x, qede with fp; then virtio, mlx5, mana.
    let is_receive =
        ["rx", "rxtx", "rx-tx", "-fp", "-input", "mlx5_comp", "mana_q"].iter().any(|end| stem.ends_with(end));
    (is_receive && !stem.contains("fdir")).then_some(queue)
}

/// `i40e-eth0-TxRx-3` names eth0, and not eth or th0.
fn names_interface(name: &str, interface: &str) -> bool {
    name.match_indices(interface).any(|(at, _)| {
        let before = name.get(..at).and_then(|before| before.chars().next_back());
        let after = name.get(at + interface.len()..).and_then(|after| after.chars().next());
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a card's interrupts are called, from number 30 on, and the places in this list of the receive queues.
    const CASES: &[(&str, &str, &[&str], &[u32])] = &[
        ("ixgbe", "eth0", &["eth0-TxRx-1", "eth0-TxRx-0", "eth0"], &[31, 30]),
        ("ten queues and more", "eth0", &["eth0-TxRx-10", "eth0-TxRx-9", "eth0"], &[31, 30]),
        ("igb, split", "eth0", &["eth0", "eth0-rx-0", "eth0-tx-0"], &[31]),
        (
            "i40e",
            "eth0",
            &["i40e-0000:3b:00.0:misc", "i40e-eth0-TxRx-0", "i40e-eth0-TxRx-1", "i40e-0000:3b:00.0:fdir-TxRx-0"],
            &[31, 32],
        ),
        (
            "mlx5",
            "eth0",
            &["mlx5_async0@pci:0000:5e:00.0", "mlx5_comp0@pci:0000:5e:00.0", "mlx5_comp3@pci:0000:5e:00.0"],
            &[31, 32],
        ),
        ("mlx4", "eth0", &["mlx4-async@pci:0000:03:00.0", "mlx4-1@0000:03:00.0", "mlx4-2@0000:03:00.0"], &[31, 32]),
        ("virtio", "eth0", &["virtio2-config", "virtio2-input.0", "virtio2-output.0", "virtio2-input.1"], &[31, 33]),
        ("ena", "ens5", &["ena-mgmnt@pci:0000:00:05.0", "ens5-Tx-Rx-0", "ens5-Tx-Rx-1"], &[31, 32]),
        ("vmxnet3", "eth0", &["eth0-rxtx-0", "eth0-rxtx-1", "eth0-event-2"], &[30, 31]),
        ("bnx2x", "eth0", &["eth0", "eth0-fp-0", "eth0-fp-1"], &[31, 32]),
        ("sfc", "eth0", &["eth0-0", "eth0-1"], &[30, 31]),
        ("one for everything", "eth0", &["enp3s0"], &[30]),
        ("another port of the card", "eth0", &["eth1-TxRx-0", "eth0-TxRx-0", "eth10-TxRx-0"], &[31]),
    ];

    /// A tree with one NIC, and a stranger's interrupt with a name like its own.
    fn tree(interface: &str, names: &[&str], virtio: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let function = at("sys/devices/pci0000:00/0000:00:03.0");
        fs::create_dir_all(function.join("msi_irqs")).unwrap();
        let device = if virtio { function.join("virtio2") } else { function.clone() };
        fs::create_dir_all(&device).unwrap();
        symlink(at(if virtio { "sys/bus/virtio" } else { "sys/bus/pci" }), device.join("subsystem")).unwrap();
        fs::create_dir_all(at("sys/class/net").join(interface)).unwrap();
        symlink(device, at("sys/class/net").join(interface).join("device")).unwrap();
        let mut text =
            "            CPU0       CPU1\n  0:         44          0  IO-APIC   2-edge      timer\n".to_owned();
        writeln!(text, " 99:          0          0  PCI-MSI-0000:00:09.0   0-edge      {interface}-TxRx-7").unwrap();
        for (number, name) in (30..).zip(names) {
            fs::write(function.join(format!("msi_irqs/{number}")), "msix\n").unwrap();
            writeln!(text, " {number}:          1    2345678  PCI-MSIX-0000:00:03.0   1-edge      {name}").unwrap();
        }
        text += "NMI:          0          0   Non-maskable interrupts\n";
        fs::create_dir_all(at("proc")).unwrap();
        fs::write(at("proc/interrupts"), text).unwrap();
        for number in (30..30 + names.len() as u32).chain([99]) {
            fs::create_dir_all(at(&format!("proc/irq/{number}"))).unwrap();
            fs::write(at(&format!("proc/irq/{number}/smp_affinity_list")), "0-7\n").unwrap();
        }
        root
    }

    fn affinity(root: &Path, number: u32) -> String {
        fs::read_to_string(root.join(format!("proc/irq/{number}/smp_affinity_list"))).unwrap()
    }

    #[test]
    fn receive_queues_are_found_by_any_drivers_names() {
        for (driver, interface, names, expected) in CASES {
            let root = tree(interface, names, *driver == "virtio");
            assert_eq!(receive_interrupts(root.path(), interface).unwrap(), *expected, "{driver}");
        }
    }

    #[test]
    fn queues_go_to_the_workers_cores_by_turns_and_back() {
        let names = ["eth0-TxRx-0", "eth0-TxRx-1", "eth0-TxRx-2", "eth0"];
        let root = tree("eth0", &names, false);
        let pinned = pin_interrupts(root.path(), &["eth0".to_owned(), "eth0".to_owned()], &[2, 5]);
        let now = [30, 31, 32, 33, 99].map(|number| affinity(root.path(), number));
        assert_eq!(now, ["2\n", "5\n", "2\n", "0-7\n", "0-7\n"]);
        drop(pinned);
        for number in [30, 31, 32, 33, 99] {
            assert_eq!(affinity(root.path(), number), "0-7\n");
        }
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let root = tree("eth0", &["eth0-event", "eth0-tx-0"], false);
        let error = |root: &Path, interface| receive_interrupts(root, interface).unwrap_err().to_string();
        assert!(error(root.path(), "veth0").contains("it has none of its own"));
        assert!(error(root.path(), "eth0").ends_with("receive queue's: eth0-event, eth0-tx-0"));
        fs::remove_file(root.path().join("proc/interrupts")).unwrap();
        assert!(error(root.path(), "eth0").contains("proc/interrupts: No such file"));

        let root = tree("eth0", &["eth0-TxRx-0"], false);
        fs::remove_file(root.path().join("proc/irq/30/smp_affinity_list")).unwrap();
        let error = PinnedInterrupts::default().pin(root.path(), 30, 1).unwrap_err().to_string();
        assert!(error.contains("proc/irq/30/smp_affinity_list: cannot be written: No such file"), "{error}");
        for (number, says) in
            [(libc::EACCES, "run as root"), (libc::EROFS, "run as root"), (libc::EIO, "the kernel keeps")]
        {
            assert!(remedy(&io::Error::from_raw_os_error(number)).contains(says));
        }
        // And nothing ends by it.
        assert!(pin_interrupts(root.path(), &["eth0".to_owned(), "veth0".to_owned()], &[1]).0.is_empty());
    }
}
