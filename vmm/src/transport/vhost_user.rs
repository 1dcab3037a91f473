//! The vhost-user transport: someone else's machine has the CPU and the RAM, our devices serve it over a unix socket.
//!
//! One [`Backend`] per device, all of them subscribers of one event loop. The front-end (the driver's side, such as
//! the guest kernel of the `uml` accelerator) is hostile: a message that breaks the protocol ends its machine, nothing
//! that it sends or leaves unsent blocks the loop, and what it maps or names is checked before it is used.
//!
//! Offered is only what is needed: CONFIG, for the configuration space, and for devices that change it BACKEND_REQ, to say so.
//! REPLY_ACK is left out on purpose: without it
//! the front-end need not wait for each of the ~20 messages that set up a device, which costs two process switches each;
//! the messages stay in order, and a bad one ends the machine either way. That is also why `vhost`'s own request
//! handler is not used: it always offers REPLY_ACK, and it blocks until a message is complete.

mod calls;
mod memory;
#[cfg(test)]
mod tests;
mod wire;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use self::calls::Calls;
use self::memory::Memory;
use self::wire::{Body, Message, Wire};
use crate::virtio::command::{Command, CommandError, Counter};
use crate::virtio::{DeviceError, Io, VirtioDevice};

/// Most bytes of configuration space in one message (vhost-user: VHOST_USER_MAX_CONFIG_SIZE).
const MAX_CONFIG: u32 = 256;

/// Most entries of a queue. The front-end chooses, up to what it knows, and not what the device asked for: UML takes 256 at most,
/// QEMU's virtio-mmio offers its driver 1024 whatever the device.
const MAX_QUEUE: u16 = 1024;

const LISTENER: u32 = 0;
const SOCKET: u32 = 1;
const HOST: u32 = 2;
/// Queue `i`'s kick descriptor has the token `KICK + i`.
const KICK: u32 = 16;

/// Why a device stopped serving its driver. It ends the machine.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The front-end broke the vhost-user protocol.
    #[error("{device}: the guest kernel broke the vhost-user protocol: {what}")]
    Protocol {
        /// The device's name.
        device: String,
        /// What it did.
        what: String,
    },
    /// The driver broke the device's rules, or the device's host side failed.
    #[error("{device}: {error}")]
    Device {
        /// The device's name.
        device: String,
        /// What happened.
        error: DeviceError,
    },
}

