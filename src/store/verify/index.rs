//! Holds the index of an archive to what the archive holds: `query` passes over what the index says is not there.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use zstd::bulk::Decompressor;

use crate::sink::archive::index::{Contents, Frame, Index, LARGEST_FRAME};
use crate::sink::sealed::segments;

/// What the index beside an archive says less than is true, in words; none where it says all, or is none that is asked.
pub(super) fn lie(archive: &Path) -> Option<String> {
    let index = Index::open(archive).ok()?;
    let header = index.header.contents.clone();
    let frames = index.frames().ok().filter(|frames| frames.iter().all(Frame::is_ours));
    let read = match &frames {
        Some(frames) => by_frames(archive, frames),
        None => by_lines(archive).map(Ok),
    };
    let remedy = "`query` passes over records: remove the index, or ask with --no-index";
    match read {
        // It is told with the records.
        Err(_) if frames.is_none() => None,
        Err(error) => Some(format!("its frames are not those of the archive ({error})")),
        Ok(Err(octet)) => Some(format!("what it says of the frame at octet {octet} leaves out records; {remedy}")),
        Ok(Ok(contents)) if !header.covers(&contents) => {
            Some(format!("what it says of the archive leaves out records; {remedy}"))
        }
        Ok(Ok(_)) => None,
    }
}

/// What all frames hold, or where the first is of which the index leaves something out.
fn by_frames(archive: &Path, frames: &[Frame]) -> io::Result<Result<Contents, u64>> {
    let file = segments::open(archive)?;
    let (mut all, mut decompressor) = (Contents::default(), Decompressor::new()?);
    for frame in frames {
        let mut octets = vec![0; usize::try_from(frame.octets).unwrap_or_default()];
        file.read_exact_at(&mut octets, frame.offset)?;
        let lines = decompressor.decompress(&octets, usize::try_from(frame.plain_octets).unwrap_or_default())?;
        let contents = Contents::of(&lines);
        if !frame.contents.covers(&contents) {
            return Ok(Err(frame.offset));
        }
        all.join(&contents);
    }
    Ok(Ok(all))
}

fn by_lines(archive: &Path) -> io::Result<Contents> {
    let mut from = BufReader::new(segments::open_data(archive, |_| {})?);
    let (mut all, mut line) = (Contents::default(), Vec::new());
    loop {
        line.clear();
        if from.by_ref().take(LARGEST_FRAME).read_until(b'\n', &mut line)? == 0 {
            return Ok(all);
        }
        all.join(&Contents::of(&line));
    }
}
