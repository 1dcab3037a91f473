//! The container's root file system: the image's EROFS disk below, the writable ext4 disk above; its volumes and files beside it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::archive;
use super::binds::{self, Tree};
use super::boot::RUN;
use super::restored::GENERATION;
use super::{AgentError, Context};
use crate::protocol::spec::Mount;
use crate::protocol::{Failure, FailureKind, Fill, HostFile, Prepare};

/// Where the container's root file system is mounted.
pub(crate) const ROOTFS: &str = "/run/rootfs";
/// Where the image is mounted, below [`RUN`].
pub(crate) const IMAGE: &str = "image";
/// Where the writable disk holds what the container changed, below [`RUN`].
pub(crate) const UPPER: &str = "writable/upper";

const NANOSECONDS: u64 = 1_000_000_000;

/// What the container has whether it runs or not.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    volumes: Vec<Mount>,
    /// A file in the agent's file system, and the path in the container that it covers.
    files: Vec<(PathBuf, PathBuf)>,
}

/// Mounts the disks and sets the clock.
///
/// # Errors
/// A disk is missing or damaged, or a share cannot be mounted.
pub(crate) fn prepare(request: &Prepare) -> Result<Prepared, Failure> {
    let image = device(&request.image)?;
    let writable = device(&request.writable)?;
    if let Some(volume) = request.volumes.iter().find(|v| v.kind != "bind") {
        let text = format!("a volume is a mount of the kind bind, not {:?}", volume.kind);
        return Err(Failure::new(FailureKind::Unsupported, text));
    }
    if let Some(share) = request.shares.iter().find(|s| !binds::is_tag(&s.tag)) {
        return Err(Failure::new(FailureKind::Unsupported, format!("{:?} is not a share's tag", share.tag)));
    }
    set_clock(request.wall_clock).and_then(|()| mount_overlay(&image, &writable)).map_err(|e| {
        Failure::new(FailureKind::Other, format!("the container's disks could not be mounted: {e}"))
    })?;
    for share in &request.shares {
        mount_share(&share.tag, share.read_only)?;
    }
    for volume in &request.fill {
        fill(volume, &request.volumes)?;
    }
    Ok(Prepared { volumes: request.volumes.clone(), files: write_files(&request.files)? })
}

impl Prepared {
    /// Opens the sources of these mounts (none for those that have no source) and of all volumes and files: outer ones first, in the order
    /// given otherwise.
    ///
    /// # Errors
    /// A source is missing, or its options are not supported.
    pub(crate) fn open_mounts<'a>(&'a self, mounts: &'a [Mount]) -> Result<Vec<Opened<'a>>, AgentError> {
        let mut opened = Vec::with_capacity(mounts.len() + self.volumes.len() + self.files.len());
        for entry in mounts.iter().chain(&self.volumes) {
            let tree = match entry.kind.as_str() {
                "bind" => Some(binds::open_share(entry)?),
                "generation" => Some(binds::open_read_only(Path::new(GENERATION))?),
                _ => None,
            };
            opened.push(Opened { target: &entry.destination, entry: Some(entry), tree });
        }
        for (source, target) in &self.files {
            opened.push(Opened { target, entry: None, tree: Some(binds::open_file(source)?) });
        }
        opened.sort_by_key(|o| o.target.components().filter(|c| matches!(c, Component::Normal(_))).count());
        Ok(opened)
    }
}

/// Something to mount in the container.
pub(crate) struct Opened<'a> {
    pub(crate) target: &'a Path,
    /// The mount of the specification; none for a file.
    pub(crate) entry: Option<&'a Mount>,
    /// What is attached; none for a file system that is mounted anew.
    pub(crate) tree: Option<Tree>,
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

/// Sets the wall clock, in nanoseconds since 1970.
///
/// # Errors
/// The kernel refuses that time.
pub(crate) fn set_clock(wall_clock: u64) -> Result<(), AgentError> {
    let seconds = i64::try_from(wall_clock / NANOSECONDS).unwrap_or(i64::MAX);
    let nanoseconds = i64::try_from(wall_clock % NANOSECONDS).unwrap_or(0);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds)).context("set the clock")
}

fn mount_overlay(image: &str, writable: &str) -> Result<(), AgentError> {
    let lower = format!("{RUN}/{IMAGE}");
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
    let upper = format!("{RUN}/{UPPER}");
    let work = format!("{upper_disk}/work");
    if !Path::new(&upper).exists() {
        directory(&upper, 0o755)?;
        directory(&work, 0o700)?;
    }
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount(Some("overlay"), ROOTFS, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the overlay of image and writable disk")
}

fn mount_share(tag: &str, read_only: bool) -> Result<(), Failure> {
    let target = binds::share_path(tag);
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    fs::create_dir_all(&target)
        .and_then(|()| Ok(mount(Some(tag), &target, Some("virtiofs"), flags, None::<&str>)?))
        .map_err(|e| {
            Failure::new(FailureKind::Other, format!("the shared folder {tag} could not be mounted: {e}"))
        })
}

/// Gives a new volume what the image has in its place.
fn fill(request: &Fill, volumes: &[Mount]) -> Result<(), Failure> {
    let place = Path::new(&request.destination);
    let tag = volumes.iter().find(|v| v.destination == place).map(|v| v.source.as_str());
    let Some(tag) = tag.filter(|tag| binds::is_tag(tag)) else {
        let text = format!("{:?} is not where a whole share is mounted", request.destination);
        return Err(Failure::new(FailureKind::Unsupported, text));
    };
    archive::fill(request, &binds::share_path(tag)).map_err(|failure| {
        let text = format!("the new volume at {} could not be filled: {}", request.destination, failure.text);
        Failure::new(FailureKind::Other, text)
    })
}

/// Writes the host's files where the container's mounts can reach them.
fn write_files(files: &[HostFile]) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    let directory = Path::new(RUN).join("files");
    let mut written = Vec::with_capacity(files.len());
    for (number, file) in files.iter().enumerate() {
        let source = directory.join(number.to_string());
        if !file.path.starts_with('/') {
            let text = format!("the file {:?} is not given by an absolute path", file.path);
            return Err(Failure::new(FailureKind::Unsupported, text));
        }
        fs::create_dir_all(&directory).and_then(|()| fs::write(&source, &file.content)).map_err(|e| {
            Failure::new(FailureKind::Other, format!("{} could not be written: {e}", file.path))
        })?;
        written.push((source, PathBuf::from(&file.path)));
    }
    Ok(written)
}

/// Unmounts the disks so that they are left clean; what is busy is detached after the sync that came before.
pub(crate) fn unmount() {
    for target in [ROOTFS.to_owned(), format!("{RUN}/writable"), format!("{RUN}/{IMAGE}")] {
        if umount2(target.as_str(), MntFlags::empty()).is_err() {
            let _ = umount2(target.as_str(), MntFlags::MNT_DETACH);
        }
    }
}
