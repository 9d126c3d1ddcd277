//! The settings file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linewarden::config::Config;
use linewarden_fuzz::file_of;

fuzz_target!(|input: &[u8]| {
    if let Err(error) = Config::load(&file_of("linewarden.toml", input)) {
        assert!(!error.to_string().is_empty());
    }
});
