//! A network interface of ours, and somebody at the other end of its cable who sends back what asks for it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use vmm::config::{Fd, NetBackend, NetConfig, RateLimit};

/// The interface's address, as `payload.c` has it.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An interface without limits.
pub fn interface() -> NetConfig {
    NetConfig {
        mac: MAC,
        mtu: 1500,
        backend: NetBackend::Socket { socket: Fd(0), headers: false },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    }
}

/// The other end of a cable; hung up when it is dropped.
pub struct Echo {
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// A cable's end for an interface, and the other.
    pub fn new() -> (OwnedFd, Self) {
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let socket = far.try_clone().unwrap();
        (near, Self { socket, thread: Some(thread::spawn(move || answer(&far))) })
    }
}

fn answer(socket: &OwnedFd) {
    let mut frame = [0; 2048];
    let fd = socket.as_raw_fd();
    while let Ok(length) = recv(fd, &mut frame, MsgFlags::empty()) {
        if length == 0 {
            return;
        }
        if frame[14] == 1 && send(fd, &frame[..length], MsgFlags::MSG_NOSIGNAL).is_err() {
            return;
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // A datagram socket does not tell when its other end is gone.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
