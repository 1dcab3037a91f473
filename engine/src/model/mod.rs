//! What the engine keeps: containers, further processes in them, events, volumes and networks, as plain checked types.
//!
//! They are written to the state database as JSON and handed to the API as they are. Times are nanoseconds since 1970,
//! 0 for "never"; sizes are bytes.

mod container;
mod event;
mod exec;
mod network;
mod process;
mod volume;

pub use container::{
    Container, ContainerConfig, Health, HealthCheck, HealthResult, HealthStatus, Limits, LogConfig,
    LogDriver, Mount, MountKind, PortBinding, RestartPolicy, State, Status, Ulimit,
};
pub use event::{Event, EventKind};
pub use exec::{Exec, ExecConfig};
pub use network::{Endpoint, Network, Place, Subnet};
pub use process::{Outcome, RunningMachine, Size};
pub use volume::Volume;

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
