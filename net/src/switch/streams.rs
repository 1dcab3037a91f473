//! TCP through the gateway: the host connects first, and only then is the guest's segment answered.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, socket, sockopt,
};

use super::Switch;
use crate::frame::{Packet, kind_of, tcp_reset, unreachable};
use crate::gateway::FlowKey;
use crate::gateway::datagrams::{family, refuse_self};
use crate::gateway::stream::{Stream, Turn};
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

impl Switch {
    /// Begins a flow that may go where it wants to.
    pub(super) fn begin_stream(&mut self, key: FlowKey, packet: &Packet<'_>) -> Result<(), Reason> {
        if !self.has_room(key.member) {
            return self.refuse(key.member, packet, Reason::Flows);
        }
        let host = match dial(&key) {
            Ok(host) => host,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return self.refuse(key.member, packet, Reason::Host);
            }
            Err(error) => {
                self.tell_failure(key.member, packet, &error);
                return Ok(());
            }
        };
        self.add_stream(Stream::outwards(key, host, packet.bytes)).map(drop)
    }

    /// Whether a container may have another TCP flow.
    pub(super) fn has_room(&self, id: u64) -> bool {
        let bound = self.flow_bound();
        self.members.get(&id).is_some_and(|member| member.streams < bound)
    }

    /// Takes a flow in.
    pub(super) fn add_stream(&mut self, stream: Stream) -> Result<u64, Reason> {
        let id = self.number();
        self.reactor.watch(stream.host(), Token { kind: Kind::Stream, id }).map_err(|_| Reason::Unable)?;
        if let Some(member) = self.members.get_mut(&stream.key.member) {
            member.streams += 1;
            member.flows += 1;
        }
        self.keys.insert(stream.key, id);
        self.streams.insert(id, stream);
        Ok(id)
    }

    pub(super) fn on_stream(&mut self, id: u64, readable: bool, writable: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.on_host(readable, writable);
        if stream.opening.is_some() && writable && !self.finish_opening(id) {
            return;
        }
        self.turn(id, Instant::now());
    }

    /// The host's connection stands, or not; false if the flow is over.
    fn finish_opening(&mut self, id: u64) -> bool {
        let seed = self.next_seed();
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let member = stream.key.member;
        let result = match getsockopt(stream.host(), sockopt::SocketError) {
            Ok(0) => refuse_self(stream.host(), stream.key.remote.ip()),
            Ok(code) => Err(io::Error::from_raw_os_error(code)),
            Err(error) => Err(error.into()),
        };
        let segment = stream.opening.clone().unwrap_or_default();
        let result = match (result, self.members.get(&member)) {
            (Ok(()), Some(place)) => {
                let ends = self.ends(place);
                self.streams.get_mut(&id).map_or(Ok(()), |stream| stream.connected(&ends, seed))
            }
            (result, _) => result,
        };
        let Err(error) = result else { return true };
        self.end_stream(id);
        if let Ok(packet) = Packet::read(kind_of(&segment), &segment) {
            self.tell_failure(member, &packet, &error);
        }
        false
    }

    /// Tells a container why it has no connection: refused is a reset; anything else, that nobody is there.
    fn tell_failure(&mut self, member: u64, packet: &Packet<'_>, error: &io::Error) {
        let gateway = self.gateway(packet.source.is_ipv6());
        let answer = match (error.kind(), gateway) {
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset, _) | (_, None) => {
                tcp_reset(packet)
            }
            (_, Some(gateway)) => unreachable(gateway, packet, false),
        };
        self.deliver(member, answer);
    }

    /// Gives a flow its turn.
    pub(super) fn turn(&mut self, id: u64, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(member) = self.members.get_mut(&stream.key.member) else { return };
        let mtu = self.network.as_ref().map_or(1500, |net| net.said.mtu);
        let ends = crate::gateway::stream::Ends { guest: member.mac(), gateway: super::GATEWAY_MAC, mtu };
        if let Some(at) = stream.deadline.take() {
            self.deadlines.remove(&(at, id));
        }
        let turn = stream.turn(&mut member.cable, &ends, now);
        if member.cable.is_full() {
            member.waiting.insert(id);
        }
        match turn {
            Turn::Rests => {
                if let Some(at) = stream.deadline {
                    self.deadlines.insert((at, id));
                }
            }
            Turn::Again => self.reactor.again(Token { kind: Kind::Stream, id }),
            Turn::Over => self.end_stream(id),
        }
    }

    pub(super) fn end_stream(&mut self, id: u64) {
        let Some(stream) = self.streams.remove(&id) else { return };
        if let Some(at) = stream.deadline {
            self.deadlines.remove(&(at, id));
        }
        if let Some(member) = self.members.get_mut(&stream.key.member) {
            member.waiting.remove(&id);
        }
        self.forget(&stream.key, id);
    }
}

/// A connection to the flow's other end that is being made.
fn dial(key: &FlowKey) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let host = socket(family(key.remote.ip()), SockType::Stream, flags, None)?;
    setsockopt(&host, sockopt::KeepAlive, &true)?;
    setsockopt(&host, sockopt::TcpNoDelay, &true)?;
    match connect(host.as_raw_fd(), &SockaddrStorage::from(key.remote)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    refuse_self(&host, key.remote.ip())?;
    Ok(host)
}
