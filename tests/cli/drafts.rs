//! `linewarden approvals`: findings of lint, and drafts from a table, from NetBox and from a logged flow, which approve
//! nothing before a person has filled them in.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::command::{Done, approval, assert_says, capture, done, folder, linewarden};

fn run(folder: &TempDir, arguments: &[&str]) -> Done {
    done(linewarden(arguments).current_dir(folder.path()))
}

fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a person writes into a draft.
fn filled(draft: &str) -> String {
    let fill = |line: &str| {
        let line = line.strip_prefix("#path = ").map_or_else(|| line.to_owned(), |rest| format!("path = {rest}"));
        let line = line.strip_prefix("#peers = ").map_or_else(|| line.clone(), |rest| format!("peers = {rest}"));
        match line.split_once(" = \"\"  # TODO") {
            Some((key @ "valid_until", _)) => format!("{key} = 2099-12-31\n"),
            Some((key @ "kind", _)) => format!("{key} = \"vpn\"\n"),
            Some((key, _)) => format!("{key} = \"written by a person\"\n"),
            None => line + "\n",
        }
    };
    draft.lines().map(fill).collect()
}

/// Draft of a name, put in force as it is, must be refused for exactly these keys; and filled in, it must be taken.
fn refused_until_filled_in(folder: &TempDir, draft: &str, keys: &[&str]) {
    let place = folder.path().join("try.d");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("a.toml"), draft).unwrap();
    let refused = run(folder, &["check-config", "--approvals", "try.d"]).expect(78);
    let found: Vec<_> = refused.err.lines().filter(|line| line.starts_with("try.d/a.toml:")).collect();
    assert_eq!(found.len(), keys.len(), "{}", refused.err);
    for key in keys {
        let named = |line: &&&str| line.contains(&format!(": {key} is "));
        assert_eq!(found.iter().filter(named).count(), 1, "{key}: {}", refused.err);
    }
    fs::write(place.join("a.toml"), filled(draft)).unwrap();
    assert_says(
        &run(folder, &["check-config", "--approvals", "try.d"]).expect(0).out,
        &["approvals  try.d: ok, 1 with "],
    );
}

#[test]
fn lint_says_what_was_hardly_meant_and_exits_with_2() {
    let good =
        approval("vpn", "a", "need = \"n\"\nvalid_until = 2099-12-31\npeers = [\"198.51.100.2\"]\ntunnels = [\"esp\"]");
    let old = approval("vpn", "old", "valid_until = 2020-12-31\npeers = [\"0.0.0.0/0\"]");
    let folder = folder(&[
        ("good.d/a.toml", &good),
        ("two.d/a.toml", &good),
        ("two.d/b.toml", &old),
        ("bad.d/a.toml", "id = 1\n"),
    ]);
    let well = run(&folder, &["approvals", "lint", "good.d"]).expect(0);
    assert_eq!((well.out.as_str(), well.err.as_str()), ("good.d: 1 approvals, 0 findings\n", ""));
    let found = run(&folder, &["approvals", "lint", "two.d"]).expect(2);
    assert_says(
        &found.out,
        &[
            "two.d/b.toml:1:1: approval \"old\": 0.0.0.0/0 approves a large part of the Internet [wide_network]\n",
            "two.d/b.toml:1:1: approval \"old\": ended at 2021-01-01T00:00:00.000000000Z: renew it or take it out [ended]\n",
            "says nothing of why it is needed: write `need`",
            "approves any tunnel on any port",
            "two.d: 2 approvals, 4 findings\n",
        ],
    );
    let json: Value =
        serde_json::from_str(&run(&folder, &["approvals", "lint", "two.d", "--json"]).expect(2).out).unwrap();
    assert_eq!([&json["folder"], &json["approvals"]], [&Value::from("two.d"), &Value::from(2)]);
    assert_eq!(json["revision"].as_str().unwrap().len(), 64);
    let first = &json["findings"][0];
    assert_eq!([&first["code"], &first["approval"], &first["place"]], ["wide_network", "old", "two.d/b.toml:1:1"]);
    // How soon is soon: by option, by setting.
    let years = ["approvals", "lint", "good.d", "--within", "5200w"];
    assert_says(&run(&folder, &years).expect(2).out, &["approval \"a\": ends at 2100-01-01", "[ends_soon]"]);
    fs::write(folder.path().join("s.toml"), "[policy]\napprovals = \"good.d\"\nwarn_before = \"3650d\"\n").unwrap();
    run(&folder, &["approvals", "lint", "--config", "s.toml"]).expect(0);
    // What is wrong is no finding.
    let wrong = run(&folder, &["approvals", "lint", "bad.d"]).expect(78);
    assert_says(&wrong.err, &["bad.d/a.toml:1:6: id is 1: write a text in quotes"]);
    assert_eq!(wrong.out, "");
    assert_says(
        &run(&folder, &["approvals", "lint", "none.d"]).expect(78).err,
        &["none.d: the folder of approvals cannot be read"],
    );
    assert_says(&run(&folder, &["approvals", "lint", "--within", "soon"]).expect(64).err, &["such as 90d"]);
}

