//! The little of rtnetlink(7) that a room takes: bridge, veth pair, taps, addresses, neighbors. Requests are answered one by one, in
//! the network namespace of the thread that opened the socket.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use bulkhead_net::frame::Mac;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Bytes of the longest answer that is read; one link is told of in less.
const BUFFER: usize = 32 << 10;
/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg`.
const HEADER: usize = 16;

// linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h, veth.h
const ERROR: u16 = 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const EXCLUSIVE: u16 = 0x600;
const REPLACE: u16 = 0x500;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOR: u16 = 28;
const DELETE_NEIGHBOR: u16 = 29;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_ALIAS: u16 = 20;
const LINK_STATISTICS: u16 = 23;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const BRIDGE_SNOOPING: u16 = 23;
const PORT_LEARNING: u16 = 8;
const PORT_UNICAST_FLOOD: u16 = 9;
const PORT_PROXY_ARP: u16 = 10;
const PORT_MULTICAST_FLOOD: u16 = 27;
const PORT_BROADCAST_FLOOD: u16 = 30;
const VETH_PEER: u16 = 1;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;
/// Use the address at once: nobody else can have it.
const NO_DETECTION: u32 = 0x02;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const NEIGHBOR_ADDRESS: u16 = 1;
const NEIGHBOR_MAC: u16 = 2;
const PERMANENT: u16 = 0x80;
const NO_ARP: u16 = 0x40;
const OF_MASTER: u8 = 0x04;
const FAMILY_BRIDGE: u8 = 7;
const NESTED: u16 = 0x8000;
const UP: u32 = 1;

/// A socket to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// What is known of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) alias: String,
    /// Frames that came from it.
    pub(super) received: u64,
    /// Frames that it was given.
    pub(super) sent: u64,
}

/// Attributes of a request.
#[derive(Debug, Default, Clone)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.with(kind, &[value.as_bytes(), b"\0"].concat())
    }

    fn nest(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// Makes a bridge that learns nothing of groups.
    pub(super) fn add_bridge(&self, name: &str, mac: Mac) -> io::Result<()> {
        let data = Attributes::default().with(BRIDGE_SNOOPING, &[0]);
        let info = Attributes::default().text(INFO_KIND, "bridge").nest(INFO_DATA, &data);
        let attributes =
            Attributes::default().text(LINK_NAME, name).with(LINK_ADDRESS, &mac).nest(LINK_INFO, &info);
        self.ask(NEW_LINK, EXCLUSIVE, &link(0, 0, 0), &attributes)
    }

    /// Makes a pair of interfaces with a cable between them, the other one in another namespace.
    pub(super) fn add_pair(&self, name: &str, other: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let inner = Attributes::default().text(LINK_NAME, other).with(LINK_NAMESPACE, &number(namespace));
        let peer = [link(0, 0, 0), inner.0].concat();
        let data = Attributes::default().with(VETH_PEER | NESTED, &peer);
        let info = Attributes::default().text(INFO_KIND, "veth").nest(INFO_DATA, &data);
        let attributes = Attributes::default().text(LINK_NAME, name).nest(LINK_INFO, &info);
        self.ask(NEW_LINK, EXCLUSIVE, &link(0, 0, 0), &attributes)
    }

    /// Moves an interface to another namespace, under another name; it is down then.
    pub(super) fn send_away(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let attributes = Attributes::default().with(LINK_NAMESPACE, &number(namespace)).text(LINK_NAME, name);
        self.ask(NEW_LINK, 0, &link(index, 0, UP), &attributes)
    }

    /// Makes an interface a port of a bridge: nothing is learned from it, nothing is sent to it that is not for it, and its ARP is
    /// answered by the bridge itself.
    pub(super) fn add_port(&self, index: u32, bridge: u32, mtu: u32) -> io::Result<()> {
        let master = Attributes::default().number(LINK_MASTER, bridge).number(LINK_MTU, mtu);
        self.ask(NEW_LINK, 0, &link(index, 0, 0), &master)?;
        let data = Attributes::default()
            .with(PORT_LEARNING, &[0])
            .with(PORT_UNICAST_FLOOD, &[0])
            .with(PORT_MULTICAST_FLOOD, &[0])
            .with(PORT_BROADCAST_FLOOD, &[0])
            .with(PORT_PROXY_ARP, &[1]);
        let info = Attributes::default().text(INFO_PORT_KIND, "bridge").nest(INFO_PORT_DATA, &data);
        self.ask(NEW_LINK, 0, &link(index, 0, 0), &Attributes::default().nest(LINK_INFO, &info))
    }

    pub(super) fn bring_up(&self, index: u32) -> io::Result<()> {
        self.ask(NEW_LINK, 0, &link(index, UP, UP), &Attributes::default())
    }

    /// Writes something behind an interface's name, for who finds it.
    pub(super) fn set_alias(&self, index: u32, alias: &str) -> io::Result<()> {
        self.ask(NEW_LINK, 0, &link(index, 0, 0), &Attributes::default().with(LINK_ALIAS, alias.as_bytes()))
    }

    pub(super) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        let mut header = vec![family, prefix, 0, 0];
        header.extend(index.to_ne_bytes());
        let attributes = Attributes::default()
            .with(ADDRESS_LOCAL, &bytes)
            .with(ADDRESS, &bytes)
            .number(ADDRESS_FLAGS, NO_DETECTION);
        self.ask(NEW_ADDRESS, EXCLUSIVE, &header, &attributes)
    }

    /// The way to everywhere: by a gateway, or straight out of the interface.
    pub(super) fn add_default_route(&self, index: u32, six: bool, gateway: Option<IpAddr>) -> io::Result<()> {
        let family = if six { libc::AF_INET6 } else { libc::AF_INET };
        let scope = if gateway.is_none() && !six { SCOPE_LINK } else { 0 };
        let family = u8::try_from(family).unwrap_or(0);
        let mut header = vec![family, 0, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, TYPE_UNICAST];
        header.extend([0; 4]);
        let mut attributes = Attributes::default().number(ROUTE_DEVICE, index);
        if let Some(gateway) = gateway {
            attributes = attributes.with(ROUTE_GATEWAY, &family_and_bytes(gateway).1);
        }
        self.ask(NEW_ROUTE, EXCLUSIVE, &header, &attributes)
    }

    /// Says for good whose hardware address an address has.
    pub(super) fn set_neighbor(&self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        let attributes = Attributes::default().with(NEIGHBOR_ADDRESS, &bytes).with(NEIGHBOR_MAC, &mac);
        self.ask(NEW_NEIGHBOR, REPLACE, &neighbor(family, index, PERMANENT, 0), &attributes)
    }

    pub(super) fn remove_neighbor(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = family_and_bytes(address);
        let attributes = Attributes::default().with(NEIGHBOR_ADDRESS, &bytes);
        self.ask(DELETE_NEIGHBOR, 0, &neighbor(family, index, 0, 0), &attributes)
    }

    /// Says for good at which port of its bridge a hardware address is.
    pub(super) fn set_port_of(&self, port: u32, mac: Mac) -> io::Result<()> {
        let attributes = Attributes::default().with(NEIGHBOR_MAC, &mac);
        self.ask(NEW_NEIGHBOR, REPLACE, &neighbor(FAMILY_BRIDGE, port, NO_ARP, OF_MASTER), &attributes)
    }

    /// An interface by its name.
    pub(super) fn link(&self, name: &str) -> io::Result<Link> {
        let request = message(GET_LINK, 0, &link(0, 0, 0), &Attributes::default().text(LINK_NAME, name));
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0u8; BUFFER];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match read_message(buffer.get(..length).unwrap_or_default()) {
            Some((NEW_LINK, body)) => read_link(body).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Some((ERROR, body)) => Err(error_of(body)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(&self, kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message(kind, flags | ACK, header, attributes), MsgFlags::empty())?;
        let mut buffer = vec![0u8; BUFFER];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match read_message(buffer.get(..length).unwrap_or_default()) {
            Some((ERROR, body)) if body.get(..4) == Some(&[0; 4]) => Ok(()),
            Some((ERROR, body)) => Err(error_of(body)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn number(descriptor: BorrowedFd<'_>) -> [u8; 4] {
    descriptor.as_raw_fd().to_ne_bytes()
}

fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0u8; 4];
    for word in [index, flags, change] {
        header.extend(word.to_ne_bytes());
    }
    header
}

fn neighbor(family: u8, index: u32, state: u16, flags: u8) -> Vec<u8> {
    let mut header = vec![family, 0, 0, 0];
    header.extend(index.to_ne_bytes());
    header.extend(state.to_ne_bytes());
    header.extend([flags, 0]);
    header
}

fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(a) => (u8::try_from(libc::AF_INET).unwrap_or(0), a.octets().to_vec()),
        IpAddr::V6(a) => (u8::try_from(libc::AF_INET6).unwrap_or(0), a.octets().to_vec()),
    }
}

fn message(kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    bytes.extend(header);
    bytes.extend(&attributes.0);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
    bytes
}

/// The first message of a datagram: kind and body.
fn read_message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let message = bytes.get(..length)?;
    let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
    Some((kind, message.get(HEADER..)?))
}

fn read_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut link = Link { index, ..Link::default() };
    let mut rest = body.get(HEADER..)?;
    while let Some([l0, l1, k0, k1]) = rest.first_chunk().copied() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = rest.get(4..length) else { break };
        match u16::from_ne_bytes([k0, k1]) & !NESTED {
            LINK_ALIAS => {
                let text = value.strip_suffix(&[0]).unwrap_or(value);
                link.alias = String::from_utf8_lossy(text).into_owned();
            }
            LINK_STATISTICS => {
                let word = |n: usize| value.get(8 * n..).and_then(|v| v.first_chunk().copied());
                link.received = word(0).map_or(0, u64::from_ne_bytes);
                link.sent = word(1).map_or(0, u64::from_ne_bytes);
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
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
    fn links_are_read_and_noise_does_no_harm() {
        let attributes =
            Attributes::default().text(LINK_ALIAS, "of somebody").with(LINK_STATISTICS, &[1; 16]);
        let bytes = message(NEW_LINK, 0, &link(7, 0, 0), &attributes);
        let one = u64::from_ne_bytes([1; 8]);
        let wanted = Link { index: 7, alias: "of somebody".into(), received: one, sent: one };
        let (kind, body) = read_message(&bytes).unwrap();
        assert_eq!((kind, read_link(body)), (NEW_LINK, Some(wanted)));
        for end in 0..bytes.len() {
            assert!(read_message(&bytes[..end]).is_none());
            let mut damaged = bytes.clone();
            damaged[end] = 0xff;
            let _ = read_message(&damaged).map(|(_, body)| read_link(body));
        }
    }
}
