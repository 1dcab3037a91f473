//! What the container changed: the upper directory of its overlay, as a list or as an OCI layer.
//!
//! This process's root is where image and writable disk are mounted, so that no link leads further. In the upper directory a character device
//! 0:0 stands for a removed name, and the attribute `trusted.overlay.opaque` for a directory that hides the image's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::tar::{Entry, Kind, Writer};
use super::tree::{Adder, child_name, list as names};
use super::{at, failed};
use crate::guest::rootfs::{IMAGE, UPPER};
use crate::guest::sys;
use crate::protocol::{Change, ChangeKind, Failure};

/// Prefix of a layer's whiteouts, and the marker of an opaque directory (OCI image specification, layer.md).
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// What the agent makes in every container for its mounts; Docker keeps it in a layer of its own. Empty and not in the image, it is nobody's change.
const MOUNT_POINTS: [&str; 7] =
    ["/dev", "/etc", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys"];

/// Takes what was found, in order.
trait Found {
    /// A name that is new or differs; a directory comes before what is in it.
    fn present(&mut self, at: &Place, metadata: &Metadata, change: ChangeKind) -> io::Result<()>;
    /// A name of the image that is gone.
    fn gone(&mut self, at: &Place) -> io::Result<()>;
    /// A directory that hides the image's of the same name.
    fn opaque(&mut self, at: &Place) -> io::Result<()>;
}

/// One name, in the upper directory and in the container.
struct Place {
    upper: PathBuf,
    /// Absolute in the container.
    inner: PathBuf,
}

impl Place {
    fn child(&self, name: &OsStr) -> Self {
        Self { upper: self.upper.join(name), inner: self.inner.join(name) }
    }

    /// What the image has here.
    fn in_image(&self) -> Option<Metadata> {
        let inner = self.inner.strip_prefix("/").unwrap_or(&self.inner);
        fs::symlink_metadata(Path::new("/").join(IMAGE).join(inner)).ok()
    }
}

/// Writes the list, one JSON object a line.
pub(super) fn list(to: impl Write) -> Result<(), Failure> {
    let mut list = Lines(to);
    walk_all(&mut list)?;
    list.0.flush().map_err(failed)
}

/// Writes the layer.
pub(super) fn layer<W: Write>(archive: &mut Writer<W>) -> Result<(), Failure> {
    walk_all(&mut Layer { archive, adder: Adder::default() })
}

struct Lines<W>(W);

impl<W: Write> Lines<W> {
    fn line(&mut self, path: &Path, kind: ChangeKind) -> io::Result<()> {
        let change = Change { path: path.to_string_lossy().into_owned(), kind };
        serde_json::to_writer(&mut self.0, &change)?;
        self.0.write_all(b"\n")
    }
}

impl<W: Write> Found for Lines<W> {
    fn present(&mut self, at: &Place, _: &Metadata, change: ChangeKind) -> io::Result<()> {
        self.line(&at.inner, change)
    }

    fn gone(&mut self, at: &Place) -> io::Result<()> {
        self.line(&at.inner, ChangeKind::Deleted)
    }

    fn opaque(&mut self, at: &Place) -> io::Result<()> {
        let inner = at.inner.strip_prefix("/").unwrap_or(&at.inner);
        let hidden = Path::new("/").join(IMAGE).join(inner);
        for name in names(&hidden).unwrap_or_default() {
            if fs::symlink_metadata(at.upper.join(&name)).is_err() {
                self.gone(&at.child(&name))?;
            }
        }
        Ok(())
    }
}

struct Layer<'a, W> {
    archive: &'a mut Writer<W>,
    adder: Adder,
}

impl<W: Write> Layer<'_, W> {
    /// An empty file that only its name gives a meaning.
    fn marker(&mut self, directory: &Path, name: &OsStr) -> io::Result<()> {
        let mark = child_name(&layer_name(directory, true), name, false);
        self.archive.entry(&Entry::new(Kind::File, mark), &mut io::empty())
    }
}

