//! Names: answered from the network's own table, else asked of the container's resolvers, if its rules let it ask.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket, socketpair};

use super::Switch;
use crate::egress::{remembered, wall};
use crate::frame::{Packet, udp_packet};
use crate::gateway::datagrams::{family, give, take};
use crate::gateway::dns::{self, Question, Reply, Wanted};
use crate::gateway::stream::Stream;
use crate::gateway::{FlowKey, dns::PORT};
use crate::protocol::Said;
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

/// Most questions of one container that are under way.
const MAX_QUERIES: usize = 128;
/// How long a resolver may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a supervisor may take to ask the container's other networks.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// How often all resolvers are asked.
const ROUNDS: usize = 2;
/// Longest question in bytes.
const MAX_QUESTION: usize = 1024;
/// Bytes read from a connection for questions at a time.
const READ: usize = 4096;
/// Most bytes of answers that wait for a reader.
const MAX_UNREAD: usize = 256 << 10;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A datagram from this port of the container, to this address.
    Datagram(SocketAddr, SocketAddr),
    /// The connection for questions of this number.
    Connection(u64),
    /// A datagram from this port of the container, to the room's socket of this number.
    Client(u64, SocketAddr),
}

/// A question that is under way.
pub struct Query {
    /// The container that asks.
    pub member: u64,
    asker: Asker,
    message: Vec<u8>,
    question: Question,
    /// The resolver that is being asked; none: the container's other networks are.
    socket: Option<OwnedFd>,
    /// How often a resolver was asked.
    tries: usize,
    id: u16,
    until: Instant,
    /// Over TCP: an answer over UDP was cut short. What of it has come.
    stream: Option<Vec<u8>>,
    sent: bool,
    /// The answer, while its addresses are being opened to a container in a room.
    held: Option<Vec<u8>>,
}

/// A connection for questions over TCP: our end of a pair, whose other end is the host's side of a flow; or a room's.
pub struct Questions {
    /// The container.
    pub member: u64,
    pub socket: OwnedFd,
    pub unread: Vec<u8>,
    pub unsent: Vec<u8>,
}

impl Switch {
    /// A question of a container's.
    pub(super) fn on_question(&mut self, member: u64, asker: Asker, message: &[u8]) -> Result<(), Reason> {
        let question = match dns::question(message) {
            Some(question) if message.len() <= MAX_QUESTION => question,
            _ => return Err(Reason::Malformed),
        };
        let reply = match self.known(&question) {
            Some(reply) => reply,
            None => return self.ask_on(member, asker, message, question),
        };
        self.reply(member, asker, dns::answer(message, &reply));
        Ok(())
    }

    /// What the network itself knows.
    fn known(&self, question: &Question) -> Option<Reply> {
        let net = self.network.as_ref()?;
        if let Wanted::NameOf(address) = question.wanted {
            let here = net.said.networks.iter().any(|range| range.contains(address));
            if !here {
                return None;
            }
            // Of other networks nothing is told, and nobody else knows them.
            let member = self.by_address.get(&address).filter(|_| net.said.names);
            let name = member.and_then(|id| self.members.get(id)?.place.names.first());
            return Some(name.map_or(Reply::Unknown, |name| Reply::Name(name.clone())));
        }
        let addresses = self.addresses_of(&question.name);
        (!addresses.is_empty()).then_some(Reply::Addresses(addresses))
    }

