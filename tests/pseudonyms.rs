//! What is hidden stays hidden: in every format and every command, over every capture; and who holds the key can go back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use common::command::{Done, assert_says, capture, folder, run};
use common::{OwnedFrame, approval, audit, capture_folders, name, policy, read, settings};
use ipnet::IpNet;
use linewarden::config::Format;
use linewarden::detect::REGISTRY;
use linewarden::flow::FlowId;
use linewarden::policy::Policy;
use linewarden::record::Record;
use linewarden::sink::format::encode;
use linewarden::sink::pseudonym::{PseudonymKey, Pseudonyms};
use proptest::prelude::*;
use sha1::{Digest, Sha1};

/// Of the draft's test vectors.
const KEY: &str = "0123456789abcdeffedcba98765432101032547698badcfeefcdab8967452301";
const OTHER_KEY: &str = "00112233445566778899aabbccddeeff102132435465768798a9bacbdcedfe0f";

fn key(digits: &str) -> PseudonymKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k");
    fs::write(&path, digits).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    PseudonymKey::load(&path).unwrap().unwrap()
}

fn home() -> Vec<IpNet> {
    let nets = [
        "198.51.100.0/24",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "2001:db8::/32",
        "fc00::/7",
        "fe80::/10",
    ];
    nets.map(|net| net.parse().unwrap()).to_vec()
}

/// `198.51.100.2` is approved.
fn approved() -> Arc<Policy> {
    policy(vec![approval("lab", &["198.51.100.2/32"])])
}

fn records(folder: &Path, policy: &Arc<Policy>) -> Vec<Record> {
    let frames = read(&folder.join("input.pcap"));
    let frames: Vec<_> = frames.iter().map(OwnedFrame::borrow).collect();
    let mut settings = settings();
    settings.flow.home_nets = home();
    // So that flows continue others.
    settings.flow.active_timeout = std::time::Duration::from_secs(3);
    let (mut records, _) = audit(settings, Arc::clone(policy), &frames);
    (1..).zip(&mut records).for_each(|(seq, record)| record.seq = seq);
    records
}

fn hidden(records: &[Record], digits: &str, policy: &Arc<Policy>) -> Vec<Record> {
    let pseudonyms = Pseudonyms::new(key(digits), home(), Arc::clone(policy));
    let mut hidden = records.to_vec();
    hidden.iter_mut().for_each(|record| pseudonyms.apply(record));
    hidden
}

/// A home address, or an IPv6 address that is made of one: by 6to4, Teredo or ISATAP.
fn is_home(address: IpAddr) -> bool {
    let holds = |address: IpAddr| home().iter().any(|net| net.contains(&address));
    let IpAddr::V6(six) = address else { return holds(address) };
    let octets = six.octets();
    let four = |from: usize| [0, 1, 2, 3].map(|place| octets[from + place]);
    let made_of = match six.segments() {
        [0x2002, ..] => vec![four(2)],
        [0x2001, 0, ..] => vec![four(4), four(12).map(|octet| !octet)],
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![four(12)],
        _ => Vec::new(),
    };
    holds(address) || made_of.into_iter().any(|octets| holds(octets.into()))
}

/// Words of a text: an address, a number or an identifier is one, whatever stands around it.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || ".:+/=-_".contains(c))).collect()
}

/// What would tell a home address: it, its number, and identifiers that are made of it without a secret.
fn telling(records: &[Record], policy: &Policy) -> BTreeSet<String> {
    let mut telling = BTreeSet::new();
    for record in records {
        let addresses = [record.src_ip, record.dst_ip];
        let is_hidden = |address: &IpAddr| is_home(*address) && !policy.names(*address);
        for address in addresses.iter().filter(|address| is_hidden(address)) {
            telling.insert(address.to_string());
            if let IpAddr::V4(address) = address {
                telling.insert(address.to_bits().to_string());
            }
        }
        if addresses.iter().any(is_hidden) {
            telling.insert(record.community_id.to_string());
        }
        let ids = [Some(record.flow_id), record.continues, record.outer_flow_id];
        for id in ids.into_iter().flatten().chain(record.related_flow_ids.iter().copied()) {
            telling.insert(id.to_string());
            telling.insert((id.number() >> 13).to_string());
        }
    }
    telling
}

