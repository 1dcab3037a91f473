//! RAM in a snapshot's file: byte `n` of the file is byte `n` of the machine's RAM, its regions one after another. Pages
//! of zeroes are holes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use kvm_ioctls::VmFd;
use nix::unistd::{Whence, lseek};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::SnapshotError;
use crate::kvm::Ram;
use crate::memory::{GuestMemoryMmap, PAGE};

/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;

/// A region's pages that changed, a bit for each.
pub type Dirty = Vec<Vec<u64>>;

/// The pages of each region that guest or VMM wrote since the last call; empty if nothing is noted.
///
/// # Errors
/// KVM refused.
pub fn dirty_pages(vm: &VmFd, memory: &GuestMemoryMmap, noted: bool) -> Result<Dirty, SnapshotError> {
    if !noted {
        return Ok(Vec::new());
    }
    let regions = (0u32..).zip(memory.iter()).map(|(slot, region)| {
        let bytes = usize::try_from(region.len()).unwrap_or(usize::MAX);
        let guest = vm.get_dirty_log(slot, bytes).map_err(|error| SnapshotError::File {
            what: "KVM's list of changed pages cannot be read",
            error: error.into(),
        })?;
        let ours = region.get_mmap().bitmap().take().unwrap_or_default();
        let ours = ours.into_iter().chain(std::iter::repeat(0));
        Ok(guest.into_iter().zip(ours).map(|(guest, ours)| guest | ours).collect())
    });
    regions.collect()
}

/// Writes all that is not zero to an empty file, and gives it RAM's size. Returns the bytes written.
///
/// # Errors
/// The file is not empty or cannot be written.
pub fn write_full(ram: &Ram, to: &File) -> Result<u64, SnapshotError> {
    let failed = "the file for RAM cannot be written";
    if to.metadata().map_err(SnapshotError::file(failed))?.len() != 0 {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not empty");
        return Err(SnapshotError::File { what: failed, error });
    }
    let total: u64 = ram.memory.iter().map(GuestMemoryRegion::len).sum();
    to.set_len(total).map_err(SnapshotError::file(failed))?;
    let mut written = 0;
    let mut start = 0;
    for region in ram.memory.iter() {
        for run in data(ram, start..start + region.len()) {
            let address = region.start_addr().0 + (run.start - start);
            written += copy(&ram.memory, address, run, to)?;
        }
        start += region.len();
    }
    Ok(written)
}

/// The parts of RAM's file that may hold something. A private mapping holds more than its file: all of it.
fn data(ram: &Ram, range: Range<u64>) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut at = range.start;
    while ram.shared && at < range.end {
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).ok()?;
            lseek(&ram.file, at, whence).ok().and_then(|at| u64::try_from(at).ok())
        };
        let Some(begin) = seek(at, Whence::SeekData).filter(|begin| *begin < range.end) else {
            return runs;
        };
        let end = seek(begin, Whence::SeekHole).unwrap_or(range.end).min(range.end);
        runs.push(begin..end);
        at = end;
    }
    if !ram.shared {
        runs.push(range);
    }
    runs
}

/// Copies one run, without its pages of zeroes.
fn copy(memory: &GuestMemoryMmap, address: u64, run: Range<u64>, to: &File) -> Result<u64, SnapshotError> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    let mut at = run.start;
    while at < run.end {
        let length = usize::try_from(run.end - at).unwrap_or(usize::MAX).min(CHUNK);
        let chunk = &mut buffer[..length];
        let from = GuestAddress(address + (at - run.start));
        memory.read_slice(chunk, from).map_err(|error| SnapshotError::Malformed(error.to_string()))?;
        // Neighbouring pages that hold something go in one write.
        let mut pages = chunk.chunks(PAGE).enumerate().peekable();
        while let Some((first, page)) = pages.next() {
            if is_zero(page) {
                continue;
            }
            let mut end = first * PAGE + page.len();
            while let Some((_, page)) = pages.next_if(|(_, page)| !is_zero(page)) {
                end += page.len();
            }
            let bytes = &chunk[first * PAGE..end];
            to.write_all_at(bytes, at + (first * PAGE) as u64)
                .map_err(SnapshotError::file("the file for RAM cannot be written"))?;
            written += bytes.len() as u64;
        }
        at += length as u64;
    }
    Ok(written)
}

fn is_zero(page: &[u8]) -> bool {
    // Compares in the widest steps that the host has.
    static ZEROES: [u8; PAGE] = [0; PAGE];
    ZEROES.starts_with(page)
}

/// Writes the pages that changed over a file that holds what they were. Returns the bytes written.
///
/// # Errors
/// The file has another size or cannot be written.
pub fn write_diff(memory: &GuestMemoryMmap, dirty: &Dirty, to: &File) -> Result<u64, SnapshotError> {
    let failed = "the file for RAM cannot be written";
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    if to.metadata().map_err(SnapshotError::file(failed))?.len() != total {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not of the machine's size");
        return Err(SnapshotError::File { what: failed, error });
    }
    let mut written = 0;
    let mut start = 0;
    let mut page = vec![0; PAGE];
    for (region, words) in memory.iter().zip(dirty) {
        for index in set_bits(words) {
            let offset = index * PAGE as u64;
            if offset >= region.len() {
                break;
            }
            let from = GuestAddress(region.start_addr().0 + offset);
            memory
                .read_slice(&mut page, from)
                .map_err(|error| SnapshotError::Malformed(error.to_string()))?;
            to.write_all_at(&page, start + offset).map_err(SnapshotError::file(failed))?;
            written += PAGE as u64;
        }
        start += region.len();
    }
    Ok(written)
}

fn set_bits(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0u64..).zip(words).flat_map(|(index, word)| {
        (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_pages() {
        assert_eq!(set_bits(&[0b101, 0, 1 << 63]).collect::<Vec<_>>(), [0, 2, 191]);
    }
}
