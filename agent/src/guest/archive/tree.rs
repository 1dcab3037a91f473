//! Files to archive entries.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::at;
use super::tar::{Entry, Kind, Writer};
use crate::guest::sys;

/// Most files with several names whose first name is remembered; further ones are archived anew under each name.
const MAX_LINKED: usize = 65_536;

/// Adds files to an archive, and knows which files have been there before under another name.
#[derive(Default)]
pub(super) struct Adder {
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Adder {
    /// Adds one file, directory or link (not what is in it). A socket has no place in an archive and is passed over.
    pub(super) fn add<W: Write>(
        &mut self,
        archive: &mut Writer<W>,
        path: &Path,
        name: Vec<u8>,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let Some((mut entry, mut content)) = describe(path, name, metadata).map_err(at(path))? else {
            return Ok(());
        };
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&key) {
                entry =
                    Entry { kind: Kind::HardLink, size: 0, link: first.clone(), xattrs: Vec::new(), ..entry };
                content = None;
            } else if self.linked.len() < MAX_LINKED {
                self.linked.insert(key, entry.path.clone());
            }
        }
        match content {
            Some(mut file) => archive.entry(&entry, &mut file),
            None => archive.entry(&entry, &mut io::empty()),
        }
        .map_err(at(path))
    }
}

/// An entry for a file, and the open file if it has content. `None` for a socket, and for what is not the same file any more.
pub(super) fn describe(
    path: &Path,
    name: Vec<u8>,
    metadata: &Metadata,
) -> io::Result<Option<(Entry, Option<File>)>> {
    let kind = metadata.file_type();
    let mut content = None;
    let mut metadata = metadata.clone();
    let kind = if kind.is_file() {
        // What was a file may be a FIFO by now, whose open would wait for ever.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOATIME;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        content = Some(file);
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink
    } else if kind.is_char_device() {
        Kind::CharDevice
    } else if kind.is_block_device() {
        Kind::BlockDevice
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        return Ok(None);
    };
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Some((
        Entry {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: if kind == Kind::File { metadata.size() } else { 0 },
            modified: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
            link: if kind == Kind::Symlink {
                fs::read_link(path)?.into_os_string().into_encoded_bytes()
            } else {
                Vec::new()
            },
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => {
                    (small(major(metadata.rdev())), small(minor(metadata.rdev())))
                }
                _ => (0, 0),
            },
            xattrs: xattrs(path)?,
            ..Entry::new(kind, name)
        },
        content,
    )))
}

/// The entries of a directory in the order of their names.
pub(super) fn list(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(path)
        .and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>())
        .map_err(at(path))?;
    names.sort_unstable();
    Ok(names)
}

/// Joins a name in an archive and the name of something in that directory.
pub(super) fn child_name(directory: &[u8], name: &OsStr, is_directory: bool) -> Vec<u8> {
    let slash: &[u8] = if directory.is_empty() || directory.ends_with(b"/") { b"" } else { b"/" };
    let end: &[u8] = if is_directory { b"/" } else { b"" };
    [directory, slash, name.as_bytes(), end].concat()
}

/// The attributes that an archive keeps: not those in which the overlay holds its own marks.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = sys::list_xattrs(path)?;
    let mut attributes = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty() && !n.starts_with(b"trusted.overlay.")) {
        if let Some(value) = sys::get_xattr(path, name)? {
            attributes.push((name.to_vec(), value));
        }
    }
    Ok(attributes)
}
