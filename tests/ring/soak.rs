//! Hours at a steady mixed load, with tunnels that come and go, reloads and rotations: memory, counters and log stay true.
//! `tests/soak` runs it.
#![expect(clippy::cast_precision_loss, reason = "figures for the eye")]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use linewarden::capture::Sender;
use linewarden::capture::reel::Player;
use linewarden::capture::synthetic;
use serde_json::Value;

use crate::common::OwnedFrame;
use crate::common::command::{LINEWARDEN, approval, assert_packets_add_up, done, folder, linewarden, number};
use crate::common::netns::Daemon;
use crate::common::packet::Packet;
use crate::common::pcap::frames;
use crate::link::{counted, in_namespace_aloud, until, veth};

/// Of the steady flows, and how many of them there are.
const PACKETS_A_SECOND: u64 = 10_000;
const STEADY_FLOWS: u32 = 20_000;
/// Sessions begun each second, each with an address of its own and its first packets.
const SESSIONS_A_SECOND: u64 = 8;
const SESSION_PACKETS: usize = 40;
const SESSIONS: [&str; 16] = [
    "wireguard-port-51820",
    "openvpn-udp",
    "ike-v2-certificates",
    "esp-udp-behind-nat",
    "benign-nginx-https",
    "openvpn-tcp-443",
    "gre-ip",
    "l2tp-xl2tpd",
    "benign-aioquic-quic",
    "vxlan-linux",
    "ipip-tunnel",
    "pptp-call",
    "anyconnect-openconnect-psk",
    "tinc-meta-and-packets",
    "benign-dnsmasq-dns",
    "zerotier-libzt",
];
/// Of the process: the main one, two workers, keeper and archiver of each log, the inventory's, and ten of the runtime.
const THREADS: usize = 18;

const SETTINGS: &str = "sensor = \"soak\"
[capture]
interfaces = [\"near\"]
workers = 2
[flow]
idle_timeout = \"15s\"
active_timeout = \"5m\"
memory_octets = \"64MiB\"
[records]
rotate_octets = \"4MiB\"
keep_octets = \"24MiB\"
[control]
socket = \"c.sock\"
[metrics]
listen = \"unix:m.sock\"
";

/// What is looked at between two stretches of load.
struct Sample {
    second: u64,
    sent: u64,
    status: Value,
    resident: u64,
    descriptors: usize,
    threads: usize,
}

struct Soak<'a> {
    daemon: Daemon,
    folder: &'a Path,
    sender: Sender,
    steady: Player<'a>,
    sessions: Vec<Vec<(Packet, OwnedFrame)>>,
    begun: u64,
}

impl Soak<'_> {
    /// Load for a second, spread over it.
    #[expect(clippy::disallowed_methods, reason = "it keeps a pace")]
    fn second(&mut self) {
        const TURNS: u64 = 50;
        let start = Instant::now();
        for turn in 0..TURNS {
            let mut left = PACKETS_A_SECOND / TURNS;
            while left > 0 {
                let batch = self.steady.batch(left.min(64));
                left -= batch.len() as u64;
                assert_eq!(self.sender.send(batch).unwrap(), batch.len());
            }
            for _ in SESSIONS_A_SECOND * turn / TURNS..SESSIONS_A_SECOND * (turn + 1) / TURNS {
                self.session();
            }
            let next = Duration::from_millis(1000 * (turn + 1) / TURNS);
            std::thread::sleep(next.saturating_sub(start.elapsed()));
        }
    }

    /// A recorded session whose client, the lower of the addresses that vary, nobody saw before.
    fn session(&mut self) {
        let number = self.begun;
        self.begun += 1;
        let session = &self.sessions[number as usize % self.sessions.len()];
        let client = [10, 128 | (number >> 16) as u8, (number >> 8) as u8, number as u8];
        let replaced = session[0].0.addresses[0].clone();
        let frames: Vec<_> = session
            .iter()
            .map(|(packet, like)| {
                let mut packet = packet.clone();
                for address in &mut packet.addresses {
                    if *address == replaced && address.len() == 4 {
                        *address = client.to_vec();
                    }
                }
                packet.frame(like)
            })
            .collect();
        let borrowed: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
        assert_eq!(self.sender.send(&borrowed).unwrap(), frames.len());
    }

    fn ctl(&self, command: &str) -> Value {
        let mut ctl = linewarden(["ctl", "--socket", "c.sock", command, "--json"]);
        let done = done(ctl.current_dir(self.folder)).expect(0);
        serde_json::from_str::<Value>(&done.out).unwrap()[command].clone()
    }

    /// Every packet sent so far is accounted for; then what the daemon holds.
    fn sample(&self, second: u64) -> Sample {
        let sent = counted("near", "rx_packets");
        let mut status = Value::Null;
        until("every packet is counted", || {
            status = self.ctl("status");
            let packets = status["interfaces"][0]["packets"].as_u64().unwrap();
            assert!(packets <= sent, "counted {packets} packets of {sent}");
            packets == sent
        });
        let metrics = scrape(&self.folder.join("m.sock"));
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        let process = format!("/proc/{}", self.daemon.process());
        let entries = |name| fs::read_dir(format!("{process}/{name}")).unwrap().count();
        Sample {
            second,
            sent,
            resident: self.daemon.memory("VmRSS"),
            descriptors: entries("fd"),
            threads: entries("task"),
            status,
        }
    }

    fn verify(&self) {
        let verified = done(linewarden(["verify-log", "log"]).current_dir(self.folder));
        assert_eq!(verified.code, 0, "{}\n{}", verified.out, verified.err);
    }

    /// The approvals of one round, then those of the other.
    fn reload(&self, round: u64) {
        let peer = format!("valid_until = 2099-12-31\npeers = [\"198.51.100.{}\"]", 1 + round % 2);
        fs::write(self.folder.join("approvals.d/a.toml"), approval("vpn", "partner", &peer)).unwrap();
        let answer = self.ctl("reload");
        assert_eq!(answer["workers"], 2, "{answer}");
        assert_ne!(answer["revision"], answer["before"], "{answer}");
    }
}

fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Sample {
    const HEAD: &str =
        "second      packets  dropped    open   evicted  table MiB  resident MiB   fds  threads    records  segments";

    fn line(&self, folder: &Path) -> String {
        const MIB: f64 = 1_048_576.0;
        let number = |at: &str| self.status.pointer(at).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {at}"));
        let segments = fs::read_dir(folder.join("log")).unwrap().count();
        let mut line = String::new();
        write!(
            line,
            "{:>6} {:>12} {:>8} {:>7} {:>9} {:>10.1} {:>13.1} {:>5} {:>8} {:>10} {:>9}",
            self.second,
            self.sent,
            number("/interfaces/0/dropped_kernel"),
            number("/flows_open"),
            number("/flows_evicted"),
            number("/table_octets") as f64 / MIB,
            self.resident as f64 / MIB,
            self.descriptors,
            self.threads,
            number("/records/written"),
            segments,
        )
        .unwrap();
        line
    }
}

/// Every `interval` seconds a sample; a reload at each minute, a rotation at each fifth, the whole log verified at each tenth.
#[test]
#[ignore = "takes two hours, or LINEWARDEN_SOAK_SECONDS; tests/soak runs it"]
fn hours_change_nothing() {
    in_namespace_aloud(|| {
        let seconds: u64 = std::env::var("LINEWARDEN_SOAK_SECONDS").map_or(7200, |text| text.parse().unwrap());
        let interval = (seconds / 240).clamp(1, 30);
        veth("far", "near");
        let settings = synthetic::Settings { flows: STEADY_FLOWS, packets: 400_000, ..Default::default() };
        let reel = synthetic::reel(&settings).unwrap();
        let folder = folder(&[("approvals.d/none", ""), ("s.toml", SETTINGS)]);
        let mut command = std::process::Command::new(LINEWARDEN);
        command.args(["run", "--config", "s.toml", "--approvals", "approvals.d", "--records", "log"]);
        command.current_dir(folder.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        let mut daemon = Daemon::start(command, folder.path().join("log"));
        daemon.says("capturing");
        let sessions = SESSIONS.map(|name| {
            let session = frames(name).into_iter().filter_map(|frame| Some((Packet::of(&frame)?, frame)));
            session.take(SESSION_PACKETS).collect()
        });
        let mut soak = Soak {
            daemon,
            folder: folder.path(),
            sender: Sender::open("far").unwrap(),
            steady: reel.play().unwrap(),
            sessions: sessions.into(),
            begun: 0,
        };
        println!("{}", Sample::HEAD);
        let mut samples: Vec<Sample> = Vec::new();
        for second in 1..=seconds {
            soak.second();
            if second % 60 == 0 {
                soak.reload(second / 60);
            }
            if second % 300 == 0 {
                soak.ctl("rotate");
            }
            if second % 600 == 0 {
                soak.verify();
            }
            if second % interval == 0 {
                let sample = soak.sample(second);
                println!("{}", sample.line(soak.folder));
                samples.push(sample);
            }
        }
        soak.daemon.signal("TERM");
        assert_eq!(soak.daemon.ends(), 0, "{}", soak.daemon.said.join("\n"));
        soak.verify();
        println!("verify-log: whole");

        let summary = soak.daemon.summary();
        let number = |name| number(&summary, name);
        assert_packets_add_up(&summary);
        assert_eq!(number("packets"), counted("near", "rx_packets"));
        assert_eq!(number("records_lost"), 0, "{summary}");
        println!(
            "packets {} = classified {} + undecodable {} + dropped {}; records {}, lost 0; sessions {}",
            number("packets"),
            number("classified"),
            number("packets") - number("classified") - number("dropped_kernel"),
            number("dropped_kernel"),
            number("records"),
            soak.begun
        );

        // The first third warms up: tables, the log's room, the allocator.
        let peak = |samples: &[Sample]| samples.iter().map(|sample| sample.resident).max().unwrap();
        let (middle, last) = samples[samples.len() / 3..].split_at(samples.len() / 3);
        let (before, after) = (peak(middle), peak(last));
        println!("resident at most {before} octets in the middle third, {after} in the last");
        assert!(after <= before + before / 20, "memory grows");
        let most = |of: fn(&Sample) -> usize, samples: &[Sample]| samples.iter().map(of).max().unwrap();
        let [before, after] = [middle, last].map(|samples| most(|sample| sample.descriptors, samples));
        assert!(after <= before + 2, "file descriptors grow: {before}, then {after}");
        // One more comes whenever more tasks than ever wait for the disk at once.
        let threads = most(|sample| sample.threads, &samples);
        println!("at most {after} file descriptors in the last third; at most {threads} threads");
        assert!(threads <= THREADS, "more than {THREADS} threads: {threads}");
    });
}
