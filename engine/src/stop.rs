//! `stop`: asks a container to end, in the way its image wants, and ends it if it does not.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::EngineError;
use crate::container::Containers;

/// How often the container is looked at.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a killed supervisor may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops a container by id or unambiguous beginning of it. One that does not run is left as it is.
///
/// # Errors
/// There is no such container, or it belongs to another user.
pub fn stop(containers: &Containers, name: &str, patience: Duration) -> Result<(), EngineError> {
    for (signal, timeout) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, KILL_TIMEOUT)] {
        let Some(supervisor) = containers.supervisor(name)? else { break };
        match kill(supervisor, signal) {
            // It may have gone on its own meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(EngineError::io(format!("stopping the container {name}"))(e.into())),
        }
        let deadline = Instant::now() + timeout;
        loop {
            match containers.supervisor(name) {
                // A temporary container that is gone has stopped, too.
                Ok(None) | Err(EngineError::NoContainer(_)) => return containers.collect(),
                Ok(Some(_)) if Instant::now() >= deadline => break,
                Ok(Some(_)) => thread::sleep(INTERVAL),
                Err(e) => return Err(e),
            }
        }
    }
    containers.collect()
}
