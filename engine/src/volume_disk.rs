//! Volumes with a size: each has a disk of its own, with a file system that the host's kernel mounts, so that the bound is exact whoever
//! writes and however: holes, links and removed files that are still open are counted as any disk counts them.
//!
//! Nobody sees that file system but those who have it in use: a supervisor mounts it in a mount namespace of its own, from
//! which its file servers take it. So the mount goes when they do, however they end. All that have one volume share one loop device, which
//! mount(8) sees to, and so one file system. A guest writes files to it, never blocks: what the host's kernel reads there, it wrote itself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::FlockArg;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::directory::lock_file;
use crate::model::{Container, MountKind};
use crate::paths::Paths;
use crate::{Database, EngineError, disk};

/// Least size of a volume that has one, in bytes: less would be mostly journal.
const MIN_BYTES: u64 = disk::MIN_WRITABLE_BYTES;
/// Largest size: what ext4 can hold in blocks of 4 KiB with room to spare, in bytes.
const MAX_BYTES: u64 = 16 << 40;

/// The disk's file, beside the directory where it is mounted.
const DISK: &str = "disk.ext4";
/// A mark beside a disk that was never mounted.
const NEW: &str = "disk.new";
/// The lock that is held while a disk is made or mounted.
const LOCK: &str = "disk.lock";
/// What mkfs puts into every new file system, and what no new volume holds.
const RESCUE: &str = "lost+found";

/// What the disk's file system is mounted with. Programs and devices in it are the guest's, not the host's.
const OPTIONS: &str = "loop,nodev,nosuid,noexec,discard";

/// Whether a volume of this size can be had here.
///
/// # Errors
/// Not by this user, not on this host, or not of this size.
pub(crate) fn check(bytes: u64) -> Result<(), EngineError> {
    let refuse = |why: &str, next: &str| {
        Err(EngineError::Option {
            option: format!("a volume of {bytes} bytes"),
            why: why.to_owned(),
            next: next.to_owned(),
        })
    };
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
        return refuse("a volume with a size has between 64 MiB and 16 TiB", "give a size such as 1g");
    }
    let bind = "bind a folder of a file system that has the bound, or create it without a size";
    if !geteuid().is_root() {
        return refuse("its disk is mounted by the host's kernel, which takes root", bind);
    }
    match OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        Ok(_) => Ok(()),
        Err(e) => {
            refuse(&format!("this host has no loop devices for its disk (/dev/loop-control: {e})"), bind)
        }
    }
}

/// Makes the disk of a new volume in the volume's directory.
///
/// # Errors
/// There is no room, or `mkfs.ext4` is missing.
pub(crate) fn create(volume: &Path, bytes: u64, cache: &Path) -> Result<(), EngineError> {
    let path = volume.join(DISK);
    // What is there was left by somebody who did not live to write the volume down.
    let _ = fs::remove_file(&path);
    File::create(volume.join(NEW)).map_err(EngineError::io("making the volume's disk"))?;
    disk::create(&path, bytes, cache)
}

/// Holds off everybody else who would make or mount the volume's disk.
///
/// # Errors
/// The volume's directory cannot be written to.
pub(crate) fn lock(volume: &Path) -> Result<Option<crate::directory::Lock>, EngineError> {
    lock_file(&volume.join(LOCK), FlockArg::LockExclusive)
}

/// Bytes that a volume's disk takes on the host's.
///
/// # Errors
/// There is no such file.
pub(crate) fn usage(volume: &Path) -> io::Result<u64> {
    disk::allocated(&volume.join(DISK))
}

/// The disks of volumes that a supervisor has mounted.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    /// The thread has a mount namespace of its own.
    apart: bool,
    volumes: Vec<String>,
}

impl Mounts {
    /// Mounts the disks of all volumes of a container that have a size, where their files lie: for the thread that calls, always the
    /// same one, and for what it starts.
    ///
    /// # Errors
    /// The host's kernel refuses.
    pub(crate) fn ensure(
        &mut self,
        paths: &Paths,
        database: &Database,
        container: &Container,
    ) -> Result<(), EngineError> {
        for mount in container.config.mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
            let name = &mount.source;
            match database.volume(name) {
                Ok(volume) if volume.size.is_some() && !self.volumes.contains(name) => {}
                Ok(_) | Err(EngineError::NoVolume(_)) => continue,
                Err(error) => return Err(error),
            }
            let action = || format!("mounting the disk of the volume {name}");
            self.step_apart().map_err(|e| EngineError::io(action())(e))?;
            mount_one(&paths.volumes().join(name)).map_err(|e| EngineError::io(action())(e))?;
            self.volumes.push(name.clone());
        }
        Ok(())
    }

    /// What the host mounts later still comes in; what is mounted here stays here.
    fn step_apart(&mut self) -> io::Result<()> {
        if !self.apart {
            let nothing: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS)?;
            nix::mount::mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
            self.apart = true;
        }
        Ok(())
    }
}

fn mount_one(volume: &Path) -> io::Result<()> {
    // Two at once would take two loop devices, and write to one disk as two file systems.
    let _alone = lock(volume).map_err(io::Error::other)?;
    let data = volume.join("_data");
    let output = Command::new("mount")
        .args(["-t", "ext4", "-o", OPTIONS])
        .args([&volume.join(DISK), &data])
        .env("PATH", disk::PROGRAMS)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(words.trim().to_owned()));
    }
    let new = volume.join(NEW);
    if new.exists() {
        fs::remove_dir(data.join(RESCUE))?;
        fs::remove_file(new)?;
    }
    Ok(())
}
