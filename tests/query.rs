//! Questions to the log: what the binary answers, held against a plain look at every line; and what it says where something
//! is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

#[path = "query/diff_policy.rs"]
mod diff_policy;
#[path = "query/logs.rs"]
mod logs;
#[path = "query/naive.rs"]
mod naive;
#[path = "query/reading.rs"]
mod reading;
#[path = "query/sealed.rs"]
mod sealed;
