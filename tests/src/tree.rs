//! Trees of files as the kernel shows them, and their differences.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image_unpack::Digest;

/// All that can be seen of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Kind and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of what is not a directory.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Links, of what is not a directory.
    pub nlink: u64,
    /// Device number.
    pub rdev: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Digest of a file's content, target of a symlink.
    pub content: String,
}

/// A tree, by paths below its root.
pub type Tree = BTreeMap<PathBuf, Seen>;

/// Looks at everything below `root`.
#[must_use]
pub fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let kind = m.file_type();
        let mut content = String::new();
        if kind.is_file() {
            let mut hash = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut hash).unwrap();
            content = Digest::of(&hash).to_string();
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        } else if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let is_dir = kind.is_dir();
        let seen = Seen {
            mode: m.mode(),
            uid: m.uid(),
            gid: m.gid(),
            size: if is_dir { 0 } else { m.size() },
            mtime: (m.mtime(), m.mtime_nsec()),
            // File systems differ in how they count directories.
            nlink: if is_dir { 0 } else { m.nlink() },
            rdev: m.rdev(),
            xattrs: xattrs(&path),
            content,
        };
        tree.insert(path.strip_prefix(root).unwrap().to_path_buf(), seen);
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 1 << 16];
    // SAFETY: path and buffer are valid for the length given.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let n = usize::try_from(n).unwrap_or(0);
    let mut out = BTreeMap::new();
    for name in names[..n].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0_u8; 1 << 16];
        // SAFETY: path, name and buffer are valid for the length given.
        let n = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(n).unwrap());
        out.insert(OsString::from_vec(name.to_vec()), value);
    }
    out
}

/// Panics with the first differences of two trees.
pub fn assert_same(ours: &Tree, theirs: &Tree, who: &str) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        if ours.get(path) != theirs.get(path) {
            differences.push(format!(
                "{path:?}\n  ours  {:?}\n  {who} {:?}",
                ours.get(path),
                theirs.get(path)
            ));
        }
    }
    let shown = differences.len().min(10);
    assert!(differences.is_empty(), "{} differ\n{}", differences.len(), differences[..shown].join("\n"));
    assert!(!ours.is_empty());
}
