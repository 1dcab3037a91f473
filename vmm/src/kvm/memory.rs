//! Guest RAM: reserved, not committed; the host gives pages as the guest touches them.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::KvmError;
use super::layout::{ABOVE_4G, DEVICE_HOLE};

/// The parts of guest physical memory that are RAM, as `(address, bytes)`, for so many MiB.
#[must_use]
pub fn ranges(mib: u32) -> Vec<(u64, u64)> {
    let bytes = u64::from(mib) << 20;
    let low = bytes.min(DEVICE_HOLE);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((ABOVE_4G, bytes - low));
    }
    ranges
}

/// Reserves RAM of so many MiB.
///
/// # Errors
/// The host has no address space left for it.
pub fn allocate(mib: u32) -> Result<GuestMemoryMmap, KvmError> {
    reserve(&ranges(mib))
}

/// Reserves memory for the parts of guest physical memory that are given as `(address, bytes)`.
///
/// # Errors
/// As [`allocate`].
pub fn reserve(ranges: &[(u64, u64)]) -> Result<GuestMemoryMmap, KvmError> {
    let regions = ranges.iter().map(|&(address, bytes)| {
        let size =
            usize::try_from(bytes).map_err(|_| KvmError::Memory("more than this host can address".into()))?;
        let mapping = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| KvmError::Memory(error.to_string()))?;
        GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| KvmError::Memory("a region overflows".into()))
    });
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(|error| KvmError::Memory(error.to_string()))
}

/// Gives RAM to a virtual machine, one memory slot per region from slot `first` on.
///
/// The caller keeps `memory` until the VM's last vCPU is gone; a clone of it shares the mappings.
///
/// # Errors
/// KVM refused.
pub fn plug(vm: &VmFd, memory: &GuestMemoryMmap, first: u32) -> Result<(), KvmError> {
    for (slot, region) in (first..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one mapping of ours, which the machine keeps until its vCPUs are gone; no Rust reference
        // into it is ever made, all access goes through volatile slices.
        unsafe { vm.set_user_memory_region(slot) }.map_err(KvmError::call("give memory to the VM"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ranges(128), [(0, 128 << 20)]);
        assert_eq!(ranges(3072), [(0, DEVICE_HOLE)]);
        assert_eq!(ranges(3073), [(0, DEVICE_HOLE), (ABOVE_4G, 1 << 20)]);
    }
}
