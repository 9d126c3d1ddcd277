//! Turns an approval's section `identity` into the keys that it pins: public ones from the approval itself or from files,
//! secret ones from files that nobody else may read. No message shows a key.

use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::owners::{Owners, may_others_write};
use super::reader::{Section, Value};
use crate::detect::{Key, KeyKind};

/// Key files larger than this are none.
const MAX_FILE: u64 = 64 << 10;

/// The keys of the section, each once; `None` where something is wrong, which is noted. Files are relative to `approvals`,
/// the file that the section stands in.
pub(super) fn read_keys(section: &Section<'_, '_>, approvals: &Path) -> Option<Vec<Arc<Key>>> {
    let list = |key: &'static str, read: &dyn Fn(&Value<'_, '_>) -> Option<Vec<Key>>| match section.value(key) {
        Some(value) => value.list(|item| read(item)).map(|lists| lists.into_iter().flatten().collect()),
        None => Some(Vec::new()),
    };
    let secret = |kind: KeyKind| move |value: &Value<'_, '_>| secret_key(value, approvals, kind).map(|key| vec![key]);
    let lists: [Option<Vec<Key>>; 5] = [
        list("wireguard_public_keys", &|value| public_key(value).map(|key| vec![key])),
        list("wireguard_public_key_files", &|value| public_keys(value, approvals)),
        list("openvpn_tls_auth", &secret(KeyKind::OpenvpnTlsAuth)),
        list("openvpn_tls_crypt", &secret(KeyKind::OpenvpnTlsCrypt)),
        list("openvpn_tls_crypt_v2_clients", &secret(KeyKind::OpenvpnTlsCryptV2)),
    ];
    section.finish();
    let mut keys = Vec::new();
    for list in lists {
        keys.extend(list?.into_iter().map(Arc::new));
    }
    if keys.is_empty() {
        // By address alone it would approve more than its author began to write.
        section.missing("wireguard_public_keys", &"name a key, or take the section out");
        return None;
    }
    keys.sort_by_key(|key| key.fingerprint());
    keys.dedup();
    Some(keys)
}

fn public_key(value: &Value<'_, '_>) -> Option<Key> {
    let key = value.as_str().and_then(decode);
    if key.is_none() {
        value.wrong(&"write a WireGuard public key in quotes: 44 characters of base64, as `wg pubkey` prints it");
    }
    key
}

fn decode(text: &str) -> Option<Key> {
    let octets = STANDARD.decode(text.trim()).ok()?;
    Some(Key::wireguard(octets.as_slice().try_into().ok()?))
}

/// A key a line; empty lines and those that begin with `#` are passed over.
fn public_keys(value: &Value<'_, '_>, approvals: &Path) -> Option<Vec<Key>> {
    let (path, text) = file(value, approvals, Access::Public)?;
    let mut keys = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#')) {
        let Some(key) = decode(line) else {
            value.wrong(&format_args!(
                "line {number} of {path} is no WireGuard public key: write 44 characters of base64, as `wg pubkey` prints it"
            ));
            return None;
        };
        keys.push(key);
    }
    if keys.is_empty() {
        value.wrong(&format_args!("{path} holds no key: write one a line, as `wg pubkey` prints it"));
        return None;
    }
    Some(keys)
}

fn secret_key(value: &Value<'_, '_>, approvals: &Path, kind: KeyKind) -> Option<Key> {
    let (path, text) = file(value, approvals, Access::Secret)?;
    match Key::openvpn(kind, &text) {
        Ok(key) => Some(key),
        Err(error) => {
            let (what, command) = match kind {
                KeyKind::OpenvpnTlsCryptV2 => ("client key", "--genkey tls-crypt-v2-client"),
                _ => ("static key", "--genkey secret"),
            };
            value.wrong(&format_args!(
                "{path} holds no {what} of OpenVPN: {}; name a file that `openvpn … {command} FILE` wrote",
                error.meaning(kind)
            ));
            None
        }
    }
}

/// Who may do what with a file of keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Others may read it.
    Public,
    /// Others may not even read it.
    Secret,
}

/// Path and text of a file of keys that no other user can read or change.
fn file(value: &Value<'_, '_>, approvals: &Path, access: Access) -> Option<(String, Zeroizing<String>)> {
    let name = value.text()?;
    let path = approvals.parent().unwrap_or(Path::new("")).join(name);
    let shown = path.display().to_string();
    let read = || -> Result<Zeroizing<String>, String> {
        let fail = |error: &dyn Display| format!("{shown} cannot be read: {error}");
        // Opened first and asked then, so that what was asked about is what is read; a named pipe must not stop us.
        let mut file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).map_err(|error| fail(&error))?;
        is_safe(&file, &path, approvals, access)?;
        let mut octets = Zeroizing::new(Vec::with_capacity(4096));
        Read::by_ref(&mut file).take(MAX_FILE + 1).read_to_end(&mut octets).map_err(|error| fail(&error))?;
        if octets.len() as u64 > MAX_FILE {
            return Err(format!("{shown} is larger than {} KiB: this is no key", MAX_FILE >> 10));
        }
        let text = std::str::from_utf8(&octets).map_err(|_| format!("{shown} is no text: this is no key"))?;
        Ok(Zeroizing::new(text.to_owned()))
    };
    match read() {
        Ok(text) => Some((shown, text)),
        Err(what) => {
            value.wrong(&what);
            None
        }
    }
}

/// A key is only worth something while no other user can read it, or put another one in its place.
fn is_safe(file: &File, path: &Path, approvals: &Path, access: Access) -> Result<(), String> {
    const GROUP_AND_OTHERS: u32 = 0o077;
    let shown = path.display();
    let fail = |error: &dyn Display| format!("{shown} cannot be read: {error}");
    let metadata = file.metadata().map_err(|error| fail(&error))?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a file: name a file of keys"));
    }
    // Who may change the approval may pin any key anyway.
    let owners = Owners::here().and_of(approvals);
    if !owners.has(metadata.uid()) {
        return Err(format!(
            "{shown} belongs to user {}, who is neither root, nor the user that runs this ({}), nor the owner of {}: chown it",
            metadata.uid(),
            rustix::process::geteuid().as_raw(),
            approvals.display()
        ));
    }
    let mode = |metadata: &Metadata| metadata.mode() & 0o7777;
    match access {
        Access::Secret if mode(&metadata) & GROUP_AND_OTHERS != 0 => {
            return Err(format!(
                "{shown} is open to other users (mode {:04o}), and holds a secret: run `chmod 600 {shown}`",
                mode(&metadata)
            ));
        }
        Access::Public if may_others_write(&metadata) => {
            return Err(format!(
                "{shown} may be changed by other users (mode {:04o}): run `chmod go-w {shown}`",
                mode(&metadata)
            ));
        }
        _ => {}
    }
    owners.check_above(path).map_err(|what| format!("{shown} {what}"))
}
