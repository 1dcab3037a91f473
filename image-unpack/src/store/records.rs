//! What the store remembers about images: small JSON files, read on the hot path, so that a cached image is ready
//! without touching its layers.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::digest::Digest;
use crate::disk::{Extent, RootfsDisk};
use crate::error::{Error, Result};
use crate::manifest::{Platform, parse_config};
use crate::progress::Quiet;
use crate::reference::{Reference, Source};
use crate::source;

/// An image that is ready to run.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its configuration: what Docker calls the image id.
    pub id: Digest,
    /// Digest of its manifest, as pulled or as the store would push it.
    pub manifest: Digest,
    /// Its configuration, checked.
    pub config: ImageConfiguration,
    /// Its root file system.
    pub disk: RootfsDisk,
    /// The name it was asked for by, if it was one that the store remembers.
    pub reference: Option<Reference>,
    /// Bytes of all its regular files.
    pub content_bytes: u64,
}

/// A layer of a stored image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub diff_id: Digest,
    /// Bytes of its data blob.
    pub data_bytes: u64,
}

/// The file `images/<id>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub id: Digest,
    pub manifest: Digest,
    /// Names the metadata image.
    pub chain: Digest,
    pub meta_bytes: u64,
    pub content_bytes: u64,
    /// Unix time, seconds.
    pub created: u64,
    pub layers: Vec<LayerRecord>,
}

/// The file `refs/<hash>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RefRecord {
    pub name: String,
    pub id: Digest,
    pub manifest: Digest,
    /// What the name's registry has under it: this manifest, or an index that led to it. `None` if it was never
    /// pulled or pushed under this name.
    #[serde(default)]
    pub remote: Option<Digest>,
    /// When it was given: Unix time, seconds.
    #[serde(default)]
    pub tagged: u64,
}

impl Store {
    pub(super) fn image_path(&self, id: Digest) -> PathBuf {
        self.path("images").join(format!("{}.json", id.hex()))
    }

    pub(super) fn ref_path(&self, name: &Reference) -> PathBuf {
        let name = Digest::of(name.to_string().as_bytes());
        self.path("refs").join(format!("{}.json", name.hex()))
    }

    /// Reads one of our own files; absent is `None`.
    pub(super) fn read_record<T: for<'de> Deserialize<'de>>(&self, path: PathBuf) -> Result<Option<T>> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(e) => Err(Error::Corrupt { path, reason: e.to_string() }),
        }
    }

    pub(super) fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<()> {
        let bytes =
            serde_json::to_vec(record).map_err(|e| Error::io("write", path, std::io::Error::other(e)))?;
        self.write_file(path, &bytes)
    }

    /// The disk of a record, if all of its files are there and as long as they should be.
    pub(super) fn disk(&self, record: &ImageRecord) -> Option<RootfsDisk> {
        let mut extents = Vec::with_capacity(record.layers.len() + 1);
        let meta = Extent { path: self.disk_path(record.chain), offset: 0, length: record.meta_bytes };
        let layers = record.layers.iter().map(|layer| Extent {
            path: self.layer_path(layer.diff_id).join("data"),
            offset: 0,
            length: layer.data_bytes,
        });
        let mut size = 0;
        for extent in std::iter::once(meta).chain(layers) {
            if fs::metadata(&extent.path).ok()?.len() != extent.length {
                return None;
            }
            size += extent.length;
            if extent.length > 0 {
                extents.push(extent);
            }
        }
        Some(RootfsDisk { extents, size })
    }

    /// An image by id, if it is here and whole.
    pub(super) fn load(&self, id: Digest) -> Result<Option<Image>> {
        // A damaged record is as good as none: the image is made again.
        let Ok(Some(record)) = self.read_record::<ImageRecord>(self.image_path(id)) else { return Ok(None) };
        let Some(disk) = self.disk(&record) else { return Ok(None) };
        let Ok(config) = self.get_blob(id) else { return Ok(None) };
        let Ok(config) = crate::manifest::read_config(&config) else { return Ok(None) };
        Ok(Some(Image {
            id,
            manifest: record.manifest,
            config,
            disk,
            reference: None,
            content_bytes: record.content_bytes,
        }))
    }

    /// An image that is already here, by name.
    ///
    /// Reads three small files and checks that the disk's files are there; takes well under a millisecond.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub fn lookup(&self, reference: &Reference) -> Result<Option<Image>> {
        let _lock = self.lock_shared()?;
        self.lookup_locked(reference)
    }

    pub(super) fn lookup_locked(&self, reference: &Reference) -> Result<Option<Image>> {
        let Some(found) = self.read_record::<RefRecord>(self.ref_path(reference))? else { return Ok(None) };
        let Some(mut image) = self.load(found.id)? else { return Ok(None) };
        image.manifest = found.manifest;
        image.reference = Some(reference.clone());
        Ok(Some(image))
    }

    /// An image that is already here, by whatever names it: a local source is read as far as its configuration, to
    /// learn which image it means now.
    ///
    /// # Errors
    /// As [`Store::lookup`]; for local sources also what is wrong with their documents.
    pub fn cached(&self, source: &Source, platform: &Platform) -> Result<Option<Image>> {
        let _lock = self.lock_shared()?;
        let Source::Registry(reference) = source else {
            let spool = self.spool_if_packed(source)?;
            let spool = spool.as_ref().map(|spool| spool.file.as_path());
            let origin = source::open(source, spool, &self.limits, &self.registries, &Quiet)?;
            let resolved = origin.resolve(platform, &self.limits)?;
            return self.load(resolved.id);
        };
        let Some(image) = self.lookup_locked(reference)? else { return Ok(None) };
        let config = self.get_blob(image.id)?;
        // The name may stand for another platform's image.
        let fits = parse_config(&config, "", image.config.rootfs().diff_ids().len(), platform, &self.limits);
        Ok(fits.is_ok().then_some(image))
    }
}
