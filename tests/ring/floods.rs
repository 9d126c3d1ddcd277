//! What a stranger can send at full speed: the bound on memory holds, every packet is accounted for, tunnels that were there
//! before keep their records, and the daemon answers. `tests/floods` sends millions of packets of each kind and measures;
//! without it so many are sent that tables overflow.
#![expect(clippy::cast_precision_loss, reason = "figures for the eye")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use linewarden::capture::{Sender, synthetic};
use linewarden::time::Timestamp;
use linewarden::wire::{InterfaceId, LinkType};
use serde_json::Value;

use crate::common::OwnedFrame;
use crate::common::command::{
    LINEWARDEN, assert_packets_add_up, assert_valid, done, folder, linewarden, number, of_kind,
};
use crate::common::netns::Daemon;
use crate::common::pcap::frames;
use crate::frames::{Pair, TCP, UDP, ethernet, fragments, ip, udp};
use crate::link::{counted, in_namespace, in_namespace_aloud, run, until, veth};

/// Numbers without a pattern, the same at each run (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> usize {
        (self.number() % bound) as usize
    }

    fn port(&mut self) -> u16 {
        self.number() as u16
    }

    fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }

    /// Strangers of one IP version, three in four of them of version 4.
    fn pair(&mut self) -> Pair {
        let is_v6 = self.below(4) == 0;
        [(), ()].map(|()| if is_v6 { self.ipv6() } else { Ipv4Addr::from(self.number() as u32 | 0x0100_0000).into() })
    }

    fn ipv6(&mut self) -> IpAddr {
        Ipv6Addr::from(u128::from(self.number()) | 0x2001_0db8 << 96).into()
    }
}

