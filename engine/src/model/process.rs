//! A process of a container: how it ended, and what it runs on.

use serde::{Deserialize, Serialize};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outcome {
    /// The exit code of its process, or 128 plus the signal that killed it; 137 if its supervisor died.
    pub code: u8,
    /// The guest's kernel killed a process for lack of memory.
    pub oom_killed: bool,
    /// Why it could not be started, or why its machine failed: one line. Empty if its process ended by itself.
    pub error: String,
}

/// The machine that a container runs in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunningMachine {
    /// Its supervisor's process number.
    pub supervisor: u32,
    /// Its VMM's process number: what Docker's clients see as the container's.
    pub vmm: u32,
    /// What executes it: `kvm` or `uml`.
    pub accelerator: String,
    /// What stands between guest and host, for people.
    pub boundary: String,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}
