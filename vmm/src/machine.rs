//! What every accelerator gets: a checked configuration with its files and devices, ready to be plugged into a transport.

use std::fs::File;
use std::time::Instant;

use crate::config::MachineConfig;
use crate::console::ConsoleRing;
use crate::jail::cgroup::{Cgroup, OutOfMemory};
use crate::jail::{Strength, filter};
use crate::virtio::VirtioDevice;

/// The parts of one machine. An accelerator's `run` consumes them and returns an [`crate::control::ExitReport`].
pub struct Parts {
    /// The checked configuration.
    pub config: MachineConfig,
    /// The guest kernel.
    pub kernel: File,
    /// The initramfs with the agent.
    pub initramfs: File,
    /// /dev/kvm, for the `kvm` accelerator.
    pub kvm: Option<File>,
    /// Disks first, in the order of the configuration, then network interfaces, shared folders, vsock, balloon, console, rng.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the guest's console output is kept.
    pub console: ConsoleRing,
    /// The host's control groups.
    pub cgroup: Cgroup,
    /// Tells whether the host ran out of memory for it.
    pub out_of_memory: OutOfMemory,
    /// How this process is shut in.
    pub confinement: Confinement,
    /// This process's page map, of a machine that is restored.
    pub pagemap: Option<File>,
    /// The snapshot to go on from, if it is not booted.
    pub restore: Option<Restore>,
}

/// A snapshot's files.
#[derive(Debug)]
pub struct Restore {
    /// The state.
    pub state: File,
    /// RAM, mapped privately.
    pub memory: File,
    /// A list of pages to read ahead.
    pub working_set: Option<File>,
    /// Do not let the guest run yet.
    pub paused: bool,
}

/// What keeps this process in, as far as it is done, and what is still to be done before the guest runs.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// What has been done.
    pub strength: Strength,
    /// Whether each thread is to be put under its system call filter. Not where the VMM is a library in another program.
    pub filters: bool,
    /// When the configuration arrived.
    pub arrival: Instant,
}

impl Default for Confinement {
    fn default() -> Self {
        Self { strength: Strength::FilterOnly, filters: false, arrival: Instant::now() }
    }
}

impl Confinement {
    /// Puts the calling thread, and what it starts, under the filter of its role, if there are to be filters.
    ///
    /// # Errors
    /// The host refused it.
    pub fn confine(&self, role: filter::Role) -> Result<(), crate::jail::StepError> {
        if self.filters { filter::install(role) } else { Ok(()) }
    }

    /// Microseconds since the configuration arrived.
    #[must_use]
    pub fn micros(&self) -> u64 {
        u64::try_from(self.arrival.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
