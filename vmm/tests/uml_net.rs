//! The network as the guest sees it, over vhost-user.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uml_support::Setup;
use vmm::config::{Fd, NetBackend, NetConfig, RateLimit};
use vmm::control::ExitReason;

fn cable() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn net(last: u8, headers: bool) -> NetConfig {
    NetConfig {
        mac: [2, 0x42, 0, 0, 0, last],
        mtu: 1400,
        backend: NetBackend::Socket { socket: Fd(0), headers },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    }
}

#[test]
fn the_interface_has_our_address_and_notices_a_pulled_cable() {
    let kernel = kernel_or_skip!();
    let (ours, theirs) = cable();
    let mut setup = Setup::new(&kernel, "net");
    setup.nets.push((theirs, net(0x99, false)));
    let machine = setup.boot();
    assert_eq!(machine.line(), "02:42:00:00:00:99 1400 1");
    // The other end goes: the cable is as good as pulled.
    drop(ours);
    assert_eq!(machine.line(), "0");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
}

#[test]
fn two_guests_talk_tcp_over_one_cable() {
    let kernel = kernel_or_skip!();
    let mut packets = Vec::new();
    for headers in [false, true] {
        let (one, other) = cable();
        let mut summing = Setup::new(&kernel, "net-sum");
        summing.nets.push((one, net(1, headers)));
        let mut sending = Setup::new(&kernel, "net-send");
        sending.nets.push((other, net(2, headers)));
        let (summing, mut sending) = (summing.boot(), sending.boot());
        assert_eq!(summing.line(), "listening");
        let began = Instant::now();
        sending.stream.write_all(b"!").unwrap();
        let sums = summing.line();
        let sent = sending.line();
        println!("headers {headers}: 16 MiB in {:?}; summed {sums}; sent {sent}", began.elapsed());
        let sums: Vec<&str> = sums.split(' ').collect();
        let sent: Vec<&str> = sent.split(' ').collect();
        assert_eq!(sums[0], (16 << 20).to_string());
        assert_eq!(sums[1], sent[0]);
        assert_eq!(sums[2], "10.9.0.2");
        packets.push(sent[1].parse::<u64>().unwrap());
        for machine in [summing, sending] {
            assert_eq!(machine.ended().reason, ExitReason::Shutdown);
        }
    }
    // With headers, what the guest hands over are large pieces, and far fewer.
    assert!(packets[1] * 4 < packets[0], "{packets:?}");
}
