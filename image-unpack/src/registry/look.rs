//! What a registry has under a name, without fetching it: Docker's `GET /distribution/{name}/json`.

use serde::Deserialize;

use super::{Registries, Remote};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{Document, Platform, parse_document};
use crate::progress::Quiet;
use crate::reference::Reference;

/// Most platforms that are told.
const PLATFORMS_MAX: usize = 256;

/// What a registry has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Kind of manifest, or of index.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The platforms that there are images for, at most 256.
    pub platforms: Vec<Platform>,
}

impl Registries {
    /// Asks what a registry has under a name. Nothing is stored.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoSuchTag`], [`Error::AuthNeeded`], [`Error::Unreachable`], [`Error::Registry`];
    /// [`Error::BadImage`] for what is no image.
    pub fn look(&self, name: &Reference) -> Result<Found> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            variant: Option<String>,
        }
        let (limits, place) = (Limits::default(), name.to_string());
        let remote = Remote::new(name, self, &Quiet)?;
        let (descriptor, document, config) = remote.look(&limits, &|bytes| {
            Ok(match parse_document(bytes, &place, &limits)? {
                Document::Manifest(manifest) => Some(manifest.config),
                Document::Index(_) => None,
            })
        })?;
        let platforms = match (parse_document(&document, &place, &limits)?, config) {
            (Document::Index(index), _) => index.platforms().take(PLATFORMS_MAX).collect(),
            (Document::Manifest(_), Some(config)) => {
                let config: Config =
                    serde_json::from_slice(&config).map_err(|e| Error::bad_image(&place, e.to_string()))?;
                vec![Platform { os: config.os, architecture: config.architecture, variant: config.variant }]
            }
            (Document::Manifest(_), None) => Vec::new(),
        };
        Ok(Found {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            platforms,
        })
    }
}
