//! Instructions in guest kernel mode give the architecture's results on the real /dev/kvm: by the hardware, or, where KVM
//! interprets guest kernels and lacks them, by the VMM.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used)]

mod kvm;

use kvm::assembler::Code;
use kvm::{Machine, device};
use vmm::control::ExitReason;

/// Where results go.
const RESULT: u64 = 0x6_0000;
const DATA: u64 = 0x6_1000;

fn assert_ok(code: &mut Code) {
    let Some(kvm) = device() else { return };
    code.say("ok").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

/// `mov rbx, value`, and so on.
fn load(code: &mut Code, register: u8, value: u64) {
    code.raw(&[0x48, 0xb8 + register]).raw(&value.to_le_bytes());
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSI: u8 = 6;

/// `mov [RESULT + 8 * slot], rax`
fn keep(code: &mut Code, slot: u64) {
    code.raw(&[0x48, 0xa3]).raw(&(RESULT + 8 * slot).to_le_bytes());
}

/// Sets up an interrupt table with this handler for one vector.
fn gate(code: &mut Code, vector: u64, handler: &Code) {
    let handler = code.aside(handler);
    let gate = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    code.store64(0x5_0000 + 16 * vector, gate).store64(0x5_0008 + 16 * vector, handler >> 32);
    code.store64(0x5_1000, 0x5_0000 << 16 | 0xfff).store64(0x5_1008, 0);
    // lidt [0x51000]
    code.raw(&[0x0f, 0x01, 0x1c, 0x25]).raw(&0x5_1000u32.to_le_bytes());
}

#[test]
fn population_count() {
    let mut code = Code::new();
    load(&mut code, RBX, 0xff00_0000_0000_0701);
    // popcnt rax, rbx; popcnt eax, ebx; popcnt rax, [rsi]
    code.raw(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3]);
    keep(&mut code, 0);
    code.raw(&[0xf3, 0x0f, 0xb8, 0xc3]);
    keep(&mut code, 1);
    code.store64(DATA, u64::MAX);
    load(&mut code, RSI, DATA);
    code.raw(&[0xf3, 0x48, 0x0f, 0xb8, 0x06]);
    keep(&mut code, 2);
    // Of zero: the zero flag; setz al.
    load(&mut code, RBX, 0);
    code.raw(&[0xf3, 0x48, 0x0f, 0xb8, 0xd3, 0x0f, 0x94, 0xc0, 0x48, 0x0f, 0xb6, 0xc0]);
    keep(&mut code, 3);
    for (slot, count) in (0..).zip([12, 4, 64, 1]) {
        code.expect32(RESULT + 8 * slot, count, &format!("slot {slot}"));
    }
    assert_ok(&mut code);
}

#[test]
fn compare_and_exchange_of_16_bytes() {
    let mut code = Code::new();
    code.store64(DATA, 1).store64(DATA + 8, 2);
    // Equal: exchanged, zero flag set.
    for (register, value) in [(RSI, DATA), (RAX, 1), (RDX, 2), (RBX, 3), (RCX, 4)] {
        load(&mut code, register, value);
    }
    // lock cmpxchg16b [rsi]; setz al; movzx rax, al
    code.raw(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x0f, 0x94, 0xc0, 0x48, 0x0f, 0xb6, 0xc0]);
    keep(&mut code, 0);
    code.expect32(RESULT, 1, "exchanged").expect32(DATA, 3, "low").expect32(DATA + 8, 4, "high");
    // Not equal: loaded.
    for (register, value) in [(RAX, 3), (RDX, 77), (RBX, 5), (RCX, 6)] {
        load(&mut code, register, value);
    }
    code.raw(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e]);
    keep(&mut code, 1);
    // mov rax, rdx
    code.raw(&[0x48, 0x89, 0xd0]);
    keep(&mut code, 2);
    code.expect32(RESULT + 8, 3, "low loaded").expect32(RESULT + 16, 4, "high loaded");
    code.expect32(DATA, 3, "left alone");
    assert_ok(&mut code);
}

