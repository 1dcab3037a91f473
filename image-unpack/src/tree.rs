//! The merged tree of an image in memory: nodes (names in directories) and inodes (what they name), 24 bytes each.
//!
//! Removal is by generation: a directory that is emptied gets a new one, and children of an older one are dead,
//! however many they are. So whiteouts cost the same whatever they hide.

use std::hash::{BuildHasher, RandomState};

use crate::layer::index::Kind;

/// The root's node.
pub(crate) const ROOT: u32 = 0;
/// The layer number of directories that no layer has an entry for.
pub(crate) const IMPLICIT: u8 = u8::MAX;
const EMPTY: u32 = u32::MAX;

/// A name in a directory. Its parent always has a smaller number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub parent: u32,
    pub inode: u32,
    name: u32,
    name_len: u8,
    alive: bool,
    /// Of this node's children, if it is a directory.
    generation: u32,
    /// The parent's generation that this node belongs to.
    born: u32,
}

/// What names point to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    /// Offset of its record in the index of its layer.
    pub record: u64,
    pub nlink: u32,
    /// EROFS node number; 0 until laid out.
    pub nid: u32,
    pub layer: u8,
    pub kind: Kind,
}

/// The tree grew beyond what it may.
#[derive(Debug)]
pub(crate) struct Full(pub &'static str, pub u64);

pub(crate) struct Tree {
    pub nodes: Vec<Node>,
    pub inodes: Vec<Inode>,
    names: Vec<u8>,
    /// Open addressing, linear probing, never more than half full; nodes never leave it.
    table: Vec<u32>,
    hasher: RandomState,
    max_nodes: usize,
    max_names: usize,
}

impl Tree {
    /// A tree with only a root, which no layer described yet.
    pub(crate) fn new(max_nodes: usize, max_names: usize) -> Self {
        let root = Node { parent: ROOT, inode: 0, name: 0, name_len: 0, alive: true, generation: 0, born: 0 };
        Self {
            nodes: vec![root],
            inodes: vec![Inode { record: 0, nlink: 0, nid: 0, layer: IMPLICIT, kind: Kind::Directory }],
            names: Vec::new(),
            table: vec![EMPTY; 1 << 12],
            hasher: RandomState::new(),
            max_nodes,
            max_names,
        }
    }

    pub(crate) fn name(&self, node: u32) -> &[u8] {
        let node = &self.nodes[node as usize];
        let start = node.name as usize;
        &self.names[start..start + usize::from(node.name_len)]
    }

    pub(crate) fn inode_of(&self, node: u32) -> &Inode {
        &self.inodes[self.nodes[node as usize].inode as usize]
    }

    pub(crate) fn add_inode(&mut self, record: u64, layer: u8, kind: Kind) -> Result<u32, Full> {
        if self.inodes.len() >= self.max_nodes {
            return Err(Full("number of inodes", self.max_nodes as u64));
        }
        let number = u32::try_from(self.inodes.len()).map_err(|_| Full("number of inodes", 1 << 32))?;
        self.inodes.push(Inode { record, nlink: 0, nid: 0, layer, kind });
        Ok(number)
    }

    fn slot(&self, parent: u32, name: &[u8]) -> (usize, Option<u32>) {
        let mask = self.table.len() - 1;
        let mut at = usize::try_from(self.hasher.hash_one((parent, name)) & mask as u64).unwrap_or_default();
        loop {
            match self.table[at] {
                EMPTY => return (at, None),
                node if self.nodes[node as usize].parent == parent && self.name(node) == name => {
                    return (at, Some(node));
                }
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn is_alive(&self, node: u32) -> bool {
        let n = &self.nodes[node as usize];
        n.alive && n.born == self.nodes[n.parent as usize].generation
    }

    /// The living child of a living directory.
    pub(crate) fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.slot(parent, name).1.filter(|&node| self.is_alive(node))
    }

    /// Puts a name in a directory; what had the name is gone.
    pub(crate) fn put(&mut self, parent: u32, name: &[u8], inode: u32) -> Result<u32, Full> {
        let born = self.nodes[parent as usize].generation;
        let (at, found) = self.slot(parent, name);
        if let Some(node) = found {
            let n = &mut self.nodes[node as usize];
            n.inode = inode;
            n.alive = true;
            n.born = born;
            n.generation += 1;
            return Ok(node);
        }
        if self.nodes.len() >= self.max_nodes {
            return Err(Full("number of entries", self.max_nodes as u64));
        }
        if self.names.len() + name.len() > self.max_names {
            return Err(Full("length of all names", self.max_names as u64));
        }
        let full = |_| Full("number of entries", 1 << 32);
        let node = u32::try_from(self.nodes.len()).map_err(full)?;
        let start = u32::try_from(self.names.len()).map_err(full)?;
        let name_len = u8::try_from(name.len()).map_err(|_| Full("length of a name", 255))?;
        self.names.extend_from_slice(name);
        self.nodes.push(Node { parent, inode, name: start, name_len, alive: true, generation: 0, born });
        self.table[at] = node;
        if self.nodes.len() * 2 > self.table.len() {
            self.grow();
        }
        Ok(node)
    }

    fn grow(&mut self) {
        self.table = vec![EMPTY; self.table.len() * 2];
        let mask = self.table.len() - 1;
        for node in 1..self.nodes.len() {
            let number = u32::try_from(node).unwrap_or(EMPTY);
            let parent = self.nodes[node].parent;
            let hash = self.hasher.hash_one((parent, self.name(number)));
            let mut at = usize::try_from(hash & mask as u64).unwrap_or_default();
            while self.table[at] != EMPTY {
                at = (at + 1) & mask;
            }
            self.table[at] = number;
        }
    }

    /// Replaces what a living name points to, keeping a directory's children.
    pub(crate) fn set_inode(&mut self, node: u32, inode: u32) {
        self.nodes[node as usize].inode = inode;
    }

    /// Removes a name, and all below it.
    pub(crate) fn remove(&mut self, node: u32) {
        let n = &mut self.nodes[node as usize];
        n.alive = false;
        n.generation += 1;
    }

    /// Removes all below a directory.
    pub(crate) fn empty(&mut self, node: u32) {
        self.nodes[node as usize].generation += 1;
    }

    /// Fixes the tree: children of every directory, sorted by name, and link counts. Names can no longer be looked up.
    pub(crate) fn children(&mut self) -> Children {
        self.table = Vec::new();
        let count = self.nodes.len();
        let mut reachable = vec![false; count];
        reachable[0] = true;
        let mut starts = vec![0_u32; count + 1];
        for node in 1..count {
            let n = self.nodes[node];
            let number = u32::try_from(node).unwrap_or(EMPTY);
            // Parents come before their children, so their state is known.
            if reachable[n.parent as usize] && self.is_alive(number) {
                reachable[node] = true;
                starts[n.parent as usize + 1] += 1;
            }
        }
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let mut list = vec![0_u32; starts[count] as usize];
        let mut next = starts.clone();
        self.inodes[self.nodes[0].inode as usize].nlink += 2;
        for (number, n) in (0_u32..).zip(&self.nodes).skip(1) {
            if !reachable[number as usize] {
                continue;
            }
            let at = &mut next[n.parent as usize];
            list[*at as usize] = number;
            *at += 1;
            let inode = &mut self.inodes[n.inode as usize];
            if inode.kind == Kind::Directory {
                inode.nlink += 2;
                let parent = self.nodes[n.parent as usize].inode;
                self.inodes[parent as usize].nlink += 1;
            } else {
                inode.nlink += 1;
            }
        }
        drop(next);
        drop(reachable);
        for node in 0..count {
            let range = starts[node] as usize..starts[node + 1] as usize;
            list[range].sort_unstable_by(|&a, &b| self.name(a).cmp(self.name(b)));
        }
        Children { starts, list }
    }
}

/// Directory contents of a finished tree.
pub(crate) struct Children {
    starts: Vec<u32>,
    list: Vec<u32>,
}

impl Children {
    /// Child nodes of a directory node, sorted by name.
    pub(crate) fn of(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.list[self.starts[node] as usize..self.starts[node + 1] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_reaches_all_below_and_names_can_return() {
        let mut tree = Tree::new(100, 1000);
        let dir = tree.add_inode(1, 0, Kind::Directory).unwrap();
        let file = tree.add_inode(2, 0, Kind::File).unwrap();
        let a = tree.put(ROOT, b"a", dir).unwrap();
        let b = tree.put(a, b"b", dir).unwrap();
        tree.put(b, b"c", file).unwrap();
        tree.remove(a);
        assert_eq!(tree.child(ROOT, b"a"), None);
        let again = tree.put(ROOT, b"a", dir).unwrap();
        assert_eq!(tree.child(again, b"b"), None);
        let b2 = tree.put(again, b"b", dir).unwrap();
        assert_eq!(tree.child(b2, b"c"), None, "what was below a removed directory stays gone");
        tree.put(b2, b"d", file).unwrap();
        let children = tree.children();
        assert_eq!(children.of(b2).len(), 1);
    }

    #[test]
    fn grows_and_finds() {
        let mut tree = Tree::new(100_000, 1 << 20);
        let file = tree.add_inode(2, 0, Kind::File).unwrap();
        for i in 0..20_000 {
            tree.put(ROOT, format!("n{i}").as_bytes(), file).unwrap();
        }
        for i in 0..20_000 {
            assert!(tree.child(ROOT, format!("n{i}").as_bytes()).is_some());
        }
        let children = tree.children();
        assert_eq!(children.of(ROOT).len(), 20_000);
        assert!(children.of(ROOT).windows(2).all(|w| tree.name(w[0]) < tree.name(w[1])));
        assert_eq!(tree.inodes[file as usize].nlink, 20_000);
    }

    #[test]
    fn refuses_to_outgrow_its_bounds() {
        let mut tree = Tree::new(3, 10);
        assert!(tree.put(ROOT, b"12345678901", 0).is_err());
        tree.put(ROOT, b"a", 0).unwrap();
        tree.put(ROOT, b"b", 0).unwrap();
        assert!(tree.put(ROOT, b"c", 0).is_err());
    }
}
