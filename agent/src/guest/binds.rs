//! Bind mounts: shared folders and the host's files, opened in the agent's file system and attached in the container's.
//!
//! A source is opened before the change of root and attached after it, so that neither end is looked up in the other's tree: the paths of the
//! container are resolved within its root, whatever links its image holds.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::boot::RUN;
use super::sys::{self, mount_attribute};
use super::{AgentError, Context};
use crate::protocol::spec::Mount;

/// Most links on the way to a mount point, as in the kernel.
const MAX_LINKS: usize = 40;

/// A mount that is not attached anywhere yet.
pub(crate) struct Tree {
    mount: OwnedFd,
    is_directory: bool,
}

/// Where a share is mounted in the guest.
pub(crate) fn share_path(tag: &str) -> PathBuf {
    Path::new(RUN).join("shares").join(tag)
}

/// A tag is a name, not a path.
pub(crate) fn is_tag(tag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=36).contains(&tag.len()) && tag.bytes().all(plain) && !tag.starts_with('.')
}

/// Opens the source of a mount of the kind `bind`: a path in a share, whose links stay within it.
pub(crate) fn open_share(entry: &Mount) -> Result<Tree, AgentError> {
    let what = format!("open the volume {}", entry.source);
    let (tag, path) = entry.source.split_once('/').unwrap_or((&entry.source, "."));
    if !is_tag(tag) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not begin with a share's tag"))
            .context(what);
    }
    let opened = || -> io::Result<Tree> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        let share = open(&share_path(tag), flags, Mode::empty())?;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.is_empty() { "." } else { path };
        clone_tree(openat2(share, path, how)?)
    };
    let tree = opened().context(what)?;
    tree.restrict(&entry.options).context(format!("restrict the volume {}", entry.source))?;
    Ok(tree)
}

/// Opens one of the agent's own files.
pub(crate) fn open_file(path: &Path) -> Result<Tree, AgentError> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
        .map_err(io::Error::from)
        .and_then(clone_tree)
        .context(format!("open {}", path.display()))
}

/// As [`open_file`], and nobody can write to it.
pub(crate) fn open_read_only(path: &Path) -> Result<Tree, AgentError> {
    let tree = open_file(path)?;
    sys::restrict_mounts(&tree.mount, mount_attribute::READ_ONLY)
        .context(format!("make {} read-only", path.display()))?;
    Ok(tree)
}

fn clone_tree(source: OwnedFd) -> io::Result<Tree> {
    let mount = sys::clone_mounts(&source)?;
    let is_directory = File::from(source).metadata()?.is_dir();
    Ok(Tree { mount, is_directory })
}

impl Tree {
    /// Applies the options of mount(8) that a bind mount has; what it does not know is refused.
    fn restrict(&self, options: &[String]) -> io::Result<()> {
        let mut set = 0;
        for option in options {
            set |= match option.as_str() {
                "ro" | "rro" => mount_attribute::READ_ONLY,
                "nosuid" => mount_attribute::NO_SUID,
                "nodev" => mount_attribute::NO_DEVICES,
                "noexec" => mount_attribute::NO_EXEC,
                "bind" | "rbind" | "rw" | "suid" | "dev" | "exec" | "private" | "rprivate" => 0,
                other => {
                    let refusal = format!("a bind mount has no option {other:?}");
                    return Err(io::Error::new(io::ErrorKind::Unsupported, refusal));
                }
            };
        }
        if set == 0 { Ok(()) } else { sys::restrict_mounts(&self.mount, set) }
    }

    /// Attaches the mount at a path of the current root, which is made if it is missing.
    pub(crate) fn attach(&self, target: &Path) -> Result<(), AgentError> {
        mount_point(target, self.is_directory)
            .and_then(|place| sys::attach_mount(&self.mount, &place))
            .context(format!("mount on {}", target.display()))
    }
}

/// Follows the links of a mount point's last component, and makes what is missing: a directory, or an empty file. What was there keeps its
/// times, so that a mount point that the agent makes does not count as a change by the container.
pub(crate) fn mount_point(target: &Path, directory: bool) -> io::Result<PathBuf> {
    let mut path = target.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("/")).join(link);
            }
            Ok(_) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_quietly(&path, directory)?;
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::ELOOP.into())
}

fn make_quietly(path: &Path, directory: bool) -> io::Result<()> {
    let parent = path.ancestors().skip(1).find_map(|p| Some((p, fs::metadata(p).ok()?)));
    if directory {
        fs::create_dir_all(path)?;
    } else {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        File::options().write(true).create(true).truncate(false).open(path)?;
    }
    let Some((parent, before)) = parent else { return Ok(()) };
    let (accessed, modified) = (
        TimeSpec::new(before.atime(), before.atime_nsec()),
        TimeSpec::new(before.mtime(), before.mtime_nsec()),
    );
    utimensat(AT_FDCWD, parent, &accessed, &modified, UtimensatFlags::FollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_names() {
        assert!(is_tag("data") && is_tag("v1_2.x-y"));
        for bad in ["", ".", "..", ".x", "a/b", "a b", &"x".repeat(37)] {
            assert!(!is_tag(bad), "{bad}");
        }
    }

    #[test]
    fn mount_points_are_made_behind_links_without_a_trace_in_the_parents_times() {
        let root = std::env::temp_dir().join(format!("bulkhead-binds-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        let old = TimeSpec::new(1_000_000_000, 5);
        utimensat(AT_FDCWD, &root.join("etc"), &old, &old, UtimensatFlags::FollowSymlink).unwrap();
        assert_eq!(mount_point(&root.join("etc/hosts"), false).unwrap(), root.join("etc/hosts"));
        assert!(root.join("etc/hosts").is_file());
        assert_eq!(fs::metadata(root.join("etc")).unwrap().mtime(), 1_000_000_000);

        std::os::unix::fs::symlink("../run/far/resolv.conf", root.join("etc/resolv.conf")).unwrap();
        let place = mount_point(&root.join("etc/resolv.conf"), false).unwrap();
        assert!(place.ends_with("run/far/resolv.conf") && root.join("run/far/resolv.conf").is_file());
        assert!(mount_point(&root.join("a/b/c"), true).unwrap().is_dir());
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        assert!(mount_point(&root.join("loop"), true).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