const TABLE: &str = "\u{feff}ID;Kind;Owner;Reference;Need;Valid from;Valid until;Peers;Ports;IP protocols;Tunnels;Interface;VLAN;Capacity;City
vpn-a;vpn;network team;CHG-1;\"orders; returns\";2026-01-01;2099-12-31;198.51.100.2 2001:db8:7::/48;51820, 4500-4510;udp 50;wireguard;;;;Lisbon
line-b;leased-line;carrier management;DE-PT-0815;voice;;2099-12-31;;;;;wan0;100;1Gbit/s;Berlin
line-c;leased-line;;DE-PT-0816;;;;;;;;;;;
";

#[test]
fn a_table_becomes_drafts_that_stay_out_of_force_until_renamed() {
    let folder = folder(&[("lines.csv", TABLE)]);
    let import = ["approvals", "import", "--csv", "lines.csv", "--skip", "city", "--out", "new.d"];
    let said = run(&folder, &import).expect(0);
    assert_eq!(said.out, "");
    assert_says(
        &said.err,
        &["3 approvals drafted, 1 with something left to write (TODO); 3 written to new.d, 0 were there"],
    );
    let nothing = run(&folder, &["check-config", "--approvals", "new.d"]).expect(0);
    assert_says(&nothing.out, &["NO APPROVALS ARE IN FORCE (new.d holds none)"]);

    // Complete ones are taken as they are, once a person has put them in force.
    for id in ["vpn-a", "line-b"] {
        fs::rename(
            folder.path().join(format!("new.d/{id}.toml.draft")),
            folder.path().join(format!("new.d/{id}.toml")),
        )
        .unwrap();
    }
    let taken = run(&folder, &["check-config", "--approvals", "new.d"]).expect(0);
    assert_says(&taken.out, &["approvals  new.d: ok, 2 with 2 prefixes"]);
    assert!(!taken.out.contains("warning"), "{}", taken.out);
    assert_says(
        &read(&folder, "new.d/vpn-a.toml"),
        &[
            "# Drafted from lines.csv, line 2.\n[[approval]]\nid = \"vpn-a\"\nkind = \"vpn\"\n",
            "need = \"orders; returns\"\nvalid_from = 2026-01-01\nvalid_until = 2099-12-31\n",
            "peers = [\"198.51.100.2\", \"2001:db8:7::/48\"]\nports = [51820, \"4500-4510\"]\nip_protocols = [\"udp\", 50]\n",
        ],
    );
    assert_says(
        &read(&folder, "new.d/line-b.toml"),
        &["path = { interface = \"wan0\", vlan = 100 }\n", "capacity = \"1Gbit/s\"\n"],
    );
    refused_until_filled_in(&folder, &read(&folder, "new.d/line-c.toml.draft"), &["owner", "valid_until", "peers"]);

    // Again: what is there stays, filled in or not.
    fs::write(folder.path().join("new.d/line-c.toml.draft"), "half filled in").unwrap();
    assert_says(&run(&folder, &import).expect(0).err, &["0 written to new.d, 3 were there already"]);
    assert_eq!(read(&folder, "new.d/line-c.toml.draft"), "half filled in");
    assert_eq!(fs::read_dir(folder.path().join("new.d")).unwrap().count(), 3);

    // The same to standard output, from standard input.
    let mut piped = linewarden(["approvals", "import", "--csv", "-", "--skip", "City"]);
    piped.stdin(Stdio::from(fs::File::open(folder.path().join("lines.csv")).unwrap()));
    let printed = done(&mut piped).expect(0);
    assert_eq!(printed.out.matches("[[approval]]\n").count(), 3);
    assert_says(&printed.out, &["# Drafted from standard input, line 4.\n"]);
}

