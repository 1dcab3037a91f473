//! `images/get`, `images/{name}/get` and `images/load`: images as tar archives.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use axum::routing::{get, post};
use image_unpack::{Digest, Event, Reference};
use tokio_util::io::SyncIoBridge;

use super::event;
use crate::App;
use crate::body::{self, bytes};
use crate::error::ApiError;
use crate::pipe;
use crate::progress;
use crate::query::Query;
use crate::routes::{Answer, blocking};

pub fn routes() -> Router<App> {
    Router::new().route("/images/get", get(save_many)).route("/images/load", post(load))
}

async fn save_many(State(app): State<App>, query: Query) -> Answer {
    let names: Vec<String> =
        query.all("names").flat_map(|names| names.split(',')).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(ApiError::bad("no image is named: names is empty"));
    }
    save(app, names).await
}

/// Images as one archive. A name is kept in it; an id is not a name.
///
/// # Errors
/// One of them is not there.
pub async fn save(app: App, names: Vec<String>) -> Result<Response<Body>, ApiError> {
    let engine = app.engine.clone();
    let found = blocking(move || {
        let mut found: Vec<(Digest, Vec<Reference>)> = Vec::new();
        for name in names {
            let image = engine.images().find(&name)?;
            let named = image.reference.filter(|reference| reference.digest().is_none());
            match found.iter_mut().find(|(id, _)| *id == image.id) {
                Some((_, names)) => names.extend(named),
                None => found.push((image.id, named.into_iter().collect())),
            }
        }
        Ok(found)
    })
    .await?;
    for (id, names) in &found {
        let name = names.first().map_or_else(|| id.to_string(), Reference::familiar);
        event(&app.engine, "save", &id.to_string(), &name);
    }
    let archive =
        pipe::produced(move |out| app.engine.images().save(&found, out).map_err(std::io::Error::other));
    Ok(bytes("application/x-tar", archive))
}

async fn load(State(app): State<App>, query: Query, body: Body) -> Answer {
    let quiet = query.flag("quiet");
    let platform = super::platform(&query)?;
    let input = SyncIoBridge::new(body::reader(body));
    progress::answer(move |lines| {
        let hear = |step: Event| {
            if let Some(line) = step.status_line().filter(|_| !quiet) {
                lines.put(&line);
            }
        };
        for image in app.engine.images().load_stream(input, &platform, &hear)? {
            let id = image.id.to_string();
            let text = match &image.reference {
                Some(name) => format!("Loaded image: {}\n", name.familiar()),
                None => format!("Loaded image ID: {id}\n"),
            };
            lines.text(&text);
            event(
                &app.engine,
                "load",
                &id,
                &image.reference.map_or_else(|| id.clone(), |name| name.familiar()),
            );
        }
        Ok(())
    })
    .await
}
