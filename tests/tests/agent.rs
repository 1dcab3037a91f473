//! The agent's whole duty, in a real machine: each test boots one, and speaks to the agent as the engine does.

#[path = "agent/archives.rs"]
mod archives;
#[path = "agent/hostile.rs"]
mod hostile;
#[path = "agent/limits.rs"]
mod limits;
#[path = "agent/processes.rs"]
mod processes;
#[path = "agent/setup.rs"]
mod setup;

use agent::protocol::spec::Spec;
use bulkhead_tests::busybox;
use bulkhead_tests::guest::Harbour;
use engine::model::ContainerConfig;

/// A place for machines with the small image.
fn harbour() -> Option<Harbour> {
    Harbour::new(&busybox())
}

/// The engine's own specification for a shell script.
fn spec(harbour: &Harbour, script: &str) -> Spec {
    let cmd = Some(["sh", "-c", script].map(str::to_owned).to_vec());
    let mut config = ContainerConfig { cmd, ..ContainerConfig::default() };
    engine::spec::merge(&mut config, &harbour.image().config, None).unwrap();
    engine::spec::build(&config, "harbour").unwrap()
}

/// A container that waits to be killed.
const IDLE: &str = "sleep 1000";