#[test]
fn no_output_tells_a_home_address_or_what_is_made_of_one() {
    let (mut looked_at, mut links, pseudonyms) = (0, BTreeMap::new(), key(KEY));
    for folder in capture_folders() {
        for policy in [policy(Vec::new()), approved()] {
            let clear = records(&folder, &policy);
            let telling = telling(&clear, &policy);
            let hidden = hidden(&clear, KEY, &policy);
            for format in Format::ALL {
                let write = |records: &[Record]| {
                    let mut to = BytesMut::new();
                    records.iter().for_each(|record| encode(format, record, &mut to));
                    // In a Community ID, and in ports behind addresses, a colon is no end of a word.
                    String::from_utf8(to.to_vec()).unwrap()
                };
                let text = write(&hidden);
                for word in words(&text) {
                    let with_port = word.rsplit_once(':').map_or("", |(address, _)| address);
                    assert!(
                        !telling.contains(word) && !telling.contains(with_port),
                        "{} {format:?}: {word}",
                        name(&folder)
                    );
                }
                let text = write(&clear);
                let words = words(&text);
                looked_at += telling.iter().filter(|told| words.contains(&***told)).count();
            }
            for (clear, hidden) in clear.iter().zip(&hidden) {
                // The verdict is by the true addresses.
                let verdict = |record: &Record| (record.verdict, record.reason, record.approval.clone(), record.tunnel);
                assert_eq!(verdict(clear), verdict(hidden), "{}", name(&folder));
                for (was, shown) in [(clear.src_ip, hidden.src_ip), (clear.dst_ip, hidden.dst_ip)] {
                    let expected = if is_home(was) && !policy.names(was) { pseudonyms.pseudonym(was) } else { was };
                    assert_eq!(shown, expected, "{}", name(&folder));
                    assert_eq!(was.is_ipv4(), shown.is_ipv4());
                }
                // Records of a flow, and flows that name each other, still do.
                let ids = |record: &Record| {
                    let named = [record.continues, record.outer_flow_id].map(|id| id.as_ref().map(FlowId::number));
                    let related = record.related_flow_ids.iter().map(FlowId::number).collect::<Vec<_>>();
                    (record.flow_id.number(), named, related)
                };
                let ((was, was_named, was_related), (is, named, related)) = (ids(clear), ids(hidden));
                let pairs = was_named.into_iter().flatten().zip(named.into_iter().flatten());
                for (was, is) in pairs.chain(was_related.into_iter().zip(related)).chain([(was, is)]) {
                    assert_eq!(*links.entry(was).or_insert(is), is, "{}", name(&folder));
                }
                assert_community_id(hidden);
            }
        }
    }
    assert!(looked_at > 1000, "the search finds what is there without pseudonyms: {looked_at}");
    let distinct: BTreeSet<_> = links.values().collect();
    assert_eq!(distinct.len(), links.len());
}

/// It is made of what the record shows, so that it gives nothing away.
fn assert_community_id(record: &Record) {
    let Some((src_port, dst_port)) = record.src_port.zip(record.dst_port) else { return };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut ends = [(octets(record.src_ip), src_port), (octets(record.dst_ip), dst_port)];
    ends.sort();
    let mut hash = Sha1::new();
    hash.update([0, 0]);
    ends.iter().for_each(|(address, _)| hash.update(address));
    hash.update([record.proto, 0]);
    ends.iter().for_each(|(_, port)| hash.update(port.to_be_bytes()));
    assert_eq!(record.community_id.to_string(), format!("1:{}", STANDARD.encode(hash.finalize())));
}

