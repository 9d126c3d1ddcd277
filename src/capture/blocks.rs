//! Turns the memory of a `TPACKET_V3` ring into blocks that are ours for a while, and a block into frames, by the kernel's
//! `Documentation/networking/packet_mmap.rst`.
//!
//! A block starts with `struct tpacket_block_desc`; frames follow as a chain of `struct tpacket3_hdr`.
//!
//! | offset in the block | octets | field |
//! |---|---|---|
//! | 8 | 4 | status: bit 0 set, the block is ours; else the kernel's |
//! | 12 | 4 | number of frames |
//! | 16 | 4 | offset of the first frame's header |
//!
//! | offset in the frame's header | octets | field |
//! |---|---|---|
//! | 0 | 4 | offset of the next header, from this one |
//! | 4, 8 | 4, 4 | seconds, nanoseconds |
//! | 12, 16 | 4, 4 | octets captured, octets on the wire (without a tag taken out) |
//! | 20 | 4 | status: bit 4 tag valid, bit 6 its TPID valid |
//! | 24 | 2 | offset of the frame, from this header |
//! | 32, 36 | 4, 2 | tag taken out, its TPID |
//!
//! The kernel writes to a block only while the status says that it is the kernel's: a block is read only after the
//! status was, and given back only when nothing borrows from it.
#![expect(unsafe_code, reason = "a block is borrowed from memory that the kernel writes to at other times")]

use std::sync::atomic::{AtomicU32, Ordering};

use super::mapping::Mapping;
use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId, LinkType, VlanTag};

/// The blocks of one ring, which come one after the other, round and round.
pub struct Blocks {
    memory: Mapping,
    block_octets: usize,
    /// Where the block begins that the kernel fills or has filled next.
    current: usize,
}

impl Blocks {
    /// Of `block_octets` each, as many as there is memory for.
    pub const fn new(memory: Mapping, block_octets: usize) -> Self {
        Self { memory, block_octets, current: 0 }
    }

    /// The next block's octets, where the kernel is done with it.
    pub fn block(&self) -> Option<&[u8]> {
        if self.status()?.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the status, read with acquire, says that the block is ours: the kernel does not write to it until `release`
        // gives it back, which needs `&mut self` and so cannot happen while this borrow lives.
        unsafe { self.memory.slice(self.current, self.block_octets) }
    }

    /// Gives the block back to the kernel and goes on to the next.
    pub fn release(&mut self) {
        let Some(status) = self.status() else { return };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER != 0 {
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.current += self.block_octets;
            if self.current + self.block_octets > self.memory.octets() {
                self.current = 0;
            }
        }
    }

    fn status(&self) -> Option<&AtomicU32> {
        self.memory.word(self.current + STATUS)
    }
}

/// Offset of a block's status.
const STATUS: usize = 8;

/// The frames of one block, in order.
pub struct Frames<'a> {
    block: &'a [u8],
    left: u32,
    header: usize,
    interface: InterfaceId,
    link: LinkType,
}

