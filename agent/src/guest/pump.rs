//! Moves bytes between a vsock connection and a pipe or terminal, without blocking and with one bounded buffer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

/// Bytes that a pump holds at most: one pipe's worth.
const BUFFER: usize = 64 * 1024;

/// What a pump waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Its source must become readable.
    Read,
    /// Its destination must become writable.
    Write,
    /// Its connection was lost with the host that the machine had before it was restored: it goes on with another.
    Connection,
    /// Nothing: it is done.
    Done,
}

/// One direction of one stream.
#[derive(Debug)]
pub(crate) struct Pump {
    source: OwnedFd,
    destination: OwnedFd,
    buffer: Vec<u8>,
    start: usize,
    source_ended: bool,
}

impl Pump {
    /// Joins two non-blocking descriptors; `pending` was read from the source already.
    pub(crate) fn new(source: OwnedFd, destination: OwnedFd, pending: Vec<u8>) -> Self {
        Self { source, destination, buffer: pending, start: 0, source_ended: false }
    }

    /// The descriptor to wait on for an interest.
    pub(crate) fn descriptor(&self, interest: Interest) -> &OwnedFd {
        if interest == Interest::Write { &self.destination } else { &self.source }
    }

    /// Moves what can be moved now.
    pub(crate) fn run(&mut self) -> Interest {
        loop {
            if self.start < self.buffer.len() {
                match write(&self.destination, &self.buffer[self.start..]) {
                    Ok(n) => self.start += n,
                    Err(Errno::EAGAIN) => return Interest::Write,
                    Err(Errno::EINTR) => {}
                    Err(Errno::ENOTCONN) => return Interest::Connection,
                    Err(_) => return Interest::Done,
                }
                continue;
            }
            if self.source_ended {
                self.half_close();
                return Interest::Done;
            }
            self.buffer.resize(BUFFER, 0);
            self.start = 0;
            let got = read(&self.source, &mut self.buffer);
            self.buffer.truncate(*got.as_ref().unwrap_or(&0));
            match got {
                // A terminal whose last process is gone answers EIO.
                Ok(0) | Err(Errno::EIO | Errno::ECONNRESET) => self.source_ended = true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Interest::Read,
                Err(Errno::ENOTCONN) => return Interest::Connection,
                Err(_) => return Interest::Done,
            }
        }
    }

    /// Takes another source; what was read from the one before comes first.
    pub(crate) fn replace_source(&mut self, source: OwnedFd, pending: &[u8]) {
        self.source = source;
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(pending);
    }

    /// Takes another destination, which gets what the one before did not take.
    pub(crate) fn replace_destination(&mut self, destination: OwnedFd) {
        self.destination = destination;
    }

    /// Passes the end of the stream on; on a pipe this is the close that follows.
    fn half_close(&self) {
        let _ = shutdown(self.destination.as_raw_fd(), Shutdown::Write);
    }
}

/// Makes a descriptor non-blocking.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::pipe;
    use std::fs::File;
    use std::io::{Read, Write};

    /// A socket that is not connected, as those of a restored machine are: of which kind reading (TCP) or writing (Unix) says so in vsock's way.
    fn lost(family: AddressFamily) -> OwnedFd {
        nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap()
    }

    #[test]
    fn goes_on_with_another_connection_and_loses_nothing() {
        let pair =
            || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_NONBLOCK).unwrap();
        let read_all = |fd: OwnedFd| {
            let mut all = String::new();
            File::from(fd).read_to_string(&mut all).unwrap();
            all
        };
        let (pipe_out, pipe_in) = pipe().unwrap();
        let mut pump = Pump::new(lost(AddressFamily::Inet), pipe_in, b"before ".to_vec());
        assert_eq!(pump.run(), Interest::Connection);
        let (near, far) = pair();
        pump.replace_source(near, b"first ");
        File::from(far).write_all(b"then").unwrap();
        assert_eq!(pump.run(), Interest::Done);
        drop(pump);
        assert_eq!(read_all(pipe_out), "before first then");

        let (pipe_out, pipe_in) = pipe().unwrap();
        set_nonblocking(&pipe_out).unwrap();
        File::from(pipe_in).write_all(b"said to nobody").unwrap();
        let mut pump = Pump::new(pipe_out, lost(AddressFamily::Unix), Vec::new());
        assert_eq!(pump.run(), Interest::Connection);
        let (near, far) = pair();
        pump.replace_destination(near);
        assert_eq!(pump.run(), Interest::Done);
        drop(pump);
        assert_eq!(read_all(far), "said to nobody");
    }

    #[test]
    fn passes_bytes_end_and_backpressure() {
        let (pipe_out, pipe_in) = pipe().unwrap();
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_NONBLOCK).unwrap();
        set_nonblocking(&pipe_out).unwrap();
        let mut pump = Pump::new(pipe_out, near, b"first ".to_vec());
        let mut writer = File::from(pipe_in);
        writer.write_all(b"second").unwrap();
        assert_eq!(pump.run(), Interest::Read);

        // The far end does not read: the pump must stop at the socket's buffer, holding one buffer at most.
        let mut stopped = false;
        for _ in 0..100 {
            set_nonblocking(&writer).unwrap();
            let _ = writer.write(&[7u8; 65536]);
            stopped |= pump.run() == Interest::Write;
        }
        assert!(stopped && pump.buffer.len() <= BUFFER);

        drop(writer);
        let mut far = File::from(far);
        let mut all = Vec::new();
        let mut part = vec![0u8; 1 << 16];
        loop {
            let interest = pump.run();
            match far.read(&mut part) {
                Ok(0) => break,
                Ok(n) => all.extend_from_slice(&part[..n]),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
            if interest == Interest::Done {
                assert!(pump.source_ended);
            }
        }
        assert!(all.starts_with(b"first second\x07"));
    }
}
