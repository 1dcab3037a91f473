//! The control socket between supervisor and VMM: a SOCK_SEQPACKET pair, one JSON document per packet.
//!
//! The supervisor sends [`Request::Hello`], then [`Request::Boot`] with every descriptor that the machine needs. Every
//! request is answered with its number, and [`Event`]s come by themselves. When the supervisor closes its end, the
//! machine ends at once: no machine outlives its supervisor.
//!
//! A packet that is no request is refused like one that cannot be carried out, and a running machine goes on: a supervisor's slip is no reason to
//! lose a tenant's work. Of a supervisor that makes many ([`MAX_MALFORMED`]) nothing good is to be expected: its machine ends.

mod client;
mod messages;
mod session;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::client::Client;
pub use self::messages::{
    Answer, Diagnosis, Envelope, Event, ExitReason, ExitReport, Message, Refusal, RefusalKind, Request,
    RestoreRequest, SnapshotKind, SnapshotRequest, SnapshotWritten, Statistics, UNNUMBERED, VERSION,
    counters,
};
pub use self::session::{Controlled, First, MAX_MALFORMED, Session};

/// Largest packet in either direction, in bytes.
pub const MAX_PACKET: usize = 128 * 1024;
/// Most descriptors in one packet (the kernel's SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// Most console bytes in an exit report.
pub const MAX_CONSOLE: usize = 16 * 1024;

/// A packet that is no message. The socket is as good as before: each packet stands for itself.
#[derive(Debug)]
pub struct Malformed {
    /// The number that an answer is to bear, as far as the packet has one.
    pub id: Option<u64>,
    /// What is wrong, in at most [`MAX_REASON`] bytes.
    pub why: String,
}

/// Most bytes of what is told of a [`Malformed`] packet.
pub const MAX_REASON: usize = 256;

impl Malformed {
    fn new(body: &[u8], why: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Numbered {
            id: u64,
        }
        let id = serde_json::from_slice::<Numbered>(body).ok().map(|numbered| numbered.id);
        let end = (0..=MAX_REASON.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
        Self { id, why: why.get(..end.unwrap_or(0)).unwrap_or_default().to_owned() }
    }
}

/// A message and its descriptors, or what came in its place.
pub type Received<T> = Result<(T, Vec<OwnedFd>), Malformed>;

/// One end of the control socket.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Makes a connected pair, close-on-exec.
    ///
    /// # Errors
    /// The socket could not be made (descriptor limit).
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Takes a socket that was inherited.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The socket itself, to be inherited by another process.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one packet with descriptors.
    ///
    /// # Errors
    /// The packet is larger than [`MAX_PACKET`], there are more than [`MAX_DESCRIPTORS`], or the other end is gone.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(message, descriptors, MsgFlags::empty())
    }

    /// As [`Self::send`], but fails with `WouldBlock` where the other end does not read what it was sent.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_now<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.send_with(message, &[], MsgFlags::MSG_DONTWAIT)
    }

    fn send_with<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
        extra: MsgFlags,
    ) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_PACKET || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message too large"));
        }
        let fds: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | extra;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&body)], control, flags, None)?;
        Ok(())
    }

    /// Receives one message; `None` when the other end is closed.
    ///
    /// # Errors
    /// The packet was too large, or is not the expected JSON.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let malformed = |malformed: Malformed| io::Error::new(io::ErrorKind::InvalidData, malformed.why);
        self.receive_any()?.transpose().map_err(malformed)
    }

    /// Receives one packet, whatever it is; `None` when the other end is closed. Descriptors that come with no message are closed.
    ///
    /// # Errors
    /// The socket failed.
    pub fn receive_any<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        let mut body = vec![0u8; MAX_PACKET];
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut descriptors = Vec::new();
        let (length, truncated) = {
            let mut io = [IoSliceMut::new(&mut body)];
            let message =
                recvmsg::<()>(self.0.as_raw_fd(), &mut io, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
            for part in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = part {
                    // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                    descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            (message.bytes, message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC))
        };
        if length == 0 {
            return Ok(None);
        }
        let body = body.get(..length).unwrap_or_default();
        if truncated {
            let why =
                format!("it has more than {MAX_PACKET} bytes, or more than {MAX_DESCRIPTORS} descriptors");
            return Ok(Some(Err(Malformed::new(body, &why))));
        }
        let message = serde_json::from_slice(body).map_err(|error| Malformed::new(body, &error.to_string()));
        Ok(Some(message.map(|message| (message, descriptors))))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
