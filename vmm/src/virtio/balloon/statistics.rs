//! What the guest tells of its memory (virtio 1.2 section 5.5.6.3). Nothing of it is checked, and nothing relies on it.

use crate::memory::GuestMemoryMmap;

use crate::virtio::DeviceError;
use crate::virtio::chain::Buffer;
use crate::virtio::command::Counter;

/// Names by tag.
const NAMES: [&str; 16] = [
    "guest_swap_in_bytes",
    "guest_swap_out_bytes",
    "guest_major_faults",
    "guest_minor_faults",
    "guest_free_bytes",
    "guest_total_bytes",
    "guest_available_bytes",
    "guest_cache_bytes",
    "guest_huge_page_allocations",
    "guest_huge_page_failures",
    "guest_oom_kills",
    "guest_allocation_stalls",
    "guest_async_scanned",
    "guest_direct_scanned",
    "guest_async_reclaimed",
    "guest_direct_reclaimed",
];
/// Bytes of an entry: a tag of two, a value of eight.
const ENTRY: usize = 10;

/// The latest value of each tag.
#[derive(Debug, Default)]
pub struct Statistics([Option<u64>; NAMES.len()]);

impl Statistics {
    /// Reads a driver's buffer; tags that are not known are passed over, and so is what lies beyond as many entries as there
    /// are tags.
    ///
    /// # Errors
    /// The buffer names memory that the guest does not have.
    pub fn read(memory: &GuestMemoryMmap, buffer: &Buffer) -> Result<Self, DeviceError> {
        let mut bytes = [0; ENTRY * NAMES.len()];
        let length = usize::try_from(buffer.len()).unwrap_or(usize::MAX).min(bytes.len());
        buffer.read(memory, 0, &mut bytes[..length])?;
        let mut statistics = Self::default();
        for entry in bytes[..length].chunks_exact(ENTRY) {
            let tag = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
            let mut value = [0; 8];
            value.copy_from_slice(&entry[2..]);
            if let Some(slot) = statistics.0.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        Ok(statistics)
    }

    /// What is known, by name.
    pub fn counters(&self) -> impl Iterator<Item = Counter> {
        NAMES.into_iter().zip(self.0).filter_map(|(name, value)| Some((name, value?)))
    }
}
