//! `build`: not there yet, and honest about it.

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bollard_stubs::models::BuildPruneResponse;
use tokio::io::AsyncReadExt as _;

use super::Answer;
use crate::App;
use crate::body::{self, json};
use crate::error::ApiError;

/// Most bytes of a context that are read before the answer.
const MAX_CONTEXT: u64 = 1 << 30;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/build", post(build))
        .route("/build/cancel", post(build))
        .route("/build/prune", post(prune))
        .route("/session", post(session))
}

/// The context is read and thrown away: a client that is still sending would not read the answer.
async fn build(body: Body) -> ApiError {
    let mut context = body::reader(body).take(MAX_CONTEXT);
    // Whether it was whole does not matter.
    let _ = tokio::io::copy(&mut context, &mut tokio::io::sink()).await;
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
