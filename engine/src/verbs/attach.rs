//! `attach`: a container's standard streams.

use tokio::net::UnixStream;

use crate::engine::unexpected;
use crate::supervisor::reach;
use crate::supervisor::wire::{Ask, Reply, Streams};
use crate::{Engine, EngineError, events};

/// The streams of a process. What is written goes to its input, and a half-close ends it; what is read is its output: raw
/// with a terminal, else in Docker's frames of 8 bytes and data. It ends when the output ends.
#[derive(Debug)]
pub struct Attached {
    /// The streams.
    pub connection: UnixStream,
    /// Whether the process has a terminal.
    pub tty: bool,
}

impl Engine {
    /// Attaches to a container, which may be about to be started.
    ///
    /// # Errors
    /// It is paused, or being removed.
    pub async fn attach(&self, name: &str, streams: Streams) -> Result<Attached, EngineError> {
        let container = self.container(name)?;
        if container.state.status == crate::model::Status::Paused {
            return Err(EngineError::Paused(name.to_owned()));
        }
        let (connection, reply) =
            reach::ask(self.paths(), &container.id, &Ask::Attach { streams }, true).await?;
        match reply {
            Reply::Attached { tty } => {
                self.record(&events::of_container(&container, "attach", &[]))?;
                Ok(Attached { connection, tty })
            }
            _ => Err(unexpected(&container)),
        }
    }
}
