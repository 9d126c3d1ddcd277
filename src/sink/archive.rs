//! Turns a finished segment of a log into a zstd archive (RFC 8878) of many independent frames and an index beside it, so
//! that a reader skips the frames that cannot answer and reads the others in parallel.
//!
//! | file | what |
//! |---|---|
//! | `x.ndjson.zst` | frames of about one mebibyte of whole lines; `zstd -dc` gives the segment back to the octet |
//! | `x.index` | what each frame holds, see [`index`] |
//! | `*.part` | an archive or index in the making: of no use once nobody makes it |

pub mod index;

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use self::index::{Contents, Frame, Header, Index, VERSION, index_of};
use super::sync_folder;

/// Octets of lines in a frame: enough to compress well, few enough to skip most of a log.
const FRAME: usize = 1 << 20;
/// A line longer than this is cut into frames: it is no line of a log.
const LONGEST_LINE: usize = 16 << 20;
/// zstd's own default.
const LEVEL: i32 = 3;

/// Compresses a segment that nobody writes to any more into an archive beside it, and removes the segment. Gives the
/// archive's path.
///
/// It may be killed at any moment and called again: the segment goes only when archive and index are on the disk, and one
/// that is gone already with its archive there is done.
pub fn compress(plain: &Path) -> io::Result<PathBuf> {
    let archive = archive_of(plain);
    let source = match File::open(plain) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound && archive.exists() => return Ok(archive),
        Err(error) => return Err(error),
    };
    let metadata = source.metadata()?;
    if !Index::open(&archive).is_ok_and(|index| index.header.plain_octets == metadata.len()) {
        let parts = [part_of(&archive), part_of(&index_of(&archive))];
        let made = make(&source, &parts, &metadata);
        if made.is_err() {
            // A full disk is not made fuller by halves.
            parts.iter().for_each(|part| drop(fs::remove_file(part)));
        }
        made?;
        let [archive_part, index_part] = &parts;
        // The index first: an archive that is there has one.
        fs::rename(index_part, index_of(&archive))?;
        fs::rename(archive_part, &archive)?;
    }
    let folder = plain.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_folder(folder)?;
    fs::remove_file(plain)?;
    sync_folder(folder)?;
    Ok(archive)
}

/// Takes away an archive whose segment was taken away while it was made.
pub(super) fn remove(plain: &Path) {
    let archive = archive_of(plain);
    [index_of(&archive), archive].iter().for_each(|path| drop(fs::remove_file(path)));
}

/// Where the archive of `x.ndjson` lies: `x.ndjson.zst`.
#[must_use]
pub fn archive_of(plain: &Path) -> PathBuf {
    plain.with_added_extension("zst")
}

fn part_of(path: &Path) -> PathBuf {
    path.with_added_extension("part")
}

fn make(source: &File, [archive, index]: &[PathBuf; 2], metadata: &fs::Metadata) -> io::Result<()> {
    let mut compressor = Compressor::new(LEVEL)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    let mut to = create(archive, &metadata.permissions())?;
    let mut from = BufReader::with_capacity(FRAME, source);
    let (mut frames, mut lines) = (Vec::new(), Vec::with_capacity(FRAME + FRAME / 4));
    let mut header = Header { index: VERSION, octets: 0, plain_octets: 0, frames: 0, contents: Contents::default() };
    // An empty segment is one empty frame: no octets at all are no archive.
    while next(&mut from, &mut lines)? || frames.is_empty() {
        let compressed = compressor.compress(&lines)?;
        to.write_all(&compressed)?;
        let frame = Frame {
            offset: header.octets,
            octets: compressed.len() as u64,
            plain_octets: lines.len() as u64,
            contents: Contents::of(&lines),
        };
        header.octets += frame.octets;
        header.plain_octets += frame.plain_octets;
        header.frames += 1;
        header.contents.join(&frame.contents);
        frames.push(frame);
    }
    if header.plain_octets != metadata.len() {
        return Err(io::Error::other("the segment changed while it was compressed: somebody still writes to it"));
    }
    finish(to, metadata)?;
    let mut to = create(index, &metadata.permissions())?;
    line(&mut to, &header)?;
    frames.iter().try_for_each(|frame| line(&mut to, frame))?;
    finish(to, metadata)
}

/// The next lines, as many as fill a frame; false at the end. A last line that a crash cut is taken as it is.
fn next(from: &mut impl BufRead, lines: &mut Vec<u8>) -> io::Result<bool> {
    lines.clear();
    from.by_ref().take(FRAME as u64).read_to_end(lines)?;
    if lines.last().is_some_and(|last| *last != b'\n') {
        from.take(LONGEST_LINE as u64).read_until(b'\n', lines)?;
    }
    Ok(!lines.is_empty())
}

fn line(to: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")
}

fn create(path: &Path, permissions: &Permissions) -> io::Result<BufWriter<File>> {
    let file = File::create(path)?;
    // Others do not write to it, whatever the segment's mode is.
    file.set_permissions(Permissions::from_mode(permissions.mode() & 0o775))?;
    Ok(BufWriter::new(file))
}

