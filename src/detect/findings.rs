//! What the detectors found out about one flow: evidence, and the few numbers that sequence checks need.

use super::identity::Notes;
use super::{Code, Confidence, Detection, Detector, Phase, Protocol, Segment, Set};
use crate::flow::Direction;
use crate::time::Timestamp;

/// The most kinds of evidence kept per flow; later kinds are not added.
const MAX_EVIDENCE: usize = 24;

/// One kind of evidence in one direction, from its first occurrence on.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// What was found.
    pub code: &'static Code,
    /// For which protocol it speaks.
    pub protocol: Protocol,
    /// How sure it makes one, all earlier evidence considered.
    pub confidence: Confidence,
    /// Which way the packet went.
    pub direction: Direction,
    /// Number of the first packet that showed it.
    pub packet: u64,
    /// Time of that packet.
    pub at: Timestamp,
    /// A number that goes with it (an SPI, a sender index); its meaning is in the code's text.
    pub value: u64,
    /// The same number in the latest occurrence.
    pub last_value: u64,
    /// Occurrences so far, inspected packets only.
    pub count: u32,
}

/// Which slot a sequence check uses; one per family so that detectors do not disturb each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotId {
    /// WireGuard data messages.
    Wireguard,
    /// WireGuard messages whose reserved octets are in use.
    WireguardReserved,
    /// An initiation of that kind.
    WireguardReservedInitiation,
    /// OpenVPN's control channel.
    Openvpn,
    /// OpenVPN's data channel.
    OpenvpnData,
    /// Where OpenVPN's next packet begins in a TCP stream.
    OpenvpnStream,
    /// AnyConnect's handshake.
    AnyConnect,
    /// AnyConnect's records of the old version.
    AnyConnectRecords,
    /// SoftEther's messages.
    SoftEther,
    /// AnyConnect's packets without TLS.
    Cstp,
    /// SSTP's packets.
    Sstp,
    /// A header of SSTP's whose packet follows.
    SstpHeader,
    /// ESP (plain or in UDP) and AH: one security association.
    Ipsec,
    /// A second one, used in turn with the first.
    IpsecOther,
    /// IKE.
    Ike,
    /// PPTP.
    Gre,
    /// Inner packets of encapsulations without a counter.
    Inner,
    /// The IPv4 address inside IPv6 addresses of 6to4 and ISATAP.
    Embedded,
    /// Overlays without a set-up: bits of chance ruled out so far.
    Overlay,
    /// L2TP's control connection.
    L2tp,
    /// GTP's latest control message.
    Gtp,
    /// Nebula's messages.
    Nebula,
    /// n2n's community.
    N2n,
    /// fastd's nonces.
    Fastd,
    /// iodine's checks of what comes through.
    IodineCheck,
    /// iodine's probes of sizes.
    IodineProbe,
    /// iodine's pings.
    IodinePing,
    /// iodine's data.
    IodineData,
    /// dns2tcp's session, as its server told it.
    Dns2tcp,
    /// dns2tcp's session and sequence number.
    Dns2tcpCount,
    /// The latest echo request.
    Echo,
    /// tinc's meta protocol and packets.
    Tinc,
    /// Tailscale's disco.
    Tailscale,
    /// What passes a Tailscale peer relay.
    TailscaleRelay,
    /// ZeroTier's addresses.
    Zerotier,
}

/// Numbers that one family remembers of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Free for the family: an index, an SPI, a stream position.
    pub a: u64,
    /// Free for the family: a counter.
    pub b: u64,
    /// Packets of the series.
    pub hits: u32,
    /// Free for the family: flags, lengths seen.
    pub c: u32,
    /// Octets of the latest packet that the next one's must differ from.
    pub content: u64,
    /// Packets that were out of the series.
    pub misses: u32,
}

/// Evidence and slots of one flow; absent for flows that no detector took an interest in.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    evidence: Vec<Evidence>,
    /// Those in use: few, since a flow speaks one protocol.
    slots: Vec<(SlotId, Direction, Slot)>,
    /// Detectors that took note of something.
    interested: Set,
    /// The detector that looks now took note of something.
    is_noted: bool,
    /// SPIs of ESP or AH by direction, latest.
    pub spi: [Option<u32>; 2],
    /// GRE keys by direction, latest (PPTP: call identifiers).
    pub gre_key: [Option<u32>; 2],
    /// Who set the tunnel up, where the handshake tells.
    pub originator: Option<Direction>,
    /// Whose keys its handshakes were made with.
    pub(super) identity: Notes,
}

