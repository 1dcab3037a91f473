//! `exec`: further processes in a container that runs.

use super::attach::Attached;
use crate::engine::unexpected;
use crate::model::{Exec, ExecConfig, Size, Status};
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply};
use crate::{Engine, EngineError, events, ids};

impl Engine {
    /// Writes a further process down. It runs when it is started.
    ///
    /// # Errors
    /// The container does not run, or there is no command.
    pub async fn exec_create(&self, name: &str, config: ExecConfig) -> Result<String, EngineError> {
        let container = self.container(name)?;
        match container.state.status {
            Status::Running => {}
            Status::Paused => return Err(EngineError::Paused(name.to_owned())),
            _ => return Err(EngineError::NotRunning(container.id)),
        }
        if config.cmd.is_empty() {
            return Err(EngineError::Invalid("No exec command specified".to_owned()));
        }
        let action = format!("exec_create: {}", config.cmd.join(" "));
        let exec = Exec {
            id: ids::random()?,
            container: container.id.clone(),
            config,
            started: false,
            running: false,
            exit_code: None,
        };
        self.database().put_exec(&exec)?;
        self.record(&events::of_container(&container, &action, &[("execID", exec.id.clone())]))?;
        Ok(exec.id)
    }

    /// A further process.
    ///
    /// # Errors
    /// There is none of this id, or its container has ended.
    pub fn exec(&self, id: &str) -> Result<Exec, EngineError> {
        self.database().exec(id)
    }

    /// Starts a further process. To leave it alone, drop the connection.
    ///
    /// # Errors
    /// Its container does not run, or its program cannot be started.
    pub async fn exec_start(&self, id: &str, size: Option<Size>) -> Result<Attached, EngineError> {
        let exec = self.exec(id)?;
        let container = self.container(&exec.container)?;
        let ask = Ask::ExecStart { id: id.to_owned(), size };
        let (connection, reply) = reach::ask(self.paths(), &container.id, &ask, false).await?;
        match reply {
            Reply::Attached { tty } => Ok(Attached { connection, tty }),
            _ => Err(unexpected(&container)),
        }
    }

    /// Sets the size of a further process's terminal.
    ///
    /// # Errors
    /// It does not run.
    pub async fn exec_resize(&self, id: &str, size: Size) -> Result<(), EngineError> {
        let exec = self.exec(id)?;
        self.ask_running(&exec.container, &Ask::ExecResize { id: id.to_owned(), size }).await.map(drop)
    }
}
