//! `wait`: how a container ends.

use tokio::net::UnixStream;
use vmm::config::Accelerator;

use crate::engine::unexpected;
use crate::error::{Advice, EXIT_ENGINE, Hint};
use crate::model::{Container, ContainerConfig, Outcome};
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply, Until};
use crate::{Engine, EngineError, doctor};

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

/// Exit code of a process that SIGSEGV killed.
const SEGFAULT: u8 = 128 + 11;

impl Engine {
    /// What the owner of a container should know about its end, beside the exit code.
    #[must_use]
    pub fn hint(&self, config: &ContainerConfig, outcome: &Outcome) -> Option<Hint> {
        let hint = |what: &str, why: String, next: &str| {
            Some(Hint { what: what.to_owned(), advice: Advice { why, next: next.to_owned() } })
        };
        if outcome.oom_killed {
            let why = "its processes touched more than its limit, and the guest's kernel killed one";
            return hint("the container ran out of memory", why.to_owned(), "give it more with --memory");
        }
        if outcome.code == EXIT_ENGINE && !outcome.error.is_empty() {
            return hint("the container's machine failed", outcome.error.clone(), "bulkhead doctor");
        }
        // A shell's exit code tells of a child that a signal killed.
        let mappings = doctor::low_map_count().filter(|_| outcome.code == SEGFAULT)?;
        let chosen = self.accelerator(config.accelerator, config.isolation).ok()?;
        if chosen.accelerator != Accelerator::Uml {
            return None;
        }
        let what = "the container's process ended in a segmentation fault";
        hint(what, doctor::why_low(mappings), doctor::RAISE_MAP_COUNT)
    }
}

impl Waiting {
    /// What the container is.
    #[must_use]
    pub fn config(&self) -> &ContainerConfig {
        &self.container.config
    }

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
