//! The extent map of a disk: which file holds which bytes.

use std::fs::File;
use std::sync::Arc;

use crate::config::{MAX_DISK_BYTES, MAX_EXTENTS, SECTOR_SIZE};

/// A run of bytes of one file.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The file; several extents may share it.
    pub file: Arc<File>,
    /// Byte offset in the file, a multiple of [`SECTOR_SIZE`].
    pub offset: u64,
    /// Length in bytes, a positive multiple of [`SECTOR_SIZE`].
    pub length: u64,
}

/// Why a list of extents is no disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// See the message.
    #[error("{0} extents: a disk has 1 to {MAX_EXTENTS}")]
    Count(usize),
    /// See the message.
    #[error("extent {0} is not a whole number of {SECTOR_SIZE}-byte sectors, or the disk is too large")]
    Extent(usize),
}

/// Part of a range of the disk that lies in one file.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The file.
    pub file: &'a Arc<File>,
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
}

/// Extents laid end to end.
#[derive(Debug)]
pub struct ExtentMap {
    extents: Vec<Extent>,
    /// Disk offset of the end of each extent, ascending.
    ends: Vec<u64>,
}

impl ExtentMap {
    /// Lays extents end to end.
    ///
    /// # Errors
    /// There are none or too many, one is not made of whole sectors, or the disk is larger than [`MAX_DISK_BYTES`].
    pub fn new(extents: Vec<Extent>) -> Result<Self, ExtentError> {
        if extents.is_empty() || extents.len() > MAX_EXTENTS {
            return Err(ExtentError::Count(extents.len()));
        }
        let mut end = 0u64;
        let mut ends = Vec::with_capacity(extents.len());
        for (index, extent) in extents.iter().enumerate() {
            let aligned = extent.length > 0
                && extent.length.is_multiple_of(SECTOR_SIZE)
                && extent.offset.is_multiple_of(SECTOR_SIZE);
            end = end.saturating_add(extent.length);
            // The kernel's file offsets are signed.
            let reachable =
                extent.offset.checked_add(extent.length).is_some_and(|e| i64::try_from(e).is_ok());
            if !aligned || !reachable || end > MAX_DISK_BYTES {
                return Err(ExtentError::Extent(index));
            }
            ends.push(end);
        }
        Ok(Self { extents, ends })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The pieces that make up `length` bytes from `start`, in order; `None` when the range does not lie in the disk.
    #[must_use]
    pub fn pieces(&self, start: u64, length: u64) -> Option<impl Iterator<Item = Piece<'_>>> {
        let end = start.checked_add(length).filter(|end| *end <= self.size())?;
        let first = self.ends.partition_point(|extent_end| *extent_end <= start);
        let mut position = start;
        Some(self.extents.iter().zip(&self.ends).skip(first).map_while(move |(extent, extent_end)| {
            if position >= end {
                return None;
            }
            let into = position - (extent_end - extent.length);
            let length = (*extent_end).min(end) - position;
            position += length;
            Some(Piece { file: &extent.file, offset: extent.offset + into, length })
        }))
    }

    /// Every file once.
    pub fn files(&self) -> impl Iterator<Item = &Arc<File>> {
        self.extents.iter().enumerate().filter_map(|(index, extent)| {
            let seen = self.extents[..index].iter().any(|earlier| Arc::ptr_eq(&earlier.file, &extent.file));
            (!seen).then_some(&extent.file)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Random;

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    #[test]
    fn agrees_with_a_byte_by_byte_model() {
        let files: Vec<_> = (0..4).map(|_| file()).collect();
        let mut random = Random(7);
        for _ in 0..200 {
            let count = 1 + random.below(9);
            let extents: Vec<_> = (0..count)
                .map(|_| Extent {
                    file: Arc::clone(&files[usize::try_from(random.below(4)).unwrap()]),
                    offset: random.below(100) * SECTOR_SIZE,
                    length: (1 + random.below(5)) * SECTOR_SIZE,
                })
                .collect();
            // The model: for every sector of the disk, its file and offset.
            let model: Vec<_> = extents
                .iter()
                .flat_map(|e| {
                    (0..e.length / SECTOR_SIZE)
                        .map(move |sector| (Arc::as_ptr(&e.file), e.offset + sector * SECTOR_SIZE))
                })
                .collect();
            let map = ExtentMap::new(extents).unwrap();
            assert_eq!(map.size(), model.len() as u64 * SECTOR_SIZE);
            for _ in 0..50 {
                let start = random.below(map.size() + 2 * SECTOR_SIZE);
                let length = random.below(map.size() + SECTOR_SIZE);
                let Some(pieces) = map.pieces(start, length) else {
                    assert!(start + length > map.size());
                    continue;
                };
                let mut position = start;
                for piece in pieces {
                    assert!(piece.length > 0);
                    for byte in [0, piece.length / 2, piece.length - 1] {
                        let at = position + byte;
                        let (file, offset) = model[usize::try_from(at / SECTOR_SIZE).unwrap()];
                        assert_eq!(Arc::as_ptr(piece.file), file);
                        assert_eq!(piece.offset + byte, offset + at % SECTOR_SIZE);
                    }
                    position += piece.length;
                }
                assert_eq!(position, start + length);
            }
        }
    }

    #[test]
    fn refuses_what_is_no_disk() {
        let extent = |offset, length| Extent { file: file(), offset, length };
        assert_eq!(ExtentMap::new(vec![]).unwrap_err(), ExtentError::Count(0));
        for (offset, length) in [(0, 0), (1, 512), (0, 511), (u64::MAX - 511, 512), (1 << 62, 1 << 62)] {
            assert_eq!(ExtentMap::new(vec![extent(offset, length)]).unwrap_err(), ExtentError::Extent(0));
        }
        let map = ExtentMap::new(vec![extent(512, 1024)]).unwrap();
        assert!(map.pieces(u64::MAX, 2).is_none());
        assert!(map.pieces(1024, 1).is_none());
        assert_eq!(map.pieces(1024, 0).unwrap().count(), 0);
    }

    #[test]
    fn names_every_file_once() {
        let (a, b) = (file(), file());
        let extent = |file: &Arc<File>| Extent { file: Arc::clone(file), offset: 0, length: 512 };
        let map = ExtentMap::new(vec![extent(&a), extent(&b), extent(&a)]).unwrap();
        assert_eq!(map.files().count(), 2);
    }
}