#[test]
fn vector_moves() {
    let mut code = Code::new();
    // CR4.OSFXSR: mov rax, cr4; or eax, 0x200; mov cr4, rax
    code.raw(&[0x0f, 0x20, 0xe0, 0x0d, 0, 2, 0, 0, 0x0f, 0x22, 0xe0]);
    code.store64(DATA, 0x1111_2222_3333_4444).store64(DATA + 8, 0x5555_6666_7777_8888);
    load(&mut code, RSI, DATA);
    // movups xmm1, [rsi]; movaps xmm9, xmm1; movdqu [rsi+0x21], xmm9
    code.raw(&[0x0f, 0x10, 0x0e, 0x44, 0x0f, 0x28, 0xc9, 0xf3, 0x44, 0x0f, 0x7f, 0x4e, 0x21]);
    code.expect32(DATA + 0x21, 0x3333_4444, "low").expect32(DATA + 0x2d, 0x5555_6666, "high");
    assert_ok(&mut code);
}

/// Turns on SSE and XSAVE: CR4.OSFXSR and OSXSAVE; XCR0 is x87 and SSE; the mask of what follows is the same.
fn enable_xsave(code: &mut Code) {
    code.raw(&[0x0f, 0x20, 0xe0, 0x0d, 0, 2, 4, 0, 0x0f, 0x22, 0xe0]);
    // xor ecx, ecx; xor edx, edx; mov eax, 3; xsetbv
    code.raw(&[0x31, 0xc9, 0x31, 0xd2, 0xb8, 3, 0, 0, 0, 0x0f, 0x01, 0xd1]);
}

/// `mov eax, 3; xor edx, edx`
const MASK: &[u8] = &[0xb8, 3, 0, 0, 0, 0x31, 0xd2];

#[test]
fn extended_state_is_saved_and_restored() {
    let mut code = Code::new();
    enable_xsave(&mut code);
    code.store64(DATA, 0x1111_2222_3333_4444).store64(DATA + 8, 0x5555_6666_7777_8888);
    for at in (0..576).step_by(8) {
        code.store64(DATA + 0x1000 + at, 0);
    }
    load(&mut code, RSI, DATA);
    // movups xmm1, [rsi]; xsave64 [rsi+0x1000]; xorps xmm1, xmm1 by way of memory; xrstor64 [rsi+0x1000]
    code.raw(&[0x0f, 0x10, 0x0e]).raw(MASK).raw(&[0x48, 0x0f, 0xae, 0xa6, 0, 0x10, 0, 0]);
    code.raw(&[0x0f, 0x10, 0x8e, 0, 0x12, 0, 0]).raw(MASK).raw(&[0x48, 0x0f, 0xae, 0xae, 0, 0x10, 0, 0]);
    // movups [rsi+0x20], xmm1
    code.raw(&[0x0f, 0x11, 0x4e, 0x20]);
    code.expect32(DATA + 0x20, 0x3333_4444, "low").expect32(DATA + 0x2c, 0x5555_6666, "high");
    // XMM1 in the legacy area, and the header's SSE bit.
    code.expect32(DATA + 0x1000 + 160 + 16, 0x3333_4444, "saved").expect32(DATA + 0x1000 + 516, 0, "header");
    assert_ok(&mut code);
}

#[test]
fn a_store_to_what_is_not_mapped_faults_as_the_architecture_says() {
    let mut code = Code::new();
    enable_xsave(&mut code);
    // The handler: mov rax, cr2; pop rax (the error code).
    let mut handler = Code::default();
    handler.raw(&[0x0f, 0x20, 0xd0]);
    keep(&mut handler, 0);
    handler.raw(&[0x58]);
    keep(&mut handler, 1);
    handler.expect32(RESULT, 0x7654_3000, "CR2").expect32(RESULT + 8, 2, "error code").say("ok").reset();
    gate(&mut code, 14, &handler);
    load(&mut code, RSI, 0x7654_3000);
    code.raw(MASK).raw(&[0x48, 0x0f, 0xae, 0x26]).say("no fault");
    assert_ok(&mut code);
}

