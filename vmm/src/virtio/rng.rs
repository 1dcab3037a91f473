//! The entropy device (virtio 1.2 section 5.4): bytes of the host's random number generator.

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::chain::Request;
use super::serve::{Served, serve};
use super::wake::Wake;
use super::{DeviceError, Io, VirtioDevice, stateless, sys};
use crate::control;
use crate::memory::GuestMemoryMmap;

/// Size of the request queue: the driver has one request under way at a time.
const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes given for one request, however large its buffer; the driver asks again for more.
const MAX_BYTES: u64 = 4096;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    wake: Wake,
}

impl Rng {
    /// Makes the device.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { wake: Wake::new()? })
    }
}

fn fill(memory: &GuestMemoryMmap, request: &Request) -> Result<Served, DeviceError> {
    if !request.readable.is_empty() || request.writable.is_empty() {
        return Err(DeviceError::Request("an entropy request must hold writable buffers only"));
    }
    let wanted = request.writable.len().min(MAX_BYTES);
    let mut done = 0;
    while done < wanted {
        let mut bytes = [0u8; 256];
        let n = usize::try_from(wanted - done).unwrap_or(usize::MAX).min(bytes.len());
        sys::random(&mut bytes[..n])?;
        request.writable.write(memory, done, &bytes[..n])?;
        done += n as u64;
    }
    Ok(Served { written: u32::try_from(done).unwrap_or(u32::MAX), moved: done })
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn set_features(&mut self, _accepted: u64) {}

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        serve(index, io, &mut self.wake, None, fill)
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.wake.take()?;
        self.queue_event(0, io)
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<Vec<u8>, control::Refusal> {
        // All that it knows of its driver are the features.
        Ok(Vec::new())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), control::Refusal> {
        stateless(self.name(), state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, END};

    #[test]
    fn fills_buffers_but_never_more_than_the_bound() {
        let mut rng = Rng::new().unwrap();
        let mut driver = Driver::new();
        driver.chain(&[(0x5000, 10, true), (0x6000, 54, true)]);
        driver.notify(&mut rng).unwrap();
        assert_eq!(driver.used(), Some((0, 64)));
        assert_ne!(driver.read(0x6000, 54), [0; 54]);
        driver.chain(&[(0x5000, 0x7_0000, true)]);
        driver.notify(&mut rng).unwrap();
        assert_eq!(driver.used(), Some((0, 4096)));
        assert_eq!(driver.read(0x7000, 512), [0; 512]);
    }

    #[test]
    fn refuses_what_is_no_request() {
        for parts in [&[(0x5000, 10, false)][..], &[(END, 10, true)], &[(0x5000, 0, true)]] {
            let mut rng = Rng::new().unwrap();
            let mut driver = Driver::new();
            driver.chain(parts);
            assert!(driver.notify(&mut rng).is_err());
        }
    }
}
