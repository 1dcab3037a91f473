//! Snapshots: the state of a machine that rests, in a file, and its RAM, in another.
//!
//! [`format`] is the file of the state (versioned, checksummed, bounded), [`ram`] writes RAM whole or what changed of it,
//! [`working_set`] lists the pages that a restored machine touches, so that the next one finds them at hand. What the
//! state consists of is the accelerator's affair.

pub mod format;
pub mod ram;
pub mod working_set;

use crate::control::{Refusal, RefusalKind};

/// Why a snapshot could not be written or restored. The text is shown to people as it is.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file is none.
    #[error("it is no snapshot of a machine")]
    NotOne,
    /// Another version of the format.
    #[error("it has version {found} of the format, this VMM reads {}", format::VERSION)]
    Version {
        /// The file's version.
        found: u32,
    },
    /// A part of the file is missing, or there is more than a snapshot has.
    #[error("it has {found} bytes where it tells of {told}, or more than {}", format::MAX_STATE)]
    Size {
        /// What the file holds.
        found: u64,
        /// What its header tells.
        told: u64,
    },
    /// The bytes are not what was written.
    #[error("it is damaged: its checksum is wrong")]
    Checksum,
    /// The bytes make no sense.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// It is of another machine.
    #[error("it is of a machine with {saved} {what}, this one has {here}")]
    Machine {
        /// What differs.
        what: &'static str,
        /// In the snapshot.
        saved: String,
        /// In the configuration.
        here: String,
    },
    /// It was taken on another CPU.
    #[error("it was taken on another CPU: {saved}; this host's is {here}")]
    Cpu {
        /// Make, family and model then.
        saved: String,
        /// And here.
        here: String,
    },
    /// The host lacks a feature that the guest was shown.
    #[error("this host's CPU or KVM lacks a feature that the guest uses: {0}")]
    Feature(String),
    /// KVM does not take a register.
    #[error("this host's KVM does not take the value {value:#x} of model-specific register {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// Its value.
        value: u64,
    },
    /// A device does not take its state.
    #[error("{0}")]
    Device(#[from] Refusal),
    /// A file cannot be used.
    #[error("{what}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The host's error.
        error: std::io::Error,
    },
}

impl SnapshotError {
    fn file(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::File { what, error }
    }

    /// As the answer to a request.
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Device(refusal) => refusal,
            Self::File { .. } => Refusal::new(RefusalKind::Host, format!("snapshot: {self}")),
            _ => Refusal::new(RefusalKind::Invalid, format!("snapshot: {self}")),
        }
    }
}
