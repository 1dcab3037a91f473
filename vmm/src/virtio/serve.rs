//! The loop that serves a request queue, with a bound on the work of one event.

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Request, answer, next_request};
use super::{DeviceError, Io};

/// Most requests served in one event.
pub const MAX_REQUESTS: u32 = 64;
/// Bytes moved in one event after which no further request is taken.
pub const MAX_BYTES: u64 = 4 << 20;

/// What a request came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Served {
    /// Bytes written to the start of the writable buffer, for the used ring.
    pub written: u32,
    /// Bytes moved on the host, for the bound.
    pub moved: u64,
}

/// Serves queue `index` until it is empty or the bound is reached; in the latter case signals `again`, which the event loop
/// watches, so that other devices and the control socket get their turn.
///
/// # Errors
/// The driver broke the rules of the queue, or `execute` failed.
pub fn serve(
    index: usize,
    io: &mut Io<'_>,
    again: &EventFd,
    mut execute: impl FnMut(&GuestMemoryMmap, &Request) -> Result<Served, DeviceError>,
) -> Result<(), DeviceError> {
    let memory = io.memory;
    let Some(queue) = io.queues.get_mut(index).filter(|queue| queue.ready()) else {
        return Ok(());
    };
    let (mut requests, mut bytes) = (0, 0u64);
    queue.disable_notification(memory)?;
    let exhausted = 'serving: loop {
        while let Some(request) = next_request(queue, memory)? {
            let served = execute(memory, &request)?;
            answer(queue, memory, request.head, served.written)?;
            requests += 1;
            bytes = bytes.saturating_add(served.moved);
            if requests >= MAX_REQUESTS || bytes >= MAX_BYTES {
                break 'serving true;
            }
        }
        if !queue.enable_notification(memory)? {
            break false;
        }
    };
    if requests > 0 && queue.needs_notification(memory)? {
        io.interrupt.queue_used(index);
    }
    if exhausted {
        again.write(1)?;
    }
    Ok(())
}
