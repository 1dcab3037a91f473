//! One stream between a port of the guest and a socket of the host.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv, send};

use super::credit::Credit;
use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// Capacity of an empty buffer that is worth keeping for the next time, in bytes.
const KEPT_CAPACITY: usize = 16 << 10;
/// Most bytes thrown away for one side that no longer reads them, before its socket is closed.
const MAX_DISCARD: usize = 1 << 20;

/// The two ports that name a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port on the host.
    pub host_port: u32,
    /// Port in the guest.
    pub guest_port: u32,
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A client of the host connected, and has not yet named a port.
    Greeting,
    /// The guest was asked, and has not answered.
    Asking,
    /// Bytes flow.
    Open,
    /// The guest is done with it; what it sent is still on its way to the host's socket.
    Draining,
}

/// The stream can go no further: reset it.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// A stream.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// How far it has come.
    pub state: State,
    /// Its name; meaningless in [`State::Greeting`].
    pub key: Key,
    credit: Credit,
    guest_cid: u64,
    /// From the guest, not taken by the host's socket yet. Never longer than the credit that the guest was given.
    buffer: VecDeque<u8>,
    /// The host's socket may hold something to read (it did not say `EAGAIN` since it last became readable).
    readable: bool,
    /// Both directions of the host's socket have ended.
    hung_up: bool,
    /// The host sends no more.
    host_done: bool,
    /// The host takes no more; what the guest sends is thrown away.
    host_deaf: bool,
    /// SHUTDOWN flags from the guest.
    guest_shutdown: u32,
    /// What the guest sent reached the host's socket to the end, and the socket was told so.
    end_passed_on: bool,
    /// An operation that opens the stream, to be sent to the guest first.
    opening: Option<u16>,
    /// SHUTDOWN flags that the guest was told, and ought to be told.
    told_shutdown: u32,
    due_shutdown: u32,
    /// The guest asked for our credit.
    credit_asked: bool,
    /// We asked the guest for credit, and have heard nothing since.
    asked_credit: bool,
    /// It is in the queue of streams that have something for the guest.
    pub queued: bool,
    /// The epoll interest includes writing.
    pub watching_write: bool,
}

impl Connection {
    /// A stream over a host's socket that is connected. `buf_alloc` bounds its buffer, in bytes.
    #[must_use]
    pub fn new(socket: UnixStream, state: State, key: Key, guest_cid: u64, buf_alloc: u32) -> Self {
        Self {
            socket,
            state,
            key,
            credit: Credit::new(buf_alloc),
            guest_cid,
            buffer: VecDeque::new(),
            readable: false,
            hung_up: false,
            host_done: false,
            host_deaf: false,
            guest_shutdown: 0,
            end_passed_on: false,
            opening: None,
            told_shutdown: 0,
            due_shutdown: 0,
            credit_asked: false,
            asked_credit: false,
            queued: false,
            watching_write: false,
        }
    }

    /// The host's socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether bytes wait for the host's socket.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Has the guest asked (`op::REQUEST`) or told (`op::RESPONSE`) that the stream opens.
    pub fn open_with(&mut self, opening: u16) {
        self.opening = Some(opening);
    }

    /// The host's socket became readable, or both its directions ended.
    pub fn on_host_event(&mut self, readable: bool, hung_up: bool) {
        self.readable |= readable;
        self.hung_up |= hung_up;
        if self.hung_up && self.host_done {
            // Its end was seen before: now it is known that it takes nothing either.
            self.due_shutdown = SHUTDOWN_BOTH;
        }
    }

