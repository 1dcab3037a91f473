//! A driver for unit tests: lays out a queue in guest memory and plays requests against a device, well-formed or not.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::memory::GuestMemoryMmap;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{DeviceError, Interrupt, Io, VirtioDevice};

/// Descriptor flags (virtio 1.2 section 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Guest memory of the tests: two regions that touch at [`SEAM`], nothing beyond [`END`].
pub const SEAM: u64 = 0x8_0000;
pub const END: u64 = 0x10_0000;
/// Queue size of the tests.
pub const SIZE: u16 = 16;

/// Where the rings of a queue lie: descriptors, available ring, used ring, a page each.
fn rings(queue: usize) -> u64 {
    if queue == 0 { 0x1000 } else { 0xe_0000 + 0x3000 * (queue as u64 - 1) }
}

fn available(queue: usize) -> u64 {
    rings(queue) + 0x1000
}

fn used(queue: usize) -> u64 {
    rings(queue) + 0x2000
}

/// A small reproducible generator (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number of up to so many bits, small ones as often as large ones.
    pub fn magnitude(&mut self, bits: u64) -> u64 {
        let size = 1 + self.below(bits);
        self.below(1 << size)
    }
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct Counter(pub AtomicUsize, pub AtomicUsize);

impl Counter {
    /// Changes of the configuration that were told.
    pub fn changes(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }
}

impl Interrupt for Counter {
    fn queue_used(&self, _index: usize) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// Some queues and their driver. What names no queue means the first.
pub struct Driver {
    pub memory: GuestMemoryMmap,
    pub queues: Vec<Queue>,
    pub interrupts: Counter,
    available: Vec<u16>,
    used: Vec<u16>,
}

impl Driver {
    pub fn new() -> Self {
        Self::with_queues(1)
    }

    pub fn with_queues(count: usize) -> Self {
        let half = usize::try_from(SEAM).unwrap();
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(SEAM), half)]).unwrap();
        Self::with_memory(memory, count)
    }

    /// With memory of two regions, as [`Self::with_queues`] has.
    pub fn with_memory(memory: GuestMemoryMmap, count: usize) -> Self {
        let queues = (0..count).map(|index| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(rings(index))).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(available(index))).unwrap();
            queue.try_set_used_ring_address(GuestAddress(used(index))).unwrap();
            queue.set_ready(true);
            assert!(queue.is_valid(&memory));
            queue
        });
        let queues = queues.collect();
        let interrupts = Counter::default();
        Self { memory, queues, interrupts, available: vec![0; count], used: vec![0; count] }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Writes descriptor `index` of the queue's table.
    pub fn descriptor(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.descriptor_at(rings(0), index, descriptor);
    }

    /// Makes `head` available.
    pub fn offer(&mut self, head: u16) {
        self.offer_on(0, head);
    }

    pub fn offer_on(&mut self, queue: usize, head: u16) {
        let slot = available(queue) + 4 + 2 * u64::from(self.available[queue] % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory.write_obj(self.available[queue], GuestAddress(available(queue) + 2)).unwrap();
    }

    /// Sets the available index to anything.
    pub fn set_available(&self, index: u16) {
        self.memory.write_obj(index, GuestAddress(available(0) + 2)).unwrap();
    }

    /// Lays out a chain of `(address, length, writable)` from descriptor 0 and offers it.
    pub fn chain(&mut self, parts: &[(u64, u32, bool)]) {
        self.chain_on(0, 0, parts);
    }

    /// As [`Self::chain`], from descriptor `first` of any queue.
    pub fn chain_on(&mut self, queue: usize, first: u16, parts: &[(u64, u32, bool)]) {
        for (index, (address, length, writable)) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let index = first + u16::try_from(index).unwrap();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor_at(rings(queue), index, (*address, *length, flags, index + 1));
        }
        self.offer_on(queue, first);
    }

    /// What a transport lends to a device.
    pub fn io(&mut self) -> Io<'_> {
        Io { memory: &self.memory, queues: &mut self.queues, interrupt: &self.interrupts }
    }

    /// Notifies the device.
    pub fn notify(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        self.notify_on(0, device)
    }

    pub fn notify_on(&mut self, queue: usize, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        device.queue_event(queue, &mut self.io())
    }

    /// Lets the device serve its own descriptor.
    pub fn host_event(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        device.host_event(&mut self.io())
    }

    /// The available index at which the device wants to be notified (VIRTIO_F_EVENT_IDX).
    pub fn avail_event(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(used(queue) + 4 + 8 * u64::from(SIZE))).unwrap()
    }

    /// The next used element: head and length.
    pub fn used(&mut self) -> Option<(u32, u32)> {
        self.used_on(0)
    }

    pub fn used_on(&mut self, queue: usize) -> Option<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(used(queue) + 2)).unwrap();
        if index == self.used[queue] {
            return None;
        }
        let slot = used(queue) + 4 + 8 * u64::from(self.used[queue] % SIZE);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let head = self.memory.read_obj(GuestAddress(slot)).unwrap();
        Some((head, self.memory.read_obj(GuestAddress(slot + 4)).unwrap()))
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Whether a device wants to be called, waiting for at most so many milliseconds.
pub fn rings_within(device: &dyn VirtioDevice, patience: u16) -> bool {
    use std::os::fd::BorrowedFd;
    // SAFETY: the device keeps its descriptor open.
    let fd = unsafe { BorrowedFd::borrow_raw(device.host_fd().unwrap()) };
    let mut polled = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, patience).unwrap() == 1
}
