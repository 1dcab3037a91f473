//! Volumes.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use bollard_stubs::models::{
    Volume as DockerVolume, VolumeListResponse, VolumePruneResponse, VolumeScopeEnum, VolumeUsageData,
};
use engine::model::{Container, MountKind, Volume};
use engine::{Engine, VolumeOptions};

use super::{Answer, blocking};
use crate::App;
use crate::body::{JsonBody, empty, json, json_with};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::filters::{Filters, matches_name};
use crate::query::Query;
use crate::times;
use crate::translate::mounts::{volume_name, volume_path};
use crate::units::parse_bytes;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

/// Whether a container mounts a volume.
pub(super) fn uses(container: &Container, volume: &str) -> bool {
    container.config.mounts.iter().any(|mount| mount.kind == MountKind::Volume && mount.source == volume)
}

/// A volume as clients read it.
pub(super) fn show(volume: &Volume, engine: &Engine) -> DockerVolume {
    DockerVolume {
        name: volume.name.clone(),
        driver: "local".into(),
        mountpoint: volume_path(engine, &volume.name),
        created_at: Some(times::rfc3339(volume.created)),
        labels: volume.labels.clone().into_iter().collect(),
        scope: Some(VolumeScopeEnum::LOCAL),
        options: volume.options.clone().into_iter().collect(),
        ..DockerVolume::default()
    }
}

/// A volume with how much it holds and how many containers mount it.
pub(super) fn show_usage(
    volume: &Volume,
    engine: &Engine,
    containers: &[Container],
) -> Result<DockerVolume, ApiError> {
    let size = engine.volume_usage(&volume.name)?;
    let users = containers.iter().filter(|container| uses(container, &volume.name)).count();
    let usage = VolumeUsageData {
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ref_count: i64::try_from(users).unwrap_or(i64::MAX),
    };
    Ok(DockerVolume { usage_data: Some(usage), ..show(volume, engine) })
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["dangling", "driver", "label", "label!", "name"])?;
    let dangling = filters.flag("dangling")?;
    let containers = app.engine.containers()?;
    let passes = |volume: &Volume| {
        let used = containers.iter().any(|container| uses(container, &volume.name));
        dangling.is_none_or(|wanted| wanted != used)
            && filters.any("name", |pattern| matches_name(pattern, &volume.name))
            && filters.any("driver", |driver| driver == "local")
            && filters.labels(&volume.labels)
    };
    let volumes = app.engine.volumes()?;
    json(&VolumeListResponse {
        volumes: Some(
            volumes.iter().filter(|volume| passes(volume)).map(|volume| show(volume, &app.engine)).collect(),
        ),
        warnings: Some(Vec::new()),
    })
}

fn options(mut body: Fields) -> Result<VolumeOptions, ApiError> {
    let name = body.text("Name")?;
    if let Some(name) = &name {
        volume_name(name)?;
    }
    match body.text("Driver")?.as_deref() {
        None | Some("local") => {}
        Some(other) => {
            return Err(ApiError::refused(
                &format!("volume driver {other}"),
                "volumes are folders of this host",
                "leave it out",
            ));
        }
    }
    let options: BTreeMap<String, String> = body.take("DriverOpts")?;
    let size = options.get("size").map(|size| parse_bytes(size)).transpose();
    let size = size.map_err(|why| ApiError::bad(format!("volume option size: {why}")))?;
    if let Some((option, value)) = options.iter().find(|(option, _)| *option != "size") {
        return Err(ApiError::refused(
            &format!("--opt {option}={value:.64}"),
            "volumes mount nothing of the host's; only size is known",
            "mount it on the host, and bind that folder",
        ));
    }
    let labels = body.take("Labels")?;
    body.finish(&[])?;
    Ok(VolumeOptions { name, labels, options, size })
}

async fn create(State(app): State<App>, body: JsonBody) -> Answer {
    let volume = app.engine.create_volume(options(body.fields()?)?)?;
    json_with(StatusCode::CREATED, &show(&volume, &app.engine))
}

async fn inspect(State(app): State<App>, Path(name): Path<String>) -> Answer {
    json(&show(&app.engine.volume(&name)?, &app.engine))
}

async fn remove(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let force = query.flag("force");
    blocking(move || Ok(app.engine.remove_volume(&name, force)?)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn prune(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["all", "label", "label!"])?;
    let response = blocking(move || prune_all(&app.engine, &filters)).await?;
    json(&response)
}

/// Removes volumes that no container mounts: those that nobody named, or with `all` every one.
fn prune_all(engine: &Engine, filters: &Filters) -> Result<VolumePruneResponse, ApiError> {
    let all = filters.flag("all")?.unwrap_or(false);
    let containers = engine.containers()?;
    let (mut deleted, mut freed) = (Vec::new(), 0u64);
    for volume in engine.volumes()? {
        let used = containers.iter().any(|container| uses(container, &volume.name));
        if used || !(all || volume.anonymous) || !filters.labels(&volume.labels) {
            continue;
        }
        let size = engine.volume_usage(&volume.name)?;
        match engine.remove_volume(&volume.name, false) {
            Ok(()) => {
                freed = freed.saturating_add(size);
                deleted.push(volume.name);
            }
            // Someone mounted it, or removed it, just now.
            Err(engine::EngineError::VolumeInUse { .. } | engine::EngineError::NoVolume(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(VolumePruneResponse {
        volumes_deleted: Some(deleted),
        space_reclaimed: Some(i64::try_from(freed).unwrap_or(i64::MAX)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read() {
        let read = |json: &str| options(Fields::new(serde_json::from_str(json).unwrap()));
        assert_eq!(read("{}").unwrap().name, None);
        let full = read(r#"{"Name":"data","Driver":"local","DriverOpts":{},"Labels":{"a":"b"}}"#).unwrap();
        assert_eq!((full.name.as_deref(), full.labels["a"].as_str()), (Some("data"), "b"));
        assert_eq!(read(r#"{"DriverOpts":{"size":"1.5g"}}"#).unwrap().size, Some(3 << 29));
        for (bad, word) in [
            (r#"{"DriverOpts":{"size":"much"}}"#, "volume option size"),
            (r#"{"Name":"../x"}"#, "invalid characters"),
            (r#"{"Driver":"nfs"}"#, "volume driver nfs cannot be done"),
            (r#"{"DriverOpts":{"type":"nfs"}}"#, "--opt type=nfs cannot be done"),
            (r#"{"ClusterVolumeSpec":{"Group":"x"}}"#, "ClusterVolumeSpec cannot be done"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.status == 400 && error.body.message.contains(word), "{error:?}");
        }
    }
}
