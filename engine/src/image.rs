//! From an image's name to a rootfs disk, through the image store.

use std::path::Path;

use image_unpack::{Image, Platform, Progress, Source, Store};

use crate::EngineError;
use crate::model::ContainerConfig;
use crate::paths::Paths;

/// Finds an image in the store, or fetches it and makes its disk.
///
/// # Errors
/// The name is malformed, or the image cannot be found, fetched, verified or unpacked.
pub fn ensure(store: &Path, name: &str, progress: &dyn Progress) -> Result<Image, EngineError> {
    find_or_fetch(store, name, progress)
        .map_err(|source| EngineError::Image { name: name.to_owned(), source: Box::new(source) })
}

fn find_or_fetch(store: &Path, name: &str, progress: &dyn Progress) -> Result<Image, image_unpack::Error> {
    let source: Source = name.parse()?;
    let store = Store::open(store)?;
    let platform = Platform::host();
    if let Some(image) = store.cached(&source, &platform)? {
        return Ok(image);
    }
    store.ensure(&source, &platform, progress)
}

/// The image of a container, which its configuration names by id.
///
/// # Errors
/// It is not in the store any more, or damaged.
pub(crate) fn by_id(paths: &Paths, config: &ContainerConfig) -> Result<Image, EngineError> {
    let failed = |source| EngineError::Image { name: config.image.clone(), source: Box::new(source) };
    let id = config.image_id.parse().map_err(failed)?;
    let store = Store::open(&paths.images()).map_err(failed)?;
    store.by_id(id).map_err(failed)?.ok_or_else(|| EngineError::NoImage(config.image.clone()))
}
