//! A merged tree to an EROFS metadata image. File content is not in it: inodes point to blocks behind it, where the
//! disk has the layers' data blobs.
//!
//! ```text
//! block 0: superblock | inodes, each with attributes, chunk table, small directory or symlink | large directories
//! ```
//! The order is the tree's (each directory's children together), so the same layers give the same bytes, and a
//! directory's inodes are neighbours.

use std::io::{self, Write};

use super::dirs::{self, Dirent};
use super::format::{
    BLOCK, BLOCK_SIZE, INODE, InodeFields, Layout, NULL_BLOCK, SLOT, SUPER_OFFSET, SUPER_SIZE, Super,
    file_type, mode_bits, xattr_size,
};
use crate::layer::index::{Entry, EntryWindow, HOLE, Kind};
use crate::tree::{Children, IMPLICIT, ROOT, Tree};

/// Where everything is, before anything is written.
pub(crate) struct Plan {
    /// Nodes in disk order: the first name of every inode.
    order: Vec<u32>,
    children: Children,
    /// Bytes up to the end of the inodes, a multiple of a block.
    inode_end: u64,
    chunked: bool,
    /// Bytes of the metadata image, a multiple of a block.
    pub size: u64,
    /// Bytes of all regular files, each inode once.
    pub content: u64,
}

/// One inode's place and shape.
struct Shape {
    layout: Layout,
    xattr: u64,
    size: u64,
    /// Bytes behind inode and attributes: inline data or chunk table.
    tail: u64,
    /// Blocks in the area behind the inodes.
    outside: u64,
}

fn shape(entry: &Entry, dir_size: u64) -> Shape {
    let xattr = xattr_size(entry.xattrs.len());
    let plain = |size, outside: u64| Shape { layout: Layout::Plain, xattr, size, tail: 0, outside };
    match entry.kind {
        Kind::Directory | Kind::Symlink => {
            let size = if entry.kind == Kind::Directory { dir_size } else { entry.link.len() as u64 };
            let tail = size % BLOCK;
            let fits = tail > 0 && INODE + xattr + tail <= BLOCK;
            // The kernel takes an inline symlink in one piece only; longer than a block they cannot be.
            if fits {
                Shape { layout: Layout::Inline, xattr, size, tail, outside: size / BLOCK }
            } else {
                plain(size, size.div_ceil(BLOCK))
            }
        }
        Kind::File if entry.chunk_bits > 0 && entry.size > 0 => {
            let tail = entry.chunks.len() as u64 * 4;
            Shape { layout: Layout::Chunked, xattr, size: entry.size, tail, outside: 0 }
        }
        Kind::File => plain(entry.size, 0),
        _ => plain(0, 0),
    }
}

/// Where an inode of this shape goes, at or after `position`.
fn place(position: u64, shape: &Shape) -> u64 {
    let start = position.next_multiple_of(SLOT);
    // Inline data must not cross a block, and it is simplest for readers if nothing small does. Attributes and chunk
    // tables that are larger than a block may.
    let whole = INODE + shape.xattr + shape.tail;
    let together = if whole <= BLOCK { whole } else { INODE };
    if start % BLOCK + together > BLOCK { start.next_multiple_of(BLOCK) } else { start }
}

/// The entry of a node; for directories that no layer described, Docker's default.
fn load(tree: &Tree, windows: &mut [EntryWindow], node: u32, entry: &mut Entry) -> io::Result<()> {
    let inode = tree.inode_of(node);
    if inode.layer == IMPLICIT {
        *entry = Entry { kind: Kind::Directory, mode: 0o755, ..Entry::default() };
        return Ok(());
    }
    windows[usize::from(inode.layer)].read(inode.record, entry)
}

/// A directory's names, `.` and `..` among them, sorted, with the nodes they lead to.
fn names<'a>(tree: &'a Tree, children: &'a Children, node: u32) -> impl Iterator<Item = (&'a [u8], u32)> {
    const DOTS: [&[u8]; 2] = [b".", b".."];
    let list = children.of(node);
    let [dot, dots] = DOTS.map(|name| list.partition_point(|&child| tree.name(child) < name));
    let named = |&child: &u32| (tree.name(child), child);
    let (before, between, after) = (&list[..dot], &list[dot..dots], &list[dots..]);
    let here = (DOTS[0], node);
    let above = (DOTS[1], tree.nodes[node as usize].parent);
    before
        .iter()
        .map(named)
        .chain([here])
        .chain(between.iter().map(named))
        .chain([above])
        .chain(after.iter().map(named))
}

