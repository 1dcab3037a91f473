//! What supervisors and a switch say to each other: one JSON document a packet, with descriptors, over a SOCK_SEQPACKET socket.
//!
//! A connection is one container's place in the network: it lasts as long as the connection does. The switch greets with
//! [`Said::Hello`]; the supervisor answers with [`Ask::Attach`] and the cable, then [`Ask::Publish`] with listening sockets, in as many packets as it takes.
//!
//! A network whose packets the host's kernel carries has a room, a network namespace of its own, and no cables: its switch only answers
//! for names. The first attachment is answered with [`Said::Deaf`], and the supervisor brings sockets of the room's ([`Ask::Names`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::Cidr;
use crate::egress::Protocol;
use crate::frame::Mac;
use crate::reason::Reason;

/// Version of this protocol.
pub const VERSION: u32 = 3;
/// Most bytes of a packet.
pub const MAX_MESSAGE: usize = 128 << 10;
/// Most descriptors of a packet (Linux takes 253).
pub const MAX_DESCRIPTORS: usize = 64;
/// Most names of a container.
pub const MAX_NAMES: usize = 256;
/// Most resolvers.
pub const MAX_RESOLVERS: usize = 8;
/// Most networks that are told of.
pub const MAX_NETWORKS: usize = 2048;

/// What a supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Take this container in; its cable is the descriptor. There is none if it is in a room.
    Attach(Box<Attachment>),
    /// Answer the questions that come to these sockets: bound to port 53 of the gateway's addresses, in the room; datagrams, and listening.
    /// Without any, it is asked whether there are some.
    Names,
    /// The addresses of [`Said::Learned`] are open to the container now.
    Learned {
        /// Which question.
        id: u32,
    },
    /// Pass these ports on; a listening or bound socket each.
    Publish(Vec<Published>),
    /// Tell what was counted.
    Report,
    /// The answer to [`Said::Find`].
    Found {
        /// Which question.
        id: u32,
        /// The addresses of that name in the container's other networks.
        addresses: Vec<IpAddr>,
    },
    /// What addresses does this name have here? Asked for a container that is in this network.
    Find {
        /// Which question.
        id: u32,
        /// Lower case, no dot at its end.
        name: String,
    },
}

/// What a switch says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Said {
    /// It listens.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// It is done.
    Done,
    /// It is done, but there are no sockets of this room yet to hear questions on.
    Deaf,
    /// It is not.
    Refused(String),
    /// A resolver's answer for a container in a room, whose rules know names: it is told to the container once the addresses are open.
    Learned {
        /// Which question.
        id: u32,
        /// Lower case, no dot at its end.
        name: String,
        /// Addresses, and how many seconds they hold.
        addresses: Vec<(IpAddr, u64)>,
    },
    /// What was counted for this container.
    Report(Report),
    /// Does one of the container's other networks know this name?
    Find {
        /// Which question.
        id: u32,
        /// Lower case, no dot at its end.
        name: String,
    },
    /// The answer to [`Ask::Find`].
    Found {
        /// Which question.
        id: u32,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
}

/// The network itself. All attachments to one network say the same, but for what changes with time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name, for the log.
    pub name: String,
    /// Its range and the gateway's address.
    pub ipv4: (Cidr, Ipv4Addr),
    /// The same for IPv6.
    pub ipv6: Option<(Cidr, Ipv6Addr)>,
    /// It has no way out.
    pub internal: bool,
    /// Containers find each other by name.
    pub names: bool,
    /// Rules of its own.
    pub egress: String,
    /// The ranges of all networks, its own among them.
    pub networks: Vec<Cidr>,
    /// Most bytes of an IP packet.
    pub mtu: u16,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network.
    pub network: Network,
    /// The container's name, for the log.
    pub container: String,
    /// The container's hardware address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// What it is called here: name, short id, aliases.
    pub names: Vec<String>,
    /// Rules of its own.
    pub egress: String,
    /// Whom its questions are passed on to.
    pub resolvers: Vec<IpAddr>,
    /// It is, or may come to be, in other networks, whose names its supervisor can ask for.
    pub elsewhere: bool,
    /// The room that it is in, if the host's kernel carries the network's packets.
    pub room: Option<u64>,
    /// Where else it sends its questions: gateways of networks that it was in when it started.
    pub asks_at: Vec<IpAddr>,
}

/// A port of the host's that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The container's port.
    pub port: u16,
}

/// What was counted for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Frames that it sent.
    pub sent: u64,
    /// Frames that it was given.
    pub received: u64,
    /// Flows through the gateway since it came.
    pub flows: u64,
    /// What was not let through.
    pub refused: Vec<(Reason, u64)>,
}

/// Sends a message with descriptors; the socket may be of the kind that does not wait.
///
/// # Errors
/// The other end is gone or has no room, or the message is too large.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too large"));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[io::IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message with its descriptors; `None` at the end.
///
/// # Errors
/// The message is malformed or too large, or (of a socket that does not wait) there is none.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut data = [io::IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too large"));
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    Ok(Some((message, descriptors)))
}

impl Attachment {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn validate(&self) -> Result<(), String> {
        let network = &self.network;
        let refuse =
            |what: &str| Err(format!("{what} of the attachment of {} to {}", self.container, network.name));
        let (range, gateway) = network.ipv4;
        if !range.contains(gateway.into()) || !range.contains(self.ipv4.into()) || gateway == self.ipv4 {
            return refuse("an IPv4 address");
        }
        match (network.ipv6, self.ipv6) {
            (_, None) => {}
            (Some((range, gateway)), Some(own))
                if range.contains(gateway.into()) && range.contains(own.into()) && gateway != own => {}
            _ => return refuse("an IPv6 address"),
        }
        if self.mac[0] & 1 == 1 || self.mac == [0; 6] {
            return refuse("the hardware address");
        }
        if self.names.len() > MAX_NAMES
            || self.resolvers.len() > MAX_RESOLVERS
            || self.asks_at.len() > MAX_RESOLVERS
            || network.networks.len() > MAX_NETWORKS
            || self.names.iter().any(|name| name.len() > 253)
        {
            return refuse("a list");
        }
        if !(576..=65_535).contains(&network.mtu) {
            return refuse("the MTU");
        }
        Ok(())
    }
}
