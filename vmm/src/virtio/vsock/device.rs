//! The device: three queues over the muxer.

use std::collections::HashMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use virtio_queue::{QueueOwnedT, QueueT};

use super::muxer::Muxer;
use super::packet::{HEADER_SIZE, Header};
use crate::control::{Refusal, RefusalKind};
use crate::virtio::chain::{Request, answer, next_request};
use crate::virtio::{DeviceError, Io, VirtioDevice, read_config_bytes};

/// Device type number (virtio 1.2 section 5).
pub const TYPE_VSOCK: u32 = 19;
/// Queue of buffers for packets to the guest (section 5.10.2).
pub const QUEUE_RX: usize = 0;
/// Queue of packets from the guest.
pub const QUEUE_TX: usize = 1;
/// Queue of buffers for events; one is sent, after a restore.
pub const QUEUE_EVENT: usize = 2;

/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;
/// VIRTIO_F_INDIRECT_DESC (section 6).
const FEATURE_INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6).
const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, as struct virtio_vsock_event.
const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];

const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Most data in one packet to the guest and in one copy from it, in bytes.
const MAX_DATA: usize = 64 << 10;
/// Most packets of each direction in one event: then other devices and the control socket get their turn.
const MAX_PACKETS: usize = 128;
/// How long the end of a machine waits for the host to take what the guest sent.
const FINISH_TIME: Duration = Duration::from_secs(1);

/// A virtio socket device.
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    data: Box<[u8]>,
}

impl Vsock {
    /// A device for a guest with context id `guest_cid` (at least 3). `listener` takes clients of the host; each of
    /// `ports` is a port that the guest may connect to, once, and the connected stream socket behind it.
    ///
    /// # Errors
    /// A descriptor is no socket, or the process is out of descriptors.
    pub fn new(
        guest_cid: u32,
        listener: Option<OwnedFd>,
        ports: impl IntoIterator<Item = (u32, OwnedFd)>,
    ) -> io::Result<Self> {
        let ports: HashMap<u32, UnixStream> =
            ports.into_iter().map(|(port, socket)| (port, UnixStream::from(socket))).collect();
        let muxer = Muxer::new(guest_cid, listener.map(UnixListener::from), ports)?;
        Ok(Self { guest_cid, muxer, data: vec![0; MAX_DATA].into_boxed_slice() })
    }

    /// Moves packets both ways until one side has no more, or the bound is reached.
    fn pump(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let mut again = self.transmit(io)?;
        let held_up = self.muxer.is_full();
        again |= self.deliver(io)?;
        if again || (held_up && !self.muxer.is_full()) {
            self.muxer.wake();
        }
        Ok(())
    }

    /// Takes packets from the guest. True if there may be more.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(QUEUE_TX).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        let mut taken = 0;
        queue.disable_notification(memory)?;
        let more = loop {
            if self.muxer.is_full() {
                // Continued when the guest takes what is due to it.
                break false;
            }
            if taken == MAX_PACKETS {
                break true;
            }
            let Some(request) = next_request(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break false;
            };
            self.take(io.memory, &request)?;
            answer(queue, memory, request.head, 0)?;
            taken += 1;
        };
        if taken > 0 && queue.needs_notification(memory)? {
            io.interrupt.queue_used(QUEUE_TX);
        }
        Ok(more)
    }

    fn take(
        &mut self,
        memory: &crate::memory::GuestMemoryMmap,
        request: &Request,
    ) -> Result<(), DeviceError> {
        let mut bytes = [0; HEADER_SIZE];
        request.readable.read(memory, 0, &mut bytes)?;
        let header = Header::decode(&bytes);
        let start = HEADER_SIZE as u64;
        if request.readable.len() - start < u64::from(header.len) {
            return Err(DeviceError::Request("a packet is shorter than its header says"));
        }
        let (muxer, copy) = (&mut self.muxer, &mut self.data);
        muxer.receive(&header, |sink| {
            let mut offset = 0;
            while offset < u64::from(header.len) {
                let left = usize::try_from(u64::from(header.len) - offset).unwrap_or(usize::MAX);
                let part = &mut copy[..left.min(MAX_DATA)];
                request.readable.read(memory, start + offset, part)?;
                sink(part);
                offset += part.len() as u64;
            }
            Ok(())
        })
    }

    /// Puts packets into the guest's buffers. True if there may be more.
    fn deliver(&mut self, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(QUEUE_RX).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        let mut delivered = 0;
        // New buffers are of interest only while packets wait for them.
        queue.disable_notification(memory)?;
        let more = loop {
            if !self.muxer.has_packet() {
                break false;
            }
            if delivered == MAX_PACKETS {
                break true;
            }
            let Some(request) = next_request(queue, memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break false;
            };
            let space = usize::try_from(request.writable.len()).unwrap_or(usize::MAX);
            if space <= HEADER_SIZE || !request.readable.is_empty() {
                return Err(DeviceError::Request("a buffer for packets has no room for one"));
            }
            let room = (space - HEADER_SIZE).min(MAX_DATA);
            let Some(header) = self.muxer.next_packet(&mut self.data[..room]) else {
                queue.go_to_previous_position();
                break false;
            };
            request.writable.write(memory, 0, &header.encode())?;
            let length = usize::try_from(header.len).unwrap_or(usize::MAX).min(room);
            request.writable.write(memory, HEADER_SIZE as u64, &self.data[..length])?;
            // Neither term exceeds MAX_DATA.
            let written = u32::try_from(HEADER_SIZE + length).unwrap_or(u32::MAX);
            answer(queue, memory, request.head, written)?;
            delivered += 1;
        };
        if delivered > 0 && queue.needs_notification(memory)? {
            io.interrupt.queue_used(QUEUE_RX);
        }
        Ok(more)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        TYPE_VSOCK
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM | FEATURE_INDIRECT | FEATURE_EVENT_IDX
    }

    fn set_features(&mut self, _accepted: u64) {
        // Streams are implied, and the rest is the queues' affair.
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        if index == QUEUE_EVENT { Ok(()) } else { self.pump(io) }
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.muxer.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.muxer.on_host_events()?;
        self.pump(io)
    }

    fn reset(&mut self) {
        self.muxer.reset();
    }

    fn save(&self) -> Result<Vec<u8>, Refusal> {
        // Connections are the host's: the driver is told that they are gone.
        Ok(self.muxer.next_host_port().to_le_bytes().to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Refusal> {
        let port = <[u8; 4]>::try_from(state).map(u32::from_le_bytes);
        if port.is_ok_and(|port| self.muxer.continue_from(port)) {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::Invalid, "vsock: the snapshot holds no state of a socket device"))
    }

    /// All connections of before are gone, and the context id may be another (section 5.10.6.7, transport reset).
    fn restored(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Some(queue) = io.queues.get_mut(QUEUE_EVENT).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        if let Some(request) = next_request(queue, io.memory)? {
            request.writable.write(io.memory, 0, &EVENT_TRANSPORT_RESET)?;
            answer(queue, io.memory, request.head, 4)?;
            io.interrupt.queue_used(QUEUE_EVENT);
        }
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.muxer.finish(FINISH_TIME);
    }
}
