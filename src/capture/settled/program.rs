//! The filter that counts packets of settled flows in the kernel and passes everything else up.
//!
//! It finds a packet's flow as the core does, but reads plain packets only: Ethernet with at most two VLAN tags, or none;
//! IPv4 without options, IPv6 without extension headers, no fragments; TCP, UDP or ESP. Whatever else comes, and whatever
//! contradicts itself, goes up, where it is looked at as if there were no such filter. So does what the core would look at
//! in a settled flow, or a little more than that.
//!
//! | register | holds |
//! |---|---|
//! | R6 | the packet (`struct __sk_buff`) |
//! | R7 | offset of the IP header, then that of the payload |
//! | R8 | octets on the wire, with the tag that the kernel took out |
//! | R9 | VLANs and protocol, then the flow's entry |
//!
//! | below the stack's end | octets | holds |
//! |---|---|---|
//! | 40 | 40 | the key, its endpoints in order |
//! | 44 | 4 | where in the table to look |
//! | 48 | 4 | entries behind it that are worth a look |
//! | 52 | 4 | 0 from the lower endpoint, 1 from the higher |
//! | 56 | 4 | octets of payload |
//! | 60 | 4 | the first octets of payload, UDP |
//! | 64 | 4 | source and destination port |
//! | 68 | 4 | 1: so much of the packet was loaded that nothing else must be |
//! | 120 | 48 | octets of payload, where they were loaded apart |
//! | 216 | 96 | the IP header and what follows; before it the Ethernet header |

use super::{BURST, KEYS, MULTIPLIER, PERIOD, PROBES, SETTLED, TLS, V6, word};
use crate::capture::LinkLayer;
use crate::capture::ebpf::{Assembler, Compare, Instruction, Label, Map, Operand, Operation, Register, Size, helper};
use std::os::fd::AsFd;
use std::time::Duration;

use Compare::{Above, AnyBit, AtLeast, AtMost, Below, Equal, NotEqual};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Size::{Double, Half, Octet, Word};

const KEY: i16 = -40;
const KEY_PORTS: i16 = KEY + 32;
const KEY_REST: i16 = KEY + 36;
const PLACE: i16 = -44;
const REACH: i16 = -48;
const HIGHER: i16 = -52;
const LENGTH: i16 = -56;
const HEAD: i16 = -60;
const PORTS: i16 = -64;
const WHOLE: i16 = -68;
const PAYLOAD: i16 = -120;
const IP: i16 = -216;
const ETHERNET: i16 = IP - ETHERNET_OCTETS;
const ETHERNET_OCTETS: i16 = 14;

/// Fields of `struct __sk_buff`.
const SKB_LEN: i16 = 0;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_VLAN_TCI: i16 = 24;

/// An IPv6 header, or an IPv4 header with the TCP or UDP header and twelve octets more.
const IP_OCTETS: i16 = 40;
/// The same with as much of a UDP payload as anything below looks at.
const WHOLE_OCTETS: i16 = 96;
/// A TCP header, or a UDP header and twelve octets more.
const TRANSPORT_OCTETS: i32 = 20;

const TCP: i32 = 6;
const UDP: i32 = 17;
const ESP: i32 = 50;

const FIN_SYN_RST: i32 = 0x07;

/// Times of some hundred milliseconds are compared in units of so many bits of nanoseconds: about one millisecond.
const OPEN_UNIT: i32 = 20;

/// A number of 16 bits as it lies in memory.
fn network(number: u16) -> i32 {
    i32::from(number.to_be())
}

/// What a filter is made for.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub link: LinkLayer,
    /// VLANs tell flows apart.
    pub vlan_in_key: bool,
    /// Octets of a packet that go up.
    pub snap_length: u32,
    /// How long all of a flow goes up behind what may open a tunnel.
    pub open_for: Duration,
    /// Where the hash begins.
    pub seed: u64,
    /// The table, and its entries: a power of two.
    pub table: &'a Map,
    pub entries: u32,
}

