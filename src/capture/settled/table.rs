//! The shared table, on our side: where flows lie in it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::word;
use crate::capture::mapping::Mapping;

/// Words of a key; the last one says whether there is a flow.
pub const KEY_WORDS: usize = 5;
pub const ENTRY_OCTETS: usize = 128;
/// Entries that a flow may lie in, from that of its hash on.
pub const PROBES: u32 = 8;
/// The digits of the golden ratio, odd.
pub const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiply and fold, word by word, of those words that may be other than zero, and once more: neighbouring ports are to
/// lie apart. Who aims at one place keeps flows out of the
/// table, no more: their packets come up.
pub fn hash(seed: u64, words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().chain([0]).fold(seed, |hash, word| {
        let product = (hash ^ word).wrapping_mul(MULTIPLIER);
        product ^ product >> 32
    })
}

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

/// The table.
#[derive(Debug)]
pub struct Table {
    memory: Mapping,
    /// Of each entry the place of its flow's hash, and 1; 0: free.
    homes: Vec<u32>,
    mask: u32,
}

impl Table {
    /// Over the memory of `entries`, a power of two.
    pub fn new(memory: Mapping, entries: u32) -> Self {
        Self { memory, homes: vec![0; entries as usize], mask: entries - 1 }
    }

    /// Takes an entry for a flow of that hash; `None` where all that it may lie in are taken. It is not found yet.
    pub fn take(&mut self, hash: u64) -> Option<Place> {
        let home = hash as u32 & self.mask;
        let place = self.probes(home).find(|&place| self.home_of(place) == 0)?;
        if let Some(of) = self.homes.get_mut(place as usize) {
            *of = home + 1;
        }
        self.set_reach(home);
        Some(Place(place))
    }

    /// Lets the filter find it.
    pub fn show(&self, place: Place, key: &[u64; KEY_WORDS]) {
        let &[ref addresses @ .., last] = key;
        for (at, word) in (0..).step_by(8).zip(addresses) {
            self.store(place, at, *word);
        }
        // What makes it a key comes last.
        if let Some(word) = self.word(place, word::LAST_OF_KEY) {
            word.store(last, Ordering::Release);
        }
    }

    /// Lets the filter find it no more.
    pub fn hide(&self, place: Place) {
        self.store(place, word::LAST_OF_KEY, 0);
    }

    /// Gives the entry back, which was hidden for a while.
    pub fn free(&mut self, place: Place) {
        let Some(of) = self.homes.get_mut(place.0 as usize) else { return };
        let home = std::mem::take(of).wrapping_sub(1);
        self.set_reach(home);
    }

    /// Says what is of interest in a flow's packets.
    pub fn set_flags(&self, place: Place, flags: u32) {
        let reach = self.load(place, word::FLAGS) >> 32;
        self.store(place, word::FLAGS, reach << 32 | u64::from(flags));
    }

    pub fn load(&self, place: Place, at: i16) -> u64 {
        self.word(place, at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    pub fn store(&self, place: Place, at: i16, value: u64) {
        if let Some(word) = self.word(place, at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn word(&self, place: Place, at: i16) -> Option<&AtomicU64> {
        self.memory.long_word(place.0 as usize * ENTRY_OCTETS + usize::from(at.unsigned_abs()))
    }

    fn probes(&self, home: u32) -> impl Iterator<Item = u32> + use<> {
        let mask = self.mask;
        (0..PROBES).map(move |distance| home.wrapping_add(distance) & mask)
    }

    fn home_of(&self, place: u32) -> u32 {
        self.homes.get(place as usize).copied().unwrap_or(u32::MAX)
    }

    /// How far flows of this hash lie from it: as far as the filter looks.
    fn set_reach(&self, home: u32) {
        let farthest = (0..).zip(self.probes(home)).filter(|&(_, place)| self.home_of(place) == home + 1).last();
        let reach = farthest.map_or(0, |(distance, _)| distance);
        let flags = self.load(Place(home), word::FLAGS) & u64::from(u32::MAX);
        self.store(Place(home), word::FLAGS, reach << 32 | flags);
    }
}