#[test]
fn a_breakpoint_traps_behind_itself() {
    let mut code = Code::new();
    // The handler keeps the address that it is to return to: mov rax, [rsp]; then returns.
    let mut handler = Code::default();
    handler.raw(&[0x48, 0x8b, 0x04, 0x24]);
    keep(&mut handler, 0);
    handler.raw(&[0x48, 0xcf]);
    gate(&mut code, 3, &handler);
    let behind = u32::try_from(code.here() + 1).unwrap();
    code.raw(&[0xcc]).expect32(RESULT, behind, "return address");
    assert_ok(&mut code);
}

fn write_msr(code: &mut Code, index: u32, value: u64) {
    // mov ecx, index; mov eax, low; mov edx, high; wrmsr
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    code.raw(&[0xb9]).raw(&index.to_le_bytes());
    code.raw(&[0xb8]).raw(&u32::try_from(low).unwrap().to_le_bytes());
    code.raw(&[0xba]).raw(&u32::try_from(high).unwrap().to_le_bytes()).raw(&[0x0f, 0x30]);
}

#[test]
fn a_system_call_enters_kernel_mode_with_the_callers_address_and_flags() {
    let mut code = Code::new();
    // Descriptors: kernel code and data at 0x10 and 0x18, user data and code at 0x28 and 0x30.
    let table =
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (index, descriptor) in (0..).zip(table) {
        code.store64(0x5_2000 + 8 * index, descriptor);
    }
    code.store64(0x5_3000, 0x5_2000 << 16 | 55).store64(0x5_3008, 0);
    code.raw(&[0x0f, 0x01, 0x14, 0x25]).raw(&0x5_3000u32.to_le_bytes());
    // User mode may use the first 2 MiB (the stack) and those of the payload; then mov rax, 0x9000; mov cr3, rax.
    code.store64(0x9000, 0xa007).store64(0xa000, 0xb007).store64(0xb000, 0x87);
    code.store64(0xb000 + 8 * 8, 0x100_0087);
    load(&mut code, RAX, 0x9000);
    code.raw(&[0x0f, 0x22, 0xd8]);

    // User: mov eax, 0x1234; syscall
    let mut user = Code::default();
    user.raw(&[0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x05]);
    let length = user.bytes().len() as u64;
    user.spin();
    let user = code.aside(&user);
    // Kernel: keeps rax, cs, rcx, r11, flags.
    let mut entry = Code::default();
    keep(&mut entry, 0);
    entry.raw(&[0x8c, 0xc8]);
    keep(&mut entry, 1);
    entry.raw(&[0x48, 0x89, 0xc8]);
    keep(&mut entry, 2);
    entry.raw(&[0x4c, 0x89, 0xd8]);
    keep(&mut entry, 3);
    entry.raw(&[0x9c, 0x58]);
    keep(&mut entry, 4);
    entry.expect32(RESULT, 0x1234, "rax").expect32(RESULT + 8, 0x10, "cs");
    entry.expect32(RESULT + 16, u32::try_from(user + length).unwrap(), "rcx");
    entry.expect32(RESULT + 24, 0x202, "r11").expect32(RESULT + 32, 2, "flags");
    // Only kernel mode may touch a port.
    entry.say("ok").reset();
    let entry = code.aside(&entry);

    write_msr(&mut code, 0xc000_0080, 0x501);
    write_msr(&mut code, 0xc000_0081, 0x20_0010 << 32);
    write_msr(&mut code, 0xc000_0082, entry);
    write_msr(&mut code, 0xc000_0084, 0x700);
    // push 0x2b; push 0x8f00; push 0x202; push 0x33; push user; iretq
    code.raw(&[0x6a, 0x2b, 0x68, 0, 0x8f, 0, 0, 0x68, 2, 2, 0, 0, 0x6a, 0x33, 0x68]);
    code.raw(&u32::try_from(user).unwrap().to_le_bytes()).raw(&[0x48, 0xcf]);
    let Some(kvm) = device() else { return };
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}
