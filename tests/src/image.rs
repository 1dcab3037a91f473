//! Small OCI images, well formed or damaged on purpose.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image under construction.
#[derive(Default)]
pub struct ImageBuilder {
    layers: Vec<Vec<u8>>,
    config: Value,
}

/// `sha256:` and the digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

impl ImageBuilder {
    /// An image with this `config` object.
    #[must_use]
    pub fn new(config: Value) -> Self {
        Self { layers: Vec::new(), config }
    }

    /// Adds an uncompressed layer.
    #[must_use]
    pub fn layer(mut self, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        self.layers.push(tar.into_inner().unwrap());
        self
    }

    /// Adds the host's static busybox as /bin/busybox with some of its names.
    #[must_use]
    pub fn busybox_layer(self) -> Self {
        let program = fs::read("/bin/busybox").expect("busybox-static is installed");
        self.layer(|tar| {
            add_file(tar, "bin/busybox", &program, 0o755);
            for name in ["sh", "cat", "echo", "id", "ls", "pwd", "sleep", "true", "env", "head", "stat"] {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
            }
        })
    }

    /// Writes an OCI layout and returns its path.
    pub fn write(self, directory: &Path) -> PathBuf {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8], media_type: &str| {
            let digest = digest(bytes);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
            json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
        };
        let layers: Vec<Value> =
            self.layers.iter().map(|l| blob(l, "application/vnd.oci.image.layer.v1.tar")).collect();
        let diff_ids: Vec<String> = self.layers.iter().map(|l| digest(l)).collect();
        let config = json!({ "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers });
        let manifest = blob(manifest.to_string().as_bytes(), manifest_type);
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(
            directory.join("index.json"),
            json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string(),
        )
        .unwrap();
        directory.to_owned()
    }
}

/// Adds a file to a layer.
pub fn add_file(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_mtime(1_700_000_000);
    tar.append_data(&mut header, path, content).unwrap();
}
