//! What a caller may ask of a container, in checked types.

use serde::{Deserialize, Serialize};
use vmm::config::Accelerator;

/// Guest memory in MiB when the caller names no limit. It is taken from the host only as the guest touches it.
pub const DEFAULT_MEMORY_MIB: u32 = 512;
/// The same in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = (DEFAULT_MEMORY_MIB as u64) << 20;
/// Guest memory beside the container's own limit, for the guest's kernel and agent, in MiB.
pub const GUEST_OVERHEAD_MIB: u32 = 64;
/// Least memory limit of a container, as Docker's: 6 MiB.
pub const MIN_MEMORY_BYTES: u64 = 6 << 20;

/// Which accelerator may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceleratorChoice {
    /// The strongest one that runs guest kernels at full speed here.
    #[default]
    Auto,
    /// This one, however slow.
    Named(Accelerator),
}

/// The weakest wall that the caller accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Whatever the accelerator gives.
    #[default]
    Any,
    /// A hardware virtual machine, nothing weaker.
    Vm,
}
