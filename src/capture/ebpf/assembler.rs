//! Puts eBPF instructions together: one method an instruction, labels for the places to jump to.
//!
//! RFC 9669 4: an instruction has 8 octets.
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 1 | opcode |
//! | 1 | 1 | registers: destination in the lower half, source in the upper one (on little-endian machines) |
//! | 2 | 2 | offset |
//! | 4 | 4 | immediate |

use std::os::fd::{AsRawFd, BorrowedFd};

/// One of the machine's registers. The kernel's helpers take R1 to R5 and leave nothing in them; R10 is the end of the
/// stack's 512 octets and cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// What an operation takes as its second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// A number, whose sign is spread over 64 bits.
    Number(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// How much is loaded or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// 4 octets.
    Word = 0x00,
    /// 2 octets.
    Half = 0x08,
    /// 1 octet.
    Octet = 0x10,
    /// 8 octets.
    Double = 0x18,
}

/// Arithmetic (RFC 9669 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Adds.
    Add = 0x00,
    /// Takes away.
    Sub = 0x10,
    /// Times.
    Mul = 0x20,
    /// Either bit.
    Or = 0x40,
    /// Both bits.
    And = 0x50,
    /// To the left.
    ShiftLeft = 0x60,
    /// To the right, zeros from the left.
    ShiftRight = 0x70,
    /// One bit of the two.
    Xor = 0xa0,
    /// Copies.
    Mov = 0xb0,
}

/// When a jump is taken (RFC 9669 4.3); all unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Compare {
    /// The same.
    Equal = 0x10,
    /// Greater.
    Above = 0x20,
    /// Greater or the same.
    AtLeast = 0x30,
    /// A bit in common.
    AnyBit = 0x40,
    /// Not the same.
    NotEqual = 0x50,
    /// Less.
    Below = 0xa0,
    /// Less or the same.
    AtMost = 0xb0,
}

/// As the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

/// A place in the program, named before or after it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where labels are.
    places: Vec<Option<usize>>,
    /// Which instructions jump to which label.
    jumps: Vec<(usize, Label)>,
}

const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_ALU: u8 = 0x04;
const CLASS_ALU64: u8 = 0x07;
/// The second operand is a register.
const FROM_REGISTER: u8 = 0x08;
const MODE_MEM: u8 = 0x60;
const MODE_ATOMIC: u8 = 0xc0;
/// Swap to the network's order (on a little-endian machine).
const END_TO_BIG: u8 = 0xd0 | FROM_REGISTER;
const LOAD_64_BITS: u8 = 0x18;
/// The number of such a load is a map's descriptor (`BPF_PSEUDO_MAP_FD`).
const MAP_DESCRIPTOR: u8 = 1;

