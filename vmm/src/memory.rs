//! Guest memory as all parts of the VMM see it: mapped RAM that may note what the VMM itself writes.
//!
//! KVM's dirty log knows what the guest wrote; what devices wrote on the guest's behalf only we can know. A diff
//! snapshot needs both. Where no diff is to be taken, nothing is noted and nothing is spent.

use std::num::NonZeroUsize;

use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Size of a page of the dirty log, in bytes.
pub const PAGE: usize = 4096;

/// Guest memory.
pub type GuestMemoryMmap = vm_memory::GuestMemoryMmap<WrittenPages>;
/// A part of it.
pub type GuestRegionMmap = vm_memory::GuestRegionMmap<WrittenPages>;
/// A run of bytes of it.
pub type VolatileSlice<'a> = vm_memory::VolatileSlice<'a, BS<'a, WrittenPages>>;

/// The pages of a region that the VMM wrote, if it is to note them.
#[derive(Debug, Default)]
pub struct WrittenPages(Option<AtomicBitmap>);

impl WrittenPages {
    /// Notes pages of a region of so many bytes from now on.
    #[must_use]
    pub fn noted(bytes: usize) -> Self {
        Self(NonZeroUsize::new(PAGE).map(|page| AtomicBitmap::new(bytes, page)))
    }

    /// What was noted since the last time, a bit for each page; `None` if nothing is noted.
    #[must_use]
    pub fn take(&self) -> Option<Vec<u64>> {
        self.0.as_ref().map(AtomicBitmap::get_and_reset)
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = Option<RefSlice<'a, AtomicBitmap>>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.0.mark_dirty(offset, length);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> BS<'_, Self> {
        self.0.slice_at(offset)
    }
}

impl NewBitmap for WrittenPages {
    /// Nothing is noted.
    fn with_len(_bytes: usize) -> Self {
        Self(None)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

    use super::*;

    #[test]
    fn writes_of_the_vmm_are_noted_by_page_and_told_once() {
        let mapping: MmapRegion<WrittenPages> =
            vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(16 * PAGE, WrittenPages::noted(16 * PAGE))
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .build()
                .unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        memory.write_slice(&[1; 2], GuestAddress(3 * PAGE as u64 - 1)).unwrap();
        let region = memory.iter().next().unwrap();
        assert_eq!(region.len(), 16 * PAGE as u64);
        let mapping = region.get_mmap();
        assert!(!mapping.bitmap().dirty_at(0));
        assert_eq!(mapping.bitmap().take().unwrap()[0], 0b1100);
        assert_eq!(mapping.bitmap().take().unwrap()[0], 0);
    }
}
