//! `start`, `stop`, `restart`, `kill`, `pause`, `unpause`, `resize`, and removal.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, post};
use engine::model::Size;

use crate::App;
use crate::body::{self, JsonBody};
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::Answer;
use crate::translate::create::signal_number;

/// SIGKILL.
const KILL: u8 = 9;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}", delete(remove))
}

/// 204, or 304 where nothing was to be done.
fn changed(changed: bool) -> Answer {
    Ok(body::empty(if changed { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }))
}

async fn start(State(app): State<App>, Path(id): Path<String>, query: Query, body: JsonBody) -> Answer {
    if query.text("checkpoint").is_some() || query.text("checkpoint-dir").is_some() {
        return Err(ApiError::refused("--checkpoint", "containers have no checkpoints here", "leave it out"));
    }
    if !body.is_empty() && !body.fields()?.is_empty() {
        // Docker took a HostConfig here until 1.24.
        return Err(ApiError::bad(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    changed(app.engine.start(&id).await?)
}

/// The parameters `signal` and `t` of `stop` and `restart`.
fn patience(query: &Query) -> Result<(Option<u8>, Option<i64>), ApiError> {
    Ok((query.text("signal").map(signal_number).transpose()?, query.number("t")?))
}

async fn stop(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let (signal, timeout) = patience(&query)?;
    changed(app.engine.stop(&id, signal, timeout).await?)
}

async fn restart(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let (signal, timeout) = patience(&query)?;
    app.engine.restart(&id, signal, timeout).await?;
    changed(true)
}

async fn kill(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let signal = query.text("signal").map_or(Ok(KILL), signal_number)?;
    match app.engine.kill(&id, signal).await {
        Ok(()) => changed(true),
        Err(engine::EngineError::NotRunning(name)) => {
            Err(ApiError::conflict(format!("cannot kill container: {id}: container {name} is not running")))
        }
        Err(other) => Err(other.into()),
    }
}

async fn pause(State(app): State<App>, Path(id): Path<String>) -> Answer {
    app.engine.pause(&id).await?;
    changed(true)
}

async fn unpause(State(app): State<App>, Path(id): Path<String>) -> Answer {
    app.engine.unpause(&id).await?;
    changed(true)
}

/// The parameters `h` and `w` of a terminal.
pub(in crate::routes) fn size(query: &Query) -> Result<Size, ApiError> {
    let number = |name: &str| -> Result<u16, ApiError> {
        let value = query.number(name)?.unwrap_or_default();
        u16::try_from(value)
            .map_err(|_| ApiError::bad(format!("{name}: {value} is not a number of characters")))
    };
    Ok(Size { rows: number("h")?, columns: number("w")? })
}

async fn resize(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    app.engine.resize(&id, size(&query)?).await?;
    Ok(body::empty(StatusCode::OK))
}

async fn remove(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    if query.flag("link") {
        return Err(ApiError::refused("--link", "containers have no links here", "leave it out"));
    }
    app.engine.remove(&id, query.flag("force"), query.flag("v")).await?;
    changed(true)
}
