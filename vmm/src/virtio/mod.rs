//! Virtio devices (virtio 1.2), each written once as queue logic that knows no transport.
//!
//! A transport owns the queues, the guest memory and the way to interrupt the driver, and lends them to the device
//! for the length of one event as [`Io`]. A device therefore holds only its own state, and is the same over
//! virtio-mmio, over vhost-user and under a fuzzer.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod command;
pub mod console;
pub mod fs;
pub mod limiter;
pub mod net;
pub mod rng;
pub mod serve;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;
pub mod wake;

use std::os::fd::RawFd;

use virtio_queue::Queue;

use crate::control::{Refusal, RefusalKind};
use crate::memory::GuestMemoryMmap;

use self::command::{Command, CommandError, Counter};

/// How a device tells the driver that it used buffers or changed its configuration.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue `index` were used. Must not block.
    fn queue_used(&self, index: usize);
    /// The configuration space changed. Must not block.
    fn config_changed(&self);
}

/// For a device that has no driver: what it does is told to nobody.
#[derive(Debug, Clone, Copy)]
pub struct NoDriver;

impl Interrupt for NoDriver {
    fn queue_used(&self, _index: usize) {}

    fn config_changed(&self) {}
}

/// What a transport lends to a device for one event.
pub struct Io<'a> {
    /// Guest memory, as the driver's addresses see it.
    pub memory: &'a GuestMemoryMmap,
    /// The device's queues, by index. A queue that is not [`virtio_queue::QueueT::ready`] must be left alone.
    pub queues: &'a mut [Queue],
    /// The way back to the driver.
    pub interrupt: &'a dyn Interrupt,
}

/// Why a device stopped serving its driver. The transport then sets DEVICE_NEEDS_RESET (mmio) or ends the machine (vhost-user):
/// a driver that breaks the rules loses its device, nothing else.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A ring or descriptor chain breaks the rules of virtio 1.2 section 2.7.
    #[error("the driver broke the rules of the virtio queue: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// An address or length lies outside guest memory.
    #[error("the driver named memory that the guest does not have: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A request is malformed in a way that the device has no answer for.
    #[error("the driver sent a malformed request: {0}")]
    Request(&'static str),
    /// The host's side failed.
    #[error("the device's host side failed: {0}")]
    Host(#[from] std::io::Error),
}

/// A virtio device: identity, features, configuration space and queue logic.
pub trait VirtioDevice: Send {
    /// Device type number (virtio 1.2 section 5).
    fn device_type(&self) -> u32;

    /// Name for diagnosis, such as `block0`.
    fn name(&self) -> &str;

    /// Largest size of each queue; its length is the number of queues. At most 256 each (what vhost-user over UML takes).
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits that the device offers, beside VIRTIO_F_VERSION_1, which every transport adds.
    fn features(&self) -> u64;

    /// The driver accepted these bits (a subset of what was offered). Called once before the first event, and again after a reset.
    fn set_features(&mut self, accepted: u64);

    /// Reads configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver writes configuration space. What may not be written is ignored.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Whether the configuration space ever changes, and so the transport needs a way to tell of it.
    fn changes_config(&self) -> bool {
        false
    }

    /// The driver notified queue `index`: serve what it holds.
    ///
    /// # Errors
    /// The driver broke a rule, or the host's side failed for good.
    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError>;

    /// A descriptor that the event loop watches for reading on the device's behalf (an epoll descriptor where there are several).
    fn host_fd(&self) -> Option<RawFd> {
        None
    }

    /// [`Self::host_fd`] became readable.
    ///
    /// # Errors
    /// As [`Self::queue_event`].
    fn host_event(&mut self, _io: &mut Io<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver reset the device: drop all state that came from it.
    fn reset(&mut self);

    /// The supervisor asks for a change, at any time, also while there is no driver. A device that has to move buffers for it
    /// makes [`Self::host_fd`] readable.
    ///
    /// # Errors
    /// The device knows no such command, or a number is out of bounds; then nothing has changed.
    fn command(&mut self, _command: &Command, _interrupt: &dyn Interrupt) -> Result<(), CommandError> {
        Err(CommandError::Unsupported(self.name().to_owned()))
    }

    /// What the device has counted since it was made.
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }
    /// All of the device's own state that its driver relies on, for a snapshot, at most
    /// [`MAX_DEVICE_STATE`] bytes; queues and features are the transport's. What is bound to the host (connections,
    /// timers) is not part of it: the driver must be able to go on without.
    ///
    /// # Errors
    /// The device cannot be part of a snapshot.
    fn save(&self) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::unsupported(format!("snapshot: {} cannot be part of one", self.name())))
    }

    /// Takes over what [`Self::save`] gave in another process. The driver's features have been set before.
    ///
    /// # Errors
    /// The bytes are not such a state: they may come from anywhere.
    fn restore(&mut self, _state: &[u8]) -> Result<(), Refusal> {
        Err(Refusal::unsupported(format!("snapshot: {} cannot be part of one", self.name())))
    }

    /// The machine goes on after [`Self::restore`]: the time to tell the driver what it has lost.
    ///
    /// # Errors
    /// As [`Self::queue_event`].
    fn restored(&mut self, _io: &mut Io<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Most bytes of a device's own state in a snapshot.
pub const MAX_DEVICE_STATE: usize = 64 << 10;

/// Checks the state of a device that has none of its own.
///
/// # Errors
/// There is one.
pub fn stateless(name: &str, state: &[u8]) -> Result<(), Refusal> {
    if state.is_empty() {
        return Ok(());
    }
    let text = format!("{name}: the snapshot holds a state, of which the device has none");
    Err(Refusal::new(RefusalKind::Invalid, text))
}

/// Copies the part of a configuration space that a driver asked for; what lies beyond its end stays zero.
pub fn read_config_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    if let Some(source) = config.get(offset..) {
        let n = source.len().min(data.len());
        data[..n].copy_from_slice(&source[..n]);
    }
}