/// Its name, and its frames one after the other.
type Flood = (&'static str, fn(&mut Random, u64) -> Vec<u8>);

const FLOODS: [Flood; 10] = [
    ("TCP SYN", |random, _| {
        // RFC 9293 3.1: SYN alone.
        let numbers = [random.port(), random.port(), random.port(), random.port(), 0, 0, 5 << 12 | 2, 1024, 0, 0];
        ethernet(&ip(random.pair(), TCP, &numbers.map(u16::to_be_bytes).concat()))
    }),
    ("UDP", |random, _| {
        let len = random.below(200);
        ethernet(&udp(random.pair(), [random.port(), random.port()], &random.octets(len)))
    }),
    ("WireGuard initiations", |random, _| {
        ethernet(&udp(random.pair(), [random.port(), 51_820], &[&[1, 0, 0, 0][..], &random.octets(144)].concat()))
    }),
    ("WireGuard, both ends forged", both_ends_of_wireguard),
    ("IKE_SA_INIT", |random, _| {
        // RFC 7296 3.1 and 3.2: initiator's SPI, none of the responder, SA payload of 28 octets next.
        let head = [&random.octets(8)[..], &[0; 8], &[33, 0x20, 34, 8, 0, 0, 0, 0, 0, 0, 0, 56, 40, 0, 0, 28]].concat();
        ethernet(&udp(random.pair(), [500, 500], &[head, random.octets(24)].concat()))
    }),
    ("OpenVPN resets", |random, _| {
        // P_CONTROL_HARD_RESET_CLIENT_V2, session, no acknowledgements, packet 0.
        let reset = [&[7 << 3][..], &random.octets(8), &[0; 5]].concat();
        ethernet(&udp(random.pair(), [random.port(), 1194], &reset))
    }),
    ("fragments without end", |random, number| {
        let pair = random.pair();
        let packet = udp(pair, [random.port(), random.port()], &random.octets(120));
        let [first, second] = fragments(&packet, number as u16, 64);
        ethernet(if random.below(2) == 0 { &first } else { &second })
    }),
    ("tiny and cut", |random, _| {
        let frame = ethernet(&udp(random.pair(), [random.port(), random.port()], &[0; 8]));
        let len = 14 + random.below(frame.len() as u64 - 14);
        frame[..len].to_vec()
    }),
    ("jumbo", |random, _| ethernet(&udp(random.pair(), [random.port(), random.port()], &[0x5a; 8900]))),
    ("IPv6 extension chains", |random, _| {
        // RFC 8200 4.2 to 4.6: options and routing headers of 8 octets; some chains have no end.
        let pair = [(), ()].map(|()| random.ipv6());
        let count = random.below(180);
        let mut chain = Vec::new();
        for number in 0..=count {
            let next = if number == count { UDP } else { [0, 43, 60][random.below(3)] };
            chain.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        chain.extend([random.port(), 53, 12, 0].map(u16::to_be_bytes).concat());
        chain.extend(random.octets(4));
        ethernet(&ip(pair, 60, &chain))
    }),
];

/// Initiation, response and data of strangers that agree with each other: a tunnel as good as any, three packets each.
fn both_ends_of_wireguard(_: &mut Random, number: u64) -> Vec<u8> {
    let mut random = Random((number / 3 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let ([one, other], port) = (random.pair(), random.port());
    let [initiator, responder] = [0, 1].map(|_| random.octets(4));
    let (pair, ports, message) = match number % 3 {
        0 => ([one, other], [port, 51_820], [&[1, 0, 0, 0][..], &initiator, &random.octets(140)].concat()),
        1 => ([other, one], [51_820, port], [&[2, 0, 0, 0][..], &responder, &initiator, &random.octets(80)].concat()),
        _ => ([one, other], [port, 51_820], [&[4, 0, 0, 0][..], &responder, &[0; 8], &random.octets(48)].concat()),
    };
    ethernet(&udp(pair, ports, &message))
}

/// Bounds that are soon reached; the rest as installed.
const SETTINGS: &str = "[capture]
interfaces = [\"near\"]
workers = 2
[flow]
memory_octets = TABLE
idle_timeout = \"IDLE\"
[records]
queue = 4096
[control]
socket = \"c.sock\"
";
const MIB: f64 = 1_048_576.0;
/// What `ctl status` and the service's watchdog may take at most.
const ANSWER: Duration = Duration::from_secs(1);
const WATCHDOG: Duration = Duration::from_secs(30);
/// However long a flood is: `records.queue` with evidence (4 MiB), records that wait for the disk (8), the view of 65,536 open
/// tunnels (24), the log's compression (20), and an inventory of 100,000 tunnels that makes room (48).
const OTHER_OCTETS: u64 = 104 << 20;

/// A daemon under a flood.
struct Victim<'a> {
    daemon: Daemon,
    folder: &'a Path,
    sender: Sender,
    /// Frames of a tunnel that was there before, sent again and again among the others.
    tunnel: Vec<OwnedFrame>,
    tunnel_sent: u64,
}

/// How much is sent, and to a daemon with which bounds.
struct Size {
    packets: u64,
    table_octets: u64,
    idle_timeout: &'static str,
    /// Times count, too, and what a packet costs before and after.
    is_measured: bool,
}

/// What one flood did.
struct Outcome {
    peak: u64,
    before: u64,
    slowest_answer: Duration,
    longest_silence: Duration,
    status: Value,
}

impl<'a> Victim<'a> {
    fn start(folder: &'a Path) -> Self {
        let mut command = Command::new(LINEWARDEN);
        command.args(["run", "--config", "s.toml", "--approvals", "approvals.d", "--records", "log"]);
        command.current_dir(folder).env_remove("RUST_LOG").stdin(Stdio::null());
        command.env("NOTIFY_SOCKET", folder.join("notify"));
        let mut daemon = Daemon::start(command, folder.join("log"));
        daemon.says("capturing");
        let tunnel = frames("wireguard-port-51820");
        Self { daemon, folder, sender: Sender::open("far").unwrap(), tunnel, tunnel_sent: 0 }
    }

    /// Begins the tunnel, and waits for what the log says of it.
    fn tunnel(&mut self) -> Value {
        let rest = self.tunnel.split_off(self.tunnel.len() / 2);
        let begun: Vec<_> = self.tunnel.iter().map(OwnedFrame::borrow).collect();
        assert_eq!(self.sender.send(&begun).unwrap(), begun.len());
        self.tunnel_sent += begun.len() as u64;
        self.tunnel = rest;
        let is_it = |record: &Value| record["dst_ip"] == "198.51.100.2" && record["confidence"] == "certain";
        self.daemon.record("the tunnel", is_it)
    }

    fn send_tunnel(&mut self, number: usize) {
        let frame = &self.tunnel[number % self.tunnel.len()];
        assert_eq!(self.sender.send(&[frame.borrow()]).unwrap(), 1);
        self.tunnel_sent += 1;
    }

    fn send(&mut self, flood: Flood, packets: u64) {
        const BATCH: u64 = 64;
        let mut random = Random(1);
        for number in (0..packets).step_by(BATCH as usize) {
            let batch: Vec<_> = (number..number + BATCH).map(|number| owned(flood.1(&mut random, number))).collect();
            let batch: Vec<_> = batch.iter().map(OwnedFrame::borrow).collect();
            assert_eq!(self.sender.send(&batch).unwrap(), batch.len());
            if number % (8 * BATCH) == 0 {
                self.send_tunnel((number / (8 * BATCH)) as usize);
            }
        }
    }

    fn status(&self) -> Value {
        status(&self.folder.join("c.sock"))
    }

    /// All that arrived is accounted for.
    fn settle(&self) -> Value {
        let mut last = Value::Null;
        until("every packet is counted", || {
            last = self.status();
            last["interfaces"][0]["packets"] == counted("near", "rx_packets")
        });
        last
    }

    /// Processor time of the workers, nanoseconds (proc(5), `schedstat`).
    fn worker_nanoseconds(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.process())).unwrap();
        let paths = tasks.map(|task| task.unwrap().path());
        let workers =
            paths.filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("worker-")));
        let time =
            |path: &Path| fs::read_to_string(path.join("schedstat")).unwrap().split(' ').next().unwrap().parse::<u64>();
        workers.map(|path| time(&path).unwrap()).sum()
    }

    /// What a packet of ordinary traffic costs the workers, nanoseconds.
    fn cost(&mut self, seed: u64) -> f64 {
        const PACKETS: u64 = 300_000;
        let settings = synthetic::Settings { flows: 2000, packets: PACKETS, seed, ..Default::default() };
        let reel = synthetic::reel(&settings).unwrap();
        let mut player = reel.play().unwrap();
        let before = (self.settle()["interfaces"][0]["packets"].as_u64().unwrap(), self.worker_nanoseconds());
        for turn in 0..PACKETS / 64 {
            assert!(self.sender.send(player.batch(64)).unwrap() > 0);
            if turn % 20 == 0 {
                sleep(Duration::from_millis(5));
            }
        }
        let after = (self.settle()["interfaces"][0]["packets"].as_u64().unwrap(), self.worker_nanoseconds());
        (after.1 - before.1) as f64 / (after.0 - before.0) as f64
    }

    fn flood(&mut self, flood: Flood, packets: u64) -> Outcome {
        // proc(5): the peak begins anew.
        fs::write(format!("/proc/{}/clear_refs", self.daemon.process()), "5").unwrap();
        let before = self.daemon.memory("VmRSS");
        let socket = self.folder.join("c.sock");
        let notify = UnixDatagram::bind(self.folder.join("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let over = AtomicBool::new(false);
        let (slowest_answer, longest_silence) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| slowest_answer(&socket, &over));
            let listening = scope.spawn(|| longest_silence(&notify, &over));
            self.send(flood, packets);
            self.settle();
            over.store(true, Ordering::Relaxed);
            (asking.join().unwrap(), listening.join().unwrap())
        });
        Outcome { peak: self.daemon.memory("VmHWM"), before, slowest_answer, longest_silence, status: self.status() }
    }
}

