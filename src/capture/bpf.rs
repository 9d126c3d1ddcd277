//! Turns settings into classic BPF: the program that cuts frames to the snap length, the user's own filter with that
//! cut patched in, and the program that gives both directions of a conversation to one worker.
//!
//! Classic BPF: `McCanne` and Jacobson 1993; the kernel's `Documentation/networking/filter.rst`.

use super::LinkLayer;
use crate::config::Instruction;

const RET_K: u16 = 0x06;
const RET_A: u16 = 0x16;

/// Lets nothing through: what a socket starts with, until every member of its group has joined.
pub const NOTHING: [Instruction; 1] = [Instruction::new(RET_K, 0)];

/// The socket's program: `filter` with every length it returns cut to `snap_length`; an empty filter takes everything.
#[must_use]
pub fn snapped(filter: &[Instruction], snap_length: u32) -> Vec<Instruction> {
    if filter.is_empty() {
        return vec![Instruction::new(RET_K, snap_length)];
    }
    let cut = |i: &Instruction| match i.code {
        RET_K => Instruction { k: i.k.min(snap_length), ..*i },
        _ => *i,
    };
    filter.iter().map(cut).collect()
}

// The socket's own data pointer stands behind the link header of what comes in (and behind the tag that was taken out), and
// at the link header of what goes out: offsets are relative to it, and the packet's type tells which it is. The offsets that
// are relative to the link header in both directions (`SKF_LL_OFF`) do not do: before Linux 6.16 they end with the linear
// part of the frame's memory, where some drivers leave no more than the link header.

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
const PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL).cast_unsigned();

const LD_W_ABS: u16 = 0x20;
const LD_H_ABS: u16 = 0x28;
const LD_W_IND: u16 = 0x40;
const LD_H_IND: u16 = 0x48;
const LD_B_IND: u16 = 0x50;
const LD_MEM: u16 = 0x60;
const LDX_IMM: u16 = 0x01;
const LDX_MEM: u16 = 0x61;
const ST: u16 = 0x02;
const ADD_K: u16 = 0x04;
const ADD_X: u16 = 0x0c;
const MUL_K: u16 = 0x24;
const RSH_K: u16 = 0x74;
const XOR_X: u16 = 0xac;
const AND_K: u16 = 0x54;
const JMP: u16 = 0x05;
const JEQ_K: u16 = 0x15;
const TAX: u16 = 0x07;
const TXA: u16 = 0x87;

/// VLAN tags left in the frame that the program looks behind; the outermost is usually out already.
const VLAN_TAGS: usize = 4;
/// MPLS labels that the program looks behind.
const MPLS_LABELS: usize = 8;

/// A place in the program to jump to.
#[derive(Clone, Copy)]
enum To {
    Next,
    Outgoing,
    Tags,
    Kind,
    Ipv4,
    Ipv6,
    Mpls,
    Version,
    Pppoe,
    Compressed,
    Mix,
    Zero,
}

/// A value for `PACKET_FANOUT_CBPF`: a mix of the outermost IP addresses, the same with source and destination swapped.
///
/// Ports stay out of it: fragments have none, and IKE has to meet the ESP that it sets up. It looks behind VLAN tags,
/// MPLS labels and a PPPoE session; what has no IP header there gets 0. The kernel takes the rest of a division
/// by the number of members.
#[must_use]
pub fn fanout(link: LinkLayer) -> Vec<Instruction> {
    let mut program = Assembler::default();
    match link {
        LinkLayer::Ethernet => program.ethernet(),
        LinkLayer::RawIp => {
            program.put(LDX_IMM, 0);
            program.jump(To::Version);
        }
    }
    program.version();
    program.addresses();
    program.resolve()
}

#[derive(Default)]
struct Assembler {
    code: Vec<(Instruction, To, To)>,
    places: [usize; To::Zero as usize + 1],
}

impl Assembler {
    fn put(&mut self, code: u16, k: u32) {
        self.code.push((Instruction::new(code, k), To::Next, To::Next));
    }

    fn jump(&mut self, to: To) {
        self.code.push((Instruction::new(JMP, 0), to, To::Next));
    }

    fn when(&mut self, equal: u32, yes: To, no: To) {
        self.code.push((Instruction::new(JEQ_K, equal), yes, no));
    }

    fn here(&mut self, place: To) {
        if let Some(slot) = self.places.get_mut(place as usize) {
            *slot = self.code.len();
        }
    }

    /// X += `k`, through A.
    fn advance(&mut self, k: u32) {
        self.put(TXA, 0);
        self.put(ADD_K, k);
        self.put(TAX, 0);
    }

