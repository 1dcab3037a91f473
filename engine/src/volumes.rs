//! The end of volumes: by hand, and with the container that nobody asked to keep them for.

use std::fs;
use std::io;

use crate::EngineError;
use crate::database::Database;
use crate::model::{Container, Event, EventKind, Mount, MountKind, Volume, now};
use crate::paths::Paths;

/// Removes a volume that no container uses.
///
/// # Errors
/// There is none of this name, or a container uses it.
pub(crate) fn remove(database: &Database, paths: &Paths, name: &str) -> Result<(), EngineError> {
    let volume = database.volume(name)?;
    if let Some(container) = users(database, name)?.into_iter().next() {
        return Err(EngineError::VolumeInUse { name: name.to_owned(), container });
    }
    database.delete_volume(name)?;
    match fs::remove_dir_all(paths.volumes().join(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(EngineError::io(format!("removing the volume {name}"))(e));
        }
        _ => {}
    }
    database.insert_event(&event(&volume, "destroy"))
}

/// Ids of the containers that use a volume.
///
/// # Errors
/// The state database cannot be read.
pub(crate) fn users(database: &Database, name: &str) -> Result<Vec<String>, EngineError> {
    let uses = |mount: &Mount| mount.kind == MountKind::Volume && mount.source == name;
    let users = database.containers()?.into_iter().filter(|c| c.config.mounts.iter().any(uses));
    Ok(users.map(|container| container.id).collect())
}

/// Removes the volumes that were made for a container which is gone, and that nobody named. One that another container uses stays.
pub(crate) fn remove_anonymous(database: &Database, paths: &Paths, container: &Container) {
    for mount in container.config.mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
        if !database.volume(&mount.source).is_ok_and(|volume| volume.anonymous) {
            continue;
        }
        match remove(database, paths, &mount.source) {
            Ok(()) | Err(EngineError::VolumeInUse { .. } | EngineError::NoVolume(_)) => {}
            Err(error) => tracing::error!(%error, volume = mount.source, "a volume cannot be removed"),
        }
    }
}

/// Something that happened to a volume.
pub(crate) fn event(volume: &Volume, action: &str) -> Event {
    Event {
        sequence: 0,
        time: now(),
        kind: EventKind::Volume,
        action: action.to_owned(),
        actor: volume.name.clone(),
        attributes: [("driver".to_owned(), "local".to_owned())].into(),
    }
}
