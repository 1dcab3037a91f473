//! A container's directory: its lock, its writable disk, its log and its supervisor's socket.
//!
//! Whoever owns a container holds its lock, and the kernel takes the lock away when the owner dies: so a free lock beside a
//! record that says "running" means that the supervisor died, and whoever comes next tells the truth and cleans up.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::EngineError;

/// How often a directory is emptied before the one who fills it is taken for hostile.
const REMOVE_TRIES: usize = 8;

/// A container's directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

/// The right to be a container's only owner.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Directory {
    /// The directory of the container with this id, which may not exist.
    pub(crate) fn new(containers: &Path, id: &str) -> Self {
        Self(containers.join(id))
    }

    /// Makes it.
    pub(crate) fn create(&self) -> Result<(), EngineError> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.0)
            .map_err(EngineError::io(format!("making the directory {}", self.0.display())))
    }

    /// Removes it with everything in it; that it is gone already is no error.
    ///
    /// It loses its name first: whoever looks for its lock in the meantime finds nothing, rather than puts a file into what is just
    /// being emptied. A crash in between leaves a directory that has no record, which the next [`sweep`](crate::truth::sweep) collects.
    pub(crate) fn remove(&self) -> Result<(), EngineError> {
        let nameless = self.0.with_extension("removed");
        let failed = |e| Err(EngineError::io(format!("removing {}", self.0.display()))(e));
        match fs::rename(&self.0, &nameless) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // One that was left there by a crash.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&nameless)
                    .and_then(|()| fs::rename(&self.0, &nameless))
                    .or_else(failed)?;
            }
            renamed => renamed.or_else(failed)?,
        }
        for _ in 0..REMOVE_TRIES {
            match fs::remove_dir_all(&nameless) {
                // Somebody had found the directory before, and made its lock after.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(e) if e.kind() != io::ErrorKind::NotFound => return failed(e),
                _ => return Ok(()),
            }
        }
        failed(io::ErrorKind::DirectoryNotEmpty.into())
    }

    /// Takes the lock, or tells that somebody holds it.
    pub(crate) fn lock(&self) -> Result<Option<Lock>, EngineError> {
        lock_file(&self.0.join("lock"), FlockArg::LockExclusiveNonblock)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The writable disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("writable.ext4")
    }

    /// The newest log file; older ones have a number behind it.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("container.log")
    }

    /// What the supervisor itself had to say.
    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Calls `with` with a path of the supervisor's socket that is short enough for a socket address, however deep the directory is.
    pub(crate) fn with_socket<T>(&self, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let directory = File::open(&self.0)?;
        with(&PathBuf::from(format!("/proc/self/fd/{}/supervisor.sock", directory.as_raw_fd())))
    }
}

/// Takes a lock on a file, which is made if it is missing; `None` if somebody holds it and `how` does not wait.
pub(crate) fn lock_file(path: &Path, how: FlockArg) -> Result<Option<Lock>, EngineError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(EngineError::io(format!("opening {}", path.display())))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(EngineError::io(format!("locking {}", path.display()))(e.into())),
    }
}
