//! Turns what the sinks wrote into answers.
//!
//! | file | what |
//! |---|---|
//! | `folder` | a folder into the segments of a log in their order, and what is none |
//! | `log` | folders and files into chunks of whole lines, plain or decompressed |
//! | `line` | a line into the fields that are asked for, borrowed from it |
//! | `selection` | what is asked into what need not be read |
//! | `scan` | chunks into rows, in parallel: a row a flow or a row a record |
//! | `group` | rows into sums |
//! | `inventory` | the inventory's file into rows |
//! | `report` | a log, and what the sensors said, into what an auditor asks |
//! | `verify` | a log into whether it is whole, and where it is not |

mod folder;
mod group;
mod inventory;
mod line;
mod log;
pub mod report;
mod scan;
mod selection;
pub mod verify;

pub use group::{Field, Groups, Sums};
pub use inventory::{Inventory, InventoryError, Missing, View};
pub use line::{ApprovalName, Line};
pub use log::{FLOW_LOG, Log, SENSOR_LOG, StoreError};
pub use scan::{Asked, Report, scan};
pub use selection::{Rows, Selection};
