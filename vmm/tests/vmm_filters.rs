//! The lists of system calls against what machines of all kinds use: a call that is missing kills a machine in some test,
//! and one that nothing uses any more fails this one.

#![allow(clippy::unwrap_used, clippy::panic)]

mod kvm;
mod tracer;
#[macro_use]
mod uml_support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use kvm::assembler::Code;
use kvm::driver::Driver;
use kvm::files::memfd;
use kvm::process::Setup;
use tracer::{Kind, Trace, Used};
use vmm::config::{BalloonConfig, Fd};
use vmm::control::{Answer, Client, Event, ExitReason, Request, SnapshotKind, SnapshotRequest};
use vmm::jail::calls::{self, Role};

fn may_trace() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        kvm::skip("only root may trace processes that are not dumpable");
    }
    root
}

fn merge(all: &mut Trace, more: Trace) {
    for (kind, used) in more {
        let known = all.entry(kind).or_default();
        known.calls.extend(used.calls);
        known.ioctls.extend(used.ioctls);
        known.before = known.before.max(used.before);
    }
}

/// What lists hold and nobody used.
fn unused(lists: &[&[i64]], used: &Used) -> Vec<i64> {
    lists.concat().into_iter().filter(|call| !used.calls.contains(call)).collect()
}

fn ask(client: &mut Client, request: Request) {
    let answer = client.call(request, &[]).unwrap();
    assert!(!matches!(answer, Answer::Refused(_)), "{answer:?}");
}

fn snapshot(client: &mut Client, kind: SnapshotKind, state: &File, memory: &File) {
    let request = SnapshotRequest { state: Fd(0), memory: Fd(1), kind };
    let answer = client.call(Request::Snapshot(request), &[state.as_fd(), memory.as_fd()]).unwrap();
    assert!(matches!(answer, Answer::Snapshot(_)), "{answer:?}");
}

#[test]
fn the_lists_of_kvm_are_what_its_machines_use() {
    let Some(kvm) = kvm::device() else { return };
    if !may_trace() {
        return;
    }
    let mut all = Trace::new();
    // A disk is written, flushed and read; a random number is asked for; a CPU spins, another rests.
    let mut code = Code::new();
    let mut disk = Driver::new(0);
    disk.start(&mut code);
    code.store64(0x7_0000, 1).store64(0x7_0008, 0);
    disk.request(&mut code, &[(0x7_0000, 16, false), (0x7_1000, 512, false), (0x7_0100, 1, true)]);
    code.store64(0x7_0000, 4);
    disk.request(&mut code, &[(0x7_0000, 16, false), (0x7_0100, 1, true)]);
    code.store64(0x7_0000, 0);
    disk.request(&mut code, &[(0x7_0000, 16, false), (0x7_1000, 512, true), (0x7_0100, 1, true)]);
    // Discard: sector, sectors, flags.
    code.store64(0x7_0000, 11).store64(0x7_1000, 8).store64(0x7_1008, 8);
    disk.request(&mut code, &[(0x7_0000, 16, false), (0x7_1000, 16, false), (0x7_0100, 1, true)]);
    let mut rng = Driver::new(1);
    rng.start(&mut code);
    rng.request(&mut code, &[(0x7_2000, 64, true)]);
    code.say("ready\n").spin();
    let mut setup = Setup::new(kvm.try_clone().unwrap(), &code.image());
    setup.disk = Some(1 << 20);
    setup.vcpus = 2;
    setup.host.track_changes = true;
    let mut tracer = None;
    let mut vmm = setup.boot(|pid| tracer = Some(tracer::begin(pid, false)));
    vmm.started();
    let client = &mut vmm.client;
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let Answer::Diagnosis(diagnosis) = client.call(Request::Diagnose, &[]).unwrap() else { panic!() };
        if diagnosis.console.contains("ready") {
            break;
        }
    }
    ask(client, Request::Statistics);
    ask(client, Request::Pause);
    let (state, memory) = (memfd(b""), memfd(b""));
    snapshot(client, SnapshotKind::Full, &state, &memory);
    snapshot(client, SnapshotKind::Diff, &state, &memory);
    ask(client, Request::Resume);
    ask(client, Request::Kill);
    merge(&mut all, tracer.unwrap().join().unwrap());
    // The tracer has buried it.
    std::mem::forget(vmm);

    // It goes on in another process.
    let probed = kvm.try_clone().unwrap();
    let mut setup = Setup::new(kvm, &code.image());
    setup.disk = Some(1 << 20);
    setup.vcpus = 2;
    setup.restore = Some((state, memory, true));
    let mut tracer = None;
    let mut vmm = setup.boot(|pid| tracer = Some(tracer::begin(pid, false)));
    vmm.started();
    let list = memfd(b"");
    let answer = vmm.client.call(Request::WorkingSet { to: Fd(0) }, &[list.as_fd()]).unwrap();
    assert!(matches!(answer, Answer::Done), "{answer:?}");
    ask(&mut vmm.client, Request::Resume);
    ask(&mut vmm.client, Request::Kill);
    merge(&mut all, tracer.unwrap().join().unwrap());
    std::mem::forget(vmm);

    // One that fails: its registers are told.
    let mut code = Code::new();
    code.store64(0x5_0000, 0).store64(0x5_0008, 0);
    code.raw(&[0x0f, 0x01, 0x1c, 0x25]).raw(&0x5_0000u32.to_le_bytes()).raw(&[0x0f, 0x0b]);
    let mut tracer = None;
    let vmm = Setup::new(probed.try_clone().unwrap(), &code.image())
        .boot(|pid| tracer = Some(tracer::begin(pid, false)));
    vmm.started();
    assert!(matches!(vmm.event(), Event::Ended(report) if report.reason == ExitReason::TripleFault));
    merge(&mut all, tracer.unwrap().join().unwrap());
    std::mem::forget(vmm);

    let software = matches!(vmm::kvm::probe(&probed), vmm::kvm::Probe::Software { .. });
    let role = if software { Role::SoftwareVcpu } else { Role::Vcpu };
    let (kvm_loop, vcpu) = (&all[&Kind::Loop], &all[&Kind::Vcpu]);
    for (role, used) in [(Role::KvmLoop, kvm_loop), (role, vcpu)] {
        println!("{role:?}: {} calls before its filter, then {:?}", used.before, used.calls);
        println!("{role:?} ioctls {:x?}", used.ioctls);
    }
    assert_eq!(
        unused(&[calls::LOOP, calls::DISCARD, calls::KVM_LOOP], kvm_loop),
        [0i64; 0],
        "listed, and not used by the loop"
    );
    assert_eq!(unused(&[calls::VCPU], vcpu), [0i64; 0], "listed, and not used by vCPUs");
    let asked: BTreeSet<u32> = calls::KVM_LOOP_IOCTLS.iter().copied().collect();
    assert_eq!(kvm_loop.ioctls, asked);
    // Help with instructions is needed by Linux only, which takes long to boot: those tests run under the same filter.
    assert!(calls::VCPU_IOCTLS.iter().all(|request| vcpu.ioctls.contains(request)), "{:x?}", vcpu.ioctls);
}

