//! What can be told about a stored image, in the fields of Docker's API (Docker Engine API, "Inspect an image" and "Get
//! the history of an image"): these types serialise to what its clients read.

use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Store;
use super::records::{Image, ImageRecord, RefRecord};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, OCI_MANIFEST};
use crate::reference::Reference;
use crate::time;

/// Ids that [`Error::Ambiguous`] lists.
const MATCHES_MAX: usize = 20;

/// All about an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspect {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names with tags, as people write them.
    pub repo_tags: Vec<String>,
    /// Its repositories with the digest that their registries have it under.
    pub repo_digests: Vec<String>,
    /// Always empty: images have layers, not parents.
    pub parent: String,
    /// Comment of the last step of its history.
    pub comment: String,
    /// When it was built: RFC 3339, as its configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Version of the Docker that built it, if it says so.
    pub docker_version: String,
    /// Who built it.
    pub author: String,
    /// Its configuration's `config` object, as it is: also fields that nobody here knows.
    pub config: Map<String, Value>,
    /// CPU architecture, as Go names it.
    pub architecture: String,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Operating system, as Go names it.
    pub os: String,
    /// Operating system's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Bytes of the regular files of all its layers.
    pub size: u64,
    /// Its layers.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    /// What only this store knows.
    pub metadata: Metadata,
    /// Its manifest.
    pub descriptor: ManifestDescriptor,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Digests of the layers' tar streams, lowest first.
    pub layers: Vec<Digest>,
}

/// What a store knows about an image that its documents do not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    /// When it last got a name: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tag_time: Option<String>,
}

/// Where an image begins (OCI image spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDescriptor {
    /// Kind of manifest.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// One step of an image's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    /// The image's id for the last step; `<missing>` for those before it.
    pub id: String,
    /// Unix time, seconds; 0 if the image does not say.
    pub created: i64,
    /// What made it.
    pub created_by: String,
    /// The image's names, for the last step.
    pub tags: Option<Vec<String>>,
    /// Bytes of the regular files of its layer.
    pub size: u64,
    /// What its maker said.
    pub comment: String,
    /// Whether it made no layer.
    pub empty_layer: bool,
}

/// The names of an image, sorted.
pub(super) struct Names {
    pub references: Vec<Reference>,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Unix time, seconds.
    last: u64,
}

impl Names {
    /// Of the records that mean one image.
    pub(super) fn of<'a>(records: impl Iterator<Item = &'a RefRecord>) -> Self {
        let (mut references, mut tags, mut digests, mut last) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for record in records {
            let Ok(name) = record.name.parse::<Reference>() else { continue };
            if name.digest().is_none() {
                tags.push(name.familiar());
            }
            if let Some(digest) = record.remote.or(name.digest()) {
                digests.push(name.with_digest(digest).familiar());
            }
            last = last.max(record.tagged);
            references.push(name);
        }
        references.sort();
        tags.sort();
        digests.sort();
        digests.dedup();
        Self { references, tags, digests, last }
    }
}

impl Store {
    /// The stored image that a person means by `text`, by Docker's rules: a name (`latest` by default, or with the digest
    /// that its registry has it under), an id, or the beginning of an id. [`Image::reference`] is set if it was a name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`] for the beginning of several ids, [`Error::Invalid`], [`Error::Io`].
    pub fn find(&self, text: &str) -> Result<Image> {
        let _lock = self.lock_shared()?;
        let not_found = || Error::NotFound { what: text.chars().take(300).collect() };
        if let Ok(id) = text.parse::<Digest>() {
            return self.load(id)?.ok_or_else(not_found);
        }
        let name = text.parse::<Reference>();
        if let Ok(name) = &name
            && let Some(image) = self.by_name(name)?
        {
            return Ok(image);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(name.err().unwrap_or_else(not_found));
        }
        let images = self.records::<ImageRecord>("images")?;
        let mut found: Vec<Digest> =
            images.iter().map(|(_, record)| record.id).filter(|id| id.hex().starts_with(prefix)).collect();
        found.sort();
        match found.as_slice() {
            [] => Err(not_found()),
            [one] => self.load(*one)?.ok_or_else(not_found),
            many => Err(Error::Ambiguous {
                prefix: prefix.to_owned(),
                matches: many.iter().take(MATCHES_MAX).map(Digest::to_string).collect(),
            }),
        }
    }

    fn by_name(&self, name: &Reference) -> Result<Option<Image>> {
        if let Some(image) = self.lookup_locked(name)? {
            return Ok(Some(image));
        }
        let Some(digest) = name.digest() else { return Ok(None) };
        for (_, record) in self.records::<RefRecord>("refs")? {
            let Ok(other) = record.name.parse::<Reference>() else { continue };
            let same = other.registry() == name.registry() && other.repository() == name.repository();
            if same && (record.remote == Some(digest) || record.manifest == digest) {
                return self.lookup_locked(&other);
            }
        }
        Ok(None)
    }

