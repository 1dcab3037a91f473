//! Decoding of the few x86-64 instructions that are finished here: prefixes, opcode, operands (Intel SDM volume 2, chapter 2).

use kvm_bindings::{kvm_regs, kvm_sregs};

/// Which opcode map an opcode is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// One byte.
    Primary,
    /// 0F and one byte.
    Secondary,
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Opcode map.
    pub map: Map,
    /// Opcode within the map.
    pub opcode: u8,
    /// Prefix 66.
    pub operand_size: bool,
    /// Prefix F3 or F2, the last one.
    pub repeat: u8,
    /// REX.W.
    pub wide: bool,
    /// The ModRM byte, for opcodes that have one.
    pub modrm: u8,
    /// Register operand (ModRM.reg with REX.R).
    pub register: u8,
    /// The other operand.
    pub operand: Operand,
    /// Bytes up to the end of the operands; immediate bytes come on top.
    pub length: u8,
}

/// The operand that ModRM.rm names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(u8),
    /// Memory at this linear address.
    Memory(u64),
}

const CONSTANT_GS: u8 = 0x65;
const CONSTANT_FS: u8 = 0x64;

/// General register `index` (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, ...), to read and write.
pub fn general(regs: &mut kvm_regs, index: u8) -> &mut u64 {
    match index {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

struct Bytes<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.position).copied()?;
        self.position += 1;
        Some(byte)
    }

    fn signed(&mut self, size: usize) -> Option<u64> {
        let raw = self.bytes.get(self.position..self.position + size)?;
        self.position += size;
        Some(match *raw {
            [a] => i64::from(a.cast_signed()).cast_unsigned(),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])).cast_unsigned(),
            _ => 0,
        })
    }
}

/// Decodes one instruction of 64-bit code; `immediate` is the number of bytes that follow the operands, for addresses that
/// are relative to the next instruction. `None` when the bytes end before it.
#[must_use]
pub fn decode(bytes: &[u8], regs: &kvm_regs, sregs: &kvm_sregs) -> Option<Instruction> {
    let mut bytes = Bytes { bytes, position: 0 };
    let (mut operand_size, mut repeat, mut rex, mut base) = (false, 0, 0u8, 0u64);
    let mut byte = bytes.next()?;
    loop {
        match byte {
            0x66 => operand_size = true,
            0xf2 | 0xf3 => repeat = byte,
            CONSTANT_FS => base = sregs.fs.base,
            CONSTANT_GS => base = sregs.gs.base,
            // Lock, and segment overrides without meaning in 64-bit code.
            0xf0 | 0x26 | 0x2e | 0x36 | 0x3e => {}
            _ => break,
        }
        byte = bytes.next()?;
    }
    if byte & 0xf0 == 0x40 {
        rex = byte;
        byte = bytes.next()?;
    }
    let map = if byte == 0x0f { Map::Secondary } else { Map::Primary };
    let opcode = if map == Map::Secondary { bytes.next()? } else { byte };
    let wide = rex & 8 != 0;
    let mut decoded = Instruction {
        map,
        opcode,
        operand_size,
        repeat,
        wide,
        modrm: 0,
        register: 0,
        operand: Operand::Register(0),
        length: 0,
    };
    if map == Map::Secondary {
        let modrm = bytes.next()?;
        decoded.modrm = modrm;
        decoded.register = modrm >> 3 & 7 | (rex & 4) << 1;
        decoded.operand = operand(&mut bytes, modrm, rex, base, regs)?;
    }
    decoded.length = u8::try_from(bytes.position).ok()?;
    Some(decoded)
}

fn operand(bytes: &mut Bytes<'_>, modrm: u8, rex: u8, base: u64, regs: &kvm_regs) -> Option<Operand> {
    // A copy, because `general` gives places to write as well.
    let mut regs = *regs;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let extended_base = (rex & 1) << 3;
    if mode == 3 {
        return Some(Operand::Register(rm | extended_base));
    }
    let mut address = base;
    let mut displacement = [0, 1, 4][usize::from(mode)];
    if rm == 4 {
        let sib = bytes.next()?;
        let index = sib >> 3 & 7 | (rex & 2) << 2;
        if index != 4 {
            address = address.wrapping_add(*general(&mut regs, index) << (sib >> 6));
        }
        if sib & 7 == 5 && mode == 0 {
            displacement = 4;
        } else {
            address = address.wrapping_add(*general(&mut regs, sib & 7 | extended_base));
        }
    } else if rm == 5 && mode == 0 {
        let offset = bytes.signed(4)?;
        let next = regs.rip.wrapping_add(bytes.position as u64);
        return Some(Operand::Memory(base.wrapping_add(next).wrapping_add(offset)));
    } else {
        address = address.wrapping_add(*general(&mut regs, rm | extended_base));
    }
    if displacement > 0 {
        address = address.wrapping_add(bytes.signed(displacement)?);
    }
    Some(Operand::Memory(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Instruction {
        let regs = kvm_regs {
            rip: 0x1000,
            rax: 0x10,
            rbx: 0x20,
            rbp: 0x30,
            rsp: 0x40,
            r12: 0x500,
            r13: 0x600,
            ..Default::default()
        };
        let mut sregs = kvm_sregs::default();
        sregs.gs.base = 0x10_0000;
        decode(bytes, &regs, &sregs).unwrap()
    }

    #[test]
    fn operands_are_found_in_every_form() {
        for (bytes, operand, length) in [
            // popcnt eax, ebx; popcnt r8, r13
            (&[0xf3, 0x0f, 0xb8, 0xc3][..], Operand::Register(3), 4),
            (&[0xf3, 0x4d, 0x0f, 0xb8, 0xc5], Operand::Register(13), 5),
            // [rbx], [rbp-8], [rip+0x10], [rsp+4], [r12], [rbx+rax*4], [0x1234], gs:[rax*8+0x100]
            (&[0x0f, 0xb8, 0x03], Operand::Memory(0x20), 3),
            (&[0x0f, 0xb8, 0x45, 0xf8], Operand::Memory(0x28), 4),
            (&[0x0f, 0xb8, 0x05, 0x10, 0, 0, 0], Operand::Memory(0x1017), 7),
            (&[0x0f, 0xb8, 0x44, 0x24, 4], Operand::Memory(0x44), 5),
            (&[0x41, 0x0f, 0xb8, 0x04, 0x24], Operand::Memory(0x500), 5),
            (&[0x0f, 0xb8, 0x04, 0x83], Operand::Memory(0x60), 4),
            (&[0x0f, 0xb8, 0x04, 0x25, 0x34, 0x12, 0, 0], Operand::Memory(0x1234), 8),
            (&[0x65, 0x0f, 0xb8, 0x04, 0xc5, 0, 1, 0, 0], Operand::Memory(0x10_0180), 9),
            // lock cmpxchg16b gs:[r13+0x7f]
            (&[0x65, 0xf0, 0x49, 0x0f, 0xc7, 0x4d, 0x7f], Operand::Memory(0x10_067f), 7),
        ] {
            let got = decoded(bytes);
            assert_eq!((got.operand, got.length), (operand, length), "{bytes:x?}");
        }
        let (regs, sregs) = Default::default();
        assert!(decode(&[0xf3, 0x0f], &regs, &sregs).is_none());
        assert!(decode(&[0x66; 15], &regs, &sregs).is_none());
        assert!(decode(&[0x0f, 0xb8, 0x05, 1, 2], &regs, &sregs).is_none());
    }
}
