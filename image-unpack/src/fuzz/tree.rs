//! The EROFS writer's target: bytes that stand for entries, whatever a tar stream could hold and more.

use std::io::Cursor;

use super::{indexes_to_disk, limits};
use crate::layer::index::{Entry, HOLE, IndexWriter, Kind};

/// Reads an input, byte by byte; an exhausted one is all zeros.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn one(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                byte
            }
            None => 0,
        }
    }

    fn two(&mut self) -> u16 {
        u16::from_le_bytes([self.one(), self.one()])
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// A canonical path; names come from a small set, so that entries meet, and may be of any length.
    fn path(&mut self) -> Vec<u8> {
        let mut path = Vec::new();
        for _ in 0..self.one() % 5 {
            let shape = self.one();
            let length = if shape & 0x80 == 0 { 1 } else { usize::from(self.one()).clamp(1, 255) };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(std::iter::repeat_n([b'a', b'!', b'-', 0xff][usize::from(shape & 3)], length));
        }
        path
    }
}

fn entry(input: &mut Bytes<'_>, blocks: &mut u32) -> Entry {
    const KINDS: [Kind; 10] = [
        Kind::File,
        Kind::Directory,
        Kind::CharDevice,
        Kind::BlockDevice,
        Kind::Fifo,
        Kind::Symlink,
        Kind::Hardlink,
        Kind::Whiteout,
        Kind::Opaque,
        Kind::File,
    ];
    let which = usize::from(input.one()) % KINDS.len();
    let mut entry = Entry { kind: KINDS[which], path: input.path(), ..Entry::default() };
    entry.mode = input.two() & 0o7777;
    entry.uid = u32::from(input.two()) << (input.one() % 17);
    entry.mtime = i64::from(input.two().cast_signed()) << (input.one() % 48);
    entry.mtime_ns = u32::from(input.two());
    match entry.kind {
        Kind::File if which == 0 => {
            entry.size = u64::from(input.two());
            entry.block = *blocks;
            *blocks += u32::try_from(entry.size.div_ceil(4096)).unwrap_or_default();
        }
        // A sparse file.
        Kind::File => {
            entry.chunk_bits = 12 + input.one() % 4;
            let chunks = usize::from(input.one()) + 1;
            entry.size = ((chunks as u64) << entry.chunk_bits) - u64::from(input.two() % 4096);
            for _ in 0..chunks {
                if input.one() & 1 == 0 {
                    entry.chunks.push(HOLE);
                } else {
                    entry.chunks.push(*blocks);
                    *blocks += 1 << (entry.chunk_bits - 12);
                }
            }
        }
        Kind::CharDevice | Kind::BlockDevice => entry.rdev = u32::from(input.two()),
        Kind::Symlink => entry.link = vec![b'x'; usize::from(input.two()) % 4095 + 1],
        Kind::Hardlink => entry.link = input.path(),
        _ => {}
    }
    // `user.a` with a value of any length, as entries are encoded.
    if input.one() & 1 == 1 {
        let length = usize::from(input.two()) % 8192;
        let value = input.take(length);
        entry.xattrs = vec![1, 1];
        entry.xattrs.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
        entry.xattrs.push(b'a');
        entry.xattrs.extend(value);
        entry.xattrs.resize(entry.xattrs.len().next_multiple_of(4), 0);
    }
    entry
}

/// Begins another layer.
const NEXT: u8 = 0xfe;

/// Entries of one to four layers through the merge and the EROFS writer; true if they made an image.
pub fn trees(data: &[u8]) -> bool {
    let mut input = Bytes(data);
    let mut indexes = Vec::new();
    while indexes.len() < 4 && (indexes.is_empty() || !input.0.is_empty()) {
        let mut index = IndexWriter::new(Cursor::new(Vec::new())).expect("a vector takes everything");
        let (mut blocks, mut left) = (0, limits().entries / 4);
        while left > 0 && input.0.first().is_some_and(|&byte| byte != NEXT) {
            left -= 1;
            let entry = entry(&mut input, &mut blocks);
            // The pass refuses these before they are entries.
            let refused = match entry.kind {
                Kind::Directory | Kind::Opaque => false,
                Kind::Hardlink => entry.path.is_empty() || entry.link.is_empty(),
                _ => entry.path.is_empty(),
            };
            if !refused {
                index.push(&entry).expect("a vector takes everything");
            }
        }
        input.one();
        let (index, summary) = index.finish(u64::from(blocks) * 4096, 0).expect("a vector takes everything");
        indexes.push((index.into_inner(), summary));
    }
    indexes_to_disk(&indexes)
}