    fn names(&self, id: Digest) -> Result<Names> {
        let records = self.records::<RefRecord>("refs")?;
        Ok(Names::of(records.iter().map(|(_, record)| record).filter(|record| record.id == id)))
    }

    /// An image's configuration as it is.
    fn document(&self, id: Digest) -> Result<Map<String, Value>> {
        // One that is not there is a wrong name, not a damaged store.
        if !self.image_path(id).exists() {
            return Err(Error::NotFound { what: id.to_string() });
        }
        serde_json::from_slice(&self.get_blob(id)?)
            .map_err(|e| Error::bad_image(id.to_string(), e.to_string()))
    }

    /// Bytes of the regular files of a layer.
    pub(super) fn layer_content(&self, diff_id: Digest) -> u64 {
        // A damaged layer is made again when it is needed; here it just cannot be counted.
        self.layer_summary(diff_id).map_or(0, |summary| summary.content_bytes)
    }

    /// All about an image.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Io`].
    pub fn inspect(&self, id: Digest) -> Result<Inspect> {
        let _lock = self.lock_shared()?;
        let mut document = self.document(id)?;
        let record = self
            .read_record::<ImageRecord>(self.image_path(id))?
            .ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        let names = self.names(id)?;
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let comment =
            match document.get("history").and_then(Value::as_array).and_then(|history| history.last()) {
                Some(last) => last.get("comment").and_then(Value::as_str).unwrap_or_default().to_owned(),
                None => text("comment"),
            };
        let layers: Vec<Digest> = record.layers.iter().map(|layer| layer.diff_id).collect();
        let path = self.blob_path(record.manifest);
        let size = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
        let manifest: Option<Manifest> = serde_json::from_slice(&self.get_blob(record.manifest)?).ok();
        let media_type = manifest.map(|m| m.media_type).filter(|kind| !kind.is_empty());
        let inspect = Inspect {
            id,
            repo_tags: names.tags,
            repo_digests: names.digests,
            parent: String::new(),
            comment,
            created: document.get("created").and_then(Value::as_str).map(str::to_owned),
            docker_version: text("docker_version"),
            author: text("author"),
            architecture: text("architecture"),
            variant: text("variant"),
            os: text("os"),
            os_version: text("os.version"),
            size: layers.iter().map(|&diff_id| self.layer_content(diff_id)).sum(),
            root_fs: RootFs { kind: "layers".into(), layers },
            metadata: Metadata { last_tag_time: (names.last > 0).then(|| time::rfc3339(names.last)) },
            descriptor: ManifestDescriptor {
                media_type: media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned()),
                digest: record.manifest,
                size,
            },
            config: match document.remove("config") {
                Some(Value::Object(config)) => config,
                _ => Map::new(),
            },
        };
        Ok(inspect)
    }

    /// The steps that made an image, the last one first.
    ///
    /// # Errors
    /// As [`Store::inspect`].
    pub fn history(&self, id: Digest) -> Result<Vec<HistoryEntry>> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Step {
            created: Option<String>,
            created_by: Option<String>,
            comment: Option<String>,
            empty_layer: bool,
        }
        let _lock = self.lock_shared()?;
        let mut document = self.document(id)?;
        let steps: Vec<Step> = match document.remove("history") {
            Some(history) if !history.is_null() => serde_json::from_value(history)
                .map_err(|e| Error::bad_image(format!("history of {id}"), e.to_string()))?,
            _ => Vec::new(),
        };
        let record = self
            .read_record::<ImageRecord>(self.image_path(id))?
            .ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        let mut layers = record.layers.iter();
        let mut entries = Vec::with_capacity(steps.len());
        let mut add = |step: Step, size| {
            entries.push(HistoryEntry {
                id: "<missing>".into(),
                created: step.created.and_then(|text| time::seconds(&text)).unwrap_or_default(),
                created_by: step.created_by.unwrap_or_default(),
                tags: None,
                size,
                comment: step.comment.unwrap_or_default(),
                empty_layer: step.empty_layer,
            });
        };
        for step in steps {
            let layer = if step.empty_layer { None } else { layers.next() };
            add(step, layer.map_or(0, |layer| self.layer_content(layer.diff_id)));
        }
        // Some builders write no history, or not all of it.
        for layer in layers {
            add(Step::default(), self.layer_content(layer.diff_id));
        }
        entries.reverse();
        if let Some(first) = entries.first_mut() {
            first.id = id.to_string();
            let tags = self.names(id)?.tags;
            first.tags = (!tags.is_empty()).then_some(tags);
        }
        Ok(entries)
    }
}
