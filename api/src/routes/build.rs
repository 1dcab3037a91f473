//! `build`: not there yet, and honest about it.

use axum::Router;
use axum::routing::post;
use bollard_stubs::models::BuildPruneResponse;

use super::Answer;
use crate::App;
use crate::body::json;
use crate::error::ApiError;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/build", post(build))
        .route("/build/cancel", post(build))
        .route("/build/prune", post(prune))
        .route("/session", post(session))
}

async fn build() -> ApiError {
    ApiError::missing(
        "building images is not supported yet: build with another tool, then docker load its archive or pull the image; \
         or change a container and docker commit it",
    )
}

async fn prune() -> Answer {
    json(&BuildPruneResponse { caches_deleted: Some(Vec::new()), space_reclaimed: Some(0) })
}

async fn session() -> ApiError {
    ApiError::missing("sessions of BuildKit are not supported: building images is not supported yet")
}