/// IPv6 addresses: those that tell the host 198.51.100.10, and those that tell its neighbour in the same place.
#[test]
fn addresses_that_are_made_of_a_home_address_are_hidden() {
    const CASES: &[(&str, &str, &str)] = &[
        ("6to4", "2002:c633:640a::1", "2002:c633:640b::1"),
        ("Teredo client", "2001:0:c000:201:0:5fd6:39cc:9bf5", "2001:0:c000:201:0:5fd6:39cc:9bf4"),
        ("Teredo server", "2001:0:c633:640a:0:5fd6:3fff:fdfe", "2001:0:c633:640b:0:5fd6:3fff:fdfe"),
        ("Teredo link-local, cone", "fe80::8000:f227:39cc:9bf5", "fe80::8000:f227:39cc:9bf4"),
        ("Teredo link-local", "fe80::f227:39cc:9bf5", "fe80::f227:39cc:9bf4"),
        ("Teredo link-local, random flags", "fe80::3c5a:f227:39cc:9bf5", "fe80::3c5a:f227:39cc:9bf4"),
        ("Teredo link-local, the port as ISATAP", "fe80::5efe:39cc:9bf5", "fe80::5efe:39cc:9bf4"),
        ("Teredo link-local, the port of all bits", "fe80::39cc:9bf5", "fe80::39cc:9bf4"),
        ("ISATAP", "2001:db8::5efe:c633:640a", "2001:db8::5efe:c633:640b"),
        ("ISATAP, global", "2001:db8::200:5efe:c633:640a", "2001:db8::200:5efe:c633:640b"),
        ("ISATAP link-local", "fe80::5efe:c633:640a", "fe80::5efe:c633:640b"),
        ("ISATAP behind 6to4", "2002:c000:201::5efe:c633:640a", "2002:c000:201::5efe:c633:640b"),
        ("6in4 link-local", "fe80::c633:640a", "fe80::c633:640b"),
        ("translated", "64:ff9b::c633:640a", "64:ff9b::c633:640b"),
        ("IPv4-mapped", "::ffff:198.51.100.10", "::ffff:198.51.100.11"),
        ("IPv4-compatible", "::198.51.100.10", "::198.51.100.11"),
        ("none: elsewhere", "198.51.100.10", "2001:db8:c633:640a:39cc:9bf5:c633:640a"),
    ];
    let policy = policy(Vec::new());
    let pseudonyms = Pseudonyms::new(key(KEY), vec!["198.51.100.10/32".parse().unwrap()], Arc::clone(&policy));
    let clear = records(capture("teredo-miredo").parent().unwrap(), &policy);
    for (name, home, neighbour) in CASES {
        let mut record = clear[0].clone();
        (record.src_ip, record.dst_ip) = (home.parse().unwrap(), neighbour.parse().unwrap());
        pseudonyms.apply(&mut record);
        assert_eq!(record.src_ip, key(KEY).pseudonym(home.parse().unwrap()), "{name}");
        assert_eq!(record.dst_ip, neighbour.parse::<IpAddr>().unwrap(), "{name}");
    }
}

/// Whichever host of a capture is at home: no four octets of an address that is shown are its, nor its turned.
#[test]
fn no_address_has_a_hidden_host_in_its_octets() {
    let mut found = BTreeSet::new();
    for folder in capture_folders() {
        let policy = policy(Vec::new());
        let clear = records(&folder, &policy);
        let addresses = |records: &[Record]| -> BTreeSet<IpAddr> {
            records.iter().flat_map(|record| [record.src_ip, record.dst_ip]).collect()
        };
        let seen = addresses(&clear);
        let is_told = |host: [u8; 4], address: &IpAddr| {
            let IpAddr::V6(address) = address else { return *address == IpAddr::from(host) };
            address.octets().windows(4).any(|four| four == host || four == host.map(|octet| !octet))
        };
        for host in seen.iter().filter(|_| seen.iter().any(IpAddr::is_ipv6)) {
            let IpAddr::V4(four) = host else { continue };
            // Nobody's, and in many an address by chance.
            if four.is_unspecified() || four.is_broadcast() {
                continue;
            }
            let told = seen.iter().filter(|address| address.is_ipv6() && is_told(four.octets(), address));
            found.extend(told.map(|address| (name(&folder).to_owned(), *address)));
            let pseudonyms = Pseudonyms::new(key(KEY), vec![(*host).into()], Arc::clone(&policy));
            let mut hidden = clear.clone();
            hidden.iter_mut().for_each(|record| pseudonyms.apply(record));
            for address in addresses(&hidden) {
                assert!(!is_told(four.octets(), &address), "{}: {address} tells {host}", name(&folder));
            }
        }
    }
    assert!(found.iter().any(|(_, address)| address.to_string().starts_with("fe80:")), "{found:?}");
    assert!(found.len() >= 4, "the search finds what is there without pseudonyms: {found:?}");
}

