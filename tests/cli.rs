//! The real binary as a user drives it, command by command. `tests/run.rs` drives the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "cli/approvals.rs"]
mod approvals;
#[path = "cli/check_config.rs"]
mod check_config;
#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/drafts.rs"]
mod drafts;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/identity.rs"]
mod identity;
#[path = "cli/replay.rs"]
mod replay;
