//! `commit`: an image of a container's changes.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use engine::CommitOptions;
use serde_json::{Map, Value};

use crate::App;
use crate::body::{JsonBody, made};
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::{Answer, images};

pub fn routes() -> Router<App> {
    Router::new().route("/commit", post(commit))
}

async fn commit(State(app): State<App>, query: Query, body: JsonBody) -> Answer {
    let id = query.text("container").ok_or_else(|| ApiError::bad("no container specified"))?;
    let reference = query.text("repo").map(|repo| images::reference(repo, query.text("tag"))).transpose()?;
    // A body that is null, or an object without anything in it, changes nothing.
    let config: Option<Map<String, Value>> = body.read()?;
    let config = config.filter(|config| !config.is_empty());
    let options = CommitOptions {
        reference,
        message: query.text("comment").unwrap_or_default().to_owned(),
        author: query.text("author").unwrap_or_default().to_owned(),
        changes: query.all("changes").flat_map(str::lines).map(str::to_owned).collect(),
        config,
        pause: query.flag_or("pause", true),
    };
    let id = app.engine.commit(id, options).await?;
    made(&id)
}
