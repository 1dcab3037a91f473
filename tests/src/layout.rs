//! OCI image layouts made of tars.

use std::fs;
use std::path::{Path, PathBuf};

use image_unpack::Digest;

use crate::tarfile::{Pack, pack};

/// An OCI layout in the making.
pub struct Layout {
    /// Where it is.
    pub dir: PathBuf,
}

impl Layout {
    /// An empty one.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_path_buf() }
    }

    /// Adds a blob; its digest and size.
    #[must_use]
    pub fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(digest), bytes).unwrap();
        (digest, bytes.len())
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Writes the documents for layers that are blobs already: media type, digest, size and diff id of each.
    pub fn finish(&self, layers: &[(String, Digest, usize, Digest)]) -> Digest {
        let diff_ids: Vec<String> = layers.iter().map(|l| l.3.to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["A=b"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config, config_size) = self.blob(config.to_string().as_bytes());
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(kind, digest, size, _)| {
                serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": config.to_string(), "size": config_size},
            "layers": descriptors,
        });
        let (manifest, size) = self.blob(manifest.to_string().as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest.to_string(), "size": size,
                "annotations": {"org.opencontainers.image.ref.name": "t"}}],
        });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        config
    }

    /// An image of these tars.
    pub fn image(&self, tars: &[Vec<u8>], how: Pack) -> Digest {
        let layers: Vec<_> = tars
            .iter()
            .map(|tar| {
                let (bytes, kind) = pack(tar, how);
                let (digest, size) = self.blob(&bytes);
                (kind.to_owned(), digest, size, Digest::of(tar))
            })
            .collect();
        self.finish(&layers)
    }

    /// As a source of images.
    #[must_use]
    pub fn source(&self) -> image_unpack::Source {
        format!("oci:{}:t", self.dir.display()).parse().unwrap()
    }
}
