//! The whole core behind two calls: [`Auditor::observe`] turns frames into records, [`Auditor::expire`] ends what is over.

mod associations;
mod case;
mod counters;
mod describe;
mod elsewhere;
mod inside;
mod inspection;
mod keys;

pub use counters::{Counters, Ended, InsideCounters, InterfaceCounters, Tally, tunnel_index};
pub use elsewhere::{Counted, Elsewhere, ElsewhereCounters, Interest, SAMPLE};
pub use inside::{Decapsulation, Mirror};

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use prefetch_index::prefetch_index;

use self::associations::{Associations, Channels, is_tls};
use self::case::{Case, File, Marks};
use self::describe::{FlowName, describe, subject};
use self::inside::encapsulation;
use self::inspection::{Inspected, detectors, inspect, wanted};
use crate::detect::{
    Carrier, Checks, Detection, Dispatch, Findings, Segment, goes_beside, may_hold_handshake, may_open,
};
use crate::flow::{
    Datagram, Direction, EndReason, Flow, FlowIndex, FlowKey, FlowSettings, FlowTable, Fragments, LINGER, Opener,
    Orphan, Pressure, STEP, Sender,
};
use crate::policy::{Label, Policy, Reason, Verdict};
use crate::record::{Kind, Record};
use crate::time::Timestamp;
use crate::wire::{
    Fragment, FragmentPosition, Frame, InterfaceId, IpVersion, ParseError, ParsedPacket, TcpFlags, Transport,
    parse_layers, parse_plain, parse_snapped,
};

/// Settings of the core, one set for all workers.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// The sensor's name in records.
    pub sensor: Arc<str>,
    /// Names of interfaces or files, indexed by `InterfaceId`.
    pub interfaces: Vec<Arc<str>>,
    /// Octets of each frame that are looked at, so that replay sees what live capture sees.
    pub snap_length: u32,
    /// What is opened.
    pub decapsulation: Decapsulation,
    /// How flows are told apart and ended.
    pub flow: FlowSettings,
    /// A long flow's `update` records are this far apart; zero: none.
    pub update_interval: Duration,
    /// Which records of flows that are `other` are written.
    pub other: OtherRecords,
    /// Seed of the flow table's keyed hash; random at the edge, so that nobody can aim at one bucket.
    pub hash_seed: u64,
}

/// Which records of flows labelled `other` are written; all of them count in the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherRecords {
    /// `start`, `update` and `end`.
    #[default]
    All,
    /// `end` only.
    End,
    /// None.
    None,
}

/// Frames are parsed, hashed and looked up in batches of this many, so that their cache misses overlap.
const BATCH: usize = 32;

/// Flows that are looked at for their end behind each batch: more than a batch can open, so that none is left in the long
/// run, and few enough that no batch waits.
const SWEEP: usize = 4 * BATCH;
/// The same where no frame waits.
const SWEEP_QUIET: usize = 1 << 16;

/// The core: one per worker, owning its flow table.
pub struct Auditor {
    settings: Arc<AuditSettings>,
    policy: Arc<Policy>,
    table: FlowTable<Case>,
    fragments: Fragments,
    dispatch: Dispatch,
    counters: Counters,
    associations: Associations,
    channels: Channels,
    scratch: Findings,
    lanes: Vec<Lane>,
    due: Vec<FlowIndex>,
    checks: Checks,
    /// Idle and active timeout, nanoseconds.
    timeouts: [u64; 2],
    elsewhere: Option<Box<dyn Elsewhere>>,
    /// The latest time seen.
    now: Timestamp,
    /// From this packet on a step back of the frames' clock is believed.
    steps_from: u64,
}

/// What finds a packet's flow.
#[derive(Clone, Copy)]
struct Name {
    key: FlowKey,
    sender: Sender,
    hash: u64,
}

/// What a batch knows of a packet.
#[derive(Clone, Copy)]
struct Lane {
    name: Name,
    /// Where its flow may be.
    guess: FlowIndex,
    mpls_label: Option<u32>,
    /// Nothing in the packet itself asks for a look at it.
    is_calm: bool,
}

/// Entries that are looked at for steps back, spread over all packets: at most so many for each.
const LOOKS_A_PACKET: u64 = 16;

impl Lane {
    const EMPTY: Self = Self {
        name: Name { key: FlowKey::EMPTY, sender: Sender::Low, hash: 0 },
        guess: FlowIndex::NONE,
        mpls_label: None,
        is_calm: false,
    };
}

