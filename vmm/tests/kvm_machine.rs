//! Machines on the real /dev/kvm: console, interrupts, and every way to end. Payloads are bare-metal and take milliseconds.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used)]

mod kvm;

use std::time::{Duration, Instant};

use kvm::assembler::Code;
use kvm::files::memfd;
use kvm::{Machine, device};
use vmm::control::{ExitReason, Request};
use vmm::kvm::{Probe, probe};
use vmm::virtio::rng::Rng;

#[test]
fn the_probe_measures_this_hosts_kvm() {
    let Some(kvm) = device() else { return };
    let start = Instant::now();
    let found = probe(&kvm);
    let elapsed = start.elapsed();
    assert!(!matches!(found, Probe::Unusable { .. }), "{found:?}");
    assert!(elapsed < Duration::from_millis(500), "{elapsed:?}");
    // Anything else that opens is told apart from KVM.
    let found = probe(&memfd(b"not a KVM"));
    assert!(matches!(found, Probe::Unusable { .. }), "{found:?}");
}

#[test]
fn the_console_is_kept_and_a_reset_is_a_clean_end() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.say("hello from the guest\n").expect_port(0x3fd, 0x60, "line status").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!(report.reason, ExitReason::Reset, "{report:?}");
    assert_eq!(report.console, "hello from the guest\n");
    assert_eq!(report.detail, "");
}

#[test]
fn what_does_not_exist_reads_as_nothing() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.expect_port(0x71, 0, "clock").expect_port(0x64, 0, "keyboard").expect_port(0x2f9, 0, "second port");
    code.expect32(0xd000_0000, u32::MAX, "no device").store32(0xd000_0070, 7);
    code.store32(0xd001_f000, 7).expect32(0xd00f_fffc, u32::MAX, "no device either");
    code.out(0x64, 0xd1).out(0x80, 1).say("ok").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

#[test]
fn a_triple_fault_is_told_apart_with_registers() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    // An interrupt table of length zero, then an undefined instruction.
    code.say("bye\n").store64(0x5_0000, 0).store64(0x5_0008, 0);
    code.raw(&[0x0f, 0x01, 0x1c, 0x25]).raw(&0x5_0000u32.to_le_bytes()).raw(&[0x0f, 0x0b]);
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!(report.reason, ExitReason::TripleFault, "{report:?}");
    assert!(report.detail.contains("rip=0x100"), "{report:?}");
    assert_eq!(report.console, "bye\n");
}

#[test]
fn a_panic_is_told_apart_with_its_words() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.say("[    0.1] Kernel panic - not syncing: VFS: no root\n---[ end ]---\n").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!(report.reason, ExitReason::Panic, "{report:?}");
    assert_eq!(report.detail, "Kernel panic - not syncing: VFS: no root");
}

#[test]
fn a_kill_ends_a_spinning_guest_at_once() {
    let Some(kvm) = device() else { return };
    for spinning in [true, false] {
        let kvm = kvm.try_clone().unwrap();
        let mut code = Code::new();
        code.say("spin\n");
        if spinning {
            code.spin()
        } else {
            code.halt()
        };
        let mut machine = Machine::new(kvm, &code.image());
        machine.vcpus = 2;
        let mut killed = Instant::now();
        let report = machine.run_with(|control| {
            std::thread::sleep(Duration::from_millis(20));
            killed = Instant::now();
            control.as_mut().unwrap().ask(Request::Kill, &[]).unwrap();
        });
        let elapsed = killed.elapsed();
        assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
        assert!(elapsed < Duration::from_millis(500), "{elapsed:?}");
    }
}

#[test]
fn no_machine_outlives_its_supervisor() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.spin();
    let report = Machine::new(kvm, &code.image()).run_with(|control| drop(control.take()));
    assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
}

#[test]
fn the_command_line_reaches_the_guest() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    // "console=", and that the zero page points to it.
    code.expect32(0x2_0000, u32::from_le_bytes(*b"cons"), "command line");
    code.expect32(0x7000 + 0x228, 0x2_0000, "pointer").expect16(0x7000 + 0x1fe, 0xaa55, "boot flag");
    code.expect32(0x9_fc00, u32::from_le_bytes(*b"_MP_"), "MP table").say("ok").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

