//! What a local client may do, and what a crash leaves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use crate::common::command::{LINEWARDEN, done};
use crate::common::netns::{Namespace, until};
use crate::{approved, asked, ctl, end, start};

/// What the daemon answers to octets, until it closes or `lines` have come.
fn answers(stream: &mut UnixStream, octets: &[u8], lines: usize) -> Vec<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may have closed before it read all.
    let _ = stream.write_all(octets);
    let reader = BufReader::new(stream);
    reader.lines().map_while(Result::ok).take(lines).map(|line| serde_json::from_str(&line).unwrap()).collect()
}

#[test]
fn nothing_that_a_client_sends_or_does_not_read_hangs_the_daemon() {
    let namespace = Namespace::new("clients");
    let (mut daemon, folder) = start(&namespace, &approved());
    let connect = || UnixStream::connect(folder.path().join("c.sock")).unwrap();
    let status = b"{\"version\":1,\"command\":\"status\"}\n";

    let many = [&status[..], b"\n", b"[[[[\n", b"{\"version\":9,\"command\":\"status\"}\n", &status[..]].concat();
    let all = answers(&mut connect(), &many, 5);
    let told = |answer: &Value| answer["error"]["message"].as_str().unwrap_or("status").to_owned();
    assert_eq!((told(&all[0]), told(&all[4])), ("status".to_owned(), "status".to_owned()), "errors end no connection");
    assert!(
        told(&all[1]).contains("a request is a JSON object") && told(&all[3]).contains("speaks version 1"),
        "{all:?}"
    );
    assert!(all[1..4].iter().all(|answer| answer["error"]["code"] == 64));

    let long = answers(&mut connect(), &vec![b'x'; 1 << 20], 2);
    assert_eq!(long.len(), 1);
    assert!(told(&long[0]).contains("a request has 4096 octets at most"), "{long:?}");

    // Half a request, and nothing more: closed.
    let mut half = connect();
    half.write_all(b"{\"version\":1,").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());

    // As many as there may be, each silent; and one that asks for ever and reads nothing.
    let mut greedy = connect();
    greedy.set_nonblocking(true).unwrap();
    while greedy.write(status).is_ok() {}
    let mut silent: Vec<_> = (0..64).map(|_| connect()).collect();
    // It goes on meanwhile: those beyond the number are told so, the others are let go when they say nothing in time.
    namespace.sender("far0").send(&crate::wireguard());
    daemon.record("a record", |record| record["confidence"] == "certain");
    let told: Vec<_> = silent.iter_mut().flat_map(|stream| answers(stream, b"", 2)).collect();
    assert!(told.len() >= 64 - 16, "{} of 64 were refused", told.len());
    for answer in told {
        assert_eq!(answer["error"]["code"], 1);
        assert!(answer["error"]["message"].as_str().unwrap().contains("16 clients ask at once"), "{answer}");
    }
    until("there is room again", || (ctl(&folder, &["status"]).code == 0).then_some(()));
    end(&mut daemon);
    assert!(!folder.path().join("c.sock").exists(), "gone with the daemon");
}

#[test]
fn a_crash_leaves_a_socket_that_the_next_start_replaces_and_a_living_ones_is_refused() {
    let namespace = Namespace::new("crash");
    let (daemon, folder) = start(&namespace, &approved());
    let second = || {
        let mut command = namespace.command("timeout");
        command.args(["--signal=KILL", "60", LINEWARDEN, "run", "--config", "s.toml", "--approvals", "approvals.d"]);
        done(command.args(["--records", "other-log"]).current_dir(folder.path()))
    };
    let refused = second().expect(78);
    assert!(refused.err.contains("control socket: c.sock: another linewarden answers there"), "{}", refused.err);
    assert_eq!(asked(&folder, "status")["policy"]["in_force"], 1, "the first one still answers");
    daemon.signal("KILL");
    until("it is gone", || (ctl(&folder, &["status"]).code == 1).then_some(()));
    assert!(folder.path().join("c.sock").exists());
    let mut daemon = namespace.daemon(folder.path(), &["--config", "s.toml", "--approvals", "approvals.d"]);
    daemon.says("capturing");
    asked(&folder, "status");
    end(&mut daemon);
}

#[test]
fn who_may_not_ask_is_told_who_may() {
    let namespace = Namespace::new("may");
    let (mut daemon, folder) = start(&namespace, &approved());
    let socket = folder.path().join("c.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    // Somebody else's, and root without its capabilities is anybody.
    chown(&socket, Some(65_534), Some(65_534)).unwrap();
    let mut command = namespace.command("timeout");
    command.args(["--signal=KILL", "60", "setpriv", "--bounding-set=-all", "--inh-caps=-all", LINEWARDEN]);
    let refused = done(command.args(["ctl", "--socket", "c.sock", "status"]).current_dir(folder.path())).expect(77);
    assert!(refused.err.contains("c.sock: you may not ask there: its owner and its group may"), "{}", refused.err);
    end(&mut daemon);
}
