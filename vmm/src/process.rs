//! A VMM as a process: from its supervisor's first request to the exit report.
//!
//! The order: the request is read and the devices are made; the guest kernel of `uml` is started in its own jail, so
//! that it boots while the rest is done; this process copies itself into its jail; the copy runs the machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use crate::assemble::{AssembleError, assemble};
use crate::config::{Accelerator, ConfigError, Fd, JailPolicy, MachineConfig};
use crate::console::ConsoleRing;
use crate::control::{ControlSocket, Event, ExitReason, ExitReport, First, RestoreRequest, Session};
use crate::jail::limits::Limits;
use crate::jail::{self, Side, StepError, sys};
use crate::machine::{Confinement, Parts, Restore};
use crate::uml::UmlError;
use crate::{kvm, uml};

/// Most private memory of the VMM beside guest RAM, in bytes: a bound far above the budget, and one more for each vCPU.
const PRIVATE_MEMORY: u64 = 256 << 20;
const PRIVATE_MEMORY_PER_VCPU: u64 = 4 << 20;
/// Most open descriptors: those of the request, two for each connection of the vsock device, and the rest.
const DESCRIPTORS: u64 = 8192;

/// Why a machine did not come to run.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error("restore: the uml accelerator's machines have no snapshots")]
    Uml,
    #[error(transparent)]
    Launch(#[from] UmlError),
    #[error("the VMM's jail: {0}")]
    Jail(#[from] StepError),
}

/// Serves one control socket: waits for the machine, runs it, sends the report. Must be called while the
/// process has one thread. It may end the process: the one that the supervisor started ends when the machine is gone.
///
/// # Errors
/// The socket failed, or the supervisor broke the protocol. A supervisor that goes away is no error.
pub fn serve(socket: ControlSocket, console: &ConsoleRing) -> io::Result<()> {
    let Some((mut session, first)) = Session::accept(socket)? else {
        return Ok(());
    };
    let arrival = Instant::now();
    let parts = match first {
        First::Boot(config, descriptors) => assemble(*config, descriptors, console).map_err(BootError::from),
        First::Restore(request, descriptors) => restore(*request, descriptors, console),
    };
    let report = match parts.and_then(|parts| start(parts, &mut session, arrival)) {
        Ok(report) => report,
        Err(error) => {
            ExitReport { reason: ExitReason::BootFailed, detail: error.to_string(), console: console.text() }
        }
    };
    session.ended(Event::Ended(report))
}

/// The parts of a machine that goes on from a snapshot.
fn restore(
    request: RestoreRequest,
    descriptors: Vec<OwnedFd>,
    console: &ConsoleRing,
) -> Result<Parts, BootError> {
    if request.machine.accelerator == Accelerator::Uml {
        return Err(BootError::Uml);
    }
    let take = |fd: Fd| {
        let index = usize::try_from(fd.0).unwrap_or(usize::MAX);
        let file = descriptors.get(index).ok_or(AssembleError::Config(ConfigError::Descriptor(fd.0)))?;
        file.try_clone().map(File::from).map_err(AssembleError::Descriptors)
    };
    let restore = Restore {
        state: take(request.state)?,
        memory: take(request.memory)?,
        working_set: request.working_set.map(take).transpose()?,
        paused: request.paused,
    };
    let mut parts = assemble(request.machine, descriptors, console)?;
    parts.restore = Some(restore);
    Ok(parts)
}

/// Runs the machine. In the process outside this does not return.
fn start(mut parts: Parts, session: &mut Session, arrival: Instant) -> Result<ExitReport, BootError> {
    parts.cgroup.enter()?;
    let guest = match parts.config.accelerator {
        Accelerator::Uml => Some(uml::launch(&parts)?),
        Accelerator::Kvm => None,
    };
    let (launched, guest) = guest.unzip();
    let plan = jail::Plan {
        optional: parts.config.host.jail == JailPolicy::Optional,
        cgroup: parts.cgroup.directory(),
        limits: limits(&parts.config),
        pagemap: parts.restore.is_some(),
    };
    match jail::enter(&plan) {
        Ok(Side::Inside(strength, pagemap)) => {
            drop(guest);
            parts.pagemap = pagemap;
            parts.confinement = Confinement { strength, filters: true, arrival };
            Ok(match launched {
                Some(launched) => uml::run(parts, launched, session),
                None => kvm::run(parts, session),
            })
        }
        Ok(Side::Outside(warden)) => {
            let kept: Vec<_> =
                parts.out_of_memory.descriptor().into_iter().chain([session.as_raw_fd()]).collect();
            let death = warden.watch(guest.as_ref(), &kept);
            let report = match death {
                Ok(death) => death.report(parts.out_of_memory.happened()),
                Err(error) => Some((ExitReason::BootFailed, format!("the VMM's jail: {error}"))),
            };
            if let Some((reason, detail)) = report {
                let report = ExitReport { reason, detail, console: String::new() };
                let _ = session.ended(Event::Ended(report));
            }
            // At once: what this process held of the machine is closed already, under its descriptors' numbers.
            sys::exit(death.map_or(libc::EXIT_FAILURE, |death| death.code().into()))
        }
        Err(error) => {
            if let Some(guest) = guest {
                guest.kill();
            }
            Err(error.into())
        }
    }
}

/// What the machine's process may use. Files grow up to the largest disk, or to a snapshot of RAM.
fn limits(config: &MachineConfig) -> Limits {
    let memory = u64::from(config.memory_mib) << 20;
    let disks = config.disks.iter().filter(|disk| !disk.read_only);
    let largest =
        disks.flat_map(|disk| disk.extents.iter().map(|extent| extent.offset + extent.length)).max();
    Limits {
        file_size: largest.unwrap_or(0).max(memory + PRIVATE_MEMORY),
        descriptors: DESCRIPTORS,
        private_memory: memory + PRIVATE_MEMORY + PRIVATE_MEMORY_PER_VCPU * u64::from(config.vcpus),
        processes: None,
    }
}
