//! Turns a closed segment into a zstd file (RFC 8878) beside it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// zstd's own default.
const LEVEL: i32 = 3;

/// Compresses a segment that nobody writes to any more into `plain.zst`, and removes it. It may be killed at any moment and
/// called again: the segment goes only when the whole of the other is on the disk.
pub fn compress(plain: &Path) -> io::Result<PathBuf> {
    let name = |suffix: &str| {
        let mut name = OsString::from(plain);
        name.push(suffix);
        PathBuf::from(name)
    };
    let (part, to) = (name(".zst.part"), name(".zst"));
    let write = || {
        let mut encoder = zstd::stream::write::Encoder::new(File::create(&part)?, LEVEL)?;
        encoder.include_checksum(true)?;
        io::copy(&mut File::open(plain)?, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        fs::rename(&part, &to)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::remove_file(plain)?;
    Ok(to)
}
