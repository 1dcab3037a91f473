//! All streams of the device: which packet belongs to which, which stream has something for the guest, and the host's
//! events.
//!
//! The host's descriptors are watched edge-triggered: an event sets a flag, and the flag stays until a call said
//! `EAGAIN`. So a socket that has data while the guest has no credit or no buffers costs no wake-ups.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Broken, Connection, Key, State};
use super::handshake::{Line, read_line};
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};

/// Most streams at a time, those that are being set up or drained included.
pub const MAX_CONNECTIONS: usize = 1024;
/// Buffer of a stream, in bytes, while there are at most [`WIDE_CONNECTIONS`].
pub const WIDE_BUFFER: u32 = 256 << 10;
/// Buffer of a further stream, in bytes: so all buffers together stay below 46 MiB.
pub const NARROW_BUFFER: u32 = 32 << 10;
/// See [`WIDE_BUFFER`].
pub const WIDE_CONNECTIONS: usize = 64;
/// Most unsent resets for packets that belong to no stream; at that number, the guest's packets wait.
pub const MAX_RESETS: usize = 64;
/// Time for a client of the host to name its port and for the guest to answer.
pub const SETUP_TIME: Duration = Duration::from_secs(10);
/// Most events of the host taken at a time.
const MAX_EVENTS: usize = 64;
/// Most clients accepted at a time.
const MAX_ACCEPTS: usize = 64;
/// First port of the host that names a client's stream; above what programs listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const WAKE: u64 = 2;
const FIRST_ID: u64 = 3;

/// The streams of one device.
pub struct Muxer {
    guest_cid: u64,
    epoll: Epoll,
    timer: TimerFd,
    wake: EventFd,
    listener: Option<UnixListener>,
    /// The listener may have clients waiting.
    accepting: bool,
    ports: HashMap<u32, UnixStream>,
    connections: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    /// Streams that may have a packet for the guest, in turn.
    queue: VecDeque<u64>,
    /// For packets and streams that are no more. Bounded by [`MAX_RESETS`] and the number of streams.
    resets: VecDeque<Header>,
    /// When streams that are being set up are given up, in order.
    deadlines: VecDeque<(Instant, u64)>,
    next_id: u64,
    next_host_port: u32,
}