/// The filter.
pub fn program(plan: &Plan<'_>) -> Option<Vec<Instruction>> {
    let mut code = Assembler::default();
    let [up, ipv4, ipv6] = std::array::from_fn(|_| code.label());
    let mut filter = Filter { code, plan, up, ipv4, ipv6 };
    filter.start();
    match plan.link {
        LinkLayer::Ethernet => filter.ethernet(),
        LinkLayer::RawIp => filter.raw_ip(),
    }
    filter.ipv4();
    filter.ipv6();
    let Filter { mut code, .. } = filter;
    code.here(up);
    code.copy(R0, i32::try_from(plan.snap_length).unwrap_or(i32::MAX));
    code.exit();
    code.finish()
}

struct Filter<'a> {
    code: Assembler,
    plan: &'a Plan<'a>,
    /// To whoever reads the ring.
    up: Label,
    ipv4: Label,
    ipv6: Label,
}

impl Filter<'_> {
    fn start(&mut self) {
        let code = &mut self.code;
        code.copy(R6, R1);
        code.load(Word, R8, R6, SKB_LEN);
        code.copy(R9, 0);
        // What not every path below writes: the kernel takes no program that may read what was not.
        code.store(Double, R10, PORTS, 0);
        code.store(Word, R10, LENGTH, 0);
    }

    fn raw_ip(&mut self) {
        let (up, ipv4, ipv6) = (self.up, self.ipv4, self.ipv6);
        self.load_headers(0, IP);
        self.code.copy(R7, 0);
        self.code.load(Octet, R1, R10, IP);
        self.code.operate(Operation::ShiftRight, R1, 4);
        self.code.when(R1, Equal, 4, ipv4);
        self.code.when(R1, Equal, 6, ipv6);
        self.code.jump(up);
    }

    fn ethernet(&mut self) {
        let stripped = self.code.label();
        self.headers(0);
        self.code.load(Word, R1, R6, SKB_VLAN_PRESENT);
        self.code.when(R1, NotEqual, 0, stripped);
        self.by_ethertype();
        self.tag(20);
        self.headers(4);
        self.by_ethertype();
        self.tag(8);
        self.headers(8);
        self.by_ethertype();
        self.code.jump(self.up);

        self.code.here(stripped);
        self.code.operate(Operation::Add, R8, 4);
        self.code.load(Word, R1, R6, SKB_VLAN_TCI);
        self.add_vlan(20);
        self.by_ethertype();
        self.tag(8);
        self.headers(4);
        self.by_ethertype();
        self.code.jump(self.up);
    }

    /// Loads the headers behind so many octets of tags; R7: offset of the IP header.
    fn headers(&mut self, tags: i16) {
        self.load_headers(tags, ETHERNET);
        self.code.copy(R7, i32::from(tags + ETHERNET_OCTETS));
    }

    /// Loads headers from `from` of the packet to `to`, and what follows if it is there.
    fn load_headers(&mut self, from: i16, to: i16) {
        let up = self.up;
        let [whole, loaded] = std::array::from_fn(|_| self.code.label());
        self.code.load(Word, R1, R6, SKB_LEN);
        self.code.when(R1, AtLeast, i32::from(from + IP - to + WHOLE_OCTETS), whole);
        self.code.when(R1, Below, i32::from(from + IP - to + IP_OCTETS), up);
        self.load_octets(i32::from(from), to, i32::from(IP - to + IP_OCTETS));
        for at in (IP_OCTETS..WHOLE_OCTETS).step_by(8) {
            self.code.store(Double, R10, IP + at, 0);
        }
        self.code.store(Word, R10, WHOLE, 0);
        self.code.jump(loaded);
        self.code.here(whole);
        self.load_octets(i32::from(from), to, i32::from(IP - to + WHOLE_OCTETS));
        self.code.store(Word, R10, WHOLE, 1);
        self.code.here(loaded);
    }

    /// Goes on where there is IP; R1: what else there is.
    fn by_ethertype(&mut self) {
        let (ipv4, ipv6) = (self.ipv4, self.ipv6);
        self.code.load(Half, R1, R10, ETHERNET + 12);
        self.code.when(R1, Equal, network(0x0800), ipv4);
        self.code.when(R1, Equal, network(0x86dd), ipv6);
    }

    /// Takes a tag's VLAN in; anything but a tag goes up.
    fn tag(&mut self, shift: i32) {
        let (tag, up) = (self.code.label(), self.up);
        self.code.when(R1, Equal, network(0x8100), tag);
        self.code.when(R1, Equal, network(0x88a8), tag);
        self.code.when(R1, NotEqual, network(0x9100), up);
        self.code.here(tag);
        self.code.load(Half, R1, R10, ETHERNET + 14);
        self.code.swap(R1, 16);
        self.add_vlan(shift);
    }

    /// From the tag in R1.
    fn add_vlan(&mut self, shift: i32) {
        if self.plan.vlan_in_key {
            self.code.operate(Operation::And, R1, 0x0fff);
            self.code.operate(Operation::ShiftLeft, R1, shift);
            self.code.operate(Operation::Or, R9, R1);
        }
    }

    /// RFC 791 3.1, as the core reads it.
    fn ipv4(&mut self) {
        let (code, up) = (&mut self.code, self.up);
        code.here(self.ipv4);
        code.load(Octet, R1, R10, IP);
        code.when(R1, NotEqual, 0x45, up);
        code.load(Half, R1, R10, IP + 6);
        // More fragments, or an offset.
        code.when(R1, AnyBit, network(0x3fff), up);
        code.load(Half, R4, R10, IP + 2);
        code.swap(R4, 16);
        code.when(R4, Below, 20, up);
        code.load(Word, R3, R6, SKB_LEN);
        code.operate(Operation::Sub, R3, R7);
        code.when(R4, Above, R3, up);
        code.operate(Operation::Sub, R4, 20);
        code.operate(Operation::Add, R7, 20);
        code.load(Octet, R1, R10, IP + 9);
        self.transport(IP + 20, 0);
        self.order_ipv4();
        let words = [0, 32];
        self.hash(&words);
        self.find(&words);
        self.look(IP + 20 + 8);
    }

    /// RFC 8200 3, as the core reads it.
    fn ipv6(&mut self) {
        let (code, up) = (&mut self.code, self.up);
        code.here(self.ipv6);
        code.load(Octet, R1, R10, IP);
        code.operate(Operation::ShiftRight, R1, 4);
        code.when(R1, NotEqual, 6, up);
        code.load(Half, R4, R10, IP + 4);
        code.swap(R4, 16);
        // 0: the frame would know (RFC 2675 3).
        code.when(R4, Equal, 0, up);
        code.operate(Operation::Add, R7, i32::from(IP_OCTETS));
        code.load(Word, R3, R6, SKB_LEN);
        code.operate(Operation::Sub, R3, R7);
        code.when(R4, Above, R3, up);
        code.when(R4, Below, TRANSPORT_OCTETS, up);
        code.store(Word, R10, LENGTH, R4);
        let loaded = code.label();
        code.load(Word, R1, R10, WHOLE);
        code.when(R1, NotEqual, 0, loaded);
        self.load_octets(R7, IP + IP_OCTETS, TRANSPORT_OCTETS);
        self.code.here(loaded);
        self.code.load(Word, R4, R10, LENGTH);
        self.code.load(Octet, R1, R10, IP + 6);
        self.transport(IP + IP_OCTETS, V6);
        self.order_ipv6();
        let words = [0, 8, 16, 24, 32];
        self.hash(&words);
        self.find(&words);
        self.look(IP + IP_OCTETS + 8);
    }

    /// R1: protocol, R4: octets behind the IP header, R7: where they are; `at`: where they are on the stack.
    fn transport(&mut self, at: i16, version: u8) {
        let (code, up) = (&mut self.code, self.up);
        let [udp, tcp, ports, rest] = std::array::from_fn(|_| code.label());
        let of = |protocol: i32| protocol | i32::from(version);
        code.when(R1, Equal, UDP, udp);
        code.when(R1, Equal, TCP, tcp);
        code.when(R1, NotEqual, ESP, up);
        code.operate(Operation::Or, R9, of(ESP));
        code.jump(rest);

        code.here(udp);
        code.when(R4, Below, 8, up);
        code.load(Half, R2, R10, at + 4);
        code.swap(R2, 16);
        code.when(R2, Below, 8, up);
        let shorter = code.label();
        code.when(R2, AtMost, R4, shorter);
        code.copy(R2, R4);
        code.here(shorter);
        code.operate(Operation::Sub, R2, 8);
        code.store(Word, R10, LENGTH, R2);
        code.operate(Operation::Add, R7, 8);
        code.load(Word, R1, R10, at + 8);
        code.store(Word, R10, HEAD, R1);
        code.operate(Operation::Or, R9, of(UDP));
        code.jump(ports);

        code.here(tcp);
        code.when(R4, Below, 20, up);
        code.load(Octet, R2, R10, at + 12);
        code.operate(Operation::ShiftRight, R2, 4);
        code.operate(Operation::ShiftLeft, R2, 2);
        code.when(R2, Below, 20, up);
        code.when(R2, Above, R4, up);
        code.load(Octet, R1, R10, at + 13);
        code.when(R1, AnyBit, FIN_SYN_RST, up);
        code.operate(Operation::Add, R7, R2);
        code.operate(Operation::Sub, R4, R2);
        code.store(Word, R10, LENGTH, R4);
        code.operate(Operation::Or, R9, of(TCP));

        code.here(ports);
        code.load(Word, R1, R10, at);
        code.store(Word, R10, PORTS, R1);
        code.here(rest);
        code.store(Word, R10, KEY_REST, R9);
    }

    /// Lower endpoint first, as the core has it: by address, then by port.
    fn order_ipv4(&mut self) {
        let code = &mut self.code;
        let [low, high, ordered] = std::array::from_fn(|_| code.label());
        code.load(Word, R1, R10, IP + 12);
        code.load(Word, R2, R10, IP + 16);
        code.copy(R3, R1);
        code.swap(R3, 32);
        code.copy(R4, R2);
        code.swap(R4, 32);
        code.when(R3, Below, R4, low);
        code.when(R3, Above, R4, high);
        self.by_port(low);
        let code = &mut self.code;
        code.here(high);
        code.store(Word, R10, KEY, R2);
        code.store(Word, R10, KEY + 4, R1);
        self.swap_ports();
        let code = &mut self.code;
        code.jump(ordered);
        code.here(low);
        code.store(Word, R10, KEY, R1);
        code.store(Word, R10, KEY + 4, R2);
        self.keep_ports();
        self.code.here(ordered);
    }

    fn order_ipv6(&mut self) {
        let code = &mut self.code;
        let [low, high, ordered] = std::array::from_fn(|_| code.label());
        for at in [0, 8] {
            code.load(Double, R1, R10, IP + 8 + at);
            code.load(Double, R2, R10, IP + 24 + at);
            code.swap(R1, 64);
            code.swap(R2, 64);
            code.when(R1, Below, R2, low);
            code.when(R1, Above, R2, high);
        }
        self.by_port(low);
        for (label, one, other) in [(high, 24, 8), (low, 8, 24)] {
            let code = &mut self.code;
            code.here(label);
            for at in [0, 8] {
                code.load(Double, R1, R10, IP + one + at);
                code.store(Double, R10, KEY + at, R1);
                code.load(Double, R1, R10, IP + other + at);
                code.store(Double, R10, KEY + 16 + at, R1);
            }
            if label == high {
                self.swap_ports();
                self.code.jump(ordered);
            } else {
                self.keep_ports();
            }
        }
        self.code.here(ordered);
    }

    /// Both addresses are the same.
    fn by_port(&mut self, low: Label) {
        let code = &mut self.code;
        for (register, at) in [(R3, PORTS), (R4, PORTS + 2)] {
            code.load(Half, register, R10, at);
            code.swap(register, 16);
        }
        code.when(R3, AtMost, R4, low);
    }

    fn keep_ports(&mut self) {
        self.code.load(Word, R1, R10, PORTS);
        self.code.store(Word, R10, KEY_PORTS, R1);
        self.code.store(Word, R10, HIGHER, 0);
    }

    fn swap_ports(&mut self) {
        for (from, to) in [(0, 2), (2, 0)] {
            self.code.load(Half, R1, R10, PORTS + from);
            self.code.store(Half, R10, KEY_PORTS + to, R1);
        }
        self.code.store(Word, R10, HIGHER, 1);
    }

    /// R3: [`super::table::hash`] of those words of the key.
    fn hash(&mut self, words: &[i16]) {
        let seed = self.plan.seed;
        let code = &mut self.code;
        code.set(R3, seed);
        code.set(R2, MULTIPLIER);
        for at in words.iter().map(Some).chain([None]) {
            if let Some(at) = at {
                code.load(Double, R1, R10, KEY + at);
                code.operate(Operation::Xor, R3, R1);
            }
            code.operate(Operation::Mul, R3, R2);
            code.copy(R1, R3);
            code.operate(Operation::ShiftRight, R1, 32);
            code.operate(Operation::Xor, R3, R1);
        }
    }

    /// R9: the entry of the packet's flow, the same in those words of the key (its last one tells IPv4 from IPv6); what has
    /// none goes up. R3: the hash.
    fn find(&mut self, words: &[i16]) {
        let (up, table, mask) = (self.up, self.plan.table, self.plan.entries - 1);
        let code = &mut self.code;
        let found = code.label();
        code.copy(R1, R3);
        code.operate(Operation::And, R1, mask.cast_signed());
        code.store(Word, R10, PLACE, R1);
        for probe in 0..PROBES {
            let next = code.label();
            code.load_map(R1, table.as_fd());
            code.copy(R2, R10);
            code.operate(Operation::Add, R2, i32::from(PLACE));
            // An array's look-up is written out by the kernel: no call.
            code.call(helper::MAP_LOOKUP);
            code.when(R0, Equal, 0, up);
            if probe == 0 {
                code.load(Double, R5, R0, word::FLAGS);
                code.operate(Operation::ShiftRight, R5, 32);
                code.store(Word, R10, REACH, R5);
            }
            for &at in words.iter().rev() {
                code.load(Double, R1, R0, at);
                code.load(Double, R2, R10, KEY + at);
                code.when(R1, NotEqual, R2, next);
            }
            code.jump(found);
            code.here(next);
            if probe + 1 < PROBES {
                code.load(Word, R1, R10, REACH);
                code.when(R1, AtMost, probe.cast_signed(), up);
                code.load(Word, R1, R10, PLACE);
                code.operate(Operation::Add, R1, 1);
                code.operate(Operation::And, R1, mask.cast_signed());
                code.store(Word, R10, PLACE, R1);
            }
        }
        code.jump(up);
        code.here(found);
        code.copy(R9, R0);
    }

    /// Counts what is of no interest. `payload`: where UDP's is on the stack, if the whole was loaded.
    fn look(&mut self, payload: i16) {
        let (up, open_for) = (self.up, self.plan.open_for);
        let code = &mut self.code;
        let [unsampled, udp, tcp, count, high, done, shut] = std::array::from_fn(|_| code.label());
        code.load(Word, R1, R9, word::FLAGS);
        code.when(R1, AnyBit, SETTLED, unsampled);
        // What may open a tunnel was here: the answer goes up, too, for the worker may not have read the question yet.
        code.load(Double, R2, R9, word::OPENED);
        code.when(R2, Equal, 0, shut);
        code.call(helper::KTIME_COARSE_NS);
        code.load(Double, R2, R9, word::OPENED);
        code.operate(Operation::Sub, R0, R2);
        code.operate(Operation::ShiftRight, R0, OPEN_UNIT);
        code.when(R0, Below, i32::try_from(open_for.as_nanos() >> OPEN_UNIT).unwrap_or(i32::MAX), up);
        code.store(Double, R9, word::OPENED, 0);
        code.load(Word, R1, R9, word::FLAGS);
        code.here(shut);
        // Two processors may take the same number: one sample more or less.
        code.load(Double, R2, R9, word::NUMBER);
        code.copy(R3, R2);
        code.operate(Operation::Add, R3, 1);
        code.store(Double, R9, word::NUMBER, R3);
        code.operate(Operation::And, R2, PERIOD - 1);
        code.when(R2, Below, BURST, up);
        code.here(unsampled);
        code.load(Word, R2, R10, KEY_REST);
        code.operate(Operation::And, R2, i32::from(!V6));
        code.when(R2, Equal, UDP, udp);
        code.when(R2, Equal, TCP, tcp);
        code.jump(count);

        code.here(udp);
        self.udp(count, payload);
        self.code.here(tcp);
        self.tcp(count);

        let code = &mut self.code;
        code.here(count);
        code.call(helper::KTIME_COARSE_NS);
        code.store(Double, R9, word::LAST, R0);
        code.copy(R2, 1);
        code.load(Word, R1, R10, HIGHER);
        code.when(R1, NotEqual, 0, high);
        code.add_atomically(Double, R9, word::PACKETS, R2);
        code.add_atomically(Double, R9, word::OCTETS, R8);
        code.jump(done);
        code.here(high);
        code.add_atomically(Double, R9, word::PACKETS + 8, R2);
        code.add_atomically(Double, R9, word::OCTETS + 8, R8);
        code.here(done);
        code.copy(R0, 0);
        code.exit();
    }

    /// R1: flags. What may open a tunnel or hold a handshake goes up, as `detect::may_open`, `detect::goes_beside` and
    /// `detect::may_hold_handshake` say, or a little more.
    fn udp(&mut self, count: Label, payload: i16) {
        let (code, up) = (&mut self.code, self.up);
        let [keyed, unkeyed, opens, reset_v3, reset_apart, apart, short] = std::array::from_fn(|_| code.label());
        code.load(Word, R2, R10, LENGTH);
        code.when(R2, Equal, 0, count);
        code.load(Word, R3, R10, HEAD);
        code.swap(R3, 32);
        code.copy(R4, R3);
        code.operate(Operation::ShiftRight, R4, 24);
        // Tailscale's disco.
        code.when(R3, Equal, 0x5453_f09f, up);
        code.when(R1, AnyBit, KEYS, keyed);
        code.jump(unkeyed);
        code.here(keyed);
        code.when(R3, Equal, 0x0100_0000, up);
        code.when(R3, Equal, 0x0200_0000, up);
        for first in HANDSHAKES {
            code.when(R4, Equal, first, up);
        }
        code.here(unkeyed);
        code.when(R1, AnyBit, SETTLED, count);

        // WireGuard's initiation and response, a fastd handshake, Nebula's, OpenVPN's resets.
        for whole in [0x0200_0000, 0x1000_0000] {
            code.when(R3, Equal, whole, opens);
        }
        code.when(R4, Equal, 0x38, opens);
        code.when(R4, Equal, 0x50, reset_v3);
        code.operate(Operation::ShiftRight, R3, 16);
        code.when(R3, Equal, 0x0100, opens);
        code.when(R2, Below, 19, count);
        code.load(Word, R1, R10, WHOLE);
        code.when(R1, Equal, 0, apart);
        let ike = code.label();
        code.when(R2, Below, 112, ike);
        self.zerotier(payload, opens);
        self.code.here(ike);
        self.ike(payload, opens);
        self.code.jump(count);

        self.code.here(apart);
        self.code.when(R2, Below, 112, short);
        self.load_octets(R7, PAYLOAD, 46);
        self.zerotier(PAYLOAD, opens);
        self.ike(PAYLOAD, opens);
        self.code.jump(count);
        self.code.here(short);
        self.load_octets(R7, PAYLOAD, 19);
        self.ike(PAYLOAD, opens);
        self.code.jump(count);

        self.code.here(reset_v3);
        self.code.when(R2, Below, 19, count);
        self.code.load(Word, R1, R10, WHOLE);
        self.code.when(R1, Equal, 0, reset_apart);
        self.reset_v3(payload);
        self.code.jump(opens);
        self.code.here(reset_apart);
        self.load_octets(R7, PAYLOAD, 19);
        self.reset_v3(PAYLOAD);

        let code = &mut self.code;
        code.here(opens);
        code.call(helper::KTIME_COARSE_NS);
        code.store(Double, R9, word::OPENED, R0);
        code.jump(up);
    }

    /// ZeroTier's HELLO: the sender's address comes twice.
    fn zerotier(&mut self, payload: i16, opens: Label) {
        let code = &mut self.code;
        let other = code.label();
        code.load(Octet, R1, R10, payload + 27);
        code.when(R1, NotEqual, 1, other);
        for (size, one, two) in [(Octet, 13, 41), (Half, 14, 42), (Half, 16, 44)] {
            code.load(size, R1, R10, payload + one);
            code.load(size, R2, R10, payload + two);
            code.when(R1, NotEqual, R2, other);
        }
        code.jump(opens);
        code.here(other);
    }

    /// IKE: no responder's SPI yet.
    fn ike(&mut self, payload: i16, opens: Label) {
        let code = &mut self.code;
        code.load(Word, R1, R10, payload + 8);
        code.load(Word, R2, R10, payload + 12);
        code.operate(Operation::Or, R1, R2);
        code.when(R1, Equal, 0, opens);
    }

    /// One in 64 of QUIC's packets begins like OpenVPN's reset of version 3: it goes up, but opens nothing unless a session's
    /// first packet identifier, guarded or not, stands behind the session.
    fn reset_v3(&mut self, payload: i16) {
        for (at, bits) in [(9, 0xf0), (10, 0xff), (11, 0xff), (12, 0xc0)] {
            self.code.load(Octet, R1, R10, payload + at);
            self.code.when(R1, AnyBit, bits, self.up);
        }
    }

    /// R1: flags. TLS goes up where none was seen yet, since a flow of it can stand beside another.
    fn tcp(&mut self, count: Label) {
        let up = self.up;
        let [keyed, look] = std::array::from_fn(|_| self.code.label());
        self.code.when(R1, AnyBit, KEYS, look);
        self.code.when(R1, AnyBit, TLS, count);
        self.code.here(look);
        self.code.load(Word, R2, R10, LENGTH);
        self.code.when(R2, Below, 3, count);
        self.load_octets(R7, PAYLOAD, 3);
        let code = &mut self.code;
        code.load(Word, R1, R9, word::FLAGS);
        code.load(Octet, R2, R10, PAYLOAD + 2);
        code.when(R1, AnyBit, KEYS, keyed);
        let unkeyed = code.label();
        code.jump(unkeyed);
        code.here(keyed);
        for first in HANDSHAKES {
            code.when(R2, Equal, first, up);
        }
        code.here(unkeyed);
        code.when(R1, AnyBit, TLS, count);
        code.when(R2, Above, 4, count);
        code.load(Octet, R2, R10, PAYLOAD + 1);
        code.when(R2, NotEqual, 3, count);
        code.load(Octet, R2, R10, PAYLOAD);
        code.operate(Operation::Sub, R2, 20);
        code.when(R2, AtMost, 3, up);
        code.jump(count);
    }

    /// Loads octets of the packet onto the stack; what is not there goes up. R1 to R5 are lost.
    fn load_octets(&mut self, from: impl Into<Operand>, to: i16, octets: i32) {
        let (code, up) = (&mut self.code, self.up);
        code.copy(R2, from);
        code.copy(R3, R10);
        code.operate(Operation::Add, R3, i32::from(to));
        code.copy(R4, octets);
        code.copy(R1, R6);
        code.call(helper::SKB_LOAD);
        code.when(R0, NotEqual, 0, up);
    }
}

/// First octets of OpenVPN's control packets of key 0: opcodes 4, 5, 7, 8, 10 and 11.
const HANDSHAKES: [i32; 6] = [0x20, 0x28, 0x38, 0x40, 0x50, 0x58];
