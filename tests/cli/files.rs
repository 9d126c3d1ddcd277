//! Capture files of every format and link type, from files and standard input, good and bad, through `linewarden replay`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::command::{
    assert_adds_up, assert_says, capture, done, folder, linewarden, plain, replay, replay_octets,
};
use crate::common::pcap::{ETHERNET, ethertype, frames, gzip, pcap, pcapng, relink};

#[test]
fn every_link_type_gives_the_same_verdicts() {
    for name in ["wireguard-port-51820", "wireguard-ipv6", "openvpn-tcp-1194", "gre-ip", "benign-dnsmasq-dns"] {
        let frames = frames(name);
        let ethernet = replay_octets(&pcap(ETHERNET, &frames), &[]).expect(0).records();
        for (link_type, header) in link_types() {
            let other_version = if ethertype(&frames[0]) == 0x0800 { 229 } else { 228 };
            if link_type == other_version {
                continue;
            }
            let relinked: Vec<_> = frames.iter().map(|frame| relink(frame, &header(ethertype(frame)))).collect();
            let found = replay_octets(&pcap(link_type, &relinked), &[]).expect(0).records();
            // Octets are those of the frame on its wire, the link layer's header included.
            let shrunk = 14 - header(0x0800).len() as i64;
            let expected: Vec<_> = ethernet
                .iter()
                .map(|record| {
                    let mut record = record.clone();
                    // Inside the tunnel nothing has changed.
                    let shrunk = if record["outer_flow_id"].is_null() { shrunk } else { 0 };
                    for way in ["fwd", "rev"] {
                        let packets = record[format!("{way}_packets")].as_i64().unwrap();
                        let octets = record[format!("{way}_octets")].as_i64().unwrap();
                        record[format!("{way}_octets")] = (octets - packets * shrunk).into();
                    }
                    record
                })
                .collect();
            assert_eq!(found, expected, "{name} with link type {link_type}");
        }
    }
}

/// Link-layer headers by EtherType, as the formats at tcpdump.org/linktypes.html.
fn link_types() -> Vec<(u16, fn(u16) -> Vec<u8>)> {
    vec![
        // LINKTYPE_RAW and its old names, LINKTYPE_IPV4, LINKTYPE_IPV6.
        (101, |_| Vec::new()),
        (12, |_| Vec::new()),
        (14, |_| Vec::new()),
        (228, |_| Vec::new()),
        (229, |_| Vec::new()),
        // LINKTYPE_LINUX_SLL: packet type, ARPHRD_ETHER, address length, address, protocol.
        (113, |ethertype| [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0][..], &ethertype.to_be_bytes()].concat()),
        // LINKTYPE_LINUX_SLL2: protocol, reserved, interface index, ARPHRD_ETHER, packet type, address length, address.
        (276, |ethertype| {
            [&ethertype.to_be_bytes()[..], &[0, 0, 0, 0, 0, 7, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]].concat()
        }),
        // LINKTYPE_NULL on a little-endian host, LINKTYPE_LOOP: AF_INET, or an AF_INET6.
        (0, |ethertype| vec![if ethertype == 0x0800 { 2 } else { 30 }, 0, 0, 0]),
        (108, |ethertype| vec![0, 0, 0, if ethertype == 0x0800 { 2 } else { 24 }]),
    ]
}

#[test]
fn formats_and_compression_change_no_record() {
    let frames = frames("wireguard-port-51820");
    let expected = replay([capture("wireguard-port-51820")], &[]).expect(0).out;
    let octets = pcap(ETHERNET, &frames);
    assert_eq!(replay_octets(&octets, &[]).expect(0).out, expected, "nanoseconds");
    assert_eq!(replay_octets(&gzip(&octets), &[]).expect(0).out, expected, "gzip");
    let (first, second) = octets.split_at(octets.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    assert_eq!(replay_octets(&members, &[]).expect(0).out, expected, "gzip in several members");
    let named = expected.replace("\"interface\":\"input.pcap\"", "\"interface\":\"wan0\"");
    let octets = pcapng("wan0", ETHERNET, &frames);
    assert_eq!(replay_octets(&octets, &[]).expect(0).out, named, "pcapng");
    assert_eq!(replay_octets(&gzip(&octets), &[]).expect(0).out, named, "pcapng behind gzip");
    assert_eq!(replay_octets(&pcapng("", ETHERNET, &frames), &["--interface", "wan0"]).expect(0).out, named);
    let workers = replay_octets(&octets, &["--workers", "4"]).expect(0).out;
    assert_eq!(workers, named, "one flow is all one worker's");
}

#[test]
fn standard_input_is_a_file_called_dash() {
    let expected = replay([capture("wireguard-port-51820")], &[]).expect(0).out;
    let expected = expected.replace("\"interface\":\"input.pcap\"", "\"interface\":\"-\"");
    let octets = gzip(&fs::read(capture("wireguard-port-51820")).unwrap());
    let folder = folder(&[]);
    let path = folder.path().join("stream.gz");
    fs::write(&path, octets).unwrap();
    for path in [&path, &capture("wireguard-port-51820")] {
        let mut command = linewarden(plain(&folder).into_iter().chain(["--quiet".into(), "-".into()]));
        assert_eq!(done(command.stdin(fs::File::open(path).unwrap())).expect(0).out, expected);
        // A pipe, as behind `tcpdump -w -`.
        let mut cat = Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(done(command.stdin(cat.stdout.take().unwrap())).expect(0).out, expected);
        assert!(cat.wait().unwrap().success());
    }
}

#[test]
fn several_files_are_one_stream() {
    let folder = folder(&[]);
    let frames = frames("wireguard-port-51820");
    let whole = replay([capture("wireguard-port-51820")], &[]).expect(0).out;
    for cut in [1, 2, 30] {
        let parts = [(0..cut), (cut..frames.len())].map(|range| {
            let path = folder.path().join(format!("{}/input.pcap", range.start));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, pcap(ETHERNET, &frames[range])).unwrap();
            path
        });
        assert_eq!(replay(&parts, &[]).expect(0).out, whole, "cut behind packet {cut}");
    }
    // Packets are numbered through, and each flow says in which file it began.
    let (one, two) = (capture("wireguard-port-51820"), folder.path().join("second.pcap"));
    fs::copy(capture("esp-ip"), &two).unwrap();
    let ends = replay([&one, &two], &[]).expect(0).ends();
    assert_eq!(ends.iter().map(|end| &end["interface"]).collect::<Vec<_>>(), ["input.pcap", "second.pcap"]);
    assert_eq!(ends[1]["evidence"][0]["packet"], 61);
    // A file from an earlier time is no reason to lose anything.
    let ends = replay([&two, &one], &[]).expect(0).ends();
    assert_eq!(ends.iter().map(|end| &end["tunnel"]).collect::<Vec<_>>(), ["esp", "wireguard"]);
    assert_eq!([&ends[1]["fwd_packets"], &ends[1]["rev_packets"]], [38, 22]);
}

