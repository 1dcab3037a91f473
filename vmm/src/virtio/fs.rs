//! The shared folder (virtio 1.2 section 5.11): FUSE requests of the guest, passed on to a server in a jail of its own.
//!
//! The device knows no files. Behind it is a socket that the supervisor made, with the server (`bulkhead-fs`) at the other end:
//! a request is one packet, and so is its answer. What the device sees to is that packets are bounded and whole, that an answer
//! goes to the request that it belongs to and fits its buffer, and that a server that is gone leaves no guest waiting.

mod packet;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::memory::GuestMemoryMmap;
use nix::sys::socket::{MsgFlags, SockType, getsockopt, recv, send, sockopt};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};

use self::packet::{ANSWER_BYTES, DESTROY, MAX_PACKET, REQUEST_BYTES};
use super::chain::{Request, answer, next_request};
use super::command::Counter;
use super::wake::Wake;
use super::{DeviceError, Io, VirtioDevice, read_config_bytes};
use crate::config::MAX_TAG;

/// Queues (section 5.11.2): what must not wait behind other requests, and the rest.
const QUEUE_SIZES: &[u16] = &[64, 256];
/// Most requests under way.
const MAX_UNDER_WAY: usize = 128;
/// Most requests taken, and most answers given, in one event.
const MAX_PACKETS: u32 = 64;
/// The socket's number among the descriptors that [`Wake`] watches.
const SERVER: u32 = 0;
/// Bytes of the configuration space: the tag, and the number of request queues.
const CONFIG_BYTES: usize = MAX_TAG + 4;

/// A request that waits for its answer.
#[derive(Debug)]
struct Waiting {
    queue: usize,
    /// The driver's id of it; the server sees ours.
    unique: u64,
    request: Request,
}

/// Whether the server knows that the driver has reset the device, and so has nothing open any more.
#[derive(Debug, Clone, Copy)]
enum Forget {
    /// It does, or there is nothing to know.
    Done,
    /// It has to be asked.
    Due,
    /// It was asked, with this id.
    Asked(u64),
}

/// A shared folder.
#[derive(Debug)]
pub struct Fs {
    name: String,
    config: [u8; CONFIG_BYTES],
    socket: OwnedFd,
    /// The server is gone.
    closed: bool,
    /// The socket has no room; it says when it has.
    full: bool,
    forget: Forget,
    /// The server has had a request since it forgot the last time.
    used: bool,
    waiting: HashMap<u64, Waiting>,
    next_id: u64,
    buffer: Box<[u8]>,
    requests: u64,
    refused: u64,
    wake: Wake,
}

