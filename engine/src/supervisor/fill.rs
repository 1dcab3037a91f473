//! A new volume gets what the image has in its place, when the first machine of a container is prepared.
//!
//! Who fills a volume holds its lock, so that two containers do not do it at once, and leaves a mark beside the files until it is done: a
//! volume that was left half full is filled again. That a container's volumes were looked after is noted in its directory: one that a
//! person emptied later stays empty.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::protocol::Fill;
use nix::fcntl::FlockArg;

use crate::EngineError;
use crate::directory::{Directory, Lock, lock_file};
use crate::model::{Container, Mount, MountKind};
use crate::paths::Paths;

/// The note in a container's directory.
const NOTE: &str = "volumes-filled";
/// The mark beside a volume's files.
const MARK: &str = "filling";
/// The lock beside a volume's files.
const LOCK: &str = "lock";
/// How long to wait before a lock is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// The right to fill a container's new volumes, which has been begun.
#[derive(Default)]
pub(super) struct Filling {
    /// What the agent is told.
    pub(super) told: Vec<Fill>,
    marks: Vec<PathBuf>,
    locks: Vec<Lock>,
    note: Option<PathBuf>,
}

/// A container's mounts of volumes that may be filled.
fn candidates(container: &Container) -> impl Iterator<Item = &Mount> {
    container.config.mounts.iter().filter(|mount| mount.kind == MountKind::Volume && !mount.no_copy)
}

/// Whether a volume holds nothing, or less than it should.
fn wants(volume: &Path) -> io::Result<bool> {
    Ok(volume.join(MARK).exists() || fs::read_dir(volume.join("_data"))?.next().is_none())
}

impl Filling {
    /// Whether the container's volumes have still to be looked after, and one of them can only be written to by another machine
    /// than its own.
    pub(super) fn needs_another_machine(paths: &Paths, directory: &Directory, container: &Container) -> bool {
        let read_only =
            |mount: &Mount| mount.read_only && wants(&paths.volumes().join(&mount.source)).unwrap_or(false);
        !directory.path().join(NOTE).exists() && candidates(container).any(read_only)
    }

    /// Takes the locks of all volumes that are to be filled, and marks them.
    ///
    /// # Errors
    /// The state directory cannot be written to.
    pub(super) async fn begin(
        paths: &Paths,
        directory: &Directory,
        container: &Container,
    ) -> Result<Self, EngineError> {
        let note = directory.path().join(NOTE);
        let mut this = Self::default();
        if note.exists() || candidates(container).next().is_none() {
            return Ok(this);
        }
        let action = "filling a new volume";
        // By name, so that two containers with the same volumes do not wait for each other. A volume is filled from its first place.
        let mut volumes: BTreeMap<&str, &Mount> = BTreeMap::new();
        for mount in candidates(container).filter(|mount| !mount.read_only) {
            volumes.entry(&mount.source).or_insert(mount);
        }
        for (name, mount) in volumes {
            let volume = paths.volumes().join(name);
            if !wants(&volume).map_err(EngineError::io(action))? {
                continue;
            }
            let lock = loop {
                match lock_file(&volume.join(LOCK), FlockArg::LockExclusiveNonblock)? {
                    Some(lock) => break lock,
                    None => tokio::time::sleep(RETRY).await,
                }
            };
            // Another container may have filled it meanwhile.
            if !wants(&volume).map_err(EngineError::io(action))? {
                continue;
            }
            let mark = volume.join(MARK);
            let resume = mark.exists();
            File::create(&mark).and_then(|file| file.sync_all()).map_err(EngineError::io(action))?;
            // Where there is one user only, everything is that user's, whom the machine knows as root.
            let owner = (!nix::unistd::geteuid().is_root()).then(|| "0:0".to_owned());
            this.told.push(Fill { destination: mount.target.clone(), resume, owner });
            this.marks.push(mark);
            this.locks.push(lock);
        }
        this.note = Some(note);
        Ok(this)
    }

    /// The volumes are full: what was noted on the way is taken back, and the end is noted.
    ///
    /// # Errors
    /// The state directory cannot be written to.
    pub(super) fn finish(self) -> Result<(), EngineError> {
        let Self { marks, locks, note, .. } = self;
        let action = "filling a new volume";
        for mark in marks {
            fs::remove_file(&mark).map_err(EngineError::io(action))?;
        }
        drop(locks);
        note.map_or(Ok(()), |note| File::create(note).map(drop).map_err(EngineError::io(action)))
    }
}
