//! The working set: which pages a restored machine touched. The next machine of the same snapshot has them mapped before it
//! runs, in one call for each run of pages instead of one fault for each.
//!
//! The file is a list of runs, each two little-endian numbers of 64 bits: the first page and the number of pages, counted
//! in RAM's file. It is a hint: one that is wrong costs time.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::SnapshotError;
use crate::jail::sys;
use crate::memory::{GuestMemoryMmap, PAGE};

/// Most runs of a list; more are not written and not read.
const MAX_RUNS: usize = 64 << 10;
const RUN_BYTES: usize = 16;
/// Bit 63 of an entry of /proc/self/pagemap: the page is mapped here (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
/// Entries that are read at a time.
const BATCH: usize = 8192;

/// Writes the list of pages that are mapped now.
///
/// # Errors
/// The page map cannot be read, or the file not written.
pub fn record(memory: &GuestMemoryMmap, pagemap: &File, to: &File) -> Result<(), SnapshotError> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut start = 0;
    let mut entries = vec![0; BATCH * 8];
    for region in memory.iter() {
        let first = region.as_ptr() as u64 / PAGE as u64;
        let pages = region.len() / PAGE as u64;
        let mut at = 0;
        while at < pages {
            let count = usize::try_from(pages - at).unwrap_or(BATCH).min(BATCH);
            let bytes = &mut entries[..count * 8];
            pagemap
                .read_exact_at(bytes, (first + at) * 8)
                .map_err(SnapshotError::file("the map of touched pages cannot be read"))?;
            for (page, entry) in (start + at..).zip(bytes.chunks_exact(8)) {
                let entry = entry.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
                if entry & PRESENT == 0 {
                    continue;
                }
                if let Some((first, length)) = runs.last_mut()
                    && *first + *length == page
                {
                    *length += 1;
                } else if runs.len() < MAX_RUNS {
                    runs.push((page, 1));
                }
            }
            at += count as u64;
        }
        start += pages;
    }
    let bytes: Vec<u8> = runs
        .iter()
        .flat_map(|(first, length)| [first.to_le_bytes(), length.to_le_bytes()].concat())
        .collect();
    to.write_all_at(&bytes, 0).map_err(SnapshotError::file("the list of touched pages cannot be written"))
}

/// Maps the pages of a list. Runs that RAM does not have are left out.
///
/// # Errors
/// The list cannot be read.
pub fn prefetch(memory: &GuestMemoryMmap, list: &File) -> Result<(), SnapshotError> {
    let mut bytes = Vec::new();
    let most = (MAX_RUNS * RUN_BYTES) as u64;
    list.take(most)
        .read_to_end(&mut bytes)
        .map_err(SnapshotError::file("the list of pages cannot be read"))?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    for run in bytes.chunks_exact(RUN_BYTES) {
        let (first, length) = run.split_at(RUN_BYTES / 2);
        let mut start = 0;
        let (first, length) = (number(first), number(length));
        for region in memory.iter() {
            let pages = region.len() / PAGE as u64;
            let inside = first.checked_sub(start).filter(|first| *first < pages);
            if let Some(inside) = inside {
                let bytes = length.min(pages - inside) * PAGE as u64;
                let address = GuestAddress(region.start_addr().0 + inside * PAGE as u64);
                let bytes = usize::try_from(bytes).unwrap_or(0);
                if let Ok(slice) = memory.get_slice(address, bytes) {
                    // A host that does not know the call maps them when they are touched.
                    let _ = sys::populate(&slice);
                }
            }
            start += pages;
        }
    }
    Ok(())
}
