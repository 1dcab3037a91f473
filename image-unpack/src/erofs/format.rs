//! The parts of the EROFS on-disk format that an uncompressed image uses (Linux, `fs/erofs/erofs_fs.h`), encoded
//! little-endian. All that is used here is understood by Linux 5.16 and later.

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// The same, for buffers.
pub(crate) const BLOCK_SIZE: usize = 4096;
/// Where the superblock begins.
pub(crate) const SUPER_OFFSET: u64 = 1024;
pub(crate) const SUPER_SIZE: u64 = 128;
/// Unit of node numbers.
pub(crate) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(crate) const INODE: u64 = 64;
/// Bytes of a directory entry, without its name.
pub(crate) const DIRENT: usize = 12;
/// A chunk that is a hole.
pub(crate) const NULL_BLOCK: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 0x1;
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED: u32 = 0x4;
const BLOCK_BITS: u8 = 12;

/// How an inode's data lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Contiguous blocks.
    Plain = 0,
    /// Contiguous blocks, the last part behind the inode.
    Inline = 2,
    /// Chunks, found in a table behind the inode.
    Chunked = 4,
}

pub(crate) struct Super {
    pub root_nid: u16,
    pub inodes: u64,
    /// Blocks of the whole device.
    pub blocks: u32,
    pub uuid: [u8; 16],
    pub chunked: bool,
}

impl Super {
    /// Writes the superblock into the device's first block, whose rest (inodes) must be final: the checksum covers it.
    pub(crate) fn encode(&self, block: &mut [u8; BLOCK_SIZE]) {
        let base = 1024;
        let mut put =
            |at: usize, bytes: &[u8]| block[base + at..base + at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(48, &self.uuid);
        put(80, &(if self.chunked { INCOMPAT_CHUNKED } else { 0 }).to_le_bytes());
        let checksum = crc32c(&block[base..]);
        block[base + 4..base + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32C as the kernel's `crc32c(~0, ...)`: no final inversion. Used on one block per image.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// An extended inode.
pub(crate) struct InodeFields {
    pub layout: Layout,
    /// Bytes of the attribute area behind the inode.
    pub xattr_size: u64,
    pub mode: u16,
    pub size: u64,
    /// First block, device number or chunk format, by kind and layout.
    pub union: u32,
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_ns: u32,
    pub nlink: u32,
}

impl InodeFields {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let format = 1 | ((self.layout as u16) << 1);
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&xattr_count(self.xattr_size).to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.union.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.mtime_ns.to_le_bytes());
        out.extend_from_slice(&self.nlink.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// Bytes of the header of an inode's attributes (`struct erofs_xattr_ibody_header`).
pub(crate) const XATTR_HEADER: u64 = 12;

/// Bytes that `entries` bytes of attributes take behind an inode.
pub(crate) fn xattr_size(entries: usize) -> u64 {
    if entries == 0 { 0 } else { XATTR_HEADER + entries as u64 }
}

/// `i_xattr_icount`: the header counts as one, then every four bytes.
fn xattr_count(size: u64) -> u16 {
    if size == 0 { 0 } else { u16::try_from((size - XATTR_HEADER) / 4 + 1).unwrap_or(u16::MAX) }
}

/// The type byte of a directory entry (`FT_*`).
pub(crate) fn file_type(kind: crate::layer::index::Kind) -> u8 {
    use crate::layer::index::Kind;
    match kind {
        Kind::Directory => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
        _ => 1,
    }
}

/// `S_IFMT` bits.
pub(crate) fn mode_bits(kind: crate::layer::index::Kind) -> u16 {
    use crate::layer::index::Kind;
    match kind {
        Kind::Directory => 0o040_000,
        Kind::CharDevice => 0o020_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Symlink => 0o120_000,
        _ => 0o100_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
