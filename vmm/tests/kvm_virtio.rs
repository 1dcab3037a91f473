//! Devices over virtio-mmio on the real /dev/kvm: a guest driver that keeps the rules, and one that breaks them.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used)]

mod kvm;

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use kvm::assembler::Code;
use kvm::driver::{Driver, NEEDS_RESET, NEXT, QUEUE_NOTIFY, QUEUE_READY, QUEUE_SIZE, RUNNING, SIZE, STATUS};
use kvm::files::memfd;
use kvm::{Machine, device};
use vmm::config::BalloonConfig;
use vmm::control::{ExitReason, ExitReport};
use vmm::virtio::balloon::Balloon;
use vmm::virtio::rng::Rng;

const HEADER: u64 = 0x7_0000;
const STATUS_BYTE: u64 = 0x7_0100;
const DATA: u64 = 0x7_1000;
/// The first byte behind the memory of these machines.
const END: u64 = 32 << 20;

fn assert_ok(report: &ExitReport) {
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
}

/// Writes a block request's header and spoils its status byte.
fn header(code: &mut Code, kind: u32, sector: u64) {
    code.store64(HEADER, u64::from(kind)).store64(HEADER + 8, sector).store8(STATUS_BYTE, 0xff);
}

/// Plays a block request and checks its status.
fn play(code: &mut Code, driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32, bool)], status: u8) {
    header(code, kind, sector);
    let mut parts = vec![(HEADER, 16, false)];
    parts.extend(data);
    parts.push((STATUS_BYTE, 1, true));
    driver.request(code, &parts);
    code.expect8(STATUS_BYTE, status, &format!("status of kind {kind} sector {sector}"));
}

fn disk(content: &[u8]) -> Arc<File> {
    Arc::new(memfd(content))
}

fn content(file: &Arc<File>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = &**file;
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_guest_driver_reads_writes_flushes_and_identifies_a_disk() {
    let Some(kvm) = device() else { return };
    let mut bytes = vec![b'a'; 1024];
    bytes[512..520].copy_from_slice(b"sector 1");
    let file = disk(&bytes);
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    code.expect32(driver.base, u32::from_le_bytes(*b"virt"), "magic");
    code.expect32(driver.base + 4, 2, "version").expect32(driver.base + 8, 2, "device id");
    // Capacity: 4 sectors.
    code.expect32(driver.base + 0x100, 4, "capacity");
    driver.start(&mut code);
    play(&mut code, &mut driver, 0, 1, &[(DATA, 256, true), (DATA + 0x1000, 256, true)], 0);
    code.expect32(DATA, u32::from_le_bytes(*b"sect"), "data").expect32(
        DATA + 4,
        u32::from_le_bytes(*b"or 1"),
        "data",
    );
    code.expect32(DATA + 0x1000, u32::from_le_bytes(*b"aaaa"), "data behind");
    // Used length: 512 bytes and the status.
    code.expect32(driver.used() + 8, 513, "used length");
    code.store(DATA, &[b'w'; 512]);
    play(&mut code, &mut driver, 1, 3, &[(DATA, 512, false)], 0);
    play(&mut code, &mut driver, 4, 0, &[], 0);
    play(&mut code, &mut driver, 8, 0, &[(DATA, 20, true)], 0);
    code.expect32(DATA, u32::from_le_bytes(*b"bloc"), "id");
    // Beyond its end, and an unknown kind.
    play(&mut code, &mut driver, 0, 4, &[(DATA, 512, true)], 1);
    play(&mut code, &mut driver, 99, 0, &[], 2);
    code.say("ok").reset();
    let report = Machine::new(kvm, &code.image()).disk(&file, 2048, false).run();
    assert_ok(&report);
    let mut want = bytes;
    want.resize(1536, 0);
    want.extend([b'w'; 512]);
    assert_eq!(content(&file), want);
}

#[test]
fn a_read_only_disk_refuses_a_guests_writes() {
    let Some(kvm) = device() else { return };
    let file = disk(&[b'a'; 1024]);
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    for kind in [1, 11, 13] {
        play(&mut code, &mut driver, kind, 0, &[(DATA, 512, false)], 1);
    }
    code.say("ok").reset();
    let report = Machine::new(kvm, &code.image()).disk(&file, 1024, true).run();
    assert_ok(&report);
    assert_eq!(content(&file), [b'a'; 1024]);
}

#[test]
fn every_device_has_its_own_registers_and_queue() {
    let Some(kvm) = device() else { return };
    let files = [disk(&[b'0'; 512]), disk(&[b'1'; 512]), disk(&[b'2'; 512])];
    let mut code = Code::new();
    let mut drivers: Vec<_> = (0..3).map(Driver::new).collect();
    for driver in &mut drivers {
        driver.start(&mut code);
    }
    for (digit, driver) in (b'0'..).zip(&mut drivers) {
        play(&mut code, driver, 0, 0, &[(DATA, 512, true)], 0);
        code.expect8(DATA, digit, "the disk's own data");
    }
    code.say("ok").reset();
    let machine = Machine::new(kvm, &code.image());
    let machine = files.iter().fold(machine, |machine, file| machine.disk(file, 512, true));
    assert_ok(&machine.run());
}

#[test]
fn the_entropy_device_gives_entropy() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    code.store64(DATA, 0).store64(DATA + 56, 0);
    driver.request(&mut code, &[(DATA, 64, true)]);
    code.expect32(driver.used() + 8, 64, "used length");
    code.refuse32(DATA, 0, "first bytes").refuse32(DATA + 60, 0, "last bytes").say("ok").reset();
    assert_ok(&Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run());
}

