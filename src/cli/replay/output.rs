//! Where replay's records go.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::BytesMut;

use crate::cli::{FAILED, Failure};
use crate::config::Format;
use crate::record::Record;
use crate::sink::format;
use crate::sink::table::{FlowRows, printed};
use crate::time::Timestamp;

/// How they are written.
pub(super) enum Form {
    Lines(Format),
    Table(FlowRows),
}

/// Numbers records and writes them; keeps the first error for the end.
pub(super) struct Output {
    to: Box<dyn Write + Send>,
    path: Option<String>,
    form: Form,
    buffer: BytesMut,
    /// Of the latest record.
    time: Timestamp,
    written: u64,
    failed: Option<io::Error>,
}

impl Output {
    pub(super) fn open(path: Option<&Path>, form: Form) -> Result<Self, Failure> {
        let to: Box<dyn Write + Send> = match path {
            None => Box::new(BufWriter::with_capacity(1 << 16, io::stdout())),
            Some(path) => {
                let file = File::create(path);
                Box::new(BufWriter::with_capacity(
                    1 << 16,
                    file.map_err(|error| failure(&path.display().to_string(), &error))?,
                ))
            }
        };
        let path = path.map(|path| path.display().to_string());
        Ok(Self { to, path, form, buffer: BytesMut::new(), time: Timestamp::ZERO, written: 0, failed: None })
    }

    pub(super) fn write(&mut self, mut record: Record) {
        self.written += 1;
        record.seq = self.written;
        if self.failed.is_some() {
            return;
        }
        let result = match &mut self.form {
            Form::Table(rows) => {
                rows.write(&record);
                if rows.is_full() { print(rows, &mut self.to) } else { Ok(()) }
            }
            Form::Lines(form) => {
                self.buffer.clear();
                self.time = self.time.max(record.time);
                if self.written == 1 {
                    // The time of the records, so that a replay always gives the same.
                    format::begin(*form, self.time, &mut self.buffer);
                }
                format::encode(*form, &record, &mut self.buffer);
                self.to.write_all(&self.buffer)
            }
        };
        self.failed = result.err();
    }

    /// Records taken so far.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Nobody reads any more, or nothing can be written.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        if self.failed.is_none() {
            self.failed = match &mut self.form {
                Form::Table(rows) => print(rows, &mut self.to).err(),
                Form::Lines(form) => {
                    self.buffer.clear();
                    if self.written > 0 {
                        format::end(*form, self.time, &mut self.buffer);
                    }
                    self.to.write_all(&self.buffer).err()
                }
            };
        }
        let result = self.failed.map_or_else(|| self.to.flush(), Err);
        match (result, &self.path) {
            (Ok(()), _) => Ok(()),
            (Err(error), None) => Err(error.into()),
            (Err(error), Some(path)) => Err(failure(path, &error)),
        }
    }
}

fn print(rows: &mut FlowRows, to: &mut impl Write) -> io::Result<()> {
    rows.take().map_or(Ok(()), |table| writeln!(to, "{}", printed(&table)))
}

fn failure(path: &str, error: &io::Error) -> Failure {
    Failure::new(FAILED, format!("{path}: cannot be written: {error}"))
}
