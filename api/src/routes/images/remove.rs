//! `DELETE images/{name}`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use bollard_stubs::models::ImageDeleteResponseItem;
use engine::Engine;
use image_unpack::{Digest, Reference, Removed};

use super::{event, users};
use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::blocking;

/// Takes a name from an image, and the image away with its last name.
///
/// # Errors
/// There is no such image, or something uses it.
pub async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Response<Body>, ApiError> {
    let force = query.flag("force");
    let items = blocking(move || {
        let removed = remove_one(&app.engine, &name, force)?;
        Ok(items(&app.engine, &removed))
    })
    .await?;
    json(&items)
}

fn remove_one(engine: &Engine, name: &str, force: bool) -> Result<Removed, ApiError> {
    let store = engine.images();
    let image = store.find(name)?;
    let names =
        store.images()?.into_iter().find(|summary| summary.id == image.id).map(|summary| summary.names);
    let names: Vec<Reference> = names.unwrap_or_default();
    let by_name = image.reference.filter(|reference| names.contains(reference));
    let last = names.len() <= 1;
    if let Some(reference) = by_name.as_ref().filter(|_| !last) {
        return Ok(store.untag(reference)?);
    }
    if by_name.is_none() && !last && !force {
        let short = short(image.id);
        return Err(ApiError::conflict(format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )));
    }
    // The image would go, and with it what its containers are made of.
    if let Some(user) = users(engine, image.id)?.first() {
        let what = match &by_name {
            Some(reference) => format!("remove repository reference \"{}\"", reference.familiar()),
            None => format!("delete {}", short(image.id)),
        };
        let state = if user.state.status.is_running() { "running" } else { "stopped" };
        return Err(ApiError::conflict(format!(
            "conflict: unable to {what} (cannot be forced) - image is being used by {state} container {}",
            user.id.get(..12).unwrap_or(&user.id)
        )));
    }
    Ok(store.remove(image.id, true)?)
}

fn short(id: Digest) -> String {
    id.hex().get(..12).unwrap_or_default().to_owned()
}

/// What was removed, as an answer and as events.
pub fn items(engine: &Engine, removed: &Removed) -> Vec<ImageDeleteResponseItem> {
    let familiar = |name: &String| name.parse::<Reference>().map_or_else(|_| name.clone(), |r| r.familiar());
    let mut items = Vec::new();
    for name in removed.untagged.iter().map(familiar) {
        event(engine, "untag", &name, &name);
        items.push(ImageDeleteResponseItem { untagged: Some(name), deleted: None });
    }
    for id in removed.deleted.iter().map(Digest::to_string) {
        event(engine, "delete", &id, &id);
        items.push(ImageDeleteResponseItem { untagged: None, deleted: Some(id) });
    }
    items
}
