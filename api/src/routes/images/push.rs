//! `images/{name}/push`.

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use image_unpack::Event;
use serde_json::json;

use super::{event, reference, registries};
use crate::App;
use crate::error::ApiError;
use crate::progress;
use crate::query::Query;

/// Pushes an image to the registry that its name begins with.
///
/// # Errors
/// The name is none, or no image has it.
pub async fn push(
    app: App,
    name: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let target = reference(name, query.text("tag"))?;
    let registries = registries(headers, &target)?;
    progress::answer(move |lines| {
        let familiar = target.familiar();
        let image = app.engine.images().lookup(&target)?.ok_or_else(|| {
            let repository = target.repository();
            ApiError::not_found(format!("An image does not exist locally with the tag: {repository}"))
        })?;
        let repository = format!("{}/{}", target.registry(), target.repository());
        lines.status(&format!("The push refers to repository [{repository}]"));
        let hear = |step: Event| {
            if let Some(line) = step.status_line() {
                lines.put(&line);
            }
            if let Event::Pushed { name, digest, size } = &step {
                let aux = json!({ "Tag": name, "Digest": digest.to_string(), "Size": size });
                lines.put(&json!({ "progressDetail": {}, "aux": aux }));
            }
        };
        app.engine.images().clone().with_registries(registries).push(image.id, &target, &hear)?;
        event(&app.engine, "push", &familiar, &familiar);
        Ok(())
    })
    .await
}
