//! The switch: members and their cables, the gateway's flows, and the loop that gives each its turn.
//!
//! Nothing is learned from what guests send. Who has which address is what attachments say; a frame that says otherwise is dropped and
//! counted. Whatever a guest does, its turn is bounded, and what is kept for it is, too.

mod control;
mod datagrams;
mod desk;
mod forward;
mod leave;
mod log;
mod member;
mod published;
mod questions;
mod streams;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use self::control::Connection;
use self::desk::Desk;
use self::log::Log;
use self::member::Member;
use self::published::PublishedPort;
use self::questions::{Query, Questions};
use crate::egress::{Policy, Protocol, Surroundings};
use crate::frame::Mac;
use crate::gateway::FlowKey;
use crate::gateway::datagrams::Datagrams;
use crate::gateway::stream::{Ends, Stream};
use crate::host::HostAddresses;
use crate::protocol::Network;
use crate::reactor::{Kind, Reactor, Ready, Token};

/// The gateway's hardware address: locally administered, and no container is given it.
pub const GATEWAY_MAC: Mac = [0x02, 0x42, 0, 0, 0, 0x01];
/// How long a switch stays that nobody uses.
const LINGER: Duration = Duration::from_millis(300);
/// How often flows are looked through for those whose time is over.
const SWEEP: Duration = Duration::from_secs(1);
/// Most TCP flows, and most flows of datagrams, of one container.
const MAX_FLOWS: usize = 1024;
/// Descriptors that are kept free of flows.
const RESERVE: usize = 256;
/// Bytes of the buffer that frames and datagrams are read into: the largest packet, and the headers before it.
const BUFFER: usize = (1 << 16) + 64;

/// A switch.
pub struct Switch {
    reactor: Reactor,
    listener: OwnedFd,
    host: HostAddresses,
    network: Option<Net>,
    connections: HashMap<u64, Connection>,
    /// By the number of their supervisor's connection.
    members: HashMap<u64, Member>,
    by_mac: HashMap<Mac, u64>,
    by_address: HashMap<IpAddr, u64>,
    keys: HashMap<FlowKey, u64>,
    streams: HashMap<u64, Stream>,
    deadlines: BTreeSet<(Instant, u64)>,
    datagrams: HashMap<u64, Datagrams>,
    published: HashMap<u64, PublishedPort>,
    questions: HashMap<u64, Questions>,
    queries: HashMap<u64, Query>,
    desk: Option<Desk>,
    log: Log,
    next: u64,
    next_port: u16,
    seed: u64,
    swept: Instant,
    idle: Option<Instant>,
    descriptors: usize,
    buffer: Box<[u8]>,
}

/// The network, with what its words mean.
struct Net {
    said: Network,
    policy: Policy,
    around: Surroundings,
}

impl Switch {
    /// A switch that answers on this socket.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(listener: OwnedFd, host: HostAddresses) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        reactor.watch(&listener, Token { kind: Kind::Listener, id: 0 })?;
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let mut seed = [0; 8];
        // A seed of zeroes would do: sequence numbers are guarded by the table of who has which address.
        // SAFETY: the buffer is ours, and its length is told.
        unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
        Ok(Self {
            reactor,
            listener,
            host,
            network: None,
            connections: HashMap::new(),
            members: HashMap::new(),
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            keys: HashMap::new(),
            streams: HashMap::new(),
            deadlines: BTreeSet::new(),
            datagrams: HashMap::new(),
            published: HashMap::new(),
            questions: HashMap::new(),
            queries: HashMap::new(),
            desk: None,
            log: Log::new(),
            next: 1,
            next_port: 0,
            seed: u64::from_ne_bytes(seed),
            swept: Instant::now(),
            idle: Some(Instant::now()),
            descriptors: usize::try_from(descriptors).unwrap_or(usize::MAX),
            buffer: vec![0; BUFFER].into_boxed_slice(),
        })
    }

    /// Serves until nobody has used the switch for a moment.
    ///
    /// # Errors
    /// The host fails.
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            let until = self.next_deadline();
            for ready in self.reactor.wait(until)? {
                self.handle(ready);
            }
            let now = Instant::now();
            self.on_time(now);
            match self.idle {
                _ if !self.connections.is_empty() => self.idle = None,
                None => self.idle = Some(now),
                Some(since) if now.duration_since(since) >= LINGER => return Ok(()),
                Some(_) => {}
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let leave = self.idle.map(|since| since + LINGER);
        let stream = self.deadlines.first().map(|(at, _)| *at);
        let busy = !self.datagrams.is_empty() || !self.queries.is_empty();
        let sweep = busy.then_some(self.swept + SWEEP);
        [leave, stream, sweep].into_iter().flatten().min()
    }

    fn handle(&mut self, ready: Ready) {
        let Ready { token: Token { kind, id }, readable, writable } = ready;
        match kind {
            Kind::Listener => self.accept_connections(),
            // The addresses are asked for when they are needed.
            Kind::Addresses => {}
            Kind::Control => self.on_control(id),
            Kind::Cable => self.on_cable(id, readable, writable),
            Kind::Stream => self.on_stream(id, readable, writable),
            Kind::Datagrams => self.on_datagrams(id),
            Kind::Query => self.on_query(id),
            Kind::Published => self.on_published(id),
            Kind::Questions => self.on_questions(id),
            Kind::Names => self.on_names(id),
        }
    }

    fn on_time(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            self.turn(id, now);
        }
        if now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            let over = self.datagrams.iter().filter(|(_, flow)| flow.until() <= now);
            let over: Vec<u64> = over.map(|(id, _)| *id).collect();
            over.into_iter().for_each(|id| self.end_datagrams(id));
            self.sweep_queries(now);
        }
    }

    /// A number that was never used.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What a stack of one flow begins its numbers with.
    fn next_seed(&mut self) -> u64 {
        // A step of SplitMix64: smoltcp wants another one each time, not a secret.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    }

    /// How many flows of a kind each container may have: the host's descriptors are shared among all.
    fn flow_bound(&self) -> usize {
        let share = self.descriptors.saturating_sub(RESERVE) / (2 * self.members.len().max(1));
        MAX_FLOWS.min(share).max(16)
    }

    fn ends(&self, member: &Member) -> Ends {
        let mtu = self.network.as_ref().map_or(1500, |net| net.said.mtu);
        Ends { guest: member.place.mac, gateway: GATEWAY_MAC, mtu }
    }

    /// The gateway's address of a family.
    fn gateway(&self, six: bool) -> Option<IpAddr> {
        let said = &self.network.as_ref()?.said;
        if six { said.ipv6.map(|(_, gateway)| gateway.into()) } else { Some(said.ipv4.1.into()) }
    }

    /// A flow's key is used no more.
    fn forget(&mut self, key: &FlowKey, id: u64) {
        if self.keys.get(key) == Some(&id) {
            self.keys.remove(key);
        }
        if let Some(member) = self.members.get_mut(&key.member) {
            let count =
                if key.protocol == Protocol::Tcp { &mut member.streams } else { &mut member.datagrams };
            *count = count.saturating_sub(1);
        }
    }
}
