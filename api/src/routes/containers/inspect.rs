//! `containers/{id}/json`, `changes` and `export`.

use agent::protocol::ChangeKind;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use bollard_stubs::models::{ChangeType, FilesystemChange};

use crate::App;
use crate::body::{bytes, json};
use crate::query::Query;
use crate::routes::Answer;
use crate::translate::inspect;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/json", get(show))
        .route("/containers/{id}/changes", get(changes))
        .route("/containers/{id}/export", get(export))
}

async fn show(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let container = app.engine.container(&id)?;
    let mut shown = inspect::show(&container, &app.engine, app.engine.execs_of(&container)?)?;
    if query.flag("size") {
        let (writable, root) = super::disk_size(&container, &app.engine).await;
        shown.size_rw = Some(writable);
        shown.size_root_fs = Some(root);
    }
    json(&shown)
}

async fn changes(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let changes = app.engine.changes(&id).await?;
    let change = |change: agent::protocol::Change| FilesystemChange {
        path: change.path,
        kind: match change.kind {
            ChangeKind::Modified => ChangeType::_0,
            ChangeKind::Added => ChangeType::_1,
            ChangeKind::Deleted => ChangeType::_2,
        },
    };
    json(&changes.into_iter().map(change).collect::<Vec<_>>())
}

async fn export(State(app): State<App>, Path(id): Path<String>) -> Answer {
    Ok(bytes("application/x-tar", app.engine.export(&id).await?))
}
