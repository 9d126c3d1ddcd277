//! Turns memory that the kernel shares with us into the pieces of frames that wait in it, by the kernel's
//! `Documentation/networking/af_xdp.rst`.
//!
//! The memory for frames is divided into chunks of equal size. Each belongs either to the kernel or to us, and two rings hand
//! them over: the fill ring gives chunks to the kernel, the receive ring brings them back with a frame inside. Each ring is an
//! array with a power of two of entries, and counts what was produced and what was consumed (32 bits each, which wrap).
//!
//! | ring | entry | octets | who produces | who consumes |
//! |---|---|---|---|---|
//! | fill | address of a chunk | 8 | we | the kernel |
//! | receive | `struct xdp_desc`: address 8, octets 4, options 4 | 16 | the kernel | we |
//!
//! Both have room for every chunk: neither is ever full, and only a kernel without chunks drops a frame.
#![expect(unsafe_code, reason = "frames are borrowed from memory that the kernel writes to at other times")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::capture::mapping::Mapping;

/// How the memory of a socket is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Of one chunk: 2048 or 4096.
    pub octets: usize,
    /// How many.
    pub count: u32,
}

impl Chunks {
    /// Octets of a frame that a chunk of `octets` has room for: the kernel leaves 256 free in front of it
    /// (`XDP_PACKET_HEADROOM`).
    #[must_use]
    pub const fn room(octets: usize) -> usize {
        octets - 256
    }
}

/// A piece of a frame, and whether the next one belongs to the same frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub data: &'a [u8],
    pub goes_on: bool,
}

/// One queue: its chunks, and the rings that hand them over.
pub struct Queue {
    /// Chunk after chunk.
    memory: Mapping,
    chunks: Chunks,
    fill: Ring,
    received: Ring,
    /// Chunks given to the kernel since the start, as the fill ring counts them.
    given: u32,
    /// Pieces that were released, as the receive ring counts them.
    released: u32,
    /// Pieces that wait behind those: a copy of what the kernel says.
    waiting: u32,
}

impl Queue {
    /// Gives all chunks to the kernel.
    pub fn new(memory: Mapping, chunks: Chunks, fill: Ring, received: Ring) -> Self {
        let mut queue = Self { memory, chunks, fill, received, given: 0, released: 0, waiting: 0 };
        for chunk in 0..chunks.count {
            queue.fill.set_chunk(chunk, u64::from(chunk) * chunks.octets as u64);
        }
        queue.give(chunks.count);
        queue
    }

    /// Looks how many pieces wait.
    pub fn look(&mut self) -> u32 {
        // Acquire: what the kernel wrote before it counted is seen.
        let produced = self.received.producer().map_or(self.released, |count| count.load(Ordering::Acquire));
        self.waiting = produced.wrapping_sub(self.released).min(self.received.entries);
        self.waiting
    }

    /// One of the pieces that the last look has found, counted from the first that was not released.
    pub fn piece(&self, at: u32) -> Option<Piece<'_>> {
        if at >= self.waiting {
            return None;
        }
        let found = self.received.descriptor(self.released.wrapping_add(at))?;
        // SAFETY: the chunk is ours: the kernel gave it to us with this piece, and writes to it only after `release` has given it
        // back, which needs `&mut self` and so cannot happen while this borrow lives.
        let data = unsafe { self.memory.slice(usize::try_from(found.addr).ok()?, found.len as usize) };
        // What the kernel never says, octets elsewhere, counts as a frame that cannot be read.
        Some(Piece { data: data.unwrap_or_default(), goes_on: found.options & libc::XDP_PKT_CONTD != 0 })
    }

    /// Gives the chunks of the first `pieces` that the last look has found back to the kernel.
    pub fn release(&mut self, pieces: u32) {
        let pieces = pieces.min(self.waiting);
        for at in 0..pieces {
            if let Some(found) = self.received.descriptor(self.released.wrapping_add(at)) {
                let chunk = found.addr & !(self.chunks.octets as u64 - 1);
                self.fill.set_chunk(self.given.wrapping_add(at), chunk);
            }
        }
        self.waiting -= pieces;
        self.released = self.released.wrapping_add(pieces);
        if let Some(count) = self.received.consumer() {
            // Release: the entries were read before the kernel may write there again.
            count.store(self.released, Ordering::Release);
        }
        self.give(pieces);
    }

    /// Counts chunks that stand in the fill ring as given.
    fn give(&mut self, chunks: u32) {
        self.given = self.given.wrapping_add(chunks);
        if let Some(count) = self.fill.producer() {
            // Release: the kernel sees the entries once it sees the count.
            count.store(self.given, Ordering::Release);
        }
    }

    /// Whether the driver has stopped for want of chunks, and goes on only when it is told.
    pub fn wants_waking(&self) -> bool {
        self.fill.flags().is_some_and(|flags| flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0)
    }
}

