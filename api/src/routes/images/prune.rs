//! `images/prune`.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bollard_stubs::models::ImagePruneResponse;
use engine::Engine;

use super::remove;
use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::routes::containers::until;
use crate::routes::{Answer, blocking};

pub fn routes() -> Router<App> {
    Router::new().route("/images/prune", post(prune))
}

async fn prune(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["dangling", "label", "label!", "until"])?;
    let response = blocking(move || prune_all(&app.engine, &filters)).await?;
    json(&response)
}

/// Removes images without a name, or with `dangling=false` all, unless a container is made of them.
fn prune_all(engine: &Engine, filters: &Filters) -> Result<ImagePruneResponse, ApiError> {
    let only_dangling = filters.flag("dangling")?.unwrap_or(true);
    let until = until(filters)?;
    let removed = engine.prune_images(|image| {
        let young = until.is_some_and(|time| image.built >= time / 1_000_000_000);
        let named = only_dangling && !image.names.is_empty();
        !named && !young && filters.labels(&image.labels)
    })?;
    let (items, freed) = (remove::items(engine, &removed), removed.freed);
    Ok(ImagePruneResponse {
        images_deleted: Some(items),
        space_reclaimed: Some(i64::try_from(freed).unwrap_or(i64::MAX)),
    })
}
