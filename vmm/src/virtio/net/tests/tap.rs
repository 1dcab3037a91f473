//! A real tap device, in a network namespace of its own: the host's kernel at the other end of the cable.

use std::io;
use std::os::fd::AsRawFd;

use super::*;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Asks something of an interface; `value` is what follows its name.
fn request(fd: &impl AsRawFd, kind: libc::c_ulong, value: &[u8]) -> io::Result<()> {
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"tap0");
    request[16..16 + value.len()].copy_from_slice(value);
    // SAFETY: each of these requests takes a structure of 40 bytes.
    match unsafe { libc::ioctl(fd.as_raw_fd(), kind, request.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn tap(flags: libc::c_int) -> io::Result<File> {
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    request(&tap, TUNSETIFF, &flags.to_le_bytes()[..2])?;
    Ok(tap)
}

/// A tap device named tap0 with the address 10.8.0.1/24, in a namespace of this thread's own.
fn set_up(flags: libc::c_int) -> io::Result<File> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let tap = tap(flags)?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    request(&socket, libc::SIOCSIFADDR, &[2, 0, 0, 0, 10, 8, 0, 1])?;
    request(&socket, libc::SIOCSIFNETMASK, &[2, 0, 0, 0, 255, 255, 255, 0])?;
    request(&socket, libc::SIOCSIFFLAGS, &[0x41, 0])?;
    Ok(tap)
}

#[test]
fn the_hosts_kernel_answers_over_a_tap() {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let tap = match set_up(flags) {
        Ok(tap) => tap,
        Err(error) => return eprintln!("skipped: no tap device: {error}"),
    };
    let config = NetConfig { backend: NetBackend::Tap { tap: Fd(0) }, ..config(false) };
    let mut net = Net::new(0, &config, tap.into()).unwrap();
    let features = net.features();
    net.set_features(features);
    let mut guest = Guest { driver: Driver::with_queues(2), net, peer: None };
    for index in 0..8 {
        guest.buffer(index, 2048);
    }
    // Who has 10.8.0.1? Tell 10.8.0.2.
    let mut arp = frame(60);
    arp[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp[22..28].copy_from_slice(&MAC);
    arp[28..42].copy_from_slice(&[10, 8, 0, 2, 0, 0, 0, 0, 0, 0, 10, 8, 0, 1]);
    guest.sends(&NONE, &arp, &[]);
    assert_eq!(guest.counter("sent_frames"), 1);
    // The kernel may have things of its own to say first.
    for _ in 0..100 {
        assert!(rings_within(&guest.net, 10_000), "no answer");
        guest.event();
        while let Some(got) = guest.received() {
            let frame = &got[HEADER_BYTES..];
            if frame[12..14] == [8, 6] {
                assert_eq!(frame[..6], MAC);
                assert_eq!(frame[20..22], [0, 2], "an answer");
                assert_eq!(frame[28..32], [10, 8, 0, 1]);
                return;
            }
        }
    }
    panic!("no answer among what came");
}

#[test]
fn a_tap_without_headers_is_refused() {
    let tap = match set_up(libc::IFF_TAP | libc::IFF_NO_PI) {
        Ok(tap) => tap,
        Err(error) => return eprintln!("skipped: no tap device: {error}"),
    };
    let config = NetConfig { backend: NetBackend::Tap { tap: Fd(0) }, ..config(false) };
    assert!(Net::new(0, &config, tap.into()).unwrap_err().to_string().contains("IFF_VNET_HDR"));
}
