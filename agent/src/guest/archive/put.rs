//! Unpacks an archive in a directory of the container, as `docker cp` expects. The archive is not trusted to stay in its directory, and
//! the container may change the directory meanwhile: all paths are resolved within the container's root, because it is this process's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, umask, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::chdir;

use super::path::Wanted;
use super::tar::{Entry, Kind, Reader};
use super::{at, failed};
use crate::guest::container::user;
use crate::guest::sys;
use crate::protocol::{ArchivePut, Failure, FailureKind};

/// Most bytes after an archive's end that are read so that the sender is not cut off.
const MAX_TRAILER: u64 = 16 << 20;
/// Most directories whose times are set once everything is in them.
const MAX_DIRECTORIES: usize = 262_144;

/// Where an archive goes, with this process's root.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A directory of the container, which stays as it is but for what comes into it.
    Container(&'a ArchivePut),
    /// A volume, which becomes what the archive's own directory was. It takes no device nodes: they are passed over.
    Volume {
        /// As of [`ArchivePut::owner`].
        owner: Option<&'a str>,
    },
}

/// Unpacks; what was unpacked before a failure stays.
pub(super) fn unpack(target: Target<'_>, from: impl Read) -> Result<(), Failure> {
    let (path, owner, keep_kinds, volume) = match target {
        Target::Container(put) => {
            (put.path.as_str(), put.owner.as_deref(), put.no_overwrite_dir_non_dir, false)
        }
        Target::Volume { owner } => ("/", owner, false, true),
    };
    let wanted = Wanted::new(path)?;
    let metadata = fs::metadata(&wanted.path).map_err(failed)?;
    if !metadata.is_dir() {
        let text = format!("{}: not a directory", wanted.path.display());
        return Err(Failure::new(FailureKind::NotADirectory, text));
    }
    let owner = match owner.map(|o| user::resolve(o, &[])).transpose() {
        Ok(identity) => identity.map(|i| (i.uid, i.gid)),
        Err(why) => return Err(Failure::new(FailureKind::Other, why)),
    };
    chdir(&wanted.path).map_err(|e| failed(e.into()))?;
    umask(Mode::empty());
    let mut unpacker = Unpacker { owner, keep_kinds, volume, directories: BTreeMap::new() };
    let mut archive = Reader::new(from);
    while let Some(entry) = archive.next_entry().map_err(damaged)? {
        unpacker.add(&entry, &mut archive)?;
    }
    unpacker.finish().map_err(failed)?;
    archive.drain(MAX_TRAILER).map_err(damaged)
}

/// What is wrong with the archive itself is never a matter of the container's paths.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn damaged(error: io::Error) -> Failure {
    Failure::new(FailureKind::Other, error.to_string())
}

struct Unpacker {
    owner: Option<(u32, u32)>,
    keep_kinds: bool,
    volume: bool,
    /// Directories whose times are still to be set.
    directories: BTreeMap<PathBuf, TimeSpec>,
}

