//! A file of approvals; what is right makes a policy.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use linewarden::config::{Approvals, Config};
use linewarden::time::Timestamp;
use linewarden_fuzz::{file_of, folder};

fuzz_target!(|input: &[u8]| {
    file_of("input.toml", input);
    match Approvals::load(folder()) {
        Ok(approvals) => {
            let _ = approvals.lint(Timestamp::from_secs(1_800_000_000), Duration::from_hours(24 * 30));
            let _ = Config::default().policy("fuzz".into(), approvals);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