#[test]
fn what_is_wrong_with_a_table_is_named_with_line_and_column() {
    let cases: &[(&str, &[&str])] = &[
        (
            "id,owner,peers,valid_until\na,o,198.51.100.7/24,30.06.2027\n,o,,\na,o,192.0.2.1,2027-06-31\n",
            &[
                "t.csv:2: column 3 (peers): peers is \"198.51.100.7/24\": it has bits set behind its prefix: write \"198.51.100.0/24\"",
                "t.csv:2: column 4 (valid_until): valid_until is \"30.06.2027\": write a date such as 2027-12-31",
                "t.csv:3: column 1 (id): is empty",
                "t.csv:4: column 1 (id): \"a\" is taken in line 2",
                "t.csv:4: column 4 (valid_until): valid_until is ",
            ],
        ),
        (
            "id,tunnls,id,city\n",
            &[
                "t.csv:1: column 2 (\"tunnls\"): is no column of approvals: name it one of id, kind,",
                "column 3 (\"id\"): is there twice",
                "column 4 (\"city\"): is no column",
            ],
        ),
        ("owner,need\no,n\n", &["t.csv:1: there is no column `id`"]),
        ("id\n", &["t.csv: holds no row below its headings"]),
        ("", &["t.csv:1: there is no column `id`"]),
        (
            "id,owner\na,o\nb,o,more\nc\n",
            &["t.csv:3: has 3 cells, and the row of headings 2: is a separator missing", "t.csv:4: has 1 cells"],
        ),
        // As spreadsheets write it, with an empty line.
        (
            "id,owner\r\na,o\r\nb,o,more\r\n\r\n,o\r\na,\"o\r\no\"\r\nc\r\n",
            &[
                "t.csv:3: has 3 cells",
                "t.csv:5: column 1 (id)",
                "t.csv:6: column 1 (id): \"a\" is taken in line 2",
                "t.csv:8: has 1 cells",
            ],
        ),
        (
            "id,kind,vlan,tunnels,ports\na,vnp,5000,wiregaurd,70000\n",
            &[
                "column 3 (vlan): path.vlan is 5000",
                "did you mean \"wireguard\"?",
                "column 5 (ports): ports is 70000",
                "column 2 (kind): kind is \"vnp\": write \"leased-line\" or \"vpn\"",
            ],
        ),
        ("id,wireguard_public_keys\na,AAAA\n", &["t.csv:2: column 2 (wireguard_public_keys): "]),
        (
            "id,valid_from,valid_until\na,2027-01-01,2026-01-01\n",
            &["column 2 (valid_from): valid_from is 2027-01-01: write a time before valid_until"],
        ),
        (
            "id,kind,vlan\na,leased-line,\"7 }\nx = 1\"\n",
            &["column 3 (vlan): path.vlan is \"7 } x = 1\": write a whole number"],
        ),
    ];
    for (table, texts) in cases {
        let folder = folder(&[("t.csv", table)]);
        let refused = run(&folder, &["approvals", "import", "--csv", "t.csv", "--out", "new.d"]).expect(65);
        assert_says(&refused.err, texts);
        assert_eq!(refused.out, "");
        assert!(!folder.path().join("new.d").exists(), "all or nothing");
    }
    let folder = folder(&[("latin.csv", "")]);
    fs::write(folder.path().join("latin.csv"), b"id,owner\na,M\xfcller\n").unwrap();
    let import = |arguments: &[&str]| run(&folder, &[&["approvals", "import"], arguments].concat());
    assert_says(&import(&["--csv", "latin.csv"]).expect(65).err, &["latin.csv: line 2 is not UTF-8"]);
    assert_says(&import(&["--csv", "none.csv"]).expect(65).err, &["none.csv: cannot be read: No such file"]);
    import(&[]).expect(64);
    import(&["--csv", "latin.csv", "--netbox", "x.json"]).expect(64);
}

/// As NetBox 4 answers, shortened.
const CIRCUITS: &str = r#"{"count": 3, "next": null, "previous": null, "results": [
{"id": 7, "url": "https://netbox.example/api/circuits/circuits/7/", "display": "DE/PT 0815", "cid": "DE/PT 0815",
 "provider": {"id": 1, "display": "Carrier One", "name": "Carrier One", "slug": "carrier-one"}, "provider_account": null,
 "type": {"id": 2, "display": "Dark fibre", "name": "Dark fibre", "slug": "dark-fibre"},
 "status": {"value": "active", "label": "Active"},
 "tenant": {"id": 3, "display": "carrier management", "name": "carrier management", "slug": "cm"},
 "install_date": "2024-02-01", "termination_date": "2099-12-31", "commit_rate": 1000000, "description": "",
 "comments": "voice\r\n[[approval]]\r\nid = \"evil\"", "tags": [], "custom_fields": {"x": 1}},
{"id": 8, "cid": "0816", "provider": {"id": 1, "name": "Carrier One"}, "status": {"value": "active", "label": "Active"},
 "tenant": null, "install_date": null, "termination_date": null, "commit_rate": null, "description": ""},
{"id": 9, "cid": "0817", "provider": {"id": 1, "name": "Carrier One"}, "status": {"value": "planned", "label": "Planned"}}]}"#;