impl Auditor {
    /// An empty table.
    #[must_use]
    pub fn new(settings: Arc<AuditSettings>, policy: Arc<Policy>) -> Self {
        Self {
            table: FlowTable::new(&settings.flow, settings.hash_seed),
            fragments: Fragments::new(settings.hash_seed, settings.flow.vlan_in_key),
            dispatch: Dispatch::new(),
            counters: Counters::default(),
            associations: Associations::default(),
            channels: Channels::default(),
            scratch: Findings::default(),
            lanes: vec![Lane::EMPTY; BATCH],
            due: Vec::with_capacity(BATCH),
            checks: Checks::default(),
            timeouts: [settings.flow.idle_timeout, settings.flow.active_timeout]
                .map(|timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX)),
            elsewhere: None,
            now: Timestamp::ZERO,
            steps_from: 0,
            settings,
            policy,
        }
    }

    /// Takes frames in the order of their capture.
    pub fn observe(&mut self, frames: &[Frame<'_>], emit: &mut impl FnMut(Record)) {
        let mut ahead = frames.get(BATCH..).unwrap_or_default().iter();
        for batch in frames.chunks(BATCH) {
            let mut packets = [const { Err(ParseError::NotIp) }; BATCH];
            // Kept, for writing an empty batch each time costs more than filling it.
            let mut kept = std::mem::take(&mut self.lanes);
            for ((frame, packet), lane) in batch.iter().zip(&mut packets).zip(&mut kept) {
                self.prepare(frame, packet, lane);
            }
            // The index was asked for while other packets were parsed, and the entries are while others are guessed.
            let lanes = kept.get_mut(..batch.len()).unwrap_or_default();
            for lane in &mut *lanes {
                lane.guess = self.table.guess(lane.name.hash);
                self.table.prefetch(lane.guess);
            }
            // Added up here and to the counters once a batch.
            let (mut octets, mut classified, mut classified_octets) = (0, 0, 0);
            for ((frame, packet), lane) in batch.iter().zip(&packets).zip(lanes) {
                octets += u64::from(frame.wire_len);
                if let Some(next) = ahead.next() {
                    prefetch_index(next.data, 0);
                }
                if lane.is_calm {
                    classified += 1;
                    classified_octets += u64::from(frame.wire_len);
                    if !self.take_routine(frame, lane)
                        && let Ok(packet) = parse_snapped(frame, self.settings.snap_length as usize)
                    {
                        self.take(&packet, &lane.name, 0, None, emit);
                    }
                } else if let Ok(packet) = packet {
                    classified += 1;
                    classified_octets += u64::from(packet.wire_len);
                    let name = &mut lane.name;
                    if packet.fragment.is_none_or(|fragment| self.resolve(fragment, packet, name, emit)) {
                        self.take(packet, name, 0, None, emit);
                    }
                }
            }
            self.counters.packets += batch.len() as u64;
            self.counters.octets += octets;
            self.counters.classified += classified;
            self.counters.classified_octets += classified_octets;
            self.lanes = kept;
            if let Some(last) = batch.last()
                && self.counters.packets >= self.steps_from
            {
                self.look_at_time(last.at);
            }
            self.sweep(SWEEP, emit);
        }
    }

    /// Parses and counts one frame, and names its flow.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "called from one loop, where what does not change stays in registers")]
    fn prepare<'a>(&mut self, frame: &Frame<'a>, stored: &mut Result<ParsedPacket<'a>, ParseError>, lane: &mut Lane) {
        let has_mirrors = !self.settings.decapsulation.mirrors.is_empty();
        let plain = if has_mirrors { None } else { parse_plain(frame, self.settings.snap_length as usize) };
        match plain {
            Some(packet) => {
                self.now = self.now.max(packet.at);
                self.name(packet, stored, lane);
            }
            None => self.prepare_layers(frame, stored, lane),
        }
    }

    /// The same for what is not parsed in a few steps.
    #[inline(never)]
    fn prepare_layers<'a>(
        &mut self,
        frame: &Frame<'a>,
        stored: &mut Result<ParsedPacket<'a>, ParseError>,
        lane: &mut Lane,
    ) {
        let mut parsed = parse_layers(frame, self.settings.snap_length as usize);
        if !self.settings.decapsulation.mirrors.is_empty() {
            parsed = parsed.and_then(|packet| self.unmirror(packet));
        }
        match parsed {
            Ok(packet) => {
                self.counters.mirror_octets += u64::from(frame.wire_len - packet.wire_len);
                self.now = self.now.max(packet.at);
                self.name(packet, stored, lane);
            }
            Err(error) => {
                if let Some(count) = self.counters.undecodable.get_mut(error as usize) {
                    *count += 1;
                }
                self.counters.of_interface(frame.interface, |counters| {
                    if let Some(count) = counters.undecodable.get_mut(error as usize) {
                        *count += 1;
                    }
                });
                self.counters.undecodable_octets += u64::from(frame.wire_len);
                lane.is_calm = false;
                *stored = parsed;
            }
        }
    }

    /// Names a packet's flow. What is calm is not stored: where its flow turns out not to be, it is parsed again, which
    /// costs less than writing all packets to memory.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as for `prepare`")]
    fn name<'a>(
        &mut self,
        packet: ParsedPacket<'a>,
        stored: &mut Result<ParsedPacket<'a>, ParseError>,
        lane: &mut Lane,
    ) {
        let (key, sender) = FlowKey::of(&packet, self.settings.flow.vlan_in_key);
        lane.name = Name { key, sender, hash: self.table.hash(&key) };
        self.table.prefetch_index(lane.name.hash);
        lane.mpls_label = packet.mpls_label;
        let has_mirrors = !self.settings.decapsulation.mirrors.is_empty();
        lane.is_calm = !has_mirrors && is_calm(&packet, !self.policy.keyring().is_empty());
        if !lane.is_calm {
            *stored = Ok(packet);
        }
    }

    /// Adds a calm packet to a flow of which nothing is to be seen or told now; false where that is not so.
    #[inline]
    fn take_routine(&mut self, frame: &Frame<'_>, lane: &Lane) -> bool {
        if lane.name.key.protocol() == TCP && self.channels.wait(&lane.name.key) {
            return false;
        }
        let [idle, active] = self.timeouts;
        let Some(flow) = self.table.check(lane.guess, &lane.name.key) else { return false };
        let direction = flow.direction(lane.name.sender);
        let at = frame.at.as_nanos();
        let is_routine = !flow.is_closed()
            && !flow.is_left()
            && !flow.tenant.marks.has(Marks::OPENED)
            && at.saturating_sub(flow.last.as_nanos()) <= idle
            && at.saturating_sub(flow.first.as_nanos()) < active
            && frame.at < Timestamp::from_secs(flow.tenant.due.into())
            && !wanted(&flow.tenant, flow.packets.iter().sum::<u64>() + 1)
            && (lane.mpls_label.is_none() || lane.mpls_label == flow.mpls_label(direction));
        if is_routine {
            flow.count(direction, frame.at, 1, u64::from(frame.wire_len));
        }
        is_routine
    }

    /// Ends flows that are over by `now`: a time from the frames or, when a live link is silent, from the edge.
    pub fn expire(&mut self, now: Timestamp, emit: &mut impl FnMut(Record)) {
        self.now = self.now.max(now);
        self.look_at_time(now);
        self.sweep(SWEEP_QUIET, emit);
    }

    /// After a step forward flows are over because their timeouts have passed. After one back they would not be for as long as
    /// it was: they are over at once, too, and what goes on of them is new. That takes a look at every entry, and whoever makes
    /// a capture file may let its clock leap back at each packet: the next step of the frames' clock is believed once there were
    /// some packets for these looks.
    fn look_at_time(&mut self, now: Timestamp) {
        if self.now.since(now) > STEP {
            self.now = now;
            self.table.rewind(now);
            self.steps_from = self.counters.packets + self.table.indices().len() as u64 / LOOKS_A_PACKET;
        }
    }

    /// Ends every flow: those whose time was up by the latest time seen as such, the others by force.
    pub fn finish(&mut self, emit: &mut impl FnMut(Record)) {
        for orphan in self.fragments.drain() {
            self.adopt(&orphan, emit);
        }
        self.absorb(emit);
        for index in self.table.indices() {
            let Some(flow) = self.table.flow(index) else { continue };
            let over = self.table.deadline(flow) <= self.now;
            let reason = if over { over_reason(flow) } else { EndReason::ForcedEnd };
            self.end(index, reason, emit);
        }
    }

    /// Takes new approvals and judges every open flow again; changed verdicts are `update` records.
    pub fn set_policy(&mut self, policy: Arc<Policy>, emit: &mut impl FnMut(Record)) {
        self.sweep(usize::MAX, emit);
        self.policy = policy;
        for index in self.table.indices() {
            let now = self.now;
            self.judge(index, now, emit);
            // Keys may be pinned now, or no more.
            self.settle(index);
            self.make_room(FlowTable::tenants_pressure, now, emit);
        }
    }

    /// After a panic in the midst of a batch: what of it was counted came in.
    pub fn mend_counts(&mut self) {
        let counters = &mut self.counters;
        counters.packets = counters.classified + counters.undecodable.iter().sum::<u64>();
        counters.octets = counters.classified_octets + counters.undecodable_octets + counters.mirror_octets;
    }

    /// Takes the names of more interfaces, where a capture file tells them on the way only.
    pub fn name_interfaces(&mut self, names: &[Arc<str>]) {
        Arc::make_mut(&mut self.settings).interfaces.extend_from_slice(names);
    }

    /// Addresses of the memory that flows will take: whoever knows the system may give it advice.
    #[must_use]
    pub fn reserved(&self) -> Range<usize> {
        self.table.reserved()
    }

    /// What went in and what became of it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            flows_open: self.table.len() as u64,
            table_octets: self.table.octets() as u64,
            fragment_overlaps: self.fragments.overlaps(),
            keys: *self.checks.counts(),
            ..self.counters.clone()
        }
    }

    /// The latest time seen in a frame or given to [`Self::expire`].
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Octets of one flow-table entry, evidence apart.
    #[must_use]
    pub const fn entry_octets() -> usize {
        FlowTable::<Case>::entry_octets()
    }

    /// Gives a later fragment the key of its datagram's flow, and that flow what waited for it.
    /// False: the packet waits for its first fragment.
    fn resolve(
        &mut self,
        fragment: Fragment,
        packet: &ParsedPacket<'_>,
        name: &mut Name,
        emit: &mut impl FnMut(Record),
    ) -> bool {
        match fragment.position {
            FragmentPosition::First => {
                let [waited, pushed_out] = self.fragments.first(packet, fragment, name.key, name.sender);
                let waited = waited.map(|orphan| Orphan { key: name.key, sender: name.sender, ..orphan });
                for orphan in waited.into_iter().chain(pushed_out) {
                    self.adopt(&orphan, emit);
                }
                true
            }
            FragmentPosition::Later => {
                let (datagram, pushed_out) = self.fragments.later(packet, fragment);
                if let Some(orphan) = pushed_out {
                    self.adopt(&orphan, emit);
                }
                match datagram {
                    Datagram::Known(key, sender) => {
                        *name = Name { key, sender, hash: self.table.hash(&key) };
                        true
                    }
                    Datagram::Waiting => false,
                }
            }
        }
    }

    /// Adds one packet to its flow, opening the flow if need be; `depth` tunnels, the innermost of them `tunnel`, are
    /// around it.
    #[inline]
    fn take(
        &mut self,
        packet: &ParsedPacket<'_>,
        name: &Name,
        depth: u8,
        tunnel: Option<&FlowName>,
        emit: &mut impl FnMut(Record),
    ) {
        let tcp = match packet.transport {
            Transport::Tcp { seq, flags, .. } => Some((seq, flags)),
            _ => None,
        };
        let flags = tcp.map(|(_, flags)| flags).unwrap_or_default();
        let (index, opened) = self.open(name, packet.interface, packet.at, flags, emit);
        let Some(flow) = self.table.flow_mut(index) else { return };
        let direction = flow.direction(name.sender);
        flow.count(direction, packet.at, 1, u64::from(packet.wire_len));
        if packet.mpls_label.is_some() {
            flow.set_mpls_label(direction, packet.mpls_label);
        }
        if opened && let Some((_, flags)) = tcp {
            flow.set_opener(tcp_opener(flags));
        }
        let number = flow.packets.iter().sum();
        let due = u64::from(flow.tenant.due) <= packet.at.as_secs();
        let mut closed = false;
        if flags.has(TcpFlags::FIN) || flags.has(TcpFlags::RST) {
            closed = flow.set_fin(direction) || flags.has(TcpFlags::RST);
        }
        let is_udp = matches!(packet.transport, Transport::Udp { .. });
        let is_wanted = !packet.payload.is_empty()
            && (wanted(&flow.tenant, number) || (is_udp && is_told(packet, flow.tenant.marks.has(Marks::SETTLED))));
        let mut judged = is_wanted && self.show(index, packet, direction);
        if !self.policy.keyring().is_empty() {
            let segment = segment(packet, direction);
            judged |= may_hold_handshake(&segment) && self.check_keys(index, &segment);
        }
        if opened {
            if let Some(tunnel) = tunnel {
                self.with_file(index, |file| file.outer = Some(tunnel.id().number()));
            }
            self.first_judgement(index, packet.at);
            self.announce(index, Kind::Start, packet.at, None, emit);
        } else if judged {
            self.judge(index, packet.at, emit);
        } else if due {
            self.look_again(index, packet.at, emit);
        }
        if closed {
            self.table.close(index);
        }
        if tcp.is_some() && self.channels.wait(&name.key) {
            self.tie(index, packet.at, packet.number, is_tls(packet.payload), emit);
        }
        if (is_wanted || due || closed) && self.elsewhere.is_some() {
            self.settle(index);
        }
        let is_opened = self.table.flow(index).is_some_and(|flow| flow.tenant.marks.has(Marks::OPENED));
        if is_opened && depth < self.settings.decapsulation.depth {
            self.look_inside(packet, index, depth, emit);
        }
        // Flows that are there take notes as well.
        if is_wanted || judged {
            self.make_room(FlowTable::tenants_pressure, packet.at, emit);
        }
    }

    /// Writes into a flow's file, which is made if there is none.
    fn with_file(&mut self, index: FlowIndex, write: impl FnOnce(&mut File)) {
        let interval = self.settings.update_interval;
        self.table.with_tenant(index, |flow| {
            let next_update = next_update(flow, interval);
            write(flow.tenant.file.get_or_insert_with(|| Box::new(File::new(next_update))));
        });
    }

    /// Shows a packet's payload to the detectors that it can be for; whether the flow's detection changed.
    fn show(&mut self, index: FlowIndex, packet: &ParsedPacket<'_>, direction: Direction) -> bool {
        let Some(flow) = self.table.flow(index) else { return false };
        let is_mid_stream = flow.opener() == Opener::Unknown;
        let detectors = detectors(&self.dispatch, packet, &flow.tenant, is_mid_stream);
        let segment = segment(packet, direction);
        self.counters.inspections += u64::from(detectors.len());
        let interval = self.settings.update_interval;
        let changed = self.table.with_tenant(index, |flow| {
            let number = flow.packets.iter().sum();
            if matches!(segment.carrier, Carrier::Tcp { .. }) && is_tls(segment.payload) {
                flow.tenant.marks.set(Marks::TLS, true);
            }
            match inspect(&mut flow.tenant, number, detectors, &segment, &mut self.scratch) {
                Inspected::Nothing => false,
                Inspected::Changed => true,
                Inspected::Noted(findings, changed) => {
                    let next_update = next_update(flow, interval);
                    let file = flow.tenant.file.get_or_insert_with(|| Box::new(File::new(next_update)));
                    file.findings = Some(findings);
                    changed
                }
            }
        });
        changed == Some(true)
    }

    /// The flow of a key, ended and opened anew where its time is up; and whether it is new.
    #[inline]
    fn open(
        &mut self,
        name: &Name,
        interface: InterfaceId,
        at: Timestamp,
        flags: TcpFlags,
        emit: &mut impl FnMut(Record),
    ) -> (FlowIndex, bool) {
        let &Name { ref key, mut sender, hash } = name;
        let mut continued = None;
        if let Some(index) = self.table.find(key, hash)
            && let Some(flow) = self.table.flow(index)
        {
            // RFC 9293 3.6.1: a SYN alone on a closed connection opens the next one.
            let reopened = flow.is_closed() && flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK);
            if reopened || self.table.deadline(flow) < at {
                let reason = over_reason(flow);
                self.end(index, reason, emit);
            } else if at.since(flow.first) >= self.settings.flow.active_timeout {
                let id = FlowName::of(flow).id().number();
                sender = flow.first_sender();
                let opener = flow.opener();
                continued = self.end(index, EndReason::ActiveTimeout, emit).map(|flow| (id, opener, flow.tenant));
            } else {
                return (index, false);
            }
        }
        self.make_room(FlowTable::pressure, at, emit);
        self.counters.flows += 1;
        self.counters.inside.flows += u64::from(key.is_inside());
        let mut tenant = Case { due: seconds(self.first_update(at)), ..Case::default() };
        let mut opener = Opener::First;
        let is_new = continued.is_none();
        if let Some((id, opened_by, before)) = continued {
            opener = opened_by;
            let next_update = self.first_update(at);
            let mut file = before.file.unwrap_or_else(|| Box::new(File::new(next_update)));
            file.continues = Some(id);
            file.family = None;
            file.related.clear();
            file.next_update = next_update;
            let due = seconds(next_update.min(file.verdict.holds_until));
            tenant = Case { file: Some(file), due, ..before };
            tenant.marks.set(Marks::ANNOUNCED, false);
        }
        let index = self.table.insert(*key, hash, sender, interface, at, tenant);
        if let Some(flow) = self.table.flow_mut(index) {
            flow.set_opener(opener);
        }
        if !is_new {
            self.associate(index, at);
            self.announce(index, Kind::Start, at, None, emit);
            self.settle(index);
        }
        (index, is_new)
    }

    /// Ends the oldest flows until nothing presses any more.
    fn make_room(
        &mut self,
        pressure: impl Fn(&FlowTable<Case>) -> Option<Pressure>,
        at: Timestamp,
        emit: &mut impl FnMut(Record),
    ) {
        while let Some(pressure) = pressure(&self.table)
            && let Some(oldest) = self.table.oldest(pressure)
        {
            // Its packets may have been counted elsewhere meanwhile, and others be older then.
            if self.catch_up(oldest) {
                continue;
            }
            // One whose time is up may not have been swept yet.
            let is_over =
                |flow: &&Flow<Case>| self.table.deadline(flow) < at && !flow.tenant.marks.has(Marks::ELSEWHERE);
            let over = self.table.flow(oldest).filter(is_over).map(over_reason);
            if let Some(flow) = self.end(oldest, over.unwrap_or(EndReason::LackOfResources), emit)
                && over.is_none()
                && let Some(count) = self.counters.evicted.get_mut(crate::flow::Tenant::rank(&flow.tenant) as usize)
            {
                *count += 1;
            }
        }
    }

    /// Gives later fragments whose first one came too late or never to a flow.
    fn adopt(&mut self, orphan: &Orphan, emit: &mut impl FnMut(Record)) {
        let name = Name { key: orphan.key, sender: orphan.sender, hash: self.table.hash(&orphan.key) };
        let (index, opened) = self.open(&name, orphan.interface, orphan.first, TcpFlags::default(), emit);
        if let Some(flow) = self.table.flow_mut(index) {
            let direction = flow.direction(orphan.sender);
            flow.count(direction, orphan.last, orphan.packets, orphan.octets);
        }
        if opened {
            self.first_judgement(index, orphan.first);
            self.announce(index, Kind::Start, orphan.first, None, emit);
        }
    }

    /// Ends what is over by the latest time seen, or as much of it as `budget` flows allow.
    fn sweep(&mut self, mut budget: usize, emit: &mut impl FnMut(Record)) {
        let mut due = std::mem::take(&mut self.due);
        loop {
            self.table.expired(self.now, &mut due, &mut budget);
            for &index in &due {
                if self.goes_on(index, emit) {
                    continue;
                }
                let reason = self.table.flow(index).map_or(EndReason::IdleTimeout, over_reason);
                self.end(index, reason, emit);
            }
            if due.is_empty() {
                break;
            }
        }
        self.due = due;
    }

    /// Judges a new flow; flows without evidence only where an approval could cover them by their path.
    fn first_judgement(&mut self, index: FlowIndex, at: Timestamp) {
        let Some(flow) = self.table.flow(index) else { return };
        let detection = found(flow);
        if detection.is_none() && !self.policy.plain_needs_judging() {
            return;
        }
        let verdict = self.policy.judge(&subject(&self.settings, flow), detection, at);
        self.keep(index, verdict, detection);
        self.associate(index, at);
    }

    /// Judges a flow by its present evidence; a changed verdict is an `update`.
    fn judge(&mut self, index: FlowIndex, at: Timestamp, emit: &mut impl FnMut(Record)) {
        let Some(flow) = self.table.flow(index) else { return };
        let detection = found(flow);
        if flow.tenant.file.is_none() && !self.policy.plain_needs_judging() {
            return;
        }
        let verdict = self.policy.judge(&subject(&self.settings, flow), detection, at);
        let changed = match &flow.tenant.file {
            Some(file) => !same(&file.verdict, &verdict),
            None => !same(&plain(), &verdict),
        };
        self.keep(index, verdict, detection);
        self.associate(index, at);
        if changed {
            self.announce(index, Kind::Update, at, None, emit);
        }
    }

    /// A packet came after the flow's due second: its verdict may have run out, or an interval's `update` is due.
    fn look_again(&mut self, index: FlowIndex, at: Timestamp, emit: &mut impl FnMut(Record)) {
        let Some(flow) = self.table.flow(index) else { return };
        if flow.tenant.file.as_ref().is_some_and(|file| file.verdict.holds_until <= at) {
            self.judge(index, at, emit);
        }
        let interval = self.settings.update_interval;
        let Some(flow) = self.table.flow_mut(index) else { return };
        let due = flow.tenant.file.as_ref().map_or_else(|| next_update(flow, interval), |file| file.next_update);
        if due > at {
            let holds_until = flow.tenant.file.as_ref().map_or(Timestamp::MAX, |file| file.verdict.holds_until);
            flow.tenant.due = seconds(due.min(holds_until));
            return;
        }
        let next = update_after(at, flow.first, interval);
        let mut holds_until = Timestamp::MAX;
        if let Some(file) = flow.tenant.file.as_mut() {
            file.next_update = next;
            holds_until = file.verdict.holds_until;
        }
        flow.tenant.due = seconds(next.min(holds_until));
        self.announce(index, Kind::Update, at, None, emit);
    }

    /// Stores a verdict, if it says more than that there is nothing to say.
    fn keep(&mut self, index: FlowIndex, verdict: Verdict, detection: Option<Detection>) {
        let interval = self.settings.update_interval;
        self.table.with_tenant(index, |flow| {
            if flow.tenant.file.is_none() && same(&plain(), &verdict) && verdict.holds_until == Timestamp::MAX {
                return;
            }
            let next_update = next_update(flow, interval);
            let file = flow.tenant.file.get_or_insert_with(|| Box::new(File::new(next_update)));
            file.verdict = verdict;
            file.detection = detection;
            flow.tenant.marks.set(Marks::OPENED, encapsulation(detection).is_some());
            flow.tenant.due = seconds(file.next_update.min(file.verdict.holds_until));
        });
    }

    /// Takes a flow out of the table and writes its last record.
    fn end(&mut self, index: FlowIndex, reason: EndReason, emit: &mut impl FnMut(Record)) -> Option<Flow<Case>> {
        if self.table.flow(index)?.tenant.marks.has(Marks::ELSEWHERE) {
            self.withdraw(index);
        }
        let flow = self.table.remove(index)?;
        self.forget(&flow);
        let (packets, octets) = (flow.packets.iter().sum(), flow.octets.iter().sum());
        let verdict = flow.tenant.file.as_ref().map(|file| &file.verdict);
        let label = verdict.map_or(Label::Other, |verdict| verdict.label);
        let tunnel = verdict.and_then(|verdict| verdict.tunnel);
        self.counters.end(tunnel, label, &Tally { flows: 1, packets, octets });
        if packets > 1 && !flow.key().is_inside() {
            self.counters.of_interface(flow.interface, |counters| {
                counters.ended += 1;
                counters.one_way += u64::from(flow.packets.contains(&0));
            });
        }
        let at = match reason {
            EndReason::IdleTimeout => flow.last + self.settings.flow.idle_timeout,
            EndReason::EndOfFlow => flow.last + LINGER,
            _ => flow.last,
        };
        if self.is_recorded(&flow, Kind::End) {
            emit(describe(&self.settings, &self.policy, &flow, Kind::End, at, Some(reason)));
        } else {
            let (unrecorded, unrecorded_octets) = if flow.key().is_inside() {
                (&mut self.counters.inside.unrecorded, &mut self.counters.inside.unrecorded_octets)
            } else {
                (&mut self.counters.unrecorded, &mut self.counters.unrecorded_octets)
            };
            *unrecorded += packets;
            *unrecorded_octets += octets;
        }
        Some(flow)
    }

    /// Writes a record of an open flow, if the settings want it; the first is a `start`.
    fn announce(
        &mut self,
        index: FlowIndex,
        kind: Kind,
        at: Timestamp,
        reason: Option<EndReason>,
        emit: &mut impl FnMut(Record),
    ) {
        let Some(flow) = self.table.flow(index) else { return };
        if !self.is_recorded(flow, kind) {
            return;
        }
        let kind = if flow.tenant.marks.has(Marks::ANNOUNCED) { kind } else { Kind::Start };
        emit(describe(&self.settings, &self.policy, flow, kind, at, reason));
        if let Some(flow) = self.table.flow_mut(index) {
            flow.tenant.marks.set(Marks::ANNOUNCED, true);
        }
    }

    fn is_recorded(&self, flow: &Flow<Case>, kind: Kind) -> bool {
        let label = flow.tenant.file.as_ref().map_or(Label::Other, |file| file.verdict.label);
        match self.settings.other {
            _ if label != Label::Other || flow.tenant.marks.has(Marks::ANNOUNCED) => true,
            OtherRecords::All => true,
            OtherRecords::End => kind == Kind::End,
            OtherRecords::None => false,
        }
    }

    fn first_update(&self, first: Timestamp) -> Timestamp {
        if self.settings.update_interval.is_zero() { Timestamp::MAX } else { first + self.settings.update_interval }
    }
}

