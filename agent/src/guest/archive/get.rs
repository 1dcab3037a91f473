//! Archives of a path, as `docker cp` and `docker export` make them.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::path::Path;

use super::failed;
use super::path::Wanted;
use super::tar::Writer;
use super::tree::{Adder, child_name, list};
use crate::protocol::Failure;

/// Writes an archive of a path: its first entry has the path's last component as its name.
pub(super) fn write<W: Write>(path: &str, archive: &mut Writer<W>) -> Result<(), Failure> {
    let wanted = Wanted::new(path)?;
    let metadata = fs::symlink_metadata(&wanted.path).map_err(failed)?;
    let mut name = wanted.name.into_bytes();
    if metadata.is_dir() && !name.ends_with(b"/") {
        name.push(b'/');
    }
    add(archive, &mut Adder::default(), &wanted.path, name, &metadata).map_err(failed)
}

/// Writes an archive of everything in the root, without the root itself.
pub(super) fn write_root<W: Write>(archive: &mut Writer<W>) -> Result<(), Failure> {
    add_children(archive, &mut Adder::default(), Path::new("/"), b"").map_err(failed)
}

fn add<W: Write>(
    archive: &mut Writer<W>,
    adder: &mut Adder,
    path: &Path,
    name: Vec<u8>,
    metadata: &Metadata,
) -> io::Result<()> {
    let children = metadata.is_dir().then(|| name.clone());
    adder.add(archive, path, name, metadata)?;
    children.map_or(Ok(()), |name| add_children(archive, adder, path, &name))
}

/// Adds what a directory holds. The depth is bounded by the length of a path.
fn add_children<W: Write>(
    archive: &mut Writer<W>,
    adder: &mut Adder,
    directory: &Path,
    name: &[u8],
) -> io::Result<()> {
    for child in list(directory)? {
        let path = directory.join(&child);
        // What a running container removed meanwhile is not there; that is no failure.
        let added = fs::symlink_metadata(&path).and_then(|metadata| {
            let name = child_name(name, &child, metadata.is_dir());
            add(archive, adder, &path, name, &metadata)
        });
        match added {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
