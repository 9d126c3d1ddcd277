//! Files that a command writes, never over what it reads; and cells that spreadsheets read.

use std::borrow::Cow;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{FAILED, Failure, USAGE};
use crate::config::is_own_file;

/// Refuses a path that leads to one of the files that are read.
pub(super) fn spare<'a>(read: impl IntoIterator<Item = &'a PathBuf>, path: &Path) -> Result<(), Failure> {
    match read.into_iter().find(|file| file.is_file() && is_same(file, path)) {
        Some(file) => {
            let message = format!("{} is to be read, and would be overwritten: write elsewhere", file.display());
            Err(Failure::new(USAGE, message))
        }
        None => Ok(()),
    }
}

/// Refuses a path that is a file's of the daemon in one of these folders, whether it is there or not.
pub(super) fn spare_own<'a>(folders: impl IntoIterator<Item = &'a Path>, path: &Path) -> Result<(), Failure> {
    let is_own = path.file_name().and_then(|name| name.to_str()).is_some_and(is_own_file);
    let Some(parent) = Some(parent(path)).filter(|_| is_own) else { return Ok(()) };
    let Ok(parent) = fs::canonicalize(parent) else { return Ok(()) };
    if folders.into_iter().any(|folder| fs::canonicalize(folder).is_ok_and(|folder| folder == parent)) {
        return Err(Failure::new(
            USAGE,
            format!("{}: that name is the log's own in this folder: write elsewhere", path.display()),
        ));
    }
    Ok(())
}

/// Whether two paths lead to one file, or would; devices such as /dev/null are nobody's loss.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), Err(_)) => {
            let place = |path: &Path| Some((fs::canonicalize(parent(path)).ok()?, path.file_name()?.to_owned()));
            place(one).is_some_and(|place_of_one| place(other) == Some(place_of_one))
        }
        _ => false,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is there under a name must be a file, if anything: a link or a device would be replaced.
pub(super) fn is_replaceable(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(Failure::new(
            USAGE,
            format!("{}: cannot be written: it is there and is no regular file: name another", path.display()),
        )),
        _ => Ok(()),
    }
}

/// The file is there whole, or as it was before.
pub(super) fn write_whole(path: &Path, octets: &[u8]) -> Result<(), Failure> {
    is_replaceable(path)?;
    let write = || -> io::Result<()> {
        // A name that nobody foretells, made anew; the mode of any other file, less the umask.
        let mut file = tempfile::Builder::new()
            .prefix(".linewarden-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(parent(path))?;
        file.write_all(octets)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| unwritable(path, &error))
}

pub(super) fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(FAILED, format!("{}: cannot be written: {error}", path.display()))
}

/// A cell of CSV that no spreadsheet takes for a formula: with an apostrophe before what would begin one, unless it is a
/// plain number.
pub(super) fn cell(text: &[u8]) -> Cow<'_, [u8]> {
    let is_number = |rest: &[u8]| !rest.is_empty() && rest.iter().all(|octet| octet.is_ascii_digit() || *octet == b'.');
    match text {
        [b'+' | b'-', rest @ ..] if is_number(rest) => text.into(),
        [b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r', ..] => [b"'", text].concat().into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: &[(&str, &str)] = &[
        ("", ""),
        ("plain = text", "plain = text"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1-cmd", "'+1-cmd"),
        ("-", "'-"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("-12.5", "-12.5"),
        ("+7", "+7"),
        ("'=1", "'=1"),
    ];

    #[test]
    fn no_cell_begins_a_formula() {
        for (text, written) in CASES {
            assert_eq!(cell(text.as_bytes()), written.as_bytes(), "{text}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_what_is_none_stays() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        fs::write(inside("file"), "old").unwrap();
        fs::write(inside("file.part"), "another's").unwrap();
        std::os::unix::fs::symlink("file", inside("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", inside("dangling")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, inside("pipe"), rustix::fs::Mode::RUSR).unwrap();
        for name in ["link", "dangling", "pipe", "."] {
            let failure = write_whole(&inside(name), b"new").unwrap_err();
            assert_eq!(failure.code, USAGE, "{name}");
            assert!(failure.message.contains("no regular file"), "{}", failure.message);
        }
        assert_eq!(fs::read(inside("file")).unwrap(), b"old");
        write_whole(&inside("file"), b"new").unwrap();
        assert_eq!(fs::read(inside("file")).unwrap(), b"new");
        assert_eq!(fs::read(inside("file.part")).unwrap(), b"another's");
        assert!(fs::symlink_metadata(inside("link")).unwrap().is_symlink());
        assert!(!inside("nowhere").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5, "nothing is left beside");
    }
}