impl Muxer {
    /// The host's side of a device: what the guest may connect to, and where clients connect.
    ///
    /// # Errors
    /// A descriptor is no socket, or the process is out of descriptors.
    pub fn new(
        guest_cid: u32,
        listener: Option<UnixListener>,
        ports: HashMap<u32, UnixStream>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            epoll.add(listener, EpollEvent::new(edge, LISTENER))?;
        }
        epoll.add(borrow(&timer), EpollEvent::new(edge, TIMER))?;
        epoll.add(borrow(&wake), EpollEvent::new(edge, WAKE))?;
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            epoll,
            timer,
            wake,
            listener,
            accepting: false,
            ports,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: VecDeque::new(),
            next_id: FIRST_ID,
            next_host_port: FIRST_HOST_PORT,
        })
    }

    /// The port that names the next client's stream. A restored machine goes on from there: the guest may still hold the streams of before, dead as
    /// they are, and would take a new one of the same ports for one of them.
    #[must_use]
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Goes on from a port; false if it is none that names clients' streams.
    #[must_use]
    pub fn continue_from(&mut self, port: u32) -> bool {
        let known = (FIRST_HOST_PORT..u32::MAX).contains(&port);
        if known {
            self.next_host_port = port;
        }
        known
    }

    /// The descriptor that is readable while the host has events.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Makes [`Self::as_raw_fd`] readable: the device has work left over.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable already.
        let _ = self.wake.write(1);
    }

    /// Whether the guest's packets must wait until it has taken some of ours.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether there may be a packet for the guest.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.queue.is_empty()
    }

    /// The next packet for the guest: its header, and its data at the start of `data`, which bounds it.
    pub fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.queue.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            match connection.next_packet(data) {
                Ok(Some(header)) => {
                    self.settle(id);
                    return Some(header);
                }
                Ok(None) => {}
                Err(Broken) => {
                    self.abort(id);
                    return self.resets.pop_back();
                }
            }
        }
        None
    }

    /// Handles a packet of the guest. `payload` copies the next bytes of its data, which is `header.len` bytes long.
    ///
    /// # Errors
    /// Those of `payload`.
    pub fn receive<E>(
        &mut self,
        header: &Header,
        payload: impl FnMut(&mut dyn FnMut(&[u8])) -> Result<(), E>,
    ) -> Result<(), E> {
        if header.src_cid != self.guest_cid {
            // Not from our guest: nobody to answer.
            return Ok(());
        }
        if header.kind != TYPE_STREAM || header.dst_cid != HOST_CID {
            self.refuse(header);
            return Ok(());
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        match self.by_key.get(&key) {
            Some(id) => self.receive_on(*id, header, payload),
            None => {
                if header.op == op::REQUEST {
                    self.open_from_guest(key, header);
                } else {
                    self.refuse(header);
                }
                Ok(())
            }
        }
    }

    fn receive_on<E>(
        &mut self,
        id: u64,
        header: &Header,
        mut payload: impl FnMut(&mut dyn FnMut(&[u8])) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        connection.on_header(header);
        let outcome = match (header.op, connection.state) {
            (op::RST, _) => {
                self.end(id);
                return Ok(());
            }
            (op::RESPONSE, State::Asking) => {
                connection.state = State::Open;
                connection.greet()
            }
            (op::RW, State::Open) => match connection.expect_data(header.len) {
                Ok(()) => {
                    payload(&mut |data| connection.on_data(data))?;
                    Ok(())
                }
                broken => broken,
            },
            (op::SHUTDOWN, State::Open) => {
                if connection.on_shutdown(header.flags) {
                    // The reset confirms the end (section 5.10.6.5); the backlog does not hold it up.
                    let reset = connection.reset();
                    self.resets.push_back(reset);
                    self.end(id);
                    return Ok(());
                }
                Ok(())
            }
            (op::CREDIT_UPDATE, State::Open) => Ok(()),
            (op::CREDIT_REQUEST, State::Open) => {
                connection.on_credit_request();
                Ok(())
            }
            _ => Err(Broken),
        };
        match outcome {
            Ok(()) => self.settle(id),
            Err(Broken) => self.abort(id),
        }
        Ok(())
    }

    /// Answers a packet that belongs to no stream (section 5.10.6.4.1), unless it is itself a reset.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.resets.push_back(header.reset());
        }
    }

    fn open_from_guest(&mut self, key: Key, header: &Header) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.refuse(header);
            return;
        }
        let Some(socket) = self.ports.remove(&key.host_port) else {
            self.refuse(header);
            return;
        };
        let mut connection = Connection::new(socket, State::Open, key, self.guest_cid, self.buffer_size());
        connection.on_header(header);
        connection.open_with(op::RESPONSE);
        match self.insert(connection) {
            Some(id) => {
                self.by_key.insert(key, id);
                self.settle(id);
            }
            None => self.refuse(header),
        }
    }

    /// Takes the host's events: clients, data, ends, room to write, time-outs.
    ///
    /// # Errors
    /// The event descriptor failed.
    pub fn on_host_events(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accepting = true,
                TIMER => self.expire()?,
                WAKE => drop(self.wake.read()),
                id => self.on_socket_event(id, event.events()),
            }
        }
        if count == MAX_EVENTS {
            self.wake();
        }
        self.accept();
        Ok(())
    }

    fn on_socket_event(&mut self, id: u64, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let ended = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | ended;
        connection.on_host_event(events.intersects(readable), events.intersects(ended));
        match connection.state {
            State::Greeting => self.continue_greeting(id),
            State::Asking if events.intersects(ended) => self.abort(id),
            State::Asking => {}
            State::Open | State::Draining => {
                if events.intersects(EpollFlags::EPOLLOUT | ended) {
                    connection.flush();
                }
                self.settle(id);
            }
        }
    }

    fn accept(&mut self) {
        let mut accepted = 0;
        while self.accepting {
            if self.connections.len() >= MAX_CONNECTIONS {
                // The rest waits in the listener's backlog until a stream ends.
                return;
            }
            if accepted == MAX_ACCEPTS {
                self.wake();
                return;
            }
            accepted += 1;
            let Some(listener) = &self.listener else { return };
            let socket = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                Ok(fd) => UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
                Err(error) => {
                    // Short of descriptors or memory: try again after the next event of any kind.
                    self.accepting = error != nix::Error::EAGAIN;
                    return;
                }
            };
            let key = Key { host_port: 0, guest_port: 0 };
            let size = self.buffer_size();
            let connection = Connection::new(socket, State::Greeting, key, self.guest_cid, size);
            if let Some(id) = self.insert(connection) {
                self.set_deadline(id);
                self.continue_greeting(id);
            }
        }
    }

    fn continue_greeting(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match read_line(&connection.socket()) {
            Line::Incomplete => {}
            Line::Bad => self.forget(id),
            Line::Connect(guest_port) => {
                let key = free_key(&mut self.next_host_port, guest_port, &self.by_key, &self.ports);
                connection.key = key;
                connection.state = State::Asking;
                connection.open_with(op::REQUEST);
                self.by_key.insert(key, id);
                self.settle(id);
            }
        }
    }

    fn set_deadline(&mut self, id: u64) {
        let first = self.deadlines.is_empty();
        self.deadlines.push_back((Instant::now() + SETUP_TIME, id));
        if first {
            self.arm(SETUP_TIME);
        }
    }

    fn arm(&mut self, after: Duration) {
        // Fails only for times that are out of range; and a timer that never fires costs a stream, not the machine.
        let _ = self.timer.reset(after.max(Duration::from_millis(1)), None);
    }

    fn expire(&mut self) -> io::Result<()> {
        // It fired, so that this cannot block.
        self.timer.wait().map_err(io::Error::from)?;
        let now = Instant::now();
        while let Some((deadline, id)) = self.deadlines.front().copied() {
            let state = self.connections.get(&id).map(|connection| connection.state);
            let pending = matches!(state, Some(State::Greeting | State::Asking));
            if pending && deadline > now {
                self.arm(deadline - now);
                break;
            }
            self.deadlines.pop_front();
            match state {
                Some(State::Greeting) => self.forget(id),
                Some(State::Asking) => self.abort(id),
                _ => {}
            }
        }
        Ok(())
    }

    fn buffer_size(&self) -> u32 {
        if self.connections.len() < WIDE_CONNECTIONS { WIDE_BUFFER } else { NARROW_BUFFER }
    }

    /// Adds a stream and watches its socket; `None` if that cannot be watched.
    fn insert(&mut self, connection: Connection) -> Option<u64> {
        let id = self.next_id;
        self.epoll.add(connection.socket(), EpollEvent::new(interest(false), id)).ok()?;
        self.next_id += 1;
        self.connections.insert(id, connection);
        Some(id)
    }

    /// After any change of a stream: queues it if the guest ought to get a packet, watches for room if the host's
    /// socket is full, removes it if it has drained.
    fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.state == State::Draining && !connection.has_backlog() {
            self.forget(id);
            return;
        }
        if !connection.queued && connection.has_packet() {
            connection.queued = true;
            self.queue.push_back(id);
        }
        let backlog = connection.has_backlog();
        if connection.watching_write != backlog {
            connection.watching_write = backlog;
            let mut event = EpollEvent::new(interest(backlog), id);
            if self.epoll.modify(connection.socket(), &mut event).is_err() {
                self.abort(id);
            }
        }
    }

    /// The guest ended a stream: it may use the ports again at once, while what it sent is still on its way.
    fn end(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let key = connection.key;
        connection.drain();
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
        self.settle(id);
    }

    /// A stream cannot go on: the guest gets a reset, and the host what the guest had sent.
    fn abort(&mut self, id: u64) {
        if let Some(connection) = self.connections.get(&id) {
            let reset = connection.reset();
            if connection.state != State::Draining {
                self.resets.push_back(reset);
            }
            self.end(id);
        }
    }

    /// Closes a stream's socket.
    fn forget(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            if self.by_key.get(&connection.key) == Some(&id) {
                self.by_key.remove(&connection.key);
            }
            if self.accepting {
                self.wake();
            }
        }
    }

    /// Forgets everything that the driver knows of. What the guest had sent still goes to the host.
    pub fn reset(&mut self) {
        self.resets.clear();
        self.queue.clear();
        let all: Vec<u64> = self.connections.keys().copied().collect();
        for id in all {
            self.end(id);
        }
    }

    /// Waits for at most `time` until the host has taken what the guest sent. For the end of the machine.
    pub fn finish(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let mut waiting: Vec<&mut Connection> =
                self.connections.values_mut().filter(|connection| connection.has_backlog()).collect();
            waiting.iter_mut().for_each(|connection| connection.flush());
            waiting.retain(|connection| connection.has_backlog());
            let left = deadline.saturating_duration_since(Instant::now());
            if waiting.is_empty() || left.is_zero() {
                return;
            }
            let mut polled: Vec<_> = waiting
                .iter()
                .map(|connection| PollFd::new(connection.socket(), PollFlags::POLLOUT))
                .collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut polled, timeout).is_err_and(|error| error != nix::Error::EINTR) {
                return;
            }
        }
    }
}

/// What is watched of a stream's socket.
fn interest(writing: bool) -> EpollFlags {
    let reading = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if writing { reading | EpollFlags::EPOLLOUT } else { reading }
}

/// A port of the host that is free for a stream to the guest's port: there are more ports than streams.
fn free_key(
    next: &mut u32,
    guest_port: u32,
    taken: &HashMap<Key, u64>,
    ports: &HashMap<u32, UnixStream>,
) -> Key {
    loop {
        let key = Key { host_port: *next, guest_port };
        *next = if *next == u32::MAX - 1 { FIRST_HOST_PORT } else { *next + 1 };
        if !taken.contains_key(&key) && !ports.contains_key(&key.host_port) {
            return key;
        }
    }
}

fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps the descriptor open for as long as it is borrowed here.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
