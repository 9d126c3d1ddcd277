//! Threads that panic, and a second process that dies: the daemon says which and where, writes what the others know, tells the
//! service manager, and ends with an exit code for which it is started anew.

use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;

use serde_json::Value;

use crate::common::command::{LINEWARDEN, assert_adds_up, done, of_kind};
use crate::common::netns::{Daemon, until};
use crate::{House, all_records, end, is_certain, tunnels, wireguard};

/// What it tells the service manager on its way out.
fn last_words(socket: &UnixDatagram) -> String {
    socket.set_nonblocking(true).unwrap();
    let mut message = [0; 4096];
    let mut words = Vec::new();
    while let Ok(len) = socket.recv(&mut message) {
        words.push(str::from_utf8(&message[..len]).unwrap().to_owned());
    }
    words.into_iter().filter(|words| words.contains("STOPPING=1")).collect()
}

/// Half a session is in the log; then what `break_it` does ends the daemon. Gives the house and what it said.
fn broken(test: &str, break_it: impl FnOnce(&House, &Daemon)) -> (House, Daemon, String) {
    let house = House::new(test, "");
    let socket = UnixDatagram::bind(house.path("notify")).unwrap();
    std::fs::create_dir(house.path("faults")).unwrap();
    let mut command = house.namespace.command(LINEWARDEN);
    command.env("LINEWARDEN_FAULTS", house.path("faults")).env("NOTIFY_SOCKET", house.path("notify"));
    let mut daemon = house.start_by(command);
    house.send(&wireguard()[..30]);
    daemon.record("the tunnel", is_certain);
    break_it(&house, &daemon);
    let code = daemon.ends_anyhow();
    assert_eq!(code, 1, "{test}: systemd starts it anew: {}", daemon.said.join("\n"));
    let words = last_words(&socket);
    (house, daemon, words)
}

/// What must hold, whichever thread it was.
fn assert_in_order(house: &House, daemon: &Daemon, words: &str, says: &str) {
    let said = daemon.said.join("\n");
    assert!(said.contains(says), "{says}: {said}");
    assert!(words.contains(&format!("STATUS=failed: {says}")), "{says}: {words}");
    assert!(said.contains("ending every flow and writing its record"), "{said}");
    let summary = daemon.summary();
    assert_eq!([&summary["stopped"], &summary["packets"]], [&Value::Bool(true), &30.into()], "{says}: {summary}");
    let (written, lost) = (summary["records"].as_u64().unwrap(), summary["records_lost"].as_u64().unwrap());
    let records = all_records(&house.log());
    assert_eq!(records.len() as u64, written, "{says}: {lost} lost: {summary}");
    if lost == 0 {
        assert_adds_up(&summary, &records);
        let end = &of_kind(records, "end")[0];
        assert_eq!(end["end_reason"], "forced_end", "{says}");
        assert_eq!(end["fwd_packets"].as_u64().unwrap() + end["rev_packets"].as_u64().unwrap(), 30, "{says}");
    }
    house.assert_whole();
    // And it goes on.
    end(&mut house.start());
    house.assert_whole();
}

/// Makes a thread panic, and does what wakes it.
fn panics(name: &str, place: &str, thread: &str) -> u64 {
    let (house, daemon, words) = broken(name, |house, _| {
        std::fs::write(house.path("faults").join(name), "").unwrap();
        // Whoever waits for a client or for work gets it; what it answers is nobody's business.
        let mut poke = UnixStream::connect(house.path("run/c.sock")).unwrap();
        let _ = poke.write_all(b"{\"version\":1,\"command\":\"rotate\"}\n");
        let _ = UnixStream::connect(house.path("run/m.sock"));
    });
    assert_in_order(&house, &daemon, &words, &format!("thread `{thread}` panicked at {place}"));
    let events = std::fs::read_to_string(house.log().join("sensor.ndjson")).unwrap();
    let told = events.contains("\"clean\":false") || name == "events";
    assert!(told, "{name}: {events}");
    daemon.summary()["records_lost"].as_u64().unwrap()
}

#[test]
fn whichever_thread_panics_the_daemon_says_so_and_ends_in_order() {
    let cases = [
        ("worker-0", "src/fault.rs:", "worker-0"),
        ("worker-1", "src/fault.rs:", "worker-1"),
        ("log", "src/fault.rs:", "control"),
        ("events", "src/fault.rs:", "control"),
        ("ctl", "src/fault.rs:", "control"),
        ("metrics", "src/fault.rs:", "control"),
        ("main", "src/fault.rs:", "main"),
        ("linewarden-keeper", "src/fault.rs:", "linewarden-keeper"),
        ("sensor-keeper", "src/fault.rs:", "sensor-keeper"),
        ("linewarden-archive", "src/fault.rs:", "linewarden-archive"),
        ("output", "src/fault.rs:", "output"),
        ("inventory", "src/fault.rs:", "inventory"),
    ];
    std::thread::scope(|scope| {
        let running = cases.map(|(name, place, thread)| (name, scope.spawn(move || panics(name, place, thread))));
        for (name, case) in running {
            let lost = case.join().unwrap_or_else(|_| panic!("{name}: see above"));
            // Only who writes the log has something in hand.
            assert!(lost == 0 || name == "log", "{name}: {lost} records lost");
        }
    });
}

/// A worker that panics over packets has counted them, and what else its ring holds.
#[test]
fn packets_that_a_panic_leaves_unread_are_counted() {
    let more = tunnels(0..10);
    let (house, daemon, _) = broken("unseen", |house, _| {
        for worker in ["worker-0-frames", "worker-1-frames"] {
            std::fs::write(house.path("faults").join(worker), "").unwrap();
        }
        house.send(&more);
    });
    let summary = daemon.summary();
    let unread = summary["undecodable"]["worker_panic"].as_u64().unwrap_or_default();
    assert!((1..=more.len() as u64).contains(&unread), "{summary}");
    assert_eq!(summary["classified"], 30, "{summary}");
    assert_adds_up(&summary, &all_records(&house.log()));
    assert!(daemon.said.iter().any(|line| line.contains(&format!("worker_panic {unread}"))), "{:#?}", daemon.said);
}

/// Without the process that opens rings an interface that is made anew would stay unseen: it is started anew, whole.
#[test]
fn without_the_second_process_it_ends_to_be_started_anew() {
    let (house, daemon, words) = broken("opener", |_, daemon| {
        let task = format!("/proc/{0}/task/{0}/children", daemon.process());
        let children = std::fs::read_to_string(task).unwrap();
        done(Command::new("kill").arg("-KILL").arg(children.trim())).expect(0);
    });
    assert_in_order(&house, &daemon, &words, "the process that opens rings has ended (signal: 9 (SIGKILL))");
}

/// Who stops a service ends both processes by a signal at once: that is no failure.
#[test]
fn where_both_processes_are_told_to_end_that_is_no_failure() {
    let house = House::new("both", "");
    let mut daemon = house.start();
    let task = format!("/proc/{0}/task/{0}/children", daemon.process());
    let children = std::fs::read_to_string(task).unwrap();
    done(Command::new("kill").arg("-TERM").arg(children.trim())).expect(0);
    until("the second process is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", children.trim())).unwrap_or_default();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
    end(&mut daemon);
}