impl<'a> Frames<'a> {
    pub fn of(block: &'a [u8], interface: InterfaceId, link: LinkType) -> Self {
        let left = u32_at(block, 12).unwrap_or(0);
        let header = u32_at(block, 16).unwrap_or(0) as usize;
        Self { block, left, header, interface, link }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        self.left = self.left.checked_sub(1)?;
        let header = self.block.get(self.header..)?;
        let captured = u32_at(header, 12)? as usize;
        let status = u32_at(header, 20)?;
        let start = usize::from(u16_at(header, 24)?);
        let data = header.get(start..start.checked_add(captured)?)?;
        let stripped_vlan = match status & libc::TP_STATUS_VLAN_VALID {
            0 => None,
            _ => Some(VlanTag {
                tpid: match status & libc::TP_STATUS_VLAN_TPID_VALID {
                    0 => 0x8100,
                    _ => u16_at(header, 36)?,
                },
                tci: u32_at(header, 32)? as u16,
            }),
        };
        let tag = if stripped_vlan.is_some() { 4 } else { 0 };
        let nanos = u64::from(u32_at(header, 4)?) * 1_000_000_000 + u64::from(u32_at(header, 8)?);
        let wire_len = u32_at(header, 16)?.max(captured as u32).saturating_add(tag);
        let at = Timestamp::from_nanos(nanos);
        match u32_at(header, 0)? as usize {
            // The last one: nothing comes behind it, whatever number of frames the block says.
            0 => self.left = 0,
            next => self.header += next,
        }
        Some(Frame { at, number: 0, wire_len, interface: self.interface, link: self.link, stripped_vlan, data })
    }
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..)?.first_chunk().map(|word| u16::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::capture::mapping::OtherSide;

    const BLOCK: usize = 4096;
    const ID: InterfaceId = InterfaceId(3);

    /// The octets of a block but its status, by fields of 32 bits at offsets.
    fn block(fields: &[(usize, u32)]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        for &(at, value) in fields {
            block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        block
    }

    /// The frames that are found in a block, each of which must lie within.
    fn frames(block: &[u8]) -> Vec<Frame<'_>> {
        let found: Vec<_> = Frames::of(block, ID, LinkType::Ethernet).collect();
        let Range { start, end } = block.as_ptr_range();
        for Frame { data, .. } in &found {
            let data = data.as_ptr_range();
            assert!(start <= data.start && data.end <= end);
        }
        found
    }

    #[test]
    fn frames_are_where_the_block_says() {
        let first = [(12, 2), (16, 48), (48, 96), (52, 7), (56, 9), (60, 3), (64, 60), (72, 82)];
        let second = [(148, 8), (156, 2), (160, 2), (164, 0x50), (168, 82), (176, 0x2123), (180, 0x88a8)];
        let mut block = block(&[&first[..], &second].concat());
        block[130..133].copy_from_slice(b"one");
        block[226..228].copy_from_slice(b"is");
        let found = frames(&block);
        let tag = Some(VlanTag { tpid: 0x88a8, tci: 0x2123 });
        let one = Frame {
            at: Timestamp::from_nanos(7_000_000_009),
            number: 0,
            wire_len: 60,
            interface: ID,
            link: LinkType::Ethernet,
            stripped_vlan: None,
            data: b"one",
        };
        let two =
            Frame { at: Timestamp::from_nanos(8_000_000_000), wire_len: 6, stripped_vlan: tag, data: b"is", ..one };
        assert_eq!(found, [one, two]);
    }

    /// A frame of four octets at 48, and what is said wrong of it.
    const CASES: &[(&str, &[(usize, u32)], usize)] = &[
        ("as it should be", &[], 1),
        ("no frame", &[(12, 0)], 0),
        ("more frames than there are", &[(12, u32::MAX)], 1),
        ("more frames, and each leads to itself", &[(12, u32::MAX), (48, 0)], 1),
        ("more frames, and the next is behind the block", &[(12, 2), (48, BLOCK as u32)], 1),
        ("more frames, and the next is far behind", &[(12, 2), (48, u32::MAX)], 1),
        ("more frames, and the next has half a header", &[(12, 2), (48, BLOCK as u32 - 48 - 12)], 1),
        ("the first at the end", &[(16, BLOCK as u32)], 0),
        ("the first behind the end", &[(16, u32::MAX)], 0),
        ("the first not aligned", &[(16, BLOCK as u32 - 1)], 0),
        ("captured to the end", &[(60, BLOCK as u32 - 48 - 82)], 1),
        ("captured beyond the end", &[(60, BLOCK as u32 - 48 - 82 + 1)], 0),
        ("captured beyond everything", &[(60, u32::MAX)], 0),
        ("begins at the end", &[(60, 0), (72, BLOCK as u32 - 48)], 1),
        ("begins behind the end", &[(60, 0), (72, BLOCK as u32 - 48 + 1)], 0),
        ("longest on the wire, with a tag", &[(64, u32::MAX), (68, 0x10)], 1),
        ("the latest time", &[(52, u32::MAX), (56, u32::MAX)], 1),
    ];

    #[test]
    fn a_block_that_lies_leads_nowhere_else() {
        let truth = [(12, 1), (16, 48), (60, 4), (64, 4), (72, 82)];
        for &(name, wrong, expected) in CASES {
            assert_eq!(frames(&block(&[&truth[..], wrong].concat())).len(), expected, "{name}");
        }
        for octets in 0..48 + 48 {
            frames(&block(&truth)[..octets]);
        }
    }

    #[test]
    fn whatever_stands_in_a_block_is_read_within_it() {
        const STEP: u32 = 400;
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        let truth: Vec<_> = (0..8)
            .flat_map(|at| [(0, STEP), (12, 4), (24, 82)].map(|(of, value)| (48 + (at * STEP) as usize + of, value)))
            .collect();
        let whole = block(&[&[(12, 8), (16, 48)], &truth[..]].concat());
        assert_eq!(frames(&whole).len(), 8);
        let rounds = if cfg!(miri) { 300 } else { 100_000 };
        let mut found = 0;
        for _ in 0..rounds {
            let mut block = whole.clone();
            for _ in 0..2 {
                // In a header, most often; small ones lead to more.
                let at = [8, 48, 448, 848][random() as usize % 4] + random() as usize % 40 / 4 * 4;
                let value = random() >> (random() % 32);
                block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            found += frames(&block).len();
        }
        // Neither all of them nor none.
        assert!((rounds..8 * rounds).contains(&found), "{found}");
    }

    #[test]
    fn blocks_go_from_hand_to_hand() {
        const BLOCKS: usize = 3;
        const ROUNDS: u32 = 40;
        let memory = Mapping::anonymous(BLOCKS * BLOCK + 100).unwrap();
        let kernel = OtherSide::of(&memory);
        let mut ours = Blocks::new(memory, BLOCK);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..ROUNDS {
                    let at = number as usize % BLOCKS * BLOCK;
                    while kernel.word(at + STATUS).load(Ordering::Acquire) != libc::TP_STATUS_KERNEL {
                        std::thread::yield_now();
                    }
                    let block = block(&[(12, 1), (16, 48), (60, 4), (64, 4), (72, 82), (48 + 82 + 2, 0)]);
                    kernel.write(at + STATUS + 4, &block[STATUS + 4..]);
                    kernel.write(at + 48 + 82, &number.to_ne_bytes());
                    kernel.word(at + STATUS).store(libc::TP_STATUS_USER, Ordering::Release);
                }
            });
            for number in 0..ROUNDS {
                let block = loop {
                    match ours.block() {
                        Some(block) => break block,
                        None => std::thread::yield_now(),
                    }
                };
                assert_eq!(frames(block).len(), 1);
                assert_eq!(frames(block)[0].data, number.to_ne_bytes());
                ours.release();
            }
        });
        assert_eq!(ours.block(), None);
        let before = ours.current;
        ours.release();
        assert_eq!(ours.current, before, "what is not ours is not given back");
    }
}
