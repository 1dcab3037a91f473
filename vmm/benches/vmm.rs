//! What starting, pausing, restoring and holding a machine costs: medians and 99th percentiles, beside the figures that
//! Firecracker publishes. Run by `make bench-vmm`; nothing is asserted here, for wall time depends on the host.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod devices;
#[path = "../tests/kvm/mod.rs"]
mod kvm;
#[path = "../tests/qemu/mod.rs"]
mod qemu;
#[macro_use]
#[path = "../tests/uml_support/mod.rs"]
mod uml_support;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kvm::assembler::Code;
use kvm::files::memfd;
use kvm::memory::cost;
use kvm::process::{Setup, Vmm};
use vmm::config::{Fd, KvmKind};
use vmm::control::{Answer, Request, SnapshotKind, SnapshotRequest};
use vmm::kvm::{Probe, probe};

const ROUNDS: usize = 60;
const CLONES: usize = 100;
const MEMORY_MIB: u32 = 128;
/// What each clone uses of the memory that its template used.
const READ_MIB: u32 = 16;

/// One line of the table.
fn line(what: &str, mut samples: Vec<f64>, unit: &str, budget: &str, peer: &str) {
    samples.sort_by(f64::total_cmp);
    if unit.ends_with("/s") {
        // Of rates the small ones are the bad ones.
        samples.reverse();
    }
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part).round() as usize];
    println!("| {what} | {:.2} | {:.2} | {unit} | {budget} | {peer} |", at(0.5), at(0.99));
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// Where payloads have memory of their own.
const HEAP: u64 = 0x110_0000;

/// A payload that writes to each page of so many MiB of its RAM, then reads each of the first `READ_MIB`, again and again.
fn toucher(mib: u32) -> Vec<u8> {
    let mut code = Code::new();
    let end = |mib: u32| u32::try_from(HEAP).unwrap() + (mib << 20);
    // mov rbx, HEAP; again: mov [rbx], bl; add rbx, 4096; cmp rbx, end; jb again
    code.raw(&[0x48, 0xbb]).raw(&HEAP.to_le_bytes());
    code.raw(&[0x88, 0x1b, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0x81, 0xfb]).raw(&end(mib).to_le_bytes());
    code.raw(&[0x72, 0xee]).say("touched\n");
    // The same with mov al, [rbx], and a jump back to its beginning.
    code.raw(&[0x48, 0xbb]).raw(&HEAP.to_le_bytes());
    code.raw(&[0x8a, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0x81, 0xfb]);
    code.raw(&end(READ_MIB).to_le_bytes()).raw(&[0x72, 0xee, 0xeb, 0xe2]);
    code.image()
}

fn setup(kvm: &File, kind: KvmKind, image: &[u8]) -> Setup {
    let mut setup = Setup::new(kvm.try_clone().unwrap(), image);
    setup.memory_mib = MEMORY_MIB;
    setup.disk = Some(1 << 20);
    setup.host.kvm_kind = Some(kind);
    setup
}

fn call(vmm: &mut Vmm, request: Request) -> Answer {
    let answer = vmm.client.call(request, &[]).unwrap();
    assert!(!matches!(answer, Answer::Refused(_)), "{answer:?}");
    answer
}

fn main() {
    println!("| what | median | p99 | unit | budget | Firecracker's published figure |");
    println!("| --- | --- | --- | --- | --- | --- |");
    // `cargo bench --bench vmm -- devices` leaves out the rest.
    let all = !std::env::args().any(|argument| argument == "devices");
    if all {
        on_kvm();
        on_uml();
    }
    devices::compare(line, File::options().read(true).write(true).open("/dev/kvm").is_ok());
}

