//! `wait`: how a container ends.

use tokio::net::UnixStream;

use crate::engine::unexpected;
use crate::model::{Container, Outcome};
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply, Until};
use crate::{Engine, EngineError};

/// A wait that has begun.
#[derive(Debug)]
pub struct Waiting {
    container: Container,
    state: State,
}

#[derive(Debug)]
enum State {
    Ended(Outcome),
    Connected(UnixStream),
}

impl Engine {
    /// Begins to wait for a container's end. When this returns, no end can be missed.
    ///
    /// # Errors
    /// There is no such container.
    pub async fn wait(&self, name: &str, until: Until) -> Result<Waiting, EngineError> {
        let container = self.container(name)?;
        if until == Until::NotRunning && !container.state.status.is_running() {
            let outcome = container.state.outcome.clone().unwrap_or_default();
            return Ok(Waiting { container, state: State::Ended(outcome) });
        }
        let (connection, reply) = reach::ask(self.paths(), &container.id, &Ask::Wait { until }, true).await?;
        match reply {
            Reply::Waiting => Ok(Waiting { container, state: State::Connected(connection) }),
            _ => Err(unexpected(&container)),
        }
    }
}

impl Waiting {
    /// Waits for the end.
    ///
    /// # Errors
    /// The container's supervisor died.
    pub async fn finish(self) -> Result<Outcome, EngineError> {
        match self.state {
            State::Ended(outcome) => Ok(outcome),
            State::Connected(mut connection) => {
                match reach::reply(&mut connection, &self.container.id).await? {
                    Reply::Ended(outcome) => Ok(outcome),
                    _ => Err(unexpected(&self.container)),
                }
            }
        }
    }
}
