//! `system/df`: what images, containers and volumes take on disk.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use bollard_stubs::models::{ContainerSummary, ImageSummary, SystemDataUsageResponse, Volume};

use super::{Answer, blocking, containers, images, volumes};
use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::translate::summary;

pub fn routes() -> Router<App> {
    Router::new().route("/system/df", get(df))
}

async fn df(State(app): State<App>, query: Query) -> Answer {
    let kinds: Vec<&str> = query.all("type").collect();
    if let Some(other) =
        kinds.iter().find(|kind| !["image", "container", "volume", "build-cache"].contains(kind))
    {
        return Err(ApiError::bad(format!("unknown object type: {other}")));
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut usage = SystemDataUsageResponse::default();
    if wanted("image") {
        let (size, images) = image_usage(app.clone()).await?;
        (usage.layers_size, usage.images) = (Some(size), Some(images));
    }
    if wanted("container") {
        usage.containers = Some(container_usage(&app).await?);
    }
    if wanted("volume") {
        usage.volumes = Some(volume_usage(app).await?);
    }
    if wanted("build-cache") {
        usage.build_cache = Some(Vec::new());
    }
    json(&usage)
}

async fn image_usage(app: App) -> Result<(i64, Vec<ImageSummary>), ApiError> {
    blocking(move || {
        let usage = app.engine.images().df()?;
        let mut images = images::summaries(&app.engine, &Filters::default(), false)?;
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for image in &mut images {
            // Bytes on disk, shared ones and own ones, in the same measure.
            if let Some(usage) = usage.images.iter().find(|usage| usage.id.to_string() == image.id) {
                (image.size, image.shared_size) = (number(usage.size), number(usage.shared_size));
            }
        }
        Ok((number(usage.layers_size), images))
    })
    .await
}

async fn container_usage(app: &App) -> Result<Vec<ContainerSummary>, ApiError> {
    let mut list = Vec::new();
    for container in app.engine.containers()? {
        let mut line = summary::show(&container, &app.engine);
        let (writable, root) = containers::disk_size(&container, &app.engine).await;
        (line.size_rw, line.size_root_fs) = (Some(writable), Some(root));
        list.push(line);
    }
    Ok(list)
}

async fn volume_usage(app: App) -> Result<Vec<Volume>, ApiError> {
    blocking(move || {
        let containers = app.engine.containers()?;
        let volumes = app.engine.volumes()?;
        volumes.iter().map(|volume| volumes::show_usage(volume, &app.engine, &containers)).collect()
    })
    .await
}
