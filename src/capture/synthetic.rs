//! Turns settings into frames: traffic made up for `linewarden bench` and the benches, the same for the same seed.
//!
//! | share | flow |
//! |---|---|
//! | as asked | tunnels, in turn WireGuard, OpenVPN, ESP and GRE: set-up as specified, then data with counters |
//! | of the rest 3 in 4 | TCP with TLS records |
//! | 1 in 4 | UDP with QUIC's short headers, whose first octets come near OpenVPN's and ESP's |
//!
//! One flow in eight is IPv6. Clients are in 10.0.0.0/8, servers in 198.18.0.0/15 (RFC 2544 C.2.2) and `2001:2::/48` (RFC
//! 5180 8). TCP and UDP checksums are zero, as with checksum offload.

mod build;
mod exchange;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use self::build::Builder;
use self::exchange::{LEAST_PLAIN, LEAST_TUNNEL, SynthFlow};
use crate::capture::reel::{Reel, ReelError};
use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId, LinkType};

/// What is made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flows; at most [`MOST_FLOWS`] are told apart.
    pub flows: u32,
    /// Frames of one round; no fewer than each flow's exchange needs.
    pub packets: u64,
    /// Sizes of data frames.
    pub sizes: Sizes,
    /// Tunnels among the flows, percent.
    pub tunnels: u8,
    /// Octets kept of each frame.
    pub snap_length: u32,
    /// The same seed makes the same frames.
    pub seed: u64,
    /// How packets belong to flows.
    pub mode: Mode,
    /// Time between two frames.
    pub step: Duration,
}

/// Flows are told apart by a client's address in 10.0.0.0/8.
pub const MOST_FLOWS: u32 = 1 << 24;

impl Default for Settings {
    fn default() -> Self {
        Self {
            flows: 10_000,
            packets: 1_000_000,
            sizes: Sizes::Mixed,
            tunnels: 5,
            snap_length: 256,
            seed: 1,
            mode: Mode::Steady,
            step: Duration::from_micros(1),
        }
    }
}

/// How packets belong to flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every packet is its flow's first: `packets` is not looked at.
    New,
    /// Flows of many packets each, in random order.
    Steady,
    /// The same, but a flow that is no tunnel may have a single packet: more flows in the same memory.
    Sparse,
}

/// Frame sizes, octets with the frame check sequence that no capture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Simple IMIX: 64, 594 and 1518 octets, 7 to 4 to 1.
    Mixed,
    /// All the same; frames whose headers need more are larger.
    Fixed(u16),
}

/// Not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame size is `mixed` or a number of octets from 64 to 9018")]
pub struct SizesError;

impl FromStr for Sizes {
    type Err = SizesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "mixed" {
            return Ok(Self::Mixed);
        }
        text.parse().ok().filter(|size| (64..=9018).contains(size)).map(Self::Fixed).ok_or(SizesError)
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed => write!(f, "mixed"),
            Self::Fixed(size) => write!(f, "{size}"),
        }
    }
}

impl Sizes {
    fn draw(self, random: &mut Random) -> usize {
        match self {
            Self::Fixed(size) => size.into(),
            Self::Mixed => match random.next() % 12 {
                0..7 => 64,
                7..11 => 594,
                _ => 1518,
            },
        }
    }
}

/// The tunnels among `flows`.
#[must_use]
pub fn tunnels(settings: &Settings) -> u32 {
    tunnels_before(settings, settings.flows)
}

/// Makes the frames of one round.
pub fn reel(settings: &Settings) -> Result<Reel, ReelError> {
    let mut random = Random(settings.seed);
    let order = order(settings, &mut random);
    let mut sent = vec![0_u32; settings.flows as usize];
    let mut builder = Builder::new(settings.snap_length);
    let mut reel = Reel::new(settings.snap_length);
    let mut at = START;
    for id in order {
        let Some(number) = sent.get_mut(id as usize) else { continue };
        let size = settings.sizes.draw(&mut random);
        let flow = SynthFlow::new(settings, id);
        // The builder's buffer is made to fit: there is always a frame.
        let Some(data) = builder.frame(&flow, *number, size, settings.mode, &mut random) else { continue };
        reel.push(&Frame {
            at,
            number: 0,
            wire_len: data.len() as u32,
            interface: InterfaceId(0),
            link: LinkType::Ethernet,
            stripped_vlan: None,
            data,
        })?;
        *number += 1;
        at = at + settings.step;
    }
    Ok(reel)
}

