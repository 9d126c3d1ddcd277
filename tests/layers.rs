//! Holds the house rules: a room uses earlier rooms only, and the core names no clock, socket, file, thread, lock or async.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

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
    let mut found = Vec::new();
    let mut folders = vec![root.join(room)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no source for room {room}");
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
    const PLACES: [&str; 6] = [
        "capture/ring.rs",
        "capture/send.rs",
        "capture/namespace.rs",
        "capture/ebpf/system.rs",
        "capture/xdp/socket.rs",
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
