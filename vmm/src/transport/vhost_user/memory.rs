//! The guest memory that a front-end shares with us.

use std::fs::File;

use crate::memory::GuestMemoryMmap;
use vm_memory::{FileOffset, GuestAddress};

use super::wire::Body;

/// Most regions; UML has one.
const MAX_REGIONS: u32 = 8;
const PAGE: u64 = 4096;

/// Mapped guest memory.
pub struct Memory {
    guest: GuestMemoryMmap,
    /// For each region its address in the front-end's address space, its guest address, and its size.
    regions: Vec<(u64, u64, u64)>,
}

impl Memory {
    /// Maps what a SET_MEM_TABLE message describes.
    ///
    /// A file that shrinks later would end our process by SIGBUS, and so the machine, which is what its guest asked for
    /// then. (The `uml` accelerator's jail has no system call that shrinks a file.)
    ///
    /// # Errors
    /// Says which rule is broken, for people.
    pub fn map(mut body: Body, files: Vec<File>, limit: u64) -> Result<Self, String> {
        let short = |error: super::Refusal| error.to_string();
        let count = body.u32().map_err(short)?;
        let _padding = body.u32().map_err(short)?;
        if count == 0 || count > MAX_REGIONS || files.len() != count as usize {
            return Err("guest memory of an impossible number of parts".into());
        }
        let mut total = 0u64;
        let mut ranges = Vec::new();
        let mut regions = Vec::new();
        for file in files {
            let (guest, size) = (body.u64().map_err(short)?, body.u64().map_err(short)?);
            let (user, offset) = (body.u64().map_err(short)?, body.u64().map_err(short)?);
            let length = file.metadata().map_err(|error| format!("guest memory: {error}"))?.len();
            let whole_pages = [guest, size, offset].iter().all(|value| value % PAGE == 0);
            let inside = offset.checked_add(size).is_some_and(|end| end <= length)
                && guest.checked_add(size).is_some()
                && user.checked_add(size).is_some();
            total = total.saturating_add(size);
            if size == 0 || !whole_pages || !inside || total > limit {
                return Err(format!("guest memory of {size} bytes at {offset} of a file of {length}"));
            }
            let size_here = usize::try_from(size).map_err(|error| error.to_string())?;
            ranges.push((GuestAddress(guest), size_here, Some(FileOffset::new(file, offset))));
            regions.push((user, guest, size));
        }
        body.end().map_err(short)?;
        ranges.sort_by_key(|range| range.0);
        let guest = GuestMemoryMmap::from_ranges_with_files(ranges)
            .map_err(|error| format!("guest memory that cannot be mapped: {error}"))?;
        Ok(Self { guest, regions })
    }

    /// The memory by guest addresses.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// The guest address of an address of the front-end's, which is what queues are given in.
    pub fn translate(&self, address: u64) -> Option<u64> {
        self.regions.iter().find_map(|(user, guest, size)| {
            let offset = address.checked_sub(*user)?;
            (offset < *size).then(|| guest + offset)
        })
    }
}
