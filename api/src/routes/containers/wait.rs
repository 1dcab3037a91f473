//! `containers/{id}/wait`: answers when a container has come to an end. The status and the headers are sent at once: `docker run`
//! waits for them before it starts the container, so that it misses no end.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use bollard_stubs::models::{ContainerWaitExitError, ContainerWaitResponse};
use bytes::Bytes;
use engine::{Engine, Until, Waiting};
use serde::Serialize;

use crate::App;
use crate::body;
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::Answer;

pub fn routes() -> Router<App> {
    Router::new().route("/containers/{id}/wait", post(wait))
}

fn until(condition: Option<&str>) -> Result<Until, ApiError> {
    match condition {
        None | Some("not-running") => Ok(Until::NotRunning),
        Some("next-exit") => Ok(Until::NextExit),
        Some("removed") => Ok(Until::Removed),
        Some(other) => Err(ApiError::bad(format!("invalid condition: \"{other}\""))),
    }
}

async fn wait(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let until = until(query.text("condition"))?;
    let waiting = app.engine.wait(&id, until).await?;
    let end = futures_util::stream::once(async move {
        Ok::<_, std::io::Error>(finish(&app.engine, waiting, until).await)
    });
    Ok(body::with_type(StatusCode::OK, "application/json", Body::from_stream(end)))
}

/// Docker's answer, and what a person should know beside the exit code.
#[derive(Serialize)]
struct Ended {
    #[serde(flatten)]
    docker: ContainerWaitResponse,
    #[serde(rename = "Hint", skip_serializing_if = "Option::is_none")]
    hint: Option<ThreeLines>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ThreeLines {
    what: String,
    why: String,
    next: String,
}

async fn finish(engine: &Engine, waiting: Waiting, until: Until) -> Bytes {
    let config = waiting.config().clone();
    let ended = waiting.finish().await;
    let hint = ended.as_ref().ok().and_then(|outcome| engine.hint(&config, outcome));
    let docker = match ended {
        Ok(outcome) => ContainerWaitResponse {
            status_code: i64::from(outcome.code),
            error: Some(outcome.error)
                // Who waits for the removal is told why that failed, not why the container did.
                .filter(|text| !text.is_empty() && until != Until::Removed)
                .map(|text| ContainerWaitExitError { message: Some(text) }),
        },
        Err(error) => ContainerWaitResponse {
            status_code: i64::from(error.exit_code()),
            error: Some(ContainerWaitExitError { message: Some(ApiError::from(error).body.message) }),
        },
    };
    // Numbers and texts only: this cannot fail.
    let hint = hint.map(|hint| ThreeLines { what: hint.what, why: hint.advice.why, next: hint.advice.next });
    let mut line = serde_json::to_vec(&Ended { docker, hint }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
