//! OCI image layouts (OCI image spec, image-layout.md), as a directory or in a tar file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::{LayerBlob, Origin, Resolved, check_document_size, complete, verify, walk_to_manifest};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, Index, Platform, choose, parse_document};
use crate::reference::Reference;

enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

pub(crate) struct Layout {
    files: Files,
    tag: Option<String>,
    place: String,
}

impl Layout {
    pub(crate) fn directory(path: &Path, tag: Option<&str>) -> Result<Self> {
        let place = path.display().to_string();
        if !path.is_dir() {
            return Err(Error::NotFound { what: format!("{place} is not a directory") });
        }
        if !path.join("index.json").is_file() {
            return Err(Error::NotFound {
                what: format!("{place} has no index.json: it is not an OCI layout"),
            });
        }
        let files = Files::Directory(path.to_path_buf());
        Ok(Self { files, tag: tag.map(str::to_owned), place: format!("oci:{place}") })
    }

    pub(crate) fn archive(
        path: &Path,
        spool: Option<&Path>,
        tag: Option<&str>,
        limits: &Limits,
    ) -> Result<Self> {
        let files = Files::Archive(Archive::open(path, spool, limits)?);
        let place = format!("oci-archive:{}", path.display());
        Ok(Self { files, tag: tag.map(str::to_owned), place })
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        let missing = || Error::bad_image(self.place.clone(), format!("`{name}` is missing"));
        match &self.files {
            Files::Directory(path) => {
                let path = path.join(name);
                let file = File::open(&path).map_err(|e| match e.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => Error::io("read", &path, e),
                })?;
                Ok(Box::new(file))
            }
            Files::Archive(archive) => Ok(Box::new(archive.open_member(name).ok_or_else(missing)?)),
        }
    }

    fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut input = self.open(name)?.take(limits.document + 1);
        input.read_to_end(&mut bytes).map_err(|e| Error::io("read", &self.place, e))?;
        if bytes.len() as u64 > limits.document {
            let place = format!("{}: {name}", self.place);
            return Err(Error::Limit { place, what: "size", limit: limits.document });
        }
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor, what: &str, limits: &Limits) -> Result<Vec<u8>> {
        let what = format!("{what} of {}", self.place);
        check_document_size(descriptor, &what, limits)?;
        let bytes = self.document(&blob_name(descriptor.digest), limits)?;
        verify(&bytes, descriptor, &what)?;
        Ok(bytes)
    }

    /// The descriptor in `index.json` that was asked for.
    fn select(&self, index: &Index, platform: &Platform) -> Result<Descriptor> {
        let Some(tag) = &self.tag else {
            // Nothing asked: the only name there is. Umoci and buildkit keep one entry per tag.
            return match index.manifests.as_slice() {
                [] => Err(Error::NotFound { what: format!("{} holds no image", self.place) }),
                [one] => Ok(one.clone()),
                // One image of several names.
                [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => {
                    Ok(first.clone())
                }
                many => {
                    let named: Vec<&str> = many.iter().filter_map(Descriptor::ref_name).collect();
                    if named.is_empty() {
                        return choose(index, platform, &self.place).cloned();
                    }
                    if let Some(latest) = many.iter().find(|d| d.ref_name() == Some("latest")) {
                        return Ok(latest.clone());
                    }
                    Err(self.no_tag("latest", index))
                }
            };
        };
        let matches = |d: &&Descriptor| {
            if d.image_name() == Some(tag) {
                return true;
            }
            d.ref_name().is_some_and(|name| {
                name == tag || name.rsplit_once(':').is_some_and(|(_, t)| t == tag && !t.contains('/'))
            })
        };
        let found: Vec<Descriptor> = index.manifests.iter().filter(matches).cloned().collect();
        match found.as_slice() {
            [] => Err(self.no_tag(tag, index)),
            [one] => Ok(one.clone()),
            _ => choose(&Index { manifests: found.clone() }, platform, &self.place).cloned(),
        }
    }

    /// The images that have whole names: what selects each, and its names.
    pub(super) fn names(&self, limits: &Limits) -> Result<Vec<(Option<String>, Vec<Reference>)>> {
        let place = format!("{}: index.json", self.place);
        let Document::Index(index) = parse_document(&self.document("index.json", limits)?, &place, limits)?
        else {
            return Err(Error::bad_image(place, "it is not an image index"));
        };
        let mut found: Vec<(Digest, String, Vec<Reference>)> = Vec::new();
        for descriptor in &index.manifests {
            let Some(name) = descriptor.image_name() else { continue };
            let reference = name.parse()?;
            match found.iter_mut().find(|(digest, ..)| *digest == descriptor.digest) {
                Some((_, _, names)) => names.push(reference),
                None => found.push((descriptor.digest, name.to_owned(), vec![reference])),
            }
        }
        Ok(found.into_iter().map(|(_, select, names)| (Some(select), names)).collect())
    }

    fn no_tag(&self, tag: &str, index: &Index) -> Error {
        Error::NoSuchTag {
            tag: tag.to_owned(),
            place: self.place.clone(),
            have: index
                .manifests
                .iter()
                .filter_map(Descriptor::ref_name)
                .take(20)
                .map(|name| name.chars().take(100).collect())
                .collect(),
        }
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Origin for Layout {
    fn resolve(&self, platform: &Platform, limits: &Limits) -> Result<Resolved> {
        let bytes = self.document("index.json", limits)?;
        let place = format!("{}: index.json", self.place);
        let Document::Index(index) = parse_document(&bytes, &place, limits)? else {
            return Err(Error::bad_image(place, "it is not an image index"));
        };
        let start = self.select(&index, platform)?;
        let fetch = |descriptor: &Descriptor| {
            let what = if descriptor.is_index() { "index" } else { "manifest" };
            self.blob(descriptor, what, limits)
        };
        let (bytes, manifest) = walk_to_manifest(start, platform, &self.place, limits, &fetch)?;
        let config = self.blob(&manifest.config, "configuration", limits)?;
        complete(bytes, manifest, config, platform, &self.place, limits)
    }

    fn layer<'a>(&'a self, image: &Resolved, number: usize) -> Result<Box<dyn Read + Send + 'a>> {
        match image.layers.get(number) {
            Some(LayerBlob { digest: Some(digest), .. }) => self.open(&blob_name(*digest)),
            _ => Err(Error::bad_image(self.place.clone(), "no such layer")),
        }
    }
}
