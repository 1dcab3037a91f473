//! `save` and `load`: images in one tar file that is an OCI image layout and a docker-archive at once, as Docker
//! itself writes since version 25.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::Store;
use super::records::Image;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, OCI_INDEX, OCI_MANIFEST, Platform};
use crate::progress::Progress;
use crate::reference::{Reference, Source};
use crate::source::images_of_archive;

/// What an archive without a path is called in errors.
const STREAM: &str = "the archive";

impl Store {
    /// Writes images and their names to `out`. The same images and names give the same bytes.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an image that the store lacks, [`Error::Corrupt`], [`Error::DiskFull`].
    pub fn save(&self, images: &[(Digest, Vec<Reference>)], out: impl Write) -> Result<()> {
        let _lock = self.lock_shared()?;
        let failed = |e| Error::io("write", "the archive", e);
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        let (mut manifests, mut items) = (Vec::new(), Vec::new());
        for (id, names) in images {
            let image = self.load(*id)?.ok_or_else(|| Error::NotFound { what: id.to_string() })?;
            let bytes = self.get_blob(image.manifest)?;
            let manifest: Manifest = serde_json::from_slice(&bytes)
                .map_err(|e| Error::bad_image(image.manifest.to_string(), e.to_string()))?;
            blobs.insert(image.manifest, bytes.len() as u64);
            blobs.insert(manifest.config.digest, manifest.config.size);
            blobs.extend(manifest.layers.iter().map(|layer| (layer.digest, layer.size)));
            let media_type = if manifest.media_type.is_empty() { OCI_MANIFEST } else { &manifest.media_type };
            let names: BTreeSet<&Reference> = names.iter().collect();
            let describe = |annotations: Value| {
                json!({"mediaType": media_type, "digest": image.manifest, "size": bytes.len(),
                       "annotations": annotations})
            };
            if names.is_empty() {
                manifests.push(describe(json!({})));
            }
            for name in &names {
                manifests.push(describe(json!({
                    "io.containerd.image.name": name.to_string(),
                    "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
                })));
            }
            let blob_name = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
            items.push(json!({
                "Config": blob_name(manifest.config.digest),
                "RepoTags": names.iter().map(|name| name.familiar()).collect::<Vec<_>>(),
                "Layers": manifest.layers.iter().map(|l| blob_name(l.digest)).collect::<Vec<_>>(),
            }));
        }
        let mut tar = tar::Builder::new(out);
        let mut put = |name: &str, size: u64, content: &mut dyn Read, dir: bool| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(if dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
            header.set_mode(if dir { 0o755 } else { 0o644 });
            header.set_size(size);
            header.set_mtime(0);
            tar.append_data(&mut header, name, content).map_err(failed)
        };
        put("blobs/", 0, &mut std::io::empty(), true)?;
        put("blobs/sha256/", 0, &mut std::io::empty(), true)?;
        for (digest, size) in blobs {
            let path = self.blob_path(digest);
            let corrupt = |reason: &str| Error::Corrupt { path: path.clone(), reason: reason.into() };
            let file = File::open(&path).map_err(|_| corrupt("it is missing"))?;
            if file.metadata().map_err(|e| Error::io("read", &path, e))?.len() != size {
                return Err(corrupt("it has another size"));
            }
            put(&format!("blobs/sha256/{}", digest.hex()), size, &mut file.take(size), false)?;
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        for (name, document) in [
            ("index.json", index),
            ("manifest.json", Value::Array(items)),
            ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ] {
            let text = document.to_string();
            put(name, text.len() as u64, &mut text.as_bytes(), false)?;
        }
        tar.finish().and_then(|()| tar.into_inner()?.flush()).map_err(failed)
    }

    /// Makes all images of an archive ready, with the names it gives them. It may be compressed (gzip, zstd). Returns each
    /// image once for each of its names.
    ///
    /// # Errors
    /// Any [`Error`]; images before the one that failed are kept.
    pub fn load_archive(
        &self,
        path: &Path,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        self.tidy_if_full(|| {
            let _lock = self.lock_shared()?;
            let source = Source::DockerArchive { path: path.to_path_buf(), tag: None };
            let spool = self.spool_if_packed(&source)?;
            self.load_locked(path, spool.as_ref().map(|spool| spool.file.as_path()), platform, progress)
        })
    }

    /// As [`Store::load_archive`], of an archive that comes through a pipe, compressed or not. It is kept in the store's
    /// own `tmp` until its images are made.
    ///
    /// # Errors
    /// As [`Store::load_archive`].
    pub fn load_stream(
        &self,
        input: impl Read,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        self.tidy_if_full(|| {
            let _lock = self.lock_shared()?;
            let spool = self.spool(input, STREAM)?;
            self.load_locked(Path::new(STREAM), Some(&spool.file), platform, progress)
        })
    }

    fn load_locked(
        &self,
        path: &Path,
        spool: Option<&Path>,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for (source, names) in images_of_archive(path, spool, &self.limits)? {
            let image = self.ensure_locked(&source, spool, platform, progress)?;
            if names.is_empty() {
                images.push(image);
                continue;
            }
            for name in names {
                self.name(&name, &image, None)?;
                images.push(Image { reference: Some(name), ..image.clone() });
            }
        }
        Ok(images)
    }
}
