//! A line that a client sends to the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linewarden::daemon::control::protocol::Request;

fuzz_target!(|input: &[u8]| {
    if let Err(error) = Request::parse(input) {
        assert!(!error.is_empty());
    }
});
