//! The truth about containers: what a dead supervisor left behind is told as it is, and cleaned up.

use std::fs;

use nix::fcntl::FlockArg;

use crate::database::Database;
use crate::directory::{Directory, Lock, lock_file};
use crate::model::{Container, Outcome, Status, now};
use crate::paths::Paths;
use crate::{EngineError, events, volumes};

/// Exit code of a container whose machine was taken away.
const KILLED: u8 = 137;
/// Name of the lock that is shared while a container is being made.
const REGISTRY_LOCK: &str = ".lock";

/// An error as one line.
pub(crate) fn one_line(error: &EngineError) -> String {
    let advice = error.advice();
    let what = error.to_string();
    if advice.why.is_empty() || what.contains(&advice.why) { what } else { format!("{what}: {}", advice.why) }
}

/// The right to make a container: while it is held, no directory is taken for an orphan.
pub(crate) fn making(paths: &Paths) -> Result<Option<Lock>, EngineError> {
    lock_file(&paths.containers().join(REGISTRY_LOCK), FlockArg::LockShared)
}

/// The right to take away what containers are made of: while it is held, none is made.
pub(crate) fn alone(paths: &Paths) -> Result<Option<Lock>, EngineError> {
    lock_file(&paths.containers().join(REGISTRY_LOCK), FlockArg::LockExclusive)
}

/// Corrects a container's record if its supervisor is gone. `None`: it was a temporary one, and is gone, too.
pub(crate) fn correct(
    database: &Database,
    paths: &Paths,
    container: Container,
) -> Result<Option<Container>, EngineError> {
    let left = container.state.status.is_running() || container.state.status == Status::Removing;
    if !left {
        return Ok(Some(container));
    }
    let directory = Directory::new(&paths.containers(), &container.id);
    let Some(_lock) = directory.lock().or_else(|_| missing(&directory))? else {
        return Ok(Some(container));
    };
    // What was read before the lock was taken may be old.
    let container = match database.container(&container.id) {
        Err(EngineError::NoContainer(_)) => {
            // It was removed just now; the directory that was made for the lock is nobody's.
            directory.remove()?;
            return Ok(None);
        }
        other => other?,
    };
    if container.state.status == Status::Removing || container.config.auto_remove {
        if container.state.status.is_running() {
            write_off(database, &container)?;
        }
        erase(database, &directory, &container)?;
        if container.config.auto_remove {
            volumes::remove_anonymous(database, paths, &container);
        }
        return Ok(None);
    }
    if container.state.status.is_running() {
        return write_off(database, &container).map(Some);
    }
    Ok(Some(container))
}

/// A container whose directory is gone cannot run.
fn missing(directory: &Directory) -> Result<Option<Lock>, EngineError> {
    directory.create()?;
    directory.lock()
}

/// Writes down that a container's supervisor died.
pub(crate) fn write_off(database: &Database, container: &Container) -> Result<Container, EngineError> {
    let mut container = container.clone();
    container.state.status = Status::Exited;
    container.state.machine = None;
    container.state.places.clear();
    container.state.ports.clear();
    container.state.finished = now();
    container.state.outcome = Some(Outcome {
        code: KILLED,
        oom_killed: false,
        error: "its supervisor was killed, and its machine with it".to_owned(),
    });
    database.set_state(&container.id, &container.state)?;
    database.delete_execs_of(&container.id)?;
    database.insert_event(&events::of_container(&container, "die", &[("exitCode", KILLED.to_string())]))?;
    Ok(container)
}

/// Removes a container that nobody else owns: its record goes last, so that a crash on the way leaves something that is recognised.
pub(crate) fn erase(
    database: &Database,
    directory: &Directory,
    container: &Container,
) -> Result<(), EngineError> {
    let mut state = container.state.clone();
    state.status = Status::Removing;
    match database.set_state(&container.id, &state) {
        // Somebody else has removed it meanwhile; the directory may be one that was made for our lock.
        Err(EngineError::NoContainer(_)) => return directory.remove(),
        other => other?,
    }
    if let Err(error) = directory.remove() {
        state.status = Status::Dead;
        database.set_state(&container.id, &state)?;
        return Err(error);
    }
    if database.delete_container(&container.id)? {
        database.insert_event(&events::of_container(container, "destroy", &[]))?;
    }
    Ok(())
}

/// Removes directories that a crash left without a record: no container is being made meanwhile, so that they are nobody's.
pub(crate) fn sweep(database: &Database, paths: &Paths) -> Result<(), EngineError> {
    let registry = paths.containers().join(REGISTRY_LOCK);
    let Some(_alone) = lock_file(&registry, FlockArg::LockExclusiveNonblock)? else { return Ok(()) };
    let entries = fs::read_dir(paths.containers()).map_err(EngineError::io("reading the containers"))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == REGISTRY_LOCK || !matches!(database.container(&name), Err(EngineError::NoContainer(_))) {
            continue;
        }
        let directory = Directory::new(&paths.containers(), &name);
        if directory.lock().is_ok_and(|lock| lock.is_some()) {
            directory.remove()?;
        }
    }
    Ok(())
}