fn owned(data: Vec<u8>) -> OwnedFrame {
    OwnedFrame {
        at: Timestamp::ZERO,
        number: 0,
        wire_len: data.len() as u32,
        interface: InterfaceId::default(),
        link: LinkType::Ethernet,
        stripped_vlan: None,
        data,
    }
}

fn status(socket: &Path) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"{\"version\":1,\"command\":\"status\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str::<Value>(&answer).unwrap()["status"].clone()
}

#[expect(clippy::disallowed_methods, reason = "it measures how long an answer takes")]
fn slowest_answer(socket: &Path, over: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        assert!(status(socket)["interfaces"].is_array());
        slowest = slowest.max(asked.elapsed());
        sleep(Duration::from_millis(20));
    }
    slowest
}

/// Between two signs of life that the service manager hears.
#[expect(clippy::disallowed_methods, reason = "it measures how long nothing is heard")]
fn longest_silence(socket: &UnixDatagram, over: &AtomicBool) -> Duration {
    let (mut longest, mut heard, mut message) = (Duration::ZERO, Instant::now(), [0; 4096]);
    while !over.load(Ordering::Relaxed) {
        if let Ok(len) = socket.recv(&mut message)
            && message[..len].starts_with(b"WATCHDOG=1")
        {
            heard = Instant::now();
        }
        longest = longest.max(heard.elapsed());
    }
    longest
}

