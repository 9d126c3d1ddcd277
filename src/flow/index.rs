//! Finds positions by hash: open addressing with linear probing, one slot of 8 octets a flow.
//!
//! A slot holds the upper half of the hash and the position plus 1; 0 is empty. A larger index takes over the slots of the
//! smaller one a few at a time, so that no packet waits for all of them.

use prefetch_index::prefetch_index;

/// The index of one flow table.
#[derive(Debug)]
pub(super) struct Index {
    slots: Slots,
    /// The smaller index before this one, as far as it has not been moved.
    old: Option<Old>,
    len: usize,
}

/// Position of nothing.
const NONE: u32 = u32::MAX;

/// Slots of a new index.
const FIRST: usize = 1024;
/// Old slots that a new flow moves, at least: the move ends long before the next one begins.
const STEP: usize = 16;

impl Index {
    pub(super) fn new() -> Self {
        Self { slots: Slots::new(FIRST), old: None, len: 0 }
    }

    /// Asks for the first slot of a hash, so that a later look meets it in the cache.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch_index(&self.slots.0, self.slots.home(hash));
    }

    /// Where the flow of a hash most likely is: told from the first slots, without a branch that a processor could foretell
    /// wrongly, and from those behind them only where these are full. May be any number.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> u32 {
        let home = self.slots.home(hash);
        let Some(near) = self.slots.0.get(home..home + NEAR) else { return 0 };
        let mut found = 0;
        for &slot in near.iter().rev() {
            found = std::hint::select_unpredictable(slot >> 32 == hash >> 32, slot as u32, found);
        }
        if found == 0 && near.last() != Some(&0) { self.guess_far(hash) } else { found.wrapping_sub(1) }
    }

    #[cold]
    fn guess_far(&self, hash: u64) -> u32 {
        self.slots.find(hash, |_| true).unwrap_or(NONE)
    }

    /// The position that `is_it` among those of a hash.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(old) = &self.old
            && old.holds(hash)
            && let Some(found) = old.slots.find(hash, &is_it)
        {
            return Some(found);
        }
        self.slots.find(hash, &is_it)
    }

    /// Adds a position that is not there.
    pub(super) fn insert(&mut self, hash: u64, position: u32) {
        // A load of at most 3/4 keeps linear probing short.
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.move_slots(usize::MAX);
            let larger = Slots::new(self.slots.len() * 2);
            self.old = Some(Old::new(std::mem::replace(&mut self.slots, larger)));
        }
        self.move_slots(STEP);
        self.slots.insert(hash, position);
        self.len += 1;
    }

    /// Takes a position out.
    pub(super) fn remove(&mut self, hash: u64, position: u32) {
        let is_it = |found| found == position;
        let slots = match &mut self.old {
            Some(old) if old.holds(hash) && old.slots.find(hash, is_it).is_some() => &mut old.slots,
            _ => &mut self.slots,
        };
        slots.remove(hash, position);
        self.len -= 1;
    }

    /// Memory held, octets.
    pub(super) fn octets(&self) -> usize {
        let old = self.old.as_ref().map_or(0, |old| old.slots.0.len());
        (self.slots.0.len() + old) * size_of::<u64>()
    }

    /// Moves at least `count` slots of the old index, if there is one.
    fn move_slots(&mut self, count: usize) {
        let Some(old) = &mut self.old else { return };
        for moved in 1.. {
            let slot = old.next();
            if slot != 0 {
                self.slots.insert(slot, (slot as u32).wrapping_sub(1));
            }
            if old.is_empty() {
                self.old = None;
                return;
            }
            // A run is moved whole, since what looks for its members starts at its front.
            if slot == 0 && moved >= count {
                return;
            }
        }
    }
}

/// An index that is being moved away, from `start`, which is behind an empty slot, round to where it began.
#[derive(Debug)]
struct Old {
    slots: Slots,
    start: usize,
    moved: usize,
}

impl Old {
    fn new(slots: Slots) -> Self {
        let empty = slots.0.iter().position(|&slot| slot == 0).unwrap_or(0);
        let start = (empty + 1) & (slots.len() - 1);
        Self { slots, start, moved: 0 }
    }

    /// Whether a hash's slots have not been moved.
    #[inline]
    fn holds(&self, hash: u64) -> bool {
        self.slots.home(hash).wrapping_sub(self.start) & (self.slots.len() - 1) >= self.moved
    }

    fn next(&mut self) -> u64 {
        let place = (self.start + self.moved) & (self.slots.len() - 1);
        self.moved += 1;
        self.slots.get(place)
    }

    fn is_empty(&self) -> bool {
        self.moved >= self.slots.len()
    }
}

/// Slots, a power of two of them, then some that are always empty for [`Index::guess`].
#[derive(Debug)]
struct Slots(Vec<u64>);

/// Slots that a guess looks at: within them nine flows of ten are found at the highest load.
const NEAR: usize = 4;

impl Slots {
    fn new(len: usize) -> Self {
        Self(vec![0; len + NEAR - 1])
    }

