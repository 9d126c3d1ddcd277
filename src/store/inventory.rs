//! Turns the inventory's file into rows, while the daemon writes it and without writing anything itself.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::sink::inventory::VERSION;

/// An inventory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// Not there, or not for this user.
    #[error("{path}: cannot be read: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No inventory, or a damaged one.
    #[error("{path}: is no inventory that can be read: {error}")]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        error: rusqlite::Error,
    },
    /// Of another version of linewarden.
    #[error("{path}: its format is version {found}, and this linewarden reads version {VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

/// What an inventory lists; [`crate::sink::inventory`] says what of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Every tunnel.
    Tunnels,
    /// Every path of every approval.
    Circuits,
    /// The use of every approval.
    Approvals,
    /// Octets by day.
    Days,
}

impl View {
    const fn query(self) -> &'static str {
        match self {
            Self::Tunnels => "SELECT * FROM tunnels ORDER BY last_seen DESC, protocol, a, b, port",
            Self::Circuits => "SELECT * FROM circuits ORDER BY approval, interface, vlan, mpls",
            Self::Approvals => "SELECT * FROM approvals ORDER BY approval",
            Self::Days => {
                "SELECT * FROM days ORDER BY day DESC, octets_ab + octets_ba DESC, protocol, a, b, port, approval"
            }
        }
    }
}

/// An inventory's file.
#[derive(Debug)]
pub struct Inventory {
    connection: Connection,
    path: PathBuf,
}

/// What an inventory does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Tunnels and circuits that went to make room, each once for every approval and path.
    pub evicted: u64,
    /// Lines or parts of the log that could not be read.
    pub damaged: u64,
}

/// A writer holds everybody up no longer than this: where it puts in order what a crash left.
const BUSY: Duration = Duration::from_secs(5);

impl Inventory {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        // SQLite says of all of it that it is unable to open the file.
        File::open(path).map_err(|error| InventoryError::File { path: path.to_owned(), error })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;")?;
            let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok((connection, version))
        });
        let (connection, found) = opened.map_err(|error| InventoryError::Sqlite { path: path.to_owned(), error })?;
        if found != VERSION {
            return Err(InventoryError::Version { path: path.to_owned(), found });
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Names of a view's columns, and its rows that are wanted.
    pub fn rows(
        &self,
        view: View,
        mut is_wanted: impl FnMut(&[String], &[Value]) -> bool,
    ) -> Result<(Vec<String>, Vec<Vec<Value>>), InventoryError> {
        let mut read = || {
            let mut select = self.connection.prepare(view.query())?;
            let columns: Vec<_> = select.column_names().map(str::to_owned).collect();
            let mut rows = select.query([])?;
            let mut wanted = Vec::new();
            while let Some(row) = rows.next()? {
                let values = (0..columns.len()).map(|at| row.get_ref(at).map(value)).collect::<Result<Vec<_>, _>>()?;
                if is_wanted(&columns, &values) {
                    wanted.push(values);
                }
            }
            Ok((columns, wanted))
        };
        read().map_err(|error| InventoryError::Sqlite { path: self.path.clone(), error })
    }

    /// What is not in it.
    pub fn missing(&self) -> Result<Missing, InventoryError> {
        let read = self.connection.query_row("SELECT evicted, damaged FROM state", [], |row| {
            Ok(Missing { evicted: row.get(0)?, damaged: row.get(1)? })
        });
        read.map_err(|error| InventoryError::Sqlite { path: self.path.clone(), error })
    }
}

fn value(of: ValueRef<'_>) -> Value {
    match of {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into(),
    }
}