fn finish(to: BufWriter<File>, metadata: &fs::Metadata) -> io::Result<()> {
    let file = to.into_inner()?;
    // Age counts from the segment's last record.
    if let Ok(modified) = metadata.modified() {
        file.set_modified(modified)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::ndjson::encode;
    use super::*;
    use crate::record::tests_support::record;

    /// A segment of several frames.
    fn segment(folder: &Path) -> (PathBuf, Vec<u8>) {
        let mut lines = BytesMut::new();
        for seq in 1..=4000 {
            encode(&record(seq), &mut lines);
        }
        let plain = folder.join("linewarden-20231114T221320Z-000001.ndjson");
        fs::write(&plain, &lines).unwrap();
        (plain, lines.to_vec())
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    const DONE: [&str; 2] =
        ["linewarden-20231114T221320Z-000001.index", "linewarden-20231114T221320Z-000001.ndjson.zst"];

    #[test]
    fn an_archive_is_the_segment_and_each_frame_whole_lines_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, lines) = segment(folder.path());
        let archive = compress(&plain).unwrap();
        assert_eq!(names(folder.path()), DONE);
        let compressed = fs::read(&archive).unwrap();
        assert_eq!(zstd::decode_all(&*compressed).unwrap(), lines);
        let index = Index::open(&archive).unwrap();
        let header = index.header.clone();
        let frames = index.frames().unwrap();
        assert!(frames.len() > 2);
        assert_eq!((header.contents.lines, header.plain_octets), (4000, lines.len() as u64));
        let mut at = 0;
        for frame in frames {
            let octets = &compressed[frame.offset as usize..(frame.offset + frame.octets) as usize];
            let part = zstd::bulk::decompress(octets, frame.plain_octets as usize).unwrap();
            assert_eq!(part, lines[at..at + part.len()]);
            assert_eq!((part.last(), part[0]), (Some(&b'\n'), b'{'));
            assert_eq!(Contents::of(&part), frame.contents);
            at += part.len();
        }
        assert_eq!(at, lines.len());
    }

    #[test]
    fn killed_anywhere_it_is_done_by_the_next_call() {
        let made = tempfile::tempdir().unwrap();
        let (plain, lines) = segment(made.path());
        let archive = compress(&plain).unwrap();
        let (whole, index) = (fs::read(&archive).unwrap(), fs::read(index_of(&archive)).unwrap());
        let half = |octets: &[u8]| octets[..octets.len() / 2].to_vec();
        let [index_name, archive_name] = DONE.map(str::to_owned);
        let (index_part, archive_part) = (format!("{index_name}.part"), format!("{archive_name}.part"));
        // What lies beside the segment when the process is killed, from the first moment to the last.
        let moments: [Vec<(&str, Vec<u8>)>; 6] = [
            vec![(&archive_part, half(&whole))],
            vec![(&archive_part, whole.clone())],
            vec![(&archive_part, whole.clone()), (&index_part, half(&index))],
            vec![(&archive_part, whole.clone()), (&index_part, index.clone())],
            vec![(&archive_part, whole.clone()), (&index_name, index.clone())],
            vec![(&archive_name, whole.clone()), (&index_name, index.clone())],
        ];
        for (moment, left) in moments.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let (plain, _) = segment(folder.path());
            for (name, octets) in left {
                fs::write(folder.path().join(name), octets).unwrap();
            }
            let archive = compress(&plain).unwrap();
            assert_eq!(names(folder.path()), DONE, "moment {moment}");
            assert_eq!(zstd::decode_all(&*fs::read(&archive).unwrap()).unwrap(), lines, "moment {moment}");
            // And once more, when it is all done.
            assert_eq!(compress(&plain).unwrap(), archive);
        }
    }

    #[test]
    fn an_archive_of_something_else_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, lines) = segment(folder.path());
        fs::write(archive_of(&plain), "no archive").unwrap();
        let archive = compress(&plain).unwrap();
        assert_eq!(zstd::decode_all(&*fs::read(archive).unwrap()).unwrap(), lines);
    }

    #[test]
    fn torn_and_endless_lines_are_kept_to_the_octet() {
        let cases: [Vec<u8>; 4] =
            [b"".to_vec(), b"{\"kind\":\"en".to_vec(), vec![b'x'; FRAME + LONGEST_LINE + 7], vec![b'\n'; 3 * FRAME]];
        for lines in cases {
            let folder = tempfile::tempdir().unwrap();
            let plain = folder.path().join("x.ndjson");
            fs::write(&plain, &lines).unwrap();
            let archive = compress(&plain).unwrap();
            assert!(zstd::decode_all(&*fs::read(&archive).unwrap()).unwrap() == lines, "{} octets", lines.len());
            Index::open(&archive).unwrap().frames().unwrap();
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(compress(&folder.path().join("x.ndjson")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
