//! What images take: bytes of blocks on disk, as `du` counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use super::inspect::Names;
use super::manage::usage;
use super::records::{ImageRecord, RefRecord};
use crate::digest::Digest;
use crate::error::Result;

/// What the whole store takes. All sizes are bytes on disk; what several images share counts once in each total.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiskUsage {
    /// Every image, newest first.
    pub images: Vec<ImageUsage>,
    /// Every unpacked layer, largest first.
    pub layers: Vec<LayerUsage>,
    /// Everything the images have, once.
    pub layers_size: u64,
    /// What [`Store::prune`] would free now: content that no image has.
    pub reclaimable: u64,
    /// Unfinished things.
    pub temporary: u64,
    /// The store's directory with all that is in it.
    pub total: u64,
    /// The store's quota, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

/// What one image takes on disk. `size` is `shared_size` and `unique_size`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageUsage {
    /// Its id.
    pub id: Digest,
    /// Its names with tags.
    pub repo_tags: Vec<String>,
    /// Its repositories with the digest that their registries have it under.
    pub repo_digests: Vec<String>,
    /// Unix time, seconds, at which the store got it.
    pub stored: u64,
    /// Its layers (packed and unpacked), metadata disk and documents.
    pub size: u64,
    /// What of that other images have too.
    pub shared_size: u64,
    /// What goes if this image goes.
    pub unique_size: u64,
}

/// What one layer takes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LayerUsage {
    /// Digest of its tar stream.
    pub diff_id: Digest,
    /// Its files' data and its index.
    pub unpacked: u64,
    /// The blob it was made from.
    pub packed: u64,
    /// How many images have it.
    pub images: usize,
}

impl Store {
    /// What every image and every layer takes on disk.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn df(&self) -> Result<DiskUsage> {
        let _lock = self.lock_shared()?;
        let references = self.records::<RefRecord>("refs")?;
        let mut images = self.records::<ImageRecord>("images")?;
        images.sort_by(|(_, a), (_, b)| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
        let mut users: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut of_layer: BTreeMap<Digest, usize> = BTreeMap::new();
        let mut kept = Vec::with_capacity(images.len());
        for (path, record) in &images {
            let names = references.iter().map(|(_, reference)| reference).filter(|r| r.id == record.id);
            let manifests: BTreeSet<Digest> =
                names.map(|name| name.manifest).chain([record.manifest]).collect();
            let mut paths = self.content_of(record, &manifests);
            paths.insert(path.clone());
            for path in &paths {
                *users.entry(path.clone()).or_default() += 1;
            }
            for diff_id in record.layers.iter().map(|layer| layer.diff_id).collect::<BTreeSet<_>>() {
                *of_layer.entry(diff_id).or_default() += 1;
            }
            kept.push(paths);
        }
        let sizes: BTreeMap<&PathBuf, u64> = users.keys().map(|path| (path, usage(path))).collect();
        let sum = |paths: &BTreeSet<PathBuf>, shared: bool| -> u64 {
            let wanted = |path: &&PathBuf| (users.get(*path).is_some_and(|&n| n > 1)) == shared;
            paths.iter().filter(wanted).filter_map(|path| sizes.get(path)).sum()
        };
        let list = images
            .iter()
            .zip(&kept)
            .map(|((_, record), paths)| {
                let mine = references.iter().map(|(_, reference)| reference).filter(|r| r.id == record.id);
                let names = Names::of(mine);
                let (shared_size, unique_size) = (sum(paths, true), sum(paths, false));
                ImageUsage {
                    id: record.id,
                    repo_tags: names.tags,
                    repo_digests: names.digests,
                    stored: record.created,
                    size: shared_size + unique_size,
                    shared_size,
                    unique_size,
                }
            })
            .collect();
        let mut layers: Vec<LayerUsage> = of_layer
            .into_iter()
            .map(|(diff_id, images)| LayerUsage {
                diff_id,
                unpacked: usage(&self.layer_path(diff_id)),
                packed: self.layer_origin(diff_id).map_or(0, |origin| usage(&self.blob_path(origin.digest))),
                images,
            })
            .collect();
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.unpacked + layer.packed));
        let garbage = self.content()?.into_iter().filter(|path| !users.contains_key(path));
        Ok(DiskUsage {
            images: list,
            layers,
            layers_size: sizes.values().sum(),
            reclaimable: garbage.map(|path| usage(&path)).sum(),
            temporary: usage(&self.path("tmp")),
            total: usage(&self.root),
            quota: self.quota,
        })
    }
}
