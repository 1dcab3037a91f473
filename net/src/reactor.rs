//! Readiness of descriptors, told once each time it changes, and a list of what did not get done in its turn.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Most events taken at a time.
const EVENTS: usize = 256;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The switch's own socket.
    Listener,
    /// News of the host's addresses.
    Addresses,
    /// A supervisor's connection.
    Control,
    /// A container's cable.
    Cable,
    /// The host's side of a TCP flow.
    Stream,
    /// The host's side of a UDP or ICMP flow.
    Datagrams,
    /// A question to a resolver.
    Query,
    /// A published port.
    Published,
    /// Our end of a TCP connection for questions.
    Questions,
    /// A socket of a room's that questions come to.
    Names,
}

const KINDS: [Kind; 10] = [
    Kind::Listener,
    Kind::Addresses,
    Kind::Control,
    Kind::Cable,
    Kind::Stream,
    Kind::Datagrams,
    Kind::Query,
    Kind::Published,
    Kind::Questions,
    Kind::Names,
];

/// A descriptor's name: what it is for, and a number that is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// What it is for.
    pub kind: Kind,
    /// Which one it is.
    pub id: u64,
}

/// Something happened to a descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Which.
    pub token: Token,
    /// There may be something to read, or an error, or the end.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
}

/// The reactor.
#[derive(Debug)]
pub struct Reactor {
    epoll: Epoll,
    again: VecDeque<Token>,
}

impl Reactor {
    /// Makes one.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, again: VecDeque::new() })
    }

    /// Watches a descriptor until it is closed, or forgotten.
    ///
    /// # Errors
    /// It is watched already, or the host is out of memory.
    pub fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let data = token.id << 4 | token.kind as u64;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, data))?)
    }

    /// Watches a descriptor no more. One that others have duplicates of stays watched when it is closed, unless this is called.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Gives a descriptor another turn, after all others have had theirs.
    pub fn again(&mut self, token: Token) {
        if !self.again.contains(&token) {
            self.again.push_back(token);
        }
    }

    /// Waits for something to happen, at most until `until`; what asked for another turn happens again.
    ///
    /// # Errors
    /// The host fails.
    pub fn wait(&mut self, until: Option<Instant>) -> io::Result<Vec<Ready>> {
        let timeout = match until {
            _ if !self.again.is_empty() => EpollTimeout::ZERO,
            None => EpollTimeout::NONE,
            Some(until) => {
                // Rounded up: to wake just before is to wake twice.
                let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                let left = left.min(Duration::from_secs(3600)).as_millis();
                EpollTimeout::try_from(u32::try_from(left).unwrap_or(u32::MAX)).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let fresh = events.iter().take(count).filter_map(|event| {
            let kind = usize::try_from(event.data() & 15).ok().and_then(|kind| KINDS.get(kind))?;
            let token = Token { kind: *kind, id: event.data() >> 4 };
            let wrong = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
            let readable = event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | wrong);
            let writable = event.events().intersects(EpollFlags::EPOLLOUT | wrong);
            Some(Ready { token, readable, writable })
        });
        let mut ready: Vec<Ready> = fresh.collect();
        let again = self.again.drain(..).map(|token| Ready { token, readable: true, writable: false });
        ready.extend(again.collect::<Vec<_>>());
        Ok(ready)
    }
}
