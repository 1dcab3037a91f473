//! A virtio-mmio driver as payload code: everything that it writes is known when it is assembled.

use super::assembler::Code;

pub const STATUS: u64 = 0x70;
pub const QUEUE_SELECT: u64 = 0x30;
pub const QUEUE_SIZE: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const INTERRUPT_ACK: u64 = 0x64;
pub const QUEUE_DESCRIPTORS: u64 = 0x80;
pub const QUEUE_AVAILABLE: u64 = 0x90;
pub const QUEUE_USED: u64 = 0xa0;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;

/// Acknowledge, driver, features OK, driver OK.
pub const RUNNING: u32 = 15;
pub const NEEDS_RESET: u32 = 64;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// A device and the one queue that is driven.
pub struct Driver {
    /// Address of its registers.
    pub base: u64,
    /// Where the queue lies: a page each for descriptors, available and used ring.
    pub rings: u64,
    available: u16,
}

/// Queue size.
pub const SIZE: u16 = 8;

impl Driver {
    /// For the machine's device `index`.
    pub fn new(index: u64) -> Self {
        Self { base: 0xd000_0000 + 0x1000 * index, rings: 0x80_0000 + 0x1_0000 * index, available: 0 }
    }

    pub fn available(&self) -> u64 {
        self.rings + 0x1000
    }

    pub fn used(&self) -> u64 {
        self.rings + 0x2000
    }

    /// Resets, negotiates VERSION_1 and nothing else.
    pub fn negotiate(&mut self, code: &mut Code) {
        self.available = 0;
        code.store32(self.base + STATUS, 0).expect32(self.base + STATUS, 0, "reset");
        code.store16(self.available() + 2, 0).store16(self.used() + 2, 0);
        code.store32(self.base + STATUS, 1).store32(self.base + STATUS, 3);
        code.store32(self.base + DRIVER_FEATURES_SELECT, 0).store32(self.base + DRIVER_FEATURES, 0);
        code.store32(self.base + DRIVER_FEATURES_SELECT, 1).store32(self.base + DRIVER_FEATURES, 1);
        code.store32(self.base + STATUS, 11).expect32(self.base + STATUS, 11, "features");
    }

    /// Writes the queue's registers.
    pub fn configure(&self, code: &mut Code, size: u32, descriptors: u64, available: u64, used: u64) {
        code.store32(self.base + QUEUE_SELECT, 0).store32(self.base + QUEUE_SIZE, size);
        for (register, address) in
            [(QUEUE_DESCRIPTORS, descriptors), (QUEUE_AVAILABLE, available), (QUEUE_USED, used)]
        {
            code.store32(self.base + register, u32::try_from(address & 0xffff_ffff).unwrap());
            code.store32(self.base + register + 4, u32::try_from(address >> 32).unwrap());
        }
        code.store32(self.base + QUEUE_READY, 1);
    }

    /// The whole way to DRIVER_OK.
    pub fn start(&mut self, code: &mut Code) {
        self.negotiate(code);
        self.configure(code, u32::from(SIZE), self.rings, self.available(), self.used());
        code.expect32(self.base + QUEUE_READY, 1, "queue");
        code.store32(self.base + STATUS, RUNNING).expect32(self.base + STATUS, RUNNING, "driver ok");
    }

    /// Writes one descriptor.
    pub fn descriptor(&self, code: &mut Code, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.rings + 16 * u64::from(index);
        code.store64(at, address);
        code.store64(at + 8, u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    /// Makes a descriptor chain available and notifies the device.
    pub fn offer(&mut self, code: &mut Code, head: u16) {
        code.store16(self.available() + 4 + 2 * u64::from(self.available % SIZE), head);
        self.available += 1;
        code.store16(self.available() + 2, self.available);
        code.store32(self.base + QUEUE_NOTIFY, 0);
    }

    /// Offers a chain of `(address, length, writable)` and waits for it to be used.
    pub fn request(&mut self, code: &mut Code, parts: &[(u64, u32, bool)]) {
        self.chain(code, parts);
        self.offer(code, 0);
        code.wait16(self.used() + 2, self.available);
    }

    /// Lays out a chain from descriptor 0.
    pub fn chain(&self, code: &mut Code, parts: &[(u64, u32, bool)]) {
        for (index, (address, length, writable)) in (0u16..).zip(parts) {
            let last = usize::from(index) + 1 == parts.len();
            let flags = if *writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(code, index, *address, *length, flags, index + 1);
        }
    }
}
