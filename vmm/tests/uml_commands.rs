//! Changes of devices while their machine runs, over the control socket.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uml_support::{Machine, PATIENCE, Setup, pattern};
use vmm::config::{BalloonConfig, Bucket, Fd, NetBackend, NetConfig, RateLimit};
use vmm::control::{Answer, ExitReason, Request};
use vmm::virtio::command::Command;

fn change(machine: &mut Machine, name: &str, command: Command) {
    let request = Request::Device { name: name.to_owned(), command };
    let answer = machine.control.call(request, &[]).unwrap();
    assert!(matches!(answer, Answer::Done), "{answer:?}");
}

fn counter(machine: &mut Machine, name: &str, counter: &str) -> u64 {
    match machine.control.call(Request::Statistics, &[]).unwrap() {
        Answer::Statistics(statistics) => {
            statistics.devices.get(name).and_then(|counters| counters.get(counter)).copied().unwrap_or(0)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back() {
    let kernel = kernel_or_skip!();
    let mut setup = Setup::new(&kernel, "balloon-live");
    setup.memory_mib = 96;
    setup.balloon = Some(BalloonConfig { target_mib: 0, deflate_on_oom: false, free_page_reporting: false });
    let mut machine = setup.boot();
    assert_eq!(machine.line(), "all");
    change(&mut machine, "balloon", Command::ResizeBalloon { mib: 24 });
    assert_eq!(machine.line(), "less");
    assert!(counter(&mut machine, "balloon", "inflated_bytes") >= 24 << 20);
    let request = Request::Device { name: "balloon".into(), command: Command::ResizeBalloon { mib: 97 } };
    assert!(matches!(machine.control.call(request, &[]).unwrap(), Answer::Refused(_)));
    change(&mut machine, "balloon", Command::ResizeBalloon { mib: 0 });
    assert_eq!(machine.line(), "again");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}

#[test]
fn a_guest_notices_that_its_cable_is_pulled() {
    let kernel = kernel_or_skip!();
    let (ours, _peer) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut setup = Setup::new(&kernel, "net");
    let config = NetConfig {
        mac: [2, 0x42, 0, 0, 0, 7],
        mtu: 1500,
        backend: NetBackend::Socket { socket: Fd(0), headers: true },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    };
    setup.nets.push((ours, config));
    let mut machine = setup.boot();
    assert_eq!(machine.line(), "02:42:00:00:00:07 1500 1");
    change(&mut machine, "net0", Command::SetLink { up: false });
    assert_eq!(machine.line(), "0");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}

#[test]
fn a_limit_that_stops_a_disk_is_lifted() {
    const DISK: usize = 3 << 20;
    let kernel = kernel_or_skip!();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&pattern(DISK)).unwrap();
    let mut setup = Setup::new(&kernel, "disk");
    setup.disk = Some((OwnedFd::from(File::open(file.path()).unwrap()), DISK as u64, true));
    // After the first request, nothing for hours.
    setup.limit.bytes = Some(Bucket { per_second: 1, burst: 1 });
    let mut machine = setup.boot();
    let began = Instant::now();
    while counter(&mut machine, "block0", "throttled") == 0 {
        assert!(began.elapsed() < PATIENCE, "nothing was ever stopped");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(counter(&mut machine, "block0", "requests"), 1);
    change(&mut machine, "block0", Command::LimitDisk(RateLimit::default()));
    let mut content = vec![0; DISK];
    machine.stream.read_exact(&mut content).unwrap();
    assert!(content == pattern(DISK));
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}
