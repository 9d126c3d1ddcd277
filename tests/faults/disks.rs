//! Disks that are full, or read-only: what waits, what is lost, and that it is counted, said, and made up for.
//! A small disk that fills up in the middle of a line: `src/sink/sealed/tests.rs`; an output's alone: `tests/outputs.rs`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::command::{assert_says, done};
use crate::common::netns::{Daemon, until};
use crate::{House, all_records, end, in_own_mounts, is_certain, shell, tunnels, wireguard};

/// A file system in memory of that size.
fn mount(folder: &Path, size: &str) {
    fs::create_dir_all(folder).unwrap();
    shell(&format!("mount -t tmpfs -o size={size},mode=0755 none \"$0\""), folder);
}

/// Takes all the room there is.
fn fill(folder: &Path) {
    shell(
        "dd if=/dev/zero of=\"$0/filler\" bs=64k 2>/dev/null || dd if=/dev/zero of=\"$0/rest\" bs=512 2>/dev/null || true",
        folder,
    );
    assert!(fs::write(folder.join("more"), vec![0; 8192]).is_err(), "there is room left");
}

fn make_room(folder: &Path) {
    for name in ["filler", "rest", "more"] {
        let _ = fs::remove_file(folder.join(name));
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

fn lost(house: &House) -> u64 {
    number(&house.status()["records"]["lost"])
}

/// Every record of the run is in the log or counted as lost.
fn assert_counted(house: &House, daemon: &Daemon) -> u64 {
    let summary = daemon.summary();
    let seqs: Vec<_> = all_records(&house.log()).iter().map(|record| number(&record["seq"])).collect();
    let (written, lost) = (number(&summary["records"]), number(&summary["records_lost"]));
    assert_eq!(seqs.len() as u64, written, "{summary}");
    assert!(*seqs.iter().max().unwrap() <= written + lost, "{summary}");
    lost
}

#[test]
fn a_full_disk_costs_what_finds_no_room_in_memory_and_nothing_more() {
    in_own_mounts(|| {
        let house = House::new("full", "");
        mount(&house.log(), "160m");
        let mut daemon = house.start();
        house.send(&wireguard()[..20]);
        daemon.record("the tunnel", is_certain);
        fill(&house.log());
        let mut sender = house.namespace.sender("far0");
        // The page that was begun still takes some.
        let mut ports = (2000..u16::MAX).step_by(200);
        until("a record that finds no room", || {
            let from = ports.next().unwrap();
            sender.send(&tunnels(from..from + 200));
            (house.status()["log"]["is_failing"] == true).then_some(())
        });
        let said = daemon.says("records cannot be written");
        assert_says(&said, &["WARN", "No space left on device"]);
        house.doubts("linewarden.ndjson cannot be written");
        // Eight mebibytes wait. Then they are lost, and that is said.
        until("records are lost", || {
            let from = ports.next().unwrap();
            sender.send(&tunnels(from..from + 200));
            (lost(&house) > 0).then_some(())
        });
        house.doubts("records were lost in the last hour");
        make_room(&house.log());
        let said = daemon.says("records are written again");
        let total = lost(&house);
        assert_says(&said, &[&format!("lost={total}")]);
        until("nothing waits", || (number(&house.status()["records"]["waiting"]) == 0).then_some(()));
        end(&mut daemon);
        assert_eq!(assert_counted(&house, &daemon), total);
        assert!(total > 0);
        house.assert_whole();
        let said = daemon.said.join("\n");
        assert_says(&said, &["the output cannot be written", "the output is written again"]);
        println!("lost {total} of {} records", number(&daemon.summary()["records"]) + total);
    });
}

#[test]
fn killed_on_a_full_disk_behind_a_rotation_it_starts_there_and_loses_what_waited() {
    in_own_mounts(|| {
        let house = House::new("full-kill", "");
        mount(&house.log(), "16m");
        let mut daemon = house.start();
        house.send(&wireguard()[..20]);
        daemon.record("the tunnel", is_certain);
        fill(&house.log());
        // What the rotation needs may be there or not: it is asked for, and killed upon.
        house.ctl(&["rotate"]);
        house.send(&tunnels(2000..2050));
        daemon.signal("KILL");
        until("it is gone", || daemon.is_gone().then_some(()));
        let before = all_records(&house.log());
        assert!(before.iter().any(is_certain), "what was in the log stays in it");

        // On the full disk it starts, captures, and says what it cannot do.
        let mut daemon = house.start();
        house.send(&tunnels(3000..3050));
        house.doubts("cannot be written");
        make_room(&house.log());
        daemon.record("what waited", |record| record["src_port"] == 3049 || record["dst_port"] == 3049);
        end(&mut daemon);
        assert_eq!(daemon.summary()["records_lost"], 0);
        let after = all_records(&house.log());
        assert_eq!(after[..before.len()], before[..]);
        house.assert_whole();
    });
}

#[test]
fn a_full_disk_of_the_state_costs_no_record() {
    in_own_mounts(|| {
        let house = House::new("full-state", "[state]\ndir = \"s\"");
        let state = house.path("s");
        mount(&state, "1m");
        let mut daemon = house.start();
        house.send(&tunnels(2000..2010));
        daemon.record("a tunnel", is_certain);
        fill(&state);
        house.send(&tunnels(3000..3400));
        daemon.says("the state folder cannot be written");
        house.doubts("is signed, and where is not kept");
        until("the inventory tells", || {
            let error = house.status()["inventory"]["error"].clone();
            error.as_str().is_some_and(|error| error.contains("full")).then_some(())
        });
        let written = number(&house.status()["records"]["written"]);
        house.send(&tunnels(4000..4010));
        until("the log goes on", || (number(&house.status()["records"]["written"]) > written).then_some(()));
        make_room(&state);
        daemon.says("the inventory is kept again");
        until("heads are kept again", || (house.status()["log"]["is_headless"] == false).then_some(()));
        end(&mut daemon);
        assert_eq!(daemon.summary()["records_lost"], 0);
        house.assert_whole();
        let rows = house.run(&["inventory", "--state", "s", "--format", "ndjson"]).expect(0).out;
        assert_eq!(rows.lines().count(), 1, "one tunnel, of many ports: {rows}");
        let row: Value = serde_json::from_str(rows.trim()).unwrap();
        assert_eq!(row["flows"], 420, "all of its flows: {row}");
    });
}

/// As the kernel makes a disk read-only that has failed: what is open for writing refuses.
#[test]
fn a_disk_that_turns_read_only_takes_no_more_and_that_is_said() {
    in_own_mounts(|| {
        let house = House::new("readonly", "");
        let image = house.path("image");
        let script = "truncate -s 16M \"$0\"; mkfs.ext4 -q -O ^has_journal \"$0\"";
        shell(script, &image);
        let mounted = format!("mount -o loop,errors=remount-ro \"$0\" {}", house.log().display());
        shell(&mounted, &image);
        let mut daemon = house.start();
        house.send(&wireguard()[..20]);
        daemon.record("the tunnel", is_certain);
        house.assert_whole();
        shell("echo 1 >/sys/fs/ext4/$(basename \"$(findmnt -n -o SOURCE \"$0\")\")/trigger_fs_error", &house.log());
        house.send(&tunnels(2000..2010));
        let said = daemon.says("records cannot be written");
        assert_says(&said, &["WARN", "Read-only file system"]);
        house.doubts("linewarden.ndjson cannot be written");
        until("packets are taken all the same", || {
            (house.status()["interfaces"][0]["packets"] == 20 + 20).then_some(())
        });
        let waiting = number(&house.status()["records"]["waiting"]);
        assert!(waiting >= 20, "{waiting}");
        end(&mut daemon);
        let said = daemon.said.join("\n");
        assert_says(&said, &["the output cannot be written", "the summary cannot be written", " written, 31 lost"]);
        // What was written stays, and is what it was.
        assert!(all_records(&house.log()).iter().any(is_certain));
        house.assert_whole();
        done(std::process::Command::new("umount").arg(house.log())).expect(0);
    });
}
