//! Instructions that KVM's emulator lacks, finished from outside.

use crate::memory::GuestMemoryMmap;
use kvm_bindings::{KVM_VCPUEVENT_VALID_PAYLOAD, kvm_regs};
use kvm_ioctls::VcpuFd;

use super::decode::{Instruction, Map, Operand, decode, general};
use super::linear::{Fault, Linear};
use super::xsave::{self, Layout};

const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;
const FLAG_ZERO: u64 = 1 << 6;
/// Carry, parity, auxiliary, zero, sign, overflow.
const FLAGS_ARITHMETIC: u64 = 0x8d5;
const FLAG_ALIGNMENT: u64 = 1 << 18;

/// Finishes the instruction at RIP, of which KVM said that it cannot be emulated, and takes back the #UD that it queued. Where
/// its memory is not there, the guest gets the page fault that the instruction would have raised.
///
/// # Errors
/// The instruction is not known here, or KVM refused.
pub fn finish(vcpu: &VcpuFd, memory: &GuestMemoryMmap, layout: &Layout, bytes: &[u8]) -> Result<(), String> {
    let say = |error: vmm_sys_util::errno::Error| error.to_string();
    let mut regs = vcpu.get_regs().map_err(say)?;
    let mut sregs = vcpu.get_sregs().map_err(say)?;
    let decoded = decode(bytes, &regs, &sregs).ok_or("the instruction is incomplete")?;
    let linear = Linear::new(memory, &sregs);
    let mut events = vcpu.get_vcpu_events().map_err(say)?;
    events.exception = Default::default();
    events.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
    match execute(&decoded, &mut regs, vcpu, &linear, layout) {
        Ok(trap) => {
            regs.rip = regs.rip.wrapping_add(u64::from(decoded.length));
            vcpu.set_regs(&regs).map_err(say)?;
            if trap {
                (events.exception.injected, events.exception.nr) = (1, BREAKPOINT);
            }
        }
        Err(Fault::Page { address, code }) => {
            sregs.cr2 = address;
            vcpu.set_sregs(&sregs).map_err(say)?;
            (events.exception.injected, events.exception.nr) = (1, PAGE_FAULT);
            (events.exception.has_error_code, events.exception.error_code) = (1, code);
        }
        Err(Fault::Other(why)) => return Err(why),
    }
    vcpu.set_vcpu_events(&events).map_err(say)
}

/// Returns whether a breakpoint trap follows.
fn execute(
    instruction: &Instruction,
    regs: &mut kvm_regs,
    vcpu: &VcpuFd,
    linear: &Linear<'_>,
    layout: &Layout,
) -> Result<bool, Fault> {
    let mask = regs.rdx << 32 | regs.rax & u64::from(u32::MAX);
    match (instruction.map, instruction.opcode, instruction.modrm) {
        (Map::Primary, 0xcc, _) => return Ok(true),
        // FWAIT: the kernel only uses it to drop exceptions of a process that ends.
        (Map::Primary, 0x9b, _) => {}
        (Map::Secondary, 0x01, 0xca) => regs.rflags &= !FLAG_ALIGNMENT,
        (Map::Secondary, 0x01, 0xcb) => regs.rflags |= FLAG_ALIGNMENT,
        (Map::Secondary, 0xae, modrm) => match (modrm >> 3 & 7, instruction.operand) {
            (4, Operand::Memory(address)) => xsave::save(vcpu, linear, layout, address, mask)?,
            (5, Operand::Memory(address)) => xsave::restore(vcpu, linear, layout, address, mask)?,
            _ => return Err("an instruction that is not known here".into()),
        },
        (Map::Secondary, 0xb8, _) if instruction.repeat == 0xf3 => {
            population_count(instruction, regs, linear)?;
        }
        (Map::Secondary, 0xc7, modrm) if modrm >> 3 & 7 == 1 && instruction.wide => {
            compare_exchange_16(instruction, regs, linear)?;
        }
        (Map::Secondary, 0x10 | 0x11 | 0x28 | 0x29 | 0x6f | 0x7f, _) => {
            vector_move(instruction, vcpu, linear)?;
        }
        _ => return Err("an instruction that is not known here".into()),
    }
    Ok(false)
}

