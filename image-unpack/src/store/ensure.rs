//! Making an image ready: resolve, make the layers that are missing, merge, remember.

use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::quota::Budget;
use super::records::{Image, ImageRecord, LayerRecord, RefRecord};
use super::{Store, create, publish};
use crate::digest::{Digest, Hasher};
use crate::erofs::{self, writer};
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST, Platform};
use crate::memory::give_back;
use crate::merge::{LayerIndex, merge};
use crate::progress::{Event, Progress};
use crate::reference::{Reference, Source};
use crate::source::{self, Resolved};

impl Store {
    /// Makes the image that `source` names now ready to run: fetches what the store lacks, verifies it, and makes its
    /// disk. What is already here is not read again.
    ///
    /// # Errors
    /// Any [`Error`]. Layers that were finished before it stay, and are not fetched again; nothing unfinished does.
    /// After [`Error::Quota`] and [`Error::DiskFull`] what no image needs is removed too.
    pub fn ensure(&self, source: &Source, platform: &Platform, progress: &dyn Progress) -> Result<Image> {
        self.tidy_if_full(|| {
            let _lock = self.lock_shared()?;
            let spool = self.spool_if_packed(source)?;
            let spool = spool.as_ref().map(|spool| spool.file.as_path());
            self.ensure_locked(source, spool, platform, progress)
        })
    }

    /// `spool` is where the archive that `source` names was unpacked to.
    pub(super) fn ensure_locked(
        &self,
        source: &Source,
        spool: Option<&Path>,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let origin = source::open(source, spool, &self.limits, &self.registries, progress)?;
        let resolved = origin.resolve(platform, &self.limits)?;
        let layers = resolved.layers.len();
        progress.event(Event::Resolved { id: resolved.id, digest: resolved.named, layers });
        let reference = match source {
            Source::Registry(reference) => Some(reference.clone()),
            _ => None,
        };
        let mut image = match self.load(resolved.id)? {
            Some(image) => {
                for (layer, blob) in resolved.layers.iter().enumerate() {
                    let digest = blob.digest.unwrap_or(blob.diff_id);
                    progress.event(Event::LayerPresent { layer, digest });
                }
                image
            }
            None => {
                let budget = self.budget();
                self.make_layers(&*origin, &resolved, &budget, progress)?;
                give_back();
                self.make_image(&resolved, &budget)?
            }
        };
        if let Some(bytes) = self.usable_manifest(&resolved) {
            image.manifest = Digest::of(bytes);
            self.put_blob(image.manifest, bytes)?;
        }
        let mut fresh = true;
        if let Some(reference) = &reference {
            fresh = self.name(reference, &image, resolved.named)?;
        }
        image.reference = reference;
        progress.event(Event::Ready { id: image.id, fresh });
        Ok(image)
    }

    /// Gives an image a name, known to its registry as `remote`; false if it had it.
    pub(super) fn name(&self, name: &Reference, image: &Image, remote: Option<Digest>) -> Result<bool> {
        let path = self.ref_path(name);
        // A damaged record is replaced.
        let before = self.read_record::<RefRecord>(path.clone()).ok().flatten();
        let fresh = before.is_none_or(|before| before.id != image.id);
        let (id, manifest) = (image.id, image.manifest);
        let record = RefRecord { name: name.to_string(), id, manifest, remote, tagged: now() };
        self.write_record(&path, &record)?;
        Ok(fresh)
    }

