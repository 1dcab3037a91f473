//! Machines as large as they may be: 32 vCPUs, more RAM than the host has, RAM in huge pages. Payloads are bare-metal.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod kvm;

use std::fs;
use std::time::Duration;

use kvm::assembler::Code;
use kvm::{Machine, device, skip};
use vmm::control::{Answer, Client, ExitReason, Request};

/// Registers of the local APIC (Intel SDM volume 3, "Interrupt Command Register").
const COMMAND: u64 = 0xfee0_0300;
const COMMAND_HIGH: u64 = 0xfee0_0310;
/// To all but this CPU: be reset; start at the page with the number in the lowest byte.
const INIT: u32 = 0x000c_4500;
const START: u32 = 0x000c_4600;

/// Where the other CPUs start, in real mode, and where each writes the byte that is its number.
const TRAMPOLINE: u64 = 0x3_0000;
const NUMBERS: u64 = 0x5000;

/// Page tables of a payload's own, for what lies beyond the first GiB: the entries of the table that a machine starts with.
const UPPER_ENTRIES: u64 = 0xa000;
const UPPER_DIRECTORY: u64 = 0x4_1000;

fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until the console says something.
fn wait_for(client: &mut Client, text: &str) {
    loop {
        let Answer::Diagnosis(diagnosis) = client.call(Request::Diagnose, &[]).unwrap() else { panic!() };
        if diagnosis.console.contains(text) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn thirty_two_vcpus_come_up_and_each_knows_its_number() {
    let Some(kvm) = device() else { return };
    let trampoline: &[u8] = &[
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x66, 0xb8, 1, 0, 0, 0, // mov eax, 1
        0x0f, 0xa2, // cpuid
        0x66, 0xc1, 0xeb, 24, // shr ebx, 24: the APIC's number
        0x88, 0x9f, 0x00, 0x50, // mov [bx + NUMBERS], bl
        0xf4, // hlt
        0xeb, 0xfd, // jmp to it
    ];
    let mut code = Code::new();
    code.store(TRAMPOLINE, trampoline);
    code.store32(COMMAND_HIGH, 0).store32(COMMAND, INIT);
    code.store32(COMMAND, START | u32::try_from(TRAMPOLINE >> 12).unwrap());
    for first in (0..32u8).step_by(4) {
        let numbers = [first, first + 1, first + 2, first + 3];
        code.wait32(NUMBERS + u64::from(first), u32::from_le_bytes(numbers));
    }
    code.say("all").spin();
    let mut machine = Machine::new(kvm, &code.image());
    machine.vcpus = 32;
    machine.deadline = Duration::from_secs(60);
    let mut exits = Vec::new();
    let report = machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        wait_for(client, "all");
        // All of them stop, one that spins and 31 that rest.
        for request in [Request::Pause, Request::Resume, Request::Pause] {
            assert!(matches!(client.call(request, &[]).unwrap(), Answer::Done));
        }
        let Answer::Diagnosis(diagnosis) = client.call(Request::Diagnose, &[]).unwrap() else { panic!() };
        assert_eq!(diagnosis.vcpus.len(), 32);
        exits = diagnosis.statistics.exits;
        client.ask(Request::Kill, &[]).unwrap();
    });
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Killed, "all"), "{report:?}");
    println!("exits of each: {exits:?}");
    assert_eq!(exits.len(), 32);
}

#[test]
fn a_machine_may_have_more_memory_than_its_host() {
    let Some(kvm) = device() else { return };
    let host = meminfo("MemTotal") >> 10;
    let memory_mib = u32::try_from(host + 4096).unwrap();
    // The last 2 MiB, and some in between.
    let end = 0x1_0000_0000 + (u64::from(memory_mib) << 20) - 0xc000_0000;
    let mut code = Code::new();
    for (number, address) in (0u32..).zip([end - (2 << 20), end - (1 << 30), 0x1_0000_0000]) {
        let page = address & !0x1f_ffff;
        let directory = UPPER_DIRECTORY + 0x1000 * u64::from(number);
        code.store64(UPPER_ENTRIES + 8 * (page >> 30), directory | 3);
        code.store64(directory + 8 * (page >> 21 & 511), page | 0x83);
        let last = page + 0x1f_fff8;
        code.expect32(last, 0, "fresh").store32(last, 7 + number).expect32(last, 7 + number, "kept");
    }
    code.say("ok").reset();
    let mut machine = Machine::new(kvm, &code.image());
    machine.memory_mib = memory_mib;
    let report = machine.run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
    println!("{memory_mib} MiB on a host with {host} MiB");
}

/// The host's pool of huge pages, as it was before.
struct Pool(u64);

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl Pool {
    /// A pool with so many free pages; `None` (said loudly) where there are none to be had.
    fn with_free(pages: u64) -> Option<Self> {
        let before = fs::read_to_string(POOL).ok().and_then(|text| text.trim().parse().ok());
        let Some(before) = before else {
            skip("this host has no huge pages");
            return None;
        };
        let pool = Self(before);
        let free = meminfo("HugePages_Free") - meminfo("HugePages_Rsvd");
        if free < pages && fs::write(POOL, (before + pages).to_string()).is_err() {
            skip("only root may reserve huge pages");
            return None;
        }
        let free = meminfo("HugePages_Free") - meminfo("HugePages_Rsvd");
        if free < pages {
            skip("the host has no memory in pieces of 2 MiB left");
            return None;
        }
        Some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if fs::read_to_string(POOL).is_ok_and(|now| now.trim() != self.0.to_string()) {
            let _ = fs::write(POOL, self.0.to_string());
        }
    }
}

#[test]
fn memory_in_huge_pages_is_what_was_asked_for_or_refused_by_name() {
    let Some(kvm) = device() else { return };
    if meminfo("Hugepagesize") != 2048 {
        return skip("this host's huge pages are not of 2 MiB");
    }
    let huge = |code: &Code, memory_mib| {
        let mut machine = Machine::new(kvm.try_clone().unwrap(), &code.image());
        machine.memory_mib = memory_mib;
        machine.host.huge_pages = true;
        machine
    };
    // More than the pool has.
    let mut code = Code::new();
    code.say("ok").reset();
    let pool = u32::try_from(meminfo("HugePages_Total")).unwrap();
    let report = huge(&code, 2 * pool + 64).run();
    assert_eq!(report.reason, ExitReason::BootFailed, "{report:?}");
    assert!(report.detail.contains("guest memory cannot be reserved"), "{report:?}");

    let Some(_pool) = Pool::with_free(16) else { return };
    let mut code = Code::new();
    code.store32(0x1f0_0000, 7).expect32(0x1f0_0000, 7, "kept").say("ok").spin();
    let report = huge(&code, 32).run_with(|control| {
        let client = control.as_mut().unwrap();
        wait_for(client, "ok");
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        // Other tests of this process have machines too, in other pages.
        let sizes: Vec<&str> = smaps
            .split("guest-ram")
            .skip(1)
            .filter_map(|ours| ours.lines().find_map(|line| line.strip_prefix("KernelPageSize:")))
            .map(str::trim)
            .collect();
        assert!(sizes.contains(&"2048 kB"), "{sizes:?}");
        client.ask(Request::Kill, &[]).unwrap();
    });
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Killed, "ok"), "{report:?}");
}