#[test]
fn the_same_key_gives_the_same_and_another_gives_others() {
    let folder = capture("wireguard-port-51820").parent().unwrap().to_owned();
    let none = policy(Vec::new());
    let clear = records(&folder, &none);
    let [one, same, other] = [KEY, KEY, OTHER_KEY].map(|digits| hidden(&clear, digits, &none));
    assert_eq!(one, same);
    for (one, other) in one.iter().zip(&other) {
        assert_ne!((one.src_ip, one.dst_ip), (other.src_ip, other.dst_ip));
        assert_ne!(one.flow_id, other.flow_id);
        assert_ne!(one.community_id, other.community_id);
    }
}

/// Where evidence has an address for its value, it is hidden like any other: no detector may add one that is not.
#[test]
fn values_that_are_addresses_are_hidden() {
    let codes = REGISTRY.iter().flat_map(|detector| detector.about().codes);
    let of_addresses: BTreeSet<_> = codes
        .filter(|code| code.meaning.rsplit_once("value: ").is_some_and(|(_, value)| value.contains("address")))
        .map(|code| code.name)
        .collect();
    let known =
        ["6to4.inner", "isatap.inner", "teredo.inner", "zerotier.addresses", "zerotier.answer", "zerotier.hello"];
    assert_eq!(of_addresses, BTreeSet::from(known));
    let mut found_hidden = BTreeSet::new();
    for folder in capture_folders() {
        let none = policy(Vec::new());
        let clear = records(&folder, &none);
        for (clear, hidden) in clear.iter().zip(&hidden(&clear, KEY, &none)) {
            for (was, is) in clear.evidence.iter().zip(&hidden.evidence) {
                let address = u32::try_from(was.value).map(|bits| IpAddr::from(bits.to_be_bytes()));
                let is_address =
                    known.contains(&&*was.code) && (was.code.starts_with("zerotier") || is_home(address.unwrap()));
                assert_eq!(was.value != is.value, is_address, "{}: {was:?} {is:?}", name(&folder));
                if is_address {
                    found_hidden.insert(was.code.to_string());
                }
            }
        }
    }
    assert!(found_hidden.len() >= 4, "{found_hidden:?}");
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes()))
    ]
}

fn common_bits(one: IpAddr, other: IpAddr) -> Option<u32> {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => Some((one.to_bits() ^ other.to_bits()).leading_zeros()),
        (IpAddr::V6(one), IpAddr::V6(other)) => Some((one.to_bits() ^ other.to_bits()).leading_zeros()),
        _ => None,
    }
}

proptest! {
    #[test]
    fn prefixes_are_kept_and_the_way_back_is_found(one in address(), other in address(), shared in 0..=128_u32) {
        let key = key(KEY);
        // Two that share so many bits, at least.
        let other = match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shr(shared).unwrap_or(0);
                IpAddr::V4((one.to_bits() & !mask | other.to_bits() & mask).into())
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shr(shared).unwrap_or(0);
                IpAddr::V6((one.to_bits() & !mask | other.to_bits() & mask).into())
            }
            _ => other,
        };
        prop_assert_eq!(common_bits(key.pseudonym(one), key.pseudonym(other)), common_bits(one, other));
        prop_assert_eq!(key.address(key.pseudonym(one)), one);
    }
}

/// draft-denis-ipcrypt, "ipcrypt-pfx Test Vectors".
#[test]
fn pseudonyms_are_those_of_the_draft() {
    let key = key(KEY);
    for (address, pseudonym) in [
        ("0.0.0.0", "151.82.155.134"),
        ("255.255.255.255", "94.185.169.89"),
        ("192.0.2.1", "100.115.72.131"),
        ("2001:db8::1", "c180:5dd4:2587:3524:30ab:fa65:6ab6:f88"),
    ] {
        assert_eq!(key.pseudonym(address.parse().unwrap()), pseudonym.parse::<IpAddr>().unwrap(), "{address}");
    }
    // In either notation.
    let mapped = key.pseudonym("::ffff:192.0.2.1".parse().unwrap());
    assert_eq!(mapped, "::ffff:100.115.72.131".parse::<IpAddr>().unwrap());
}

const SETTINGS: &str =
    "sensor = \"test\"\n[flow]\nhome_nets = [\"198.51.100.0/25\"]\n[privacy]\npseudonyms = true\nkey = \"KEY\"\n";

