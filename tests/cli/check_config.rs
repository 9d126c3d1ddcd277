//! `linewarden check-config`: what is in force, and everything that is wrong.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::common::command::{
    approval, approved, assert_says, capture, done, folder, linewarden, where_nothing_is_installed,
};

#[test]
fn check_config_says_what_is_in_force() {
    let folder = approved(
        &(approval("vpn", "a", "valid_until = 2099-12-31\npeers = [\"198.51.100.2\", \"2001:db8::/32\"]")
            + &approval("vpn", "old", "valid_until = 2020-12-31\npeers = [\"203.0.113.9\"]")
            + &approval("vpn", "wide", "valid_until = 2099-12-31\npeers = [\"0.0.0.0/0\"]")),
    );
    let check = |arguments: &[&str]| {
        let mut command = linewarden(["check-config"].iter().chain(arguments));
        done(command.current_dir(folder.path()))
    };
    let done_well = check(&["--config", "settings.toml", "--approvals", "approvals.d"]).expect(0);
    assert_says(
        &done_well.out,
        &[
            "settings   settings.toml: ok",
            "approvals  approvals.d: ok, 3 with 4 prefixes, revision ",
            "warning    approvals.d/a.toml:8:1: approval \"old\": ended at 2021-01-01",
            "approval \"wide\": 0.0.0.0/0 approves a large part of the Internet",
        ],
    );
    let mirrors = "[[decapsulate.mirrors]]\ntunnel = \"erspan\"\nfrom = \"192.0.2.1\"\n[[decapsulate.mirrors]]\ntunnel = \"vxlan\"\nto = \"2001:db8::/64\"\n";
    fs::write(folder.path().join("mirrors.toml"), mirrors).unwrap();
    let with_mirrors = check(&["--config", "mirrors.toml", "--approvals", "approvals.d"]).expect(0);
    assert_says(
        &with_mirrors.out,
        &[
            "mirror     erspan from 192.0.2.1/32 to anybody: opened, and no finding",
            "mirror     vxlan from anybody to 2001:db8::/64, UDP port 4789: opened, and no finding",
        ],
    );
    fs::write(folder.path().join("timeouts.toml"), "[flow]\nactive_timeout = \"1m\"\n").unwrap();
    let with_timeouts = check(&["--config", "timeouts.toml", "--approvals", "approvals.d"]).expect(0);
    assert_says(&with_timeouts.out, &["warning    flow.idle_timeout is longer than flow.active_timeout"]);
    let mut command = linewarden(["check-config"]);
    let nothing = done(&mut where_nothing_is_installed(command.current_dir(folder.path()))).expect(0);
    assert_says(&nothing.out, &["settings   built-in defaults: ok", "NO APPROVALS ARE IN FORCE"]);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/linewarden.toml");
    // A copy: the checkout may be somebody else's.
    fs::write(folder.path().join("shipped.toml"), fs::read(shipped).unwrap()).unwrap();
    check(&["--config", "shipped.toml"]).expect(0);

    let mut many = approval("vpn", "many", "valid_until = 2099-12-31\npeers = [");
    many.truncate(many.trim_end().len());
    for number in 0..100_000_u32 {
        write!(many, "\"10.{}.{}.{}\",", number >> 16, number >> 8 & 255, number & 255).unwrap();
    }
    fs::write(folder.path().join("approvals.d/a.toml"), many + "]\n").unwrap();
    assert_says(&check(&["--approvals", "approvals.d"]).expect(0).out, &["ok, 1 with 100000 prefixes"]);
}

#[test]
fn check_config_names_everything_that_is_wrong() {
    let folder = folder(&[
        ("bad.toml", "sensor = \"s\"\n[capture]\nsnap_lenght = 256\n[flow]\nidle_timeout = 120\n"),
        ("torn.toml", "[capture\n"),
        ("filter.toml", "[capture]\nfilter = \"udp\"\n"),
        (
            "bad.d/a.toml",
            "id = \"a\"\nkind = \"lease\"\nownr = \"o\"\nreference = \"r\"\nvalid_until = 2027-12-31\npeers = [\"198.51.100.7/24\"]\n",
        ),
        ("bad.d/b.toml", &approval("vpn", "b", "valid_until = 2027-02-30\npeers = [\"198.51.100.7\"]")),
        (
            "bad.d/c.toml",
            &(approval("vpn", "c", "valid_until = 2027-12-31\npeers = [\"192.0.2.1\"]\ntunnels = [\"wireguardd\"]")),
        ),
        ("good.d/a.toml", &approval("vpn", "a", "valid_until = 2027-12-31\npeers = [\"192.0.2.1\"]")),
        ("twice.d/a.toml", &approval("vpn", "a", "valid_until = 2027-12-31\npeers = [\"192.0.2.1\"]")),
        ("twice.d/b.toml", &approval("vpn", "a", "valid_until = 2027-12-31\npeers = [\"192.0.2.1\"]")),
    ]);
    let file = capture("wireguard-port-51820");
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["--config", "bad.toml"],
            &[
                "bad.toml:3:1: capture.snap_lenght is not a known key: did you mean `snap_length`?\n    3 | snap_lenght = 256\n      | ^^^^^^^^^^^\n",
                "bad.toml:5:16: flow.idle_timeout is 120: write a duration in quotes from \"1s\" to \"7d\"",
            ],
        ),
        (&["--config", "none.toml"], &["none.toml: cannot be read: No such file"]),
        (&["--config", "torn.toml"], &["torn.toml:1:", "TOML"]),
        (&["--config", "filter.toml"], &["capture.filter: filter line 1: `udp`", "tcpdump -ddd"]),
        (
            &["--approvals", "none.d"],
            &["none.d: the folder of approvals cannot be read: No such file", "make it, or name another one"],
        ),
        (
            &["--approvals", "bad.d"],
            &[
                "bad.d/a.toml:1:1: owner is missing: write `owner = ",
                "bad.d/a.toml:2:8: kind is \"lease\": write \"leased-line\" or \"vpn\"",
                "bad.d/a.toml:3:1: ownr is not a known key: did you mean `owner`?",
                "bad.d/a.toml:6:10: peers is \"198.51.100.7/24\": it has bits set behind its prefix: write \"198.51.100.0/24\"",
                "bad.d/b.toml:6:15: ",
                "bad.d/c.toml:8:12: tunnels is \"wireguardd\": write one of wireguard, openvpn",
                "did you mean \"wireguard\"?",
            ],
        ),
        (&["--approvals", "twice.d"], &["twice.d/b.toml:2:6: id is \"a\": this id is taken at twice.d/a.toml:1:1"]),
        (&["--config", "bad.toml", "--approvals", "bad.d"], &["bad.toml:3:1", "bad.d/a.toml:3:1"]),
    ];
    for (arguments, texts) in cases {
        let mut command = linewarden(["check-config"].iter().chain(arguments));
        let found = done(command.current_dir(folder.path())).expect(78);
        assert_says(&found.err, texts);
        assert_eq!(found.out, "");
        // What judges refuses it, too, before it reads a packet.
        if !arguments.contains(&"filter.toml") {
            let mut command = linewarden(["replay", file.to_str().unwrap()].iter().chain(arguments));
            let found = done(command.current_dir(folder.path())).expect(78);
            assert_says(&found.err, &texts[..1]);
            assert_eq!(found.out, "");
        }
    }
    let mut command = linewarden(["check-config", "--approvals", "good.d"]);
    done(command.current_dir(folder.path())).expect(0);
}