fn population_count(
    instruction: &Instruction,
    regs: &mut kvm_regs,
    linear: &Linear<'_>,
) -> Result<(), Fault> {
    let mask = match (instruction.wide, instruction.operand_size) {
        (true, _) => u64::MAX,
        (false, false) => u64::from(u32::MAX),
        (false, true) => u64::from(u16::MAX),
    };
    let source = match instruction.operand {
        Operand::Register(index) => *general(regs, index),
        Operand::Memory(address) if instruction.wide => u64::from_le_bytes(linear.read(address)?),
        Operand::Memory(address) if instruction.operand_size => {
            u64::from(u16::from_le_bytes(linear.read(address)?))
        }
        Operand::Memory(address) => u64::from(u32::from_le_bytes(linear.read(address)?)),
    };
    let count = u64::from((source & mask).count_ones());
    let target = general(regs, instruction.register);
    // A 32-bit result clears the upper half, a 16-bit one leaves it.
    *target = if instruction.operand_size && !instruction.wide { *target & !mask | count } else { count };
    regs.rflags = regs.rflags & !FLAGS_ARITHMETIC | if count == 0 { FLAG_ZERO } else { 0 };
    Ok(())
}

/// Not atomic against other vCPUs: between read and write one of them may store. The kernel uses it for per-CPU data, and
/// the command line keeps it from the rest.
fn compare_exchange_16(
    instruction: &Instruction,
    regs: &mut kvm_regs,
    linear: &Linear<'_>,
) -> Result<(), Fault> {
    let Operand::Memory(address) = instruction.operand else {
        return Err("CMPXCHG16B without memory".into());
    };
    let current = u128::from_le_bytes(linear.read(address)?);
    let expected = u128::from(regs.rdx) << 64 | u128::from(regs.rax);
    if current == expected {
        let new = u128::from(regs.rcx) << 64 | u128::from(regs.rbx);
        linear.write(address, &new.to_le_bytes())?;
        regs.rflags |= FLAG_ZERO;
    } else {
        regs.rax = u64::try_from(current & u128::from(u64::MAX)).map_err(|error| error.to_string())?;
        regs.rdx = u64::try_from(current >> 64).map_err(|error| error.to_string())?;
        regs.rflags &= !FLAG_ZERO;
    }
    Ok(())
}

/// 16-byte moves between SSE registers and memory: MOVUPS, MOVAPS, MOVUPD, MOVAPD, MOVDQA, MOVDQU.
fn vector_move(instruction: &Instruction, vcpu: &VcpuFd, linear: &Linear<'_>) -> Result<(), Fault> {
    let scalar = matches!(instruction.opcode, 0x10 | 0x11) && instruction.repeat != 0;
    let mmx =
        matches!(instruction.opcode, 0x6f | 0x7f) && instruction.repeat != 0xf3 && !instruction.operand_size;
    if scalar || mmx {
        return Err("a scalar or MMX move".into());
    }
    let store = instruction.opcode & 1 != 0 && instruction.opcode != 0x6f || instruction.opcode == 0x7f;
    let mut fpu = vcpu.get_fpu().map_err(|error| error.to_string())?;
    let register = usize::from(instruction.register);
    match (store, instruction.operand) {
        (true, Operand::Memory(address)) => return linear.write(address, &fpu.xmm[register]),
        (true, Operand::Register(target)) => fpu.xmm[usize::from(target)] = fpu.xmm[register],
        (false, Operand::Memory(address)) => fpu.xmm[register] = linear.read(address)?,
        (false, Operand::Register(source)) => fpu.xmm[register] = fpu.xmm[usize::from(source)],
    }
    vcpu.set_fpu(&fpu).map_err(|error| error.to_string().into())
}
