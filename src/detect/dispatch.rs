//! Picks the detectors that a payload can be for, by its first octets: most payloads are for none, and cost no call.
//!
//! Each detector lists what its payloads begin with ([`Begin`]). The patterns are sorted by the payload's first octet, so
//! that a payload is held against a handful of them, each a load, a mask and a comparison.

use super::{CarrierKind, Detector, REGISTRY};
use crate::wire::cursor::u64_at;

/// What a payload must show for a detector to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Anything.
    Any,
    /// Octets at the front, apart by spaces, each as two hexadecimal or eight binary digits, a dot for any digit:
    /// `"48 0000.... 65"`. Those that matter stand within eight octets of each other, the last of them in the first 32.
    Octets(&'static str),
    /// Either port.
    Port(u16),
    /// A segment of a stream whose opening was not seen: messages begin anywhere in it.
    MidStream,
}

/// A set of detectors, one bit each by its place in [`REGISTRY`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    fn with(self, detector: usize) -> Self {
        Self(self.0 | 1 << detector)
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The detectors, in the registry's order; each with the set of it alone.
    pub fn detectors(self) -> impl Iterator<Item = (Self, &'static dyn Detector)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let place = rest.trailing_zeros();
            let detector = REGISTRY.get(place as usize)?;
            rest &= rest - 1;
            Some((Self(1 << place), *detector))
        })
    }
}

/// Eight octets, some of whose bits are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pattern {
    at: usize,
    mask: u64,
    value: u64,
    set: Set,
}

/// Octets at a payload's front that patterns may look at.
const WINDOW: usize = 32;

impl Pattern {
    /// From its text; `None` where that is not as [`Begin::Octets`] says.
    fn parse(text: &str, set: Set) -> Option<Self> {
        let octets: Vec<(u8, u8)> = text.split(' ').map(octet).collect::<Option<_>>()?;
        let first = octets.iter().position(|(mask, _)| *mask != 0)?;
        let last = octets.iter().rposition(|(mask, _)| *mask != 0)?;
        // Near the end the window begins earlier, so that eight octets are there.
        let at = first.min(WINDOW - 8);
        if last >= at + 8 {
            return None;
        }
        let (mut mask, mut value) = (0, 0);
        for offset in at..at + 8 {
            let (of_mask, of_value) = octets.get(offset).copied().unwrap_or_default();
            mask = mask << 8 | u64::from(of_mask);
            value = value << 8 | u64::from(of_value);
        }
        Some(Self { at, mask, value, set })
    }

    fn fits(&self, octets: &[u8]) -> bool {
        u64_at(octets, self.at).is_some_and(|word| word & self.mask == self.value)
    }

    /// Whether a payload that begins with `first` may fit.
    fn may_begin_with(&self, first: u8) -> bool {
        self.at != 0 || (u64::from(first) << 56) & self.mask == self.value & (0xff << 56) & self.mask
    }
}

/// Each pattern is there once, for all who ask for it.
fn add(patterns: &mut Vec<Pattern>, pattern: Pattern) {
    match patterns.iter_mut().find(|known| Pattern { set: pattern.set, ..**known } == pattern) {
        Some(known) => known.set = known.set.union(pattern.set),
        None => patterns.push(pattern),
    }
}

/// Mask and value of one octet.
fn octet(text: &str) -> Option<(u8, u8)> {
    let bits = match text.len() {
        2 => 4,
        8 => 1,
        _ => return None,
    };
    text.chars().try_fold((0_u8, 0_u8), |(mask, value), digit| {
        let (of_mask, of_value) = match digit {
            '.' => (0, 0),
            _ => ((1 << bits) - 1, digit.to_digit(1 << bits)?),
        };
        Some((mask << (bits % 8) | of_mask, value << (bits % 8) | of_value as u8))
    })
}

/// The detectors that are shown what a carrier carries.
fn carried_by(carrier: CarrierKind) -> impl Iterator<Item = (Set, &'static dyn Detector)> {
    let placed = REGISTRY.iter().enumerate().map(|(place, detector)| (Set::default().with(place), *detector));
    placed.filter(move |(_, detector)| detector.about().carriers.contains(&carrier))
}

/// What one carrier's detectors ask for.
#[derive(Debug, Default)]
struct Table {
    any: Set,
    mid_stream: Set,
    ports: Vec<(u16, Set)>,
    /// By the payload's first octet.
    patterns: Vec<Vec<Pattern>>,
    /// Everyone: for those who took note of the flow before.
    all: Set,
}

impl Table {
    fn new(carrier: CarrierKind) -> Self {
        let mut table = Self::default();
        let mut patterns = Vec::new();
        for (set, detector) in carried_by(carrier) {
            table.all = table.all.union(set);
            for begin in detector.about().begins {
                match begin {
                    Begin::Any => table.any = table.any.union(set),
                    Begin::MidStream => table.mid_stream = table.mid_stream.union(set),
                    Begin::Port(port) => table.ports.push((*port, set)),
                    Begin::Octets(text) => {
                        if let Some(pattern) = Pattern::parse(text, set) {
                            add(&mut patterns, pattern);
                        }
                    }
                }
            }
        }
        let beginning_with = |first| patterns.iter().filter(|pattern| pattern.may_begin_with(first)).copied().collect();
        table.patterns = (0..=u8::MAX).map(beginning_with).collect();
        table
    }

