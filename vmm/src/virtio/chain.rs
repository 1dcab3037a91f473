//! Descriptor chains as two bounded lists of memory: what the device reads, then what it writes.
//!
//! Every shape that virtio 1.2 section 2.7.4 allows comes out the same: a request header may be split over descriptors, data
//! may share a descriptor with it, a buffer may cross memory regions. What the rules forbid is an error here, so that
//! devices need not look again.

use std::ops::Deref;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::memory::{GuestMemoryMmap, VolatileSlice};

use super::DeviceError;

/// Layout of the rings (virtio 1.2 sections 2.7.6 and 2.7.8): bytes before the elements, bytes of an element.
const AVAILABLE_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
/// The available ring's flag by which a driver asks not to be interrupted.
const NO_INTERRUPT: u16 = 1;

/// One run of guest memory that a descriptor names. Not yet known to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub length: u32,
}

/// Segments in chain order, addressed as one run of bytes.
#[derive(Debug, Default)]
pub struct Buffer {
    segments: Vec<Segment>,
    length: u64,
}

impl Buffer {
    /// Total length in bytes, less than 2^32 (virtio 1.2 section 2.7.5.2).
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn push(&mut self, segment: Segment) {
        self.length += u64::from(segment.length);
        self.segments.push(segment);
    }

    /// Address and length in bytes of each descriptor, in order. Not yet known to exist.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddress, u64)> + '_ {
        self.segments.iter().map(|segment| (segment.address, u64::from(segment.length)))
    }

    /// The parts that make up `length` bytes from `offset`; fewer where the buffer ends.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
        let mut skip = offset;
        let mut left = length;
        self.segments.iter().filter_map(move |segment| {
            let size = u64::from(segment.length);
            if skip >= size {
                skip -= size;
                return None;
            }
            let take = (size - skip).min(left);
            // An address that overflows cannot be in memory: saturated, it fails the later look-up.
            let address = GuestAddress(segment.address.0.saturating_add(skip));
            skip = 0;
            left -= take;
            (take > 0).then(|| (address, usize::try_from(take).unwrap_or(usize::MAX)))
        })
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    /// The buffer is shorter than `offset + data.len()`, or names memory that the guest does not have.
    pub fn read(&self, memory: &GuestMemoryMmap, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let mut done = 0;
        for (address, length) in self.parts(offset, data.len() as u64) {
            memory.read_slice(&mut data[done..done + length], address)?;
            done += length;
        }
        if done == data.len() { Ok(()) } else { Err(DeviceError::Request("buffer too short")) }
    }

    /// Copies bytes into the buffer.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, memory: &GuestMemoryMmap, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut done = 0;
        for (address, length) in self.parts(offset, data.len() as u64) {
            memory.write_slice(&data[done..done + length], address)?;
            done += length;
        }
        if done == data.len() { Ok(()) } else { Err(DeviceError::Request("buffer too short")) }
    }

    /// The guest memory behind `length` bytes from `offset`, appended to `slices`: one entry per descriptor and region.
    ///
    /// # Errors
    /// The buffer is shorter, or names memory that the guest does not have.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u64,
        length: u64,
        slices: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), DeviceError> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(DeviceError::Request("buffer too short"));
        }
        for (address, size) in self.parts(offset, length) {
            for slice in GuestMemory::get_slices(memory, address, size, vm_memory::Permissions::ReadWrite)? {
                slices.push(slice?);
            }
        }
        Ok(())
    }
}

/// A request as the driver laid it out.
#[derive(Debug, Default)]
pub struct Request {
    /// Where the answer's head index goes.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffer,
    /// What the device may write.
    pub writable: Buffer,
}

/// Takes the next request from a queue; `None` when the queue is empty. Never more than the queue's size of descriptors.
///
/// # Errors
/// The available index, a descriptor index or the shape of the chain breaks the rules: too long or looping, a
/// readable descriptor after a writable one, an indirect table in another.
pub fn next_request(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Option<Request>, DeviceError> {
    let size = queue.size();
    let Some(chain) = queue.iter(memory)?.next() else {
        return Ok(None);
    };
    collect(chain, size).map(Some)
}

fn collect<M>(chain: DescriptorChain<M>, limit: u16) -> Result<Request, DeviceError>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let mut request = Request { head: chain.head_index(), ..Request::default() };
    let mut ended = false;
    let mut count = 0;
    for descriptor in chain {
        count += 1;
        if count > limit {
            return Err(QueueError::InvalidChain.into());
        }
        let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
        if descriptor.is_write_only() {
            request.writable.push(segment);
        } else if request.writable.segments.is_empty() {
            request.readable.push(segment);
        } else {
            return Err(DeviceError::Request("a readable descriptor follows a writable one"));
        }
        ended = !descriptor.has_next();
    }
    // The iterator stops without a word at a loop, a bad index, a bad table or unreadable memory: then the last
    // descriptor it gave, if any, still promises a next one.
    if ended { Ok(request) } else { Err(QueueError::InvalidChain.into()) }
}

/// Puts an answer into the used ring. `written` is the number of bytes that the device wrote, from the buffer's start.
///
/// # Errors
/// The used ring cannot be written.
pub fn answer(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    head: u16,
    written: u32,
) -> Result<(), DeviceError> {
    queue.add_used(memory, head, written).map_err(DeviceError::from)
}

/// Puts several answers into the used ring such that the driver sees either none of them or all: for one frame that fills
/// several buffers. Whether the driver wants an interrupt is then a question for [`wants_interrupt`].
///
/// # Errors
/// The used ring cannot be written.
pub fn answer_together(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    answers: &[(u16, u32)],
) -> Result<(), DeviceError> {
    let Some(((head, written), earlier)) = answers.split_last() else { return Ok(()) };
    let size = queue.size();
    let first = queue.next_used();
    for (position, (head, written)) in (0u16..).zip(earlier) {
        let slot = first.wrapping_add(position) % size;
        let address = queue.used_ring().checked_add(USED_HEADER + USED_ELEMENT * u64::from(slot));
        let address = GuestAddress(address.ok_or(QueueError::AddressOverflow)?);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory.write_slice(&element, address)?;
    }
    let count = u16::try_from(earlier.len()).map_err(|_| QueueError::InvalidChain)?;
    queue.set_next_used(first.wrapping_add(count));
    // The last one moves the index past all of them.
    answer(queue, memory, *head, *written)
}

/// Whether the driver wants an interrupt for what was answered since the used index was `before` (section 2.7.7).
///
/// # Errors
/// The available ring cannot be read.
pub fn wants_interrupt(queue: &Queue, memory: &GuestMemoryMmap, before: u16) -> Result<bool, DeviceError> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    // What was answered must be visible before the driver's wish is read.
    fence(Ordering::SeqCst);
    let ring = queue.avail_ring();
    let word = |offset: u64| -> Result<u16, DeviceError> {
        let address = GuestAddress(ring.checked_add(offset).ok_or(QueueError::AddressOverflow)?);
        Ok(u16::from_le(memory.load(address, Ordering::Relaxed)?))
    };
    if queue.event_idx_enabled() {
        let wished = word(AVAILABLE_HEADER + AVAILABLE_ELEMENT * u64::from(queue.size()))?;
        return Ok(now.wrapping_sub(wished).wrapping_sub(1) < now.wrapping_sub(before));
    }
    Ok(word(0)? & NO_INTERRUPT == 0)
}
