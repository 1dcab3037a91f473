//! Guest RAM: an anonymous file of fixed size, mapped and not committed: the host gives pages as the guest touches them.
//!
//! A file, so that other processes can be given it (vhost-user) and a snapshot can be taken by keeping it; its size is
//! sealed, so that nobody can take pages away under a machine. Machines that are restored map a snapshot's file
//! privately and share what they do not change.

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{GuestMemoryMmap, GuestRegionMmap, WrittenPages};

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

/// How RAM is backed.
#[derive(Debug, Clone, Copy)]
pub enum Backing<'a> {
    /// A new file, shared by all who have it; in huge pages of 2 MiB, which are then reserved, or not.
    New {
        /// Whether in huge pages.
        huge: bool,
    },
    /// A snapshot's file, of which changes stay private.
    Private(&'a File),
}

/// RAM, and its file.
pub struct Ram {
    /// The mapping.
    pub memory: GuestMemoryMmap,
    /// What is mapped. Private mappings hold more than it does.
    pub file: Arc<File>,
    /// Whether what the guest writes reaches the file.
    pub shared: bool,
}

/// Makes RAM of so many MiB. `track` notes what the VMM itself writes, for diff snapshots.
///
/// # Errors
/// The host has no address space, or no huge pages, left for it.
pub fn allocate(mib: u32, backing: Backing<'_>, track: bool) -> Result<Ram, KvmError> {
    let bytes = u64::from(mib) << 20;
    let (file, flags, shared) = match backing {
        Backing::New { huge: false } => (new_file(bytes, MFdFlags::empty())?, libc::MAP_NORESERVE, true),
        Backing::New { huge: true } => {
            (new_file(bytes, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?, 0, true)
        }
        Backing::Private(file) => {
            let size = file.metadata()?.len();
            if size != bytes {
                let why = format!("the snapshot's has {size} bytes, the machine's {bytes}");
                return Err(KvmError::Memory(why));
            }
            (file.try_clone()?, libc::MAP_NORESERVE, false)
        }
    };
    let file = Arc::new(file);
    let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let mut offset = 0;
    let regions = ranges(mib).into_iter().map(|(address, bytes)| {
        let size = usize::try_from(bytes).map_err(memory_error)?;
        let bitmap = if track { WrittenPages::noted(size) } else { WrittenPages::default() };
        let mapping = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(kind | flags)
            .build()
            .map_err(memory_error)?;
        offset += bytes;
        GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| KvmError::Memory("a region overflows".into()))
    });
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    let memory = GuestMemoryMmap::from_regions(regions).map_err(memory_error)?;
    Ok(Ram { memory, file, shared })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn memory_error(error: impl ToString) -> KvmError {
    KvmError::Memory(error.to_string())
}

fn new_file(bytes: u64, flags: MFdFlags) -> Result<File, KvmError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | flags;
    let file = File::from(memfd_create(c"guest-ram", flags).map_err(memory_error)?);
    file.set_len(bytes)?;
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(memory_error)?;
    Ok(file)
}

/// Reserves memory for the parts of guest physical memory that are given as `(address, bytes)`.
///
/// # Errors
/// As [`allocate`].
pub fn reserve(ranges: &[(u64, u64)]) -> Result<GuestMemoryMmap, KvmError> {
    let regions = ranges.iter().map(|&(address, bytes)| {
        let size =
            usize::try_from(bytes).map_err(|_| KvmError::Memory("more than this host can address".into()))?;
        let mapping = MmapRegionBuilder::new_with_bitmap(size, WrittenPages::default())
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
/// `log` has KVM note which pages the guest writes. The caller keeps `memory` until the VM's last vCPU is gone; a clone of it shares the mappings.
///
/// # Errors
/// KVM refused.
pub fn plug(vm: &VmFd, memory: &GuestMemoryMmap, first: u32, log: bool) -> Result<(), KvmError> {
    for (slot, region) in (first..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
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

    #[test]
    fn ram_is_a_file_of_fixed_size_that_takes_no_memory_before_it_is_used() {
        use std::os::unix::fs::MetadataExt;
        let ram = allocate(4096, Backing::New { huge: false }, false).unwrap();
        assert_eq!(ram.memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), 4 << 30);
        let metadata = ram.file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (4 << 30, 0));
        assert!(ram.file.set_len(0).is_err() && ram.file.set_len(8 << 30).is_err());
        let error = allocate(64, Backing::Private(&ram.file), false).err().unwrap();
        assert!(error.to_string().contains("4294967296 bytes"), "{error}");
    }
}
