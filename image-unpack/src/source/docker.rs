//! What `docker save` writes: a tar file with `manifest.json`, configurations and layers.

use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use super::archive::Archive;
use super::{LayerBlob, Origin, Resolved};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{Platform, parse_config};
use crate::reference::Reference;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(crate) struct DockerArchive {
    archive: Archive,
    tag: Option<String>,
    place: String,
    /// Member names of the layers of the image that was resolved.
    layers: OnceLock<Vec<String>>,
}

impl DockerArchive {
    pub(crate) fn open(
        path: &Path,
        spool: Option<&Path>,
        tag: Option<&str>,
        limits: &Limits,
    ) -> Result<Self> {
        let archive = Archive::open(path, spool, limits)?;
        let place = format!("docker-archive:{}", path.display());
        Ok(Self { archive, tag: tag.map(str::to_owned), place, layers: OnceLock::new() })
    }

    fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>> {
        let missing =
            || Error::bad_image(self.place.clone(), format!("`{}` is missing", name.escape_debug()));
        if self.archive.size(name).ok_or_else(missing)? > limits.document {
            let place = format!("{}: {name}", self.place);
            return Err(Error::Limit { place, what: "size", limit: limits.document });
        }
        let mut bytes = Vec::new();
        let mut input = self.archive.open_member(name).ok_or_else(missing)?;
        input.read_to_end(&mut bytes).map_err(|e| Error::io("read", &self.place, e))?;
        Ok(bytes)
    }

    fn items(&self, limits: &Limits) -> Result<Vec<Item>> {
        let bytes = self.document("manifest.json", limits)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::bad_image(format!("{}: manifest.json", self.place), e.to_string()))
    }

    /// What selects each image, and its names. One without a name can be selected only if it is alone.
    pub(super) fn names(&self, limits: &Limits) -> Result<Vec<(Option<String>, Vec<Reference>)>> {
        let items = self.items(limits)?;
        let alone = items.len() == 1;
        let of = |item: &Item| {
            let tags = item.repo_tags.clone().unwrap_or_default();
            let names = tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>>>()?;
            match (tags.into_iter().next(), alone) {
                (_, true) => Ok((None, names)),
                (Some(tag), _) => Ok((Some(tag), names)),
                (None, _) => Err(Error::Unsupported {
                    what: format!("{}: several images, one of them without a name", self.place),
                }),
            }
        };
        items.iter().map(of).collect()
    }

    /// All tags of all images in the archive.
    fn tags(items: &[Item]) -> Vec<String> {
        items.iter().flat_map(|item| item.repo_tags.iter().flatten()).take(20).cloned().collect()
    }

    fn select(&self, items: &[Item]) -> Result<Item> {
        let no_tag = |tag: &str| Error::NoSuchTag {
            tag: tag.to_owned(),
            place: self.place.clone(),
            have: Self::tags(items),
        };
        match (&self.tag, items) {
            (_, []) => Err(Error::NotFound { what: format!("{} holds no image", self.place) }),
            (None, [one]) => Ok(one.clone()),
            (None, _) => Err(no_tag("(none given)")),
            (Some(tag), _) => {
                let wanted = tag.parse::<Reference>().ok();
                let matches = |name: &String| {
                    name == tag
                        || name.rsplit_once(':').is_some_and(|(_, t)| t == tag)
                        || (wanted.is_some() && name.parse::<Reference>().ok() == wanted)
                };
                let found = items.iter().find(|item| item.repo_tags.iter().flatten().any(matches));
                found.cloned().ok_or_else(|| no_tag(tag))
            }
        }
    }
}

impl Origin for DockerArchive {
    fn resolve(&self, platform: &Platform, limits: &Limits) -> Result<Resolved> {
        let item = self.select(&self.items(limits)?)?;
        let config_bytes = self.document(&item.config, limits)?;
        let id = Digest::of(&config_bytes);
        // The configuration is named by its digest, in the old form and in the new.
        let name = item.config.rsplit('/').next().unwrap_or_default();
        if let Some(expected) = Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
            && expected != id
        {
            let what = format!("configuration of {}", self.place);
            return Err(Error::DigestMismatch { what, expected, found: id });
        }
        let members = item.layers.unwrap_or_default();
        if members.len() > limits.layers {
            let limit = limits.layers as u64;
            return Err(Error::Limit { place: self.place.clone(), what: "number of layers", limit });
        }
        let (config, diff_ids) = parse_config(&config_bytes, &self.place, members.len(), platform, limits)?;
        let layers = members
            .iter()
            .zip(diff_ids)
            .map(|(member, diff_id)| {
                let size = self.archive.size(member).ok_or_else(|| {
                    Error::bad_image(self.place.clone(), format!("`{}` is missing", member.escape_debug()))
                })?;
                Ok(LayerBlob { diff_id, digest: None, size: Some(size) })
            })
            .collect::<Result<_>>()?;
        let _ = self.layers.set(members);
        let place = self.place.clone();
        Ok(Resolved { id, config, config_bytes, manifest: None, layers, named: None, place })
    }

    fn layer<'a>(&'a self, _image: &Resolved, number: usize) -> Result<Box<dyn Read + Send + 'a>> {
        let member = self.layers.get().and_then(|layers| layers.get(number));
        let input = member.and_then(|member| self.archive.open_member(member));
        match input {
            Some(input) => Ok(Box::new(input)),
            None => Err(Error::bad_image(self.place.clone(), "a layer is missing")),
        }
    }
}
