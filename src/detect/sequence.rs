//! A counter that only its own protocol would keep counting: used by every detector that joins a tunnel mid-stream.

use super::Slot;

/// What a packet's identifier and counter say, compared with those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The first packet, or one that broke the series: counting starts anew.
    Started,
    /// The same identifier, and a counter that moved on (or a little back, out of order).
    Counted,
    /// Another identifier with a young counter: a rekey.
    Rekeyed,
    /// The same packet again: says nothing.
    Repeated,
}

/// Packets that may be missing between two looked at: detectors see samples of long flows.
pub(super) const MAX_GAP: u64 = 1 << 16;

/// How far back a packet may come late (RFC 4303 3.4.3 suggests windows of 64; WireGuard's is 8,192).
const MAX_LATE: u64 = 8192;

/// A counter below this is young.
const YOUNG: u64 = 64;

impl Slot {
    /// Takes the next identifier (`a`) and counter (`b`); `hits` is the number of consistent packets so far.
    pub(super) fn step(&mut self, id: u64, counter: u64) -> Step {
        self.step_within(MAX_GAP, id, counter)
    }

    /// The same, with a bound on how far the counter may jump.
    pub(super) fn step_within(&mut self, max_gap: u64, id: u64, counter: u64) -> Step {
        if self.hits == 0 {
            self.start(id, counter);
            return Step::Started;
        }
        if id == self.a {
            if counter == self.b {
                return Step::Repeated;
            }
            let fits = if counter > self.b { counter - self.b <= max_gap } else { self.b - counter <= MAX_LATE };
            if fits {
                self.b = self.b.max(counter);
                self.hits = self.hits.saturating_add(1);
                return Step::Counted;
            }
        } else if counter < YOUNG && self.hits >= 3 {
            self.a = id;
            self.b = counter;
            return Step::Rekeyed;
        }
        self.start(id, counter);
        Step::Started
    }

    fn start(&mut self, id: u64, counter: u64) {
        *self = Self { a: id, b: counter, hits: 1, c: 0 };
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
            ("late", 7, 90, Step::Counted, 3),
            ("gap", 7, 5000, Step::Counted, 4),
            ("rekey", 9, 0, Step::Rekeyed, 4),
            ("after the rekey", 9, 1, Step::Counted, 5),
            ("another identifier, old counter", 8, 70_000, Step::Started, 1),
            ("too far ahead", 8, 200_000, Step::Started, 1),
            ("too far back", 8, 100_000, Step::Started, 1),
            ("another young one without a series", 5, 1, Step::Started, 1),
        ];
        for (name, id, counter, step, hits) in steps {
            assert_eq!((slot.step(id, counter), slot.hits), (step, hits), "{name}");
        }
    }
}
