//! linewarden labels every flow on a link: approved leased line or VPN, unapproved tunnel, or neither.
//!
//! Read the rooms in their order; a room uses earlier ones only (`tests/layers.rs` holds it to that).
//!
//! | room | turns |
//! |---|---|
//! | [`time`] | nanoseconds into [`time::Timestamp`] |
//! | [`wire`] | a frame's octets into a [`wire::ParsedPacket`] |
//! | [`flow`] | parsed packets into flows |
//! | [`detect`] | payloads into evidence of a tunnel protocol |
//! | [`policy`] | a detection into a verdict |
//! | [`record`] | a verdict into a versioned record |
//! | [`audit`] | all of the above behind [`audit::Auditor`] |
//! | [`fault`] | a test's wish into a panic, in builds for tests alone |
//! | [`config`] | TOML into each room's settings |
//! | [`capture`] | interfaces and files into frames |
//! | [`sink`] | records into files and views |
//! | [`store`] | what the sinks wrote into answers |
//! | [`daemon`] | the service: workers, signals, reload, shutdown |
//! | [`cli`] | one file per command |
//!
//! From `time` to `audit` is the core: no clock, socket, file, thread, lock or async. Time comes with the frame.

pub mod time;

pub mod wire;

pub mod flow;

pub mod detect;

pub mod policy;

pub mod record;

pub mod audit;

pub mod fault;

pub mod config;

pub mod capture;

pub mod sink;

pub mod store;

pub mod daemon;

pub mod cli;
