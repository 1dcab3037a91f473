//! Guest memory by linear address, as kernel mode sees it through the vCPU's page tables (Intel SDM volume 3, chapter 4).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::GuestMemoryMmap;
use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// Why an access is not possible.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The guest is to get a page fault with this error code.
    Page {
        /// Linear address, for CR2.
        address: u64,
        /// Error code: 1 a protection fault rather than a page that is not there, 2 a write.
        code: u32,
    },
    /// Nothing that the guest could repair.
    Other(String),
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        Self::Other(text.to_owned())
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 4096;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const FAULT_PROTECTION: u32 = 1;
const FAULT_WRITE: u32 = 2;

/// Linear memory of one vCPU at one moment.
pub struct Linear<'a> {
    memory: &'a GuestMemoryMmap,
    top: u64,
    write_protect: bool,
    levels: u32,
}

/// A linear range that is known to be there: physical addresses, and which bytes of the range each holds.
pub struct Mapped<'a> {
    memory: &'a GuestMemoryMmap,
    parts: Vec<(GuestAddress, Range<usize>)>,
}

impl<'a> Linear<'a> {
    /// The memory that a vCPU with these registers sees.
    #[must_use]
    pub fn new(memory: &'a GuestMemoryMmap, sregs: &kvm_sregs) -> Self {
        Self {
            memory,
            top: sregs.cr3 & ADDRESS,
            write_protect: sregs.cr0 & CR0_WRITE_PROTECT != 0,
            levels: if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 },
        }
    }

    /// Translates a range, all of it before any is touched.
    ///
    /// # Errors
    /// A page is not there, or not writable where `write` asks for it.
    pub fn map(&self, address: u64, length: usize, write: bool) -> Result<Mapped<'a>, Fault> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
            let part = done..length.min(done + room);
            done = part.end;
            parts.push((self.physical(at, write)?, part));
        }
        Ok(Mapped { memory: self.memory, parts })
    }

    /// Reads a few bytes.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.map(address, N, false)?.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a few bytes.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.map(address, bytes.len(), true)?.write(0, bytes)
    }

    fn physical(&self, address: u64, write: bool) -> Result<GuestAddress, Fault> {
        loop {
            // An entry that changed under the walk is walked again.
            if let Some(found) = self.walk(address, write)? {
                return Ok(found);
            }
        }
    }

    fn walk(&self, address: u64, write: bool) -> Result<Option<GuestAddress>, Fault> {
        let fault = |code| Fault::Page { address, code: code | if write { FAULT_WRITE } else { 0 } };
        let mut table = self.top;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let slot = GuestAddress(table + 8 * (address >> shift & 511));
            let slice = self.memory.get_slice(slot, 8).map_err(|error| error.to_string())?;
            let cell: &AtomicU64 = slice.get_atomic_ref(0).map_err(|error| error.to_string())?;
            let entry = cell.load(Ordering::SeqCst);
            if entry & PRESENT == 0 {
                return Err(fault(0));
            }
            if write && self.write_protect && entry & WRITABLE == 0 {
                return Err(fault(FAULT_PROTECTION));
            }
            let leaf = level == 0 || entry & LARGE != 0 && level < 3;
            let marked = entry | ACCESSED | if leaf && write { DIRTY } else { 0 };
            if marked != entry
                && cell.compare_exchange(entry, marked, Ordering::SeqCst, Ordering::SeqCst).is_err()
            {
                return Ok(None);
            }
            if leaf {
                let offset = (1u64 << shift) - 1;
                return Ok(Some(GuestAddress(entry & ADDRESS & !offset | address & offset)));
            }
            table = entry & ADDRESS;
        }
        Err("page tables without an end".into())
    }
}

