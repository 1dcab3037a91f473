//! Linux on the real /dev/kvm, with an init of a few dozen instructions: processes, a disk, and a panic told apart.
//!
//! On hardware this takes a fraction of a second; where KVM interprets guest kernels, up to half a minute.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used)]

mod kvm;
mod share;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm::assembler::Code;
use kvm::files::{Member, cpio, elf, memfd};
use kvm::{Machine, device, skip};
use vmm::control::ExitReason;
use vmm::virtio::fs::Fs;

/// The kernel that `guest-kernel/build.sh kvm` leaves in its cache, or what BULKHEAD_KERNEL_KVM names.
fn kernel() -> Option<File> {
    let named = std::env::var_os("BULKHEAD_KERNEL_KVM").map(PathBuf::from);
    let cache = || {
        let cache = std::env::var_os("BULKHEAD_CACHE").map(PathBuf::from);
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        Some(cache.or_else(|| Some(base.or(home)?.join("bulkhead")))?.join("kernels/kvm/vmlinux"))
    };
    let found = named.or_else(cache).and_then(|path| File::open(path).ok());
    if found.is_none() {
        skip("no guest kernel for kvm; `make kernel-kvm` builds it");
    }
    found
}

/// A user program under construction: system calls, one after another.
struct Program {
    code: Code,
}

impl Program {
    fn call(&mut self, number: u32, arguments: [u64; 4]) -> &mut Self {
        // mov rdi, rsi, rdx, r10, eax
        for (opcode, value) in [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba]].iter().zip(arguments)
        {
            self.code.raw(opcode).raw(&value.to_le_bytes());
        }
        self.code.raw(&[0xb8]).raw(&number.to_le_bytes()).raw(&[0x0f, 0x05]);
        self
    }

    fn text(&mut self, text: &str) -> u64 {
        let mut data = Code::default();
        data.raw(text.as_bytes()).raw(&[0]);
        self.code.aside(&data)
    }

    fn say(&mut self, text: &str) -> &mut Self {
        let at = self.text(text);
        self.call(WRITE, [1, at, text.len() as u64, 0])
    }
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const OPEN: u32 = 2;
const FORK: u32 = 57;
const EXIT: u32 = 60;
const WAIT4: u32 = 61;
const MOUNT: u32 = 165;
const ANYONE: u64 = u64::MAX;

/// Says hello, runs a child to its end, shows the first bytes of the first disk, of the network
/// interface's address and of a shared file, and exits, which an init must not.
fn init() -> Vec<u8> {
    let mut program = Program { code: Code::default() };
    program.say("init runs\n").call(FORK, [0; 4]);
    // The child: test eax, eax; jnz over it.
    program.code.raw(&[0x85, 0xc0]);
    let text = "child runs\n";
    let at = program.code.here() + 6;
    let mut inner = Program { code: Code::default() };
    // Position independent: the text lies behind the code of the child, whose length does not depend on its address.
    inner.call(WRITE, [1, 0, text.len() as u64, 0]).call(EXIT, [0; 4]);
    let length = inner.code.bytes().len() as u64;
    let mut inner = Program { code: Code::default() };
    inner.call(WRITE, [1, at + length, text.len() as u64, 0]).call(EXIT, [0; 4]);
    inner.code.raw(text.as_bytes());
    let over = u32::try_from(inner.code.bytes().len()).unwrap();
    program.code.raw(&[0x0f, 0x85]).raw(&over.to_le_bytes()).raw(inner.code.bytes());

    program.call(WAIT4, [ANYONE, 0, 0, 0]).say("child gone\n");
    let (devtmpfs, dev, disk) = (program.text("devtmpfs"), program.text("/dev"), program.text("/dev/vda"));
    // The fifth argument of mount, its options, is whatever R8 holds, which is zero from the start.
    program.call(MOUNT, [dev, dev, devtmpfs, 0]).call(OPEN, [disk, 0, 0, 0]);
    let buffer = program.text("0123456789abcdef");
    program.call(READ, [3, buffer, 16, 0]).call(WRITE, [1, buffer, 16, 0]).say("\n");
    let (sysfs, sys) = (program.text("sysfs"), program.text("/sys"));
    let address = program.text("/sys/class/net/eth0/address");
    program.call(MOUNT, [sys, sys, sysfs, 0]).call(OPEN, [address, 0, 0, 0]);
    program.call(READ, [4, buffer, 16, 0]).call(WRITE, [1, buffer, 16, 0]).say("\n");
    let (tag, kind, file) = (program.text("data"), program.text("virtiofs"), program.text("/sys/told"));
    program.call(MOUNT, [tag, sys, kind, 0]).call(OPEN, [file, 0, 0, 0]);
    program.call(READ, [5, buffer, 16, 0]).call(WRITE, [1, buffer, 16, 0]).say("\n").call(EXIT, [7, 0, 0, 0]);
    elf(kvm::assembler::LOAD_ADDRESS, program.code.bytes())
}

#[test]
fn linux_boots_runs_processes_reads_a_disk_and_its_panic_is_told_apart() {
    let Some(kvm) = device() else { return };
    let Some(kernel) = kernel() else { return };
    let directory = |name| Member { name, mode: 0o40_755, device: (0, 0), content: &[] };
    let init = init();
    let archive = cpio(&[
        directory("dev"),
        directory("sys"),
        Member { name: "dev/console", mode: 0o20_600, device: (5, 1), content: &[] },
        Member { name: "init", mode: 0o100_755, device: (0, 0), content: &init },
    ]);
    let disk = Arc::new(memfd(&b"bytes of a disk!".repeat(512)));
    let machine = Machine::new(kvm, &[]).disk(&disk, 8192, true);
    let (mut machine, _cable) = machine.net([2, 0, 0, 0xab, 0xcd, 0xef]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("told"), "told by the host").unwrap();
    let share = share::serve(folder.path(), true);
    let shared = share.is_some();
    let _server = share.map(|(server, socket)| {
        machine.devices.push(Box::new(Fs::new(0, "data", socket).unwrap()));
        server
    });
    machine.kernel = kernel;
    machine.initramfs = memfd(&archive);
    machine.memory_mib = 64;
    machine.deadline = Duration::from_secs(240);
    let start = Instant::now();
    let report = machine.run();
    println!("Linux from start to panic: {:.2} s", start.elapsed().as_secs_f64());
    assert_eq!(report.reason, ExitReason::Panic, "{report:?}");
    assert!(report.detail.contains("Attempted to kill init"), "{report:?}");
    for said in ["init runs", "child runs", "child gone", "bytes of a disk!", "02:00:00:ab:cd:e"] {
        assert!(report.console.contains(said), "{said}: {report:?}");
    }
    assert!(!shared || report.console.contains("told by the host"), "{report:?}");
}
