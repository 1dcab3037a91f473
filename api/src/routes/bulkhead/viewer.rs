//! `bulkhead/v1/docs`: the description as a page for people. It is one small page of ours, because the usual viewers are megabytes
//! of script, and it fetches nothing but `openapi.json` beside it.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::routing::get;

use crate::App;
use crate::body::with_type;
use crate::routes::Answer;

const PAGE: &str = include_str!("viewer.html");
/// The page runs its own script and speaks to its own server, nothing else.
const POLICY: &str =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

pub fn routes() -> Router<App> {
    Router::new().route("/bulkhead/v1/docs", get(page))
}

async fn page() -> Answer {
    let mut response = with_type(StatusCode::OK, "text/html; charset=utf-8", Body::from(PAGE));
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}