#[test]
fn the_lists_of_uml_are_what_its_machines_use() {
    let kernel = kernel_or_skip!();
    if !may_trace() {
        return;
    }
    let mut all = Trace::new();
    let tests = [
        ("hello", "hello"),
        ("listen", "listening"),
        ("disk", ""),
        ("balloon", ""),
        ("burst", ""),
        ("hang", "hanging"),
        ("refused", "Connection reset"),
    ];
    for (test, word) in tests {
        let mut setup = uml_support::Setup::new(&kernel, test);
        setup.listen = test == "listen";
        if test == "balloon" {
            let (target_mib, free_page_reporting) = (8, false);
            setup.balloon = Some(BalloonConfig { target_mib, deflate_on_oom: false, free_page_reporting });
        }
        let disk = memfd(&uml_support::pattern(64 << 10));
        if test == "disk" {
            setup.disk = Some((disk.try_clone().unwrap().into(), 64 << 10, false));
        }
        let mut tracer = None;
        let mut machine = setup.boot_after(|pid| tracer = Some(tracer::begin(pid, true)));
        machine.started();
        machine.expect(word);
        match test {
            "listen" => {
                use std::io::{Read, Write};
                let mut stream = machine.dial(77);
                stream.write_all(b"echo").unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut echoed = String::new();
                stream.read_to_string(&mut echoed).unwrap();
                assert_eq!(echoed, "echo");
            }
            "hang" => {
                ask(&mut machine.control, Request::Statistics);
                ask(&mut machine.control, Request::Diagnose);
                machine.control.ask(Request::Kill, &[]).unwrap();
            }
            _ => {
                let mut rest = Vec::new();
                std::io::Read::read_to_end(&mut machine.stream, &mut rest).unwrap();
            }
        }
        while !matches!(machine.event(), Event::Ended(_)) {}
        merge(&mut all, tracer.unwrap().join().unwrap());
    }
    let used = &all[&Kind::Loop];
    println!("loop: {} calls before its filter, then {:?}", used.before, used.calls);
    let lists = [calls::LOOP, calls::DEVICES, calls::UML_LOOP];
    assert_eq!(unused(&lists, used), [0i64; 0], "listed, and not used by the loop");
    let warden = &all[&Kind::Warden];
    println!("warden: {} calls before its filter, then {:?}", warden.before, warden.calls);
    assert_eq!(unused(&[calls::WARDEN], warden), [0i64; 0], "listed, and not used by the process outside");
}
