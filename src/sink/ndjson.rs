//! Turns records into newline-delimited JSON, one object a line.
//!
//! Format: `tests/record.schema.json`.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

/// Appends a record, or what else is a line, and its line feed.
pub fn encode(line: &impl Serialize, to: &mut BytesMut) {
    let start = to.len();
    match serde_json::to_writer(to.writer(), line) {
        Ok(()) => to.put_u8(b'\n'),
        // No field of a record can fail; if one ever does, no half line is left.
        Err(_) => to.truncate(start),
    }
}
