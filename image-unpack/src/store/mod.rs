//! The content store: one directory, safe with many processes at once and with a crash at any moment.
//!
//! ```text
//! version                 what wrote this store
//! lock                    flock: shared while content is used or made, exclusive while it is collected
//! locks/<name>            flock per layer and disk, so that two processes do not make the same thing
//! tmp/<name>/             files in the making; flocked by whoever makes them, collected once that one is dead
//! blobs/sha256/<hex>      manifests, configurations and layers as they came, named by digest
//! layers/<diff id>/       data (files' content), index (entries), origin.json (the blob it was made from)
//! disks/<chain>.erofs     metadata of one stack of layers
//! images/<id>.json        what an image consists of; written last, so that all it names is there
//! refs/<hash>.json        a name, and the image it means
//! holds/<holder>.json     an image that is kept for a container, whatever becomes of its names
//! ```
//! Everything is written in `tmp`, fsynced, and renamed into place.

mod archive;
mod df;
mod ensure;
mod holds;
mod import;
mod inspect;
mod layers;
mod manage;
mod push;
mod quota;
mod records;
mod spool;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub use df::{DiskUsage, ImageUsage, LayerUsage};
pub use import::{CommitOptions, ImportOptions};
pub use inspect::{HistoryEntry, Inspect, ManifestDescriptor, Metadata, RootFs};
pub use manage::{Removed, Summary, Usage};
pub use records::Image;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::registry::Registries;

const VERSION: &[u8] = b"bulkhead image store 1\n";

/// An image store. Cheap to open; any number of processes and threads may use one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    registries: Registries,
    /// Bytes on disk.
    quota: Option<u64>,
}

impl Store {
    /// Opens the store in `dir`, making it if need be, and collects what dead processes left unfinished.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]; [`Error::Unsupported`] if another version wrote it.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Limits::default(), Registries::default())
    }

    /// As [`Store::open`], with other bounds on images, and other ways to reach registries.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, limits: Limits, registries: Registries) -> Result<Self> {
        let root = std::path::absolute(dir).map_err(|e| Error::io("find", dir, e))?;
        let store = Self { root, limits, registries, quota: None };
        match fs::read(store.path("version")) {
            Ok(found) if found == VERSION => {}
            Ok(_) => {
                let what = format!("{}: an image store of another version", store.root.display());
                return Err(Error::Unsupported { what });
            }
            Err(e) if e.kind() == ErrorKind::NotFound => store.create()?,
            Err(e) => return Err(Error::io("read", store.path("version"), e)),
        }
        store.collect_temporary()?;
        Ok(store)
    }

    /// Reaches registries in another way, for one request's credentials.
    #[must_use]
    pub fn with_registries(mut self, registries: Registries) -> Self {
        self.registries = registries;
        self
    }

    /// Bounds what the store may take on disk, bytes. What would exceed it is refused with [`Error::Quota`]; what is
    /// already there stays. Processes that write at once may exceed it by 32 MiB each.
    #[must_use]
    pub fn with_quota(mut self, bytes: Option<u64>) -> Self {
        self.quota = bytes;
        self
    }

    fn create(&self) -> Result<()> {
        for dir in ["", "locks", "tmp", "blobs/sha256", "layers", "disks", "images", "refs"] {
            let path = self.path(dir);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| Error::io("create", &path, e))?;
        }
        // Last: a store with a version is whole.
        self.write_file(&self.path("version"), VERSION)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn disk_path(&self, chain: Digest) -> PathBuf {
        self.root.join("disks").join(format!("{}.erofs", chain.hex()))
    }

    fn open_lock(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))
    }

    /// Held while content is used by name or made: nothing is collected meanwhile.
    fn lock_shared(&self) -> Result<File> {
        let file = self.open_lock("lock")?;
        file.lock_shared().map_err(|e| Error::io("lock", self.path("lock"), e))?;
        Ok(file)
    }

    /// Held while one thing is made.
    fn lock_item(&self, name: &str) -> Result<File> {
        let file = self.open_lock(&format!("locks/{name}"))?;
        file.lock().map_err(|e| Error::io("lock", self.path("locks"), e))?;
        Ok(file)
    }

    /// A directory for things in the making.
    fn temporary(&self) -> Result<Temporary> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // A directory that is not flocked yet must not look abandoned.
        let guard = self.open_lock("tmp.lock")?;
        guard.lock_shared().map_err(|e| Error::io("lock", self.path("tmp.lock"), e))?;
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = self.path("tmp").join(format!("{}-{count}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let lock = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
                    lock.lock().map_err(|e| Error::io("lock", &path, e))?;
                    return Ok(Temporary { path, _lock: lock });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", &path, e)),
            }
        }
    }

    fn collect_temporary(&self) -> Result<()> {
        let tmp = self.path("tmp");
        let mut entries = fs::read_dir(&tmp).map_err(|e| Error::io("read", &tmp, e))?.peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let guard = self.open_lock("tmp.lock")?;
        match guard.try_lock() {
            Ok(()) => {}
            // Someone is making something right now: the next to open collects.
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", self.path("tmp.lock"), e)),
        }
        for entry in entries.flatten() {
            let path = entry.path();
            if let Ok(dir) = File::open(&path)
                && dir.try_lock().is_ok()
            {
                // Whoever made it is dead. What cannot be removed now can be later.
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(())
    }

    /// Writes a small file as a whole or not at all.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary()?;
        let made = temporary.path.join("file");
        let mut file = create(&made)?;
        file.write_all(bytes).map_err(|e| Error::io("write", &made, e))?;
        file.sync_all().map_err(|e| Error::io("write", &made, e))?;
        publish(&made, path)
    }

    /// Keeps a document under its digest.
    fn put_blob(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        let path = self.blob_path(digest);
        if fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64) {
            return Ok(());
        }
        self.write_file(&path, bytes)
    }

    /// Reads a stored document and checks it.
    fn get_blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        if Digest::of(&bytes) != digest {
            let reason = format!("its content is not {digest}");
            return Err(Error::Corrupt { path, reason });
        }
        Ok(bytes)
    }
}

/// A new file, for its maker only until it is published.
fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("create", path, e))
}

/// Renames a finished, fsynced file or directory into place, durably.
fn publish(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Ok(()) => {}
        // A directory that another process published first, with the same content: names are digests.
        Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            return Ok(());
        }
        Err(e) => return Err(Error::io("write", to, e)),
    }
    let parent = to.parent().unwrap_or(to);
    let dir = File::open(parent).map_err(|e| Error::io("open", parent, e))?;
    dir.sync_all().map_err(|e| Error::io("write", parent, e))
}

/// A directory in `tmp` that goes when its maker is done with it, or dead.
struct Temporary {
    path: PathBuf,
    _lock: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // If this fails, the next process to open the store does it.
        let _ = fs::remove_dir_all(&self.path);
    }
}