/// A packet's payload, as a detector sees it.
fn segment<'a>(packet: &ParsedPacket<'a>, direction: Direction) -> Segment<'a> {
    let (ports, carrier) = match packet.transport {
        Transport::Udp { src_port, dst_port } => ([src_port, dst_port], Carrier::Udp),
        Transport::Tcp { src_port, dst_port, seq, flags } => ([src_port, dst_port], Carrier::Tcp { seq, flags }),
        Transport::None => {
            ([0; 2], Carrier::Ip { protocol: packet.protocol, outer_v6: packet.addresses.version() == IpVersion::V6 })
        }
    };
    Segment {
        at: packet.at,
        packet: packet.number,
        direction,
        carrier,
        ports,
        payload: packet.payload,
        payload_len: packet.payload_len,
        is_fragment: packet.fragment.is_some(),
    }
}

impl File {
    fn new(next_update: Timestamp) -> Self {
        Self {
            verdict: plain(),
            detection: None,
            findings: None,
            next_update,
            continues: None,
            outer: None,
            family: None,
            related: Vec::new(),
        }
    }
}

/// Whether a packet adds to its flow's counts and nothing else, if the flow is not one that is still looked at.
#[inline]
fn is_calm(packet: &ParsedPacket<'_>, has_keys: bool) -> bool {
    let is_plain = match packet.transport {
        Transport::Tcp { flags, .. } => flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) == 0,
        Transport::Udp { .. } => !is_told(packet, false) && !is_told(packet, true),
        Transport::None => true,
    };
    is_plain && packet.fragment.is_none() && !(has_keys && may_hold_handshake(&segment(packet, Direction::Forward)))
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether a UDP payload is looked at whatever was looked at before.
#[inline]
fn is_told(packet: &ParsedPacket<'_>, is_settled: bool) -> bool {
    if is_settled { goes_beside(packet.payload) } else { may_open(packet.payload, packet.payload_len) }
}

