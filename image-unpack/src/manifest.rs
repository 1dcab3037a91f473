//! The documents that describe an image (OCI image spec: image-index.md, manifest.md, descriptor.md; Docker image
//! manifest v2 schema 2), read with bounds and checked before use.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a manifest request accepts, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// An image's platform, as Docker writes it: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, as Go names it.
    pub os: String,
    /// CPU architecture, as Go names it.
    pub architecture: String,
    /// CPU variant, if it matters.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// Linux on this machine's CPU.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

impl Platform {
    /// Linux on this machine's CPU.
    pub fn host() -> Self {
        Self::default()
    }

    /// How well `offer` serves this platform; the least number is best, `None` is not at all.
    fn distance(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u8> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        let level = |variant: Option<&str>| -> Option<u8> {
            match (self.architecture.as_str(), variant.filter(|v| !v.is_empty())) {
                ("arm64", None) => Some(8),
                ("arm", None) => Some(7),
                ("amd64", None) => Some(1),
                (_, None) => Some(0),
                (_, Some(v)) => v.strip_prefix('v').unwrap_or(v).split('.').next()?.parse().ok(),
            }
        };
        let (want, have) = (level(self.variant.as_deref()), level(variant));
        match (want, have) {
            // A CPU runs what was built for its own level or a lower one.
            (Some(want), Some(have)) => want.checked_sub(have),
            _ => (self.variant.as_deref() == variant).then_some(0),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ok = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(ok) || !(2..=3).contains(&parts.len()) {
            return Err(Error::invalid("platform", text, "expected OS/ARCHITECTURE[/VARIANT]"));
        }
        let architecture = match parts[1] {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: parts[0].to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: parts.get(2).map(|v| (*v).to_owned()),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = self.variant.as_deref().filter(|v| !v.is_empty()) {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

/// A pointer to content (descriptor.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<RawPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations>,
}

/// The annotations that are read; a hostile index may have a hundred thousand others.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Annotations {
    #[serde(default, rename = "org.opencontainers.image.ref.name", skip_serializing_if = "Option::is_none")]
    ref_name: Option<String>,
    #[serde(default, rename = "io.containerd.image.name", skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(default, rename = "vnd.docker.reference.type", skip_serializing_if = "Option::is_none")]
    reference_type: Option<String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    /// The name that an image layout gives it.
    pub(crate) fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.ref_name.as_deref()
    }

    /// The whole name that Docker and containerd give it in a layout.
    pub(crate) fn image_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.image_name.as_deref()
    }

    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }

    fn is_attestation(&self) -> bool {
        self.annotations.as_ref().is_some_and(|a| a.reference_type.is_some())
    }
}

/// An image index or Docker manifest list.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The platforms that it has images for, as far as it says.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = Platform> {
        let images = self.manifests.iter().filter(|d| !d.is_attestation());
        images.filter_map(|d| d.platform.clone()).map(|p| Platform {
            os: p.os,
            architecture: p.architecture,
            variant: p.variant,
        })
    }
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// A manifest document is one or the other, whatever its media type claims.
pub(crate) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// Reads a manifest or an index. `place` names it in errors.
///
/// # Errors
/// [`Error::BadImage`], [`Error::Unsupported`] (schema 1, artifacts), [`Error::Limit`].
pub(crate) fn parse_document(bytes: &[u8], place: &str, limits: &Limits) -> Result<Document> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: Option<u32>,
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let bad = |reason: String| Error::bad_image(place, reason);
    let probe: Probe = serde_json::from_slice(bytes).map_err(|e| bad(format!("malformed JSON: {e}")))?;
    match probe.schema_version {
        Some(2) => {}
        Some(1) => return Err(Error::Unsupported { what: format!("{place}: Docker manifest schema 1") }),
        _ => return Err(bad("it is not an image manifest: schemaVersion is not 2".into())),
    }
    match (probe.manifests.is_some(), probe.layers.is_some()) {
        // image-index.md: a document that could be read both ways is an attack on whoever reads it the other way.
        (true, true) => Err(bad("it has both `manifests` and `layers`".into())),
        (false, false) => Err(bad("it has neither `manifests` nor `layers`".into())),
        (true, false) => {
            if !matches!(probe.media_type.as_str(), "" | OCI_INDEX | DOCKER_LIST) {
                return Err(bad(format!("an index with media type `{}`", short(&probe.media_type))));
            }
            let index: Index = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
            Ok(Document::Index(index))
        }
        (false, true) => {
            if !matches!(probe.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST) {
                return Err(bad(format!("a manifest with media type `{}`", short(&probe.media_type))));
            }
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
            if !matches!(manifest.config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
                let kind = short(&manifest.config.media_type);
                return Err(Error::Unsupported { what: format!("{place}: an artifact of type `{kind}`") });
            }
            if manifest.layers.len() > limits.layers {
                let limit = limits.layers as u64;
                return Err(Error::Limit { place: place.into(), what: "number of layers", limit });
            }
            for layer in &manifest.layers {
                Compression::of_media_type(&layer.media_type)?;
            }
            Ok(Document::Manifest(Box::new(manifest)))
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Chooses the manifest for `platform`.
///
/// # Errors
/// [`Error::WrongPlatform`] with what there is.
pub(crate) fn choose<'a>(index: &'a Index, platform: &Platform, place: &str) -> Result<&'a Descriptor> {
    let images = || index.manifests.iter().filter(|d| !d.is_attestation());
    let best = images()
        .filter_map(|d| {
            // An entry without a platform may be anything: the configuration will tell.
            let distance = match &d.platform {
                Some(p) if !(p.os.is_empty() || p.os == "unknown") => {
                    platform.distance(&p.os, &p.architecture, p.variant.as_deref())?
                }
                _ => u8::MAX,
            };
            Some((distance, d))
        })
        .min_by_key(|(distance, _)| *distance);
    best.map(|(_, d)| d).ok_or_else(|| Error::WrongPlatform {
        wanted: platform.to_string(),
        have: images()
            .filter_map(|d| d.platform.as_ref())
            .take(20)
            .map(|p| {
                let p = p.clone();
                short(&Platform { os: p.os, architecture: p.architecture, variant: p.variant }.to_string())
            })
            .collect(),
        place: place.to_owned(),
    })
}

