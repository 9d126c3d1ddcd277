//! How often chance looks like a tunnel: random datagrams, the first bits that each detector asks for made to fit, in
//! flows of 32 whose directions take turns. None may become likely; what is possible is printed.
//!
//! `cargo test --test chance -- --nocapture` prints the table; `LINEWARDEN_NOISE` sets another number than 10 million each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use linewarden::detect::{About, Begin, Carrier, CarrierKind, Detector, Findings, REGISTRY, Segment};
use linewarden::flow::Direction;
use linewarden::time::Timestamp;
use linewarden::wire::TcpFlags;

/// Datagrams for each detector, carrier and beginning together, unless `LINEWARDEN_NOISE` says otherwise.
const DATAGRAMS: u64 = 10_000_000;
const PER_FLOW: u64 = 32;
const LONGEST: usize = 320;
/// Lengths that protocols have for their own (WireGuard's messages among them) come more often than by chance.
const LENGTHS: [usize; 8] = [32, 64, 80, 92, 96, 128, 148, 256];

/// Xorshift (Marsaglia 2003): the same at each run.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.word() >> 33) as usize % end
    }

    fn fill(&mut self, octets: &mut [u8]) {
        for chunk in octets.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }

    fn len(&mut self) -> usize {
        match self.below(4) {
            0 => LENGTHS[self.below(LENGTHS.len())],
            1 => 4 + 4 * self.below(LONGEST / 4),
            _ => 1 + self.below(LONGEST),
        }
    }
}

/// Bits of a beginning that are made to fit, and of a magic number of three octets or more, which given whole is no chance.
const GIVEN: u32 = 16;
const GIVEN_OF_MAGIC: u32 = 8;

/// Mask and value of a beginning's octets, up to so many bits.
fn octets(text: &str) -> Vec<(u8, u8)> {
    let octet = |digits: &str| {
        let bits = 8 / digits.len() as u32;
        digits.chars().fold((0_u16, 0_u16), |(mask, value), digit| {
            let (of_mask, of_value) = digit.to_digit(1 << bits).map_or((0, 0), |digit| ((1 << bits) - 1, digit as u16));
            (mask << bits | of_mask, value << bits | of_value)
        })
    };
    let all: Vec<_> = text.split(' ').map(octet).collect();
    let bits: u32 = all.iter().map(|(mask, _)| mask.count_ones()).sum();
    let most = if bits >= 24 { GIVEN_OF_MAGIC } else { GIVEN };
    let mut given = 0;
    let octets = all.into_iter().take_while(|(mask, _)| {
        given += mask.count_ones();
        given <= most
    });
    octets.map(|(mask, value)| (mask as u8, value as u8)).collect()
}

/// Flows that became possible, likely and certain.
fn measure(detector: &dyn Detector, kind: CarrierKind, begin: Begin, datagrams: u64) -> [u64; 3] {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut levels = [0; 3];
    let mut buffer = [0; LONGEST + 8];
    let shape = if let Begin::Octets(text) = begin { octets(text) } else { Vec::new() };
    let port = if let Begin::Port(port) = begin { port } else { 40_001 };
    for _ in 0..datagrams.div_ceil(PER_FLOW) {
        let mut findings = Findings::default();
        let mut seqs = [noise.word() as u32, noise.word() as u32];
        for packet in 0..PER_FLOW {
            let len = noise.len();
            let payload = &mut buffer[..len];
            noise.fill(payload);
            for (octet, (mask, value)) in payload.iter_mut().zip(&shape) {
                *octet = *octet & !mask | value;
            }
            let direction = if packet % 2 == 0 { Direction::Forward } else { Direction::Reverse };
            let seq = &mut seqs[direction as usize];
            let (carrier, ports) = match kind {
                CarrierKind::Udp => (Carrier::Udp, [40_000, port]),
                CarrierKind::Tcp => (Carrier::Tcp { seq: *seq, flags: TcpFlags(TcpFlags::ACK) }, [40_000, port]),
                CarrierKind::Ip(protocol) => (Carrier::Ip { protocol, outer_v6: false }, [0; 2]),
            };
            *seq = seq.wrapping_add(len as u32);
            let segment = Segment {
                at: Timestamp::from_secs(1_700_000_000),
                packet: packet + 1,
                direction,
                carrier,
                ports: if direction == Direction::Forward { ports } else { [ports[1], ports[0]] },
                payload,
                payload_len: len as u32,
                is_fragment: false,
            };
            detector.inspect(&segment, &mut findings);
        }
        if let Some(found) = findings.detection() {
            levels[found.confidence as usize] += 1;
        }
    }
    levels
}

#[test]
fn random_datagrams_are_no_tunnel() {
    let datagrams = std::env::var("LINEWARDEN_NOISE").map_or(DATAGRAMS, |count| count.parse().expect("a number"));
    let threads: Vec<_> = REGISTRY
        .chunks(REGISTRY.len().div_ceil(4))
        .map(|detectors| {
            std::thread::spawn(move || {
                detectors.iter().map(|of| (*of, of_detector(*of, datagrams))).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut wrong = Vec::new();
    println!("{:<24} {:<8} {:>12} {:>9} {:>7} {:>8}", "detector", "over", "datagrams", "possible", "likely", "certain");
    for (detector, rows) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
        let About { name, .. } = detector.about();
        for (kind, [possible, likely, certain]) in rows {
            let over = format!("{kind:?}").to_lowercase();
            println!("{name:<24} {over:<8} {datagrams:>12} {possible:>9} {likely:>7} {certain:>8}");
            if likely + certain > 0 {
                wrong.push(format!("{name} over {over}: {likely} flows likely, {certain} certain"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A row for each carrier, its datagrams shared among the beginnings.
fn of_detector(detector: &dyn Detector, datagrams: u64) -> Vec<(CarrierKind, [u64; 3])> {
    let about = detector.about();
    let rows = about.carriers.iter().map(|kind| {
        // An IP protocol's packets are all shown.
        let begins = if matches!(kind, CarrierKind::Ip(_)) { &[Begin::Any][..] } else { about.begins };
        let share = datagrams.div_ceil(begins.len() as u64);
        let levels = begins.iter().map(|begin| measure(detector, *kind, *begin, share));
        (*kind, levels.fold([0; 3], |sum, more| std::array::from_fn(|level| sum[level] + more[level])))
    });
    rows.collect()
}
