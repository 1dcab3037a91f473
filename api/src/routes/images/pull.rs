//! `images/create`: pulls an image from a registry, or imports a root file system.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use engine::{Engine, EngineError};
use image_unpack::{Change, Event, ImportOptions, Platform, Reference, Registries, Source};
use serde_json::json;
use tokio_util::io::SyncIoBridge;

use super::{event, platform, reference, registries};
use crate::App;
use crate::body;
use crate::error::ApiError;
use crate::progress::{self, Lines};
use crate::query::Query;
use crate::routes::Answer;

/// Beginnings of names that mean files of this host.
const LOCAL: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

pub fn routes() -> Router<App> {
    Router::new().route("/images/create", post(create))
}

async fn create(State(app): State<App>, query: Query, headers: HeaderMap, body: Body) -> Answer {
    let platform = platform(&query)?;
    if let Some(source) = query.text("fromSrc") {
        return import(app, source, &query, platform, body).await;
    }
    let name =
        query.text("fromImage").ok_or_else(|| ApiError::bad("neither fromImage nor fromSrc is given"))?;
    if LOCAL.iter().any(|prefix| name.starts_with(prefix)) {
        let source: Source = name.parse()?;
        let name = name.to_owned();
        return progress::answer(move |lines| local(&app.engine, &name, &source, &platform, lines)).await;
    }
    let reference = reference(name, query.text("tag"))?;
    let registries = registries(&headers, &reference)?;
    progress::answer(move |lines| pull(&app.engine, &reference, registries, &platform, lines)).await
}

fn pull(
    engine: &Engine,
    name: &Reference,
    registries: Registries,
    platform: &Platform,
    lines: &Lines,
) -> Result<(), ApiError> {
    let store = engine.images().clone().with_registries(registries);
    let familiar = name.familiar();
    let hear = |step: Event| {
        match &step {
            Event::Resolved { digest, .. } => {
                let line = format!("Pulling from {}", name.repository());
                lines.put(&json!({ "status": line, "id": name.selector() }));
                // Told at the end by Docker; nothing depends on its place.
                if let Some(digest) = digest {
                    lines.status(&format!("Digest: {digest}"));
                }
            }
            Event::Ready { fresh: true, .. } => {
                lines.status(&format!("Status: Downloaded newer image for {familiar}"));
            }
            Event::Ready { fresh: false, .. } => {
                lines.status(&format!("Status: Image is up to date for {familiar}"));
            }
            _ => {}
        }
        if let Some(line) = step.status_line() {
            lines.put(&line);
        }
    };
    store.ensure(&Source::Registry(name.clone()), platform, &hear).map_err(|error| match &error {
        // A registry does not tell what is not there from what is not shown.
        image_unpack::Error::NotFound { .. } => ApiError::not_found(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login'",
            name.repository()
        )),
        _ => unusable(&familiar, error),
    })?;
    event(engine, "pull", &familiar, &familiar);
    Ok(())
}

fn unusable(name: &str, source: image_unpack::Error) -> ApiError {
    EngineError::Image { name: name.to_owned(), source: Box::new(source) }.into()
}

/// Makes an image of this host's files ready.
fn local(
    engine: &Engine,
    name: &str,
    source: &Source,
    platform: &Platform,
    lines: &Lines,
) -> Result<(), ApiError> {
    let hear = |step: Event| {
        if let Some(line) = step.status_line() {
            lines.put(&line);
        }
    };
    let image = engine.images().ensure(source, platform, &hear).map_err(|source| unusable(name, source))?;
    lines.status(&format!("Status: Image {} is ready for {name}", image.id));
    event(engine, "load", &image.id.to_string(), name);
    Ok(())
}

async fn import(app: App, source: &str, query: &Query, platform: Platform, body: Body) -> Answer {
    if source != "-" {
        return Err(ApiError::refused(
            &format!("import from {source}"),
            "the server fetches nothing by an address that a client gives",
            "fetch the file and import it from there",
        ));
    }
    let name = query.text("repo").map(|repo| reference(repo, query.text("tag"))).transpose()?;
    let changes: Result<Vec<Change>, _> = query
        .all("changes")
        .flat_map(str::lines)
        .filter(|line| !line.trim().is_empty())
        .map(str::parse)
        .collect();
    let options = ImportOptions {
        platform,
        changes: changes?,
        message: query.text("message").map(str::to_owned),
        name,
        ..ImportOptions::default()
    };
    let input = SyncIoBridge::new(body::reader(body));
    progress::answer(move |lines| {
        let image = app.engine.images().import(input, &options)?;
        lines.status(&image.id.to_string());
        let name = options.name.map_or_else(|| image.id.to_string(), |name| name.familiar());
        event(&app.engine, "import", &image.id.to_string(), &name);
        Ok(())
    })
    .await
}