    #[inline]
    fn of(&self, payload: &[u8], ports: [u16; 2], is_mid_stream: bool, known: Set) -> Set {
        let mut set = self.any.union(known.intersection(self.all));
        if is_mid_stream {
            set = set.union(self.mid_stream);
        }
        for (port, of_port) in &self.ports {
            if ports.contains(port) {
                set = set.union(*of_port);
            }
        }
        let mut padded = [0; WINDOW];
        let octets = payload.get(..WINDOW).unwrap_or_else(|| {
            for (to, from) in padded.iter_mut().zip(payload) {
                *to = *from;
            }
            &padded
        });
        let first = octets.first().copied().unwrap_or_default();
        for pattern in self.patterns.get(usize::from(first)).into_iter().flatten() {
            if pattern.fits(octets) {
                set = set.union(pattern.set);
            }
        }
        set
    }
}

/// The detectors by what they are shown.
#[derive(Debug)]
pub struct Dispatch {
    udp: Table,
    tcp: Table,
    ip: Vec<(u8, Set)>,
}

impl Dispatch {
    /// Of the [`REGISTRY`].
    #[must_use]
    pub fn new() -> Self {
        let all = |carrier| carried_by(carrier).fold(Set::default(), |all, (set, _)| all.union(set));
        let ip = (0..=u8::MAX).map(|protocol| (protocol, all(CarrierKind::Ip(protocol))));
        Self {
            udp: Table::new(CarrierKind::Udp),
            tcp: Table::new(CarrierKind::Tcp),
            ip: ip.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// Those for a UDP payload; `known` are those that took note of its flow before.
    #[must_use]
    #[inline]
    pub fn udp(&self, payload: &[u8], ports: [u16; 2], known: Set) -> Set {
        self.udp.of(payload, ports, false, known)
    }

    /// Those for a TCP segment, likewise; `is_mid_stream`: the stream's opening was not seen.
    #[must_use]
    #[inline]
    pub fn tcp(&self, payload: &[u8], ports: [u16; 2], is_mid_stream: bool, known: Set) -> Set {
        self.tcp.of(payload, ports, is_mid_stream, known)
    }

    /// Those for an IP protocol.
    #[must_use]
    pub fn ip(&self, protocol: u8) -> Set {
        self.ip.iter().find(|(of, _)| *of == protocol).map_or(Set::default(), |(_, set)| *set)
    }
}

impl Default for Dispatch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let set = Set::default().with(3);
        #[rustfmt::skip]
        let cases: &[(&str, &[u8], bool)] = &[
            ("01 00", &[1, 0, 7], true),
            ("01 00", &[1, 1, 7], false),
            ("0. 00", &[9, 0], true),
            ("0. 00", &[0x19, 0], false),
            ("0.00.0.. 02", &[0b0100_1011, 2], true),
            ("0.00.0.. 02", &[0b0101_1011, 2], false),
            (".. .. .. .. .. .. .. .. .. 20", &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0x20], true),
            (".. .. .. .. .. .. .. .. .. 20", &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0x21], false),
        ];
        for (text, octets, fits) in cases {
            let pattern = Pattern::parse(text, set).unwrap();
            let padded = [octets, &[0; WINDOW][..]].concat();
            assert_eq!(pattern.fits(&padded), *fits, "{text} on {octets:?}");
            assert!(pattern.may_begin_with(octets[0]) || !fits, "{text} on {octets:?}");
        }
        for text in ["", "0", "0g", "..", "012", "00 .. .. .. .. .. .. .. 00", "0000000x"] {
            assert_eq!(Pattern::parse(text, set), None, "{text:?}");
        }
    }

    #[test]
    fn every_detector_can_be_reached() {
        assert!(REGISTRY.len() <= 64, "a set has 64 places");
        for detector in REGISTRY {
            let about = detector.about();
            assert!(!about.begins.is_empty(), "{}", about.name);
            for begin in about.begins {
                if let Begin::Octets(text) = begin {
                    assert!(Pattern::parse(text, Set::default()).is_some(), "{}: {text:?}", about.name);
                }
            }
        }
    }

    #[test]
    fn random_payloads_cost_few_calls() {
        use crate::detect::tests_support::ciphertext;
        let dispatch = Dispatch::new();
        let calls = |seed| dispatch.udp(&ciphertext(seed, 64), [40_000, 40_001], Set::default()).len();
        let mean = f64::from((0..2000).map(calls).sum::<u32>()) / 2000.0;
        assert!(mean < 2.5, "{mean} detectors a datagram");
    }
}