impl Unpacker {
    fn add<R: Read>(&mut self, entry: &Entry, archive: &mut Reader<R>) -> Result<(), Failure> {
        let path = inside(&entry.path)?;
        if self.volume && matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok(());
        }
        self.make_room(&path, entry.kind)?;
        match self.create(&path, entry, archive) {
            Ok(()) => Ok(()),
            // The reader says what is wrong with the archive in words of its own.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(damaged(e)),
            Err(e) => match failed(at(&path)(e)) {
                // A path of the archive's is not the path that was asked for.
                Failure { kind: FailureKind::NoSuchPath | FailureKind::NotADirectory, text } => {
                    Err(Failure::new(FailureKind::Other, text))
                }
                failure => Err(failure),
            },
        }
    }

    /// Removes what is in the way: everything but a directory where a directory comes.
    fn make_room(&self, path: &Path, kind: Kind) -> Result<(), Failure> {
        let Ok(existing) = fs::symlink_metadata(path) else { return Ok(()) };
        let to_directory = kind == Kind::Directory;
        if self.keep_kinds && existing.is_dir() != to_directory {
            let (old, new) =
                if to_directory { ("non-directory", "directory") } else { ("directory", "non-directory") };
            let text = format!("cannot overwrite {old} {:?} with {new} {:?}", path.display(), path.display());
            return Err(Failure::new(FailureKind::Other, text));
        }
        if path == Path::new(".") || (existing.is_dir() && to_directory) {
            return Ok(());
        }
        let removed = if existing.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.map_err(|e| failed(at(path)(e)))
    }

    fn create<R: Read>(&mut self, path: &Path, entry: &Entry, archive: &mut Reader<R>) -> io::Result<()> {
        if path == Path::new(".") && !self.volume {
            // The directory itself is the container's.
            return if entry.kind == Kind::Directory { Ok(()) } else { Err(Errno::EISDIR.into()) };
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty() && fs::metadata(p).is_err())
        {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mode = Permissions::from_mode(entry.mode);
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let (uid, gid) = (Some(uid), Some(gid));
        match entry.kind {
            Kind::File => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(path)?;
                archive.copy(&mut file)?;
                fchown(&file, uid, gid)?;
                file.set_permissions(mode)?;
                // After the change of owner, which clears capabilities.
                set_xattrs(&file, entry)?;
            }
            Kind::HardLink => return fs::hard_link(inside(&entry.link).map_err(io::Error::other)?, path),
            Kind::Symlink => {
                symlink(std::ffi::OsString::from_vec(entry.link.clone()), path)?;
                lchown(path, uid, gid)?;
            }
            Kind::Directory => {
                if !fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
                    fs::create_dir(path)?;
                }
                chown(path, uid, gid)?;
                fs::set_permissions(path, mode)?;
                set_xattrs(&File::open(path)?, entry)?;
                if self.directories.len() < MAX_DIRECTORIES {
                    self.directories.insert(path.to_owned(), time(entry));
                }
                return Ok(());
            }
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                let kind = match entry.kind {
                    Kind::CharDevice => SFlag::S_IFCHR,
                    Kind::BlockDevice => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let (major, minor) = entry.device;
                mknod(path, kind, Mode::empty(), makedev(major.into(), minor.into()))?;
                lchown(path, uid, gid)?;
                fs::set_permissions(path, mode)?;
            }
        }
        set_time(path, &time(entry))
    }

    /// Sets the directories' times, which what came into them has changed.
    fn finish(self) -> io::Result<()> {
        for (path, modified) in self.directories.iter().rev() {
            match set_time(path, modified) {
                // It was replaced later in the archive.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                other => other.map_err(at(path))?,
            }
        }
        Ok(())
    }
}

/// A name of the archive as a path below the directory; one that leads out of it is refused.
fn inside(name: &[u8]) -> Result<PathBuf, Failure> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part != b".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            let text = format!("{:?} leads out of the directory", String::from_utf8_lossy(name));
            return Err(Failure::new(FailureKind::Other, text));
        }
    }
    let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

fn time(entry: &Entry) -> TimeSpec {
    TimeSpec::new(entry.modified.0, entry.modified.1.into())
}

fn set_time(path: &Path, modified: &TimeSpec) -> io::Result<()> {
    Ok(utimensat(AT_FDCWD, path, modified, modified, UtimensatFlags::NoFollowSymlink)?)
}

/// Sets what the file system can hold. `trusted.` attributes are the overlay's own, and are not taken from an archive.
fn set_xattrs(file: &File, entry: &Entry) -> io::Result<()> {
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| !name.starts_with(b"trusted.")) {
        let name = CString::new(name.as_slice())?;
        match sys::set_xattr(file, &name, value) {
            Ok(()) | Err(Errno::ENOTSUP | Errno::EPERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_directory() {
        let path = |name: &str| inside(name.as_bytes()).map(|p| p.to_string_lossy().into_owned());
        assert_eq!(path("a/b").unwrap(), "a/b");
        assert_eq!(path("/a//./b/").unwrap(), "a/b");
        assert_eq!(path("a/../b").unwrap(), "b");
        for root in ["./", "/", "a/.."] {
            assert_eq!(path(root).unwrap(), ".");
        }
        for out in ["..", "../a", "a/../../b", "/../etc"] {
            assert!(path(out).is_err(), "{out}");
        }
    }
}
