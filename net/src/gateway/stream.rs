//! One TCP flow: a small stack of its own at the guest's side, a socket at the host's, and bytes moved between the two.
//!
//! Each flow has a smoltcp interface and socket to itself, so that finding a segment's flow is a look into one table, and no flow's
//! work grows with the number of others.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::FlowKey;
use crate::cable::Cable;
use crate::frame::rest::{exchange_segment_size, unfinished};
use crate::frame::{MAX_PACKET, Mac, Rest};

/// Bytes kept in each direction.
const BUFFER: usize = 64 << 10;
/// Most segments of the guest's that wait to be looked at.
const MAX_INBOX: usize = 64;
/// And most bytes of them: what the guest may send before it hears from us, and as much again.
const MAX_INBOX_BYTES: usize = 2 * BUFFER;
/// Bytes of data in a segment for a guest that does not say how many it takes (RFC 9293 section 3.7.1).
const DEFAULT_SEGMENT: u16 = 536;
/// Most bytes moved in one turn.
const BUDGET: usize = 256 << 10;
/// A guest that acknowledges nothing for so long is gone.
const PATIENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(120);
/// How often a guest that says nothing is asked whether it is there.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// The least time between two looks at a flow's clock.
const TICK: Duration = Duration::from_millis(1);

/// The two ends of a container's cable.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The container's hardware address.
    pub guest: Mac,
    /// The gateway's.
    pub gateway: Mac,
    /// Most bytes of an IP packet.
    pub mtu: u16,
}

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing more to do until something happens.
    Rests,
    /// There is more to do.
    Again,
    /// It is over.
    Over,
}

/// A flow.
pub struct Stream {
    /// Which it is.
    pub key: FlowKey,
    /// When it wants a turn though nothing happens.
    pub deadline: Option<Instant>,
    /// The guest's first segment, while the host's connection is being made.
    pub opening: Option<Vec<u8>>,
    host: OwnedFd,
    stack: Option<Stack>,
    inbox: VecDeque<Vec<u8>>,
    /// Most bytes of data in a segment for the guest. The stack makes larger ones, for the guest to cut up.
    segment: u16,
    readable: bool,
    writable: bool,
    /// The host's side has said all.
    host_ended: bool,
    /// The guest has said all.
    guest_ended: bool,
}

struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    began: Instant,
}

impl Stream {
    /// A flow that the guest begins with this segment; `host` is being connected.
    #[must_use]
    pub fn outwards(key: FlowKey, host: OwnedFd, segment: &[u8]) -> Self {
        let mut stream = Self::new(key, host);
        stream.opening = Some(segment.to_vec());
        stream
    }

    /// A flow from a published port, whose connection was accepted.
    ///
    /// # Errors
    /// The ends are none that a connection can have.
    pub fn inwards(key: FlowKey, host: OwnedFd, ends: &Ends, seed: u64) -> io::Result<Self> {
        let mut stream = Self::new(key, host);
        let mut stack = Stack::new(key.remote.ip(), ends, seed);
        let Stack { interface, sockets, handle, .. } = &mut stack;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        socket
            .connect(interface.context(), endpoint(key.guest), endpoint(key.remote))
            .map_err(|error| io::Error::other(error.to_string()))?;
        stream.stack = Some(stack);
        Ok(stream)
    }

    fn new(key: FlowKey, host: OwnedFd) -> Self {
        Self {
            key,
            deadline: None,
            opening: None,
            host,
            stack: None,
            inbox: VecDeque::new(),
            segment: DEFAULT_SEGMENT,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
        }
    }

    /// The host's end.
    #[must_use]
    pub fn host(&self) -> &OwnedFd {
        &self.host
    }

    /// The host's connection stands: the guest's first segment is answered.
    ///
    /// # Errors
    /// The ends are none that a connection can have.
    pub fn connected(&mut self, ends: &Ends, seed: u64) -> io::Result<()> {
        let Some(mut segment) = self.opening.take() else { return Ok(()) };
        self.learn_segment_size(&mut segment);
        let mut stack = Stack::new(self.key.remote.ip(), ends, seed);
        let socket = stack.sockets.get_mut::<Socket<'_>>(stack.handle);
        socket.listen(endpoint(self.key.remote)).map_err(|error| io::Error::other(error.to_string()))?;
        self.stack = Some(stack);
        self.inbox.push_back(segment);
        Ok(())
    }

