//! `containers/create`, `rename` and `update`.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use bollard_stubs::models::{ContainerCreateResponse, ContainerUpdateResponse};
use serde::Serialize;

use crate::App;
use crate::body::{self, JsonBody, json, json_with};
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::Answer;
use crate::translate::{create, host_config};

/// Longest name of a container.
const MAX_NAME: usize = 255;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/containers/create", post(create_one))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/update", post(update))
}

/// A container's name without the slash that `inspect` shows.
fn name(text: &str) -> Result<String, ApiError> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || name.len() < 2 || name.len() > MAX_NAME || !name.bytes().all(plain) {
        return Err(ApiError::bad(format!(
            "Invalid container name ({name:.64}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    Ok(name.to_owned())
}

async fn create_one(State(app): State<App>, query: Query, body: JsonBody) -> Answer {
    let name = query.text("name").map(name).transpose()?;
    let mut config = create::container(body.fields()?, &app.engine)?;
    config.platform = query.text("platform").unwrap_or_default().to_owned();
    let created = app.engine.create(name, config).await?;
    if let Some(notice) = &created.notice {
        tracing::warn!(notice, "what executes containers here was measured");
    }
    let docker = ContainerCreateResponse { id: created.container.id, warnings: created.warnings };
    json_with(StatusCode::CREATED, &Made { docker, notice: created.notice })
}

/// Docker's answer, and a line for people that is no warning.
#[derive(Serialize)]
struct Made {
    #[serde(flatten)]
    docker: ContainerCreateResponse,
    #[serde(rename = "Notice", skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

async fn rename(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let new = query.text("name").ok_or_else(|| ApiError::bad("Neither old nor new names may be empty"))?;
    app.engine.rename(&id, &name(new)?)?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn update(State(app): State<App>, Path(id): Path<String>, body: JsonBody) -> Answer {
    let (limits, restart) = host_config::update(body.fields()?)?;
    let warnings = app.engine.update(&id, limits, restart).await?;
    json(&ContainerUpdateResponse { warnings: Some(warnings) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words() {
        assert_eq!(name("/web").unwrap(), "web");
        assert_eq!(name("web_1.a-b").unwrap(), "web_1.a-b");
        for bad in ["", "/", "a", "-web", ".web", "a b", "a/b", "wéb", &"a".repeat(256)] {
            assert_eq!(name(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