impl Fs {
    /// Makes the device. `index` is its position among the machine's folders; `tag` is the name that the guest mounts it by, of
    /// at most [`MAX_TAG`] bytes; `socket` is connected to the server, and keeps packets apart.
    ///
    /// # Errors
    /// The descriptor is no such socket, or the host is out of descriptors.
    pub fn new(index: usize, tag: &str, socket: OwnedFd) -> io::Result<Self> {
        if getsockopt(&socket, sockopt::SockType)? != SockType::SeqPacket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET socket"));
        }
        let wake = Wake::new()?;
        wake.watch(socket.as_fd(), SERVER)?;
        let mut config = [0; CONFIG_BYTES];
        for (place, byte) in config[..MAX_TAG].iter_mut().zip(tag.bytes()) {
            *place = byte;
        }
        config[MAX_TAG] = 1;
        Ok(Self {
            name: format!("fs{index}"),
            config,
            socket,
            closed: false,
            full: false,
            forget: Forget::Done,
            used: false,
            waiting: HashMap::new(),
            next_id: 1,
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
            requests: 0,
            refused: 0,
            wake,
        })
    }

    /// Has the server forget what the driver before the reset had open. Not in the reset itself: that is done by a thread of the
    /// guest's, which has no business with sockets.
    fn let_go(&mut self) -> io::Result<()> {
        let mut destroy = [0; REQUEST_BYTES];
        packet::set_header(&mut destroy, DESTROY, self.next_id);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &destroy, flags) {
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => self.wait_for_room(),
            Ok(_) => {
                self.forget = Forget::Asked(self.next_id);
                self.next_id += 1;
                Ok(())
            }
            // Its end is noticed when it is read from.
            Err(_) => Ok(()),
        }
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        self.full = true;
        self.wake.watch_room(self.socket.as_fd(), SERVER, true)
    }

    /// Passes on what a queue holds. True if there may be more.
    fn pass_on(&mut self, index: usize, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(false) };
        if matches!(self.forget, Forget::Due) && !self.full {
            self.let_go()?;
        }
        let mut taken = 0;
        let mut answered = false;
        queue.disable_notification(memory)?;
        let more = loop {
            // Continued when there is room again, or when an answer has come. The server works on several requests at a time: so
            // nothing may be asked of it before it has forgotten.
            let forgotten = self.closed || matches!(self.forget, Forget::Done);
            if self.full || !forgotten || self.waiting.len() >= MAX_UNDER_WAY {
                break false;
            }
            if taken >= MAX_PACKETS {
                break true;
            }
            let Some(request) = next_request(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break false;
            };
            taken += 1;
            match self.send(memory, &request)? {
                Step::Sent { .. } if request.writable.is_empty() => {
                    answer(queue, memory, request.head, 0)?;
                    answered = true;
                }
                Step::Sent { id, unique } => {
                    self.waiting.insert(id, Waiting { queue: index, unique, request });
                }
                Step::Full => {
                    queue.go_to_previous_position();
                    self.wait_for_room()?;
                    break false;
                }
                Step::Refused { unique, errno } => {
                    self.refused += 1;
                    let written = refuse(memory, &request, unique, errno)?;
                    answer(queue, memory, request.head, written)?;
                    answered = true;
                }
            }
        };
        if answered && queue.needs_notification(memory)? {
            io.interrupt.queue_used(index);
        }
        Ok(more)
    }

    /// Sends a request to the server.
    fn send(&mut self, memory: &GuestMemoryMmap, request: &Request) -> Result<Step, DeviceError> {
        let length = usize::try_from(request.readable.len()).unwrap_or(usize::MAX);
        if length < REQUEST_BYTES || (1..ANSWER_BYTES as u64).contains(&request.writable.len()) {
            return Err(DeviceError::Request("a request for files without room for its header"));
        }
        let Some(bytes) = self.buffer.get_mut(..length) else {
            let mut header = [0; REQUEST_BYTES];
            request.readable.read(memory, 0, &mut header)?;
            return Ok(Step::Refused { unique: packet::unique(&header), errno: libc::E2BIG });
        };
        request.readable.read(memory, 0, bytes)?;
        let unique = packet::unique(bytes);
        if !packet::is_whole(bytes) {
            return Ok(Step::Refused { unique, errno: libc::EINVAL });
        }
        if self.closed {
            return Ok(Step::Refused { unique, errno: libc::ENOTCONN });
        }
        let id = self.next_id;
        packet::set_unique(bytes, id);
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => {
                self.next_id += 1;
                self.requests += 1;
                self.used = true;
                Ok(Step::Sent { id, unique })
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(Step::Full),
            // Its end is noticed when it is read from.
            Err(_) => Ok(Step::Refused { unique, errno: libc::ENOTCONN }),
        }
    }

    /// Gives the server's answers to the guest. True if there may be more.
    fn take_answers(&mut self, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let mut given = [false; QUEUE_SIZES.len()];
        let mut taken = 0;
        let more = loop {
            if self.closed {
                break false;
            }
            if taken >= MAX_PACKETS {
                break true;
            }
            taken += 1;
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(0) => {
                    self.give_up(io, &mut given)?;
                    break false;
                }
                Ok(length) => length,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => break false,
                Err(_) => {
                    self.give_up(io, &mut given)?;
                    break false;
                }
            };
            // Longer than anything that was asked for, or no answer at all: passed over, as is one to nothing.
            let Some(bytes) = self.buffer.get_mut(..length).filter(|bytes| packet::is_answer(bytes)) else {
                continue;
            };
            let id = packet::unique(bytes);
            if matches!(self.forget, Forget::Asked(asked) if asked == id) {
                self.forget = Forget::Done;
                self.used = false;
            }
            let Some(waiting) = self.waiting.remove(&id) else { continue };
            packet::set_unique(bytes, waiting.unique);
            let Waiting { queue: index, unique, request } = waiting;
            let Some(queue) = io.queues.get_mut(index).filter(|queue| queue.ready()) else { continue };
            let written = if bytes.len() as u64 <= request.writable.len() {
                request.writable.write(io.memory, 0, bytes)?;
                u32::try_from(bytes.len()).unwrap_or(u32::MAX)
            } else {
                refuse(io.memory, &request, unique, libc::EIO)?
            };
            answer(queue, io.memory, request.head, written)?;
            given[index] = true;
        };
        for (index, _) in given.iter().enumerate().filter(|(_, given)| **given) {
            if let Some(queue) = io.queues.get_mut(index)
                && queue.needs_notification(io.memory)?
            {
                io.interrupt.queue_used(index);
            }
        }
        Ok(more)
    }

    /// The server is gone: everything that waits for it gets an error.
    fn give_up(&mut self, io: &mut Io<'_>, given: &mut [bool]) -> Result<(), DeviceError> {
        self.closed = true;
        self.full = false;
        self.wake.unwatch(self.socket.as_fd());
        for (_, Waiting { queue: index, unique, request }) in self.waiting.drain() {
            let Some(queue) = io.queues.get_mut(index).filter(|queue| queue.ready()) else { continue };
            let written = refuse(io.memory, &request, unique, libc::ENOTCONN)?;
            answer(queue, io.memory, request.head, written)?;
            given[index] = true;
        }
        Ok(())
    }

    fn pump(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let mut again = self.take_answers(io)?;
        for index in 0..QUEUE_SIZES.len() {
            again |= self.pass_on(index, io)?;
        }
        if again {
            self.wake.again();
        }
        Ok(())
    }
}

/// What became of a request.
enum Step {
    /// The server has it.
    Sent { id: u64, unique: u64 },
    /// There is no room for it now.
    Full,
    /// It gets this error.
    Refused { unique: u64, errno: i32 },
}

/// Answers with an error. Returns the bytes written.
fn refuse(memory: &GuestMemoryMmap, request: &Request, unique: u64, errno: i32) -> Result<u32, DeviceError> {
    if request.writable.is_empty() {
        return Ok(0);
    }
    let bytes = packet::error(unique, errno);
    request.writable.write(memory, 0, &bytes)?;
    Ok(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn set_features(&mut self, _accepted: u64) {}

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn queue_event(&mut self, _index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.pump(io)
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        if self.wake.take()?.by(SERVER) && self.full {
            self.full = false;
            self.wake.watch_room(self.socket.as_fd(), SERVER, false)?;
        }
        self.pump(io)
    }

    fn reset(&mut self) {
        // Answers that are still to come belong to nothing.
        self.waiting.clear();
        if self.used {
            self.forget = Forget::Due;
        }
    }

    fn counters(&self) -> Vec<Counter> {
        vec![("requests", self.requests), ("refused", self.refused), ("waiting", self.waiting.len() as u64)]
    }
}
