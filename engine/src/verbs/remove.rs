//! `rm` and `prune`.

use crate::directory::Directory;
use crate::disk;
use crate::model::Container;
use crate::supervisor::reach;
use crate::supervisor::wire::Ask;
use crate::{Engine, EngineError, truth, volumes};

impl Engine {
    /// Removes a container. One that runs is ended first if `force` says so; `volumes`: its anonymous volumes go, too.
    ///
    /// # Errors
    /// It runs.
    pub async fn remove(&self, name: &str, force: bool, volumes: bool) -> Result<(), EngineError> {
        let container = self.container(name)?;
        if container.state.status.is_running() && !force {
            return Err(EngineError::Running(name.to_owned()));
        }
        let directory = Directory::new(&self.paths().containers(), &container.id);
        if !directory.path().exists() {
            directory.create()?;
        }
        loop {
            if let Some(_lock) = directory.lock()? {
                truth::erase(self.database(), &directory, &container)?;
                break;
            }
            match reach::ask(self.paths(), &container.id, &Ask::Remove { force }, false).await {
                // It was just leaving: the lock is free in a moment.
                Err(EngineError::NotRunning(_) | EngineError::SupervisorGone(_)) => {
                    if matches!(self.database().container(&container.id), Err(EngineError::NoContainer(_))) {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        if volumes || container.config.auto_remove {
            volumes::remove_anonymous(self.database(), self.paths(), &container);
        }
        Ok(())
    }

    /// Removes all containers that do not run and that `accept` accepts: their ids, and the bytes that were freed.
    ///
    /// # Errors
    /// One cannot be removed.
    pub async fn prune(
        &self,
        accept: impl Fn(&Container) -> bool,
    ) -> Result<(Vec<String>, u64), EngineError> {
        let (mut removed, mut freed) = (Vec::new(), 0);
        for container in self.containers()? {
            if container.state.status.is_running() || !accept(&container) {
                continue;
            }
            let bytes = self.writable_bytes(&container);
            match self.remove(&container.id, false, false).await {
                Ok(()) => {
                    freed += bytes;
                    removed.push(container.id);
                }
                // Somebody was faster, or has started it.
                Err(EngineError::NoContainer(_) | EngineError::Running(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((removed, freed))
    }

    /// Bytes on disk that a container has written.
    #[must_use]
    pub fn writable_bytes(&self, container: &Container) -> u64 {
        let directory = Directory::new(&self.paths().containers(), &container.id);
        disk::allocated(&directory.disk()).unwrap_or(0)
    }
}
