//! Making an image ready: resolve, make the layers that are missing, merge, remember.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::records::{Image, ImageRecord, LayerRecord, RefRecord};
use super::{Store, create, publish};
use crate::digest::{Digest, Hasher};
use crate::erofs::{self, writer};
use crate::error::{Error, Result};
use crate::layer::index;
use crate::layer::pipe;
use crate::manifest::{Compression, Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST, Platform};
use crate::merge::{LayerIndex, merge};
use crate::progress::{Event, Progress};
use crate::reference::Source;
use crate::source::{self, Origin, Resolved};

/// Layers in work at once. Each has its own pipeline of threads, so two keep more than two processors busy.
const PARALLEL: usize = 2;
/// Compressed bytes between two [`Event::LayerBytes`].
const REPORT: u64 = 1 << 20;

/// The file `layers/<diff id>/origin.json`: the blob a layer was made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerOrigin {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
}

impl Store {
    /// Makes the image that `source` names now ready to run: fetches what the store lacks, verifies it, and makes its
    /// disk. What is already here is not read again.
    ///
    /// # Errors
    /// Any [`Error`]. Layers that were finished before it stay, and are not fetched again; nothing unfinished does.
    pub fn ensure(&self, source: &Source, platform: &Platform, progress: &dyn Progress) -> Result<Image> {
        let _lock = self.lock_shared()?;
        let origin = source::open(source, &self.limits, &self.registries, progress)?;
        let resolved = origin.resolve(platform, &self.limits)?;
        progress.event(Event::Resolved { id: resolved.id, layers: resolved.layers.len() });
        let reference = match source {
            Source::Registry(reference) => Some(reference.clone()),
            _ => None,
        };
        let mut image = match self.load(resolved.id)? {
            Some(image) => image,
            None => self.make(&*origin, &resolved, progress)?,
        };
        if let Some(bytes) = &resolved.manifest {
            image.manifest = Digest::of(bytes);
            self.put_blob(image.manifest, bytes)?;
        }
        if let Some(reference) = &reference {
            let record = RefRecord { name: reference.to_string(), id: image.id, manifest: image.manifest };
            self.write_record(&self.ref_path(reference), &record)?;
        }
        image.reference = reference;
        progress.event(Event::Ready { id: image.id });
        Ok(image)
    }

