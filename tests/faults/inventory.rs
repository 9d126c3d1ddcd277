//! The inventory's file overwritten while it is written. Damaged at the start, locked by another, killed: `tests/inventory.rs`;
//! its disk full: `disks.rs`.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::common::netns::until;
use crate::{House, end, is_certain, tunnels, wireguard};

fn flows(house: &House) -> u64 {
    let done = house.run(&["inventory", "--state", "linewarden-log/state", "--format", "ndjson"]);
    if done.code != 0 {
        return 0;
    }
    let rows = crate::common::command::records(&done.out);
    rows.iter().map(|row| row["flows"].as_u64().unwrap()).sum()
}

#[test]
fn noise_in_the_inventory_is_found_while_it_runs_and_it_is_made_anew_from_the_log() {
    let house = House::new("noise", "");
    let mut daemon = house.start();
    house.send(&tunnels(2000..2040));
    house.send(&wireguard());
    daemon.record("a tunnel", is_certain);
    until("all flows are in it", || (flows(&house) == 41).then_some(()));
    let file = house.log().join("state/inventory.sqlite");
    // All of it, and pages in the middle only, which a look at its head would not show.
    for from in [0, 8192] {
        let octets = fs::metadata(&file).unwrap().len().saturating_sub(from).max(4096);
        let noise: Vec<u8> = (0..octets).map(|at| (at * 167 % 251) as u8).collect();
        fs::File::options().write(true).open(&file).unwrap().write_all_at(&noise, from).unwrap();
        daemon.signal("USR1");
        let said = daemon.says("the inventory is made anew from the log");
        assert!(said.contains("WARN") && said.contains("inventory.sqlite.corrupt-"), "{said}");
        daemon.says("the inventory holds what the log does");
        until("all flows are in it again", || (flows(&house) == 41).then_some(()));
    }
    assert!(house.status()["inventory"]["error"].is_null());
    end(&mut daemon);
    assert_eq!(flows(&house), 41);
    house.assert_whole();
}
