//! Messages on the socket: a header of three little-endian words (request, flags, size), then `size` bytes, with
//! descriptors in the ancillary data. Reading never blocks: what is there is kept until the message is complete.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use vhost::vhost_user::message::FrontendReq;

use super::Refusal;

const HEADER: usize = 12;
/// Largest body of a message that a front-end has reason to send, in bytes.
const MAX_BODY: usize = 4096;
/// Most descriptors with one message.
const MAX_FILES: usize = 8;
/// Flags: version 1 in the two lowest bits, then whether it is a reply, and whether it wants one.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What the socket had.
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Part of one; the rest may come.
    Incomplete,
    /// The front-end is gone.
    Closed,
}

/// A message.
pub struct Message {
    /// What it asks.
    pub request: FrontendReq,
    /// Its body, unread.
    pub body: Body,
    /// Descriptors that came with it.
    pub files: Vec<File>,
}

/// What was read of the next message.
#[derive(Default)]
pub struct Wire {
    bytes: Vec<u8>,
    files: Vec<File>,
}

impl Wire {
    /// Reads on.
    ///
    /// # Errors
    /// The message is too large, has too many descriptors or is none; or the socket failed.
    pub fn receive(&mut self, socket: &UnixStream) -> io::Result<Received> {
        loop {
            let want = if self.bytes.len() < HEADER { HEADER } else { HEADER + self.size()? };
            if self.bytes.len() == want {
                break;
            }
            match self.read(socket, want - self.bytes.len()) {
                Ok(0) => return Ok(Received::Closed),
                Ok(_) => {}
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(Received::Incomplete),
                Err(nix::Error::ECONNRESET) => return Ok(Received::Closed),
                Err(error) => return Err(error.into()),
            }
            // The header alone is the whole message if it says so.
            if self.bytes.len() >= HEADER && self.bytes.len() == HEADER + self.size()? {
                break;
            }
        }
        let request = FrontendReq::try_from(self.word(0)).map_err(|_| bad("an unknown request"))?;
        let flags = self.word(4);
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | NEED_REPLY) != 0 {
            return Err(bad("a message of an unknown version, or a reply to nothing"));
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..HEADER);
        let files = std::mem::take(&mut self.files);
        Ok(Received::Message(Message { request, body: Body { bytes, read: 0 }, files }))
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|index| self.bytes[offset + index]))
    }

    fn size(&self) -> io::Result<usize> {
        let size = usize::try_from(self.word(8)).unwrap_or(usize::MAX);
        if size > MAX_BODY { Err(bad("a message that is too large")) } else { Ok(size) }
    }

    fn read(&mut self, socket: &UnixStream, length: usize) -> nix::Result<usize> {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        let mut space = nix::cmsg_space!([RawFd; MAX_FILES]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let outcome = {
            let mut vectors = [IoSliceMut::new(&mut self.bytes[start..])];
            recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), flags).and_then(|message| {
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(fds) = part {
                        // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                        let owned = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                        self.files.extend(owned.map(File::from));
                    }
                }
                if message.flags.contains(MsgFlags::MSG_CTRUNC) || self.files.len() > MAX_FILES {
                    return Err(nix::Error::EMSGSIZE);
                }
                Ok(message.bytes)
            })
        };
        self.bytes.truncate(start + outcome.unwrap_or(0));
        outcome
    }
}

/// Sends a reply. The front-end waits for it, so that there is room; one that fills the socket's buffer has not waited.
///
/// # Errors
/// The front-end is gone, or took no replies.
pub fn reply(socket: &UnixStream, request: FrontendReq, body: &[u8]) -> io::Result<()> {
    let size = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    for word in [u32::from(request), VERSION | REPLY, size] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(body);
    let sent = send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

/// A message's body, read from front to back.
pub struct Body {
    bytes: Vec<u8>,
    read: usize,
}

impl Body {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let part = self.bytes.get(self.read..self.read + N).ok_or("a message that is too short")?;
        self.read += N;
        Ok(std::array::from_fn(|index| part[index]))
    }

    /// The next word.
    pub fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next double word.
    pub fn u64(&mut self) -> Result<u64, Refusal> {
        self.take().map(u64::from_le_bytes)
    }

    /// What is left.
    pub fn remaining(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    /// Bytes left.
    pub fn rest(&self) -> usize {
        self.bytes.len() - self.read
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), Refusal> {
        if self.rest() == 0 { Ok(()) } else { Err("a message that is too long".into()) }
    }

    /// A body that is one double word.
    pub fn u64_only(mut self) -> Result<u64, Refusal> {
        let value = self.u64()?;
        self.end()?;
        Ok(value)
    }

    /// A body that is a queue's index and a number.
    pub fn state(mut self) -> Result<(u32, u32), Refusal> {
        let state = (self.u32()?, self.u32()?);
        self.end()?;
        Ok(state)
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