/// Reads an image configuration and checks it against its manifest: platform and number of layers.
///
/// # Errors
/// [`Error::BadImage`], [`Error::WrongPlatform`].
pub(crate) fn parse_config(
    bytes: &[u8],
    place: &str,
    layers: usize,
    platform: &Platform,
    limits: &Limits,
) -> Result<(ImageConfiguration, Vec<Digest>)> {
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default, rename = "type")]
        kind: String,
        #[serde(default)]
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        variant: Option<String>,
        rootfs: RootFs,
    }
    let bad = |reason: String| Error::bad_image(format!("{place}: image configuration"), reason);
    if bytes.len() as u64 > limits.config {
        let place = format!("{place}: image configuration");
        return Err(Error::Limit { place, what: "size", limit: limits.config });
    }
    let probe: Probe = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if !matches!(probe.rootfs.kind.as_str(), "" | "layers") {
        return Err(bad(format!("rootfs type `{}`", short(&probe.rootfs.kind))));
    }
    let diff_ids = probe.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(bad(format!("{} diff_ids for {layers} layers", diff_ids.len())));
    }
    // Images without an architecture are old, and made for whoever loads them.
    if !probe.architecture.is_empty()
        && platform.distance(&probe.os, &probe.architecture, probe.variant.as_deref()).is_none()
    {
        let have = Platform {
            os: short(&probe.os),
            architecture: short(&probe.architecture),
            variant: probe.variant,
        };
        return Err(Error::WrongPlatform {
            wanted: platform.to_string(),
            have: vec![have.to_string()],
            place: place.to_owned(),
        });
    }
    Ok((read_config(bytes).map_err(bad)?, diff_ids))
}

/// Reads a configuration that was checked when it was stored.
pub(crate) fn read_config(bytes: &[u8]) -> Result<ImageConfiguration, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// How a layer is packed. The media type only has to be one we know: the bytes tell, as Docker does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Judges a media type.
    pub(crate) fn of_media_type(media_type: &str) -> Result<()> {
        let layer = media_type
            .strip_prefix("application/vnd.oci.image.layer.")
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs."));
        match layer {
            Some(
                "v1.tar"
                | "v1.tar+gzip"
                | "v1.tar+zstd"
                | "nondistributable.v1.tar"
                | "nondistributable.v1.tar+gzip"
                | "nondistributable.v1.tar+zstd"
                | "diff.tar"
                | "diff.tar.gzip"
                | "diff.tar.zstd"
                | "foreign.diff.tar"
                | "foreign.diff.tar.gzip",
            ) => Ok(()),
            _ => Err(Error::Unsupported { what: format!("layer media type `{}`", short(media_type)) }),
        }
    }

    /// Judges the first bytes of a layer.
    pub(crate) fn of_bytes(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
