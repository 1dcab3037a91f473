//! What a daemon does for containers that nobody asks for: after a crash or a reboot, those that are meant to run are started again.

use crate::model::{Container, RestartPolicy, Status};
use crate::{Engine, EngineError, truth};

impl Engine {
    /// Starts the containers that are meant to run whenever the daemon does, as Docker's restart policies say. Returns those
    /// that could not be started, with the reason.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub async fn recover(&self) -> Result<Vec<(Container, EngineError)>, EngineError> {
        let wanted = |container: &Container| match container.config.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !container.state.stopped,
            RestartPolicy::OnFailure { .. } => {
                !container.state.stopped && container.state.outcome.as_ref().is_some_and(|o| o.code != 0)
            }
        };
        let ended = |container: &Container| container.state.status == Status::Exited;
        let all = self.containers()?;
        self.start_all(all.into_iter().filter(|c| ended(c) && wanted(c)).collect()).await
    }

    /// Tells the truth about containers whose supervisor died since the last look, and starts those again whose policy wants it.
    /// Returns those that could not be started, with the reason.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub async fn look_after(&self) -> Result<Vec<(Container, EngineError)>, EngineError> {
        let mut died = Vec::new();
        for container in self.database().containers()? {
            let ran = container.state.status.is_running();
            let Some(now) = truth::correct(self.database(), self.paths(), container)? else { continue };
            if ran && now.state.status == Status::Exited && now.config.restart != RestartPolicy::No {
                died.push(now);
            }
        }
        truth::sweep(self.database(), self.paths())?;
        crate::network::kernel::tidy(self.paths())?;
        self.start_all(died).await
    }

    async fn start_all(
        &self,
        containers: Vec<Container>,
    ) -> Result<Vec<(Container, EngineError)>, EngineError> {
        let mut failed = Vec::new();
        for container in containers {
            match self.start(&container.id).await {
                Ok(_) | Err(EngineError::NoContainer(_)) => {}
                Err(error) => failed.push((container, error)),
            }
        }
        Ok(failed)
    }
}
