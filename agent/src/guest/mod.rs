//! The agent itself: everything that runs as PID 1 of the guest.
//!
//! One thread, one epoll loop ([`server`]): so a fork copies a process whose locks are all free, and the child may
//! allocate and format like any other code until it executes the container's program ([`container`]), or for as long as it works
//! on something that blocks ([`task`]: archives, paths, networks).

mod accounts;
mod archive;
mod binds;
mod boot;
mod container;
mod listing;
mod log;
mod network;
mod pump;
mod restored;
mod rootfs;
mod server;
mod streams;
mod sys;
mod task;

use std::io;

/// What ends the agent, and with it the machine: the kernel panics when PID 1 exits, and the VMM shows its last words.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct AgentError {
    action: String,
    source: io::Error,
}

/// Says what was being done when a system call failed.
pub(crate) trait Context<T> {
    /// Wraps the error with the action that failed.
    fn context(self, action: impl Into<String>) -> Result<T, AgentError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: impl Into<String>) -> Result<T, AgentError> {
        self.map_err(|e| AgentError { action: action.into(), source: e.into() })
    }
}

/// Runs the agent until the host ends the machine. Returns only with an error.
///
/// # Errors
/// The guest kernel lacks something that the agent needs, or the host went away.
pub fn run() -> Result<std::convert::Infallible, AgentError> {
    boot::mount_kernel_file_systems()?;
    restored::create_generation()?;
    server::Server::connect()?.serve()
}

/// Reports why the agent ends, on the kernel's console.
pub fn report(error: &AgentError) {
    log::emergency(&error.to_string());
}
