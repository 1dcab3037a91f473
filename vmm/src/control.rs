//! The control socket between supervisor and VMM: a SOCK_SEQPACKET pair, one JSON document per packet.
//!
//! The supervisor sends [`Request::Boot`] once, with every descriptor that the machine needs; the VMM answers with
//! [`Event`]s. When the supervisor closes its end, the machine ends at once: no machine outlives its supervisor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::MachineConfig;

/// Largest packet in either direction, in bytes.
pub const MAX_PACKET: usize = 128 * 1024;
/// Most descriptors in one packet (the kernel's SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// Most console bytes in an exit report.
pub const MAX_CONSOLE: usize = 16 * 1024;

/// What the supervisor asks of the VMM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Build this machine and run it. Sent once, first.
    Boot(Box<MachineConfig>),
    /// End the machine now, without asking the guest.
    Kill,
}

/// What the VMM tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first guest instruction is about to run.
    Started {
        /// Microseconds from the arrival of the configuration.
        micros: u64,
        /// How the accelerator runs the guest, for `inspect` and `doctor`: `hardware`, `software` or `user-space kernel`.
        boundary: String,
    },
    /// The machine is gone. The last packet.
    Ended(ExitReport),
}

/// How and why a machine ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExitReport {
    /// What ended it.
    pub reason: ExitReason,
    /// One sentence of detail for people; empty for a clean end.
    pub detail: String,
    /// The last lines of the guest's console, at most [`MAX_CONSOLE`] bytes, control characters removed.
    pub console: String,
}

/// What ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off or rebooted: the agent's normal end.
    Shutdown,
    /// The supervisor asked for it, or went away.
    Killed,
    /// The guest kernel panicked.
    Panic,
    /// The vCPU shut down by itself (triple fault).
    TripleFault,
    /// The machine could not be built or started.
    BootFailed,
    /// A device, the accelerator or the VMM itself failed.
    Internal,
}

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
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_PACKET || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message too large"));
        }
        let fds: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&body)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Receives one packet; `None` when the other end is closed.
    ///
    /// # Errors
    /// The packet was too large, or is not the expected JSON.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
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
        if truncated {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "control packet truncated"));
        }
        Ok(Some((serde_json::from_slice(&body[..length])?, descriptors)))
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
