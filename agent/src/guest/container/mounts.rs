//! The container's view of the file system: its root, the mounts of the specification, masked and read-only paths.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::super::binds::{is_tag, mount_point};
use super::super::rootfs::{Opened, ROOTFS};
use super::super::{AgentError, Context};

/// File systems that a container may have mounted anew.
const KINDS: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2", "cgroup", "virtiofs"];

/// Makes the container's root file system the root of this mount namespace.
///
/// Everything after this resolves paths inside the container, so no link in the image leads out of it.
pub(super) fn enter_root() -> Result<(), AgentError> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    chdir(ROOTFS).context("enter the root file system")?;
    pivot_root(".", ".").context("pivot to the root file system")?;
    umount2(".", MntFlags::MNT_DETACH).context("detach the agent's file systems")?;
    chdir("/").context("enter the new root")
}

/// Mounts one file system, volume or file.
pub(super) fn mount_one(mount_in: &Opened<'_>) -> Result<(), AgentError> {
    let target = mount_in.target;
    if let Some(tree) = &mount_in.tree {
        return tree.attach(target);
    }
    let Some(entry) = mount_in.entry else { return Ok(()) };
    let kind = entry.kind.as_str();
    let refused = |why| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    if !KINDS.contains(&kind) {
        return refused("not a file system that the agent mounts")
            .context(format!("mount {kind:?} on {}", target.display()));
    }
    let source = match kind {
        "virtiofs" if !is_tag(&entry.source) => {
            return refused("its source is not a tag").context(format!("mount on {}", target.display()));
        }
        "virtiofs" => entry.source.as_str(),
        _ => kind,
    };
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let (flags, data) = parse_options(&entry.options);
    let place = mount_point(target, true).context(format!("create the mount point {}", target.display()))?;
    mount(Some(source), place.as_path(), Some(kind), flags, Some(data.as_str()))
        .context(format!("mount {kind} on {}", target.display()))
}

/// Splits mount options into flags and what the file system itself understands.
fn parse_options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "rw" => flags -= MsFlags::MS_RDONLY,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "dev" => flags -= MsFlags::MS_NODEV,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "atime" => flags -= MsFlags::MS_NOATIME,
            "diratime" => flags -= MsFlags::MS_NODIRATIME,
            "" | "async" | "private" | "rprivate" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Hides a path: a file behind /dev/null, a directory behind an empty read-only tmpfs. Absent paths need no hiding.
pub(super) fn mask(path: &str) -> Result<(), AgentError> {
    let none = None::<&str>;
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let masked = if metadata.is_dir() {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, none)
    } else {
        mount(Some("/dev/null"), path, none, MsFlags::MS_BIND, none)
    };
    masked.context(format!("mask {path}"))
}

/// Makes a path read-only. Absent paths need no protection.
pub(super) fn make_read_only(path: &str) -> Result<(), AgentError> {
    let none = None::<&str>;
    if !Path::new(path).exists() {
        return Ok(());
    }
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | guarded;
    mount(Some(path), path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .and_then(|()| mount(none, path, none, remount, none))
        .context(format!("make {path} read-only"))
}

/// Makes the root file system read-only.
pub(super) fn make_root_read_only() -> Result<(), AgentError> {
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/", none, flags, none).context("make the root file system read-only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_flags_and_data() {
        let options =
            ["nosuid", "noexec", "ro", "mode=755", "size=65536k", "rprivate", "exec"].map(str::to_owned);
        let (flags, data) = parse_options(&options);
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
        assert_eq!(data, "mode=755,size=65536k");
    }
}
