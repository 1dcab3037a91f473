//! Layers' indexes, lowest first, to one tree (OCI image spec, layer.md, "Applying Changesets").
//!
//! Per layer, whiteouts act first: they hide what lower layers have, never what their own layer brings, wherever in
//! the tar they stand. Parents that are symlinks are followed, within the image's root, as unpackers on a file system
//! do.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::layer::index::{Entry, EntryWindow, IndexReader, Kind};
use crate::limits::Limits;
use crate::tree::{Full, IMPLICIT, ROOT, Tree};

/// Symlinks followed on the way to one parent.
const LINKS_MAX: u32 = 40;
/// Components walked on the way to one parent.
const STEPS_MAX: u32 = 16_384;

/// A layer's index, and where it is.
pub(crate) struct LayerIndex<'a> {
    pub label: String,
    pub path: &'a Path,
    pub file: File,
}

enum Fault {
    Full(Full),
    Refused(String),
    Read(usize, io::Error),
}

impl From<Full> for Fault {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Refused(reason.to_owned())
    }
}

/// Merges `layers`, lowest first, and returns the tree with a window on each index.
///
/// # Errors
/// [`Error::BadLayer`], [`Error::Limit`], [`Error::Corrupt`] for an unreadable index.
pub(crate) fn merge(layers: &[LayerIndex<'_>], limits: &Limits) -> Result<(Tree, Vec<EntryWindow>)> {
    let mut windows = Vec::with_capacity(layers.len());
    for layer in layers {
        let file = layer.file.try_clone().map_err(|e| Error::io("read", layer.path, e))?;
        windows.push(EntryWindow::new(file));
    }
    let max = limits.entries as usize + 1;
    let mut merge = Merge { tree: Tree::new(max, limits.name_bytes), windows, scratch: Entry::default() };
    for (number, layer) in layers.iter().enumerate() {
        for whiteouts in [true, false] {
            let corrupt = |e: io::Error| Error::Corrupt { path: layer.path.into(), reason: e.to_string() };
            let mut reader = IndexReader::new(&layer.file).map_err(corrupt)?;
            let mut entry = Entry::default();
            while let Some(record) = reader.next(&mut entry).map_err(corrupt)? {
                let is_whiteout = matches!(entry.kind, Kind::Whiteout | Kind::Opaque);
                if is_whiteout != whiteouts {
                    continue;
                }
                let done = if whiteouts { merge.hide(&entry) } else { merge.apply(&entry, number, record) };
                let shown = || String::from_utf8_lossy(&entry.path).into_owned();
                done.map_err(|fault| match fault {
                    Fault::Refused(reason) => {
                        Error::BadLayer { layer: layer.label.clone(), entry: Some(shown()), reason }
                    }
                    Fault::Full(Full(what, limit)) => {
                        Error::Limit { place: layer.label.clone(), what, limit }
                    }
                    Fault::Read(at, e) => {
                        let path = layers.get(at).map_or(layer.path, |l| l.path).into();
                        Error::Corrupt { path, reason: e.to_string() }
                    }
                })?;
            }
        }
    }
    Ok((merge.tree, merge.windows))
}

struct Merge {
    tree: Tree,
    windows: Vec<EntryWindow>,
    scratch: Entry,
}

/// Parent directory's path and last name. The path must not be empty.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

impl Merge {
    fn hide(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.path.is_empty() {
            self.tree.empty(ROOT);
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let Some(parent) = self.walk(parent, false)? else { return Ok(()) };
        let Some(node) = self.tree.child(parent, name) else { return Ok(()) };
        if entry.kind == Kind::Whiteout {
            self.tree.remove(node);
        } else if self.tree.inode_of(node).kind == Kind::Directory {
            self.tree.empty(node);
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry, layer: usize, record: u64) -> Result<(), Fault> {
        let layer = u8::try_from(layer).ok().filter(|&n| n != IMPLICIT).ok_or("too many layers")?;
        if entry.path.is_empty() {
            let inode = self.tree.add_inode(record, layer, Kind::Directory)?;
            self.tree.set_inode(ROOT, inode);
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let parent = self.walk(parent, true)?.ok_or("its parent does not exist")?;
        if entry.kind == Kind::Hardlink {
            let (target_parent, target_name) = split(&entry.link);
            let target = match self.walk(target_parent, false)? {
                Some(directory) => self.tree.child(directory, target_name),
                None => None,
            };
            let missing =
                || Fault::Refused(format!("hardlink to missing `{}`", String::from_utf8_lossy(&entry.link)));
            let target = target.ok_or_else(missing)?;
            if self.tree.inode_of(target).kind == Kind::Directory {
                return Err("hardlink to a directory".into());
            }
            let inode = self.tree.nodes[target as usize].inode;
            self.tree.put(parent, name, inode)?;
            return Ok(());
        }
        let old = self.tree.child(parent, name);
        let inode = self.tree.add_inode(record, layer, entry.kind)?;
        match old {
            Some(node)
                if entry.kind == Kind::Directory && self.tree.inode_of(node).kind == Kind::Directory =>
            {
                self.tree.set_inode(node, inode);
            }
            _ => {
                self.tree.put(parent, name, inode)?;
            }
        }
        Ok(())
    }

    /// The directory at `path`, symlinks followed within the root; missing ones are made if `create`.
    fn walk(&mut self, path: &[u8], create: bool) -> Result<Option<u32>, Fault> {
        let mut current = ROOT;
        let mut links = 0;
        let mut steps = 0;
        // What is left to walk, each a path whose first part was consumed: the innermost symlink is last.
        let mut left: Vec<(Vec<u8>, usize)> = Vec::new();
        let mut at = 0;
        loop {
            let pending: &[u8] = left.last().map_or(path, |(target, _)| target);
            let start = left.last().map_or(at, |&(_, at)| at);
            if start >= pending.len() {
                if left.pop().is_none() {
                    return Ok(Some(current));
                }
                continue;
            }
            let end = pending[start..].iter().position(|&b| b == b'/').map_or(pending.len(), |n| start + n);
            let name = &pending[start..end];
            steps += 1;
            if steps > STEPS_MAX {
                return Err("the way to its parent is too long".into());
            }
            let mut next_link = None;
            match name {
                b"" | b"." => {}
                b".." => current = self.tree.nodes[current as usize].parent,
                name => match self.tree.child(current, name) {
                    Some(node) => match self.tree.inode_of(node).kind {
                        Kind::Directory => current = node,
                        Kind::Symlink => next_link = Some(*self.tree.inode_of(node)),
                        _ => {
                            if create {
                                return Err("its parent is not a directory".into());
                            }
                            return Ok(None);
                        }
                    },
                    None if create => {
                        if name.len() > crate::limits::NAME_MAX {
                            return Err("the way to its parent has too long a name".into());
                        }
                        let inode = self.tree.add_inode(0, IMPLICIT, Kind::Directory)?;
                        current = self.tree.put(current, name, inode)?;
                    }
                    None => return Ok(None),
                },
            }
            match left.last_mut() {
                Some((_, at)) => *at = end + 1,
                None => at = end + 1,
            }
            if let Some(inode) = next_link {
                links += 1;
                if links > LINKS_MAX {
                    return Err("its parent is a loop of symlinks".into());
                }
                let layer = usize::from(inode.layer);
                self.windows[layer]
                    .read(inode.record, &mut self.scratch)
                    .map_err(|error| Fault::Read(layer, error))?;
                if self.scratch.link.starts_with(b"/") {
                    current = ROOT;
                }
                left.push((self.scratch.link.clone(), 0));
            }
        }
    }
}