/// The first frame's time.
const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// Which flow each packet belongs to.
fn order(settings: &Settings, random: &mut Random) -> Vec<u32> {
    let mut order: Vec<u32> = (0..settings.flows).collect();
    if settings.mode != Mode::New {
        let least_plain = if settings.mode == Mode::Sparse { 1 } else { LEAST_PLAIN };
        for id in 0..settings.flows {
            let least = if is_tunnel(settings, id) { LEAST_TUNNEL } else { least_plain };
            order.extend(std::iter::repeat_n(id, least as usize - 1));
        }
        let more = settings.packets.saturating_sub(order.len() as u64);
        if settings.flows > 0 {
            order.extend((0..more).map(|_| (random.next() % u64::from(settings.flows)) as u32));
        }
    }
    // Fisher and Yates.
    for last in (1..order.len()).rev() {
        order.swap(last, (random.next() % (last as u64 + 1)) as usize);
    }
    order
}

/// Spread evenly: exactly the asked share, whatever the number of flows.
fn is_tunnel(settings: &Settings, id: u32) -> bool {
    tunnels_before(settings, id) != tunnels_before(settings, id + 1)
}

fn tunnels_before(settings: &Settings, id: u32) -> u32 {
    (u64::from(id) * u64::from(settings.tunnels.min(100)) / 100) as u32
}

