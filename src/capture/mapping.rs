//! Turns memory that the kernel shares with us (`mmap(2)`) into words and octets. All that rings and maps ask for is held
//! against the memory's length here, so that a wrong offset, the kernel's or ours, finds nothing rather than something else.
#![expect(unsafe_code, reason = "the kernel shares this memory with us: it is reached through pointers")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::ring::advise_huge_pages;

/// Memory of this process, aligned to pages, until it is dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    octets: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through it only; no thread-local state is involved.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Memory that no file stands behind, zeroes; in huge pages where the system has some.
    pub fn anonymous(octets: usize) -> io::Result<Self> {
        let mapping = Self::new(octets, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        let start = mapping.start.as_ptr().addr();
        advise_huge_pages(start..start + octets);
        Ok(mapping)
    }

    /// What stands behind a descriptor, from `offset` on. `flags`: those of `mmap(2)` beside `MAP_SHARED`.
    pub fn shared(of: BorrowedFd<'_>, offset: libc::off_t, octets: usize, flags: c_int) -> io::Result<Self> {
        Self::new(octets, libc::MAP_SHARED | flags, of.as_raw_fd(), offset)
    }

    fn new(octets: usize, flags: c_int, descriptor: RawFd, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel checks descriptor and length.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), octets, protection, flags, descriptor, offset) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(memory.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, octets })
    }

    /// How much there is, octets.
    pub const fn octets(&self) -> usize {
        self.octets
    }

    /// Where it is: what the kernel is told of it.
    pub fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// The word of 32 bits at an offset, which both sides reach with single accesses. `None`: not within, or not aligned.
    #[inline]
    pub fn word(&self, at: usize) -> Option<&AtomicU32> {
        let word = self.aligned(at)?;
        // SAFETY: within the mapping, which lives as long as this borrow, and aligned. The kernel reaches words with single
        // accesses only, and octets that hold one are borrowed only while nobody writes to it (`slice`).
        Some(unsafe { AtomicU32::from_ptr(word) })
    }

    /// The same with 64 bits.
    #[inline]
    pub fn long_word(&self, at: usize) -> Option<&AtomicU64> {
        let word = self.aligned(at)?;
        // SAFETY: as in `word`.
        Some(unsafe { AtomicU64::from_ptr(word) })
    }

    /// Octets from an offset on. `None`: not all of them are within.
    ///
    /// # Safety
    ///
    /// While the borrow lives nobody writes to them: the kernel has handed them over and has them back only after it.
    #[inline]
    pub unsafe fn slice(&self, at: usize, octets: usize) -> Option<&[u8]> {
        let start = self.at(at, octets)?;
        // SAFETY: within the mapping, which lives as long as this borrow; the caller sees to it that nobody writes there.
        Some(unsafe { std::slice::from_raw_parts(start, octets) })
    }

    #[inline]
    fn aligned<T>(&self, at: usize) -> Option<*mut T> {
        let found = self.at(at, size_of::<T>())?.cast::<T>();
        found.is_aligned().then_some(found)
    }

    #[inline]
    fn at(&self, at: usize, octets: usize) -> Option<*mut u8> {
        let is_within = at.checked_add(octets).is_some_and(|end| end <= self.octets);
        // SAFETY: at most the mapping's end, as just checked.
        is_within.then(|| unsafe { self.start.as_ptr().add(at) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, with its own length; nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast::<c_void>(), self.octets) };
    }
}

/// The other side of a mapping, for tests: what stands there in the kernel's place, on a thread of its own. It reads and
/// writes what it was handed over with plain accesses, as the kernel does, so that Miri and `ThreadSanitizer` see a hand-over
/// that orders nothing.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub struct OtherSide {
    start: NonNull<u8>,
    octets: usize,
}

// SAFETY: it is used while the mapping lives, by tests that join its thread before; accesses are ordered by atomic words.
#[cfg(test)]
unsafe impl Send for OtherSide {}

#[cfg(test)]
impl OtherSide {
    pub fn of(memory: &Mapping) -> Self {
        Self { start: memory.start, octets: memory.octets }
    }

    /// A word that both sides reach.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.octets);
        // SAFETY: within and aligned, as just checked.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    pub fn write(&self, at: usize, octets: &[u8]) {
        assert!(at + octets.len() <= self.octets);
        // SAFETY: within, as just checked; the source is no part of a mapping.
        unsafe { std::ptr::copy_nonoverlapping(octets.as_ptr(), self.start.as_ptr().add(at), octets.len()) };
    }

    pub fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= self.octets);
        // SAFETY: within, as just checked; octets need no alignment.
        unsafe { self.start.as_ptr().add(at).cast::<[u8; N]>().read() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_does_not_lie_within_is_not_there() {
        const OCTETS: usize = 8192;
        let memory = Mapping::anonymous(OCTETS).unwrap();
        for (at, octets, is_there) in [
            (0, 0, true),
            (0, OCTETS, true),
            (0, OCTETS + 1, false),
            (1, OCTETS, false),
            (OCTETS - 1, 1, true),
            (OCTETS, 0, true),
            (OCTETS, 1, false),
            (OCTETS + 1, 0, false),
            (usize::MAX, 0, false),
            (usize::MAX, 1, false),
            (1, usize::MAX, false),
        ] {
            // SAFETY: nobody else writes there.
            let found = unsafe { memory.slice(at, octets) };
            assert_eq!(found.map(<[u8]>::len), is_there.then_some(octets), "{octets} octets at {at}");
            assert!(found.unwrap_or_default().iter().all(|&octet| octet == 0));
        }
        for (at, is_word, is_long_word) in [
            (0, true, true),
            (4, true, false),
            (1, false, false),
            (2, false, false),
            (OCTETS - 8, true, true),
            (OCTETS - 4, true, false),
            (OCTETS - 3, false, false),
            (OCTETS, false, false),
            (usize::MAX - 3, false, false),
        ] {
            let added = memory.word(at).map(|word| word.fetch_add(1, Ordering::Relaxed));
            assert_eq!(added.is_some(), is_word, "word at {at}");
            let added = memory.long_word(at).map(|word| word.fetch_add(1, Ordering::Relaxed));
            assert_eq!(added.is_some(), is_long_word, "long word at {at}");
        }
        // SAFETY: as before.
        assert_eq!(unsafe { memory.slice(4, 4) }, Some(&1_u32.to_ne_bytes()[..]));
    }

    #[test]
    fn advice_on_pages_changes_nothing() {
        // Two huge pages, wherever they begin.
        let memory = Mapping::anonymous(6 << 20).unwrap();
        memory.word(4 << 20).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(memory.word(4 << 20).unwrap().load(Ordering::Relaxed), 7);
        advise_huge_pages(1..2);
    }
}
