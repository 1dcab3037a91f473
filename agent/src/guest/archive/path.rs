//! Paths as callers write them, resolved by Docker's rules: names are cleaned first, the last component is not followed unless a slash or a dot
//! comes after it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::failed;
use crate::protocol::{Failure, FailureKind, PathStat};

/// Most links on the way to a target, as in the kernel.
const MAX_LINKS: usize = 40;

/// A path of a caller's.
pub(super) struct Wanted {
    /// Absolute, `..` and double slashes taken out; a slash or `/.` at the end is kept.
    pub(super) path: PathBuf,
    /// The last component; `/` for the root, `.` if that is what the path ends in.
    pub(super) name: String,
}

impl Wanted {
    /// Cleans a path.
    ///
    /// # Errors
    /// It holds a NUL byte.
    pub(super) fn new(path: &str) -> Result<Self, Failure> {
        if path.contains('\0') {
            return Err(Failure::new(FailureKind::NoSuchPath, "a path holds a NUL byte"));
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        let mut clean = format!("/{}", parts.join("/"));
        let mut name = parts.last().copied().unwrap_or("/");
        let dotted = path == "." || path.ends_with("/.");
        if !clean.ends_with('/') && (dotted || path.ends_with('/')) {
            clean.push('/');
        }
        if dotted && !parts.is_empty() {
            clean.push('.');
            name = ".";
        }
        Ok(Self { path: PathBuf::from(clean), name: name.to_owned() })
    }
}

/// Describes a path of the current root.
pub(super) fn stat(path: &str) -> Result<PathStat, Failure> {
    let wanted = Wanted::new(path)?;
    let metadata = fs::symlink_metadata(&wanted.path).map_err(failed)?;
    let link_target =
        if metadata.is_symlink() { follow(&wanted.path).map_err(failed)? } else { PathBuf::new() };
    Ok(PathStat {
        name: wanted.name,
        size: metadata.size(),
        mode: metadata.mode(),
        modified: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
        link_target: link_target.to_string_lossy().into_owned(),
    })
}

/// Follows links to the end. What does not exist is taken as it is written, so that a dangling link has a target too.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut left: Vec<OsString> = components(path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(nix::errno::Errno::ELOOP.into());
                }
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                left.extend(components(&target));
            }
            Err(_) => done = next,
        }
        if done.as_os_str().as_bytes().len() > crate::protocol::MAX_PATH {
            return Err(nix::errno::Errno::ENAMETOOLONG.into());
        }
    }
    Ok(done)
}

/// A path's names and `..`, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    let part = |c: Component<'_>| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_named_as_dockers() {
        let clean = |path: &str| {
            let wanted = Wanted::new(path).unwrap();
            format!("{} {}", wanted.path.as_os_str().to_string_lossy(), wanted.name)
        };
        assert_eq!(clean("/etc/passwd"), "/etc/passwd passwd");
        assert_eq!(clean("etc//./x/../passwd"), "/etc/passwd passwd");
        assert_eq!(clean("/../../etc"), "/etc etc");
        assert_eq!(clean("/etc/"), "/etc/ etc");
        assert_eq!(clean("/etc/."), "/etc/. .");
        for root in ["", "/", ".", "/.", "//", "/..", "a/.."] {
            assert_eq!(clean(root), "/ /", "{root}");
        }
        assert!(Wanted::new("a\0b").is_err());
    }

    #[test]
    fn links_are_followed_to_their_end() {
        let root = std::env::temp_dir().join(format!("bulkhead-path-{}", std::process::id()));
        fs::create_dir_all(root.join("dir")).unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        link("dir/../b", "a");
        link("missing/deep", "b");
        link("loop", "loop");
        assert_eq!(follow(&root.join("a")).unwrap(), root.join("missing/deep"));
        assert!(follow(&root.join("loop")).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