    #[inline]
    fn len(&self) -> usize {
        self.0.len() - (NEAR - 1)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.len() - 1)
    }

    #[inline]
    fn get(&self, place: usize) -> u64 {
        self.0.get(place).copied().unwrap_or(0)
    }

    #[inline]
    fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut place = self.home(hash);
        loop {
            let slot = self.get(place);
            if slot == 0 {
                return None;
            }
            let position = (slot as u32).wrapping_sub(1);
            if slot >> 32 == hash >> 32 && is_it(position) {
                return Some(position);
            }
            place = (place + 1) & (self.len() - 1);
        }
    }

    fn insert(&mut self, hash: u64, position: u32) {
        let mask = self.len() - 1;
        let mut place = self.home(hash);
        while let Some(slot) = self.0.get_mut(place) {
            if *slot == 0 {
                *slot = (hash >> 32) << 32 | u64::from(position + 1);
                return;
            }
            place = (place + 1) & mask;
        }
    }

    /// Takes a slot out and moves later ones of the same run back, so that no tombstones gather.
    fn remove(&mut self, hash: u64, position: u32) {
        let mask = self.len() - 1;
        let mut hole = self.home(hash);
        while let Some(&slot) = self.0.get(hole) {
            if slot == 0 {
                return;
            }
            if slot as u32 == position + 1 {
                break;
            }
            hole = (hole + 1) & mask;
        }
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let slot = self.get(place);
            if slot == 0 {
                break;
            }
            let wanted = self.home(slot);
            // The slot may fill the hole if its home does not lie between the two, counted round the end.
            if place.wrapping_sub(wanted) & mask >= place.wrapping_sub(hole) & mask {
                if let Some(empty) = self.0.get_mut(hole) {
                    *empty = slot;
                }
                hole = place;
            }
        }
        if let Some(empty) = self.0.get_mut(hole) {
            *empty = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::flow::tests_support::packet;
    use crate::flow::{FlowKey, HashSecrets};

    /// Spread, and the same every time.
    fn hash(number: u32) -> u64 {
        (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn agrees_with_a_map_while_it_grows() {
        const STEPS: u32 = if cfg!(miri) { 6000 } else { 200_000 };
        let mut index = Index::new();
        let mut map = HashMap::new();
        let mut state = 1_u64;
        let mut moving = 0;
        for step in 0..STEPS {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Three of four steps add, so that it grows while flows go.
            if state >> 62 != 0 {
                index.insert(hash(step), step);
                map.insert(step, hash(step));
            } else if let Some((&position, &hash)) = map.get_key_value(&((state >> 20) as u32 % (step + 1))) {
                index.remove(hash, position);
                map.remove(&position);
            }
            moving += u32::from(index.old.is_some());
            let asked = (state >> 16) as u32 % (step + 1);
            let found = index.find(hash(asked), |position| position == asked);
            assert_eq!(found, map.contains_key(&asked).then_some(asked), "step {step}");
        }
        assert!(moving > STEPS / 200, "{moving} steps fell into a move");
        for number in 0..STEPS {
            let found = index.find(hash(number), |position| position == number);
            assert_eq!(found, map.contains_key(&number).then_some(number));
        }
        assert_eq!(index.len, map.len());
    }

    #[test]
    fn hashes_that_begin_alike_stay_apart() {
        let mut index = Index::new();
        let same = |number: u32| 7 << 32 | u64::from(number);
        for number in 0..2000 {
            index.insert(same(number), number);
        }
        for number in (0..2000).step_by(3) {
            index.remove(same(number), number);
        }
        for number in 0..2000 {
            let found = index.find(same(number), |position| position == number);
            assert_eq!(found, (number % 3 != 0).then_some(number));
        }
    }

    /// Slots that the look-ups of these keys pass in a table of that seed: all together, and those of the worst.
    fn passed(keys: &[FlowKey], seed: u64) -> (usize, usize) {
        let secrets = HashSecrets::new(seed);
        let mut index = Index::new();
        for (key, position) in keys.iter().zip(0..) {
            index.insert(key.hash(&secrets), position);
        }
        index.move_slots(usize::MAX);
        let slots = &index.slots;
        let cost = |(key, number): (&FlowKey, u32)| {
            let home = slots.home(key.hash(&secrets));
            (1..=slots.len()).find(|cost| slots.get((home + cost - 1) & (slots.len() - 1)) as u32 == number).unwrap()
        };
        keys.iter().zip(1..).map(cost).fold((0, 0), |(sum, most), cost| (sum + cost, most.max(cost)))
    }

    /// Whoever knows the seed, as in a table without one, makes every look-up walk past all flows. What was chosen for one
    /// seed is spread under any other, and the daemon draws its own at each start.
    #[test]
    fn keys_chosen_to_collide_under_one_seed_are_spread_under_another() {
        const KNOWN: u64 = 0;
        const KEYS: usize = 3000;
        let secrets = HashSecrets::new(KNOWN);
        let keys = (0_u32..).map(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            FlowKey::of(&packet([10, a, b, 1], u16::from_be_bytes([c, d]), [198, 51, 100, 2], 443, 17), true).0
        });
        // The table will have 4096 slots: all flows want the same one.
        let chosen: Vec<_> = keys.filter(|key| (key.hash(&secrets) >> 32) & 4095 == 7).take(KEYS).collect();
        let (sum, most) = passed(&chosen, KNOWN);
        assert_eq!((sum, most), (KEYS * (KEYS + 1) / 2, KEYS), "one run of all of them");
        println!("{KEYS} chosen flows: {sum} slots passed where the seed is known");
        for seed in 1..=20 {
            let (sum, most) = passed(&chosen, seed);
            assert!(sum < 4 * KEYS, "{sum} slots for {KEYS} look-ups under seed {seed}");
            assert!(most < 200, "{most} slots for one look-up under seed {seed}");
            println!("{KEYS} chosen flows: {sum} slots passed under seed {seed}");
        }
    }

    #[test]
    fn most_guesses_are_right() {
        let mut index = Index::new();
        // The highest load: one more would make it grow.
        for number in 0..768 {
            index.insert(hash(number * 7919), number);
        }
        assert_eq!(index.slots.len(), 1024);
        let right = (0..768).filter(|&number| index.guess(hash(number * 7919)) == number).count();
        assert!(right > 600, "{right} of 768");
    }
}
