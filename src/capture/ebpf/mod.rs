//! Turns programs that are put together here into running eBPF: an assembler, and the `bpf(2)` calls that load what it
//! gives, make the maps that it shares with us, and attach it.
//!
//! Written out rather than taken from `aya`: that loads an ELF object, which a nightly compiler with `bpf-linker` or clang
//! has to make, or which lies in the repository as a blob that nobody can review. Two programs of some hundred instructions
//! need neither, and follow the settings exactly: what is off is not in them.

mod assembler;
mod system;

pub use assembler::{Assembler, Compare, Instruction, Label, Operand, Operation, Register, Size};
pub use system::{Link, Map, MapKind, Program, ProgramKind, uptime};

/// Numbers of the kernel's helper functions (`enum bpf_func_id` of `linux/bpf.h`).
pub mod helper {
    /// R1: map, R2: pointer to the key. R0: pointer to the value, or 0.
    pub const MAP_LOOKUP: i32 = 1;
    /// R0: nanoseconds since the start of the system, as `CLOCK_MONOTONIC` said at the latest tick of the kernel's clock: for
    /// an eighth of the time that asking the clock takes (Linux 5.11).
    pub const KTIME_COARSE_NS: i32 = 160;
    /// R1: packet, R2: offset from its first octet, R3: where to, on the stack, R4: octets. R0: 0, or an error.
    pub const SKB_LOAD: i32 = 26;
    /// R1: map, R2: key, R3: what to return where it has none. R0: what to return.
    pub const REDIRECT_MAP: i32 = 51;
}
