//! The router: one file for each group of endpoints, all with a `routes` function and their handlers.

mod build;
mod bulkhead;
mod containers;
mod df;
mod distribution;
mod events;
mod exec;
mod images;
mod metrics;
mod networks;
mod plugins;
mod swarm;
mod system;
#[cfg(test)]
mod tests;
mod unpack;
mod volumes;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Response, Uri};
use axum::middleware;
use engine::Engine;

use crate::error::ApiError;
use crate::{App, observe, version};
use unpack::unpacked;

/// Everything that the API answers. In front of the paths of Docker's API there may be a version, such as `/v1.43`.
pub fn router(engine: Engine) -> Router {
    let app = App::new(engine);
    let endpoints = Router::new()
        .merge(system::routes())
        .merge(events::routes())
        .merge(df::routes())
        .merge(containers::routes())
        .merge(exec::routes())
        .merge(images::routes())
        .merge(volumes::routes())
        .merge(networks::routes())
        .merge(distribution::routes())
        .merge(plugins::routes())
        .merge(swarm::routes())
        .merge(build::routes())
        .merge(metrics::routes())
        .merge(bulkhead::routes())
        .method_not_allowed_fallback(unknown)
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(app.clone(), observe::count))
        .with_state(app);
    // The version is cut off before the path is routed, hence around the router and not on its routes.
    Router::new()
        .fallback_service(endpoints)
        .layer(middleware::from_fn(version::negotiate))
        .layer(middleware::from_fn(observe::identify))
}

/// What is not there, in Docker's words also for a method that a path does not have.
async fn unknown(method: Method, uri: Uri) -> ApiError {
    tracing::debug!(%method, path = uri.path(), "there is no such endpoint");
    ApiError::not_found("page not found")
}

/// What handlers return.
type Answer = Result<Response<Body>, ApiError>;

/// Runs what may wait for the disk in a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|e| ApiError::internal(format!("the work was broken off: {e}")))?
}
