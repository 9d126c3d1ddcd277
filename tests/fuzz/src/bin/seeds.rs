//! Writes what the targets begin from: `seeds CAPTURES OUT` makes a folder for each target in OUT, of the recorded captures,
//! the shipped settings, and a log made of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linewarden::audit::Auditor;
use linewarden::capture::file::CaptureFile;
use linewarden::config::{Approvals, Config};
use linewarden::sink::archive::compress;
use linewarden::sink::sealed::SealedLog;
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, LinkType, Transport, parse};
use linewarden_fuzz::{CARRIERS, LINKS};

/// Frames of a capture that go into a sequence, and octets of each.
const FRAMES: usize = 24;
const OCTETS: usize = 220;

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let [captures, out] = &arguments[..] else { panic!("seeds CAPTURES OUT") };
    let top = captures.parent().and_then(Path::parent).expect("CAPTURES lies two folders down");
    for entry in fs::read_dir(captures).expect("the captures can be read") {
        let folder = entry.expect("the captures can be read").path();
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        let input = folder.join("input.pcap");
        if !input.exists() {
            continue;
        }
        let octets = fs::read(&input).expect("a capture can be read");
        write(out, "capture_file", name, &octets[..octets.len().min(4096)]);
        of_frames(out, name, &input);
    }
    of_log(out, captures);
    write(out, "settings", "shipped", &fs::read(top.join("config/linewarden.toml")).expect("the settings are shipped"));
    let example = fs::read(top.join("config/approvals.d/example.toml.disabled")).expect("an example is shipped");
    write(out, "approvals", "example", &example);
    for command in ["status", "stats", "reload", "approvals", "rotate"] {
        write(out, "control", command, format!(r#"{{"version":1,"command":"{command}"}}"#).as_bytes());
    }
    let flows = r#"{"version":1,"command":"flows","label":"unapproved_vpn_tunnel","peer":"198.51.100.0/24","limit":5}"#;
    write(out, "control", "flows", flows.as_bytes());
}

fn write(out: &Path, target: &str, name: &str, octets: &[u8]) {
    let folder = out.join(target);
    fs::create_dir_all(&folder).expect("OUT can be written");
    fs::write(folder.join(name), octets).expect("OUT can be written");
}

/// One capture as a sequence, as frames, and as payloads of its first flow.
fn of_frames(out: &Path, name: &str, input: &Path) {
    let mut sequence = Vec::new();
    let mut payloads: Option<(Vec<u8>, [u16; 2])> = None;
    let mut before = None;
    let mut count = 0;
    let mut file = CaptureFile::open(input).expect("a capture can be opened");
    let mut take = |frames: &[Frame<'_>], _: &[Arc<str>]| {
        for frame in frames {
            count += 1;
            if count > FRAMES {
                return;
            }
            let data = &frame.data[..frame.data.len().min(OCTETS)];
            let link = LINKS.iter().position(|link| *link == frame.link).unwrap_or_default() as u8;
            let since = frame.at.as_nanos().saturating_sub(before.replace(frame.at.as_nanos()).unwrap_or(u64::MAX));
            sequence.extend_from_slice(&(data.len() as u16).to_be_bytes());
            sequence.extend_from_slice(&((since / 4_000_000).min(u64::from(u16::MAX)) as u16).to_be_bytes());
            sequence.extend_from_slice(&[link, (frame.wire_len as usize - data.len()).min(255) as u8]);
            sequence.extend_from_slice(data);
            if count % 6 == 1 && frame.link == LinkType::Ethernet {
                let mut one = vec![link];
                one.extend_from_slice(data);
                write(out, "wire", &format!("{name}-{count}"), &one);
            }
            add_payload(frame, &mut payloads);
        }
    };
    while matches!(file.next_batch(&mut take), Ok(true)) {}
    write(out, "core", name, &sequence);
    if let Some((payloads, _)) = payloads {
        write(out, "detect", name, &payloads);
    }
}

fn add_payload(frame: &Frame<'_>, payloads: &mut Option<(Vec<u8>, [u16; 2])>) {
    let Ok(packet) = parse(frame) else { return };
    let Some(carrier) = CARRIERS.iter().position(|protocol| *protocol == packet.protocol) else { return };
    let ports = match packet.transport {
        Transport::Udp { src_port, dst_port } | Transport::Tcp { src_port, dst_port, .. } => [src_port, dst_port],
        _ => [0; 2],
    };
    let (octets, first) = payloads.get_or_insert_with(|| {
        let [[a, b], [c, d]] = ports.map(u16::to_be_bytes);
        (vec![carrier as u8, a, b, c, d], ports)
    });
    let [one, two] = *first;
    let back = ports == [two, one] && one != two;
    if octets[0] != carrier as u8 || (ports != *first && !back) || packet.payload.is_empty() {
        return;
    }
    let payload = &packet.payload[..packet.payload.len().min(255)];
    octets.extend_from_slice(&[payload.len() as u8, u8::from(back)]);
    octets.extend_from_slice(payload);
}

/// A sealed log of one capture's records, plain and compressed.
fn of_log(out: &Path, captures: &Path) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("state");
    let config = Config::default();
    let at = Timestamp::from_secs(1_790_000_000);
    let mut log = SealedLog::open(folder.path(), "linewarden", &state, &config.records.log, at).expect("a log opens");
    let settings = Arc::new(config.audit_settings("fuzz".into(), vec!["one".into()], 1, 1));
    let policy = Arc::new(config.policy("fuzz".into(), Approvals::empty()));
    let mut auditor = Auditor::new(settings, policy);
    let mut file = CaptureFile::open(&captures.join("wireguard-port-51820/input.pcap")).expect("a capture opens");
    while matches!(
        file.next_batch(&mut |frames, _| auditor.observe(frames, &mut |record| log.write(&record))),
        Ok(true)
    ) {}
    auditor.finish(&mut |record| log.write(&record));
    log.close(at);
    drop(log);
    let records = fs::read(folder.path().join("linewarden.ndjson")).expect("the log is there");
    let seals = fs::read(folder.path().join("linewarden.seals")).expect("the seals are there");
    let mut plain = vec![0];
    plain.extend_from_slice(&records);
    write(out, "log", "plain", &plain);
    let mut sealed = (records.len() as u16).to_be_bytes().to_vec();
    sealed.extend_from_slice(&records);
    sealed.extend_from_slice(&seals);
    write(out, "verify", "sealed", &sealed);
    let closed = folder.path().join("linewarden-20261128T094756Z-000001.ndjson");
    fs::write(&closed, &records).expect("a temporary folder can be written");
    let archive = compress(&closed).expect("a segment can be compressed");
    let (data, index) = (fs::read(&archive), fs::read(archive.with_extension("index")));
    let (data, index) = (data.expect("the archive is there"), index.unwrap_or_default());
    let middle = (data.len() * 256).div_ceil(data.len() + index.len()).min(255) as u8 | 1;
    let mut both = vec![middle];
    both.extend_from_slice(&data);
    both.extend_from_slice(&index);
    write(out, "log", "compressed", &both);
}
