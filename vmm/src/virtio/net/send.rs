//! Frames from the guest to the cable.

use std::io;
use std::os::fd::AsFd;

use crate::memory::GuestMemoryMmap;
use virtio_queue::{QueueOwnedT, QueueT};

use super::cable::Sent;
use super::header::{ETHERNET_BYTES, HEADER_BYTES, Header, MAX_FRAME, Offloads};
use super::{CABLE, Counts, MAX_FRAMES, Port, QUEUE_TX};
use crate::config::RateLimit;
use crate::virtio::chain::{Request, answer, next_request, wants_interrupt};
use crate::virtio::limiter::Throttle;
use crate::virtio::serve::MAX_BYTES;
use crate::virtio::wake::Wake;
use crate::virtio::{DeviceError, Io, sys};

/// The direction out of the guest.
#[derive(Debug)]
pub struct Sender {
    /// What the guest may leave to the cable's other end.
    pub agreed: Offloads,
    pub throttle: Throttle,
    pub counts: Counts,
    /// The only address that frames may come from.
    only_from: Option<[u8; 6]>,
    /// The cable has no room; it says when it has.
    full: bool,
}

impl Sender {
    pub fn new(limit: &RateLimit, only_from: Option<[u8; 6]>) -> Self {
        Self {
            agreed: Offloads::default(),
            throttle: Throttle::new(limit),
            counts: Counts::default(),
            only_from,
            full: false,
        }
    }

    /// The cable may have room.
    pub fn on_cable(&mut self, port: &Port, wake: &Wake) -> io::Result<()> {
        if self.full {
            self.full = false;
            wake.watch_room(port.cable.as_fd(), CABLE, false)?;
        }
        Ok(())
    }

    pub fn reset(&mut self) {
        self.agreed = Offloads::default();
    }

    /// Sends what the queue holds. True if there may be more.
    pub fn pump(&mut self, port: &Port, wake: &mut Wake, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(QUEUE_TX).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        let before = queue.next_used();
        let (mut frames, mut bytes) = (0, 0);
        queue.disable_notification(memory)?;
        let more = loop {
            // Continued by the cable.
            if self.full {
                break false;
            }
            if frames >= MAX_FRAMES || bytes >= MAX_BYTES {
                break true;
            }
            let Some(request) = next_request(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break false;
            };
            if !self.throttle.ready(wake) {
                // Continued by the timer.
                queue.go_to_previous_position();
                break false;
            }
            match self.send(port, memory, &request)? {
                Some(length) => {
                    self.throttle.spend(length);
                    bytes += length;
                }
                None => {
                    queue.go_to_previous_position();
                    self.full = true;
                    wake.watch_room(port.cable.as_fd(), CABLE, true)?;
                    break false;
                }
            }
            answer(queue, memory, request.head, 0)?;
            frames += 1;
        };
        if wants_interrupt(queue, memory, before)? {
            io.interrupt.queue_used(QUEUE_TX);
        }
        Ok(more)
    }

    /// Sends one frame, or drops it. Returns its length; `None` if the cable has no room for it.
    fn send(
        &mut self,
        port: &Port,
        memory: &GuestMemoryMmap,
        request: &Request,
    ) -> Result<Option<u64>, DeviceError> {
        if !request.writable.is_empty() {
            return Err(DeviceError::Request("a frame to send in buffers to write to"));
        }
        let total = request.readable.len();
        let length = usize::try_from(total).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES);
        if !(ETHERNET_BYTES..=MAX_FRAME).contains(&length) {
            self.counts.dropped += 1;
            return Ok(Some(0));
        }
        // The virtio header and the frame's own, which is all that is looked at.
        let mut head = [0; HEADER_BYTES + ETHERNET_BYTES];
        request.readable.read(memory, 0, &mut head)?;
        let mut slices = Vec::new();
        let rest = head.len() as u64;
        request.readable.slices(memory, rest, total - rest, &mut slices)?;
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&head[..HEADER_BYTES]);
        let header = Header::decode(&header).checked(length, port.whole, self.agreed);
        let source = &head[HEADER_BYTES + 6..HEADER_BYTES + 12];
        let genuine = self.only_from.is_none_or(|address| address == source);
        let (Some(header), true) = (header, genuine && port.is_up() && slices.len() < sys::MAX_SLICES) else {
            self.counts.dropped += 1;
            return Ok(Some(0));
        };
        head[..HEADER_BYTES].copy_from_slice(&header.encode());
        let ours = if port.cable.has_headers() { &head[..] } else { &head[HEADER_BYTES..] };
        match port.cable.send(ours, &slices) {
            Sent::Gone => self.counts.passed(length),
            Sent::Full => return Ok(None),
            Sent::Lost => self.counts.dropped += 1,
        }
        Ok(Some(length as u64))
    }
}
