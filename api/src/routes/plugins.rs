//! Plugins: there are none.

use axum::Router;
use axum::routing::get;
use bollard_stubs::models::Plugin;

use super::Answer;
use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::query::Query;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/plugins", get(list))
        .route("/plugins/privileges", get(unsupported))
        .route("/plugins/{*rest}", get(unsupported).post(unsupported).delete(unsupported))
}

async fn list(query: Query) -> Answer {
    query.filters(&["capability", "enable"])?;
    json(&Vec::<Plugin>::new())
}

async fn unsupported() -> ApiError {
    ApiError::missing(
        "plugins are not supported: a plugin is a program with the host's privileges, and nothing here runs with them",
    )
}
