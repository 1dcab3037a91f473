//! The `uml` accelerator: a whole Linux kernel, built with ARCH=um, as one jailed, unprivileged process of the host.
//!
//! The kernel switches between its guest processes by ptrace (never by its seccomp mode, which would let a guest
//! process reach all guest RAM), runs their code at native speed, and reaches our devices over
//! [`crate::transport::vhost_user`]. The boundary is a user-space kernel in a jail, the class of gVisor.
//!
//! Processes: this one (the devices), below it the first process of the jail (waits, cleans up, passes on the exit
//! status), below that the guest kernel, and below that one process per guest address space. When this process dies, by
//! whatever means, the kernel kills the jail's first process, and with it all others of its process id namespace.
//!
//! The parts: [`command`] (what the kernel is told), [`launch`] (the jail and the start), [`filter`] (its system calls),
//! [`machine`] (the event loop), [`ending`] (how it ended).

mod command;
mod ending;
mod filter;
mod launch;
mod machine;

use std::time::Instant;

use crate::control::{ControlSocket, ExitReason, ExitReport};
use crate::machine::Parts;

/// The boundary that this accelerator gives, for people.
pub const BOUNDARY: &str = "user-space kernel";

/// Runs a machine to its end, and tells how it ended. [`crate::control::Event::Started`] is sent when the guest kernel
/// begins, with the time since `arrival`; the caller sends the report. Call it on a thread that lives as long as the
/// process: the machine dies with it.
#[must_use]
pub fn run(parts: Parts, control: &ControlSocket, arrival: Instant) -> ExitReport {
    let console = parts.console.clone();
    let (reason, detail) = match machine::Machine::start(parts, arrival) {
        Ok(machine) => machine.run(control),
        Err(error) => (ExitReason::BootFailed, error.to_string()),
    };
    ExitReport { reason, detail, console: console.text() }
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum UmlError {
    /// The jail could not be built.
    #[error(transparent)]
    Jail(#[from] crate::jail::StepError),
    /// The filter could not be made.
    #[error(transparent)]
    Filter(#[from] crate::jail::filter::FilterError),
    /// The configuration cannot be told to the guest kernel.
    #[error("the kernel command line holds a zero byte")]
    Command(#[from] std::ffi::NulError),
    /// A device does not fit.
    #[error("a device cannot be used over vhost-user: {0}")]
    Device(#[from] virtio_queue::Error),
    /// The host refused something.
    #[error("{what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's error.
        error: std::io::Error,
    },
    /// The event loop could not be made.
    #[error("cannot watch the machine: {0}")]
    Events(#[from] event_manager::Error),
}

impl UmlError {
    fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Host { what, error }
    }
}