/// The verdict of a flow that nothing speaks for.
fn plain() -> Verdict {
    Verdict {
        label: Label::Other,
        reason: Reason::NotATunnel,
        tunnel: None,
        confidence: None,
        approval: None,
        keys: None,
        holds_until: Timestamp::MAX,
    }
}

/// Whether two verdicts say the same; until when they hold is not part of it.
fn same(one: &Verdict, other: &Verdict) -> bool {
    one.label == other.label
        && one.reason == other.reason
        && one.tunnel == other.tunnel
        && one.confidence == other.confidence
        && one.keys == other.keys
        && one.approval.as_ref().map(|approval| &approval.id) == other.approval.as_ref().map(|approval| &approval.id)
}

fn found(flow: &Flow<Case>) -> Option<Detection> {
    flow.tenant.findings().and_then(Findings::detection)
}

fn over_reason(flow: &Flow<Case>) -> EndReason {
    if flow.is_closed() { EndReason::EndOfFlow } else { EndReason::IdleTimeout }
}

/// RFC 9293 3.5: the opener sends a SYN alone, its peer answers with SYN and ACK.
const fn tcp_opener(flags: TcpFlags) -> Opener {
    if !flags.has(TcpFlags::SYN) {
        Opener::Unknown
    } else if flags.has(TcpFlags::ACK) {
        Opener::Other
    } else {
        Opener::First
    }
}

/// Whole seconds, as kept in 32 bits with each flow.
fn seconds(at: Timestamp) -> u32 {
    u32::try_from(at.as_secs()).unwrap_or(u32::MAX)
}

/// The `update` that the due second of a flow without a file stands for.
fn next_update(flow: &Flow<Case>, interval: Duration) -> Timestamp {
    let second = Timestamp::from_secs(flow.tenant.due.into());
    update_after(Timestamp::from_nanos(second.as_nanos().saturating_sub(1)), flow.first, interval)
}

/// The next multiple of the interval since a flow's first packet, so that the split into workers changes nothing.
fn update_after(at: Timestamp, first: Timestamp, interval: Duration) -> Timestamp {
    match at.since(first).as_nanos().checked_div(interval.as_nanos()) {
        Some(passed) => first + interval.saturating_mul(u32::try_from(passed + 1).unwrap_or(u32::MAX)),
        None => Timestamp::MAX,
    }
}
