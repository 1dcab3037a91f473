//! The memory balloon (virtio 1.2 section 5.5): memory that the guest gives back to the host.
//!
//! Three ways to it: the supervisor sets a target, and the guest's driver takes so many pages out of its own use (they come
//! back when the target sinks, or, if so configured, when the guest runs short); and the guest reports ranges that are free
//! at the moment, and may use them again without a word. Either way the host's memory behind the pages is let go, and comes
//! back as zeroes when the guest touches it. A guest that names pages it still uses harms nobody but itself.

mod statistics;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::memory::GuestMemoryMmap;

use self::statistics::Statistics;
use super::chain::{Request, answer, next_request};
use super::command::{Command, CommandError, Counter};
use super::serve::{Served, serve};
use super::wake::Wake;
use super::{DeviceError, Interrupt, Io, VirtioDevice, read_config_bytes, sys};
use crate::config::{BalloonConfig, ConfigError};
use crate::control::{Refusal, RefusalKind};

/// Queues (section 5.5.2). The driver numbers those that there are without gaps, so the last two depend on what it accepted.
const QUEUE_INFLATE: usize = 0;
const QUEUE_DEFLATE: usize = 1;
const QUEUE_SIZES: &[u16] = &[128, 128, 16, 128];

/// VIRTIO_BALLOON_F_STATS_VQ, _DEFLATE_ON_OOM and _REPORTING (section 5.5.3).
const FEATURE_STATISTICS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Bytes of a balloon page, whatever the guest's own page size.
const PAGE: u64 = 4096;
/// Pages in a MiB.
const PAGES_PER_MIB: u32 = 256;
/// Most pages in one request; Linux's driver names 256.
const MAX_PAGES: u64 = 1024;
/// Bytes of the configuration space: the target and the actual size, in pages.
const CONFIG_BYTES: usize = 8;
/// Where the driver writes the actual size.
const ACTUAL: usize = 4;

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    features: u64,
    /// Most pages that may be asked for.
    limit: u32,
    target: u32,
    /// What the driver says that it has reached.
    actual: u32,
    accepted: u64,
    /// The statistics buffer that the driver left with us.
    held: Option<u16>,
    statistics: Statistics,
    /// The supervisor wants new statistics.
    asked: bool,
    inflated: u64,
    deflated: u64,
    reported: u64,
    wake: Wake,
}

impl Balloon {
    /// Makes the device for a guest with so many MiB of memory.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(config: &BalloonConfig, memory_mib: u32) -> io::Result<Self> {
        let mut features = FEATURE_STATISTICS;
        if config.deflate_on_oom {
            features |= FEATURE_DEFLATE_ON_OOM;
        }
        if config.free_page_reporting {
            features |= FEATURE_REPORTING;
        }
        Ok(Self {
            features,
            limit: memory_mib.saturating_mul(PAGES_PER_MIB),
            target: config.target_mib.saturating_mul(PAGES_PER_MIB),
            actual: 0,
            accepted: 0,
            held: None,
            statistics: Statistics::default(),
            asked: false,
            inflated: 0,
            deflated: 0,
            reported: 0,
            wake: Wake::new()?,
        })
    }

    fn statistics_queue(&self) -> Option<usize> {
        (self.accepted & FEATURE_STATISTICS != 0).then_some(2)
    }

    fn reporting_queue(&self) -> Option<usize> {
        let before = 2 + usize::from(self.statistics_queue().is_some());
        (self.accepted & FEATURE_REPORTING != 0).then_some(before)
    }

    fn inflate(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Self { wake, inflated, .. } = self;
        serve(QUEUE_INFLATE, io, wake, None, |memory, request| {
            let mut pages = pages(memory, request)?;
            pages.sort_unstable();
            pages.dedup();
            for run in pages.chunk_by(|one, next| one + 1 == *next) {
                discard(memory, GuestAddress(run[0] * PAGE), run.len() as u64 * PAGE)?;
            }
            *inflated += pages.len() as u64;
            Ok(Served { written: 0, moved: pages.len() as u64 * PAGE })
        })
    }

    fn deflate(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Self { wake, deflated, .. } = self;
        serve(QUEUE_DEFLATE, io, wake, None, |memory, request| {
            // The host gives the pages back by itself when they are touched.
            *deflated += pages(memory, request)?.len() as u64;
            Ok(Served::default())
        })
    }

    fn report(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Self { wake, reported, .. } = self;
        serve(queue, io, wake, None, |memory, request| {
            for (address, length) in request.writable.ranges() {
                discard(memory, address, length)?;
                *reported += length;
            }
            Ok(Served { written: 0, moved: request.writable.len() })
        })
    }

    /// Takes statistics from the driver, and keeps its buffer until new ones are wanted.
    fn take_statistics(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let memory = io.memory;
        let Some(queue) = io.queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(()) };
        let mut given_back = false;
        // The driver has one buffer; one that has more gets the earlier ones back.
        for _ in 0..queue.size() {
            let Some(request) = next_request(queue, memory)? else { break };
            self.statistics = Statistics::read(memory, &request.readable)?;
            if let Some(head) = self.held.replace(request.head) {
                answer(queue, memory, head, 0)?;
                given_back = true;
            }
        }
        if self.asked
            && let Some(head) = self.held.take()
        {
            self.asked = false;
            answer(queue, memory, head, 0)?;
            given_back = true;
        }
        if given_back && queue.needs_notification(memory)? {
            io.interrupt.queue_used(index);
        }
        Ok(())
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        config[..ACTUAL].copy_from_slice(&self.target.to_le_bytes());
        config[ACTUAL..].copy_from_slice(&self.actual.to_le_bytes());
        config
    }
}

