//! What a daemon writes beside its log, and what it hides in all of it: live, in its sandbox, on a veth in a namespace of the
//! test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use common::command::{LINEWARDEN, approval, done, folder, linewarden};
use common::netns::{Daemon, Namespace, until};
use common::pcap::frames;
use serde_json::Value;

const SETTINGS: &str = "[capture]
interfaces = [\"wan0\"]
workers = 1
[control]
socket = \"c.sock\"
[flow]
home_nets = [\"198.51.100.0/24\"]
[journal]
findings = true
[privacy]
pseudonyms = true
[[outputs]]
format = \"eve\"
file = \"eve.json\"
[[outputs]]
format = \"eve-strict\"
file = \"strict.json\"
only = \"findings\"
[[outputs]]
format = \"zeek\"
file = \"zeek.log\"
";

/// A daemon whose journal is a socket in that folder.
fn start(namespace: &Namespace, folder: &Path, journal: &Path) -> Daemon {
    let script = "mount -t tmpfs none /run; mkdir -p /run/systemd/journal; mount --bind \"$0\" /run/systemd/journal; exec \"$@\"";
    let mut command = namespace.command("sh");
    command.arg("-ec").arg(script).arg(journal).arg(LINEWARDEN);
    command.args(["run", "--config", "s.toml", "--approvals", "approvals.d", "--records", "linewarden-log"]);
    command.current_dir(folder);
    Daemon::start(command, folder.join("linewarden-log"))
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join("linewarden-log").join(name)).unwrap_or_default()
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn files_and_journal_get_what_the_log_gets_and_nothing_tells_a_hidden_address() {
    let namespace = Namespace::new("outputs");
    let folder = folder(&[("approvals.d/none", ""), ("s.toml", SETTINGS), ("journal/none", "")]);
    let path = folder.path();
    let journal = UnixDatagram::bind(path.join("journal/socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut daemon = start(&namespace, path, &path.join("journal"));
    let said = daemon.says("sandbox in force");
    assert!(said.contains("system_calls=\"restricted\""), "{said}");
    daemon.says("capturing");
    let session = frames("wireguard-port-51820");
    namespace.sender("far0").send(&session[..30]);
    let record = daemon.record("the tunnel", |record| record["verdict"] == "unapproved_vpn_tunnel");
    let found = until("the finding in every file", || {
        let all = ["eve.json", "strict.json", "zeek.log"].map(|name| read(path, name));
        all.iter().all(|text| text.contains("unapproved_vpn_tunnel")).then_some(all)
    });
    let flows = done(linewarden(["ctl", "--socket", "c.sock", "flows", "--json"]).current_dir(path)).expect(0).out;
    let ctl: Value = serde_json::from_str(flows.lines().next().unwrap()).unwrap();
    let mut buffer = [0; 8192];
    let len = journal.recv(&mut buffer).unwrap();
    let entry = String::from_utf8_lossy(&buffer[..len]).into_owned();
    let field =
        |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned();
    assert_eq!(field("LINEWARDEN_VERDICT"), "unapproved_vpn_tunnel");

    // The same pseudonyms everywhere, in place of the addresses.
    let shown = |name: &str| record[name].as_str().unwrap().to_owned();
    assert_eq!([field("LINEWARDEN_SRC_IP"), field("LINEWARDEN_DST_IP")], [shown("src_ip"), shown("dst_ip")]);
    assert_eq!(field("LINEWARDEN_FLOW_ID"), shown("flow_id"));
    let ctl = &ctl["flow"];
    assert_eq!([&ctl["src_ip"], &ctl["flow_id"]], [&record["src_ip"], &record["flow_id"]]);
    let alert = &events(found[1].rsplit_once('\n').unwrap().0)[0];
    assert_eq!([&alert["event_type"], &alert["src_ip"]], ["alert", &*shown("src_ip")]);
    for text in found.iter().chain([&flows, &entry, &read(path, "linewarden.ndjson")]) {
        assert!(!text.contains("198.51.100."), "{text}");
    }
    let key = path.join("linewarden-log/state/pseudonym.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    let back = ["pseudonym", "--key", key.to_str().unwrap(), "--reverse", &shown("src_ip"), &shown("dst_ip")];
    let mut back: Vec<_> = done(&mut linewarden(back)).expect(0).out.lines().map(str::to_owned).collect();
    back.sort();
    assert_eq!(back, ["198.51.100.1", "198.51.100.2"]);

    // Approved, an address is shown; and who renames a file gets a new one.
    let peer = "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]";
    fs::write(path.join("approvals.d/partner.toml"), approval("vpn", "partner", peer)).unwrap();
    let eve = path.join("linewarden-log/eve.json");
    fs::rename(&eve, eve.with_extension("old")).unwrap();
    daemon.signal("HUP");
    daemon.says("approvals reloaded");
    until("a new file", || eve.exists().then_some(()));
    daemon.record("the approved tunnel", |record| record["verdict"] == "authorized_leased_line");
    namespace.sender("far0").send(&session[30..]);
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    assert!(!daemon.said.iter().any(|line| line.contains("198.51.100.")), "{}", daemon.said.join("\n"));
    let records = daemon.records();
    let last = records.iter().find(|record| record["kind"] == "end" && record["tunnel"] == "wireguard").unwrap();
    assert_eq!(last["flow_id"], record["flow_id"], "its identifier stays");
    assert!([&last["src_ip"], &last["dst_ip"]].contains(&&Value::from("198.51.100.2")), "{last}");
    assert!(![&last["src_ip"], &last["dst_ip"]].contains(&&Value::from("198.51.100.1")), "{last}");

    // Nothing is missing in any file.
    let eves = events(&(read(path, "eve.old") + &read(path, "eve.json")));
    let own: Vec<_> = eves.iter().map(|event| &event["linewarden"]).collect();
    assert_eq!(own, records.iter().collect::<Vec<_>>());
    let zeek = read(path, "zeek.log");
    assert_eq!(zeek.lines().filter(|line| !line.starts_with('#')).count(), records.len());
    assert!(zeek.lines().last().unwrap().starts_with("#close\t"), "{zeek}");
    let findings = records.iter().filter(|record| record["verdict"] == "unapproved_vpn_tunnel").count();
    assert_eq!(events(&read(path, "strict.json")).len(), findings);
}

/// A file system with no room left: the log has its own, and goes on.
#[test]
fn a_full_disk_costs_lines_of_the_output_and_nothing_else() {
    let namespace = Namespace::new("full-output");
    let settings = "[capture]\ninterfaces = [\"wan0\"]\nworkers = 1\n[sandbox]\nenabled = false\n[[outputs]]\nformat = \"ecs\"\nfile = \"ecs.json\"\n";
    let folder = folder(&[("approvals.d/none", ""), ("s.toml", settings), ("linewarden-log/none", "")]);
    let path = folder.path();
    // Every write to it is answered by "no space left".
    std::os::unix::fs::symlink("/dev/full", path.join("linewarden-log/ecs.json")).unwrap();
    let mut daemon =
        namespace.daemon(path, &["--config", "s.toml", "--approvals", "approvals.d", "--records", "linewarden-log"]);
    daemon.says("capturing");
    namespace.sender("far0").send(&frames("wireguard-port-51820"));
    let said = daemon.says("the output cannot be written");
    assert!(said.contains("No space left on device"), "{said}");
    daemon.record("the tunnel", |record| record["verdict"] == "unapproved_vpn_tunnel");
    fs::remove_file(path.join("linewarden-log/ecs.json")).unwrap();
    daemon.signal("USR1");
    until("it is written again", || read(path, "ecs.json").contains("unapproved_vpn_tunnel").then_some(()));
    daemon.signal("TERM");
    assert_eq!(daemon.ends(), 0, "{}", daemon.said.join("\n"));
    assert!(daemon.said.iter().any(|line| line.contains("the output is written again")), "{}", daemon.said.join("\n"));
    assert_eq!(events(&read(path, "ecs.json")).len(), daemon.records().len(), "what waited is there, too");
}