const TERMINATIONS: &str = r#"{"count": 2, "next": null, "previous": null, "results": [
{"id": 1, "circuit": {"id": 7, "cid": "DE/PT 0815"}, "term_side": "A", "termination": {"id": 4, "display": "Berlin", "name": "Berlin"},
 "port_speed": 10000000, "xconnect_id": "XC-4711", "description": "", "connected_endpoints": [{"id": 5, "name": "ge-0/0/1", "device": {"id": 6, "name": "r1.berlin"}}]},
{"id": 2, "circuit": {"id": 8, "cid": "0816"}, "term_side": "Z", "site": {"id": 5, "name": "Lisbon"}, "port_speed": 34000, "connected_endpoints": null}]}"#;

#[test]
fn active_circuits_of_netbox_become_drafts_of_leased_lines() {
    let folder = folder(&[("circuits.json", CIRCUITS), ("ends.json", TERMINATIONS)]);
    let said =
        run(&folder, &["approvals", "import", "--netbox", "circuits.json", "--netbox", "ends.json", "--out", "new.d"])
            .expect(0);
    assert_says(
        &said.err,
        &["circuit \"0817\" is planned: left out", "2 approvals drafted, 2 with something left to write"],
    );
    assert!(!said.err.contains("ONLY"), "{}", said.err);
    let first = read(&folder, "new.d/line-de-pt-0815.toml.draft");
    assert_says(
        &first,
        &[
            "# Drafted from circuits.json: circuit DE/PT 0815 (NetBox 7).\n# Type: Dark fibre.",
            "id = \"line-de-pt-0815\"\nkind = \"leased-line\"\nowner = \"carrier management\"  # the circuit's tenant\n",
            "reference = \"Carrier One circuit DE/PT 0815\"\n",
            "valid_from = 2024-02-01\nvalid_until = 2099-12-31\ncapacity = \"1Gbit/s\"\n",
            "# End A: Berlin, r1.berlin ge-0/0/1, XC-4711\n",
        ],
    );
    let parsed: toml::Table = first.parse().unwrap();
    assert_eq!(
        parsed["approval"].as_array().unwrap().len(),
        1,
        "what NetBox says becomes no approval of its own: {first}"
    );
    // It approves nothing until its path is written: complete as it looks otherwise.
    refused_until_filled_in(&folder, &first, &["peers"]);
    let second = read(&folder, "new.d/line-0816.toml.draft");
    assert_says(&second, &["capacity = \"34Mbit/s\"\n", "# End Z: Lisbon\n"]);
    refused_until_filled_in(&folder, &second, &["owner", "need", "valid_until", "peers"]);
    assert_eq!(fs::read_dir(folder.path().join("new.d")).unwrap().count(), 2);
}

#[test]
fn answers_of_netbox_that_are_none_are_named() {
    let page = CIRCUITS.replace("\"count\": 3", "\"count\": 120");
    let odd = CIRCUITS.replace("\"2099-12-31\"", "\"soon\"");
    let twins = r#"[{"id": 1, "cid": "7", "provider": {"name": "One"}, "status": "active"}, {"id": 2, "cid": "7", "provider": {"name": "Two"}, "status": "active"}]"#;
    let folder = folder(&[
        ("page.json", &page),
        ("odd.json", &odd),
        ("twins.json", twins),
        ("torn.json", "{\"results\": [\n{\"id\": ]"),
        ("no.json", "{\"detail\": \"Invalid token\"}"),
        ("ends.json", TERMINATIONS),
        ("sites.json", "[{\"id\": 1, \"name\": \"Berlin\"}]"),
    ]);
    let import = |file: &str| run(&folder, &["approvals", "import", "--netbox", file]);
    assert_says(&import("page.json").expect(0).err, &["ONLY 3 of 120 circuits are given: ask NetBox with ?limit=0"]);
    assert_says(&import("twins.json").expect(0).out, &["id = \"line-7\"\n", "id = \"line-7-two\"\n"]);
    assert_says(
        &import("odd.json").expect(65).err,
        &["odd.json: circuit \"DE/PT 0815\": valid_until is \"soon\": write a date"],
    );
    assert_says(&import("torn.json").expect(65).err, &["torn.json:2:8: is no JSON"]);
    assert_says(
        &import("no.json").expect(65).err,
        &["no.json: is no list of NetBox's (it says \"Invalid token\"): name the answer of /api/circuits/circuits/"],
    );
    assert_says(&import("ends.json").expect(65).err, &["there is no circuit in what is given"]);
    assert_says(
        &import("sites.json").expect(65).err,
        &["sites.json: result 1 is no circuit of NetBox: missing field `cid`"],
    );
}

