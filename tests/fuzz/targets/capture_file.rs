//! A capture file, pcap or pcapng, also behind gzip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linewarden::capture::file::CaptureFile;
use linewarden_fuzz::file_of;

fuzz_target!(|input: &[u8]| {
    let path = file_of("input.pcap", input);
    let Ok(mut file) = CaptureFile::open(&path) else { return };
    let mut octets = 0;
    // Ends at the first error, as `replay` does.
    while let Ok(true) = file.next_batch(&mut |frames, names| {
        octets += frames.iter().map(|frame| frame.data.len()).sum::<usize>();
        assert!(frames.iter().all(|frame| usize::from(frame.interface.0) < names.len().max(1)));
    }) {
        assert!(octets <= 1 << 30, "more than gzip can make of it");
    }
});
