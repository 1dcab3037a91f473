//! Where images come from. Each source resolves a name to documents that are checked, and opens layers as streams
//! that are not: the layer pipeline checks them.

mod archive;
mod docker;
mod layout;

use std::io::Read;
use std::path::Path;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, Manifest, Platform, choose, parse_config, parse_document};
use crate::progress::Progress;
use crate::reference::{Reference, Source};
use crate::registry::{Registries, Remote};

/// A layer as its source knows it.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    pub diff_id: Digest,
    /// Digest and size of its (compressed) bytes. A docker-archive does not name its digests.
    pub digest: Option<Digest>,
    pub size: Option<u64>,
}

/// One image of a source: all that is known before a layer is read.
pub(crate) struct Resolved {
    pub id: Digest,
    pub config: ImageConfiguration,
    pub config_bytes: Vec<u8>,
    /// The manifest as the source has it; `None` for a docker-archive, which has none.
    pub manifest: Option<Vec<u8>>,
    pub layers: Vec<LayerBlob>,
    /// Digest of what a registry's name stands for: this manifest, or an index that led to it.
    pub named: Option<Digest>,
    /// The source, for errors.
    pub place: String,
}

/// A source, opened.
pub(crate) trait Origin: Sync {
    /// Finds the image for `platform`.
    fn resolve(&self, platform: &Platform, limits: &Limits) -> Result<Resolved>;

    /// A layer's bytes. Errors inside the stream are [`Error`]s in [`std::io::Error`].
    fn layer<'a>(&'a self, image: &Resolved, number: usize) -> Result<Box<dyn Read + Send + 'a>>;
}

/// Opens a source. `spool` is where the archive it names was unpacked to, if it is compressed.
pub(crate) fn open<'a>(
    source: &'a Source,
    spool: Option<&Path>,
    limits: &'a Limits,
    registries: &'a Registries,
    progress: &'a dyn Progress,
) -> Result<Box<dyn Origin + 'a>> {
    Ok(match source {
        Source::Layout { path, tag } => Box::new(layout::Layout::directory(path, tag.as_deref())?),
        Source::LayoutArchive { path, tag } => {
            Box::new(layout::Layout::archive(path, spool, tag.as_deref(), limits)?)
        }
        Source::DockerArchive { path, tag } => {
            Box::new(docker::DockerArchive::open(path, spool, tag.as_deref(), limits)?)
        }
        Source::Registry(reference) => Box::new(Remote::new(reference, registries, progress)?),
    })
}

/// Walks from a descriptor to a manifest. Indexes may point at indexes, but not for ever.
pub(crate) fn walk_to_manifest(
    start: Descriptor,
    platform: &Platform,
    place: &str,
    limits: &Limits,
    fetch: &dyn Fn(&Descriptor) -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, Manifest)> {
    let mut descriptor = start;
    for _ in 0..4 {
        let bytes = fetch(&descriptor)?;
        match parse_document(&bytes, place, limits)? {
            Document::Manifest(manifest) => return Ok((bytes, *manifest)),
            Document::Index(index) => descriptor = choose(&index, platform, place)?.clone(),
        }
    }
    Err(Error::bad_image(place, "indexes are nested more than 3 deep"))
}

/// Completes a manifest with its configuration.
pub(crate) fn complete(
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    platform: &Platform,
    place: &str,
    limits: &Limits,
) -> Result<Resolved> {
    let (config, diff_ids) = parse_config(&config_bytes, place, manifest.layers.len(), platform, limits)?;
    let layers = manifest
        .layers
        .into_iter()
        .zip(diff_ids)
        .map(|(d, diff_id)| LayerBlob { diff_id, digest: Some(d.digest), size: Some(d.size) })
        .collect();
    Ok(Resolved {
        id: manifest.config.digest,
        config,
        config_bytes,
        manifest: Some(manifest_bytes),
        layers,
        named: None,
        place: place.to_owned(),
    })
}

/// Checks a document against the descriptor that named it.
pub(crate) fn verify(bytes: &[u8], descriptor: &Descriptor, what: &str) -> Result<()> {
    if bytes.len() as u64 != descriptor.size {
        let found = bytes.len() as u64;
        return Err(Error::SizeMismatch { what: what.to_owned(), expected: descriptor.size, found });
    }
    let found = Digest::of(bytes);
    if found != descriptor.digest {
        return Err(Error::DigestMismatch { what: what.to_owned(), expected: descriptor.digest, found });
    }
    Ok(())
}

/// Refuses a document whose descriptor promises too much.
pub(crate) fn check_document_size(descriptor: &Descriptor, what: &str, limits: &Limits) -> Result<()> {
    if descriptor.size > limits.document {
        return Err(Error::Limit { place: what.to_owned(), what: "size", limit: limits.document });
    }
    Ok(())
}

/// The images of an archive, and the names it gives them. One that is an OCI layout too is taken as that: it has the
/// manifests as they were.
pub(crate) fn images_of_archive(
    path: &Path,
    spool: Option<&Path>,
    limits: &Limits,
) -> Result<Vec<(Source, Vec<Reference>)>> {
    let members = archive::Archive::open(path, spool, limits)?;
    let (layout, docker) = (members.size("index.json").is_some(), members.size("manifest.json").is_some());
    let path = path.to_path_buf();
    if layout {
        let named = layout::Layout::archive(&path, spool, None, limits)?.names(limits)?;
        if !named.is_empty() {
            let source = |tag| Source::LayoutArchive { path: path.clone(), tag };
            return Ok(named.into_iter().map(|(tag, names)| (source(tag), names)).collect());
        }
    }
    if docker {
        let named = docker::DockerArchive::open(&path, spool, None, limits)?.names(limits)?;
        let source = |tag| Source::DockerArchive { path: path.clone(), tag };
        return Ok(named.into_iter().map(|(tag, names)| (source(tag), names)).collect());
    }
    Ok(vec![(Source::LayoutArchive { path, tag: None }, Vec::new())])
}
