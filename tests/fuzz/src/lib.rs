//! What the targets share: how octets become frames with times, and what must hold of every run of the core.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linewarden::audit::{AuditSettings, Auditor};
use linewarden::config::{Approvals, Config};
use linewarden::policy::Policy;
use linewarden::record::{Kind, Record};
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, InterfaceId, LinkType, VlanTag};

/// A frame as it is written in an input: length (2), time since the one before in units of 4 ms (2), link and flags (1),
/// octets cut off (1), then the octets.
pub const HEAD: usize = 6;
/// Link types by the low bits of the octet of flags.
pub const LINKS: [LinkType; 4] = [LinkType::Ethernet, LinkType::RawIp, LinkType::LinuxSll, LinkType::LinuxSll2];
/// Set in the flags: the time goes back.
pub const BACK: u8 = 0x40;
/// Set in the flags: the kernel took a VLAN tag out.
pub const TAGGED: u8 = 0x80;

/// Octets as frames.
#[must_use]
pub fn frames(mut input: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    let mut at = Timestamp::from_secs(1_700_000_000);
    while let Some((&[len_high, len_low, time_high, time_low, flags, cut], rest)) = input.split_first_chunk::<HEAD>() {
        let len = usize::from(u16::from_be_bytes([len_high, len_low])).min(rest.len());
        let (data, behind) = rest.split_at(len);
        let since = Duration::from_millis(u64::from(u16::from_be_bytes([time_high, time_low])) * 4);
        at = if flags & BACK == 0 {
            at + since
        } else {
            Timestamp::from_nanos(at.as_nanos().saturating_sub(since.as_nanos() as u64))
        };
        frames.push(Frame {
            at,
            number: frames.len() as u64 + 1,
            wire_len: (len + usize::from(cut)) as u32,
            interface: InterfaceId(u16::from(flags >> 2 & 1)),
            link: LINKS[usize::from(flags & 3)],
            stripped_vlan: (flags & TAGGED != 0).then_some(VlanTag { tpid: 0x8100, tci: u16::from(cut) }),
            data,
        });
        input = behind;
    }
    frames
}

/// Approvals that pin keys at all addresses, so that every handshake is shown to them.
#[must_use]
pub fn pinning(folder: &Path) -> Approvals {
    let text = r#"
id = "pinning"
kind = "vpn"
owner = "network team"
reference = "CHG-1"
need = "fuzzing"
valid_from = 2020-01-01
valid_until = 2099-12-31
peers = ["0.0.0.0/0", "::/0"]

[identity]
wireguard_public_keys = ["sKGrmKhFWRpQ8KzXzLZEEUsPPUAFLkeB/XND6NsY/XA="]
"#;
    std::fs::write(folder.join("pinning.toml"), text).expect("the folder is there");
    Approvals::load(folder).expect("they are right")
}

/// Settings and policies of a run; the flow table is small, so that floods reach its bound.
pub struct World {
    settings: Arc<AuditSettings>,
    policies: [Arc<Policy>; 2],
}

impl World {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it writes a file")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::default();
        config.flow.memory_octets = 1 << 20;
        let names = vec!["one".into(), "two".into()];
        let settings = Arc::new(config.audit_settings("fuzz".into(), names, 1, 1));
        let policies = [pinning(folder.path()), Approvals::empty()];
        let policies = policies.map(|approvals| Arc::new(config.policy("fuzz".into(), approvals)));
        Self { settings, policies }
    }

    /// Plays frames; half way the approvals change. Nothing may be lost.
    pub fn play(&self, frames: &[Frame<'_>]) {
        let mut records = Vec::new();
        let mut auditor = Auditor::new(Arc::clone(&self.settings), Arc::clone(&self.policies[0]));
        let (before, behind) = frames.split_at(frames.len() / 2);
        for batch in before.chunks(7) {
            auditor.observe(batch, &mut |record| records.push(record));
        }
        auditor.set_policy(Arc::clone(&self.policies[1]), &mut |record| records.push(record));
        for batch in behind.chunks(7) {
            auditor.observe(batch, &mut |record| records.push(record));
        }
        let now = auditor.now();
        auditor.expire(now + Duration::from_secs(60), &mut |record| records.push(record));
        auditor.finish(&mut |record| records.push(record));
        assert_nothing_lost(&auditor, frames, &records);
    }
}

