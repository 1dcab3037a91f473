//! UDP and echo through the gateway: a socket for each flow, so that only who was spoken to can answer.

use std::net::SocketAddr;
use std::time::Instant;

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use std::os::fd::AsRawFd;

use super::Switch;
use crate::egress::Protocol;
use crate::frame::{Echo, Packet, echo_reply, udp_packet, unreachable};
use crate::gateway::FlowKey;
use crate::gateway::datagrams::{Datagrams, QUOTE, Via, give, open, take};
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

/// Most datagrams of a flow's in one turn.
const MAX_DATAGRAMS: usize = 32;

impl Switch {
    /// Begins a flow that may go where it wants to.
    pub(super) fn begin_datagrams(&mut self, key: FlowKey, packet: &Packet<'_>) -> Result<(), Reason> {
        self.make_room(key.member);
        let socket = match open(&key) {
            Ok(socket) => socket,
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied && key.protocol == Protocol::Udp =>
            {
                return self.refuse(key.member, packet, Reason::Host);
            }
            Err(_) => return self.refuse(key.member, packet, Reason::Unable),
        };
        let id = self.number();
        self.reactor.watch(&socket, Token { kind: Kind::Datagrams, id }).map_err(|_| Reason::Unable)?;
        self.add_datagrams(id, key, Via::Own(socket));
        self.take_datagram(id, packet)
    }

    /// Takes a flow in.
    pub(super) fn add_datagrams(&mut self, id: u64, key: FlowKey, via: Via) {
        let flow = Datagrams { key, via, last: Instant::now(), answered: false, quote: Vec::new() };
        if let Some(member) = self.members.get_mut(&key.member) {
            member.datagrams += 1;
            member.flows += 1;
        }
        self.keys.insert(key, id);
        self.datagrams.insert(id, flow);
    }

    /// A container that has as many flows as it may have loses the one that was silent longest.
    pub(super) fn make_room(&mut self, member: u64) {
        let bound = self.flow_bound();
        if self.members.get(&member).is_none_or(|place| place.datagrams < bound) {
            return;
        }
        let own = self.datagrams.iter().filter(|(_, flow)| flow.key.member == member);
        if let Some(oldest) = own.min_by_key(|(_, flow)| flow.last).map(|(id, _)| *id) {
            self.end_datagrams(oldest);
            self.count(member, Reason::Flows);
        }
    }

    pub(super) fn end_datagrams(&mut self, id: u64) {
        let Some(flow) = self.datagrams.remove(&id) else { return };
        if let Via::Published(port, client) = flow.via
            && let Some(port) = self.published.get_mut(&port)
        {
            port.clients.remove(&client);
        }
        self.forget(&flow.key, id);
    }

    /// A datagram of the guest's.
    pub(super) fn take_datagram(&mut self, id: u64, packet: &Packet<'_>) -> Result<(), Reason> {
        let Some(flow) = self.datagrams.get_mut(&id) else { return Ok(()) };
        flow.last = Instant::now();
        flow.quote.clear();
        flow.quote.extend_from_slice(packet.bytes.get(..QUOTE).unwrap_or(packet.bytes));
        let message;
        let data = match packet.echo() {
            Some(echo) => {
                // The kernel fills in identifier and checksum.
                let kind = if packet.source.is_ipv4() { 8 } else { 128 };
                message = [&[kind, 0, 0, 0, 0, 0], &echo.sequence.to_be_bytes()[..], echo.data].concat();
                &message[..]
            }
            None => packet.datagram().ok_or(Reason::Malformed)?,
        };
        let sent = match &flow.via {
            Via::Own(socket) => give(socket, data),
            Via::Published(port, client) => {
                let Some(port) = self.published.get(port) else { return Ok(()) };
                flow.answered = true;
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = sendto(port.socket.as_raw_fd(), data, &SockaddrStorage::from(*client), flags);
                Ok(())
            }
        };
        match sent {
            Ok(()) => Ok(()),
            // It tells of what was sent before.
            Err(error) => {
                self.tell_unreachable(id, &error);
                Ok(())
            }
        }
    }

    /// Datagrams from the other side.
    pub(super) fn on_datagrams(&mut self, id: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for count in 0.. {
            if count == MAX_DATAGRAMS {
                self.reactor.again(Token { kind: Kind::Datagrams, id });
                break;
            }
            let Some(flow) = self.datagrams.get_mut(&id) else { break };
            let Via::Own(socket) = &flow.via else { break };
            match take(socket, &mut buffer) {
                Ok(Some(length)) => {
                    (flow.last, flow.answered) = (Instant::now(), true);
                    let key = flow.key;
                    self.give_datagram(&key, buffer.get(..length).unwrap_or_default());
                }
                Ok(None) => break,
                Err(error) => self.tell_unreachable(id, &error),
            }
        }
        self.buffer = buffer;
    }

    /// Gives a container what a flow's other side said.
    pub(super) fn give_datagram(&mut self, key: &FlowKey, data: &[u8]) {
        let packet = match key.protocol {
            Protocol::Udp => udp_packet(key.remote, key.guest, data),
            _ => echo_of(key, data),
        };
        let mtu = self.network.as_ref().map_or(0, |net| usize::from(net.said.mtu));
        if packet.as_ref().is_some_and(|packet| packet.len() > mtu) {
            return self.count(key.member, Reason::TooLong);
        }
        self.deliver(key.member, packet);
    }

    fn tell_unreachable(&mut self, id: u64, error: &std::io::Error) {
        let Some(flow) = self.datagrams.get(&id) else { return };
        let (member, quote) = (flow.key.member, flow.quote.clone());
        let gateway = self.gateway(flow.key.guest.is_ipv6());
        // A quote is only a beginning, which no longer reads as a packet.
        let port = error.kind() == std::io::ErrorKind::ConnectionRefused;
        let (source, destination) = (flow.key.guest.ip(), flow.key.remote.ip());
        let packet =
            Packet { source, destination, protocol: 0, fragment: false, bytes: &quote, payload: &[] };
        self.deliver(member, gateway.and_then(|gateway| unreachable(gateway, &packet, port)));
    }
}

/// The answer to an echo request, from what the kernel gives: the ICMP message with an identifier of its own.
fn echo_of(key: &FlowKey, message: &[u8]) -> Option<Vec<u8>> {
    let header = message.first_chunk::<8>()?;
    let answer = if key.remote.is_ipv4() { 0 } else { 129 };
    let echo = Echo {
        identifier: key.guest.port(),
        sequence: u16::from_be_bytes([header[6], header[7]]),
        data: message.get(8..)?,
    };
    if header[0] != answer {
        return None;
    }
    let (from, to): (SocketAddr, SocketAddr) = (key.remote, key.guest);
    echo_reply(from.ip(), to.ip(), &echo)
}
