//! A journal that is away, comes, and stands still.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::common::command::{LINEWARDEN, assert_says};
use crate::common::netns::until;
use crate::{House, Program, end, is_certain, tunnels};

/// Listens as the journal does, and reads an entry when it is told to.
const JOURNAL: &str = "import socket, sys
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind(sys.argv[1])
print('ready', flush=True)
for line in sys.stdin:
    journal.settimeout(30)
    print(journal.recv(65536).decode(errors='replace').split('\\n')[0], flush=True)";

#[test]
fn a_journal_that_is_away_or_stands_still_costs_entries_that_are_counted() {
    let house = House::new("journal", "[journal]\nfindings = true");
    std::fs::create_dir(house.path("journal")).unwrap();
    let script = "mount -t tmpfs none /run; mkdir -p /run/systemd/journal; mount --bind \"$0\" /run/systemd/journal; exec \"$@\"";
    let mut command = house.namespace.command("sh");
    command.arg("-ec").arg(script).arg(house.path("journal")).arg(LINEWARDEN);
    let mut daemon = house.start_by(command);
    let said = daemon.said.join("\n");
    assert_says(&said, &["no journal listens there yet"]);
    house.send(&tunnels(2000..2005));
    daemon.says("the journal takes no findings");
    daemon.record("they are in the log", is_certain);

    // A queue of few entries, of the namespace that it is in.
    let short = "echo 3 >/proc/sys/net/unix/max_dgram_qlen";
    assert!(house.namespace.command("sh").args(["-ec", short]).status().unwrap().success());
    let mut command: Command = house.namespace.command("python3");
    command.args(["-c", JOURNAL]).arg(house.path("journal/socket")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut journal = Program(command.spawn().unwrap());
    let mut orders = journal.0.stdin.take().unwrap();
    let mut entries = BufReader::new(journal.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(entries.next().unwrap(), "ready");
    house.send(&tunnels(3000..3001));
    daemon.says("the journal takes findings again");
    orders.write_all(b"\n").unwrap();
    assert_says(&entries.next().unwrap(), &["MESSAGE=unapproved_vpn_tunnel"]);

    // It reads no more.
    house.send(&tunnels(4000..4030));
    daemon.says("the journal takes no findings");
    until("records go on", || {
        let is_last = |record: &serde_json::Value| record["src_port"] == 4029 || record["dst_port"] == 4029;
        daemon.records().iter().any(|record| is_last(record) && is_certain(record)).then_some(())
    });
    end(&mut daemon);
    let said = daemon.said.join("\n");
    assert_says(&said, &["findings are missing in the journal"]);
    assert_eq!(daemon.summary()["records_lost"], 0, "the log has them");
    println!("{}", daemon.said.iter().find(|line| line.contains("are missing in the journal")).unwrap());
    house.assert_whole();
}
