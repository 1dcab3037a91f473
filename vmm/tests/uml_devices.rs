//! Devices as the guest sees them, over vhost-user.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::time::Instant;

use uml_support::{Setup, pattern};
use vmm::config::Bucket;
use vmm::control::ExitReason;

const DISK: usize = 3 << 20;

fn disk(read_only: bool) -> (tempfile::NamedTempFile, OwnedFd) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&pattern(DISK)).unwrap();
    let fd = if read_only {
        OwnedFd::from(File::open(file.path()).unwrap())
    } else {
        OwnedFd::from(File::options().read(true).write(true).open(file.path()).unwrap())
    };
    (file, fd)
}

#[test]
fn the_guest_reads_its_disk_and_writes_where_it_may() {
    let kernel = kernel_or_skip!();
    for read_only in [true, false] {
        let (file, fd) = disk(read_only);
        let mut setup = Setup::new(&kernel, "disk");
        setup.disk = Some((fd, DISK as u64, read_only));
        let mut machine = setup.boot();
        let mut content = vec![0; DISK];
        machine.stream.read_exact(&mut content).unwrap();
        assert!(content == pattern(DISK));
        let mut outcome = String::new();
        machine.stream.read_to_string(&mut outcome).unwrap();
        let report = machine.ended();
        assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
        let after = std::fs::read(file.path()).unwrap();
        if read_only {
            assert!(outcome.starts_with("refused: "), "{outcome}");
            assert!(after == pattern(DISK));
        } else {
            assert_eq!(outcome, "written");
            assert!(after[..4096] == [b'w'; 4096] && after[4096..] == pattern(DISK)[4096..]);
        }
    }
}

#[test]
fn a_limited_disk_is_no_faster_than_its_limit() {
    let kernel = kernel_or_skip!();
    let (_file, fd) = disk(true);
    let mut setup = Setup::new(&kernel, "disk");
    setup.disk = Some((fd, DISK as u64, true));
    let (rate, burst) = (2 << 20, 512 << 10);
    setup.limit.bytes = Some(Bucket { per_second: rate, burst });
    let mut machine = setup.boot();
    let mut content = vec![0; DISK];
    machine.stream.read_exact(&mut content).unwrap();
    let took = machine.began.elapsed();
    assert!(content == pattern(DISK));
    // What is not in the burst, nor in the last request, which is less than 2 MiB, takes its time.
    let least = (DISK as u64 - burst - (2 << 20)) as f64 / rate as f64;
    println!("3 MiB at 2 MiB/s: {took:?}");
    assert!(took.as_secs_f64() >= least, "{took:?} is less than {least} s");
    drop(machine.stream);
}

#[test]
fn ten_mebibytes_come_back_with_half_closes_both_ways() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "echo").boot();
    let sent = pattern(10 << 20);
    let mut writer = machine.stream.try_clone().unwrap();
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let began = Instant::now();
    let mut got = Vec::new();
    machine.stream.read_to_end(&mut got).unwrap();
    println!("10 MiB there and back: {:?}", began.elapsed());
    thread.join().unwrap();
    assert!(got == sent, "{} bytes", got.len());
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
}

#[test]
fn a_guest_that_sends_and_goes_loses_nothing() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "burst").boot();
    let mut total = 0;
    let mut block = vec![0; 64 << 10];
    loop {
        let length = machine.stream.read(&mut block).unwrap();
        if length == 0 {
            break;
        }
        assert!(
            block[..length]
                .iter()
                .enumerate()
                .all(|(index, byte)| *byte == ((total + index) % (64 << 10) * 7) as u8)
        );
        total += length;
        if total < 1 << 20 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!(total, 160 * (64 << 10));
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
}

#[test]
fn a_client_of_the_host_reaches_a_listener_of_the_guest() {
    let kernel = kernel_or_skip!();
    let mut setup = Setup::new(&kernel, "listen");
    setup.listen = true;
    let mut machine = setup.boot();
    machine.expect("listening");
    let mut client = machine.dial(77);
    client.write_all(b"over and out").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "over and out");
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
}

#[test]
fn a_port_that_the_host_does_not_have_is_refused() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "refused").boot();
    let mut outcome = String::new();
    machine.stream.read_to_string(&mut outcome).unwrap();
    assert!(outcome.contains("reset") || outcome.contains("refused"), "{outcome}");
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
}

#[test]
fn what_the_guest_prints_on_its_console_is_in_the_report() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "console").boot();
    machine.expect("printed");
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown);
    assert!(report.console.contains("line 0 of the console\n"), "{}", report.console);
    assert!(report.console.contains("line 99 of the console\n"), "{}", report.console);
}

#[test]
fn round_trips_take_microseconds() {
    let kernel = kernel_or_skip!();
    let mut machine = Setup::new(&kernel, "ping").boot();
    let mut byte = [1];
    let mut times = Vec::new();
    for _ in 0..2000 {
        let began = Instant::now();
        machine.stream.write_all(&byte).unwrap();
        machine.stream.read_exact(&mut byte).unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    println!("vsock round trip: median {:?}, p99 {:?}", times[1000], times[1980]);
    machine.stream.shutdown(Shutdown::Write).unwrap();
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Shutdown, "{report:?}");
}
