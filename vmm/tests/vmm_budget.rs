//! Budgets that can be counted: system calls of a start, exits, private memory. What is wall time is in the bench.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_wrap)]

mod kvm;
mod tracer;
#[macro_use]
mod uml_support;

use kvm::assembler::Code;
use kvm::memory::cost;
use kvm::process::Setup;
use tracer::Kind;
use vmm::control::{Answer, Event, Request};

/// Most private memory beside guest RAM of both of a VMM's processes together, in bytes.
const PRIVATE: u64 = 3 << 20;

#[test]
fn private_memory_beside_guest_ram_stays_small() {
    let Some(kvm) = kvm::device() else { return };
    if !nix::unistd::geteuid().is_root() {
        kvm::skip("only root may look into the VMM");
        return;
    }
    // It touches four MiB of its RAM.
    let mut code = Code::new();
    code.raw(&[0x48, 0xbb]).raw(&0x101_0000u64.to_le_bytes());
    code.raw(&[0x88, 0x1b, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0x81, 0xfb])
        .raw(&0x141_0000u32.to_le_bytes());
    code.raw(&[0x72, 0xee]).say("touched\n").spin();
    let mut setup = Setup::new(kvm, &code.image());
    setup.memory_mib = 128;
    setup.disk = Some(1 << 20);
    let mut vmm = setup.boot(|_| {});
    vmm.started();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let Answer::Diagnosis(diagnosis) = vmm.client.call(Request::Diagnose, &[]).unwrap() else { panic!() };
        if diagnosis.console.contains("touched") {
            break;
        }
    }
    let (inner, outer) = (cost(vmm.inner().cast_unsigned()), cost(vmm.child.id()));
    println!("inner {} KiB, outer {} KiB, guest {} KiB", inner.own >> 10, outer.own >> 10, inner.guest >> 10);
    assert!(inner.own + outer.own <= PRIVATE, "{} bytes", inner.own + outer.own);
    assert!(inner.guest >= 4 << 20 && inner.guest < 8 << 20, "{}", inner.guest);
    assert_eq!(outer.guest, 0);
}

#[test]
fn a_start_takes_few_system_calls() {
    if !nix::unistd::geteuid().is_root() {
        kvm::skip("only root may trace processes that are not dumpable");
        return;
    }
    if let Some(kvm) = kvm::device() {
        let mut setup = Setup::new(kvm.try_clone().unwrap(), &Code::new().reset().image());
        setup.host.kvm_kind = match vmm::kvm::probe(&kvm) {
            vmm::kvm::Probe::Software { .. } => Some(vmm::config::KvmKind::Software),
            _ => Some(vmm::config::KvmKind::Hardware),
        };
        let mut tracer = None;
        let vmm = setup.boot(|pid| tracer = Some(tracer::begin(pid, false)));
        while !matches!(vmm.event(), Event::Ended(_)) {}
        let trace = tracer.unwrap().join().unwrap();
        std::mem::forget(vmm);
        let before: usize = trace.values().map(|used| used.before).sum();
        println!("kvm: {before} system calls");
        assert!(before <= 450, "{before}");
    }
    let kernel = kernel_or_skip!();
    let mut tracer = None;
    let machine =
        uml_support::Setup::new(&kernel, "none").boot_after(|pid| tracer = Some(tracer::begin(pid, true)));
    while !matches!(machine.event(), Event::Ended(_)) {}
    let trace = tracer.unwrap().join().unwrap();
    let before = trace[&Kind::Loop].before + trace[&Kind::Warden].before;
    println!("uml: {before} system calls");
    assert!(before <= 450, "{before}");
}

#[test]
fn a_guest_that_computes_makes_no_exits() {
    let Some(kvm) = kvm::device() else { return };
    let mut vmm = Setup::new(kvm, &Code::new().spin().image()).boot(|_| {});
    vmm.started();
    let mut exits = || {
        let Answer::Statistics(statistics) = vmm.client.call(Request::Statistics, &[]).unwrap() else {
            panic!()
        };
        statistics.exits[0]
    };
    let first = exits();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let second = exits();
    // KVM comes out by itself now and then where the host is busy, but not for the guest.
    assert!(second - first < 1000, "{first} {second}");
}