fn linewarden(folder: &Path, arguments: &[&str]) -> Done {
    let (settings, approvals) = (folder.join("s.toml"), folder.join("none.d"));
    let mut all: Vec<std::ffi::OsString> = arguments.iter().map(Into::into).collect();
    if arguments[0] != "pseudonym" {
        all.extend(["--approvals".into(), approvals.into()]);
    }
    all.extend(["--config".into(), settings.into()]);
    run(all)
}

#[test]
fn commands_hide_and_who_holds_the_key_finds_back() {
    let folder = folder(&[("none.d/none", "")]);
    let key = folder.path().join("own.key");
    fs::write(folder.path().join("s.toml"), SETTINGS.replace("KEY", key.to_str().unwrap())).unwrap();
    let file = capture("wireguard-port-51820");
    let file = file.to_str().unwrap();
    let done = linewarden(folder.path(), &["replay", file]).expect(78);
    assert_says(&done.err, &["own.key is not there", "linewarden pseudonym --new --key"]);
    assert_eq!(done.out, "");

    let forth = linewarden(folder.path(), &["pseudonym", "--new", "198.51.100.1", "198.51.100.2", "198.51.100.0/24"])
        .expect(0)
        .out;
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    let [one, two, net] = forth.lines().collect::<Vec<_>>()[..] else { panic!("{forth}") };
    let network: IpNet = net.parse().unwrap();
    assert!(network.prefix_len() == 24 && network.contains(&one.parse::<IpAddr>().unwrap()), "{forth}");
    let back = linewarden(folder.path(), &["pseudonym", "--reverse", one, two, net]).expect(0).out;
    assert_eq!(back, "198.51.100.1\n198.51.100.2\n198.51.100.0/24\n");
    let done = linewarden(folder.path(), &["pseudonym", "--new", "198.51.100.1"]).expect(78);
    assert_says(&done.err, &["is there already"]);

    let replayed = linewarden(folder.path(), &["replay", "--quiet", file]).expect(0).out;
    assert_eq!(replayed, linewarden(folder.path(), &["replay", "--quiet", "--workers", "2", file]).expect(0).out);
    let flow: Record = serde_json::from_str(replayed.lines().last().unwrap()).unwrap();
    let mut shown = [flow.src_ip.to_string(), flow.dst_ip.to_string()];
    shown.sort();
    let mut expected = [one, two];
    expected.sort_unstable();
    assert_eq!(shown, expected);

    // By the address, the pseudonym or the identifier that is shown; never by one that is not.
    let id = flow.flow_id.to_string();
    for wanted in ["198.51.100.1:51820", &*format!("{one}:51820"), &*id] {
        let said = linewarden(folder.path(), &["explain", file, "--flow", wanted]).expect(0).out;
        assert_says(&said, &[one, two, &id, "no_approval"]);
        assert!(!replayed.contains("198.51.100.") && !said.contains("198.51.100."), "{said}");
        assert!(!said.contains("84f720bee2edfd57"), "{said}");
    }
    // Networks that the command line names are hidden too, beside those of the settings, not in place of them.
    let settings = SETTINGS.replace("198.51.100.0/25", "198.51.100.1/32").replace("KEY", key.to_str().unwrap());
    fs::write(folder.path().join("s.toml"), settings).unwrap();
    let replay = ["replay", "--quiet", "--home-net", "198.51.100.2/32", file];
    let explain = ["explain", "--home-net", "198.51.100.2/32", file, "--flow", one];
    for arguments in [&replay[..], &explain[..]] {
        let said = linewarden(folder.path(), arguments).expect(0).out;
        assert_says(&said, &[one, two]);
        assert!(!said.contains("198.51.100."), "{said}");
    }
    let said = linewarden(folder.path(), &["replay", "--quiet", "--home-net", "203.0.113.0/24", file]).expect(0).out;
    assert_says(&said, &[one, "198.51.100.2"]);
    assert!(!said.contains("198.51.100.1\""), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let done = linewarden(folder.path(), &["replay", file]).expect(78);
    assert_says(&done.err, &["mode 0640", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "00".repeat(32)).unwrap();
    assert_says(&linewarden(folder.path(), &["replay", file]).expect(78).err, &["holds no key of pseudonyms"]);
}