/// Code that sets up interrupt vector 0x40 for line `line` of the I/O APIC with this handler, which must end by itself.
fn interrupts(code: &mut Code, line: u64, handler: &Code) {
    let handler = code.aside(handler);
    // Gate 0x40 of a table at 0x50000: 64-bit interrupt gate, selector 0x10.
    let gate = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    code.store64(0x5_0400, gate).store64(0x5_0408, handler >> 32);
    code.store64(0x5_1000, 0x5_0000 << 16 | 0xfff).store64(0x5_1008, 0);
    code.raw(&[0x0f, 0x01, 0x1c, 0x25]).raw(&0x5_1000u32.to_le_bytes());
    // The old interrupt controllers off; the local APIC on; the line to vector 0x40 of CPU 0, edge.
    code.out(0x21, 0xff).out(0xa1, 0xff).store32(0xfee0_00f0, 0x1ff);
    let entry = u32::try_from(0x10 + 2 * line).unwrap();
    code.store32(0xfec0_0000, entry).store32(0xfec0_0010, 0x40);
    code.store32(0xfec0_0000, entry + 1).store32(0xfec0_0010, 0);
    code.raw(&[0xfb]);
}

/// A handler: stores 1 at 0x60000, runs `body`, acknowledges at the APIC, returns.
fn handler(body: impl FnOnce(&mut Code)) -> Code {
    let mut code = Code::default();
    code.raw(&[0x50, 0x52]).store32(0x6_0000, 1);
    body(&mut code);
    code.store32(0xfee0_00b0, 0).raw(&[0x5a, 0x58, 0x48, 0xcf]);
    code
}

#[test]
fn the_serial_ports_interrupt_is_delivered() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.store32(0x6_0000, 0);
    interrupts(
        &mut code,
        4,
        &handler(|code| {
            code.expect_port(0x3fa, 2, "identity");
        }),
    );
    // Enabling the transmit interrupt raises it.
    code.out(0x3f9, 2).wait32(0x6_0000, 1).say("ok").reset();
    let report = Machine::new(kvm, &code.image()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

#[test]
fn a_devices_interrupt_is_delivered() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = kvm::driver::Driver::new(0);
    let registers = driver.base;
    code.store32(0x6_0000, 0);
    interrupts(
        &mut code,
        5,
        &handler(|code| {
            code.expect32(registers + kvm::driver::INTERRUPT_STATUS, 1, "interrupt status");
            code.store32(registers + kvm::driver::INTERRUPT_ACK, 1);
        }),
    );
    driver.start(&mut code);
    driver.request(&mut code, &[(0x7_0000, 64, true)]);
    code.wait32(0x6_0000, 1);
    code.expect32(registers + kvm::driver::INTERRUPT_STATUS, 0, "acknowledged").say("ok").reset();
    let report = Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

#[test]
fn what_cannot_boot_says_why() {
    let Some(kvm) = device() else { return };
    let image = Code::new().spin().image();
    let new = || Machine::new(kvm.try_clone().unwrap(), &image);
    let mut no_kvm = new();
    no_kvm.kvm = None;
    let mut not_kvm = new();
    not_kvm.kvm = Some(memfd(b""));
    let mut no_kernel = new();
    no_kernel.kernel = memfd(b"MZ this is no ELF");
    let mut huge_kernel = new();
    huge_kernel.kernel = memfd(&kvm::files::elf(40 << 20, &[0xf4]));
    let mut huge_initramfs = new();
    huge_initramfs.initramfs = memfd(&vec![0; 20 << 20]);
    let mut no_initramfs = new();
    no_initramfs.initramfs = memfd(b"");
    let mut long_line = new();
    long_line.cmdline = "x".repeat(2048);
    for (machine, why) in [
        (no_kvm, "no /dev/kvm"),
        (not_kvm, "/dev/kvm"),
        (no_kernel, "kernel"),
        (huge_kernel, "kernel"),
        (huge_initramfs, "initramfs"),
        (no_initramfs, "initramfs"),
        (long_line, "command line"),
    ] {
        let report = machine.run();
        assert_eq!(report.reason, ExitReason::BootFailed, "{report:?}");
        assert!(report.detail.contains(why), "{report:?}");
        assert_eq!(report.console, "");
    }
}
