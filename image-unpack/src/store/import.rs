//! Images that are made here: `import` of a file system in a tar file, and `commit` of a changed container.

use std::io::{Cursor, Read};

use flate2::read::GzEncoder;
use serde_json::{Map, Value, json};

use super::Store;
use super::ensure::now;
use super::layers::Making;
use super::records::Image;
use super::spool::packing;
use crate::change::Change;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{Compression, Platform, parse_config};
use crate::reference::Reference;
use crate::source::{LayerBlob, Resolved};
use crate::time;

/// What an imported image is to be.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its platform; this machine's by default.
    pub platform: Platform,
    /// Changes to its (empty) configuration, in order: Docker's `--change`.
    pub changes: Vec<Change>,
    /// The comment of its history.
    pub message: Option<String>,
    /// Its author.
    pub author: Option<String>,
    /// A name for it.
    pub name: Option<Reference>,
    /// Unix time of its creation, seconds; now by default. The same stream, options and time give the same image.
    pub created: Option<u64>,
}

/// What an image made of another is to be.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The new image's whole `config` object, in the words of the OCI image specification and of Docker (`Cmd`, `Env`,
    /// ...); the base's by default.
    pub config: Option<Map<String, Value>>,
    /// Changes to that, in order: Docker's `--change`.
    pub changes: Vec<Change>,
    /// What made the layer: a command line, for the history.
    pub created_by: Option<String>,
    /// The comment of the history.
    pub comment: Option<String>,
    /// The author.
    pub author: Option<String>,
    /// A name for it.
    pub name: Option<Reference>,
    /// The platform of an image without base; this machine's by default.
    pub platform: Platform,
    /// Unix time of its creation, seconds; now by default. The same layer, options and time give the same image.
    pub created: Option<u64>,
}

/// The base of an image in the making.
struct Base {
    config: Map<String, Value>,
    diff_ids: Vec<Digest>,
}

impl Store {
    /// Makes an image of one layer: a tar stream of a root file system, plain, gzip or zstd.
    ///
    /// A plain stream is kept as a gzip blob, so that the image can be pushed as others are.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for xz and bzip2; [`Error::BadLayer`], [`Error::Truncated`], [`Error::Limit`],
    /// [`Error::Quota`], [`Error::DiskFull`], [`Error::Invalid`] for changes that make no configuration.
    pub fn import(&self, tar: impl Read + Send, options: &ImportOptions) -> Result<Image> {
        let commit = CommitOptions {
            changes: options.changes.clone(),
            comment: options.message.clone().or_else(|| Some("Imported from a tar file".into())),
            author: options.author.clone(),
            name: options.name.clone(),
            platform: options.platform.clone(),
            created: options.created,
            ..CommitOptions::default()
        };
        self.build(None, Some(Box::new(tar)), &commit, false)
    }

    /// Makes an image of a stored one (none: of nothing), one more layer (none: only another configuration), and a
    /// configuration. The layer is a tar stream of changes with OCI whiteouts, plain, gzip or zstd; one without entries
    /// adds no layer.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a base that the store lacks; as [`Store::import`].
    pub fn commit(
        &self,
        base: Option<Digest>,
        layer: Option<Box<dyn Read + Send + '_>>,
        options: &CommitOptions,
    ) -> Result<Image> {
        self.build(base, layer, options, true)
    }

    fn build(
        &self,
        base: Option<Digest>,
        layer: Option<Box<dyn Read + Send + '_>>,
        options: &CommitOptions,
        drop_empty: bool,
    ) -> Result<Image> {
        self.tidy_if_full(|| {
            let _lock = self.lock_shared()?;
            self.build_locked(base, layer, options, drop_empty)
        })
    }

    fn build_locked(
        &self,
        base: Option<Digest>,
        layer: Option<Box<dyn Read + Send + '_>>,
        options: &CommitOptions,
        drop_empty: bool,
    ) -> Result<Image> {
        if let Some(name) = options.name.as_ref().filter(|name| name.digest().is_some()) {
            return Err(Error::invalid("image name", &name.to_string(), "a digest cannot be given"));
        }
        let place = match base {
            Some(id) => format!("the image made of {id}"),
            None => "the new image".to_owned(),
        };
        let mut base = self.base(base, &options.platform)?;
        let budget = self.budget();
        let mut empty = true;
        if let Some(input) = layer {
            if base.diff_ids.len() >= self.limits.layers {
                let limit = self.limits.layers as u64;
                return Err(Error::Limit { place, what: "number of layers", limit });
            }
            let label = format!("the new layer of {place}");
            let (diff_id, entries) = self.add_layer(&label, input, &budget)?;
            if entries > 0 || !drop_empty {
                base.diff_ids.push(diff_id);
                empty = false;
            }
        }
        let config_bytes = configuration(base.config, &base.diff_ids, options, empty)?;
        let id = Digest::of(&config_bytes);
        let document: Value = serde_json::from_slice(&config_bytes)
            .map_err(|e| Error::bad_image(place.clone(), e.to_string()))?;
        let platform = platform_of(&document);
        let (config, _) =
            parse_config(&config_bytes, &place, base.diff_ids.len(), &platform, &self.limits)
                .map_err(|e| Error::invalid("image configuration", "the changes given", e.to_string()))?;
        let layers =
            base.diff_ids.iter().map(|&diff_id| LayerBlob { diff_id, digest: None, size: None }).collect();
        let resolved = Resolved { id, config, config_bytes, manifest: None, layers, named: None, place };
        let mut image = match self.load(id)? {
            Some(image) => image,
            None => self.make_image(&resolved, &budget)?,
        };
        if let Some(name) = &options.name {
            self.name(name, &image, None)?;
            image.reference = Some(name.clone());
        }
        Ok(image)
    }