impl Findings {
    /// All evidence, in order of first occurrence.
    #[must_use]
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// The evidence of `code` in `direction`, if it was given.
    #[must_use]
    pub fn of(&self, code: &'static Code, direction: Direction) -> Option<&Evidence> {
        self.evidence.iter().find(|found| std::ptr::eq(found.code, code) && found.direction == direction)
    }

    /// Shows a payload to a detector, and remembers whether it took note of it; `set` is of the detector alone.
    pub fn show(&mut self, segment: &Segment<'_>, set: Set, detector: &dyn Detector) {
        self.is_noted = false;
        detector.inspect(segment, self);
        if self.is_noted {
            self.interested = self.interested.union(set);
        }
    }

    /// Detectors that took note of something.
    #[must_use]
    pub const fn interested(&self) -> Set {
        self.interested
    }

    /// Adds evidence, or counts one more occurrence of it; confidence never falls.
    pub fn add(
        &mut self,
        segment: &Segment<'_>,
        protocol: Protocol,
        code: &'static Code,
        confidence: Confidence,
        value: u64,
    ) {
        self.is_noted = true;
        let known = self
            .evidence
            .iter_mut()
            .find(|found| std::ptr::eq(found.code, code) && found.direction == segment.direction);
        if let Some(found) = known {
            found.confidence = found.confidence.max(confidence);
            found.last_value = value;
            found.count = found.count.saturating_add(1);
        } else if self.evidence.len() < MAX_EVIDENCE {
            self.evidence.push(Evidence {
                code,
                protocol,
                confidence,
                direction: segment.direction,
                packet: segment.packet,
                at: segment.at,
                value,
                last_value: value,
                count: 1,
            });
        }
    }

    /// The slot of a family and direction.
    pub fn slot(&mut self, id: SlotId, direction: Direction) -> &mut Slot {
        self.is_noted = true;
        let known = self.slots.iter().position(|(of, way, _)| *of == id && *way == direction);
        let at = known.unwrap_or_else(|| {
            self.slots.push((id, direction, Slot::default()));
            self.slots.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "the position of one that was found or just added")]
        &mut self.slots[at].2
    }

    /// Whether any evidence of `protocol` is at least this sure.
    #[must_use]
    pub fn has(&self, protocol: Protocol, confidence: Confidence) -> bool {
        self.evidence.iter().any(|found| found.protocol == protocol && found.confidence >= confidence)
    }

    /// Whether nothing was noted, neither evidence nor numbers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.evidence.is_empty() && self.slots.iter().all(|(.., slot)| *slot == Slot::default())
    }

    /// Forgets everything but the memory for it, so that the next flow's first packets cost no allocation.
    pub fn clear(&mut self) {
        let Self { evidence, slots, .. } = self;
        evidence.clear();
        slots.clear();
        *self = Self { evidence: std::mem::take(evidence), slots: std::mem::take(slots), ..Self::default() };
    }

    /// A copy of its own, with no more memory than it needs.
    #[must_use]
    pub fn kept(&self) -> Self {
        let slots = self.slots.iter().filter(|(.., slot)| *slot != Slot::default()).copied().collect();
        Self { evidence: self.evidence.clone(), slots, ..*self }
    }

    /// The protocol that the evidence speaks for most: by confidence, then by [`Protocol`]'s order.
    #[must_use]
    pub fn detection(&self) -> Option<Detection> {
        let best = self.evidence.iter().max_by_key(|found| (found.confidence, std::cmp::Reverse(found.protocol)))?;
        // RFC 7296 1.2: IKE sets the association up, so seeing it is seeing ESP's beginning.
        let speaks =
            |protocol| protocol == best.protocol || (best.protocol == Protocol::Esp && protocol == Protocol::Ike);
        let mut phases = self.evidence.iter().filter(|found| speaks(found.protocol)).map(|found| found.code.phase);
        let midstream =
            phases.clone().any(|phase| phase == Phase::Data) && !phases.any(|phase| phase == Phase::Handshake);
        let identity = self.identity.identity(best.protocol);
        Some(Detection { protocol: best.protocol, confidence: best.confidence, midstream, identity })
    }

    /// Octets of memory held, this structure included.
    #[must_use]
    pub fn octets(&self) -> usize {
        size_of::<Self>()
            + self.evidence.capacity() * size_of::<Evidence>()
            + self.slots.capacity() * size_of::<(SlotId, Direction, Slot)>()
    }
}
