//! Turns a command line into what the built binary answered: exit code, standard output, standard error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The built binary.
pub const LINEWARDEN: &str = env!("CARGO_BIN_EXE_linewarden");

/// What a command that ended left behind.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// `linewarden` with arguments, ended by `timeout` if it does not end by itself.
pub fn linewarden(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120", LINEWARDEN]).args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Done {
    done(&mut linewarden(arguments))
}

pub fn done(command: &mut Command) -> Done {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let code = output.status.code().unwrap_or_else(|| panic!("{command:?} was ended by a signal: {}", output.status));
    let done = Done { code, out: text(output.stdout), err: text(output.stderr) };
    assert!(!done.err.contains("panicked"), "{command:?}: {}", done.err);
    done
}

/// The same with its standard output elsewhere.
pub fn done_with_stdout(command: &mut Command, stdout: impl Into<Stdio>) -> Done {
    let output = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let done = Done { code: output.status.code().unwrap(), out: String::new(), err: text(output.stderr) };
    assert!(!done.err.contains("panicked"), "{command:?}: {}", done.err);
    done
}

/// Standard output that nobody reads any more.
pub fn closed_pipe() -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

fn text(octets: Vec<u8>) -> String {
    String::from_utf8(octets).unwrap()
}

/// Arguments that make every replay alike: no approvals, whatever is installed here, and a sensor called `test`.
pub fn plain(folder: &TempDir) -> Vec<OsString> {
    let (approvals, config) = (folder.path().join("none.d"), folder.path().join("plain.toml"));
    fs::create_dir_all(&approvals).unwrap();
    fs::write(&config, "sensor = \"test\"\n").unwrap();
    let replay = "replay".into();
    vec![replay, "--approvals".into(), approvals.into(), "--config".into(), config.into()]
}

/// `replay --quiet` of some files.
pub fn replay<F: AsRef<OsStr>>(files: impl IntoIterator<Item = F>, more: &[&str]) -> Done {
    let folder = folder(&[]);
    let files = files.into_iter().map(|file| file.as_ref().to_owned());
    run(plain(&folder).into_iter().chain(["--quiet".into()]).chain(more.iter().map(OsString::from)).chain(files))
}

/// The same of octets, as a file called `input.pcap`.
pub fn replay_octets(octets: &[u8], more: &[&str]) -> Done {
    let folder = folder(&[]);
    let path = folder.path().join("input.pcap");
    fs::write(&path, octets).unwrap();
    replay([path], more)
}

/// The command where nothing is installed: `/etc` and `/var/log` are empty, for it alone.
pub fn where_nothing_is_installed(command: &Command) -> Command {
    let mut bare = Command::new("unshare");
    bare.args(["--mount", "sh", "-ec", "mount -t tmpfs none /etc; mount -t tmpfs none /var/log; exec \"$@\"", "sh"]);
    bare.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        bare.current_dir(folder);
    }
    bare
}

impl Done {
    /// Fails unless the exit code is this one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; standard error:\n{}", self.err);
        self
    }

    /// Standard output, each line a record.
    #[track_caller]
    pub fn records(&self) -> Vec<Value> {
        records(&self.out)
    }

    /// The records that end a flow.
    #[track_caller]
    pub fn ends(&self) -> Vec<Value> {
        of_kind(self.records(), "end")
    }
}

#[track_caller]
pub fn assert_says(text: &str, parts: &[impl AsRef<str>]) {
    for part in parts {
        assert!(text.contains(part.as_ref()), "`{}` is not in\n{text}", part.as_ref());
    }
}

/// Lines of JSON.
#[track_caller]
pub fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

pub fn of_kind(records: Vec<Value>, kind: &str) -> Vec<Value> {
    records.into_iter().filter(|record| record["kind"] == kind).collect()
}

/// The record without some of its fields.
pub fn without(mut record: Value, fields: &[&str]) -> Value {
    for field in fields {
        record.as_object_mut().unwrap().remove(*field).unwrap_or_else(|| panic!("no {field}"));
    }
    record
}

