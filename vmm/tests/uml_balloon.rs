//! The memory balloon as guest and host see it, over vhost-user.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use uml_support::{Machine, PATIENCE, Setup};
use vmm::config::BalloonConfig;
use vmm::control::ExitReason;

#[test]
fn the_guest_gives_memory_to_the_balloon() {
    let kernel = kernel_or_skip!();
    let mut setup = Setup::new(&kernel, "balloon");
    setup.memory_mib = 80;
    setup.balloon = Some(BalloonConfig { target_mib: 32, deflate_on_oom: false, free_page_reporting: false });
    let machine = setup.boot();
    // The guest sees its memory shrink, by all of the balloon.
    let total: u64 = machine.line().parse().unwrap();
    assert!(total <= 48 << 10, "{total}");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}

/// Memory that the guest's kernel has mapped, in KiB: its RAM is a file, which all its processes share.
fn resident(machine: &Machine) -> u64 {
    let of = |pid: &i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssShmem:"));
        line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    machine.descendants().iter().map(of).max().unwrap_or(0)
}

#[test]
fn memory_that_the_guest_no_longer_uses_goes_back_to_the_host() {
    let kernel = kernel_or_skip!();
    let mut setup = Setup::new(&kernel, "report");
    setup.memory_mib = 96;
    setup.balloon = Some(BalloonConfig { target_mib: 0, deflate_on_oom: true, free_page_reporting: true });
    let mut machine = setup.boot();
    assert_eq!(machine.line(), format!("used {}", 7 * (48 << 20) / 4096));
    let used = resident(&machine);
    assert!(used > 48 << 10, "{used}");
    machine.stream.write_all(b"!").unwrap();
    assert_eq!(machine.line(), "freed");
    let began = Instant::now();
    let mut left = resident(&machine);
    while left > used - (32 << 10) {
        assert!(began.elapsed() < PATIENCE, "{used} KiB used, {left} KiB still there");
        sleep(Duration::from_millis(50));
        left = resident(&machine);
    }
    println!("{used} KiB used, {left} KiB left after {:?}", began.elapsed());
    machine.stream.write_all(b"!").unwrap();
    assert_eq!(machine.line(), format!("again {}", 32 << 20));
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}
