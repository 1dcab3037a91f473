//! Clusters: this engine is not part of one, and says so in Docker's words.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;

use crate::App;
use crate::error::ApiError;

pub fn routes() -> Router<App> {
    ["swarm", "nodes", "services", "tasks", "secrets", "configs"].into_iter().fold(
        Router::new(),
        |router, name| {
            router.route(&format!("/{name}"), any(none)).route(&format!("/{name}/{{*rest}}"), any(none))
        },
    )
}

async fn none() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Bulkhead has no swarm mode: containers are of this host.",
    )
}
