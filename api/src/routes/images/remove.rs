//! `DELETE images/{name}`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use bollard_stubs::models::ImageDeleteResponseItem;
use engine::Engine;
use image_unpack::{Digest, Reference, Removed};

use super::event;
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
        let removed = app.engine.remove_image(&name, force)?;
        Ok(items(&app.engine, &removed))
    })
    .await?;
    json(&items)
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
