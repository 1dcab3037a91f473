//! A driver that does what bytes say: requests that are nearly right, and all that is plainly wrong.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::GuestMemoryMmap;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Input;
use super::device::{self, Kind, World};
use crate::config::{Bucket, RateLimit};
use crate::virtio::command::{Command, Counter};
use crate::virtio::{DeviceError, Interrupt, Io, NoDriver, VirtioDevice};

#[cfg(test)]
mod classes;

const SIZE: u16 = 256;
/// Two regions of memory that touch at the seam, and nothing beyond the end.
const SEAM: u64 = 0x8_0000;
const END: u64 = 0x10_0000;
/// Where each queue's rings begin: a page each for descriptors, available and used ring.
const RINGS: u64 = 0x1000;
/// Where requests and their data lie.
const DATA: u64 = 0x2_0000;
const TABLE: u64 = 0x1_e000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Counts interrupts.
#[derive(Debug, Default)]
struct Interrupts(AtomicU64);

impl Interrupt for Interrupts {
    fn queue_used(&self, _index: usize) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A device under attack.
pub struct Attack {
    kind: Kind,
    // Goes before the device, which would wait for it to take what the guest sent.
    world: World,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    available: Vec<u16>,
    interrupts: Interrupts,
    requests: u64,
    losses: u64,
}

impl Attack {
    /// A fresh device, and a driver that has just started it.
    ///
    /// # Panics
    /// The host has no memory or descriptors left.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let (world, device) = device::make(kind);
        let half = usize::try_from(SEAM).expect("a small number");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(SEAM), half)])
            .expect("memory for a guest");
        let count = device.queue_sizes().len();
        let queues = (0..count).map(|_| Queue::new(SIZE).expect("a power of two")).collect();
        let available = vec![0; count];
        let interrupts = Interrupts::default();
        let mut attack =
            Self { kind, world, device, memory, queues, available, interrupts, requests: 0, losses: 0 };
        let features = attack.device.features();
        attack.start(features);
        attack
    }

    /// How many chains were made available.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// How often the driver lost its device, and started it again.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// How often the driver was interrupted.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.interrupts.0.load(Ordering::Relaxed)
    }

    /// What the device has counted.
    #[must_use]
    pub fn counters(&self) -> Vec<Counter> {
        self.device.counters()
    }

    /// What must hold at the end.
    ///
    /// # Panics
    /// It does not.
    pub fn check(&self) {
        self.world.check();
    }

    fn start(&mut self, features: u64) {
        self.device.reset();
        self.device.set_features(features & self.device.features());
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.reset();
            let at = RINGS + 0x4000 * index as u64;
            let set = queue
                .try_set_desc_table_address(GuestAddress(at))
                .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(at + 0x1000)))
                .and_then(|()| queue.try_set_used_ring_address(GuestAddress(at + 0x2000)));
            set.expect("aligned addresses");
            queue.set_event_idx(features & 1 << 29 != 0);
            queue.set_ready(true);
        }
        self.available.fill(0);
        for index in 0..self.queues.len() {
            self.write(RINGS + 0x4000 * index as u64 + 0x1000, &[0; 4]);
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // Beyond memory there is nothing to write to, for a driver either.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table.wrapping_add(16 * u64::from(index)), &raw);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let ring = RINGS + 0x4000 * queue as u64 + 0x1000;
        let next = self.available[queue];
        self.write(ring + 4 + 2 * u64::from(next % SIZE), &head.to_le_bytes());
        self.available[queue] = next.wrapping_add(1);
        self.write(ring + 2, &self.available[queue].to_le_bytes());
        self.requests += 1;
    }

    /// Lends the queues to the device, and starts it again if it was lost.
    fn event(&mut self, serve: impl FnOnce(&mut dyn VirtioDevice, &mut Io<'_>) -> Result<(), DeviceError>) {
        let mut io = Io { memory: &self.memory, queues: &mut self.queues, interrupt: &self.interrupts };
        if serve(self.device.as_mut(), &mut io).is_err() {
            self.losses += 1;
            let features = self.device.features();
            self.start(features);
        }
    }

    /// Does one thing; `None` when there are no bytes left to decide by.
    pub fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = input.below(self.queues.len())?;
        match input.u8()? % 24 {
            // Something like a request.
            0..=11 => self.request(queue, input)?,
            12 => {
                let (address, length) = (address(input)?, length(input)?);
                let table = RINGS + 0x4000 * queue as u64;
                self.descriptor(table, input.u16()? % SIZE, address, length, input.u16()? % 8, input.u16()?);
            }
            13 => {
                let head = input.u16()?;
                self.offer(queue, head);
            }
            14 => {
                let index = input.u16()?;
                self.write(RINGS + 0x4000 * queue as u64 + 0x1002, &index.to_le_bytes());
                self.requests += 1;
                self.event(|device, io| device.queue_event(queue, io));
            }
            15 | 16 => self.event(|device, io| device.queue_event(queue, io)),
            17 | 18 => self.event(|device, io| device.host_event(io)),
            19 | 20 => self.world.act(input)?,
            21 => {
                let at = address(input)?;
                self.write(at, input.bytes(8)?);
            }
            22 => self.configuration(input)?,
            _ => {
                // A device half reset: its rings are as they were, but for the index.
                let features = input.u64()?;
                self.start(features);
            }
        }
        Some(())
    }

    fn request(&mut self, queue: usize, input: &mut Input<'_>) -> Option<()> {
        let header = device::header(self.kind, input)?;
        let at = DATA + 0x1000 * u64::from(input.u8()? % 32);
        self.write(at, &header);
        let shape = input.u8()?;
        let mut parts = vec![(at, u32::try_from(header.len()).ok()?, 0)];
        for _ in 0..shape % 4 {
            let odds = if device::has_answers(self.kind) { 2 } else { 16 };
            let flags = if input.u8()? % odds == 1 { WRITE } else { 0 };
            parts.push((address(input)?, length(input)?, flags));
        }
        // Most requests end in room for an answer, and have what is read before what is written.
        if shape & 0x30 != 0 && (device::has_answers(self.kind) || shape & 0x3c == 0x3c) {
            parts.push((DATA + 0x3_0000, if shape & 0x40 == 0 { 1 } else { 4096 }, WRITE));
        }
        if shape & 0x80 == 0 {
            parts.sort_by_key(|part| part.2);
        }
        if device::is_for_buffers(self.kind, queue) && shape % 16 != 15 {
            parts.iter_mut().for_each(|part| part.2 = WRITE);
        }
        let first = u16::from(input.u8()?) % (SIZE - 8);
        let indirect = shape & 0x0c == 0x0c;
        let (table, base) = if indirect { (TABLE, 0) } else { (RINGS + 0x4000 * queue as u64, first) };
        for (index, (address, length, flags)) in (base..).zip(&parts) {
            let last = usize::from(index - base) + 1 == parts.len();
            let next = if last { 0 } else { NEXT };
            self.descriptor(table, index, *address, *length, flags | next, index + 1);
        }
        if indirect {
            let bytes = u32::try_from(16 * parts.len()).ok()?;
            self.descriptor(RINGS + 0x4000 * queue as u64, first, TABLE, bytes, INDIRECT, 0);
        }
        self.offer(queue, first);
        // Sometimes several before the device is told.
        if shape & 3 != 3 {
            self.event(|device, io| device.queue_event(queue, io));
        }
        Some(())
    }

    /// Fills a queue with one request, over and over, and tells the device once. Returns how many each event served, until the
    /// device wants no more events.
    #[cfg(test)]
    pub fn flood(&mut self, queue: usize, request: &[u8], answer: u32) -> Vec<u16> {
        self.write(DATA, request);
        let rings = RINGS + 0x4000 * queue as u64;
        let length = u32::try_from(request.len()).expect("a short request");
        let mut at = 0;
        if length > 0 {
            self.descriptor(rings, at, DATA, length, if answer > 0 { NEXT } else { 0 }, at + 1);
            at += 1;
        }
        if answer > 0 {
            self.descriptor(rings, at, DATA + 0x1000, answer, WRITE, 0);
        }
        for _ in 0..SIZE {
            self.offer(queue, 0);
        }
        let mut served = Vec::new();
        let mut before = 0;
        self.event(|device, io| device.queue_event(queue, io));
        loop {
            let used = self.queues[queue].next_used();
            served.push(used.wrapping_sub(before));
            before = used;
            assert!(served.len() < 1000, "the device never rests: {served:?}");
            if !crate::virtio::testing::rings_within(self.device.as_ref(), 0) {
                return served;
            }
            self.event(|device, io| device.host_event(io));
        }
    }

    fn configuration(&mut self, input: &mut Input<'_>) -> Option<()> {
        let offset = usize::from(input.u16()? % 300);
        let mut data = [0; 8];
        let width = input.below(9)?;
        self.device.read_config(offset, &mut data[..width]);
        self.device.write_config(offset, &data[..width]);
        let bucket = Bucket { per_second: u64::from(input.u32()?), burst: u64::from(input.u32()?) };
        let limit = RateLimit { bytes: Some(bucket), operations: None };
        let command = match input.u8()? % 6 {
            0 => Command::LimitDisk(limit),
            1 => Command::LimitNet { receive: limit, send: RateLimit::default() },
            2 => Command::ResizeBalloon { mib: input.u32()? % 3 },
            3 => Command::AskStatistics,
            4 => Command::SetLink { up: false },
            _ => Command::SetLink { up: true },
        };
        let quiet: &dyn Interrupt = &NoDriver;
        let _ = self.device.command(&command, quiet);
        // So that nobody waits for a limit: that would be an attack on the test only.
        let free = RateLimit::default();
        let _ = self.device.command(&Command::LimitDisk(free), quiet);
        let _ = self.device.command(&Command::LimitNet { receive: free, send: free }, quiet);
        let _ = self.device.counters();
        Some(())
    }
}

/// Mostly in memory; at its seam, at its end, in the rings, or anywhere.
fn address(input: &mut Input<'_>) -> Option<u64> {
    let near = u64::from(input.u16()?);
    Some(match input.u8()? % 16 {
        0..=9 => DATA + (near << 2),
        10 | 11 => SEAM - near % 600,
        12 => END - near % 600,
        13 => RINGS + near % 0x1_0000,
        14 => u64::MAX - near,
        _ => input.u64()?,
    })
}

fn length(input: &mut Input<'_>) -> Option<u32> {
    let near = u32::from(input.u8()?);
    Some(match input.u8()? % 16 {
        0..=7 => near,
        8..=11 => 512 * (near % 16),
        12 => 4096 * (near % 20),
        13 => 0x8_0000 - near,
        14 => u32::MAX - near,
        _ => input.u32()?,
    })
}