    /// The guest accepted: tells the client of the host.
    ///
    /// # Errors
    /// The client is gone.
    pub fn greet(&mut self) -> Result<(), Broken> {
        let line = format!("OK {}\n", self.key.host_port);
        let sent =
            send(self.socket.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        // So short a line fits into an empty socket buffer, or the client made it too small for anything.
        if sent == Ok(line.len()) { Ok(()) } else { Err(Broken) }
    }

    /// Takes over the credit that every header carries.
    pub fn on_header(&mut self, header: &Header) {
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        self.asked_credit = false;
    }

    /// Announces `length` bytes from the guest, which follow in calls of [`Self::on_data`].
    ///
    /// # Errors
    /// They exceed the guest's credit, or the guest had said that it would send no more.
    pub fn expect_data(&mut self, length: u32) -> Result<(), Broken> {
        let allowed = self.guest_shutdown & SHUTDOWN_SEND == 0 && self.credit.on_received(length);
        if allowed { Ok(()) } else { Err(Broken) }
    }

    /// Passes on bytes from the guest, or keeps what the host's socket does not take now.
    pub fn on_data(&mut self, mut data: &[u8]) {
        while self.buffer.is_empty() && !self.host_deaf && !data.is_empty() {
            match write_host(&self.socket, data) {
                Some(0) => break,
                Some(written) => {
                    self.credit.on_forwarded(written);
                    data = &data[written..];
                }
                None => self.go_deaf(),
            }
        }
        if self.host_deaf {
            self.credit.on_forwarded(data.len());
        } else {
            self.buffer.extend(data);
        }
    }

    /// Passes on what was kept; afterwards the end, if the guest has announced one.
    pub fn flush(&mut self) {
        while !self.buffer.is_empty() && !self.host_deaf {
            let (front, _) = self.buffer.as_slices();
            match write_host(&self.socket, front) {
                Some(0) => return,
                Some(written) => {
                    self.credit.on_forwarded(written);
                    self.buffer.drain(..written);
                }
                None => self.go_deaf(),
            }
        }
        if self.buffer.capacity() > KEPT_CAPACITY && self.buffer.is_empty() {
            self.buffer = VecDeque::new();
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.end_passed_on {
            self.end_passed_on = true;
            // Fails only if the host's end is gone.
            let _ = self.socket.shutdown(Shutdown::Write);
            if self.host_done {
                self.due_shutdown = SHUTDOWN_BOTH;
            }
        }
    }

    /// The host takes no more: tells the guest, and throws away what was kept.
    fn go_deaf(&mut self) {
        self.host_deaf = true;
        self.due_shutdown |= SHUTDOWN_RECEIVE;
        self.credit.on_forwarded(self.buffer.len());
        self.buffer = VecDeque::new();
    }

    /// The guest ended one or both directions. True if both have ended: the stream is over.
    pub fn on_shutdown(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // The host's writers learn it as a broken pipe.
            let _ = self.socket.shutdown(Shutdown::Read);
            self.discard();
        }
        self.flush();
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// The stream is over in an orderly way: the end is due to the host once the backlog is gone.
    pub fn drain(&mut self) {
        self.state = State::Draining;
        self.guest_shutdown = SHUTDOWN_BOTH;
        self.flush();
    }

    /// The guest asked for a credit update.
    pub fn on_credit_request(&mut self) {
        self.credit_asked = true;
    }

    /// Throws away what the host has sent: closed with unread bytes, the host would read an error in place of the
    /// end of what the guest had sent.
    fn discard(&mut self) {
        let mut waste = [0u8; 4096];
        for _ in 0..MAX_DISCARD / waste.len() {
            match recv(self.socket.as_raw_fd(), &mut waste, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if length > 0 => {}
                _ => return,
            }
        }
    }

    fn may_read(&self) -> bool {
        self.state == State::Open
            && self.readable
            && !self.host_done
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether the guest ought to get a packet. It may turn out that there is none after all.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        if self.opening.is_some() {
            return true;
        }
        let data = self.may_read() && (self.credit.may_send() > 0 || !self.asked_credit);
        let shutdown = self.due_shutdown & !self.told_shutdown != 0;
        self.state == State::Open && (data || shutdown || self.credit_asked || self.credit.worth_telling())
    }

    /// The next packet for the guest: its header, and its data at the start of `data`, which bounds it.
    ///
    /// # Errors
    /// The host's socket failed; all that it had was read before.
    pub fn next_packet(&mut self, data: &mut [u8]) -> Result<Option<Header>, Broken> {
        if let Some(opening) = self.opening.take() {
            return Ok(Some(self.header(opening)));
        }
        if self.state != State::Open {
            return Ok(None);
        }
        if self.may_read() {
            let credit = usize::try_from(self.credit.may_send()).unwrap_or(usize::MAX);
            let room = data.len().min(credit);
            if room > 0 {
                let length = self.read_host(&mut data[..room])?;
                if length > 0 {
                    self.credit.on_sent(length);
                    let mut header = self.header(op::RW);
                    header.len = length;
                    return Ok(Some(header));
                }
            } else if !self.asked_credit {
                self.asked_credit = true;
                return Ok(Some(self.header(op::CREDIT_REQUEST)));
            }
        }
        if self.due_shutdown & !self.told_shutdown != 0 {
            self.told_shutdown |= self.due_shutdown;
            let mut header = self.header(op::SHUTDOWN);
            header.flags = self.told_shutdown;
            return Ok(Some(header));
        }
        if self.credit_asked || self.credit.worth_telling() {
            return Ok(Some(self.header(op::CREDIT_UPDATE)));
        }
        Ok(None)
    }

    /// Bytes read, or 0 if there is nothing to read now or ever.
    fn read_host(&mut self, data: &mut [u8]) -> Result<u32, Broken> {
        loop {
            return match recv(self.socket.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    self.host_done = true;
                    let over = self.hung_up || self.host_deaf || self.end_passed_on;
                    self.due_shutdown |= if over { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
                    Ok(0)
                }
                Ok(length) => u32::try_from(length).map_err(|_| Broken),
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => {
                    self.readable = false;
                    Ok(0)
                }
                Err(_) => Err(Broken),
            };
        }
    }

    fn header(&mut self, operation: u16) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        self.credit_asked = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op: operation,
            flags: 0,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// The header that resets this stream.
    #[must_use]
    pub fn reset(&self) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: TYPE_STREAM,
            op: op::RST,
            ..Header::default()
        }
    }
}

/// Bytes that the socket took, 0 if it takes none now, `None` if it never will again.
fn write_host(socket: &UnixStream, data: &[u8]) -> Option<usize> {
    loop {
        match send(socket.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(written) => return Some(written),
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN | nix::Error::ENOBUFS | nix::Error::ENOMEM) => return Some(0),
            Err(_) => return None,
        }
    }
}
