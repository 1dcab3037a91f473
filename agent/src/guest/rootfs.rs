//! The container's root file system: the image's EROFS disk below, the writable ext4 disk above.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::boot::RUN;
use super::{AgentError, Context};
use crate::protocol::{Failure, FailureKind, Prepare};

/// Where the container's root file system is mounted.
pub(crate) const ROOTFS: &str = "/run/rootfs";

const NANOSECONDS: u64 = 1_000_000_000;

/// Mounts the disks and sets the clock.
///
/// # Errors
/// A disk is missing or damaged.
pub(crate) fn prepare(request: &Prepare) -> Result<(), Failure> {
    let image = device(&request.image)?;
    let writable = device(&request.writable)?;
    set_clock(request.wall_clock).and_then(|()| mount_overlay(&image, &writable)).map_err(|e| {
        Failure::new(FailureKind::Other, format!("the container's disks could not be mounted: {e}"))
    })
}

/// The device node of a disk; only names of virtio disks are accepted.
fn device(name: &str) -> Result<String, Failure> {
    let plain = name.len() <= 8 && name.starts_with("vd") && name.bytes().all(|b| b.is_ascii_lowercase());
    if !plain {
        return Err(Failure::new(
            FailureKind::Unsupported,
            format!("{name:?} is not the name of a virtio disk"),
        ));
    }
    Ok(format!("/dev/{name}"))
}

fn set_clock(wall_clock: u64) -> Result<(), AgentError> {
    let seconds = i64::try_from(wall_clock / NANOSECONDS).unwrap_or(i64::MAX);
    let nanoseconds = i64::try_from(wall_clock % NANOSECONDS).unwrap_or(0);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds)).context("set the clock")
}

fn mount_overlay(image: &str, writable: &str) -> Result<(), AgentError> {
    let lower = format!("{RUN}/image");
    let upper_disk = format!("{RUN}/writable");
    let directory = |path: &str, mode: u32| {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path).context(format!("create {path}"))
    };
    for path in [&lower, &upper_disk, &ROOTFS.to_owned()] {
        directory(path, 0o755)?;
    }
    let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(Some(image), lower.as_str(), Some("erofs"), read_only, Some("acl,user_xattr"))
        .context(format!("mount the image disk {image}"))?;
    let noatime = MsFlags::MS_NOATIME | MsFlags::MS_NODEV;
    mount(Some(writable), upper_disk.as_str(), Some("ext4"), noatime, None::<&str>)
        .context(format!("mount the writable disk {writable}"))?;
    let upper = format!("{upper_disk}/upper");
    let work = format!("{upper_disk}/work");
    if !Path::new(&upper).exists() {
        directory(&upper, 0o755)?;
        directory(&work, 0o700)?;
    }
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount(Some("overlay"), ROOTFS, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the overlay of image and writable disk")
}

/// Unmounts the disks so that they are left clean; what is busy is detached after the sync that came before.
pub(crate) fn unmount() {
    for target in [ROOTFS.to_owned(), format!("{RUN}/writable"), format!("{RUN}/image")] {
        if umount2(target.as_str(), MntFlags::empty()).is_err() {
            let _ = umount2(target.as_str(), MntFlags::MNT_DETACH);
        }
    }
}