fn assert_nothing_lost(auditor: &Auditor, frames: &[Frame<'_>], records: &[Record]) {
    let counters = auditor.counters();
    let undecodable: u64 = counters.undecodable.iter().sum();
    assert_eq!(counters.packets, frames.len() as u64);
    assert_eq!(counters.packets, counters.classified + undecodable);
    let octets: u64 = frames.iter().map(|frame| u64::from(frame.wire_len)).sum();
    assert_eq!(counters.octets, octets);
    assert_eq!(counters.octets, counters.classified_octets + counters.mirror_octets + counters.undecodable_octets);
    let ends: Vec<_> = records.iter().filter(|record| record.kind == Kind::End).collect();
    assert_eq!(counters.flows, ends.len() as u64);
    assert_eq!(counters.flows_open, 0);
    let outside = ends.iter().filter(|end| end.outer_flow_id.is_none());
    assert_eq!(counters.classified, outside.map(|end| end.fwd_packets + end.rev_packets).sum::<u64>());
    for record in records {
        // A tunnel is never called approved where nothing was approved, and has its evidence.
        assert!(record.start <= record.end);
        assert_eq!(record.tunnel.is_some(), record.confidence.is_some());
    }
}

/// Protocols that carry payloads in [`carried`]: UDP and TCP with ports, the others without.
pub const CARRIERS: [u8; 12] = [17, 6, 1, 4, 41, 47, 50, 51, 97, 108, 115, 137];

/// Payloads of one flow in raw IPv4 packets, as [`frames`] reads them.
#[must_use]
pub fn carried(input: &[u8]) -> Option<Vec<u8>> {
    let (&[carrier, ports @ ..], mut payloads) = input.split_first_chunk::<5>()?;
    let protocol = CARRIERS[usize::from(carrier) % CARRIERS.len()];
    let mut frames = Vec::new();
    let mut sequence = [0_u32; 2];
    while let Some((&[len, how], rest)) = payloads.split_first_chunk::<2>() {
        let (payload, behind) = rest.split_at(usize::from(len).min(rest.len()));
        payloads = behind;
        let back = usize::from(how & 1);
        let transport = transport(protocol, &ports, back, sequence[back], payload.len());
        sequence[back] = sequence[back].wrapping_add(payload.len() as u32);
        let total = 20 + transport.len() + payload.len();
        frames.extend_from_slice(&(total as u16).to_be_bytes());
        frames.extend_from_slice(&[0, how >> 1, 1, 0]);
        frames.extend_from_slice(&[0x45, 0]);
        frames.extend_from_slice(&(total as u16).to_be_bytes());
        frames.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
        let (one, two) = ([198, 51, 100, 1], [198, 51, 100, 2]);
        let [from, to] = if back == 0 { [one, two] } else { [two, one] };
        frames.extend_from_slice(&from);
        frames.extend_from_slice(&to);
        frames.extend_from_slice(&transport);
        frames.extend_from_slice(payload);
    }
    Some(frames)
}

fn transport(protocol: u8, &[a, b, c, d]: &[u8; 4], back: usize, sequence: u32, len: usize) -> Vec<u8> {
    let mut header = if back == 0 { vec![a, b, c, d] } else { vec![c, d, a, b] };
    match protocol {
        17 => {
            header.extend_from_slice(&(len as u16 + 8).to_be_bytes());
            header.extend_from_slice(&[0, 0]);
        }
        6 => {
            header.extend_from_slice(&sequence.to_be_bytes());
            header.extend_from_slice(&[0, 0, 0, 0, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]);
        }
        _ => header.clear(),
    }
    header
}

/// A file in memory with this content, of which a target is the only user.
pub fn file_of(name: &str, content: &[u8]) -> std::path::PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, content).expect("room in memory");
    path
}

/// A folder in memory of this process.
pub fn folder() -> &'static Path {
    static FOLDER: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(|| {
        let folder = Path::new("/dev/shm").join(format!("linewarden-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("/dev/shm can be written");
        folder
    });
    &FOLDER
}
