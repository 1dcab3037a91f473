//! A guest that keeps all of its devices busy: what it costs, and what its neighbour notices.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uml_support::{Machine, Setup};
use vmm::config::{Fd, NetBackend, NetConfig, RateLimit};
use vmm::control::ExitReason;

/// Round trips that the neighbour makes.
const ROUND_TRIPS: u32 = 3000;

/// The processes of a machine that are the VMM's own.
fn vmm_processes(machine: &Machine) -> Vec<i32> {
    let mut all = machine.descendants();
    all.push(machine.vmm.id() as i32);
    all.retain(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("bulkhead"))
    });
    all
}

/// CPU time of the VMM's own processes.
fn cpu_time(machine: &Machine) -> Duration {
    let of = |pid: &i32| {
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both are ours; a process that is gone gives an error.
        let known = unsafe {
            libc::clock_getcpuclockid(*pid, &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        if known { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) } else { Duration::ZERO }
    };
    vmm_processes(machine).iter().map(of).sum()
}

/// Private memory of the VMM's own processes, in KiB.
fn private(machine: &Machine) -> u64 {
    let of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    vmm_processes(machine).iter().map(of).sum()
}

/// Time and the VMM's CPU time for each of the neighbour's round trips.
fn round_trips(machine: &mut Machine) -> (Duration, Duration) {
    let (began, cpu) = (Instant::now(), cpu_time(machine));
    let mut byte = [1];
    for _ in 0..ROUND_TRIPS {
        machine.stream.write_all(&byte).unwrap();
        machine.stream.read_exact(&mut byte).unwrap();
    }
    (began.elapsed() / ROUND_TRIPS, (cpu_time(machine) - cpu) / ROUND_TRIPS)
}

fn storming(kernel: &Path) -> (Machine, tempfile::NamedTempFile, OwnedFd) {
    let (ours, cable) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let mut setup = Setup::new(kernel, "storm");
    setup.disk = Some((OwnedFd::from(fs::File::open(disk.path()).unwrap()), 1 << 20, true));
    setup.nets.push((
        cable,
        NetConfig {
            mac: [2, 0x42, 0, 0, 0, 1],
            mtu: 1500,
            backend: NetBackend::Socket { socket: Fd(0), headers: false },
            check_source: true,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        },
    ));
    (setup.boot(), disk, ours)
}

#[test]
fn a_storm_takes_no_memory_and_its_neighbour_goes_on() {
    let kernel = kernel_or_skip!();
    let mut neighbour = Setup::new(&kernel, "ping").boot();
    let alone = round_trips(&mut neighbour);
    let (mut storm, _disk, cable) = storming(&kernel);
    storm.expect("storming");
    // Somebody takes the frames, so that they flow.
    let taker = std::thread::spawn(move || {
        let mut frame = [0; 2048];
        let mut frames = 0u64;
        while nix::unistd::read(&cable, &mut frame).is_ok_and(|length| length > 0) {
            frames += 1;
        }
        frames
    });
    let before = private(&storm);
    let beside = round_trips(&mut neighbour);
    let after = private(&storm);
    println!(
        "a neighbour's round trip: alone {:?} ({:?} of CPU), beside a storm {:?} ({:?} of CPU)",
        alone.0, alone.1, beside.0, beside.1
    );
    println!("the storm's VMM: {before} KiB of private memory before, {after} KiB after");
    assert!(after < before + (4 << 10), "{before} KiB before, {after} KiB after");
    neighbour.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(neighbour.ended().reason, ExitReason::Shutdown);
    // Without its supervisor, the storming machine ends.
    drop(storm.control);
    storm.vmm.wait().unwrap();
    let frames = taker.join().unwrap();
    println!("{frames} frames of the storm arrived");
    assert!(frames > 100, "{frames}");
}
