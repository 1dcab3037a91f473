//! `images/{name}/json` and `images/{name}/history`.

use axum::body::Body;
use axum::http::Response;

use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::blocking;
use crate::version::Version;

/// From this version on, an image does not tell of a container any more.
const WITHOUT_CONTAINER: Version = Version::new(1, 45);

/// All about an image.
///
/// # Errors
/// There is no such image.
pub async fn show(
    app: App,
    name: String,
    version: Version,
    query: &Query,
) -> Result<Response<Body>, ApiError> {
    let mut shown = blocking(move || {
        let image = app.engine.images().find(&name)?;
        let inspect = app.engine.images().inspect(image.id)?;
        serde_json::to_value(inspect).map_err(|e| ApiError::internal(e.to_string()))
    })
    .await?;
    if let Some(object) = shown.as_object_mut() {
        // What clients of Docker read beside it.
        object.insert("GraphDriver".into(), serde_json::json!({ "Name": "erofs", "Data": null }));
        // The configuration of the container that the image was made in, once: compose v1 looks there for volumes.
        if version < WITHOUT_CONTAINER
            && let Some(config) = object.get("Config").cloned()
        {
            object.insert("ContainerConfig".into(), config);
        }
        if !query.flag("manifests") {
            object.remove("Manifests");
        }
    }
    json(&shown)
}

/// The steps that made an image.
///
/// # Errors
/// There is no such image.
pub async fn history(app: App, name: String) -> Result<Response<Body>, ApiError> {
    let history = blocking(move || {
        let image = app.engine.images().find(&name)?;
        Ok(app.engine.images().history(image.id)?)
    })
    .await?;
    json(&history)
}