fn names_size(tree: &Tree, children: &Children, node: u32) -> u64 {
    dirs::size(names(tree, children, node).map(|(name, _)| name))
}

/// The content of a directory or symlink, block by block; true with the last.
fn content(
    entry: &Entry,
    tree: &Tree,
    plan: &Plan,
    node: u32,
    mut each: impl FnMut(&[u8], bool) -> io::Result<()>,
) -> io::Result<()> {
    if entry.kind == Kind::Symlink {
        let blocks = entry.link.len().div_ceil(BLOCK_SIZE);
        for (i, block) in entry.link.chunks(BLOCK_SIZE).enumerate() {
            each(block, i + 1 == blocks)?;
        }
        return Ok(());
    }
    let dirents = names(tree, &plan.children, node).map(|(name, to)| {
        let inode = tree.inode_of(to);
        Dirent { name, nid: u64::from(inode.nid), file_type: file_type(inode.kind) }
    });
    dirs::encode(dirents, each)
}

/// Lays the image out: fixes link counts and node numbers in `tree`.
pub(crate) fn plan(tree: &mut Tree, windows: &mut [EntryWindow]) -> io::Result<Plan> {
    let children = tree.children();
    let mut order = Vec::with_capacity(tree.inodes.len());
    let mut position = SUPER_OFFSET + SUPER_SIZE;
    let (mut outside, mut content, mut chunked) = (0, 0, false);
    let mut entry = Entry::default();
    let mut put = |tree: &mut Tree, order: &mut Vec<u32>, node: u32| -> io::Result<()> {
        let number = tree.nodes[node as usize].inode as usize;
        if tree.inodes[number].nid != 0 {
            return Ok(());
        }
        load(tree, windows, node, &mut entry)?;
        let dir_size = if entry.kind == Kind::Directory { names_size(tree, &children, node) } else { 0 };
        let shape = shape(&entry, dir_size);
        let at = place(position, &shape);
        position = at + INODE + shape.xattr + shape.tail;
        outside += shape.outside;
        chunked |= shape.layout == Layout::Chunked;
        if entry.kind == Kind::File {
            content += entry.size;
        }
        tree.inodes[number].nid =
            u32::try_from(at / SLOT).map_err(|_| io::Error::other("too much metadata for one image"))?;
        order.push(node);
        Ok(())
    };
    put(tree, &mut order, ROOT)?;
    let mut directories = vec![ROOT];
    while let Some(directory) = directories.pop() {
        let list = children.of(directory);
        for &child in list {
            put(tree, &mut order, child)?;
        }
        let is_dir = |&&child: &&u32| tree.inode_of(child).kind == Kind::Directory;
        directories.extend(list.iter().rev().filter(is_dir));
    }
    let inode_end = position.next_multiple_of(BLOCK);
    let size = inode_end + outside * BLOCK;
    Ok(Plan { order, children, inode_end, chunked, size, content })
}

/// Counts what goes through, to fill gaps, and holds the first block back: the superblock's checksum covers it.
struct Out<W> {
    inner: W,
    position: u64,
    first: Vec<u8>,
    superblock: Super,
}

impl<W: Write> Out<W> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if self.first.len() < BLOCK_SIZE {
            let room = BLOCK_SIZE - self.first.len();
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.first.extend_from_slice(head);
            bytes = rest;
            if let Ok(block) = <&mut [u8; BLOCK_SIZE]>::try_from(&mut self.first[..]) {
                self.superblock.encode(block);
                self.inner.write_all(block)?;
            }
        }
        self.inner.write_all(bytes)
    }

    fn pad_to(&mut self, target: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < target {
            let n = usize::try_from((target - self.position).min(4096)).unwrap_or(4096);
            self.put(&ZEROS[..n])?;
        }
        Ok(())
    }
}

