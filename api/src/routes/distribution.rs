//! `distribution/{name}/json`: what a registry has under a name.

use axum::Router;
use axum::extract::Path;
use axum::routing::get;

use crate::App;
use crate::error::ApiError;

pub fn routes() -> Router<App> {
    Router::new().route("/distribution/{*rest}", get(inspect))
}

async fn inspect(Path(rest): Path<String>) -> ApiError {
    match rest.strip_suffix("/json") {
        Some(name) => ApiError::missing(format!(
            "{name}: asking a registry about an image without pulling it is not supported yet: pull it, then inspect it"
        )),
        None => ApiError::not_found("page not found"),
    }
}
