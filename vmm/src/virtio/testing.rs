//! A driver for unit tests: lays out a queue in guest memory and plays requests against a device, well-formed or not.

use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

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

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

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
pub struct Counter(pub AtomicUsize);

impl Interrupt for Counter {
    fn queue_used(&self, _index: usize) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {}
}

/// One queue and its driver.
pub struct Driver {
    pub memory: GuestMemoryMmap,
    pub queue: Queue,
    pub interrupts: Counter,
    available: u16,
    used: u16,
}

impl Driver {
    pub fn new() -> Self {
        let half = usize::try_from(SEAM).unwrap();
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(SEAM), half)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self { memory, queue, interrupts: Counter::default(), available: 0, used: 0 }
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
        self.descriptor_at(DESCRIPTORS, index, descriptor);
    }

    /// Makes `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Sets the available index to anything.
    pub fn set_available(&self, index: u16) {
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// Lays out a chain of `(address, length, writable)` from descriptor 0 and offers it.
    pub fn chain(&mut self, parts: &[(u64, u32, bool)]) {
        for (index, (address, length, writable)) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let index = u16::try_from(index).unwrap();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(index, (*address, *length, flags, index + 1));
        }
        self.offer(0);
    }

    /// Notifies the device.
    pub fn notify(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        let mut io = Io {
            memory: &self.memory,
            queues: std::slice::from_mut(&mut self.queue),
            interrupt: &self.interrupts,
        };
        device.queue_event(0, &mut io)
    }

    /// Lets the device serve its own descriptor.
    pub fn host_event(&mut self, device: &mut dyn VirtioDevice) -> Result<(), DeviceError> {
        let mut io = Io {
            memory: &self.memory,
            queues: std::slice::from_mut(&mut self.queue),
            interrupt: &self.interrupts,
        };
        device.host_event(&mut io)
    }

    /// The next used element: head and length.
    pub fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = USED + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
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
