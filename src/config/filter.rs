//! Turns the setting `capture.filter`, what `tcpdump -ddd EXPRESSION` prints, into classic BPF (the kernel's
//! `Documentation/networking/filter.rst`).

/// One instruction, as `struct sock_filter` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where the condition holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Instruction {
    /// One that jumps nowhere.
    #[must_use]
    pub const fn new(code: u16, k: u32) -> Self {
        Self { code, jt: 0, jf: 0, k }
    }
}

/// What is wrong with a filter from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A line is not four numbers.
    #[error("filter line {line}: `{text}` is not four numbers; write what `tcpdump -ddd EXPRESSION` prints")]
    Line {
        /// From 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// The kernel takes at most 4,096 instructions.
    #[error("filter has {0} instructions, the kernel takes at most {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    /// `ret a` returns a length that only the kernel knows.
    #[error("filter line {0} is `ret a`, which leaves no way to apply the snap length; `tcpdump -ddd` never writes it")]
    ReturnsAccumulator(usize),
    /// Falls off its end.
    #[error("filter does not end with `ret` (code 6): a line is missing")]
    NoReturn,
}

/// `BPF_MAXINSNS` of the kernel.
const MAX_INSTRUCTIONS: usize = 4096;

const RET_K: u16 = 0x06;
const RET_A: u16 = 0x16;

/// Reads what `tcpdump -ddd EXPRESSION` prints: an optional line with the number of instructions, then one a line.
pub fn parse_filter(text: &str) -> Result<Vec<Instruction>, FilterError> {
    let mut program = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_count = index == 0 && line.trim().parse::<u16>().is_ok();
        if is_count || line.trim().is_empty() {
            continue;
        }
        let wrong = || FilterError::Line { line: index + 1, text: line.trim().to_owned() };
        let instruction = parse_line(line).ok_or_else(wrong)?;
        if instruction.code == RET_A {
            return Err(FilterError::ReturnsAccumulator(index + 1));
        }
        program.push(instruction);
    }
    if program.len() > MAX_INSTRUCTIONS {
        return Err(FilterError::TooLong(program.len()));
    }
    match program.last() {
        Some(last) if last.code != RET_K => Err(FilterError::NoReturn),
        _ => Ok(program),
    }
}

fn parse_line(text: &str) -> Option<Instruction> {
    let mut words = text.split_whitespace();
    let instruction = Instruction {
        code: words.next()?.parse().ok()?,
        jt: words.next()?.parse().ok()?,
        jf: words.next()?.parse().ok()?,
        k: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_what_tcpdump_prints() {
        let everything = Instruction::new(RET_K, 262_144);
        let line = |line, text: &str| Err(FilterError::Line { line, text: text.to_owned() });
        let cases = [
            ("empty", String::new(), Ok(vec![])),
            ("the count alone", "0\n".into(), Ok(vec![])),
            ("with its count", "1\n6 0 0 262144\n".into(), Ok(vec![everything])),
            ("without, and blank lines", "\n 6 0 0 262144 \n\n".into(), Ok(vec![everything])),
            ("three numbers", "1\n6 0 0\n".into(), line(2, "6 0 0")),
            ("five numbers", "1\n6 0 0 1 1\n".into(), line(2, "6 0 0 1 1")),
            ("a jump of more than 8 bits", "1\n21 256 0 1\n".into(), line(2, "21 256 0 1")),
            ("an expression", "udp port 53".into(), line(1, "udp port 53")),
            ("no return", "1\n40 0 0 12\n".into(), Err(FilterError::NoReturn)),
            ("the accumulator", "2\n40 0 0 12\n22 0 0 0\n".into(), Err(FilterError::ReturnsAccumulator(3))),
            ("the longest", "6 0 0 1\n".repeat(4096), Ok(vec![Instruction::new(RET_K, 1); 4096])),
            ("one too long", "6 0 0 1\n".repeat(4097), Err(FilterError::TooLong(4097))),
        ];
        for (name, text, expected) in cases {
            assert_eq!(parse_filter(&text), expected, "{name}");
        }
    }
}
