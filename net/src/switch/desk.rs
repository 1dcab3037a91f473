//! Questions of containers in a room of the host's kernel: they come to sockets that a supervisor opened there, at port 53 of the gateway.
//!
//! Who asks is told by the address that it asks from: the room's rules see to it that nobody has another's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    MsgFlags, SockFlag, SockType, SockaddrStorage, accept4, getpeername, getsockopt, recvfrom, sendto,
    sockopt,
};

use super::Switch;
use super::questions::{Asker, Questions};
use crate::gateway::datagrams::address;
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

/// Most sockets: datagrams and connections, of both families.
const MAX_SOCKETS: usize = 4;
/// Most questions or connections of one socket in one turn.
const MAX_TURN: usize = 32;
/// Most connections of one container.
const MAX_CONNECTIONS: usize = 32;

/// The sockets of a room.
pub struct Desk {
    room: u64,
    sockets: HashMap<u64, DeskSocket>,
}

struct DeskSocket {
    socket: OwnedFd,
    listens: bool,
}

impl Switch {
    /// Whether there are sockets of this room; those of another one, which is gone, are closed.
    pub(super) fn hears(&mut self, room: u64) -> bool {
        self.desk.take_if(|desk| desk.room != room);
        self.desk.is_some()
    }

    /// Takes the sockets of the room that this supervisor's container is in. If somebody else was faster, these are closed; whether there
    /// are any now.
    pub(super) fn open_desk(&mut self, id: u64, sockets: Vec<OwnedFd>) -> Result<bool, String> {
        let room = self.members.get(&id).and_then(|member| member.place.room);
        let room = room.ok_or("there is no such room")?;
        if sockets.len() > MAX_SOCKETS {
            return Err(format!("a room has at most {MAX_SOCKETS} sockets for questions"));
        }
        let hears = self.hears(room);
        if hears || sockets.is_empty() {
            return Ok(hears);
        }
        let mut desk = Desk { room, sockets: HashMap::new() };
        for socket in sockets {
            let kind = getsockopt(&socket, sockopt::SockType).map_err(|error| error.to_string())?;
            let listens = match kind {
                SockType::Datagram => false,
                SockType::Stream => true,
                _ => return Err("questions come as datagrams or over connections".to_owned()),
            };
            let id = self.number();
            self.reactor
                .watch(&socket, Token { kind: Kind::Names, id })
                .map_err(|error| format!("watching a socket: {error}"))?;
            desk.sockets.insert(id, DeskSocket { socket, listens });
        }
        self.desk = Some(desk);
        Ok(true)
    }

    /// The room is held by nobody's sockets once no container is in it.
    pub(super) fn leave_desk(&mut self) {
        if !self.members.values().any(|member| member.place.room.is_some()) {
            self.desk = None;
        }
    }

    pub(super) fn on_names(&mut self, id: u64) {
        for _ in 0..MAX_TURN {
            let Some(place) = self.desk.as_ref().and_then(|desk| desk.sockets.get(&id)) else { return };
            let more = if place.listens { self.accept_asker(id) } else { self.hear_asker(id) };
            if !more {
                return;
            }
        }
        self.reactor.again(Token { kind: Kind::Names, id });
    }

    fn desk_socket(&self, id: u64) -> Option<i32> {
        Some(self.desk.as_ref()?.sockets.get(&id)?.socket.as_raw_fd())
    }

    /// Takes one question; false if there is none.
    fn hear_asker(&mut self, id: u64) -> bool {
        let Some(socket) = self.desk_socket(id) else { return false };
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = recvfrom::<SockaddrStorage>(socket, &mut buffer);
        let heard = match received {
            Ok((length, client)) => {
                let client = client.as_ref().and_then(address);
                client.map(|client| (client, buffer.get(..length).unwrap_or_default().to_vec()))
            }
            // An error that an asker caused by going away is no end.
            Err(nix::Error::EINTR | nix::Error::ECONNREFUSED) => None,
            Err(_) => {
                self.buffer = buffer;
                return false;
            }
        };
        self.buffer = buffer;
        if let Some((client, question)) = heard
            && let Some(member) = self.by_address.get(&client.ip()).copied()
            && let Err(reason) = self.on_question(member, Asker::Client(id, client), &question)
        {
            self.count(member, reason);
        }
        true
    }

    /// Takes one connection; false if there is none.
    fn accept_asker(&mut self, id: u64) -> bool {
        let Some(socket) = self.desk_socket(id) else { return false };
        let fd = match accept4(socket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => fd,
            Err(nix::Error::ECONNABORTED | nix::Error::EINTR) => return true,
            Err(_) => return false,
        };
        // SAFETY: the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let client = getpeername::<SockaddrStorage>(fd).ok().as_ref().and_then(address);
        let Some(member) = client.and_then(|client| self.by_address.get(&client.ip()).copied()) else {
            return true;
        };
        if self.questions.values().filter(|questions| questions.member == member).count() >= MAX_CONNECTIONS {
            self.count(member, Reason::Flows);
            return true;
        }
        let id = self.number();
        if self.reactor.watch(&socket, Token { kind: Kind::Questions, id }).is_ok() {
            let questions = Questions { member, socket, unread: Vec::new(), unsent: Vec::new() };
            self.questions.insert(id, questions);
        }
        true
    }

    /// Answers a datagram; an answer that finds no room is lost, as on any network.
    pub(super) fn answer_at_desk(&self, socket: u64, client: SocketAddr, answer: &[u8]) {
        if let Some(socket) = self.desk_socket(socket) {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = sendto(socket, answer, &SockaddrStorage::from(client), flags);
        }
    }
}
