//! The container's view of the file system: its root, the mounts of the specification, masked and read-only paths.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::super::rootfs::ROOTFS;
use super::super::{AgentError, Context};
use crate::protocol::spec::Mount;

/// File systems that a container may have mounted anew.
const KINDS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2", "cgroup"];

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

/// Mounts one file system of the specification.
pub(super) fn mount_one(entry: &Mount) -> Result<(), AgentError> {
    let target = &entry.destination;
    let kind = entry.kind.as_str();
    if !KINDS.contains(&kind) {
        let refusal = io::Error::new(io::ErrorKind::Unsupported, "not a file system that the agent mounts");
        return Err(refusal).context(format!("mount {kind:?} on {}", target.display()));
    }
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let (flags, data) = parse_options(&entry.options);
    fs::create_dir_all(target).context(format!("create the mount point {}", target.display()))?;
    mount(Some(kind), target.as_path(), Some(kind), flags, Some(data.as_str()))
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
            "rw" | "suid" | "dev" | "exec" | "private" | "rprivate" => {}
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

/// Writes the files that name the container, unless the root is read-only to the agent too.
pub(super) fn write_host_files(hostname: &str) -> Result<(), AgentError> {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
    );
    for (name, content) in [("hostname", format!("{hostname}\n")), ("hosts", hosts)] {
        let path = format!("/etc/{name}");
        // In a tmpfs of its own behind a bind mount, so that neither the image's file nor a link in its place is touched.
        let source = format!("/dev/.{name}");
        fs::write(&source, content).context(format!("write {path}"))?;
        fs::create_dir_all("/etc").context("create /etc")?;
        if fs::symlink_metadata(&path).is_err() {
            File::create(&path).context(format!("create {path}"))?;
        }
        let bound = mount(Some(source.as_str()), path.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>);
        let _ = fs::remove_file(&source);
        bound.context(format!("bind {path}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_flags_and_data() {
        let options = ["nosuid", "ro", "mode=755", "size=65536k", "rprivate"].map(str::to_owned);
        let (flags, data) = parse_options(&options);
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
        assert_eq!(data, "mode=755,size=65536k");
    }
}