/// `SplitMix64` (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn fill(&mut self, octets: &mut [u8]) {
        for chunk in octets.chunks_mut(8) {
            for (octet, random) in chunk.iter_mut().zip(self.next().to_le_bytes()) {
                *octet = random;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{AuditSettings, Auditor, Counters, Decapsulation, OtherRecords};
    use crate::detect::{Confidence, Protocol};
    use crate::flow::FlowSettings;
    use crate::policy::Policy;
    use crate::record::{Kind, Record};
    use crate::wire::{IpVersion, parse};

    fn small(mode: Mode) -> Settings {
        Settings { flows: 1000, packets: 5000, mode, tunnels: 20, ..Settings::default() }
    }

    fn one_round(settings: &Settings, mut take: impl FnMut(&[Frame<'_>])) -> usize {
        let reel = reel(settings).unwrap();
        let mut player = reel.play().unwrap();
        let mut left = reel.len() as u64;
        while left > 0 {
            let frames = player.batch(left);
            take(frames);
            left -= frames.len() as u64;
        }
        reel.len()
    }

    fn audit(settings: &Settings) -> (Vec<Record>, Counters) {
        let policy = Policy::new("test".into(), Confidence::Likely, "none".into(), Vec::new());
        let audit_settings = AuditSettings {
            sensor: "test".into(),
            interfaces: vec!["synthetic".into()],
            snap_length: settings.snap_length,
            decapsulation: Decapsulation::default(),
            flow: FlowSettings {
                idle_timeout: Duration::from_mins(2),
                active_timeout: Duration::from_mins(30),
                memory_octets: 64 << 20,
                vlan_in_key: true,
                home_nets: Vec::new(),
            },
            update_interval: Duration::ZERO,
            other: OtherRecords::End,
            hash_seed: 1,
        };
        let mut auditor = Auditor::new(audit_settings.into(), policy.into());
        let mut records = Vec::new();
        one_round(settings, |frames| auditor.observe(frames, &mut |record| records.push(record)));
        auditor.finish(&mut |record| records.push(record));
        records.retain(|record| record.kind == Kind::End);
        (records, auditor.counters())
    }

    #[test]
    fn the_same_seed_makes_the_same_frames() {
        let octets = |seed| {
            let mut all = Vec::new();
            one_round(&Settings { seed, ..small(Mode::Steady) }, |frames| {
                all.extend(frames.iter().map(|frame| (frame.at, frame.wire_len, frame.data.to_vec())));
            });
            all
        };
        assert_eq!(octets(7), octets(7));
        assert_ne!(octets(7), octets(8));
    }

    #[test]
    fn every_frame_parses_at_every_size_and_snap_length() {
        for sizes in [Sizes::Mixed, Sizes::Fixed(64), Sizes::Fixed(128), Sizes::Fixed(9018)] {
            for snap_length in [96, 256, 65_535] {
                for mode in [Mode::New, Mode::Steady] {
                    let settings = Settings { sizes, snap_length, ..small(mode) };
                    let (mut v6, mut reverse) = (0, 0);
                    let all = one_round(&settings, |frames| {
                        for frame in frames {
                            let packet = parse(frame).unwrap();
                            v6 += usize::from(packet.addresses.version() == IpVersion::V6);
                            let [src, _] = packet.addresses.both();
                            reverse += usize::from(src.to_string().starts_with("198."));
                            assert!(frame.wire_len as usize >= frame.data.len());
                            assert!(frame.data.len() <= snap_length as usize);
                        }
                    });
                    assert!(v6 > all / 20 && v6 < all / 4, "{v6} of {all} are IPv6");
                    assert!(mode == Mode::New || reverse > all / 4, "{reverse} of {all} are answers");
                }
            }
        }
    }

    #[test]
    fn fixed_sizes_are_kept() {
        let settings = Settings { sizes: Sizes::Fixed(512), tunnels: 0, ..small(Mode::Steady) };
        one_round(&settings, |frames| {
            for frame in frames {
                assert_eq!(frame.wire_len, 508);
            }
        });
    }

    #[test]
    fn the_share_of_certain_tunnels_is_as_asked() {
        for percent in [0, 5, 20, 100] {
            for snap_length in [128, 256] {
                let settings = Settings { tunnels: percent, snap_length, ..small(Mode::Steady) };
                let (records, counters) = audit(&settings);
                let certain = |protocol| {
                    records
                        .iter()
                        .filter(|end| end.confidence == Some(Confidence::Certain) && end.tunnel == Some(protocol))
                        .count() as u32
                };
                let quarter = tunnels(&settings) / 4;
                for protocol in [Protocol::Wireguard, Protocol::Openvpn, Protocol::Esp, Protocol::Gre] {
                    let found = certain(protocol);
                    assert!((quarter..=quarter + 1).contains(&found), "{protocol:?}: {found} of {quarter}");
                }
                let evident = records.iter().filter(|end| end.tunnel.is_some()).count();
                assert_eq!(evident, 10 * usize::from(percent), "no other flow shows anything");
                assert_eq!(counters.flows - counters.inside.flows, 1000);
            }
        }
    }

    #[test]
    fn in_sparse_mode_every_flow_comes_and_a_plain_one_perhaps_once() {
        let settings = Settings { packets: 0, ..small(Mode::Sparse) };
        let (records, counters) = audit(&settings);
        assert_eq!(counters.flows - counters.inside.flows, 1000);
        assert_eq!(counters.packets, 800 + 200 * u64::from(LEAST_TUNNEL));
        let certain = records.iter().filter(|end| end.confidence == Some(Confidence::Certain)).count();
        assert_eq!(certain, 200);
    }

    #[test]
    fn in_new_mode_every_packet_opens_a_flow() {
        let settings = Settings { flows: 5000, ..small(Mode::New) };
        let (records, counters) = audit(&settings);
        assert_eq!((counters.packets, counters.flows, records.len()), (5000, 5000, 5000));
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!("mixed".parse(), Ok(Sizes::Mixed));
        assert_eq!("1518".parse(), Ok(Sizes::Fixed(1518)));
        for wrong in ["", "63", "9019", "imix"] {
            assert_eq!(wrong.parse::<Sizes>(), Err(SizesError), "{wrong}");
        }
    }
}
