//! Makes logs: made-up days and replayed captures, cut into segments as a sensor leaves them.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use linewarden::sink::archive::compress;
use tempfile::TempDir;

use crate::common::command::{capture, folder, plain, replay, run};

/// Lines of a made-up day, and behind them those of captures, the day's last flows still open.
pub fn lines() -> &'static [String] {
    static LINES: OnceLock<Vec<String>> = OnceLock::new();
    LINES.get_or_init(|| {
        let mut lines = day(6000, 7);
        // Flows inside tunnels, IPv6, GRE and ESP without ports; verdicts that change.
        for name in ["wireguard-port-51820", "wireguard-ipv6", "esp-udp", "6in4-tunnel", "benign-dnsmasq-dns"] {
            lines.extend(replay([capture(name)], &[]).expect(0).out.lines().map(str::to_owned));
        }
        lines
    })
}

/// What `bench` makes up.
pub fn day(records: u32, seed: u32) -> Vec<String> {
    let folder = folder(&[]);
    let out = folder.path().join("log");
    let (records, seed) = (records.to_string(), seed.to_string());
    run(["bench", "--records", &records, "--seed", &seed, "--out", out.to_str().unwrap()]).expect(0);
    fs::read_to_string(out.join("linewarden.ndjson")).unwrap().lines().map(str::to_owned).collect()
}

/// How a segment lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Archive,
    ArchiveWithoutIndex,
    Plain,
    /// Compressed, and the process killed before the plain one was removed.
    Both,
}

/// A folder of a log cut at these lines into segments of these forms; the last part is still written to, and torn.
pub fn log(lines: &[String], cuts: &[(usize, Form)]) -> TempDir {
    let folder = folder(&[]);
    let mut from = 0;
    for (number, (cut, form)) in cuts.iter().enumerate() {
        let part = &lines[from..(*cut).max(from)];
        from = (*cut).max(from);
        let path = folder.path().join(format!("linewarden-20261127T000000Z-{number:06}.ndjson"));
        write(&path, part);
        if *form == Form::Plain {
            continue;
        }
        let archive = compress(&path).unwrap();
        match form {
            Form::ArchiveWithoutIndex => fs::remove_file(archive.with_extension("").with_extension("index")).unwrap(),
            Form::Both => write(&path, part),
            _ => {}
        }
    }
    let path = folder.path().join("linewarden.ndjson");
    write(&path, &lines[from..]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], br#"{"version":1,"seq":9,"kind":"end","time":"20"#].concat()).unwrap();
    // Other files of the folder are none of the log.
    fs::write(folder.path().join("summary.json"), "{}").unwrap();
    fs::write(folder.path().join("sensor.ndjson"), "{\"kind\":\"start\"}\n").unwrap();
    folder
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().flat_map(|line| [line, "\n"]).collect::<String>()).unwrap();
}

/// A log of a capture, judged by these approvals; the arguments of the replay that made it.
pub fn replayed(names: &[&str], approvals: &str) -> TempDir {
    let folder = folder(&[("approvals.d/a.toml", approvals), ("log/.keep", "")]);
    let mut arguments = plain(&folder);
    arguments[2] = folder.path().join("approvals.d").into();
    let out = folder.path().join("log/linewarden.ndjson");
    arguments.extend(["--quiet".into(), "--out".into(), out.into()]);
    arguments.extend(names.iter().map(|name| capture(name).into()));
    run(arguments).expect(0);
    folder
}
