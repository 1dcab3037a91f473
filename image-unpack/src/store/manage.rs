//! What is in the store, and taking things out of it again.
//!
//! Names keep images, images keep disks, layers and blobs. What nothing keeps is garbage: collected under the store's
//! exclusive lock, so that nothing is taken from whoever is making or opening an image. Machines hold their disks
//! open, and keep them however long they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Store;
use super::inspect::Names;
use super::records::{Image, ImageRecord, RefRecord};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest, read_config};
use crate::reference::Reference;
use crate::time;

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names, sorted; none for an image that lost its last.
    pub names: Vec<Reference>,
    /// Its names with tags, as people write them: Docker's `RepoTags`.
    pub repo_tags: Vec<String>,
    /// Its repositories with the digest that their registries have it under: Docker's `RepoDigests`.
    pub repo_digests: Vec<String>,
    /// Unix time, seconds, at which the store got it.
    pub created: u64,
    /// Unix time, seconds, at which it was built, as its configuration says; 0 if it does not.
    pub built: i64,
    /// Bytes of its regular files as a container sees them.
    pub content_bytes: u64,
    /// Bytes of the regular files of all its layers: Docker's `Size`.
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What the store takes on disk: bytes of blocks, as `du` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Compressed layers, manifests and configurations.
    pub blobs: u64,
    /// Unpacked layers.
    pub layers: u64,
    /// Metadata images.
    pub disks: u64,
    /// Unfinished things.
    pub temporary: u64,
    /// What [`Store::prune`] without `dangling` would free.
    pub reclaimable: u64,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes freed on disk.
    pub freed: u64,
}

/// Everything that the records name.
#[derive(Default)]
struct Kept {
    paths: BTreeSet<PathBuf>,
}