#[test]
fn bad_files_are_named_with_place_and_what_came_before_counts() {
    let folder = folder(&[("empty.pcap", ""), ("foreign.pcap", "GIF89a, no capture at all"), ("short.pcap", "\u{a}")]);
    let good = fs::read(capture("wireguard-port-51820")).unwrap();
    let write = |name: &str, octets: &[u8]| fs::write(folder.path().join(name), octets).unwrap();
    let frames = frames("wireguard-port-51820");
    // Behind five packets of a record header and 190, 134, 138, 174 and 202 octets.
    let five = 24 + frames[..5].iter().map(|frame| 16 + frame.data.len()).sum::<usize>();
    write("cut.pcap", &good[..five + 20]);
    write("head.pcap", &good[..10]);
    write("cut.gz", &gzip(&good)[..gzip(&good).len() / 2]);
    write("foreign.gz", &gzip(b"no capture at all"));
    write("wireless.pcap", &pcap(105, &frames));
    let ng = pcapng("wan0", ETHERNET, &frames);
    write("cut.pcapng", &ng[..ng.len() - 100]);
    let cases: [(&str, &[&str], bool); 11] = [
        ("empty.pcap", &["the file is empty"], false),
        ("foreign.pcap", &["neither pcap nor pcapng", "it begins with \"GIF8\""], false),
        ("short.pcap", &["neither pcap nor pcapng"], false),
        ("foreign.gz", &["neither pcap nor pcapng behind gzip"], false),
        ("none.pcap", &["cannot be read: No such file"], false),
        (".", &["cannot be read"], false),
        ("head.pcap", &["cut off at octet 10"], false),
        ("wireless.pcap", &["link type 105 is not known here", "Ethernet (1)"], false),
        ("cut.pcap", &[&format!("cut off at octet {five}"), "the 5 packets before it were read"], true),
        ("cut.gz", &["octet", "packets before it were read"], true),
        ("cut.pcapng", &["cut off at octet", "packets before it were read"], true),
    ];
    for (name, texts, has_records) in cases {
        let path = folder.path().join(name);
        let done = replay([&path], &[]).expect(65);
        assert_says(&done.err, texts);
        assert_says(&done.err, &[path.to_str().unwrap()]);
        let ends = done.ends();
        assert_eq!(ends.len(), usize::from(has_records), "{name}");
        for end in ends {
            assert_eq!([&end["tunnel"], &end["confidence"]], ["wireguard", "certain"], "{name}");
        }
        // Behind a good one: its records come, and the bad one is named.
        let done = replay([&capture("esp-ip"), &path], &["--fail-on", "unapproved"]).expect(65);
        assert!(done.ends().iter().any(|end| end["tunnel"] == "esp"), "{name}");
        assert!(done.err.contains(path.to_str().unwrap()), "{name}: {}", done.err);
    }
    let totals = folder.path().join("summary.json");
    let cut = folder.path().join("cut.pcap");
    let mut command =
        linewarden(plain(&folder).into_iter().chain(["--summary-json".into(), totals.clone().into(), cut.into()]));
    let done = done(&mut command).expect(65);
    assert!(done.err.contains("packets  5 "), "{}", done.err);
    assert_adds_up(&serde_json::from_str(&fs::read_to_string(totals).unwrap()).unwrap(), &done.records());
}

/// Packets of an interface that cannot be read are counted, and those of the others are labelled.
#[test]
fn an_unknown_link_type_in_pcapng_is_counted() {
    let frames = frames("wireguard-port-51820");
    let both = [pcapng("wan0", ETHERNET, &frames), pcapng("air0", 105, &frames[..7])].concat();
    let folder = folder(&[]);
    let totals = folder.path().join("summary.json");
    let done = replay_octets(&both, &["--summary-json", totals.to_str().unwrap()]).expect(0);
    let summary: Value = serde_json::from_str(&fs::read_to_string(totals).unwrap()).unwrap();
    assert_eq!([&summary["packets"], &summary["classified"]], [67, 60]);
    assert_eq!(summary["undecodable"]["unknown_link_type"], 7);
    assert_eq!(done.ends().iter().map(|end| &end["interface"]).collect::<Vec<_>>(), ["wan0"]);
}
