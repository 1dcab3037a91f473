//! The other end of the network interface: a descriptor that the supervisor opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::memory::VolatileSlice;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, recv, sockopt};

use super::header::HEADER_BYTES;
use crate::virtio::sys;

/// What came from the cable.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes: a header, where there are headers, and a frame.
    Packet(usize),
    /// A packet that was longer than anyone may send; it is gone.
    TooLong,
    /// Nothing for now.
    Nothing,
    /// The other end is gone.
    Closed,
}

/// What became of a frame that was to be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Gone,
    /// There is no room for now.
    Full,
    /// The other end does not take it.
    Lost,
}

/// A cable.
#[derive(Debug)]
pub enum Cable {
    /// A connected unix socket that keeps packets apart (`SOCK_SEQPACKET` or `SOCK_DGRAM`): one frame each.
    Socket {
        /// The socket.
        socket: OwnedFd,
        /// Each frame has a header of [`HEADER_BYTES`] before it, in both directions.
        headers: bool,
    },
    /// A tap device that was opened with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    Tap(File),
}

impl Cable {
    /// Takes a socket.
    ///
    /// # Errors
    /// It is no socket, or one that does not keep packets apart.
    pub fn socket(socket: OwnedFd, headers: bool) -> io::Result<Self> {
        match getsockopt(&socket, sockopt::SockType)? {
            SockType::SeqPacket | SockType::Datagram => Ok(Self::Socket { socket, headers }),
            _ => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET or SOCK_DGRAM socket"))
            }
        }
    }

    /// Takes a tap device, and has it speak our headers.
    ///
    /// # Errors
    /// It is no tap device, or was opened without `IFF_VNET_HDR`.
    pub fn tap(tap: File) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&tap, FcntlArg::F_GETFL)?);
        fcntl(&tap, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        sys::prepare_tap(&tap, HEADER_BYTES)?;
        Ok(Self::Tap(tap))
    }

    /// Whether frames have headers, and so may be left to the other end to cut up and sum up.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        match self {
            Self::Socket { headers, .. } => *headers,
            Self::Tap(_) => true,
        }
    }

    /// Takes a packet; never waits.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        let result = match self {
            // The length of the whole packet, also of what did not fit.
            Self::Socket { socket, .. } => {
                recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)
            }
            Self::Tap(tap) => nix::unistd::read(tap, buffer),
        };
        match result {
            Ok(0) if self.is_hung_up() => Received::Closed,
            Ok(length) if length > buffer.len() => Received::TooLong,
            Ok(length) => Received::Packet(length),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Received::Nothing,
            Err(_) if self.is_hung_up() => Received::Closed,
            // Such as an interface that is down: it says when there is something again.
            Err(_) => Received::Nothing,
        }
    }

    /// Sends bytes of ours and then guest memory as one packet; never waits.
    pub fn send(&self, ours: &[u8], slices: &[VolatileSlice<'_>]) -> Sent {
        let result = match self {
            Self::Socket { socket, .. } => sys::send_frame(socket.as_fd(), ours, slices),
            Self::Tap(tap) => sys::write_frame(tap.as_fd(), ours, slices),
        };
        match result {
            Ok(_) => Sent::Gone,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Full,
            Err(_) => Sent::Lost,
        }
    }

    fn is_hung_up(&self) -> bool {
        // POLLRDHUP, which nix has no name for: the other end will send no more.
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
        let wanted = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && polled[0].revents().is_none_or(|events| events.intersects(wanted))
    }
}

impl AsFd for Cable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket { socket, .. } => socket.as_fd(),
            Self::Tap(tap) => tap.as_fd(),
        }
    }
}