    /// A: the `EtherType`, X: offset of what is behind it.
    fn ethernet(&mut self) {
        self.put(LD_W_ABS, PACKET_TYPE);
        self.when(OUTGOING, To::Outgoing, To::Next);
        self.put(LDX_IMM, 0);
        self.put(LD_W_ABS, PROTOCOL);
        self.jump(To::Tags);
        self.here(To::Outgoing);
        self.put(LDX_IMM, 14);
        self.put(LD_H_ABS, 12);
        self.here(To::Tags);
        for _ in 0..VLAN_TAGS {
            // IEEE 802.1Q, 802.1ad, and the older 0x9100 of QinQ: one tag more, else on to the kind.
            let tag = self.code.len();
            self.when(0x8100, To::Next, To::Next);
            self.when(0x88a8, To::Next, To::Next);
            self.when(0x9100, To::Next, To::Kind);
            for (index, skip) in [(tag, 2), (tag + 1, 1)] {
                if let Some((instruction, ..)) = self.code.get_mut(index) {
                    instruction.jt = skip;
                }
            }
            self.advance(4);
            self.put(LD_H_IND, 2_u32.wrapping_neg());
        }
        self.here(To::Kind);
        self.when(0x0800, To::Ipv4, To::Next);
        self.when(0x86dd, To::Ipv6, To::Next);
        self.when(0x8847, To::Mpls, To::Next);
        self.when(0x8848, To::Mpls, To::Next);
        self.when(0x8864, To::Pppoe, To::Zero);

        // RFC 2516 4: six octets, then the PPP protocol: RFC 1332 0x0021, RFC 5072 0x0057. RFC 1661 6.5: each side may
        // compress it to one octet.
        self.here(To::Pppoe);
        self.put(LD_B_IND, 6);
        self.when(0x21, To::Compressed, To::Next);
        self.when(0x57, To::Compressed, To::Next);
        self.put(LD_H_IND, 6);
        self.put(ST, 0);
        self.advance(8);
        self.put(LD_MEM, 0);
        self.when(0x0021, To::Ipv4, To::Next);
        self.when(0x0057, To::Ipv6, To::Zero);
        self.here(To::Compressed);
        self.advance(7);
        self.jump(To::Version);

        // RFC 3032 2.1: the bottom-of-stack bit is bit 8 of the 32.
        self.here(To::Mpls);
        for _ in 0..MPLS_LABELS {
            self.advance(4);
            self.put(LD_W_IND, 4_u32.wrapping_neg());
            self.put(AND_K, 0x100);
            self.when(0x100, To::Version, To::Next);
        }
        self.jump(To::Zero);
    }

    /// X: offset of what should be an IP header.
    fn version(&mut self) {
        self.here(To::Version);
        self.put(LD_B_IND, 0);
        self.put(RSH_K, 4);
        self.when(4, To::Ipv4, To::Next);
        self.when(6, To::Ipv6, To::Zero);
    }

    /// X: offset of the IP header; returns the value.
    fn addresses(&mut self) {
        self.here(To::Ipv4);
        self.put(LD_W_IND, 12);
        self.put(ST, 0);
        self.put(LD_W_IND, 16);
        self.put(ST, 1);
        self.jump(To::Mix);

        // Each IPv6 address becomes one word first; the order of its words counts.
        self.here(To::Ipv6);
        for (cell, start) in [(0, 8), (1, 24)] {
            self.put(LD_W_IND, start);
            for word in 1..4 {
                self.put(MUL_K, 0x0100_0193);
                self.put(ST, 2);
                self.put(LD_W_IND, start + 4 * word);
                self.put(ST, 3);
                // X is the offset and needed again: keep it aside while adding.
                self.put(TXA, 0);
                self.put(ST, 4);
                self.put(LDX_MEM, 2);
                self.put(LD_MEM, 3);
                self.put(ADD_X, 0);
                self.put(LDX_MEM, 4);
            }
            self.put(ST, cell);
        }

        // Sum and exclusive-or both ignore which address is the source. Both are mixed in, since either alone gives the
        // same value to many pairs of neighbouring networks.
        self.here(To::Mix);
        self.put(LD_MEM, 0);
        self.put(LDX_MEM, 1);
        self.put(XOR_X, 0);
        self.put(MUL_K, 0x9e37_79b1);
        self.put(ST, 2);
        self.put(LD_MEM, 0);
        self.put(ADD_X, 0);
        self.put(LDX_MEM, 2);
        self.put(ADD_X, 0);
        for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35), (16, 1)] {
            self.put(TAX, 0);
            self.put(RSH_K, shift);
            self.put(XOR_X, 0);
            self.put(MUL_K, factor);
        }
        self.put(RET_A, 0);

        self.here(To::Zero);
        self.put(RET_K, 0);
    }

    /// Turns places into distances; the programs are short enough for the eight bits of a condition's (tested).
    fn resolve(self) -> Vec<Instruction> {
        let places = self.places;
        let distance = |from: usize, to: To| match to {
            To::Next => None,
            place => places.get(place as usize).map(|at| at.saturating_sub(from + 1)),
        };
        let fill = |(index, (mut instruction, yes, no)): (usize, (Instruction, To, To))| {
            if instruction.code == JMP {
                instruction.k = distance(index, yes).unwrap_or(0) as u32;
            } else {
                instruction.jt = distance(index, yes).map_or(instruction.jt, |d| d as u8);
                instruction.jf = distance(index, no).map_or(instruction.jf, |d| d as u8);
            }
            instruction
        };
        self.code.into_iter().enumerate().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_return_is_cut_to_the_snap_length() {
        let [none, some, all] = [0, 100, 262_144].map(|k| Instruction::new(RET_K, k));
        let load = Instruction::new(LD_H_ABS, 262_144);
        assert_eq!(snapped(&[], 192), [Instruction::new(RET_K, 192)]);
        assert_eq!(snapped(&[load, none, some, all], 192), [load, none, some, Instruction::new(RET_K, 192)]);
    }

    #[test]
    fn every_condition_of_the_fanout_program_reaches_its_place() {
        for link in [LinkLayer::Ethernet, LinkLayer::RawIp] {
            let program = fanout(link);
            assert!(program.len() <= 256, "{link:?}: {} instructions", program.len());
            for (index, instruction) in program.iter().enumerate() {
                let far = if instruction.code == JMP { instruction.k as usize } else { 0 };
                let far = far.max(instruction.jt.into()).max(instruction.jf.into());
                assert!(index + 1 + far <= program.len(), "{link:?}, {index}: {instruction:?}");
            }
            assert_eq!(program.last().map(|last| last.code), Some(RET_K));
        }
    }
}
