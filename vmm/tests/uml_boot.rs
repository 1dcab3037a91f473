//! Real boots of User Mode Linux: start, end, and the reasons for it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use uml_support::Setup;
use vmm::control::{ExitReason, Request};

#[test]
fn a_guest_boots_talks_and_powers_off() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "hello").boot();
    assert_eq!(machine.started(), "user-space kernel");
    machine.expect("hello");
    println!("VMM's exec to the guest's first word: {:?}", machine.began.elapsed());
    let began = machine.began;
    let report = machine.ended();
    println!("VMM's exec to its exit: {:?}", began.elapsed());
    assert_eq!((report.reason, report.detail.as_str()), (ExitReason::Shutdown, ""), "{}", report.console);
}

#[test]
fn a_reboot_is_an_end() {
    let kernel = kernel_or_skip!();
    let report = Setup::new(&kernel, "reboot").boot().ended();
    assert_eq!(report.reason, ExitReason::Reset, "{report:?}");
}

#[test]
fn a_panic_is_reported_with_the_console() {
    let kernel = kernel_or_skip!();
    let report = Setup::new(&kernel, "panic").boot().ended();
    assert_eq!(report.reason, ExitReason::Panic, "{report:?}");
    assert!(report.detail.contains("Attempted to kill init"), "{}", report.detail);
    assert!(report.console.contains("Kernel panic - not syncing"), "{}", report.console);
}

#[test]
fn a_guest_that_never_answers_is_killed() {
    let kernel = kernel_or_skip!();
    for test in ["hang", "spin"] {
        let mut machine = Setup::new(&kernel, test).boot();
        machine.expect(if test == "hang" { "hanging" } else { "spinning" });
        let began = std::time::Instant::now();
        machine.control.ask(Request::Kill, &[]).unwrap();
        let report = machine.ended();
        assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
        assert!(began.elapsed().as_millis() < 500, "{:?}", began.elapsed());
    }
}

#[test]
fn guest_processes_come_and_go() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "fork").boot();
    machine.expect("forked");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}

/// Run by hand: `cargo test -p vmm --release --test uml_boot -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn boot_times() {
    let kernel = kernel_or_skip!();
    let (mut words, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..41 {
        let mut machine = Setup::new(&kernel, "hello").boot();
        let began = machine.began;
        machine.expect("hello");
        words.push(began.elapsed());
        assert_eq!(machine.ended().reason, ExitReason::Shutdown);
        ends.push(began.elapsed());
    }
    words.sort();
    ends.sort();
    println!("VMM's exec to the guest's first word: best {:?}, median {:?}", words[0], words[20]);
    println!("VMM's exec to its exit: best {:?}, median {:?}", ends[0], ends[20]);
}

#[test]
fn uml_refuses_what_it_cannot_do_by_name() {
    use std::os::fd::AsFd;
    use vmm::config::Fd;
    use vmm::control::{Answer, RefusalKind, SnapshotKind, SnapshotRequest};
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "hang").boot();
    machine.expect("hanging");
    let file = std::fs::File::open("/dev/null").unwrap();
    let snapshot = SnapshotRequest { state: Fd(0), memory: Fd(0), kind: SnapshotKind::Full };
    for (request, what) in [
        (Request::Pause, "pause"),
        (Request::Snapshot(snapshot), "snapshot"),
        (Request::WorkingSet { to: Fd(0) }, "working set"),
    ] {
        let Answer::Refused(refusal) = machine.control.call(request, &[file.as_fd()]).unwrap() else {
            panic!("not refused")
        };
        assert!(refusal.kind == RefusalKind::Unsupported, "{refusal:?}");
        assert!(refusal.text.contains(what), "{refusal}");
    }
    let Answer::Statistics(statistics) = machine.control.call(Request::Statistics, &[]).unwrap() else {
        panic!("no statistics")
    };
    assert_eq!((statistics.memory_bytes, statistics.paused), (64 << 20, false));
    assert!(statistics.devices.contains_key("vsock"), "{statistics:?}");
    machine.control.ask(Request::Kill, &[]).unwrap();
    assert_eq!(machine.ended().reason, ExitReason::Killed);
}
