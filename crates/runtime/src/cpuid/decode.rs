//! Judges whether two bytes in the middle of code are a CPUID instruction.
//!
//! x86 code has no marks between instructions, and `0f a2` may as well be part of a constant or of a table
//! that somebody put between two functions. Decoding from many points a little earlier settles it: wrong
//! starting points fall into step with the true instructions after a few of them, so in real code nearly all
//! decodings meet at the true boundaries; in data they do not, or they meet instructions that no compiler
//! writes. A CPUID that is missed shows the program the host's answer; a constant that is taken for one is
//! destroyed. So the judge is strict.
//!
//! Pure: bytes in, verdict out. Called by [`super::patch`].

use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::amd64::{InstDecoder, Instruction, Opcode, Operand, RegSpec};

/// Bytes before the candidate that [`is_cpuid`] likes to see.
pub const BEFORE: usize = 96;
/// Bytes from the candidate on that [`is_cpuid`] likes to see.
pub const AFTER: usize = 96;
/// Starting points nearer than this have not fallen into step yet.
const NEAR: usize = 16;
/// The instruction that fills the room between functions.
const INT3: u8 = 0xcc;
/// Instructions behind the candidate that must make sense.
const FOLLOWERS: usize = 6;

/// Whether the bytes at `at`, which are `0f a2`, are an instruction. `code` is what surrounds them.
pub fn is_cpuid(code: &[u8], at: usize) -> bool {
    let decoder = InstDecoder::default();
    if !makes_sense(&decoder, &code[at + 2..]) {
        return false;
    }
    let first = at.saturating_sub(BEFORE);
    let last = if at - first > NEAR { at - NEAR } else { first };
    let (mut agree, mut differ) = (0, 0);
    for start in first..=last {
        match walk(&decoder, code, start, at) {
            Walk::Meets => agree += 1,
            Walk::Misses => differ += 1,
            Walk::Nonsense => {}
        }
    }
    let starts = last - first + 1;
    agree >= 4 * differ && agree * 3 >= starts
}

enum Walk {
    Meets,
    Misses,
    Nonsense,
}

fn walk(decoder: &InstDecoder, code: &[u8], start: usize, at: usize) -> Walk {
    let mut position = start;
    let mut near_nonsense = false;
    let mut sets_eax = false;
    while position < at {
        match decoder.decode_slice(&code[position..]) {
            // What is decoded before the walk has fallen into step does not count.
            Ok(instruction) => {
                near_nonsense |= at - position <= NEAR && unlikely(&instruction, code[position]);
                sets_eax |= leads_to_eax(&instruction);
                position += length(&instruction);
            }
            Err(_) => return Walk::Nonsense,
        }
    }
    if near_nonsense || !sets_eax {
        Walk::Nonsense
    } else if position == at {
        Walk::Meets
    } else {
        Walk::Misses
    }
}

/// Whether what follows a candidate reads like code: an end of flow, or some likely instructions.
fn makes_sense(decoder: &InstDecoder, mut code: &[u8]) -> bool {
    for _ in 0..FOLLOWERS {
        if code.len() < 15 {
            return true;
        }
        let Ok(instruction) = decoder.decode_slice(code) else { return false };
        if unlikely(&instruction, code[0]) {
            return false;
        }
        if matches!(instruction.opcode(), Opcode::RETURN | Opcode::JMP | Opcode::UD2 | Opcode::SYSCALL) {
            return true;
        }
        code = &code[length(&instruction)..];
    }
    true
}

/// Whether the instruction gives EAX, the leaf, a value, or tests it for one.
fn leads_to_eax(instruction: &Instruction) -> bool {
    let into_eax = matches!(instruction.operand(0), Operand::Register { reg } if reg == RegSpec::eax() || reg == RegSpec::rax());
    into_eax
        && matches!(
            instruction.opcode(),
            Opcode::MOV
                | Opcode::XOR
                | Opcode::LEA
                | Opcode::POP
                | Opcode::AND
                | Opcode::OR
                | Opcode::ADD
                | Opcode::SUB
                | Opcode::INC
                | Opcode::XCHG
                | Opcode::MOVZX
                | Opcode::TEST
                | Opcode::CMP
        )
}

fn length(instruction: &Instruction) -> usize {
    instruction.len().to_const() as usize
}

/// Whether no compiler writes this instruction, and nobody by hand near a CPUID in user mode: decoding data
/// meets one of these very soon.
fn unlikely(instruction: &Instruction, first_byte: u8) -> bool {
    let opcode = instruction.opcode();
    let x87_or_loop = Opcode::F2XM1 as u32..=Opcode::JRCXZ as u32;
    // Compilers fill the room between two functions with INT3, and a CPUID may be among the first instructions of one.
    if first_byte == INT3 {
        return false;
    }
    // First byte 0 adds a byte register to memory; zeros in tables read like that.
    first_byte == 0
        || x87_or_loop.contains(&(opcode as u32))
        || matches!(
            opcode,
            Opcode::INS
                | Opcode::OUTS
                | Opcode::IN
                | Opcode::OUT
                | Opcode::HLT
                | Opcode::CALLF
                | Opcode::JMPF
                | Opcode::RETF
                | Opcode::IRET
                | Opcode::IRETD
                | Opcode::IRETQ
                | Opcode::INT
                | Opcode::INTO
                | Opcode::ENTER
                | Opcode::XLAT
                | Opcode::SALC
                | Opcode::LAHF
                | Opcode::SAHF
                | Opcode::CLI
                | Opcode::STI
                | Opcode::CMC
                | Opcode::STC
                | Opcode::WAIT
                | Opcode::Invalid
        )
}