#[test]
fn a_logged_flow_becomes_a_draft_and_its_flow_approved_once_it_is_filled_in() {
    let folder = folder(&[("none.d/none", ""), ("log/x", "")]);
    let wireguard = capture("wireguard-port-51820");
    let wireguard = wireguard.to_str().unwrap();
    let replay = |approvals: &str, more: &[&str]| {
        run(&folder, &[&["replay", "--quiet", "--approvals", approvals, wireguard], more].concat()).expect(0)
    };
    replay("none.d", &["--out", "log/linewarden.ndjson"]);
    let draft = |flow: &str| run(&folder, &["approvals", "draft", "--log", "log", "--flow", flow]);
    let drafted = draft("84f720be").expect(0).out;
    assert_says(
        &drafted,
        &[
            "# Drafted from flow 84f720bee2edfd57 (Community ID 1:4gKNXtIsiSFWbFP92JiVliWq2LE=):\n",
            "# udp 198.51.100.1:51820 -> 198.51.100.2:51820, on input.pcap\n",
            "wireguard.response: a handshake response that repeats the initiation's sender index",
            "id = \"vpn-wireguard-198.51.100.2\"\n",
            "peers = [\"198.51.100.2\"]  # the other end is 198.51.100.1",
            "tunnels = [\"wireguard\"]\nports = [51820]\n",
            "#identity = { wireguard_public_keys",
        ],
    );
    refused_until_filled_in(&folder, &drafted, &["owner", "reference", "need", "valid_until"]);
    let ends = replay("try.d", &[]).ends();
    assert_eq!([&ends[0]["verdict"], &ends[0]["reason"]], ["authorized_leased_line", "approved"]);
    // An approval that covers it, or nearly, is named.
    fs::write(folder.path().join("log/linewarden.ndjson"), replay("try.d", &[]).out).unwrap();
    assert_says(
        &draft("84f720be").expect(0).out,
        &["# The approval \"vpn-wireguard-198.51.100.2\" of written by a person covers it already.\n"],
    );

    assert_says(
        &draft("203.0.113.1").expect(64).err,
        &["no flow of the log matches `203.0.113.1`; `linewarden query` lists all"],
    );
    assert_says(&draft("example.net").expect(64).err, &["--flow example.net: write a flow_id"]);
    let plain = capture("benign-game-like-udp");
    let log = run(&folder, &["replay", "--quiet", "--approvals", "none.d", plain.to_str().unwrap()]).expect(0);
    let flow = log.ends()[0]["flow_id"].as_str().unwrap().to_owned();
    fs::write(folder.path().join("log/linewarden.ndjson"), &log.out).unwrap();
    assert_says(&draft(&flow).expect(64).err, &["shows no sign of a tunnel: as `other` it needs no approval"]);
    assert!(!Path::new(&folder.path().join("log/state")).exists());
}

#[test]
fn of_several_flows_one_is_to_be_named() {
    let folder = folder(&[("none.d/none", ""), ("log/x", "")]);
    let captures = ["wireguard-port-51820", "wireguard-pinned"].map(capture);
    let files = captures.iter().map(|path| path.to_str().unwrap());
    let arguments: Vec<_> = ["replay", "--quiet", "--approvals", "none.d", "--out", "log/linewarden.ndjson"]
        .into_iter()
        .chain(files)
        .collect();
    run(&folder, &arguments).expect(0);
    let several = run(&folder, &["approvals", "draft", "--log", "log", "--flow", "198.51.100.2"]).expect(64);
    assert_says(&several.err, &["flows match `198.51.100.2`: name one of those above by its flow_id"]);
    assert!(several.out.lines().count() > 1 && several.out.contains("unapproved_vpn_tunnel"), "{}", several.out);
}