impl Assembler {
    /// A new place, to be put somewhere by [`Self::here`].
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label is the next instruction.
    pub fn here(&mut self, label: Label) {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(self.code.len());
        }
    }

    /// `to = operation(to, by)`, 64 bits.
    pub fn operate(&mut self, operation: Operation, to: Register, by: impl Into<Operand>) {
        self.with_operand(CLASS_ALU64 | operation as u8, to, by.into(), 0);
    }

    /// `to = from`.
    pub fn copy(&mut self, to: Register, from: impl Into<Operand>) {
        self.operate(Operation::Mov, to, from);
    }

    /// `to = number`.
    pub fn set(&mut self, to: Register, number: u64) {
        self.code.push(Instruction { code: LOAD_64_BITS, registers: to as u8, offset: 0, number: number as i32 });
        self.code.push(Instruction { number: (number >> 32) as i32, ..Instruction::default() });
    }

    /// Turns the lower 16, 32 or 64 bits from the network's order to the machine's, or back; those above become 0.
    pub fn swap(&mut self, register: Register, bits: i32) {
        self.put(CLASS_ALU | END_TO_BIG, register, Register::R0, 0, bits);
    }

    /// `to = *(from + offset)`.
    pub fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.put(CLASS_LDX | MODE_MEM | size as u8, to, from, offset, 0);
    }

    /// `*(to + offset) = value`.
    pub fn store(&mut self, size: Size, to: Register, offset: i16, value: impl Into<Operand>) {
        match value.into() {
            Operand::Register(from) => self.put(CLASS_STX | MODE_MEM | size as u8, to, from, offset, 0),
            Operand::Number(number) => self.put(CLASS_ST | MODE_MEM | size as u8, to, Register::R0, offset, number),
        }
    }

    /// `*(to + offset) += value`, whoever else does the same at the same time; words and doubles only.
    pub fn add_atomically(&mut self, size: Size, to: Register, offset: i16, value: Register) {
        self.put(CLASS_STX | MODE_ATOMIC | size as u8, to, value, offset, 0);
    }

    /// Jumps.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(CLASS_JMP, Register::R0, Register::R0, 0, 0);
    }

    /// Jumps if it is so, by all 64 bits.
    pub fn when(&mut self, register: Register, compare: Compare, with: impl Into<Operand>, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.with_operand(CLASS_JMP | compare as u8, register, with.into(), 0);
    }

    /// Calls one of the kernel's helpers.
    pub fn call(&mut self, helper: i32) {
        self.put(CLASS_JMP | 0x80, Register::R0, Register::R0, 0, helper);
    }

    /// Ends; R0 is what the program says.
    pub fn exit(&mut self) {
        self.put(CLASS_JMP | 0x90, Register::R0, Register::R0, 0, 0);
    }

    /// `to` becomes a map, for a helper. Its descriptor must be open until the program is loaded.
    pub fn load_map(&mut self, to: Register, map: BorrowedFd<'_>) {
        let registers = MAP_DESCRIPTOR << 4 | to as u8;
        self.code.push(Instruction { code: LOAD_64_BITS, registers, offset: 0, number: map.as_raw_fd() });
        self.code.push(Instruction::default());
    }

    /// The program; `None` where a label was never put anywhere or is too far away, which is a defect of the caller.
    #[must_use]
    pub fn finish(self) -> Option<Vec<Instruction>> {
        let Self { mut code, places, jumps } = self;
        for (at, label) in jumps {
            let place = places.get(label.0).copied().flatten()?;
            // RFC 9669 4.3: counted from the next instruction.
            let distance = i64::try_from(place).ok()? - i64::try_from(at).ok()? - 1;
            code.get_mut(at)?.offset = i16::try_from(distance).ok()?;
        }
        Some(code)
    }

    fn with_operand(&mut self, code: u8, to: Register, by: Operand, offset: i16) {
        match by {
            Operand::Register(from) => self.put(code | FROM_REGISTER, to, from, offset, 0),
            Operand::Number(number) => self.put(code, to, Register::R0, offset, number),
        }
    }

    fn put(&mut self, code: u8, to: Register, from: Register, offset: i16, number: i32) {
        self.code.push(Instruction { code, registers: (from as u8) << 4 | to as u8, offset, number });
    }
}

#[cfg(test)]
mod tests {
    use super::super::helper;
    use super::*;

    #[test]
    fn instructions_are_those_of_the_specification() {
        let mut program = Assembler::default();
        let end = program.label();
        program.copy(Register::R6, Register::R1);
        program.load(Size::Word, Register::R0, Register::R6, 16);
        program.swap(Register::R0, 16);
        program.when(Register::R0, Compare::NotEqual, 0x0800, end);
        program.operate(Operation::Add, Register::R0, -1);
        program.operate(Operation::And, Register::R0, Register::R7);
        program.store(Size::Double, Register::R10, -8, 7);
        program.add_atomically(Size::Double, Register::R9, 8, Register::R1);
        program.jump(end);
        program.call(helper::KTIME_COARSE_NS);
        program.here(end);
        program.exit();
        // As `llvm-objdump` shows such code.
        #[rustfmt::skip]
        let expected = [
            (0xbf, 0x16, 0, 0), (0x61, 0x60, 16, 0), (0xdc, 0x00, 0, 16), (0x55, 0x00, 6, 0x0800), (0x07, 0x00, 0, -1),
            (0x5f, 0x70, 0, 0), (0x7a, 0x0a, -8, 7), (0xdb, 0x19, 8, 0), (0x05, 0x00, 1, 0), (0x85, 0x00, 0, 160),
            (0x95, 0x00, 0, 0),
        ];
        let expected =
            expected.map(|(code, registers, offset, number)| Instruction { code, registers, offset, number });
        assert_eq!(program.finish().unwrap(), expected);
    }

    #[test]
    fn a_label_without_a_place_is_no_program() {
        let mut program = Assembler::default();
        let nowhere = program.label();
        program.jump(nowhere);
        assert_eq!(program.finish(), None);
    }
}
