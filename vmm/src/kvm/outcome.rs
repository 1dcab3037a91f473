//! How a machine's end is agreed on: the first reason wins, and everybody stops.

use std::io;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::control::ExitReason;

/// Why the machine ended, once it has.
#[derive(Debug)]
pub struct Outcome {
    ended: OnceLock<(ExitReason, String)>,
    event: EventFd,
}

impl Outcome {
    /// No end yet.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ended: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, reason: ExitReason, detail: impl Into<String>) {
        let _ = self.ended.set((reason, detail.into()));
        // An eventfd's counter does not overflow by ones.
        let _ = self.event.write(1);
    }

    /// Whether the machine has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// How the machine ended.
    #[must_use]
    pub fn get(&self) -> Option<(ExitReason, String)> {
        self.ended.get().cloned()
    }

    /// Readable from the end on.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
