//! `distribution/{name}/json`: what a registry has under a name.

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::routing::get;
use bollard_stubs::models::{DistributionInspect, OciDescriptor, OciPlatform};
use image_unpack::{Found, Platform};

use super::{Answer, blocking, images};
use crate::App;
use crate::body::json;
use crate::error::ApiError;

pub fn routes() -> Router<App> {
    Router::new().route("/distribution/{*rest}", get(inspect))
}

async fn inspect(Path(rest): Path<String>, headers: HeaderMap) -> Answer {
    let name = rest.strip_suffix("/json").ok_or_else(|| ApiError::not_found("page not found"))?;
    let reference = images::reference(name, None)?;
    let registries = images::registries(&headers, &reference)?;
    let found = blocking(move || Ok(registries.look(&reference)?)).await?;
    json(&show(found))
}

fn show(found: Found) -> DistributionInspect {
    let platform = |platform: Platform| OciPlatform {
        architecture: Some(platform.architecture),
        os: Some(platform.os),
        variant: platform.variant.filter(|variant| !variant.is_empty()),
        ..OciPlatform::default()
    };
    DistributionInspect {
        descriptor: OciDescriptor {
            media_type: Some(found.media_type),
            digest: Some(found.digest.to_string()),
            size: i64::try_from(found.size).ok(),
            ..OciDescriptor::default()
        },
        platforms: found.platforms.into_iter().map(platform).collect(),
    }
}