    /// Asks the container's other networks, then resolvers.
    fn ask_on(&mut self, id: u64, asker: Asker, message: &[u8], question: Question) -> Result<(), Reason> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if member.queries >= MAX_QUERIES {
            return Err(Reason::Flows);
        }
        member.queries += 1;
        let elsewhere = member.place.elsewhere && matches!(question.wanted, Wanted::A | Wanted::Aaaa);
        let number = self.number();
        let name = question.name.clone();
        let query = Query {
            member: id,
            asker,
            message: message.to_vec(),
            question,
            socket: None,
            tries: 0,
            id: 0,
            until: Instant::now() + ELSEWHERE,
            stream: None,
            sent: false,
            held: None,
        };
        self.queries.insert(number, query);
        if elsewhere && let Ok(question) = u32::try_from(number) {
            self.say(id, Said::Find { id: question, name });
            return Ok(());
        }
        self.ask_resolver(number)
    }

    /// The container's other networks have answered.
    pub(super) fn found_elsewhere(&mut self, member: u64, question: u32, addresses: &[IpAddr]) {
        let number = u64::from(question);
        if !self.queries.get(&number).is_some_and(|query| query.member == member && query.waits_elsewhere()) {
            return;
        }
        if addresses.is_empty() {
            let result = self.ask_resolver(number);
            if let Err(reason) = result {
                self.count(member, reason);
            }
        } else {
            self.finish_query(number, &Reply::Addresses(addresses.to_vec()));
        }
    }

    /// Asks the next resolver.
    fn ask_resolver(&mut self, number: u64) -> Result<(), Reason> {
        let (Some(query), Some(net)) = (self.queries.get_mut(&number), &self.network) else { return Ok(()) };
        let Some(member) = self.members.get(&query.member) else { return Ok(()) };
        let name = &query.question.name;
        if net.said.internal || !net.policy.may_ask(name) || !member.policy.may_ask(name) {
            let (reason, container, network) = (
                if net.said.internal { Reason::Internal } else { Reason::Name },
                &member.place.container,
                &net.said.name,
            );
            self.log.line(&format_args!("refused {reason}: {container} on {network} asks for {name}"));
            self.finish_query(number, &Reply::Refused);
            return Err(reason);
        }
        let resolvers = &member.place.resolvers;
        let resolver = resolvers.get(query.tries % resolvers.len().max(1)).copied();
        let resolver = resolver.filter(|_| query.tries < resolvers.len() * ROUNDS);
        let Some(resolver) = resolver else {
            self.finish_query(number, &Reply::Failed);
            return Ok(());
        };
        query.tries += 1;
        query.until = Instant::now() + PATIENCE;
        query.sent = false;
        query.stream = query.stream.as_ref().map(|_| Vec::new());
        // A number that the resolver's answer must have, beside coming from it and to this very socket.
        let id = u16::try_from(self.next_seed() & 0xffff).unwrap_or(0);
        let Some(query) = self.queries.get_mut(&number) else { return Ok(()) };
        query.id = id;
        let opened = open(resolver, query.stream.is_some()).and_then(|socket| {
            self.reactor.watch(&socket, Token { kind: Kind::Query, id: number })?;
            if query.stream.is_none() {
                give(&socket, &dns::with_id(&query.message, id))?;
            }
            Ok(socket)
        });
        match opened {
            Ok(socket) => query.socket = Some(socket),
            // The next one, when the clock is looked at.
            Err(_) => query.until = Instant::now(),
        }
        Ok(())
    }

    pub(super) fn on_query(&mut self, number: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let heard = self.hear_resolver(number, &mut buffer);
        self.buffer = buffer;
        match heard {
            Ok(Some(message)) => self.on_answer(number, &message),
            Ok(None) => {}
            Err(_) => drop(self.ask_resolver(number)),
        }
    }

    /// What a resolver says; `None` if that is not all yet.
    fn hear_resolver(&mut self, number: u64, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(query) = self.queries.get_mut(&number) else { return Ok(None) };
        let Some(socket) = &query.socket else { return Ok(None) };
        let Some(stream) = &mut query.stream else {
            let length = take(socket, buffer)?;
            return Ok(length.map(|length| buffer.get(..length).unwrap_or_default().to_vec()));
        };
        if !query.sent {
            let length = u16::try_from(query.message.len()).unwrap_or(0);
            let framed = [&length.to_be_bytes()[..], &dns::with_id(&query.message, query.id)].concat();
            match nix::unistd::write(socket, &framed) {
                Ok(_) => query.sent = true,
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match nix::unistd::read(socket, buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => stream.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if let Some(message) = first_message(stream) {
                return Ok(Some(message.to_vec()));
            }
        }
    }

    fn on_answer(&mut self, number: u64, message: &[u8]) {
        let Some(query) = self.queries.get_mut(&number) else { return };
        let Some(addresses) = dns::examine(message, query.id, &query.question) else {
            // Not an answer to this: somebody else's attempt, or a resolver that is no good.
            return;
        };
        // TC, RFC 1035 section 4.1.1: asked again over TCP.
        if query.stream.is_none() && message.get(2).is_some_and(|flags| flags & 2 != 0) {
            query.stream = Some(Vec::new());
            query.tries = query.tries.saturating_sub(1);
            let _ = self.ask_resolver(number);
            return;
        }
        let id = query.member;
        let (Some(net), Some(member)) = (&mut self.network, self.members.get_mut(&id)) else { return };
        net.around.host.clear();
        net.around.host.extend_from_slice(self.host.now());
        let beyond = addresses.iter().find_map(|(address, _)| Some((address, wall(*address, &net.around)?)));
        if let Some((address, why)) = beyond {
            let (name, container) = (&query.question.name, &member.place.container);
            let network = &net.said.name;
            self.log.line(&format_args!(
                "refused {}: {container} on {network} was told that {name} is {address} ({why})",
                Reason::Rebinding
            ));
            member.counts.add(Reason::Rebinding);
            return self.finish_query(number, &Reply::Refused);
        }
        let now = Instant::now();
        let named = member.place.room.is_some() && (net.policy.knows_names() || member.policy.knows_names());
        let answer = dns::with_id(message, query.question.id);
        if named
            && !addresses.is_empty()
            && let Ok(question) = u32::try_from(number)
        {
            // What the rules make of it, only the supervisor can have done.
            let Some(query) = self.queries.get_mut(&number) else { return };
            (query.held, query.socket, query.until) = (Some(answer), None, now + ELSEWHERE);
            let addresses =
                addresses.into_iter().map(|(address, ttl)| (address, remembered(ttl).as_secs())).collect();
            let name = query.question.name.clone();
            return self.say(id, Said::Learned { id: question, name, addresses });
        }
        for (address, ttl) in addresses {
            member.answers.learn(&query.question.name, address, ttl, now);
        }
        self.tell(number, answer);
    }

    /// The addresses of an answer are open to the container that asked.
    pub(super) fn opened(&mut self, member: u64, question: u32) {
        let number = u64::from(question);
        let query = self.queries.get_mut(&number).filter(|query| query.member == member);
        if let Some(answer) = query.and_then(|query| query.held.take()) {
            self.tell(number, answer);
        }
    }

    /// Passes a resolver's answer on.
    fn tell(&mut self, number: u64, answer: Vec<u8>) {
        let Some(query) = self.end_query(number) else { return };
        let (id, asker, question) = (query.member, query.asker, query.message);
        let most = usize::from(self.network.as_ref().map_or(1500, |net| net.said.mtu)) - 48;
        let cut = !matches!(asker, Asker::Connection(_)) && answer.len() > most;
        let answer = if cut { dns::answer(&question, &Reply::TooLong) } else { Some(answer) };
        self.reply(id, asker, answer);
    }

    fn finish_query(&mut self, number: u64, reply: &Reply) {
        let Some(query) = self.end_query(number) else { return };
        self.reply(query.member, query.asker, dns::answer(&query.message, reply));
    }

    fn end_query(&mut self, number: u64) -> Option<Query> {
        let query = self.queries.remove(&number)?;
        if let Some(member) = self.members.get_mut(&query.member) {
            member.queries = member.queries.saturating_sub(1);
        }
        Some(query)
    }

    /// Questions whose time is over go to the next resolver.
    pub(super) fn sweep_queries(&mut self, now: Instant) {
        let late = self.queries.iter().filter(|(_, query)| query.until <= now);
        let late: Vec<(u64, u64)> = late.map(|(number, query)| (*number, query.member)).collect();
        for (number, member) in late {
            if self.queries.get(&number).is_some_and(|query| query.held.is_some()) {
                self.finish_query(number, &Reply::Failed);
            } else if let Err(reason) = self.ask_resolver(number) {
                self.count(member, reason);
            }
        }
    }

    fn reply(&mut self, member: u64, asker: Asker, answer: Option<Vec<u8>>) {
        let Some(answer) = answer else { return };
        match asker {
            Asker::Datagram(guest, own) => self.deliver(member, udp_packet(own, guest, &answer)),
            Asker::Client(socket, client) => self.answer_at_desk(socket, client, &answer),
            Asker::Connection(id) => {
                let Some(connection) = self.questions.get_mut(&id) else { return };
                let Ok(length) = u16::try_from(answer.len()) else { return };
                if connection.unsent.len() + answer.len() > MAX_UNREAD {
                    self.questions.remove(&id);
                    return;
                }
                connection.unsent.extend_from_slice(&length.to_be_bytes());
                connection.unsent.extend_from_slice(&answer);
                connection.flush();
            }
        }
    }

    /// A connection for questions: the flow's host is ourselves.
    pub(super) fn begin_questions(&mut self, key: FlowKey, packet: &Packet<'_>) -> Result<(), Reason> {
        if !self.has_room(key.member) {
            return self.refuse(key.member, packet, Reason::Flows);
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (own, host) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, flags).map_err(|_| Reason::Unable)?;
        let id = self.number();
        self.reactor.watch(&own, Token { kind: Kind::Questions, id }).map_err(|_| Reason::Unable)?;
        let connection =
            Questions { member: key.member, socket: own, unread: Vec::new(), unsent: Vec::new() };
        self.questions.insert(id, connection);
        // The pair is connected: the first readiness of it answers the guest's segment.
        self.add_stream(Stream::outwards(key, host, packet.bytes)).map(drop)
    }

    pub(super) fn on_questions(&mut self, id: u64) {
        let mut buffer = [0; READ];
        loop {
            let Some(connection) = self.questions.get_mut(&id) else { return };
            connection.flush();
            match nix::unistd::read(&connection.socket, &mut buffer) {
                Err(nix::Error::EAGAIN) => return,
                Err(nix::Error::EINTR) => continue,
                Ok(0) | Err(_) => {
                    self.questions.remove(&id);
                    return;
                }
                Ok(length) => connection.unread.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            }
            let member = connection.member;
            while let Some(connection) = self.questions.get_mut(&id)
                && let Some(message) = first_message(&connection.unread).map(<[u8]>::to_vec)
            {
                connection.unread.drain(..message.len() + 2);
                if let Err(reason) = self.on_question(member, Asker::Connection(id), &message) {
                    self.count(member, reason);
                    if reason == Reason::Malformed {
                        self.questions.remove(&id);
                        return;
                    }
                }
            }
        }
    }
}

impl Query {
    /// Whether the container's other networks are being asked.
    fn waits_elsewhere(&self) -> bool {
        self.socket.is_none() && self.held.is_none()
    }
}

impl Questions {
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match nix::unistd::write(&self.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(_) => return,
            }
        }
    }
}

/// The first message of a stream, each of which has its length before it (RFC 1035 section 4.2.2).
fn first_message(stream: &[u8]) -> Option<&[u8]> {
    let (length, rest) = stream.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// A socket that is connected to a resolver, or is being connected.
fn open(resolver: IpAddr, stream: bool) -> io::Result<OwnedFd> {
    let kind = if stream { SockType::Stream } else { SockType::Datagram };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family(resolver), kind, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(resolver, PORT))) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
