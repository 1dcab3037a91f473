//! Containers.

mod archive;
mod attach;
mod commit;
mod create;
mod inspect;
mod lifecycle;
mod list;
mod logs;
mod prune;
mod stats;
mod top;
mod wait;

use axum::Router;
use engine::Engine;
use engine::model::Container;

use super::blocking;
use crate::App;

pub(super) use attach::kind;
pub(super) use lifecycle::size;
pub(super) use prune::until;

pub fn routes() -> Router<App> {
    Router::new()
        .merge(create::routes())
        .merge(list::routes())
        .merge(inspect::routes())
        .merge(lifecycle::routes())
        .merge(wait::routes())
        .merge(attach::routes())
        .merge(logs::routes())
        .merge(archive::routes())
        .merge(stats::routes())
        .merge(top::routes())
        .merge(prune::routes())
        .merge(commit::routes())
}

/// Bytes that a container's writable disk takes on this host, and those with its image's files.
pub(super) async fn disk_size(container: &Container, engine: &Engine) -> (i64, i64) {
    let blocks = engine.writable_bytes(container);
    let image = container.config.image_id.clone();
    let engine = engine.clone();
    // An image that was removed under its container cannot be counted.
    let root = blocking(move || Ok(engine.images().find(&image)?.content_bytes)).await.unwrap_or_default();
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    (number(blocks), number(blocks.saturating_add(root)))
}