#[test]
fn a_frame_reaches_a_guests_buffer() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    code.expect32(driver.base + 8, 1, "device id");
    // The address: 02:00:00:00:00:07.
    code.expect32(driver.base + 0x100, 2, "address").expect16(driver.base + 0x104, 0x0700, "address");
    code.expect16(driver.base + 0x106, 1, "link");
    driver.start(&mut code);
    driver.request(&mut code, &[(DATA, 2048, true)]);
    // Twelve bytes of header, in it one buffer, and then the frame.
    code.expect32(driver.used() + 8, 12 + 60, "used length").expect16(DATA + 10, 1, "buffers");
    code.expect32(DATA + 12 + 56, u32::from_le_bytes(*b"last"), "the frame's end").say("ok").reset();
    let (machine, peer) = Machine::new(kvm, &code.image()).net([2, 0, 0, 0, 0, 7]);
    let mut frame = [0xff; 60];
    frame[56..].copy_from_slice(b"last");
    nix::unistd::write(&peer, &frame).unwrap();
    assert_ok(&machine.run());
}

#[test]
fn an_inflated_page_comes_back_empty() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    // The target: 3 MiB of pages.
    code.expect32(driver.base + 8, 5, "device id").expect32(driver.base + 0x100, 768, "target");
    driver.start(&mut code);
    let page = 0x90_0000u64;
    code.store64(page, 7).store64(page + 0xff8, 7).store64(page + 0x1000, 7);
    code.store32(DATA, u32::try_from(page / 4096).unwrap());
    driver.request(&mut code, &[(DATA, 4, false)]);
    code.expect32(page, 0, "begin").expect32(page + 0xff8, 0, "end").expect32(page + 0x1000, 7, "behind");
    // The page works again.
    code.store32(page, 9).expect32(page, 9, "written");
    // What it has reached is the driver's to write, the target is not.
    code.store32(driver.base + 0x104, 1).expect32(driver.base + 0x104, 1, "actual");
    code.store32(driver.base + 0x100, 1).expect32(driver.base + 0x100, 768, "target").say("ok").reset();
    let config = BalloonConfig { target_mib: 3, deflate_on_oom: true, free_page_reporting: true };
    assert_ok(&Machine::new(kvm, &code.image()).device(Balloon::new(&config, 32).unwrap()).run());
}

#[test]
fn only_whole_notifications_of_queues_that_exist_count() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    // Neither an index out of range nor a narrow write does anything.
    code.store32(driver.base + QUEUE_NOTIFY, 1).store32(driver.base + QUEUE_NOTIFY, u32::MAX);
    code.store16(driver.base + QUEUE_NOTIFY, 0).store8(driver.base + QUEUE_NOTIFY, 0);
    code.expect16(driver.used() + 2, 0, "nothing used").expect32(
        driver.base + STATUS,
        RUNNING,
        "still running",
    );
    driver.request(&mut code, &[(DATA, 64, true)]);
    code.say("ok").reset();
    assert_ok(&Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run());
}

#[test]
fn registers_are_frozen_once_the_driver_is_ok() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    driver.configure(&mut code, 64, END, END, END);
    code.store32(driver.base + QUEUE_READY, 0).expect32(driver.base + QUEUE_READY, 1, "frozen");
    code.store32(driver.base + STATUS, 3).expect32(driver.base + STATUS, RUNNING, "status goes one way");
    driver.request(&mut code, &[(DATA, 64, true)]);
    code.say("ok").reset();
    assert_ok(&Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run());
}

