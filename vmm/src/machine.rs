//! What every accelerator gets: a checked configuration with its files and devices, ready to be plugged into a transport.

use std::fs::File;

use crate::config::MachineConfig;
use crate::console::ConsoleRing;
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
}
