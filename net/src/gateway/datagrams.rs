//! One flow of datagrams: UDP over a connected socket of its own or a published one, or echo over a ping socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockname, recv,
    send, socket,
};

use super::FlowKey;
use crate::egress::Protocol;

/// A flow that nobody answered is kept so long (RFC 4787 section 4.3 asks for two minutes; Linux's own NAT takes 30 s here).
pub const UNANSWERED: Duration = Duration::from_secs(30);
/// A flow that was answered is kept so long.
pub const ANSWERED: Duration = Duration::from_secs(180);
/// Bytes of the last packet that are kept for an error message: the longest header and the first eight of what follows.
pub const QUOTE: usize = 48;

/// Where the host's side of a flow is.
#[derive(Debug)]
pub enum Via {
    /// A socket of its own.
    Own(OwnedFd),
    /// The published port of this number, which heard from this client.
    Published(u64, SocketAddr),
}

/// A flow.
#[derive(Debug)]
pub struct Datagrams {
    /// Which it is.
    pub key: FlowKey,
    /// The host's side.
    pub via: Via,
    /// When something passed last.
    pub last: Instant,
    /// The other side has said something.
    pub answered: bool,
    /// The beginning of the guest's last packet.
    pub quote: Vec<u8>,
}

impl Datagrams {
    /// When the flow is over, if nothing passes.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.last + if self.answered { ANSWERED } else { UNANSWERED }
    }
}

/// A socket that is connected to the flow's other end.
///
/// # Errors
/// The host has no way there, or does not let it be done; `PermissionDenied` if it turns out to be the host itself.
pub fn open(key: &FlowKey) -> io::Result<OwnedFd> {
    let family = family(key.remote.ip());
    let protocol = match (key.protocol, family) {
        (Protocol::Icmp, AddressFamily::Inet6) => Some(SockProtocol::IcmpV6),
        (Protocol::Icmp, _) => Some(SockProtocol::Icmp),
        _ => None,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(key.remote))?;
    refuse_self(&socket, key.remote.ip())?;
    Ok(socket)
}

/// A connection to the host itself has one address at both ends: whatever the table of its addresses said, this one goes nowhere.
///
/// # Errors
/// `PermissionDenied` if it is one.
pub fn refuse_self(socket: &OwnedFd, remote: IpAddr) -> io::Result<()> {
    let own = address(&getsockname::<SockaddrStorage>(socket.as_raw_fd())?);
    if own.is_some_and(|own| own.ip() == remote) {
        Err(io::ErrorKind::PermissionDenied.into())
    } else {
        Ok(())
    }
}

/// The family of an address.
#[must_use]
pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address as the standard library has it.
#[must_use]
pub fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6))))
}

/// Sends a datagram; one that finds no room is lost, as on any network.
///
/// # Errors
/// The other side is known not to be there, or it is too long.
pub fn give(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    match send(socket.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Ok(_) | Err(nix::Error::EAGAIN | nix::Error::ENOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes a datagram; `None` if there is none.
///
/// # Errors
/// The other side is known not to be there.
pub fn take(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => Ok(Some(length)),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
