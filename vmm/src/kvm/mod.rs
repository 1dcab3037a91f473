//! The `kvm` accelerator: our own machine around /dev/kvm.
//!
//! [`probe`] tells what a /dev/kvm is good for; [`run`] builds a machine of [`Parts`], runs it to its end and tells how it ended.
//! Nothing of the machine outlives `run`.

mod boot;
mod bus;
mod controls;
mod cpu;
mod events;
mod exit;
mod host;
pub mod layout;
mod machine;
mod memory;
mod mptable;
mod outcome;
mod probe;
mod quirks;
mod serial;
mod state;
mod threads;
mod vcpu;

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use kvm_ioctls::Kvm;
use vm_memory::GuestMemoryError;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::machine::Machine;
use crate::control::{ExitReason, ExitReport, Session};
use crate::machine::Parts;
use crate::snapshot::SnapshotError;

pub use self::boot::{command_line, fill};
pub use self::memory::Ram;
pub use self::probe::{Probe, probe};
pub use self::state::MachineState;

/// Why a machine could not be built or started. The text is shown to people as it is.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The configuration came without /dev/kvm.
    #[error("the machine was given no /dev/kvm")]
    NoDevice,
    /// The probe found no usable KVM.
    #[error("/dev/kvm cannot run a guest: {0}")]
    Unusable(String),
    /// KVM's interface is not the stable one.
    #[error("/dev/kvm has interface version {0}, not 12")]
    Version(i32),
    /// A capability is missing.
    #[error("/dev/kvm lacks {0}")]
    Lacks(&'static str),
    /// A call to KVM or the host failed.
    #[error("cannot {what}: {source}")]
    Call {
        /// What was to be done.
        what: &'static str,
        /// The host's error.
        source: errno::Error,
    },
    /// The probe's guest did something else than it was told.
    #[error("a trial guest did not run: {0}")]
    Probe(String),
    /// The host is out of descriptors or memory.
    #[error("the host refused a resource: {0}")]
    Host(#[from] io::Error),
    /// Guest RAM could not be reserved.
    #[error("guest memory cannot be reserved: {0}")]
    Memory(String),
    /// Guest RAM could not be written while the machine was built.
    #[error("guest memory cannot be written: {0}")]
    Write(GuestMemoryError),
    /// The kernel is none, or does not fit.
    #[error("the guest kernel cannot be loaded: {0}")]
    Kernel(String),
    /// The initramfs cannot be read.
    #[error("the initramfs cannot be read: {0}")]
    Initramfs(io::Error),
    /// The initramfs does not fit.
    #[error("the initramfs of {size} bytes does not fit into the {room} bytes that the kernel leaves free")]
    InitramfsSize {
        /// Its size.
        size: u64,
        /// Bytes between the kernel's end and the end of low memory.
        room: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes, the kernel takes {max}", max = layout::COMMAND_LINE_BYTES)]
    CommandLine(usize),
    /// There are more devices than interrupt lines.
    #[error("{0} devices: a machine has at most {max}", max = layout::MAX_VIRTIO)]
    Devices(usize),
    /// The list of CPU features is too long for KVM.
    #[error("the list of CPU features is too long")]
    Cpuid,
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(event_manager::Error),
    /// A snapshot cannot be restored here.
    #[error("the snapshot cannot be restored: {0}")]
    Snapshot(#[from] SnapshotError),
    /// A thread could not be shut in.
    #[error("the VMM's jail: {0}")]
    Jail(#[from] crate::jail::StepError),
}

impl KvmError {
    fn call(what: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Call { what, source }
    }
}

/// Builds the machine, runs it to its end, and tells how it ended. [`crate::control::Event::Started`] is sent right before
/// the first guest instruction; the caller sends the report.
#[must_use]
pub fn run(parts: Parts, session: &mut Session) -> ExitReport {
    let console = parts.console.clone();
    let (reason, detail) = match Machine::build(parts) {
        Ok(machine) => machine.run(session),
        Err(error) => (ExitReason::BootFailed, error.to_string()),
    };
    ExitReport { reason, detail, console: console.text() }
}

/// A handle of our own to an open /dev/kvm.
fn open(device: &File) -> Result<Kvm, KvmError> {
    let device = device.try_clone()?;
    // SAFETY: the descriptor has just been made for us and is owned by nobody else. If it is not /dev/kvm, its calls fail.
    Ok(unsafe { Kvm::from_raw_fd(device.into_raw_fd()) })
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}
