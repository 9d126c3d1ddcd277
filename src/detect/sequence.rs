//! A counter that only its own protocol would keep counting: used by every detector that joins a tunnel mid-stream.
//!
//! Identifiers with numbers behind them are common: lengths, clocks, text. A series therefore counts only packets whose
//! number is a little above the one before (a length walks, a clock leaps, text stands still), and, where the protocol
//! encrypts what follows, whose octets there differ from those before. Ciphertext repeats an octet in its place once in
//! 256; two of eight at once is chance in 1 of 2,400 packets, while structured content does it all the time. That check
//! can only refute: nothing is called a tunnel for looking random.

use super::Slot;

/// What a packet's identifier and counter say, compared with those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The first packet, or one that broke the series: counting starts anew.
    Started,
    /// The same identifier, and a counter that moved on by little.
    Counted,
    /// Late, or behind packets that were not looked at: neither for the series nor against it.
    Tolerated,
    /// Another identifier with a young counter: a rekey.
    Rekeyed,
    /// The same packet again: says nothing.
    Repeated,
}

/// What follows a counter, as captured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Ciphertext: never the same twice.
    Encrypted(&'a [u8]),
    /// Anything.
    Open,
}

/// A counter moves on by at most this much between two packets in a row: some may be lost.
pub(super) const NEAR: u64 = 16;

/// Detectors see samples of long flows: behind a leap of up to this the series goes on, without a point for it.
const MAX_GAP: u64 = 1 << 16;

/// How far back a packet may come late (RFC 4303 3.4.3 suggests windows of 64).
const MAX_LATE: u64 = 64;

/// A counter below this is young.
const YOUNG: u64 = 64;

/// Octets of ciphertext that are compared.
const COMPARED: usize = 8;

/// So many of them must be captured.
const LEAST_COMPARED: usize = 4;

impl Slot {
    /// Takes the next identifier (`a`) and counter (`b`); `hits` is the number of packets of the series so far.
    pub(super) fn step(&mut self, id: u64, counter: u64, content: Content<'_>) -> Step {
        self.step_within(NEAR, id, counter, content)
    }

    /// The same, with a bound of its own on how far the counter may move on.
    pub(super) fn step_within(&mut self, near: u64, id: u64, counter: u64, content: Content<'_>) -> Step {
        let (octets, known) = compared(content);
        let before = std::mem::replace(&mut self.content, octets);
        if self.hits == 0 {
            return self.start(id, counter);
        }
        if id != self.a {
            if counter < YOUNG && self.hits >= 3 {
                (self.a, self.b) = (id, counter);
                return Step::Rekeyed;
            }
            return self.start(id, counter);
        }
        if counter == self.b {
            // Only the very packet may have the very number.
            return if octets == before { Step::Repeated } else { self.start(id, counter) };
        }
        if !is_fresh(content, known, before, octets) {
            return self.start(id, counter);
        }
        if counter > self.b && counter - self.b <= near {
            self.b = counter;
            self.hits = self.hits.saturating_add(1);
            return Step::Counted;
        }
        self.misses = self.misses.saturating_add(1);
        let ahead = counter > self.b;
        let fits = if ahead { counter - self.b <= MAX_GAP } else { self.b - counter <= MAX_LATE };
        if !fits || self.misses > self.hits {
            return self.start(id, counter);
        }
        self.b = self.b.max(counter);
        Step::Tolerated
    }

    fn start(&mut self, id: u64, counter: u64) -> Step {
        *self = Self { a: id, b: counter, hits: 1, content: self.content, ..Self::default() };
        Step::Started
    }
}

/// The octets to compare, and how many there are.
fn compared(content: Content<'_>) -> (u64, usize) {
    let Content::Encrypted(octets) = content else { return (0, 0) };
    let mut first = [0; COMPARED];
    for (to, octet) in first.iter_mut().zip(octets) {
        *to = *octet;
    }
    (u64::from_le_bytes(first), octets.len().min(COMPARED))
}

/// Whether ciphertext differs as ciphertext does.
fn is_fresh(content: Content<'_>, known: usize, before: u64, octets: u64) -> bool {
    match content {
        Content::Open => true,
        Content::Encrypted(_) if known < LEAST_COMPARED => false,
        Content::Encrypted(_) => {
            let different = before ^ octets;
            different.to_le_bytes().iter().take(known).filter(|octet| **octet == 0).count() < 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let mut slot = Slot::default();
        let steps = [
            ("first", 7, 100, Step::Started, 1),
            ("next", 7, 101, Step::Counted, 2),
            ("again", 7, 101, Step::Repeated, 2),
            ("one lost", 7, 103, Step::Counted, 3),
            ("late", 7, 102, Step::Tolerated, 3),
            ("not looked at for a while", 7, 5000, Step::Tolerated, 3),
            ("next", 7, 5001, Step::Counted, 4),
            ("rekey", 9, 0, Step::Rekeyed, 4),
            ("after the rekey", 9, 1, Step::Counted, 5),
            ("another identifier, old counter", 8, 70_000, Step::Started, 1),
            ("too far ahead", 8, 200_000, Step::Started, 1),
            ("too far back", 8, 100_000, Step::Started, 1),
            ("another young one without a series", 5, 1, Step::Started, 1),
        ];
        for (name, id, counter, step, hits) in steps {
            assert_eq!((slot.step(id, counter, Content::Open), slot.hits), (step, hits), "{name}");
        }
    }

    #[test]
    fn a_clock_a_length_and_a_constant_are_no_counter() {
        let clock = (0..32_u64).map(|n| n * 1000).collect::<Vec<_>>();
        let length = (0..32_u64).map(|n| 40 + (n * 7) % 23).collect();
        let constant = vec![9; 32];
        for (name, numbers) in [("clock", clock), ("length", length), ("constant", constant)] {
            let mut slot = Slot::default();
            let mut most = 0;
            for (turn, number) in numbers.into_iter().enumerate() {
                let content = (turn as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
                slot.step(1, number, Content::Encrypted(&content));
                most = most.max(slot.hits);
            }
            assert!(most <= 4, "{name}: {most} in a row");
        }
    }

    #[test]
    fn content_that_repeats_itself_is_no_ciphertext() {
        let texts: [&[u8]; 4] = [b"state 17 up", b"state 18 up", b"abcd", b"abc"];
        for text in texts {
            let mut slot = Slot::default();
            for counter in 0..9 {
                slot.step(1, counter, Content::Encrypted(text));
            }
            assert_eq!(slot.hits, 1, "{text:?}");
        }
    }
}