/// A ring that the kernel shares with us. Only one side writes each of the two counts.
pub struct Ring {
    memory: Mapping,
    at: Offsets,
    /// A power of two.
    entries: u32,
}

/// Where the parts of a ring are in its memory.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    pub producer: usize,
    pub consumer: usize,
    pub flags: usize,
    pub first: usize,
}

/// Octets of an entry of the fill ring, and of the receive ring.
pub const CHUNK_ENTRY: usize = size_of::<u64>();
pub const DESCRIPTOR: usize = size_of::<libc::xdp_desc>();

impl Ring {
    /// `None`: the memory does not hold what the offsets say.
    pub fn new(memory: Mapping, at: Offsets, entries: u32, entry_octets: usize) -> Option<Self> {
        let end = (entries as usize).checked_mul(entry_octets)?.checked_add(at.first)?;
        // `flags` is 0, and the others are not, on a kernel before 5.4, which has no wake-ups: the word there is never read
        // as a flag, since that kernel refuses to bind.
        let is_there = [at.producer, at.consumer, at.flags].iter().all(|&at| memory.word(at).is_some());
        let fits = entries.is_power_of_two() && end <= memory.octets() && at.first.is_multiple_of(size_of::<u64>());
        (is_there && fits).then_some(Self { memory, at, entries })
    }

    fn producer(&self) -> Option<&AtomicU32> {
        self.memory.word(self.at.producer)
    }

    fn consumer(&self) -> Option<&AtomicU32> {
        self.memory.word(self.at.consumer)
    }

    fn flags(&self) -> Option<&AtomicU32> {
        self.memory.word(self.at.flags)
    }

    /// Entries are words, so that nothing is undefined should the kernel write to one at the wrong time. Relaxed: the counts
    /// order them.
    fn descriptor(&self, count: u32) -> Option<libc::xdp_desc> {
        let at = self.entry(count, DESCRIPTOR);
        Some(libc::xdp_desc {
            addr: self.memory.long_word(at)?.load(Ordering::Relaxed),
            len: self.memory.word(at + 8)?.load(Ordering::Relaxed),
            options: self.memory.word(at + 12)?.load(Ordering::Relaxed),
        })
    }

    fn set_chunk(&mut self, count: u32, address: u64) {
        if let Some(entry) = self.chunk(count) {
            entry.store(address, Ordering::Relaxed);
        }
    }

    fn chunk(&self, count: u32) -> Option<&AtomicU64> {
        self.memory.long_word(self.entry(count, CHUNK_ENTRY))
    }

