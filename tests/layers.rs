//! Holds the house rules: a room uses earlier rooms only, the core names no clock, socket, file, thread, lock or async, and
//! every dependency has its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the first room to the last; `lib.rs` lists them in the same order.
const ORDER: &[&str] = &[
    "time", "wire", "flow", "detect", "policy", "record", "audit", "fault", "config", "capture", "sink", "store",
    "daemon", "cli",
];

const CORE: &[&str] = &["time", "wire", "flow", "detect", "policy", "record", "audit"];

/// Words that have no business in the core.
const FORBIDDEN: &[&str] = &[
    "SystemTime",
    "Instant",
    "std::net::Tcp",
    "std::net::Udp",
    "std::fs",
    "std::io",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::atomic",
    "std::env",
    "std::process",
    "tokio",
    "async ",
    "tracing",
    "println!",
    "eprintln!",
    "dbg!",
];

fn sources(room: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = root.join(format!("{room}.rs"));
    if file.exists() {
        return vec![file];
    }
    let found = rust_files(&root.join(room));
    assert!(!found.is_empty(), "no source for room {room}");
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The code of a file without its unit tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_use_of(code: &str, room: &str) -> bool {
    let path = format!("crate::{room}");
    code.match_indices(&path).any(|(at, _)| {
        let next = code[at + path.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
    })
}

#[test]
fn a_room_uses_earlier_rooms_only() {
    let mut wrong = Vec::new();
    for (position, room) in ORDER.iter().enumerate() {
        for path in sources(room) {
            let code = code(&path);
            for later in &ORDER[position + 1..] {
                if is_use_of(&code, later) {
                    wrong.push(format!("{} uses the later room `{later}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_knows_no_clock_socket_file_thread_lock_or_async() {
    let mut wrong = Vec::new();
    for room in CORE {
        for path in sources(room) {
            let code = code(&path);
            for word in FORBIDDEN {
                if code.contains(word) {
                    wrong.push(format!("{} names `{word}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_map_lists_the_rooms_in_their_order() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<_> = map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, ORDER);
}

#[test]
fn unsafe_code_lives_in_capture_only() {
    const PLACES: [&str; 9] = [
        "capture/ring.rs",
        "capture/blocks.rs",
        "capture/mapping.rs",
        "capture/send.rs",
        "capture/namespace.rs",
        "capture/ebpf/system.rs",
        "capture/xdp/socket.rs",
        "capture/xdp/rings.rs",
        "capture/xdp/offload.rs",
    ];
    for room in ORDER {
        for path in sources(room) {
            if PLACES.iter().any(|place| path.ends_with(place)) {
                continue;
            }
            assert!(!code(&path).contains("unsafe "), "{} has unsafe code", path.display());
        }
    }
}

/// Crates and their versions, as one of the manifest's tables names them.
fn dependencies(manifest: &toml::Table, table: &str) -> BTreeMap<String, String> {
    let version = |of: &toml::Value| of.as_str().or_else(|| of["version"].as_str()).unwrap().to_owned();
    manifest[table].as_table().unwrap().iter().map(|(name, of)| (name.clone(), version(of))).collect()
}

/// The same, as the rows below a heading say.
fn reasons(text: &str, heading: &str) -> BTreeMap<String, String> {
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    let rows =
        below.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    let mut reasons = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, version, what, why, keeper, released] = cells[..] else { panic!("not six cells: {row}") };
        assert!([what, why, keeper].iter().all(|cell| cell.len() > 3), "{row}");
        assert!(released.parse::<jiff::civil::Date>().is_ok(), "no date: {row}");
        assert!(reasons.insert(name.to_owned(), version.to_owned()).is_none(), "twice: {row}");
    }
    reasons
}

#[test]
fn every_dependency_has_its_reason_and_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let (manifest, text) = (read("Cargo.toml").parse().unwrap(), read("DEPENDENCIES.md"));
    for (table, heading, folders) in [
        ("dependencies", "## In the program", &["src"][..]),
        ("dev-dependencies", "## In tests and benches", &["src", "tests", "benches"]),
    ] {
        let named = dependencies(&manifest, table);
        assert_eq!(reasons(&text, heading), named, "{table} of Cargo.toml, and DEPENDENCIES.md");
        let code: Vec<_> =
            folders.iter().flat_map(|folder| rust_files(&root.join(folder))).map(|file| code(&file)).collect();
        for name in named.keys().map(|name| name.replace('-', "_")) {
            let is_used = code.iter().any(|code| {
                let mut found = code.match_indices(&name).map(|(at, _)| (&code[..at], &code[at + name.len()..]));
                found.any(|(before, after)| {
                    let begins = !before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == '"');
                    begins && (after.starts_with("::") || before.ends_with("use ") && after.starts_with([';', '!']))
                })
            });
            assert!(is_used, "{name} is among the {table} and is not used");
        }
    }
}
