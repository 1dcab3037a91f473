//! The host's own addresses, always as they are now: containers must not reach them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::address::Cidr;

/// Groups of rtnetlink(7) that tell of addresses: RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x10 | 0x100;
/// Bytes of a message's header, and of what an address's message begins with.
const HEADER: usize = 16;
const ADDRESS: usize = 8;
/// Bytes read at a time; the kernel makes its answers no longer.
const BUFFER: usize = 64 << 10;

/// The sockets behind it. They are opened before the jail is entered, which has no such sockets.
#[derive(Debug)]
pub struct HostAddresses {
    questions: OwnedFd,
    news: OwnedFd,
    known: Vec<IpAddr>,
}

impl HostAddresses {
    /// Asks for all addresses, and to be told of changes.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open() -> io::Result<Self> {
        let open = |flags| {
            let flags = SockFlag::SOCK_CLOEXEC | flags;
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
        };
        let news = open(SockFlag::SOCK_NONBLOCK)?;
        bind(news.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        let mut addresses = Self { questions: open(SockFlag::empty())?, news, known: Vec::new() };
        addresses.ask()?;
        Ok(addresses)
    }

    /// The addresses now.
    pub fn now(&mut self) -> &[IpAddr] {
        let mut buffer = [0; 4096];
        let mut changed = false;
        loop {
            match recv(self.news.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => {}
                // Whatever it says, or if there was too much of it: all are asked for again.
                Ok(_) | Err(nix::Error::ENOBUFS) => changed = true,
                Err(_) => {
                    changed = true;
                    break;
                }
            }
        }
        if changed && let Err(error) = self.ask() {
            // What was known before is still out of bounds.
            eprintln!("the host's addresses cannot be read: {error}");
        }
        &self.known
    }

    fn ask(&mut self) -> io::Result<()> {
        // RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, any family.
        let mut request = Vec::with_capacity(HEADER + ADDRESS);
        request.extend_from_slice(&24u32.to_ne_bytes());
        request.extend_from_slice(&22u16.to_ne_bytes());
        request.extend_from_slice(&0x301u16.to_ne_bytes());
        request.extend_from_slice(&[0; 16]);
        send(self.questions.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        let mut buffer = vec![0; BUFFER];
        let mut found = Vec::new();
        loop {
            let length = match recv(self.questions.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            if read(buffer.get(..length).unwrap_or_default(), &mut found)? {
                break;
            }
        }
        self.known = found;
        Ok(())
    }
}

impl AsFd for HostAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

/// Reads messages; true if they are the last.
fn read(mut bytes: &[u8], found: &mut Vec<IpAddr>) -> io::Result<bool> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(0);
        let body = bytes.get(HEADER..length).ok_or_else(broken)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            // NLMSG_ERROR, NLMSG_DONE, RTM_NEWADDR
            2 => return Err(broken()),
            3 => return Ok(true),
            20 => {
                let prefix = body.get(1).copied().unwrap_or(0);
                attributes(body.get(ADDRESS..).unwrap_or_default(), prefix, found);
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The addresses of one message: both ends of a point-to-point link, and what is broadcast on the range.
fn attributes(mut bytes: &[u8], prefix: u8, found: &mut Vec<IpAddr>) {
    while let Some(header) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(4..length) else { return };
        // IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST
        if let kind @ (1 | 2 | 4) = u16::from_ne_bytes([header[2], header[3]]) {
            let address = match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
                (Ok(v4), _) => Some(IpAddr::V4(Ipv4Addr::from(v4))),
                // An IPv6 address has no broadcast.
                (_, Ok(v6)) if kind != 4 => Some(IpAddr::V6(Ipv6Addr::from(v6))),
                _ => None,
            };
            // The kernel takes a range's last address for broadcast, whether it was told so or not.
            let range = address.filter(|address| address.is_ipv4() && prefix < 31);
            let last = range.and_then(|address| Cidr::new(address, prefix)).map(|range| range.last());
            for address in [address, last].into_iter().flatten() {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        bytes = bytes.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_one_of_the_hosts() {
        let mut addresses = HostAddresses::open().unwrap();
        assert!(addresses.now().contains(&Ipv4Addr::LOCALHOST.into()), "{:?}", addresses.now());
    }

    #[test]
    fn broken_messages_are_read_without_harm() {
        let mut found = Vec::new();
        for bytes in
            [&[0u8; 16][..], &[255; 64], &[20, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]]
        {
            let _ = read(bytes, &mut found);
            attributes(bytes, 24, &mut found);
        }
    }
}