#[test]
fn queues_outside_of_memory_do_not_become_ready() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.negotiate(&mut code);
    let (rings, available, used) = (driver.rings, driver.available(), driver.used());
    for (size, descriptors, available, used) in [
        (8, END, available, used),
        (8, END - 64, available, used),
        (8, rings, END - 2, used),
        (8, rings, available, u64::MAX - 3),
        (8, rings, available, 0xd000_0000),
        (8, rings + 1, available, used),
        (0, rings, available, used),
        (7, rings, available, used),
        (0xffff_ffff, rings, available, used),
        (256, rings, available, used),
    ] {
        driver.configure(&mut code, size, descriptors, available, used);
        code.expect32(driver.base + QUEUE_READY, 0, &format!("size {size} at {descriptors:#x}"));
    }
    code.store32(driver.base + QUEUE_SIZE, 8);
    // After all that, the right values still work.
    driver.start(&mut code);
    driver.request(&mut code, &[(DATA, 64, true)]);
    code.say("ok").reset();
    assert_ok(&Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run());
}

#[test]
fn a_storm_of_exits_and_notifications_costs_the_guest_its_own_time_only() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    driver.chain(&mut code, &[(DATA, 64, true)]);
    for round in 0..2000u32 {
        // Notifications for nothing, of queues that are and are not; registers that are not; ports that nobody has.
        code.store32(driver.base + QUEUE_NOTIFY, round % 3).store32(driver.base + 0xf00, round);
        code.store64(driver.base + 0x100, u64::MAX).out(0x500 + u16::try_from(round % 64).unwrap(), 1);
        code.store32(driver.base + 0x64, u32::MAX);
        if round % 100 == 0 {
            // Reset and started again, with requests still offered.
            driver.offer(&mut code, 0);
            driver.start(&mut code);
        }
    }
    driver.request(&mut code, &[(DATA, 64, true)]);
    code.say("ok").reset();
    let before = peak_memory();
    assert_ok(&Machine::new(kvm, &code.image()).device(Rng::new().unwrap()).run());
    let grown = peak_memory() - before;
    println!("10000 exits and notifications: {grown} KiB more at the peak");
    assert!(grown < 96 << 10, "{grown} KiB");
}

/// The most memory that this process has had, in KiB; what the machine itself touches is part of it.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_driver_that_breaks_the_queue_loses_its_device_until_it_resets_it() {
    let Some(kvm) = device() else { return };
    let file = disk(&[b'a'; 1024]);
    type Break = fn(&mut Code, &mut Driver);
    let breaks: &[(&str, Break)] = &[
        ("status byte beyond memory", |code, driver| {
            driver.chain(code, &[(HEADER, 16, false), (END, 1, true)]);
            driver.offer(code, 0);
        }),
        ("loop", |code, driver| {
            driver.descriptor(code, 0, HEADER, 16, NEXT, 1);
            driver.descriptor(code, 1, HEADER, 16, NEXT, 0);
            driver.offer(code, 0);
        }),
        ("head beyond the table", |code, driver| driver.offer(code, SIZE)),
        ("next beyond the table", |code, driver| {
            driver.descriptor(code, 0, HEADER, 16, NEXT, u16::MAX);
            driver.offer(code, 0);
        }),
        ("available index too far", |code, driver| {
            code.store16(driver.available() + 2, SIZE + 1).store32(driver.base + QUEUE_NOTIFY, 0);
        }),
        ("indirect table beyond memory", |code, driver| {
            driver.descriptor(code, 0, u64::MAX - 15, 16, 4, 0);
            driver.offer(code, 0);
        }),
    ];
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    for (_, make) in breaks {
        driver.start(&mut code);
        header(&mut code, 0, 0);
        make(&mut code, &mut driver);
        code.wait32(driver.base + STATUS, RUNNING | NEEDS_RESET);
        code.expect16(driver.used() + 2, 0, "nothing used");
    }
    // Buffers beyond memory have a status byte: an error, and the device lives.
    driver.start(&mut code);
    play(&mut code, &mut driver, 0, 0, &[(END, 512, true)], 1);
    play(&mut code, &mut driver, 1, 0, &[(END - 256, 512, false)], 1);
    play(&mut code, &mut driver, 0, 0, &[(u64::MAX - 255, 512, true)], 1);
    play(&mut code, &mut driver, 0, u64::MAX, &[(DATA, 512, true)], 1);
    play(&mut code, &mut driver, 0, 0, &[(DATA, 512, true)], 0);
    code.say("ok").reset();
    let report = Machine::new(kvm, &code.image()).disk(&file, 1024, false).run();
    assert_eq!(report.reason, ExitReason::Reset, "{report:?}");
    assert!(report.console.ends_with("ok"), "{report:?}");
    assert_eq!(report.console.matches("block0 stopped: ").count(), breaks.len(), "{report:?}");
    assert_eq!(content(&file), [b'a'; 1024]);
}
