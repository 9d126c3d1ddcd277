//! Folders of the log that are removed, replaced or closed. Files of it that are renamed, cut or removed: `tests/ctl.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::command::assert_says;
use crate::common::netns::until;
use crate::{House, all_records, end, is_certain, tunnels, wireguard};

const STATE: &str = "[state]\ndir = \"s\"";

/// The sandbox lets it make no folder beside its own: what comes from then on waits, and is lost at the end.
#[test]
fn a_log_folder_that_is_removed_is_told_and_what_comes_then_is_counted_as_lost() {
    let house = House::new("removed", STATE);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    fs::remove_dir_all(house.log()).unwrap();
    let said = daemon.says("the log cannot be opened anew");
    assert_says(&said, &["WARN", "that takes a restart"]);
    house.send(&tunnels(2000..2010));
    house.doubts("linewarden.ndjson is not the file that is written");
    house.doubts("linewarden.ndjson cannot be written");
    until("they wait", || (house.status()["records"]["waiting"] == 20).then_some(()));
    end(&mut daemon);
    let said = daemon.said.join("\n");
    assert_says(&said, &["SOMEBODY CUT OR REMOVED THE LOG", "SOMEBODY REMOVED THE SEALS", " 2 written, 31 lost"]);
    // The next start makes it anew, goes on there, and what is gone shows by the heads that were kept.
    let mut daemon = house.start();
    house.send(&tunnels(3000..3010));
    daemon.record("a record in the new folder", is_certain);
    end(&mut daemon);
    assert!(
        daemon.said.iter().any(|line| line.contains("the log was not closed by its last run")),
        "{:#?}",
        daemon.said
    );
    let (code, report) = house.verify();
    assert_eq!((code, &report["is_whole"]), (65, &false.into()), "{report:#}");
}

#[test]
fn a_log_folder_that_is_replaced_is_told_and_nothing_is_lost_in_the_old_one() {
    let house = House::new("replaced", STATE);
    let mut daemon = house.start();
    house.send(&wireguard()[..20]);
    daemon.record("the tunnel", is_certain);
    fs::rename(house.log(), house.path("away")).unwrap();
    fs::create_dir(house.log()).unwrap();
    daemon.says("the file that is written is not there any more");
    house.doubts("linewarden.ndjson is not the file that is written");
    house.send(&tunnels(2000..2010));
    // The sandbox lets it into no other folder than it was started in, whatever that one is called now.
    daemon.signal("USR1");
    let said = daemon.says("the log cannot be opened anew: records go on into the old file");
    assert_says(&said, &["WARN", "Permission denied"]);
    end(&mut daemon);
    assert!(daemon.said.iter().any(|line| line.ends_with(" 33 written, 0 lost")), "{:#?}", daemon.said);
    assert_eq!(all_records(&house.path("away")).len(), 33);
    house.run(&["verify-log", "away", "--config", "s.toml"]).expect(0);
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