    fn base(&self, id: Option<Digest>, platform: &Platform) -> Result<Base> {
        let Some(id) = id else {
            let mut config = Map::new();
            config.insert("architecture".into(), platform.architecture.clone().into());
            config.insert("os".into(), platform.os.clone().into());
            if let Some(variant) = &platform.variant {
                config.insert("variant".into(), variant.clone().into());
            }
            return Ok(Base { config, diff_ids: Vec::new() });
        };
        let image = self.load(id)?.ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        let bytes = self.get_blob(image.id)?;
        let config =
            serde_json::from_slice(&bytes).map_err(|e| Error::bad_image(id.to_string(), e.to_string()))?;
        let diff_ids =
            image.config.rootfs().diff_ids().iter().map(|text| text.parse()).collect::<Result<_>>()?;
        Ok(Base { config, diff_ids })
    }

    /// A new layer; its digest and the number of its entries.
    fn add_layer(
        &self,
        label: &str,
        mut input: Box<dyn Read + Send + '_>,
        budget: &super::quota::Budget<'_>,
    ) -> Result<(Digest, u32)> {
        let mut head = Vec::new();
        (&mut input).take(6).read_to_end(&mut head).map_err(|e| Error::io("read", label, e))?;
        let compression = packing(&head, label)?;
        let whole = Cursor::new(head).chain(input);
        let input: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(GzEncoder::new(whole, flate2::Compression::fast())),
            _ => Box::new(whole),
        };
        // What we pack ourselves is no bomb, however well it packs.
        let ratio = if compression == Compression::None { u64::MAX } else { self.limits.ratio };
        let limits = Limits { ratio, ..self.limits.clone() };
        let making = Making {
            label,
            input,
            size: None,
            digest: None,
            diff_id: None,
            keep: true,
            limits: &limits,
            heard: &|_| {},
        };
        let (diff_id, _) = self.run_layer(making, budget)?;
        Ok((diff_id, self.layer_summary(diff_id)?.entries))
    }
}

fn platform_of(config: &Value) -> Platform {
    let text = |name: &str| config.get(name).and_then(Value::as_str).map(str::to_owned);
    Platform {
        os: text("os").unwrap_or_default(),
        architecture: text("architecture").unwrap_or_default(),
        variant: text("variant"),
    }
}

/// The new image's configuration: the base's, with what is new. Fields that nobody here knows stay.
fn configuration(
    mut document: Map<String, Value>,
    diff_ids: &[Digest],
    options: &CommitOptions,
    empty: bool,
) -> Result<Vec<u8>> {
    let created = time::rfc3339(options.created.unwrap_or_else(now));
    let mut config = match (&options.config, document.remove("config")) {
        (Some(config), _) => config.clone(),
        (None, Some(Value::Object(config))) => config,
        (None, _) => Map::new(),
    };
    Change::apply_all(&options.changes, &mut config)?;
    let mut history = match document.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    let mut entry = Map::new();
    entry.insert("created".into(), created.clone().into());
    for (key, value) in
        [("created_by", &options.created_by), ("author", &options.author), ("comment", &options.comment)]
    {
        if let Some(value) = value {
            entry.insert(key.into(), value.clone().into());
        }
    }
    if empty {
        entry.insert("empty_layer".into(), true.into());
    }
    history.push(entry.into());
    document.insert("created".into(), created.into());
    if let Some(author) = &options.author {
        document.insert("author".into(), author.clone().into());
    }
    // These tell of the base's making, not of this image's.
    for key in ["container", "container_config", "id", "parent", "docker_version"] {
        document.remove(key);
    }
    document.insert("config".into(), config.into());
    document.insert("history".into(), history.into());
    document.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    serde_json::to_vec(&document)
        .map_err(|e| Error::bad_image("the new image's configuration", e.to_string()))
}