fn on_kvm() {
    let Some(kvm) = kvm::device() else { return };
    let kind = match probe(&kvm) {
        Probe::Hardware => KvmKind::Hardware,
        Probe::Software { nanos } => {
            println!(
                "skipped: figures of hardware KVM: this host's KVM interprets guest kernels ({nanos} ns for each instruction)"
            );
            KvmKind::Software
        }
        Probe::Unusable { why } => return println!("skipped: kvm: {why}"),
    };
    let spin = Code::new().spin().image();
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let vmm = setup(&kvm, kind, &spin).boot(|_| {});
        vmm.started();
        starts.push(millis(began));
    }
    line(
        "kvm: VMM process start to first guest instruction",
        starts,
        "ms",
        "6",
        "start of the VMM alone: 6 to 60, typically 12 (SPECIFICATION.md)",
    );

    let mut pauses = Vec::new();
    let mut vmm = setup(&kvm, kind, &spin).boot(|_| {});
    vmm.started();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(2));
        let began = Instant::now();
        call(&mut vmm, Request::Pause);
        pauses.push(millis(began));
        call(&mut vmm, Request::Resume);
    }
    line("kvm: pause of a running vCPU", pauses, "ms", "1", "none published");
    drop(vmm);

    // A machine that has used 64 MiB becomes the template of others.
    let mut vmm = setup(&kvm, kind, &toucher(64)).boot(|_| {});
    vmm.started();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let Answer::Diagnosis(diagnosis) = call(&mut vmm, Request::Diagnose) else { panic!() };
        if diagnosis.console.contains("touched") {
            break;
        }
    }
    let (inner, outer) = (cost(vmm.inner().cast_unsigned()), cost(vmm.child.id()));
    let own = (inner.own + outer.own) as f64 / f64::from(1 << 20);
    line(
        "kvm: private memory beside guest RAM, both processes",
        vec![own],
        "MiB",
        "3",
        "5 (SPECIFICATION.md)",
    );
    call(&mut vmm, Request::Pause);
    let (state, memory) = (memfd(b""), memfd(b""));
    let request = SnapshotRequest { state: Fd(0), memory: Fd(1), kind: SnapshotKind::Full };
    let began = Instant::now();
    let answer = vmm.client.call(Request::Snapshot(request), &[state.as_fd(), memory.as_fd()]).unwrap();
    assert!(matches!(answer, Answer::Snapshot(_)), "{answer:?}");
    line("kvm: full snapshot, 64 of 128 MiB in use", vec![millis(began)], "ms", "-", "none published");
    drop(vmm);

    let restored = |paused| {
        let mut setup = setup(&kvm, kind, &spin);
        setup.restore = Some((state.try_clone().unwrap(), memory.try_clone().unwrap(), paused));
        let began = Instant::now();
        let vmm = setup.boot(|_| {});
        let micros = match vmm.started() {
            vmm::control::Event::Started { micros, .. } => micros,
            vmm::control::Event::Ended(report) => panic!("{report:?}"),
        };
        (vmm, millis(began), micros as f64 / 1e3)
    };
    let (mut whole, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (_, total, own) = restored(false);
        whole.push(total);
        inside.push(own);
    }
    line("kvm: restore of 128 MiB, request to vCPU running", inside, "ms", "4", "none in SPECIFICATION.md");
    line("kvm: the same with the start of the process", whole, "ms", "-", "none published");

    let clones: Vec<Vmm> = (0..CLONES).map(|_| restored(false).0).collect();
    // Together they have what one of them has read, once all have.
    let began = Instant::now();
    let costs = loop {
        let costs: Vec<_> =
            clones.iter().map(|vmm| (cost(vmm.inner().cast_unsigned()), cost(vmm.child.id()))).collect();
        let shared: u64 = costs.iter().map(|(inner, _)| inner.guest).sum();
        if shared >= u64::from(READ_MIB) << 20 || began.elapsed() > Duration::from_secs(30) {
            break costs;
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let own = costs.iter().map(|(inner, outer)| mib(inner.own + outer.own)).collect();
    let guest = costs.iter().map(|(inner, _)| inner.guest as f64 / 1024.0).collect();
    line(&format!("kvm: PSS of each of {CLONES} clones, VMM"), own, "MiB", "-", "none published");
    let what =
        format!("kvm: PSS of each of {CLONES} clones, guest RAM, of which each has read {READ_MIB} MiB");
    line(&what, guest, "KiB", "-", "none published");
}

fn on_uml() {
    let Some(kernel) = uml_support::kernel() else { return };
    let (mut starts, mut words) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let mut machine = uml_support::Setup::new(&kernel, "hello").boot();
        machine.started();
        starts.push(millis(began));
        machine.expect("hello");
        words.push(millis(began));
        machine.ended();
    }
    line("uml: VMM process start to first guest instruction", starts, "ms", "6", "-");
    line(
        "uml: VMM process start to the guest's first word over vsock",
        words,
        "ms",
        "-",
        "125 to /sbin/init, from InstanceStart (SPECIFICATION.md)",
    );
}
