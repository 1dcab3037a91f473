//! The loop that serves a request queue, with a bound on the work of one event.

use virtio_queue::{QueueOwnedT, QueueT};

use super::chain::{Request, answer, next_request};
use super::wake::Wake;
use super::{DeviceError, Io};
use crate::memory::GuestMemoryMmap;

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

/// What says whether a request may pass now.
pub trait Gate {
    /// Whether this request may. If not, `wake` is set for when it may.
    fn ready(&mut self, memory: &GuestMemoryMmap, request: &Request, wake: &mut Wake) -> bool;
    /// The request that was let through last has moved this many bytes.
    fn spend(&mut self, bytes: u64);
}

/// Serves queue `index` until it is empty, the bound is reached or the limit says no; in the latter two cases sets `wake`, which
/// the event loop watches: other devices and the control socket get their turn, and a limited queue goes on in time.
///
/// # Errors
/// The driver broke the rules of the queue, or `execute` failed.
pub fn serve(
    index: usize,
    io: &mut Io<'_>,
    wake: &mut Wake,
    mut limit: Option<&mut dyn Gate>,
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
            if limit.as_mut().is_some_and(|limit| !limit.ready(memory, &request, wake)) {
                queue.go_to_previous_position();
                // Notifications stay off: the timer brings us back, and until then they would be for nothing.
                break 'serving false;
            }
            let served = execute(memory, &request)?;
            if let Some(limit) = &mut limit {
                limit.spend(served.moved);
            }
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
        wake.again();
    }
    Ok(())
}
