//! From the store to a registry.

use std::fs::File;

use super::Store;
use super::records::RefRecord;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, OCI_MANIFEST};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::Target;

impl Store {
    /// Pushes a stored image to where `target` says, as it was pulled: same manifest, same digests. Returns the
    /// manifest's digest.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the store lacks the image; [`Error::AuthNeeded`], [`Error::Unreachable`],
    /// [`Error::Registry`]; [`Error::Corrupt`].
    pub fn push(&self, id: Digest, target: &Reference, progress: &dyn Progress) -> Result<Digest> {
        let _lock = self.lock_shared()?;
        let image = self.load(id)?.ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        let bytes = self.get_blob(image.manifest)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Error::bad_image(image.manifest.to_string(), e.to_string()))?;
        // A repository of the same registry that the image came from has its layers.
        let names = self.records::<RefRecord>("refs")?;
        let from = names
            .iter()
            .filter(|(_, record)| record.id == id)
            .filter_map(|(_, record)| record.name.parse::<Reference>().ok())
            .find(|name| name.registry() == target.registry() && name.repository() != target.repository());
        let from = from.as_ref().map(Reference::repository);
        let remote = Target::new(target, &self.registries, progress)?;
        for (number, blob) in manifest.layers.iter().chain([&manifest.config]).enumerate() {
            let path = self.blob_path(blob.digest);
            let mut file = File::open(&path).map_err(|e| Error::io("read", &path, e))?;
            let sent = remote.blob(blob.digest, &mut file, from)?;
            progress.event(if sent {
                Event::LayerDone { layer: number, digest: blob.digest }
            } else {
                Event::LayerPresent { layer: number, digest: blob.digest }
            });
        }
        let media_type = if manifest.media_type.is_empty() { OCI_MANIFEST } else { &manifest.media_type };
        remote.manifest(&bytes, media_type)?;
        Ok(image.manifest)
    }
}
