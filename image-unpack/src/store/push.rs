//! From the store to a registry.

use std::cell::Cell;
use std::fs::File;

use super::Store;
use super::records::RefRecord;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, OCI_MANIFEST};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::{Outcome, Target};

/// Bytes between two [`Event::PushBytes`].
const REPORT: u64 = 1 << 20;

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
        // A repository of the same registry that the image has a name in may have its layers; if not, they are sent.
        let names = self.records::<RefRecord>("refs")?;
        let from = names
            .iter()
            .filter(|(_, record)| record.id == id)
            .filter_map(|(_, record)| record.name.parse::<Reference>().ok())
            .find(|name| name.registry() == target.registry() && name.repository() != target.repository());
        let from = from.as_ref().map(Reference::repository);
        let remote = Target::new(target, &self.registries, progress)?;
        for (layer, blob) in manifest.layers.iter().enumerate() {
            progress.event(Event::PushPreparing { layer, digest: blob.digest });
        }
        for (layer, blob) in manifest.layers.iter().enumerate().skip(1) {
            progress.event(Event::PushWaiting { layer, digest: blob.digest });
        }
        for (layer, blob) in manifest.layers.iter().enumerate() {
            let (digest, total) = (blob.digest, blob.size);
            let last = Cell::new(None::<u64>);
            let heard = |done: u64| {
                // A chunk that is sent again begins before what was told.
                if last.get().is_none_or(|last| done < last || done - last >= REPORT || done == total) {
                    last.set(Some(done));
                    progress.event(Event::PushBytes { layer, digest, done, total });
                }
            };
            let outcome = remote.blob(digest, &self.blob_file(digest)?, from, &heard)?;
            progress.event(match outcome {
                Outcome::Present => Event::PushPresent { layer, digest },
                Outcome::Mounted => {
                    Event::PushMounted { layer, digest, from: from.unwrap_or_default().to_owned() }
                }
                Outcome::Sent => Event::PushDone { layer, digest },
            });
        }
        let config = manifest.config.digest;
        remote.blob(config, &self.blob_file(config)?, from, &|_| {})?;
        let media_type = if manifest.media_type.is_empty() { OCI_MANIFEST } else { &manifest.media_type };
        remote.manifest(&bytes, media_type)?;
        // From now on its registry knows it under this digest.
        let path = self.ref_path(target);
        if let Some(record) = self.read_record::<RefRecord>(path.clone())?
            && record.id == id
        {
            self.write_record(&path, &RefRecord { remote: Some(image.manifest), ..record })?;
        }
        let (digest, size) = (image.manifest, bytes.len() as u64);
        progress.event(Event::Pushed { name: target.selector(), digest, size });
        Ok(digest)
    }

    fn blob_file(&self, digest: Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| Error::io("read", &path, e))
    }
}
