//! Layers in the making: which are missing, each through its pipeline, and into place.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::quota::Budget;
use super::{Store, Temporary, create, publish};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::index;
use crate::layer::pipe::{self, Heard};
use crate::limits::Limits;
use crate::manifest::Compression;
use crate::progress::{Event, Progress};
use crate::source::{Origin, Resolved};

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

/// What the layers of one image in the making share.
struct Work<'a> {
    origin: &'a dyn Origin,
    resolved: &'a Resolved,
    budget: &'a Budget<'a>,
    progress: &'a dyn Progress,
    /// Another layer has failed.
    stop: AtomicBool,
}

/// A layer in the making.
pub(super) struct Making<'a> {
    /// For errors: "layer 2 of 4 (sha256:...)".
    pub label: &'a str,
    pub input: Box<dyn Read + Send + 'a>,
    /// Size and digest of the compressed bytes, as far as they are known.
    pub size: Option<u64>,
    pub digest: Option<Digest>,
    pub diff_id: Option<Digest>,
    /// Whether the compressed bytes are to be kept: not if they came from the store.
    pub keep: bool,
    pub limits: &'a Limits,
    pub heard: &'a (dyn Fn(Heard) + Sync),
}

impl Store {
    /// Makes the missing layers, largest first, a few at a time. The first failure stops the others.
    pub(super) fn make_layers(
        &self,
        origin: &dyn Origin,
        resolved: &Resolved,
        budget: &Budget<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let layers = &resolved.layers;
        let missing = |i: &usize| !self.has_layer(layers[*i].diff_id);
        let mut order: Vec<usize> = (0..layers.len()).filter(missing).collect();
        let is_missing: Vec<bool> = (0..layers.len()).map(|i| order.binary_search(&i).is_ok()).collect();
        let mut compressed = 0_u64;
        for (layer, (blob, missing)) in layers.iter().zip(is_missing).enumerate() {
            let digest = blob.digest.unwrap_or(blob.diff_id);
            let total = blob.size.unwrap_or_default();
            progress.event(if missing {
                Event::LayerPending { layer, digest, total }
            } else {
                Event::LayerPresent { layer, digest }
            });
            if missing && !blob.digest.is_some_and(|digest| self.blob_path(digest).exists()) {
                compressed = compressed.saturating_add(total);
            }
        }
        budget.check(compressed)?;
        order.sort_by_key(|&i| std::cmp::Reverse(layers[i].size));
        for &layer in order.iter().skip(PARALLEL) {
            let digest = layers[layer].digest.unwrap_or(layers[layer].diff_id);
            progress.event(Event::LayerWaiting { layer, digest });
        }
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let work = Work { origin, resolved, budget, progress, stop: AtomicBool::new(false) };
        let run = || {
            while !work.stop.load(Ordering::Relaxed) {
                let Some(&number) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(error) = self.make_layer(&work, number) {
                    work.stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARALLEL.min(order.len()) {
                // Without a second thread the first does it all.
                let _ = thread::Builder::new().name("layer".into()).spawn_scoped(scope, run);
            }
            run();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn make_layer(&self, work: &Work<'_>, number: usize) -> Result<()> {
        let Work { origin, resolved, progress, .. } = work;
        let layer = &resolved.layers[number];
        let shown = layer.digest.unwrap_or(layer.diff_id);
        let lock = self.lock_item(&format!("layer-{}", layer.diff_id.hex()))?;
        // Another process, or an equal layer of this image, may have made it meanwhile.
        if self.has_layer(layer.diff_id) {
            progress.event(Event::LayerPresent { layer: number, digest: shown });
            return Ok(());
        }
        let label =
            format!("layer {} of {} ({shown}) of {}", number + 1, resolved.layers.len(), resolved.place);
        let stored = layer.digest.and_then(|digest| File::open(self.blob_path(digest)).ok());
        let keep = stored.is_none();
        let input: Box<dyn Read + Send> = match stored {
            Some(file) => Box::new(file),
            None => origin.layer(resolved, number)?,
        };
        let total = layer.size.unwrap_or_default();
        let last = AtomicU64::new(0);
        let heard = |heard: Heard| match heard {
            Heard::Read(done) => {
                if done == total || done - last.load(Ordering::Relaxed) >= REPORT {
                    last.store(done, Ordering::Relaxed);
                    progress.event(Event::LayerBytes { layer: number, digest: shown, done, total });
                }
            }
            Heard::Ended => progress.event(Event::LayerVerifying { layer: number, digest: shown }),
            Heard::Fetched(total) => {
                progress.event(Event::LayerFetched { layer: number, digest: shown });
                progress.event(Event::LayerExtracting { layer: number, digest: shown, done: total, total });
            }
        };
        let making = Making {
            label: &label,
            input: Box::new(Stoppable { input, stop: &work.stop }),
            size: layer.size,
            digest: layer.digest,
            diff_id: Some(layer.diff_id),
            keep,
            limits: &self.limits,
            heard: &heard,
        };
        match self.run_layer(making, work.budget) {
            Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. }) if !keep => {
                // The stored blob went bad: fetch it again.
                let path = self.blob_path(layer.digest.unwrap_or(layer.diff_id));
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                drop(lock);
                return self.make_layer(work, number);
            }
            made => made?,
        };
        progress.event(Event::LayerDone { layer: number, digest: shown });
        Ok(())
    }

    /// Takes a stream through the pipeline, and what comes out into place.
    pub(super) fn run_layer(&self, making: Making<'_>, budget: &Budget<'_>) -> Result<(Digest, LayerOrigin)> {
        let temporary = self.temporary()?;
        let dir = temporary.path.join("layer");
        fs::create_dir(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let kept = temporary.path.join("blob");
        let done = pipe::run(pipe::Job {
            label: making.label,
            input: making.input,
            size: making.size,
            digest: making.digest,
            diff_id: making.diff_id,
            keep: if making.keep { Some(create(&kept)?) } else { None },
            data: create(&dir.join("data"))?,
            index: create(&dir.join("index"))?,
            place: dir.clone(),
            limits: making.limits,
            charge: &|bytes| budget.charge(bytes),
            heard: making.heard,
        })?;
        if making.keep {
            publish(&kept, &self.blob_path(done.digest))?;
        }
        let media_type = match done.compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let origin = LayerOrigin { digest: done.digest, size: done.size, media_type: media_type.to_owned() };
        self.publish_layer(&temporary, done.diff_id, &origin)?;
        Ok((done.diff_id, origin))
    }

    fn publish_layer(&self, temporary: &Temporary, diff_id: Digest, origin: &LayerOrigin) -> Result<()> {
        let (dir, target) = (temporary.path.join("layer"), self.layer_path(diff_id));
        if self.is_whole(diff_id) {
            // Made already, from a blob that is lost or by someone else meanwhile: from now on it is made from this one.
            return self.write_record(&target.join("origin.json"), origin);
        }
        let path = dir.join("origin.json");
        let bytes = serde_json::to_vec(origin).map_err(|e| Error::io("write", &path, io::Error::other(e)))?;
        fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
        for path in [&path, &dir] {
            let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
            file.sync_all().map_err(|e| Error::io("write", path, e))?;
        }
        if target.exists() {
            // Damaged: out of the way, and gone with the temporary directory.
            let aside = temporary.path.join("damaged");
            fs::rename(&target, &aside).map_err(|e| Error::io("replace", &target, e))?;
        }
        publish(&dir, &target)
    }

    /// The blob that a layer was made from.
    pub(super) fn layer_origin(&self, diff_id: Digest) -> Result<LayerOrigin> {
        let path = self.layer_path(diff_id).join("origin.json");
        self.read_record(path.clone())?.ok_or_else(|| Error::Corrupt { path, reason: "missing".into() })
    }

    /// Whether a layer is here, with the blob it was made from: without that the image could not be pushed or saved.
    pub(super) fn has_layer(&self, diff_id: Digest) -> bool {
        let origin = self.read_record::<LayerOrigin>(self.layer_path(diff_id).join("origin.json"));
        matches!(origin, Ok(Some(origin)) if self.blob_path(origin.digest).exists()) && self.is_whole(diff_id)
    }

    /// Whether a layer's index can be read and its data is as long as that says.
    fn is_whole(&self, diff_id: Digest) -> bool {
        let length = fs::metadata(self.layer_path(diff_id).join("data")).map(|m| m.len());
        self.layer_summary(diff_id).is_ok_and(|summary| length.is_ok_and(|n| n == summary.data_bytes))
    }

    pub(super) fn layer_index(&self, diff_id: Digest) -> Result<File> {
        let path = self.layer_path(diff_id).join("index");
        File::open(&path).map_err(|e| Error::io("read", &path, e))
    }

    pub(super) fn layer_summary(&self, diff_id: Digest) -> Result<index::Summary> {
        let file = self.layer_index(diff_id)?;
        index::summary(&file).map_err(|e| Error::Corrupt {
            path: self.layer_path(diff_id).join("index"),
            reason: e.to_string(),
        })
    }
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
