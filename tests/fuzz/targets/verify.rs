//! A log and its seals, which the first two octets part.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linewarden::store::verify::{Means, verify};
use linewarden_fuzz::{file_of, folder};

fuzz_target!(|input: &[u8]| {
    let Some((&[high, low], rest)) = input.split_first_chunk::<2>() else { return };
    let (records, seals) = rest.split_at(usize::from(u16::from_be_bytes([high, low])).min(rest.len()));
    file_of("linewarden.ndjson", records);
    file_of("linewarden.seals", seals);
    let means = Means { keys: &[], heads: &[], threads: 1, progress: &|_| {} };
    let _ = verify(folder(), &means);
});