impl<W: Write> Found for Layer<'_, W> {
    fn present(&mut self, at: &Place, metadata: &Metadata, _: ChangeKind) -> io::Result<()> {
        self.adder.add(self.archive, &at.upper, layer_name(&at.inner, metadata.is_dir()), metadata)
    }

    fn gone(&mut self, at: &Place) -> io::Result<()> {
        let mut name = OsString::from(WHITEOUT);
        name.push(at.inner.file_name().unwrap_or_default());
        self.marker(at.inner.parent().unwrap_or(Path::new("/")), &name)
    }

    fn opaque(&mut self, at: &Place) -> io::Result<()> {
        self.marker(&at.inner, OPAQUE.as_ref())
    }
}

/// A path of the container as a layer names it: relative, directories with a slash at the end.
fn layer_name(inner: &Path, is_directory: bool) -> Vec<u8> {
    let relative = inner.strip_prefix("/").unwrap_or(inner).as_os_str();
    if relative.is_empty() { Vec::new() } else { child_name(b"", relative, is_directory) }
}

fn walk_all(found: &mut dyn Found) -> Result<(), Failure> {
    let root = Place { upper: Path::new("/").join(UPPER), inner: PathBuf::from("/") };
    // The root itself is never reported.
    walk(found, &root, &mut Vec::new()).map_err(failed)
}

/// Reports what a directory holds. `unchanged` are the directories above that have not been reported because only what is in them differs.
/// The depth is bounded by the length of a path.
fn walk(found: &mut dyn Found, directory: &Place, unchanged: &mut Vec<(Place, Metadata)>) -> io::Result<()> {
    for name in names(&directory.upper)? {
        let place = directory.child(&name);
        let metadata = match fs::symlink_metadata(&place.upper) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(at(&place.inner)(e)),
        };
        let image = place.in_image();
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            if image.is_some() {
                report(found, unchanged)?;
                found.gone(&place)?;
            }
            continue;
        }
        if image.is_none() && is_mount_point(&place, &metadata)? {
            continue;
        }
        let was_directory = image.as_ref().is_some_and(Metadata::is_dir);
        if metadata.is_dir() && image.as_ref().is_some_and(|image| same(image, &metadata)) {
            let depth = unchanged.len();
            let opaque = is_opaque(&place.upper)?;
            unchanged.push((place, metadata));
            if opaque {
                report(found, unchanged)?;
            }
            let place = directory.child(&name);
            if opaque {
                found.opaque(&place)?;
            }
            walk(found, &place, unchanged)?;
            unchanged.truncate(depth);
            continue;
        }
        report(found, unchanged)?;
        let change = if image.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        found.present(&place, &metadata, change)?;
        if metadata.is_dir() {
            if was_directory && is_opaque(&place.upper)? {
                found.opaque(&place)?;
            }
            walk(found, &place, unchanged)?;
        }
    }
    Ok(())
}

/// Reports the directories above a change, the outermost first.
fn report(found: &mut dyn Found, unchanged: &mut Vec<(Place, Metadata)>) -> io::Result<()> {
    unchanged
        .drain(..)
        .try_for_each(|(place, metadata)| found.present(&place, &metadata, ChangeKind::Modified))
}

/// Whether a directory is as the image has it, apart from what it holds.
fn same(image: &Metadata, upper: &Metadata) -> bool {
    let key = |m: &Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
    key(image) == key(upper)
}

fn is_opaque(path: &Path) -> io::Result<bool> {
    Ok(sys::get_xattr(path, b"trusted.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

/// Whether this is one of the agent's own mount points with nothing else in it.
fn is_mount_point(place: &Place, metadata: &Metadata) -> io::Result<bool> {
    if !MOUNT_POINTS.iter().any(|p| Path::new(p) == place.inner) {
        return Ok(false);
    }
    if !metadata.is_dir() {
        return Ok(metadata.is_file() && metadata.size() == 0);
    }
    for name in names(&place.upper)? {
        let child = place.child(&name);
        let metadata = fs::symlink_metadata(&child.upper).map_err(at(&child.inner))?;
        if !is_mount_point(&child, &metadata)? {
            return Ok(false);
        }
    }
    Ok(true)
}
