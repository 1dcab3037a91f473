//! The console (virtio 1.2 section 5.3): one port, whose output goes where the serial port's does.
//!
//! The guest's words are kept in a ring buffer for diagnosis; nobody types. Of a longer write only the end is looked at, which
//! is all that the ring can hold.

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::command::Counter;
use super::serve::{Served, serve};
use super::wake::Wake;
use super::{DeviceError, Io, VirtioDevice, stateless};
use crate::console::ConsoleRing;
use crate::control::{MAX_CONSOLE, Refusal};

/// Queues (section 5.3.2): what is typed, of which there is nothing, and what is printed.
const QUEUE_SIZES: &[u16] = &[16, 64];
const QUEUE_OUTPUT: usize = 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE (section 5.3.3): a character can be printed without a queue.
const FEATURE_EMERGENCY: u64 = 1 << 2;
/// Where such a character is written (section 5.3.4).
const EMERGENCY: usize = 8;

/// A console.
#[derive(Debug)]
pub struct Console {
    ring: ConsoleRing,
    wake: Wake,
    bytes: u64,
}

impl Console {
    /// A console that prints into a ring.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(ring: ConsoleRing) -> io::Result<Self> {
        Ok(Self { ring, wake: Wake::new()?, bytes: 0 })
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &str {
        "console"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_EMERGENCY | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn set_features(&mut self, _accepted: u64) {}

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (EMERGENCY, Some(character)) = (offset, data.first()) {
            self.ring.write(&[*character]);
            self.bytes += 1;
        }
    }

    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        if index != QUEUE_OUTPUT {
            return Ok(());
        }
        let Self { ring, wake, bytes } = self;
        serve(index, io, wake, None, |memory, request| {
            if !request.writable.is_empty() {
                return Err(DeviceError::Request("a text to print in buffers to write to"));
            }
            let length = request.readable.len();
            let kept = length.min(MAX_CONSOLE as u64);
            let mut text = vec![0; usize::try_from(kept).unwrap_or(0)];
            request.readable.read(memory, length - kept, &mut text)?;
            ring.write(&text);
            *bytes += length;
            Ok(Served { written: 0, moved: length })
        })
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.wake.take()?;
        self.queue_event(QUEUE_OUTPUT, io)
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Vec<u8>, Refusal> {
        // What was printed is the host's.
        Ok(Vec::new())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Refusal> {
        stateless(self.name(), state)
    }

    fn counters(&self) -> Vec<Counter> {
        vec![("printed_bytes", self.bytes)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, END};

    const TEXT: u64 = 0x1_0000;

    #[test]
    fn prints_into_the_ring() {
        let ring = ConsoleRing::default();
        let mut console = Console::new(ring.clone()).unwrap();
        let mut driver = Driver::with_queues(2);
        driver.write(TEXT, b"hello, world\n");
        driver.chain_on(QUEUE_OUTPUT, 0, &[(TEXT, 5, false), (TEXT + 5, 8, false)]);
        driver.notify_on(QUEUE_OUTPUT, &mut console).unwrap();
        assert_eq!(driver.used_on(QUEUE_OUTPUT), Some((0, 0)));
        // Buffers for what is typed stay where they are.
        driver.chain_on(0, 0, &[(TEXT, 64, true)]);
        driver.notify_on(0, &mut console).unwrap();
        assert_eq!(driver.used_on(0), None);
        for (offset, data) in [(EMERGENCY, &[b'!', 0, 0, 0][..]), (0, b"no"), (9, b"no"), (EMERGENCY, b"")] {
            console.write_config(offset, data);
        }
        assert_eq!(ring.text(), "hello, world\n!");
        assert_eq!(console.counters(), [("printed_bytes", 14)]);
    }

    #[test]
    fn of_a_long_text_only_the_end_is_looked_at() {
        let ring = ConsoleRing::default();
        let mut console = Console::new(ring.clone()).unwrap();
        let mut driver = Driver::with_queues(2);
        driver.write(TEXT, &vec![b'a'; 0x4_0000]);
        driver.write(TEXT + 0x4_0000 - 3, b"end");
        // What comes before may not even exist.
        driver.chain_on(QUEUE_OUTPUT, 0, &[(END, 0x7000_0000, false), (TEXT, 0x4_0000, false)]);
        driver.notify_on(QUEUE_OUTPUT, &mut console).unwrap();
        let text = ring.text();
        assert_eq!(text.len(), MAX_CONSOLE);
        assert!(text.ends_with("aaaend"));
    }

    #[test]
    fn a_driver_that_breaks_the_queue_loses_its_device() {
        for parts in [&[(END, 1, false)][..], &[(TEXT, 1, true)], &[(u64::MAX, 5, false)]] {
            let mut console = Console::new(ConsoleRing::default()).unwrap();
            let mut driver = Driver::with_queues(2);
            driver.chain_on(QUEUE_OUTPUT, 0, parts);
            assert!(driver.notify_on(QUEUE_OUTPUT, &mut console).is_err());
        }
    }
}
