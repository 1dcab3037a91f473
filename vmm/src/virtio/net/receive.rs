//! Frames from the cable to the guest.

use std::os::fd::AsFd;

use crate::memory::GuestMemoryMmap;
use virtio_queue::{Queue, QueueT};

use super::cable::Received;
use super::header::{HEADER_BYTES, Header, MAX_FRAME, Offloads};
use super::{Counts, MAX_FRAMES, Port, QUEUE_RX};
use crate::config::RateLimit;
use crate::virtio::chain::{Request, answer_together, next_request, wants_interrupt};
use crate::virtio::limiter::Throttle;
use crate::virtio::serve::MAX_BYTES;
use crate::virtio::wake::Wake;
use crate::virtio::{DeviceError, Io};

/// The direction into the guest.
#[derive(Debug)]
pub struct Receiver {
    /// What the cable's other end may leave to the guest.
    pub agreed: Offloads,
    /// A frame may fill several buffers.
    pub mergeable: bool,
    pub throttle: Throttle,
    pub counts: Counts,
    /// A header and a frame, checked, that wait for buffers: so many bytes of `packet`.
    waiting: Option<usize>,
    packet: Box<[u8]>,
    /// The cable may have something; it says when it has again.
    readable: bool,
}

/// What became of the frame that waited.
enum Delivery {
    /// The guest has it, or nobody.
    Done,
    /// There are too few buffers for now; the driver will tell of more.
    Short,
}

impl Receiver {
    pub fn new(limit: &RateLimit) -> Self {
        Self {
            agreed: Offloads::default(),
            mergeable: false,
            throttle: Throttle::new(limit),
            counts: Counts::default(),
            waiting: None,
            packet: vec![0; HEADER_BYTES + MAX_FRAME].into_boxed_slice(),
            readable: true,
        }
    }

    /// The cable may have something.
    pub fn on_cable(&mut self) {
        self.readable = true;
    }

    pub fn reset(&mut self) {
        self.agreed = Offloads::default();
        self.mergeable = false;
        // It was checked against what is agreed on no longer.
        self.waiting = None;
    }

    /// Delivers what the cable has. True if there may be more.
    pub fn pump(&mut self, port: &mut Port, wake: &mut Wake, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(QUEUE_RX).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        let before = queue.next_used();
        let (mut frames, mut bytes) = (0, 0);
        // New buffers are of interest only while a frame waits for them.
        queue.disable_notification(memory)?;
        let more = loop {
            if frames >= MAX_FRAMES || bytes >= MAX_BYTES {
                break true;
            }
            if self.waiting.is_none() && !self.take(port, wake) {
                break false;
            }
            frames += 1;
            let Some(length) = self.waiting else { continue };
            // One frame waits here, and the others on the cable, whose own queue is bounded.
            if !self.throttle.ready(wake) {
                break false;
            }
            match self.deliver(queue, memory, length)? {
                Delivery::Done => {
                    self.waiting = None;
                    self.throttle.spend((length - HEADER_BYTES) as u64);
                    bytes += length as u64;
                }
                Delivery::Short => break false,
            }
        };
        if wants_interrupt(queue, memory, before)? {
            io.interrupt.queue_used(QUEUE_RX);
        }
        Ok(more)
    }

    /// Takes a packet from the cable; one that may pass then waits. False if there is none.
    fn take(&mut self, port: &mut Port, wake: &Wake) -> bool {
        if !self.readable || port.closed {
            return false;
        }
        let start = if port.cable.has_headers() { 0 } else { HEADER_BYTES };
        let length = match port.cable.receive(&mut self.packet[start..]) {
            Received::Packet(length) => start + length,
            Received::TooLong => 0,
            Received::Nothing => {
                self.readable = false;
                return false;
            }
            Received::Closed => {
                port.closed = true;
                wake.unwatch(port.cable.as_fd());
                return false;
            }
        };
        if self.check(length, start, port).is_some() && port.is_up() {
            self.waiting = Some(length);
        } else {
            self.counts.dropped += 1;
        }
        true
    }

    /// Checks the packet and leaves the header that the guest gets in its place.
    fn check(&mut self, length: usize, start: usize, port: &Port) -> Option<()> {
        let frame = length.checked_sub(HEADER_BYTES)?;
        let mut bytes = [0; HEADER_BYTES];
        if start == 0 {
            bytes.copy_from_slice(&self.packet[..HEADER_BYTES]);
        }
        let header = Header::decode(&bytes).checked(frame, port.whole, self.agreed)?;
        self.packet[..HEADER_BYTES].copy_from_slice(&header.encode());
        Some(())
    }

    /// Puts the packet that waits into buffers: one, or as many as it takes if they may be merged.
    fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        length: usize,
    ) -> Result<Delivery, DeviceError> {
        let first = queue.next_avail();
        let mut buffers: Vec<Request> = Vec::new();
        let mut room = 0u64;
        // All buffers that there can ever be may still be too few.
        while room < length as u64 && buffers.len() < usize::from(queue.size()) {
            if !self.mergeable && !buffers.is_empty() {
                break;
            }
            let Some(buffer) = next_request(queue, memory)? else {
                // From here on, which is not where the next delivery begins: so it must be asked for now.
                if queue.enable_notification(memory)? {
                    continue;
                }
                queue.set_next_avail(first);
                return Ok(Delivery::Short);
            };
            let header_fits = !buffers.is_empty() || buffer.writable.len() >= HEADER_BYTES as u64;
            if !buffer.readable.is_empty() || buffer.writable.is_empty() || !header_fits {
                return Err(DeviceError::Request("a buffer for frames has no room for one"));
            }
            room += buffer.writable.len();
            buffers.push(buffer);
        }
        if room < length as u64 {
            queue.set_next_avail(first);
            self.counts.dropped += 1;
            return Ok(Delivery::Done);
        }
        let count = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
        self.packet[10..12].copy_from_slice(&count.to_le_bytes());
        let mut answers = Vec::with_capacity(buffers.len());
        let mut done = 0;
        for buffer in &buffers {
            let size = usize::try_from(buffer.writable.len()).unwrap_or(usize::MAX).min(length - done);
            buffer.writable.write(memory, 0, &self.packet[done..done + size])?;
            answers.push((buffer.head, u32::try_from(size).unwrap_or(u32::MAX)));
            done += size;
        }
        answer_together(queue, memory, &answers)?;
        self.counts.passed(length - HEADER_BYTES);
        Ok(Delivery::Done)
    }
}