impl Store {
    pub(super) fn records<T: DeserializeOwned>(&self, dir: &str) -> Result<Vec<(PathBuf, T)>> {
        let dir = self.path(dir);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))?.flatten() {
            let path = entry.path();
            // What is damaged keeps nothing alive, and is made anew when it is next asked for.
            if let Ok(bytes) = fs::read(&path)
                && let Ok(record) = serde_json::from_slice(&bytes)
            {
                found.push((path, record));
            }
        }
        Ok(found)
    }

    /// All images, newest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn images(&self) -> Result<Vec<Summary>> {
        let _lock = self.lock_shared()?;
        let references = self.records::<RefRecord>("refs")?;
        let mut list: Vec<Summary> = self
            .records::<ImageRecord>("images")?
            .into_iter()
            .map(|(_, record)| {
                let mine = references.iter().map(|(_, name)| name).filter(|name| name.id == record.id);
                let names = Names::of(mine);
                // An image whose configuration is damaged is listed all the same: it can be removed.
                let config = self.get_blob(record.id).ok().and_then(|bytes| read_config(&bytes).ok());
                let built = config.as_ref().and_then(|config| config.created().clone());
                let labels = config.as_ref().and_then(|config| config.config().as_ref()?.labels().clone());
                Summary {
                    id: record.id,
                    names: names.references,
                    repo_tags: names.tags,
                    repo_digests: names.digests,
                    created: record.created,
                    built: built.and_then(|text| time::seconds(&text)).unwrap_or_default(),
                    content_bytes: record.content_bytes,
                    size: record.layers.iter().map(|layer| self.layer_content(layer.diff_id)).sum(),
                    labels: labels.unwrap_or_default().into_iter().collect(),
                }
            })
            .collect();
        list.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
        Ok(list)
    }

    /// An image by id.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn by_id(&self, id: Digest) -> Result<Option<Image>> {
        let _lock = self.lock_shared()?;
        self.load(id)
    }

    /// Gives an image a name; what had the name loses it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] for a name with a digest, [`Error::DiskFull`].
    pub fn tag(&self, id: Digest, name: &Reference) -> Result<()> {
        let _lock = self.lock_shared()?;
        if name.digest().is_some() {
            return Err(Error::invalid("tag", &name.to_string(), "a digest cannot be given"));
        }
        let image = self.load(id)?.ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        self.name(name, &image, None).map(drop)
    }

    /// Takes a name from its image, and the image away with its last name, unless somebody holds it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`].
    pub fn untag(&self, name: &Reference) -> Result<Removed> {
        let path = self.ref_path(name);
        let mut deleted = Vec::new();
        {
            let _lock = self.lock_shared()?;
            let record = self.read_record::<RefRecord>(path.clone())?;
            let record = record.ok_or_else(|| Error::NotFound { what: name.to_string() })?;
            remove(&path)?;
            let others = self.records::<RefRecord>("refs")?;
            if !others.iter().any(|(_, other)| other.id == record.id) && !self.held()?.contains(&record.id) {
                remove(&self.image_path(record.id))?;
                deleted.push(record.id);
            }
        }
        let mut removed = self.collect(false)?;
        removed.untagged.push(name.to_string());
        removed.deleted = deleted;
        Ok(removed)
    }

    /// Removes an image with all its names; without `force` only if it has at most one and nobody holds it. One that is
    /// held loses its names only.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`], [`Error::Io`].
    pub fn remove(&self, id: Digest, force: bool) -> Result<Removed> {
        let mut untagged = Vec::new();
        {
            let _lock = self.lock_shared()?;
            if !self.image_path(id).exists() {
                return Err(Error::NotFound { what: id.to_string() });
            }
            let mut names = self.records::<RefRecord>("refs")?;
            names.retain(|(_, record)| record.id == id);
            if names.len() > 1 && !force {
                let by = names.iter().map(|(_, record)| record.name.clone()).collect::<Vec<_>>().join(", ");
                return Err(Error::InUse { what: id.to_string(), by });
            }
            let holders: Vec<String> =
                self.holds()?.into_iter().filter(|(_, held)| *held == id).map(|(holder, _)| holder).collect();
            if !holders.is_empty() && !force {
                return Err(Error::InUse { what: id.to_string(), by: holders.join(", ") });
            }
            for (path, record) in names {
                remove(&path)?;
                untagged.push(record.name);
            }
            if !holders.is_empty() {
                return Ok(Removed { untagged, ..Removed::default() });
            }
            remove(&self.image_path(id))?;
        }
        let mut removed = self.collect(false)?;
        removed.untagged = untagged;
        removed.deleted.push(id);
        Ok(removed)
    }

    /// Removes what no image needs: layers and blobs of broken pulls and removed images. With `dangling`, images
    /// without a name go too, unless somebody holds them. (Images of local archives have no name until they are given one.)
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prune(&self, dangling: bool) -> Result<Removed> {
        self.collect(dangling)
    }

    fn collect(&self, dangling: bool) -> Result<Removed> {
        let lock = self.open_lock("lock")?;
        lock.lock().map_err(|e| Error::io("lock", self.path("lock"), e))?;
        let mut removed = Removed::default();
        let mut named: BTreeSet<Digest> =
            self.records::<RefRecord>("refs")?.into_iter().map(|(_, record)| record.id).collect();
        named.extend(self.held()?);
        if dangling {
            for (path, record) in self.records::<ImageRecord>("images")? {
                if !named.contains(&record.id) {
                    removed.freed += usage(&path);
                    remove(&path)?;
                    removed.deleted.push(record.id);
                }
            }
        }
        let kept = self.kept()?;
        for path in self.content()? {
            if !kept.paths.contains(&path) {
                removed.freed += usage(&path);
                remove(&path)?;
            }
        }
        Ok(removed)
    }

    /// Everything that content can be: blobs, layers, disks.
    pub(super) fn content(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for dir in ["blobs/sha256", "layers", "disks"] {
            let dir = self.path(dir);
            let entries = fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))?;
            all.extend(entries.flatten().map(|entry| entry.path()));
        }
        Ok(all)
    }

    fn kept(&self) -> Result<Kept> {
        let mut kept = Kept::default();
        let references = self.records::<RefRecord>("refs")?;
        for (_, record) in self.records::<ImageRecord>("images")? {
            let names = references.iter().map(|(_, name)| name).filter(|name| name.id == record.id);
            let manifests = names.map(|name| name.manifest).chain([record.manifest]).collect();
            kept.paths.extend(self.content_of(&record, &manifests));
        }
        Ok(kept)
    }

    /// The content that an image needs: documents, layers with the blobs they were made from, disk.
    pub(super) fn content_of(&self, record: &ImageRecord, manifests: &BTreeSet<Digest>) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::from([self.blob_path(record.id), self.disk_path(record.chain)]);
        for layer in &record.layers {
            paths.insert(self.layer_path(layer.diff_id));
            if let Ok(origin) = self.layer_origin(layer.diff_id) {
                paths.insert(self.blob_path(origin.digest));
            }
        }
        for &digest in manifests {
            paths.insert(self.blob_path(digest));
            let Ok(bytes) = self.get_blob(digest) else { continue };
            let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { continue };
            let blobs = manifest.layers.iter().map(|layer: &Descriptor| layer.digest);
            paths.extend(blobs.map(|digest| self.blob_path(digest)));
        }
        paths
    }

    /// Runs what fills the store. If it runs out of room, what no image needs is removed, finished layers of the image
    /// that did not fit among it.
    pub(super) fn tidy_if_full<T>(&self, fill: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = fill();
        if matches!(result, Err(Error::Quota { .. } | Error::DiskFull { .. })) {
            // The error that is told is the first one.
            let _ = self.collect(false);
        }
        result
    }

    /// What the store takes on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn usage(&self) -> Result<Usage> {
        let _lock = self.lock_shared()?;
        let kept = self.kept()?;
        let garbage = self.content()?.into_iter().filter(|path| !kept.paths.contains(path));
        Ok(Usage {
            blobs: usage(&self.path("blobs")),
            layers: usage(&self.path("layers")),
            disks: usage(&self.path("disks")),
            temporary: usage(&self.path("tmp")),
            reclaimable: garbage.map(|path| usage(&path)).sum(),
        })
    }

    /// Reads all blobs again and returns the digests of those that are damaged, after removing them and what was made
    /// from them: the next use fetches them anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify(&self) -> Result<Vec<Digest>> {
        let lock = self.open_lock("lock")?;
        lock.lock().map_err(|e| Error::io("lock", self.path("lock"), e))?;
        let dir = self.path("blobs/sha256");
        let mut damaged = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))?.flatten() {
            let path = entry.path();
            let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) else { continue };
            let file = fs::File::open(&path).map_err(|e| Error::io("read", &path, e))?;
            if crate::digest::of_reader(file).map_err(|e| Error::io("read", &path, e))? != digest {
                damaged.push(digest);
                remove(&path)?;
            }
        }
        if damaged.is_empty() {
            return Ok(damaged);
        }
        for (path, record) in self.records::<ImageRecord>("images")? {
            let manifest = self.get_blob(record.manifest).ok();
            let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
            let whole = manifest.is_some_and(|m| m.layers.iter().all(|l| self.blob_path(l.digest).exists()));
            if !whole || !self.blob_path(record.id).exists() {
                remove(&path)?;
            }
        }
        Ok(damaged)
    }
}

pub(super) fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        // Someone else was faster.
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Bytes of the blocks of everything at and below a path.
pub(super) fn usage(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below: u64 = if metadata.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| usage(&entry.path())).sum()
    } else {
        0
    };
    metadata.blocks() * 512 + below
}