    /// Something happened at the host's end.
    pub fn on_host(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// A segment of the guest's; false if there are too many.
    pub fn on_segment(&mut self, packet: &[u8]) -> bool {
        let bytes: usize = self.inbox.iter().map(Vec::len).sum();
        let room = self.inbox.len() < MAX_INBOX && bytes + packet.len() <= MAX_INBOX_BYTES;
        let room = room && self.opening.is_none();
        if room {
            let mut packet = packet.to_vec();
            self.learn_segment_size(&mut packet);
            self.inbox.push_back(packet);
        }
        room
    }

    fn learn_segment_size(&mut self, packet: &mut [u8]) {
        if let Some(told) = exchange_segment_size(packet) {
            self.segment = told;
        }
    }

    /// Moves what can be moved.
    pub fn turn(&mut self, cable: &mut Cable, ends: &Ends, now: Instant) -> Turn {
        let mut moved = 0;
        let state = loop {
            let Some(stack) = &mut self.stack else { return Turn::Rests };
            let mut wire = Wire { inbox: &mut self.inbox, cable, ends, segment: self.segment };
            let time = stack.time(now);
            stack.interface.poll(time, &mut wire, &mut stack.sockets);
            let before = moved;
            moved += self.feed_host();
            moved += self.feed_guest();
            let Some(stack) = &mut self.stack else { return Turn::Rests };
            let state = stack.sockets.get_mut::<Socket<'_>>(stack.handle).state();
            if moved == before || state == State::Closed {
                break state;
            }
            if moved >= BUDGET {
                return Turn::Again;
            }
        };
        if matches!(state, State::Closed | State::TimeWait) {
            if let (State::Closed, Some(stack)) = (state, &mut self.stack) {
                // What a reset still has to say.
                let mut wire = Wire { inbox: &mut self.inbox, cable, ends, segment: self.segment };
                let time = stack.time(now);
                stack.interface.poll(time, &mut wire, &mut stack.sockets);
            }
            return Turn::Over;
        }
        self.deadline = self.stack.as_mut().filter(|_| !cable.is_full()).and_then(|stack| {
            let time = stack.time(now);
            let at = stack.interface.poll_at(time, &stack.sockets)?;
            Some(
                (stack.began + Duration::from_micros(u64::try_from(at.total_micros()).ok()?)).max(now + TICK),
            )
        });
        Turn::Rests
    }

    fn feed_host(&mut self) -> usize {
        let Some(stack) = &mut self.stack else { return 0 };
        let socket = stack.sockets.get_mut::<Socket<'_>>(stack.handle);
        let mut moved = 0;
        while self.writable && socket.can_recv() {
            let host = &self.host;
            let result = socket.recv(|bytes| match nix::unistd::write(host, bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(count)) => moved += count,
                Ok(Err(nix::Error::EAGAIN)) => self.writable = false,
                Ok(Err(nix::Error::EINTR)) => {}
                Ok(Err(_)) => {
                    socket.abort();
                    return moved + 1;
                }
                Err(_) => break,
            }
        }
        let begun =
            !matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived | State::Closed);
        if begun && !self.guest_ended && !socket.may_recv() {
            self.guest_ended = true;
            let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.host), Shutdown::Write);
            moved += 1;
        }
        moved
    }

    fn feed_guest(&mut self) -> usize {
        let Some(stack) = &mut self.stack else { return 0 };
        let socket = stack.sockets.get_mut::<Socket<'_>>(stack.handle);
        let mut moved = 0;
        while self.readable && !self.host_ended && socket.can_send() {
            let host = &self.host;
            let result = socket.send(|room| match nix::unistd::read(host, room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(0)) => {
                    self.host_ended = true;
                    socket.close();
                    moved += 1;
                }
                Ok(Ok(count)) => moved += count,
                Ok(Err(nix::Error::EAGAIN)) => self.readable = false,
                Ok(Err(nix::Error::EINTR)) => {}
                Ok(Err(_)) => {
                    self.host_ended = true;
                    socket.abort();
                    return moved + 1;
                }
                Err(_) => break,
            }
        }
        moved
    }
}

impl Drop for Stream {
    /// What was cut off at the guest's end is cut off at the host's.
    fn drop(&mut self) {
        if !(self.host_ended && self.guest_ended) {
            let _ = setsockopt(&self.host, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

impl Stack {
    /// A stack whose own address is the flow's other end.
    fn new(own: IpAddr, ends: &Ends, seed: u64) -> Self {
        let began = Instant::now();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire =
            Wire { inbox: &mut VecDeque::new(), cable: &mut Nowhere, ends, segment: DEFAULT_SEGMENT };
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        let address = IpAddress::from(own);
        interface.update_ip_addrs(|addresses| {
            // The prefix makes everybody a neighbor: there is only one.
            let _ = addresses.push(IpCidr::new(address, 0));
        });
        let mut socket = Socket::new(SocketBuffer::new(vec![0; BUFFER]), SocketBuffer::new(vec![0; BUFFER]));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(PATIENCE));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, began }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let passed = now.saturating_duration_since(self.began).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

fn endpoint(address: SocketAddr) -> (IpAddress, u16) {
    (address.ip().into(), address.port())
}

/// Where frames go.
trait Sink {
    fn full(&self) -> bool;
    fn put(&mut self, rest: Rest, frame: Vec<u8>);
}

impl Sink for Cable {
    fn full(&self) -> bool {
        self.is_full()
    }

    fn put(&mut self, rest: Rest, frame: Vec<u8>) {
        Cable::put(self, rest, frame);
    }
}

/// For a stack that is only being made.
struct Nowhere;

impl Sink for Nowhere {
    fn full(&self) -> bool {
        true
    }

    fn put(&mut self, _rest: Rest, _frame: Vec<u8>) {}
}

/// The cable as smoltcp sees it.
struct Wire<'a> {
    inbox: &'a mut VecDeque<Vec<u8>>,
    cable: &'a mut dyn Sink,
    ends: &'a Ends,
    segment: u16,
}

struct Incoming(Vec<u8>);

struct Outgoing<'a> {
    cable: &'a mut dyn Sink,
    ends: &'a Ends,
    segment: u16,
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Incoming
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        // An answer needs room, too.
        if self.cable.full() {
            return None;
        }
        let packet = self.inbox.pop_front()?;
        Some((Incoming(packet), Outgoing { cable: self.cable, ends: self.ends, segment: self.segment }))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        let segment = self.segment;
        (!self.cable.full()).then_some(Outgoing { cable: self.cable, ends: self.ends, segment })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Between us and the guest packets may be as large as they get: whoever sends them on the wire, if anybody, cuts them up and
        // makes their checksums, and nothing on the way damages them.
        capabilities.max_transmission_unit = MAX_PACKET;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        let Ends { guest, gateway, mtu } = *self.ends;
        let (rest, frame) = unfinished(guest, gateway, &packet, mtu, self.segment);
        self.cable.put(rest, frame);
        result
    }
}