/// The page numbers of a request.
fn pages(memory: &GuestMemoryMmap, request: &Request) -> Result<Vec<u64>, DeviceError> {
    let bytes = request.readable.len();
    if !request.writable.is_empty() || !bytes.is_multiple_of(4) || bytes > 4 * MAX_PAGES {
        return Err(DeviceError::Request("a list of pages must be a few numbers of four bytes"));
    }
    let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
    request.readable.read(memory, 0, &mut raw)?;
    Ok(raw
        .chunks_exact(4)
        .map(|number| u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]])))
        .collect())
}

/// Lets go of the host's memory behind the whole pages of a range.
fn discard(memory: &GuestMemoryMmap, address: GuestAddress, length: u64) -> Result<(), DeviceError> {
    let overflow = DeviceError::Request("a range of pages that overflows");
    let bounds = address.0.checked_add(length).zip(address.0.checked_next_multiple_of(PAGE));
    let (end, start) = bounds.ok_or(overflow)?;
    let end = end - end % PAGE;
    if start < end {
        sys::discard(memory, GuestAddress(start), end - start)?;
    }
    Ok(())
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &str {
        "balloon"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn set_features(&mut self, accepted: u64) {
        self.accepted = accepted;
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            self.actual = u32::from_le_bytes(actual);
        }
    }

    fn changes_config(&self) -> bool {
        true
    }

    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        match index {
            QUEUE_INFLATE => self.inflate(io),
            QUEUE_DEFLATE => self.deflate(io),
            _ if self.statistics_queue() == Some(index) => self.take_statistics(index, io),
            _ if self.reporting_queue() == Some(index) => self.report(index, io),
            _ => Ok(()),
        }
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.wake.take()?;
        for index in 0..QUEUE_SIZES.len() {
            self.queue_event(index, io)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.accepted = 0;
        self.actual = 0;
        self.held = None;
    }

    fn save(&self) -> Result<Vec<u8>, Refusal> {
        let held = self.held.map_or(u32::MAX, u32::from);
        Ok([self.target, self.actual, held].into_iter().flat_map(u32::to_le_bytes).collect())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Refusal> {
        let malformed =
            || Refusal::new(RefusalKind::Invalid, "balloon: the snapshot holds no state of a balloon");
        let words: Vec<u32> =
            state.chunks(4).filter_map(|word| word.try_into().ok().map(u32::from_le_bytes)).collect();
        let [target, actual, held] = words[..] else { return Err(malformed()) };
        if state.len() != 12 || target > self.limit {
            return Err(malformed());
        }
        // The head of a buffer is checked when it is used, as if the driver had just offered it.
        self.held = if held == u32::MAX { None } else { Some(u16::try_from(held).map_err(|_| malformed())?) };
        (self.target, self.actual) = (target, actual);
        Ok(())
    }

    fn command(&mut self, command: &Command, interrupt: &dyn Interrupt) -> Result<(), CommandError> {
        match command {
            Command::ResizeBalloon { mib } => {
                let target = mib.saturating_mul(PAGES_PER_MIB);
                if target > self.limit {
                    return Err(ConfigError::Balloon(*mib).into());
                }
                if target != self.target {
                    self.target = target;
                    interrupt.config_changed();
                }
            }
            Command::AskStatistics => {
                self.asked = true;
                self.wake.again();
            }
            _ => return Err(CommandError::Unsupported(self.name().to_owned())),
        }
        Ok(())
    }

    fn counters(&self) -> Vec<Counter> {
        let bytes = |pages: u64| pages * PAGE;
        let mut counters = vec![
            ("target_bytes", bytes(u64::from(self.target))),
            ("actual_bytes", bytes(u64::from(self.actual))),
            ("inflated_bytes", bytes(self.inflated)),
            ("deflated_bytes", bytes(self.deflated)),
            ("reported_bytes", self.reported),
        ];
        counters.extend(self.statistics.counters());
        counters
    }
}
