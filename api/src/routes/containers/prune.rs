//! `containers/prune`: takes away those that do not run.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bollard_stubs::models::ContainerPruneResponse;
use engine::model::{Container, now};

use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::routes::Answer;
use crate::times;

pub fn routes() -> Router<App> {
    Router::new().route("/containers/prune", post(prune))
}

/// The filter `until`: a point in time, or how long ago it was.
pub(in crate::routes) fn until(filters: &Filters) -> Result<Option<i64>, ApiError> {
    match filters.values("until") {
        [] => Ok(None),
        [text] => match times::duration(text) {
            Some(ago) => Ok(Some(now().saturating_sub(ago))),
            None => times::parse("until", text).map(Some),
        },
        _ => Err(ApiError::bad("more than one until filter specified")),
    }
}

async fn prune(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["label", "label!", "until"])?;
    let until = until(&filters)?;
    let old = |container: &Container| until.is_none_or(|time| container.created < time);
    let (deleted, freed) =
        app.engine.prune(|container| old(container) && filters.labels(&container.config.labels)).await?;
    json(&ContainerPruneResponse {
        containers_deleted: Some(deleted),
        space_reclaimed: Some(i64::try_from(freed).unwrap_or(i64::MAX)),
    })
}
