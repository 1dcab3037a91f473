//! The little of rtnetlink(7) that sets up an interface: find, move, name, address, route. Requests are small and answered one by one.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::protocol::{IpNetwork, Route};

/// Bytes of the largest part of an answer (the kernel's own bound for a dump is 32 KiB).
const BUFFER: usize = 32 * 1024;
/// Most parts of one answer.
const MAX_PARTS: usize = 1024;
/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg`.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_EXCLUSIVE: u16 = 0x600;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_NAMESPACE: u16 = 28;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_BROADCAST: u16 = 4;
/// Use the address at once: it was given to this machine, so nobody else needs to be asked for it.
const ADDRESS_NO_DAD: u8 = 0x02;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const UP: u32 = 1;

/// A socket to the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) address: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the caller's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// All interfaces.
    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        send(self.0.as_raw_fd(), &message(GET_LINK, DUMP, &[0; LINK_HEADER], &[]), MsgFlags::empty())?;
        let mut links = Vec::new();
        let mut buffer = vec![0u8; BUFFER];
        for _ in 0..MAX_PARTS {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, body) in messages(buffer.get(..length).unwrap_or_default()) {
                match kind {
                    DONE => return Ok(links),
                    ERROR => return Err(error_of(body)),
                    NEW_LINK => links.extend(parse_link(body)),
                    _ => {}
                }
            }
        }
        Err(io::Error::from(Errno::EMSGSIZE))
    }

    /// Moves an interface to another namespace, and names it.
    pub(super) fn move_link(&self, index: u32, namespace: &File, name: &str) -> io::Result<()> {
        let namespace = u32::try_from(namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?;
        let attributes = [(LINK_NAMESPACE, namespace.to_ne_bytes().to_vec()), (LINK_NAME, c_name(name))];
        self.change(NEW_LINK, 0, &link_header(index, 0, 0), &attributes)
    }

    /// Sets an interface's packet size, and brings it up.
    pub(super) fn bring_up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mtu: Vec<_> = mtu.map(|mtu| (LINK_MTU, mtu.to_ne_bytes().to_vec())).into_iter().collect();
        self.change(NEW_LINK, 0, &link_header(index, UP, UP), &mtu)
    }

    /// Gives an interface an address.
    pub(super) fn add_address(&self, index: u32, network: &IpNetwork) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(network.address());
        let flags = if network.address().is_ipv6() { ADDRESS_NO_DAD } else { 0 };
        let mut header = vec![family, network.prefix(), flags, SCOPE_UNIVERSE];
        header.extend(index.to_ne_bytes());
        let mut attributes = vec![(ADDRESS_LOCAL, bytes.clone()), (ADDRESS, bytes)];
        if let IpAddr::V4(address) = network.address()
            && network.prefix() < 31
        {
            let broadcast = address.to_bits() | (u32::MAX >> network.prefix());
            attributes.push((ADDRESS_BROADCAST, broadcast.to_be_bytes().to_vec()));
        }
        self.change(NEW_ADDRESS, CREATE_EXCLUSIVE, &header, &attributes)
    }

    /// Adds a route by way of an interface.
    pub(super) fn add_route(&self, index: u32, route: &Route) -> io::Result<()> {
        let (family, destination) = family_and_bytes(route.destination.address());
        let scope = if route.gateway.is_none() { SCOPE_LINK } else { SCOPE_UNIVERSE };
        let mut header =
            vec![family, route.destination.prefix(), 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, TYPE_UNICAST];
        header.extend([0; 4]);
        let mut attributes = vec![(ROUTE_DEVICE, index.to_ne_bytes().to_vec())];
        if route.destination.prefix() > 0 {
            attributes.push((ROUTE_DESTINATION, destination));
        }
        if let Some(gateway) = route.gateway {
            attributes.push((ROUTE_GATEWAY, family_and_bytes(gateway).1));
        }
        self.change(NEW_ROUTE, CREATE_EXCLUSIVE, &header, &attributes)
    }

    /// Sends one request and waits for its acknowledgement.
    fn change(&self, kind: u16, flags: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> io::Result<()> {
        let request = message(kind, flags | ACK, header, attributes);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0u8; BUFFER];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match messages(buffer.get(..length).unwrap_or_default()).next() {
            Some((ERROR, body)) if body.get(..4) == Some(&[0; 4]) => Ok(()),
            Some((ERROR, body)) => Err(error_of(body)),
            _ => Err(io::Error::from(Errno::EBADMSG)),
        }
    }
}

fn c_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0u8; 4];
    for word in [index, flags, change] {
        header.extend(word.to_ne_bytes());
    }
    header
}

fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(a) => (u8::try_from(libc::AF_INET).unwrap_or_default(), a.octets().to_vec()),
        IpAddr::V6(a) => (u8::try_from(libc::AF_INET6).unwrap_or_default(), a.octets().to_vec()),
    }
}

/// Lays out a request: header, the kind's own header, attributes, each aligned to four bytes.
fn message(kind: u16, flags: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    bytes.extend(header);
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes
}

/// The messages of one datagram: kind and body. Stops at the first that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([message[4], message[5]]), &message[HEADER..]))
    })
}

/// The attributes of a message's body after its own header.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), value))
    })
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut link = Link { index, name: String::new(), address: Vec::new() };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            LINK_NAME => {
                let name = value.strip_suffix(&[0]).unwrap_or(value);
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            LINK_ADDRESS => link.address = value.to_vec(),
            _ => {}
        }
    }
    Some(link)
}

fn error_of(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes).wrapping_neg());
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_and_read_back() {
        let attributes_in = [(LINK_NAME, c_name("eth0")), (LINK_ADDRESS, vec![2, 0, 0, 0, 0, 1])];
        let bytes = message(NEW_LINK, 0, &link_header(7, 0, 0), &attributes_in);
        assert_eq!(bytes.len() % 4, 0);
        let twice = [bytes.clone(), bytes.clone()].concat();
        let links: Vec<_> = messages(&twice).filter_map(|(_, body)| parse_link(body)).collect();
        let link = Link { index: 7, name: "eth0".into(), address: vec![2, 0, 0, 0, 0, 1] };
        assert_eq!(links, [link.clone(), link]);
        // Cut or damaged anywhere, it is read as far as it goes.
        for end in 0..bytes.len() {
            assert!(messages(&bytes[..end]).filter_map(|(_, body)| parse_link(body)).count() == 0);
            let mut damaged = bytes.clone();
            damaged[end] = 0xff;
            let _ = messages(&damaged).filter_map(|(_, body)| parse_link(body)).count();
        }
    }

    #[test]
    fn the_hosts_own_loopback_is_found() {
        let links = match Netlink::open().and_then(|n| n.links()) {
            Ok(links) => links,
            Err(error) => {
                eprintln!("skipped: no netlink here ({error})");
                return;
            }
        };
        assert!(links.iter().any(|l| l.name == "lo" && l.index == 1), "{links:?}");
    }
}