    fn make(&self, origin: &dyn Origin, resolved: &Resolved, progress: &dyn Progress) -> Result<Image> {
        self.make_layers(origin, resolved, progress)?;
        let (chain, made) = self.make_disk(resolved)?;
        self.put_blob(resolved.id, &resolved.config_bytes)?;
        let manifest = match &resolved.manifest {
            Some(bytes) => bytes.clone(),
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
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let record = ImageRecord {
            id: resolved.id,
            manifest: manifest_digest,
            chain,
            meta_bytes: made.size,
            content_bytes: made.content,
            created,
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

    /// Makes the missing layers, largest first, a few at a time. The first failure stops the others.
    fn make_layers(&self, origin: &dyn Origin, resolved: &Resolved, progress: &dyn Progress) -> Result<()> {
        let mut order: Vec<usize> = (0..resolved.layers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(resolved.layers[i].size));
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(&number) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(error) = self.make_layer(origin, resolved, number, progress, &stop) {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARALLEL.min(order.len()) {
                // Without a second thread the first does it all.
                let _ = thread::Builder::new().name("layer".into()).spawn_scoped(scope, work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn make_layer(
        &self,
        origin: &dyn Origin,
        resolved: &Resolved,
        number: usize,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<()> {
        let layer = &resolved.layers[number];
        let shown = layer.digest.unwrap_or(layer.diff_id);
        let present = || {
            progress.event(Event::LayerPresent { layer: number, digest: shown });
            Ok(())
        };
        let target = self.layer_path(layer.diff_id);
        if self.has_layer(layer.diff_id) {
            return present();
        }
        let _lock = self.lock_item(&format!("layer-{}", layer.diff_id.hex()))?;
        if self.has_layer(layer.diff_id) {
            return present();
        }
        let temporary = self.temporary()?;
        let dir = temporary.path.join("layer");
        fs::create_dir(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let label =
            format!("layer {} of {} ({shown}) of {}", number + 1, resolved.layers.len(), resolved.place);
        let stored = layer.digest.and_then(|digest| File::open(self.blob_path(digest)).ok());
        let kept = temporary.path.join("blob");
        let keep = if stored.is_some() { None } else { Some(create(&kept)?) };
        let from_store = stored.is_some();
        let input: Box<dyn Read + Send> = match stored {
            Some(file) => Box::new(file),
            None => origin.layer(resolved, number)?,
        };
        let total = layer.size.unwrap_or_default();
        let last = std::sync::atomic::AtomicU64::new(0);
        let heard = |done: u64| {
            if done == total || done - last.load(Ordering::Relaxed) >= REPORT {
                last.store(done, Ordering::Relaxed);
                progress.event(Event::LayerBytes { layer: number, digest: shown, done, total });
            }
        };
        let done = pipe::run(pipe::Job {
            label: &label,
            input: Box::new(Stoppable { input, stop }),
            size: layer.size,
            digest: layer.digest,
            diff_id: layer.diff_id,
            keep,
            data: create(&dir.join("data"))?,
            index: create(&dir.join("index"))?,
            place: dir.clone(),
            limits: &self.limits,
            heard: &heard,
        });
        let done = match done {
            Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. }) if from_store => {
                // The stored blob went bad: fetch it again.
                let path = self.blob_path(layer.digest.unwrap_or(layer.diff_id));
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                drop((temporary, _lock));
                return self.make_layer(origin, resolved, number, progress, stop);
            }
            done => done?,
        };
        if !from_store {
            publish(&kept, &self.blob_path(done.digest))?;
        }
        let media_type = match done.compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let origin = LayerOrigin { digest: done.digest, size: done.size, media_type: media_type.to_owned() };
        let path = dir.join("origin.json");
        let bytes =
            serde_json::to_vec(&origin).map_err(|e| Error::io("write", &path, io::Error::other(e)))?;
        fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
        for path in [&path, &dir] {
            let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
            file.sync_all().map_err(|e| Error::io("write", path, e))?;
        }
        if target.exists() && !self.is_whole(layer.diff_id) {
            // Damaged: out of the way, and gone with the temporary directory.
            let aside = temporary.path.join("damaged");
            fs::rename(&target, &aside).map_err(|e| Error::io("replace", &target, e))?;
        }
        publish(&dir, &target)?;
        progress.event(Event::LayerDone { layer: number, digest: shown });
        Ok(())
    }

    /// Whether a layer is here, with the blob it was made from: without that the image could not be pushed or saved.
    fn has_layer(&self, diff_id: Digest) -> bool {
        let origin = self.read_record::<LayerOrigin>(self.layer_path(diff_id).join("origin.json"));
        matches!(origin, Ok(Some(origin)) if self.blob_path(origin.digest).exists()) && self.is_whole(diff_id)
    }

    /// Whether a layer's index can be read and its data is as long as that says.
    fn is_whole(&self, diff_id: Digest) -> bool {
        let length = fs::metadata(self.layer_path(diff_id).join("data")).map(|m| m.len());
        self.layer_summary(diff_id).is_ok_and(|summary| length.is_ok_and(|n| n == summary.data_bytes))
    }

    fn layer_index(&self, diff_id: Digest) -> Result<File> {
        let path = self.layer_path(diff_id).join("index");
        File::open(&path).map_err(|e| Error::io("read", &path, e))
    }

    fn layer_summary(&self, diff_id: Digest) -> Result<index::Summary> {
        let file = self.layer_index(diff_id)?;
        index::summary(&file).map_err(|e| Error::Corrupt {
            path: self.layer_path(diff_id).join("index"),
            reason: e.to_string(),
        })
    }

    /// Merges the layers' indexes into a metadata image; the chain's digest names it.
    fn make_disk(&self, resolved: &Resolved) -> Result<(Digest, Made)> {
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

    /// A docker-archive has no manifest: this is the one that would be pushed.
    fn synthesise_manifest(&self, resolved: &Resolved) -> Result<Vec<u8>> {
        let mut layers = Vec::with_capacity(resolved.layers.len());
        for layer in &resolved.layers {
            let path = self.layer_path(layer.diff_id).join("origin.json");
            let origin: LayerOrigin = self
                .read_record(path.clone())?
                .ok_or_else(|| Error::Corrupt { path, reason: "missing".into() })?;
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

struct Made {
    size: u64,
    content: u64,
}

/// Ends a stream once another layer has failed.
struct Stoppable<'a> {
    input: Box<dyn Read + Send + 'a>,
    stop: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped: another layer failed"));
        }
        self.input.read(out)
    }
}