/// One daemon for each flood.
fn floods(size: &Size) {
    println!(
        "{:<28} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9} {:>8} {:>9} {:>6}",
        "flood",
        "packets",
        "dropped",
        "flows",
        "evicted",
        "lost",
        "peak MiB",
        "table MiB",
        "answer",
        "watchdog",
        "cost"
    );
    let wanted = std::env::var("LINEWARDEN_FLOOD").unwrap_or_default();
    for flood in FLOODS.into_iter().filter(|flood| flood.0.contains(&wanted)) {
        veth("far", "near");
        let settings = SETTINGS.replace("TABLE", &size.table_octets.to_string()).replace("IDLE", size.idle_timeout);
        let folder = folder(&[("approvals.d/none", ""), ("s.toml", &settings)]);
        let mut victim = Victim::start(folder.path());
        let cost_before = size.is_measured.then(|| victim.cost(1));
        let known = victim.tunnel();
        let outcome = victim.flood(flood, size.packets);
        let cost = cost_before.map(|before| {
            until("the flood's flows to end", || victim.status()["flows_open"].as_u64().unwrap() < 3000);
            victim.cost(2) / before
        });

        let bound = outcome.before + size.table_octets + OTHER_OCTETS;
        assert!(outcome.peak <= bound, "{}: {} octets resident, {bound} allowed", flood.0, outcome.peak);
        let table = outcome.status["table_octets"].as_u64().unwrap();
        // One turn of the workers may take it past the bound.
        assert!(table <= size.table_octets + size.table_octets / 4, "{}: table of {table} octets", flood.0);
        if size.is_measured {
            assert!(outcome.slowest_answer < ANSWER, "{}: {:?} for an answer", flood.0, outcome.slowest_answer);
            assert!(outcome.longest_silence < WATCHDOG, "{}: silent for {:?}", flood.0, outcome.longest_silence);
        }
        victim.daemon.signal("TERM");
        assert_eq!(victim.daemon.ends(), 0, "{}", victim.daemon.said.join("\n"));
        let summary = victim.daemon.summary();
        let number = |name| number(&summary, name);
        assert_packets_add_up(&summary);
        assert_eq!(number("packets"), counted("near", "rx_packets"), "{}: {summary}", flood.0);
        check_tunnel(&victim, &known, number("dropped_kernel"), flood.0);
        println!(
            "{:<28} {:>9} {:>8} {:>8} {:>8} {:>9} {:>+8.1} {:>9.1} {:>6}ms {:>7}ms {:>6}",
            flood.0,
            number("packets"),
            number("dropped_kernel"),
            number("flows"),
            outcome.status["flows_evicted"],
            number("records_lost"),
            (outcome.peak as f64 - outcome.before as f64) / MIB,
            table as f64 / MIB,
            outcome.slowest_answer.as_millis(),
            outcome.longest_silence.as_millis(),
            cost.map_or("-".into(), |cost| format!("{cost:.2}"))
        );
        run("ip link delete far");
    }
}

/// The tunnel that was there before is one flow still, as certain as before, with every packet of it that was not dropped.
fn check_tunnel(victim: &Victim<'_>, known: &Value, dropped: u64, flood: &str) {
    let mut query = linewarden(["query", "log", "--format", "ndjson", "--community-id"]);
    let records =
        done(query.arg(known["community_id"].as_str().unwrap()).current_dir(victim.folder)).expect(0).records();
    assert_valid(&records);
    let ends = of_kind(records, "end");
    assert!(!ends.is_empty(), "{flood}: no record of the tunnel");
    for end in &ends {
        assert_eq!([&end["verdict"], &end["tunnel"]], ["unapproved_vpn_tunnel", "wireguard"], "{flood}: {end}");
        assert_eq!(end["flow_id"], known["flow_id"], "{flood}: {end}");
    }
    let packets = |end: &Value| ["fwd_packets", "rev_packets"].map(|name| end[name].as_u64().unwrap());
    let found: u64 = ends.iter().flat_map(packets).sum();
    let sent = victim.tunnel_sent;
    assert!(found <= sent && found + dropped >= sent, "{flood}: {found} of {sent} packets, {dropped} dropped");
}

#[test]
fn no_flood_breaks_a_promise() {
    let small = Size { packets: 20_000, table_octets: 2 << 20, idle_timeout: "2m", is_measured: false };
    print!("{}", in_namespace(|| floods(&small)));
}

#[test]
#[ignore = "takes minutes and measures times; tests/floods runs it"]
fn measured() {
    in_namespace_aloud(|| {
        let packets = std::env::var("LINEWARDEN_FLOOD_PACKETS").map_or(1_000_000, |text| text.parse().unwrap());
        floods(&Size { packets, table_octets: 64 << 20, idle_timeout: "3s", is_measured: true });
    });
}
