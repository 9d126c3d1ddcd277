//! Folders of the log that are removed, replaced or closed. Files of it that are renamed, cut or removed: `tests/ctl.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::command::assert_says;
use crate::common::netns::until;
use crate::{House, all_records, end, is_certain, tunnels, wireguard};

const STATE: &str = "[state]\ndir = \"s\"";

#[test]
fn a_log_folder_that_is_removed_is_told_and_what_waits_is_lost_and_counted() {
    let house = House::new("removed", STATE);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    fs::remove_dir_all(house.log()).unwrap();
    daemon.says("SOMEBODY CUT OR REMOVED THE LOG");
    house.doubts("linewarden.ndjson is not the file that is written");
    house.doubts("or its seals were cut or removed at");
    end(&mut daemon);
    println!("{}", daemon.said.join("\n"));
}

#[test]
fn a_log_folder_that_is_replaced_is_told_and_the_log_goes_on_in_it_when_it_is_asked_to() {
    let house = House::new("replaced", STATE);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    fs::rename(house.log(), house.path("away")).unwrap();
    fs::create_dir(house.log()).unwrap();
    daemon.says("the file that is written is not there any more");
    house.doubts("linewarden.ndjson is not the file that is written");
    house.send(&tunnels(2000..2010));
    let away = house.path("away");
    until("records go on into the old file", || (all_records(&away).len() > 20).then_some(()));
    daemon.signal("USR1");
    println!("{}", daemon.says("anew"));
    end(&mut daemon);
    println!("{}", daemon.said.join("\n"));
}

#[test]
fn a_log_folder_that_is_closed_is_written_on_and_not_rotated() {
    let house = House::new("closed", STATE);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    let close = |mode| fs::set_permissions(house.log(), fs::Permissions::from_mode(mode)).unwrap();
    close(0o500);
    house.ctl(&["rotate"]);
    let said = daemon.says("the log cannot be rotated");
    assert_says(&said, &["WARN", "Permission denied", "it goes on in the same segment"]);
    house.send(&tunnels(2000..2010));
    daemon.record("what came after", |record| record["src_port"] == 2009 || record["dst_port"] == 2009);
    close(0o755);
    house.ctl(&["rotate"]).expect(0);
    end(&mut daemon);
    assert_eq!(daemon.summary()["records_lost"], 0);
    house.assert_whole();
}