/// What of a flow must not depend on how its packets came, by Community ID and start.
pub fn verdicts(records: Vec<Value>) -> BTreeMap<String, Value> {
    let fields = [
        "src_ip",
        "src_port",
        "dst_ip",
        "dst_port",
        "proto",
        "verdict",
        "reason",
        "tunnel",
        "confidence",
        "midstream",
        "fwd_packets",
        "fwd_octets",
        "rev_packets",
        "rev_octets",
        "spi",
        "gre_key",
        "approval",
    ];
    of_kind(records, "end")
        .into_iter()
        .map(|end| {
            let name = format!("{} {}", end["community_id"], end["start"]);
            let codes: Vec<_> = end["evidence"].as_array().unwrap().iter().map(|found| found["code"].clone()).collect();
            let values = fields.map(|field| (field, end[field].clone()));
            (name, values.into_iter().chain([("codes", codes.into())]).collect())
        })
        .collect()
}

/// A count of a summary.
#[track_caller]
pub fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("no number {name}: {summary}"))
}

/// `packets = classified + undecodable + dropped`.
#[track_caller]
pub fn assert_packets_add_up(summary: &Value) {
    let undecodable = summary["undecodable"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
    let accounted = number(summary, "classified") + undecodable.sum::<u64>() + number(summary, "dropped_kernel");
    assert_eq!(number(summary, "packets"), accounted, "{summary}");
}

/// `packets = classified + undecodable + dropped`, and the sum of the flows' last records is what was classified.
#[track_caller]
pub fn assert_adds_up(summary: &Value, records: &[Value]) {
    let number = |name: &str| number(summary, name);
    assert_packets_add_up(summary);
    let octets = number("classified_octets") + number("mirror_octets") + number("undecodable_octets");
    assert_eq!(number("octets"), octets, "{summary}");
    let sum_where = |is_inside: bool, names: [&str; 2]| -> u64 {
        let ends = records.iter().filter(|record| record["kind"] == "end");
        let ends = ends.filter(|end| end["outer_flow_id"].is_string() == is_inside);
        ends.flat_map(|end| names.map(|name| end[name].as_u64().unwrap())).sum()
    };
    let sum = |names| sum_where(false, names);
    let inside = |name: &str| summary["inside"][name].as_u64().unwrap();
    let found = sum_where(true, ["fwd_packets", "rev_packets"]) + inside("undecodable") + inside("unrecorded");
    assert_eq!(inside("packets"), found, "{summary}");
    assert_eq!(number("classified"), sum(["fwd_packets", "rev_packets"]) + number("unrecorded"), "{summary}");
    assert_eq!(
        number("classified_octets"),
        sum(["fwd_octets", "rev_octets"]) + number("unrecorded_octets"),
        "{summary}"
    );
    assert_eq!(number("records"), records.len() as u64, "{summary}");
    let ends = records.iter().filter(|record| record["kind"] == "end").count() as u64;
    let flows = |of: &Value| of["flows"].as_u64().unwrap();
    assert_eq!(summary["verdicts"].as_object().unwrap().values().map(flows).sum::<u64>(), number("flows"), "{summary}");
    for (label, total) in summary["verdicts"].as_object().unwrap() {
        let tunnels = summary["tunnels"].as_array().unwrap().iter().filter(|tunnel| tunnel["verdict"] == **label);
        assert!(tunnels.map(flows).sum::<u64>() <= flows(total), "{label}: {summary}");
    }
    if number("unrecorded") == 0 {
        assert_eq!(number("flows"), ends, "{summary}");
    }
}

/// Every record is as `tests/record.schema.json` documents it.
#[track_caller]
pub fn assert_valid(records: &[Value]) {
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/record.schema.json")).unwrap();
    let schema = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    for record in records {
        if let Err(error) = validator.validate(record) {
            panic!("{error}\n{record}");
        }
    }
}

/// A folder with these files, gone with the value.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// A folder with `approvals.d`, and settings that name the sensor.
pub fn approved(approvals: &str) -> TempDir {
    folder(&[("approvals.d/a.toml", approvals), ("settings.toml", "sensor = \"berlin-1\"\n")])
}

/// An approval; `rest` says for what and how long.
pub fn approval(kind: &str, id: &str, rest: &str) -> String {
    format!(
        "[[approval]]\nid = \"{id}\"\nkind = \"{kind}\"\nowner = \"network team\"\nreference = \"CHG-{id}\"\n{rest}\n"
    )
}

/// A recorded capture of `tests/captures`.
pub fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name).join("input.pcap")
}