impl Mapped<'_> {
    /// Copies bytes out, from `offset` of the range.
    ///
    /// # Errors
    /// The page tables name memory that the guest does not have, or the range is shorter.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Fault> {
        self.overlaps(offset, bytes.len(), |at, part| {
            self.memory.read_slice(&mut bytes[part], at).map_err(|error| error.to_string())
        })
    }

    /// Copies bytes in, to `offset` of the range.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.overlaps(offset, bytes.len(), |at, part| {
            self.memory.write_slice(&bytes[part], at).map_err(|error| error.to_string())
        })
    }

    fn overlaps(
        &self,
        offset: usize,
        length: usize,
        mut copy: impl FnMut(GuestAddress, Range<usize>) -> Result<(), String>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        for (physical, part) in &self.parts {
            let (start, end) = (part.start.max(offset), part.end.min(offset + length));
            if start < end {
                let at = GuestAddress(physical.0 + (start - part.start) as u64);
                copy(at, start - offset..end - offset)?;
                done += end - start;
            }
        }
        if done == length { Ok(()) } else { Err("a range too short".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::memory;

    const TOP: u64 = 0x1000;
    const VIRTUAL: u64 = 0xffff_8880_0000_0000;

    /// Tables that map VIRTUAL: page 0 read-only, page 1 writable, page 2 absent; and 2 MiB pages behind.
    fn tables() -> (GuestMemoryMmap, kvm_sregs) {
        let memory = memory::reserve(&[(0, 0x40_0000)]).unwrap();
        let write = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        write(TOP + 8 * 273, 0x2000 | 3);
        write(0x2000, 0x3000 | 3);
        write(0x3000, 0x4000 | 3);
        write(0x3008, 0x20_0000 | 3 | LARGE);
        write(0x4000, 0x8000 | 1);
        write(0x4008, 0x7000 | 3);
        let sregs = kvm_sregs { cr0: CR0_WRITE_PROTECT, cr3: TOP, ..Default::default() };
        (memory, sregs)
    }

    #[test]
    fn pages_are_found_and_marked() {
        let (memory, sregs) = tables();
        let linear = Linear::new(&memory, &sregs);
        memory.write_slice(b"abcdefgh", GuestAddress(0x8ffc)).unwrap();
        memory.write_slice(b"ijklmnop", GuestAddress(0x7000)).unwrap();
        assert_eq!(&linear.read::<8>(VIRTUAL + 0xffc).unwrap(), b"abcdijkl");
        linear.write(VIRTUAL + 0x1ffe, b"xy").unwrap();
        assert_eq!(&linear.read::<2>(VIRTUAL + 0x1ffe).unwrap(), b"xy");
        linear.write(VIRTUAL + 0x20_1234, b"large").unwrap();
        let mut bytes = [0; 5];
        memory.read_slice(&mut bytes, GuestAddress(0x20_1234)).unwrap();
        assert_eq!(&bytes, b"large");
        let entry: u64 = memory.read_obj(GuestAddress(0x4000)).unwrap();
        assert_eq!(entry, 0x8000 | 1 | ACCESSED);
        let entry: u64 = memory.read_obj(GuestAddress(0x4008)).unwrap();
        assert_eq!(entry, 0x7000 | 3 | ACCESSED | DIRTY);
    }

    #[test]
    fn what_is_not_allowed_faults_before_anything_is_written() {
        let (memory, mut sregs) = tables();
        let linear = Linear::new(&memory, &sregs);
        let fault = |address, code| Err(Fault::Page { address, code });
        assert_eq!(linear.write(VIRTUAL, b"x"), fault(VIRTUAL, 3));
        assert_eq!(linear.write(VIRTUAL + 0x1ffe, b"wxyz"), fault(VIRTUAL + 0x2000, 2));
        assert_eq!(linear.read::<1>(VIRTUAL + 0x2000).map(|_| ()), fault(VIRTUAL + 0x2000, 0));
        assert_eq!(linear.read::<1>(0).map(|_| ()), fault(0, 0));
        assert_eq!(&linear.read::<2>(VIRTUAL + 0x1ffe).unwrap(), &[0, 0]);
        // Without write protection, kernel mode may write everywhere.
        sregs.cr0 = 0;
        Linear::new(&memory, &sregs).write(VIRTUAL, b"x").unwrap();
        // Tables outside of memory are no fault of a page.
        sregs.cr3 = 0x4000_0000;
        assert!(matches!(Linear::new(&memory, &sregs).write(0, b"x"), Err(Fault::Other(_))));
    }
}