    fn entry(&self, count: u32, octets: usize) -> usize {
        self.at.first + (count & (self.entries - 1)) as usize * octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::mapping::OtherSide;

    const CHUNKS: Chunks = Chunks { octets: 2048, count: 4 };
    const AT: Offsets = Offsets { producer: 0, consumer: 64, flags: 128, first: 192 };

    /// A queue, and the kernel's side of its chunks, its fill ring and its receive ring.
    fn queue() -> (Queue, [OtherSide; 3]) {
        let memory = Mapping::anonymous(CHUNKS.octets * CHUNKS.count as usize).unwrap();
        let ring = |octets| Mapping::anonymous(AT.first + CHUNKS.count as usize * octets).unwrap();
        let (fill, received) = (ring(CHUNK_ENTRY), ring(DESCRIPTOR));
        let others = [&memory, &fill, &received].map(OtherSide::of);
        let fill = Ring::new(fill, AT, CHUNKS.count, CHUNK_ENTRY).unwrap();
        let received = Ring::new(received, AT, CHUNKS.count, DESCRIPTOR).unwrap();
        (Queue::new(memory, CHUNKS, fill, received), others)
    }

    fn describe(received: OtherSide, count: u32, address: u64, octets: u32, options: u32) {
        let at = AT.first + (count % CHUNKS.count) as usize * DESCRIPTOR;
        received.write(at, &address.to_ne_bytes());
        received.write(at + 8, &octets.to_ne_bytes());
        received.write(at + 12, &options.to_ne_bytes());
    }

    #[test]
    fn chunks_go_from_hand_to_hand() {
        const FRAMES: u32 = 60;
        let (mut queue, [memory, fill, received]) = queue();
        // The counts wrap on the way.
        let start = u32::MAX - 10;
        (queue.given, queue.released) = (start, start);
        (0..CHUNKS.count).for_each(|at| queue.fill.set_chunk(start.wrapping_add(at), u64::from(at) * 2048));
        received.word(AT.producer).store(start, Ordering::Relaxed);
        received.word(AT.consumer).store(start, Ordering::Relaxed);
        fill.word(AT.producer).store(start, Ordering::Relaxed);
        queue.give(CHUNKS.count);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..FRAMES {
                    let count = start.wrapping_add(number);
                    while fill.word(AT.producer).load(Ordering::Acquire) == count
                        || count.wrapping_sub(received.word(AT.consumer).load(Ordering::Acquire)) == CHUNKS.count
                    {
                        std::thread::yield_now();
                    }
                    let entry = AT.first + (count % CHUNKS.count) as usize * CHUNK_ENTRY;
                    let address = u64::from_ne_bytes(fill.read(entry)) + 256;
                    memory.write(address as usize, &number.to_ne_bytes());
                    describe(received, count, address, 4, number % 2 * libc::XDP_PKT_CONTD);
                    received.word(AT.producer).store(count.wrapping_add(1), Ordering::Release);
                }
            });
            let mut number = 0;
            while number < FRAMES {
                let waiting = queue.look();
                for at in 0..waiting {
                    let piece = Piece { data: &(number + at).to_ne_bytes(), goes_on: (number + at) % 2 == 1 };
                    assert_eq!(queue.piece(at), Some(piece));
                }
                assert_eq!(queue.piece(waiting), None);
                // Not always all of them.
                let released = waiting.div_ceil(2);
                queue.release(released);
                number += released;
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn whatever_stands_in_the_rings_is_read_within_the_chunks() {
        let end = (CHUNKS.octets * CHUNKS.count as usize) as u64;
        for (name, address, octets, expected) in [
            ("a frame", 256, 60, 60),
            ("nothing", 256, 0, 0),
            ("up to the end", end - 60, 60, 60),
            ("one beyond the end", end - 60, 61, 0),
            ("at the end", end, 1, 0),
            ("longer than all", 0, u32::MAX, 0),
            ("all", 0, end as u32, end as usize),
            ("from far away", u64::MAX, 1, 0),
            ("round the end of addresses", u64::MAX - 9, 20, 0),
        ] {
            let (mut queue, [_, _, received]) = queue();
            describe(received, 0, address, octets, 0);
            received.word(AT.producer).store(1, Ordering::Release);
            assert_eq!(queue.look(), 1, "{name}");
            let piece = queue.piece(0).unwrap();
            assert_eq!(piece.data.len(), expected, "{name}");
            assert!(piece.data.iter().all(|&octet| octet == 0), "{name}");
            queue.release(u32::MAX);
            assert_eq!((queue.released, queue.given), (1, CHUNKS.count + 1), "{name}");
        }
        // A count that leads away from the ring finds what the ring holds, and no more.
        let (mut queue, [_, _, received]) = queue();
        for count in [u32::MAX, 1 << 31, 77] {
            received.word(AT.producer).store(count, Ordering::Release);
            let waiting = queue.look();
            assert!(waiting <= CHUNKS.count);
            assert_eq!((0..).map_while(|at| queue.piece(at)).count(), waiting as usize);
            queue.release(waiting);
        }
    }

    #[test]
    fn offsets_that_lead_out_of_a_ring_are_refused() {
        let ring = |at: Offsets, entries| Ring::new(Mapping::anonymous(4096).unwrap(), at, entries, DESCRIPTOR);
        assert!(ring(AT, 128).is_some());
        assert!(ring(AT, 256).is_none(), "more entries than there is room for");
        assert!(ring(AT, 0).is_none() && ring(AT, 3).is_none() && ring(AT, 1 << 31).is_none());
        for wrong in [1, 4094, 4096, usize::MAX] {
            assert!(ring(Offsets { producer: wrong, ..AT }, 2).is_none());
            assert!(ring(Offsets { consumer: wrong, ..AT }, 2).is_none());
            assert!(ring(Offsets { flags: wrong, ..AT }, 2).is_none());
            assert!(ring(Offsets { first: wrong, ..AT }, 2).is_none());
        }
        assert!(ring(Offsets { first: 196, ..AT }, 2).is_none(), "not aligned");
    }
}
