//! The first octet names the link type and the snap length; the others are a frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use linewarden::time::Timestamp;
use linewarden::wire::{Frame, InterfaceId, pair_hash, parse, parse_snapped};
use linewarden_fuzz::LINKS;

fuzz_target!(|input: &[u8]| {
    let Some((&first, data)) = input.split_first() else { return };
    let frame = Frame {
        at: Timestamp::from_secs(1),
        number: 1,
        wire_len: data.len() as u32 + u32::from(first >> 2),
        interface: InterfaceId(0),
        link: LINKS[usize::from(first & 3)],
        stripped_vlan: None,
        data,
    };
    if let Ok(packet) = parse(&frame) {
        assert!(packet.payload.len() <= data.len());
        assert_eq!(packet.wire_len, frame.wire_len);
    }
    let snapped = parse_snapped(&frame, usize::from(first));
    if usize::from(first) >= data.len() {
        assert_eq!(snapped.is_ok(), parse(&frame).is_ok());
    }
    let _ = pair_hash(&frame);
});