    /// The source's own manifest, if the store has the very blobs it names: a layer that was here may have come packed
    /// in another way.
    fn usable_manifest<'a>(&self, resolved: &'a Resolved) -> Option<&'a [u8]> {
        let here = |digest: Option<Digest>| digest.is_some_and(|digest| self.blob_path(digest).exists());
        let bytes = resolved.manifest.as_deref()?;
        resolved.layers.iter().all(|layer| here(layer.digest)).then_some(bytes)
    }

    /// Makes an image of layers that are here.
    pub(super) fn make_image(&self, resolved: &Resolved, budget: &Budget<'_>) -> Result<Image> {
        let (chain, made) = self.make_disk(resolved, budget)?;
        self.put_blob(resolved.id, &resolved.config_bytes)?;
        let manifest = match self.usable_manifest(resolved) {
            Some(bytes) => bytes.to_vec(),
            None => self.synthesise_manifest(resolved)?,
        };
        let manifest_digest = Digest::of(&manifest);
        self.put_blob(manifest_digest, &manifest)?;
        let layers = resolved
            .layers
            .iter()
            .map(|layer| {
                let data_bytes = self.layer_summary(layer.diff_id)?.data_bytes;
                Ok(LayerRecord { diff_id: layer.diff_id, data_bytes })
            })
            .collect::<Result<_>>()?;
        let record = ImageRecord {
            id: resolved.id,
            manifest: manifest_digest,
            chain,
            meta_bytes: made.size,
            content_bytes: made.content,
            created: now(),
            layers,
        };
        let path = self.image_path(resolved.id);
        self.write_record(&path, &record)?;
        let disk = self
            .disk(&record)
            .ok_or_else(|| Error::Corrupt { path, reason: "its files vanished while it was made".into() })?;
        Ok(Image {
            id: record.id,
            manifest: record.manifest,
            config: resolved.config.clone(),
            disk,
            reference: None,
            content_bytes: record.content_bytes,
        })
    }

    /// Merges the layers' indexes into a metadata image; the chain's digest names it.
    fn make_disk(&self, resolved: &Resolved, budget: &Budget<'_>) -> Result<(Digest, Made)> {
        // The name covers the writer's version too: another writer's image would have other bytes.
        let mut chain = Hasher::default();
        chain.update(b"bulkhead erofs 1\n");
        for layer in &resolved.layers {
            chain.update(layer.diff_id.bytes());
        }
        let chain = chain.finish();
        let target = self.disk_path(chain);
        let _lock = self.lock_item(&format!("disk-{}", chain.hex()))?;
        let paths: Vec<_> =
            resolved.layers.iter().map(|layer| self.layer_path(layer.diff_id).join("index")).collect();
        let mut layers = Vec::with_capacity(resolved.layers.len());
        for (number, (layer, path)) in resolved.layers.iter().zip(&paths).enumerate() {
            let shown = layer.digest.unwrap_or(layer.diff_id);
            let label =
                format!("layer {} of {} ({shown}) of {}", number + 1, resolved.layers.len(), resolved.place);
            layers.push(LayerIndex { label, path, file: self.layer_index(layer.diff_id)? });
        }
        let (mut tree, mut windows) = merge(&layers, &self.limits)?;
        let failed = |e| Error::io("write", &target, e);
        let plan = writer::plan(&mut tree, &mut windows).map_err(failed)?;
        let made = Made { size: plan.size, content: plan.content };
        if fs::metadata(&target).is_ok_and(|m| m.len() == plan.size) {
            return Ok((chain, made));
        }
        let too_large = || Error::Limit {
            place: resolved.place.clone(),
            what: "size of the disk",
            limit: u64::from(u32::MAX) * erofs::BLOCK,
        };
        let mut position = plan.size;
        let mut bases = Vec::with_capacity(layers.len());
        for layer in &resolved.layers {
            bases.push(u32::try_from(position / erofs::BLOCK).map_err(|_| too_large())?);
            position += self.layer_summary(layer.diff_id)?.data_bytes;
        }
        let blocks = u32::try_from(position / erofs::BLOCK).map_err(|_| too_large())?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&chain.bytes()[..16]);
        budget.charge(plan.size)?;
        let temporary = self.temporary()?;
        let path = temporary.path.join("disk");
        let file = create(&path)?;
        let out = BufWriter::with_capacity(256 << 10, &file);
        let write = writer::write(&plan, &tree, &mut windows, &bases, blocks, uuid, out);
        write.map_err(|e| Error::io("write", &path, e))?;
        file.sync_all().map_err(|e| Error::io("write", &path, e))?;
        publish(&path, &target)?;
        Ok((chain, made))
    }

    /// For images that came without a manifest, or not as theirs says: this is the one that would be pushed.
    fn synthesise_manifest(&self, resolved: &Resolved) -> Result<Vec<u8>> {
        let mut layers = Vec::with_capacity(resolved.layers.len());
        for layer in &resolved.layers {
            let origin = self.layer_origin(layer.diff_id)?;
            layers.push(Descriptor::new(&origin.media_type, origin.digest, origin.size));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::new(OCI_CONFIG, resolved.id, resolved.config_bytes.len() as u64),
            layers,
        };
        serde_json::to_vec(&manifest).map_err(|e| Error::bad_image(resolved.place.clone(), e.to_string()))
    }
}

/// Unix time, seconds.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

struct Made {
    size: u64,
    content: u64,
}
