//! What a machine gets: a read-only block device made of parts of files.

use std::path::PathBuf;

/// A part of a file that stands for a part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The file, read-only by agreement: stored content is never changed.
    pub path: PathBuf,
    /// Where the part begins in the file, bytes, a multiple of 4096.
    pub offset: u64,
    /// How long it is, bytes, a multiple of 4096, never 0.
    pub length: u64,
}

/// An image's root file system: EROFS metadata, then the data of its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsDisk {
    /// The parts, in disk order.
    pub extents: Vec<Extent>,
    /// Bytes in all: the sum of the extents' lengths.
    pub size: u64,
}
