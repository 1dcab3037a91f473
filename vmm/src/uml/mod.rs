//! The `uml` accelerator: a whole Linux kernel, built with ARCH=um, as one jailed, unprivileged process of the host.
//!
//! The kernel switches between its guest processes by ptrace (never by its seccomp mode, which would let a guest
//! process reach all guest RAM), runs their code at native speed, and reaches our devices over
//! [`crate::transport::vhost_user`]. The boundary is a user-space kernel in a jail, the class of gVisor.
//!
//! Processes: the VMM's outer one; below it the machine's (the devices) and the first process of the guest kernel's jail
//! (waits, cleans up, passes on the exit status); below that the guest kernel, and below that one process per guest
//! address space. When one of the first two dies, by whatever means, the jail's first process ends, and with it the
//! host's kernel kills all others of its process id namespace.
//!
//! The parts: [`command`] (what the kernel is told), [`launch`] (the jail and the start), [`filter`] (its system calls),
//! [`machine`] (the event loop), [`ending`] (how it ended).

mod command;
mod ending;
mod filter;
mod launch;
mod machine;

use crate::control::{ExitReason, ExitReport, Session};
use crate::machine::Parts;

pub use self::launch::{Launched, launch};

/// The boundary that this accelerator gives, for people.
pub const BOUNDARY: &str = "user-space kernel";

/// Runs a machine whose guest kernel has been launched to its end, and tells how it ended.
/// [`crate::control::Event::Started`] is sent when the guest kernel begins; the caller sends the report.
#[must_use]
pub fn run(parts: Parts, launched: Launched, session: &mut Session) -> ExitReport {
    let console = parts.console.clone();
    let (reason, detail) = match machine::Machine::start(parts, launched) {
        Ok(machine) => machine.run(session),
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
