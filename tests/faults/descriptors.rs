//! No descriptor is left, and clients by the hundred. Clients that are silent or read nothing: `tests/ctl/robust.rs`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::common::command::{approval, assert_says, done};
use crate::common::netns::until;
use crate::{House, all_records, end, is_certain, tunnels, wireguard};

fn limit(process: u32, descriptors: &str) {
    done(
        Command::new("prlimit")
            .args(["--pid", &process.to_string(), "--nofile"])
            .arg(format!("--nofile={descriptors}")),
    )
    .expect(0);
}

#[test]
fn without_descriptors_capture_and_log_go_on_and_everything_else_comes_back() {
    let house = House::new("descriptors", "");
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    until("the inventory has opened its file", || (house.status()["inventory"]["tunnels"] == 1).then_some(()));
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.process())).unwrap().count();
    // Nothing more can be opened: whatever is closed leaves room for as much.
    let few = open();
    limit(daemon.process(), &format!("{few}:"));
    // Hundreds of clients: they take what is left, and the next is not heard.
    let connect = || UnixStream::connect(house.path("run/c.sock"));
    let clients: Vec<_> = (0..300).map_while(|_| connect().ok()).collect();
    assert!(clients.len() > 16, "{}", clients.len());
    daemon.says("the control socket accepts nobody");
    fs::write(
        house.path("approvals.d/a.toml"),
        approval("vpn", "partner", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\"]"),
    )
    .unwrap();
    limit(daemon.process(), "3:");
    daemon.signal("HUP");
    let said = daemon.says("approvals NOT reloaded");
    assert_says(&said, &["the old ones stay in force"]);
    house.send(&tunnels(2000..2100));
    daemon.record("a record without descriptors", |record| record["src_port"] == 2099 || record["dst_port"] == 2099);
    limit(daemon.process(), "1024:");
    drop(clients);
    daemon.says("the control socket accepts again");
    // Those that queue are let in and found gone before.
    for command in ["reload", "rotate"] {
        until(command, || (house.ctl(&[command]).code == 0).then_some(()));
    }
    house.send(&tunnels(3000..3010));
    until("the flows of the new approvals", || {
        all_records(&house.log()).iter().any(|record| record["verdict"] == "authorized_leased_line").then_some(())
    });
    end(&mut daemon);
    assert_eq!(daemon.summary()["records_lost"], 0);
    house.assert_whole();
}

/// Each says some twenty kibibytes.
const RELOADS: usize = 10;

/// What the daemon says goes into a pipe that nobody reads, as into a journal that stands still: nobody waits for that.
#[test]
fn who_does_not_read_the_daemons_log_makes_nobody_wait() {
    let house = House::new("unread", "");
    let ended =
        |number| approval("vpn", &format!("ended-{number}"), "valid_until = 2020-12-31\npeers = [\"203.0.113.2\"]");
    fs::write(house.path("approvals.d/a.toml"), (0..200).map(ended).collect::<String>()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = house.namespace.command(crate::common::command::LINEWARDEN);
    command.arg("run").args(crate::ARGUMENTS).current_dir(house.folder.path()).stderr(writer);
    let mut child = crate::Program(command.spawn().unwrap());
    drop(command);
    let mut stream = until("the control socket", || UnixStream::connect(house.path("run/c.sock")).ok());
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    // A reload warns of each approval that has ended; the pipe has room for 64 KiB.
    for _ in 0..RELOADS {
        stream.write_all(b"{\"version\":1,\"command\":\"reload\"}\n").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"reload\""), "{answer}");
    }
    house.send(&wireguard());
    until("it captures on", || (house.status()["interfaces"][0]["packets"] == wireguard().len()).then_some(()));
    // Who reads again is told what is missing.
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    let told = lines.find(|line| {
        if line.contains("approvals reloaded") {
            let _ = stream.write_all(b"{\"version\":1,\"command\":\"reload\"}\n");
        }
        line.contains("lines of this log are lost")
    });
    assert!(told.is_some());
    done(Command::new("kill").args(["-TERM", &child.0.id().to_string()])).expect(0);
    // To its end.
    assert!(lines.any(|line| line.contains("stopping")));
    lines.for_each(drop);
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}
