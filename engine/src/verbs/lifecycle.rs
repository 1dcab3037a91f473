//! Start, stop, restart, kill, pause and the size of the terminal.

use crate::engine::unexpected;
use crate::model::{Container, Size, Status};
use crate::supervisor::wire::{Ask, Reply};
use crate::{Engine, EngineError};

impl Engine {
    /// Starts a container; false if it runs already.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(&self, name: &str) -> Result<bool, EngineError> {
        let container = self.container(name)?;
        match container.state.status {
            Status::Running | Status::Restarting => return Ok(false),
            Status::Paused => return Err(EngineError::Paused(name.to_owned())),
            _ => {}
        }
        changed(&container, &self.ask(&container, &Ask::Start).await?)
    }

    /// Stops a container: by `signal`, else its own stop signal, and for certain after `timeout` seconds, else its own stop
    /// timeout (negative: never). False if it does not run.
    ///
    /// # Errors
    /// There is no such container.
    pub async fn stop(
        &self,
        name: &str,
        signal: Option<u8>,
        timeout: Option<i64>,
    ) -> Result<bool, EngineError> {
        let container = self.container(name)?;
        if !container.state.status.is_running() {
            return Ok(false);
        }
        changed(&container, &self.ask(&container, &Ask::Stop { signal, timeout }).await?)
    }

    /// Stops a container and starts it again.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn restart(
        &self,
        name: &str,
        signal: Option<u8>,
        timeout: Option<i64>,
    ) -> Result<(), EngineError> {
        let container = self.container(name)?;
        self.ask(&container, &Ask::Restart { signal, timeout }).await.map(drop)
    }

    /// Sends the first process of a container a signal.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&self, name: &str, signal: u8) -> Result<(), EngineError> {
        let container = self.container(name)?;
        // A start that is under way has a supervisor, too.
        match crate::supervisor::reach::ask(self.paths(), &container.id, &Ask::Kill { signal }, false).await {
            Err(EngineError::NotRunning(_)) => Err(EngineError::NotRunning(container.name)),
            other => other.map(drop),
        }
    }

    /// Freezes the processes of a container.
    ///
    /// # Errors
    /// It does not run, or is paused.
    pub async fn pause(&self, name: &str) -> Result<(), EngineError> {
        self.ask_running(name, &Ask::Pause).await.map(drop)
    }

    /// Lets the processes of a container go on.
    ///
    /// # Errors
    /// It is not paused.
    pub async fn unpause(&self, name: &str) -> Result<(), EngineError> {
        self.ask_running(name, &Ask::Unpause).await.map(drop)
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// It does not run.
    pub async fn resize(&self, name: &str, size: Size) -> Result<(), EngineError> {
        self.ask_running(name, &Ask::Resize { size }).await.map(drop)
    }
}

fn changed(container: &Container, reply: &Reply) -> Result<bool, EngineError> {
    match reply {
        Reply::Changed(changed) => Ok(*changed),
        _ => Err(unexpected(container)),
    }
}
