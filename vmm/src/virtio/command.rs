//! What the supervisor may ask of a device while its machine runs, and what a device tells about itself.

use serde::{Deserialize, Serialize};

use crate::config::RateLimit;

/// A change of a running device. Takes effect at once; a reset by the driver does not undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// New limits of a disk.
    LimitDisk(RateLimit),
    /// New limits of a disk for each way.
    LimitDiskWays {
        /// What the guest reads.
        read: RateLimit,
        /// What the guest writes, discards or zeroes.
        write: RateLimit,
    },
    /// New limits of a network interface.
    LimitNet {
        /// What the guest receives.
        receive: RateLimit,
        /// What the guest sends.
        send: RateLimit,
    },
    /// A new size of the balloon: so much of its memory the guest shall give back.
    ResizeBalloon {
        /// The size in MiB, at most the guest's memory.
        mib: u32,
    },
    /// Asks the guest for new statistics of its memory; they are among the balloon's counters once it has answered.
    AskStatistics,
    /// Plugs the cable of a network interface in, or pulls it.
    SetLink {
        /// In.
        up: bool,
    },
}

/// Why a command is refused. The text is shown to people as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It is meant for another kind of device.
    #[error("{0} takes no such command")]
    Unsupported(String),
    /// A number in it is out of bounds.
    #[error("{0}")]
    Bounds(#[from] crate::config::ConfigError),
}

/// A number that a device counts, by its name, such as `received_bytes`.
pub type Counter = (&'static str, u64);
