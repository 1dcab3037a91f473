//! The switch's end of a container's cable: a packet socket, one frame with its header a packet, as the VMM's network device has it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, sendmsg};

use crate::frame::Rest;

/// What came from a cable.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A header and a frame of so many bytes.
    Frame(usize),
    /// A frame that was longer than the buffer; it is gone.
    TooLong,
    /// Nothing for now.
    Nothing,
    /// The machine is gone.
    Closed,
}

/// A cable.
#[derive(Debug)]
pub struct Cable {
    /// None: the container is in a room of the host's kernel.
    socket: Option<OwnedFd>,
    /// A frame that the gateway made and that found no room.
    waiting: Option<(Rest, Vec<u8>)>,
    full: bool,
    /// Frames that were put on it.
    pub given: u64,
}

impl Cable {
    /// Takes the socket. Without one it is a cable that nothing comes from, and that takes nothing.
    #[must_use]
    pub fn new(socket: Option<OwnedFd>) -> Self {
        Self { socket, waiting: None, full: false, given: 0 }
    }

    /// Takes a frame; never waits.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        let Some(socket) = &self.socket else { return Received::Nothing };
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(0) => Received::Closed,
            Ok(length) if length > buffer.len() => Received::TooLong,
            Ok(length) => Received::Frame(length),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// Puts a frame on it if there is room; else it is lost.
    pub fn offer(&mut self, rest: Rest, frame: &[u8]) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.full) else { return false };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let header = rest.encode();
        let parts = [IoSlice::new(&header), IoSlice::new(frame)];
        match sendmsg::<()>(socket.as_raw_fd(), &parts, &[], flags, None) {
            Ok(_) => {
                self.given += 1;
                true
            }
            Err(nix::Error::EAGAIN) => {
                self.full = true;
                false
            }
            Err(_) => false,
        }
    }

    /// Puts a frame on it, or keeps this one until there is room.
    pub fn put(&mut self, rest: Rest, frame: Vec<u8>) {
        if !self.offer(rest, &frame) && self.waiting.is_none() {
            self.waiting = Some((rest, frame));
        }
    }

    /// There is no room: what makes frames shall wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// There may be room again.
    pub fn on_room(&mut self) {
        self.full = false;
        if let Some((rest, frame)) = self.waiting.take()
            && !self.offer(rest, &frame)
            && self.full
        {
            self.waiting = Some((rest, frame));
        }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}
