//! Supervisors: each has a connection, which is its container's place in the network.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt};

use super::member::Member;
use super::{GATEWAY_MAC, Net, Switch};
use crate::cable::Cable;
use crate::egress::{Policy, Surroundings};
use crate::protocol::{self, Ask, Attachment, Network, Said, VERSION};
use crate::reactor::{Kind, Token};

/// Most messages of a supervisor's in one turn.
const MAX_ASKS: usize = 16;
/// Most answers that wait for a supervisor that does not read: it is gone then.
const MAX_WAITING: usize = 256;

/// A supervisor's connection.
pub struct Connection {
    socket: OwnedFd,
    waiting: VecDeque<Said>,
}

impl Switch {
    pub(super) fn accept_connections(&mut self) {
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else { return };
            // SAFETY: the kernel has just made it for us.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let id = self.number();
            if self.reactor.watch(&socket, Token { kind: Kind::Control, id }).is_ok() {
                self.connections.insert(id, Connection { socket, waiting: VecDeque::new() });
                self.say(id, Said::Hello { version: VERSION });
            }
        }
    }

    /// Says something to a supervisor; a supervisor that does not listen is gone.
    pub(super) fn say(&mut self, id: u64, said: Said) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.waiting.push_back(said);
        let mut over = connection.waiting.len() > MAX_WAITING;
        while let Some(next) = connection.waiting.front() {
            match protocol::send(connection.socket.as_fd(), next, &[]) {
                Ok(()) => drop(connection.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    over = true;
                    break;
                }
            }
        }
        if over {
            self.disconnect(id);
        }
    }

    pub(super) fn on_control(&mut self, id: u64) {
        for _ in 0..MAX_ASKS {
            let Some(connection) = self.connections.get(&id) else { return };
            match protocol::receive::<Ask>(connection.socket.as_fd()) {
                Ok(Some((ask, descriptors))) => {
                    let answer = match self.answer(id, ask, descriptors) {
                        Ok(answer) => answer,
                        Err(why) => Some(Said::Refused(why)),
                    };
                    if let Some(answer) = answer {
                        self.say(id, answer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.disconnect(id),
            }
        }
        self.reactor.again(Token { kind: Kind::Control, id });
    }

    fn answer(&mut self, id: u64, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Option<Said>, String> {
        match ask {
            Ask::Attach(place) => {
                let room = place.room;
                let cable = match (room, <[OwnedFd; 1]>::try_from(descriptors)) {
                    (None, Ok([cable])) => Some(cable),
                    (Some(_), Err(none)) if none.is_empty() => None,
                    _ => return Err("it takes one cable, or a room and none".to_owned()),
                };
                self.attach(id, *place, cable)?;
                if room.is_some_and(|room| !self.hears(room)) {
                    return Ok(Some(Said::Deaf));
                }
            }
            Ask::Names => {
                if !self.open_desk(id, descriptors)? {
                    return Ok(Some(Said::Deaf));
                }
            }
            Ask::Learned { id: question } => {
                self.opened(id, question);
                return Ok(None);
            }
            Ask::Publish(ports) => {
                if ports.len() != descriptors.len() || !self.members.contains_key(&id) {
                    return Err("a socket for each port is needed, of a container that is here".to_owned());
                }
                for (port, socket) in ports.into_iter().zip(descriptors) {
                    self.publish(id, port, socket).map_err(|error| format!("publishing a port: {error}"))?;
                }
            }
            Ask::Report => {
                let member = self.members.get(&id).ok_or("there is no such container")?;
                return Ok(Some(Said::Report(member.report())));
            }
            Ask::Find { id: question, name } => {
                return Ok(Some(Said::Found { id: question, addresses: self.addresses_of(&name) }));
            }
            Ask::Found { id: question, addresses } => {
                self.found_elsewhere(id, question, &addresses);
                return Ok(None);
            }
        }
        Ok(Some(Said::Done))
    }

    fn attach(&mut self, id: u64, place: Attachment, cable: Option<OwnedFd>) -> Result<(), String> {
        place.validate()?;
        if self.members.contains_key(&id) {
            return Err("it is attached already".to_owned());
        }
        let policy: Policy = place.egress.parse().map_err(|error| format!("{error}"))?;
        if let Some(cable) = &cable {
            let kind = getsockopt(cable, sockopt::SockType).map_err(|error| error.to_string())?;
            if kind != nix::sys::socket::SockType::SeqPacket {
                return Err("a cable is a packet socket".to_owned());
            }
        }
        self.tell_of_network(&place.network)?;
        let member = Member::new(place, policy, Cable::new(cable));
        let taken = self.by_mac.contains_key(&member.mac())
            || member.mac() == GATEWAY_MAC
            || member.addresses().any(|address| self.by_address.contains_key(&address));
        if taken {
            return Err("another container has this address".to_owned());
        }
        if let Some(cable) = member.cable.socket() {
            self.reactor.watch(cable, Token { kind: Kind::Cable, id }).map_err(|error| error.to_string())?;
        }
        self.by_mac.insert(member.mac(), id);
        self.by_address.extend(member.addresses().map(|address| (address, id)));
        self.members.insert(id, member);
        Ok(())
    }

    fn tell_of_network(&mut self, said: &Network) -> Result<(), String> {
        let policy: Policy = said.egress.parse().map_err(|error| format!("{error}"))?;
        if let Some(net) = &self.network
            && (net.said.ipv4, net.said.ipv6) != (said.ipv4, said.ipv6)
        {
            return Err(format!("the network {} has another range", net.said.name));
        }
        // The host's addresses are filled in whenever somebody wants to leave.
        let around = Surroundings { host: Vec::new(), networks: said.networks.clone() };
        self.network = Some(Net { said: said.clone(), policy, around });
        Ok(())
    }

    /// A supervisor is gone, and its container with it.
    pub(super) fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
        let Some(member) = self.members.remove(&id) else { return };
        // Its supervisor has duplicates of these, and may bring them again.
        if let Some(cable) = member.cable.socket() {
            self.reactor.forget(cable);
        }
        for port in self.published.values().filter(|port| port.member == id) {
            self.reactor.forget(&port.socket);
        }
        self.by_mac.remove(&member.mac());
        for address in member.addresses() {
            self.by_address.remove(&address);
        }
        let flows: Vec<u64> =
            self.keys.iter().filter(|(key, _)| key.member == id).map(|(_, flow)| *flow).collect();
        for flow in flows {
            self.end_stream(flow);
            self.end_datagrams(flow);
        }
        self.published.retain(|_, port| port.member != id);
        self.questions.retain(|_, questions| questions.member != id);
        self.queries.retain(|_, query| query.member != id);
        self.leave_desk();
    }

    /// The addresses of the containers that have this name here.
    pub(super) fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        if !self.network.as_ref().is_some_and(|net| net.said.names) {
            return Vec::new();
        }
        let named = self.members.values().filter(|member| member.place.names.iter().any(|own| own == name));
        named.flat_map(Member::addresses).collect()
    }
}
