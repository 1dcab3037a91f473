//! Reads an EROFS metadata image as the kernel would (Linux, `fs/erofs`), knowing nothing of how it was written, and
//! holds it against the tree it was made of.

use std::collections::{BTreeMap, BTreeSet};

use crate::layer::index::Kind;
use crate::tree::{ROOT, Tree};

const BLOCK: usize = 4096;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn size_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64_at(bytes, at)).expect("a size that fits in memory")
}

/// What is in the inode at `nid`.
struct Inode<'a> {
    image: &'a [u8],
    at: usize,
    layout: u16,
    mode: u16,
    size: usize,
    union: u32,
    nlink: u32,
    /// Behind inode and attributes.
    tail: usize,
}

impl<'a> Inode<'a> {
    fn at(image: &'a [u8], nid: u64) -> Self {
        let at = usize::try_from(nid).expect("a node number") * 32;
        assert!(at + 64 <= image.len(), "an inode outside of the image");
        let format = u16_at(image, at);
        assert_eq!(format & 1, 1, "an extended inode");
        assert!(at % BLOCK + 64 <= BLOCK, "the fields of an inode are in one block");
        let count = usize::from(u16_at(image, at + 2));
        let xattrs = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        Self {
            image,
            at,
            layout: format >> 1,
            mode: u16_at(image, at + 4),
            size: size_at(image, at + 8),
            union: u32_at(image, at + 16),
            nlink: u32_at(image, at + 44),
            tail: at + 64 + xattrs,
        }
    }

    fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// The content of a directory or symlink.
    fn content(&self) -> Vec<u8> {
        let whole = match self.layout {
            0 => self.size,
            2 => self.size / BLOCK * BLOCK,
            other => panic!("a directory or symlink of layout {other}"),
        };
        let start = if whole == 0 { 0 } else { usize::try_from(self.union).expect("a block") * BLOCK };
        let mut out = self.image[start..start + whole].to_vec();
        let rest = self.size - whole;
        if rest > 0 {
            assert!(self.tail % BLOCK + rest <= BLOCK, "inline data crosses a block");
            out.extend(&self.image[self.tail..self.tail + rest]);
        }
        out
    }

    /// Names and where they lead.
    fn entries(&self) -> Vec<(Vec<u8>, u64, u8)> {
        let mut out = Vec::new();
        for block in self.content().chunks(BLOCK) {
            let count = usize::from(u16_at(block, 8)) / 12;
            assert!(count > 0 && usize::from(u16_at(block, 8)) % 12 == 0);
            for i in 0..count {
                let start = usize::from(u16_at(block, i * 12 + 8));
                let end = if i + 1 < count { usize::from(u16_at(block, i * 12 + 20)) } else { block.len() };
                let name = block[start..end].split(|&b| b == 0).next().unwrap_or_default();
                assert!(!name.is_empty() && name.len() <= 255);
                out.push((name.to_vec(), u64_at(block, i * 12), block[i * 12 + 10]));
            }
        }
        assert!(out.windows(2).all(|pair| pair[0].0 < pair[1].0), "names are sorted, none is there twice");
        out
    }

    /// Data lies on the disk, behind the metadata.
    fn check_data(&self, blocks: u32) {
        let first = u32::try_from(self.image.len() / BLOCK).expect("a small image");
        let check = |block: u32, bytes: usize| {
            let length = u32::try_from(bytes.div_ceil(BLOCK)).expect("a small file");
            assert!(block >= first && block.checked_add(length).is_some_and(|end| end <= blocks));
        };
        match self.layout {
            0 if self.size > 0 => check(self.union, self.size),
            0 => {}
            4 => {
                let chunk = 1_usize << (self.union + 12);
                for i in 0..self.size.div_ceil(chunk) {
                    let block = u32_at(self.image, self.tail + i * 4);
                    if block != u32::MAX {
                        check(block, (self.size - i * chunk).min(chunk));
                    }
                }
            }
            other => panic!("a file of layout {other}"),
        }
    }
}

/// Checks the image against the tree: the same names, kinds and link counts, and nothing outside of the disk's blocks.
pub(super) fn check(image: &[u8], blocks: u32, tree: &Tree) {
    assert_eq!(u32_at(image, 1024), 0xe0f5_e1e2);
    assert_eq!(u32_at(image, 1024 + 36), blocks);
    let root = u64::from(u16_at(image, 1024 + 14));
    let number = |at: usize| u32::try_from(at).expect("a small tree");
    let known: BTreeMap<(u32, &[u8]), u32> = (1..tree.nodes.len())
        .map(|at| ((tree.nodes[at].parent, tree.name(number(at))), number(at)))
        .collect();
    let mut links: BTreeMap<u64, u32> = BTreeMap::new();
    let mut inodes = BTreeSet::new();
    let mut names = 0_usize;
    let mut pending = vec![(root, root, ROOT)];
    while let Some((nid, parent, node)) = pending.pop() {
        let dir = Inode::at(image, nid);
        assert!(dir.is_dir());
        assert!(inodes.insert(nid), "a directory has two names");
        *links.entry(nid).or_default() += 1;
        for (name, to, file_type) in dir.entries() {
            if name == b"." {
                assert_eq!(to, nid);
                *links.entry(nid).or_default() += 1;
                continue;
            }
            if name == b".." {
                assert_eq!(to, parent);
                // The root's parent is itself, and counts no link for that.
                if nid != root {
                    *links.entry(parent).or_default() += 1;
                }
                continue;
            }
            names += 1;
            let inode = Inode::at(image, to);
            let child = *known.get(&(node, name.as_slice())).expect("a name that the tree has");
            assert_eq!(u64::from(tree.inode_of(child).nid), to);
            let expected = match tree.inode_of(child).kind {
                Kind::Directory => (0o040_000, 2),
                Kind::CharDevice => (0o020_000, 3),
                Kind::BlockDevice => (0o060_000, 4),
                Kind::Fifo => (0o010_000, 5),
                Kind::Symlink => (0o120_000, 7),
                _ => (0o100_000, 1),
            };
            assert_eq!((inode.mode & 0o170_000, file_type), expected);
            if inode.is_dir() {
                pending.push((to, nid, child));
                continue;
            }
            *links.entry(to).or_default() += 1;
            inodes.insert(to);
            match expected.1 {
                1 => inode.check_data(blocks),
                7 => assert_eq!(inode.content().len(), inode.size),
                _ => {}
            }
        }
    }
    for (nid, count) in links {
        let inode = Inode::at(image, nid);
        assert_eq!(inode.nlink, count, "links of the inode at {}", inode.at);
    }
    assert_eq!(u64_at(image, 1024 + 16), inodes.len() as u64);
    assert!(names < tree.nodes.len());
}
