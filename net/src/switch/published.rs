//! Published ports: what comes to a port of the host's is passed on to a container. The socket is the supervisor's; here is a duplicate.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{SockFlag, SockaddrStorage, accept4, getpeername, recvfrom, setsockopt, sockopt};

use super::Switch;
use crate::address::embedded;
use crate::egress::Protocol;
use crate::gateway::FlowKey;
use crate::gateway::datagrams::{Via, address};
use crate::gateway::stream::Stream;
use crate::protocol::Published;
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

/// Most connections or datagrams of one port in one turn.
const MAX_TURN: usize = 32;
/// First port that clients are shown under that cannot be shown under their own address (RFC 6335's dynamic ports).
const FIRST_PORT: u16 = 49_152;

/// A published port.
pub struct PublishedPort {
    /// Whose it is.
    pub member: u64,
    /// The host's socket.
    pub socket: OwnedFd,
    what: Published,
    /// Flows of datagrams by client.
    pub clients: HashMap<SocketAddr, u64>,
}

impl Switch {
    pub(super) fn publish(&mut self, member: u64, what: Published, socket: OwnedFd) -> io::Result<()> {
        let id = self.number();
        // It is shared with the supervisor, who does not read from it.
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        self.reactor.watch(&socket, Token { kind: Kind::Published, id })?;
        self.published.insert(id, PublishedPort { member, socket, what, clients: HashMap::new() });
        Ok(())
    }

    pub(super) fn on_published(&mut self, id: u64) {
        for _ in 0..MAX_TURN {
            let Some(port) = self.published.get(&id) else { return };
            let more = match port.what.protocol {
                Protocol::Tcp => self.accept(id),
                _ => self.receive(id),
            };
            if !more {
                return;
            }
        }
        self.reactor.again(Token { kind: Kind::Published, id });
    }

    /// Accepts one connection; false if there is none.
    fn accept(&mut self, id: u64) -> bool {
        let Some(port) = self.published.get(&id) else { return false };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = match accept4(port.socket.as_raw_fd(), flags) {
            Ok(fd) => fd,
            // A client that changed its mind.
            Err(nix::Error::ECONNABORTED | nix::Error::EINTR) => return true,
            Err(_) => return false,
        };
        // SAFETY: the kernel has just made it for us.
        let host = unsafe { OwnedFd::from_raw_fd(fd) };
        let (member, to) = (port.member, port.what.port);
        let Some(client) = getpeername::<SockaddrStorage>(fd).ok().as_ref().and_then(address) else {
            return true;
        };
        if !self.has_room(member) {
            // Dropped: the client sees its connection closed.
            self.count(member, Reason::Flows);
            return true;
        }
        let _ = setsockopt(&host, sockopt::TcpNoDelay, &true);
        let _ = setsockopt(&host, sockopt::KeepAlive, &true);
        let seed = self.next_seed();
        let Some(key) = self.inward_key(member, Protocol::Tcp, client, to) else { return true };
        let Some(ends) = self.members.get(&member).map(|place| self.ends(place)) else { return true };
        match Stream::inwards(key, host, &ends, seed).map_err(|_| Reason::Unable) {
            Ok(stream) => {
                if let Ok(flow) = self.add_stream(stream) {
                    self.turn(flow, Instant::now());
                }
            }
            Err(reason) => self.count(member, reason),
        }
        true
    }

    /// Takes one datagram; false if there is none.
    fn receive(&mut self, id: u64) -> bool {
        let Some(port) = self.published.get(&id) else { return false };
        let (member, to) = (port.member, port.what.port);
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = recvfrom::<SockaddrStorage>(port.socket.as_raw_fd(), &mut buffer);
        let more = match received {
            Ok((length, client)) => {
                if let Some(client) = client.as_ref().and_then(address) {
                    let data = buffer.get(..length).unwrap_or_default();
                    self.hear_client(id, member, client, to, data);
                }
                true
            }
            Err(nix::Error::EINTR) => true,
            // An error that a client caused by going away.
            Err(nix::Error::ECONNREFUSED) => true,
            Err(_) => false,
        };
        self.buffer = buffer;
        more
    }

    fn hear_client(&mut self, id: u64, member: u64, client: SocketAddr, to: u16, data: &[u8]) {
        let known = self.published.get(&id).and_then(|port| port.clients.get(&client).copied());
        let key = match known.and_then(|flow| self.datagrams.get_mut(&flow)) {
            Some(flow) => {
                flow.last = Instant::now();
                flow.key
            }
            None => {
                self.make_room(member);
                let Some(key) = self.inward_key(member, Protocol::Udp, client, to) else { return };
                let flow = self.number();
                self.add_datagrams(flow, key, Via::Published(id, client));
                if let Some(port) = self.published.get_mut(&id) {
                    port.clients.insert(client, flow);
                }
                key
            }
        };
        self.give_datagram(&key, data);
    }

    /// The key of a flow from a client: under the client's own address, if the container can answer there; else under the gateway's.
    fn inward_key(
        &mut self,
        member: u64,
        protocol: Protocol,
        client: SocketAddr,
        to: u16,
    ) -> Option<FlowKey> {
        let place = &self.members.get(&member)?.place;
        let six = client.is_ipv6() && place.ipv6.is_some();
        let own: IpAddr = if six { place.ipv6?.into() } else { place.ipv4.into() };
        let guest = SocketAddr::new(own, to);
        let key = |remote| FlowKey { member, protocol, guest, remote };
        if client.ip().is_ipv6() == six && self.is_elsewhere(client.ip()) {
            let key = key(SocketAddr::new(client.ip(), client.port()));
            if !self.keys.contains_key(&key) {
                return Some(key);
            }
        }
        let gateway = self.gateway(six)?;
        let ports = u16::MAX - FIRST_PORT;
        for _ in 0..ports {
            self.next_port = (self.next_port + 1) % ports;
            let key = key(SocketAddr::new(gateway, FIRST_PORT + self.next_port));
            if !self.keys.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    /// Whether answers to this address would come back to the gateway.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        let Some(net) = &self.network else { return false };
        let plain = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && embedded(v6).is_none(),
        };
        plain && !net.said.networks.iter().any(|range| range.contains(address))
    }
}
