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

/// A pseudo terminal for the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TerminalMode {
    /// Pipes.
    #[default]
    None,
    /// A terminal, in the size of the caller's.
    Allocate,
}

/// Everything that `run` can be told.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// `oci:DIR[:tag]`, `oci-archive:FILE`, `docker-archive:FILE` or a registry reference.
    pub image: String,
    /// Replaces the image's Cmd when not empty.
    pub command: Vec<String>,
    /// Replaces the image's Entrypoint; an empty one clears it.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, later ones win over earlier ones and over the image's.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Host name; the container's short id when absent.
    pub hostname: Option<String>,
    /// Pass the caller's standard input on.
    pub interactive: bool,
    /// Give the container a terminal.
    pub terminal: TerminalMode,
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// Memory limit of the container in bytes, at least [`MIN_MEMORY_BYTES`].
    pub memory: Option<u64>,
    /// CPU time limit in thousandths of a CPU.
    pub milli_cpus: Option<u32>,
    /// Which accelerator.
    pub accelerator: AcceleratorChoice,
    /// The weakest wall accepted.
    pub isolation: Isolation,
}
