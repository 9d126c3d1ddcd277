//! Turns records into newline-delimited JSON, one object a line.
//!
//! Format: `tests/record.schema.json`.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use crate::record::Record;

/// Appends a record and its line feed.
pub fn encode(record: &Record, to: &mut BytesMut) {
    append_line(record, to);
}

/// The same of anything; says whether that was possible.
pub(super) fn append_line(line: &impl Serialize, to: &mut BytesMut) -> bool {
    let start = to.len();
    let is_written = serde_json::to_writer(to.writer(), line).is_ok();
    if is_written {
        to.put_u8(b'\n');
    } else {
        // No field of a record can fail; if one ever does, no half line is left.
        to.truncate(start);
    }
    is_written
}