/// Where the first fault of a machine's devices is left for the event loop.
pub type FaultSlot = Rc<RefCell<Option<Fault>>>;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Protocol(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<&str> for Refusal {
    fn from(what: &str) -> Self {
        Self::Protocol(what.to_owned())
    }
}

impl From<event_manager::Error> for Refusal {
    fn from(error: event_manager::Error) -> Self {
        Self::Protocol(format!("a descriptor that cannot be watched: {error}"))
    }
}

/// One device behind a vhost-user socket.
pub struct Backend {
    device: Box<dyn VirtioDevice>,
    listener: Option<UnixListener>,
    socket: Option<UnixStream>,
    wire: Wire,
    memory: Option<Memory>,
    /// Most bytes that the front-end may have mapped.
    memory_limit: u64,
    queues: Vec<Queue>,
    /// A queue is in use (ready) while its front-end has both started it, by giving it a kick descriptor, and enabled it. QEMU's
    /// network front-end enables first, before there is any memory.
    started: Vec<bool>,
    enabled: Vec<bool>,
    kicks: Vec<Option<File>>,
    calls: Calls,
    accepted: u64,
    faults: FaultSlot,
    watching_host: bool,
}

impl Backend {
    /// A device that waits for its front-end on `listener`. `memory_limit` bounds the guest memory in bytes.
    ///
    /// # Errors
    /// The device has a queue size that is no power of 2 or exceeds 256.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        listener: UnixListener,
        memory_limit: u64,
        faults: FaultSlot,
    ) -> Result<Self, virtio_queue::Error> {
        let mut backend = Self::without_front_end(device, memory_limit, faults)?;
        backend.listener = Some(listener);
        Ok(backend)
    }

    fn without_front_end(
        device: Box<dyn VirtioDevice>,
        memory_limit: u64,
        faults: FaultSlot,
    ) -> Result<Self, virtio_queue::Error> {
        let count = device.queue_sizes().len();
        let queues = (0..count).map(|_| Queue::new(MAX_QUEUE)).collect::<Result<Vec<_>, _>>()?;
        let kicks = (0..count).map(|_| None).collect();
        let calls = Calls::new(count);
        Ok(Self {
            device,
            listener: None,
            socket: None,
            wire: Wire::default(),
            memory: None,
            memory_limit,
            queues,
            started: vec![false; count],
            enabled: vec![false; count],
            kicks,
            calls,
            accepted: 0,
            faults,
            watching_host: false,
        })
    }

    /// A device whose front-end has come already.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn connected(
        device: Box<dyn VirtioDevice>,
        socket: UnixStream,
        memory_limit: u64,
        faults: FaultSlot,
    ) -> Result<Self, virtio_queue::Error> {
        let mut backend = Self::without_front_end(device, memory_limit, faults)?;
        backend.socket = Some(socket);
        Ok(backend)
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// One line for a diagnosis.
    #[must_use]
    pub fn describe(&self) -> String {
        let queues = self.queues.iter().map(|queue| (queue.ready(), queue.size(), queue.next_avail()));
        format!(
            "{}: connected {}, features {:#x}, queues (ready, size, next) {:?}",
            self.device.name(),
            self.is_connected(),
            self.accepted,
            queues.collect::<Vec<_>>()
        )
    }

    /// Whether its front-end has come (it may have gone since).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.listener.is_none()
    }

    /// The supervisor asks for a change of the device.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn command(&mut self, command: &Command) -> Result<(), CommandError> {
        self.device.command(command, &self.calls)
    }

    /// What the device has counted.
    #[must_use]
    pub fn counters(&self) -> Vec<Counter> {
        self.device.counters()
    }

    /// Serves what is still in the queues. For the end of the machine, when the driver's last kick may be unseen.
    pub fn finish(&mut self) {
        for index in 0..self.queues.len() {
            if self.serve(Some(index)).is_err() {
                return;
            }
        }
    }

    /// Lends the queues to the device: queue `index` was kicked, or the host has an event.
    fn serve(&mut self, index: Option<usize>) -> Result<(), DeviceError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let mut io = Io { memory: memory.guest(), queues: &mut self.queues, interrupt: &self.calls };
        match index {
            Some(index) if io.queues[index].ready() => self.device.queue_event(index, &mut io),
            Some(_) => Ok(()),
            None => self.device.host_event(&mut io),
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> u64 {
        let channel = VhostUserProtocolFeatures::BACKEND_REQ;
        let channel = if self.device.changes_config() { channel.bits() } else { 0 };
        VhostUserProtocolFeatures::CONFIG.bits() | channel
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue, Refusal> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.queues.get_mut(index).ok_or_else(|| Refusal::from("a queue that the device does not have"))
    }

    /// As [`Self::queue`], for changes of the rings: refused while the device uses them.
    fn stopped_queue(&mut self, index: u32) -> Result<&mut Queue, Refusal> {
        let queue = self.queue(index)?;
        if queue.ready() { Err("a change of a queue that is in use".into()) } else { Ok(queue) }
    }

    fn handle(&mut self, message: Message, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        let Message { request, body, files } = message;
        let wants_files = matches!(
            request,
            FrontendReq::SET_MEM_TABLE
                | FrontendReq::SET_VRING_KICK
                | FrontendReq::SET_VRING_CALL
                | FrontendReq::SET_VRING_ERR
                | FrontendReq::SET_BACKEND_REQ_FD
        );
        if !files.is_empty() && !wants_files {
            return Err("descriptors where none belong".into());
        }
        match request {
            FrontendReq::SET_OWNER => body.end(),
            FrontendReq::GET_FEATURES => {
                body.end()?;
                self.reply(request, &self.offered().to_le_bytes())
            }
            FrontendReq::SET_FEATURES => {
                let features = body.u64_only()?;
                self.set_features(features)
            }
            FrontendReq::GET_PROTOCOL_FEATURES => {
                body.end()?;
                self.reply(request, &self.protocol_features().to_le_bytes())
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let unknown = body.u64_only()? & !self.protocol_features();
                if unknown == 0 { Ok(()) } else { Err("a protocol feature that was not offered".into()) }
            }
            FrontendReq::SET_BACKEND_REQ_FD if self.device.changes_config() => {
                body.end()?;
                match <[File; 1]>::try_from(files) {
                    Ok([channel]) => self.calls.set_channel(channel),
                    Err(_) => return Err("a channel without its descriptor".into()),
                }
                Ok(())
            }
            FrontendReq::SET_MEM_TABLE => {
                if self.queues.iter().any(Queue::ready) {
                    return Err("a change of memory while queues are in use".into());
                }
                self.memory = Some(Memory::map(body, files, self.memory_limit).map_err(Refusal::Protocol)?);
                Ok(())
            }
            FrontendReq::SET_VRING_NUM => {
                let (index, size) = body.state()?;
                let wrong = || Refusal::Protocol(format!("a queue of {size} entries"));
                let queue = self.stopped_queue(index)?;
                u16::try_from(size).ok().and_then(|size| queue.try_set_size(size).ok()).ok_or_else(wrong)
            }
            FrontendReq::SET_VRING_BASE => {
                let (index, base) = body.state()?;
                let base = u16::try_from(base).map_err(|_| Refusal::from("a queue index out of range"))?;
                let queue = self.stopped_queue(index)?;
                queue.set_next_avail(base);
                queue.set_next_used(base);
                Ok(())
            }
            FrontendReq::SET_VRING_ADDR => self.set_addresses(body),
            FrontendReq::SET_VRING_KICK => self.set_kick(body, files, ops),
            FrontendReq::SET_VRING_CALL => {
                let (index, file) = descriptor(body, files)?;
                self.queue(u32::from(index))?;
                self.calls.set(usize::from(index), file);
                Ok(())
            }
            // Errors are told by ending the machine.
            FrontendReq::SET_VRING_ERR => descriptor(body, files).map(drop),
            FrontendReq::SET_VRING_ENABLE => {
                let (index, enable) = body.state()?;
                self.enable(index, enable, ops)
            }
            FrontendReq::GET_VRING_BASE => {
                let (index, _) = body.state()?;
                let queue = self.queue(index)?;
                queue.set_ready(false);
                let next = u32::from(queue.next_avail());
                if let Some(started) = self.started.get_mut(index as usize) {
                    *started = false;
                }
                let mut reply = index.to_le_bytes().to_vec();
                reply.extend(next.to_le_bytes());
                self.reply(request, &reply)
            }
            FrontendReq::GET_CONFIG => self.get_config(body),
            FrontendReq::SET_CONFIG => self.set_config(body),
            other => Err(Refusal::Protocol(format!("request {other:?}, which was not offered"))),
        }
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        if features & !self.offered() != 0 {
            return Err("a feature that was not offered".into());
        }
        if features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err("a driver of before virtio 1.0".into());
        }
        if self.queues.iter().any(Queue::ready) {
            return Err("a change of features while queues are in use".into());
        }
        self.accepted = features;
        for queue in &mut self.queues {
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        }
        self.device.set_features(features & self.device.features());
        Ok(())
    }

    fn set_addresses(&mut self, mut body: Body) -> Result<(), Refusal> {
        let index = body.u32()?;
        let flags = body.u32()?;
        let (descriptors, used, available) = (body.u64()?, body.u64()?, body.u64()?);
        let _log = body.u64()?;
        body.end()?;
        if flags != 0 {
            return Err("a dirty log, which was not offered".into());
        }
        let memory = self.memory.as_ref().ok_or("queues before memory")?;
        let translate = |address| memory.translate(address).ok_or("a queue outside guest memory");
        let (descriptors, used, available) =
            (translate(descriptors)?, translate(used)?, translate(available)?);
        let queue = self.stopped_queue(index)?;
        let misaligned = |_| Refusal::from("a queue that is not aligned");
        queue.try_set_desc_table_address(GuestAddress(descriptors)).map_err(misaligned)?;
        queue.try_set_used_ring_address(GuestAddress(used)).map_err(misaligned)?;
        queue.try_set_avail_ring_address(GuestAddress(available)).map_err(misaligned)
    }

    fn set_kick(&mut self, body: Body, files: Vec<File>, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        let (index, file) = descriptor(body, files)?;
        self.queue(u32::from(index))?;
        let slot = &mut self.kicks[usize::from(index)];
        if let Some(old) = slot.take() {
            ops.remove(Events::empty(&old))?;
        }
        let Some(file) = file else { return Ok(()) };
        // Edge-triggered, and never read: whatever the descriptor really is, it cannot block us.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(&file, KICK + u32::from(index), events))?;
        *slot = Some(file);
        self.started[usize::from(index)] = true;
        self.use_queue(usize::from(index), ops)
    }

    fn enable(&mut self, index: u32, enable: u32, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        let queue = self.queue(index)?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match enable {
            0 => {
                queue.set_ready(false);
                self.enabled[index] = false;
                if !self.queues.iter().any(Queue::ready) {
                    // The driver lets go of the device: the only sign of a reset that there is.
                    self.device.reset();
                }
                self.watch_host(ops)
            }
            1 => {
                self.enabled[index] = true;
                self.use_queue(index, ops)
            }
            _ => Err("a queue that is neither enabled nor disabled".into()),
        }
    }

    /// Begins to use a queue that is both started and enabled. The index is the caller's to check.
    fn use_queue(&mut self, index: usize, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        if !self.started[index] || !self.enabled[index] {
            return Ok(());
        }
        let queue = &mut self.queues[index];
        queue.set_ready(true);
        if !self.memory.as_ref().is_some_and(|memory| queue.is_valid(memory.guest())) {
            return Err("a queue outside guest memory".into());
        }
        self.watch_host(ops)?;
        // Kicks of before went unserved.
        Ok(self.serve(Some(index))?)
    }

    /// Watches the device's descriptor from the first queue on; before, it could do nothing with an event.
    fn watch_host(&mut self, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        if let (false, Some(fd)) = (self.watching_host, self.device.host_fd()) {
            ops.add(Events::with_data_raw(fd, HOST, EventSet::IN))?;
            self.watching_host = true;
        }
        Ok(())
    }

    fn get_config(&self, mut body: Body) -> Result<(), Refusal> {
        let (offset, size, flags) = (body.u32()?, body.u32()?, body.u32()?);
        if size > MAX_CONFIG || offset > MAX_CONFIG || body.rest() != size as usize {
            return Err("a configuration space of impossible size".into());
        }
        let mut reply = Vec::with_capacity(12 + size as usize);
        for field in [offset, size, flags] {
            reply.extend(field.to_le_bytes());
        }
        reply.resize(12 + size as usize, 0);
        self.device.read_config(offset as usize, &mut reply[12..]);
        self.reply(FrontendReq::GET_CONFIG, &reply)
    }

    fn set_config(&mut self, mut body: Body) -> Result<(), Refusal> {
        let (offset, size, _flags) = (body.u32()?, body.u32()?, body.u32()?);
        if size > MAX_CONFIG || offset > MAX_CONFIG || body.rest() != size as usize {
            return Err("a configuration space of impossible size".into());
        }
        self.device.write_config(offset as usize, body.remaining());
        Ok(())
    }

    fn reply(&self, request: FrontendReq, body: &[u8]) -> Result<(), Refusal> {
        let socket = self.socket.as_ref().ok_or("a message without a connection")?;
        wire::reply(socket, request, body)
            .map_err(|error| Refusal::Protocol(format!("replies not taken: {error}")))
    }

    fn on_socket(&mut self, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        // One message at a time: the loop comes back while there are more, and others get their turn.
        let Some(socket) = &self.socket else { return Ok(()) };
        match self.wire.receive(socket) {
            Ok(wire::Received::Message(message)) => self.handle(message, ops),
            Ok(wire::Received::Incomplete) => Ok(()),
            Ok(wire::Received::Closed) => {
                ops.remove(Events::empty(socket))?;
                self.socket = None;
                Ok(())
            }
            Err(error) => Err(Refusal::Protocol(error.to_string())),
        }
    }

    /// After an error in a queue: whether the driver has taken a queue away meanwhile. A driver that goes says so on the socket,
    /// does not wait for an answer, and uses the rings' memory for something else; a kick of before may reach us first.
    fn was_taken_away(&mut self, ops: &mut EventOps<'_>) -> Result<bool, Refusal> {
        let ready = |queues: &[Queue]| queues.iter().filter(|queue| queue.ready()).count();
        let before = ready(&self.queues);
        // What one driver says at its end: a few messages for each queue.
        for _ in 0..8 * (1 + self.queues.len()) {
            let Some(socket) = &self.socket else { break };
            match self.wire.receive(socket) {
                Ok(wire::Received::Message(message)) => self.handle(message, ops)?,
                Ok(wire::Received::Incomplete | wire::Received::Closed) => break,
                Err(error) => return Err(Refusal::Protocol(error.to_string())),
            }
        }
        Ok(ready(&self.queues) < before)
    }

    fn on_listener(&mut self, ops: &mut EventOps<'_>) -> Result<(), Refusal> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match listener.accept() {
            Ok((socket, _)) => {
                ops.add(Events::with_data(&socket, SOCKET, EventSet::IN))?;
                self.socket = Some(socket);
                // One front-end, once.
                ops.remove(Events::empty(listener))?;
                self.listener = None;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Refusal::Device(error.into())),
        }
    }

    fn fail(&self, refusal: Refusal) {
        let device = self.device.name().to_owned();
        let fault = match refusal {
            Refusal::Protocol(what) => Fault::Protocol { device, what },
            Refusal::Device(error) => Fault::Device { device, error },
        };
        self.faults.borrow_mut().get_or_insert(fault);
    }

    fn listener_fd(&self) -> Option<RawFd> {
        self.listener.as_ref().map(AsRawFd::as_raw_fd)
    }
}