/// Writes the image. `bases` is the first block of each layer's data on the disk, `blocks` the disk's length.
pub(crate) fn write(
    plan: &Plan,
    tree: &Tree,
    windows: &mut [EntryWindow],
    bases: &[u32],
    blocks: u32,
    uuid: [u8; 16],
    out: impl Write,
) -> io::Result<()> {
    let wrong = |what: &'static str| move || io::Error::other(what);
    let root_nid = u16::try_from(tree.inode_of(ROOT).nid).map_err(|_| wrong("root is out of reach")())?;
    let inodes = plan.order.len() as u64;
    let superblock = Super { root_nid, inodes, blocks, uuid, chunked: plan.chunked };
    let mut out = Out { inner: out, position: 0, first: Vec::new(), superblock };
    out.pad_to(SUPER_OFFSET + SUPER_SIZE)?;
    let mut outside = plan.inode_end;
    let mut entry = Entry::default();
    let mut bytes = Vec::new();
    for (number, &node) in plan.order.iter().enumerate() {
        load(tree, windows, node, &mut entry)?;
        let dir_size = if entry.kind == Kind::Directory { names_size(tree, &plan.children, node) } else { 0 };
        let shape = shape(&entry, dir_size);
        let inode = tree.inode_of(node);
        let base = bases.get(usize::from(inode.layer)).copied().unwrap_or_default();
        let union = match (entry.kind, shape.layout) {
            (Kind::CharDevice | Kind::BlockDevice, _) => entry.rdev,
            (_, Layout::Chunked) => u32::from(entry.chunk_bits) - 12,
            (Kind::File, _) if entry.size == 0 => 0,
            (Kind::File, _) => entry.block.checked_add(base).ok_or_else(wrong("disk too large"))?,
            _ if shape.outside > 0 => {
                u32::try_from(outside / BLOCK).map_err(|_| wrong("too much metadata")())?
            }
            _ => 0,
        };
        outside += shape.outside * BLOCK;
        out.pad_to(u64::from(inode.nid) * SLOT)?;
        bytes.clear();
        InodeFields {
            layout: shape.layout,
            xattr_size: shape.xattr,
            mode: mode_bits(entry.kind) | if entry.kind == Kind::Symlink { 0o777 } else { entry.mode },
            size: shape.size,
            union,
            number: u32::try_from(number + 1).unwrap_or_default(),
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_ns: entry.mtime_ns,
            nlink: inode.nlink,
        }
        .encode(&mut bytes);
        if shape.xattr > 0 {
            bytes.extend_from_slice(&[0; 12]);
            bytes.extend_from_slice(&entry.xattrs);
        }
        match shape.layout {
            Layout::Inline => content(&entry, tree, plan, node, |block, last| {
                if last {
                    bytes.extend_from_slice(block);
                }
                Ok(())
            })?,
            Layout::Chunked => {
                for &chunk in &entry.chunks {
                    let block = if chunk == HOLE {
                        NULL_BLOCK
                    } else {
                        chunk.checked_add(base).ok_or_else(wrong("disk too large"))?
                    };
                    bytes.extend_from_slice(&block.to_le_bytes());
                }
            }
            Layout::Plain => {}
        }
        out.put(&bytes)?;
    }
    out.pad_to(plan.inode_end)?;
    for &node in &plan.order {
        let kind = tree.inode_of(node).kind;
        if !matches!(kind, Kind::Directory | Kind::Symlink) {
            continue;
        }
        load(tree, windows, node, &mut entry)?;
        let dir_size = if kind == Kind::Directory { names_size(tree, &plan.children, node) } else { 0 };
        let shape = shape(&entry, dir_size);
        if shape.outside == 0 {
            continue;
        }
        content(&entry, tree, plan, node, |block, last| {
            if last && shape.layout == Layout::Inline {
                return Ok(());
            }
            out.put(block)?;
            let end = out.position.next_multiple_of(BLOCK);
            out.pad_to(end)
        })?;
    }
    debug_assert_eq!(out.position, plan.size);
    out.inner.flush()
}
