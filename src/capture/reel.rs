//! Turns frames into a reel: held in memory and played in a loop, every round later than the one before, so that
//! flows stay open. What `linewarden bench` and the benches measure on.

use crate::capture::BATCH;
use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId, LinkType, VlanTag};

/// Why frames could not be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReelError {
    /// More octets than wanted in memory.
    #[error(
        "{frames} frames take {octets} octets of memory, more than the {most} that are allowed: fewer flows, fewer packets or a lower snap length fit"
    )]
    TooLarge {
        /// Frames so far.
        frames: usize,
        /// What they and the next would take, octets.
        octets: usize,
        /// The bound, octets.
        most: usize,
    },
    /// No frame.
    #[error("there is no frame to play")]
    Empty,
}

/// The most memory that a reel takes, octets.
pub const MOST_OCTETS: usize = 4 << 30;

/// Frames begin on cache lines of their own.
const ALIGNMENT: usize = 64;

/// Frames in memory, side by side as in a ring.
#[derive(Clone, Debug)]
pub struct Reel {
    octets: Vec<u8>,
    entries: Vec<Entry>,
    snap_length: usize,
    earliest: Timestamp,
    latest: Timestamp,
}

/// Half a cache line: the frames of ten million flows fit into memory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Timestamp,
    /// In units of [`ALIGNMENT`].
    start: u32,
    len: u32,
    wire_len: u32,
    interface: InterfaceId,
    link: LinkType,
    stripped_vlan: Option<VlanTag>,
}

impl Reel {
    /// An empty one that keeps at most `snap_length` octets of each frame.
    #[must_use]
    pub const fn new(snap_length: u32) -> Self {
        Self {
            octets: Vec::new(),
            entries: Vec::new(),
            snap_length: snap_length as usize,
            earliest: Timestamp::MAX,
            latest: Timestamp::ZERO,
        }
    }

    /// Adds a copy of a frame; its number is not kept.
    pub fn push(&mut self, frame: &Frame<'_>) -> Result<(), ReelError> {
        let data = frame.data.get(..self.snap_length).unwrap_or(frame.data);
        let octets = self.held_octets() + size_of::<Entry>() + data.len().next_multiple_of(ALIGNMENT);
        if octets > MOST_OCTETS {
            return Err(ReelError::TooLarge { frames: self.entries.len(), octets, most: MOST_OCTETS });
        }
        let start = (self.octets.len() / ALIGNMENT) as u32;
        self.octets.extend_from_slice(data);
        self.octets.resize(self.octets.len().next_multiple_of(ALIGNMENT), 0);
        self.entries.push(Entry {
            at: frame.at,
            start,
            len: data.len() as u32,
            wire_len: frame.wire_len,
            interface: frame.interface,
            link: frame.link,
            stripped_vlan: frame.stripped_vlan,
        });
        self.earliest = self.earliest.min(frame.at);
        self.latest = self.latest.max(frame.at);
        Ok(())
    }

    /// Frames of one round.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory that the frames take, octets.
    #[must_use]
    pub const fn held_octets(&self) -> usize {
        self.octets.len() + self.entries.len() * size_of::<Entry>()
    }

    /// Starts at the first frame.
    pub fn play(&self) -> Result<Player<'_>, ReelError> {
        let Some(first) = self.entries.first() else { return Err(ReelError::Empty) };
        let span = self.latest.since(self.earliest).as_nanos() as u64;
        let gaps = self.entries.len() as u64 - 1;
        // The round's end is one mean gap behind its last frame.
        let round = span + span.checked_div(gaps).unwrap_or(0).max(1);
        let frames = [self.frame(first, 0, 0); BATCH];
        Ok(Player { reel: self, next: 0, number: 0, shift: 0, round, frames })
    }

    #[inline]
    fn frame(&self, entry: &Entry, shift: u64, number: u64) -> Frame<'_> {
        let start = entry.start as usize * ALIGNMENT;
        Frame {
            at: Timestamp::from_nanos(entry.at.as_nanos().saturating_add(shift)),
            number,
            wire_len: entry.wire_len,
            interface: entry.interface,
            link: entry.link,
            stripped_vlan: entry.stripped_vlan,
            data: self.octets.get(start..start + entry.len as usize).unwrap_or_default(),
        }
    }
}

/// A place in a reel, and the time that has passed.
#[derive(Clone, Debug)]
pub struct Player<'a> {
    reel: &'a Reel,
    next: usize,
    number: u64,
    /// Nanoseconds that this round is later than the first, and the length of one round.
    shift: u64,
    round: u64,
    frames: [Frame<'a>; BATCH],
}

impl<'a> Player<'a> {
    /// The next frames, at most `most` and never more than [`BATCH`]; behind the last frame comes the first, later.
    #[inline]
    pub fn batch(&mut self, most: u64) -> &[Frame<'a>] {
        let len = usize::try_from(most).unwrap_or(BATCH).min(BATCH);
        let Some(frames) = self.frames.get_mut(..len) else { return &[] };
        for frame in &mut *frames {
            let entry = if let Some(entry) = self.reel.entries.get(self.next) {
                entry
            } else {
                self.shift += self.round;
                self.next = 0;
                let Some(entry) = self.reel.entries.first() else { return &[] };
                entry
            };
            self.next += 1;
            self.number += 1;
            *frame = self.reel.frame(entry, self.shift, self.number);
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(at: u64, data: &[u8]) -> Frame<'_> {
        Frame {
            at: Timestamp::from_nanos(at),
            number: 9,
            wire_len: data.len() as u32,
            interface: InterfaceId(3),
            link: LinkType::RawIp,
            stripped_vlan: None,
            data,
        }
    }

    #[test]
    fn plays_in_a_loop_with_times_moving_on() {
        let mut reel = Reel::new(2);
        for (at, data) in [(100, &[1, 2, 3][..]), (110, &[4]), (120, &[])] {
            reel.push(&frame(at, data)).unwrap();
        }
        let mut player = reel.play().unwrap();
        let mut seen = Vec::new();
        for most in [2, 5] {
            seen.extend(player.batch(most).iter().map(|f| (f.number, f.at.as_nanos(), f.wire_len, f.data.to_vec())));
        }
        let expected = [
            (1, 100, 3, vec![1, 2]),
            (2, 110, 1, vec![4]),
            (3, 120, 0, vec![]),
            (4, 130, 3, vec![1, 2]),
            (5, 140, 1, vec![4]),
            (6, 150, 0, vec![]),
            (7, 160, 3, vec![1, 2]),
        ];
        assert_eq!(seen, expected);
        assert_eq!(player.batch(u64::MAX).len(), BATCH);
    }

    #[test]
    fn an_entry_is_half_a_cache_line() {
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[test]
    fn an_empty_reel_cannot_be_played() {
        assert!(matches!(Reel::new(64).play(), Err(ReelError::Empty)));
    }
}