impl MutEventSubscriber for Backend {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = &self.socket
            && let Err(error) = ops.add(Events::with_data(socket, SOCKET, EventSet::IN))
        {
            self.fail(error.into());
        }
        if let Some(fd) = self.listener_fd()
            && let Err(error) = ops.add(Events::with_data_raw(fd, LISTENER, EventSet::IN))
        {
            self.fail(error.into());
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.faults.borrow().is_some() {
            // The machine is about to end.
            return;
        }
        let outcome = match events.data() {
            LISTENER => self.on_listener(ops),
            SOCKET => self.on_socket(ops),
            HOST => self.serve(None).map_err(Refusal::from),
            token => {
                let index = usize::try_from(token - KICK).unwrap_or(usize::MAX);
                self.serve(Some(index)).map_err(Refusal::from)
            }
        };
        match outcome {
            Ok(()) => {}
            Err(Refusal::Device(error)) => match self.was_taken_away(ops) {
                Ok(true) => {}
                Ok(false) => self.fail(error.into()),
                Err(refusal) => self.fail(refusal),
            },
            Err(refusal) => self.fail(refusal),
        }
    }
}

/// The body of SET_VRING_KICK, CALL and ERR: a queue's index, and a descriptor unless bit 8 says that there is none.
fn descriptor(body: Body, mut files: Vec<File>) -> Result<(u8, Option<File>), Refusal> {
    let value = body.u64_only()?;
    let index = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let absent = value & 0x100 != 0;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) if !absent => Ok((index, Some(file))),
        (None, _) if absent => Ok((index, None)),
        _ => Err("a queue's descriptor is missing or too many".into()),
    }
}
